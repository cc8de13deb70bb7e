"""The function app as Azure would index it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from shared import bootstrap, messages, schedules
from shared.auditing import Auditing
from shared.domain import Pause
from shared.errors import ConfigurationError, TransientError
from shared.memory_history import InMemoryDecisionHistory
from shared.setting_values import (
    RULES,
    Base64Key,
    Choice,
    ConnectionString,
    Flag,
    Number,
    Pattern,
    Rule,
    Schedule,
    Several,
    Table,
    Text,
    Url,
)
from shared.settings import Settings, environment_name
from tests.builders import NOW
from tests.fakes import FakeClock, FakeJobRuns
from tests.local.running_host import run_to_the_end

ROOT = Path(__file__).parents[2]
FUNCTIONS = {"find_failures", "decide_action", "retry_run", "send_email", "follow_up", "audit", "check", "health"}


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


def test_health_is_open_to_everybody_and_check_asks_for_a_key() -> None:
    levels = {name: binding["authLevel"] for name, binding in bindings().items() if "authLevel" in binding}
    assert levels == {"health": "ANONYMOUS", "check": "FUNCTION"}


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


def test_threads_of_a_cold_worker_find_the_modules_that_import_each_other_whole() -> None:
    code = (
        "import sys; from shared import bootstrap; bootstrap.services(); "
        "print(*(name for name in sys.modules if name.startswith('azure.core')))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **COMPLETE},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {
        "azure.core.pipeline.policies",
        "azure.core.pipeline.transport",
        "azure.core.rest",
        "azure.core.utils._pipeline_transport_rest_shared",
    } <= set(finished.stdout.split())


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


def wrong_values(rule: Rule) -> list[str]:
    """Texts that the rule does not permit; none of them is to be shown."""
    match rule:
        case Number(low, high, above, whole):
            over = [str(high + 1)] if high is not None else []
            return ["s3cret", str(low - 1), "nan", "inf", *over, *([str(low)] * above), *(["1.5"] * whole)]
        case Choice() | Flag() | Pattern() | Url() | Schedule():
            return ["s3cret value"]
        case Text():
            return ["s3cret\nvalue", "@Microsoft.KeyVault(VaultName=s3cret;SecretName=s3cret)"]
        case Several():
            return ["s3cret://value with blanks", " , "]
        case Table():
            return ["s3cret", '["s3cret"]', '{"a": 1}', '{"a": "s3cret\\nvalue"}']
        case ConnectionString() | Base64Key():
            return ["s3cret"]
        case _:
            raise AssertionError(f"no wrong value is known for {rule}")


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, rule in RULES.items() for value in wrong_values(rule)]
)
def test_every_wrong_setting_stops_the_app_at_its_start(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)

    with pytest.raises(ConfigurationError) as raised:
        bootstrap.report_at_start()

    message = str(raised.value)
    assert name in raised.value.names
    assert f"{name}: " in message
    assert "s3cret" not in message


def test_all_that_is_missing_or_wrong_is_one_message_that_says_where_to_set_it(environment: pytest.MonkeyPatch) -> None:
    for name in ("ACS_ENDPOINT", "TABLES_ENDPOINT"):
        environment.delenv(name)
    wrong = {
        name: wrong_values(rule)[0] for name, rule in RULES.items() if name not in {"ACS_ENDPOINT", "TABLES_ENDPOINT"}
    }
    del wrong["TABLES_CONNECTION_STRING"]
    for name, value in wrong.items():
        environment.setenv(name, value)

    with pytest.raises(ConfigurationError) as raised:
        bootstrap.report_at_start()

    message = str(raised.value)
    assert {"ACS_ENDPOINT", "TABLES_ENDPOINT or TABLES_CONNECTION_STRING", *wrong} == set(raised.value.names)
    assert all(name in message for name in raised.value.names)
    assert "app settings" in message
    assert "local.settings.json" in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"DATABRICKS_HOST": "https://a.example.com, https://a.example.com/"}, ("DATABRICKS_HOST",)),
        (
            {"DATABRICKS_HOST": "a.example.com,b.example.com", "DATABRICKS_TOKEN": "t"},
            ("DATABRICKS_TOKEN", "DATABRICKS_HOST"),
        ),
        ({"DATABRICKS_HOST": "a.example.com"}, ("DATABRICKS_TOKEN or DATABRICKS_CLIENT_ID",)),
        ({"DATABRICKS_CLIENT_ID": "id"}, ("DATABRICKS_CLIENT_SECRET",)),
        ({"DATABRICKS_CLIENT_SECRET": "secret"}, ("DATABRICKS_CLIENT_ID",)),
        ({"ACS_ENDPOINT": "http://mail.example.com"}, ("ACS_ENDPOINT", "ACS_ACCESS_KEY")),
        ({"AZURE_OPENAI_ENDPOINT": "https://model.example.com"}, ("AZURE_OPENAI_DEPLOYMENT",)),
    ],
)
def test_settings_that_do_not_go_together_stop_the_app_at_its_start(
    environment: pytest.MonkeyPatch, settings: dict[str, str], names: tuple[str, ...]
) -> None:
    for name, value in settings.items():
        environment.setenv(name, value)

    with pytest.raises(ConfigurationError) as raised:
        bootstrap.report_at_start()

    assert raised.value.names == names
    assert all(name in str(raised.value) for name in names)


def test_the_first_step_says_the_same_as_the_start(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MAX_RETRY_ATTEMPTS", "many")
    environment.delenv("ESCALATION_EMAILS")

    with pytest.raises(ConfigurationError) as at_start:
        bootstrap.report_at_start()
    with pytest.raises(ConfigurationError) as at_first_step:
        bootstrap.services()

    assert str(at_first_step.value) == str(at_start.value)
    assert set(at_start.value.names) == {"MAX_RETRY_ATTEMPTS", "ESCALATION_EMAILS"}


def test_a_host_ends_with_that_message_while_it_indexes_the_app() -> None:
    wrong = {**COMPLETE, "MAX_WORKERS": "none", "OWNERS": "[]", "DEFAULT_MODE": "s3cret", "SENDER_EMAIL": ""}
    finished = run_to_the_end({**wrong, "AZURE_FUNCTIONS_ENVIRONMENT": "Development"}, "--index-only", app=ROOT)

    assert finished.returncode == 2
    assert all(name in finished.stderr for name in ("MAX_WORKERS", "OWNERS", "DEFAULT_MODE", "SENDER_EMAIL"))
    assert "s3cret" not in finished.stderr


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
    assert {"tests", "agent", "local", "infra", "docs", "examples", "pyproject.toml"} <= set(ignored)
