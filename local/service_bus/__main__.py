"""`python -m local.service_bus --port 0 --queues queues.json`: serve until SIGTERM or SIGINT.

Prints one line once clients can connect: `READY <port>`, or `READY <port> <status port>` with `--status-port`.
"""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from local.service_bus.broker import Broker, read_queue_configs
from local.service_bus.server import HOST, Server
from local.service_bus.status import serve_status


async def serve(broker: Broker, port: int, status_port: int | None) -> None:
    """Serve the broker until a signal; port 0 takes a free one, no status port serves no status."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = Server(broker)
    ports = [await server.start(port)]
    if status_port is not None:
        status = await serve_status(broker, HOST, status_port)
        ports.append(status.sockets[0].getsockname()[1])
    sys.stdout.write(f"READY {' '.join(map(str, ports))}\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m local.service_bus", description="A stand-in for Azure Service Bus")
    parser.add_argument("--port", type=int, required=True, help="AMQP port on the loopback address, 0 for a free one")
    parser.add_argument("--queues", type=Path, required=True, help="JSON file: a list of queues, see QueueConfig")
    parser.add_argument("--status-port", type=int, help="HTTP port for /_standin/queues, 0 for a free one")
    arguments = parser.parse_args()
    try:
        broker = Broker(read_queue_configs(arguments.queues))
    except (OSError, ValueError) as error:
        parser.error(f"--queues: {error}")
    try:
        asyncio.run(serve(broker, arguments.port, arguments.status_port))
    except OSError as error:
        parser.exit(1, f"cannot listen: {error}; choose another port, or 0 for a free one\n")


if __name__ == "__main__":
    main()
