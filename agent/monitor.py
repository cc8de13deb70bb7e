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
from shared.domain import DecisionKind, Mode
from shared.email_notifier import one_line
from shared.errors import ConfigurationError
from shared.monitoring import RunReport, Summary

UNITS = {"m": "minutes", "h": "hours", "d": "days"}

NOBODY = "nobody: ESCALATION_EMAILS is not set"

CHANGES_NOTE = (
    "Changes of a job's own settings are made by the function app, which puts them back. A pass like this one suggests "
    "them by mail."
)


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
    table = Table(
        "Run", "Job", "Cause", "Would decide" if dry_run else "Decision", "Why", "Plan" if dry_run else "Outcome"
    )
    for run in summary["runs"]:
        changes = f" ({', '.join(run['changes'])})" if run["changes"] else ""
        recommended = "" if run["recommended"] == run["decision"] else f"\nrecommended: {run['recommended']}{changes}"
        table.add_row(
            str(run["run_id"]),
            escape(one_line(run["job"])),
            escape(one_line(run["cause"])[:70]),
            f"{run['decision']}{recommended}",
            escape(f"{one_line(run['reason'])}\n{', '.join(main_rules(run))}"),
            escape(plan_of(run)) if dry_run else run["outcome"],
        )
    print_table(table)
    if dry_run and any(run["setting_changes"] for run in summary["runs"]):
        messages.print(CHANGES_NOTE)


def main_rules(run: RunReport) -> list[str]:
    """The strongest rule of the diagnosis, and every one of the policy; `--json` has all that fired."""
    return [rule for number, rule in enumerate(run["rules"]) if number == 0 or rule.startswith("policy.")]


def plan_of(run: RunReport) -> str:
    """What would be done about the run, and who would be told."""
    decision = DecisionKind(run["decision"])
    if decision is DecisionKind.SKIP:
        return "nothing"
    told = ", ".join(run["recipients"])
    if not run["mode"]:
        return "none: nothing is known of the run"
    if decision is DecisionKind.ESCALATE_EMAIL:
        return f"mail to {told}" if told else f"mail to {NOBODY}"
    retry = "\n".join(["repair the run", *map(one_line, run["setting_changes"])])
    if Mode(run["mode"]).carries_out(decision):
        return retry
    return f"mode {run['mode']}: suggest by mail to {told or NOBODY}:\n{retry}"
