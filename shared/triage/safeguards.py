"""What keeps many failures from becoming many retries: budget, slots, daily limits, circuit breakers. Pure.

One value per workspace. A breaker stands for one fingerprint (one cause): it opens when many runs fail of it within a
few minutes, or when its retries keep failing. While it is open one canary at a time may retry; a success closes it, and
when the canaries are used up people decide.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from shared.triage.policy import StandDown

BUCKET = timedelta(minutes=5)
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class SafeguardLimits:
    """Bounds set by the operator. `budget_share` of the runs seen within `budget_window`, at least `budget_floor`."""

    budget_share: float = 0.1
    budget_floor: int = 5
    budget_window: timedelta = timedelta(minutes=60)
    max_concurrent: int = 5
    slot_wait: timedelta = timedelta(seconds=60)
    per_job_and_day: int = 10
    extra_hours_per_day: float = 100.0
    breaker_failures: int = 10
    breaker_window: timedelta = timedelta(minutes=5)
    breaker_failed_retries: int = 3
    canary_interval: timedelta = timedelta(minutes=10)
    canary_attempts: int = 3


@dataclass(frozen=True, slots=True)
class RetryRecord:
    """A retry that was let through. `key` = run id and attempt; `hours` = expected compute hours times their price."""

    key: str
    job_id: int | None
    fingerprint: str
    hours: float
    at: datetime
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class Breaker:
    """One fingerprint. Open while `opened_at` is set."""

    failures: int = 0
    since: datetime | None = None
    failed_retries: int = 0
    failed_retry_at: datetime | None = None
    opened_at: datetime | None = None
    canaries: int = 0
    canary_key: str = ""
    canary_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Safeguards:
    """The state of one workspace. `runs_seen` = runs that detection ticks saw to have ended, by five-minute bucket."""

    workspace: str
    runs_seen: dict[str, int] = field(default_factory=dict)
    retries: tuple[RetryRecord, ...] = ()
    breakers: dict[str, Breaker] = field(default_factory=dict)
    write_guid: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now. `until` is when to ask again."""

    until: datetime
    rule: str
    reason: str


def note_runs_seen(state: Safeguards, count: int, now: datetime, limits: SafeguardLimits) -> Safeguards:
    """Add runs that a tick saw to have ended; buckets older than the window are dropped."""
    oldest = bucket_of(now - limits.budget_window)
    seen = {bucket: n for bucket, n in state.runs_seen.items() if bucket >= oldest}
    bucket = bucket_of(now)
    seen[bucket] = seen.get(bucket, 0) + count
    return replace(state, runs_seen=seen)


def bucket_of(time: datetime) -> str:
    seconds = BUCKET.total_seconds()
    return f"{int(time.timestamp() // seconds):010d}"


def note_failure(state: Safeguards, fingerprint: str, now: datetime, limits: SafeguardLimits) -> Safeguards:
    """Count a failure of the fingerprint; the same value where its breaker is open already."""
    breaker = state.breakers.get(fingerprint, Breaker())
    if breaker.opened_at:
        return state
    if breaker.since is None or now - breaker.since > limits.breaker_window:
        breaker = replace(breaker, failures=0, since=now)
    breaker = replace(breaker, failures=breaker.failures + 1)
    if breaker.failures >= limits.breaker_failures:
        breaker = replace(breaker, opened_at=now)
    return with_breaker(forget(state, now, limits), fingerprint, breaker)


def forget(state: Safeguards, now: datetime, limits: SafeguardLimits) -> Safeguards:
    """Drop what no longer counts: retries and failed retries of more than a day ago, failures outside the window."""
    breakers = {name: b for name, b in state.breakers.items() if still_counts(b, now, limits)}
    retries = tuple(retry for retry in state.retries if now - retry.at < DAY)
    return replace(state, breakers=breakers, retries=retries)


def still_counts(breaker: Breaker, now: datetime, limits: SafeguardLimits) -> bool:
    if breaker.canary_key:
        return True
    if breaker.opened_at or breaker.failed_retries:
        latest = breaker.failed_retry_at or breaker.opened_at
        return latest is not None and now - latest < DAY
    return breaker.since is not None and now - breaker.since <= limits.breaker_window


def with_breaker(state: Safeguards, fingerprint: str, breaker: Breaker) -> Safeguards:
    return replace(state, breakers={**state.breakers, fingerprint: breaker})


def admit(
    state: Safeguards, wanted: RetryRecord, now: datetime, limits: SafeguardLimits
) -> Safeguards | Wait | StandDown:
    """Let a retry through (the state with its record), have it wait, or refuse it for good.

    Asking again for what was let through before changes nothing: a message may be delivered twice.
    """
    if any(retry.key == wanted.key for retry in state.retries):
        return state
    state = forget(state, now, limits)
    for check in (refused_by_job_limit, refused_by_cost, refused_by_breaker):
        if refusal := check(state, wanted, limits):
            return refusal
    for hold in (held_by_breaker, held_by_slots, held_by_budget):
        if wait := hold(state, wanted, now, limits):
            return wait
    breaker = state.breakers.get(wanted.fingerprint)
    if breaker and breaker.opened_at:
        canary = replace(breaker, canaries=breaker.canaries + 1, canary_key=wanted.key, canary_at=now)
        state = with_breaker(state, wanted.fingerprint, canary)
    return replace(state, retries=(*state.retries, wanted))


def refused_by_job_limit(state: Safeguards, wanted: RetryRecord, limits: SafeguardLimits) -> StandDown | None:
    made = sum(retry.job_id == wanted.job_id for retry in state.retries)
    if made >= limits.per_job_and_day:
        return StandDown("job_day_limit", f"{made} retries of this job were made within a day, which is the limit.")
    return None


def refused_by_cost(state: Safeguards, wanted: RetryRecord, limits: SafeguardLimits) -> StandDown | None:
    spent = sum(retry.hours for retry in state.retries)
    if spent + wanted.hours > limits.extra_hours_per_day:
        return StandDown(
            "cost_cap", f"Retries of the last day amount to {spent:.1f} compute hours; the cap is reached."
        )
    return None


def refused_by_breaker(state: Safeguards, wanted: RetryRecord, limits: SafeguardLimits) -> StandDown | None:
    breaker = state.breakers.get(wanted.fingerprint)
    if breaker and breaker.opened_at and not breaker.canary_key and breaker.canaries >= limits.canary_attempts:
        return StandDown("canaries_failed", f"The same cause failed {breaker.canaries} retries that were tried first.")
    return None


def held_by_breaker(state: Safeguards, wanted: RetryRecord, now: datetime, limits: SafeguardLimits) -> Wait | None:
    breaker = state.breakers.get(wanted.fingerprint)
    if breaker is None or breaker.opened_at is None:
        return None
    next_canary = (breaker.canary_at or breaker.opened_at) + limits.canary_interval
    if breaker.canary_key:
        return Wait(
            max(next_canary, now + limits.slot_wait), "breaker_open", "A retry of the same cause is tried first."
        )
    if now < next_canary and breaker.canary_at is not None:
        return Wait(next_canary, "breaker_open", "Many runs fail of the same cause; the next retry of it comes later.")
    return None


def held_by_slots(state: Safeguards, _: RetryRecord, now: datetime, limits: SafeguardLimits) -> Wait | None:
    if sum(retry.is_open for retry in state.retries) >= limits.max_concurrent:
        return Wait(now + limits.slot_wait, "concurrency", f"{limits.max_concurrent} retries are under way.")
    return None


def held_by_budget(state: Safeguards, _: RetryRecord, now: datetime, limits: SafeguardLimits) -> Wait | None:
    since = now - limits.budget_window
    recent = [retry.at for retry in state.retries if retry.at > since]
    seen = sum(count for bucket, count in state.runs_seen.items() if bucket >= bucket_of(since))
    allowed = max(limits.budget_floor, int(seen * limits.budget_share))
    if len(recent) >= allowed:
        return Wait(
            min(recent) + limits.budget_window, "retry_budget", f"{len(recent)} retries were made in the window."
        )
    return None


def note_outcome(state: Safeguards, key: str, *, succeeded: bool, now: datetime, limits: SafeguardLimits) -> Safeguards:
    """A retry has ended: its slot is free; a success closes the breaker of its cause. Repeating it changes nothing."""
    record = next((retry for retry in state.retries if retry.key == key and retry.is_open), None)
    if record is None:
        return state
    state = replace(state, retries=tuple(replace(r, is_open=False) if r.key == key else r for r in state.retries))
    breaker = state.breakers.get(record.fingerprint, Breaker())
    if succeeded:
        return replace(state, breakers={n: b for n, b in state.breakers.items() if n != record.fingerprint})
    breaker = replace(breaker, failed_retries=breaker.failed_retries + 1, failed_retry_at=now)
    if breaker.canary_key == key:
        breaker = replace(breaker, canary_key="", canary_at=now)
    if breaker.opened_at is None and breaker.failed_retries >= limits.breaker_failed_retries:
        breaker = replace(breaker, opened_at=now)
    return with_breaker(state, record.fingerprint, breaker)
