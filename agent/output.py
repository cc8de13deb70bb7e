"""How commands speak: progress on stderr, a table or exactly one JSON object on stdout, exit codes with a meaning."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from shared.checking import Failure, failure_of
from shared.errors import AgentError

WIDTH_WHERE_NOBODY_LOOKS = 150
"""Columns of a table that goes to a file or a pipe; a terminal is asked for its own width."""

messages = Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH_WHERE_NOBODY_LOOKS)
results = Console(width=None if sys.stdout.isatty() else WIDTH_WHERE_NOBODY_LOOKS)


class ExitCode(IntEnum):
    """What a command ends with."""

    AS_EXPECTED = 0
    EXPECTATION_FAILED = 1
    USAGE_OR_SETTINGS = 2
    UNREACHABLE = 3


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, on one line."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()


def print_table(table: Table) -> None:
    results.print(table)


EXIT_CODES: Mapping[Failure, ExitCode] = {
    Failure.REFUSED: ExitCode.USAGE_OR_SETTINGS,
    Failure.UNREACHABLE: ExitCode.UNREACHABLE,
    Failure.UNEXPECTED: ExitCode.EXPECTATION_FAILED,
}


def exit_code_of(error: AgentError) -> ExitCode:
    """Settings and rights are the caller's to mend (2); a service that does not answer is not (3)."""
    return EXIT_CODES[failure_of(error)]


@contextmanager
def reported_errors(*, as_json: bool) -> Iterator[None]:
    """Turn this app's errors into one line (or one JSON object) and the exit code that fits."""
    try:
        yield
    except AgentError as error:
        code = exit_code_of(error)
        if as_json:
            print_json({"error": str(error), "kind": type(error).__name__})
        else:
            messages.print(f"[red]{type(error).__name__}[/red]: ", end="")
            messages.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(code) from error


def quiet_logs(*, verbose: bool) -> None:
    """Logs of the libraries stay out of the way; with `--verbose` everything from INFO on goes to stderr."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
