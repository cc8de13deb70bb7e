"""The agent without a function app: the script of `deploy/`, the Databricks job, the image, the emulators."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from databricks.bundles.jobs import Job, JobDict

from local.databricks.server import create_databricks_app
from local.emulator import emulator_configuration
from shared.domain import Json
from shared.messages import QUEUES
from shared.settings import Settings, environment_name
from tests.shared.databricks_service import Service, serving

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BUNDLE = yaml.safe_load((DEPLOY / "databricks_job" / "databricks.yml").read_text())
DOCKERFILE = (DEPLOY / "container" / "Dockerfile").read_text()

FAILED_RUN: Json = {
    "job_id": 7,
    "name": "orders",
    "settings": {"tasks": [{"task_key": "main", "notebook_task": {"notebook_path": "/main"}}]},
    "runs": [
        {
            "run_id": 70,
            "start_offset_seconds": -600,
            "duration_seconds": 60,
            "tasks": [{"task_key": "main", "failure": {"error": "ModuleNotFoundError: No module named 'lightgbm'"}}],
        }
    ],
}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Service]:
    with serving(partial(create_databricks_app, effects_path=tmp_path / "effects.jsonl")) as service:
        yield service


def copy_of_what_is_deployed(folder: Path) -> Path:
    """Only the files that the image and the bundle carry."""
    shutil.copytree(ROOT / "shared", folder / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "deploy").mkdir()
    shutil.copy(DEPLOY / "monitor_once.py", folder / "deploy" / "monitor_once.py")
    return folder


def run_script(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run it as a container does: somewhere else, with nothing but the copied files."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DATABRICKS_", "PYTHONPATH"))}
    return subprocess.run(
        [sys.executable, str(folder / "deploy" / "monitor_once.py"), *arguments],
        cwd="/",
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_one_pass_reports_what_failed(workspace: Service, tmp_path: Path) -> None:
    workspace.load({"jobs": [FAILED_RUN]})
    host = workspace.url
    done = run_script(
        copy_of_what_is_deployed(tmp_path / "app"),
        "--window-minutes=60",
        f"--setting=DATABRICKS_HOST={host}",
        "--setting=DRY_RUN=true",
        DATABRICKS_TOKEN="token",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [(run["run_id"], run["decision"]) for run in summary["runs"]] == [(70, "ESCALATE_EMAIL")]
    assert summary["actions"]["escalated"]["run_ids"] == "70"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "DATABRICKS_HOST"),
        (["--setting=DATABRICKS_HOST=http://127.0.0.1:9", "--setting=MAX_WORKERS=none"], 2, "MAX_WORKERS"),
        (["--setting=DATABRICKS_HOST"], 2, "NAME=VALUE"),
        (["--setting=DATABRICKS_HOST=http://127.0.0.1:9", "--setting=DATABRICKS_RETRY_SECONDS=1"], 3, "127.0.0.1"),
    ],
    ids=["missing", "wrong", "not a setting", "unreachable"],
)
def test_what_is_wrong_is_named_with_its_exit_code(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    done = run_script(copy_of_what_is_deployed(tmp_path / "app"), *arguments, DATABRICKS_TOKEN="token")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_nothing_in_shared_needs_more_than_python_3_12() -> None:
    """Databricks' serverless environment 4 has Python 3.12."""
    for path in [*(ROOT / "shared").rglob("*.py"), DEPLOY / "monitor_once.py"]:
        ast.parse(path.read_text(), feature_version=(3, 12))


def the_job() -> dict[str, Any]:
    job: dict[str, Any] = BUNDLE["resources"]["jobs"]["failure_agent"]
    return job


def test_the_bundle_is_a_valid_job_on_a_schedule() -> None:
    job = Job.from_dict(cast(JobDict, the_job()))  # raises on unknown fields
    assert job.schedule is not None
    assert job.max_concurrent_runs == 1
    assert the_job()["tags"] == {"failure-agent": "off"}


def test_the_bundles_files_exist_and_its_settings_are_settings() -> None:
    task = the_job()["tasks"][0]["spark_python_task"]
    folder = DEPLOY / "databricks_job"
    assert (folder / task["python_file"]).resolve() == DEPLOY / "monitor_once.py"
    assert {(folder / path).resolve() for path in BUNDLE["sync"]["paths"]} == {DEPLOY, ROOT / "shared"}
    names = {p.split("=")[1] for p in task["parameters"] if p.startswith("--setting=")}
    assert names <= {environment_name(field) for field in Settings.model_fields}


def test_the_bundles_packages_are_those_of_the_app_without_functions_queues_and_tables() -> None:
    wanted = {
        line
        for line in (ROOT / "requirements.in").read_text().splitlines()
        if line
        and not line.startswith(("#", "azure-functions", "azure-servicebus", "azure-data-tables", "azure-monitor"))
    }
    assert set(the_job()["environments"][0]["spec"]["dependencies"]) == wanted


def test_the_image_copies_what_exists_and_runs_as_nobody_special() -> None:
    copied = [line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("COPY")]
    assert copied == ["requirements.txt", "shared", "deploy/monitor_once.py"]
    assert all((ROOT / path).exists() for path in copied)
    ignored = (DEPLOY / "container" / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {f"!{path}" for path in copied} <= set(ignored)
    assert "USER 10001" in DOCKERFILE
    assert "--require-hashes" in DOCKERFILE


def test_the_emulators_queues_come_from_the_one_definition() -> None:
    queues = json.loads((ROOT / "local" / "queues.json").read_text())
    (namespace,) = emulator_configuration(queues)["UserConfig"]["Namespaces"]
    assert [queue["Name"] for queue in namespace["Queues"]] == list(QUEUES)
    for queue in namespace["Queues"]:
        assert queue["Properties"] == {
            "DeadLetteringOnMessageExpiration": True,
            "DefaultMessageTimeToLive": "PT60M",
            "DuplicateDetectionHistoryTimeWindow": "PT5M",
            "LockDuration": "PT1M",
            "MaxDeliveryCount": 10,
            "RequiresDuplicateDetection": True,
            "RequiresSession": False,
        }


def test_the_emulators_are_reachable_from_this_machine_only() -> None:
    services = yaml.safe_load((DEPLOY / "emulators" / "compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert services["database"].get("ports") is None
