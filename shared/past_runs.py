"""Databricks workspaces as they were in the last weeks: runs that ended, and each failed run as it first failed.

Reads only. Databricks keeps runs for 60 days.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import cast

from shared import databricks_runs
from shared.backtest import EndedRun, PastFailure, Repaired
from shared.databricks_api import Clock, WorkspaceApi, check_access
from shared.databricks_connector import JOBS, PARALLEL_READS, RUNS_PER_PAGE, read_failures, read_run
from shared.domain import Json, RunFacts, RunState
from shared.settings import Settings

LONGEST_DAYS = 60
"""So long Databricks keeps runs (documentation of the Jobs API, "Get a single job run")."""

IDLE_BEFORE_A_REPAIR = timedelta(minutes=1)
"""A run that was idle for less was hardly failed, noticed and repaired in between."""

ON_DEMAND = "ONE_TIME"
"""TriggerType of a run that was started by "Run now" or jobs/run-now."""

FAILED = {"life_cycle_state": "TERMINATED", "result_state": "FAILED"}


class PastRuns:
    """Runs that have ended, in one or more workspaces. Safe for several threads.

    Raises ConfigurationError where the settings of Databricks are missing or conflict; methods raise as `JobRuns` does.
    """

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        check_access(settings)
        apis = [WorkspaceApi(host, settings, None, clock or cast("Clock", time)) for host in settings.databricks_host]
        self._apis = {api.name: api for api in apis}
        self._pool = ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="past-runs")

    @property
    def workspaces(self) -> tuple[str, ...]:
        return tuple(self._apis)

    @property
    def calls(self) -> int:
        """API requests made so far in all workspaces, repetitions included."""
        return sum(api.calls for api in self._apis.values())

    def ended_runs(self, workspace: str, *, started_after: datetime) -> Iterator[EndedRun]:
        """Runs that have ended, the last started first: one call per 25, made as they are asked for."""
        query = {
            "completed_only": True,
            "limit": RUNS_PER_PAGE,
            "start_time_from": int(started_after.timestamp() * 1000),
        }
        seen: set[int] = set()
        for page in self._apis[workspace].get_pages(f"{JOBS}/runs/list", query):
            for raw in page.get("runs", []):
                run = ended_run(workspace, raw)
                # A run that starts while pages are read moves the others down, so that one of them comes twice.
                if run.run_id not in seen:
                    seen.add(run.run_id)
                    yield run

    def read_failure(self, workspace: str, run_id: int) -> PastFailure | None:
        """The run as it first failed; None where it did not fail, or is under way again."""
        api = self._apis[workspace]
        raw = read_run(api, run_id)
        run, then = databricks_runs.run_state(workspace, raw), as_first_ended(raw)
        first = databricks_runs.run_state(workspace, then)
        if run.is_active or not first.is_failed:
            return None
        facts = RunFacts(
            run=first,
            task_count=databricks_runs.task_count(then),
            failures=read_failures(api, then, first, self._pool),
            job=None,
            newer_runs=(),
            parent=databricks_runs.parent_of(raw, {}),
        )
        return PastFailure(facts, repaired(run))


def ended_run(workspace: str, raw: Json) -> EndedRun:
    """One row of jobs/runs/list.

    Such a row says nothing about repairs, but `run_duration` is "the time it took the job run and all of its repairs"
    (docstring of Run.run_duration in databricks-sdk): a run that took longer from start to end was idle in between.
    """
    run = databricks_runs.run_state(workspace, raw)
    end_time = run.end_time or run.start_time
    worked = raw.get("run_duration")
    busy = timedelta(milliseconds=(worked or 0) + (raw.get("queue_duration") or 0))
    return EndedRun(
        workspace=workspace,
        run_id=run.run_id,
        job_id=run.job_id,
        is_failed=run.is_failed,
        is_on_demand=run.trigger == ON_DEMAND,
        seems_repaired=not run.is_failed and bool(worked) and end_time - run.start_time - busy > IDLE_BEFORE_A_REPAIR,
        start_time=run.start_time,
        end_time=end_time,
        job_parameters=run.job_parameters,
    )


def as_first_ended(raw: Json) -> Json:
    """A run of jobs/runs/get (with its history) as it was before anybody repaired it."""
    history = [item for item in raw.get("repair_history") or [] if isinstance(item, dict)]
    if not any(item.get("type") == "REPAIR" for item in history):
        return raw
    original = next((item for item in history if item.get("type") == "ORIGINAL"), {})
    first_task_runs = set(original.get("task_run_ids") or ())
    return {
        **raw,
        "tasks": [task for task in raw.get("tasks") or [] if task.get("run_id") in first_task_runs],
        # Only what failed can be repaired, should the history not say it.
        "state": original.get("state") or FAILED,
        "status": original.get("status") or {},
        "end_time": original.get("end_time") or raw.get("start_time"),
        "repair_history": [],
    }


def repaired(run: RunState) -> Repaired | None:
    """The repair that healed the run, as it is now; None where none did."""
    if run.is_failed or not run.repairs or run.end_time is None:
        return None
    return Repaired(start_time=run.repairs[-1].start_time or run.end_time, end_time=run.end_time)
