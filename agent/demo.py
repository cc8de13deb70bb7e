"""`agent demo`: play a scenario of failed runs on the local stack and show what becomes of them."""

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from agent.local_run import ExpectedRun, Observer, RunRow, duplicates, expected_runs, refused
from agent.output import ExitCode, messages, print_json, print_table, reported_errors
from agent.start import FOLDER, end_on_sigterm, launch
from local.stack import ROOT, Stack
from shared.errors import TransientError

SCENARIO = ROOT / "local" / "scenarios" / "demo.json"
LONGEST_SECONDS = 90
OUTCOME_STYLE = {"recovered": "green", "failed_again": "red", "escalated": "yellow", "skipped": "cyan", "open": "dim"}


def demo(
    scenario: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Runs to play.")] = SCENARIO,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Play failed runs on a local stack: find, decide, repair or mail, follow up. Needs no settings, no cloud account.

    Exit code 0 only if every run reached its expected end, and nothing was done twice.
    """
    end_on_sigterm()
    expected = expected_runs(scenario)
    stack = Stack(FOLDER, base_port=0, scenario=scenario)
    with reported_errors(as_json=as_json):
        try:
            launch(stack)
            began = time.monotonic()
            observer = Observer(stack)
            rows = play(observer, expected, began)
            seconds = round(time.monotonic() - began, 1)
            effects = observer.effects()
            mails = observer.mails()
        finally:
            stack.stop()
    twice = duplicates(effects)
    if as_json:
        names = ("run_id", "job", "cause", "decision", "attempts", "outcome", "expected")
        print_json(
            {
                "runs": [{name: getattr(row, name) for name in names} for row in rows],
                "counts": dict(Counter(row.outcome for row in rows)),
                "duplicates": twice,
                "refused": refused(effects),
                "seconds": seconds,
            }
        )
    else:
        print_table(table_of(rows))
        messages.print(f"{len(rows)} runs in {seconds} s · {twice} done twice · {len(mails)} mails:")
        for mail in mails:
            messages.print(f"  {mail}", highlight=False, soft_wrap=True)
    as_expected = all(row.as_expected for row in rows) and twice == 0
    raise typer.Exit(ExitCode.AS_EXPECTED if as_expected else ExitCode.EXPECTATION_FAILED)


def play(observer: Observer, expected: list[ExpectedRun], began: float) -> list[RunRow]:
    """Watch until every run has come to an end, or the time is up; the rows as they stand then."""
    rows: list[RunRow] = []
    with Live(console=messages, refresh_per_second=4, transient=True) as live:
        while time.monotonic() - began < LONGEST_SECONDS:
            try:
                rows = observer.rows(expected)
            except TransientError:
                continue
            live.update(progress_of(rows, time.monotonic() - began))
            if rows and all(row.outcome != "open" for row in rows) and observer.is_idle():
                break
            time.sleep(0.5)
    return rows


def progress_of(rows: list[RunRow], seconds: float) -> Table:
    table = table_of(rows)
    done = sum(row.outcome != "open" for row in rows)
    table.title = f"{done} of {len(rows)} runs at their end · {seconds:.0f} s"
    return table


def table_of(rows: list[RunRow]) -> Table:
    table = Table("Run", "Job", "Cause", "Decision", "Tries", "Outcome", "")
    for row in rows:
        style = OUTCOME_STYLE[row.outcome]
        mark = "[green]✓[/green]" if row.as_expected else f"[red]✗ {row.expected}[/red]"
        table.add_row(
            str(row.run_id),
            row.job,
            escape(row.cause[:60]),
            row.decision,
            str(row.attempts),
            f"[{style}]{row.outcome}[/{style}]",
            "" if row.outcome == "open" else mark,
        )
    return table
