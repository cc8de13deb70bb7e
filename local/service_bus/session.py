"""An AMQP session of one client: its links, what flows over them, and what became of every delivery.

Source: OASIS AMQP 1.0 part 2, and for what goes beyond it the client `azure-servicebus` 7.15: it waits for the broker
to answer every settlement with the same outcome, and hangs on an error that has fewer than three fields. Left out:
resuming links and deliveries, transactions, and link credit as a brake on senders (they always have enough).
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol
from uuid import UUID

from local.service_bus import codec, management, message
from local.service_bus.broker import LockLostError, Message, Queue
from local.service_bus.codec import CodecError, Described, Int, Kind, Performative, Symbol, UInt, ULong, UShort

MAX_MESSAGE_BYTES = 256 * 1024
"""Azure Service Bus, Standard tier: 256 KB for a message or a batch, properties included."""

TOKEN_NODE = "$cbs"

_WINDOW = 2**31 - 1
_SENDER_CREDIT = 1000

_SENDER, _RECEIVER = False, True
_SETTLED_BY_SENDER = 1
_ERROR = 0x1D


class Outcome(IntEnum):
    """The descriptors of the outcomes a delivery can have."""

    ACCEPTED = 0x24
    REJECTED = 0x25
    RELEASED = 0x26
    MODIFIED = 0x27


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """What a link is attached to: a queue, the management node of a queue, or (without a queue) the token node."""

    address: str
    queue: Queue | None
    management: bool = False


class Namespace(Protocol):
    """What a session needs to know of the server: its nodes, and where the consumers of its queues meet."""

    def find_node(self, address: str) -> Node | None: ...
    def add_consumer(self, queue: Queue, link: "OutgoingLink") -> None: ...
    def remove_consumer(self, queue: Queue, link: "OutgoingLink") -> None: ...
    def deliver(self, queue: Queue) -> None: ...


@dataclass
class IncomingLink:
    """A link on which the client sends. `first` and `payload` are what has arrived of a delivery in several frames."""

    node: Node
    delivery_count: int = 0
    first: Performative | None = None
    payload: bytearray = field(default_factory=bytearray)


@dataclass(eq=False)
class OutgoingLink:
    """A link on which the client receives; `settled` if a message counts as done by being sent (receive and delete)."""

    session: "Session"
    handle: int
    node: Node
    settled: bool
    credit: int = 0
    delivery_count: int = 0
    replies: deque[bytes] = field(default_factory=deque)

    def send_replies(self) -> None:
        """Send what is waiting on a reply link, as far as the client has given credit."""
        while self.replies and self.credit > 0:
            self.session.send_transfer(self, self.replies.popleft(), delivery_tag=b"reply", settled=True)


class Session:
    """One session. `write(kind, payload, **fields)` sends a frame on its channel."""

    def __init__(
        self, namespace: Namespace, write: Callable[..., None], peer_max_frame_size: int, begin: Performative
    ) -> None:
        self._namespace = namespace
        self._write = write
        self._peer_max_frame_size = peer_max_frame_size
        self._peer_window = begin.integer("incoming_window")
        self._next_incoming_id = begin.integer("next_outgoing_id")
        self._next_outgoing_id = 0
        self._next_delivery_id = 0
        self._links: dict[int, IncomingLink | OutgoingLink] = {}
        self._unsettled: dict[int, tuple[Queue, UUID]] = {}
        self._waiting_transfers: deque[tuple[dict[str, object], bytes]] = deque()

    def begin(self, channel: int) -> None:
        """Answer the client's *begin*."""
        windows = {"incoming_window": UInt(_WINDOW), "outgoing_window": UInt(_WINDOW)}
        self._write(
            Kind.BEGIN, remote_channel=UShort(channel), next_outgoing_id=UInt(0), **windows, handle_max=UInt(255)
        )

    def handle(self, frame: Performative) -> None:
        """Act on one frame of the client. Raises `CodecError` for one that makes no sense."""
        match frame.kind:
            case Kind.ATTACH:
                self._attach(frame)
            case Kind.FLOW:
                self._flow(frame)
            case Kind.TRANSFER:
                self._transfer(frame)
            case Kind.DISPOSITION:
                self._disposition(frame)
            case Kind.DETACH:
                self._detach(frame)
            case _:
                raise CodecError(f"{frame.kind.name} is not a frame of a session")

    def end(self) -> None:
        """Forget all links. Messages the client still holds stay locked until their locks end, as in the service."""
        for handle in list(self._links):
            self._forget(handle)

    # Links

    def _attach(self, frame: Performative) -> None:
        handle, client_receives = frame.integer("handle"), frame.flag("role")
        if handle in self._links:
            raise CodecError(f"a second link attaches to handle {handle}")
        address = _address(frame.fields.get("source" if client_receives else "target"))
        node = self._namespace.find_node(address)
        reply = {"name": frame.fields.get("name"), "handle": UInt(handle), "role": not client_receives}
        if node is None:
            # Without source and target the client knows that the link will not come up and waits for the reason.
            self._write(Kind.ATTACH, **reply)
            error = error_value("amqp:not-found", f"The messaging entity {address!r} could not be found.")
            self._write(Kind.DETACH, handle=UInt(handle), closed=True, error=error)
            return
        reply |= {name: frame.fields.get(name) for name in ("snd_settle_mode", "rcv_settle_mode", "source", "target")}
        reply |= {"max_message_size": ULong(MAX_MESSAGE_BYTES)}
        if client_receives:
            # A receiver that is not told the first delivery count never becomes ready.
            self._write(Kind.ATTACH, **reply, initial_delivery_count=UInt(0))
            settled = frame.optional_integer("snd_settle_mode") == _SETTLED_BY_SENDER
            self._add_outgoing(OutgoingLink(self, handle, node, settled))
        else:
            self._write(Kind.ATTACH, **reply)
            self._links[handle] = link = IncomingLink(node, frame.optional_integer("initial_delivery_count") or 0)
            self._write_flow(handle, link.delivery_count, _SENDER_CREDIT)

    def _add_outgoing(self, link: OutgoingLink) -> None:
        self._links[link.handle] = link
        if link.node.queue and not link.node.management:
            self._namespace.add_consumer(link.node.queue, link)

    def _detach(self, frame: Performative) -> None:
        handle = frame.integer("handle")
        if handle in self._links:
            self._forget(handle)
            self._write(Kind.DETACH, handle=UInt(handle), closed=frame.flag("closed"))

    def _forget(self, handle: int) -> None:
        link = self._links.pop(handle)
        if isinstance(link, OutgoingLink) and link.node.queue:
            self._namespace.remove_consumer(link.node.queue, link)
        self._waiting_transfers = deque(each for each in self._waiting_transfers if each[0]["handle"] != handle)

    # Credit and windows

    def _flow(self, frame: Performative) -> None:
        seen = frame.optional_integer("next_incoming_id") or 0
        self._peer_window = seen + frame.integer("incoming_window") - self._next_outgoing_id
        self._send_waiting()
        handle = frame.optional_integer("handle")
        link = None if handle is None else self._links.get(handle)
        if isinstance(link, OutgoingLink):
            self._grant_credit(link, frame)
        elif frame.flag("echo"):
            self._write_flow()

    def _grant_credit(self, link: OutgoingLink, frame: Performative) -> None:
        # Credit counts from what the client has seen, so it replaces what was granted before.
        seen = frame.optional_integer("delivery_count") or 0
        link.credit = max(0, seen + frame.integer("link_credit") - link.delivery_count)
        link.send_replies()
        if link.node.queue:
            self._namespace.deliver(link.node.queue)
        drain = frame.flag("drain")
        if drain:
            link.delivery_count += link.credit
            link.credit = 0
        if drain or frame.flag("echo"):
            self._write_flow(link.handle, link.delivery_count, link.credit, drain=drain)

    def _write_flow(
        self, handle: int | None = None, delivery_count: int = 0, credit: int = 0, *, drain: bool = False
    ) -> None:
        about_link: dict[str, object] = {}
        if handle is not None:
            about_link = {"handle": UInt(handle), "delivery_count": UInt(delivery_count), "link_credit": UInt(credit)}
        self._write(
            Kind.FLOW,
            next_incoming_id=UInt(self._next_incoming_id),
            incoming_window=UInt(_WINDOW),
            next_outgoing_id=UInt(self._next_outgoing_id),
            outgoing_window=UInt(_WINDOW),
            drain=drain,
            **about_link,
        )

    # Messages to the client

    def send_message(self, link: OutgoingLink, queue: Queue, locked: Message) -> None:
        """Send a locked message. If the connection breaks on the way, its lock ends and it comes again.

        The client reads the lock token from the delivery tag, in the byte order of .NET.
        """
        assert locked.lock_token, "only a locked message is handed out"
        payload = locked.render()
        if link.settled:
            queue.complete(locked.lock_token)
        else:
            self._unsettled[self._next_delivery_id] = (queue, locked.lock_token)
        self.send_transfer(link, payload, delivery_tag=locked.lock_token.bytes_le, settled=link.settled)

    def send_transfer(self, link: OutgoingLink, payload: bytes, *, delivery_tag: bytes, settled: bool) -> None:
        """Send one delivery, in frames of the client's size and when its window has room for them."""
        fields: dict[str, object] = {
            "handle": UInt(link.handle),
            "delivery_id": UInt(self._next_delivery_id),
            "delivery_tag": delivery_tag,
            "message_format": UInt(0),
            "settled": settled,
        }
        room = self._peer_max_frame_size - len(codec.encode_frame(0, Kind.TRANSFER, **fields, more=True))
        for start in range(0, len(payload), room):
            more = start + room < len(payload)
            self._waiting_transfers.append((fields | {"more": more}, payload[start : start + room]))
        self._next_delivery_id += 1
        link.credit -= 1
        link.delivery_count += 1
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting_transfers and self._peer_window > 0:
            fields, payload = self._waiting_transfers.popleft()
            self._write(Kind.TRANSFER, payload, **fields)
            self._next_outgoing_id += 1
            self._peer_window -= 1

    def _disposition(self, frame: Performative) -> None:
        if not frame.flag("role"):
            return  # about what the client sent, which is settled already
        first, last = frame.integer("first"), frame.optional_integer("last")
        delivery_ids = self._unsettled_between(first, first if last is None else last)
        expects_answer = not frame.flag("settled")
        if expects_answer and not delivery_ids:
            self._write_disposition(_SENDER, first, _lock_lost())
        for delivery_id in delivery_ids:
            queue, lock_token = self._unsettled.pop(delivery_id)
            outcome = _settle(queue, lock_token, frame.fields.get("state"))
            if expects_answer:
                self._write_disposition(_SENDER, delivery_id, outcome)
            self._namespace.deliver(queue)

    def _unsettled_between(self, first: int, last: int) -> list[int]:
        if last - first < len(self._unsettled):
            return [number for number in range(first, last + 1) if number in self._unsettled]
        return [number for number in self._unsettled if first <= number <= last]

    def _write_disposition(self, role: bool, delivery_id: int, outcome: Described) -> None:
        number = UInt(delivery_id)
        self._write(Kind.DISPOSITION, role=role, first=number, last=number, settled=True, state=outcome)

    # Messages from the client

    def _transfer(self, frame: Performative) -> None:
        self._next_incoming_id += 1
        handle = frame.integer("handle")
        link = self._links.get(handle)
        if not isinstance(link, IncomingLink):
            raise CodecError(f"a transfer on handle {handle}, where no sender is attached")
        link.first = link.first or frame
        if len(link.payload) <= MAX_MESSAGE_BYTES:  # more is not kept: the message is rejected in any case
            link.payload += frame.payload
        if frame.flag("more") and not frame.flag("aborted"):
            return
        first, payload = link.first, bytes(link.payload)
        link.first = None
        link.payload.clear()
        link.delivery_count += 1
        if link.delivery_count % (_SENDER_CREDIT // 2) == 0:
            self._write_flow(handle, link.delivery_count, _SENDER_CREDIT)
        if frame.flag("aborted"):
            return
        outcome = self._accept(link.node, payload, first.optional_integer("message_format") or 0)
        if not frame.flag("settled"):
            self._write_disposition(_RECEIVER, first.integer("delivery_id"), outcome)
        if link.node.queue:
            self._namespace.deliver(link.node.queue)

    def _accept(self, node: Node, payload: bytes, message_format: int) -> Described:
        if len(payload) > MAX_MESSAGE_BYTES:
            limit = f"A message or batch may have {MAX_MESSAGE_BYTES} bytes."
            return _rejected("amqp:link:message-size-exceeded", limit)
        try:
            if node.queue is None or node.management:
                self._answer(node, message.sections_by_kind(payload))
            else:
                for content in message.parse_transfer(payload, message_format):
                    node.queue.send(content)
        except CodecError as error:
            _logger.warning("rejected a malformed message", extra={"node": node.address, "reason": str(error)})
            return _rejected("amqp:decode-error", str(error))
        return Described(ULong(Outcome.ACCEPTED), [])

    def _answer(self, node: Node, request: dict[int, object]) -> None:
        properties, application_properties = (
            request.get(message.PROPERTIES),
            request.get(message.APPLICATION_PROPERTIES),
        )
        if not isinstance(properties, list) or not properties or not isinstance(application_properties, dict):
            raise CodecError("a request has a message id and an operation")
        link = next(
            (each for each in self._links.values() if isinstance(each, OutgoingLink) and each.node == node), None
        )
        if link is None:
            raise CodecError(f"no link of this session receives the answers of {node.address!r}")
        status, body = _response(node, str(application_properties.get("operation")), request.get(message.VALUE))
        correlation_id = properties[0]
        link.replies.append(
            message.encode_section(message.PROPERTIES, [None, None, None, None, None, correlation_id])
            + message.encode_section(message.APPLICATION_PROPERTIES, status)
            + message.encode_section(message.VALUE, body)
        )
        link.send_replies()


def error_value(condition: str, description: str) -> Described:
    """An AMQP error. The (empty) info map is needed: without it the client loses the error and waits for ever."""
    return Described(ULong(_ERROR), [Symbol(condition), description, {}])


def _rejected(condition: str, description: str) -> Described:
    return Described(ULong(Outcome.REJECTED), [error_value(condition, description)])


def _lock_lost() -> Described:
    return _rejected(management.LOCK_LOST, "The lock supplied is invalid: it expired or the message was settled.")


def _address(terminus: object) -> str:
    match terminus:
        case Described(value=[str(address), *_]):
            return address
        case _:
            return ""


def _response(node: Node, operation: str, arguments: object) -> tuple[dict[str, object], dict[str, object]]:
    """Status and body of the answer to a request. The two kinds of nodes name the status differently."""
    if node.queue is None:
        # Every token is good: there is nothing to protect on a developer's own machine.
        return {"status-code": Int(202), "status-description": "Accepted"}, {}
    response = management.answer(node.queue, operation, arguments if isinstance(arguments, dict) else {})
    status = {"statusCode": Int(response.status), "statusDescription": response.description}
    condition = {"errorCondition": Symbol(response.condition)} if response.condition else {}
    return status | condition, response.body


def _settle(queue: Queue, lock_token: UUID, state: object) -> Described:
    """Do what the client decided; returns the outcome it waits for: the same one, or *rejected* with an error."""
    outcome: int = Outcome.RELEASED
    details: list[object] = []
    if isinstance(state, Described) and isinstance(state.descriptor, int) and isinstance(state.value, list):
        outcome, details = state.descriptor, state.value
    try:
        match outcome:
            case Outcome.ACCEPTED:
                queue.complete(lock_token)
            case Outcome.REJECTED:
                queue.dead_letter(lock_token, *_dead_letter_details(details))
                details = []  # *rejected* with an error would say that dead-lettering failed
            case Outcome.MODIFIED if details[1:2] == [True]:  # undeliverable here
                queue.defer(lock_token)
            case Outcome.MODIFIED:
                queue.abandon(lock_token)
            case _:
                queue.release(lock_token)
    except LockLostError:
        return _lock_lost()
    return Described(ULong(outcome), details)


def _dead_letter_details(rejected: list[object]) -> tuple[str | None, str | None]:
    match rejected:
        case [Described(value=[_, _, dict(info), *_]), *_]:
            reason, description = info.get("DeadLetterReason"), info.get("DeadLetterErrorDescription")
            return reason if isinstance(reason, str) else None, description if isinstance(description, str) else None
        case _:
            return None, None
