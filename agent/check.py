"""`agent check`: each connection in turn, what is missing, and what to do about it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from agent.output import ExitCode, exit_code_of, messages, print_json, print_table, reported_errors
from shared import bootstrap
from shared.errors import AgentError, ConfigurationError


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the report. `code` is the exit code that this result alone would give."""

    name: str
    ok: bool
    detail: str
    fix: str
    code: ExitCode


def check(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Try every connection that the function app needs, and say what is missing. Changes nothing, sends nothing."""
    with reported_errors(as_json=as_json):
        settings = bootstrap.current_settings(Path(".env"))
    results = []
    for name, attempt, fix in bootstrap.connections(settings):
        with messages.status(f"Checking {name} …"):
            results.append(result_of(name, attempt, fix))
    if as_json:
        shown = [{key: value for key, value in asdict(r).items() if key != "code"} for r in results]
        print_json({"checks": shown})
    else:
        table = Table("", "Connection", "Detail", "What to do")
        for result in results:
            table.add_row(
                "[green]ok[/green]" if result.ok else "[red]no[/red]",
                result.name,
                escape(result.detail),
                escape(result.fix),
            )
        print_table(table)
    raise typer.Exit(min((r.code for r in results if not r.ok), default=ExitCode.AS_EXPECTED))


def result_of(name: str, attempt: Callable[[], str], fix: str) -> CheckResult:
    try:
        return CheckResult(name, True, attempt(), "", ExitCode.AS_EXPECTED)
    except ConfigurationError as error:
        return CheckResult(
            name, False, str(error), f"set {', '.join(error.names)}" if error.names else fix, exit_code_of(error)
        )
    except AgentError as error:
        return CheckResult(name, False, str(error), fix, exit_code_of(error))
