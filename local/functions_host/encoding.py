"""A received Service Bus message as the .NET Service Bus extension hands it to a Python worker, cardinality ONE.

What Python could decode but the extension does not send is not sent here either (TimeToLive, LockedUntil, State,
DeadLetterReason and others; a dead-letter reason is found in the application properties). Fields without a value are
left out.

Differs from .NET where the Python client has already lost the type: an application property that is an AMQP timestamp
arrives as milliseconds, not as a date.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.amqp import AmqpMessageBodyType

from .protocol import TypedData

_NEVER_EXPIRES = "9999-12-31T23:59:59.9999999"  # DateTime.MaxValue, which .NET gives for a message without time to live


def message_value(message: ServiceBusReceivedMessage) -> TypedData:
    """The body: text where it is UTF-8, else bytes. Raises ValueError for an AMQP value or sequence body."""
    if message.body_type is not AmqpMessageBodyType.DATA:
        raise ValueError(f"a message body of type {message.body_type} is not supported; send it as data")
    body = b"".join(message.body)
    try:
        return TypedData(string=body.decode())
    except UnicodeDecodeError:
        return TypedData(bytes=body)


def message_metadata(message: ServiceBusReceivedMessage) -> dict[str, TypedData]:
    """The trigger metadata: texts as string, all else as JSON; times are UTC, written without a zone as .NET does."""
    texts: dict[str, str | None] = {
        "MessageId": message.message_id,
        "LockToken": str(message.lock_token),
        "CorrelationId": message.correlation_id,
        "ContentType": message.content_type,
        "Subject": message.subject,
        "Label": message.subject,
        "SessionId": message.session_id,
        "ReplyTo": message.reply_to,
        "ReplyToSessionId": message.reply_to_session_id,
        "To": message.to,
        "PartitionKey": message.partition_key,
        "DeadLetterSource": message.dead_letter_source,
    }
    properties = _application_properties(message.application_properties or {})
    values: dict[str, object] = {
        # AMQP counts earlier deliveries, .NET adds the present one (AmqpMessageConverter): 1 at the first delivery.
        "DeliveryCount": (message.delivery_count or 0) + 1,
        "SequenceNumber": message.sequence_number,
        "EnqueuedTimeUtc": message.enqueued_time_utc and _unspecified_kind(message.enqueued_time_utc),
        "ExpiresAtUtc": _unspecified_kind(message.expires_at_utc) if message.expires_at_utc else _NEVER_EXPIRES,
        "ApplicationProperties": properties,
        "UserProperties": properties,
    }
    return {name: TypedData(string=text) for name, text in texts.items() if text is not None} | {
        name: TypedData(json=json.dumps(value)) for name, value in values.items() if value is not None
    }


def typed_in_metadata() -> dict[str, TypedData]:
    """Metadata for a body that was typed in through the admin endpoint: a message that no broker has seen."""
    return {"UserProperties": TypedData(json="{}"), "ApplicationProperties": TypedData(json="{}")}


def _unspecified_kind(moment: datetime) -> str:
    # Newtonsoft.Json writes a DateTime of unspecified kind without "Z" and drops trailing zeros of the fraction.
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text.rstrip("0").rstrip(".")


def _application_properties(properties: Mapping[str | bytes, object]) -> dict[str, object]:
    return {str(_plain(name)): _plain(value) for name, value in properties.items()}


def _plain(value: object) -> object:
    if isinstance(
        value, bytes
    ):  # the client leaves AMQP strings as bytes; real binary becomes Base64, as in Newtonsoft.Json
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value if isinstance(value, str | int | float | None) else str(value)
