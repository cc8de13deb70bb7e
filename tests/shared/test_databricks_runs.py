"""Raw answers of the Jobs API → domain values, by tables."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import databricks_runs
from shared.domain import ComputeKind, Json
from shared.errors import PermanentError, RepairImpossibleError, RepairRefusedError

START = 1_790_000_000_000
AT_START = datetime.fromtimestamp(START / 1000, UTC)


def state(
    result: str | None,
    code: str | None,
    *,
    kind: str = "CLIENT_ERROR",
    life_cycle: str = "TERMINATED",
    message: str = "",
) -> Json:
    """Both shapes of a verdict, as runs/get shows them."""
    return {
        "state": {"life_cycle_state": life_cycle, "result_state": result, "state_message": message},
        "status": {"state": "TERMINATED", "termination_details": {"code": code, "type": kind, "message": message}},
    }


SUCCESS = state("SUCCESS", "SUCCESS", kind="SUCCESS")
FAILED = state("FAILED", "RUN_EXECUTION_ERROR", message="Workload failed")
UPSTREAM_FAILED = state("UPSTREAM_FAILED", "RUN_EXECUTION_ERROR")


def a_run(**fields: Any) -> Json:
    return {"run_id": 9, "job_id": 5, "start_time": START, "end_time": START + 60_000, "run_type": "JOB_RUN"} | fields


def a_task(key: str, verdict: Json = FAILED, *, run_id: int = 1, at: int = 0, **fields: Any) -> Json:
    times = {"start_time": START + at, "end_time": START + at + 10}
    return {"task_key": key, "run_id": run_id, "notebook_task": {}} | times | verdict | fields


def only_status(code: str, kind: str) -> Json:
    return {"status": {"state": "TERMINATED", "termination_details": {"code": code, "type": kind}}}


def only_state(life_cycle: str, result: str | None = None) -> Json:
    return {"state": {"life_cycle_state": life_cycle, "result_state": result}}


@pytest.mark.parametrize(
    ("verdict", "is_active", "is_failed"),
    [
        pytest.param(SUCCESS, False, False, id="success"),
        pytest.param(state("SUCCESS_WITH_FAILURES", "SUCCESS_WITH_FAILURES"), False, False, id="leaf-tasks-succeeded"),
        pytest.param(FAILED, False, True, id="failed"),
        pytest.param(state("TIMEDOUT", "CANCELED"), False, True, id="timed-out"),
        pytest.param(state("CANCELED", "USER_CANCELED"), False, True, id="cancelled-by-a-person"),
        pytest.param(state("FAILED", "INTERNAL_ERROR", life_cycle="INTERNAL_ERROR"), False, True, id="internal-error"),
        pytest.param(state(None, "SKIPPED", life_cycle="SKIPPED"), False, True, id="skipped"),
        pytest.param(
            state("MAXIMUM_CONCURRENT_RUNS_REACHED", "MAX_CONCURRENT_RUNS_EXCEEDED", life_cycle="SKIPPED"),
            False,
            True,
            id="too-many-runs",
        ),
        pytest.param(state("NEW_RESULT", "NEW_CODE"), False, True, id="values-of-tomorrow"),
        pytest.param(only_status("SUCCESS", "SUCCESS"), False, False, id="only-newer-shape-success"),
        pytest.param(only_status("DRIVER_ERROR", "CLOUD_FAILURE"), False, True, id="only-newer-shape-failed"),
        pytest.param(only_state("TERMINATED", "SUCCESS"), False, False, id="only-older-shape-success"),
        pytest.param(only_state("INTERNAL_ERROR"), False, True, id="only-older-shape-failed"),
        pytest.param({"status": {"state": "RUNNING"}}, True, False, id="running"),
        pytest.param({"status": {"state": "TERMINATING"}}, True, False, id="terminating"),
        pytest.param(only_state("WAITING_FOR_RETRY"), True, False, id="native-retry-ahead"),
        pytest.param(only_state("STATE_OF_TOMORROW"), True, False, id="unknown-state-is-active"),
        pytest.param({}, True, False, id="no-state-is-active"),
    ],
)
def test_a_run_is_failed_when_it_has_ended_without_success(verdict: Json, is_active: bool, is_failed: bool) -> None:
    summary = databricks_runs.run_summary(a_run(**verdict))
    run = databricks_runs.run_state("w", a_run(**verdict))

    assert (summary.is_active, summary.is_failed) == (is_active, is_failed)
    assert (run.is_active, run.is_failed) == (is_active, is_failed)


def test_summary_times_are_utc_and_the_end_is_unknown_while_active() -> None:
    ended = databricks_runs.run_summary(a_run(**FAILED))
    active = databricks_runs.run_summary(a_run(end_time=0, status={"state": "RUNNING"}))

    assert ended.start_time == AT_START
    assert ended.end_time == AT_START + timedelta(minutes=1)
    assert active.end_time is None


def test_run_state_keeps_unknown_codes_as_raw_strings() -> None:
    run = databricks_runs.run_state("w", a_run(trigger="MODEL", **state("ODD", "CLUSTER_TERMINATED_BY_USER")))

    assert (run.trigger, run.result_state, run.termination_code) == ("MODEL", "ODD", "CLUSTER_TERMINATED_BY_USER")


def test_the_latest_repair_is_the_last_item_of_the_history() -> None:
    history = [
        {"type": "ORIGINAL", "start_time": START, **FAILED},
        {"type": "REPAIR", "id": 71, "start_time": START + 1000, **FAILED},
        {"type": "REPAIR", "id": 44, "status": {"state": "RUNNING"}},
    ]

    run = databricks_runs.run_state("w", a_run(repair_history=history, **FAILED))

    assert [(repair.repair_id, repair.result_state) for repair in run.repairs] == [(71, "FAILED"), (44, None)]
    assert run.repairs[0].start_time == AT_START + timedelta(seconds=1)
    assert run.failure_id == "w:9:44"


def test_a_run_that_was_never_repaired_has_the_original_failure() -> None:
    assert databricks_runs.run_state("w", a_run(**FAILED)).failure_id == "w:9:original"


def test_job_parameters_are_the_values_used_or_the_defaults() -> None:
    parameters = [
        {"name": "date", "default": "{{job.start_time.iso_date}}", "value": "2026-11-23"},
        {"name": "size", "default": "10"},
        {"name": "empty", "default": "x", "value": ""},
        {"name": "nothing"},
    ]

    run = databricks_runs.run_state("w", a_run(job_parameters=parameters))

    assert run.job_parameters == {"date": "2026-11-23", "size": "10", "empty": ""}


def test_only_the_latest_attempt_of_a_task_counts() -> None:
    tasks = [
        a_task("load", run_id=1, at=0),
        a_task("load", SUCCESS, run_id=3, at=500),
        a_task("publish", run_id=4, at=600),
        a_task("publish", SUCCESS, run_id=2, at=100),
    ]

    assert [task["run_id"] for task in databricks_runs.root_causes({"tasks": tasks})] == [4]
    assert databricks_runs.task_count({"tasks": tasks}) == 2


def test_attempts_at_the_same_time_are_told_apart_by_their_number() -> None:
    tasks = [a_task("load", SUCCESS, run_id=2, attempt_number=1), a_task("load", run_id=1, attempt_number=0)]

    assert databricks_runs.root_causes({"tasks": tasks}) == []


@pytest.mark.parametrize(
    ("verdict", "is_cause"),
    [
        (FAILED, True),
        (state("TIMEDOUT", "CANCELED"), True),
        (state("FAILED", "INTERNAL_ERROR", life_cycle="INTERNAL_ERROR"), True),
        (only_state("INTERNAL_ERROR"), True),
        (state("MAXIMUM_CONCURRENT_RUNS_REACHED", "MAX_CONCURRENT_RUNS_EXCEEDED"), True),
        (only_status("DRIVER_ERROR", "CLOUD_FAILURE"), True),
        (state("RESULT_OF_TOMORROW", None), True),
        (UPSTREAM_FAILED, False),
        (state("UPSTREAM_CANCELED", None), False),
        (state("UPSTREAM_FAILED", None, life_cycle="INTERNAL_ERROR"), False),
        (state("EXCLUDED", "SUCCESS"), False),
        (state("CANCELED", "CANCELED"), False),
        (only_status("USER_CANCELED", "CLIENT_ERROR"), False),
        (only_state("SKIPPED"), False),
        (only_state("BLOCKED"), False),
        (SUCCESS, False),
    ],
)
def test_root_causes_are_tasks_that_failed_by_themselves(verdict: Json, is_cause: bool) -> None:
    assert bool(databricks_runs.root_causes({"tasks": [a_task("load", verdict)]})) is is_cause


def test_the_task_that_failed_first_comes_first() -> None:
    tasks = [a_task("b", at=50), a_task("c", at=20), a_task("a", at=50)]

    assert [task["task_key"] for task in databricks_runs.root_causes({"tasks": tasks})] == ["c", "a", "b"]


RUN_WITH_CLUSTERS = {
    "job_clusters": [
        {"job_cluster_key": "main", "new_cluster": {"node_type_id": "Standard_DS3_v2"}},
        {"job_cluster_key": "pooled", "new_cluster": {"instance_pool_id": "p-1"}},
    ]
}


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ({"notebook_task": {}, "job_cluster_key": "main"}, ComputeKind.JOB_CLUSTER),
        ({"notebook_task": {}, "job_cluster_key": "pooled"}, ComputeKind.POOL),
        ({"notebook_task": {}, "job_cluster_key": "unknown"}, ComputeKind.JOB_CLUSTER),
        ({"spark_jar_task": {}, "new_cluster": {"num_workers": 2}}, ComputeKind.NEW_CLUSTER),
        ({"spark_jar_task": {}, "new_cluster": {"instance_pool_id": "p-1"}}, ComputeKind.POOL),
        ({"notebook_task": {}, "existing_cluster_id": "c-1"}, ComputeKind.ALL_PURPOSE),
        ({"spark_python_task": {}, "environment_key": "default"}, ComputeKind.SERVERLESS),
        ({"notebook_task": {}}, ComputeKind.SERVERLESS),
        ({"notebook_task": {"warehouse_id": "wh"}}, ComputeKind.SQL_WAREHOUSE),
        ({"sql_task": {"warehouse_id": "wh"}}, ComputeKind.SQL_WAREHOUSE),
        ({"pipeline_task": {"pipeline_id": "p"}}, ComputeKind.PIPELINE),
        ({"for_each_task": {"task": {"notebook_task": {}, "job_cluster_key": "pooled"}}}, ComputeKind.POOL),
        ({"for_each_task": {}}, ComputeKind.UNKNOWN),
        ({"run_job_task": {"job_id": 3}}, ComputeKind.UNKNOWN),
        ({"task_of_tomorrow_task": {}}, ComputeKind.UNKNOWN),
        ({}, ComputeKind.UNKNOWN),
    ],
)
def test_compute_of_a_task(task: Json, kind: ComputeKind) -> None:
    assert databricks_runs.compute_kind(task, RUN_WITH_CLUSTERS) is kind


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ({"spark_jar_task": {}}, "jar"),
        ({"python_wheel_task": {}, "depends_on": []}, "python_wheel"),
        ({"for_each_task": {}}, "for_each"),
        ({"something_new_task": {}}, "something_new"),
        ({"disabled": True}, None),
    ],
)
def test_type_of_a_task(task: Json, kind: str | None) -> None:
    assert databricks_runs.task_type(task) == kind


def test_a_task_failure_holds_all_that_was_read() -> None:
    task = a_task("load", run_id=31, job_cluster_key="main", cluster_instance={"cluster_id": "c-1"})
    output = {"error": "OutOfMemoryError", "error_trace": "at x", "logs": "line"}
    cluster = {
        "termination_reason": {"code": "CODE_OF_TOMORROW", "type": "CLOUD_FAILURE", "parameters": {"azure_error": "x"}}
    }
    events: list[Json] = [
        {"type": "NODES_LOST", "details": {"reason": {"code": "SPOT_INSTANCE_TERMINATION"}}},
        {"type": "DRIVER_NOT_RESPONDING"},
    ]

    failure = databricks_runs.task_failure(
        task, RUN_WITH_CLUSTERS, outputs=[output], cluster=cluster, cluster_events=events
    )

    assert (failure.task_key, failure.task_run_id, failure.cluster_id) == ("load", 31, "c-1")
    assert failure.compute is ComputeKind.JOB_CLUSTER
    symptoms = failure.symptoms
    assert (symptoms.error, symptoms.error_trace, symptoms.logs) == ("OutOfMemoryError", "at x", "line")
    assert (symptoms.state_message, symptoms.task_type) == ("Workload failed", "notebook")
    assert (symptoms.termination_code, symptoms.termination_type) == ("RUN_EXECUTION_ERROR", "CLIENT_ERROR")
    assert (symptoms.cluster_reason_code, symptoms.cluster_reason_type) == ("CODE_OF_TOMORROW", "CLOUD_FAILURE")
    assert symptoms.cluster_reason_parameters == {"azure_error": "x"}
    assert symptoms.cluster_events == ("NODES_LOST SPOT_INSTANCE_TERMINATION", "DRIVER_NOT_RESPONDING")


def test_a_task_of_which_nothing_can_be_read_keeps_its_state_message() -> None:
    failure = databricks_runs.task_failure(a_task("load"), {}, outputs=[{}], cluster={}, cluster_events=[])

    assert failure.symptoms.state_message == "Workload failed"
    assert failure.symptoms.error == ""
    assert failure.symptoms.cluster_reason_code is None


def test_a_for_each_task_shows_the_errors_of_its_iterations_once() -> None:
    stats = {"error_message_stats": [{"count": 40, "error_message": "boom"}, {"count": 2, "error_message": "bang"}]}
    task = {k: v for k, v in a_task("all", for_each_task={"stats": stats}).items() if k != "notebook_task"}

    failure = databricks_runs.task_failure(
        task,
        {},
        outputs=[{"error": "boom", "error_trace": "t1"}, {"error": "other", "error_trace": "t2"}],
        cluster={},
        cluster_events=[],
    )

    assert failure.symptoms.error == "boom\nbang\nother"
    assert failure.symptoms.error_trace == "t1\nt2"
    assert failure.symptoms.task_type == "for_each"


def test_failed_iterations_are_those_that_failed_by_themselves() -> None:
    iterations = [a_task("i", SUCCESS, run_id=1), a_task("i", run_id=2), a_task("i", UPSTREAM_FAILED, run_id=3)]

    assert [task["run_id"] for task in databricks_runs.failed_iterations({"iterations": iterations})] == [2]


def test_a_run_job_task_names_the_run_that_it_started() -> None:
    output = {"run_job_output": {"run_id": 778}}

    failure = databricks_runs.task_failure(a_task("child"), {}, outputs=[output], cluster={}, cluster_events=[])

    assert "run 778 of another job" in failure.symptoms.state_message


def test_a_run_without_failed_tasks_fails_as_a_whole() -> None:
    raw = a_run(**state(None, "MAX_CONCURRENT_RUNS_EXCEEDED", life_cycle="SKIPPED", message="too many runs"))

    failure = databricks_runs.run_level_failure(raw)

    assert (failure.task_key, failure.task_run_id, failure.compute) == ("", 9, ComputeKind.UNKNOWN)
    assert failure.symptoms.termination_code == "MAX_CONCURRENT_RUNS_EXCEEDED"
    assert failure.symptoms.state_message == "too many runs"


@pytest.mark.parametrize(
    ("raw", "tags", "parent"),
    [
        ({"trigger": "PERIODIC"}, {}, ""),
        ({"trigger": "RUN_JOB_TASK", "run_type": "JOB_RUN"}, {}, "run_job"),
        ({"run_type": "SUBMIT_RUN", "run_name": "one-time"}, {}, "submit"),
        ({"run_type": "SUBMIT_RUN", "run_name": "ADF_factory_pipeline_activity_1"}, {}, "adf"),
        ({"run_type": "SUBMIT_RUN", "run_name": "airflow-dag.task"}, {}, "airflow"),
        ({"run_type": "JOB_RUN", "run_name": "daily"}, {"orchestrator": "Airflow"}, "airflow"),
        ({"run_type": "JOB_RUN", "run_name": "load ADF_ data"}, {}, ""),
    ],
)
def test_parent_of_a_run(raw: Json, tags: dict[str, str], parent: str) -> None:
    assert databricks_runs.parent_of(raw, tags) == parent


def test_newer_runs_started_after_the_run() -> None:
    run = databricks_runs.run_state("w", a_run(**FAILED))
    raws = [
        a_run(run_id=12, start_time=START + 3000, status={"state": "RUNNING"}),
        a_run(run_id=11, start_time=START + 2000, job_parameters=[{"name": "d", "value": "1"}], **SUCCESS),
        a_run(run_id=8, start_time=START, **SUCCESS),
    ]

    newer = databricks_runs.newer_runs(raws, run.start_time)

    assert [(n.run_id, n.is_active, n.result_state) for n in newer] == [(12, True, None), (11, False, "SUCCESS")]
    assert newer[1].job_parameters == {"d": "1"}


@pytest.mark.parametrize(
    ("settings", "is_continuous", "is_paused"),
    [
        ({}, False, False),
        ({"schedule": {"pause_status": "UNPAUSED"}}, False, False),
        ({"schedule": {"pause_status": "PAUSED"}}, False, True),
        ({"trigger": {"pause_status": "PAUSED"}}, False, True),
        ({"continuous": {"pause_status": "UNPAUSED"}}, True, False),
    ],
)
def test_schedule_of_a_job(settings: Json, is_continuous: bool, is_paused: bool) -> None:
    job = databricks_runs.job_facts({"job_id": 5, "settings": settings})

    assert (job.is_continuous, job.is_paused) == (is_continuous, is_paused)


def test_job_facts_keep_the_settings_untouched() -> None:
    settings = {
        "name": "orders",
        "tags": {"failure-agent": "full"},
        "parameters": [{"name": "date", "default": "today"}],
        "field_of_tomorrow": [1],
    }

    job = databricks_runs.job_facts({"job_id": 5, "settings": settings})

    assert (job.name, job.tags, job.declared_parameters) == ("orders", {"failure-agent": "full"}, {"date": "today"})
    assert job.settings == settings


def test_a_repair_repeats_the_parameters_of_the_run() -> None:
    body = databricks_runs.repair_body(
        9,
        latest_repair_id=71,
        job_parameters={"date": "2026-11-23"},
        legacy_parameters={"notebook_params": {"a": "1"}, "jar_params": [], "only": ["x"]},
    )

    assert body == {
        "run_id": 9,
        "rerun_all_failed_tasks": True,
        "rerun_dependent_tasks": True,
        "latest_repair_id": 71,
        "job_parameters": {"date": "2026-11-23"},
        "notebook_params": {"a": "1"},
    }


def test_a_first_repair_names_no_repair_and_a_full_refresh_is_never_repeated() -> None:
    pipeline = {"full_refresh": True, "refresh_selection": ["sales"], "reset_checkpoint_selection": ["flow"]}

    body = databricks_runs.repair_body(
        9, latest_repair_id=None, job_parameters={}, legacy_parameters={"pipeline_params": pipeline}
    )

    assert "latest_repair_id" not in body
    assert "job_parameters" not in body
    assert body["pipeline_params"] == {"refresh_selection": ["sales"]}


@pytest.mark.parametrize(
    ("message", "code", "meaning"),
    [
        (
            "The latest repair ID needs to be provided in order to create a new repair",
            "INVALID_PARAMETER_VALUE",
            RepairRefusedError,
        ),
        ("The provided latest repair ID 5 is not the latest repair of the run.", None, RepairRefusedError),
        ("Run 9 is in progress. Only a run in a terminal state can be repaired.", None, RepairRefusedError),
        ("The run is still running and cannot be repaired", None, RepairRefusedError),
        ("Run 9 has no failed tasks to repair.", None, RepairRefusedError),
        ("Something about its state", "INVALID_STATE", RepairRefusedError),
        ("Run 9 cannot be repaired: it is a SUBMIT_RUN.", "INVALID_PARAMETER_VALUE", RepairImpossibleError),
        ("Repair is not supported for runs with a single task", None, RepairImpossibleError),
        ("Runs of one-time jobs: repair unavailable", None, RepairImpossibleError),
        ("The parameter size is not declared by the job", "INVALID_PARAMETER_VALUE", PermanentError),
        ("A text of tomorrow", None, PermanentError),
    ],
)
def test_meaning_of_a_refused_repair(message: str, code: str | None, meaning: type[PermanentError]) -> None:
    assert databricks_runs.refused_repair(message, error_code=code) is meaning


def test_pages_are_joined_in_order() -> None:
    pages = [
        {"run_id": 9, "tasks": [{"task_key": "a"}], "repair_history": [{"id": 1}], "next_page_token": "x"},
        {"run_id": 9, "tasks": [{"task_key": "b"}]},
    ]

    whole = databricks_runs.joined_pages(pages, databricks_runs.RUN_ARRAYS)

    assert whole["tasks"] == [{"task_key": "a"}, {"task_key": "b"}]
    assert whole["repair_history"] == [{"id": 1}]


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=200), st.integers(1, 100))
def test_any_text_becomes_storable_and_bounded(text: str, limit: int) -> None:
    cleaned = databricks_runs.clean_text(text, limit)

    assert len(cleaned) <= limit
    assert "\0" not in cleaned
    cleaned.encode("utf-8")


def test_a_long_log_keeps_its_last_whole_lines() -> None:
    log = "".join(f"line {number}\n" for number in range(1000))

    kept = databricks_runs.clean_text(log, 100)

    assert log.endswith(kept)
    assert kept.startswith("line ")
    assert len(kept) > 90


def test_a_text_without_line_ends_keeps_its_end() -> None:
    assert databricks_runs.clean_text("abcdef", 4) == "cdef"


@pytest.mark.parametrize(("value", "text"), [(None, ""), (5, "5"), ("half \ud83d pair", "half ? pair"), ("a\0b", "ab")])
def test_odd_values_become_text(value: object, text: str) -> None:
    assert databricks_runs.clean_text(value) == text


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 10) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
RUN_FIELDS = ("state", "status", "tasks", "repair_history", "job_parameters", "overriding_parameters", "trigger")


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(RUN_FIELDS, ANY_JSON)))
def test_a_section_of_an_unexpected_shape_reads_as_empty(fields: Json) -> None:
    raw = a_run(**fields)

    run = databricks_runs.run_state("w", raw)
    databricks_runs.root_causes(raw)
    databricks_runs.parent_of(raw, {})

    assert run.is_failed is (not run.is_active and databricks_runs.run_summary(raw).is_failed)
