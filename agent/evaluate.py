"""`agent evaluate`: how good the decisions are on labelled cases, and whether one way of deciding beats another."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from agent.output import ExitCode, messages, print_json, print_table, reported_errors
from shared import bootstrap
from shared.domain import Category, DecisionKind
from shared.error_decision_engine import Analysis, DecisionDict
from shared.errors import ConfigurationError
from shared.triage.evaluation import Case, Outcome, Report, mcnemar, report

CHARACTERS_PER_TOKEN = 4
"""A rough rule for English text; what a model really counts depends on its tokenizer."""

SHOWN_FIELDS = ("termination_code", "termination_type", "task_type")
"""What an engine may see of a line besides `error_text`. Everything else there could give the answer away."""

AiMode = Literal["never", "unsure", "always"]
type Decide = Callable[[str, Mapping[str, Any]], Analysis]


class Strategy(StrEnum):
    """Ways of deciding that can be compared."""

    RULES = "rules"
    CODES = "codes"
    DEFAULT = "default"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Line:
    """One failure to be decided. `case` None = it has no label, so it is decided but not measured."""

    id: str
    text: str
    context: Mapping[str, str]
    case: Case | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was decided about a line, and how long that took."""

    line: Line
    analysis: Analysis
    milliseconds: float

    @property
    def decision(self) -> DecisionKind:
        return DecisionKind(self.analysis["decision"]["decision"])

    @property
    def rule(self) -> str:
        return self.analysis["decision"]["rules"][0]

    @property
    def tokens(self) -> int:
        """An estimate of what the excerpt costs a model, asked or not."""
        return round(len(self.analysis["excerpt"]) / CHARACTERS_PER_TOKEN)


def evaluate(
    file: Annotated[Path, typer.Argument(help="JSON Lines, one failure each.")],
    ai_mode: Annotated[AiMode, typer.Option(help="When the model is asked; needs AZURE_OPENAI_ENDPOINT.")] = "never",
    compare: Annotated[
        tuple[Strategy, Strategy] | None,
        typer.Option(
            metavar="FIRST SECOND",
            help="Two of: rules, codes (the text is not read), default (always escalate), model (always asked); "
            "for example: --compare rules codes.",
        ),
    ] = None,
    at_least: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit code 1 where the accuracy is below this share.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure the decisions on labelled cases. Needs no settings: by default rules decide alone.

    A line holds error_text, termination_code, termination_type, task_type (all that an engine sees), and label, accept
    (labels that are right too) and change (the word of the change that matters most). Other fields are passed over; a
    line without a label is decided but not measured. `examples/cases.jsonl` shows the form.

    accuracy: share of cases decided as label or accept · strict accuracy: as label · macro-F1: mean over the labels ·
    wasted_retries: share of cases retried where neither label nor accept is a retry · harmful: number of cases retried
    where SKIP is the only right answer · change agreement: share of the cases with label and decision
    RETRY_WITH_PARAMS whose change is among those decided · tokens: characters of the excerpt / 4, an estimate.
    """
    with reported_errors(as_json=as_json):
        lines = read_lines(file)
        decides = [strategy(name) for name in compare] if compare else [engine(ai_mode)]
        answers = [answers_of(decide, lines) for decide in decides]
    measured = report(outcomes_of(answers[0]))
    if as_json:
        comparison = {"comparison": comparison_json(compare, answers)} if compare else {}
        print_json({**report_json(measured, answers[0]), **comparison})
    else:
        show(measured, answers[0])
        if compare:
            show_comparison(comparison_json(compare, answers))
    if at_least is not None and measured.accuracy < at_least:
        messages.print(f"accuracy {measured.accuracy:.3f} is below the expected {at_least}")
        raise typer.Exit(ExitCode.EXPECTATION_FAILED)


# --- cases -----------------------------------------------------------------------------------------------------------


def read_lines(file: Path) -> list[Line]:
    """The lines of a case file, blank ones left out. Raises ConfigurationError that names a line that is wrong."""
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from error
    # Not splitlines(): an error text may hold other line separators (U+2028) unescaped.
    numbered = enumerate(text.split("\n"), start=1)
    lines = [line_of(content, number) for number, content in numbered if content.strip()]
    if not lines:
        raise ConfigurationError(f"{file} holds no case")
    return lines


def line_of(content: str, number: int) -> Line:
    """One line of a case file. Raises ConfigurationError that names it."""
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"line {number} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("error_text"), str):
        raise ConfigurationError(f"line {number}: a case is a JSON object with a text as error_text")
    row = {"id": f"line {number}"} | row
    try:
        case = None if row.get("label") is None else Case.from_json(row)
    except (ConfigurationError, TypeError) as error:
        raise ConfigurationError(f"line {number}: {error}") from error
    context = {name: str(row[name]) for name in SHOWN_FIELDS if row.get(name) is not None}
    return Line(id=str(row["id"]), text=row["error_text"], context=context, case=case)


# --- deciding --------------------------------------------------------------------------------------------------------


def engine(ai_mode: AiMode) -> Decide:
    """The engine as the app uses it, each failure a fresh one. Raises ConfigurationError where the model is not set."""
    settings = bootstrap.current_settings(Path(".env"))
    if ai_mode == "never":
        settings = settings.model_copy(update={"azure_openai_endpoint": ""})
    else:
        settings.require(("azure_openai_endpoint",), ("azure_openai_deployment",))
    return bootstrap.engine(settings.model_copy(update={"ai_mode": ai_mode})).analyze


def strategy(name: Strategy) -> Decide:
    """How a strategy decides."""
    match name:
        case Strategy.RULES:
            return engine("never")
        case Strategy.MODEL:
            return engine("always")
        case Strategy.CODES:
            by_rules = engine("never")
            return lambda _, context: by_rules("", context)
        case Strategy.DEFAULT:
            return always_escalate


def always_escalate(_: str, __: Mapping[str, Any]) -> Analysis:
    """What a team has without an agent: every failure goes to people."""
    decision = DecisionDict(
        decision=DecisionKind.ESCALATE_EMAIL,
        recommended=DecisionKind.ESCALATE_EMAIL,
        reason="Every failure is escalated.",
        suggested_params=None,
        category=Category.UNKNOWN,
        confidence=0.0,
        rules=["always_escalate"],
        fingerprint="",
    )
    return Analysis(decision=decision, changes=[], excerpt="", model_used=False)


def answers_of(decide: Decide, lines: Sequence[Line]) -> list[Answer]:
    """Decide about every line, with a progress bar. What is loaded on first use is not part of any line's time."""
    decide("", {})
    shown = track(lines, "Deciding", console=messages, transient=True)
    return [timed(decide, line) for line in shown]


def timed(decide: Decide, line: Line) -> Answer:
    began = time.perf_counter()
    analysis = decide(line.text, line.context)
    return Answer(line, analysis, (time.perf_counter() - began) * 1000)


def outcomes_of(answers: Sequence[Answer]) -> list[Outcome]:
    """The answers to lines that have a label."""
    return [
        Outcome(
            case=answer.line.case,
            decision=answer.decision,
            changes=tuple(answer.analysis["changes"]),
            model_used=answer.analysis["model_used"],
            milliseconds=answer.milliseconds,
            tokens=answer.tokens,
        )
        for answer in answers
        if answer.line.case
    ]


# --- what is said about it -------------------------------------------------------------------------------------------


def report_json(measured: Report, answers: Sequence[Answer]) -> dict[str, Any]:
    """The report of DESIGN §7. Figures that need labels are null where no line has one; the others are of all lines."""
    figures = {
        "accuracy": measured.accuracy,
        "strict_accuracy": measured.strict_accuracy,
        "macro_f1": measured.macro_f1,
        "wasted_retries": measured.wasted_retries,
        "harmful": measured.harmful,
        "change_agreement": measured.change_agreement,
    }
    return {
        "cases": len(answers),
        **(figures if measured.cases else dict.fromkeys(figures)),
        "decided_without_model": sum(not answer.analysis["model_used"] for answer in answers) / len(answers),
        "median_ms": percentile([answer.milliseconds for answer in answers], 50),
        "tokens_median": percentile([answer.tokens for answer in answers], 50),
        "results": [result_json(answer) for answer in answers],
    }


def result_json(answer: Answer) -> dict[str, Any]:
    """One line's result. `change` is the first change that was decided, `rule` the first rule that fired."""
    analysis = answer.analysis
    return {
        "id": answer.line.id,
        "decision": str(answer.decision),
        "change": analysis["changes"][0] if analysis["changes"] else None,
        "category": str(analysis["decision"]["category"]),
        "rule": answer.rule,
        "fingerprint": analysis["decision"]["fingerprint"],
        "excerpt": analysis["excerpt"],
        "ms": round(answer.milliseconds, 3),
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which that share of the values lies, interpolated."""
    return round(quantiles(values, n=100, method="inclusive")[percent - 1], 3)


def show(measured: Report, answers: Sequence[Answer]) -> None:
    """The report for people. Without labels: the decisions alone."""
    if measured.cases:
        show_figures(measured, outcomes_of(answers))
        show_labels(measured)
        show_confusion(measured)
    show_cost(answers)
    if measured.cases:
        show_cases([answer for answer in answers if answer.line.case and not is_right(answer)], "wrong")
    else:
        show_cases(answers, "decided; none has a label, so nothing is measured")


def is_right(answer: Answer) -> bool:
    return answer.line.case is not None and answer.decision in answer.line.case.right


def show_figures(measured: Report, outcomes: Sequence[Outcome]) -> None:
    """All cases, and those of each origin of the texts where the file names it."""
    table = Table(
        "Cases",
        *("Number", "Accuracy", "Strict", "Macro-F1", "Wasted retries", "Harmful", "Change agreement"),
    )
    for name, figures in [("all", measured), *by_origin(outcomes)]:
        table.add_row(
            escape(name),
            str(figures.cases),
            *(f"{value:.3f}" for value in (figures.accuracy, figures.strict_accuracy, figures.macro_f1)),
            f"{figures.wasted_retries:.1%}",
            str(figures.harmful),
            "-" if figures.change_agreement is None else f"{figures.change_agreement:.3f}",
        )
    print_table(table)


def by_origin(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Report]]:
    """The figures of each origin of the texts, in the order of their names."""

    def origin(outcome: Outcome) -> str:
        return outcome.case.text_origin

    for name, group in groupby(sorted(outcomes, key=origin), origin):
        if name:
            yield name, report(list(group))


def show_labels(measured: Report) -> None:
    table = Table("Label", "Cases", "Precision", "Recall", "F1")
    for label, figures in measured.labels.items():
        shares = (f"{value:.3f}" for value in (figures.precision, figures.recall, figures.f1))
        table.add_row(label, str(figures.count), *shares)
    print_table(table)


def show_confusion(measured: Report) -> None:
    table = Table("Label \\ decided", *DecisionKind)
    for label in measured.labels:
        table.add_row(label, *(str(measured.confusion[label][decision]) for decision in DecisionKind))
    print_table(table)


def show_cost(answers: Sequence[Answer]) -> None:
    times, tokens = [answer.milliseconds for answer in answers], [answer.tokens for answer in answers]
    without_model = sum(not answer.analysis["model_used"] for answer in answers)
    table = Table("Per case", "Median", "95 %")
    table.add_row("Time (ms)", f"{percentile(times, 50):.2f}", f"{percentile(times, 95):.2f}")
    table.add_row("Excerpt (tokens, estimated)", f"{percentile(tokens, 50):.0f}", f"{percentile(tokens, 95):.0f}")
    table.caption = f"{without_model / len(answers):.1%} decided without the model"
    print_table(table)


def show_cases(answers: Sequence[Answer], title: str) -> None:
    """Cases with the rule that fired."""
    table = Table("Case", "Label", "Decided", "Rule", "Category", title=f"{len(answers)} {title}", title_justify="left")
    for answer in answers:
        case = answer.line.case
        table.add_row(
            printable(answer.line.id),
            " or ".join([case.label, *sorted(case.accept - {case.label})]) if case else "",
            answer.decision,
            escape(answer.rule),
            answer.analysis["decision"]["category"],
        )
    print_table(table)


def printable(text: str) -> str:
    """Text from a file that a terminal takes: no markup, no lone surrogates."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))


# --- two strategies --------------------------------------------------------------------------------------------------


def comparison_json(names: tuple[Strategy, Strategy], answers: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """Both accuracies, the probability of such a difference by chance, and the cases that were decided differently.

    `p_value` is that of the exact McNemar test, two-sided; it and the accuracies are null where no line has a label.
    """
    first, second = map(outcomes_of, answers)
    figures = [report(first), report(second)]
    return {
        "strategies": [str(name) for name in names],
        "accuracy": [each.accuracy if each.cases else None for each in figures],
        "p_value": mcnemar(first, second) if first else None,
        "differ": [
            {
                "id": one.line.id,
                "label": str(one.line.case.label) if one.line.case else None,
                "decisions": [str(one.decision), str(other.decision)],
                "rules": [one.rule, other.rule],
                "right": [is_right(one), is_right(other)] if one.line.case else None,
            }
            for one, other in zip(*answers, strict=True)
            if one.decision is not other.decision
        ],
    }


def show_comparison(comparison: Mapping[str, Any]) -> None:
    names = comparison["strategies"]
    table = Table(
        "Case", "Label", *names, title=f"{len(comparison['differ'])} decided differently", title_justify="left"
    )
    for case in comparison["differ"]:
        marks = [""] * 2 if case["right"] is None else [" ✓" if right else " ✗" for right in case["right"]]
        decided = (decision + mark for decision, mark in zip(case["decisions"], marks, strict=True))
        table.add_row(printable(case["id"]), case["label"] or "", *decided)
    if comparison["p_value"] is not None:
        accuracies = " · ".join(
            f"{name} {accuracy:.3f}" for name, accuracy in zip(names, comparison["accuracy"], strict=True)
        )
        table.caption = f"Accuracy: {accuracies} · McNemar exact p = {comparison['p_value']:.4g}"
    print_table(table)
