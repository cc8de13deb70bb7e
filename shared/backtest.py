"""What the agent would have decided about runs that failed in the past, and what that could have saved. Pure.

Each failure is looked at as it first was: before anybody repaired it, and before newer runs of its job.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from shared.domain import Category, DecisionKind, RunFacts
from shared.error_decision_engine import ErrorDecisionEngine


@dataclass(frozen=True, slots=True)
class EndedRun:
    """One run that has ended. `is_on_demand` = a person, or a program through the API, started it by itself.

    `seems_repaired` = it succeeded, but much later than its work took: only its repair history tells.
    """

    workspace: str
    run_id: int
    job_id: int | None
    is_failed: bool
    is_on_demand: bool
    seems_repaired: bool
    start_time: datetime
    end_time: datetime
    job_parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Repaired:
    """The repair that healed a run: begun by a person (or another tool) at `start_time`."""

    start_time: datetime
    end_time: datetime


@dataclass(frozen=True, slots=True)
class PastFailure:
    """A run as it first failed, and the repair that healed it later, if one did."""

    facts: RunFacts
    repaired: Repaired | None


@dataclass(frozen=True, slots=True)
class Judged:
    """What would have been decided about one past failure."""

    workspace: str
    run_id: int
    job_id: int | None
    job_name: str
    job_parameters: Mapping[str, str]
    start_time: datetime
    failed_at: datetime
    decision: DecisionKind
    category: Category
    fingerprint: str
    cause: str
    repaired: Repaired | None


@dataclass(frozen=True, slots=True)
class Cause:
    """Failures with one fingerprint. `jobs` are the names of the jobs that had them, the most affected first."""

    fingerprint: str
    cause: str
    category: Category
    decision: DecisionKind
    count: int
    jobs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """Failed runs, and the hours until a success took their place."""

    runs: int
    hours: float


@dataclass(frozen=True, slots=True)
class Findings:
    """All figures. `failed` counts runs that failed at first, whatever became of them; `unreadable` are part of it.

    `confirmed` is the part of `saved_upper_bound` where a person's repair or rerun did succeed. `by_hand` are runs that
    a repair healed, whatever the agent would have decided; `by_hand_median_hours` is the median time from the failure
    until that repair was begun, None where there was none.
    """

    runs: int
    failed: int
    unreadable: int
    by_decision: Mapping[DecisionKind, int]
    by_category: Mapping[Category, int]
    causes: tuple[Cause, ...]
    saved_upper_bound: Saved
    confirmed: Saved
    by_hand: int
    by_hand_median_hours: float | None


def judge(failure: PastFailure, engine: ErrorDecisionEngine) -> Judged:
    """What the engine would have decided the moment the run had failed.

    That is what the evidence calls for, unless the agent leaves such runs alone (their parent looks after them). Limits
    on changes are those of the day and are left out.
    """
    run = failure.facts.run
    failed_at = run.end_time or run.start_time
    decided = engine.decide(failure.facts, now=failed_at)
    return Judged(
        workspace=run.workspace,
        run_id=run.run_id,
        job_id=run.job_id,
        job_name=run.name,
        job_parameters=run.job_parameters,
        start_time=run.start_time,
        failed_at=failed_at,
        decision=DecisionKind.SKIP if decided.decision is DecisionKind.SKIP else decided.recommended,
        category=decided.category,
        fingerprint=decided.fingerprint,
        cause=decided.cause,
        repaired=failure.repaired,
    )


def findings(failures: Sequence[Judged], ended: Sequence[EndedRun], *, unreadable: int) -> Findings:
    """All figures over the failures. `ended` are all runs of the same time, successes included."""
    recoveries = recoveries_of(failures, ended)
    retried = [failure for failure in failures if failure.decision.is_retry]
    confirmed = [f for f in retried if (found := recoveries.get(key_of(f))) and found.is_by_person]
    waited = [hours(failure.repaired.start_time - failure.failed_at) for failure in failures if failure.repaired]
    decisions = Counter(failure.decision for failure in failures)
    categories = Counter(failure.category for failure in failures)
    return Findings(
        runs=len(ended),
        failed=len(failures) + unreadable,
        unreadable=unreadable,
        by_decision={decision: decisions[decision] for decision in DecisionKind},
        by_category=dict(sorted(categories.items(), key=lambda item: (-item[1], item[0]))),
        causes=causes_of(failures),
        saved_upper_bound=saved(retried, recoveries),
        confirmed=saved(confirmed, recoveries),
        by_hand=len(waited),
        by_hand_median_hours=round(median(waited), 2) if waited else None,
    )


def causes_of(failures: Iterable[Judged]) -> tuple[Cause, ...]:
    """The failures by fingerprint, the commonest first. A group is described by its latest failure."""
    groups: defaultdict[str, list[Judged]] = defaultdict(list)
    for failure in failures:
        groups[failure.fingerprint].append(failure)
    causes = [cause_of_group(mark, group) for mark, group in groups.items()]
    return tuple(sorted(causes, key=lambda cause: (-cause.count, cause.fingerprint)))


def cause_of_group(mark: str, group: Sequence[Judged]) -> Cause:
    latest = max(group, key=lambda failure: failure.failed_at)
    decisions = Counter(failure.decision for failure in group)
    jobs = Counter(failure.job_name for failure in group)
    return Cause(
        fingerprint=mark,
        cause=latest.cause,
        category=latest.category,
        decision=decisions.most_common(1)[0][0],
        count=len(group),
        jobs=tuple(name for name, _ in sorted(jobs.items(), key=lambda item: (-item[1], item[0]))),
    )


# --- what a retry could have saved -----------------------------------------------------------------------------------

type RunKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Recovery:
    """The success that took a failure's place: `run_id` is the failed run itself where a repair healed it."""

    run_id: int
    at: datetime
    is_by_person: bool


def key_of(run: Judged | EndedRun) -> RunKey:
    return run.workspace, run.run_id


def recoveries_of(failures: Iterable[Judged], ended: Iterable[EndedRun]) -> dict[RunKey, Recovery]:
    """What healed each failure: its own repair, else the next successful run of its job with the same parameters."""
    successes: defaultdict[tuple[str, int | None], list[EndedRun]] = defaultdict(list)
    for run in sorted(ended, key=lambda run: run.start_time):
        if not run.is_failed and run.job_id is not None:
            successes[run.workspace, run.job_id].append(run)
    found = {}
    for failure in failures:
        recovery = recovery_of(failure, successes[failure.workspace, failure.job_id])
        if recovery:
            found[key_of(failure)] = recovery
    return found


def recovery_of(failure: Judged, successes: Iterable[EndedRun]) -> Recovery | None:
    """`successes` are the successful runs of the failure's job, oldest first."""
    if failure.repaired:
        return Recovery(failure.run_id, failure.repaired.end_time, is_by_person=True)
    for run in successes:
        is_later = run.start_time > failure.start_time and run.end_time > failure.failed_at
        if is_later and dict(run.job_parameters) == dict(failure.job_parameters):
            return Recovery(run.run_id, run.end_time, run.is_on_demand)
    return None


def saved(failures: Iterable[Judged], recoveries: Mapping[RunKey, Recovery]) -> Saved:
    """The time from failure to recovery, once where several failures waited for the same recovery.

    Where no recovery is known, the run's own duration: that much work was lost.
    """
    runs = 0
    spans: dict[RunKey, timedelta] = {}
    for failure in failures:
        runs += 1
        recovery = recoveries.get(key_of(failure))
        if recovery:
            ended_by, span = (failure.workspace, recovery.run_id), recovery.at - failure.failed_at
        else:
            ended_by, span = key_of(failure), failure.failed_at - failure.start_time
        spans[ended_by] = max(spans.get(ended_by, timedelta()), span)
    return Saved(runs, hours(sum(spans.values(), timedelta())))


def hours(span: timedelta) -> float:
    """Hours with two decimals."""
    return round(span.total_seconds() / 3600, 2)
