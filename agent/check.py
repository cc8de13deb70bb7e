"""`agent check`: each connection and right in turn, what is missing, and the command that mends it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from agent import output
from agent.output import ExitCode, exit_code_of, messages, print_json, print_table, reported_errors
from shared import bootstrap
from shared.bootstrap import Connection
from shared.databricks_rights import MissingRightsError, UnknownIdentityError
from shared.errors import AgentError, ConfigurationError, NotAuthorisedError, StoreNotAuthorisedError
from shared.role_commands import permission_commands, service_principal_command, where_to_set


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
    with messages.status("Checking …") as status:
        for connection in bootstrap.connections(settings, status.update):
            status.update(f"Checking {connection.name} …")
            results.append(result_of(connection))
    if as_json:
        shown = [{key: value for key, value in asdict(r).items() if key != "code"} for r in results]
        print_json({"checks": shown})
    else:
        print_results(results)
    raise typer.Exit(min((r.code for r in results if not r.ok), default=ExitCode.AS_EXPECTED))


def result_of(connection: Connection) -> CheckResult:
    """Make the attempt."""
    try:
        return CheckResult(connection.name, True, connection.attempt(), "", ExitCode.AS_EXPECTED)
    except AgentError as error:
        return CheckResult(connection.name, False, str(error), fix_of(error, connection), exit_code_of(error))


def fix_of(error: AgentError, connection: Connection) -> str:
    """What to type, or to look at, after an attempt that failed."""
    match error:
        case ConfigurationError() if error.names:
            return where_to_set(error.names)
        case MissingRightsError():
            return permission_commands(error.principal, error.missing, host=error.host)
        case UnknownIdentityError():
            return service_principal_command(error.application_id, host=error.host)
        case NotAuthorisedError() | StoreNotAuthorisedError():
            return connection.where_refused
        case _:
            return connection.where_unreachable


def print_results(results: Sequence[CheckResult]) -> None:
    """A table, and below it what to do about each that failed: whole lines, since they are there to be copied."""
    table = Table("", "Connection", "Detail")
    for result in results:
        mark = "[green]ok[/green]" if result.ok else "[red]no[/red]"
        table.add_row(mark, result.name, escape(result.detail))
    print_table(table)
    for result in results:
        if result.fix:
            output.results.print(f"\n[bold]{result.name}[/bold]")
            output.results.print(result.fix, markup=False, highlight=False, soft_wrap=True)
