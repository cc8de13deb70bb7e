"""Queues with the semantics of Azure Service Bus, as pure state: no sockets, no threads, and the clock is an argument.

A message that was sent is at all times in one place: ready, scheduled, locked or deferred in its queue, or in the
dead-letter queue, until it is settled or expires. What is due (locks, schedules, lifetimes) happens before every
operation and in `tick`.

Left out: sessions, topics, partitions, auto-forwarding, transactions, batched deletes and persistence. Where the
service is not documented, this is what happens here: an expired or abandoned message is redelivered in the order of
sequence numbers; a message gets a new sequence number in the dead-letter queue and keeps its delivery count;
deferring counts as a delivery; a dropped duplicate uses up a sequence number; dead-lettering in a dead-letter queue
puts the message back with the new reason.
"""

import heapq
import itertools
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from uuid import UUID, uuid4

from local.service_bus.message import Content, render_message

DEAD_LETTER_SUFFIX = "/$DeadLetterQueue"
MAX_DELIVERIES_REASON = "MaxDeliveryCountExceeded"
EXPIRED_REASON = "TTLExpiredException"

type Clock = Callable[[], float]


class LockLostError(Exception):
    """The lock token is not, or no longer, a lock of this queue: it expired, or the message was settled."""


class MessageNotFoundError(Exception):
    """No message of this queue is in the state asked for under that sequence number."""


@dataclass(frozen=True)
class QueueConfig:
    """One queue, with the defaults of Azure Service Bus (lock one minute, ten deliveries, no duplicate detection).

    `duplicate_detection_seconds` 0 turns duplicate detection off. A message's own lifetime is cut to
    `default_ttl_seconds`.
    """

    name: str
    lock_seconds: float = 60
    max_delivery_count: int = 10
    duplicate_detection_seconds: float = 0
    default_ttl_seconds: float = 14 * 24 * 3600
    dead_letter_on_expiration: bool = False


def read_queue_configs(path: Path) -> list[QueueConfig]:
    """The queues of a JSON file: a list of objects with the fields of `QueueConfig`. Raises `ValueError`."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of queues")  # noqa: TRY004 - the file is wrong, not the program
    numbers = {config_field.name for config_field in fields(QueueConfig)} - {"name"}
    for entry in entries:
        if not _is_queue(entry, numbers):
            options = ", ".join(sorted(numbers))
            raise ValueError(f"{path}: a queue has a name and may have numbers for {options}; got {entry!r}")
    return [QueueConfig(**entry) for entry in entries]


def _is_queue(entry: object, numbers: set[str]) -> bool:
    match entry:
        case {"name": str(), **options}:
            return options.keys() <= numbers and all(isinstance(value, int | float) for value in options.values())
        case _:
            return False


class State(Enum):
    """Where a message is within its queue."""

    READY = "ready"
    SCHEDULED = "scheduled"
    LOCKED = "locked"
    DEFERRED = "deferred"


@dataclass
class Message:
    """A message in a queue. Times in seconds since 1970-01-01 UTC; `deferred` stays true while it is locked."""

    content: Content
    sequence_number: int
    state: State
    enqueued_at: float
    expires_at: float
    delivery_count: int = 0
    deferred: bool = False
    lock_token: UUID | None = None
    locked_until: float = 0.0
    dead_letter: dict[str, str] = field(default_factory=dict)

    def render(self) -> bytes:
        """The message as its receiver gets it."""
        return render_message(
            self.content,
            sequence_number=self.sequence_number,
            delivery_count=self.delivery_count,
            enqueued_at=self.enqueued_at,
            locked_until=self.locked_until if self.state is State.LOCKED else None,
            state=1 if self.deferred else 2 if self.state is State.SCHEDULED else 0,
            dead_letter=self.dead_letter,
        )


class Queue:
    """One queue. `dead_letters` is its dead-letter queue, None for a queue that is one itself."""

    def __init__(self, config: QueueConfig, clock: Clock, dead_letters: "Queue | None" = None) -> None:
        self.config = config
        self.dead_letters = dead_letters
        self.messages: dict[int, Message] = {}
        self._clock = clock
        self._sequence_numbers = itertools.count(1)
        self._ready: list[int] = []
        self._locked: dict[UUID, Message] = {}
        self._due: list[tuple[float, int]] = []
        self._seen_ids: OrderedDict[str, float] = OrderedDict()

    def send(self, content: Content) -> int:
        """Accept a message, now or for its scheduled time, and return its sequence number.

        A message id seen within the duplicate detection window is accepted and dropped, as the service does.
        """
        now = self.tick()
        sequence_number = next(self._sequence_numbers)
        if self._is_duplicate(content.message_id, now):
            return sequence_number
        enqueued_at = max(now, content.scheduled_for or now)
        lifetime = min(content.time_to_live or math.inf, self.config.default_ttl_seconds)
        message = Message(content, sequence_number, State.SCHEDULED, enqueued_at, enqueued_at + lifetime)
        self.messages[sequence_number] = message
        if enqueued_at > now:
            self._wake_at(enqueued_at, message)
        else:
            self._make_ready(message)
        return sequence_number

    def cancel_scheduled(self, sequence_numbers: Sequence[int]) -> None:
        """Take scheduled messages back. Raises `MessageNotFoundError` (and cancels none) if one is not scheduled."""
        self.tick()
        for message in self._in_state(State.SCHEDULED, sequence_numbers):
            del self.messages[message.sequence_number]

    def receive(self) -> Message | None:
        """Lock the next ready message; None if there is none."""
        self.tick()
        while self._ready:
            message = self.messages.get(heapq.heappop(self._ready))
            if message and message.state is State.READY:
                self._lock(message)
                return message
        return None

    def receive_deferred(self, sequence_numbers: Sequence[int]) -> list[Message]:
        """Lock deferred messages. Raises `MessageNotFoundError` (and locks none) if one is not deferred."""
        self.tick()
        messages = self._in_state(State.DEFERRED, sequence_numbers)
        for message in messages:
            self._lock(message)
        return messages

    def peek(self, from_sequence_number: int, count: int) -> list[Message]:
        """Up to `count` messages in whatever state from a sequence number on, without locking them."""
        self.tick()
        found = (message for number, message in self.messages.items() if number >= from_sequence_number)
        return list(itertools.islice(found, count))

    def renew(self, lock_token: UUID) -> float:
        """Extend a lock; returns its new end. Raises `LockLostError`."""
        now = self.tick()
        message = self._locked.get(lock_token)
        if message is None:
            raise LockLostError(lock_token)
        message.locked_until = now + self.config.lock_seconds
        self._wake_at(message.locked_until, message)
        return message.locked_until

    def complete(self, lock_token: UUID) -> None:
        """Settle a message for good. Raises `LockLostError`."""
        del self.messages[self._unlock(lock_token).sequence_number]

    def abandon(self, lock_token: UUID) -> None:
        """Give a message back after a failed delivery. Raises `LockLostError`."""
        self._return(self._unlock(lock_token), failed=True)

    def release(self, lock_token: UUID) -> None:
        """Give a message back that its receiver never looked at: the delivery count stays. Raises `LockLostError`."""
        self._return(self._unlock(lock_token), failed=False)

    def defer(self, lock_token: UUID) -> None:
        """Set a message aside; only `receive_deferred` hands it out again. Raises `LockLostError`."""
        message = self._unlock(lock_token)
        message.deferred = True
        self._return(message, failed=True)

    def dead_letter(self, lock_token: UUID, reason: str | None, description: str | None) -> None:
        """Move a message to the dead-letter queue. Raises `LockLostError`."""
        self._move_to_dead_letters(self._unlock(lock_token), reason, description)

    def counts(self) -> dict[str, int]:
        """Messages by state: active (ready to be received), scheduled, locked, deferred and dead_letter."""
        self.tick()
        states = [message.state for message in self.messages.values()]
        return {
            "active": states.count(State.READY),
            "scheduled": states.count(State.SCHEDULED),
            "locked": states.count(State.LOCKED),
            "deferred": states.count(State.DEFERRED),
            "dead_letter": len(self.dead_letters.messages) if self.dead_letters else 0,
        }

    def tick(self) -> float:
        """Do everything that is due: end locks, enqueue scheduled messages, expire. Returns the time."""
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            _, sequence_number = heapq.heappop(self._due)
            if message := self.messages.get(sequence_number):
                self._wake(message, now)
        return now

    def _wake(self, message: Message, now: float) -> None:
        if message.state is State.SCHEDULED and message.enqueued_at <= now:
            self._make_ready(message)
        elif message.state is State.LOCKED and message.lock_token and message.locked_until <= now:
            del self._locked[message.lock_token]
            self._return(message, failed=True)
        elif message.state is State.READY and message.expires_at <= now:
            self._expire(message)

    def _wake_at(self, due: float, message: Message) -> None:
        heapq.heappush(self._due, (due, message.sequence_number))

    def _make_ready(self, message: Message) -> None:
        message.state = State.READY
        heapq.heappush(self._ready, message.sequence_number)
        if message.expires_at < math.inf:
            self._wake_at(message.expires_at, message)

    def _lock(self, message: Message) -> None:
        message.state = State.LOCKED
        message.lock_token = uuid4()
        message.locked_until = self._clock() + self.config.lock_seconds
        self._locked[message.lock_token] = message
        self._wake_at(message.locked_until, message)

    def _unlock(self, lock_token: UUID) -> Message:
        self.tick()
        message = self._locked.pop(lock_token, None)
        if message is None:
            raise LockLostError(lock_token)
        return message

    def _return(self, message: Message, *, failed: bool) -> None:
        message.lock_token = None
        message.delivery_count += failed
        if failed and self.dead_letters and message.delivery_count >= self.config.max_delivery_count:
            description = f"Message could not be consumed after {message.delivery_count} delivery attempts."
            self._move_to_dead_letters(message, MAX_DELIVERIES_REASON, description)
        elif message.deferred:
            message.state = State.DEFERRED
        else:
            self._make_ready(message)

    def _expire(self, message: Message) -> None:
        if self.config.dead_letter_on_expiration and self.dead_letters:
            description = "The message expired and was dead lettered."
            self._move_to_dead_letters(message, EXPIRED_REASON, description)
        else:
            del self.messages[message.sequence_number]

    def _move_to_dead_letters(self, message: Message, reason: str | None, description: str | None) -> None:
        del self.messages[message.sequence_number]
        details = {"DeadLetterReason": reason, "DeadLetterErrorDescription": description}
        moved = replace(
            message,
            sequence_number=0,
            expires_at=math.inf,
            deferred=False,
            lock_token=None,
            dead_letter={name: value for name, value in details.items() if value},
        )
        (self.dead_letters or self)._admit(moved)

    def _admit(self, message: Message) -> None:
        message.sequence_number = next(self._sequence_numbers)
        self.messages[message.sequence_number] = message
        self._make_ready(message)

    def _in_state(self, state: State, sequence_numbers: Sequence[int]) -> list[Message]:
        found = [self.messages.get(number) for number in dict.fromkeys(sequence_numbers)]
        messages = [message for message in found if message and message.state is state]
        if len(messages) < len(found):
            raise MessageNotFoundError(
                f"{self.config.name}: not every message of {list(sequence_numbers)} is {state.value}"
            )
        return messages

    def _is_duplicate(self, message_id: str | None, now: float) -> bool:
        window = self.config.duplicate_detection_seconds
        while self._seen_ids and next(iter(self._seen_ids.values())) <= now - window:
            self._seen_ids.popitem(last=False)
        if message_id is None or window <= 0:
            return False
        if message_id in self._seen_ids:
            return True
        self._seen_ids[message_id] = now
        return False


class Broker:
    """All queues of a namespace with their dead-letter queues."""

    def __init__(self, configs: Iterable[QueueConfig], clock: Clock = time.time) -> None:
        self.queues: list[Queue] = []
        self._by_path: dict[str, Queue] = {}
        for config in configs:
            if config.name.lower() in self._by_path:
                raise ValueError(f"queue {config.name!r} is configured twice")
            dead_letter_config = replace(config, name=config.name + DEAD_LETTER_SUFFIX, duplicate_detection_seconds=0)
            dead_letters = Queue(dead_letter_config, clock)
            queue = Queue(config, clock, dead_letters)
            self.queues.append(queue)
            for each in (queue, dead_letters):
                self._by_path[each.config.name.lower()] = each

    def find(self, path: str) -> Queue | None:
        """The queue or dead-letter queue (`name/$DeadLetterQueue`) of that path in any letter case, or None."""
        return self._by_path.get(path.lower())

    def tick(self) -> None:
        """Do everything that is due in every queue."""
        for queue in self._by_path.values():
            queue.tick()
