"""The function app as Azure would index it."""

import json
import os
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from shared import messages, schedules

ROOT = Path(__file__).parents[2]
FUNCTIONS = {"find_failures", "decide_action", "retry_run", "send_email", "follow_up", "health"}


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
    assert found == {"find_failures": schedules.FIND_FAILURES, "follow_up": schedules.FOLLOW_UP}


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
