"""`agent backtest` over a workspace with a past: the stand-in, over a socket; and the page as it is passed on."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from agent.backtest import Backtest, Period, backtest_json, render
from agent.cli import app
from local.databricks.server import create_databricks_app
from shared.backtest import Cause, Findings, Saved
from shared.domain import Category, DecisionKind, Json
from tests.shared.databricks_service import Service, serving

HOUR = 3600
DAY = 24 * HOUR
TIMED_OUT = "java.net.SocketTimeoutException: Read timed out"
OUT_OF_MEMORY = "java.lang.OutOfMemoryError: Java heap space"
NO_MODULE = "ModuleNotFoundError: No module named 'lightgbm'"
SECRET = "dapi" + "0123456789abcdef" * 2

JSON_KEYS = {
    "days",
    "since",
    "runs",
    "failed",
    "by_decision",
    "by_category",
    "fingerprints",
    "saved_upper_bound",
    "repaired_by_hand",
    "unreadable",
    "calls",
    "seconds",
}


def a_job(job_id: int, name: str, *runs: Json) -> Json:
    settings = {"tasks": [{"task_key": "main", "notebook_task": {"notebook_path": "/main"}}], "max_concurrent_runs": 9}
    return {"job_id": job_id, "name": name, "settings": settings, "runs": list(runs)}


def a_run(run_id: int, days_ago: float, error: str = "", *, after: dict[float, str] | None = None, **more: Any) -> Json:
    """A run of one hour. `after` = what others do to it, by hours after its start."""
    task = {"task_key": "main", "failure": {"error": error}} if error else {"task_key": "main"}
    return {
        "run_id": run_id,
        "start_offset_seconds": -days_ago * DAY,
        "duration_seconds": HOUR,
        "tasks": [task],
        "interference": [
            {"at_offset_seconds": -days_ago * DAY + hours * HOUR, "kind": kind} for hours, kind in (after or {}).items()
        ],
        **more,
    }


PAST: Json = {
    "jobs": [
        a_job(
            101,
            "orders",
            a_run(1, 20, TIMED_OUT, after={3: "repair_succeeds"}),  # healed by hand 2 hours after it failed
            a_run(2, 15, TIMED_OUT),  # superseded: a person started run 3, which ended 3 hours after the failure
            a_run(3, 15 - 3 / 24, trigger="ONE_TIME"),
            a_run(4, 10, TIMED_OUT),  # superseded by the next day's run, 24 hours after
            a_run(5, 9),
            a_run(6, 40, TIMED_OUT),  # too long ago
        ),
        a_job(102, "features", a_run(7, 5, OUT_OF_MEMORY)),  # never succeeded: its own hour
        a_job(
            103,
            f"<b>scores</b> {SECRET}",
            a_run(8, 4, NO_MODULE),
            a_run(9, 3, NO_MODULE, after={2: "repair"}),  # the repair did not help
        ),
        a_job(104, "report", a_run(10, 2, after={0.5: "cancel"})),
        a_job(105, "by a factory", a_run(11, 1, TIMED_OUT, run_type="SUBMIT_RUN", run_name="ADF_f_p_a_1")),
        a_job(106, "quiet", *(a_run(20 + n, n + 1) for n in range(5))),
    ]
}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    monkeypatch.chdir(tmp_path)
    for name in ("DEFAULT_MODE", "JOB_IDS", "JOB_TAGS", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with serving(lambda: create_databricks_app(effects_path=None, scenario=PAST)) as running_service:
        monkeypatch.setenv("DATABRICKS_HOST", running_service.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", "read-only")
        yield running_service


def backtest(*options: str) -> Result:
    return CliRunner().invoke(app, ["backtest", *options])


def backtest_figures(*options: str) -> dict[str, Any]:
    """The one object on stdout."""
    result = backtest("--json", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def test_the_past_month_of_a_workspace(service: Service) -> None:
    found = backtest_figures()

    assert set(found) == JSON_KEYS
    assert (found["days"], found["runs"], found["failed"], found["unreadable"]) == (30, 15, 8, 0)
    assert found["by_decision"] == {"RETRY": 3, "RETRY_WITH_PARAMS": 1, "ESCALATE_EMAIL": 2, "SKIP": 2}
    assert sum(found["by_category"].values()) == 8
    assert found["saved_upper_bound"]["runs"] == 4
    assert found["saved_upper_bound"]["hours"] == pytest.approx(2 + 3 + 24 + 1, abs=0.05)
    assert found["saved_upper_bound"]["confirmed_runs"] == 2
    assert found["saved_upper_bound"]["confirmed_hours"] == pytest.approx(2 + 3, abs=0.05)
    assert found["repaired_by_hand"] == {"runs": 1, "median_hours": 2.0}
    assert found["calls"] == sum(service.control("calls")["by_path"].values())
    assert found["seconds"] > 0


def test_failures_of_one_cause_stand_together_and_the_commonest_first(service: Service) -> None:
    causes = backtest_figures()["fingerprints"]

    first, second = causes[:2]
    assert (first["count"], first["decision"], first["cause"]) == (4, "RETRY", TIMED_OUT)
    assert first["jobs"] == ["orders", "ADF_f_p_a_1"]
    assert (second["count"], second["decision"]) == (2, "ESCALATE_EMAIL")
    assert "lightgbm" in second["cause"]


def test_nothing_is_written(service: Service) -> None:
    backtest_figures()

    assert service.control("effects") == {"effects": []}
    assert all(
        call.startswith(("GET", "POST /api/2.1/clusters/events")) for call in service.control("calls")["by_path"]
    )


def test_the_days_bound_what_is_looked_at(service: Service) -> None:
    assert backtest_figures("--days", "60")["failed"] == 9
    assert backtest_figures("--days", "6")["failed"] == 5
    assert backtest("--days", "61").exit_code == 2
    assert backtest("--days", "0").exit_code == 2


def test_a_cap_keeps_the_newest_and_says_so(service: Service) -> None:
    result = backtest("--json", "--max-runs", "3")

    found = json.loads(result.stdout)
    assert found["failed"] == 3
    assert found["by_decision"] == {"RETRY": 0, "RETRY_WITH_PARAMS": 0, "ESCALATE_EMAIL": 1, "SKIP": 2}
    assert datetime.now(UTC) - datetime.fromisoformat(found["since"]) < timedelta(days=3, minutes=5)
    assert "Stopped at 3 failed runs" in result.stderr
    assert backtest_figures("--max-runs", "8")["failed"] == 8


def test_a_run_that_cannot_be_read_is_counted(service: Service) -> None:
    service.set_fault("GET /api/2.2/jobs/runs/get", "error", status=404, times=1)

    found = backtest_figures()

    assert (found["failed"], found["unreadable"]) == (8, 1)
    assert sum(found["by_decision"].values()) == 7


def test_settings_that_hide_failures_or_ask_the_model_do_not_matter(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT_MODE", "off")
    monkeypatch.setenv("JOB_TAGS", '{"team": "a"}')
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AI_MODE", "always")

    assert backtest_figures()["by_decision"]["RETRY"] == 3


def test_only_the_jobs_that_the_operator_named_are_read(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_IDS", "103,106")

    found = backtest_figures()

    assert (found["runs"], found["failed"]) == (7, 2)


def test_the_table_names_decisions_causes_and_the_upper_bound(service: Service, tmp_path: Path) -> None:
    result = backtest("--html", "page.html")

    assert result.exit_code == 0
    assert "8 of 15 runs failed" in result.stdout
    assert "SocketTimeoutException" in result.stdout
    assert "upper bound" in result.stdout
    assert "Written: page.html" in result.stderr
    page = (tmp_path / "page.html").read_text()
    for text in (result.stdout, page, result.stderr):
        assert SECRET not in text
    assert "<b>scores</b>" not in page
    assert "&lt;b&gt;scores&lt;/b&gt;" in page


def test_a_workspace_without_failures_is_no_error(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_IDS", "106")

    result = backtest("--html", "page.html")

    assert result.exit_code == 0
    assert "No run failed" in result.stderr
    assert "No failed run to decide about" in Path("page.html").read_text()


def test_a_page_that_cannot_be_written_is_told_before_anything_is_read(service: Service) -> None:
    result = backtest("--html", "missing/page.html", "--json")

    assert result.exit_code == 2
    assert "missing" in json.loads(result.stdout)["error"]
    assert service.control("calls")["by_path"] == {}


def test_access_that_is_missing_or_refused_is_a_matter_of_settings(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", "bad-token")
    assert backtest().exit_code == 2
    monkeypatch.delenv("DATABRICKS_HOST")
    result = backtest()
    assert result.exit_code == 2
    assert "DATABRICKS_HOST" in result.stderr


# --- the page --------------------------------------------------------------------------------------------------------

UNTIL = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

BACKTEST = Backtest(
    workspaces=("1234567890123456",),
    period=Period(days=30, since=UNTIL - timedelta(days=30), until=UNTIL, is_cut=False),
    findings=Findings(
        runs=1240,
        failed=38,
        unreadable=1,
        by_decision={
            DecisionKind.RETRY: 19,
            DecisionKind.RETRY_WITH_PARAMS: 6,
            DecisionKind.ESCALATE_EMAIL: 9,
            DecisionKind.SKIP: 3,
        },
        by_category={
            Category.NETWORK: 17,
            Category.CODE: 9,
            Category.WORKER_MEMORY: 6,
            Category.CANCELLED: 3,
            Category.PLATFORM: 2,
        },
        causes=(
            Cause(
                "f3c6f839eaadf914", TIMED_OUT, Category.NETWORK, DecisionKind.RETRY, 17, ("orders", "stock", "a", "b")
            ),
            Cause("f0ff64688e7bf32a", NO_MODULE, Category.CODE, DecisionKind.ESCALATE_EMAIL, 9, ("scores",)),
            Cause(
                "1bce2c8b5acfd5ae",
                OUT_OF_MEMORY,
                Category.WORKER_MEMORY,
                DecisionKind.RETRY_WITH_PARAMS,
                6,
                ("features",),
            ),
            Cause("aaaaaaaaaaaaaaaa", "Run cancelled.", Category.CANCELLED, DecisionKind.SKIP, 3, ("report",)),
            Cause("bbbbbbbbbbbbbbbb", "Internal error", Category.PLATFORM, DecisionKind.RETRY, 2, ("orders",)),
        ),
        saved_upper_bound=Saved(25, 212.5),
        confirmed=Saved(8, 31.25),
        by_hand=11,
        by_hand_median_hours=3.5,
    ),
    calls=187,
    seconds=12.3,
)


def test_page(assert_golden: Callable[[str, str], None]) -> None:
    assert_golden("backtest.html", render(BACKTEST))


class Loads(HTMLParser):
    """Attributes that would make a browser load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href") or name.startswith("on")]
        self.found += [tag] if tag in ("script", "link", "iframe", "img", "b") else []


def test_a_page_needs_nothing_else_and_runs_nothing_that_a_text_holds() -> None:
    hostile = f'<script>alert(1)</script><img src="http://x.example/p.png"> "\' {SECRET}\n\u202eurl(http://y.example)'
    figures = BACKTEST.findings
    causes = tuple(replace(cause, cause=hostile, jobs=(hostile,)) for cause in figures.causes)

    page = render(replace(BACKTEST, workspaces=(hostile,), findings=replace(figures, causes=causes)))

    parser = Loads()
    parser.feed(page)
    assert parser.found == []
    assert SECRET not in page
    assert "\u202e" not in page
    assert not re.search(r"url\(|@import", re.sub(r"(?s)<main>.*", "", page))


def test_a_cut_period_is_told_on_the_page() -> None:
    period = replace(BACKTEST.period, is_cut=True, since=UNTIL - timedelta(days=2))

    assert "not the whole 30 days" in render(replace(BACKTEST, period=period))


def test_json_of_a_job_name_holds_no_secret() -> None:
    cause = replace(BACKTEST.findings.causes[0], jobs=(f"load {SECRET}",))

    found = backtest_json(replace(BACKTEST, findings=replace(BACKTEST.findings, causes=(cause,))))

    assert SECRET not in json.dumps(found)
