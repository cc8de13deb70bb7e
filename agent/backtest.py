"""`agent backtest`: what the agent would have decided about a workspace's own failed runs of the last weeks."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from agent.output import messages, print_json, print_table, reported_errors, results
from shared import bootstrap
from shared.backtest import Cause, EndedRun, Findings, Judged, findings, judge
from shared.domain import DecisionKind, Mode
from shared.email_notifier import one_line, templates
from shared.error_decision_engine import ErrorDecisionEngine
from shared.errors import AgentError, ConfigurationError
from shared.past_runs import LONGEST_DAYS, PastRuns
from shared.settings import Settings

PARALLEL_RUNS = 4
CAUSES_SHOWN = 15
JOBS_SHOWN = 3

UPPER_BOUND = (
    "An upper bound: every retry is taken to have healed its run at once. Time counts from the failure to the repair"
    " or newer run that succeeded in its place (once where several failures waited for the same success); where none"
    " followed, it is the run's own duration. Confirmed = a repair, or a rerun on demand, did succeed."
)

MEANINGS = {
    DecisionKind.RETRY: "repair it as it is",
    DecisionKind.RETRY_WITH_PARAMS: "repair it with a change",
    DecisionKind.ESCALATE_EMAIL: "mail a person",
    DecisionKind.SKIP: "leave it alone",
}


@dataclass(frozen=True, slots=True)
class Period:
    """The time looked at. `since` is later than asked for where `is_cut` by --max-runs."""

    days: int
    since: datetime
    until: datetime
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Backtest:
    """Figures with what they are about. `seconds` is how long the reading took."""

    workspaces: tuple[str, ...]
    period: Period
    findings: Findings
    calls: int
    seconds: float


def backtest(
    days: Annotated[
        int,
        typer.Option(min=1, max=LONGEST_DAYS, help="Look at runs that started in so many days; Databricks keeps 60."),
    ] = 30,
    max_runs: Annotated[int, typer.Option(min=1, help="Read at most so many failed runs, the newest first.")] = 500,
    html: Annotated[Path | None, typer.Option(help="Write a page to pass on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what would have been decided about the workspace's own failed runs. Reads only, on DATABRICKS_HOST alone.

    Rules decide; no text leaves this machine. Each run is looked at as it first failed, before anybody repaired it.
    Hours saved are an upper bound, see the note below the table.

    Example: `python -m agent backtest --days 30 --html backtest.html`
    """
    with reported_errors(as_json=as_json):
        if html and not html.absolute().parent.is_dir():
            raise ConfigurationError(f"cannot write {html}: there is no such folder")
        found = run_backtest(rules_alone(bootstrap.current_settings(Path(".env"))), days, max_runs, datetime.now(UTC))
        if html:
            write_page(html, found)
    if as_json:
        print_json(backtest_json(found))
    else:
        show(found)
    if found.period.is_cut:
        messages.print(
            f"Stopped at {max_runs} failed runs: this is the time since {found.period.since:%Y-%m-%d %H:%M} UTC. "
            "--max-runs reads more."
        )
    if html:
        messages.print(f"Written: {html}")


def rules_alone(settings: Settings) -> Settings:
    """The settings of access, without those that could hide failures or ask the model."""
    return settings.model_copy(
        update={
            "azure_openai_endpoint": "",
            "ai_mode": "never",
            "default_mode": Mode.OBSERVE,
            "job_tags": {},
        }
    )


# --- reading ---------------------------------------------------------------------------------------------------------


def run_backtest(settings: Settings, days: int, max_runs: int, now: datetime) -> Backtest:
    """Read the failed runs of all workspaces and judge them. A run that cannot be read is counted, not fatal.

    Calls: one per 25 runs that ended, and per failed run one, one more per failed task and two more per cluster.
    """
    began = time.monotonic()
    past, engine = bootstrap.past_runs(settings), bootstrap.engine(settings)
    jobs = frozenset(map(int, settings.job_ids))
    ended: list[EndedRun] = []
    for workspace in past.workspaces:
        with messages.status(f"Listing runs of {workspace} …"):
            runs = past.ended_runs(workspace, started_after=now - timedelta(days=days))
            ended += until_enough((run for run in runs if not jobs or run.job_id in jobs), max_runs)
    suspects = sorted((run for run in ended if is_suspect(run)), key=lambda run: run.start_time, reverse=True)
    is_cut = len(suspects) > max_runs
    suspects = suspects[:max_runs]
    since = suspects[-1].start_time if is_cut else now - timedelta(days=days)
    judged, unreadable = judge_all(past, engine, suspects)
    return Backtest(
        workspaces=past.workspaces,
        period=Period(days, since, now, is_cut),
        findings=findings(judged, [run for run in ended if run.start_time >= since], unreadable=unreadable),
        calls=past.calls,
        seconds=round(time.monotonic() - began, 2),
    )


def is_suspect(run: EndedRun) -> bool:
    """Whether the run failed, or may have failed before somebody repaired it."""
    return run.is_failed or run.seems_repaired


def until_enough(runs: Iterator[EndedRun], max_runs: int) -> Iterator[EndedRun]:
    """The newest runs, up to the first one that need not be read any more; older pages are not asked for."""
    suspects = 0
    for run in runs:
        yield run
        suspects += is_suspect(run)
        if suspects > max_runs:
            return


def judge_all(past: PastRuns, engine: ErrorDecisionEngine, suspects: Sequence[EndedRun]) -> tuple[list[Judged], int]:
    """What would have been decided about each, in the same order, and how many could not be read."""

    def judge_one(run: EndedRun) -> Judged | None:
        failure = past.read_failure(run.workspace, run.run_id)
        return judge(failure, engine) if failure else None  # the logs, up to 5 MB a task, are kept no longer than this

    judged: dict[tuple[str, int], Judged] = {}
    unreadable = 0
    with Progress(console=messages, transient=True) as progress, ThreadPoolExecutor(PARALLEL_RUNS) as pool:
        task = progress.add_task("Reading failed runs", total=len(suspects))
        try:
            for finished in as_completed([pool.submit(judge_one, run) for run in suspects]):
                progress.advance(task)
                try:
                    failure = finished.result()
                except AgentError:
                    unreadable += 1
                else:
                    if failure:
                        judged[failure.workspace, failure.run_id] = failure
        finally:
            pool.shutdown(cancel_futures=True)
    return [found for run in suspects if (found := judged.get((run.workspace, run.run_id)))], unreadable


# --- what is said about it -------------------------------------------------------------------------------------------


def backtest_json(found: Backtest) -> dict[str, Any]:
    """All figures; `days` is what was asked for, `since` from when on runs were read."""
    figures = found.findings
    return {
        "days": found.period.days,
        "since": found.period.since.isoformat(timespec="seconds"),
        "runs": figures.runs,
        "failed": figures.failed,
        "by_decision": dict(figures.by_decision),
        "by_category": dict(figures.by_category),
        "fingerprints": [cause_json(cause) for cause in figures.causes],
        "saved_upper_bound": {
            "runs": figures.saved_upper_bound.runs,
            "hours": figures.saved_upper_bound.hours,
            "confirmed_runs": figures.confirmed.runs,
            "confirmed_hours": figures.confirmed.hours,
        },
        "repaired_by_hand": {"runs": figures.by_hand, "median_hours": figures.by_hand_median_hours},
        "unreadable": figures.unreadable,
        "calls": found.calls,
        "seconds": found.seconds,
    }


def cause_json(cause: Cause) -> dict[str, Any]:
    return {
        "fingerprint": cause.fingerprint,
        "cause": one_line(cause.cause),
        "category": cause.category,
        "decision": cause.decision,
        "count": cause.count,
        "jobs": [one_line(job) for job in cause.jobs],
    }


def show(found: Backtest) -> None:
    figures = found.findings
    if not figures.failed:
        messages.print(f"No run failed in the last {found.period.days} days ({figures.runs} runs).")
        return
    decisions = Table("Would decide", "Meaning", "Runs", title_justify="left")
    decisions.title = f"{figures.failed} of {figures.runs} runs failed since {found.period.since:%Y-%m-%d}"
    for decision, count in figures.by_decision.items():
        decisions.add_row(decision, MEANINGS[decision], str(count))
    if figures.unreadable:
        decisions.add_row("-", "could not be read", str(figures.unreadable))
    print_table(decisions)
    causes = Table("Runs", "Cause", "Kind", "Would decide", "Jobs", title="By cause", title_justify="left")
    for cause in figures.causes[:CAUSES_SHOWN]:
        causes.add_row(
            str(cause.count), escape(one_line(cause.cause)[:70]), cause.category, cause.decision, escape(jobs_of(cause))
        )
    if len(figures.causes) > CAUSES_SHOWN:
        causes.caption = f"and {len(figures.causes) - CAUSES_SHOWN} more causes; --html or --json has them all"
    print_table(causes)
    print_table(savings_table(figures))
    results.print(UPPER_BOUND)
    messages.print(f"{found.calls} API calls, {found.seconds} s")


def savings_table(figures: Findings) -> Table:
    most, sure = figures.saved_upper_bound, figures.confirmed
    table = Table("", "Runs", "Hours", title="What automatic repair could have saved", title_justify="left")
    table.add_row("At most", str(most.runs), f"{most.hours:g}")
    table.add_row("of these confirmed", str(sure.runs), f"{sure.hours:g}")
    waited = figures.by_hand_median_hours
    table.add_row("Repaired by hand", str(figures.by_hand), "" if waited is None else f"after {waited:g} in the median")
    return table


def jobs_of(cause: Cause) -> str:
    """The first jobs by name, and how many more there are."""
    names = ", ".join(one_line(job) for job in cause.jobs[:JOBS_SHOWN])
    more = len(cause.jobs) - JOBS_SHOWN
    return f"{names} and {more} more" if more > 0 else names


def write_page(file: Path, found: Backtest) -> None:
    """Raises ConfigurationError where the file cannot be written."""
    try:
        file.write_text(render(found), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write {file}: {error.strerror}") from error


def render(found: Backtest) -> str:
    """One page of HTML that needs nothing else. What came from runs and jobs is redacted and escaped."""
    figures = found.findings
    judged = figures.failed - figures.unreadable
    return (
        templates()
        .get_template("backtest.html.j2")
        .render(
            workspaces=", ".join(map(one_line, found.workspaces)),
            period=found.period,
            figures=figures,
            decisions=[
                (str(decision), MEANINGS[decision], count, share(count, judged))
                for decision, count in figures.by_decision.items()
            ],
            categories=[
                (str(category).replace("_", " "), count, share(count, max(figures.by_category.values())))
                for category, count in figures.by_category.items()
            ],
            causes=[
                {
                    "count": cause.count,
                    "share": share(cause.count, figures.causes[0].count),
                    "cause": one_line(cause.cause),
                    "category": str(cause.category).replace("_", " "),
                    "decision": str(cause.decision),
                    "jobs": jobs_of(cause),
                    "fingerprint": cause.fingerprint,
                }
                for cause in figures.causes
            ],
            upper_bound=UPPER_BOUND,
            calls=found.calls,
        )
    )


def share(count: int, whole: int) -> float:
    """Percent with one decimal."""
    return round(100 * count / whole, 1) if whole else 0.0
