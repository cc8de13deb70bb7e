"""The audit: what Databricks says was retried, against what the history says the agent did. Reads only.

"At most once" rests on claims, on compare-and-swap and on tokens; here it is measured. Databricks does not say who made
a repair or started a run, so the time decides: within a minute of one of our claims it can be ours, later it is
somebody else's. Per claim are counted:

- a duplicate: a retry that began beside the claim although the claim's own retry is there too, or a second retry of one
  and the same failure by the history's own account;
- an orphan: a claim of some time ago that has no retry, neither in the history nor beside it in Databricks;
- an unledgered one: a retry beside a claim that has none in the history.

A person who repairs a run within a minute of our claim on it is counted as well, which is rare and worth a look.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from shared import telemetry
from shared.domain import Attempt, AttemptKind, AttemptOutcome, Event, FailureId, Incident
from shared.errors import AgentError, PermanentError
from shared.ports import DecisionHistory, JobRuns
from shared.settings import Settings

logger = telemetry.logger(__name__)

LOOKS_BACK = timedelta(hours=6)
"""Each claim is looked at by so many of the hourly audits, so that one that could not be made leaves no gap."""

SKEW = timedelta(seconds=10)
"""So much the clocks of the app and of Databricks may differ."""

MAX_CLAIMS = 200
"""Claims looked at in one audit of a workspace, the latest first; the others are counted as `unread`."""

ON_DEMAND = "ONE_TIME"
EXPLAINED = (AttemptOutcome.SUPERSEDED, AttemptOutcome.GONE, AttemptOutcome.UNKNOWN)
"""Ends of a claim after which there need be no retry: somebody else was faster, or the run or job is gone, or
people were told that it is not known."""

AUDITED = "audited"


@dataclass(frozen=True, slots=True)
class Retry:
    """A repair of a run, or a new run started on demand, as Databricks has it. `started_at` None = it does not say."""

    effect_id: int
    started_at: datetime | None


@dataclass(frozen=True, slots=True)
class Counts:
    """What an audit found. `claims` were looked at; `unread` could not be, or were too many."""

    claims: int = 0
    duplicates: int = 0
    orphans: int = 0
    unledgered: int = 0
    unread: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.claims + other.claims,
            self.duplicates + other.duplicates,
            self.orphans + other.orphans,
            self.unledgered + other.unledgered,
            self.unread + other.unread,
        )


class Auditing:
    """Audits all workspaces."""

    def __init__(
        self, runs: JobRuns, history: DecisionHistory, settings: Settings, now: Callable[[], datetime]
    ) -> None:
        self._runs = runs
        self._history = history
        self._settle = timedelta(seconds=settings.claim_settle_seconds)
        self._patience = timedelta(minutes=settings.stale_after_minutes)
        self._now = now

    def audit(self) -> Counts:
        """Audit every workspace, say the result as metrics, as a log record and in the history; the sum of all.

        A workspace that cannot be read does not hold up the others; its error is raised once they are done.
        """
        total = Counts()
        problem: AgentError | None = None
        for workspace in self._runs.workspaces:
            try:
                total += self._audit(workspace)
            except AgentError as error:
                logger.warning("audit failed", extra={"workspace": workspace, "reason": type(error).__name__})
                problem = error
        if problem:
            raise problem
        return total

    def latest(self, workspace: str) -> Event | None:
        """The last audit of the last two days; None where there was none."""
        now = self._now()
        pages = (self._history.events(workspace, page_of(day)) for day in (now, now - timedelta(days=1)))
        return next((events[-1] for events in pages if events), None)

    def _audit(self, workspace: str) -> Counts:
        now = self._now()
        still_open = self._history.open_incidents(workspace)
        closed = self._history.closed_incidents(workspace, updated_after=now - LOOKS_BACK)
        claimed = [
            (incident, attempt)
            for incident in (*still_open, *closed)
            for attempt in incident.attempts
            if now - LOOKS_BACK < attempt.claimed_at <= now - self._settle
        ]
        claimed.sort(key=lambda pair: pair[1].claimed_at, reverse=True)
        counts = Counts(unread=len(claimed[MAX_CLAIMS:]))
        for incident, attempt in claimed[:MAX_CLAIMS]:
            counts += self._checked(incident, attempt)
        counts = replace(counts, duplicates=counts.duplicates + repeated_failures(claimed))
        self._say(workspace, counts, now)
        return counts

    def _say(self, workspace: str, counts: Counts, now: datetime) -> None:
        found = {name: getattr(counts, name) for name in Counts.__slots__}
        telemetry.audited(workspace, duplicates=counts.duplicates, orphans=counts.orphans, unledgered=counts.unledgered)
        self._history.record(Event(workspace, page_of(now), now, AUDITED, found))
        is_clean = not (counts.duplicates or counts.orphans or counts.unledgered)
        (logger.info if is_clean else logger.error)("audited", extra={"workspace": workspace, **found})

    def _checked(self, incident: Incident, attempt: Attempt) -> Counts:
        try:
            made = self._retries_made(incident, attempt)
        except PermanentError as error:  # gone, or not ours to read
            self._log("claim cannot be audited", incident, attempt, reason=type(error).__name__)
            return Counts(unread=1)
        found = judge(incident, attempt, made, settle=self._settle)
        if self._now() - attempt.claimed_at < self._patience:  # its message may come again and enter the retry
            found = replace(found, orphans=0, unledgered=0)
        if found.duplicates or found.orphans or found.unledgered:
            self._log(
                "claim and retries do not agree",
                incident,
                attempt,
                duplicates=found.duplicates,
                orphans=found.orphans,
                unledgered=found.unledgered,
            )
        return found

    def _log(self, what: str, incident: Incident, attempt: Attempt, **details: object) -> None:
        ids = {"workspace": incident.workspace, "run_id": incident.run_id, "job_id": incident.job_id}
        logger.warning(what, extra={**ids, "failure_id": attempt.failure_id, "attempt": attempt.number, **details})

    def _retries_made(self, incident: Incident, attempt: Attempt) -> list[Retry]:
        """What Databricks has that could be this claim's retry: one call, or for a new run one per later run too."""
        workspace = incident.workspace
        if attempt.kind is AttemptKind.REPAIR:
            run = self._runs.read_state(workspace, run_id_of(attempt.failure_id))
            return [Retry(repair.repair_id, repair.start_time) for repair in run.repairs]
        assert incident.job_id is not None  # only runs of a job are started anew
        newer = self._runs.newer_runs(workspace, incident.job_id, started_after=attempt.claimed_at - SKEW)
        run_ids = {run.run_id for run in newer} | ({attempt.effect_id} if attempt.effect_id else set())
        runs = [self._runs.read_state(workspace, run_id) for run_id in sorted(run_ids)]
        return [Retry(run.run_id, run.start_time) for run in runs if run.trigger == ON_DEMAND]


def judge(incident: Incident, attempt: Attempt, made: Iterable[Retry], *, settle: timedelta) -> Counts:
    """One claim against the retries that Databricks has of its run or job."""
    known = {a.effect_id for a in incident.attempts if a.effect_id is not None}
    begin, end = attempt.claimed_at - SKEW, attempt.claimed_at + settle
    made = list(made)
    beside = [
        retry
        for retry in made
        if retry.effect_id not in known and retry.started_at is not None and begin <= retry.started_at <= end
    ]
    if any(retry.effect_id == attempt.effect_id for retry in made):
        return Counts(claims=1, duplicates=len(beside))
    if attempt.outcome in EXPLAINED:
        return Counts(claims=1, duplicates=len(beside[1:]))
    if not beside:
        return Counts(claims=1, orphans=1)
    return Counts(claims=1, unledgered=1, duplicates=len(beside[1:]))


def repeated_failures(claimed: Sequence[tuple[Incident, Attempt]]) -> int:
    """Retries of a failure beyond its first, by the history's own account."""
    effects = {(a.failure_id, a.effect_id) for _, a in claimed if a.effect_id is not None}
    return sum(count - 1 for count in Counter(failure_id for failure_id, _ in effects).values())


def run_id_of(failure_id: FailureId) -> int:
    """The run that a failure's id names: `workspace:run:repair`."""
    return int(failure_id.rsplit(":", 2)[1])


def page_of(day: datetime) -> int:
    """Under which number the audits of a day are kept among the events: run ids are positive, so it is none of them."""
    return -int(f"{day:%Y%m%d}")
