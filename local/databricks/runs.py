"""What the stand-in workspace keeps: jobs, runs, their executions (original and repairs), attempts and clusters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from local.databricks.job_settings import Json
from local.databricks.scenario import Failure, RunPlan

CANCELED_RESULTS = {"CANCELED", "UPSTREAM_CANCELED"}
CONSEQUENCES = {"UPSTREAM_FAILED", "UPSTREAM_CANCELED"}
GOOD_RESULTS = {"SUCCESS", "EXCLUDED"}


@dataclass(frozen=True)
class Verdict:
    """How a task attempt, an execution or a run ended, in Databricks' words."""

    life_cycle_state: str
    result_state: str
    termination_code: str
    termination_type: str
    message: str = ""

    @property
    def good(self) -> bool:
        """Tell whether dependents may run and nothing needs a repair."""
        return self.result_state in GOOD_RESULTS


SUCCESS = Verdict("TERMINATED", "SUCCESS", "SUCCESS", "SUCCESS")
EXCLUDED = Verdict("TERMINATED", "EXCLUDED", "SUCCESS", "SUCCESS", "The run_if condition of the task was not met.")
UPSTREAM_FAILED = Verdict(
    "TERMINATED", "UPSTREAM_FAILED", "RUN_EXECUTION_ERROR", "CLIENT_ERROR", "An upstream task failed."
)
UPSTREAM_CANCELED = Verdict(
    "TERMINATED", "UPSTREAM_CANCELED", "CANCELED", "CLIENT_ERROR", "An upstream task was canceled."
)
USER_CANCELED = Verdict("TERMINATED", "CANCELED", "USER_CANCELED", "CLIENT_ERROR", "Run cancelled.")
SKIPPED = Verdict(
    "SKIPPED",
    "MAXIMUM_CONCURRENT_RUNS_REACHED",
    "MAX_CONCURRENT_RUNS_EXCEEDED",
    "CLIENT_ERROR",
    "An instance of this job is already running.",
)


def failed(failure: Failure) -> Verdict:
    """Return the verdict of a failed attempt."""
    return Verdict(
        failure.life_cycle_state,
        failure.result_state,
        failure.termination_code,
        failure.termination_type,
        failure.state_message,
    )


@dataclass
class Cluster:
    """A classic cluster; ``end`` is None while it runs."""

    cluster_id: str
    spec: Json
    run_name: str
    start: float
    shared_by_jobs: bool = False
    """True for an all-purpose cluster, which outlives the run."""
    end: float | None = None
    termination_reason: Json | None = None
    events: list[Json] = field(default_factory=list)

    def add_event(self, kind: str, at: float, details: Json | None = None) -> None:
        """Add an event in the form that ``clusters/events`` shows."""
        event = {"cluster_id": self.cluster_id, "timestamp": milliseconds(at), "type": kind, "details": details or {}}
        self.events.append(event)

    def terminate(self, at: float, reason: Json) -> None:
        """End the cluster; a cluster that has ended keeps its first reason."""
        if self.end is None:
            self.end = at
            self.termination_reason = reason
            self.add_event("TERMINATING", at, {"reason": reason})

    def restart(self, at: float) -> None:
        """Start a terminated all-purpose cluster again, as a job that uses it does."""
        if self.end is not None:
            self.end = None
            self.termination_reason = None
            self.add_event("STARTING", at)
            self.add_event("RUNNING", at)


@dataclass
class TaskAttempt:
    """One attempt of one task: one entry of a run's ``tasks``."""

    run_id: int
    task_key: str
    attempt_number: int
    original_run_id: int
    entry: Json
    """The raw task of the job's settings."""
    depends_on: list[str]
    created: float
    life_cycle_state: str = "BLOCKED"
    start: float | None = None
    end: float | None = None
    verdict: Verdict | None = None
    failure: Failure | None = None
    cluster: Cluster | None = None

    @property
    def is_waiting(self) -> bool:
        """Tell whether it waits for the tasks that it depends on."""
        return self.life_cycle_state == "BLOCKED"

    def finish(self, at: float, verdict: Verdict) -> None:
        """End the attempt."""
        self.start = self.start if self.start is not None else at
        self.end = at
        self.verdict = verdict
        self.life_cycle_state = verdict.life_cycle_state


@dataclass
class Execution:
    """The original run or one repair of it."""

    repair_id: int | None
    """None = the original."""
    start: float
    settings: Json
    """The job's settings at the request."""
    job_parameters: dict[str, str]
    succeeds: bool = False
    """True = every task succeeds, whatever the scenario says."""
    attempts: list[TaskAttempt] = field(default_factory=list)
    clusters: dict[str, Cluster] = field(default_factory=dict)
    """By job cluster key, or by task run id for a task's own cluster."""
    end: float | None = None
    verdict: Verdict | None = None


@dataclass
class Job:
    """A job; ``settings`` are replaced, never changed in place."""

    job_id: int
    settings: Json
    created: float
    deleted: bool = False
    index: list[tuple[int, int]] = field(default_factory=list)
    """(start in ms, run id) of its runs, ascending."""
    queue: list[Run] = field(default_factory=list)

    @property
    def default_parameters(self) -> dict[str, str]:
        """The job's parameters with their default values."""
        return {entry["name"]: str(entry.get("default", "")) for entry in self.settings.get("parameters", [])}


@dataclass
class Run:
    """A job run; one that is queued has no execution yet."""

    plan: RunPlan
    job: Job
    start: float
    parameters: dict[str, str]
    """Effective job parameters of the original."""
    attempts_made: Counter[str]
    """By task key; shared with the runs that were started again from this one."""
    native_retries_left: int
    executions: list[Execution] = field(default_factory=list)
    latest: dict[str, TaskAttempt] = field(default_factory=dict)
    """The last attempt of each task."""
    terminal_failures: int = 0
    """How many of its executions ended without success."""

    @property
    def run_id(self) -> int:
        """The id of the run."""
        return self.plan.run_id

    @property
    def key(self) -> tuple[int, int]:
        """Its place in the order of ``runs/list``."""
        return milliseconds(self.start), self.run_id

    @property
    def current(self) -> Execution | None:
        """The last execution, None while the run is queued."""
        return self.executions[-1] if self.executions else None

    @property
    def is_active(self) -> bool:
        """Tell whether the run has not ended, or not again since its last repair."""
        return self.current is None or self.current.verdict is None

    @property
    def name(self) -> str:
        """The name of the run: its own or the job's."""
        return self.plan.run_name or str(self.job.settings.get("name", "Untitled"))

    def result_of(self, task_key: str) -> str | None:
        """Return the result state of a task's last attempt, None while it has none."""
        verdict = self.latest[task_key].verdict
        return verdict.result_state if verdict else None

    def failed_tasks(self) -> list[str]:
        """Return the keys of the tasks whose last attempt was not good, those kept from running by others included."""
        return [key for key, attempt in self.latest.items() if attempt.verdict and not attempt.verdict.good]

    def summary(self) -> Verdict:
        """Return how the whole run ended, from the last attempt of each task.

        A run whose leaf tasks are all good succeeds although a task failed. A failed run of several tasks is shown with
        the life cycle state INTERNAL_ERROR and a message that names the task, as Databricks does.
        """
        needed = {key for attempt in self.latest.values() for key in attempt.depends_on}
        causes = [
            (attempt.task_key, attempt.verdict)
            for attempt in self.latest.values()
            if attempt.verdict and not attempt.verdict.good and attempt.verdict.result_state not in CONSEQUENCES
        ]
        if not causes:
            return SUCCESS
        task_key, cause = causes[0]
        if not any(key not in needed for key in self.failed_tasks()):
            return Verdict("TERMINATED", "SUCCESS_WITH_FAILURES", "SUCCESS_WITH_FAILURES", "SUCCESS", cause.message)
        if cause.result_state != "FAILED" or cause.life_cycle_state == "SKIPPED":
            return cause
        message = f"Task {task_key} failed with message: {cause.message}."
        if len(self.failed_tasks()) > len(causes):
            message += " This caused all downstream tasks to get skipped."
        return Verdict("INTERNAL_ERROR", "FAILED", cause.termination_code, cause.termination_type, message)


def milliseconds(at: float) -> int:
    """Return seconds since 1970 as whole milliseconds, the form of all times in the API."""
    return int(at * 1000)
