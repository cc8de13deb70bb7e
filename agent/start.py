"""`agent start`: the local stack, kept running."""

import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from agent.local_run import Observer, expected_runs
from agent.output import messages, print_json, reported_errors
from local.stack import ROOT, OccupiedError, Stack, StackError
from shared.errors import ConfigurationError, TransientError

FOLDER = ROOT / ".local"


def start(
    base_port: Annotated[
        int | None,
        typer.Option(min=0, max=65_000, help="First of seven ports; 0 = free ones; absent = the usual ones."),
    ] = None,
    scenario: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Runs to play.")] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End with exit code 0 once every incident is terminal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line on stdout once ready.")] = False,
) -> None:
    """Start the whole stack on this machine and keep it running; a part that dies is restarted. Ctrl-C ends it.

    `.local/stack.json` names every part's address and process id, and the settings that point the app at them.
    """
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stack = Stack(FOLDER, base_port=base_port, scenario=scenario)
    with reported_errors(as_json=as_json):
        try:
            launch(stack, stopped)
            if stopped.is_set():
                return
            ready = {"ready": True, "stack": str(FOLDER / "stack.json"), "host": stack.url("host")}
            if as_json:
                print_json(ready)
            else:
                messages.print(
                    f"Ready. Addresses and settings: {ready['stack']} · logs: {FOLDER / 'logs'} · Ctrl-C ends it."
                )
            if until_idle:
                wait_until_idle(stack, scenario, stopped)
            else:
                stopped.wait()
        finally:
            stack.stop()


def end_on_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does: the parts, processes of their own, are stopped before it goes."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def launch(stack: Stack, stopped: threading.Event | None = None) -> None:
    """Start all parts, saying which one is being waited for.

    Raises ConfigurationError where the folder or a port is in use, TransientError where a part does not start.
    """
    try:
        with messages.status("Starting …") as status:
            for name in stack.start():
                status.update(f"Starting {name.replace('_', ' ')} …")
                if stopped and stopped.is_set():
                    return
    except OccupiedError as error:
        raise ConfigurationError(str(error)) from error
    except StackError as error:
        raise TransientError(str(error)) from error


def wait_until_idle(stack: Stack, scenario: Path | None, stopped: threading.Event) -> None:
    """Wait until every run that the scenario expects to fail has come to its end, and nothing else is under way."""
    observer = Observer(stack)
    expected = expected_runs(scenario) if scenario else []
    quiet_since: float | None = None
    while not stopped.wait(1):
        try:
            arrived = all(row.outcome != "open" for row in observer.rows(expected))
            idle = arrived and observer.is_idle()
        except TransientError:
            idle = False
        now = time.monotonic()
        quiet_since = (quiet_since or now) if idle else None
        if quiet_since and now - quiet_since >= 3:
            return
