"""`agent evaluate`, run as a command over small case files; no test depends on what a rule makes of a text."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from agent.cli import app
from agent.evaluate import always_escalate, answers_of, percentile, read_lines
from local.azure_openai import create_openai_app, parse_scenario
from local.http_standin import EffectLog, running
from local.stack import ROOT
from shared.domain import DecisionKind
from shared.error_decision_engine import Analysis
from shared.settings import Settings, environment_name

EXAMPLES = ROOT / "examples" / "cases.jsonl"

REPORT_KEYS = {
    "cases",
    "accuracy",
    "strict_accuracy",
    "macro_f1",
    "wasted_retries",
    "harmful",
    "change_agreement",
    "decided_without_model",
    "median_ms",
    "tokens_median",
    "results",
}
RESULT_KEYS = {"id", "decision", "change", "category", "rule", "fingerprint", "excerpt", "ms"}
MEASURES = ("accuracy", "strict_accuracy", "macro_f1", "wasted_retries", "harmful", "change_agreement")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_name(name), raising=False)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Four cases that the termination code alone decides: by codes 3 of 4 are right, by `default` 2."""
    return write(
        tmp_path,
        case("cancelled", "SKIP", termination_code="USER_CANCELED"),
        case("crowded", "RETRY", termination_code="CLUSTER_REQUEST_LIMIT_EXCEEDED", text_origin="local-run"),
        case("forbidden", "ESCALATE_EMAIL", termination_code="UNAUTHORIZED_ERROR", text_origin="local-run"),
        case("code", "RETRY", accept=["ESCALATE_EMAIL"], termination_code="RUN_EXECUTION_ERROR"),
    )


def case(name: str, label: str | None, text: str = "it failed", **fields: Any) -> dict[str, Any]:
    return {"id": name, "error_text": text, "label": label, **fields}


def write(folder: Path, *rows: Mapping[str, Any] | str) -> Path:
    file = folder / "cases.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def evaluate(file: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", str(file), *options])


def evaluate_json(file: Path, *options: str) -> dict[str, Any]:
    """The one object on stdout."""
    result = evaluate(file, "--json", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def test_json_has_exactly_the_fields_of_the_contract(cases: Path) -> None:
    report = evaluate_json(cases)

    assert set(report) == REPORT_KEYS
    assert report["cases"] == 4
    assert [result["id"] for result in report["results"]] == ["cancelled", "crowded", "forbidden", "code"]
    assert all(set(result) == RESULT_KEYS for result in report["results"])
    assert report["decided_without_model"] == 1.0
    assert report["results"][0]["decision"] == "SKIP"
    assert report["results"][0]["change"] is None
    assert report["results"][0]["rule"] == "code.USER_CANCELED"


def test_a_change_is_told_by_its_word(tmp_path: Path) -> None:
    file = write(tmp_path, case("lost", "RETRY_WITH_PARAMS", "", termination_code="DRIVER_ERROR"))

    assert evaluate_json(file)["results"][0]["change"] == "driver_memory_up"


def test_figures_are_those_of_the_decisions(cases: Path) -> None:
    report = evaluate_json(cases, "--compare", "default", "codes")

    assert report["accuracy"] == 0.5  # forbidden, and code by what is accepted
    assert report["strict_accuracy"] == 0.25
    assert (report["wasted_retries"], report["harmful"]) == (0.0, 0)
    assert report["change_agreement"] is None
    assert report["tokens_median"] == 0


def test_the_help_shows_how_two_strategies_are_named() -> None:
    result = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})

    assert "FIRST SECOND" in result.output
    assert "--compare rules codes" in " ".join(result.output.split())


def test_the_cases_in_the_repository_have_every_decision_and_are_decided_right() -> None:
    lines = read_lines(EXAMPLES)
    report = evaluate_json(EXAMPLES)

    assert {line.case.label for line in lines if line.case} == set(DecisionKind)
    assert len({line.id for line in lines}) == len(lines) == report["cases"]
    decided = {result["id"]: (result["decision"], result["change"]) for result in report["results"]}
    assert decided == {line.id: (line.case.label, line.case.change) for line in lines if line.case}


def test_two_strategies_are_compared_case_by_case(cases: Path) -> None:
    comparison = evaluate_json(cases, "--compare", "default", "codes")["comparison"]

    assert comparison["strategies"] == ["default", "codes"]
    assert comparison["accuracy"] == [0.5, 1.0]
    assert comparison["p_value"] == 0.5  # two cases differ, both for the better: 2 · (1/2)²
    assert [(each["id"], each["decisions"], each["right"]) for each in comparison["differ"]] == [
        ("cancelled", ["ESCALATE_EMAIL", "SKIP"], [False, True]),
        ("crowded", ["ESCALATE_EMAIL", "RETRY"], [False, True]),
    ]


def test_codes_do_not_read_the_text(tmp_path: Path) -> None:
    file = write(tmp_path, case("a", "RETRY", "java.net.SocketTimeoutException: Read timed out"))

    results = evaluate_json(file, "--compare", "codes", "default")["results"]

    assert results[0]["excerpt"] == ""
    assert results[0]["decision"] == "ESCALATE_EMAIL"


def test_only_four_fields_are_shown_to_what_decides(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        case(
            "answer-is-skip",
            "SKIP",
            "it failed",
            termination_code="RUN_EXECUTION_ERROR",
            termination_type="CLIENT_ERROR",
            task_type="notebook",
            rationale="SKIP because",
            source="SKIP",
            attempts=9,
            logs="SKIP",
        ),
    )
    seen: list[tuple[str, Mapping[str, Any]]] = []

    def decide(text: str, context: Mapping[str, Any]) -> Analysis:
        seen.append((text, context))
        return always_escalate(text, context)

    answers_of(decide, read_lines(file))

    shown = {
        "termination_code": "RUN_EXECUTION_ERROR",
        "termination_type": "CLIENT_ERROR",
        "task_type": "notebook",
    }
    assert seen[-1] == ("it failed", shown)


def test_lines_without_labels_are_decided_and_not_measured(tmp_path: Path) -> None:
    file = write(tmp_path, {"error_text": "one"}, {"id": 7, "error_text": "two", "label": None})

    report = evaluate_json(file)

    assert report["cases"] == 2
    assert all(report[name] is None for name in MEASURES)
    assert [result["id"] for result in report["results"]] == ["line 1", "7"]
    assert report["median_ms"] > 0
    assert evaluate_json(file, "--compare", "rules", "default")["comparison"]["p_value"] is None
    shown = evaluate(file)
    assert shown.exit_code == 0
    assert "2 decided" in shown.stdout


def test_labelled_and_unlabelled_lines_may_be_mixed(cases: Path) -> None:
    with cases.open("a") as stream:
        stream.write(json.dumps({"error_text": "no label"}) + "\n")

    report = evaluate_json(cases)

    assert (report["cases"], len(report["results"])) == (5, 5)
    assert report["accuracy"] == 1.0
    assert "0 wrong" in evaluate(cases).stdout


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "a\u2028b\x85c",  # line separators that only Python's splitlines knows
        "half a pair \ud83d",
        "\x00\x01\x02",
        "[red]not markup[/red]",
        "x" * 200_000,
    ],
)
def test_any_text_is_decided(tmp_path: Path, text: str) -> None:
    line = json.dumps({"id": text[:20], "error_text": text}, ensure_ascii="\ud83d" in text)
    file = write(tmp_path, line)

    assert evaluate_json(file)["cases"] == 1
    assert evaluate(file).exit_code == 0


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(case("a", "SKIP")).encode() + b"\r\n\r\n")

    assert evaluate_json(file)["cases"] == 1


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1, 2]",
        '{"id": "a", "label": "SKIP"}',
        '{"id": "a", "error_text": null, "label": "SKIP"}',
        '{"id": "a", "error_text": "x", "label": "MAYBE"}',
        '{"id": "a", "error_text": "x", "label": ["SKIP"]}',
        '{"id": "a", "error_text": "x", "label": "SKIP", "accept": 5}',
        '{"id": "a", "error_text": "x", "label": "SKIP", "accept": ["NO"]}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: str) -> None:
    file = write(tmp_path, case("right", "SKIP"), "", line)

    result = evaluate(file, "--json")

    assert result.exit_code == 2
    assert "line 3" in json.loads(result.stdout)["error"]
    assert "line 3" in evaluate(file).stderr


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_cases_is_an_error_of_usage(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text(content)

    assert evaluate(file).exit_code == 2
    assert evaluate(tmp_path / "missing.jsonl").exit_code == 2


def test_an_expected_accuracy_decides_the_exit_code(cases: Path) -> None:
    assert evaluate(cases, "--compare", "default", "codes", "--at-least", "0.5").exit_code == 0
    failed = evaluate(cases, "--compare", "default", "codes", "--at-least", "0.9", "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["accuracy"] == 0.5
    assert "0.500" in failed.stderr


def test_the_report_for_people_shows_origins_labels_and_wrong_cases(cases: Path) -> None:
    report = evaluate(cases, "--compare", "default", "rules").stdout

    assert "local-run" in report
    assert "Precision" in report
    assert "Label \\ decided" in report
    assert "2 wrong" in report
    assert "always_escalate" in report
    assert "McNemar" in report


def test_by_default_a_configured_model_is_not_asked(cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AI_MODE", "always")

    assert evaluate_json(cases)["decided_without_model"] == 1.0


@pytest.mark.parametrize("options", [("--ai-mode", "unsure"), ("--compare", "model", "rules")])
def test_without_an_endpoint_there_is_no_model_to_ask(cases: Path, options: tuple[str, ...]) -> None:
    result = evaluate(cases, *options)

    assert result.exit_code == 2
    assert "AZURE_OPENAI_ENDPOINT" in result.stderr


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model that wants every case skipped and can quote it."""
    answer = {
        "decision": "SKIP",
        "category": "superseded",
        "changes": [],
        "confidence": 0.9,
        "quotes": ["it failed"],
        "reason": "Nothing is left to do.",
    }
    scenario = parse_scenario({"default": {"answer": answer}})
    with running(lambda: create_openai_app(EffectLog("openai", None), scenario)) as url:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", url)
        monkeypatch.setenv("AZURE_OPENAI_KEY", "key")
        monkeypatch.setenv("AZURE_OPENAI_DEPLOYMENT", "gpt-5-mini")
        yield


@pytest.mark.usefixtures("model")
def test_what_the_model_decided_is_counted(cases: Path) -> None:
    report = evaluate_json(cases, "--compare", "model", "default")

    assert report["decided_without_model"] == 0.0
    # The model would skip all four; where the rules would not, a person is asked instead.
    decisions = [result["decision"] for result in report["results"]]
    assert decisions == ["SKIP", "ESCALATE_EMAIL", "ESCALATE_EMAIL", "ESCALATE_EMAIL"]
    assert report["comparison"]["accuracy"] == [0.75, 0.5]


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 99))
def test_a_percentile_lies_between_the_extremes(values: list[float], percent: int) -> None:
    assert min(values) - 0.001 <= percentile(values, percent) <= max(values) + 0.001
