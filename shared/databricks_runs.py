"""Answers of the Databricks Jobs API 2.2, as raw JSON, turned into domain values. Pure: no SDK, no I/O, no clock.

Raw JSON, because the dataclasses of databricks-sdk drop unknown fields and turn unknown enum values into None: a value
that Databricks adds tomorrow would be lost. Every field may be absent. The verdict on a run is read from both of its
shapes: `status` (newer) and `state` (deprecated, still filled, and the only one that tells a timeout from a
cancellation).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shared.domain import (
    ClusterPolicy,
    ComputeKind,
    JobFacts,
    Json,
    NewerRun,
    NodeType,
    Repair,
    RunState,
    RunSummary,
    Symptoms,
    TaskFailure,
)
from shared.errors import PermanentError, RepairImpossibleError, RepairRefusedError

RUN_ARRAYS = ("tasks", "job_clusters", "job_parameters", "repair_history", "iterations")
"""Arrays of a run that come in pages of 100."""
SETTINGS_ARRAYS = ("tasks", "job_clusters", "parameters", "environments")
"""Arrays of a job's settings that come in pages of 100."""

TERMINAL_LIFE_CYCLE_STATES = frozenset({"TERMINATED", "SKIPPED", "INTERNAL_ERROR"})
SUCCESSES = frozenset({"SUCCESS", "SUCCESS_WITH_FAILURES"})
NOT_A_CAUSE = frozenset({"UPSTREAM_FAILED", "UPSTREAM_CANCELED", "EXCLUDED", "CANCELED", "USER_CANCELED", "DISABLED"})
"""Results of tasks that failed because of something else: a task before them, a condition, a person, the run's end."""

CLASSIC_COMPUTE = frozenset(
    {ComputeKind.JOB_CLUSTER, ComputeKind.NEW_CLUSTER, ComputeKind.POOL, ComputeKind.ALL_PURPOSE}
)
"""Compute that is a cluster, so that the Clusters API knows why it ended."""
PYTHON_TASKS = frozenset({"notebook", "spark_python", "python_wheel", "dbt"})
"""Task types that run on serverless compute where a task names no compute."""

MAX_TEXT_CHARACTERS = 5 * 1024 * 1024
"""Databricks itself keeps the last 5 MB of the logs (docstring of RunOutput.logs in databricks-sdk)."""

LEGACY_PARAMETERS = (
    "dbt_commands",
    "jar_params",
    "notebook_params",
    "pipeline_params",
    "python_named_params",
    "python_params",
    "spark_submit_params",
    "sql_params",
)
STATE_DESTROYING_PIPELINE_PARAMETERS = frozenset(
    {"full_refresh", "full_refresh_selection", "reset_checkpoint_selection"}
)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """How a run, a task run or a repair stands."""

    is_active: bool
    life_cycle_state: str | None
    result_state: str | None
    termination_code: str | None
    termination_type: str | None
    message: str

    @property
    def result(self) -> str | None:
        """The result where it is known, else the termination code; None while active."""
        return None if self.is_active else self.result_state or self.termination_code

    @property
    def is_failed(self) -> bool:
        return not self.is_active and self.result not in SUCCESSES


def _verdict(raw: Json) -> _Verdict:
    status, state = _object(raw.get("status")), _object(raw.get("state"))
    details = _object(status.get("termination_details"))
    newer_state, life_cycle_state = status.get("state"), state.get("life_cycle_state")
    return _Verdict(
        is_active=newer_state != "TERMINATED" if newer_state else life_cycle_state not in TERMINAL_LIFE_CYCLE_STATES,
        life_cycle_state=life_cycle_state or newer_state,
        result_state=state.get("result_state"),
        termination_code=details.get("code"),
        termination_type=details.get("type"),
        message=clean_text(state.get("state_message") or details.get("message")),
    )


def run_summary(raw: Json) -> RunSummary:
    """One row of jobs/runs/list.

    `is_failed` holds for every run that has ended otherwise than SUCCESS or SUCCESS_WITH_FAILURES (the leaf tasks
    succeeded, so the job did what it is for); also for cancelled, skipped and disabled runs. What is done about those
    is decided later.
    """
    verdict = _verdict(raw)
    return RunSummary(
        run_id=int(raw["run_id"]),
        job_id=_id(raw.get("job_id")),
        is_active=verdict.is_active,
        is_failed=verdict.is_failed,
        start_time=_start_time(raw),
        end_time=None if verdict.is_active else _time(raw.get("end_time")),
    )


def run_state(workspace: str, raw: Json) -> RunState:
    """A run as jobs/runs/get shows it (with include_history)."""
    verdict = _verdict(raw)
    return RunState(
        workspace=workspace,
        run_id=int(raw["run_id"]),
        job_id=_id(raw.get("job_id")),
        name=clean_text(raw.get("run_name")),
        page_url=clean_text(raw.get("run_page_url")),
        run_type=clean_text(raw.get("run_type")),
        trigger=clean_text(raw.get("trigger")),
        is_active=verdict.is_active,
        is_failed=verdict.is_failed,
        life_cycle_state=verdict.life_cycle_state,
        result_state=verdict.result_state,
        termination_code=verdict.termination_code,
        termination_type=verdict.termination_type,
        state_message=verdict.message,
        start_time=_start_time(raw),
        end_time=None if verdict.is_active else _time(raw.get("end_time")),
        repairs=_repairs(raw),
        job_parameters=_job_parameters(raw),
        legacy_parameters=dict(_object(raw.get("overriding_parameters"))),
    )


def _repairs(raw: Json) -> tuple[Repair, ...]:
    """The REPAIR items in the order in which Databricks gives them, which is by time; ORIGINAL has no id."""
    return tuple(
        Repair(repair_id=int(item["id"]), result_state=_verdict(item).result, start_time=_time(item.get("start_time")))
        for item in _objects(raw.get("repair_history"))
        if item.get("type") != "ORIGINAL" and item.get("id")
    )


def _job_parameters(raw: Json) -> dict[str, str]:
    """The job parameters that the run was made with: the value used, or the default."""
    values = {
        str(item["name"]): item.get("value") if item.get("value") is not None else item.get("default")
        for item in _objects(raw.get("job_parameters"))
        if item.get("name")
    }
    return {name: clean_text(value) for name, value in values.items() if value is not None}


def parent_of(raw: Json, tags: Mapping[str, str]) -> str:
    """Who owns the run and may repeat it: run_job, adf, airflow, submit; empty = nobody else.

    Azure Data Factory names its runs `ADF_<factory>_<pipeline>_<activity>_<guid>`.
    """
    name = clean_text(raw.get("run_name"))
    words = f"{name} {' '.join(f'{key} {value}' for key, value in tags.items())}".lower()
    if raw.get("trigger") == "RUN_JOB_TASK":
        return "run_job"
    if name.startswith("ADF_"):
        return "adf"
    if "airflow" in words:
        return "airflow"
    return "submit" if raw.get("run_type") == "SUBMIT_RUN" else ""


def root_causes(raw: Json) -> list[Json]:
    """The tasks that failed by themselves, each in its latest attempt, the one that failed first in front.

    `tasks` of a run holds one entry per attempt: after retries and repairs the same task key comes several times.
    """
    latest: dict[str, Json] = {}
    for task in _objects(raw.get("tasks")):
        key = str(task.get("task_key", ""))
        if key not in latest or _attempt_order(task) >= _attempt_order(latest[key]):
            latest[key] = task
    causes = [task for task in latest.values() if _is_root_cause(_verdict(task))]
    return sorted(causes, key=lambda task: (task.get("end_time") or 0, str(task.get("task_key"))))


def task_count(raw: Json) -> int:
    """How many tasks the run has, attempts not counted."""
    return len({task.get("task_key") for task in _objects(raw.get("tasks"))})


def _attempt_order(task: Json) -> tuple[int, int]:
    """Later is greater. Task run ids do not grow with time; a task that never started has an end time only."""
    return max(task.get("start_time") or 0, task.get("end_time") or 0), task.get("attempt_number") or 0


def _is_root_cause(verdict: _Verdict) -> bool:
    return verdict.is_failed and verdict.result not in NOT_A_CAUSE and verdict.life_cycle_state != "SKIPPED"


def failed_iterations(raw: Json) -> list[Json]:
    """The iterations of a for-each task run that failed by themselves."""
    return [task for task in _objects(raw.get("iterations")) if _is_root_cause(_verdict(task))]


def is_for_each(task: Json) -> bool:
    """Whether the task runs another task once per item; its output is that of its iterations."""
    return task_type(task) == "for_each"


def task_type(task: Json) -> str | None:
    """`notebook`, `spark_python`, `jar`, `sql` …; the name of the `…_task` field; None for a task without one."""
    for name, value in task.items():
        if name.endswith("_task") and isinstance(value, dict):
            kind = name.removesuffix("_task")
            return "jar" if kind == "spark_jar" else kind
    return None


def compute_kind(task: Json, run: Json) -> ComputeKind:
    """What a task ran on."""
    kind = task_type(task)
    match kind:
        case "pipeline":
            return ComputeKind.PIPELINE
        case "sql":
            return ComputeKind.SQL_WAREHOUSE
        case "for_each":
            return compute_kind(_object(task["for_each_task"].get("task")), run)
        case _:
            pass
    if task.get("new_cluster"):
        return _pool_or(ComputeKind.NEW_CLUSTER, task["new_cluster"])
    if task.get("job_cluster_key"):
        return _pool_or(ComputeKind.JOB_CLUSTER, _job_cluster(run, task["job_cluster_key"]))
    if task.get("existing_cluster_id"):
        return ComputeKind.ALL_PURPOSE
    if kind == "notebook" and task["notebook_task"].get("warehouse_id"):
        return ComputeKind.SQL_WAREHOUSE
    if task.get("environment_key") or kind in PYTHON_TASKS:
        return ComputeKind.SERVERLESS
    return ComputeKind.UNKNOWN


def _pool_or(kind: ComputeKind, cluster: Json) -> ComputeKind:
    return ComputeKind.POOL if cluster.get("instance_pool_id") else kind


def _job_cluster(run: Json, key: str) -> Json:
    for entry in _objects(run.get("job_clusters")):
        if entry.get("job_cluster_key") == key:
            return _object(entry.get("new_cluster"))
    return {}


def classic_cluster_id(task: Json, run: Json) -> str | None:
    """The cluster that ran the task; None if none came up, or for compute that the Clusters API does not know."""
    cluster_id = _object(task.get("cluster_instance")).get("cluster_id")
    return str(cluster_id) if cluster_id and compute_kind(task, run) in CLASSIC_COMPUTE else None


def task_failure(
    task: Json, run: Json, *, outputs: Sequence[Json], cluster: Json, cluster_events: Sequence[Json]
) -> TaskFailure:
    """A root-cause task with all that is known about it.

    `outputs` are the answers of get-output (of a for-each task: of some failed iterations), `cluster` that of
    clusters/get, `cluster_events` the entries of clusters/events; empty where there is nothing or it cannot be read.
    """
    verdict = _verdict(task)
    reason = _object(cluster.get("termination_reason"))
    iteration_errors = [entry.get("error_message") for entry in _error_message_stats(task)]
    return TaskFailure(
        task_key=clean_text(task.get("task_key")),
        task_run_id=int(task["run_id"]),
        compute=compute_kind(task, run),
        cluster_id=classic_cluster_id(task, run),
        symptoms=Symptoms(
            error=_joined([*iteration_errors, *(output.get("error") for output in outputs)]),
            error_trace=_joined(output.get("error_trace") for output in outputs),
            logs=_joined(output.get("logs") for output in outputs),
            state_message=_joined([verdict.message, *map(_child_run, outputs)]),
            termination_code=verdict.termination_code,
            termination_type=verdict.termination_type,
            result_state=verdict.result_state,
            task_type=task_type(task),
            cluster_reason_code=reason.get("code"),
            cluster_reason_type=reason.get("type"),
            cluster_reason_parameters={
                str(name): clean_text(value) for name, value in _object(reason.get("parameters")).items()
            },
            cluster_events=tuple(map(_event_line, cluster_events)),
        ),
    )


def run_level_failure(raw: Json) -> TaskFailure:
    """The failure of a run in which no task failed (it never ran, was cancelled, or has no tasks); task key empty."""
    verdict = _verdict(raw)
    return TaskFailure(
        task_key="",
        task_run_id=int(raw["run_id"]),
        compute=ComputeKind.UNKNOWN,
        symptoms=Symptoms(
            state_message=verdict.message,
            termination_code=verdict.termination_code,
            termination_type=verdict.termination_type,
            result_state=verdict.result_state,
        ),
    )


def _error_message_stats(task: Json) -> list[Json]:
    """The commonest error messages of a for-each task's iterations (at most three, says Databricks)."""
    stats = _object(_object(task.get("for_each_task")).get("stats"))
    return _objects(stats.get("error_message_stats"))


def _child_run(output: Json) -> str:
    child = _object(output.get("run_job_output")).get("run_id")
    return f"The task started run {child} of another job; its cause is to be found there." if child else ""


def _event_line(event: Json) -> str:
    """`NODES_LOST SPOT_INSTANCE_TERMINATION`: the type and, where there is one, the code of the reason."""
    details = _object(event.get("details"))
    reason = _object(details.get("reason")).get("code")
    return " ".join(clean_text(word) for word in (event.get("type"), reason) if word)


def newer_runs(raws: Iterable[Json], started_after: datetime) -> tuple[NewerRun, ...]:
    """The rows of jobs/runs/list that started after the time."""
    return tuple(
        NewerRun(
            run_id=int(raw["run_id"]),
            is_active=(verdict := _verdict(raw)).is_active,
            result_state=verdict.result,
            job_parameters=_job_parameters(raw),
        )
        for raw in raws
        if _start_time(raw) > started_after
    )


def job_facts(raw: Json) -> JobFacts:
    """A job as jobs/get shows it; `settings` untouched."""
    settings = _object(raw.get("settings"))
    triggers = [_object(settings.get(name)) for name in ("schedule", "trigger", "continuous")]
    return JobFacts(
        job_id=int(raw["job_id"]),
        name=clean_text(settings.get("name")),
        settings=settings,
        tags={str(key): clean_text(value) for key, value in _object(settings.get("tags")).items()},
        declared_parameters={
            str(item["name"]): clean_text(item.get("default"))
            for item in _objects(settings.get("parameters"))
            if item.get("name")
        },
        is_continuous=bool(settings.get("continuous")),
        is_paused=any(trigger.get("pause_status") == "PAUSED" for trigger in triggers),
    )


AZURE_ARM_SIZE = re.compile(r"Standard_[A-Z]+\d+(-\d+)?[a-z]*p[a-z]*(_|$)")
"""Azure names sizes with Arm processors by a small p behind the number of cores ("Azure VM sizes naming conventions").

`is_graviton` is named after the Arm processors of AWS; whether Azure Databricks sets it is not documented.
"""


def node_type(raw: Json) -> NodeType:
    """One entry of clusters/list-node-types. Any `node_info.status` means that it cannot be had here."""
    name = clean_text(raw.get("node_type_id"))
    disks = _object(raw.get("node_instance_type"))
    return NodeType(
        node_type_id=name,
        memory_mb=int(raw.get("memory_mb") or 0),
        num_cores=float(raw.get("num_cores") or 0),
        category=clean_text(raw.get("category")),
        num_gpus=int(raw.get("num_gpus") or 0),
        is_arm=bool(raw.get("is_graviton") or AZURE_ARM_SIZE.match(name)),
        photon_driver_capable=bool(raw.get("photon_driver_capable")),
        photon_worker_capable=bool(raw.get("photon_worker_capable")),
        local_disk_gb=sum(
            int(disks.get(f"{kind}s") or 0) * int(disks.get(f"{kind}_size_gb") or 0)
            for kind in ("local_disk", "local_nvme_disk")
        ),
        is_available=not (
            raw.get("is_deprecated") or raw.get("is_hidden") or _object(raw.get("node_info")).get("status")
        ),
    )


def policy_ids(settings: Json) -> list[str]:
    """The policies that bind the clusters which the job defines, each once."""
    tasks = [
        _object(_object(task.get("for_each_task")).get("task")) or task for task in _objects(settings.get("tasks"))
    ]
    holders = [*_objects(settings.get("job_clusters")), *tasks]
    named = (_object(holder.get("new_cluster")).get("policy_id") for holder in holders)
    return list(dict.fromkeys(str(policy_id) for policy_id in named if policy_id))


def cluster_policy(raw: Json) -> ClusterPolicy:
    """From policies/clusters/get; the definition is JSON in a string. One that is not understood has no rules."""
    try:
        definition = _object(json.loads(raw.get("definition") or "{}"))
    except (TypeError, ValueError):
        definition = {}
    policy_id = clean_text(raw.get("policy_id"))
    rules = {attribute: rule for attribute, rule in definition.items() if isinstance(rule, dict)}
    return ClusterPolicy(policy_id, clean_text(raw.get("name")) or policy_id, rules)


def repair_body(
    run_id: int,
    *,
    latest_repair_id: int | None,
    job_parameters: Mapping[str, str],
    legacy_parameters: Mapping[str, object],
    performance_target: str | None = None,
) -> Json:
    """Body of jobs/runs/repair: the failed tasks and all that depend on them, as "Repair run" in the workspace does.

    A dependent task that succeeded on incomplete input (run_if ALL_DONE) is rerun too. Parameters are given explicitly:
    a repair does not reliably keep those of the run (apache/airflow issue 64828). A full refresh of a pipeline, which
    destroys streaming state, is never repeated.
    """
    body: Json = {"run_id": run_id, "rerun_all_failed_tasks": True, "rerun_dependent_tasks": True}
    if latest_repair_id is not None:
        body["latest_repair_id"] = latest_repair_id
    if job_parameters:
        body["job_parameters"] = dict(job_parameters)
    if performance_target:
        body["performance_target"] = performance_target
    legacy = {name: legacy_parameters.get(name) for name in LEGACY_PARAMETERS}
    legacy["pipeline_params"] = {
        name: value
        for name, value in _object(legacy["pipeline_params"]).items()
        if name not in STATE_DESTROYING_PIPELINE_PARAMETERS
    }
    return body | {name: value for name, value in legacy.items() if value}


RUN_HAS_CHANGED = re.compile(
    r"latest[ _]repair|repair[ _]id|in progress|\bis (still |currently |already )?(active|running|pending|queued)"
    r"|being repaired|not (yet )?(in a )?(terminal|terminated|completed)|no (failed|unsuccessful) tasks",
    re.IGNORECASE,
)
CANNOT_BE_REPAIRED = re.compile(
    r"(cannot|can't|can not|could not) (be repaired|repair)|not (support|repairable|eligible|allowed)"
    r"|(only|at least) (for |be )?.*(multi-?task|two tasks)|single[- ]task|submit|one-time",
    re.IGNORECASE,
)


def refused_repair(message: str, *, error_code: str | None) -> type[PermanentError]:
    """What a refusal (HTTP 400 or 409) of jobs/runs/repair means.

    The texts are documented nowhere; known from public threads is only "The latest repair ID needs to be provided in
    order to create a new repair" (databricks-sdk-py issue 157). A text that fits nothing is a plain PermanentError:
    to start a new run of the job instead is right only where a repair is certainly impossible.
    """
    if RUN_HAS_CHANGED.search(message):
        return RepairRefusedError
    if CANNOT_BE_REPAIRED.search(message):
        return RepairImpossibleError
    return RepairRefusedError if error_code == "INVALID_STATE" else PermanentError


def joined_pages(pages: Iterable[Json], arrays: Sequence[str]) -> Json:
    """One answer from its pages: the first page with the arrays of all pages, one after the other."""
    whole: Json = {}
    for page in pages:
        rest = {name: [*whole.get(name, []), *_objects(page[name])] for name in arrays if name in page}
        whole = {**page, **whole, **rest}
    return whole


def clean_text(value: object, limit: int = MAX_TEXT_CHARACTERS) -> str:
    """Text that can be stored and sent: no lone surrogates, no NUL; beyond the limit only its last whole lines.

    JSON may escape half a surrogate pair (`\\ud83d`), which Python keeps and no UTF-8 encoder takes.
    """
    text = "" if value is None else str(value)
    if len(text) > limit:
        tail = text[-limit:]
        text = tail.partition("\n")[2] or tail
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def _joined(texts: Iterable[object]) -> str:
    """The different texts, one below the other, within the limit."""
    different = dict.fromkeys(text for text in map(clean_text, texts) if text)
    return clean_text("\n".join(different))


def _object(value: Any) -> Json:  # noqa: ANN401 - anything that JSON may hold
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[Json]:  # noqa: ANN401 - anything that JSON may hold
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _id(value: Any) -> int | None:  # noqa: ANN401 - anything that JSON may hold
    return int(value) if value else None


def _time(milliseconds: Any) -> datetime | None:  # noqa: ANN401 - anything that JSON may hold
    """Databricks gives milliseconds since 1970, UTC; 0 or nothing = not known."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _start_time(raw: Json) -> datetime:
    return _time(raw.get("start_time")) or datetime.fromtimestamp(0, UTC)
