"""Changing a job for a retry and putting it back, with the official SDK against the stand-in workspace."""

import json
from collections.abc import Iterator

import pytest
from aiohttp import web

from local.databricks.node_types import NODE_TYPES
from local.databricks.server import create_databricks_app
from shared.databricks_connector import DatabricksConnector
from shared.databricks_runs import cluster_policy, node_type, policy_ids
from shared.domain import Change, ClusterPolicy, Json, SettingChange
from shared.errors import (
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    RunNotFoundError,
    ThrottledError,
    TransientError,
)
from shared.triage.change_plan import CannotChange, ChangeBounds, plan
from shared.triage.changes import restore_body, update_body
from tests.shared.databricks_service import FakeClock, Service, serving, settings_for

UPDATE = "/api/2.2/jobs/update"
NODE_TYPE_LIST = "/api/2.1/clusters/list-node-types"
POLICY = "/api/2.0/policies/clusters/get"
FAILURE = {"error": "java.lang.OutOfMemoryError: Java heap space"}
JOB = 101


def a_scenario() -> Json:
    """Run 9001 failed on the shared cluster, 9002 on serverless compute; a policy allows clusters of 3 workers."""
    cluster = {"spark_version": "16.4.x-scala2.12", "node_type_id": "Standard_DS3_v2", "num_workers": 2}
    settings = {
        "tags": {"team": "orders"},
        "timeout_seconds": 600,
        "job_clusters": [
            {"job_cluster_key": "other", "new_cluster": cluster},
            {"job_cluster_key": "main", "new_cluster": {**cluster, "policy_id": "p1", "a_field_of_tomorrow": [1]}},
        ],
        "tasks": [
            {"task_key": "load", "job_cluster_key": "main", "notebook_task": {}, "timeout_seconds": 60},
            {"task_key": "small", "environment_key": "default", "spark_python_task": {}},
        ],
        "a_field_of_tomorrow": {"x": 1},
    }

    def run(run_id: int, task: str) -> Json:
        return {"run_id": run_id, "start_offset_seconds": 1.0, "tasks": [{"task_key": task, "failure": FAILURE}]}

    return {
        "policies": [{"policy_id": "p1", "definition": {"num_workers": {"type": "range", "maxValue": 3}}}],
        "jobs": [
            {
                "job_id": JOB,
                "name": "orders",
                "settings": {"max_concurrent_runs": 9, **settings},
                "runs": [run(9001, "load"), run(9002, "small")],
            }
        ],
    }


@pytest.fixture
def time_of_workspace() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(time_of_workspace: FakeClock) -> Iterator[Service]:
    with serving(lambda: create_databricks_app(effects_path=None, clock=time_of_workspace.time)) as service:
        service.load(a_scenario())
        time_of_workspace.now += 10
        yield service


def settings_of(service: Service) -> Json:
    return service.connector.job_settings(service.workspace, JOB)


def update(
    service: Service, new_settings: Json | None = None, *, job_id: int = JOB, remove: tuple[str, ...] = ()
) -> None:
    service.connector.update_job(service.workspace, job_id, new_settings=new_settings or {}, fields_to_remove=remove)


def planned(service: Service, *words: str) -> tuple[SettingChange, ...]:
    facts = service.connector.read_facts(service.workspace, 9001)
    changes = plan([Change.from_word(word) for word in words], facts, ChangeBounds(max_cost_factor=10))
    assert not isinstance(changes, CannotChange), changes
    return changes


def apply(service: Service, changes: tuple[SettingChange, ...]) -> None:
    edit = update_body(changes, settings_of(service))
    assert edit
    update(service, edit.new_settings, remove=edit.fields_to_remove)


def restore(service: Service, changes: tuple[SettingChange, ...]) -> tuple[SettingChange, ...]:
    edit, foreign = restore_body(changes, settings_of(service))
    if edit:
        update(service, edit.new_settings, remove=edit.fields_to_remove)
    return foreign


def as_it_is(service: Service) -> str:
    """The settings as the workspace keeps them, byte for byte."""
    return json.dumps(service.control(f"jobs/{JOB}")["settings"])


# Changing and restoring


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["worker_memory_up"], {"node_type_id": "Standard_DS4_v2"}),
        (["driver_memory_up"], {"driver_node_type_id": "Standard_DS4_v2"}),
        (["more_disk"], {"enable_elastic_disk": True}),
        (["more_workers"], {"num_workers": 3}),
        (["other_node_type"], {"node_type_id": "Standard_D4ds_v5"}),
        (["spark_conf:spark.sql.shuffle.partitions"], {"spark_conf": {"spark.sql.shuffle.partitions": "400"}}),
        (["worker_memory_up", "more_disk"], {"node_type_id": "Standard_DS4_v2", "enable_elastic_disk": True}),
    ],
)
def test_a_job_is_changed_where_planned_and_restored_to_the_byte(
    service: Service, words: list[str], want: Json
) -> None:
    before = as_it_is(service)
    changes = planned(service, *words)

    apply(service, changes)
    expected = json.loads(before)
    expected["job_clusters"][1]["new_cluster"] |= want
    assert settings_of(service) == expected

    assert restore(service, changes) == ()
    assert as_it_is(service) == before
    effects = service.control("effects")["effects"]
    assert [(effect["kind"], effect["accepted"]) for effect in effects] == [("job_update", True)] * 2


def test_timeouts_of_task_and_job_are_changed_and_restored(service: Service) -> None:
    before = as_it_is(service)
    changes = planned(service, "timeout_up", "more_disk")

    apply(service, changes)
    now = settings_of(service)
    assert (now["tasks"][0]["timeout_seconds"], now["timeout_seconds"]) == (120, 600)

    restore(service, changes)
    assert as_it_is(service) == before


def test_a_value_that_somebody_changed_meanwhile_is_left_alone(service: Service) -> None:
    changes = planned(service, "worker_memory_up", "more_disk")
    apply(service, changes)
    theirs = settings_of(service)["job_clusters"][1]
    theirs["new_cluster"]["node_type_id"] = "Standard_L8s_v3"
    update(service, {"job_clusters": [theirs]})

    foreign = restore(service, changes)

    assert [change.path[-1] for change in foreign] == ["node_type_id"]
    cluster = settings_of(service)["job_clusters"][1]["new_cluster"]
    assert (cluster["node_type_id"], "enable_elastic_disk" in cluster) == ("Standard_L8s_v3", False)


def test_fields_are_removed(service: Service) -> None:
    update(service, {"description": "x"}, remove=("timeout_seconds",))

    settings = settings_of(service)
    assert (settings["description"], "timeout_seconds" in settings) == ("x", False)


def test_all_pages_of_the_settings_are_joined(service: Service) -> None:
    tasks = [{"task_key": f"t{n}", "environment_key": "default"} for n in range(250)]
    service.load({"jobs": [{"job_id": 7, "settings": {"tasks": tasks}}]})

    settings = service.connector.job_settings(service.workspace, 7)

    assert [task["task_key"] for task in settings["tasks"]] == [f"t{n}" for n in range(250)]
    assert service.connector.calls == 3


# Refusals and doubt


def test_a_policy_refuses_and_the_job_stays(service: Service) -> None:
    before = as_it_is(service)
    entry = settings_of(service)["job_clusters"][1]
    entry["new_cluster"]["num_workers"] = 4

    with pytest.raises(PermanentError, match=r"update of job 101 .* num_workers"):
        update(service, {"job_clusters": [entry]})

    assert as_it_is(service) == before


@pytest.mark.parametrize(
    ("token", "job_id", "error"),
    [("token", 4711, RunNotFoundError), ("read-only", JOB, NotAuthorisedError), ("bad-token", JOB, NotAuthorisedError)],
)
def test_an_update_that_is_not_possible(service: Service, token: str, job_id: int, error: type[PermanentError]) -> None:
    service.connector = DatabricksConnector(settings_for(service.url, databricks_token=token))

    with pytest.raises(error):
        update(service, {"timeout_seconds": 1}, job_id=job_id)


def test_the_tags_of_a_job_are_those_of_now_and_cost_one_call(service: Service) -> None:
    tasks = [{"task_key": f"t{n}", "environment_key": "default"} for n in range(250)]
    service.load({"jobs": [{"job_id": 7, "settings": {"tasks": tasks, "tags": {"failure-agent": "full"}}}]})
    assert service.connector.job_tags(service.workspace, 7) == {"failure-agent": "full"}

    update(service, {"tags": {"failure-agent": "off", "team": "data"}}, job_id=7)

    calls = service.connector.calls
    assert service.connector.job_tags(service.workspace, 7) == {"failure-agent": "off", "team": "data"}
    assert service.connector.calls == calls + 1


def test_a_job_without_tags_has_none(service: Service) -> None:
    update(service, remove=("tags",))
    assert service.connector.job_tags(service.workspace, JOB) == {}


def test_settings_and_tags_of_a_job_that_is_gone(service: Service) -> None:
    for read in (service.connector.job_settings, service.connector.job_tags):
        with pytest.raises(RunNotFoundError):
            read(service.workspace, 4711)


@pytest.mark.parametrize(
    ("fault", "landed"),
    [
        ({"kind": "drop_before"}, False),
        ({"kind": "drop_after"}, True),
        ({"kind": "slow", "seconds": 1.5}, True),
        ({"kind": "error", "status": 500}, False),
        ({"kind": "503", "retry_after": 1}, False),
    ],
    ids=lambda value: str(value.get("kind")) if isinstance(value, dict) else "",
)
def test_an_update_in_doubt_is_sent_once(service: Service, fault: Json, landed: bool) -> None:
    service.set_fault(f"POST {UPDATE}", **fault)

    with pytest.raises(OutcomeUnknownError, match="update of job 101"):
        update(service, {"timeout_seconds": 1})

    assert service.calls(f"POST {UPDATE}") == 1
    assert len(service.control("effects")["effects"]) == landed


def test_a_throttled_update_was_not_carried_out(service: Service) -> None:
    service.set_fault(f"POST {UPDATE}", "429", retry_after=7)

    with pytest.raises(ThrottledError) as caught:
        update(service, {"timeout_seconds": 1})

    assert caught.value.retry_after_seconds == 7


def test_an_update_that_found_no_connection_is_not_in_doubt(service: Service) -> None:
    workspace = "127.0.0.1-1"
    connector = DatabricksConnector(settings_for("http://127.0.0.1:1"), clock=service.clock)

    with pytest.raises(TransientError) as caught:
        connector.update_job(workspace, JOB, new_settings={}, fields_to_remove=())

    assert type(caught.value) is TransientError


def test_the_performance_target_is_sent_with_the_repair_or_the_new_run_if_there_is_one() -> None:
    bodies: list[Json] = []

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({"repair_id": 1, "run_id": 1})

    def app() -> web.Application:
        made = web.Application()
        made.router.add_post("/api/2.2/jobs/runs/repair", answer)
        made.router.add_post("/api/2.2/jobs/run-now", answer)
        return made

    with serving(app) as service:
        for target in (None, "PERFORMANCE_OPTIMIZED"):
            service.connector.repair_run(
                service.workspace,
                5,
                latest_repair_id=None,
                job_parameters={},
                legacy_parameters={},
                performance_target=target,
            )
            service.connector.run_now(service.workspace, JOB, token="5:1", job_parameters={}, performance_target=target)

    assert [body.get("performance_target") for body in bodies] == [None, None, *["PERFORMANCE_OPTIMIZED"] * 2]


# Node types


def test_node_types_come_with_a_failure_on_a_cluster_of_the_job_and_are_kept_for_an_hour(
    service: Service, time_of_workspace: FakeClock
) -> None:
    def read() -> int:
        facts = service.connector.read_facts(service.workspace, 9001)
        assert {node_type.node_type_id for node_type in facts.node_types} == set(NODE_TYPES)
        return service.calls(f"GET {NODE_TYPE_LIST}")

    assert [read(), read()] == [1, 1]
    service.clock.now += 3599
    assert read() == 1
    service.clock.now += 1
    assert read() == 2


def test_other_compute_needs_no_node_types(service: Service) -> None:
    facts = service.connector.read_facts(service.workspace, 9002)

    assert facts.failures
    assert facts.node_types == ()
    assert service.calls(f"GET {NODE_TYPE_LIST}") == 0


@pytest.mark.parametrize(("status", "times"), [(403, 1), (500, 3)])
def test_node_types_that_cannot_be_read_are_no_hindrance_and_are_asked_for_again(
    service: Service, status: int, times: int
) -> None:
    service.set_fault(f"GET {NODE_TYPE_LIST}", "error", status=status, times=times)

    facts = service.connector.read_facts(service.workspace, 9001)
    assert facts.failures
    assert facts.node_types == ()

    assert service.connector.read_facts(service.workspace, 9001).node_types


# Cluster policies


def test_the_policy_of_a_cluster_of_the_job_comes_with_its_failure_and_is_kept_for_five_minutes(
    service: Service, time_of_workspace: FakeClock
) -> None:
    def read() -> int:
        facts = service.connector.read_facts(service.workspace, 9001)
        assert facts.policies == {"p1": ClusterPolicy("p1", "p1", {"num_workers": {"type": "range", "maxValue": 3}})}
        return service.calls(f"GET {POLICY}")

    assert [read(), read()] == [1, 1]
    service.clock.now += 299
    assert read() == 1
    service.clock.now += 1
    assert read() == 2


def test_other_compute_needs_no_policy(service: Service) -> None:
    assert service.connector.read_facts(service.workspace, 9002).policies == {}
    assert service.calls(f"GET {POLICY}") == 0


@pytest.mark.parametrize(("status", "calls"), [(403, 1), (404, 1), (500, 6)])
def test_a_policy_that_cannot_be_read_is_no_hindrance(service: Service, status: int, calls: int) -> None:
    """Where the right is missing it is not asked for at each failure; where the service failed it is."""
    service.set_fault(f"GET {POLICY}", "error", status=status, times=6)

    for _ in range(2):
        facts = service.connector.read_facts(service.workspace, 9001)
        assert facts.failures
        assert facts.policies == {}

    assert service.calls(f"GET {POLICY}") == calls


@pytest.mark.parametrize(
    ("raw", "rules"),
    [
        (
            {"definition": '{"num_workers": {"type": "fixed", "value": 2}}'},
            {"num_workers": {"type": "fixed", "value": 2}},
        ),
        ({"definition": '{"num_workers": "odd"}'}, {}),
        ({"definition": "[1]"}, {}),
        ({"definition": "{"}, {}),
        ({"definition": 5}, {}),
        ({}, {}),
    ],
)
def test_a_policy_that_is_not_understood_has_no_rules(raw: Json, rules: Json) -> None:
    assert cluster_policy({"policy_id": "p1"} | raw) == ClusterPolicy("p1", "p1", rules)


def test_the_policies_of_all_clusters_of_a_job_are_known() -> None:
    clusters = [{"policy_id": name} for name in ("a", "b", "a", None)]
    tasks = [{"new_cluster": {"policy_id": "c"}}, {"for_each_task": {"task": {"new_cluster": {"policy_id": "d"}}}}, {}]

    found = policy_ids({"job_clusters": [{"new_cluster": cluster} for cluster in clusters], "tasks": tasks})

    assert found == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("name", "raw", "want"),
    [
        ("Standard_D4ds_v5", {}, False),
        ("Standard_DS3_v2", {}, False),
        ("Standard_NP10s", {}, False),
        ("Standard_E96-48ads_v5", {}, False),
        ("Standard_D4ps_v5", {}, True),
        ("Standard_D4pds_v6", {}, True),
        ("Standard_D2pls_v5", {}, True),
        ("Standard_E8pds_v6", {}, True),
        ("m7g.xlarge", {"is_graviton": True}, True),
        ("m7i.xlarge", {"is_graviton": False}, False),
    ],
)
def test_arm_machines_are_known_by_their_name_on_azure(name: str, raw: Json, want: bool) -> None:
    assert node_type({"node_type_id": name} | raw).is_arm is want


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ({}, True),
        ({"node_info": {"status": []}}, True),
        ({"node_info": None}, True),
        ({"is_deprecated": True}, False),
        ({"is_hidden": True}, False),
        ({"node_info": {"status": ["NotAvailableInRegion"]}}, False),
        ({"node_info": {"status": ["NotEnabledOnSubscription"]}}, False),
        ({"node_info": {"status": ["SomethingOfTomorrow"]}}, False),
    ],
)
def test_which_machines_can_be_had(raw: Json, want: bool) -> None:
    assert node_type({"node_type_id": "Standard_D4ds_v5"} | raw).is_available is want


def test_a_node_type_is_read_whole_and_without_its_fields() -> None:
    disks = {"local_disks": 1, "local_disk_size_gb": 80, "local_nvme_disks": 2, "local_nvme_disk_size_gb": 1788}
    read = node_type(NODE_TYPES["Standard_E8ds_v5"].as_json() | {"node_instance_type": disks})

    assert (read.memory_mb, read.num_cores, read.category) == (65536, 8, "Memory Optimized")
    assert (read.local_disk_gb, read.photon_driver_capable, read.photon_worker_capable) == (3656, True, True)
    assert node_type({"node_type_id": "x"}).memory_mb == 0
