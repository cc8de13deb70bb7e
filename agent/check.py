"""`agent check`: each connection and right in turn, what is missing, and the command that mends it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from agent import output
from agent.app_check import ask_app
from agent.output import EXIT_CODES, ExitCode, messages, print_json, print_table, reported_errors
from shared import bootstrap
from shared.checking import CheckResult, Failure, result_of


def check(
    app: Annotated[
        str | None,
        typer.Option(help="Address of the deployed app, https://…: it tries them itself, with its own identity."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Try each service that the function app needs, and say what is missing. Changes nothing, mails nobody.

    With --app the app does so; its key, if it asks for one, is taken from the environment variable FUNCTION_APP_KEY.
    """
    with reported_errors(as_json=as_json):
        results = results_here() if app is None else results_of_app(app)
    if as_json:
        print_json({"checks": [result.shown() for result in results]})
    else:
        print_results(results)
    codes = (EXIT_CODES[result.failure or Failure.UNEXPECTED] for result in results if not result.ok)
    raise typer.Exit(min(codes, default=ExitCode.AS_EXPECTED))


def results_here() -> list[CheckResult]:
    """Tried from this machine, as whoever is signed in."""
    settings = bootstrap.current_settings(Path(".env"))
    results = []
    with messages.status("Checking …") as status:
        for connection in bootstrap.connections(settings, status.update):
            status.update(f"Checking {connection.name} …")
            results.append(result_of(connection))
    return results


def results_of_app(address: str) -> list[CheckResult]:
    """Tried by the app. The address is shown nowhere, since a key may stand in it."""
    with messages.status("The app is checking …"):
        return ask_app(address, key=os.environ.get("FUNCTION_APP_KEY", "").strip())


def print_results(results: Sequence[CheckResult]) -> None:
    """A table, and below it what to do about each that failed: whole lines, since they are there to be copied."""
    table = Table("", "Connection", "Detail")
    for result in results:
        mark = "[green]ok[/green]" if result.ok else "[red]no[/red]"
        table.add_row(mark, escape(result.name), escape(result.detail))
    print_table(table)
    for result in results:
        if result.fix:
            output.results.print(f"\n[bold]{escape(result.name)}[/bold]")
            output.results.print(result.fix, markup=False, highlight=False, soft_wrap=True)
