"""What worked before for the same cause, and what the model said about it. Pure.

Experience corrects a retry: one that kept failing is not repeated, a change that healed the cause twice is preferred.
It never turns what the rules are sure of, such as a missing right, into a retry.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from shared.domain import Category, Change, DecisionKind, Diagnosis

SURE = 0.6
"""From this confidence on the rules decide alone where `AI_MODE` is `unsure`."""

REMEMBERED = 50

ENOUGH = 2
"""So often a fix must have worked, or failed, before it counts."""


@dataclass(frozen=True, slots=True)
class Fix:
    """One way of retrying a cause, with how it went. `changes` are words; none = the run was repaired as it was."""

    decision: DecisionKind
    changes: tuple[str, ...]
    worked: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Experience:
    """All that is known of one fingerprint in one workspace.

    `answer` is the model's latest, None where it was void. `counted` names the latest retries that are in `fixes`.
    `asking_until`: somebody is asking the model now; later than that, whoever did so has died. `failed_questions`: so
    many in a row, up to the latest, had no answer, because the model could not be reached or refused.
    """

    workspace: str
    fingerprint: str
    fixes: tuple[Fix, ...] = ()
    answer: Diagnosis | None = None
    asked_at: datetime | None = None
    asking_until: datetime | None = None
    failed_questions: int = 0
    counted: tuple[str, ...] = ()
    write_guid: str = ""
    etag: str = ""

    def was_asked_within(self, window: timedelta, now: datetime) -> bool:
        """Whether the model was asked about this cause so recently that it is not asked again."""
        return self.asked_at is not None and now - self.asked_at < window

    def is_being_asked(self, now: datetime) -> bool:
        """Whether somebody has the question to the model in hand, so that it is not asked a second time."""
        return self.asking_until is not None and now < self.asking_until


@dataclass(frozen=True, slots=True)
class TokenMeter:
    """Tokens that the model was asked with on one day (UTC, `2026-11-24`), for the daily cap."""

    day: str
    used: int = 0
    write_guid: str = ""
    etag: str = ""


def note_answer(known: Experience, answer: Diagnosis | None, now: datetime) -> Experience:
    return replace(known, answer=answer, asked_at=now, asking_until=None, failed_questions=0)


def note_failed_question(known: Experience, claim: datetime | None, now: datetime) -> Experience:
    """End the question that was taken until `claim`; one that another ended or took over meanwhile is left alone."""
    if known.asking_until is None or known.asking_until != claim:
        return known
    return replace(known, answer=None, asked_at=now, asking_until=None, failed_questions=known.failed_questions + 1)


def note_result(
    known: Experience, key: str, decision: DecisionKind, changes: tuple[str, ...], *, worked: bool
) -> Experience:
    """Add how the retry of that name went; saying so again changes nothing."""
    if key in known.counted:
        return known
    before = next((fix for fix in known.fixes if (fix.decision, fix.changes) == (decision, changes)), None)
    fix = before or Fix(decision, changes)
    fix = replace(fix, worked=fix.worked + worked, failed=fix.failed + (not worked))
    others = (other for other in known.fixes if other is not before)
    return replace(known, fixes=(*others, fix), counted=(*known.counted, key)[-REMEMBERED:])


def weigh(diagnosis: Diagnosis, known: Experience) -> Diagnosis:
    """The diagnosis in the light of what happened before."""
    may_retry = diagnosis.recommended.is_retry or (
        diagnosis.recommended is DecisionKind.ESCALATE_EMAIL and diagnosis.confidence < SURE
    )
    if not may_retry:
        return diagnosis
    proven = max((f for f in known.fixes if f.worked >= ENOUGH and f.worked > f.failed), key=worth, default=None)
    if proven:
        return prefer(diagnosis, proven)
    words = tuple(change.word for change in diagnosis.changes)
    tried = next((f for f in known.fixes if (f.decision, f.changes) == (diagnosis.recommended, words)), None)
    if tried and tried.failed >= ENOUGH and not tried.worked:
        return replace(
            diagnosis,
            recommended=DecisionKind.ESCALATE_EMAIL,
            reason=f"{diagnosis.reason} The same retry failed {tried.failed} times before.",
            rules=(*diagnosis.rules, "history.failed_before"),
            source="history",
        )
    return diagnosis


def worth(fix: Fix) -> tuple[float, int]:
    return fix.worked / (fix.worked + fix.failed), fix.worked


def prefer(diagnosis: Diagnosis, fix: Fix) -> Diagnosis:
    words = tuple(change.word for change in diagnosis.changes)
    if (diagnosis.recommended, words) == (fix.decision, fix.changes):
        return diagnosis
    what = f"with {', '.join(fix.changes)} " if fix.changes else ""
    return replace(
        diagnosis,
        category=diagnosis.category if diagnosis.recommended.is_retry else Category.UNKNOWN,
        recommended=fix.decision,
        changes=tuple(Change.from_word(word) for word in fix.changes),
        reason=f"{diagnosis.reason} A retry {what}healed the same cause {fix.worked} times before.",
        confidence=max(diagnosis.confidence, SURE),
        rules=(*diagnosis.rules, "history.worked_before"),
        source="history",
    )
