"""The last word: what limits, tags, age and the run's own state permit. Pure; time and randomness are arguments.

`stand_down` asks whether there is anything to do at all; `permit` turns a diagnosis into what may be done now.
Neither knows the mode: a mode never changes a decision, it settles whether the decision is carried out (`carry_out`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from shared.domain import (
    Attempt,
    AttemptOutcome,
    Change,
    ChangeKind,
    DecisionKind,
    Diagnosis,
    Mode,
    NewerRun,
    RunFacts,
    RunState,
    SettingChange,
)
from shared.triage.change_plan import CannotChange, ChangeBounds, plan
from shared.triage.changes import asked_for
from shared.triage.schedule import next_fire

MODE_TAG = "failure-agent"
OWNER_TAG = "failure-agent-owner"
MAX_ATTEMPTS_TAG = "failure-agent-max-attempts"
IDEMPOTENT_TAG = "failure-agent-idempotent"
CHANGES_TAG = "failure-agent-changes"
BOUND_TAGS: Mapping[str, str] = {
    "failure-agent-max-cost-factor": "max_cost_factor",
    "failure-agent-max-workers": "max_workers",
    "failure-agent-max-node-memory-gb": "max_node_memory_gb",
    "failure-agent-max-timeout-hours": "max_timeout_hours",
}
"""Tags that narrow a bound of the changes (a field of `ChangeBounds`) for their job."""

WHOLE_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
SEPARATORS = re.compile(r"[,;+\s]+")
"""Between the words of a list in a tag; not every cloud takes a comma in the tags that clusters get from their job."""

ONE_ADDRESS = re.compile(r"[\w.+-]+@[\w.-]+", re.ASCII)
"""Exactly one plain address: a list, a display name or a second @ could carry a recipient past the domain check."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds set by the operator. A job's tags can narrow them, never widen them."""

    max_retry_attempts: int
    retry_with_params_attempts: int
    max_failure_age: timedelta
    backoff_base_seconds: float
    backoff_cap_seconds: float
    default_mode: Mode = Mode.OBSERVE
    job_ids: frozenset[int] = frozenset()
    job_tags: Mapping[str, str] | None = None
    bounds: ChangeBounds = field(default_factory=ChangeBounds)


@dataclass(frozen=True, slots=True)
class StandDown:
    """Why nothing is to be done. `rule` is its name in the decision."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is permitted now. `rules` are the policy rules that fired, in order.

    `setting_changes` are the values that a permitted retry changes.
    """

    decision: DecisionKind
    reason: str
    rules: tuple[str, ...]
    changes: tuple[Change, ...]
    delay_seconds: float
    setting_changes: tuple[SettingChange, ...] = ()


SWITCHED_OFF = StandDown("switched_off", f"The mode is off for this job (tag {MODE_TAG} or the default mode).")


def stand_down(facts: RunFacts, limits: Limits) -> StandDown | None:
    """The first reason for leaving this run alone, or None."""
    checks = (
        not_failed,
        not_selected,
        switched_off,
        healed_by_parent,
        restarts_itself,
        paused_job,
        superseded,
    )
    for check in checks:
        if found := check(facts, limits):
            return found
    return None


def not_failed(facts: RunFacts, _: Limits) -> StandDown | None:
    if facts.run.is_active:
        return StandDown("running_again", "The run is active again: somebody or something repaired it.")
    if not facts.run.is_failed:
        return StandDown("not_failed", "The run is no longer failed: it was repaired meanwhile.")
    return None


def not_selected(facts: RunFacts, limits: Limits) -> StandDown | None:
    if limits.job_ids and facts.run.job_id not in limits.job_ids:
        return StandDown("not_selected", "The job is not among the jobs that the agent looks after.")
    wanted = limits.job_tags or {}
    if any(facts.tags.get(name) != value for name, value in wanted.items()):
        return StandDown("not_selected", "The job lacks the tags of the jobs that the agent looks after.")
    return None


def switched_off(facts: RunFacts, limits: Limits) -> StandDown | None:
    return SWITCHED_OFF if mode_of(facts.tags, limits.default_mode) is Mode.OFF else None


def healed_by_parent(facts: RunFacts, _: Limits) -> StandDown | None:
    if facts.parent:
        return StandDown(
            "healed_by_parent", f"The run was started by {facts.parent}, which retries or reports it itself."
        )
    return None


def restarts_itself(facts: RunFacts, _: Limits) -> StandDown | None:
    if facts.job and facts.job.is_continuous:
        return StandDown("continuous_job", "The job is continuous: Databricks restarts it by itself, with backoff.")
    return None


def paused_job(facts: RunFacts, _: Limits) -> StandDown | None:
    """A person paused what started the run, since or while it ran."""
    if facts.job and facts.job.is_paused and facts.run.trigger in ("PERIODIC", "FILE_ARRIVAL", "TABLE"):
        return StandDown("paused_job", "The job's schedule or trigger is paused: somebody does not want it to run now.")
    return None


def superseded(facts: RunFacts, _: Limits) -> StandDown | None:
    return newer_run_does_it(facts.run, facts.newer_runs)


def newer_run_does_it(run: RunState, newer_runs: Sequence[NewerRun]) -> StandDown | None:
    """A newer run of the same job with the same parameters did, or is doing, this run's work."""
    for newer in newer_runs:
        if newer.run_id == run.run_id or dict(newer.job_parameters) != dict(run.job_parameters):
            continue
        if newer.result_state == "SUCCESS":
            return StandDown("newer_run_succeeded", f"The newer run {newer.run_id} of the job succeeded.")
        if newer.is_active:
            return StandDown("newer_run_active", f"The newer run {newer.run_id} of the job is under way.")
    return None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A retry that the diagnosis calls for, with all that speaks for or against it. `made` = retries made so far."""

    diagnosis: Diagnosis
    facts: RunFacts | None
    attempts: Sequence[Attempt]
    limits: Limits
    now: datetime

    @property
    def made(self) -> int:
        """A run's repairs count, whoever made them: what a person tried is not tried again without end."""
        return max(len(self.attempts), len(self.facts.run.repairs) if self.facts else 0)

    @property
    def tags(self) -> Mapping[str, str]:
        return self.facts.tags if self.facts else {}


def permit(proposal: Proposal, *, jitter: float) -> Verdict:
    """What may be done about the diagnosis. `jitter` is a random number in [0, 1)."""
    diagnosis = proposal.diagnosis
    if not diagnosis.recommended.is_retry:
        return Verdict(diagnosis.recommended, diagnosis.reason, (), diagnosis.changes, 0.0)
    for check in (too_old, not_idempotent, retry_limit, changed_retry_limit, changes_not_allowed):
        if refusal := check(proposal):
            return refused(diagnosis, refusal)
    delay = backoff_seconds(proposal.made, proposal.limits, jitter)
    if sooner := next_run_comes_first(proposal, delay):
        return Verdict(DecisionKind.SKIP, sooner.reason, (f"policy.{sooner.rule}",), diagnosis.changes, 0.0)
    if diagnosis.recommended is not DecisionKind.RETRY_WITH_PARAMS:
        return Verdict(diagnosis.recommended, diagnosis.reason, (), (), delay)
    if proposal.facts is None:
        return Verdict(diagnosis.recommended, diagnosis.reason, (), diagnosis.changes, delay)
    bounds = narrowed(proposal.limits.bounds, proposal.tags)
    settled = plan(diagnosis.changes, proposal.facts, bounds, tried=changes_tried(proposal.attempts))
    if isinstance(settled, CannotChange):
        return refused(diagnosis, change_needs_a_person(settled))
    return Verdict(diagnosis.recommended, diagnosis.reason, (), asked_for(settled), delay, settled)


def refused(diagnosis: Diagnosis, refusal: StandDown) -> Verdict:
    """A mail instead of a retry; it carries the changes as a suggestion."""
    return Verdict(
        DecisionKind.ESCALATE_EMAIL,
        f"{diagnosis.reason} {refusal.reason}",
        (f"policy.{refusal.rule}",),
        diagnosis.changes,
        0.0,
    )


def next_run_comes_first(proposal: Proposal, delay: float) -> StandDown | None:
    """The schedule starts the same work before a retry of it could end: the two would collide."""
    facts = proposal.facts
    if facts is None or facts.job is None or facts.run.trigger != "PERIODIC" or facts.run.end_time is None:
        return None
    if dict(facts.run.job_parameters) != dict(facts.job.declared_parameters):
        return None
    starts_at = next_fire(facts.job.settings, proposal.now)
    takes = timedelta(seconds=delay) + (facts.run.end_time - facts.run.start_time)
    if starts_at is None or starts_at > proposal.now + takes:
        return None
    return StandDown(
        "next_run_comes_first", f"The schedule starts the job at {starts_at:%H:%M %Z}, sooner than a retry could end."
    )


def changes_tried(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """The words of the changes with which the run failed again, repeated ones as often as they were made."""
    failed = (attempt for attempt in attempts if attempt.outcome is AttemptOutcome.FAILED_AGAIN)
    return tuple(word for attempt in failed for word in attempt.changes)


def too_old(proposal: Proposal) -> StandDown | None:
    ended = proposal.facts.run.end_time if proposal.facts else None
    if ended and proposal.now - ended > proposal.limits.max_failure_age:
        hours = proposal.limits.max_failure_age.total_seconds() / 3600
        return StandDown("too_old", f"It failed more than {hours:g} hours ago, so it is not repaired by itself.")
    return None


def not_idempotent(proposal: Proposal) -> StandDown | None:
    return marked_not_idempotent(proposal.tags)


def marked_not_idempotent(tags: Mapping[str, str]) -> StandDown | None:
    """Only `true` says that it is; what is neither is taken for `false`."""
    marked = tags.get(IDEMPOTENT_TAG, "true").strip().lower()
    if marked == "true":
        return None
    if marked != "false":
        return unreadable(IDEMPOTENT_TAG, "true or false")
    return StandDown("not_idempotent", f"The job is marked {IDEMPOTENT_TAG}=false: a person must rerun it.")


def retry_limit(proposal: Proposal) -> StandDown | None:
    allowed = proposal.limits.max_retry_attempts
    if (tag := proposal.tags.get(MAX_ATTEMPTS_TAG)) is not None:
        if not WHOLE_NUMBER.fullmatch(tag):
            return unreadable(MAX_ATTEMPTS_TAG, "a whole number")
        allowed = min(allowed, int(tag))
    if proposal.made >= allowed:
        return StandDown("retry_limit", f"{proposal.made} of at most {allowed} retries were made.")
    return None


def changed_retry_limit(proposal: Proposal) -> StandDown | None:
    made = sum(attempt.with_changes for attempt in proposal.attempts)
    allowed = proposal.limits.retry_with_params_attempts
    if proposal.diagnosis.recommended is DecisionKind.RETRY_WITH_PARAMS and made >= allowed:
        return StandDown("changed_retry_limit", f"{made} of at most {allowed} retries with changes were made.")
    return None


def changes_not_allowed(proposal: Proposal) -> StandDown | None:
    """The job's tags forbid the changes, or cannot be read, so that no change is certainly within them."""
    if proposal.diagnosis.recommended is not DecisionKind.RETRY_WITH_PARAMS:
        return None
    for tag in BOUND_TAGS:
        if tag in proposal.tags and not NUMBER.fullmatch(proposal.tags[tag]):
            return unreadable(tag, "a number")
    if (listed := proposal.tags.get(CHANGES_TAG)) is None:
        return None
    allowed = {word for word in SEPARATORS.split(listed.lower()) if word}
    if not allowed <= set(ChangeKind):
        return unreadable(CHANGES_TAG, f"some of {', '.join(ChangeKind)}")
    if forbidden := [change.word for change in proposal.diagnosis.changes if change.kind not in allowed]:
        return StandDown("change_not_allowed", f"The job's tag {CHANGES_TAG} does not allow {', '.join(forbidden)}.")
    return None


def unreadable(tag: str, wanted: str) -> StandDown:
    """What a tag narrows is not known, so nothing is allowed. Its value is not shown: it may be anything."""
    return StandDown("unreadable_tag", f"The job's tag {tag} is not {wanted}: it is taken to allow nothing.")


def narrowed(bounds: ChangeBounds, tags: Mapping[str, str]) -> ChangeBounds:
    """The bounds with what the job's tags narrow. Raises ValueError for a tag that is no number."""
    given = {name: float(tags[tag]) for tag, name in BOUND_TAGS.items() if tag in tags}
    most_workers = int(min(bounds.max_workers, given.pop("max_workers", bounds.max_workers)))
    others = {name: min(getattr(bounds, name), value) for name, value in given.items()}
    return replace(bounds, max_workers=most_workers, **others)


def change_needs_a_person(why: CannotChange) -> StandDown:
    return StandDown(
        "change_needs_a_person", f"The change that would heal it is not one that is made by itself. {why.reason}"
    )


def backoff_seconds(made: int, limits: Limits, jitter: float) -> float:
    """Full jitter: uniform between 0 and the doubled base, capped (after AWS, "Exponential Backoff And Jitter")."""
    return float(jitter * min(limits.backoff_cap_seconds, limits.backoff_base_seconds * 2**made))


def mode_of(tags: Mapping[str, str], default: Mode) -> Mode:
    """The job's own mode where it has the tag, else the default. One that is not understood does nothing by itself."""
    if (named := tags.get(MODE_TAG)) is None:
        return default
    try:
        return Mode(named.strip().lower())
    except ValueError:
        return Mode.OFF if default is Mode.OFF else Mode.OBSERVE


def carry_out(decision: DecisionKind, mode: Mode, *, dry_run: bool) -> tuple[bool, str]:
    """Whether a decision is carried out, and why not."""
    if dry_run:
        return False, "dry run: nothing is changed and nobody is mailed"
    if not mode.carries_out(decision):
        return False, f"mode {mode}: {decision} is suggested by mail, not carried out"
    return True, ""


def withdrawn(decision: DecisionKind, tags: Mapping[str, str], mode: Mode, *, dry_run: bool) -> StandDown | None:
    """Why a retry that was decided upon is not made any more, by the job's mode and tags as they are now."""
    if mode is Mode.OFF:
        return SWITCHED_OFF
    done, why = carry_out(decision, mode, dry_run=dry_run)
    if not done:
        return StandDown("mode_changed", f"This has changed since the decision: {why}.")
    return marked_not_idempotent(tags)


def recipients_of(
    tags: Mapping[str, str],
    *,
    owners: Mapping[str, str],
    default: Sequence[str],
    allowed_domains: Sequence[str],
) -> tuple[str, ...]:
    """Who is told. An alias is resolved by the operator's own table; an address on a job must be in an allowed domain.

    Whoever can edit a job must not be able to send error texts anywhere.
    """
    named = tags.get(OWNER_TAG, "").strip()
    resolved = tuple(part.strip() for part in owners.get(named, "").split(",") if part.strip())
    if resolved:
        return resolved
    domain = named.rpartition("@")[2].lower()
    if ONE_ADDRESS.fullmatch(named) and domain in {allowed.lower() for allowed in allowed_domains}:
        return (named,)
    return tuple(default)
