"""A simulated Databricks workspace: jobs, runs, tasks, repairs. Pure: every call is told the time (seconds since 1970).

What is due happens at the start of each call, in the order of time, so no thread and no clock is needed. The rules for
repair, run-now and update are those of the Jobs API 2.2 as the docstrings of databricks-sdk and public issue threads
tell them; no real workspace was asked. Error messages that are not in these sources are marked "wording assumed".

Left out: creating, resetting and submitting jobs, iterations of for_each tasks, time for clusters to start, permissions
by object, expiry of runs after 60 days, timeouts that end a run. A cancelled run ends at once. A repair of a run whose
job is at its limit of concurrent runs is accepted.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter

from pydantic import BaseModel

from local.databricks.cluster_policies import violation
from local.databricks.healing import Circumstances
from local.databricks.job_settings import Json, cluster_spec, cluster_specs, task_entry, updated
from local.databricks.node_types import NODE_TYPES
from local.databricks.runs import (
    CANCELED_RESULTS,
    CONSEQUENCES,
    EXCLUDED,
    SKIPPED,
    SUCCESS,
    UPSTREAM_CANCELED,
    UPSTREAM_FAILED,
    USER_CANCELED,
    Cluster,
    Execution,
    Job,
    Run,
    TaskAttempt,
    Verdict,
    failed,
    milliseconds,
)
from local.databricks.scenario import (
    Failure,
    Interference,
    JobPlan,
    Policy,
    Recurring,
    RunPlan,
    Scenario,
    SettingsReadAt,
    TaskPlan,
)

FIRST_GENERATED_ID = 800_000_000_001
MAX_TOKEN_LENGTH = 64
JOB_FINISHED = {"code": "JOB_FINISHED", "type": "SUCCESS"}


class RequestRefusedError(Exception):
    """The workspace refuses a request: HTTP status, Databricks error code and message."""

    def __init__(self, status: int, error_code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code
        self.message = message


def invalid(message: str) -> RequestRefusedError:
    """Return the refusal that Databricks uses for nearly everything: 400 INVALID_PARAMETER_VALUE."""
    return RequestRefusedError(400, "INVALID_PARAMETER_VALUE", message)


class RepairRequest(BaseModel):
    """Body of ``jobs/runs/repair``, as far as it is imitated."""

    run_id: int
    rerun_tasks: list[str] | None = None
    rerun_all_failed_tasks: bool = False
    rerun_dependent_tasks: bool = False
    latest_repair_id: int | None = None
    job_parameters: dict[str, str] | None = None


class QueueSettings(BaseModel):
    """Whether a run waits for a free slot instead of being skipped."""

    enabled: bool = False


class RunNowRequest(BaseModel):
    """Body of ``jobs/run-now``, as far as it is imitated."""

    job_id: int
    idempotency_token: str | None = None
    job_parameters: dict[str, str] | None = None
    queue: QueueSettings = QueueSettings()


@dataclass(frozen=True)
class RunFilter:
    """Filters of ``jobs/runs/list``; times in ms, ``before`` is the last key of the previous page."""

    job_id: int | None = None
    active_only: bool = False
    completed_only: bool = False
    run_type: str | None = None
    start_time_from: int | None = None
    start_time_to: int | None = None
    before: tuple[int, int] | None = None


class Workspace:
    """The state of one workspace."""

    def __init__(self) -> None:
        self.workspace_id = "1234567890123456"
        self.settings_read_at: SettingsReadAt = "request"
        self.repair_visible_after = 0.0
        self.reopening_visible_after = 0.0
        self.jobs: dict[int, Job] = {}
        self.clusters: dict[str, Cluster] = {}
        self.policies: dict[str, Policy] = {}
        self.pipeline_events: dict[str, list[Json]] = {}
        self.queries: list[Json] = []
        self._runs: dict[int, Run] = {}
        self._attempts: dict[int, tuple[Run, TaskAttempt]] = {}
        self._index: list[tuple[int, int]] = []
        self._active: dict[int, Run] = {}
        self._tokens: dict[str, int] = {}
        self._planned_run_ids: set[int] = set()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._sequence = itertools.count()
        self._ids = itertools.count(FIRST_GENERATED_ID)

    # Scenarios

    def load(self, scenario: Scenario, now: float) -> dict[str, object]:
        """Add what a scenario names and return the number of jobs and runs in it.

        Raises ValueError, and changes nothing, if an id is taken or a job is neither known nor described.
        """
        self.advance(now)
        self._check_ids(scenario)
        self.workspace_id = scenario.workspace or self.workspace_id
        self.settings_read_at = scenario.settings_read_at or self.settings_read_at
        if scenario.repair_visible_after_seconds is not None:
            self.repair_visible_after = scenario.repair_visible_after_seconds
        if scenario.reopening_visible_after_seconds is not None:
            self.reopening_visible_after = scenario.reopening_visible_after_seconds
        self.policies.update({policy.policy_id: policy for policy in scenario.policies})
        self.pipeline_events.update(scenario.pipeline_events)
        self.queries.extend(scenario.queries)
        for plan in scenario.jobs:
            self._load_job(plan, now)
        self.advance(now)
        return {"jobs": len(scenario.jobs), "runs": sum(len(job.runs) for job in scenario.jobs)}

    def _check_ids(self, scenario: Scenario) -> None:
        run_ids = Counter(run.run_id for job in scenario.jobs for run in job.runs)
        for run_id, count in run_ids.items():
            if count > 1 or run_id in self._planned_run_ids or run_id in self._attempts:
                raise ValueError(f"Duplicate run_id {run_id}: run ids are unique in a workspace. Nothing was loaded.")
        for job_id, count in Counter(job.job_id for job in scenario.jobs).items():
            if count > 1:
                raise ValueError(f"Duplicate job_id {job_id} in one scenario. Nothing was loaded.")
        for job in scenario.jobs:
            if job.settings is not None and job.job_id in self.jobs:
                raise ValueError(
                    f"Duplicate job_id {job.job_id}: leave out its settings to add runs to it. Nothing was loaded."
                )
            if job.settings is None and job.job_id not in self.jobs:
                raise ValueError(f"Job {job.job_id} is not known and has no settings. Nothing was loaded.")

    def _load_job(self, plan: JobPlan, now: float) -> None:
        if plan.settings is not None:
            self.jobs[plan.job_id] = Job(plan.job_id, _completed_settings(plan), created=now)
        job = self.jobs[plan.job_id]
        for run_plan in plan.runs:
            self._planned_run_ids.add(run_plan.run_id)
            self._at(now + run_plan.start_offset_seconds, partial(self._start_planned, job, run_plan))
            for interference in run_plan.interference:
                when = now + interference.at_offset_seconds
                self._at(when, partial(self._interfere, run_plan.run_id, interference))
        if plan.recurring:
            self._at(now + plan.recurring.every_seconds, partial(self._recur, job, plan.recurring))

    def _start_planned(self, job: Job, plan: RunPlan, at: float) -> None:
        if not job.deleted:
            self._begin(self._add_run(job, plan, at), at)

    def _recur(self, job: Job, recurring: Recurring, at: float) -> None:
        if not job.deleted:
            self._start_planned(job, self._quiet_plan(recurring.duration_seconds), at)
            self._at(at + recurring.every_seconds, partial(self._recur, job, recurring))

    def _quiet_plan(self, duration: float, parameters: dict[str, str] | None = None) -> RunPlan:
        """Return the plan of a run of which every task succeeds."""
        return RunPlan(run_id=self._new_id(), duration_seconds=duration, job_parameters=parameters or {})

    def _interfere(self, run_id: int, interference: Interference, at: float) -> None:
        run = self._runs.get(run_id)
        if run is None:
            return
        match interference.kind:
            case "repair" | "repair_succeeds":
                if not run.is_active and run.failed_tasks():
                    succeeds = interference.kind == "repair_succeeds"
                    self._repair(run, run.failed_tasks(), run.parameters, at, succeeds=succeeds)
            case "cancel":
                self._cancel(run, at)
            case "newer_success":
                plan = self._quiet_plan(interference.duration_seconds or 0.0, run.plan.job_parameters)
                self._start_planned(run.job, plan, at)
            case "newer_active":
                plan = self._quiet_plan(interference.duration_seconds or 3600.0, run.plan.job_parameters)
                self._start_planned(run.job, plan, at)
            case "delete_job":
                run.job.deleted = True

    # Time

    def advance(self, now: float) -> None:
        """Let everything happen that is due."""
        while self._events and self._events[0][0] <= now:
            at, _, action = heapq.heappop(self._events)
            action(at)

    def _at(self, when: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._sequence), action))

    def _new_id(self) -> int:
        return next(
            number for number in self._ids if number not in self._planned_run_ids and number not in self._attempts
        )

    # Runs

    def _add_run(self, job: Job, plan: RunPlan, at: float, *, source: Run | None = None) -> Run:
        run = Run(
            plan=plan,
            job=job,
            start=at,
            parameters={**job.default_parameters, **plan.job_parameters},
            attempts_made=source.attempts_made if source else Counter(),
            native_retries_left=plan.native_retries_left,
        )
        self._planned_run_ids.add(run.run_id)
        self._runs[run.run_id] = run
        self._active[run.run_id] = run
        insort(self._index, run.key)
        insort(job.index, run.key)
        return run

    def _begin(self, run: Run, at: float) -> None:
        """Start the original execution with all tasks."""
        execution = Execution(None, at, run.job.settings, run.parameters)
        run.executions.append(execution)
        keys = [entry["task_key"] for entry in run.job.settings.get("tasks", [])]
        self._execute(run, execution, keys, at)

    def _execute(self, run: Run, execution: Execution, task_keys: Iterable[str], at: float) -> None:
        for task_key in task_keys:
            self._add_attempt(run, execution, task_key, at)
        self._go_on(run, execution, at)

    def _add_attempt(self, run: Run, execution: Execution, task_key: str, at: float) -> TaskAttempt:
        previous = run.latest.get(task_key)
        run_id = self._new_id()
        entry = task_entry(execution.settings, task_key)
        attempt = TaskAttempt(
            run_id=run_id,
            task_key=task_key,
            attempt_number=previous.attempt_number + 1 if previous else 0,
            original_run_id=previous.original_run_id if previous else run_id,
            entry=entry,
            depends_on=_dependencies(entry, _task_plan(run.plan, task_key)),
            created=at,
        )
        run.latest[task_key] = attempt
        execution.attempts.append(attempt)
        self._attempts[run_id] = (run, attempt)
        return attempt

    def _go_on(self, run: Run, execution: Execution, at: float) -> None:
        """Start or write off every task whose dependencies have ended; end the execution when all its tasks have."""
        moved = True
        while moved:
            moved = False
            for attempt in execution.attempts:
                verdicts = [run.latest[key].verdict for key in attempt.depends_on if key in run.latest]
                ended = [verdict for verdict in verdicts if verdict is not None]
                if not attempt.is_waiting or len(ended) < len(verdicts):
                    continue
                moved = True
                hindrance = _hindrance(attempt.entry.get("run_if", "ALL_SUCCESS"), ended)
                if hindrance:
                    attempt.finish(at, hindrance)
                else:
                    self._start_task(run, execution, attempt, at)
        if all(attempt.verdict for attempt in execution.attempts):
            self._end(run, execution, run.summary(), at)

    def _start_task(self, run: Run, execution: Execution, attempt: TaskAttempt, at: float) -> None:
        settings = self._settings_in_force(run, execution)
        attempt.entry = task_entry(settings, attempt.task_key)
        attempt.life_cycle_state = "RUNNING"
        attempt.start = at
        attempt.cluster = self._cluster_of(run, execution, attempt, settings, at)
        before = run.attempts_made[attempt.task_key]
        run.attempts_made[attempt.task_key] += 1
        task_plan = _task_plan(run.plan, attempt.task_key)
        failure = task_plan.failure_of(before)
        if failure and not execution.succeeds:
            circumstances = Circumstances(before, settings, attempt.entry, execution.job_parameters)
            failure = None if task_plan.heals_when.holds(circumstances) else failure
        else:
            failure = None
        duration = task_plan.retry_duration_seconds
        if before == 0 and execution.repair_id is None:
            duration = run.plan.duration_seconds / _longest_chain(execution.attempts)
        self._at(at + duration, partial(self._end_task, run, execution, attempt, failure))

    def _settings_in_force(self, run: Run, execution: Execution) -> Json:
        """Return the settings that a task reads as it starts. A changed job timeout acts on active runs in any case."""
        current = run.job.settings
        if self.settings_read_at == "task_start":
            return current
        return {**execution.settings, "timeout_seconds": current.get("timeout_seconds")}

    def _cluster_of(
        self, run: Run, execution: Execution, attempt: TaskAttempt, settings: Json, at: float
    ) -> Cluster | None:
        entry = attempt.entry
        existing_id = entry.get("existing_cluster_id")
        spec = cluster_spec(settings, entry)
        if existing_id is None and spec is None:
            return None
        if existing_id is not None:
            if existing_id not in self.clusters:
                self._add_cluster(Cluster(existing_id, {}, "", at, shared_by_jobs=True))
            self.clusters[existing_id].restart(at)
            return self.clusters[existing_id]
        key = entry.get("job_cluster_key") or str(attempt.run_id)
        if key not in execution.clusters:
            cluster_id = f"1124-{self._new_id() % 1_000_000:06d}-standin"
            execution.clusters[key] = self._add_cluster(Cluster(cluster_id, spec or {}, run.name, at))
        return execution.clusters[key]

    def _add_cluster(self, cluster: Cluster) -> Cluster:
        cluster.add_event("CREATING", cluster.start)
        cluster.add_event("RUNNING", cluster.start)
        self.clusters[cluster.cluster_id] = cluster
        return cluster

    def _end_task(
        self, run: Run, execution: Execution, attempt: TaskAttempt, failure: Failure | None, at: float
    ) -> None:
        if attempt.verdict:  # cancelled meanwhile
            return
        attempt.failure = failure
        attempt.finish(at, failed(failure) if failure else SUCCESS)
        if failure and attempt.cluster:
            for event in failure.cluster_events:
                attempt.cluster.events.append(
                    {"timestamp": milliseconds(at), "details": {}, **event, "cluster_id": attempt.cluster.cluster_id}
                )
            if failure.cluster_termination_reason:
                attempt.cluster.terminate(at, failure.cluster_termination_reason)
        if failure and run.native_retries_left > 0:
            run.native_retries_left -= 1
            retry = self._add_attempt(run, execution, attempt.task_key, at)
            retry.life_cycle_state = "WAITING_FOR_RETRY"
            wait = attempt.entry.get("min_retry_interval_millis", 0) / 1000
            self._at(at + wait, partial(self._start_retry, run, execution, retry))
        self._go_on(run, execution, at)

    def _start_retry(self, run: Run, execution: Execution, attempt: TaskAttempt, at: float) -> None:
        if not attempt.verdict:
            self._start_task(run, execution, attempt, at)

    def _end(self, run: Run, execution: Execution, verdict: Verdict, at: float) -> None:
        execution.end = at
        execution.verdict = verdict
        self._active.pop(run.run_id, None)
        if verdict.result_state != "SUCCESS":
            run.terminal_failures += 1
        for cluster in execution.clusters.values():
            cluster.terminate(at, JOB_FINISHED)
        if run.job.queue:
            self._begin(run.job.queue.pop(0), at)

    def _cancel(self, run: Run, at: float) -> None:
        if not run.is_active:
            return
        if run in run.job.queue:
            run.job.queue.remove(run)
            run.executions.append(Execution(None, at, run.job.settings, run.parameters))
        execution = run.executions[-1]
        for attempt in execution.attempts:
            if not attempt.verdict:
                attempt.finish(at, USER_CANCELED)
        self._end(run, execution, USER_CANCELED, at)

    def _repair(
        self, run: Run, task_keys: list[str], parameters: dict[str, str], at: float, *, succeeds: bool = False
    ) -> int:
        repair_id = self._new_id()
        execution = Execution(repair_id, at, run.job.settings, parameters, succeeds=succeeds)
        run.executions.append(execution)
        self._active[run.run_id] = run
        self._execute(run, execution, task_keys, at)
        return repair_id

    # What the API asks for

    def job(self, job_id: int) -> Job:
        """Return a job that exists and is not deleted; refused otherwise."""
        job = self.jobs.get(job_id)
        if job is None or job.deleted:
            raise invalid(f"Job {job_id} does not exist.")
        return job

    def run(self, run_id: int) -> Run:
        """Return a job run; refused if there is none (the id may be that of a task run)."""
        if run_id not in self._runs:
            raise invalid(f"Run {run_id} does not exist.")
        return self._runs[run_id]

    def task_run(self, run_id: int) -> tuple[Run, TaskAttempt] | None:
        """Return the attempt that has this run id together with its run."""
        return self._attempts.get(run_id)

    def terminal_failures(self, run_id: int) -> int:
        """Return how many executions of a run ended without success; 0 for an unknown run."""
        run = self._runs.get(run_id)
        return run.terminal_failures if run else 0

    def job_id_of(self, run_id: int) -> int | None:
        """Return the job of a run, None for an unknown run."""
        run = self._runs.get(run_id)
        return run.job.job_id if run else None

    def runs(self, wanted: RunFilter, now: float) -> Iterator[Run]:
        """Yield the runs that match, newest start first. The cost grows with what is looked at, not with all runs."""
        for key in self._keys_descending(wanted):
            run = self._runs[key[1]]
            looks_active = self.looks_active(run, now)
            if (wanted.active_only and not looks_active) or (wanted.completed_only and looks_active):
                continue
            if wanted.run_type in (None, run.plan.run_type):
                yield run

    def _keys_descending(self, wanted: RunFilter) -> Iterator[tuple[int, int]]:
        index = self._index
        if wanted.job_id is not None:
            job = self.jobs.get(wanted.job_id)
            index = job.index if job else []
        if wanted.active_only:
            index = sorted(run.key for run in self._active.values() if wanted.job_id in (None, run.job.job_id))
        low = 0 if wanted.start_time_from is None else bisect_left(index, (wanted.start_time_from, -1))
        high = len(index) if wanted.start_time_to is None else bisect_left(index, (wanted.start_time_to + 1, -1))
        if wanted.before is not None:
            high = min(high, bisect_left(index, wanted.before))
        for position in range(high - 1, low - 1, -1):
            yield index[position]

    def visible_executions(self, run: Run, now: float, *, after: float) -> list[Execution]:
        """Return the executions that show: a repair only ``after`` seconds from its start."""
        return [
            execution for execution in run.executions if execution.repair_id is None or now - execution.start >= after
        ]

    def looks_active(self, run: Run, now: float) -> bool:
        """Tell whether a run shows as active; right after a repair it may not yet."""
        visible = self.visible_executions(run, now, after=self.reopening_visible_after)
        return not visible or visible[-1].verdict is None

    def repair(self, request: RepairRequest, now: float) -> int:
        """Repair a run and return the repair id; refused unless every rule of the API is kept.

        Tasks that failed because of a task that is run again are run again too. Parameters of the original run are not
        carried over: what the request does not name has the job's default (public issue apache/airflow#64828).
        """
        run = self.run(request.run_id)
        self.job(run.job.job_id)
        if run.plan.run_type != "JOB_RUN":
            raise invalid(f"Run {run.run_id} cannot be repaired: it is a {run.plan.run_type}.")  # wording assumed
        if run.is_active:
            raise RequestRefusedError(  # wording assumed
                400,
                "INVALID_STATE",
                f"Run {run.run_id} is in progress. Only a run in a terminal state can be repaired.",
            )
        self._check_latest_repair(run, request.latest_repair_id)
        keys = _tasks_to_repair(run, request)
        return self._repair(run, keys, {**run.job.default_parameters, **(request.job_parameters or {})}, now)

    def _check_latest_repair(self, run: Run, given: int | None) -> None:
        latest = run.executions[-1].repair_id
        if given == latest:
            return
        if given is None:
            raise invalid("The latest repair ID needs to be provided in order to create a new repair")
        raise invalid(f"The provided latest repair ID {given} is not the latest repair of the run.")  # wording assumed

    def run_now(self, request: RunNowRequest, now: float, *, source_run_id: int | None = None) -> tuple[int, bool]:
        """Start a run of a job; return its id and whether it is new: a known token gives its old run, however it ended.

        The new run has the outcome rules of ``source_run_id``, or of the job's last run that failed, and counts its
        attempts together with it. Over the job's limit of concurrent runs (1 unless set) it is queued or skipped.
        """
        job = self.job(request.job_id)
        token = request.idempotency_token
        if token and len(token) > MAX_TOKEN_LENGTH:
            raise invalid(f"The idempotency_token must have at most {MAX_TOKEN_LENGTH} characters.")  # wording assumed
        if token and token in self._tokens:
            return self._tokens[token], False
        source = self._source_of(job, source_run_id)
        plan = RunPlan(
            run_id=self._new_id(),
            trigger="ONE_TIME",
            job_parameters=request.job_parameters or {},
            duration_seconds=source.plan.duration_seconds if source else 0.5,
            tasks=source.plan.tasks if source else [],
        )
        run = self._add_run(job, plan, now, source=source)
        if token:
            self._tokens[token] = run.run_id
        queue = request.queue.enabled or bool(job.settings.get("queue", {}).get("enabled"))
        self._begin_or_wait(run, now, queue=queue)
        return run.run_id, True

    def _begin_or_wait(self, run: Run, now: float, *, queue: bool) -> None:
        others = sum(1 for other in self._active.values() if other.job is run.job) - 1
        if others < run.job.settings.get("max_concurrent_runs", 1):
            self._begin(run, now)
        elif queue:
            run.job.queue.append(run)
        else:
            execution = Execution(None, now, run.job.settings, run.parameters)
            run.executions.append(execution)
            self._end(run, execution, SKIPPED, now)

    def _source_of(self, job: Job, source_run_id: int | None) -> Run | None:
        source = self._runs.get(source_run_id) if source_run_id else None
        if source and source.job is job:
            return source
        newest_first = (self._runs[run_id] for _, run_id in reversed(job.index))
        return next((run for run in newest_first if not run.is_active and run.terminal_failures), None)

    def cancel(self, run_id: int, now: float) -> None:
        """Cancel a run; nothing happens if it is over."""
        self._cancel(self.run(run_id), now)

    def update_job(self, job_id: int, new_settings: Json, fields_to_remove: list[str]) -> Json:
        """Change a job, return its new settings; refused if a cluster has an unknown node type or breaks its policy."""
        job = self.job(job_id)
        settings = updated(job.settings, new_settings, fields_to_remove)
        for spec in cluster_specs(settings):
            self._check_cluster(spec)
        job.settings = settings
        return settings

    def _check_cluster(self, spec: Json) -> None:
        for name in ("node_type_id", "driver_node_type_id"):
            if spec.get(name) is not None and spec[name] not in NODE_TYPES:
                raise invalid(f"Node type {spec[name]} is not supported.")  # wording assumed
        policy = self.policies.get(spec.get("policy_id", ""))
        broken = violation(policy.definition, spec) if policy else None
        if broken:
            raise invalid(f"Cluster validation error: {broken}")  # wording assumed

    def cluster(self, cluster_id: str) -> Cluster:
        """Return a cluster; refused if there is none."""
        if cluster_id not in self.clusters:
            raise invalid(f"Cluster {cluster_id} does not exist")
        return self.clusters[cluster_id]

    def jobs_from(self, first_job_id: int) -> list[Job]:
        """Return the jobs that are not deleted from an id on, in the order of their ids."""
        ids = sorted(self.jobs)
        return [self.jobs[job_id] for job_id in ids[bisect_left(ids, first_job_id) :] if not self.jobs[job_id].deleted]


def _completed_settings(plan: JobPlan) -> Json:
    """Return the settings of a planned job with a name and, if they name no tasks, with the tasks of its runs."""
    settings = dict(plan.settings or {})
    settings.setdefault("name", plan.name or f"job-{plan.job_id}")
    settings.setdefault("max_concurrent_runs", 1)
    settings.setdefault("format", "MULTI_TASK")
    if not settings.get("tasks"):
        planned = {task.task_key: task for run in plan.runs for task in run.tasks} or {
            "main": TaskPlan(task_key="main")
        }
        settings["tasks"] = [_entry_from_plan(task) for task in planned.values()]
    return settings


def _entry_from_plan(task: TaskPlan) -> Json:
    depends_on = [{"task_key": key} for key in task.depends_on or []]
    return {
        "task_key": task.task_key,
        "depends_on": depends_on,
        "notebook_task": {"notebook_path": f"/{task.task_key}"},
    }


def _task_plan(plan: RunPlan, task_key: str) -> TaskPlan:
    return next((task for task in plan.tasks if task.task_key == task_key), TaskPlan(task_key=task_key))


def _dependencies(entry: Json, plan: TaskPlan) -> list[str]:
    if plan.depends_on is not None:
        return plan.depends_on
    return [dependency["task_key"] for dependency in entry.get("depends_on", [])]


def _hindrance(run_if: str, upstream: list[Verdict]) -> Verdict | None:
    """Return the verdict of a task that may not run because of the tasks before it, None if it may."""
    good = [verdict.good for verdict in upstream]
    match run_if:
        case "ALL_DONE":
            return None
        case "AT_LEAST_ONE_SUCCESS":
            return None if any(good) or not good else UPSTREAM_FAILED
        case "ALL_FAILED":
            return EXCLUDED if any(good) else None
        case "AT_LEAST_ONE_FAILED":
            return EXCLUDED if all(good) else None
        case _:
            if all(good):
                return None
            canceled = any(verdict.result_state in CANCELED_RESULTS for verdict in upstream)
            return UPSTREAM_CANCELED if canceled else UPSTREAM_FAILED


def _longest_chain(attempts: list[TaskAttempt]) -> int:
    """Return the number of tasks on the longest path of dependencies."""
    needs = {attempt.task_key: attempt.depends_on for attempt in attempts}
    depths: dict[str, int] = {}
    for key in TopologicalSorter(needs).static_order():
        depths[key] = (key in needs) + max((depths[need] for need in needs.get(key, [])), default=0)
    return max(depths.values(), default=1)


def _tasks_to_repair(run: Run, request: RepairRequest) -> list[str]:
    failed_keys = run.failed_tasks()
    if bool(request.rerun_tasks) == request.rerun_all_failed_tasks:
        raise invalid("Exactly one of rerun_tasks and rerun_all_failed_tasks must be provided.")  # wording assumed
    if request.rerun_all_failed_tasks:
        if not failed_keys:
            raise invalid(f"Run {run.run_id} has no failed tasks to repair.")  # wording assumed
        named = failed_keys
    else:
        named = request.rerun_tasks or []
    if len(set(named)) < len(named):
        raise invalid("rerun_tasks cannot contain duplicate task keys.")
    if unknown := [key for key in named if key not in run.latest]:
        raise invalid(f"Run {run.run_id} has no task with the key {unknown[0]}.")  # wording assumed
    rerun = set(named)
    kept_from_running = {key for key in failed_keys if run.result_of(key) in CONSEQUENCES}
    dependents = set(run.latest) if request.rerun_dependent_tasks else kept_from_running
    grown = True
    while grown:
        more = {key for key in dependents - rerun if rerun & set(run.latest[key].depends_on)}
        rerun |= more
        grown = bool(more)
    return [key for key in run.latest if key in rerun]
