"""`agent diagnose`: one error text → decision, reason and the rules that fired."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from agent.output import messages, print_json, print_table, reported_errors
from shared import bootstrap
from shared.error_decision_engine import Analysis
from shared.errors import ConfigurationError

MAX_BYTES = 20_000_000

BLANK = "\ufeff\0 \t\r\n"
"""What an empty file may still hold: a byte-order mark, padding, line ends."""


def diagnose(
    file: Annotated[
        Path | None, typer.Argument(help="A file with the error text; absent or - = standard input.")
    ] = None,
    termination_code: Annotated[str | None, typer.Option(help="For example DRIVER_ERROR.")] = None,
    termination_type: Annotated[str | None, typer.Option(help="For example CLIENT_ERROR.")] = None,
    task_type: Annotated[str | None, typer.Option(help="For example notebook, sql, pipeline, dbt.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what would be decided about an error text. Needs no settings; asks the model only where one is configured.

    Example: `pbpaste | python -m agent diagnose --task-type notebook`
    """
    with reported_errors(as_json=as_json):
        text = read_text(file)
        if not (text.strip(BLANK) or termination_code):
            source = "standard input" if file is None or str(file) == "-" else file
            raise ConfigurationError(f"{source} is empty: give an error text, as a file or piped in")
        context = {
            "termination_code": termination_code,
            "termination_type": termination_type,
            "task_type": task_type,
        }
        analysis = bootstrap.engine(bootstrap.current_settings(Path(".env"))).analyze(text, context)
    if as_json:
        print_json(
            {
                **analysis["decision"],
                "changes": analysis["changes"],
                "excerpt": analysis["excerpt"],
                "model_used": analysis["model_used"],
            }
        )
    else:
        show(analysis)


def read_text(file: Path | None) -> str:
    """The text, whatever its encoding: what is not UTF-8 is replaced."""
    try:
        if file is None or str(file) == "-":
            if sys.stdin.isatty():
                messages.print("Paste the error text, then Ctrl-D.")
            content = sys.stdin.buffer.read(MAX_BYTES)
        else:
            with file.open("rb") as stream:
                content = stream.read(MAX_BYTES)
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from error
    return content.decode("utf-8", errors="replace")


def show(analysis: Analysis) -> None:
    decision = analysis["decision"]
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("Decision", f"[bold]{decision['decision']}[/bold]")
    if decision["recommended"] != decision["decision"]:
        table.add_row("Recommended", decision["recommended"])
    table.add_row("Reason", escape(decision["reason"]))
    table.add_row("Category", f"{decision['category']} (confidence {decision['confidence']:.0%})")
    if analysis["changes"]:
        table.add_row("Changes", ", ".join(analysis["changes"]))
    table.add_row("Rules", ", ".join(decision["rules"]))
    table.add_row("Fingerprint", decision["fingerprint"])
    table.add_row("Model asked", "yes" if analysis["model_used"] else "no")
    print_table(table)
