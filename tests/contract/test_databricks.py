"""The Databricks stand-in against the official databricks-sdk, over a real socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.errors import (
    BadRequest,
    InvalidParameterValue,
    InvalidState,
    NotFound,
    PermissionDenied,
    ResourceDoesNotExist,
    TooManyRequests,
)
from databricks.sdk.service.compute import GetEventsOrder
from databricks.sdk.service.jobs import (
    RepairHistoryItemType,
    Run,
    RunLifeCycleState,
    RunLifecycleStateV2State,
    RunResultState,
    TerminationCodeCode,
)

from local.databricks.__main__ import main
from local.databricks.server import create_databricks_app
from local.http_standin import running

JSON = dict[str, Any]
REPAIR = "/api/2.2/jobs/runs/repair"
CLUSTER: JSON = {"spark_version": "16.4.x-scala2.12", "node_type_id": "Standard_DS3_v2", "num_workers": 2}


def scenario() -> JSON:
    wide = [{"task_key": f"t{n:03}", "environment_key": "default"} for n in range(150)]
    load_failure = {
        "error": "short",
        "error_trace": "Traceback: long",
        "logs": "last lines",
        "logs_truncated": True,
        "cluster_termination_reason": {
            "code": "DRIVER_OUT_OF_MEMORY",
            "type": "SERVICE_FAULT",
            "parameters": {"instance_id": "i-1"},
        },
        "cluster_events": [{"type": "DRIVER_NOT_RESPONDING"}],
    }
    chain = [
        {"task_key": "extract", "job_cluster_key": "main"},
        {"task_key": "load", "job_cluster_key": "main", "depends_on": [{"task_key": "extract"}]},
        {"task_key": "report", "run_job_task": {"job_id": 2}, "depends_on": [{"task_key": "load"}]},
    ]
    failing_load = {"task_key": "load", "failure": load_failure, "retry_duration_seconds": 0.0}
    past = {"start_offset_seconds": -100.0, "duration_seconds": 3.0}
    return {
        "workspace": "4242",
        "policies": [{"policy_id": "p1", "definition": {"num_workers": {"type": "range", "maxValue": 8}}}],
        "pipeline_events": {"pipe-1": [{"id": "e1", "level": "ERROR", "message": "flow failed"}]},
        "queries": [{"query_id": "q1", "error_message": "out of memory", "status": "FAILED"}],
        "jobs": [
            {
                "job_id": 1,
                "name": "orders",
                "settings": {
                    "tags": {"owner": "a"},
                    "timeout_seconds": 600,
                    "max_concurrent_runs": 50,
                    "job_clusters": [{"job_cluster_key": "main", "new_cluster": CLUSTER}],
                    "tasks": chain,
                    "a_field_the_sdk_does_not_know": {"x": 1},
                },
                "runs": [
                    {
                        "run_id": 11,
                        **past,
                        "tasks": [failing_load, {"task_key": "report", "child_run_id": 21}],
                    },
                    {"run_id": 12, **past, "duration_seconds": 1000.0},
                    {
                        "run_id": 13,
                        **past,
                        "tasks": [
                            {
                                **failing_load,
                                "heals_when": {"kind": "worker_memory_gb_at_least", "gb": 28},
                            }
                        ],
                    },
                ],
            },
            {
                "job_id": 2,
                "name": "Wide",
                "settings": {"tasks": wide, "parameters": [{"name": "day", "default": "today"}]},
                "runs": [{"run_id": 21, **past, "tasks": [{"task_key": "t149", "failure": {"error": "e"}}]}],
            },
            {
                "job_id": 3,
                "settings": {"max_concurrent_runs": 50},
                "runs": [{"run_id": 300 + n, "start_offset_seconds": -200.0 - n} for n in range(60)],
            },
        ],
    }


@pytest.fixture(scope="module", autouse=True)
def _no_databricks_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("DATABRICKS_", "ARM_")):
                patch.delenv(name)
        patch.setenv("DATABRICKS_CONFIG_FILE", "/nonexistent")
        yield


@pytest.fixture
def effects_path(tmp_path: Path) -> Path:
    return tmp_path / "effects.jsonl"


@pytest.fixture(scope="module")
def shared_url() -> Iterator[str]:
    """A stand-in for the tests that only read."""
    with running(lambda: create_databricks_app(effects_path=None, scenario=scenario())) as url:
        yield url


@pytest.fixture
def url(effects_path: Path) -> Iterator[str]:
    with running(lambda: create_databricks_app(effects_path=effects_path, scenario=scenario())) as url:
        yield url


def client(url: str, token: str = "t") -> WorkspaceClient:
    return WorkspaceClient(config=Config(host=url, token=token, retry_timeout_seconds=5, http_timeout_seconds=5))


@pytest.fixture
def databricks(url: str) -> WorkspaceClient:
    return client(url)


def control(url: str, path: str, body: object | None = None) -> JSON:
    """GET, or with a body POST, below /_standin."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/_standin/{path}", data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as response:
        answer: JSON = json.load(response)
    return answer


def effects(url: str) -> list[JSON]:
    found: list[JSON] = control(url, "effects")["effects"]
    return found


def ended(databricks: WorkspaceClient, run_id: int) -> Run:
    """Wait until a run is over (the tests' runs take a second at most)."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        run = databricks.jobs.get_run(run_id, include_history=True)
        if run.status and run.status.state == RunLifecycleStateV2State.TERMINATED:
            return run
        time.sleep(0.02)
    raise AssertionError(f"Run {run_id} is still active.")


def repair(databricks: WorkspaceClient, run_id: int, **arguments: Any) -> int:
    repair_id: int = databricks.jobs.repair_run(run_id, **arguments).response.repair_id  # type: ignore[attr-defined]
    return repair_id


def run_now(databricks: WorkspaceClient, job_id: int, **arguments: Any) -> int:
    run_id: int = databricks.jobs.run_now(job_id, **arguments).response.run_id  # type: ignore[attr-defined]
    return run_id


def raw(databricks: WorkspaceClient, path: str, **query: object) -> JSON:
    answer = databricks.api_client.do("GET", f"/api/2.2/{path}", query=query)
    assert isinstance(answer, dict)
    return answer


class TestList:
    @pytest.fixture
    def url(self, shared_url: str) -> str:
        return shared_url

    def test_all_pages_newest_first(self, url: str, databricks: WorkspaceClient) -> None:
        control(url, "calls/reset", {})
        runs = list(databricks.jobs.list_runs(limit=25))
        starts = [run.start_time or 0 for run in runs]
        assert len(runs) == 64
        assert starts == sorted(starts, reverse=True)
        assert runs[0].tasks is None or not runs[0].tasks
        assert control(url, "calls") == {"total": 3, "by_path": {"GET /api/2.2/jobs/runs/list": 3}}

    def test_filters(self, databricks: WorkspaceClient) -> None:
        assert [run.run_id for run in databricks.jobs.list_runs(active_only=True)] == [12]
        assert 12 not in {run.run_id for run in databricks.jobs.list_runs(completed_only=True)}
        assert {run.run_id for run in databricks.jobs.list_runs(job_id=1)} == {11, 12, 13}
        newest = next(iter(databricks.jobs.list_runs(job_id=3, limit=1)))
        assert newest.run_id == 300
        assert newest.start_time is not None
        between = databricks.jobs.list_runs(
            job_id=3, start_time_from=newest.start_time - 2000, start_time_to=newest.start_time - 1000
        )
        assert [run.run_id for run in between] == [301, 302]

    def test_expanded_tasks_are_cut_at_a_hundred(self, databricks: WorkspaceClient) -> None:
        (entry,) = raw(databricks, "jobs/runs/list", job_id=2, expand_tasks="true")["runs"]
        assert (len(entry["tasks"]), entry["has_more"]) == (100, True)
        (run,) = databricks.jobs.list_runs(job_id=2, expand_tasks=True)
        assert len(run.tasks or []) == 150

    @pytest.mark.parametrize(
        "query",
        [
            {"limit": 26},
            {"limit": -1},
            {"active_only": "true", "completed_only": "true"},
            {"job_id": "abc"},
            {"page_token": "x"},
        ],
    )
    def test_refused_queries(self, databricks: WorkspaceClient, query: JSON) -> None:
        with pytest.raises(InvalidParameterValue):
            raw(databricks, "jobs/runs/list", **query)

    def test_limit_zero_is_the_maximum(self, databricks: WorkspaceClient) -> None:
        assert len(raw(databricks, "jobs/runs/list", limit=0)["runs"]) == 25
        assert len(raw(databricks, "jobs/runs/list")["runs"]) == 20


class TestRun:
    def test_150_tasks_in_two_calls(self, url: str, databricks: WorkspaceClient) -> None:
        control(url, "calls/reset", {})
        run = databricks.jobs.get_run(21, include_history=True)
        assert len({task.task_key for task in run.tasks or []}) == 150
        assert control(url, "calls")["by_path"] == {"GET /api/2.2/jobs/runs/get": 2}
        assert len(run.repair_history or []) == 1

    def test_both_forms_of_a_failed_state(self, databricks: WorkspaceClient) -> None:
        run = databricks.jobs.get_run(11)
        assert run.state is not None
        assert run.state.life_cycle_state == RunLifeCycleState.INTERNAL_ERROR
        assert run.state.result_state == RunResultState.FAILED
        assert run.status is not None
        assert run.status.termination_details is not None
        assert run.status.termination_details.code == TerminationCodeCode.RUN_EXECUTION_ERROR
        assert {task.task_key: task.state.result_state for task in run.tasks or [] if task.state} == {
            "extract": RunResultState.SUCCESS,
            "load": RunResultState.FAILED,
            "report": RunResultState.UPSTREAM_FAILED,
        }

    def test_api_2_1_answers_alike(self, databricks: WorkspaceClient) -> None:
        old = databricks.api_client.do("GET", "/api/2.1/jobs/runs/get", query={"run_id": 11})
        assert old == raw(databricks, "jobs/runs/get", run_id=11)

    def test_output_of_a_task_run(self, databricks: WorkspaceClient) -> None:
        tasks = {task.task_key: task.run_id for task in databricks.jobs.get_run(11).tasks or []}
        output = databricks.jobs.get_run_output(tasks["load"] or 0)
        assert (output.error, output.error_trace, output.logs) == ("short", "Traceback: long", "last lines")
        assert output.logs_truncated
        assert output.metadata is not None
        assert output.metadata.run_id == tasks["load"]
        child = databricks.jobs.get_run_output(tasks["report"] or 0)
        assert child.run_job_output is not None
        assert child.run_job_output.run_id == 21

    def test_a_task_run_can_be_read_by_its_id(self, databricks: WorkspaceClient) -> None:
        task = next(task for task in databricks.jobs.get_run(11).tasks or [] if task.task_key == "load")
        run = databricks.jobs.get_run(task.run_id or 0)
        assert run.run_id == task.run_id
        assert run.state is not None
        assert run.state.result_state == RunResultState.FAILED

    def test_output_of_a_job_run_is_refused(self, databricks: WorkspaceClient) -> None:
        with pytest.raises(BadRequest, match="runs with multiple tasks is not supported"):
            databricks.jobs.get_run_output(11)

    @pytest.mark.parametrize(
        "call", [lambda w: w.jobs.get_run(999), lambda w: w.jobs.get_run_output(999), lambda w: w.jobs.get(999)]
    )
    def test_unknown_ids(self, databricks: WorkspaceClient, call: Callable[[WorkspaceClient], object]) -> None:
        with pytest.raises(ResourceDoesNotExist, match="999 does not exist"):
            call(databricks)

    def test_cancel(self, databricks: WorkspaceClient) -> None:
        databricks.jobs.cancel_run(12)
        run = databricks.jobs.get_run(12)
        assert run.status is not None
        assert run.status.termination_details is not None
        assert run.status.termination_details.code == TerminationCodeCode.USER_CANCELED


class TestRepair:
    def test_chain(self, url: str, databricks: WorkspaceClient, effects_path: Path) -> None:
        start = databricks.jobs.get_run(11).start_time
        first = repair(databricks, 11, rerun_all_failed_tasks=True)
        run = ended(databricks, 11)
        assert run.start_time == start
        assert [item.type for item in run.repair_history or []] == [
            RepairHistoryItemType.ORIGINAL,
            RepairHistoryItemType.REPAIR,
        ]
        assert (run.repair_history or [])[1].id == first
        assert [task.task_key for task in run.tasks or []].count("load") == 2
        with pytest.raises(InvalidParameterValue, match="The latest repair ID needs to be provided"):
            databricks.jobs.repair_run(11, rerun_all_failed_tasks=True)
        with pytest.raises(InvalidParameterValue, match="not the latest repair"):
            databricks.jobs.repair_run(11, rerun_all_failed_tasks=True, latest_repair_id=1)
        second = repair(databricks, 11, rerun_tasks=["load"], latest_repair_id=first)
        assert second != first
        recorded = [(e["kind"], e["key"], e["run_id"], e["job_id"], e["accepted"], e["status"]) for e in effects(url)]
        assert recorded == [
            ("repair", "11:1", "11", "1", True, 200),
            ("repair", "11:2", "11", "1", False, 400),
            ("repair", "11:2", "11", "1", False, 400),
            ("repair", "11:2", "11", "1", True, 200),
        ]
        assert [json.loads(line) for line in effects_path.read_text().splitlines()] == effects(url)

    def test_an_active_run_is_refused(self, databricks: WorkspaceClient) -> None:
        with pytest.raises(InvalidState):
            databricks.jobs.repair_run(12, rerun_all_failed_tasks=True)

    def test_a_lost_answer_makes_the_sdk_send_it_again(self, url: str, databricks: WorkspaceClient) -> None:
        """The compare-and-set on latest_repair_id, not the client, is what keeps this from being two repairs."""
        control(url, "faults", {"faults": [{"match": f"POST {REPAIR}", "kind": "drop_after", "times": 1}]})
        with pytest.raises(BadRequest):
            databricks.jobs.repair_run(11, rerun_all_failed_tasks=True)
        assert [(effect["accepted"]) for effect in effects(url)] == [True, False]

    def test_throttled(self, url: str) -> None:
        control(url, "faults", {"faults": [{"match": f"POST {REPAIR}", "kind": "429", "retry_after": 1}]})
        impatient = WorkspaceClient(config=Config(host=url, token="t", retry_timeout_seconds=1))
        with pytest.raises(TimeoutError) as timed_out:
            impatient.jobs.repair_run(11, rerun_all_failed_tasks=True)
        assert isinstance(timed_out.value.__cause__, TooManyRequests)
        assert not effects(url)

    def test_repair_heals_after_the_cluster_was_changed(self, url: str, databricks: WorkspaceClient) -> None:
        bigger = {**CLUSTER, "node_type_id": "Standard_DS12_v2"}
        for cluster in (bigger, CLUSTER):
            body = {
                "job_id": 1,
                "new_settings": {"job_clusters": [{"job_cluster_key": "main", "new_cluster": cluster}]},
            }
            databricks.api_client.do("POST", "/api/2.2/jobs/update", body=body)
            if cluster is bigger:
                databricks.jobs.repair_run(13, rerun_all_failed_tasks=True)
                run = ended(databricks, 13)
        assert run.state is not None
        assert run.state.result_state == RunResultState.SUCCESS
        assert [effect["kind"] for effect in effects(url)] == ["job_update", "repair", "job_update"]
        assert control(url, "jobs/1")["settings"]["job_clusters"][0]["new_cluster"] == CLUSTER


class TestJobs:
    def test_settings_are_raw(self, url: str, databricks: WorkspaceClient) -> None:
        settings = raw(databricks, "jobs/get", job_id=1)["settings"]
        assert settings["a_field_the_sdk_does_not_know"] == {"x": 1}
        assert settings == control(url, "jobs/1")["settings"]

    def test_150_tasks_of_a_job(self, databricks: WorkspaceClient) -> None:
        settings = databricks.jobs.get(2).settings
        assert settings is not None
        assert len(settings.tasks or []) == 150

    def test_list(self, databricks: WorkspaceClient) -> None:
        assert [job.job_id for job in databricks.jobs.list(limit=1)] == [1, 2, 3]
        (found,) = databricks.jobs.list(name="wide")
        assert found.job_id == 2
        assert found.settings is not None
        assert not found.settings.tasks

    def test_update_merges_and_removes(self, url: str, databricks: WorkspaceClient) -> None:
        body = {
            "job_id": 1,
            "new_settings": {
                "tags": {"new": "b"},
                "tasks": [{"task_key": "load", "timeout_seconds": 9}, {"task_key": "extra"}],
            },
            "fields_to_remove": ["timeout_seconds", "tasks/report"],
        }
        databricks.api_client.do("POST", "/api/2.2/jobs/update", body=body)
        settings = control(url, "jobs/1")["settings"]
        assert settings["tags"] == {"new": "b"}
        assert "timeout_seconds" not in settings
        assert settings["tasks"] == [
            {"task_key": "extract", "job_cluster_key": "main"},
            {"task_key": "load", "timeout_seconds": 9},
            {"task_key": "extra"},
        ]
        assert settings["job_clusters"][0]["new_cluster"] == CLUSTER
        (effect,) = effects(url)
        assert effect["key"].startswith("1:")
        assert effect["fields"] == ["tags", "tasks", "tasks/report", "timeout_seconds"]

    def test_update_that_breaks_a_policy(self, url: str, databricks: WorkspaceClient) -> None:
        cluster = {"job_cluster_key": "main", "new_cluster": {**CLUSTER, "policy_id": "p1", "num_workers": 9}}
        with pytest.raises(InvalidParameterValue, match="num_workers"):
            databricks.api_client.do(
                "POST", "/api/2.2/jobs/update", body={"job_id": 1, "new_settings": {"job_clusters": [cluster]}}
            )
        assert [(effect["kind"], effect["accepted"]) for effect in effects(url)] == [("job_update", False)]

    def test_run_now_with_a_token_starts_one_run(self, url: str, databricks: WorkspaceClient) -> None:
        first = run_now(databricks, 1, idempotency_token="11:1:retry")
        again = run_now(databricks, 1, idempotency_token="11:1:retry")
        assert first == again
        other = run_now(databricks, 1, idempotency_token="f" * 64, job_parameters={"day": "1"})
        assert other != first
        named, hashed = effects(url)
        assert (named["kind"], named["key"], named["run_id"], named["accepted"]) == ("run_now", "11:1", "11", True)
        assert len(hashed["key"]) == 16
        assert hashed["request"]["job_parameters"] == {"day": "1"}

    def test_a_lost_answer_of_run_now_is_harmless(self, url: str, databricks: WorkspaceClient) -> None:
        control(url, "faults", {"faults": [{"match": "POST /api/2.2/jobs/run-now", "kind": "drop_after", "times": 1}]})
        databricks.jobs.run_now(1, idempotency_token="11:1")
        assert [effect["accepted"] for effect in effects(url)] == [True]

    def test_a_long_token(self, databricks: WorkspaceClient) -> None:
        with pytest.raises(InvalidParameterValue, match="64 characters"):
            databricks.jobs.run_now(1, idempotency_token="t" * 65)


class TestCompute:
    @pytest.fixture
    def url(self, shared_url: str) -> str:
        return shared_url

    def cluster_id(self, databricks: WorkspaceClient) -> str:
        task = next(task for task in databricks.jobs.get_run(11).tasks or [] if task.task_key == "load")
        assert task.cluster_instance is not None
        return task.cluster_instance.cluster_id or ""

    def test_termination_reason(self, databricks: WorkspaceClient) -> None:
        reason = databricks.clusters.get(self.cluster_id(databricks)).termination_reason
        assert reason is not None
        assert reason.as_dict() == {
            "code": "DRIVER_OUT_OF_MEMORY",
            "type": "SERVICE_FAULT",
            "parameters": {"instance_id": "i-1"},
        }
        with pytest.raises(ResourceDoesNotExist):
            databricks.clusters.get("none")

    def test_events_filtered_and_paged(self, databricks: WorkspaceClient) -> None:
        cluster_id = self.cluster_id(databricks)
        events = databricks.clusters.events(cluster_id, order=GetEventsOrder.ASC, limit=1)
        assert [event.type.value for event in events if event.type] == [
            "CREATING",
            "RUNNING",
            "DRIVER_NOT_RESPONDING",
            "TERMINATING",
        ]
        newest = next(iter(databricks.clusters.events(cluster_id)))
        assert newest.details is not None
        assert newest.details.reason is not None

    def test_node_types(self, databricks: WorkspaceClient) -> None:
        node_types = {entry.node_type_id: entry for entry in databricks.clusters.list_node_types().node_types or []}
        assert node_types["Standard_DS12_v2"].memory_mb == 28 * 1024
        assert node_types["Standard_NC4as_T4_v3"].num_gpus == 1

    def test_policy(self, databricks: WorkspaceClient) -> None:
        definition = databricks.cluster_policies.get("p1").definition
        assert json.loads(definition or "") == {"num_workers": {"type": "range", "maxValue": 8}}
        with pytest.raises(NotFound):
            databricks.cluster_policies.get("none")

    def test_pipeline_events_and_queries(self, databricks: WorkspaceClient) -> None:
        (event,) = islice(databricks.pipelines.list_pipeline_events("pipe-1"), 5)
        assert event.message == "flow failed"
        queries = databricks.query_history.list().res or []
        assert [query.error_message for query in queries] == ["out of memory"]


class TestAccess:
    def test_me_and_workspace_id(self, databricks: WorkspaceClient) -> None:
        assert databricks.current_user.me().user_name == "failure-agent@example.com"
        assert databricks.get_workspace_id() == 4242

    def test_bad_token(self, url: str) -> None:
        with pytest.raises(PermissionDenied, match="Invalid access token"):
            client(url, "bad-token").jobs.get_run(11)

    def test_read_only_token(self, url: str) -> None:
        reader = client(url, "read-only")
        assert reader.jobs.get_run(11).run_id == 11
        writes: list[Callable[[], object]] = [
            lambda: reader.jobs.repair_run(11, rerun_all_failed_tasks=True),
            lambda: reader.jobs.run_now(1),
            lambda: reader.jobs.update(1, fields_to_remove=["tags"]),
            lambda: reader.jobs.cancel_run(12),
        ]
        for write in writes:
            with pytest.raises(PermissionDenied):
                write()
        assert [(e["kind"], e["accepted"], e["status"]) for e in effects(url)] == [
            ("repair", False, 403),
            ("run_now", False, 403),
            ("job_update", False, 403),
        ]
        assert control(url, "jobs/1")["settings"]["tags"] == {"owner": "a"}

    def test_unknown_path(self, databricks: WorkspaceClient) -> None:
        with pytest.raises(NotFound, match="No API found"):
            raw(databricks, "jobs/none")


class TestControl:
    def test_more_runs_while_it_runs(self, url: str, databricks: WorkspaceClient) -> None:
        more = {"jobs": [{"job_id": 1, "runs": [{"run_id": 99, "start_offset_seconds": -10}]}]}
        assert control(url, "scenario", more) == {"jobs": 1, "runs": 1}
        assert databricks.jobs.get_run(99).run_id == 99
        with pytest.raises(urllib.error.HTTPError) as refused:
            control(url, "scenario", more)
        with refused.value as response:
            assert response.status == 400
            assert "Duplicate run_id 99" in response.read().decode()

    def test_unknown_job(self, url: str) -> None:
        with pytest.raises(urllib.error.HTTPError) as refused:
            control(url, "jobs/999")
        with refused.value as response:
            assert response.status == 404

    def test_as_a_program(self, tmp_path: Path) -> None:
        """The three runs of the scenario end, and two of them as failures that a caretaker can read."""
        command = [sys.executable, "-m", "local.databricks", "--port", "0", "--scenario", "local/scenarios/three.json"]
        command += ["--effects", str(tmp_path / "effects.jsonl")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                name, port = process.stdout.readline().split()
                assert name == "READY"
                databricks = client(f"http://127.0.0.1:{port}")
                deadline = time.monotonic() + 10
                over: dict[int, RunResultState | None] = {}
                while len(over) < 3 and time.monotonic() < deadline:
                    runs = list(databricks.jobs.list_runs(completed_only=True))
                    over = {run.run_id or 0: run.state.result_state for run in runs if run.state}
                    time.sleep(0.05)
            finally:
                process.terminate()
        assert over == {10101: RunResultState.FAILED, 10201: RunResultState.FAILED, 10301: RunResultState.CANCELED}
        assert process.returncode == 0

    def test_a_wrong_scenario_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "wrong.json"
        path.write_text('{"jobs": [{"job_id": "x"}]}')
        monkeypatch.setattr(sys, "argv", ["local.databricks", "--port", "0", "--scenario", str(path)])
        with pytest.raises(SystemExit, match=r"jobs\.0\.job_id"):
            main()
