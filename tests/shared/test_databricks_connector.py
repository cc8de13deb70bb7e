"""The connector with the official SDK over a real socket: against the stand-in workspace, and scripted answers."""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from databricks.sdk import errors as sdk
from databricks.sdk.errors.base import DatabricksError
from requests import exceptions as requests_exceptions

from local.databricks.server import create_databricks_app
from local.http_standin import EffectLog, Faults, create_app, running
from shared import databricks_api, databricks_connector
from shared.databricks_api import translated, workspace_name
from shared.databricks_connector import DatabricksConnector
from shared.domain import ComputeKind, Json
from shared.errors import (
    AgentError,
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
from shared.settings import Settings

NOW = 1_790_000_000.0
WORKSPACE_HOST = "https://adb-1234567890123456.7.azuredatabricks.net"


@pytest.fixture(autouse=True)
def _no_databricks_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("DATABRICKS_", "ARM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", "/nonexistent")


@dataclass
class FakeClock:
    """Waits at once; remembers for how long it was asked to wait."""

    now: float = NOW
    waits: list[float] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.waits.append(seconds)
        self.now += seconds


def settings_for(*hosts: str, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "databricks_host": hosts,
        "databricks_token": "token",
        "databricks_timeout_seconds": 1,
        "databricks_retry_seconds": 5,
    }
    return Settings(**values | changes)


@dataclass
class Service:
    """A running service (the stand-in or scripted answers), and a connector to it."""

    url: str
    clock: FakeClock
    connector: DatabricksConnector

    @property
    def workspace(self) -> str:
        return self.connector.workspaces[0]

    def control(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url}/_standin/{path}", data) as response:
            return json.load(response)

    def load(self, scenario: Json) -> None:
        self.control("scenario", scenario)

    def set_fault(self, match: str, kind: str, **details: Any) -> None:
        self.control("faults", {"faults": [{"match": match, "kind": kind, **details}]})

    def calls(self, path: str) -> int:
        """How many requests for a path have arrived, repetitions by the SDK included."""
        return int(self.control("calls")["by_path"].get(path, 0))

    def repair(self, run_id: int = 9001, latest_repair_id: int | None = None, **changes: Any) -> int:
        values: dict[str, Any] = {"job_parameters": {}, "legacy_parameters": {}} | changes
        return self.connector.repair_run(self.workspace, run_id, latest_repair_id=latest_repair_id, **values)

    def run_now(self, token: str = "9001:1:abc", job_id: int = 101) -> int:
        return self.connector.run_now(self.workspace, job_id, token=token, job_parameters={})


@contextmanager
def serving(create: Callable[[], web.Application], **changes: Any) -> Iterator[Service]:
    clock = FakeClock()
    with running(create) as url:
        yield Service(url, clock, DatabricksConnector(settings_for(url, **changes), clock=clock))


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


def a_scenario(**run: Any) -> Json:
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
    plan = {"run_id": 9001, "start_offset_seconds": 1.0, "tasks": [{"task_key": "load", "failure": FAILURE}]} | run
    return {"jobs": [{"job_id": 101, "settings": settings, "runs": [plan]}]}


def scripted(answers: dict[str, Callable[[web.Request], web.Response]]) -> web.Application:
    """An API of a few paths; the others are 404."""
    app = create_app(effects=EffectLog("databricks", None), faults=Faults(), load_scenario=lambda scenario: scenario)

    async def answer(request: web.Request) -> web.Response:
        make = answers.get(request.path.rpartition("/api/")[2].partition("/")[2])
        if make is None:
            return web.json_response({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}, status=404)
        return make(request)

    app.router.add_route("*", "/{path:.*}", answer)
    return app


FAILED = {"state": {"life_cycle_state": "TERMINATED", "result_state": "FAILED", "state_message": "Workload failed"}}


def a_run(**fields: Any) -> Json:
    return {"run_id": 5, "job_id": 7, "start_time": 1_790_000_000_000, "run_type": "SUBMIT_RUN"} | FAILED | fields


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
    monkeypatch.setenv("DATABRICKS_HOST", WORKSPACE_HOST)

    assert DatabricksConnector().workspaces == ("1234567890123456",)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (WORKSPACE_HOST, "1234567890123456"),
        ("https://dbc-a1b2.cloud.databricks.com", "dbc-a1b2.cloud.databricks.com"),
        ("http://127.0.0.1:18081", "127.0.0.1-18081"),
        ("https://[::1]:443", "--1-443"),
    ],
)
def test_name_of_a_workspace(host: str, name: str) -> None:
    assert workspace_name(host) == name


@pytest.mark.parametrize(
    ("hosts", "changes", "names"),
    [
        ((), {}, ("DATABRICKS_HOST",)),
        ((WORKSPACE_HOST, "https://other.example"), {}, ("DATABRICKS_TOKEN", "DATABRICKS_HOST")),
        ((WORKSPACE_HOST, WORKSPACE_HOST), {"databricks_token": ""}, ("DATABRICKS_HOST",)),
        (
            ("https://dbc-1.cloud.databricks.com",),
            {"databricks_token": ""},
            ("DATABRICKS_TOKEN or DATABRICKS_CLIENT_ID",),
        ),
        (
            ("https://dbc-1.cloud.databricks.com",),
            {"databricks_token": "", "databricks_client_id": "id"},
            ("DATABRICKS_CLIENT_SECRET",),
        ),
        (
            (WORKSPACE_HOST,),
            {"databricks_token": "", "databricks_client_secret": "s"},
            ("DATABRICKS_CLIENT_ID",),
        ),
    ],
)
def test_wrong_settings_are_named(hosts: tuple[str, ...], changes: Json, names: tuple[str, ...]) -> None:
    connector = DatabricksConnector(settings_for(*hosts, **changes))

    with pytest.raises(ConfigurationError) as caught:
        _ = connector.workspaces

    assert caught.value.names == names


def test_an_unknown_workspace_is_a_matter_of_settings() -> None:
    with pytest.raises(ConfigurationError, match="DATABRICKS_HOST"):
        DatabricksConnector(settings_for("https://a.example")).read_state("b.example", 1)


# Sign-in


@pytest.fixture
def sign_in() -> Iterator[tuple[str, list[web.Request]]]:
    """A service that keeps the requests that it got and gives tokens to the service principal `id`."""
    seen: list[web.Request] = []

    def token(request: web.Request) -> web.Response:
        if request.headers["Authorization"] != "Basic aWQ6c2VjcmV0":  # id:secret
            return web.json_response({"error": "invalid_client", "error_description": "Client is wrong"}, status=401)
        return web.json_response({"access_token": "principal", "token_type": "Bearer", "expires_in": 3600})

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/oidc/v1/token":
            return token(request)
        if request.path.startswith("/api/"):
            seen.append(request)
            return web.json_response({"runs": []})
        return web.json_response({"error_code": "NOT_FOUND", "message": "no"}, status=404)

    def create() -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        return app

    with running(create) as url:
        yield url, seen


class FakeCredential:
    """An Entra credential that gives a token for one scope, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def get_token(self, *scopes: str, **_options: Any) -> AccessToken:
        if self.error:
            raise self.error
        return AccessToken(f"entra for {scopes[0]}", 4_000_000_000)


@pytest.mark.parametrize(
    ("changes", "authorization"),
    [
        ({"databricks_token": "pat"}, "Bearer pat"),
        ({"databricks_client_id": "id", "databricks_client_secret": "secret"}, "Bearer principal"),
        ({}, "Bearer entra for 2ff814a6-3304-4ab8-85cb-cd0e6f879c1d/.default"),
    ],
)
def test_ways_to_sign_in(
    sign_in: tuple[str, list[web.Request]], monkeypatch: pytest.MonkeyPatch, changes: Json, authorization: str
) -> None:
    url, seen = sign_in
    monkeypatch.setattr(databricks_api, "AZURE_DOMAINS", ("127.0.0.1",))
    for name in (
        "ARM_CLIENT_SECRET",
        "ARM_CLIENT_ID",
        "DATABRICKS_TOKEN",
        "DATABRICKS_USERNAME",
        "DATABRICKS_PASSWORD",
    ):
        monkeypatch.setenv(name, "stray")
    monkeypatch.setenv("DATABRICKS_CONFIG_PROFILE", "stray")
    settings = settings_for(url, **{"databricks_token": ""} | changes)
    connector = DatabricksConnector(settings, credential=FakeCredential())

    assert connector.active_runs(connector.workspaces[0]) == []

    assert seen[0].headers["Authorization"] == authorization
    assert seen[0].headers["User-Agent"].startswith("failure-agent/")


@pytest.mark.parametrize(
    ("changes", "credential", "error"),
    [
        (
            {"databricks_client_id": "id", "databricks_client_secret": "wrong"},
            FakeCredential(),
            NotAuthorisedError,
        ),
        ({}, FakeCredential(ClientAuthenticationError("no identity")), NotAuthorisedError),
        ({}, FakeCredential(ServiceRequestError("no network")), TransientError),
    ],
)
def test_no_token_no_request(
    sign_in: tuple[str, list[web.Request]],
    monkeypatch: pytest.MonkeyPatch,
    changes: Json,
    credential: FakeCredential,
    error: type[AgentError],
) -> None:
    url, seen = sign_in
    monkeypatch.setattr(databricks_api, "AZURE_DOMAINS", ("127.0.0.1",))
    connector = DatabricksConnector(settings_for(url, **{"databricks_token": ""} | changes), credential=credential)

    with pytest.raises(error, match="no token"):
        connector.active_runs(connector.workspaces[0])

    assert seen == []


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
    repair_id = service.repair()
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
    assert service.connector.calls == 6  # run, output, cluster, its events, job, newer runs


def test_newer_runs_and_a_deleted_job(service: Service, time_of_workspace: FakeClock) -> None:
    service.load(
        a_scenario(
            run_id=9002,
            interference=[
                {"kind": "newer_success", "at_offset_seconds": 5.0},
                {"kind": "delete_job", "at_offset_seconds": 8.0},
            ],
        )
        | {"jobs": [{"job_id": 101, "runs": a_scenario(run_id=9002, interference=INTERFERENCE)["jobs"][0]["runs"]}]}
    )
    time_of_workspace.now += 7
    with_newer = service.connector.read_facts(service.workspace, 9002)
    time_of_workspace.now += 3
    without_job = service.connector.read_facts(service.workspace, 9002)

    assert [run.result_state for run in with_newer.newer_runs] == ["SUCCESS"]
    assert with_newer.job is not None
    assert without_job.job is None
    assert without_job.failures[0].symptoms.error == FAILURE["error"]


INTERFERENCE = [
    {"kind": "newer_success", "at_offset_seconds": 5.0},
    {"kind": "delete_job", "at_offset_seconds": 8.0},
]


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
    service.repair()

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


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_read_is_repeated_when_the_server_fails(service: Service, status: int) -> None:
    service.set_fault("GET /api/2.2/jobs/runs/get", "error", status=status, times=2)

    assert service.connector.read_state(service.workspace, 9001).is_failed
    assert service.calls("GET /api/2.2/jobs/runs/get") == 3
    assert service.clock.waits == [1, 2]


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_read_is_sent_three_times_at_most(service: Service, status: int) -> None:
    service.set_fault("GET /api/2.2/jobs/runs/get", "error", status=status)

    with pytest.raises(TransientError):
        service.connector.read_state(service.workspace, 9001)

    assert service.calls("GET /api/2.2/jobs/runs/get") == 3


@pytest.mark.parametrize("kind", ["429", "503", "drop_before"])
def test_the_sdk_repeats_the_other_reads(service: Service, kind: str) -> None:
    service.set_fault("GET /api/2.2/jobs/runs/get", kind, times=1)

    assert service.connector.read_state(service.workspace, 9001).is_failed
    assert service.calls("GET /api/2.2/jobs/runs/get") == 2


def test_throttling_beyond_the_budget_names_the_wait(service: Service) -> None:
    service.set_fault("GET /api/2.2/jobs/runs/get", "429", retry_after=600)

    with pytest.raises(ThrottledError) as caught:
        service.connector.read_state(service.workspace, 9001)

    assert caught.value.retry_after_seconds == 600
    assert service.clock.waits == []


def test_throttling_that_does_not_end(service: Service) -> None:
    service.set_fault("GET /api/2.2/jobs/runs/get", "429", retry_after=2)

    with pytest.raises(ThrottledError) as caught:
        service.connector.read_state(service.workspace, 9001)

    assert caught.value.retry_after_seconds == 2
    assert sum(service.clock.waits) < 10


@pytest.mark.parametrize("kind", ["503", "drop_before"])
def test_a_service_that_stays_away_is_transient(service: Service, kind: str) -> None:
    service.set_fault("GET /api/2.2/jobs/runs/get", kind)

    with pytest.raises(TransientError) as caught:
        service.connector.read_state(service.workspace, 9001)

    assert not isinstance(caught.value, ThrottledError)


def test_a_page_that_is_not_json_is_transient() -> None:
    answers = {"jobs/runs/get": lambda _: web.Response(text="<html>maintenance</html>", content_type="text/html")}
    with serving(lambda: scripted(answers)) as service, pytest.raises(TransientError):
        service.connector.read_state(service.workspace, 5)


def test_an_error_shows_neither_configuration_nor_token() -> None:
    refused = {"error_code": "PERMISSION_DENIED", "message": "User does not have permission"}
    with (
        serving(lambda: scripted({"jobs/runs/get": lambda _: web.json_response(refused, status=403)})) as service,
        pytest.raises(NotAuthorisedError) as caught,
    ):
        service.connector.read_state(service.workspace, 5)

    assert "User does not have permission" in str(caught.value)
    assert "Config" not in str(caught.value)


def test_threads_share_one_client(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = databricks_api.WorkspaceApi._new_client

    def counted(api: databricks_api.WorkspaceApi) -> Any:
        built.append(threading.get_ident())
        return build(api)

    monkeypatch.setattr(databricks_api.WorkspaceApi, "_new_client", counted)
    with ThreadPoolExecutor(16) as pool:
        states = list(pool.map(lambda _: service.connector.read_state(service.workspace, 9001), range(64)))

    assert len(built) == 1
    assert {state.run_id for state in states} == {9001}
    assert service.connector.calls == 64


# Writes


def effects(service: Service) -> list[Json]:
    found: list[Json] = service.control("effects")["effects"]
    return found


def test_a_repair_reruns_the_failed_tasks_with_the_parameters_of_the_run(service: Service) -> None:
    repair_id = service.repair(job_parameters={"date": "2026-11-23"})

    (effect,) = effects(service)
    assert (effect["kind"], effect["accepted"], effect["repair_id"]) == ("repair", True, repair_id)
    assert effect["request"] == {
        "rerun_all_failed_tasks": True,
        "rerun_dependent_tasks": True,
        "job_parameters": {"date": "2026-11-23"},
    }


def test_the_latest_repair_id_is_a_compare_and_swap(service: Service, time_of_workspace: FakeClock) -> None:
    first = service.repair()
    with pytest.raises(RepairRefusedError):  # it is running
        service.repair(latest_repair_id=first)
    time_of_workspace.now += 10
    for stale in (None, first + 1):
        with pytest.raises(RepairRefusedError):
            service.repair(latest_repair_id=stale)

    assert service.repair(latest_repair_id=first) != first
    assert [effect["accepted"] for effect in effects(service)] == [True, False, False, False, True]


def test_a_one_time_run_cannot_be_repaired(service: Service, time_of_workspace: FakeClock) -> None:
    plan = a_scenario(run_id=9003, run_type="SUBMIT_RUN")["jobs"][0]["runs"]
    service.load({"jobs": [{"job_id": 101, "runs": plan}]})
    time_of_workspace.now += 10

    with pytest.raises(RepairImpossibleError):
        service.repair(9003)


def test_a_refusal_that_is_not_understood_never_leads_to_a_new_run(service: Service) -> None:
    refusal = {"error_code": "INVALID_PARAMETER_VALUE", "message": "Something else is wrong"}
    service.set_fault("POST /api/2.2/jobs/runs/repair", "error", status=400, body=refusal)

    with pytest.raises(PermanentError) as caught:
        service.repair()

    assert type(caught.value) is PermanentError


def test_a_repair_of_a_run_that_is_gone(service: Service) -> None:
    with pytest.raises(RunNotFoundError):
        service.repair(4711)


def test_a_token_that_may_only_read(service: Service) -> None:
    service.connector = DatabricksConnector(settings_for(service.url, databricks_token="read-only"))

    with pytest.raises(NotAuthorisedError):
        service.repair()
    with pytest.raises(NotAuthorisedError):
        service.run_now()


WRITES: dict[str, Callable[[Service], int]] = {
    "/api/2.2/jobs/runs/repair": Service.repair,
    "/api/2.2/jobs/run-now": Service.run_now,
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


@pytest.mark.parametrize("path", WRITES)
def test_a_write_that_found_no_connection_is_not_in_doubt(service: Service, path: str) -> None:
    service.connector = DatabricksConnector(settings_for("http://127.0.0.1:1"), clock=service.clock)

    with pytest.raises(TransientError) as caught:
        WRITES[path](service)

    assert not isinstance(caught.value, OutcomeUnknownError)


def test_an_answer_without_an_id_is_in_doubt() -> None:
    with (
        serving(lambda: scripted({"jobs/runs/repair": lambda _: web.json_response({})})) as service,
        pytest.raises(OutcomeUnknownError, match="repair_id"),
    ):
        service.repair()


def test_the_same_token_gives_the_same_run(service: Service) -> None:
    first = service.run_now("9001:1:abc")

    assert service.run_now("9001:1:abc") == first
    assert service.run_now("9001:2:abc") != first
    assert [effect["key"] for effect in effects(service)] == ["9001:1", "9001:2"]


def test_a_new_run_of_a_job_that_is_gone(service: Service) -> None:
    with pytest.raises(RunNotFoundError):
        service.run_now(job_id=4711)


@pytest.mark.parametrize("token", ["", "x" * 65])
def test_a_token_has_1_to_64_characters(service: Service, token: str) -> None:
    with pytest.raises(ValueError, match="64"):
        service.run_now(token)

    assert effects(service) == []


# Translation of errors

TRANSLATIONS: dict[type[DatabricksError], type[AgentError]] = {
    DatabricksError: TransientError,
    sdk.BadRequest: PermanentError,
    sdk.InvalidState: PermanentError,
    sdk.InvalidParameterValue: PermanentError,
    sdk.Unauthenticated: NotAuthorisedError,
    sdk.PermissionDenied: NotAuthorisedError,
    sdk.PrivateLinkValidationError: NotAuthorisedError,
    sdk.NotFound: RunNotFoundError,
    sdk.ResourceDoesNotExist: RunNotFoundError,
    sdk.ResourceConflict: TransientError,
    sdk.Aborted: TransientError,
    sdk.AlreadyExists: PermanentError,
    sdk.ResourceAlreadyExists: PermanentError,
    sdk.TooManyRequests: ThrottledError,
    sdk.ResourceExhausted: ThrottledError,
    sdk.RequestLimitExceeded: ThrottledError,
    sdk.Cancelled: TransientError,
    sdk.InternalError: TransientError,
    sdk.Unknown: TransientError,
    sdk.DataLoss: TransientError,
    sdk.NotImplemented: PermanentError,
    sdk.TemporarilyUnavailable: TransientError,
    sdk.DeadlineExceeded: TransientError,
}


def all_error_classes(base: type[DatabricksError] = DatabricksError) -> set[type[DatabricksError]]:
    return {base}.union(*(all_error_classes(child) for child in base.__subclasses__()))


def meaning_of(error: Exception) -> AgentError:
    with pytest.raises(AgentError) as caught, translated("reading"):
        raise error
    return caught.value


def test_every_error_class_of_the_sdk_is_in_the_table() -> None:
    assert all_error_classes() == set(TRANSLATIONS)


@pytest.mark.parametrize(("vendor", "ours"), TRANSLATIONS.items(), ids=lambda cls: cls.__name__)
def test_meaning_of_the_errors_of_the_sdk(vendor: type[DatabricksError], ours: type[AgentError]) -> None:
    error = meaning_of(vendor("what happened"))

    assert type(error) is ours
    assert "what happened" in str(error)
    assert "reading failed" in str(error)


def test_the_sdk_giving_up_means_what_its_last_answer_meant() -> None:
    gave_up = TimeoutError("Timed out after 0:00:05")
    gave_up.__cause__ = sdk.TooManyRequests("slow down", retry_after_secs=3)

    error = meaning_of(gave_up)

    assert isinstance(error, ThrottledError)
    assert error.retry_after_seconds == 3


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("no answer"),
        requests_exceptions.ConnectionError("reset"),
        requests_exceptions.ReadTimeout("late"),
        requests_exceptions.JSONDecodeError("no JSON", "", 0),
    ],
)
def test_trouble_on_the_way_is_transient(error: Exception) -> None:
    assert type(meaning_of(error)) is TransientError


def test_a_refusal_that_says_that_the_run_is_gone() -> None:
    assert isinstance(meaning_of(sdk.InvalidParameterValue("Run 7 does not exist.")), RunNotFoundError)


def test_a_window_of_events_ends_after_the_run() -> None:
    assert databricks_connector.EVENTS_AFTER_THE_RUN >= timedelta(minutes=1)
