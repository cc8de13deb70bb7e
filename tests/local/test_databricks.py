"""The simulated Databricks workspace, driven with a time that the tests choose."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local.databricks import cluster_policies
from local.databricks.answers import Answers
from local.databricks.healing import Circumstances, quantity
from local.databricks.job_settings import updated
from local.databricks.node_types import NODE_TYPES
from local.databricks.runs import Run
from local.databricks.scenario import TaskPlan, parse_scenario
from local.databricks.workspace import (
    QueueSettings,
    RepairRequest,
    RequestRefusedError,
    RunFilter,
    RunNowRequest,
    Workspace,
)

JSON = dict[str, Any]

T0 = 1_790_000_000.0
BIG: JSON = {"node_type_id": "Standard_DS12_v2", "num_workers": 2}
SMALL: JSON = {"node_type_id": "Standard_DS3_v2", "num_workers": 2}
CHAIN: list[JSON] = [
    {"task_key": "extract", "job_cluster_key": "main"},
    {"task_key": "load", "job_cluster_key": "main", "depends_on": [{"task_key": "extract"}]},
    {"task_key": "publish", "job_cluster_key": "main", "depends_on": [{"task_key": "load"}]},
]


def failing(task_key: str, heals_when: JSON | None = None, **more: object) -> JSON:
    return {
        "task_key": task_key,
        "failure": {"error": "boom"},
        "heals_when": heals_when or {"kind": "never"},
        **more,
    }


def job(
    *,
    run: JSON | None = None,
    tasks: list[JSON] | None = None,
    job_settings: JSON | None = None,
    job_id: int = 1,
    run_id: int = 11,
    **more: object,
) -> JSON:
    base = {"job_clusters": [{"job_cluster_key": "main", "new_cluster": SMALL}], "tasks": CHAIN}
    one_run = {"run_id": run_id, "duration_seconds": 3.0, "tasks": tasks or [], **(run or {})}
    return {
        "job_id": job_id,
        "name": f"job-{job_id}",
        "settings": base | (job_settings or {}),
        "runs": [one_run],
        **more,
    }


def workspace_with(*jobs: JSON, **switches: object) -> Workspace:
    workspace = Workspace()
    workspace.load(parse_scenario({"jobs": list(jobs), **switches}), T0)
    return workspace


def at(workspace: Workspace, seconds: float) -> float:
    workspace.advance(T0 + seconds)
    return T0 + seconds


def results(run: Run) -> dict[str, str]:
    return {key: attempt.verdict.result_state for key, attempt in run.latest.items() if attempt.verdict}


def run_result(run: Run) -> str:
    assert run.current is not None
    assert run.current.verdict is not None
    return run.current.verdict.result_state


def repair_all(workspace: Workspace, seconds: float, latest: int | None = None, **more: Any) -> int:
    now = at(workspace, seconds)
    return workspace.repair(RepairRequest(run_id=11, rerun_all_failed_tasks=True, latest_repair_id=latest, **more), now)


def refusal_of(workspace: Workspace, request: RepairRequest, seconds: float) -> RequestRefusedError:
    with pytest.raises(RequestRefusedError) as refused:
        workspace.repair(request, at(workspace, seconds))
    return refused.value


class TestRun:
    def test_tasks_follow_their_dependencies_in_time(self) -> None:
        workspace = workspace_with(job())
        run = workspace.run(11)
        at(workspace, 1.5)
        assert {key: a.life_cycle_state for key, a in run.latest.items()} == {
            "extract": "TERMINATED",
            "load": "RUNNING",
            "publish": "BLOCKED",
        }
        assert run.is_active
        at(workspace, 3.0)
        assert run_result(run) == "SUCCESS"
        assert run.current is not None
        assert run.current.end == T0 + 3.0

    def test_a_run_does_not_exist_before_its_start(self) -> None:
        workspace = workspace_with(job(run={"start_offset_seconds": 2.0}))
        at(workspace, 1.9)
        with pytest.raises(RequestRefusedError, match="Run 11 does not exist"):
            workspace.run(11)
        at(workspace, 2.0)
        assert workspace.run(11).is_active

    def test_a_run_in_the_past_is_over_at_load(self) -> None:
        workspace = workspace_with(job(run={"start_offset_seconds": -60}))
        run = workspace.run(11)
        assert run_result(run) == "SUCCESS"
        assert run.start == T0 - 60

    def test_failure_stops_dependents_and_is_told_in_both_forms(self) -> None:
        workspace = workspace_with(job(tasks=[failing("load")]))
        now = at(workspace, 3)
        run = workspace.run(11)
        assert results(run) == {"extract": "SUCCESS", "load": "FAILED", "publish": "UPSTREAM_FAILED"}
        answer = Answers(workspace, "http://x", now).run(run, with_tasks=False)
        assert answer["state"]["life_cycle_state"] == "INTERNAL_ERROR"
        assert answer["state"]["result_state"] == "FAILED"
        assert answer["state"]["state_message"].startswith("Task load failed with message: Workload failed")
        assert answer["status"]["termination_details"]["code"] == "RUN_EXECUTION_ERROR"
        assert "tasks" not in answer
        assert "repair_history" not in answer

    @pytest.mark.parametrize(
        ("run_if", "publish", "whole"),
        [
            ("ALL_SUCCESS", "UPSTREAM_FAILED", "FAILED"),
            ("NONE_FAILED", "UPSTREAM_FAILED", "FAILED"),
            ("ALL_DONE", "SUCCESS", "SUCCESS_WITH_FAILURES"),
            ("ALL_FAILED", "SUCCESS", "SUCCESS_WITH_FAILURES"),
            ("AT_LEAST_ONE_FAILED", "SUCCESS", "SUCCESS_WITH_FAILURES"),
            ("AT_LEAST_ONE_SUCCESS", "UPSTREAM_FAILED", "FAILED"),
        ],
    )
    def test_run_if(self, run_if: str, publish: str, whole: str) -> None:
        tasks = [*CHAIN[:2], {**CHAIN[2], "run_if": run_if}]
        workspace = workspace_with(job(tasks=[failing("load")], job_settings={"tasks": tasks}))
        at(workspace, 3)
        assert results(workspace.run(11))["publish"] == publish
        assert run_result(workspace.run(11)) == whole

    def test_all_failed_is_excluded_when_its_dependency_succeeds(self) -> None:
        tasks = [*CHAIN[:2], {**CHAIN[2], "run_if": "ALL_FAILED"}]
        workspace = workspace_with(job(job_settings={"tasks": tasks}))
        at(workspace, 3)
        assert results(workspace.run(11))["publish"] == "EXCLUDED"
        assert run_result(workspace.run(11)) == "SUCCESS"

    @pytest.mark.parametrize(
        ("failure", "life_cycle_state", "result_state"),
        [
            ({"result_state": "TIMEDOUT", "termination_code": "CANCELED"}, "TERMINATED", "TIMEDOUT"),
            ({"result_state": "CANCELED", "termination_code": "USER_CANCELED"}, "TERMINATED", "CANCELED"),
            (
                {
                    "result_state": "MAXIMUM_CONCURRENT_RUNS_REACHED",
                    "termination_code": "MAX_CONCURRENT_RUNS_EXCEEDED",
                },
                "SKIPPED",
                "MAXIMUM_CONCURRENT_RUNS_REACHED",
            ),
        ],
    )
    def test_special_ends_of_a_run(self, failure: JSON, life_cycle_state: str, result_state: str) -> None:
        workspace = workspace_with(job(tasks=[{"task_key": "extract", "failure": failure}]))
        at(workspace, 3)
        run = workspace.run(11)
        verdict = run.executions[-1].verdict
        assert verdict is not None
        assert (verdict.life_cycle_state, verdict.result_state) == (life_cycle_state, result_state)
        assert verdict.termination_code == failure["termination_code"]

    def test_native_retries_keep_the_run_active(self) -> None:
        tasks = [{**CHAIN[0], "min_retry_interval_millis": 1000}]
        workspace = workspace_with(
            job(
                tasks=[failing("extract", {"kind": "after_attempts", "attempts": 1})],
                run={"native_retries_left": 1, "duration_seconds": 1.0},
                job_settings={"tasks": tasks},
            )
        )
        run = workspace.run(11)
        at(workspace, 1.5)
        first, second = run.executions[0].attempts
        assert run.is_active
        assert (first.attempt_number, second.attempt_number) == (0, 1)
        assert second.original_run_id == first.run_id
        assert second.life_cycle_state == "WAITING_FOR_RETRY"
        at(workspace, 2.5)
        assert run_result(run) == "SUCCESS"

    def test_recurring_runs_come_until_the_job_is_deleted(self) -> None:
        plan = job(
            run={"interference": [{"at_offset_seconds": 25, "kind": "delete_job"}]},
            recurring={"every_seconds": 10, "duration_seconds": 1},
        )
        workspace = workspace_with(plan)
        now = at(workspace, 60)
        starts = [run.start - T0 for run in workspace.runs(RunFilter(), now)]
        assert starts == [20, 10, 0]
        with pytest.raises(RequestRefusedError, match="Job 1 does not exist"):
            workspace.job(1)


class TestRepair:
    def test_reruns_what_failed_and_keeps_the_start(self) -> None:
        workspace = workspace_with(job(tasks=[failing("load", {"kind": "after_attempts", "attempts": 1})]))
        at(workspace, 3)
        run = workspace.run(11)
        old = {key: attempt.run_id for key, attempt in run.latest.items()}
        repair_id = repair_all(workspace, 10)
        assert run.is_active
        assert list(workspace.runs(RunFilter(active_only=True), T0 + 10)) == [run]
        assert run.start == T0
        assert run.latest["extract"].run_id == old["extract"]
        assert run.latest["load"].run_id != old["load"]
        assert run.latest["load"].attempt_number == 1
        now = at(workspace, 11)
        assert run_result(run) == "SUCCESS"
        answer = Answers(workspace, "http://x", now).run(run, with_tasks=True, with_history=True)
        assert [(item["type"], item.get("id")) for item in answer["repair_history"]] == [
            ("ORIGINAL", None),
            ("REPAIR", repair_id),
        ]
        assert [task["task_key"] for task in answer["tasks"]] == ["extract", "load", "publish", "load", "publish"]
        assert answer["start_time"] == int(T0 * 1000)
        assert answer["end_time"] == int((T0 + 11) * 1000)

    def test_second_repair_needs_the_latest_id(self) -> None:
        workspace = workspace_with(job(tasks=[failing("load")]))
        first = repair_all(workspace, 3)
        request = RepairRequest(run_id=11, rerun_all_failed_tasks=True)
        missing = refusal_of(workspace, request, 5)
        assert missing.error_code == "INVALID_PARAMETER_VALUE"
        assert "latest repair ID needs to be provided" in missing.message
        stale = refusal_of(workspace, request.model_copy(update={"latest_repair_id": 5}), 5)
        assert stale.error_code == "INVALID_PARAMETER_VALUE"
        assert repair_all(workspace, 5, latest=first) != first
        assert workspace.terminal_failures(11) == 2

    @pytest.mark.parametrize(
        ("changes", "code", "message"),
        [
            ({}, "INVALID_PARAMETER_VALUE", "Exactly one of"),
            ({"rerun_tasks": ["load"], "rerun_all_failed_tasks": True}, "INVALID_PARAMETER_VALUE", "Exactly one of"),
            ({"rerun_tasks": ["load", "load"]}, "INVALID_PARAMETER_VALUE", "cannot contain duplicate task keys"),
            ({"rerun_tasks": ["nothing"]}, "INVALID_PARAMETER_VALUE", "no task with the key nothing"),
            ({"run_id": 99, "rerun_all_failed_tasks": True}, "INVALID_PARAMETER_VALUE", "Run 99 does not exist"),
            (
                {"rerun_all_failed_tasks": True, "latest_repair_id": 7},
                "INVALID_PARAMETER_VALUE",
                "not the latest repair",
            ),
        ],
    )
    def test_refused(self, changes: JSON, code: str, message: str) -> None:
        workspace = workspace_with(job(tasks=[failing("load")]))
        refused = refusal_of(workspace, RepairRequest.model_validate({"run_id": 11, **changes}), 3)
        assert (refused.status, refused.error_code) == (400, code)
        assert message in refused.message
        assert len(workspace.run(11).executions) == 1

    def test_refused_while_the_run_is_active(self) -> None:
        workspace = workspace_with(job(tasks=[failing("load")]))
        refused = refusal_of(workspace, RepairRequest(run_id=11, rerun_all_failed_tasks=True), 1)
        assert (refused.status, refused.error_code) == (400, "INVALID_STATE")

    def test_refused_for_submitted_runs_and_deleted_jobs(self) -> None:
        submitted = job(run={"run_type": "SUBMIT_RUN"}, tasks=[failing("load")])
        deleted = job(
            job_id=2,
            run_id=21,
            run={"interference": [{"at_offset_seconds": 4, "kind": "delete_job"}]},
            tasks=[failing("load")],
        )
        workspace = workspace_with(submitted, deleted)
        assert "SUBMIT_RUN" in refusal_of(workspace, RepairRequest(run_id=11, rerun_all_failed_tasks=True), 5).message
        gone = refusal_of(workspace, RepairRequest(run_id=21, rerun_all_failed_tasks=True), 5)
        assert gone.message == "Job 2 does not exist."

    @pytest.mark.parametrize(
        ("rerun", "expected"),
        [
            (["load"], ["load", "publish"]),  # publish failed because of load
            (["extract"], ["extract"]),
            (["publish"], ["publish"]),
        ],
    )
    def test_named_tasks_take_those_that_failed_because_of_them(self, rerun: list[str], expected: list[str]) -> None:
        workspace = workspace_with(job(tasks=[failing("load")]))
        now = at(workspace, 3)
        workspace.repair(RepairRequest(run_id=11, rerun_tasks=rerun), now)
        assert [attempt.task_key for attempt in workspace.run(11).executions[-1].attempts] == expected

    def test_rerun_dependent_tasks_takes_successful_ones_too(self) -> None:
        workspace = workspace_with(job())
        now = at(workspace, 3)
        workspace.repair(RepairRequest(run_id=11, rerun_tasks=["load"], rerun_dependent_tasks=True), now)
        attempts = workspace.run(11).executions[-1].attempts
        assert [attempt.task_key for attempt in attempts] == ["load", "publish"]

    def test_parameters_of_the_run_are_not_carried_over(self) -> None:
        rule = {"kind": "job_parameter", "name": "day", "value": "2026-11-01"}
        plan = job(
            tasks=[failing("load", {"kind": "all", "of": [rule, {"kind": "after_attempts", "attempts": 1}]})],
            run={"job_parameters": {"day": "2026-11-01"}},
            job_settings={"parameters": [{"name": "day", "default": "today"}]},
        )
        workspace = workspace_with(plan)
        first = repair_all(workspace, 3)
        at(workspace, 5)
        assert run_result(workspace.run(11)) == "FAILED"
        repair_all(workspace, 5, latest=first, job_parameters={"day": "2026-11-01"})
        at(workspace, 7)
        assert run_result(workspace.run(11)) == "SUCCESS"

    def test_later_failures_replace_the_first(self) -> None:
        later = [{"error": "second"}, {"error": "third"}]
        workspace = workspace_with(job(tasks=[failing("load", later_failures=later)]))
        repair_id = None
        errors = []
        for seconds in (3, 6, 9, 12):
            now = at(workspace, seconds)
            run = workspace.run(11)
            output = Answers(workspace, "http://x", now).output(run, run.latest["load"])
            errors.append(output["error"])
            repair_id = repair_all(workspace, seconds, latest=repair_id)
        assert errors == ["boom", "second", "third", "third"]

    def test_a_repair_can_be_invisible_for_a_while(self) -> None:
        workspace = workspace_with(
            job(tasks=[failing("load")]), repair_visible_after_seconds=5, reopening_visible_after_seconds=2
        )
        repair_all(workspace, 10)
        run = workspace.run(11)

        def shown(seconds: float) -> tuple[str, int, bool]:
            now = at(workspace, seconds)
            answer = Answers(workspace, "http://x", now).run(run, with_tasks=True, with_history=True)
            listed = any(workspace.runs(RunFilter(completed_only=True), now))
            return answer["state"]["life_cycle_state"], len(answer["repair_history"]), listed

        assert shown(10.1) == ("INTERNAL_ERROR", 1, True)
        assert shown(12.1)[1] == 1
        assert shown(15.1)[1] == 2
        with pytest.raises(RequestRefusedError, match="latest repair ID"):
            repair_all(workspace, 16)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.sampled_from(["repair", "stale", "none", "wait"]), max_size=12))
    def test_at_most_one_repair_is_accepted_per_failure(self, steps: list[str]) -> None:
        workspace = workspace_with(job(tasks=[failing("load")]))
        run = workspace.run(11)
        seconds, accepted, latest = 3.0, [], None
        for step in steps:
            seconds += 2.0 if step == "wait" else 0.1
            now = at(workspace, seconds)
            given_id = {"repair": latest, "stale": 1, "none": None, "wait": latest}[step]
            request = RepairRequest(run_id=11, rerun_all_failed_tasks=True, latest_repair_id=given_id)
            failures = workspace.terminal_failures(11)
            try:
                latest = workspace.repair(request, now)
            except RequestRefusedError:
                continue
            accepted.append(f"11:{failures}")
        assert len(set(accepted)) == len(accepted)
        assert len(run.executions) == 1 + len(accepted)


class TestOutcomeDependsOnWhatWasDone:
    @pytest.mark.parametrize(
        ("rule", "changed"),
        [
            ({"kind": "worker_memory_gb_at_least", "gb": 28}, BIG),
            (
                {"kind": "driver_memory_gb_at_least", "gb": 32},
                {**SMALL, "driver_node_type_id": "Standard_E4ds_v5"},
            ),
            (
                {"kind": "spark_conf_at_least", "name": "spark.driver.maxResultSize", "value": "4g"},
                {**SMALL, "spark_conf": {"spark.driver.maxResultSize": "8g"}},
            ),
            (
                {"kind": "spark_conf_equals", "name": "spark.sql.autoBroadcastJoinThreshold", "value": "-1"},
                {**SMALL, "spark_conf": {"spark.sql.autoBroadcastJoinThreshold": -1}},
            ),
            ({"kind": "node_type_not", "node_type": "Standard_DS3_v2"}, BIG),
            ({"kind": "workers_at_least", "workers": 4}, {**SMALL, "autoscale": {"min_workers": 2, "max_workers": 4}}),
            (
                {
                    "kind": "cluster_attribute_equals",
                    "name": "azure_attributes.availability",
                    "value": "ON_DEMAND_AZURE",
                },
                {**SMALL, "azure_attributes": {"availability": "ON_DEMAND_AZURE"}},
            ),
        ],
        ids=lambda value: value.get("kind", "") if isinstance(value, dict) else "",
    )
    @pytest.mark.parametrize("settings_read_at", ["request", "task_start"])
    def test_cluster_rules(self, rule: JSON, changed: JSON, settings_read_at: str) -> None:
        workspace = workspace_with(job(tasks=[failing("load", rule)]), settings_read_at=settings_read_at)
        first = repair_all(workspace, 3)
        at(workspace, 5)
        assert run_result(workspace.run(11)) == "FAILED"
        workspace.update_job(1, {"job_clusters": [{"job_cluster_key": "main", "new_cluster": changed}]}, [])
        repair_all(workspace, 5, latest=first)
        at(workspace, 7)
        assert run_result(workspace.run(11)) == "SUCCESS"

    @pytest.mark.parametrize(("settings_read_at", "expected"), [("request", "SUCCESS"), ("task_start", "FAILED")])
    def test_when_settings_are_read(self, settings_read_at: str, expected: str) -> None:
        """The change is put back after the request, before the last task starts."""
        plan = [failing("publish", {"kind": "worker_memory_gb_at_least", "gb": 28})]
        workspace = workspace_with(job(tasks=plan), settings_read_at=settings_read_at)
        now = at(workspace, 3)
        workspace.update_job(1, {"job_clusters": [{"job_cluster_key": "main", "new_cluster": BIG}]}, [])
        workspace.repair(RepairRequest(run_id=11, rerun_tasks=["load"], rerun_dependent_tasks=True), now)
        workspace.update_job(1, {"job_clusters": [{"job_cluster_key": "main", "new_cluster": SMALL}]}, [])
        at(workspace, 5)
        assert run_result(workspace.run(11)) == expected

    @pytest.mark.parametrize("settings_read_at", ["request", "task_start"])
    def test_a_timeout_acts_on_active_runs(self, settings_read_at: str) -> None:
        rule = {"kind": "timeout_seconds_at_least", "seconds": 7200}
        workspace = workspace_with(
            job(tasks=[failing("publish", rule)], job_settings={"timeout_seconds": 3600}),
            settings_read_at=settings_read_at,
        )
        at(workspace, 1.5)
        workspace.update_job(1, {"timeout_seconds": 7200}, [])
        at(workspace, 3)
        assert run_result(workspace.run(11)) == "SUCCESS"

    def test_shared_cluster_of_a_pool_has_no_known_memory(self) -> None:
        pool = {"instance_pool_id": "pool-1", "num_workers": 2}
        circumstances = Circumstances(0, {}, {"task_key": "a", "new_cluster": pool}, {})
        assert circumstances.memory_gb(of_driver=False) == 0
        assert circumstances.memory_gb(of_driver=True) == 0

    @pytest.mark.parametrize(
        ("text", "number"), [("200", 200), ("8g", 8 * 2**30), ("512MB", 512 * 2**20), ("1.5k", 1536), ("auto", None)]
    )
    def test_quantity(self, text: str, number: float | None) -> None:
        assert quantity(text) == number


class TestRunNow:
    def test_counts_attempts_with_its_source(self) -> None:
        workspace = workspace_with(job(tasks=[failing("load", {"kind": "after_attempts", "attempts": 1})]))
        now = at(workspace, 3)
        run_id, is_new = workspace.run_now(RunNowRequest(job_id=1, idempotency_token="11:1"), now, source_run_id=11)
        assert is_new
        at(workspace, 6)
        assert run_result(workspace.run(run_id)) == "SUCCESS"
        assert run_result(workspace.run(11)) == "FAILED"

    def test_same_token_gives_the_old_run_even_if_it_failed(self) -> None:
        workspace = workspace_with(job(tasks=[failing("load")]))
        request = RunNowRequest(job_id=1, idempotency_token="t" * 64)
        run_id, _ = workspace.run_now(request, at(workspace, 3))
        now = at(workspace, 10)
        assert run_result(workspace.run(run_id)) == "FAILED"
        assert workspace.run_now(request, now) == (run_id, False)

    def test_a_long_token_is_refused(self) -> None:
        workspace = workspace_with(job())
        with pytest.raises(RequestRefusedError, match="at most 64 characters"):
            workspace.run_now(RunNowRequest(job_id=1, idempotency_token="t" * 65), at(workspace, 3))

    def test_over_the_limit_it_is_skipped_or_queued(self) -> None:
        workspace = workspace_with(job())
        now = at(workspace, 1)
        skipped, _ = workspace.run_now(RunNowRequest(job_id=1), now)
        queued, _ = workspace.run_now(RunNowRequest(job_id=1, queue=QueueSettings(enabled=True)), now)
        assert run_result(workspace.run(skipped)) == "MAXIMUM_CONCURRENT_RUNS_REACHED"
        answer = Answers(workspace, "http://x", now).run(workspace.run(queued), with_tasks=True)
        assert answer["status"]["state"] == "QUEUED"
        assert answer["status"]["queue_details"]["code"] == "MAX_CONCURRENT_RUNS_REACHED"
        at(workspace, 10)
        assert run_result(workspace.run(queued)) == "SUCCESS"

    def test_a_queued_run_can_be_cancelled(self) -> None:
        workspace = workspace_with(job())
        now = at(workspace, 1)
        queued, _ = workspace.run_now(RunNowRequest(job_id=1, queue=QueueSettings(enabled=True)), now)
        workspace.cancel(queued, now)
        at(workspace, 10)
        assert run_result(workspace.run(queued)) == "CANCELED"


class TestInterference:
    def plan(self, kind: str, seconds: float, **more: object) -> JSON:
        interference = [{"at_offset_seconds": seconds, "kind": kind, **more}]
        return job(tasks=[failing("load")], run={"interference": interference, "job_parameters": {"day": "1"}})

    def test_repair_by_somebody_else(self) -> None:
        workspace = workspace_with(self.plan("repair", 4))
        at(workspace, 10)
        assert run_result(workspace.run(11)) == "FAILED"
        assert workspace.terminal_failures(11) == 2
        with pytest.raises(RequestRefusedError, match="latest repair ID"):
            repair_all(workspace, 10)

    def test_successful_repair_by_somebody_else(self) -> None:
        workspace = workspace_with(self.plan("repair_succeeds", 4))
        at(workspace, 10)
        assert run_result(workspace.run(11)) == "SUCCESS"

    def test_cancelled_by_a_person(self) -> None:
        workspace = workspace_with(self.plan("cancel", 1.5))
        at(workspace, 10)
        run = workspace.run(11)
        assert results(run) == {"extract": "SUCCESS", "load": "CANCELED", "publish": "CANCELED"}
        verdict = run.executions[-1].verdict
        assert verdict is not None
        assert verdict.termination_code == "USER_CANCELED"

    @pytest.mark.parametrize(("kind", "active"), [("newer_success", False), ("newer_active", True)])
    def test_a_newer_run(self, kind: str, active: bool) -> None:
        workspace = workspace_with(self.plan(kind, 4))
        now = at(workspace, 10)
        newer = next(workspace.runs(RunFilter(job_id=1), now))
        assert newer.run_id != 11
        assert newer.is_active is active
        assert newer.parameters == {"day": "1"}


class TestList:
    def workspace(self, count: int) -> Workspace:
        jobs = [
            job(job_id=n, run_id=1000 + n, run={"start_offset_seconds": -float(n % 50)}) for n in range(1, count + 1)
        ]
        return workspace_with(*jobs)

    def test_descends_by_start_and_pages_without_gaps(self) -> None:
        workspace = self.workspace(120)
        seen: list[tuple[int, int]] = []
        before = None
        while True:
            page = [run.key for run, _ in zip(workspace.runs(RunFilter(before=before), T0), range(25), strict=False)]
            if not page:
                break
            seen += page
            before = page[-1]
        assert seen == sorted(seen, reverse=True)
        assert len(set(seen)) == 120

    def test_filters(self) -> None:
        workspace = self.workspace(100)
        t0 = int(T0 * 1000)
        wanted = RunFilter(start_time_from=t0 - 5000, start_time_to=t0 - 4000)
        assert {t0 - run.key[0] for run in workspace.runs(wanted, T0)} == {4000, 5000}
        active = {run.run_id for run in workspace.runs(RunFilter(active_only=True), T0)}
        done = {run.run_id for run in workspace.runs(RunFilter(completed_only=True), T0)}
        assert active == {1000 + n for n in range(1, 101) if n % 50 < 3}
        assert active | done == {1000 + n for n in range(1, 101)}
        assert not active & done
        assert [run.run_id for run in workspace.runs(RunFilter(job_id=7), T0)] == [1007]
        assert not list(workspace.runs(RunFilter(job_id=7, active_only=True), T0))
        assert not list(workspace.runs(RunFilter(run_type="SUBMIT_RUN"), T0))

    def test_a_large_workspace_stays_cheap(self) -> None:
        runs = [{"run_id": n, "start_offset_seconds": -float(n)} for n in range(1, 10_001)]
        jobs = [{"job_id": n, "settings": {}, "runs": runs[5 * (n - 1) : 5 * n]} for n in range(1, 2001)]
        workspace = workspace_with(*jobs)
        began = time.perf_counter()
        for _ in range(200):
            page = [run for run, _ in zip(workspace.runs(RunFilter(completed_only=True), T0), range(25), strict=False)]
            assert len(page) == 25
            assert not list(workspace.runs(RunFilter(active_only=True), T0))
        assert time.perf_counter() - began < 1.0


class TestScenario:
    @pytest.mark.parametrize(
        ("scenario", "message"),
        [
            ({"jobs": [job(), job(job_id=2)]}, "Duplicate run_id 11"),
            ({"jobs": [job(), job(run_id=12)]}, "Duplicate job_id 1"),
            ({"jobs": [{"job_id": 5, "runs": []}]}, "Job 5 is not known and has no settings"),
        ],
    )
    def test_ids_are_unique(self, scenario: JSON, message: str) -> None:
        workspace = Workspace()
        with pytest.raises(ValueError, match=message):
            workspace.load(parse_scenario(scenario), T0)
        assert not workspace.jobs

    def test_more_runs_for_a_known_job(self) -> None:
        workspace = workspace_with(job())
        more = {"jobs": [{"job_id": 1, "runs": [{"run_id": 12, "start_offset_seconds": 1}]}]}
        assert workspace.load(parse_scenario(more), at(workspace, 5)) == {"jobs": 1, "runs": 1}
        with pytest.raises(ValueError, match="Duplicate run_id 12"):
            workspace.load(parse_scenario(more), at(workspace, 5.5))
        with pytest.raises(ValueError, match="Duplicate job_id 1: leave out its settings"):
            workspace.load(parse_scenario({"jobs": [job(run_id=13)]}), at(workspace, 5.5))
        at(workspace, 6)
        assert workspace.run(12).start == T0 + 6

    @pytest.mark.parametrize(
        ("tasks", "message"),
        [
            ([failing("load"), failing("load")], "names these tasks twice: load"),
            ([failing("unknown")], "have no task"),
            ([{"task_key": "extract", "depends_on": ["publish"]}], "in a circle"),
            ([{"task_key": "load", "colour": "red"}], "colour"),
            ([failing("load", {"kind": "full_moon"})], "full_moon"),
        ],
    )
    def test_wrong_files_are_refused(self, tasks: list[JSON], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_scenario({"jobs": [job(tasks=tasks)]})

    def test_tasks_of_a_job_without_settings_are_those_of_its_runs(self) -> None:
        tasks = [{"task_key": "a"}, {"task_key": "b", "depends_on": ["a"]}]
        workspace = workspace_with({"job_id": 1, "settings": {}, "runs": [{"run_id": 11, "tasks": tasks}]})
        entries = workspace.job(1).settings["tasks"]
        assert [(entry["task_key"], entry["depends_on"]) for entry in entries] == [
            ("a", []),
            ("b", [{"task_key": "a"}]),
        ]

    @pytest.mark.parametrize("path", sorted(Path("local/scenarios").glob("*.json")), ids=lambda path: path.stem)
    def test_the_scenario_files_load(self, path: Path) -> None:
        scenario = parse_scenario(json.loads(path.read_text(encoding="utf-8")))
        workspace = Workspace()
        workspace.load(scenario, T0)
        now = at(workspace, 600)
        over = {run.run_id for run in workspace.runs(RunFilter(completed_only=True), now)}
        expected = {run.run_id for plan in scenario.jobs for run in plan.runs}
        assert expected <= over
        assert all(run.expected for plan in scenario.jobs for run in plan.runs)


class TestSettings:
    BEFORE: ClassVar[JSON] = {
        "name": "n",
        "tags": {"a": "1", "b": "2"},
        "tasks": [{"task_key": "x", "timeout_seconds": 1, "max_retries": 1}, {"task_key": "y"}],
        "job_clusters": [{"job_cluster_key": "main", "new_cluster": SMALL}],
    }

    def test_arrays_merge_by_key_and_entries_are_replaced_whole(self) -> None:
        after = updated(self.BEFORE, {"tasks": [{"task_key": "x", "timeout_seconds": 9}, {"task_key": "z"}]}, [])
        assert after["tasks"] == [{"task_key": "x", "timeout_seconds": 9}, {"task_key": "y"}, {"task_key": "z"}]
        assert self.BEFORE["tasks"][0]["max_retries"] == 1

    def test_other_fields_are_replaced_whole_or_removed(self) -> None:
        after = updated(self.BEFORE, {"tags": {"c": "3"}}, ["name", "tasks/y", "job_clusters/main"])
        assert after == {"tags": {"c": "3"}, "tasks": [self.BEFORE["tasks"][0]], "job_clusters": []}

    def test_unknown_node_types_are_refused(self) -> None:
        workspace = workspace_with(job())
        cluster = {"job_cluster_key": "main", "new_cluster": {"node_type_id": "Standard_Z9"}}
        with pytest.raises(RequestRefusedError, match="Node type Standard_Z9 is not supported"):
            workspace.update_job(1, {"job_clusters": [cluster]}, [])
        assert workspace.job(1).settings["job_clusters"][0]["new_cluster"] == SMALL

    def test_a_policy_forbids_the_change(self) -> None:
        definition = {"node_type_id": {"type": "allowlist", "values": ["Standard_DS3_v2"]}}
        workspace = workspace_with(job(), policies=[{"policy_id": "p1", "definition": definition}])
        cluster = {"job_cluster_key": "main", "new_cluster": {**BIG, "policy_id": "p1"}}
        with pytest.raises(RequestRefusedError, match="Validation failed for node_type_id"):
            workspace.update_job(1, {"job_clusters": [cluster]}, [])

    @pytest.mark.parametrize(
        ("rule", "value", "kept"),
        [
            ({"type": "fixed", "value": 2}, 2, True),
            ({"type": "fixed", "value": 2}, 3, False),
            ({"type": "allowlist", "values": [1, 2]}, 2, True),
            ({"type": "allowlist", "values": [1, 2]}, 3, False),
            ({"type": "blocklist", "values": [3]}, 3, False),
            ({"type": "blocklist", "values": [3]}, 2, True),
            ({"type": "forbidden"}, 1, False),
            ({"type": "range", "maxValue": 10}, 10, True),
            ({"type": "range", "minValue": 2, "maxValue": 10}, 11, False),
            ({"type": "unlimited"}, 99, True),
        ],
    )
    def test_policy_rules(self, rule: JSON, value: int, kept: bool) -> None:
        cluster = {"autoscale": {"max_workers": value}}
        assert (cluster_policies.violation({"autoscale.max_workers": rule}, cluster) is None) is kept
        assert cluster_policies.violation({"spark_conf.spark.x": rule}, cluster) is None


class TestClusters:
    def test_a_failure_leaves_its_reason_and_events(self) -> None:
        reason = {"code": "DRIVER_OUT_OF_MEMORY", "type": "SERVICE_FAULT", "parameters": {"instance_id": "i-1"}}
        failure = {
            "error": "driver",
            "cluster_termination_reason": reason,
            "cluster_events": [{"type": "DRIVER_NOT_RESPONDING"}],
        }
        workspace = workspace_with(job(tasks=[{"task_key": "load", "failure": failure}]))
        at(workspace, 3)
        run = workspace.run(11)
        first, second = run.latest["extract"].cluster, run.latest["load"].cluster
        assert first is second
        assert first is not None
        assert first.termination_reason == reason
        assert [event["type"] for event in first.events] == [
            "CREATING",
            "RUNNING",
            "DRIVER_NOT_RESPONDING",
            "TERMINATING",
        ]

    def test_each_repair_has_its_own_job_cluster(self) -> None:
        workspace = workspace_with(job(tasks=[failing("load")]))
        at(workspace, 3)
        run = workspace.run(11)
        before = run.latest["load"].cluster
        repair_all(workspace, 3)
        at(workspace, 5)
        after = run.latest["load"].cluster
        assert before is not None
        assert after is not None
        assert before.cluster_id != after.cluster_id
        assert before.termination_reason == after.termination_reason == {"code": "JOB_FINISHED", "type": "SUCCESS"}

    def test_an_all_purpose_cluster_outlives_the_run_and_serverless_has_none(self) -> None:
        tasks = [{"task_key": "a", "existing_cluster_id": "shared-1"}, {"task_key": "b", "environment_key": "default"}]
        workspace = workspace_with(job(job_settings={"tasks": tasks}))
        at(workspace, 5)
        run = workspace.run(11)
        shared = run.latest["a"].cluster
        assert shared is not None
        assert shared.end is None
        assert run.latest["b"].cluster is None


def test_node_types_offer_larger_and_unsuitable_ones() -> None:
    listed = [node_type.as_json() for node_type in NODE_TYPES.values()]
    assert len(listed) >= 25
    assert {entry["category"] for entry in listed} == {
        "General Purpose",
        "Memory Optimized",
        "Compute Optimized",
        "Storage Optimized",
        "GPU Accelerated",
    }
    assert any(entry["is_deprecated"] for entry in listed)
    assert any(entry["is_hidden"] for entry in listed)
    assert any(entry["num_gpus"] for entry in listed)
    assert {state for entry in listed for state in entry["node_info"]["status"]} == {
        "NotAvailableInRegion",
        "NotEnabledOnSubscription",
    }


@pytest.mark.parametrize(("before", "error"), [(0, "first"), (1, "second"), (2, "third"), (9, "third")])
def test_failure_of_an_attempt(before: int, error: str) -> None:
    plan = TaskPlan.model_validate(
        {
            "task_key": "a",
            "failure": {"error": "first"},
            "later_failures": [{"error": "second"}, {"error": "third"}],
        }
    )
    failure = plan.failure_of(before)
    assert failure is not None
    assert failure.error == error
