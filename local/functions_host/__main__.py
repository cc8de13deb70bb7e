"""Command line of the local Functions host: ``python -m local.functions_host --app FOLDER``.

Prints ``READY <port>`` on standard output, nothing else, when the app is indexed, HTTP serves and every queue is
connected; logs go to standard error, and so does what functions print. Runs until SIGTERM or SIGINT. Exit codes:
0 stopped, 2 the app or a setting is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

from .configuration import HostError, apply_local_settings, read_host_json
from .logs import configure_logging

log = logging.getLogger(__name__)

_HEAVY_MODULES = (
    "databricks",
    "openai",
    "azure.servicebus",
    "azure.data",
    "azure.communication",
    "azure.identity",
    "pydantic",
    "jinja2",
)


def main() -> int:
    """Parse the arguments, then serve the app or measure its start. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m local.functions_host", description="Run a function app locally.")
    parser.add_argument("--app", type=Path, default=Path(), help="folder of function_app.py and host.json")
    parser.add_argument("--port", type=int, default=17071, help="HTTP port on the loopback address, 0 for a free one")
    parser.add_argument(
        "--function-key", help="ask for this key where a function is not anonymous (default: ask for none)"
    )
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument("--index-only", action="store_true", help="index, print the time it took as JSON, and exit")
    arguments = parser.parse_args()
    app_folder: Path = arguments.app.resolve()
    out, sys.stdout = sys.stdout, sys.stderr  # what functions print must not get between READY and whoever waits for it
    # `python -m` has put the working directory first on the path. Azure does not: the app must not be found that way.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path.cwd()]
    configure_logging(arguments.log_level)
    try:
        apply_local_settings(app_folder)
        if arguments.index_only:
            out.write(json.dumps(asyncio.run(measure_index(app_folder))) + "\n")
        elif cut_off := asyncio.run(serve(app_folder, arguments.port, arguments.function_key, out)):
            log.warning("Leaving %d calls unfinished", cut_off)
            out.flush()
            os._exit(0)  # the interpreter would wait for their threads for ever
    except HostError as error:
        log.error("%s", error)  # noqa: TRY400 - the message is for the operator, our own trace says nothing more
        return 2
    return 0


async def measure_index(app_folder: Path) -> dict[str, object]:
    """Index the app in this fresh process; report the milliseconds it took and the heavy packages it loaded.

    ``import_ms`` is the worker library, ``index_ms`` the app with all that it imports. The start of the interpreter is
    not counted.
    """
    started = time.perf_counter()
    import azure.functions  # noqa: F401 - its import is part of what is measured

    from .worker import index_app

    imported = time.perf_counter()
    functions = await index_app(app_folder)
    indexed = time.perf_counter()
    return {
        "functions": [function.name for function in functions],
        "import_ms": round((imported - started) * 1000, 1),
        "index_ms": round((indexed - imported) * 1000, 1),
        "total_ms": round((indexed - started) * 1000, 1),
        "modules": [name for name in _HEAVY_MODULES if name in sys.modules],
    }


async def serve(app_folder: Path, port: int, function_key: str | None, out: TextIO) -> int:
    """Run the app until SIGTERM or SIGINT; write the READY line to ``out``. Returns how many calls were cut off."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    # Imported here, since with --index-only neither aiohttp nor the Service Bus client may be loaded.
    from .host import Host
    from .worker import index_app

    os.environ.setdefault("AZURE_FUNCTIONS_ENVIRONMENT", "Development")  # as Core Tools do: the app is going to run
    configuration = read_host_json(app_folder)
    functions = await index_app(app_folder)
    host = Host(functions, configuration, function_key)
    stopping = asyncio.create_task(stopped.wait())
    starting = asyncio.create_task(host.start(port))
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            out.write(f"READY {starting.result()}\n")
            out.flush()
            await stopping
    finally:
        starting.cancel()
        cut_off = await host.stop()
    return cut_off


if __name__ == "__main__":
    sys.exit(main())
