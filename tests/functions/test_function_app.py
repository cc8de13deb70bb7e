"""The function app as Azure would index it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import pytest

from shared import bootstrap, messages, schedules
from shared.auditing import Auditing
from shared.domain import Mode, Pause
from shared.errors import ConfigurationError, TransientError
from shared.memory_history import InMemoryDecisionHistory
from shared.settings import Settings, environment_name
from tests.builders import NOW
from tests.fakes import FakeClock, FakeJobRuns

ROOT = Path(__file__).parents[2]
FUNCTIONS = {"find_failures", "decide_action", "retry_run", "send_email", "follow_up", "audit", "health"}


def index(environment: dict[str, str] | None = None) -> dict[str, object]:
    finished = subprocess.run(
        [sys.executable, "-m", "local.functions_host", "--app", str(ROOT), "--index-only"],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, object] = json.loads(finished.stdout)
    return report


def test_indexing_finds_every_function_and_imports_nothing_heavy() -> None:
    report = index()
    assert set(report["functions"]) == FUNCTIONS  # type: ignore[call-overload]
    assert report["modules"] == []


@cache
def bindings() -> dict[str, dict[str, Any]]:
    import function_app

    found = {}
    for function in function_app.app.get_functions():
        description = json.loads(function.get_function_json())
        found[str(function.get_function_name())] = description["bindings"][0]
    return found


def test_queue_functions_listen_to_the_queues_that_messages_are_sent_to() -> None:
    queues = {name: binding["queueName"] for name, binding in bindings().items() if "queueName" in binding}
    assert queues == {
        "decide_action": messages.FAILED_RUNS,
        "retry_run": messages.RETRIES,
        "send_email": messages.EMAILS,
    }


def test_timers_have_the_default_schedules() -> None:
    found = {name: binding["schedule"] for name, binding in bindings().items() if "schedule" in binding}
    assert found == {
        "find_failures": schedules.FIND_FAILURES,
        "follow_up": schedules.FOLLOW_UP,
        "audit": schedules.AUDIT,
    }


@pytest.mark.parametrize("binding", bindings().values(), ids=bindings().keys())
def test_binding_names_are_allowed_by_the_host(binding: dict[str, Any]) -> None:
    assert "_" not in str(binding["name"])


def test_health_names_every_missing_setting() -> None:
    code = "import json; from shared import bootstrap; print(json.dumps(bootstrap.health()))"
    kept = {"PATH": os.environ["PATH"]}
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=kept, capture_output=True, text=True, check=True
    )
    report = json.loads(finished.stdout)
    assert report["ok"] is False
    for name in ("DATABRICKS_HOST", "SERVICE_BUS_CONNECTION", "TABLES_ENDPOINT", "ACS_ENDPOINT", "SENDER_EMAIL"):
        assert name in report["problem"]


COMPLETE = {
    "DATABRICKS_HOST": "https://adb-1.2.azuredatabricks.net",
    "SERVICE_BUS_CONNECTION": "Endpoint=sb://bus.example.com;SharedAccessKeyName=n;SharedAccessKey=a2V5",
    "TABLES_ENDPOINT": "https://account.table.core.windows.net",
    "ACS_ENDPOINT": "https://mail.example.com",
    "SENDER_EMAIL": "agent@example.com",
    "ESCALATION_EMAILS": "ops@example.com",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host is about to run the app, and all of its settings are there."""
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_name(name), raising=False)
    for name, value in {**COMPLETE, "AZURE_FUNCTIONS_ENVIRONMENT": "Development"}.items():
        monkeypatch.setenv(name, value)
    bootstrap._services.cache_clear()
    return monkeypatch


def test_a_complete_app_starts(environment: pytest.MonkeyPatch) -> None:
    bootstrap.report_at_start()
    assert bootstrap.services().settings.sender_email == "agent@example.com"


def test_missing_and_wrong_settings_stop_the_app_with_one_message_that_says_where_to_set_them(
    environment: pytest.MonkeyPatch,
) -> None:
    for name in ("ACS_ENDPOINT", "TABLES_ENDPOINT"):
        environment.delenv(name)
    for name in ("DEFAULT_MODE", "AI_MODE", *bootstrap.SCHEDULES):
        environment.setenv(name, "s3cret-nonsense")

    with pytest.raises(ConfigurationError) as raised:
        bootstrap.report_at_start()

    message = str(raised.value)
    wanted = {"ACS_ENDPOINT", "TABLES_ENDPOINT or TABLES_CONNECTION_STRING", "DEFAULT_MODE", "AI_MODE"}
    assert wanted | set(bootstrap.SCHEDULES) == set(raised.value.names)
    assert all(name in message for name in raised.value.names)
    assert "app settings" in message
    assert "local.settings.json" in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("MAX_RETRY_ATTEMPTS", "many"), ("DATABRICKS_TIMEOUT_SECONDS", "0"), ("OWNERS", "not json")],
)
def test_what_indexing_cannot_see_is_named_before_the_first_step(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    environment.delenv("ESCALATION_EMAILS")

    with pytest.raises(ConfigurationError, match=name) as raised:
        bootstrap.services()

    assert set(raised.value.names) == {name, "ESCALATION_EMAILS"}
    assert all(wanted in str(raised.value) for wanted in (name, "ESCALATION_EMAILS", "local.settings.json"))


def test_settings_that_do_not_go_together_are_named_before_the_first_step(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DATABRICKS_HOST", "https://a.example.com, https://a.example.com/")

    with pytest.raises(ConfigurationError, match="DATABRICKS_HOST names a workspace twice"):
        bootstrap.services()


@pytest.mark.parametrize(("audited", "told"), [(("ws1", "ws2"), NOW.isoformat()), (("ws1",), None)])
def test_health_tells_since_when_every_workspace_is_audited_and_names_none(
    environment: pytest.MonkeyPatch, audited: tuple[str, ...], told: str | None
) -> None:
    history = InMemoryDecisionHistory()
    runs = FakeJobRuns(workspaces=("ws1", "ws2"))
    auditing = Auditing(FakeJobRuns(workspaces=audited), history, bootstrap.current_settings(), FakeClock())
    auditing.audit()
    parts = replace(bootstrap.services(), runs=runs, history=history, auditing=auditing)  # type: ignore[arg-type]
    environment.setattr(bootstrap, "services", lambda: parts)

    report = json.loads(json.dumps(bootstrap.health()))

    assert report == {
        "ok": True,
        "paused": False,
        "mode": "observe",
        "dry_run": False,
        "workspaces": 2,
        "audited_at": told,
    }


def test_health_without_a_history_names_no_resource(environment: pytest.MonkeyPatch) -> None:
    class Gone(InMemoryDecisionHistory):
        def read_pause(self) -> Pause:
            raise TransientError("table contoso-orders is not there")

    parts = replace(bootstrap.services(), history=Gone())
    environment.setattr(bootstrap, "services", lambda: parts)

    report = bootstrap.health()

    assert report["ok"] is False
    assert "contoso" not in str(report)


def test_choices_known_while_indexing_are_those_of_the_settings() -> None:
    assert set(bootstrap.CHOICES["DEFAULT_MODE"]) == set(Mode)
    assert bootstrap.CHOICES["AI_MODE"] == get_args(Settings.model_fields["ai_mode"].annotation)
    defaults = {name.upper(): field.default for name, field in Settings.model_fields.items()}
    assert all(bootstrap.SCHEDULE.fullmatch(defaults[name]) for name in bootstrap.SCHEDULES)
    assert {name for name in defaults if name.endswith("_SCHEDULE")} == set(bootstrap.SCHEDULES)


def test_an_app_that_is_only_looked_at_is_not_stopped(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.delenv("AZURE_FUNCTIONS_ENVIRONMENT")
    environment.delenv("WEBSITE_SITE_NAME", raising=False)
    environment.delenv("ACS_ENDPOINT")

    bootstrap.report_at_start()

    assert "missing settings: ACS_ENDPOINT." in caplog.text


def locked_names() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line.partition("==")[0] for line in lines if "==" in line and not line.startswith((" ", "#"))]


@pytest.mark.parametrize("name", locked_names())
def test_no_locked_distribution_shadows_a_folder_of_the_app(name: str) -> None:
    """In Azure the worker searches installed packages before the app's folder."""
    files = metadata.files(name) or []
    tops = {Path(file).parts[0] for file in files if file.parts}
    assert not tops & {"functions", "shared", "agent", "local", "function_app.py"}


def test_what_is_not_needed_in_azure_stays_out_of_the_package() -> None:
    ignored = (ROOT / ".funcignore").read_text().split()
    assert {"tests", "agent", "local", "infra", "docs", "pyproject.toml"} <= set(ignored)
