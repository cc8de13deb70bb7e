"""The workflow that users of the repository get: pinned, with no more rights than it needs, calling what exists."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
WORKFLOW = yaml.safe_load(TEXT)
JOBS: dict[str, Any] = WORKFLOW["jobs"]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps() -> list[dict[str, Any]]:
    return [step for job in JOBS.values() for step in job["steps"]]


def test_every_action_is_pinned_by_commit_with_its_version_beside_it() -> None:
    used = re.findall(r"uses: (\S+)(.*)", TEXT)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_only_the_deployment_may_ask_for_an_identity_token() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    for name, job in JOBS.items():
        assert job.get("permissions", {}) == ({"contents": "read", "id-token": "write"} if name == "deploy" else {}), (
            name
        )


def test_no_secret_is_used_and_no_credential_is_left_in_the_checkout() -> None:
    assert "${{ secrets" not in TEXT
    for step in steps():
        if "checkout" in step.get("uses", ""):
            assert step["with"] == {"persist-credentials": False}


def test_nothing_of_an_event_is_pasted_into_a_shell() -> None:
    """A title or a branch name is somebody else's text; `env:` is the way to hand it over."""
    for step in steps():
        assert "${{" not in step.get("run", ""), step


def test_every_make_target_exists() -> None:
    called = re.findall(r"make ([a-z -]+)", "\n".join(step.get("run", "") for step in steps()))
    targets = {target for line in called for target in line.split()}
    assert {"lint", "types", "test", "test-long", "infra-check", "audit"} <= targets
    assert targets <= MAKE_TARGETS


def test_the_deployment_waits_for_every_check_and_runs_on_main_alone() -> None:
    assert set(JOBS["deploy"]["needs"]) == set(JOBS) - {"deploy"}
    assert "refs/heads/main" in JOBS["deploy"]["if"]
    assert JOBS["deploy"]["environment"] == "production"


@pytest.mark.parametrize("update", yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"])
def test_dependabot_looks_at_folders_that_exist(update: dict[str, Any]) -> None:
    folder = ROOT / update["directory"].lstrip("/")
    wanted = {"pip": "requirements.in", "npm": "package.json", "docker": "Dockerfile", "github-actions": ".github"}
    assert (folder / wanted[update["package-ecosystem"]]).exists()


def test_the_editor_starts_the_task_that_its_launch_file_names() -> None:
    launch = json.loads((ROOT / ".vscode" / "launch.json").read_text())["configurations"]
    tasks = json.loads((ROOT / ".vscode" / "tasks.json").read_text())["tasks"]
    wanted = {entry["preLaunchTask"] for entry in launch if "preLaunchTask" in entry}
    assert wanted == {task["label"] for task in tasks}
