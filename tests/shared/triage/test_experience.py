"""What worked before takes part in a diagnosis, within limits."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from shared.domain import Change, ChangeKind, DecisionKind, Diagnosis
from shared.triage.experience import Experience, note_answer, note_failed_question, note_result, weigh
from tests.builders import build_diagnosis

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
RETRY, CHANGED, ESCALATE, SKIP = (
    DecisionKind.RETRY,
    DecisionKind.RETRY_WITH_PARAMS,
    DecisionKind.ESCALATE_EMAIL,
    DecisionKind.SKIP,
)
MEMORY = ("worker_memory_up",)


def known(*results: tuple[DecisionKind, tuple[str, ...], bool]) -> Experience:
    experience = Experience("w", "f")
    for number, (decision, changes, worked) in enumerate(results):
        experience = note_result(experience, f"{number}:1", decision, changes, worked=worked)
        assert note_result(experience, f"{number}:1", decision, changes, worked=worked) == experience
    return experience


def diagnosis(recommended: DecisionKind, *, confidence: float = 0.8, changes: tuple[Change, ...] = ()) -> Diagnosis:
    return replace(build_diagnosis(), recommended=recommended, confidence=confidence, changes=changes, rules=("r",))


@pytest.mark.parametrize(
    ("before", "results", "want"),
    [
        (diagnosis(RETRY), [], RETRY),
        (diagnosis(RETRY), [(RETRY, (), False)], RETRY),
        (diagnosis(RETRY), [(RETRY, (), False)] * 2, ESCALATE),
        (diagnosis(RETRY), [(RETRY, (), False), (RETRY, (), True), (RETRY, (), False)], RETRY),
        (diagnosis(RETRY), [(CHANGED, MEMORY, True)], RETRY),
        (diagnosis(RETRY), [(CHANGED, MEMORY, True)] * 2, CHANGED),
        (diagnosis(RETRY), [(CHANGED, MEMORY, True)] * 2 + [(CHANGED, MEMORY, False)] * 2, RETRY),
        (diagnosis(ESCALATE, confidence=0.3), [(RETRY, (), True)] * 2, RETRY),
        (diagnosis(ESCALATE, confidence=0.9), [(RETRY, (), True)] * 9, ESCALATE),
        (diagnosis(SKIP), [(RETRY, (), True)] * 9, SKIP),
    ],
)
def test_experience_corrects_a_retry_and_nothing_that_is_sure(
    before: Diagnosis, results: list[tuple[DecisionKind, tuple[str, ...], bool]], want: DecisionKind
) -> None:
    after = weigh(before, known(*results))
    assert after.recommended is want
    assert (after == before) is (after.recommended is before.recommended)
    if after != before:
        assert after.rules[-1].startswith("history.")
        assert (after.recommended is CHANGED) is bool(after.changes)


def test_the_best_of_several_fixes_is_preferred() -> None:
    results = [(RETRY, (), True)] * 2 + [(RETRY, (), False)] + [(CHANGED, MEMORY, True)] * 2
    after = weigh(diagnosis(RETRY), known(*results))
    assert after.changes == (Change(ChangeKind.WORKER_MEMORY_UP),)


def test_the_model_is_asked_once_per_window_even_where_its_answer_was_void() -> None:
    window = timedelta(hours=1)
    experience = Experience("w", "f")
    assert not experience.was_asked_within(window, NOW)
    experience = note_answer(experience, None, NOW)
    assert experience.was_asked_within(window, NOW + timedelta(minutes=59))
    assert not experience.was_asked_within(window, NOW + window)


CLAIM = NOW + timedelta(seconds=75)


@pytest.mark.parametrize(
    ("before", "counts"),
    [
        (Experience("w", "f", asking_until=CLAIM), True),
        (Experience("w", "f", asking_until=CLAIM, failed_questions=3), True),
        (note_answer(Experience("w", "f", asking_until=CLAIM), build_diagnosis(), NOW), False),
        (Experience("w", "f", answer=build_diagnosis(), asking_until=None), False),
        (Experience("w", "f", asking_until=CLAIM + timedelta(seconds=75)), False),
    ],
    ids=["its own", "its own again", "answered by another", "ended by another", "taken by another"],
)
def test_a_failure_ends_its_own_question_only(before: Experience, counts: bool) -> None:
    later = NOW + timedelta(minutes=5)
    after = note_failed_question(before, CLAIM, later)

    if counts:
        assert after == replace(before, asked_at=later, asking_until=None, failed_questions=before.failed_questions + 1)
    else:
        assert after == before
