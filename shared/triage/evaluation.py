"""How good decisions are on labelled cases, and whether one strategy is better than another. Pure arithmetic.

The cases' labels never reach what is being measured: `Case.shown` holds only what an engine may see.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from shared.domain import DecisionKind, Symptoms
from shared.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Case:
    """One failed run with the decision that people gave it.

    `accept` are further decisions that count as right; `change` is the word (`worker_memory_up`, …) of the change that
    matters most, for RETRY_WITH_PARAMS.
    """

    id: str
    error_text: str
    termination_code: str | None
    termination_type: str | None
    task_type: str | None
    label: DecisionKind
    accept: frozenset[DecisionKind] = frozenset()
    change: str | None = None
    text_origin: str = ""
    area: str = ""

    @property
    def right(self) -> frozenset[DecisionKind]:
        """All decisions that count as right."""
        return self.accept | {self.label}

    @property
    def shown(self) -> Symptoms:
        """What an engine may see of the case."""
        return Symptoms(
            error=self.error_text,
            termination_code=self.termination_code,
            termination_type=self.termination_type,
            task_type=self.task_type,
        )

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Case":
        """The case in one line of a case file; further fields are passed over. Raises ConfigurationError."""
        try:
            return cls(
                id=str(row["id"]),
                error_text=str(row["error_text"]),
                termination_code=row.get("termination_code"),
                termination_type=row.get("termination_type"),
                task_type=row.get("task_type"),
                label=DecisionKind(row["label"]),
                accept=frozenset(DecisionKind(label) for label in row.get("accept") or ()),
                change=row.get("change"),
                text_origin=str(row.get("text_origin") or ""),
                area=str(row.get("area") or ""),
            )
        except (KeyError, ValueError) as error:
            raise ConfigurationError(
                f"case {row.get('id', '?')}: {error!r}; a case needs id, error_text and label"
            ) from error


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a strategy decided about one case. `milliseconds` is the time it took, `tokens` what the model used."""

    case: Case
    decision: DecisionKind
    changes: tuple[str, ...] = ()
    model_used: bool = False
    milliseconds: float = 0.0
    tokens: int = 0

    @property
    def is_right(self) -> bool:
        return self.decision in self.case.right

    @property
    def is_wasted_retry(self) -> bool:
        """A retry where neither label nor `accept` has one."""
        return self.decision.is_retry and not any(right.is_retry for right in self.case.right)

    @property
    def is_harmful(self) -> bool:
        """An automatic retry where SKIP is the only right answer: somebody is already at it."""
        return self.decision.is_retry and self.case.right == {DecisionKind.SKIP}


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """How well one label is met: shares 0..1; `count` is the number of cases that have it."""

    precision: float
    recall: float
    f1: float
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """All figures over a list of outcomes. Shares are 0..1; a share of nothing is 0.

    `change_agreement` is None where no case has label and decision RETRY_WITH_PARAMS.
    """

    cases: int
    accuracy: float
    strict_accuracy: float
    macro_f1: float
    labels: Mapping[DecisionKind, LabelFigures]
    confusion: Mapping[DecisionKind, Mapping[DecisionKind, int]]
    wasted_retries: float
    harmful: int
    change_agreement: float | None
    decided_without_model: float
    median_ms: float
    tokens_median: float


def report(outcomes: Sequence[Outcome]) -> Report:
    """All figures over `outcomes`."""
    labels = label_figures(outcomes)
    return Report(
        cases=len(outcomes),
        accuracy=_share(outcome.is_right for outcome in outcomes),
        strict_accuracy=_share(outcome.decision is outcome.case.label for outcome in outcomes),
        macro_f1=macro_f1(labels),
        labels=labels,
        confusion=confusion(outcomes),
        wasted_retries=_share(outcome.is_wasted_retry for outcome in outcomes),
        harmful=sum(outcome.is_harmful for outcome in outcomes),
        change_agreement=change_agreement(outcomes),
        decided_without_model=_share(not outcome.model_used for outcome in outcomes),
        median_ms=median([outcome.milliseconds for outcome in outcomes]) if outcomes else 0.0,
        tokens_median=median([outcome.tokens for outcome in outcomes]) if outcomes else 0.0,
    )


def label_figures(outcomes: Sequence[Outcome]) -> dict[DecisionKind, LabelFigures]:
    """Precision, recall and F1 of each label that occurs; an accepted decision counts as a hit for the label."""
    hits: Counter[DecisionKind] = Counter()
    labelled: Counter[DecisionKind] = Counter()
    decided: Counter[DecisionKind] = Counter()
    for outcome in outcomes:
        counted = outcome.case.label if outcome.is_right else outcome.decision
        labelled[outcome.case.label] += 1
        decided[counted] += 1
        hits[outcome.case.label] += outcome.is_right
    return {label: _figures(hits[label], decided[label], labelled[label]) for label in DecisionKind if labelled[label]}


def macro_f1(labels: Mapping[DecisionKind, LabelFigures]) -> float:
    """The mean of the labels' F1: a rare label weighs as much as a common one."""
    return sum(figures.f1 for figures in labels.values()) / len(labels) if labels else 0.0


def confusion(outcomes: Iterable[Outcome]) -> dict[DecisionKind, dict[DecisionKind, int]]:
    """How often each label (outer key) was decided as each decision (inner key); `accept` plays no part."""
    counts = Counter((outcome.case.label, outcome.decision) for outcome in outcomes)
    return {label: {decision: counts[label, decision] for decision in DecisionKind} for label in DecisionKind}


def change_agreement(outcomes: Iterable[Outcome]) -> float | None:
    """Share of cases with label and decision RETRY_WITH_PARAMS whose change is among the changes decided."""
    relevant = [
        outcome
        for outcome in outcomes
        if outcome.case.label is outcome.decision is DecisionKind.RETRY_WITH_PARAMS and outcome.case.change
    ]
    return _share(outcome.case.change in outcome.changes for outcome in relevant) if relevant else None


def mcnemar(first: Sequence[Outcome], second: Sequence[Outcome]) -> float:
    """Probability (exact McNemar test, two-sided) of a difference at least this large if both were equally good.

    Both lists hold the same cases in the same order, else ValueError. Source: McNemar 1947, exact binomial form.
    """
    if [outcome.case.id for outcome in first] != [outcome.case.id for outcome in second]:
        raise ValueError("the two strategies must be compared over the same cases in the same order")
    pairs = list(zip(first, second, strict=True))
    only_first = sum(one.is_right and not other.is_right for one, other in pairs)
    only_second = sum(other.is_right and not one.is_right for one, other in pairs)
    differing = only_first + only_second
    tail = sum(math.comb(differing, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / float(2**differing))


def _figures(hits: int, decided: int, labelled: int) -> LabelFigures:
    precision = hits / decided if decided else 0.0
    recall = hits / labelled if labelled else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return LabelFigures(precision=precision, recall=recall, f1=f1, count=labelled)


def _share(truths: Iterable[bool]) -> float:
    values = list(truths)
    return sum(values) / len(values) if values else 0.0
