"""The JSON that the Jobs and Clusters APIs answer with, made from what the workspace keeps.

Field names and shapes are those of databricks-sdk (``service/jobs.py``, ``service/compute.py``); both forms of a run's
state are filled, the older ``state`` and the newer ``status``.
"""

from __future__ import annotations

from typing import Any

from local.databricks.job_settings import Json
from local.databricks.runs import Cluster, Execution, Job, Run, TaskAttempt, Verdict, milliseconds
from local.databricks.workspace import Workspace

ARRAY_PAGE = 100
CREATOR = "data-platform@example.com"
NEWER_STATE = {"WAITING_FOR_RETRY": "WAITING", "SKIPPED": "TERMINATED", "INTERNAL_ERROR": "TERMINATED"}


class Answers:
    """Builds answers; ``base_url`` is where links in them lead, ``now`` decides what shows already."""

    def __init__(self, workspace: Workspace, base_url: str, now: float) -> None:
        self._workspace = workspace
        self._base_url = base_url
        self._now = now

    def run(self, run: Run, *, with_tasks: bool, with_history: bool = False) -> Json:
        """Return a job run as ``runs/get`` (with tasks) or ``runs/list`` (without) shows it, arrays not paged yet."""
        executions = self._workspace.visible_executions(run, self._now, after=self._workspace.reopening_visible_after)
        answer = self._run_head(run, executions)
        if with_tasks:
            answer["tasks"] = [self.task(run, attempt) for execution in executions for attempt in execution.attempts]
            answer["job_clusters"] = run.job.settings.get("job_clusters", [])
        if with_history:
            shown = self._workspace.visible_executions(run, self._now, after=self._workspace.repair_visible_after)
            answer["repair_history"] = [_history_item(execution) for execution in shown]
        return answer

    def _run_head(self, run: Run, executions: list[Execution]) -> Json:
        last = executions[-1] if executions else None
        life_cycle_state = "RUNNING" if last else "QUEUED"
        defaults = run.job.default_parameters
        answer = {
            "job_id": run.job.job_id,
            "run_id": run.run_id,
            "number_in_job": run.run_id,
            "job_run_id": run.run_id,
            "original_attempt_run_id": run.run_id,
            "creator_user_name": CREATOR,
            "run_name": run.name,
            "run_page_url": self._page(run, run.run_id),
            "run_type": run.plan.run_type,
            "format": "MULTI_TASK",
            "trigger": run.plan.trigger,
            "start_time": milliseconds(run.start),
            "setup_duration": 0,
            "execution_duration": 0,
            "cleanup_duration": 0,
            "end_time": _time(last.end if last else None),
            "run_duration": sum(_duration(execution) for execution in executions),
            "job_parameters": [
                {"name": name, "default": defaults.get(name, ""), "value": value}
                for name, value in run.parameters.items()
            ],
            **_state(life_cycle_state, last.verdict if last else None),
        }
        if "schedule" in run.job.settings:
            answer["schedule"] = run.job.settings["schedule"]
        return answer

    def _page(self, run: Run, run_id: int) -> str:
        return f"{self._base_url}/?o={self._workspace.workspace_id}#job/{run.job.job_id}/run/{run_id}"

    def task(self, run: Run, attempt: TaskAttempt) -> Json:
        """Return one entry of ``tasks``: the raw task of the job's settings and how this attempt went."""
        answer = {
            **attempt.entry,
            "run_id": attempt.run_id,
            "task_key": attempt.task_key,
            "depends_on": [{"task_key": key} for key in attempt.depends_on],
            "run_if": attempt.entry.get("run_if", "ALL_SUCCESS"),
            "run_page_url": self._page(run, attempt.run_id),
            "start_time": _time(attempt.start if attempt.start is not None else attempt.created),
            "end_time": _time(attempt.end),
            "setup_duration": 0,
            "execution_duration": _span(attempt.start, attempt.end),
            "cleanup_duration": 0,
            "attempt_number": attempt.attempt_number,
            **_state(attempt.life_cycle_state, attempt.verdict),
        }
        if attempt.cluster:
            answer["cluster_instance"] = {
                "cluster_id": attempt.cluster.cluster_id,
                "spark_context_id": str(attempt.run_id),
            }
        return answer

    def task_run(self, run: Run, attempt: TaskAttempt) -> Json:
        """Return a task run by its own id, in the form of a run with one task."""
        task = self.task(run, attempt)
        same = ("start_time", "end_time", "state", "status", "attempt_number", "run_page_url")
        return {
            **self._run_head(run, run.executions),
            **{name: task[name] for name in same},
            "run_id": attempt.run_id,
            "run_name": attempt.task_key,
            "original_attempt_run_id": attempt.original_run_id,
            "tasks": [task],
        }

    def output(self, run: Run, attempt: TaskAttempt) -> Json:
        """Return the answer of ``runs/get-output`` for a task run."""
        answer: Json = {"metadata": self.task_run(run, attempt)}
        if "notebook_task" in attempt.entry:
            answer["notebook_output"] = {}
        if attempt.failure:
            texts = {"error": attempt.failure.error, "error_trace": attempt.failure.error_trace}
            answer.update({name: text for name, text in texts.items() if text})
            if attempt.failure.logs:
                answer["logs"] = attempt.failure.logs
                answer["logs_truncated"] = attempt.failure.logs_truncated
        children = [task.child_run_id for task in run.plan.tasks if task.task_key == attempt.task_key]
        if children and children[0] is not None:
            answer["run_job_output"] = {"run_id": children[0]}
        return answer


def job(found: Job, *, with_arrays: bool) -> Json:
    """Return a job as ``jobs/get`` shows it, or without tasks and clusters as ``jobs/list`` does."""
    settings = found.settings
    if not with_arrays:
        settings = {name: value for name, value in settings.items() if name not in ("tasks", "job_clusters")}
    return {
        "job_id": found.job_id,
        "creator_user_name": CREATOR,
        "run_as_user_name": CREATOR,
        "created_time": milliseconds(found.created),
        "settings": settings,
    }


def cluster(found: Cluster) -> Json:
    """Return a cluster as ``clusters/get`` shows it."""
    answer = {
        **found.spec,
        "cluster_id": found.cluster_id,
        "cluster_name": found.run_name,
        "cluster_source": "UI" if found.shared_by_jobs else "JOB",
        "creator_user_name": CREATOR,
        "start_time": milliseconds(found.start),
        "state": "RUNNING" if found.end is None else "TERMINATED",
    }
    if found.end is not None:
        answer["terminated_time"] = milliseconds(found.end)
        answer["termination_reason"] = found.termination_reason
    return answer


def page_arrays(answer: Json, names: tuple[str, ...], offset: int) -> tuple[Json, bool]:
    """Cut each array to its elements from ``offset`` on, at most 100; tell whether any has more behind them."""
    more = any(len(answer.get(name, [])) > offset + ARRAY_PAGE for name in names)
    cut = {name: answer[name][offset : offset + ARRAY_PAGE] for name in names if name in answer}
    return {**answer, **cut}, more


def _history_item(execution: Execution) -> Json:
    item: Json = {
        "type": "ORIGINAL" if execution.repair_id is None else "REPAIR",
        "start_time": milliseconds(execution.start),
        "end_time": _time(execution.end),
        "task_run_ids": [attempt.run_id for attempt in execution.attempts],
        **_state("RUNNING", execution.verdict),
    }
    if execution.repair_id is not None:
        item["id"] = execution.repair_id
    return item


def _state(life_cycle_state: str, verdict: Verdict | None) -> Json:
    """Return the two forms of a state, ``state`` and ``status``."""
    if verdict is None:
        status: dict[str, Any] = {"state": NEWER_STATE.get(life_cycle_state, life_cycle_state)}
        if life_cycle_state == "QUEUED":
            status["queue_details"] = {"code": "MAX_CONCURRENT_RUNS_REACHED", "message": "Queued for a free slot."}
        return {
            "state": {
                "life_cycle_state": life_cycle_state,
                "state_message": "",
                "user_cancelled_or_timedout": False,
            },
            "status": status,
        }
    return {
        "state": {
            "life_cycle_state": verdict.life_cycle_state,
            "result_state": verdict.result_state,
            "state_message": verdict.message,
            "user_cancelled_or_timedout": verdict.result_state in ("CANCELED", "TIMEDOUT"),
        },
        "status": {
            "state": "TERMINATED",
            "termination_details": {
                "code": verdict.termination_code,
                "type": verdict.termination_type,
                "message": verdict.message,
            },
        },
    }


def _time(at: float | None) -> int:
    """Return a time in ms, 0 for what has not happened yet, as the API does."""
    return 0 if at is None else milliseconds(at)


def _span(start: float | None, end: float | None) -> int:
    return 0 if start is None or end is None else milliseconds(end) - milliseconds(start)


def _duration(execution: Execution) -> int:
    return _span(execution.start, execution.end)
