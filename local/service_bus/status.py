"""What the stand-in tells those who run it, over HTTP: that it is there, and how many messages each queue holds.

The real service has no such address; there the counts come from Azure Monitor or the management API.
"""

import asyncio
import json

from local.service_bus.broker import Broker


async def serve_status(broker: Broker, host: str, port: int) -> asyncio.Server:
    """Serve `GET /_standin/health` and `GET /_standin/queues`; port 0 takes a free one."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request_line = await reader.readline()
        while (await reader.readline()).strip():
            pass  # the header lines say nothing of interest
        status, document = _document(broker, request_line)
        body = json.dumps(document).encode()
        headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
        writer.write(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(respond, host, port)


def _document(broker: Broker, request_line: bytes) -> tuple[str, dict[str, object]]:
    match request_line.split():
        case [b"GET", b"/_standin/health", _]:
            return "200 OK", {"status": "ok"}
        case [b"GET", b"/_standin/queues", _]:
            return "200 OK", {"queues": [{"name": queue.config.name, **queue.counts()} for queue in broker.queues]}
        case _:
            return "404 Not Found", {"error": "there are GET /_standin/health and GET /_standin/queues"}
