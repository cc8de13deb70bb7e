"""The queues of the Service Bus stand-in, without sockets and with a clock that only moves when told to."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from local.service_bus import codec
from local.service_bus.broker import (
    Broker,
    LockLostError,
    Message,
    MessageNotFoundError,
    Queue,
    QueueConfig,
    State,
    read_queue_configs,
)
from local.service_bus.codec import CodecError, Described, Symbol
from local.service_bus.message import Content, parse_message


@dataclass
class FakeClock:
    """Seconds that pass only by `advance`."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def queue_with(clock: FakeClock, **config: float) -> Queue:
    return Broker([QueueConfig(name="work", **config)], clock).queues[0]  # type: ignore[arg-type]


def dead_letters(queue: Queue) -> Queue:
    assert queue.dead_letters
    return queue.dead_letters


def received(queue: Queue) -> Message:
    message = queue.receive()
    assert message, "a message was expected"
    return message


def lock_of(queue: Queue) -> UUID:
    token = received(queue).lock_token
    assert token
    return token


def where(queue: Queue) -> dict[str, int]:
    return {state: count for state, count in queue.counts().items() if count}


SETTLEMENTS: dict[str, Callable[[Queue, UUID], object]] = {
    "complete": lambda queue, token: queue.complete(token),
    "abandon": lambda queue, token: queue.abandon(token),
    "release": lambda queue, token: queue.release(token),
    "defer": lambda queue, token: queue.defer(token),
    "dead_letter": lambda queue, token: queue.dead_letter(token, "Broken", "no such run"),
}


@pytest.mark.parametrize(
    ("settlement", "expected", "delivery_count"),
    [
        ("complete", {}, None),
        ("abandon", {"active": 1}, 1),
        ("release", {"active": 1}, 0),
        ("defer", {"deferred": 1}, 1),
        ("dead_letter", {"dead_letter": 1}, 0),
    ],
)
def test_settling_moves_the_message(
    clock: FakeClock, settlement: str, expected: dict[str, int], delivery_count: int | None
) -> None:
    queue = queue_with(clock)
    queue.send(Content(body=b"x"))
    token = lock_of(queue)
    assert where(queue) == {"locked": 1}

    SETTLEMENTS[settlement](queue, token)

    assert where(queue) == expected
    left = [*queue.messages.values(), *dead_letters(queue).messages.values()]
    assert [message.delivery_count for message in left] == ([] if delivery_count is None else [delivery_count])


@pytest.mark.parametrize("settlement", [*SETTLEMENTS, "renew"])
@pytest.mark.parametrize("lost_by", ["time", "settling"])
def test_a_lost_lock_settles_nothing(clock: FakeClock, settlement: str, lost_by: str) -> None:
    queue = queue_with(clock, lock_seconds=60)
    queue.send(Content())
    token = lock_of(queue)
    if lost_by == "time":
        clock.advance(60)
    else:
        queue.release(token)

    with pytest.raises(LockLostError):
        {**SETTLEMENTS, "renew": Queue.renew}[settlement](queue, token)

    assert where(queue) == {"active": 1}


def test_a_lock_that_ends_counts_as_a_failed_delivery(clock: FakeClock) -> None:
    queue = queue_with(clock, lock_seconds=60)
    queue.send(Content())
    queue.receive()
    clock.advance(59.9)
    assert queue.receive() is None

    clock.advance(0.1)

    assert received(queue).delivery_count == 1


def test_a_renewed_lock_lasts_from_the_renewal(clock: FakeClock) -> None:
    queue = queue_with(clock, lock_seconds=60)
    queue.send(Content())
    token = lock_of(queue)
    clock.advance(50)

    assert queue.renew(token) == clock.now + 60

    clock.advance(59)
    assert where(queue) == {"locked": 1}
    clock.advance(1)
    assert where(queue) == {"active": 1}


@pytest.mark.parametrize("failure", ["abandon", "lock ends"])
def test_the_last_allowed_delivery_ends_in_the_dead_letter_queue(clock: FakeClock, failure: str) -> None:
    queue = queue_with(clock, lock_seconds=60, max_delivery_count=3)
    queue.send(Content(body=b"poison"))
    for delivery in range(3):
        assert received(queue).delivery_count == delivery
        if failure == "abandon":
            queue.abandon(next(m.lock_token for m in queue.messages.values() if m.lock_token))
        clock.advance(60)

    assert queue.receive() is None
    poison = received(dead_letters(queue))
    assert poison.content.body == b"poison"
    assert poison.delivery_count == 3
    assert poison.dead_letter["DeadLetterReason"] == "MaxDeliveryCountExceeded"


def test_a_dead_letter_queue_is_a_queue_without_a_delivery_limit(clock: FakeClock) -> None:
    queue = queue_with(clock, max_delivery_count=2)
    queue.send(Content(body=b"x"))
    queue.dead_letter(lock_of(queue), "Broken", "no such run")
    dead = dead_letters(queue)
    for _ in range(5):
        dead.abandon(lock_of(dead))

    message = received(dead)

    assert message.dead_letter == {"DeadLetterReason": "Broken", "DeadLetterErrorDescription": "no such run"}
    assert message.delivery_count == 5


def test_dead_lettering_in_a_dead_letter_queue_keeps_the_message_there(clock: FakeClock) -> None:
    queue = queue_with(clock)
    queue.send(Content(body=b"x"))
    queue.dead_letter(lock_of(queue), "Broken", None)
    dead = dead_letters(queue)

    dead.dead_letter(lock_of(dead), "Looked at", None)

    message = received(dead)
    assert (message.content.body, message.dead_letter) == (b"x", {"DeadLetterReason": "Looked at"})


def test_a_deferred_message_that_is_dead_lettered_is_no_longer_deferred(clock: FakeClock) -> None:
    queue = queue_with(clock)
    number = queue.send(Content(body=b"x"))
    queue.defer(lock_of(queue))
    [message] = queue.receive_deferred([number])
    assert message.lock_token
    queue.dead_letter(message.lock_token, "Broken", None)
    dead = dead_letters(queue)

    dead.abandon(lock_of(dead))

    assert received(dead).content.body == b"x"


def test_a_scheduled_message_waits_for_its_time(clock: FakeClock) -> None:
    queue = queue_with(clock)
    queue.send(Content(body=b"later", scheduled_for=clock.now + 30))
    assert where(queue) == {"scheduled": 1}
    assert queue.receive() is None

    clock.advance(30)

    message = received(queue)
    assert (message.content.body, message.enqueued_at) == (b"later", clock.now)


def test_a_time_in_the_past_is_now(clock: FakeClock) -> None:
    queue = queue_with(clock)
    queue.send(Content(scheduled_for=clock.now - 30))
    assert received(queue).enqueued_at == clock.now


def test_only_a_scheduled_message_can_be_cancelled(clock: FakeClock) -> None:
    queue = queue_with(clock)
    later = queue.send(Content(scheduled_for=clock.now + 30))
    now = queue.send(Content())

    with pytest.raises(MessageNotFoundError):
        queue.cancel_scheduled([later, now])
    assert where(queue) == {"scheduled": 1, "active": 1}

    queue.cancel_scheduled([later])
    assert where(queue) == {"active": 1}


@pytest.mark.parametrize(
    ("window", "ids", "seconds_between", "kept"),
    [
        pytest.param(60, ["a", "a"], 59, 1, id="within the window"),
        pytest.param(60, ["a", "a"], 60, 2, id="after the window"),
        pytest.param(60, ["a", "b"], 0, 2, id="two ids"),
        pytest.param(60, [None, None], 0, 2, id="no id"),
        pytest.param(0, ["a", "a"], 0, 2, id="turned off"),
        pytest.param(60, ["a", "a", "a"], 40, 2, id="a duplicate does not prolong the window"),
    ],
)
def test_duplicates_are_dropped_within_the_window(
    clock: FakeClock, window: float, ids: list[str | None], seconds_between: float, kept: int
) -> None:
    queue = queue_with(clock, duplicate_detection_seconds=window)
    for message_id in ids:
        queue.send(Content(message_id=message_id))
        clock.advance(seconds_between)
    assert where(queue) == {"active": kept}


@pytest.mark.parametrize("first_is_scheduled", [True, False])
def test_a_scheduled_copy_with_a_known_id_is_a_duplicate(clock: FakeClock, first_is_scheduled: bool) -> None:
    queue = queue_with(clock, duplicate_detection_seconds=3600)
    times = [clock.now + 30, None] if first_is_scheduled else [None, clock.now + 30]
    for scheduled_for in times:
        queue.send(Content(message_id="run-1:original", scheduled_for=scheduled_for))
    assert where(queue) == ({"scheduled": 1} if first_is_scheduled else {"active": 1})


def test_an_id_is_remembered_after_its_message_is_settled(clock: FakeClock) -> None:
    queue = queue_with(clock, duplicate_detection_seconds=3600)
    queue.send(Content(message_id="a"))
    queue.complete(lock_of(queue))
    queue.send(Content(message_id="a"))
    assert where(queue) == {}


@pytest.mark.parametrize(("dead_letter_on_expiration", "expected"), [(False, {}), (True, {"dead_letter": 1})])
@pytest.mark.parametrize(("time_to_live", "seconds"), [(5, 5), (None, 100), (1000, 100)])
def test_a_message_expires_after_the_shorter_lifetime(
    clock: FakeClock,
    time_to_live: float | None,
    seconds: float,
    dead_letter_on_expiration: bool,
    expected: dict[str, int],
) -> None:
    queue = queue_with(clock, default_ttl_seconds=100, dead_letter_on_expiration=dead_letter_on_expiration)
    queue.send(Content(time_to_live=time_to_live))
    clock.advance(seconds - 0.1)
    assert where(queue) == {"active": 1}

    clock.advance(0.1)

    assert where(queue) == expected


def test_a_message_in_use_does_not_expire(clock: FakeClock) -> None:
    queue = queue_with(clock, lock_seconds=60)
    queue.send(Content(time_to_live=5, body=b"locked"))
    token = lock_of(queue)
    clock.advance(10)
    assert where(queue) == {"locked": 1}

    queue.abandon(token)

    assert where(queue) == {}


def test_a_deferred_message_is_only_received_by_its_number(clock: FakeClock) -> None:
    queue = queue_with(clock, default_ttl_seconds=100)
    number = queue.send(Content(body=b"aside"))
    queue.defer(lock_of(queue))
    clock.advance(1000)
    assert queue.receive() is None

    [message] = queue.receive_deferred([number])
    assert message.lock_token
    queue.abandon(message.lock_token)
    assert where(queue) == {"deferred": 1}, "an abandoned deferred message stays deferred"

    with pytest.raises(MessageNotFoundError):
        queue.receive_deferred([number, number + 1])
    [message] = queue.receive_deferred([number])
    assert message.lock_token
    queue.complete(message.lock_token)
    assert where(queue) == {}


def test_peek_shows_every_state_in_order_and_locks_nothing(clock: FakeClock) -> None:
    queue = queue_with(clock)
    queue.send(Content(body=b"deferred"))
    queue.defer(lock_of(queue))
    queue.send(Content(body=b"locked"))
    queue.receive()
    queue.send(Content(body=b"scheduled", scheduled_for=clock.now + 30))
    queue.send(Content(body=b"ready"))

    assert [message.content.body for message in queue.peek(1, 10)] == [b"deferred", b"locked", b"scheduled", b"ready"]
    assert [message.content.body for message in queue.peek(2, 2)] == [b"locked", b"scheduled"]
    assert received(queue).content.body == b"ready"


def test_queues_are_found_by_path_in_any_letter_case() -> None:
    broker = Broker([QueueConfig(name="Failed-Runs")])
    queue = broker.queues[0]
    assert broker.find("failed-runs") is queue
    assert broker.find("failed-runs/$deadletterqueue") is queue.dead_letters
    assert broker.find("emails") is None


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({"name": "work"}, "expected a list"),
        ([{"lock_seconds": 60}], "a queue has a name"),
        ([{"name": "work", "lock_secs": 60}], "lock_secs"),
        ([{"name": "work", "lock_seconds": "60"}], "numbers for"),
    ],
)
def test_a_faulty_queue_file_is_named(tmp_path: Path, document: object, fault: str) -> None:
    path = tmp_path / "queues.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=fault):
        read_queue_configs(path)


def test_a_queue_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "queues.json"
    path.write_text(json.dumps([{"name": "work", "lock_seconds": 5}, {"name": "emails"}]))
    assert read_queue_configs(path) == [QueueConfig(name="work", lock_seconds=5), QueueConfig(name="emails")]


def test_two_queues_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="configured twice"):
        Broker([QueueConfig(name="work"), QueueConfig(name="Work")])


def deferred_in(queue: Queue) -> list[int]:
    return [number for number, message in queue.messages.items() if message.state is State.DEFERRED]


@dataclass
class Held:
    """A message that a receiver holds, and until when."""

    queue: Queue
    lock_token: UUID
    body: bytes
    until: float


class NothingIsLost(RuleBasedStateMachine):
    """Whatever clients do and however time passes, each accepted message is in one place until it is settled."""

    WINDOW = 50
    LOCK = 20
    MAX_DELIVERIES = 3

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.queue = queue_with(
            self.clock,
            lock_seconds=self.LOCK,
            max_delivery_count=self.MAX_DELIVERIES,
            duplicate_detection_seconds=self.WINDOW,
            default_ttl_seconds=200,
            dead_letter_on_expiration=True,
        )
        self.both = [self.queue, dead_letters(self.queue)]
        self.unsettled: set[bytes] = set()
        self.seen: dict[str, float] = {}
        self.held: list[Held] = []
        self.bodies = (b"%d" % number for number in itertools.count())
        for _ in range(3):
            self.send(message_id=None, delay=0)

    @rule(message_id=st.sampled_from([None, "a", "b"]), delay=st.sampled_from([0, 0, 30]))
    def send(self, message_id: str | None, delay: float) -> None:
        body = next(self.bodies)
        self.queue.send(Content(message_id=message_id, scheduled_for=self.clock.now + delay, body=body))
        if message_id and self.clock.now - self.seen.get(message_id, -self.WINDOW) < self.WINDOW:
            return
        if message_id:
            self.seen[message_id] = self.clock.now
        self.unsettled.add(body)

    @rule(which=st.integers(0, 1), then=st.sampled_from(["keep", "keep", *SETTLEMENTS]))
    def receive(self, which: int, then: str) -> None:
        queue = self.both[which]
        message = queue.receive()
        for each in [message] if message else queue.receive_deferred(deferred_in(queue)):
            assert each.lock_token
            self.held.append(Held(queue, each.lock_token, each.content.body, self.clock.now + self.LOCK))
            if then != "keep":
                self.settle_last(then)

    @precondition(lambda self: self.held)
    @rule(settlement=st.sampled_from(list(SETTLEMENTS)))
    def settle_last(self, settlement: str) -> None:
        held = self.held.pop()
        if held.until <= self.clock.now:
            with pytest.raises(LockLostError):
                SETTLEMENTS[settlement](held.queue, held.lock_token)
        else:
            SETTLEMENTS[settlement](held.queue, held.lock_token)
            self.unsettled -= {held.body} if settlement == "complete" else set()

    @rule()
    def renew_all(self) -> None:
        for held in self.held:
            if held.until > self.clock.now:
                held.until = held.queue.renew(held.lock_token)

    @rule()
    def cancel_one(self) -> None:
        scheduled = [m for m in self.queue.messages.values() if m.state is State.SCHEDULED][:1]
        self.queue.cancel_scheduled([message.sequence_number for message in scheduled])
        self.unsettled -= {message.content.body for message in scheduled}

    @rule(seconds=st.sampled_from([1, 15, 20, 60, 200]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for queue in self.both:
            queue.tick()

    @invariant()
    def each_message_is_in_one_place(self) -> None:
        messages = [message for queue in self.both for message in queue.messages.values()]
        assert Counter(message.content.body for message in messages) == Counter(self.unsettled)
        assert sum(self.queue.counts().values()) == len(self.unsettled)

    @invariant()
    def locks_and_limits_hold(self) -> None:
        locked = {
            message.lock_token for queue in self.both for message in queue.messages.values() if message.lock_token
        }
        assert locked == {held.lock_token for held in self.held if held.until > self.clock.now}
        assert all(message.delivery_count < self.MAX_DELIVERIES for message in self.queue.messages.values())

    def teardown(self) -> None:
        """In the end every message that was not settled can be received once more, and once only."""
        self.time_passes(1000)
        delivered = Counter[bytes]()
        for queue in self.both:
            delivered.update(message.content.body for message in queue.receive_deferred(deferred_in(queue)))
            while message := queue.receive():
                delivered[message.content.body] += 1
        assert delivered == Counter(self.unsettled)


TestNothingIsLost = NothingIsLost.TestCase
TestNothingIsLost.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


SIMPLE_VALUES = (
    st.none()
    | st.booleans()
    | st.builds(codec.UByte, st.integers(0, 2**8 - 1))
    | st.builds(codec.UInt, st.integers(0, 2**32 - 1))
    | st.builds(codec.ULong, st.integers(0, 2**64 - 1))
    | st.builds(codec.Int, st.integers(-(2**31), 2**31 - 1))
    | st.builds(codec.Long, st.integers(-(2**63), 2**63 - 1))
    | st.builds(codec.Timestamp, st.integers(-(2**63), 2**63 - 1))
    | st.builds(codec.Float, st.floats(width=32, allow_nan=False))
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.uuids()
    | st.builds(Symbol, st.text(st.characters(codec="ascii")))
)
VALUES = st.recursive(
    SIMPLE_VALUES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.builds(codec.Array, st.lists(st.uuids(), max_size=4))
        | st.builds(Described, st.builds(codec.ULong, st.integers(0, 2**64 - 1)) | st.builds(Symbol), inner)
    ),
    max_leaves=12,
)


def types_in(value: object) -> object:
    match value:
        case Described():
            return Described, types_in(value.descriptor), types_in(value.value)
        case list():
            return type(value), [types_in(item) for item in value]
        case dict():
            return dict, [(types_in(key), types_in(item)) for key, item in value.items()]
        case _:
            return type(value)


@given(VALUES)
@settings(deadline=None)
def test_values_keep_their_type_on_the_wire(value: object) -> None:
    decoded = codec.decode(codec.encode(value))
    assert decoded == value
    assert types_in(decoded) == types_in(value)


@given(st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_a_value_or_a_codec_error(data: bytes) -> None:
    try:
        decoded = codec.decode(data)
    except CodecError:
        return
    assert types_in(codec.decode(codec.encode(decoded))) == types_in(decoded)


@given(VALUES, st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_value_that_is_cut_off_is_a_codec_error(value: object, data: st.DataObject) -> None:
    encoded = codec.encode(value)
    with pytest.raises(CodecError):
        codec.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(5, id="a number without a width"),
        pytest.param(codec.UByte(256), id="a number that does not fit"),
        pytest.param(codec.Array([uuid4(), "x"]), id="an array of two types"),
        pytest.param(object(), id="something else"),
    ],
)
def test_what_has_no_amqp_form_is_refused(value: object) -> None:
    with pytest.raises(CodecError):
        codec.encode(value)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes.fromhex("f0 00000005 ffffffff 40"), id="an array of four billion nulls"),
        pytest.param(b"\x00" * 5000, id="descriptors without end"),
        pytest.param(bytes.fromhex("c1 03 01 40 40"), id="a map with a key and no value"),
        pytest.param(bytes.fromhex("d1 00000007 00000002 45 40 40"), id="a list as a key"),
        pytest.param(bytes.fromhex("a1 01 ff"), id="a string that is not UTF-8"),
        pytest.param(b"\x40\x40", id="two values"),
    ],
)
def test_hostile_bytes_are_a_codec_error(data: bytes) -> None:
    with pytest.raises(CodecError):
        codec.decode(data)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(codec.encode("bare"), id="not a section"),
        pytest.param(codec.encode(Described(codec.ULong(0x10), [])), id="a frame body"),
        pytest.param(codec.encode(Described(codec.ULong(0x72), ["not", "a", "map"])), id="annotations as a list"),
    ],
)
def test_a_message_that_is_none_is_a_codec_error(payload: bytes) -> None:
    with pytest.raises(CodecError):
        parse_message(payload)
