"""The Service Bus stand-in on a socket: AMQP 1.0 over plain TCP, as the official clients speak it to the emulator.

A client reaches it with `Endpoint=sb://localhost:PORT;…;UseDevelopmentEmulator=true;`. Imitated: everything in
`broker`, link credit, frame sizes, `$cbs` and `$management`. Left out: TLS, web sockets, checking of tokens, idle
timeouts, and the HTTP management of entities: queues come from the configuration.
"""

import asyncio
import logging
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

from local.service_bus.broker import Broker, Queue, QueueConfig
from local.service_bus.codec import (
    Array,
    CodecError,
    Kind,
    Performative,
    Symbol,
    UByte,
    UInt,
    UShort,
    decode_performative,
    encode_frame,
)
from local.service_bus.session import TOKEN_NODE, Node, OutgoingLink, Session, error_value

HOST = "127.0.0.1"
TICK_SECONDS = 0.02
MAX_FRAME_SIZE = 64 * 1024
_SMALLEST_MAX_FRAME_SIZE = 512
_MANAGEMENT_SUFFIX = "/$management"
_HEADER_SIZE = 8
_AMQP_HEADER = b"AMQP\x00\x01\x00\x00"
_SASL_HEADER = b"AMQP\x03\x01\x00\x00"

_logger = logging.getLogger(__name__)


def connection_string(port: int) -> str:
    """What a client needs to reach the stand-in. The key is never checked."""
    return (
        f"Endpoint=sb://localhost:{port};SharedAccessKeyName=local;SharedAccessKey=local;UseDevelopmentEmulator=true;"
    )


class Server:
    """Serves a broker: finds the node for an address and hands the messages of a queue to its consumers in turn."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._consumers: defaultdict[Queue, deque[OutgoingLink]] = defaultdict(deque)
        self._listener: asyncio.Server | None = None
        self._next_tick: asyncio.TimerHandle | None = None

    async def start(self, port: int) -> int:
        """Listen on the loopback address; port 0 takes a free one. Returns the port."""
        self._listener = await asyncio.get_running_loop().create_server(lambda: Connection(self), HOST, port)
        self._tick()
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and drop all connections."""
        if self._next_tick:
            self._next_tick.cancel()
        if self._listener:
            self._listener.close()
            self._listener.close_clients()
            await self._listener.wait_closed()

    def find_node(self, address: str) -> Node | None:
        """The node of a link address: a bare path, or a URI whose host does not matter. None if unknown."""
        path = (urlsplit(address).path if "://" in address else address).strip("/").lower()
        if path == TOKEN_NODE:
            return Node(path, None)
        queue = self.broker.find(path.removesuffix(_MANAGEMENT_SUFFIX))
        return Node(path, queue, path.endswith(_MANAGEMENT_SUFFIX)) if queue else None

    def add_consumer(self, queue: Queue, link: OutgoingLink) -> None:
        """Let a link take part in the deliveries of a queue."""
        self._consumers[queue].append(link)

    def remove_consumer(self, queue: Queue, link: OutgoingLink) -> None:
        """Undo `add_consumer`; a link that never took part is no error."""
        if link in self._consumers[queue]:
            self._consumers[queue].remove(link)

    def deliver(self, queue: Queue) -> None:
        """Hand out ready messages, one per consumer with credit in turn, until either runs out."""
        consumers = self._consumers[queue]
        without_credit = 0
        while without_credit < len(consumers):
            link = consumers[0]
            consumers.rotate(-1)
            if link.credit <= 0:
                without_credit += 1
                continue
            without_credit = 0
            message = queue.receive()
            if message is None:
                return
            link.session.send_message(link, queue, message)

    def _tick(self) -> None:
        self._next_tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)
        self.broker.tick()
        for queue in list(self._consumers):
            self.deliver(queue)


class Connection(asyncio.Protocol):
    """One client connection: bytes to frames, frames to sessions. What it cannot understand closes it, and only it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._sessions: dict[int, Session] = {}
        self._peer_max_frame_size = _SMALLEST_MAX_FRAME_SIZE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio; the locks of the client's messages stay and end by themselves."""
        self._end_sessions()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with whatever has arrived."""
        self._buffer += data
        try:
            while self._transport and (frame := self._take_frame()):
                self._handle(frame)
        except CodecError as error:
            _logger.warning("closing a connection that sent a malformed frame", extra={"reason": str(error)})
            self._close("amqp:decode-error", str(error))

    def _take_frame(self) -> bytes | None:
        """The next whole frame or protocol header in the buffer; None until there is one."""
        if len(self._buffer) < _HEADER_SIZE:
            return None
        size = _HEADER_SIZE if self._buffer.startswith(b"AMQP") else int.from_bytes(self._buffer[:4])
        if not _HEADER_SIZE <= size <= MAX_FRAME_SIZE:
            raise CodecError(f"a frame of {size} bytes")
        if len(self._buffer) < size:
            return None
        frame = bytes(self._buffer[:size])
        del self._buffer[:size]
        return frame

    def _handle(self, frame: bytes) -> None:
        if frame.startswith(b"AMQP"):
            self._answer_header(frame)
            return
        _, data_offset, _, channel = struct.unpack(">IBBH", frame[:_HEADER_SIZE])
        if data_offset < 2:
            raise CodecError(f"a frame with data offset {data_offset}")
        body = frame[4 * data_offset :]
        if body:  # an empty frame only says that the client is still there
            self._handle_performative(channel, decode_performative(body))

    def _answer_header(self, header: bytes) -> None:
        if header == _SASL_HEADER:
            mechanisms = encode_frame(0, Kind.SASL_MECHANISMS, sasl_server_mechanisms=Array([Symbol("ANONYMOUS")]))
            self._send(_SASL_HEADER + mechanisms)
        elif header == _AMQP_HEADER:
            self._send(_AMQP_HEADER)
        else:
            raise CodecError(f"unsupported protocol header {header!r}")

    def _handle_performative(self, channel: int, frame: Performative) -> None:
        match frame.kind:
            case Kind.SASL_INIT:
                self._write(0, Kind.SASL_OUTCOME, code=UByte(0))
            case Kind.OPEN:
                announced = frame.optional_integer("max_frame_size") or MAX_FRAME_SIZE
                self._peer_max_frame_size = max(announced, _SMALLEST_MAX_FRAME_SIZE)
                limits = {"max_frame_size": UInt(MAX_FRAME_SIZE), "channel_max": UShort(255)}
                self._write(0, Kind.OPEN, container_id="service-bus-stand-in", **limits)
            case Kind.BEGIN:
                self._begin(channel, frame)
            case Kind.CLOSE:
                self._close()
            case _ if session := self._sessions.get(channel):
                if frame.kind is Kind.END:
                    session.end()
                    del self._sessions[channel]
                    self._write(channel, Kind.END)
                else:
                    session.handle(frame)
            case _:
                pass  # the client still detaches its links after it has ended their session

    def _begin(self, channel: int, frame: Performative) -> None:
        if channel in self._sessions:
            raise CodecError(f"a second session begins on channel {channel}")
        session = Session(self._server, partial(self._write, channel), self._peer_max_frame_size, frame)
        self._sessions[channel] = session
        session.begin(channel)

    def _write(self, channel: int, kind: Kind, payload: bytes = b"", /, **fields: object) -> None:
        self._send(encode_frame(channel, kind, payload, **fields))

    def _send(self, data: bytes) -> None:
        if self._transport:
            self._transport.write(data)

    def _close(self, condition: str | None = None, description: str = "") -> None:
        error = error_value(condition, description) if condition else None
        self._write(0, Kind.CLOSE, error=error)
        self._end_sessions()
        if self._transport:
            self._transport.close()
            self._transport = None

    def _end_sessions(self) -> None:
        for session in self._sessions.values():
            session.end()
        self._sessions.clear()


@contextmanager
def running_broker(queues: Sequence[QueueConfig]) -> Iterator[str]:
    """Serve queues from a thread of this process, on a free port, and yield the connection string."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="service-bus-stand-in", daemon=True)
    thread.start()
    server = Server(Broker(queues))
    try:
        yield connection_string(asyncio.run_coroutine_threadsafe(server.start(port=0), loop).result(timeout=10))
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
