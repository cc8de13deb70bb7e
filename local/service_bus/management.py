"""The management node of a queue (`queue/$management`): peeking, scheduling, renewing, settling by lock token.

Source: the operations and field names that `azure-servicebus` 7.15 sends. Left out: sessions, rules, batch delete.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from local.service_bus.broker import LockLostError, Message, MessageNotFoundError, Queue
from local.service_bus.codec import Array, CodecError, Long, Timestamp
from local.service_bus.message import parse_message

LOCK_LOST = "com.microsoft:message-lock-lost"
MESSAGE_NOT_FOUND = "com.microsoft:message-not-found"
ARGUMENT_ERROR = "com.microsoft:argument-error"
NOT_IMPLEMENTED = "amqp:not-implemented"

RECEIVE_AND_DELETE = 0
"""`receiver-settle-mode` *first*: the message is settled by handing it out."""

type Body = Mapping[object, object]


@dataclass(frozen=True)
class Response:
    """An answer: a status as in HTTP, an AMQP error condition where it is one, and the body map."""

    status: int
    condition: str | None = None
    description: str = "OK"
    body: dict[str, object] = field(default_factory=dict)


def answer(queue: Queue, operation: str, body: Body) -> Response:
    """Carry out one request. Faults of the request are answers (400, 404, 410, 501), not exceptions."""
    handler = _OPERATIONS.get(operation.removeprefix("com.microsoft:"))
    if handler is None:
        return Response(501, NOT_IMPLEMENTED, f"The operation {operation!r} is not supported here")
    try:
        return handler(queue, body)
    except LockLostError:
        return Response(410, LOCK_LOST, "The lock supplied is invalid: it expired or the message was settled")
    except MessageNotFoundError as error:
        return Response(404, MESSAGE_NOT_FOUND, str(error))
    except CodecError as error:
        return Response(400, ARGUMENT_ERROR, str(error))


def _renew_lock(queue: Queue, body: Body) -> Response:
    expirations = [queue.renew(token) for token in _items(body, "lock-tokens", UUID)]
    return Response(200, body={"expirations": Array(Timestamp(round(end * 1000)) for end in expirations)})


def _peek(queue: Queue, body: Body) -> Response:
    messages = queue.peek(_number(body, "from-sequence-number"), _number(body, "message-count"))
    if not messages:
        return Response(204, description="No messages")
    return Response(200, body={"messages": [{"message": message.render()} for message in messages]})


def _schedule(queue: Queue, body: Body) -> Response:
    encoded = [_item(entry, "message", bytes) for entry in _items(body, "messages", dict)]
    sequence_numbers = [queue.send(content) for content in [parse_message(payload) for payload in encoded]]
    return Response(200, body={"sequence-numbers": Array(Long(number) for number in sequence_numbers)})


def _cancel_scheduled(queue: Queue, body: Body) -> Response:
    queue.cancel_scheduled(_items(body, "sequence-numbers", int))
    return Response(200)


def _receive_deferred(queue: Queue, body: Body) -> Response:
    messages = queue.receive_deferred(_items(body, "sequence-numbers", int))
    entries = [_locked_entry(message) for message in messages]
    if _number(body, "receiver-settle-mode") == RECEIVE_AND_DELETE:
        for message in messages:
            if message.lock_token:
                queue.complete(message.lock_token)
    return Response(200, body={"messages": entries})


def _update_disposition(queue: Queue, body: Body) -> Response:
    status = _item(body, "disposition-status", str)
    for token in _items(body, "lock-tokens", UUID):
        match status:
            case "completed":
                queue.complete(token)
            case "abandoned":
                queue.abandon(token)
            case "defered":  # spelled so on the wire
                queue.defer(token)
            case "suspended":
                queue.dead_letter(token, _text(body, "deadletter-reason"), _text(body, "deadletter-description"))
            case _:
                raise CodecError(f"unknown disposition-status {status!r}")
    return Response(200)


_OPERATIONS: dict[str, Callable[[Queue, Body], Response]] = {
    "renew-lock": _renew_lock,
    "peek-message": _peek,
    "schedule-message": _schedule,
    "cancel-scheduled-message": _cancel_scheduled,
    "receive-by-sequence-number": _receive_deferred,
    "update-disposition": _update_disposition,
}


def _locked_entry(message: Message) -> dict[str, object]:
    return {"lock-token": message.lock_token, "message": message.render()}


def _item[T](body: Body, name: str, kind: type[T]) -> T:
    value = body.get(name)
    if not isinstance(value, kind):
        raise CodecError(f"{name} is missing or not a {kind.__name__}")
    return value


def _items[T](body: Body, name: str, kind: type[T]) -> list[T]:
    values = _item(body, name, list)
    if not all(isinstance(value, kind) for value in values):
        raise CodecError(f"{name} holds something other than {kind.__name__}")
    return values


def _number(body: Body, name: str) -> int:
    return _item(body, name, int)


def _text(body: Body, name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None
