"""The wire form of a Service Bus message: what a client sends, taken apart, and what it receives, put together.

Source: OASIS AMQP 1.0 part 3 (sections) and the annotations `azure-servicebus` 7.15 reads. Properties, application
properties and body are kept as the bytes they arrived in, so that every type survives the way through a queue.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from local.service_bus import codec
from local.service_bus.codec import CodecError, Described, Int, Long, Symbol, Timestamp, UInt, ULong

BATCH_FORMAT = 0x80013700
"""`message-format` of a transfer whose data sections are messages of their own (Microsoft's extension of AMQP)."""

SCHEDULED_ENQUEUE_TIME = Symbol("x-opt-scheduled-enqueue-time")

HEADER, DELIVERY_ANNOTATIONS, ANNOTATIONS, PROPERTIES, APPLICATION_PROPERTIES, DATA, SEQUENCE, VALUE, FOOTER = range(
    0x70, 0x79
)


@dataclass(frozen=True)
class Content:
    """A message as its sender wrote it, with the three things a queue acts on read out.

    `time_to_live` in seconds; `scheduled_for` in seconds since 1970-01-01 UTC; the rest is kept for whoever receives
    it.
    """

    message_id: str | None = None
    time_to_live: float | None = None
    scheduled_for: float | None = None
    header: list[object] = field(default_factory=list)
    annotations: dict[object, object] = field(default_factory=dict)
    properties: bytes = b""
    application_properties: bytes = b""
    body: bytes = b""


def parse_transfer(payload: bytes, message_format: int) -> list[Content]:
    """The messages in one transfer: one, or those of a batch. Raises `CodecError`."""
    if message_format != BATCH_FORMAT:
        return [parse_message(payload)]
    return [parse_message(value) for kind, value, _ in _sections(payload) if kind == DATA and isinstance(value, bytes)]


def parse_message(payload: bytes) -> Content:
    """One encoded message. Raises `CodecError` if it is not valid AMQP."""
    values: dict[int, object] = {}
    raw = {PROPERTIES: b"", APPLICATION_PROPERTIES: b""}
    body = b""
    for kind, value, section in _sections(payload):
        values[kind] = value
        if kind in raw:
            raw[kind] = section
        elif kind >= DATA:
            body += section
    header, annotations, properties = values.get(HEADER, []), values.get(ANNOTATIONS, {}), values.get(PROPERTIES, [])
    if not (isinstance(header, list) and isinstance(annotations, dict) and isinstance(properties, list)):
        raise CodecError("header and properties are lists, annotations are a map")
    time_to_live = header[2] if len(header) > 2 else None
    scheduled_for = annotations.get(SCHEDULED_ENQUEUE_TIME)
    return Content(
        message_id=str(properties[0]) if properties and properties[0] is not None else None,
        time_to_live=time_to_live / 1000 if isinstance(time_to_live, UInt) else None,
        scheduled_for=scheduled_for / 1000 if isinstance(scheduled_for, Timestamp) else None,
        header=header,
        annotations=annotations,
        properties=raw[PROPERTIES],
        application_properties=raw[APPLICATION_PROPERTIES],
        body=body,
    )


def render_message(
    content: Content,
    *,
    sequence_number: int,
    delivery_count: int,
    enqueued_at: float,
    locked_until: float | None,
    state: int,
    dead_letter: dict[str, str],
) -> bytes:
    """The bytes a receiver gets: the content and what the service adds. Times in seconds since 1970-01-01 UTC.

    `state` is `x-opt-message-state`: 0 active, 1 deferred, 2 scheduled. `dead_letter` are the application properties
    that a message gains in a dead-letter queue. The header is always there: it carries the delivery count.
    """
    header = [*(content.header + [None] * 4)[:4], UInt(delivery_count)]
    annotations = content.annotations | {
        Symbol("x-opt-sequence-number"): Long(sequence_number),
        Symbol("x-opt-enqueued-time"): _timestamp(enqueued_at),
        Symbol("x-opt-message-state"): Int(state),
    }
    if locked_until is not None:
        annotations[Symbol("x-opt-locked-until")] = _timestamp(locked_until)
    application_properties = content.application_properties
    if dead_letter:
        application_properties = _with_properties(application_properties, dead_letter)
    return (
        encode_section(HEADER, header)
        + encode_section(ANNOTATIONS, annotations)
        + content.properties
        + application_properties
        + content.body
    )


def encode_section(kind: int, value: object) -> bytes:
    """One section of a message."""
    return codec.encode(Described(ULong(kind), value))


def sections_by_kind(payload: bytes) -> dict[int, object]:
    """The decoded sections of a message that has each at most once, such as a request. Raises `CodecError`."""
    return {kind: value for kind, value, _ in _sections(payload)}


def _sections(payload: bytes) -> Iterator[tuple[int, object, bytes]]:
    position = 0
    while position < len(payload):
        section, end = codec.decode_at(payload, position)
        if not isinstance(section, Described) or not isinstance(section.descriptor, ULong):
            raise CodecError("a message is a sequence of described sections")
        if not HEADER <= section.descriptor <= FOOTER:
            raise CodecError(f"unknown message section 0x{section.descriptor:02x}")
        yield section.descriptor, section.value, payload[position:end]
        position = end


def _with_properties(section: bytes, added: dict[str, str]) -> bytes:
    described = codec.decode(section) if section else None
    present = described.value if isinstance(described, Described) else None
    return encode_section(APPLICATION_PROPERTIES, (present if isinstance(present, dict) else {}) | added)


def _timestamp(seconds: float) -> Timestamp:
    return Timestamp(round(seconds * 1000))
