"""AMQP 1.0 values and frames as bytes, as far as a Service Bus client needs them.

Source: OASIS AMQP 1.0, part 1 (types) and part 2 (transport). A decoded number keeps its AMQP type as a subclass of
`int` or `float`, so that what is decoded and encoded again arrives with the type it was sent with. Everything is
encoded in the widest form of its type; only numeric descriptors are short, because the official client reads them at
a fixed place. Left out: arrays of described values.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID


class CodecError(ValueError):
    """Bytes that are not valid AMQP, or a value that has no AMQP form."""


class UByte(int):
    """An AMQP ubyte (8 bits)."""


class Byte(int):
    """An AMQP byte (8 bits, signed)."""


class UShort(int):
    """An AMQP ushort (16 bits)."""


class Short(int):
    """An AMQP short (16 bits, signed)."""


class UInt(int):
    """An AMQP uint (32 bits)."""


class Int(int):
    """An AMQP int (32 bits, signed)."""


class ULong(int):
    """An AMQP ulong (64 bits)."""


class Long(int):
    """An AMQP long (64 bits, signed)."""


class Timestamp(int):
    """An AMQP timestamp: milliseconds since 1970-01-01 UTC."""


class Float(float):
    """An AMQP float (32 bits); a Python `float` is an AMQP double."""


class Symbol(str):
    """An AMQP symbol (ASCII); a Python `str` is an AMQP string."""

    __slots__ = ()


class Array(list[object]):
    """An AMQP array: every element has the same type."""


@dataclass(frozen=True)
class Described:
    """An AMQP value with a descriptor that says what it means, for example 0x24 for the outcome *accepted*."""

    descriptor: object
    value: object


@dataclass(frozen=True)
class Opaque:
    """A fixed-width value that Python has no type for (char, decimals), kept as its bytes."""

    constructor: int
    data: bytes


_NUMBERS: dict[int, tuple[type, struct.Struct]] = {
    0x50: (UByte, struct.Struct(">B")),
    0x51: (Byte, struct.Struct(">b")),
    0x52: (UInt, struct.Struct(">B")),
    0x53: (ULong, struct.Struct(">B")),
    0x54: (Int, struct.Struct(">b")),
    0x55: (Long, struct.Struct(">b")),
    0x56: (bool, struct.Struct(">B")),
    0x60: (UShort, struct.Struct(">H")),
    0x61: (Short, struct.Struct(">h")),
    0x70: (UInt, struct.Struct(">I")),
    0x71: (Int, struct.Struct(">i")),
    0x72: (Float, struct.Struct(">f")),
    0x80: (ULong, struct.Struct(">Q")),
    0x81: (Long, struct.Struct(">q")),
    0x82: (float, struct.Struct(">d")),
    0x83: (Timestamp, struct.Struct(">q")),
}
_WIDEST = {kind: (code, packer) for code, (kind, packer) in sorted(_NUMBERS.items()) if kind is not bool}
_CONSTANTS: dict[int, object] = {0x40: None, 0x41: True, 0x42: False, 0x43: UInt(0), 0x44: ULong(0)}
_FIXED_WIDTHS = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}
_UUID = 0x98
_EMPTY_LIST = 0x45
_LONG_COUNT = struct.Struct(">I")


def encode(value: object) -> bytes:
    """Encode one value with its constructor.

    Raises `CodecError` for a value without an AMQP form, among them a plain `int`: its width has to be chosen.
    """
    if isinstance(value, Described):
        code = value.descriptor
        descriptor = bytes((0x53, code)) if isinstance(code, ULong) and code < 256 else encode(code)
        return b"\x00" + descriptor + encode(value.value)
    constructor, data = _constructor_and_data(value)
    return bytes((constructor,)) + data


def decode(data: bytes) -> object:
    """Decode exactly one value. Raises `CodecError` if the bytes are anything else."""
    value, end = decode_at(data, 0)
    if end != len(data):
        raise CodecError(f"{len(data) - end} bytes follow the value")
    return value


def decode_at(data: bytes, position: int) -> tuple[object, int]:
    """Decode the value that starts at `position`; returns it and the position after it. Raises `CodecError`."""
    try:
        return _value(data, position)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, RecursionError) as error:
        raise CodecError(f"not an AMQP value: {error}") from error


def _constructor_and_data(value: object) -> tuple[int, bytes]:
    kind = type(value)
    if kind in _WIDEST:
        constructor, packer = _WIDEST[kind]
        try:
            return constructor, packer.pack(value)
        except struct.error as error:
            raise CodecError(f"{value!r} does not fit into an AMQP {kind.__name__}") from error
    if value is None:
        return 0x40, b""
    if isinstance(value, bool):
        return (0x41 if value else 0x42), b""
    if isinstance(value, UUID):
        return _UUID, value.bytes
    if isinstance(value, Opaque):
        return value.constructor, value.data
    constructor, data = _sized(value)
    return constructor, _LONG_COUNT.pack(len(data)) + data


def _sized(value: object) -> tuple[int, bytes]:
    match value:
        case bytes():
            return 0xB0, value
        case Symbol():
            return 0xB3, value.encode("ascii")
        case str():
            return 0xB1, value.encode()
        case Array():
            return 0xF0, _array(value)
        case list():
            return 0xD0, _compound(value)
        case dict():
            return 0xD1, _compound([item for pair in value.items() for item in pair])
        case _:
            raise CodecError(f"{type(value).__name__} has no AMQP form")


def _compound(items: list[object]) -> bytes:
    return _LONG_COUNT.pack(len(items)) + b"".join(encode(item) for item in items)


def _array(items: Array) -> bytes:
    parts = [_constructor_and_data(item) for item in items]
    constructors = {constructor for constructor, _ in parts} or {0x40}
    if len(constructors) > 1:
        raise CodecError("the elements of an AMQP array have one type")
    return _LONG_COUNT.pack(len(parts)) + bytes(constructors) + b"".join(part for _, part in parts)


def _value(data: bytes, position: int) -> tuple[object, int]:
    constructor = data[position]
    if constructor == 0:
        descriptor, position = _value(data, position + 1)
        value, position = _value(data, position)
        return Described(descriptor, value), position
    return _value_of(constructor, data, position + 1)


def _value_of(constructor: int, data: bytes, position: int) -> tuple[object, int]:
    if constructor == _EMPTY_LIST:
        return [], position
    if constructor in _CONSTANTS:
        return _CONSTANTS[constructor], position
    if constructor in _NUMBERS:
        kind, packer = _NUMBERS[constructor]
        return kind(packer.unpack_from(data, position)[0]), position + packer.size
    family = constructor >> 4
    if family in _FIXED_WIDTHS:
        raw, end = _slice(data, position, _FIXED_WIDTHS[family])
        return (UUID(bytes=raw) if constructor == _UUID else Opaque(constructor, raw)), end
    width = 4 if family % 2 else 1  # families a, c and e have sizes of one byte, b, d and f of four
    raw, end = _slice(data, position + width, int.from_bytes(data[position : position + width]))
    narrow = constructor & ~0x10 if width == 4 else constructor
    return (_variable(narrow, raw) if family in (0xA, 0xB) else _collection(narrow, raw, width)), end


def _slice(data: bytes, position: int, size: int) -> tuple[bytes, int]:
    if position + size > len(data):
        raise CodecError(f"{size} bytes announced, {len(data) - position} left")
    return data[position : position + size], position + size


def _variable(constructor: int, raw: bytes) -> object:
    match constructor:
        case 0xA0:
            return raw
        case 0xA1:
            return raw.decode()
        case 0xA3:
            return Symbol(raw.decode("ascii"))
        case _:
            raise CodecError(f"unknown constructor 0x{constructor:02x}")


def _collection(constructor: int, raw: bytes, width: int) -> object:
    count = int.from_bytes(raw[:width])
    if len(raw) < width or count > len(raw):  # every element takes a byte, but for arrays of null or true
        raise CodecError(f"{count} elements in {len(raw)} bytes")
    match constructor:
        case 0xC0:
            return list(_elements(raw, width, count))
        case 0xC1 if count % 2 == 0:
            items = list(_elements(raw, width, count))
            return dict(zip(items[::2], items[1::2], strict=True))
        case 0xE0:
            return Array(_array_elements(raw, width, count))
        case _:
            raise CodecError(f"unknown constructor 0x{constructor:02x}, or a map with {count} elements")


def _elements(raw: bytes, position: int, count: int) -> Iterator[object]:
    for _ in range(count):
        value, position = _value(raw, position)
        yield value
    _expect_end(raw, position)


def _array_elements(raw: bytes, position: int, count: int) -> Iterator[object]:
    constructor = raw[position]
    if constructor == 0:
        raise CodecError("arrays of described values are not supported")
    position += 1
    for _ in range(count):
        value, position = _value_of(constructor, raw, position)
        yield value
    _expect_end(raw, position)


def _expect_end(raw: bytes, position: int) -> None:
    if position != len(raw):
        raise CodecError(f"{len(raw) - position} bytes follow the last element")


class Kind(IntEnum):
    """The descriptors of the frame bodies (performatives) and of the SASL frame bodies."""

    OPEN = 0x10
    BEGIN = 0x11
    ATTACH = 0x12
    FLOW = 0x13
    TRANSFER = 0x14
    DISPOSITION = 0x15
    DETACH = 0x16
    END = 0x17
    CLOSE = 0x18
    SASL_MECHANISMS = 0x40
    SASL_INIT = 0x41
    SASL_OUTCOME = 0x44


_FIELD_NAMES = {
    Kind.OPEN: "container_id hostname max_frame_size channel_max idle_time_out",
    Kind.BEGIN: "remote_channel next_outgoing_id incoming_window outgoing_window handle_max",
    Kind.ATTACH: "name handle role snd_settle_mode rcv_settle_mode source target unsettled incomplete_unsettled"
    " initial_delivery_count max_message_size",
    Kind.FLOW: "next_incoming_id incoming_window next_outgoing_id outgoing_window handle delivery_count link_credit"
    " available drain echo",
    Kind.TRANSFER: "handle delivery_id delivery_tag message_format settled more rcv_settle_mode state resume aborted",
    Kind.DISPOSITION: "role first last settled state",
    Kind.DETACH: "handle closed error",
    Kind.END: "error",
    Kind.CLOSE: "error",
    Kind.SASL_MECHANISMS: "sasl_server_mechanisms",
    Kind.SASL_INIT: "mechanism",
    Kind.SASL_OUTCOME: "code",
}
FIELDS: dict[int, tuple[str, ...]] = {kind: tuple(names.split()) for kind, names in _FIELD_NAMES.items()}
"""The fields of each frame body in the order of the specification; what the stand-in never uses is cut off."""


@dataclass(frozen=True)
class Performative:
    """The body of one frame: its kind, its fields by name, and for a transfer the bytes of the message."""

    kind: Kind
    fields: dict[str, object]
    payload: bytes = b""

    def integer(self, name: str) -> int:
        """The field as a number. Raises `CodecError` if it is absent or something else."""
        value = self.optional_integer(name)
        if value is None:
            raise CodecError(f"{self.kind.name} without {name}")
        return value

    def optional_integer(self, name: str) -> int | None:
        """The field as a number, None if it is absent. Raises `CodecError` if it is something else."""
        value = self.fields.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise CodecError(f"{self.kind.name} with {name}={value!r}, expected a number")

    def flag(self, name: str) -> bool:
        """The field as a boolean; absent is false, as for every flag of the specification."""
        return self.fields.get(name) is True


def encode_frame(channel: int, kind: Kind, payload: bytes = b"", /, **fields: object) -> bytes:
    """One complete frame. `fields` are named as in the specification, with `_` for `-`; those left out are null."""
    names = FIELDS[kind]
    if not fields.keys() <= set(names):
        raise CodecError(f"{kind.name} has no field {', '.join(sorted(fields.keys() - set(names)))}")
    values = [fields.get(name) for name in names]
    while values and values[-1] is None:
        values.pop()
    body = encode(Described(ULong(kind), values))
    sasl = kind >= Kind.SASL_MECHANISMS
    return struct.pack(">IBBH", 8 + len(body) + len(payload), 2, int(sasl), channel) + body + payload


def decode_performative(body: bytes) -> Performative:
    """Decode what follows the eight bytes of a frame's head. Raises `CodecError`."""
    described, end = decode_at(body, 0)
    match described:
        case Described(ULong() as code, list() as values) if code in FIELDS:
            kind = Kind(code)
            return Performative(kind, dict(zip(FIELDS[kind], values, strict=False)), body[end:])
        case _:
            raise CodecError("the body of a frame is a list with the descriptor of a performative")
