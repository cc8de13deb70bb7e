"""`agent monitor`: one pass over a real workspace, without queues."""

import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from agent.output import messages, print_json, print_table, reported_errors
from shared import bootstrap
from shared.domain import Mode
from shared.errors import ConfigurationError
from shared.monitoring import Summary

UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def monitor(
    window: Annotated[str, typer.Option(help="Look at runs that failed in the last 30m, 5h or 7d.")] = "30m",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done; needs Databricks read access, no Azure.")
    ] = False,
    job_id: Annotated[list[int] | None, typer.Option(help="Only this job; may be given several times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Find failed runs of a workspace, decide and act, once. Settings come from the environment and from .env.

    Start with: `python -m agent monitor --dry-run --window 7d`
    """
    with reported_errors(as_json=as_json):
        span = parse_window(window)
        settings = bootstrap.current_settings(Path(".env"))
        settings.require(("databricks_host",))
        if dry_run:
            settings = settings.model_copy(update={"dry_run": True})
        elif settings.default_mode is Mode.OBSERVE:
            messages.print(
                "The mode is observe: retries are suggested by mail, not made. DEFAULT_MODE=full changes that."
            )
        parts = bootstrap.monitor(settings)
        began = time.monotonic()
        with messages.status("Reading failed runs …") as status:
            summary = parts.agent.monitor_jobs(
                job_ids=job_id, window=span, progress=lambda what: status.update(f"Deciding about {what}")
            )
        seconds = round(time.monotonic() - began, 2)
    if as_json:
        print_json({**summary, "calls": parts.runs.calls, "seconds": seconds})
    else:
        show(summary, window, dry_run=dry_run)
        messages.print(f"{parts.runs.calls} API calls, {seconds} s")


def parse_window(text: str) -> timedelta:
    """`30m`, `5h`, `7d`. Raises ConfigurationError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text.strip())
    if not match:
        raise ConfigurationError(f"--window {text!r}: give a number and m, h or d, such as 30m, 5h or 7d")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def show(summary: Summary, window: str, *, dry_run: bool) -> None:
    if not summary["runs"]:
        messages.print(f"No run failed in the last {window}.")
        return
    table = Table("Run", "Job", "Cause", "Decision" if not dry_run else "Would decide", "Outcome")
    for run in summary["runs"]:
        changes = f" ({', '.join(run['changes'])})" if run["changes"] else ""
        recommended = "" if run["recommended"] == run["decision"] else f"\nrecommended: {run['recommended']}{changes}"
        outcome = "" if dry_run else run["outcome"]
        table.add_row(
            str(run["run_id"]),
            escape(run["job"]),
            escape(run["cause"][:70]),
            f"{run['decision']}{recommended}",
            outcome,
        )
    print_table(table)
