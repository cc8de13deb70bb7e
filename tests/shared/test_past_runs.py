"""Runs of the last weeks, read from the stand-in workspace over a socket, and from rows as the API gives them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest

from local.databricks.server import create_databricks_app
from shared.domain import Json
from shared.errors import ConfigurationError, RunNotFoundError
from shared.past_runs import PastRuns, as_first_ended, ended_run
from tests.shared.databricks_service import NOW, Service, serving, settings_for

HOUR = 3600
DAY = 24 * HOUR
TIMED_OUT = {"error": "java.net.SocketTimeoutException: Read timed out"}


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(lambda: create_databricks_app(effects_path=None, clock=lambda: NOW)) as running_service:
        yield running_service


def past_runs(service: Service) -> PastRuns:
    return PastRuns(settings_for(service.url), clock=service.clock)


def days_ago(days: float) -> datetime:
    return datetime.fromtimestamp(NOW, UTC) - timedelta(days=days)


def a_run(run_id: int, days_before: float = 1, **fields: Any) -> Json:
    return {"run_id": run_id, "start_offset_seconds": -days_before * DAY, "duration_seconds": HOUR, **fields}


def load(service: Service, *runs: Json, **settings: Any) -> None:
    tasks = [{"task_key": "load"}, {"task_key": "publish", "depends_on": [{"task_key": "load"}]}]
    service.load(
        {"jobs": [{"job_id": 7, "name": "orders", "settings": {"tasks": tasks, **settings}, "runs": list(runs)}]}
    )


def failing(*interference: tuple[float, str]) -> Json:
    """Task `load` fails after half an hour and takes `publish` with it; then, hours after the start, what others do."""
    return {
        "tasks": [{"task_key": "load", "failure": TIMED_OUT, "retry_duration_seconds": 60}],
        "interference": [{"at_offset_seconds": -DAY + hours * HOUR, "kind": kind} for hours, kind in interference],
    }


def test_ended_runs_are_listed_newest_first_and_only_as_far_as_wanted(service: Service) -> None:
    load(service, *(a_run(number, days_before=number / 10) for number in range(1, 61)), max_concurrent_runs=100)
    past = past_runs(service)

    newest = list(islice(past.ended_runs(past.workspaces[0], started_after=days_ago(30)), 3))
    assert [run.run_id for run in newest] == [1, 2, 3]
    assert service.calls("GET /api/2.2/jobs/runs/list") == 1

    since_three_days = list(past.ended_runs(past.workspaces[0], started_after=days_ago(3)))
    assert [run.run_id for run in since_three_days] == list(range(1, 31))
    assert service.calls("GET /api/2.2/jobs/runs/list") == 3
    assert past.calls == 3


def test_a_row_tells_what_is_needed_to_find_a_later_success(service: Service) -> None:
    load(service, a_run(1, trigger="ONE_TIME", job_parameters={"day": "1"}), a_run(2, 2, **failing()))
    past = past_runs(service)

    rerun, failure = past.ended_runs(past.workspaces[0], started_after=days_ago(30))

    assert (rerun.is_on_demand, rerun.is_failed, rerun.job_parameters) == (True, False, {"day": "1"})
    assert (failure.is_on_demand, failure.is_failed) == (False, True)
    assert rerun.end_time - rerun.start_time == timedelta(hours=1)


def test_a_run_that_was_repaired_is_told_from_one_that_took_as_long(service: Service) -> None:
    load(service, a_run(1, **failing((3, "repair_succeeds"))), a_run(2, 3, duration_seconds=3 * HOUR))
    past = past_runs(service)

    seems_repaired = {
        run.run_id: (run.is_failed, run.seems_repaired)
        for run in past.ended_runs(past.workspaces[0], started_after=days_ago(30))
    }

    assert seems_repaired == {1: (False, True), 2: (False, False)}


def test_a_repaired_run_is_read_as_it_first_failed(service: Service) -> None:
    load(service, a_run(1, **failing((2.5, "repair"), (4, "repair_succeeds"))))
    past = past_runs(service)

    failure = past.read_failure(past.workspaces[0], 1)

    assert failure
    facts = failure.facts
    assert facts.run.is_failed
    assert facts.run.end_time == days_ago(1) + timedelta(minutes=30)
    assert facts.run.repairs == ()
    assert facts.task_count == 2
    assert [(task.task_key, task.symptoms.error) for task in facts.failures] == [("load", TIMED_OUT["error"])]
    assert failure.repaired
    assert failure.repaired.start_time == days_ago(1) + timedelta(hours=4)
    assert failure.repaired.end_time > failure.repaired.start_time


def test_a_repair_that_failed_healed_nothing(service: Service) -> None:
    load(service, a_run(1, **failing((3, "repair"))))
    past = past_runs(service)

    failure = past.read_failure(past.workspaces[0], 1)

    assert failure
    assert failure.repaired is None
    assert failure.facts.run.end_time == days_ago(1) + timedelta(minutes=30)


def test_newer_runs_and_the_job_as_it_is_now_play_no_part(service: Service) -> None:
    load(service, a_run(1, 2, **failing()), a_run(2, 1))
    past = past_runs(service)

    failure = past.read_failure(past.workspaces[0], 1)

    assert failure
    assert (failure.facts.newer_runs, failure.facts.job) == ((), None)
    assert past.calls == 2  # the run and the output of one task


@pytest.mark.parametrize("run_type", ["SUBMIT_RUN", "WORKFLOW_RUN"])
def test_the_parent_of_a_run_is_known(service: Service, run_type: str) -> None:
    load(service, a_run(1, run_type=run_type, run_name="ADF_factory_pipeline_activity_1", **failing()))
    past = past_runs(service)

    failure = past.read_failure(past.workspaces[0], 1)

    assert failure
    assert failure.facts.parent == "adf"


def test_a_run_that_never_failed_is_no_failure(service: Service) -> None:
    load(service, a_run(1))
    past = past_runs(service)

    assert past.read_failure(past.workspaces[0], 1) is None
    with pytest.raises(RunNotFoundError):
        past.read_failure(past.workspaces[0], 404)


def test_settings_that_are_missing_are_named() -> None:
    with pytest.raises(ConfigurationError, match="DATABRICKS_HOST"):
        PastRuns(settings_for())


ROW = {"run_id": 1, "start_time": 1_000, "end_time": 601_000, "state": {"result_state": "SUCCESS"}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"run_duration": 600_000}, False),
        ({"run_duration": 500_000}, True),
        ({"run_duration": 500_000, "queue_duration": 90_000}, False),
        ({"run_duration": 545_000}, False),
        ({}, False),
        ({"run_duration": 0}, False),
        ({"run_duration": 100, "state": {"life_cycle_state": "TERMINATED", "result_state": "FAILED"}}, False),
    ],
)
def test_idle_time_in_a_successful_run_points_to_a_repair(fields: Json, expected: bool) -> None:
    terminated = {"status": {"state": "TERMINATED"}}
    assert ended_run("ws1", {**ROW, **terminated, **fields}).seems_repaired is expected


def test_a_history_that_says_little_still_means_that_the_run_first_failed() -> None:
    raw = {
        "run_id": 1,
        "start_time": 1_000,
        "end_time": 9_000,
        "state": {"life_cycle_state": "TERMINATED", "result_state": "SUCCESS"},
        "tasks": [{"task_key": "a", "run_id": 2}],
        "repair_history": [{"type": "REPAIR", "id": 5}],
    }

    first = as_first_ended(raw)

    assert first["state"]["result_state"] == "FAILED"
    assert (first["tasks"], first["end_time"]) == ([], 1_000)
    assert as_first_ended({**raw, "repair_history": None})["end_time"] == 9_000
