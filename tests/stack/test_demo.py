"""The promise as a whole: the real app on the real parts of the local stack, seen from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.local_run import Observer, duplicates, expected_runs
from agent.start import FOLDER
from local.stack import ROOT, Stack, running_stack

THREE = ROOT / "local" / "scenarios" / "three.json"

pytestmark = pytest.mark.stack


def agent(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def wait_until_all_ended(stack: Stack, scenario: Path, seconds: float = 60) -> Observer:
    observer = Observer(stack)
    expected = expected_runs(scenario)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(row.outcome != "open" for row in observer.rows(expected)) and observer.is_idle():
            return observer
        time.sleep(0.3)
    raise AssertionError(f"still open after {seconds} s: {observer.rows(expected)}")


def test_demo_brings_every_run_to_its_expected_end() -> None:
    finished = agent("demo", "--json")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads(finished.stdout)
    assert len(result["runs"]) >= 12
    assert all(run["outcome"] == run["expected"] for run in result["runs"])
    assert {run["outcome"] for run in result["runs"]} == {"recovered", "failed_again", "escalated", "skipped"}
    assert result["duplicates"] == 0
    assert result["seconds"] < 90
    assert finished.stdout.count("\n") == 1


def test_a_killed_host_is_restarted_and_nothing_is_done_twice(tmp_path: Path) -> None:
    with running_stack(tmp_path, scenario=THREE) as stack:
        time.sleep(1.5)
        description = json.loads((tmp_path / "stack.json").read_text())
        os.kill(description["host"]["pid"], signal.SIGKILL)
        observer = wait_until_all_ended(stack, THREE)
        assert all(row.as_expected for row in observer.rows(expected_runs(THREE)))
        assert duplicates(observer.effects()) == 0
        assert stack.restarts == 1
        assert json.loads((tmp_path / "stack.json").read_text())["host"]["pid"] != description["host"]["pid"]


def test_pause_holds_every_action_until_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_stack(tmp_path) as stack:
        for name, value in stack.settings.items():
            monkeypatch.setenv(name, value)
        assert agent("pause", "--why", "test").returncode == 0
        post(f"{stack.url('databricks')}/_standin/scenario", json.loads(THREE.read_text()))
        observer = Observer(stack)
        retry, mail, skip = (run.run_id for run in expected_runs(THREE))
        wait_for(lambda: all((i := observer.incident(r)) and i.decision for r in (retry, mail, skip)))
        time.sleep(2)
        assert observer.effects() == []
        assert agent("resume").returncode == 0
        observer = wait_until_all_ended(stack, THREE)
        assert all(row.as_expected for row in observer.rows(expected_runs(THREE)))


def test_start_until_idle_ends_by_itself_with_exit_code_0(tmp_path: Path) -> None:
    finished = agent("start", "--base-port", "0", "--scenario", str(THREE), "--until-idle", "--json")
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["ready"] is True


def test_a_demo_that_is_told_to_end_stops_all_its_parts() -> None:
    description = FOLDER / "stack.json"
    description.unlink(missing_ok=True)
    demo = subprocess.Popen([sys.executable, "-m", "agent", "demo", "--json"], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(description.exists)
        pids = [part["pid"] for part in json.loads(description.read_text()).values() if part.get("pid")]
        assert len(pids) == 6
        demo.terminate()
        assert demo.wait(timeout=30) == 128 + signal.SIGTERM
    finally:
        demo.kill()
    assert [pid for pid in pids if is_running(pid)] == []


def test_check_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_stack(tmp_path) as stack:
        for name, value in stack.settings.items():
            monkeypatch.setenv(name, value)
        good = agent("check", "--json")
        assert good.returncode == 0, good.stdout
        assert all(check["ok"] for check in json.loads(good.stdout)["checks"])
        monkeypatch.setenv("DATABRICKS_TOKEN", "bad-token")
        monkeypatch.setenv("SENDER_EMAIL", "")
        bad = agent("check", "--json")
        wrong = {check["name"]: check for check in json.loads(bad.stdout)["checks"] if not check["ok"]}
        assert bad.returncode == 2
        assert set(wrong) == {"Databricks", "E-mail"}
        assert "SENDER_EMAIL" in wrong["E-mail"]["fix"]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: object, seconds: float = 30) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def post(url: str, body: object) -> None:
    import urllib.request

    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()
