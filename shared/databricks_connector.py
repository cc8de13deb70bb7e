"""Databricks workspaces: failed runs, everything about one of them, and the writes that retry it or change its job."""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, cast

from shared import databricks_runs, telemetry
from shared.databricks_api import Clock, WorkspaceApi, check_access
from shared.databricks_runs import RUN_ARRAYS, SETTINGS_ARRAYS
from shared.deadline import InheritingThreadPool
from shared.domain import (
    ClusterPolicy,
    ComputeKind,
    JobFacts,
    Json,
    NewerRun,
    NodeType,
    RunFacts,
    RunState,
    RunSummary,
    TaskFailure,
)
from shared.errors import (
    AgentError,
    ConfigurationError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    RunNotFoundError,
)
from shared.settings import Settings

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

log = telemetry.logger(__name__)

JOBS = "/api/2.2/jobs"
CLUSTERS = "/api/2.1/clusters"

RUNS_PER_PAGE = 25  # the most that jobs/runs/list gives
MAX_DETAILED_TASKS = 20
MAX_ITERATIONS = 3
MAX_ITERATION_PAGES = 5
PARALLEL_READS = 8
POLICIES = "/api/2.0/policies/clusters"
POLICIES_KEPT_SECONDS = (
    300  # about a tick: failures that come together ask once, a policy that was changed is seen soon
)
NODE_TYPES_KEPT_SECONDS = 3600  # new machine types and regions come by the month, not by the minute
MAX_TOKEN_LENGTH = 64  # Jobs API, run-now: idempotency_token has at most 64 characters
EVENTS_AFTER_THE_RUN = timedelta(minutes=10)  # a cluster ends, and says why, after its last task


DEFINED_BY_THE_JOB = frozenset({ComputeKind.JOB_CLUSTER, ComputeKind.NEW_CLUSTER, ComputeKind.POOL})
"""Compute that is a cluster in the job's settings; the machines of a pool are the pool's."""


class DatabricksConnector:
    """Runs of Databricks jobs in one or more workspaces; implements `ports.JobRuns`. Safe for several threads.

    Without settings they are taken from the environment at the first call. `credential` is the Entra credential for
    Azure hosts that have neither a token nor a service principal; by default `DefaultAzureCredential`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        credential: "TokenCredential | None" = None,
        clock: Clock | None = None,
    ) -> None:
        self._given_settings = settings
        self._credential = credential
        self._clock = clock
        self._lock = threading.Lock()
        self._node_types: dict[str, tuple[float, tuple[NodeType, ...]]] = {}
        self._policies: dict[tuple[str, str], tuple[float, ClusterPolicy | None]] = {}

    @property
    def workspaces(self) -> tuple[str, ...]:
        """Names of the workspaces. Raises ConfigurationError if the settings of Databricks are missing or conflict."""
        return tuple(self._workspaces)

    @property
    def calls(self) -> int:
        """API requests made so far in all workspaces, repetitions included."""
        return sum(workspace.calls for workspace in self._workspaces.values())

    def active_runs(self, workspace: str) -> list[RunSummary]:
        """All runs that are active now."""
        return self._list_runs(workspace, {"active_only": True})

    def completed_runs(self, workspace: str, *, started_after: datetime) -> list[RunSummary]:
        """Completed runs that started at or after the time, one-time runs included."""
        query = {"completed_only": True, "start_time_from": _milliseconds(started_after)}
        return self._list_runs(workspace, query)

    def _list_runs(self, workspace: str, query: Json) -> list[RunSummary]:
        pages = self._workspace(workspace).get_pages(f"{JOBS}/runs/list", {**query, "limit": RUNS_PER_PAGE})
        summaries = [databricks_runs.run_summary(raw) for page in pages for raw in page.get("runs", [])]
        # A run that starts while pages are read moves the others down, so that one of them comes twice.
        return list({summary.run_id: summary for summary in summaries}.values())

    def read_state(self, workspace: str, run_id: int) -> RunState:
        """One run as it is just now, with its repair history."""
        return databricks_runs.run_state(workspace, read_run(self._workspace(workspace), run_id))

    def read_facts(self, workspace: str, run_id: int) -> RunFacts:
        """Everything about a failed run. Of its root-cause tasks, the first 20 to fail are read.

        What cannot be read about a task (its output, its cluster) is left empty; `job` is None if it is gone or hidden.
        """
        api = self._workspace(workspace)
        raw = read_run(api, run_id)
        run = databricks_runs.run_state(workspace, raw)
        with InheritingThreadPool(PARALLEL_READS, thread_name_prefix="read-facts") as pool:
            try:
                job = pool.submit(_read_job, api, run)
                newer = pool.submit(_read_newer_runs, api, run)
                failures = read_failures(api, raw, run, pool)
                facts_of_job = job.result()
                return RunFacts(
                    run=run,
                    task_count=databricks_runs.task_count(raw),
                    failures=failures,
                    job=facts_of_job,
                    newer_runs=newer.result(),
                    parent=databricks_runs.parent_of(raw, facts_of_job.tags if facts_of_job else {}),
                    node_types=self._node_types_for(api, failures),
                    policies=self._policies_for(api, failures, facts_of_job),
                )
            except AgentError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def newer_runs(self, workspace: str, job_id: int, *, started_after: datetime) -> tuple[NewerRun, ...]:
        """Runs of the job that started after the time, the newest 25: one call."""
        return _read_runs_of_job(self._workspace(workspace), job_id, started_after)

    def _node_types_for(self, api: WorkspaceApi, failures: tuple[TaskFailure, ...]) -> tuple[NodeType, ...]:
        """The workspace's node types where a failed task ran on a cluster that its job defines; kept for an hour.

        Without them the run can still be decided about, only not be given other machines.
        """
        if not any(failure.compute in DEFINED_BY_THE_JOB - {ComputeKind.POOL} for failure in failures):
            return ()
        now = (self._clock or cast("Clock", time)).time()
        read_at, node_types = self._node_types.get(api.name, (now - NODE_TYPES_KEPT_SECONDS, ()))
        if now - read_at < NODE_TYPES_KEPT_SECONDS:
            return node_types
        try:
            answer = api.get(f"{CLUSTERS}/list-node-types", {})
        except AgentError as error:
            log.warning("node types not readable", extra=_about(api, error))
            return ()
        node_types = tuple(map(databricks_runs.node_type, answer.get("node_types", [])))
        self._node_types[api.name] = (now, node_types)
        return node_types

    def _policies_for(
        self, api: WorkspaceApi, failures: tuple[TaskFailure, ...], job: JobFacts | None
    ) -> Mapping[str, ClusterPolicy]:
        """The policies of the job's clusters where a failed task ran on one; those that cannot be read are left out."""
        if job is None or not any(failure.compute in DEFINED_BY_THE_JOB for failure in failures):
            return {}
        found = {policy_id: self._policy(api, policy_id) for policy_id in databricks_runs.policy_ids(job.settings)}
        return {policy_id: policy for policy_id, policy in found.items() if policy}

    def _policy(self, api: WorkspaceApi, policy_id: str) -> ClusterPolicy | None:
        """The policy, kept for five minutes, as is that it may not be read: an identity may lack the right for good."""
        now = (self._clock or cast("Clock", time)).time()
        read_at, policy = self._policies.get((api.name, policy_id), (now - POLICIES_KEPT_SECONDS, None))
        if now - read_at < POLICIES_KEPT_SECONDS:
            return policy
        try:
            policy = databricks_runs.cluster_policy(api.get(f"{POLICIES}/get", {"policy_id": policy_id}))
        except AgentError as error:
            log.warning("cluster policy not readable", extra=_about(api, error, policy_id=policy_id))
            if not isinstance(error, PermanentError):
                return None
            policy = None
        self._policies[api.name, policy_id] = (now, policy)
        return policy

    def repair_run(
        self,
        workspace: str,
        run_id: int,
        *,
        latest_repair_id: int | None,
        job_parameters: Mapping[str, str],
        legacy_parameters: Mapping[str, object],
        performance_target: str | None = None,
    ) -> int:
        """Rerun all failed tasks and what depends on them; the repair id. The request is sent exactly once.

        Beyond the errors of the port: a refusal whose text is not known is a plain PermanentError; a workspace that
        could not be connected to is a plain TransientError, as nothing was sent.
        """
        body = databricks_runs.repair_body(
            run_id,
            latest_repair_id=latest_repair_id,
            job_parameters=job_parameters,
            legacy_parameters=legacy_parameters,
            performance_target=performance_target,
        )
        what = f"repair of run {run_id} in workspace {workspace}"
        try:
            answer = self._workspace(workspace).post_once(f"{JOBS}/runs/repair", body, what)
        except NotAuthorisedError:
            raise
        except PermanentError as error:
            answer_code = getattr(error.__cause__, "error_code", None)
            meaning = databricks_runs.refused_repair(str(error.__cause__), error_code=answer_code)
            if meaning is PermanentError:
                raise
            raise meaning(str(error)) from error.__cause__
        return _id_in(answer, "repair_id", what)

    def run_now(
        self,
        workspace: str,
        job_id: int,
        *,
        token: str,
        job_parameters: Mapping[str, str],
        performance_target: str | None = None,
    ) -> int:
        """Start a new run of the job; its run id. The request is sent exactly once.

        The same token gives the same run, also where that run has failed. Raises ValueError for a token that is empty
        or longer than 64 characters.
        """
        if not 0 < len(token) <= MAX_TOKEN_LENGTH:
            raise ValueError(f"an idempotency token has 1 to {MAX_TOKEN_LENGTH} characters, not {len(token)}")
        body: Json = {"job_id": job_id, "idempotency_token": token}
        if job_parameters:
            body["job_parameters"] = dict(job_parameters)
        if performance_target:
            body["performance_target"] = performance_target
        what = f"new run of job {job_id} in workspace {workspace}"
        return _id_in(self._workspace(workspace).post_once(f"{JOBS}/run-now", body, what), "run_id", what)

    def job_tags(self, workspace: str, job_id: int) -> Mapping[str, str]:
        """The job's tags as they are now: one call, as its first page has them whole."""
        return databricks_runs.job_facts(self._workspace(workspace).get(f"{JOBS}/get", {"job_id": job_id})).tags

    def job_settings(self, workspace: str, job_id: int) -> Json:
        """The job's settings as they are now: raw JSON, all pages of its tasks and clusters joined."""
        settings: Json = _read_whole_job(self._workspace(workspace), job_id)["settings"]
        return settings

    def update_job(self, workspace: str, job_id: int, *, new_settings: Json, fields_to_remove: Sequence[str]) -> None:
        """Change the job. The request is sent exactly once.

        A workspace that could not be connected to is a plain TransientError, as nothing was sent.
        """
        body: Json = {"job_id": job_id, "new_settings": new_settings}
        if fields_to_remove:
            body["fields_to_remove"] = list(fields_to_remove)
        self._workspace(workspace).post_once(f"{JOBS}/update", body, f"update of job {job_id} in workspace {workspace}")

    def _workspace(self, name: str) -> WorkspaceApi:
        try:
            return self._workspaces[name]
        except KeyError:
            known = ", ".join(self._workspaces)
            raise ConfigurationError(
                f"workspace {name!r} is not one of DATABRICKS_HOST ({known}); add its URL there",
                names=("DATABRICKS_HOST",),
            ) from None

    @property
    def _workspaces(self) -> Mapping[str, WorkspaceApi]:
        with self._lock:  # two threads must not make two sets of clients
            return self._built_workspaces

    @cached_property
    def _built_workspaces(self) -> Mapping[str, WorkspaceApi]:
        settings = self._given_settings or _settings_of_the_environment()
        check_access(settings)
        apis = [
            WorkspaceApi(host, settings, self._credential, self._clock or cast("Clock", time))
            for host in settings.databricks_host
        ]
        return {api.name: api for api in apis}


def _settings_of_the_environment() -> Settings:
    from shared.bootstrap import current_settings

    return current_settings()


def read_run(api: WorkspaceApi, run_id: int) -> Json:
    """A run with all its tasks, clusters, parameters and repairs."""
    pages = api.get_pages(f"{JOBS}/runs/get", {"run_id": run_id, "include_history": True})
    return databricks_runs.joined_pages(pages, RUN_ARRAYS)


def _read_whole_job(api: WorkspaceApi, job_id: int) -> Json:
    """A job with its whole settings."""
    pages = list(api.get_pages(f"{JOBS}/get", {"job_id": job_id}))
    settings = databricks_runs.joined_pages((page.get("settings", {}) for page in pages), SETTINGS_ARRAYS)
    return {**pages[0], "settings": settings}


def _read_job(api: WorkspaceApi, run: RunState) -> JobFacts | None:
    """The job as it is now; None for a one-time run, a deleted job, or one that the identity may not see."""
    if run.readable_job_id is None:
        return None
    try:
        return databricks_runs.job_facts(_read_whole_job(api, run.readable_job_id))
    except (RunNotFoundError, NotAuthorisedError):
        log.info("job not readable", extra={"workspace": api.name, "run_id": run.run_id, "job_id": run.job_id})
        return None


def _read_newer_runs(api: WorkspaceApi, run: RunState) -> tuple[NewerRun, ...]:
    """The latest runs (at most 25) of the job that started after this one."""
    if run.readable_job_id is None:
        return ()
    return _read_runs_of_job(api, run.readable_job_id, run.start_time)


def _read_runs_of_job(api: WorkspaceApi, job_id: int, started_after: datetime) -> tuple[NewerRun, ...]:
    query = {"job_id": job_id, "start_time_from": _milliseconds(started_after) + 1, "limit": RUNS_PER_PAGE}
    return databricks_runs.newer_runs(api.get(f"{JOBS}/runs/list", query).get("runs", []), started_after)


def read_failures(api: WorkspaceApi, raw: Json, run: RunState, pool: ThreadPoolExecutor) -> tuple[TaskFailure, ...]:
    if not run.is_failed:
        return ()
    tasks = databricks_runs.root_causes(raw)[:MAX_DETAILED_TASKS]
    if not tasks:
        return (databricks_runs.run_level_failure(raw),)
    clusters = {
        cluster_id: pool.submit(_read_cluster, api, cluster_id, run)
        for cluster_id in {databricks_runs.classic_cluster_id(task, raw) for task in tasks}
        if cluster_id
    }
    outputs = [pool.submit(_read_outputs, api, task) for task in tasks]
    failures = []
    for task, output in zip(tasks, outputs, strict=True):
        cluster_id = databricks_runs.classic_cluster_id(task, raw)
        cluster, events = clusters[cluster_id].result() if cluster_id else ({}, [])
        failures.append(
            databricks_runs.task_failure(task, raw, outputs=output.result(), cluster=cluster, cluster_events=events)
        )
    return tuple(failures)


def _read_outputs(api: WorkspaceApi, task: Json) -> list[Json]:
    """What the task run put out; of a for-each task, what its first failed iterations did."""
    if not databricks_runs.is_for_each(task):
        return [_read_output(api, task["run_id"])]
    return [_read_output(api, iteration["run_id"]) for iteration in _read_failed_iterations(api, task["run_id"])]


def _read_failed_iterations(api: WorkspaceApi, task_run_id: int) -> list[Json]:
    failed: list[Json] = []
    try:
        for number, page in enumerate(api.get_pages(f"{JOBS}/runs/get", {"run_id": task_run_id}), start=1):
            failed += databricks_runs.failed_iterations(page)
            if len(failed) >= MAX_ITERATIONS or number == MAX_ITERATION_PAGES:
                break
    except PermanentError as error:
        log.warning("iterations not readable", extra=_about(api, error, task_run_id=task_run_id))
    return failed[:MAX_ITERATIONS]


def _read_output(api: WorkspaceApi, task_run_id: int) -> Json:
    try:
        return api.get(f"{JOBS}/runs/get-output", {"run_id": task_run_id})
    except PermanentError as error:
        log.warning("task output not readable", extra=_about(api, error, task_run_id=task_run_id))
        return {}


def _read_cluster(api: WorkspaceApi, cluster_id: str, run: RunState) -> tuple[Json, list[Json]]:
    """The cluster as it is now, and what happened to it during the run, oldest first.

    Of the events the last 50, as many as clusters/events gives at once by default.
    """
    window: Json = {"cluster_id": cluster_id, "start_time": _milliseconds(run.start_time), "order": "DESC"}
    if run.end_time:
        window["end_time"] = _milliseconds(run.end_time + EVENTS_AFTER_THE_RUN)
    try:
        cluster = api.get(f"{CLUSTERS}/get", {"cluster_id": cluster_id})
        events = api.read_by_post(f"{CLUSTERS}/events", window).get("events", [])
    except PermanentError as error:
        log.warning("cluster not readable", extra=_about(api, error, cluster_id=cluster_id))
        return {}, []
    return cluster, events[::-1]


def _about(api: WorkspaceApi, error: AgentError, **details: object) -> Json:
    return {"workspace": api.name, "error": type(error).__name__, **details}


def _id_in(answer: Json, name: str, what: str) -> int:
    try:
        return int(answer[name])
    except (KeyError, TypeError, ValueError):
        raise OutcomeUnknownError(f"{what}: the answer of Databricks has no {name}") from None


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
