"""The connector with the official SDK over a real socket: against the stand-in workspace, and scripted answers."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

from local.databricks.server import create_databricks_app
from shared.databricks_connector import DatabricksConnector
from shared.domain import ComputeKind, Json
from shared.errors import (
    ConfigurationError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    RepairImpossibleError,
    RepairRefusedError,
    RunNotFoundError,
    ThrottledError,
    TransientError,
)
from shared.ports import JobRuns
from tests.shared.databricks_service import FAILED, NOW, FakeClock, Service, a_run, scripted, serving, settings_for


@pytest.fixture
def time_of_workspace() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(time_of_workspace: FakeClock) -> Iterator[Service]:
    """The stand-in with one job whose run 9001 has failed a while ago."""
    with serving(lambda: create_databricks_app(effects_path=None, clock=time_of_workspace.time)) as service:
        service.load(a_scenario())
        time_of_workspace.now += 10
        yield service


FAILURE = {
    "error": "java.lang.OutOfMemoryError: Java heap space",
    "error_trace": "at org.example.Load",
    "logs": "ERROR lost",
    "cluster_termination_reason": {"code": "SPOT_INSTANCE_TERMINATION", "type": "CLOUD_FAILURE"},
    "cluster_events": [{"type": "NODES_LOST", "details": {"reason": {"code": "SPOT_INSTANCE_TERMINATION"}}}],
}


def a_scenario() -> Json:
    cluster = {"job_cluster_key": "main", "new_cluster": {"node_type_id": "Standard_DS3_v2", "num_workers": 2}}
    settings = {
        "name": "orders-daily",
        "tags": {"failure-agent": "full"},
        "parameters": [{"name": "date", "default": "today"}],
        "job_clusters": [cluster],
        "tasks": [
            {"task_key": "extract", "job_cluster_key": "main", "notebook_task": {}},
            {
                "task_key": "load",
                "job_cluster_key": "main",
                "notebook_task": {},
                "depends_on": [{"task_key": "extract"}],
            },
            {
                "task_key": "publish",
                "job_cluster_key": "main",
                "notebook_task": {},
                "depends_on": [{"task_key": "load"}],
            },
        ],
    }
    scenario = another_run(9001)
    scenario["jobs"][0]["settings"] = settings
    return scenario


def another_run(run_id: int, **plan: Any) -> Json:
    """One more run of the job, in which the task `load` fails."""
    tasks = [{"task_key": "load", "failure": FAILURE}]
    return {"jobs": [{"job_id": 101, "runs": [{"run_id": run_id, "start_offset_seconds": 1.0, "tasks": tasks} | plan]}]}


def repair(service: Service, run_id: int = 9001, *, latest_repair_id: int | None = None, **parameters: str) -> int:
    return service.connector.repair_run(
        service.workspace,
        run_id,
        latest_repair_id=latest_repair_id,
        job_parameters=parameters,
        legacy_parameters={},
    )


def run_now(service: Service, token: str = "9001:1:abc", *, job_id: int = 101) -> int:
    return service.connector.run_now(service.workspace, job_id, token=token, job_parameters={})


# Construction and settings


def test_nothing_is_imported_or_sent_before_the_first_call() -> None:
    code = (
        "import sys\n"
        "from shared.databricks_connector import DatabricksConnector\n"
        "from shared.settings import Settings\n"
        "DatabricksConnector()\n"
        "connector = DatabricksConnector(Settings(databricks_host=('http://127.0.0.1:1',), databricks_token='t'))\n"
        "print(connector.workspaces, [m for m in ('databricks', 'requests', 'azure') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "('127.0.0.1-1',) []"


def test_the_connector_is_a_port() -> None:
    runs: JobRuns = DatabricksConnector(settings_for("https://a.example"))

    assert runs.workspaces == ("a.example",)


def test_without_settings_those_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_CLIENT_ID", raising=False)
    monkeypatch.setenv("DATABRICKS_TOKEN", "token")
    monkeypatch.setenv("DATABRICKS_HOST", "https://adb-1234567890123456.7.azuredatabricks.net")

    assert DatabricksConnector().workspaces == ("1234567890123456",)


def test_an_unknown_workspace_is_a_matter_of_settings() -> None:
    with pytest.raises(ConfigurationError, match="DATABRICKS_HOST"):
        DatabricksConnector(settings_for("https://a.example")).read_state("b.example", 1)


# Lists


def test_lists_follow_all_pages(service: Service, time_of_workspace: FakeClock) -> None:
    runs = [
        {"run_id": number, "start_offset_seconds": number / 100, "duration_seconds": 1.0} for number in range(1, 61)
    ]
    waiting = [{"run_id": 500 + number, "duration_seconds": 900.0} for number in range(30)]
    settings = {"max_concurrent_runs": 1000}
    service.load(
        {
            "jobs": [
                {"job_id": 1, "settings": settings, "runs": runs},
                {"job_id": 2, "settings": settings, "runs": waiting},
            ]
        }
    )
    time_of_workspace.now += 5

    started_after = datetime.fromtimestamp(NOW + 10, UTC)
    completed = service.connector.completed_runs(service.workspace, started_after=started_after)
    calls_for_completed = service.connector.calls
    active = service.connector.active_runs(service.workspace)

    assert {run.run_id for run in completed} == set(range(1, 61))
    assert not any(run.is_failed or run.is_active for run in completed)
    assert calls_for_completed == 3
    assert {run.run_id for run in active} == {500 + number for number in range(30)}
    assert all(run.is_active and run.end_time is None for run in active)
    assert service.connector.calls == 3 + 2


def test_a_quiet_workspace_costs_one_call_per_list(service: Service) -> None:
    service.connector.active_runs(service.workspace)
    service.connector.completed_runs(service.workspace, started_after=datetime.fromtimestamp(NOW + 99, UTC))

    assert service.connector.calls == 2


def test_a_run_that_comes_on_two_pages_is_listed_once() -> None:
    pages = {"": {"runs": [a_run()], "next_page_token": "2"}, "2": {"runs": [a_run(), a_run(run_id=6)]}}

    with serving(
        lambda: scripted({"jobs/runs/list": lambda r: web.json_response(pages[r.query.get("page_token", "")])})
    ) as service:
        listed = service.connector.active_runs(service.workspace)

    assert [run.run_id for run in listed] == [5, 6]


# One run


def test_state_of_a_run_follows_its_repairs(service: Service, time_of_workspace: FakeClock) -> None:
    before = service.connector.read_state(service.workspace, 9001)
    repair_id = repair(service)
    during = service.connector.read_state(service.workspace, 9001)
    time_of_workspace.now += 10
    after = service.connector.read_state(service.workspace, 9001)

    assert (before.is_failed, before.latest_repair_id, before.job_id) == (True, None, 101)
    assert (during.is_active, during.latest_repair_id) == (True, repair_id)
    assert (after.is_failed, after.repairs[-1].result_state) == (True, "FAILED")


def test_a_run_that_does_not_exist(service: Service) -> None:
    with pytest.raises(RunNotFoundError, match="4711"):
        service.connector.read_state(service.workspace, 4711)


def test_facts_of_a_failed_run(service: Service) -> None:
    facts = service.connector.read_facts(service.workspace, 9001)

    assert facts.task_count == 3
    assert [failure.task_key for failure in facts.failures] == ["load"]
    failure = facts.failures[0]
    assert failure.compute is ComputeKind.JOB_CLUSTER
    assert failure.symptoms.error == FAILURE["error"]
    assert failure.symptoms.error_trace == FAILURE["error_trace"]
    assert failure.symptoms.logs == FAILURE["logs"]
    assert failure.symptoms.termination_code == "RUN_EXECUTION_ERROR"
    assert failure.symptoms.cluster_reason_code == "SPOT_INSTANCE_TERMINATION"
    assert "NODES_LOST SPOT_INSTANCE_TERMINATION" in failure.symptoms.cluster_events
    assert facts.job
    assert (facts.job.name, facts.job.declared_parameters) == ("orders-daily", {"date": "today"})
    assert facts.tags == {"failure-agent": "full"}
    assert (facts.newer_runs, facts.parent) == ((), "")
    assert service.connector.calls == 7  # run, output, cluster, its events, job, newer runs, node types


def test_newer_runs_and_a_deleted_job(service: Service, time_of_workspace: FakeClock) -> None:
    interference = [
        {"kind": "newer_success", "at_offset_seconds": 5.0},
        {"kind": "delete_job", "at_offset_seconds": 8.0},
    ]
    service.load(another_run(9002, interference=interference))
    time_of_workspace.now += 7
    with_newer = service.connector.read_facts(service.workspace, 9002)
    time_of_workspace.now += 3
    without_job = service.connector.read_facts(service.workspace, 9002)

    assert [run.result_state for run in with_newer.newer_runs] == ["SUCCESS"]
    assert with_newer.job is not None
    assert without_job.job is None
    assert without_job.failures[0].symptoms.error == FAILURE["error"]


def test_of_150_tasks_the_first_20_to_fail_are_read(service: Service, time_of_workspace: FakeClock) -> None:
    keys = [f"task-{number:03}" for number in range(150)]
    tasks = [{"task_key": key, "notebook_task": {}, "environment_key": "default"} for key in keys]
    failing = [{"task_key": key, "failure": {"error": f"boom {key}"}} for key in keys[100:130]]
    service.load(
        {
            "jobs": [
                {"job_id": 3, "settings": {"tasks": tasks}, "runs": [{"run_id": 33, "tasks": failing}]},
            ]
        }
    )
    time_of_workspace.now += 10

    facts = service.connector.read_facts(service.workspace, 33)

    assert facts.task_count == 150
    assert len(facts.failures) == 20
    assert {failure.symptoms.error for failure in facts.failures} == {f"boom {key}" for key in keys[100:120]}
    assert {failure.compute for failure in facts.failures} == {ComputeKind.SERVERLESS}
    assert facts.job
    assert len(facts.job.settings["tasks"]) == 150
    assert service.connector.calls == 2 + 20 + 2 + 1  # run, outputs, job, newer runs


def test_a_run_without_tasks_fails_as_a_whole() -> None:
    skipped = {"state": {"life_cycle_state": "SKIPPED", "state_message": "An instance is already running."}}
    with serving(lambda: scripted({"jobs/runs/get": lambda _: web.json_response(a_run(**skipped))})) as service:
        facts = service.connector.read_facts(service.workspace, 5)

    assert facts.task_count == 0
    assert [failure.task_key for failure in facts.failures] == [""]
    assert facts.failures[0].symptoms.state_message == "An instance is already running."
    assert (facts.parent, facts.job) == ("submit", None)


def test_a_run_that_is_active_again_has_no_failures(service: Service) -> None:
    repair(service)

    facts = service.connector.read_facts(service.workspace, 9001)

    assert facts.run.is_active
    assert facts.failures == ()


@pytest.mark.parametrize("status", [400, 403, 404])
def test_what_cannot_be_read_about_a_task_is_left_empty(service: Service, status: int) -> None:
    refusal = {"status": status, "body": {"error_code": "ODD", "message": "not to be had"}}
    service.set_fault("GET /api/2.2/jobs/runs/get-output", "error", **refusal)
    service.set_fault("GET /api/2.1/clusters/get", "error", **refusal)

    failure = service.connector.read_facts(service.workspace, 9001).failures[0]

    assert failure.symptoms.error == ""
    assert failure.symptoms.cluster_reason_code is None
    assert failure.symptoms.state_message == "Workload failed, see run output for details"


def test_a_task_output_that_cannot_be_read_just_now_is_waited_for(service: Service) -> None:
    service.set_fault("GET /api/2.2/jobs/runs/get-output", "500")

    with pytest.raises(TransientError):
        service.connector.read_facts(service.workspace, 9001)


def test_a_for_each_task_shows_its_failed_iterations() -> None:
    stats = {"error_message_stats": [{"count": 3, "error_message": "boom in general"}]}
    task = {"task_key": "all", "run_id": 50, "for_each_task": {"stats": stats}} | FAILED
    first_page = {"iterations": [a_run(run_id=51, state={"life_cycle_state": "TERMINATED", "result_state": "SUCCESS"})]}
    second_page = {"iterations": [a_run(run_id=number) for number in range(52, 58)]}

    def run(request: web.Request) -> web.Response:
        if request.query["run_id"] == "5":
            return web.json_response(a_run(tasks=[task]))
        return web.json_response(
            second_page if "page_token" in request.query else first_page | {"next_page_token": "2"}
        )

    def output(request: web.Request) -> web.Response:
        return web.json_response({"error": f"boom in {request.query['run_id']}"})

    with serving(lambda: scripted({"jobs/runs/get": run, "jobs/runs/get-output": output})) as service:
        symptoms = service.connector.read_facts(service.workspace, 5).failures[0].symptoms

    assert symptoms.error.splitlines() == ["boom in general", "boom in 52", "boom in 53", "boom in 54"]
    assert symptoms.task_type == "for_each"


def test_a_huge_log_and_bytes_that_are_no_text() -> None:
    task = {"task_key": "a", "run_id": 50, "spark_python_task": {}} | FAILED
    log = b"\\u001b[31mred \\ud83d \xff\xfe end\\n" * 250_000
    body = b'{"error": "caf\xe9", "logs": "' + log + b'last line"}'
    assert len(body) > 6 * 1024 * 1024

    answers = {
        "jobs/runs/get": lambda _: web.json_response(a_run(tasks=[task])),
        "jobs/runs/get-output": lambda _: web.Response(body=body, content_type="application/json"),
    }
    with serving(lambda: scripted(answers)) as service:
        symptoms = service.connector.read_facts(service.workspace, 5).failures[0].symptoms

    assert symptoms.error == "caf\N{REPLACEMENT CHARACTER}"
    assert len(symptoms.logs) <= 5 * 1024 * 1024
    assert symptoms.logs.startswith("\x1b[31mred ?")
    assert symptoms.logs.endswith("\nlast line")
    symptoms.logs.encode("utf-8")


# Reads that fail


# Writes


def effects(service: Service) -> list[Json]:
    found: list[Json] = service.control("effects")["effects"]
    return found


def test_a_repair_reruns_the_failed_tasks_with_the_parameters_of_the_run(service: Service) -> None:
    repair_id = repair(service, date="2026-11-23")

    (effect,) = effects(service)
    assert (effect["kind"], effect["accepted"], effect["repair_id"]) == ("repair", True, repair_id)
    assert effect["request"] == {
        "rerun_all_failed_tasks": True,
        "rerun_dependent_tasks": True,
        "job_parameters": {"date": "2026-11-23"},
    }


def test_the_latest_repair_id_is_a_compare_and_swap(service: Service, time_of_workspace: FakeClock) -> None:
    first = repair(service)
    with pytest.raises(RepairRefusedError):  # it is running
        repair(service, latest_repair_id=first)
    time_of_workspace.now += 10
    for stale in (None, first + 1):
        with pytest.raises(RepairRefusedError):
            repair(service, latest_repair_id=stale)

    assert repair(service, latest_repair_id=first) != first
    assert [effect["accepted"] for effect in effects(service)] == [True, False, False, False, True]


def test_a_one_time_run_cannot_be_repaired(service: Service, time_of_workspace: FakeClock) -> None:
    service.load(another_run(9003, run_type="SUBMIT_RUN"))
    time_of_workspace.now += 10

    with pytest.raises(RepairImpossibleError):
        repair(service, 9003)


def test_a_refusal_that_is_not_understood_never_leads_to_a_new_run(service: Service) -> None:
    refusal = {"error_code": "INVALID_PARAMETER_VALUE", "message": "Something else is wrong"}
    service.set_fault("POST /api/2.2/jobs/runs/repair", "error", status=400, body=refusal)

    with pytest.raises(PermanentError) as caught:
        repair(service)

    assert type(caught.value) is PermanentError


def test_a_repair_of_a_run_that_is_gone(service: Service) -> None:
    with pytest.raises(RunNotFoundError):
        repair(service, 4711)


def test_a_token_that_may_only_read(service: Service) -> None:
    service.connector = DatabricksConnector(settings_for(service.url, databricks_token="read-only"))

    with pytest.raises(NotAuthorisedError):
        repair(service)
    with pytest.raises(NotAuthorisedError):
        run_now(service)


WRITES: dict[str, Callable[[Service], int]] = {
    "/api/2.2/jobs/runs/repair": repair,
    "/api/2.2/jobs/run-now": run_now,
}


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize(
    ("fault", "landed"),
    [
        ({"kind": "drop_before"}, False),
        ({"kind": "drop_after"}, True),
        ({"kind": "slow", "seconds": 1.5}, True),
        ({"kind": "error", "status": 500}, False),
        ({"kind": "error", "status": 502}, False),
        ({"kind": "error", "status": 504}, False),
        ({"kind": "503", "retry_after": 1}, False),
        (
            {"kind": "error", "status": 400, "body": {"error_code": "UNKNOWN", "message": "Unexpected error"}},
            False,
        ),
    ],
    ids=lambda value: "-".join(map(str, list(value.values())[:2])) if isinstance(value, dict) else "",
)
def test_a_write_in_doubt_is_sent_once(service: Service, path: str, fault: Json, landed: bool) -> None:
    service.set_fault(f"POST {path}", **fault)

    with pytest.raises(OutcomeUnknownError):
        WRITES[path](service)

    assert service.calls(f"POST {path}") == 1
    assert len(effects(service)) == landed


@pytest.mark.parametrize("path", WRITES)
def test_a_throttled_write_was_not_carried_out(service: Service, path: str) -> None:
    service.set_fault(f"POST {path}", "429", retry_after=7)

    with pytest.raises(ThrottledError) as caught:
        WRITES[path](service)

    assert caught.value.retry_after_seconds == 7
    assert service.calls(f"POST {path}") == 1
    assert service.clock.waits == []


def test_a_write_that_found_no_connection_is_not_in_doubt(service: Service) -> None:
    service.connector = DatabricksConnector(settings_for("http://127.0.0.1:1"), clock=service.clock)

    for write in WRITES.values():
        with pytest.raises(TransientError) as caught:
            write(service)

        assert type(caught.value) is TransientError


def test_an_answer_without_an_id_is_in_doubt() -> None:
    with (
        serving(lambda: scripted({"jobs/runs/repair": lambda _: web.json_response({})})) as service,
        pytest.raises(OutcomeUnknownError, match="repair_id"),
    ):
        repair(service)


def test_the_same_token_gives_the_same_run(service: Service) -> None:
    first = run_now(service, "9001:1:abc")

    assert run_now(service, "9001:1:abc") == first
    assert run_now(service, "9001:2:abc") != first
    assert [effect["key"] for effect in effects(service)] == ["9001:1", "9001:2"]


def test_a_new_run_of_a_job_that_is_gone(service: Service) -> None:
    with pytest.raises(RunNotFoundError):
        run_now(service, job_id=4711)


@pytest.mark.parametrize("token", ["", "x" * 65])
def test_a_token_has_1_to_64_characters(service: Service, token: str) -> None:
    with pytest.raises(ValueError, match="64"):
        run_now(service, token)

    assert effects(service) == []
