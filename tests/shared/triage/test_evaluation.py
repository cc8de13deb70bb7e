"""The figures of an evaluation, checked by hand-made outcomes."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain import DecisionKind
from shared.errors import ConfigurationError
from shared.triage.evaluation import (
    Case,
    Outcome,
    change_agreement,
    confusion,
    label_figures,
    macro_f1,
    mcnemar,
    report,
)

RETRY, CHANGED = DecisionKind.RETRY, DecisionKind.RETRY_WITH_PARAMS
ESCALATE, SKIP = DecisionKind.ESCALATE_EMAIL, DecisionKind.SKIP


def case(label: DecisionKind, *accept: DecisionKind, name: str = "a", change: str | None = None) -> Case:
    return Case(name, "text", None, None, None, label, frozenset(accept), change)


def outcome(label: DecisionKind, decision: DecisionKind, *accept: DecisionKind, name: str = "a") -> Outcome:
    return Outcome(case(label, *accept, name=name), decision)


@pytest.mark.parametrize(
    ("label", "accept", "decision", "right", "wasted", "harmful"),
    [
        (ESCALATE, (), ESCALATE, True, False, False),
        (ESCALATE, (RETRY,), RETRY, True, False, False),
        (ESCALATE, (), RETRY, False, True, False),
        (ESCALATE, (SKIP,), CHANGED, False, True, False),
        (SKIP, (), RETRY, False, True, True),
        (SKIP, (), CHANGED, False, True, True),
        (SKIP, (RETRY,), RETRY, True, False, False),
        (SKIP, (ESCALATE,), RETRY, False, True, False),
        (SKIP, (), ESCALATE, False, False, False),
        (RETRY, (), CHANGED, False, False, False),
        (RETRY, (), SKIP, False, False, False),
    ],
)
def test_what_one_outcome_counts_as(
    *,
    label: DecisionKind,
    accept: tuple[DecisionKind, ...],
    decision: DecisionKind,
    right: bool,
    wasted: bool,
    harmful: bool,
) -> None:
    result = outcome(label, decision, *accept)
    assert (result.is_right, result.is_wasted_retry, result.is_harmful) == (right, wasted, harmful)


def test_figures_by_hand() -> None:
    outcomes = [
        outcome(RETRY, RETRY),
        outcome(RETRY, ESCALATE, ESCALATE),
        outcome(RETRY, SKIP),
        outcome(SKIP, RETRY),
        outcome(ESCALATE, ESCALATE),
    ]
    result = report(outcomes)
    assert result.cases == 5
    assert result.accuracy == pytest.approx(3 / 5)
    assert result.strict_accuracy == pytest.approx(2 / 5)
    assert result.wasted_retries == pytest.approx(1 / 5)
    assert result.harmful == 1
    assert result.change_agreement is None
    assert result.confusion[RETRY] == {RETRY: 1, CHANGED: 0, ESCALATE: 1, SKIP: 1}
    # RETRY: two hits (one by accept) of three labelled, three counted as RETRY. SKIP: none. ESCALATE: one of one.
    assert result.labels[RETRY].precision == pytest.approx(2 / 3)
    assert result.labels[RETRY].recall == pytest.approx(2 / 3)
    assert result.labels[SKIP].f1 == 0
    assert result.labels[ESCALATE].f1 == 1
    assert CHANGED not in result.labels
    assert result.macro_f1 == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_no_cases_give_zeros_and_no_division() -> None:
    result = report([])
    assert (result.cases, result.accuracy, result.macro_f1, result.median_ms) == (0, 0.0, 0.0, 0.0)


def test_time_tokens_and_model_use() -> None:
    base = case(RETRY)
    outcomes = [
        Outcome(base, RETRY, milliseconds=1.0, tokens=0),
        Outcome(base, RETRY, milliseconds=9.0, tokens=800, model_used=True),
        Outcome(base, RETRY, milliseconds=2.0, tokens=0),
    ]
    result = report(outcomes)
    assert result.decided_without_model == pytest.approx(2 / 3)
    assert (result.median_ms, result.tokens_median) == (2.0, 0)


def test_change_agreement_only_where_label_and_decision_call_for_a_change() -> None:
    labelled = case(CHANGED, change="more_disk")
    outcomes = [
        Outcome(labelled, CHANGED, ("more_disk", "more_workers")),
        Outcome(labelled, CHANGED, ("worker_memory_up",)),
        Outcome(labelled, ESCALATE),
        Outcome(case(RETRY, CHANGED), CHANGED, ("timeout_up",)),
    ]
    assert change_agreement(outcomes) == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("only_first", "only_second", "both", "expected"),
    [(0, 0, 5, 1.0), (1, 0, 5, 1.0), (5, 0, 3, 0.0625), (6, 1, 0, 0.125), (3, 3, 2, 1.0), (10, 0, 0, 2 / 1024)],
)
def test_mcnemar_exact(only_first: int, only_second: int, both: int, expected: float) -> None:
    rights = [(RETRY, SKIP)] * only_first + [(SKIP, RETRY)] * only_second + [(RETRY, RETRY)] * both
    first = [outcome(RETRY, one, name=str(index)) for index, (one, _) in enumerate(rights)]
    second = [outcome(RETRY, other, name=str(index)) for index, (_, other) in enumerate(rights)]
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(second, first) == pytest.approx(expected)


def test_mcnemar_refuses_other_cases() -> None:
    with pytest.raises(ValueError, match="same cases"):
        mcnemar([outcome(RETRY, RETRY, name="a")], [outcome(RETRY, RETRY, name="b")])


def test_a_case_is_read_with_further_fields() -> None:
    row = {"id": "x", "error_text": "boom", "label": "SKIP", "accept": ["RETRY"], "rationale": "r", "area": "dbt"}
    read = Case.from_json(row)
    assert read.right == {SKIP, RETRY}
    assert (read.area, read.termination_code) == ("dbt", None)
    assert read.shown.error == "boom"


def test_an_engine_never_sees_label_id_or_area() -> None:
    read = Case("the-answer", "boom", "CANCELED", None, "sql", SKIP, area="pipeline")
    assert "the-answer" not in repr(read.shown)
    assert "SKIP" not in repr(read.shown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "x", "error_text": ""}', "case x"),
        ('{"id": "x", "error_text": "", "label": "MAYBE"}', "MAYBE"),
    ],
)
def test_bad_cases_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Case.from_json(json.loads(text))


_DECISIONS = st.sampled_from(list(DecisionKind))


@given(st.lists(st.tuples(_DECISIONS, st.frozensets(_DECISIONS, max_size=2), _DECISIONS), min_size=1, max_size=40))
def test_figures_hold_together(rows: list[tuple[DecisionKind, frozenset[DecisionKind], DecisionKind]]) -> None:
    outcomes = [outcome(label, decision, *accept, name=str(n)) for n, (label, accept, decision) in enumerate(rows)]
    result = report(outcomes)
    assert 0 <= result.strict_accuracy <= result.accuracy <= 1
    assert 0 <= result.macro_f1 <= 1
    assert result.harmful / len(rows) <= result.wasted_retries + 1e-9
    assert sum(sum(row.values()) for row in confusion(outcomes).values()) == len(rows)
    assert math.isclose(macro_f1(label_figures(outcomes)), result.macro_f1)
    assert mcnemar(outcomes, outcomes) == 1.0
    if result.accuracy == 1:
        assert result.macro_f1 == pytest.approx(1)
