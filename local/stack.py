"""The local stack: every part a process of its own, started, watched, restarted when it dies, and stopped.

Azurite keeps the tables; the stand-ins play Service Bus, Databricks, Azure OpenAI and ACS Email; the Functions host
runs the real app. What a stand-in held in memory is gone when it is restarted: a restarted Service Bus has empty queues
(the history sends again what is overdue), a restarted Databricks plays its scenario from the start.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from local import azurite

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
QUEUES = ROOT / "local" / "queues.json"
HOST = "127.0.0.1"
DEFAULT_PORTS: Mapping[str, int] = {
    "host": 17071,
    "service_bus": 15672,
    "databricks": 18081,
    "openai": 18082,
    "email": 18083,
    "tables": 11002,
    "service_bus_status": 15673,
}
START_ORDER = ("tables", "service_bus", "databricks", "openai", "email", "host")
START_SECONDS = 40
STOP_SECONDS = 8

ESCALATION_ADDRESS = "data-platform@example.com"


class StackError(Exception):
    """A part did not start; the message names its log."""


class OccupiedError(StackError):
    """The folder or a port is in use by another; nothing was started, and nothing in the folder was touched."""


@dataclass(slots=True)
class Part:
    """One process of the stack."""

    name: str
    command: list[str]
    log: Path
    says_ready: bool
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((HOST, 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def choose_ports(base_port: int | None) -> dict[str, int]:
    """The default ports, consecutive ones from a base port, or free ones for base port 0."""
    if base_port is None:
        return dict(DEFAULT_PORTS)
    numbers = free_ports(len(DEFAULT_PORTS)) if base_port == 0 else range(base_port, base_port + len(DEFAULT_PORTS))
    return dict(zip(DEFAULT_PORTS, numbers, strict=True))


def settings_of(ports: Mapping[str, int]) -> dict[str, str]:
    """The settings that point the app at this stack, with waits short enough to watch."""
    return {
        "DATABRICKS_HOST": f"http://{HOST}:{ports['databricks']}",
        "DATABRICKS_TOKEN": "local",
        "AZURE_OPENAI_ENDPOINT": f"http://{HOST}:{ports['openai']}",
        "AZURE_OPENAI_DEPLOYMENT": "local",
        "AZURE_OPENAI_KEY": "local",
        "ACS_ENDPOINT": f"http://{HOST}:{ports['email']}",
        "ACS_ACCESS_KEY": "bG9jYWw=",
        "SENDER_EMAIL": "DoNotReply@example.com",
        "ESCALATION_EMAILS": ESCALATION_ADDRESS,
        "SERVICE_BUS_CONNECTION": (
            f"Endpoint=sb://localhost:{ports['service_bus']};SharedAccessKeyName=local;SharedAccessKey=local;"
            "UseDevelopmentEmulator=true;"
        ),
        "TABLES_CONNECTION_STRING": azurite.connection_string(ports["tables"]),
        "DEFAULT_MODE": "full",
        "FIND_FAILURES_SCHEDULE": "*/2 * * * * *",
        "FOLLOW_UP_SCHEDULE": "1/2 * * * * *",
        "BACKOFF_BASE_SECONDS": "1",
        "BACKOFF_CAP_SECONDS": "2",
        "DEFER_BASE_SECONDS": "1",
        "DEFER_CAP_SECONDS": "5",
        "CLAIM_SETTLE_SECONDS": "3",
        "PAUSE_CHECK_SECONDS": "2",
        "STALE_AFTER_MINUTES": "0.25",
        "OVERLAP_SECONDS": "10",
        "RETRY_BUDGET_FLOOR": "1000",
        "MAX_CONCURRENT_RETRIES": "1000",
        "RETRIES_PER_JOB_AND_DAY": "1000",
        "BREAKER_FAILURES": "1000",
        "BREAKER_FAILED_RETRIES": "1000",
        "SLOT_WAIT_SECONDS": "1",
        "MAILS_AT_ONCE_PER_HOUR": "1000",
        "GROUP_WAIT_SECONDS": "2",
        "DIGEST_INTERVAL_MINUTES": "0.1",
        "DATABRICKS_TIMEOUT_SECONDS": "10",
        "DATABRICKS_RETRY_SECONDS": "10",
        "PYTHON_THREADPOOL_THREAD_COUNT": "16",
    }


def app_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of the host: this process's own without settings of a real installation, plus the stack's."""
    foreign = ("DATABRICKS_", "AZURE_", "ACS_", "ARM_", "SERVICE_BUS_", "TABLES_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, **settings}


class Stack:
    """The running stack. `folder` holds logs, mails, effects and `stack.json`, and is emptied of them at the start.

    `queues` is a file like `local/queues.json`, the default; `settings` add to the usual ones and win over them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        base_port: int | None = None,
        scenario: Path | None = None,
        queues: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.ports = choose_ports(base_port)
        self.settings = {**settings_of(self.ports), **(settings or {})}
        self._scenario = scenario
        self._queues = queues or QUEUES
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._parts = {part.name: part for part in self._make_parts()}
        self._lock: IO[str] | None = None
        self.restarts = 0

    @property
    def effects_file(self) -> Path:
        return self.folder / "effects.jsonl"

    @property
    def mail_folder(self) -> Path:
        return self.folder / "mails"

    def url(self, name: str) -> str:
        return f"http://{HOST}:{self.ports[name]}"

    def start(self) -> Iterator[str]:
        """Start the parts one after the other, yielding each one's name before it is waited for.

        Raises OccupiedError where another stack runs in the folder or a port is taken, StackError where a part does not
        start.
        """
        self._lock = take_folder(self.folder)
        refuse_taken_ports(self.ports)
        self._clean()
        for name in START_ORDER:
            yield name
            self._launch(self._parts[name])
        self._write_description()
        self._watcher = threading.Thread(target=self._watch, name="stack-watcher", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Stop all parts, the host first so that nothing it needs is gone before it."""
        self._stopping.set()
        if self._watcher:
            self._watcher.join(timeout=2)
        for name in reversed(START_ORDER):
            stop_process(self._parts[name])
        if self._lock:
            self._lock.close()

    def _make_parts(self) -> list[Part]:
        python = sys.executable
        ports, effects = self.ports, ["--effects", str(self.effects_file)]
        scenario = ["--scenario", str(self._scenario)] if self._scenario else []
        service_bus = ["--queues", str(self._queues), "--status-port", str(ports["service_bus_status"])]
        commands: dict[str, list[str]] = {
            "tables": azurite.command_line(self.folder / "azurite", ports["tables"]),
            "service_bus": [python, "-m", "local.service_bus", "--port", str(ports["service_bus"]), *service_bus],
            "databricks": [python, "-m", "local.databricks", "--port", str(ports["databricks"]), *effects, *scenario],
            "openai": [python, "-m", "local.azure_openai", "--port", str(ports["openai"]), *effects],
            "email": [
                *(python, "-m", "local.acs_email", "--port", str(ports["email"]), *effects),
                *("--mail-dir", str(self.mail_folder)),
            ],
            "host": [python, "-m", "local.functions_host", "--app", str(ROOT), "--port", str(ports["host"])],
        }
        return [
            Part(
                name,
                commands[name],
                log=self.folder / "logs" / f"{name}.log",
                says_ready=name != "tables",
                port=ports[name],
                environment=app_environment(self.settings) if name == "host" else dict(os.environ),
            )
            for name in START_ORDER
        ]

    def _clean(self) -> None:
        for folder in ("logs", "azurite", "mails"):
            path = self.folder / folder
            path.mkdir(parents=True, exist_ok=True)
            for file in path.iterdir():
                if file.is_file():
                    file.unlink()
        self.effects_file.unlink(missing_ok=True)

    def _launch(self, part: Part) -> None:
        """Start the part, which holds the folder with this process, so that nobody takes it while a part still runs."""
        assert self._lock
        log = part.log.open("ab")
        part.process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=dict(part.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if part.says_ready else log,
            stderr=log,
            start_new_session=True,
            pass_fds=[self._lock.fileno()],
        )
        log.close()
        name_holders(self._lock, [part.process.pid for part in self._parts.values() if part.process and part.is_alive])
        wait_until_ready(part)

    def _watch(self) -> None:
        while not self._stopping.wait(0.2):
            for part in self._parts.values():
                if part.is_alive or self._stopping.is_set():
                    continue
                logger.warning("part died and is restarted", extra={"part": part.name})
                self.restarts += 1
                try:
                    self._launch(part)
                    self._write_description()
                except StackError as error:
                    logger.warning("part could not be restarted", extra={"part": part.name, "reason": str(error)})

    def _write_description(self) -> None:
        description: dict[str, object] = {
            name: {"url": self._address(name), "pid": part.process.pid if part.process else None}
            for name, part in self._parts.items()
        }
        description["service_bus_status"] = {"url": self.url("service_bus_status")}
        description["env"] = self.settings
        target = self.folder / "stack.json"
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(description, indent=2) + "\n")
        temporary.replace(target)

    def _address(self, name: str) -> str:
        return f"sb://localhost:{self.ports[name]}" if name == "service_bus" else self.url(name)


def take_folder(folder: Path) -> IO[str]:
    """Take the folder for this process until the file is closed; raises OccupiedError where another one has it.

    The kernel frees the lock once this process, and every part that it gave the open file to, has closed it or is gone,
    however it ended: parts that outlive a killed owner keep the folder. The file names them all for people. Needs Unix.
    """
    import fcntl  # here, so that commands without a local stack run where there is none

    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "stack.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            lock.seek(0)
            owner, *parts = lock.read().split() or ["unknown"]
        raise OccupiedError(
            f"A local stack runs in {folder} already (process {owner}): use that one, its addresses are in "
            f"{folder / 'stack.json'}, or end it first with Ctrl-C or 'kill {owner}'"
            + (
                f"; if that process is gone, its parts still run: end them with 'kill {' '.join(parts)}'."
                if parts
                else "."
            )
        ) from None
    name_holders(lock, [])
    return lock


def name_holders(lock: IO[str], parts: Sequence[int]) -> None:
    """Write into the file who holds the folder: this process, then its parts, by their ids."""
    lock.truncate(0)
    lock.write("\n".join(map(str, (os.getpid(), *parts))) + "\n")
    lock.flush()


def refuse_taken_ports(ports: Mapping[str, int]) -> None:
    """Raise OccupiedError naming every port on which another program listens."""
    if taken := [f"{port} ({name.replace('_', ' ')})" for name, port in ports.items() if accepts(port)]:
        raise OccupiedError(
            f"Another program listens on {'port' if len(taken) == 1 else 'ports'} {', '.join(taken)}, perhaps a local "
            f"stack of another folder: end it, or start with '--base-port 0' on free ports. "
            f"'lsof -i :{taken[0].partition(' ')[0]}' tells which program it is."
        )


def wait_until_ready(part: Part) -> None:
    """Wait for the part's READY line, or for its port where it says nothing. Raises StackError naming its log."""
    assert part.process is not None
    deadline = time.monotonic() + START_SECONDS
    line: list[bytes] = []
    if part.says_ready:
        assert part.process.stdout is not None
        reader = threading.Thread(target=read_first_line, args=(part.process.stdout, line), daemon=True)
        reader.start()
        while reader.is_alive() and time.monotonic() < deadline:
            reader.join(0.1)
        ready = bool(line) and line[0].startswith(b"READY")
    else:
        while not (ready := accepts(part.port)) and part.is_alive and time.monotonic() < deadline:
            time.sleep(0.05)
    if not ready:
        stop_process(part)
        raise StackError(f"{part.name} did not start; see {part.log}")


def read_first_line(stream: IO[bytes], line: list[bytes]) -> None:
    line.append(stream.readline())


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((HOST, port)) == 0


def stop_process(part: Part) -> None:
    """SIGTERM, then SIGKILL for what does not go; nothing for a part that never started."""
    process = part.process
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running_stack(folder: Path, *, scenario: Path | None = None, base_port: int | None = 0) -> Iterator[Stack]:
    """A started stack for the length of the block."""
    stack = Stack(folder, base_port=base_port, scenario=scenario)
    try:
        for _ in stack.start():
            pass
        yield stack
    finally:
        stack.stop()
