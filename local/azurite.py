"""Azurite's table service, Microsoft's own emulator of Azure Tables, as a child process.

Unlike the real service it is one process without replicas: it never throttles, and knows neither Entra identities nor
latency. Needs Node and `npm ci` in `local/`.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST = "127.0.0.1"
STARTED = "Azurite Table service successfully started"
START_SECONDS = 30
STOP_SECONDS = 5
PROGRAM = Path(__file__).parent / "node_modules" / ".bin" / "azurite-table"

# Published by Microsoft for every installation of Azurite; not a secret (github.com/Azure/Azurite, README).
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6"  # pragma: allowlist secret
    "IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # pragma: allowlist secret
)


class AzuriteError(Exception):
    """Azurite is not installed, or did not start."""


def connection_string(port: int) -> str:
    """What a client needs to reach the table service on the port."""
    return (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};"
        f"TableEndpoint=http://{HOST}:{port}/{ACCOUNT};"
    )


def command_line(location: Path, port: int) -> list[str]:
    """How to start the table service; `location` is where it keeps its file.

    The version check is left out because the client may speak a newer version than Azurite knows of.
    """
    address = ["--tableHost", HOST, "--tablePort", str(port), "--location", str(location)]
    return [str(PROGRAM), *address, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]


@contextmanager
def running_azurite(location: Path, *, port: int = 0) -> Iterator[str]:
    """Run the table service and yield its connection string; port 0 = any free one.

    Raises AzuriteError with Azurite's own words where it ends at once or has not started within 30 seconds.
    """
    if not PROGRAM.exists():
        raise AzuriteError(f"{PROGRAM} is missing: run `npm ci` in {PROGRAM.parents[2]}")
    location.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    output = location / "azurite.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            command_line(location, port), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until_started(process, output)
        yield connection_string(port)
    finally:
        stop(process)


def free_port() -> int:
    """A port that was free just now (Azurite does not tell which one it took, so it cannot be left to choose)."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until_started(process: subprocess.Popen[bytes], output: Path) -> None:
    """Return once Azurite says that it listens; raises AzuriteError where it ends first, or after 30 seconds.

    Its own word is waited for and not the port, which another program may have taken.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        words = output.read_text(errors="replace").strip()
        if STARTED in words:
            return
        if ended:
            raise AzuriteError(f"Azurite ended with code {process.returncode}: {words}")
        time.sleep(0.05)
    raise AzuriteError(f"Azurite did not start within {START_SECONDS} seconds: {words}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and wait for it."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
