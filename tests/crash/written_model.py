"""What may become of an incident and of a lease, written down apart from the steps that move them.

Nothing here calls the code under test: states are the words that are stored, and a rule compares a stored row with the
one that replaces it.
"""

from collections import Counter
from dataclasses import dataclass, field

from shared.domain import Attempt, AttemptOutcome, Incident, Json, Lease

NEW = ""
"""The state of what is not stored yet."""

WITHIN_A_FAILURE = {
    NEW: {"detected", "decided", "skipped"},
    "detected": {"detected", "decided", "skipped"},
    "decided": {"decided", "acting", "gathered", "skipped", "parked"},
    "acting": {"acting", "decided", "retrying", "skipped", "escalated", "failed_again", "parked"},
    "gathered": {"escalated", "failed_again", "parked"},
    "retrying": {"retrying", "recovered", "skipped", "decided"},
}
"""Where an incident may go while its failure stays the same. What is not a key here is an end. To itself: a claim was
noted, or how long its message waits. From `retrying` to `decided`: the run may not be read any more."""

INTO_THE_NEXT_FAILURE = {"decided", "skipped"}
"""Wherever an incident stands, an end included: once its run failed again, that failure is decided about."""

LEASE = {
    NEW: {"planned"},
    "planned": {"planned", "applied", "restored", "closed"},
    "applied": {"applied", "restored"},
    "restored": {"restored", "applied", "closed"},
    "closed": {"closed", "applied"},
}
"""A lease of one attempt. Back to `applied` means that a restore was refused, so that ours may still be there. One of
another attempt may only follow on `closed`."""


def broken_incident_rules(before: Incident | None, after: Incident) -> list[str]:
    """What of the rules a stored incident breaks, given what was stored before."""
    state = str(before.state) if before else NEW
    if before is None or before.failure_id == after.failure_id:
        allowed = WITHIN_A_FAILURE.get(state, set())
    else:
        allowed = INTO_THE_NEXT_FAILURE
    old = before.attempts if before else ()
    rules = {
        f"incident {state} -> {after.state}": str(after.state) in allowed,
        "an attempt lost or rewritten": keeps_attempts(old, after.attempts),
        "more than one attempt added": len(after.attempts) <= len(old) + 1,
        "attempts are not numbered": [a.number for a in after.attempts] == list(range(1, len(after.attempts) + 1)),
        "an open attempt before the last": all(is_ended(attempt) for attempt in after.attempts[:-1]),
        "a failure handled twice": after.failure_id not in after.past_failures,
    }
    if before:
        rules |= {
            "past failures forgotten": after.past_failures[: len(before.past_failures)] == before.past_failures,
            "mails forgotten": after.mailed[: len(before.mailed)] == before.mailed,
        }
    return [what for what, holds in rules.items() if not holds]


def keeps_attempts(old: tuple[Attempt, ...], new: tuple[Attempt, ...]) -> bool:
    """No attempt is forgotten, except the last where it never became an effect; an ended one never changes."""
    ended = [attempt for attempt in old if is_ended(attempt)]
    became_nothing = bool(old) and not is_ended(old[-1]) and old[-1].effect_id is None
    return list(new[: len(ended)]) == ended and len(new) >= len(old) - became_nothing


def is_ended(attempt: Attempt) -> bool:
    return attempt.outcome is not AttemptOutcome.PENDING


def broken_lease_rules(before: Lease | None, after: Lease) -> list[str]:
    """What of the rules a stored lease breaks, given what was stored of that job before."""
    is_same = before is not None and (before.run_id, before.attempt) == (after.run_id, after.attempt)
    if before is not None and is_same:
        state = str(before.state)
    elif before is None or str(before.state) == "closed":
        state = NEW
    else:
        return [f"a lease of run {after.run_id} on top of one of run {before.run_id} that is {before.state}"]
    return [] if str(after.state) in LEASE[state] else [f"lease {state} -> {after.state}"]


MAY_RETRY = {"retry", "full"}
"""The modes in which a retry may be made."""

MAY_CHANGE = {"full"}
"""The modes in which a job may be changed for a retry."""


@dataclass
class Outside:
    """What people and Databricks have done, and so what the agent may do. Runs and jobs by id.

    `settings` are the jobs as people want them. `failures` = how often a run has ended badly so far. `modes` are the
    jobs' tags now.
    """

    settings: dict[int, Json]
    modes: dict[int, str]
    is_paused: bool = False
    failures: Counter[int] = field(default_factory=Counter)
    repaired: set[tuple[int, int]] = field(default_factory=set)
    mailed: set[str] = field(default_factory=set)

    def broken_by_repair(self, run_id: int, job_id: int, *, was_sent_before: bool) -> list[str]:
        """A repair was accepted: one per ending of the run, and no mode or pause forbids it now.

        `was_sent_before` = it was on its way when people paused or tagged, and may still land.
        """
        ending = (run_id, self.failures[run_id])
        rules = {
            f"run {run_id} was repaired twice": ending not in self.repaired,
            f"run {run_id} was retried in a mode without retries": was_sent_before or self.modes[job_id] in MAY_RETRY,
            f"run {run_id} was retried during a pause": was_sent_before or not self.is_paused,
        }
        self.repaired.add(ending)
        return [what for what, holds in rules.items() if not holds]

    def broken_by_update(self, job_id: int, settings: Json, *, was_sent_before: bool) -> list[str]:
        """A job may always be put back; it is changed in full mode only, and not during a pause."""
        if was_sent_before or settings == self.settings[job_id]:
            return []
        rules = {
            f"job {job_id} was changed in a mode without changes": self.modes[job_id] in MAY_CHANGE,
            f"job {job_id} was changed during a pause": not self.is_paused,
        }
        return [what for what, holds in rules.items() if not holds]

    def broken_by_mail(self, key: str, *, was_sent_before: bool) -> list[str]:
        """No mail twice, and none during a pause."""
        repeated = key in self.mailed
        self.mailed.add(key)
        paused = self.is_paused and not was_sent_before
        return [f"{key} was mailed twice"] * repeated + [f"{key} was mailed during a pause"] * paused
