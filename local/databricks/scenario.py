"""Scenario files: what runs happen in the stand-in workspace, why they fail and what would heal them.

A scenario is one JSON object::

    {
      "workspace": "1234567890123456",
      "settings_read_at": "request",
      "jobs": [
        {
          "job_id": 101,
          "name": "orders-daily",
          "settings": {
            "tags": {"failure-agent": "full"},
            "job_clusters": [
              {"job_cluster_key": "main", "new_cluster": {"node_type_id": "Standard_DS3_v2", "num_workers": 2}}
            ],
            "tasks": [
              {"task_key": "extract", "job_cluster_key": "main"},
              {"task_key": "load", "job_cluster_key": "main", "depends_on": [{"task_key": "extract"}]}
            ]
          },
          "runs": [
            {
              "run_id": 9001,
              "start_offset_seconds": 1.0,
              "duration_seconds": 0.5,
              "tasks": [
                {
                  "task_key": "load",
                  "failure": {"error": "java.lang.OutOfMemoryError: Java heap space", "error_trace": "..."},
                  "heals_when": {"kind": "worker_memory_gb_at_least", "gb": 28}
                }
              ],
              "expected": {"decision": "RETRY_WITH_PARAMS", "outcome": "recovered"}
            }
          ],
          "recurring": {"every_seconds": 60, "duration_seconds": 1}
        }
      ]
    }

Times are seconds; offsets count from the moment at which the scenario is loaded, a negative one lies in the past.
``settings`` are raw job settings. A run has every task of the settings; its own ``tasks`` add what goes wrong (if the
settings name no tasks, they are made from those of the runs). A task without ``failure`` succeeds. Without
``heals_when`` (see ``healing.py``) a failure never heals. ``later_failures`` replace ``failure`` from the second
attempt on, the last one stays. The first attempts of a run's tasks share its ``duration_seconds``; in a repair and when
tried again a task takes its ``retry_duration_seconds``. ``expected`` is for those who judge the outcome; the workspace
ignores it.

A later scenario adds to a running workspace: new jobs, or more runs for a known job (then without ``settings``).
"""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from local.databricks.healing import HealsWhen, Never
from local.databricks.job_settings import Json

SettingsReadAt = Literal["request", "task_start"]

NEVER_RAN_CODES = {
    "SKIPPED",
    "MAX_CONCURRENT_RUNS_EXCEEDED",
    "MAX_JOB_QUEUE_SIZE_EXCEEDED",
    "WORKSPACE_RUN_LIMIT_EXCEEDED",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Failure(_Part):
    """How one attempt of a task fails and what can be read about it."""

    error: str = ""
    error_trace: str = ""
    logs: str = ""
    logs_truncated: bool = False
    result_state: str = "FAILED"
    termination_code: str = "RUN_EXECUTION_ERROR"
    termination_type: str = "CLIENT_ERROR"
    state_message: str = "Workload failed, see run output for details"
    cluster_termination_reason: Json | None = None
    cluster_events: list[Json] = Field(default_factory=list)

    @property
    def life_cycle_state(self) -> str:
        """SKIPPED for a run that never ran, else TERMINATED."""
        return "SKIPPED" if self.termination_code in NEVER_RAN_CODES else "TERMINATED"


class TaskPlan(_Part):
    """What happens to one task of a run."""

    task_key: str
    depends_on: list[str] | None = None
    """None = as in the job's settings."""
    failure: Failure | None = None
    heals_when: HealsWhen = Never()
    later_failures: list[Failure] = Field(default_factory=list)
    retry_duration_seconds: float = 0.5
    """Duration of every attempt after the first and of every attempt in a repair."""
    child_run_id: int | None = None
    """For a run_job task: the run that it started, shown as ``run_job_output``."""

    def failure_of(self, attempts_before: int) -> Failure | None:
        """Return how an attempt fails if it does, given the number of attempts before it."""
        if attempts_before == 0 or not self.later_failures:
            return self.failure
        return self.later_failures[min(attempts_before, len(self.later_failures)) - 1]


class Interference(_Part):
    """Something that somebody else does to a run or its job; ``at_offset_seconds`` counts from the load.

    ``repair`` and ``repair_succeeds`` do nothing while the run is active or has succeeded, ``cancel`` once it is over.
    ``newer_success`` and ``newer_active`` start another run of the job with the same parameters; it succeeds after
    ``duration_seconds`` (by default at once for the first, after an hour for the second).
    """

    at_offset_seconds: float
    kind: Literal["repair", "repair_succeeds", "cancel", "newer_success", "newer_active", "delete_job"]
    duration_seconds: float | None = None


class RunPlan(_Part):
    """One run of a job."""

    run_id: int
    run_name: str | None = None
    start_offset_seconds: float = 0.0
    duration_seconds: float = 0.5
    trigger: str = "PERIODIC"
    run_type: Literal["JOB_RUN", "SUBMIT_RUN", "WORKFLOW_RUN"] = "JOB_RUN"
    job_parameters: dict[str, str] = Field(default_factory=dict)
    tasks: list[TaskPlan] = Field(default_factory=list)
    native_retries_left: int = 0
    """How many failed attempts Databricks itself still retries (max_retries) before the run ends."""
    interference: list[Interference] = Field(default_factory=list)
    expected: dict[str, Any] = Field(default_factory=dict)


class Recurring(_Part):
    """Runs that come again and again and succeed; the first one after ``every_seconds``."""

    every_seconds: float = Field(gt=0)
    duration_seconds: float = 0.5


class JobPlan(_Part):
    """One job and its runs."""

    job_id: int
    name: str | None = None
    settings: Json | None = None
    """None = the job is already known."""
    runs: list[RunPlan] = Field(default_factory=list)
    recurring: Recurring | None = None

    @model_validator(mode="after")
    def _names_tasks_that_can_run(self) -> JobPlan:
        entries = (self.settings or {}).get("tasks", [])
        planned = {entry["task_key"]: [need["task_key"] for need in entry.get("depends_on", [])] for entry in entries}
        for run in self.runs:
            counts = Counter(task.task_key for task in run.tasks)
            if duplicates := [key for key, count in counts.items() if count > 1]:
                raise ValueError(f"run {run.run_id} names these tasks twice: {', '.join(duplicates)}")
            if planned and (unknown := sorted(set(counts) - set(planned))):
                raise ValueError(f"run {run.run_id}: the settings of job {self.job_id} have no task {unknown}")
            own = {task.task_key: task.depends_on for task in run.tasks if task.depends_on is not None}
            try:
                TopologicalSorter(planned | own).prepare()
            except CycleError as error:
                raise ValueError(
                    f"run {run.run_id}: its tasks depend on each other in a circle: {error.args[1]}"
                ) from error
        return self


class Policy(_Part):
    """A cluster policy; ``definition`` maps attribute paths to rules."""

    policy_id: str
    name: str = ""
    definition: dict[str, Json]


class Scenario(_Part):
    """A whole scenario file."""

    workspace: str | None = None
    """Workspace id, as in the header X-Databricks-Org-Id; None = unchanged."""
    settings_read_at: SettingsReadAt | None = None
    """When a run reads its job's settings; Databricks does not document which, so both can be had. None = unchanged."""
    repair_visible_after_seconds: float | None = None
    """For how long a repair is missing in ``repair_history``; None = unchanged."""
    reopening_visible_after_seconds: float | None = None
    """For how long a repaired run still looks as it was before; None = unchanged."""
    jobs: list[JobPlan] = Field(default_factory=list)
    policies: list[Policy] = Field(default_factory=list)
    pipeline_events: dict[str, list[Json]] = Field(default_factory=dict)
    """Events by pipeline id, as ``pipelines/ID/events`` shows them."""
    queries: list[Json] = Field(default_factory=list)
    """Entries of the query history."""


def parse_scenario(data: object) -> Scenario:
    """Read a scenario from parsed JSON; raises ValueError that says what is wrong and where."""
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"The scenario is not valid, nothing was loaded: {error}") from error
