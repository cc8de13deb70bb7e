"""The Service Bus stand-in on a socket, driven by the official client and, where that never goes, by bare frames."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest
from azure.servicebus import (
    ServiceBusClient,
    ServiceBusMessage,
    ServiceBusMessageState,
    ServiceBusReceivedMessage,
    ServiceBusReceiveMode,
    ServiceBusReceiver,
    ServiceBusSender,
    ServiceBusSubQueue,
)
from azure.servicebus.aio import ServiceBusClient as AsyncServiceBusClient
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    MessagingEntityNotFoundError,
)

from local.service_bus import QueueConfig, running_broker
from local.service_bus.codec import (
    Described,
    Kind,
    Performative,
    UByte,
    UInt,
    ULong,
    decode,
    decode_performative,
    encode_frame,
)
from local.service_bus.message import DATA, encode_section, parse_transfer
from local.service_bus.server import connection_string

WAIT = 5.0
"""Seconds to wait for a message that is expected; one that is not expected is waited for as long as `NOT_LONG`."""
NOT_LONG = 0.3
SHORT_LOCK = 1.0

ACCEPTED, REJECTED, RELEASED, MODIFIED = 0x24, 0x25, 0x26, 0x27

ROOT = Path(__file__).resolve().parents[2]

QUEUES = [
    QueueConfig("work", max_delivery_count=3, duplicate_detection_seconds=3600),
    QueueConfig("short-lock", lock_seconds=SHORT_LOCK),
    # An idle receiver of the official client keeps credit for one message, so these have queues of their own.
    QueueConfig("competition"),
    QueueConfig("at-most-once"),
    QueueConfig("async"),
]


class Bus:
    """One client with all senders and receivers that the tests need.

    They are opened and closed together, in threads: each open takes a third of a second, each close a whole one.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = ServiceBusClient.from_connection_string(address, retry_total=0)
        self._senders = {queue.name: self.client.get_queue_sender(queue.name) for queue in QUEUES}
        receiver = self.client.get_queue_receiver
        self._receivers = {
            ("work", ""): receiver("work"),
            ("work", "dead letters"): receiver("work", sub_queue=ServiceBusSubQueue.DEAD_LETTER),
            ("short-lock", ""): receiver("short-lock"),
            ("competition", "one"): receiver("competition"),
            ("competition", "two"): receiver("competition"),
            ("at-most-once", ""): receiver("at-most-once", receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE),
            ("async", "dead letters"): receiver("async", sub_queue=ServiceBusSubQueue.DEAD_LETTER),
        }
        self._for_each_handler(lambda handler: handler.__enter__())

    def sender(self, queue: str) -> ServiceBusSender:
        return self._senders[queue]

    def receiver(self, queue: str, which: str = "") -> ServiceBusReceiver:
        return self._receivers[queue, which]

    def send(self, queue: str, *messages: ServiceBusMessage) -> None:
        self.sender(queue).send_messages(list(messages))

    def receive(self, queue: str, which: str = "") -> ServiceBusReceivedMessage:
        return only(self.receiver(queue, which).receive_messages(1, max_wait_time=WAIT))

    def receive_dead_letter(self, queue: str) -> ServiceBusReceivedMessage:
        """The next message of the dead-letter queue, settled."""
        message = self.receive(queue, "dead letters")
        self.receiver(queue, "dead letters").complete_message(message)
        return message

    def close(self) -> None:
        self._for_each_handler(lambda handler: handler.close())
        self.client.close()

    def _for_each_handler(self, action: Callable[[ServiceBusSender | ServiceBusReceiver], object]) -> None:
        handlers = [*self._senders.values(), *self._receivers.values()]
        with ThreadPoolExecutor(len(handlers)) as pool:
            list(pool.map(action, handlers))


@pytest.fixture(scope="module")
def bus() -> Iterator[Bus]:
    with running_broker(QUEUES) as address:
        client = Bus(address)
        yield client
        client.close()


def only(messages: list[ServiceBusReceivedMessage]) -> ServiceBusReceivedMessage:
    assert len(messages) == 1
    return messages[0]


def body(message: ServiceBusReceivedMessage) -> bytes:
    return b"".join(message.body)


def test_a_message_arrives_as_it_was_sent(bus: Bus) -> None:
    properties: dict[str | bytes, Any] = {
        "text": "grüß dich",
        "number": 7,
        "fraction": 2.0,
        "flag": True,
        "id": uuid4(),
        "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    }
    bus.send(
        "work",
        ServiceBusMessage(
            b'{"run_id": 1}',
            message_id="adb-1:17:original",
            application_properties=dict(properties),
            content_type="application/json",
            correlation_id="c-1",
            subject="failed_run",
            to="somewhere",
            reply_to="elsewhere",
            partition_key="p",
            time_to_live=timedelta(hours=1),
        ),
    )

    message = bus.receive("work")

    assert body(message) == b'{"run_id": 1}'
    as_received = properties | {"text": "grüß dich".encode(), "when": properties["when"].timestamp() * 1000}
    assert message.application_properties == {str(name).encode(): value for name, value in as_received.items()}
    assert (message.message_id, message.content_type, message.correlation_id) == (
        "adb-1:17:original",
        "application/json",
        "c-1",
    )
    assert (message.subject, message.to, message.reply_to, message.partition_key) == (
        "failed_run",
        "somewhere",
        "elsewhere",
        "p",
    )
    assert message.time_to_live == timedelta(hours=1)
    assert (message.delivery_count, message.state) == (0, ServiceBusMessageState.ACTIVE)
    assert message.enqueued_time_utc
    assert message.locked_until_utc
    assert abs(datetime.now(UTC) - message.enqueued_time_utc) < timedelta(seconds=10)
    assert (
        timedelta(seconds=50) < message.locked_until_utc - datetime.now(UTC) <= timedelta(seconds=61)
    )  # times travel in whole milliseconds
    bus.receiver("work").complete_message(message)


def test_a_batch_is_many_messages(bus: Bus) -> None:
    batch = bus.sender("work").create_message_batch()
    for number in range(50):
        batch.add_message(ServiceBusMessage(b"%d" % number, message_id=f"batch-{number}"))
    bus.sender("work").send_messages(batch)

    messages: list[ServiceBusReceivedMessage] = []
    while len(messages) < 50 and (more := bus.receiver("work").receive_messages(50, max_wait_time=WAIT)):
        messages += more
    for message in messages:
        bus.receiver("work").complete_message(message)

    assert [body(message) for message in messages] == [b"%d" % number for number in range(50)]
    assert [message.message_id for message in messages] == [f"batch-{number}" for number in range(50)]
    sequence_numbers = [message.sequence_number or 0 for message in messages]
    assert sequence_numbers == sorted(set(sequence_numbers))


def test_an_abandoned_message_comes_again_until_the_limit(bus: Bus) -> None:
    bus.send("work", ServiceBusMessage(b"poison", application_properties={"run_id": "17"}))
    for delivery in range(3):
        message = bus.receive("work")
        assert message.delivery_count == delivery
        bus.receiver("work").abandon_message(message)

    dead = bus.receive_dead_letter("work")

    assert (body(dead), dead.delivery_count) == (b"poison", 3)
    assert dead.dead_letter_reason == "MaxDeliveryCountExceeded"
    assert dead.application_properties
    assert dead.application_properties[b"run_id"] == b"17"


def test_a_dead_lettered_message_says_why(bus: Bus) -> None:
    bus.send("work", ServiceBusMessage(b"odd", message_id="odd"))
    bus.receiver("work").dead_letter_message(bus.receive("work"), reason="Unreadable", error_description="no run id")

    dead = bus.receive_dead_letter("work")

    assert (dead.message_id, dead.dead_letter_reason, dead.dead_letter_error_description) == (
        "odd",
        "Unreadable",
        "no run id",
    )


def test_a_deferred_message_is_received_and_settled_by_its_number(bus: Bus) -> None:
    receiver = bus.receiver("work")
    bus.send("work", ServiceBusMessage(b"aside"))
    message = bus.receive("work")
    number = message.sequence_number
    assert number
    receiver.defer_message(message)
    assert only(receiver.peek_messages(1, sequence_number=number)).state is ServiceBusMessageState.DEFERRED

    deferred = only(receiver.receive_deferred_messages(number))
    assert (body(deferred), deferred.delivery_count) == (b"aside", 1)
    receiver.renew_message_lock(deferred)
    receiver.complete_message(deferred)

    with pytest.raises(MessageNotFoundError):
        receiver.receive_deferred_messages(number)


@pytest.mark.parametrize("settlement", ["abandon_message", "defer_message", "dead_letter_message"])
def test_a_deferred_message_can_be_settled_in_every_way(bus: Bus, settlement: str) -> None:
    receiver = bus.receiver("work")
    bus.send("work", ServiceBusMessage(settlement))
    message = bus.receive("work")
    number = message.sequence_number
    assert number
    receiver.defer_message(message)

    getattr(receiver, settlement)(only(receiver.receive_deferred_messages(number)))

    if settlement == "dead_letter_message":
        assert body(bus.receive_dead_letter("work")) == settlement.encode()
    else:
        receiver.complete_message(only(receiver.receive_deferred_messages(number)))
    assert receiver.peek_messages(5, sequence_number=number) == []


def test_peeking_locks_nothing(bus: Bus) -> None:
    receiver = bus.receiver("work")
    bus.send("work", ServiceBusMessage(b"first"), ServiceBusMessage(b"second"))
    peeked = receiver.peek_messages(10, sequence_number=1)
    assert [body(message) for message in peeked] == [b"first", b"second"]

    messages = receiver.receive_messages(2, max_wait_time=WAIT)

    assert [body(message) for message in messages] == [b"first", b"second"]
    for message in messages:
        receiver.complete_message(message)
    assert receiver.peek_messages(10, sequence_number=1) == []


def test_a_lock_ends_unless_it_is_renewed(bus: Bus) -> None:
    receiver = bus.receiver("short-lock")
    bus.send("short-lock", ServiceBusMessage(b"slow work"))
    message = bus.receive("short-lock")
    first_end = message.locked_until_utc
    assert first_end
    time.sleep(SHORT_LOCK * 0.6)
    assert receiver.renew_message_lock(message) > first_end
    assert receiver.receive_messages(1, max_wait_time=SHORT_LOCK * 0.7) == []

    again = only(receiver.receive_messages(1, max_wait_time=WAIT))

    assert again.delivery_count == 1
    message._expiry = datetime.now(UTC) + timedelta(hours=1)  # else the client does not even ask the broker
    with pytest.raises(MessageLockLostError):
        receiver.complete_message(message)
    with pytest.raises(MessageLockLostError):
        receiver.renew_message_lock(message)
    receiver.complete_message(again)


@pytest.mark.parametrize("by", ["annotation", "management"])
def test_a_scheduled_message_arrives_at_its_time(bus: Bus, by: str) -> None:
    assert bus.receiver("work").peek_messages(10, sequence_number=1) == []  # opens the links, which takes a while
    due = datetime.now(UTC) + timedelta(seconds=0.7)
    if by == "annotation":
        bus.send("work", ServiceBusMessage(by, scheduled_enqueue_time_utc=due))
    else:
        bus.sender("work").schedule_messages(ServiceBusMessage(by), due)
    peeked = only(bus.receiver("work").peek_messages(10, sequence_number=1))
    assert (body(peeked), peeked.state) == (by.encode(), ServiceBusMessageState.SCHEDULED)

    message = bus.receive("work")
    bus.receiver("work").complete_message(message)

    assert datetime.now(UTC) >= due
    assert body(message) == by.encode()
    assert message.scheduled_enqueue_time_utc
    assert abs(message.scheduled_enqueue_time_utc - due) < timedelta(milliseconds=2)


def test_a_scheduled_message_can_be_cancelled_once(bus: Bus) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    numbers = bus.sender("work").schedule_messages([ServiceBusMessage(b"a"), ServiceBusMessage(b"b")], due)
    assert len(set(numbers)) == 2

    bus.sender("work").cancel_scheduled_messages(numbers)

    assert bus.receiver("work").peek_messages(10, sequence_number=1) == []
    with pytest.raises(MessageNotFoundError):
        bus.sender("work").cancel_scheduled_messages(numbers)


def test_a_duplicate_is_accepted_and_dropped(bus: Bus) -> None:
    bus.send("work", ServiceBusMessage(b"1", message_id="a"))
    bus.send("work", ServiceBusMessage(b"2", message_id="a"), ServiceBusMessage(b"3", message_id="b"))
    later = datetime.now(UTC) + timedelta(hours=1)
    bus.sender("work").schedule_messages(ServiceBusMessage(b"4", message_id="b"), later)
    bus.send("work", ServiceBusMessage(b"5", message_id="b", scheduled_enqueue_time_utc=later))

    peeked = bus.receiver("work").peek_messages(10, sequence_number=1)
    for _ in peeked:
        bus.receiver("work").complete_message(bus.receive("work"))

    assert [body(message) for message in peeked] == [b"1", b"3"]


def test_an_expired_message_is_gone(bus: Bus) -> None:
    bus.send("work", ServiceBusMessage(b"brief", time_to_live=timedelta(seconds=1)))  # the client rounds to seconds
    deadline = time.monotonic() + WAIT
    while bus.receiver("work").peek_messages(1, sequence_number=1):
        assert time.monotonic() < deadline, "the message outlived its time"
        time.sleep(0.02)
    assert bus.receiver("work").receive_messages(1, max_wait_time=NOT_LONG) == []


def test_a_large_message_passes_and_a_larger_one_is_refused(bus: Bus) -> None:
    large = bytes(range(256)) * 900
    bus.send("work", ServiceBusMessage(large))
    message = bus.receive("work")
    bus.receiver("work").complete_message(message)
    assert body(message) == large

    with pytest.raises(MessageSizeExceededError):
        bus.sender("work").send_messages(ServiceBusMessage(b"x" * 262_144))
    bus.send("work", ServiceBusMessage(b"the link still works"))
    bus.receiver("work").complete_message(bus.receive("work"))


def test_competing_receivers_share_the_messages(bus: Bus) -> None:
    receivers = [bus.receiver("competition", name) for name in ("one", "two")]
    bus.send("competition", *(ServiceBusMessage(b"%d" % number) for number in range(40)))

    def take(receiver: ServiceBusReceiver) -> list[bytes]:
        taken: list[bytes] = []
        while messages := receiver.receive_messages(5, max_wait_time=NOT_LONG):
            for message in messages:
                receiver.complete_message(message)
            taken += map(body, messages)
        return taken

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(take, receivers)

    assert sorted(one + two, key=int) == [b"%d" % number for number in range(40)]
    assert one
    assert two


def test_receive_and_delete_settles_by_receiving(bus: Bus) -> None:
    bus.send("at-most-once", ServiceBusMessage(b"once"))
    assert body(bus.receive("at-most-once")) == b"once"
    assert bus.receiver("at-most-once").peek_messages(1, sequence_number=1) == []


def test_an_unknown_queue_is_an_error(bus: Bus) -> None:
    with ThreadPoolExecutor(2) as pool:
        sender = pool.submit(bus.client.get_queue_sender("no-such-queue").__enter__)
        receiver = pool.submit(bus.client.get_queue_receiver("no-such-queue").__enter__)
    assert isinstance(sender.exception(), MessagingEntityNotFoundError)
    assert isinstance(receiver.exception(), MessagingEntityNotFoundError)


def test_the_asynchronous_client_works_as_well(bus: Bus) -> None:
    async def send_and_receive() -> list[bytes]:
        client = AsyncServiceBusClient.from_connection_string(bus.address, retry_total=0)
        sender, receiver = client.get_queue_sender("async"), client.get_queue_receiver("async")
        await sender.send_messages([ServiceBusMessage(b"%d" % number) for number in range(3)])
        messages = await receiver.receive_messages(3, max_wait_time=WAIT)
        await receiver.complete_message(messages[0])
        await receiver.abandon_message(messages[1])
        await receiver.dead_letter_message(messages[2], reason="Odd")
        again = await receiver.receive_messages(3, max_wait_time=WAIT)
        await receiver.renew_message_lock(again[0])
        await receiver.complete_message(again[0])
        await asyncio.gather(sender.close(), receiver.close())
        await client.close()
        return [body(message) for message in [*messages, *again]]

    assert asyncio.run(send_and_receive()) == [b"0", b"1", b"2", b"1"]
    dead = bus.receive_dead_letter("async")
    assert (body(dead), dead.dead_letter_reason) == (b"2", "Odd")


class RawClient:
    """A client that writes single frames, for what the official one never sends. Its one link has the handle 0."""

    def __init__(self, address: str, *, window: int = 100, max_frame_size: int = 65536) -> None:
        port = int(address.partition(";")[0].rpartition(":")[2])
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
        self._stream = self.socket.makefile("rb")
        self._window = window
        self._frames_seen = 0
        self.socket.sendall(b"AMQP\x00\x01\x00\x00")
        assert self._stream.read(8) == b"AMQP\x00\x01\x00\x00"
        self.send(Kind.OPEN, container_id="raw", max_frame_size=UInt(max_frame_size))
        self.send(Kind.BEGIN, next_outgoing_id=UInt(0), incoming_window=UInt(window), outgoing_window=UInt(100))
        assert [self.next().kind, self.next().kind] == [Kind.OPEN, Kind.BEGIN]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self.socket.close()

    def send(self, kind: Kind, payload: bytes = b"", /, **fields: object) -> None:
        self.socket.sendall(encode_frame(0, kind, payload, **fields))

    def next(self) -> Performative:
        """The next frame; a CLOSE if the connection is over."""
        head = self._stream.read(8)
        if len(head) < 8:
            return Performative(Kind.CLOSE, {})
        frame = decode_performative(self._stream.read(int.from_bytes(head[:4]) - 8))
        self._frames_seen += frame.kind is Kind.TRANSFER
        return frame

    def attach_sender(self) -> None:
        self._attach(receives=False)
        assert self.next().kind is Kind.FLOW

    def attach_receiver(self) -> None:
        self._attach(receives=True)

    def _attach(self, *, receives: bool) -> None:
        source, target = (Described(ULong(code), ["work"]) for code in (0x28, 0x29))
        modes = {"snd_settle_mode": UByte(0), "rcv_settle_mode": UByte(1)}
        self.send(Kind.ATTACH, name="raw", handle=UInt(0), role=receives, source=source, target=target, **modes)
        assert self.next().kind is Kind.ATTACH

    def send_message(self, number: int, payload: bytes) -> int:
        """Send one message and return the descriptor of its outcome."""
        self.send(Kind.TRANSFER, payload, handle=UInt(0), delivery_id=UInt(number), delivery_tag=b"%d" % number)
        outcome = self.next().fields["state"]
        assert isinstance(outcome, Described)
        assert isinstance(outcome.descriptor, int)
        return outcome.descriptor

    def transfers(self, credit: int, *, seen: int, drain: bool = False) -> list[Performative]:
        """Grant credit, having seen that many messages, and return what arrives before the broker's answer."""
        window = {"next_incoming_id": UInt(self._frames_seen), "incoming_window": UInt(self._window)}
        own = {"next_outgoing_id": UInt(0), "outgoing_window": UInt(100), "handle": UInt(0), "echo": True}
        self.send(Kind.FLOW, **window, **own, delivery_count=UInt(seen), link_credit=UInt(credit), drain=drain)
        transfers = []
        while (frame := self.next()).kind is Kind.TRANSFER:
            transfers.append(frame)
        assert frame.kind is Kind.FLOW
        self.answer = frame
        return transfers


@pytest.fixture
def broker() -> Iterator[str]:
    """The address of a broker of its own, with one queue."""
    with running_broker([QueueConfig("work")]) as address:
        yield address


def send_to(address: str, *bodies: bytes) -> None:
    with RawClient(address) as client:
        client.attach_sender()
        for number, text in enumerate(bodies):
            assert client.send_message(number, encode_section(DATA, text)) == ACCEPTED


def left_in(address: str) -> list[bytes]:
    """The messages that can still be received, all of them."""
    with RawClient(address) as client:
        client.attach_receiver()
        return [data_of(transfer) for transfer in client.transfers(100, seen=0)]


def data_of(transfer: Performative) -> bytes:
    [content] = parse_transfer(transfer.payload, 0)
    section = decode(content.body)
    assert isinstance(section, Described)
    assert isinstance(section.value, bytes)
    return section.value


def test_new_credit_replaces_what_was_granted_before(broker: str) -> None:
    send_to(broker, *(b"%d" % number for number in range(10)))
    with RawClient(broker) as client:
        client.attach_receiver()
        assert len(client.transfers(2, seen=0)) == 2
        assert len(client.transfers(3, seen=1)) == 2, "granted before the second message was seen: up to the fourth"
        assert client.transfers(0, seen=4) == []


def test_draining_returns_the_credit_that_is_left(broker: str) -> None:
    send_to(broker, b"only")
    with RawClient(broker) as client:
        client.attach_receiver()
        assert [data_of(transfer) for transfer in client.transfers(5, seen=0, drain=True)] == [b"only"]
        assert (client.answer.integer("link_credit"), client.answer.integer("delivery_count")) == (0, 5)


def test_messages_are_cut_to_the_frame_size_and_wait_for_the_window(broker: str) -> None:
    send_to(broker, b"x" * 2000)
    with RawClient(broker, window=2, max_frame_size=512) as client:
        client.attach_receiver()
        frames = client.transfers(1, seen=0)
        assert len(frames) == 2
        while frames[-1].flag("more"):
            frames += client.transfers(0, seen=1)

    assert all(len(encode_frame(0, frame.kind, frame.payload, **frame.fields)) <= 512 for frame in frames)
    whole = Performative(Kind.TRANSFER, {}, b"".join(frame.payload for frame in frames))
    assert data_of(whole) == b"x" * 2000


@pytest.mark.parametrize(
    ("outcome", "left"),
    [
        pytest.param(Described(ULong(ACCEPTED), []), [], id="accepted"),
        pytest.param(Described(ULong(REJECTED), []), [], id="rejected"),
        pytest.param(Described(ULong(RELEASED), []), [b"1", b"2", b"3"], id="released"),
        pytest.param(Described(ULong(MODIFIED), [True, False]), [b"1", b"2", b"3"], id="modified: abandon"),
        pytest.param(Described(ULong(MODIFIED), [True, True]), [], id="modified: defer"),
    ],
)
def test_one_disposition_settles_a_range_and_each_is_confirmed(
    broker: str, outcome: Described, left: list[bytes]
) -> None:
    send_to(broker, *(b"%d" % number for number in range(4)))
    with RawClient(broker) as client:
        client.attach_receiver()
        assert len(client.transfers(4, seen=0)) == 4

        client.send(Kind.DISPOSITION, role=True, first=UInt(1), last=UInt(2**32 - 1), state=outcome)

        answers = [client.next() for _ in range(3)]
        assert [(answer.integer("first"), answer.flag("settled")) for answer in answers] == [
            (n, True) for n in (1, 2, 3)
        ]
        assert all(answer.fields["state"] == outcome for answer in answers)
    assert left_in(broker) == left, "the message 0 is still locked, though its receiver is gone"


def test_a_broken_connection_loses_nothing() -> None:
    lock_seconds = 0.2
    with running_broker([QueueConfig("work", lock_seconds=lock_seconds)]) as address:
        send_to(address, b"kept")
        with RawClient(address) as client:
            client.attach_receiver()
            assert len(client.transfers(1, seen=0)) == 1
            locked_at = time.monotonic()
        while not (left := left_in(address)) and time.monotonic() < locked_at + WAIT:
            time.sleep(0.02)

        assert left == [b"kept"]
        assert time.monotonic() >= locked_at + lock_seconds - 0.02, "the lock outlives the connection"


def test_settling_what_is_not_held_is_answered(broker: str) -> None:
    with RawClient(broker) as client:
        client.attach_receiver()
        client.send(Kind.DISPOSITION, role=True, first=UInt(7), state=Described(ULong(ACCEPTED), []))
        state = client.next().fields["state"]
    assert isinstance(state, Described)
    assert state.descriptor == REJECTED
    assert "message-lock-lost" in str(state.value)


MALFORMED = [
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
    pytest.param(b"AMQP\x00\x00\x09\x01", id="another version of AMQP"),
    pytest.param(bytes.fromhex("0000000002000000"), id="a frame shorter than its head"),
    pytest.param(bytes.fromhex("0000000901000000ff"), id="a data offset into the head"),
    pytest.param(bytes.fromhex("0000000c02000000005312ff"), id="an unknown constructor"),
    pytest.param(bytes.fromhex("0000000c0200000000531245"), id="an attach without fields"),
    pytest.param(encode_frame(0, Kind.TRANSFER, b"x", handle=UInt(9)), id="a transfer without a link"),
    pytest.param(encode_frame(0, Kind.FLOW, handle="zero", incoming_window=UInt(1)), id="a field of another type"),
    pytest.param(encode_frame(0, Kind.BEGIN, next_outgoing_id=UInt(0), incoming_window=UInt(1)), id="a second begin"),
]


@pytest.mark.parametrize("data", MALFORMED)
def test_a_malformed_frame_closes_only_its_connection(broker: str, data: bytes) -> None:
    with RawClient(broker) as bystander, RawClient(broker) as client:
        client.socket.sendall(data)
        assert client.next().kind is Kind.CLOSE

        bystander.attach_sender()
        assert bystander.send_message(0, encode_section(DATA, b"still here")) == ACCEPTED
    assert left_in(broker) == [b"still here"]


def test_a_malformed_message_is_rejected_and_the_link_goes_on(broker: str) -> None:
    with RawClient(broker) as client:
        client.attach_sender()
        assert client.send_message(0, b"garbage") == REJECTED
        assert client.send_message(1, encode_section(DATA, b"fine")) == ACCEPTED
    assert left_in(broker) == [b"fine"]


def test_half_a_message_is_no_message(broker: str) -> None:
    half = {"handle": UInt(0), "delivery_id": UInt(0), "delivery_tag": b"0"}
    with RawClient(broker) as client:
        client.attach_sender()
        client.send(Kind.TRANSFER, encode_section(DATA, b"aborted"), **half, more=True)
        client.send(Kind.TRANSFER, **half, aborted=True)
        assert client.send_message(1, encode_section(DATA, b"whole")) == ACCEPTED
        client.send(Kind.TRANSFER, encode_section(DATA, b"cut off"), **half, more=True)
    assert left_in(broker) == [b"whole"]


def test_the_program_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    queues = tmp_path / "queues.json"
    queues.write_text(json.dumps([{"name": "work", "lock_seconds": 60}, {"name": "emails"}]))
    command = [sys.executable, "-m", "local.service_bus", "--port", "0", "--status-port", "0", "--queues", str(queues)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        ready, port, status_port = process.stdout.readline().split()
        assert ready == "READY"
        assert get(f"http://127.0.0.1:{status_port}/_standin/health") == {"status": "ok"}
        with ServiceBusClient.from_connection_string(connection_string(int(port)), retry_total=0) as client:
            sender = client.get_queue_sender("work")
            sender.send_messages([ServiceBusMessage(b"x"), ServiceBusMessage(b"y")])
            sender.schedule_messages(ServiceBusMessage(b"z"), datetime.now(UTC) + timedelta(hours=1))
            empty = {"active": 0, "scheduled": 0, "locked": 0, "deferred": 0, "dead_letter": 0}
            assert get(f"http://127.0.0.1:{status_port}/_standin/queues") == {
                "queues": [{"name": "work", **empty, "active": 2, "scheduled": 1}, {"name": "emails", **empty}]
            }
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT) == 0
        assert process.stdout.read() == ""


def get(url: str) -> object:
    with urllib.request.urlopen(url, timeout=WAIT) as response:
        return json.load(response)
