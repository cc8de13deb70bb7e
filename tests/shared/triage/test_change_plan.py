"""Each change on realistic jobs: what becomes what, at which price, and why some need a person."""

import copy
import re
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain import Change, ClusterPolicy, ComputeKind, Json, RunFacts, SettingChange, TaskFailure
from shared.triage.change_plan import CannotChange, ChangeBounds, plan
from shared.triage.changes import asked_for, cost_factor, described, edits_job, parameters_of, performance_target
from tests.builders import build_job_facts, build_run_state
from tests.shared.triage.clusters import WORKSPACE_NODE_TYPES, a_cluster, a_failure, a_job, a_job_on, facts_of

BOUNDS = ChangeBounds()
BY_NAME = {node_type.node_type_id: node_type for node_type in WORKSPACE_NODE_TYPES}
SINGLE = {"num_workers": 0, "spark_conf": {"spark.master": "local[*]"}}
SCALED = {"num_workers": None, "autoscale": {"min_workers": 1, "max_workers": 8}}
SPOT = {"azure_attributes": {"availability": "SPOT_WITH_FALLBACK_AZURE", "first_on_demand": 1}}

type Edits = list[tuple[str, str, Any, Any]]


def settled(facts: RunFacts, *words: str, bounds: ChangeBounds = BOUNDS, tried: tuple[str, ...] = ()) -> Any:
    return plan([Change.from_word(word) for word in words], facts, bounds, tried=tried)


def edits(changes: tuple[SettingChange, ...]) -> Edits:
    """Target, dotted path, old, new; the path without the part that all clusters have."""
    return [(c.target, ".".join(c.path).removeprefix("new_cluster."), c.old, c.new) for c in changes]


def of_main(path: str, old: Any, new: Any) -> tuple[str, str, Any, Any]:
    return ("job_cluster:main", path, old, new)


@dataclass(frozen=True)
class OnCluster:
    """A change of the shared cluster that task `load` failed on; `want` are path, old, new."""

    name: str
    words: str
    cluster: dict[str, Any]
    want: list[tuple[str, Any, Any]]
    factor: float = 1.0
    tried: tuple[str, ...] = ()


E4, E8, E16, E32 = (f"Standard_E{size}ds_v5" for size in (4, 8, 16, 32))
DRIVER, WORKER = "driver_node_type_id", "node_type_id"
MAX_RESULT = "spark_conf:spark.driver.maxResultSize"

ON_CLUSTER = [
    OnCluster("workers", "worker_memory_up", {}, [(WORKER, E8, E16)], 2),
    OnCluster("workers with a driver of its own", "worker_memory_up", {DRIVER: E4}, [(WORKER, E8, E16)], 1.8),
    OnCluster("workers, autoscaled", "worker_memory_up", SCALED, [(WORKER, E8, E16)], 2),
    OnCluster("workers, tried once", "worker_memory_up", {}, [(WORKER, E8, E32)], 4, tried=("worker_memory_up",)),
    OnCluster("workers, another change tried", "worker_memory_up", {}, [(WORKER, E8, E16)], 2, tried=("more_disk",)),
    OnCluster("workers of a single machine", "worker_memory_up", SINGLE, [(WORKER, E8, E16)], 2),
    OnCluster("driver that follows the workers", "driver_memory_up", {}, [(DRIVER, None, E16)], 4 / 3),
    OnCluster("driver of its own", "driver_memory_up", {DRIVER: E4}, [(DRIVER, E4, E8)], 1.2),
    OnCluster("driver, tried once", "driver_memory_up", {}, [(DRIVER, None, E32)], 2, tried=("driver_memory_up",)),
    OnCluster("driver of a single machine", "driver_memory_up", SINGLE, [(WORKER, E8, E16)], 2),
    OnCluster(
        "driver of its own of a single machine", "driver_memory_up", SINGLE | {DRIVER: E8}, [(DRIVER, E8, E16)], 2
    ),
    OnCluster("both", "worker_memory_up driver_memory_up", {}, [(DRIVER, None, E16), (WORKER, E8, E16)], 2),
    OnCluster("elastic disk, not said", "more_disk", {}, [("enable_elastic_disk", None, True)]),
    OnCluster("elastic disk, off", "more_disk", {"enable_elastic_disk": False}, [("enable_elastic_disk", False, True)]),
    OnCluster("elastic disk, on", "more_disk", {"enable_elastic_disk": True}, [(WORKER, E8, E16)], 2),
    OnCluster(
        "elastic disk, tried",
        "more_disk",
        {},
        [("enable_elastic_disk", None, True), (WORKER, E8, E16)],
        2,
        tried=("more_disk",),
    ),
    OnCluster("more workers", "more_workers", {}, [("num_workers", 2, 3)], 4 / 3),
    OnCluster("more workers, rounded up", "more_workers", {"num_workers": 5}, [("num_workers", 5, 8)], 9 / 6),
    OnCluster("more workers, capped", "more_workers", {"num_workers": 30}, [("num_workers", 30, 32)], 33 / 31),
    OnCluster("more workers, autoscaled", "more_workers", SCALED, [("autoscale.max_workers", 8, 12)], 13 / 9),
    OnCluster("more workers, tried", "more_workers", {}, [("num_workers", 2, 5)], 2, tried=("more_workers",)),
    OnCluster("another machine", "other_node_type", {}, [(WORKER, E8, "Standard_DS13_v2")], 13.6 / 14.4),
    OnCluster(
        "another machine, and its driver",
        "other_node_type",
        {WORKER: "Standard_DS3_v2", DRIVER: E8},
        [(WORKER, "Standard_DS3_v2", "Standard_D4ds_v5"), (DRIVER, E8, "Standard_DS13_v2")],
        (13.6 + 2 * 5.6) / (14.4 + 2 * 5.4),
    ),
    OnCluster(
        "another machine, tried",
        "other_node_type",
        {WORKER: "Standard_D4s_v3"},
        [(WORKER, "Standard_D4s_v3", "Standard_DS3_v2")],
        5.4 / 5.6,
        tried=("other_node_type",),
    ),
    OnCluster(
        "on demand",
        "availability_on_demand",
        SPOT,
        [("azure_attributes.availability", "SPOT_WITH_FALLBACK_AZURE", "ON_DEMAND_AZURE")],
        2,
    ),
    OnCluster(
        "on demand, the driver too",
        "availability_on_demand",
        {"azure_attributes": {"availability": "SPOT_AZURE", "first_on_demand": 0, "spot_bid_max_price": -1}},
        [
            ("azure_attributes.availability", "SPOT_AZURE", "ON_DEMAND_AZURE"),
            ("azure_attributes.first_on_demand", 0, 1),
        ],
        2,
    ),
    OnCluster(
        "a setting of Spark",
        MAX_RESULT,
        {"spark_conf": {"spark.driver.maxResultSize": "4g", "x": "1"}},
        [("spark_conf.spark.driver.maxResultSize", "4g", "8g")],
    ),
    OnCluster("a setting of Spark, not set", MAX_RESULT, {}, [("spark_conf.spark.driver.maxResultSize", None, "8g")]),
    OnCluster(
        "a setting of Spark, none set",
        MAX_RESULT,
        {"spark_conf": {}},
        [("spark_conf", {}, {"spark.driver.maxResultSize": "8g"})],
    ),
    OnCluster(
        "a setting of Spark, tried",
        MAX_RESULT,
        {},
        [("spark_conf.spark.driver.maxResultSize", None, "16g")],
        tried=(MAX_RESULT,),
    ),
    OnCluster(
        "a setting of Spark that is a number",
        "spark_conf:spark.sql.shuffle.partitions",
        {"spark_conf": {"spark.sql.shuffle.partitions": 200}},
        [("spark_conf.spark.sql.shuffle.partitions", 200, "400")],
    ),
    OnCluster(
        "a setting of Spark on a pool",
        MAX_RESULT,
        {WORKER: None, "instance_pool_id": "p"},
        [("spark_conf.spark.driver.maxResultSize", None, "8g")],
    ),
    OnCluster(
        "the driver on a pool of its own",
        "more_workers",
        {"driver_instance_pool_id": "p"},
        [("num_workers", 2, 3)],
        4 / 3,
    ),
    OnCluster(
        "memory and on demand",
        "worker_memory_up availability_on_demand",
        SPOT,
        [
            (WORKER, E8, E16),
            ("azure_attributes.availability", "SPOT_WITH_FALLBACK_AZURE", "ON_DEMAND_AZURE"),
        ],
        4,
    ),
    OnCluster(
        "another machine with more memory",
        "worker_memory_up other_node_type",
        {WORKER: "Standard_DS3_v2"},
        [(WORKER, "Standard_DS3_v2", "Standard_D8ds_v5")],
        11.2 / 5.4,
    ),
]


@pytest.mark.parametrize("case", ON_CLUSTER, ids=lambda case: case.name)
def test_a_change_of_the_cluster(case: OnCluster) -> None:
    facts = facts_of(a_job_on(a_cluster(**case.cluster)))

    changes = settled(facts, *case.words.split(), tried=case.tried)

    assert not isinstance(changes, CannotChange), changes
    assert edits(changes) == [of_main(*edit) for edit in case.want]
    assert cost_factor(changes) == pytest.approx(case.factor)
    assert edits_job(changes)
    assert {change.word for change in asked_for(changes)} <= set(case.words.split())
    assert all(change.why.endswith(".") for change in changes)


@dataclass(frozen=True)
class Refused:
    """A change of the shared cluster that needs a person, and a part of the reason."""

    name: str
    words: str
    why: str
    cluster: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    bounds: dict[str, Any] = field(default_factory=dict)
    tried: tuple[str, ...] = ()


POOL = {WORKER: None, "instance_pool_id": "p"}

REFUSED = [
    Refused("nothing named", "", "not known what to change"),
    Refused("no job", "worker_memory_up", "job is gone", facts={"job": None}),
    Refused("node types not read", "worker_memory_up", "could not be read", facts={"node_types": ()}),
    Refused("node type not listed", "worker_memory_up", "not list: Standard_X1", {WORKER: "Standard_X1"}),
    Refused("node type by policy", "driver_memory_up", "names no node type", {WORKER: None, "policy_id": "p"}),
    Refused("the largest", "worker_memory_up", "no Memory Optimized type", {WORKER: E32}),
    Refused(
        "the largest, tried", "worker_memory_up", "next after Standard_E32", {WORKER: E16}, tried=("worker_memory_up",)
    ),
    Refused("over the cap", "worker_memory_up", "within 100 GB", bounds={"max_node_memory_gb": 100}),
    Refused("driver over the cap", "driver_memory_up", "within 100 GB", bounds={"max_node_memory_gb": 100}),
    Refused("GPU", "worker_memory_up", "GPU", {WORKER: "Standard_NC4as_T4_v3"}),
    Refused("GPU, stock-out", "other_node_type", "GPU", {WORKER: "Standard_NC4as_T4_v3"}),
    Refused("pool, memory", "worker_memory_up", "pool", POOL),
    Refused("pool, driver", "driver_memory_up", "pool", POOL),
    Refused("pool of the driver", "driver_memory_up", "pool", {"driver_instance_pool_id": "p"}),
    Refused("pool, disk", "more_disk", "pool", POOL),
    Refused("pool, workers", "more_workers", "pool", POOL),
    Refused("pool, spot", "availability_on_demand", "pool", POOL),
    Refused("pool, stock-out", "other_node_type", "pool", POOL),
    Refused("single machine", "more_workers", "single machine", SINGLE),
    Refused("workers at the cap", "more_workers", "32 workers", {"num_workers": 32}),
    Refused("workers over the cap", "more_workers", "at most 4", bounds={"max_workers": 4}, cluster={"num_workers": 6}),
    Refused("no other machine", "other_node_type", "none like", {WORKER: E32}),
    Refused("other machine, tried", "other_node_type", "none like", tried=("other_node_type",)),
    Refused("no other driver", "other_node_type", "none like Standard_E32", {DRIVER: E32}),
    Refused("not spot", "availability_on_demand", "does not use spot"),
    Refused(
        "on demand already",
        "availability_on_demand",
        "does not use spot",
        {"azure_attributes": {"availability": "ON_DEMAND_AZURE"}},
    ),
    Refused("on demand, tried", "availability_on_demand", "spot", SPOT, tried=("availability_on_demand",)),
    Refused("AWS", "availability_on_demand", "not on Azure", {"aws_attributes": {"availability": "SPOT"}}),
    Refused("GCP", "availability_on_demand", "not on Azure", {"gcp_attributes": {"availability": "PREEMPTIBLE_GCP"}}),
    Refused("disk of the largest", "more_disk", "more local disk", {WORKER: E32, "enable_elastic_disk": True}),
    Refused("a setting that is not allowed", "spark_conf:spark.executor.memory", "not one that is changed"),
    Refused("a setting that the operator took away", MAX_RESULT, "not one", bounds={"allowed_spark_conf": {}}),
    Refused(
        "a setting at its end",
        MAX_RESULT,
        "no next value within 16g",
        {"spark_conf": {"spark.driver.maxResultSize": "16g"}},
    ),
    Refused(
        "a setting that is a word",
        "spark_conf:spark.sql.shuffle.partitions",
        "is auto",
        {"spark_conf": {"spark.sql.shuffle.partitions": "auto"}},
    ),
    Refused("serverless memory", "serverless_memory_up", "cannot be set by the API"),
    Refused("one of two changes", "more_disk serverless_memory_up", "cannot be set by the API"),
    Refused("too dear", "worker_memory_up", "2 times as expensive; at most 1.5", bounds={"max_cost_factor": 1.5}),
    Refused("too dear together", "worker_memory_up more_workers availability_on_demand", "5.3 times", SPOT),
    Refused("from a bundle", "more_disk", "bundle", job={"deployment": {"kind": "BUNDLE"}}),
    Refused("locked", "more_disk", "bundle", job={"edit_mode": "UI_LOCKED"}),
    Refused("from Git", "more_disk", "Git", job={"git_source": {"job_source": {"dirty_state": "NOT_SYNCED"}}}),
    Refused("parameter not declared", "param:other_size", "declares no parameter other_size"),
    Refused("parameter that is no number", "param:day", "'today': there is no next value"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_change_that_needs_a_person(case: Refused) -> None:
    facts = facts_of(a_job_on(a_cluster(**case.cluster), **case.job), **case.facts)
    bounds = replace(BOUNDS, **case.bounds)

    refusal = settled(facts, *case.words.split(), bounds=bounds, tried=case.tried)

    assert isinstance(refusal, CannotChange)
    assert case.why in refusal.reason
    assert re.fullmatch(r"[A-Z][^\n]*\.", refusal.reason)


# Which cluster


@pytest.mark.parametrize(
    ("tasks", "want"),
    [
        (["load"], [of_main(WORKER, E8, E16)]),
        (["load", "extract"], [of_main(WORKER, E8, E16)]),
        (["report"], [("task:report", WORKER, "Standard_DS4_v2", "Standard_DS5_v2")]),
        (["each"], [("task:each", "for_each_task.task.new_cluster.node_type_id", E4, E8)]),
        (
            ["report", "load"],
            [("task:report", WORKER, "Standard_DS4_v2", "Standard_DS5_v2"), of_main(WORKER, E8, E16)],
        ),
    ],
)
def test_the_clusters_of_the_failed_tasks_are_changed_each_once(tasks: list[str], want: Edits) -> None:
    changes = settled(facts_of(a_job(), *map(a_failure, tasks)), "worker_memory_up")

    assert edits(changes) == want
    assert cost_factor(changes) == pytest.approx(2), "two clusters that double do not make it four times"


ELSEWHERE = [
    (a_failure("load"), {"existing_cluster_id": "1"}, "all-purpose cluster"),
    (a_failure("load", ComputeKind.SERVERLESS), {"environment_key": "default"}, "serverless"),
    (a_failure("load", ComputeKind.SQL_WAREHOUSE), {"sql_task": {}}, "SQL warehouse"),
    (a_failure("load", ComputeKind.PIPELINE), {"pipeline_task": {}}, "pipeline"),
    (a_failure("load", ComputeKind.UNKNOWN), {"dashboard_task": {}}, "no cluster in the job's settings"),
    (a_failure("load"), {"job_cluster_key": "gone"}, "no cluster in the job's settings"),
    (a_failure("deleted"), {"job_cluster_key": "main"}, "no longer part of the job"),
    (a_failure(""), {"job_cluster_key": "main"}, "not known which task failed"),
]


@pytest.mark.parametrize(("failure", "compute", "why"), ELSEWHERE, ids=lambda value: str(value)[:20])
def test_compute_that_the_job_does_not_define(failure: TaskFailure, compute: Json, why: str) -> None:
    facts = facts_of(a_job(tasks=[{"task_key": "load"} | compute]), failure)

    for word in ("worker_memory_up", "more_disk", MAX_RESULT):
        refusal = settled(facts, word)
        assert isinstance(refusal, CannotChange)
        assert why in refusal.reason


def test_one_task_that_cannot_be_changed_holds_up_the_others() -> None:
    job = a_job()
    job["tasks"].append({"task_key": "ask", "sql_task": {}})

    refusal = settled(facts_of(job, a_failure(), a_failure("ask", ComputeKind.SQL_WAREHOUSE)), "more_disk")

    assert isinstance(refusal, CannotChange)


def test_a_policy_that_cannot_be_read_is_no_hindrance_but_it_is_said() -> None:
    changes = settled(facts_of(a_job_on(a_cluster(policy_id="p1"))), "worker_memory_up")

    assert edits(changes) == [of_main(WORKER, E8, E16)]
    assert "policy" in changes[0].why


def bound_by(**rules: Json) -> dict[str, ClusterPolicy]:
    return {"p1": ClusterPolicy("p1", "Small clusters", rules)}


@pytest.mark.parametrize(
    ("words", "rules"),
    [
        ("worker_memory_up", {"node_type_id": {"type": "allowlist", "values": [E8, E4]}}),
        ("driver_memory_up", {"driver_node_type_id": {"type": "forbidden"}}),
        ("more_workers", {"num_workers": {"type": "range", "maxValue": 2}}),
        ("more_disk", {"enable_elastic_disk": {"type": "fixed", "value": False}}),
        (MAX_RESULT, {"spark_conf.spark.driver.maxResultSize": {"type": "fixed", "value": "4g"}}),
        ("more_disk more_workers", {"num_workers": {"type": "range", "maxValue": 2}}),
    ],
)
def test_what_the_policy_forbids_is_not_tried(words: str, rules: dict[str, Json]) -> None:
    facts = facts_of(a_job_on(a_cluster(policy_id="p1")), policies=bound_by(**rules))

    refusal = settled(facts, *words.split())

    assert isinstance(refusal, CannotChange)
    assert "cluster main is bound by the cluster policy Small clusters: its rule for " in refusal.reason


def test_what_the_policy_allows_is_changed_without_a_word_about_it() -> None:
    rules: dict[str, Json] = {"node_type_id": {"type": "allowlist", "values": [E8, E16]}, "num_workers": {"type": "x"}}

    changes = settled(facts_of(a_job_on(a_cluster(policy_id="p1")), policies=bound_by(**rules)), "worker_memory_up")

    assert edits(changes) == [of_main(WORKER, E8, E16)]
    assert "policy" not in changes[0].why


def test_the_policy_of_another_cluster_binds_nothing() -> None:
    rules: dict[str, Json] = {"node_type_id": {"type": "forbidden"}}

    changes = settled(facts_of(a_job_on(a_cluster()), policies=bound_by(**rules)), "worker_memory_up")

    assert edits(changes) == [of_main(WORKER, E8, E16)]


# Timeouts


@dataclass(frozen=True)
class TimeoutCase:
    """Timeouts of the job and of tasks; `load` timed out unless others are named."""

    name: str
    job: int | None
    load: int | None
    want: Any
    timed_out: tuple[str, ...] = ("load",)
    tried: tuple[str, ...] = ()


TIMEOUTS = [
    TimeoutCase("of the job", 3600, None, [("job", "timeout_seconds", 3600, 7200)]),
    TimeoutCase("of the job, 0 of the task", 3600, 0, [("job", "timeout_seconds", 3600, 7200)]),
    TimeoutCase("of the task", None, 600, [("task:load", "timeout_seconds", 600, 1200)]),
    TimeoutCase("of the task, 0 of the job", 0, 600, [("task:load", "timeout_seconds", 600, 1200)]),
    TimeoutCase("of the task, far below the job's", 3600, 600, [("task:load", "timeout_seconds", 600, 1200)]),
    TimeoutCase(
        "of both, where the job's would be hit next",
        1000,
        600,
        [("task:load", "timeout_seconds", 600, 1200), ("job", "timeout_seconds", 1000, 2000)],
    ),
    TimeoutCase(
        "of both, the job's far below",
        100,
        600,
        [("task:load", "timeout_seconds", 600, 1200), ("job", "timeout_seconds", 100, 1200)],
    ),
    TimeoutCase("another task timed out", 3600, 600, [("job", "timeout_seconds", 3600, 7200)], ("extract",)),
    TimeoutCase("no task is known to have", 3600, None, [("job", "timeout_seconds", 3600, 7200)], ()),
    TimeoutCase("only the text says so", None, 600, [("task:load", "timeout_seconds", 600, 1200)], ()),
    TimeoutCase("to the cap", 80_000, None, [("job", "timeout_seconds", 80_000, 86_400)]),
    TimeoutCase("tried", 3600, None, [("job", "timeout_seconds", 3600, 14_400)], tried=("timeout_up",)),
    TimeoutCase("at the cap", 86_400, None, "at most 86400 s"),
    TimeoutCase("over the cap", 100_000, None, "at most 86400 s"),
    TimeoutCase("none to raise", None, None, "time limit is elsewhere"),
    TimeoutCase("none but 0", 0, 0, "time limit is elsewhere"),
]


@pytest.mark.parametrize("case", TIMEOUTS, ids=lambda case: case.name)
def test_timeouts_double(case: TimeoutCase) -> None:
    job = a_job() if case.job is None else a_job(timeout_seconds=case.job)
    if case.load is not None:
        job["tasks"][1]["timeout_seconds"] = case.load
    failures = [a_failure(key, result_state="TIMEDOUT") for key in case.timed_out] or [a_failure("load")]

    changes = settled(facts_of(job, *failures), "timeout_up", tried=case.tried)

    if isinstance(case.want, str):
        assert isinstance(changes, CannotChange)
        assert case.want in changes.reason
    else:
        assert edits(changes) == case.want
        assert cost_factor(changes) == 1


def test_a_run_without_failed_tasks_has_the_timeout_of_its_job() -> None:
    facts = facts_of(a_job(timeout_seconds=60), a_failure("", ComputeKind.UNKNOWN, result_state="TIMEDOUT"))

    assert edits(settled(facts, "timeout_up")) == [("job", "timeout_seconds", 60, 120)]


def test_where_a_parameter_holds_the_limit_that_was_hit_the_time_limit_of_the_run_stays() -> None:
    job = a_job(timeout_seconds=3600)
    parameters = {"declared_parameters": {"api_timeout": "30"}}
    failed, timed_out = a_failure("load"), a_failure("load", result_state="TIMEDOUT")

    of_failed = replace(facts_of(job, failed), job=build_job_facts(settings=job, **parameters))
    of_timed_out = replace(facts_of(job, timed_out), job=build_job_facts(settings=job, **parameters))

    assert [change.target for change in settled(of_failed, "timeout_up", "param:api_timeout")] == [
        "parameter:api_timeout"
    ]
    assert {change.target for change in settled(of_timed_out, "timeout_up", "param:api_timeout")} == {
        "job",
        "parameter:api_timeout",
    }


def serverless(target: str | None) -> RunFacts:
    job = a_job(tasks=[{"task_key": "load", "environment_key": "default"}])
    if target:
        job["performance_target"] = target
    return facts_of(job, a_failure("load", ComputeKind.SERVERLESS, result_state="TIMEDOUT"))


def test_serverless_compute_without_a_timeout_gets_the_faster_mode_for_this_repair_alone() -> None:
    changes = settled(serverless("STANDARD"), "timeout_up")

    assert edits(changes) == [("repair", "performance_target", "STANDARD", "PERFORMANCE_OPTIMIZED")]
    assert performance_target(changes) == "PERFORMANCE_OPTIMIZED"
    assert not edits_job(changes)


@pytest.mark.parametrize(
    ("target", "tried"), [(None, ()), ("PERFORMANCE_OPTIMIZED", ()), ("STANDARD", ("timeout_up",))]
)
def test_the_faster_mode_is_the_default_and_helps_once(target: str | None, tried: tuple[str, ...]) -> None:
    assert isinstance(settled(serverless(target), "timeout_up", tried=tried), CannotChange)


# Parameters


def test_a_parameter_gets_its_next_value_for_this_repair_alone() -> None:
    facts = facts_of(a_job(edit_mode="UI_LOCKED"), run=build_run_state(job_parameters={"batch_size": "200"}))

    changes = settled(facts, "param:batch_size", "param:api_timeout", tried=("param:batch_size",))

    assert parameters_of(changes) == {"batch_size": "100", "api_timeout": "60"}
    assert not edits_job(changes), "so a locked job is no hindrance"
    assert [(change.word, change.value) for change in asked_for(changes)] == [
        ("param:batch_size", "100"),
        ("param:api_timeout", "60"),
    ]


def test_the_model_cannot_choose_the_value() -> None:
    facts = facts_of(a_job())
    chosen = [Change.from_word("param:batch_size", "9"), Change.from_word(MAX_RESULT, "999g")]

    changes = plan(chosen, facts, BOUNDS)

    assert not isinstance(changes, CannotChange)
    assert [change.new for change in changes] == ["500", "8g"]
    assert [change.value for change in asked_for(changes)] == ["500", "8g"]


def test_a_change_is_described_for_people() -> None:
    (change,) = settled(facts_of(a_job()), "worker_memory_up")

    assert described(change) == (
        "job cluster main: node_type_id Standard_E8ds_v5 → Standard_E16ds_v5, about 2 times the price."
        " The workers ran out of memory; this machine has 128 GB."
    )


# Whatever the job looks like

some_clusters = st.fixed_dictionaries(
    {
        "spark_version": st.just("16.4.x-scala2.12"),
        "node_type_id": st.one_of(st.sampled_from([E4, E8, "Standard_DS3_v2"]), st.sampled_from(sorted(BY_NAME))),
    },
    optional={
        "driver_node_type_id": st.sampled_from(sorted(BY_NAME)),
        "num_workers": st.integers(0, 40),
        "autoscale": st.fixed_dictionaries({"min_workers": st.just(1), "max_workers": st.integers(1, 40)}),
        "enable_elastic_disk": st.booleans(),
        "azure_attributes": st.fixed_dictionaries(
            {"availability": st.sampled_from(["SPOT_AZURE", "ON_DEMAND_AZURE"])},
            optional={"first_on_demand": st.integers(0, 2)},
        ),
        "spark_conf": st.dictionaries(
            st.sampled_from(["spark.driver.maxResultSize", "spark.sql.shuffle.partitions", "spark.x"]),
            st.sampled_from(["4g", "16g", "200", "auto"]),
            max_size=2,
        ),
        "instance_pool_id": st.sampled_from(["", "", "", "pool"]),
        "policy_id": st.just("policy"),
    },
)
some_words = st.lists(
    st.sampled_from(
        [
            "worker_memory_up",
            "driver_memory_up",
            "more_disk",
            "more_workers",
            "other_node_type",
            "availability_on_demand",
            "timeout_up",
            MAX_RESULT,
            "spark_conf:spark.sql.shuffle.partitions",
            "param:batch_size",
        ]
    ),
    min_size=1,
    max_size=3,
)
some_bounds = st.builds(
    ChangeBounds,
    max_node_memory_gb=st.sampled_from([16, 64, 256]),
    max_workers=st.integers(1, 40),
    max_timeout_hours=st.sampled_from([1, 24]),
    max_cost_factor=st.sampled_from([1, 2, 4]),
)


@st.composite
def some_jobs(draw: st.DrawFn) -> Json:
    job = a_job_on(draw(some_clusters))
    job["tasks"][2]["new_cluster"] = draw(some_clusters)
    for place in (job, job["tasks"][0], job["tasks"][1]):
        if timeout := draw(st.sampled_from([None, 0, 600, 80_000])):
            place["timeout_seconds"] = timeout
    return job


some_failures = st.lists(st.sampled_from(["extract", "load", "report", "each"]), min_size=1, max_size=3, unique=True)


@given(some_jobs(), some_failures, some_words, some_words, some_bounds)
def test_a_plan_never_exceeds_the_bounds(
    job: Json, tasks: list[str], words: list[str], tried: list[str], bounds: ChangeBounds
) -> None:
    before = copy.deepcopy(job)

    changes = settled(facts_of(job, *map(a_failure, tasks)), *words, bounds=bounds, tried=tuple(tried))

    assert job == before, "planning touches nothing"
    if isinstance(changes, CannotChange):
        return
    assert cost_factor(changes) <= bounds.max_cost_factor
    assert len({(change.target, change.path) for change in changes}) == len(changes)
    for change in changes:
        assert change.old != change.new
        match change.path[-1:]:
            case ("node_type_id",) | ("driver_node_type_id",):
                new = BY_NAME[change.new]
                assert new.memory_mb <= bounds.max_node_memory_gb * 1024
                assert new.is_available
                assert not new.num_gpus
                old = BY_NAME.get(change.old)
                assert old is None or (old.is_arm, old.num_gpus) == (new.is_arm, 0)
            case ("num_workers",) | ("max_workers",):
                assert change.old < change.new <= bounds.max_workers
            case ("timeout_seconds",):
                assert change.old < change.new <= bounds.max_timeout_hours * 3600
            case _:
                pass


def test_the_driver_that_followed_the_workers_stays_on_their_architecture() -> None:
    cluster = a_cluster(node_type_id="Standard_D4pds_v6")

    changes = settled(facts_of(a_job_on(cluster)), "driver_memory_up")

    assert edits(changes) == [of_main(DRIVER, None, "Standard_D8pds_v6")]


def test_a_job_without_arrays_is_understood() -> None:
    facts = facts_of({"name": "bare"}, job=build_job_facts(settings={"name": "bare"}))

    assert isinstance(settled(facts, "more_disk"), CannotChange)
