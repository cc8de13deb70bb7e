"""`agent monitor --dry-run` over the stand-in workspace: what would be done about each run, why, and who is told."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.cli import app
from agent.monitor import NOBODY, main_rules, parse_window, plan_of
from local.databricks.server import create_databricks_app
from shared.domain import Json
from shared.errors import ConfigurationError
from shared.monitoring import RunReport
from tests.shared.databricks_service import Service, serving

TIMED_OUT = "java.net.SocketTimeoutException: Read timed out"
OUT_OF_MEMORY = "java.lang.OutOfMemoryError: Java heap space"
NO_MODULE = "ModuleNotFoundError: No module named 'lightgbm'"
CLUSTER = {"node_type_id": "Standard_DS3_v2", "spark_version": "16.4.x-scala2.12", "num_workers": 2}


def a_job(job_id: int, name: str, error: str, tags: dict[str, str] | None = None) -> Json:
    settings = {
        "tags": tags or {},
        "job_clusters": [{"job_cluster_key": "main", "new_cluster": CLUSTER}],
        "tasks": [{"task_key": "load", "job_cluster_key": "main", "notebook_task": {"notebook_path": "/load"}}],
    }
    task = {"task_key": "load", "failure": {"error": error}}
    run = {"run_id": job_id + 1, "start_offset_seconds": -600, "duration_seconds": 60, "tasks": [task]}
    return {"job_id": job_id, "name": name, "settings": settings, "runs": [run]}


WORKSPACE: Json = {
    "jobs": [
        a_job(100, "orders", TIMED_OUT),
        a_job(200, "features", OUT_OF_MEMORY),
        a_job(300, "scores", NO_MODULE, {"failure-agent-owner": "science"}),
        a_job(400, "report", TIMED_OUT, {"failure-agent": "observe"}),
    ]
}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    monkeypatch.chdir(tmp_path)
    for name in ("JOB_IDS", "JOB_TAGS", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEFAULT_MODE", "full")
    monkeypatch.setenv("ESCALATION_EMAILS", "ops@example.com")
    monkeypatch.setenv("OWNERS", '{"science": "ml@example.com"}')
    with serving(lambda: create_databricks_app(effects_path=None, scenario=WORKSPACE)) as running_service:
        monkeypatch.setenv("DATABRICKS_HOST", running_service.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", "read-only")
        yield running_service


def test_a_dry_run_tells_for_each_run_why_and_what_would_be_done_and_who_would_be_told(service: Service) -> None:
    result = CliRunner().invoke(app, ["monitor", "--dry-run", "--json"])

    assert result.exit_code == 0, result.output
    runs: dict[int, dict[str, Any]] = {run["run_id"]: run for run in json.loads(result.stdout)["runs"]}
    assert {run_id: (run["decision"], run["mode"], run["recipients"]) for run_id, run in runs.items()} == {
        101: ("RETRY", "full", []),
        201: ("RETRY_WITH_PARAMS", "full", []),
        301: ("ESCALATE_EMAIL", "full", ["ml@example.com"]),
        401: ("RETRY", "observe", ["ops@example.com"]),
    }
    assert all(run["rules"] and run["reason"] for run in runs.values())
    assert any("node_type_id Standard_DS3_v2 → " in change for change in runs[201]["setting_changes"])


def test_the_table_of_a_dry_run_shows_it_too(service: Service) -> None:
    result = CliRunner().invoke(app, ["monitor", "--dry-run"], env={"COLUMNS": "400"})

    assert result.exit_code == 0, result.output
    for shown in ("Why", "Plan", "network.timeout", "ml@example.com", "mode observe", "Standard_DS3_v2"):
        assert shown in result.output, shown


def test_without_an_address_it_says_which_setting_lacks(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESCALATION_EMAILS", "")

    result = CliRunner().invoke(app, ["monitor", "--dry-run"], env={"COLUMNS": "400"})

    assert "ESCALATION_EMAILS" in result.output


def a_report(**fields: Any) -> RunReport:
    report: Any = dict.fromkeys(RunReport.__annotations__, "")
    lists: dict[str, Any] = {"changes": [], "setting_changes": [], "rules": [], "recipients": []}
    built: RunReport = report | lists | {"mode": "full"} | fields
    return built


@pytest.mark.parametrize(
    ("report", "plan"),
    [
        (a_report(decision="SKIP"), "nothing"),
        (a_report(decision="RETRY"), "repair the run"),
        (a_report(decision="RETRY_WITH_PARAMS", setting_changes=["job: a 1 → 2."]), "repair the run\njob: a 1 → 2."),
        (a_report(decision="ESCALATE_EMAIL", recipients=["a@b.c", "d@e.f"]), "mail to a@b.c, d@e.f"),
        (a_report(decision="ESCALATE_EMAIL"), f"mail to {NOBODY}"),
        (
            a_report(decision="RETRY", mode="observe", recipients=["a@b.c"]),
            "mode observe: suggest by mail to a@b.c:\nrepair the run",
        ),
        (a_report(decision="ESCALATE_EMAIL", mode=""), "none: nothing is known of the run"),
    ],
)
def test_the_plan_of_a_run(report: RunReport, plan: str) -> None:
    assert plan_of(report) == plan


def test_of_the_rules_the_table_shows_the_strongest_and_those_of_the_policy() -> None:
    rules = ["network.timeout", "code.CLIENT_ERROR", "policy.retry_limit"]

    assert main_rules(a_report(rules=rules)) == ["network.timeout", "policy.retry_limit"]
    assert main_rules(a_report()) == []


@pytest.mark.parametrize(
    ("text", "span"),
    [("30m", timedelta(minutes=30)), (" 5h ", timedelta(hours=5)), ("7d", timedelta(days=7))],
)
def test_windows(text: str, span: timedelta) -> None:
    assert parse_window(text) == span


@pytest.mark.parametrize("text", ["", "0m", "5", "m", "-5h", "5w", "5 h"])
def test_a_window_that_is_none_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match="30m, 5h or 7d"):
        parse_window(text)
