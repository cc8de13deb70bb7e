"""Which values a retry would change, and to what, within bounds; or why that needs a person. Pure.

The job is not touched here: `plan` works on a copy of its settings, step by step, and notes what it did.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from shared.domain import Change, ChangeKind, ComputeKind, Json, NodeType, RunFacts, SettingChange, TaskFailure
from shared.triage import cluster_policy, next_values, node_choice
from shared.triage.changes import cost_factor, edits_job, entry_of, holder_of, place_of, put, value_at

MORE_WORKERS = 1.5
ON_DEMAND_PRICE = 2.0
"""On-demand machines against spot ones, roughly: Azure gives no fixed discount (it names up to 90 % of the machine)."""
PERFORMANCE_OPTIMIZED_PRICE = 2.0
"""Serverless, against STANDARD: "more DBUs for the same work" (Azure Databricks, "performance modes"); assumed."""

PERFORMANCE_OPTIMIZED = "PERFORMANCE_OPTIMIZED"


@dataclass(frozen=True, slots=True)
class ChangeBounds:
    """How far the operator lets a retry go.

    `max_cost_factor` bounds the price of one cluster for the same time against what the job pays otherwise.
    `allowed_spark_conf` names the Spark settings that may be changed, each with its furthest value.
    """

    max_node_memory_gb: float = 256
    max_workers: int = 32
    max_timeout_hours: float = 24
    max_cost_factor: float = 4
    allowed_spark_conf: Mapping[str, str] = field(default_factory=lambda: dict(next_values.FURTHEST))


@dataclass(frozen=True, slots=True)
class CannotChange:
    """Why the changes need a person: one sentence, with the suggestion where there is one."""

    reason: str


def plan(
    changes: Sequence[Change], facts: RunFacts, bounds: ChangeBounds, *, tried: Sequence[str] = ()
) -> tuple[SettingChange, ...] | CannotChange:
    """The values that a retry with these changes would use.

    `facts.job.settings` must be the job's own: no lease of an earlier attempt open on it. `tried` are the words of
    changes that earlier attempts made in vain; each takes its change one step further.
    """
    if facts.job is None:
        return CannotChange("The job is gone or cannot be read, so nothing of it can be changed.")
    if not changes:
        return CannotChange("It is not known what to change.")
    draft = _Draft(facts, bounds, facts.job.settings)
    wanted = {change.word: change for change in _at_the_limit_that_was_hit(changes, facts)}
    try:
        for word, change in sorted(wanted.items(), key=_order):
            # A parameter's value is that of the failed run, so it has taken its earlier steps already.
            steps = 1 if change.kind is ChangeKind.PARAM else 1 + tried.count(word)
            for _ in range(steps):
                _take_step(draft, change)
    except _RefusedError as refused:
        return CannotChange(refused.reason)
    settled = tuple(draft.changes.values())
    return _forbidden(settled, facts.job.settings, bounds) or settled


def _at_the_limit_that_was_hit(changes: Sequence[Change], facts: RunFacts) -> Sequence[Change]:
    """Without the run's own time limit where a parameter holds the limit, and the run did not reach its own."""
    timed_out = any(failure.symptoms.result_state == "TIMEDOUT" for failure in facts.failures)
    if timed_out or not any(change.kind is ChangeKind.PARAM for change in changes):
        return changes
    return [change for change in changes if change.kind is not ChangeKind.TIMEOUT_UP]


def _order(wanted: tuple[str, Change]) -> int:
    """Another machine first, and the driver before the workers: a driver without a type of its own follows theirs."""
    first = (ChangeKind.OTHER_NODE_TYPE, ChangeKind.DRIVER_MEMORY_UP)
    kind = wanted[1].kind
    return first.index(kind) if kind in first else len(first)


def _forbidden(settled: tuple[SettingChange, ...], settings: Json, bounds: ChangeBounds) -> CannotChange | None:
    if edits_job(settled):
        if (settings.get("deployment") or {}).get("kind") == "BUNDLE" or settings.get("edit_mode") == "UI_LOCKED":
            return CannotChange(
                "The job is deployed from a bundle: change it there, an edit here would be overwritten."
            )
        if (settings.get("git_source") or {}).get("job_source"):
            return CannotChange("The job's definition is kept in a Git repository: change it there.")
    if (factor := cost_factor(settled)) > bounds.max_cost_factor:
        return CannotChange(
            f"It would make the compute about {factor:.2g} times as expensive;"
            f" at most {bounds.max_cost_factor:g} times is allowed."
        )
    return None


class _RefusedError(Exception):
    """A change needs a person; never leaves this module."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _refuse(reason: str) -> NoReturn:
    raise _RefusedError(reason)


@dataclass(frozen=True, slots=True)
class _Cluster:
    """A cluster that the job defines: its place in the settings and its specification there."""

    target: str
    path: tuple[str, ...]
    spec: Json

    @property
    def place(self) -> str:
        return place_of(self.target)

    @property
    def has_workers(self) -> bool:
        return bool(self.spec.get("autoscale") or self.spec.get("num_workers"))


class _Draft:
    """The job's settings as they are with the changes so far, and these changes."""

    def __init__(self, facts: RunFacts, bounds: ChangeBounds, settings: Json) -> None:
        self.facts = facts
        self.bounds = bounds
        self.settings = copy.deepcopy(settings)
        self.changes: dict[tuple[str, tuple[str, ...]], SettingChange] = {}
        self._node_types = {node_type.node_type_id: node_type for node_type in facts.node_types}

    def edit_cluster(self, cluster: _Cluster, change: Change, path: tuple[str, ...], new: Any, why: str) -> None:  # noqa: ANN401
        """Change one value of a cluster."""
        if policy_id := cluster.spec.get("policy_id"):
            policy = self.facts.policies.get(policy_id)
            if policy is None:
                why = f"{why} A cluster policy applies and may refuse it."
            elif broken := cluster_policy.forbidden(policy, path, new):
                _refuse(f"The {cluster.place} is bound by the cluster policy {policy.name}: {broken}.")
        price = self._price(cluster.spec)
        whole_path = (*cluster.path, *path)
        old = value_at(cluster.spec, path)
        put(cluster.spec, path, new)
        self.add(SettingChange(change, cluster.target, whole_path, old, new, why, self._price(cluster.spec) / price))

    def edit(self, change: Change, target: str, path: tuple[str, ...], new: Any, why: str) -> None:  # noqa: ANN401
        """Change one value of the job or of a task that costs nothing by itself."""
        holder = holder_of(self.settings, target)
        assert holder is not None
        self.add(SettingChange(change, target, path, value_at(holder, path), new, why))
        put(holder, path, new)

    def add(self, change: SettingChange) -> None:
        """Note a change. A further step of one value takes the place of the earlier one, with the value before that."""
        place = (change.target, change.path)
        if before := self.changes.get(place):
            change = replace(change, old=before.old, cost_factor=before.cost_factor * change.cost_factor)
        self.changes[place] = change

    def machine(self, cluster: _Cluster, name: str | None) -> NodeType:
        """The node type of that name, if it may be exchanged for another."""
        if cluster.spec.get("instance_pool_id") or cluster.spec.get("driver_instance_pool_id"):
            _refuse(f"The {cluster.place} takes its machines from a pool: choose another pool for it.")
        if not name:
            _refuse(f"The {cluster.place} names no node type (its policy sets it): change the policy or name one.")
        if not self._node_types:
            _refuse("The node types of the workspace could not be read, so no other machine can be chosen.")
        node_type = self._node_types.get(name)
        if node_type is None:
            _refuse(f"The {cluster.place} has a node type that the workspace does not list: {name}.")
        if node_type.num_gpus:
            _refuse(f"The {cluster.place} has GPU machines ({name}), which are never exchanged: choose one for it.")
        return node_type

    def bigger(self, cluster: _Cluster, name: str | None, size: str, by: node_choice.Size) -> NodeType:
        """The next machine with more of what `by` measures and `size` names."""
        most = self.bounds.max_node_memory_gb
        machine = self.machine(cluster, name)
        found = node_choice.bigger(machine, self.facts.node_types, by=by, max_memory_gb=most)
        if found is None:
            _refuse(
                f"The {cluster.place} cannot have more {size} per machine: no {machine.category} type of the"
                f" workspace is the next after {name} and within {most:g} GB of memory."
            )
        return found

    def _price(self, spec: Json) -> float:
        """Relative price of an hour of the cluster, with all the workers that it may have."""
        workers = spec.get("num_workers") or 0
        if autoscale := spec.get("autoscale"):
            workers = autoscale.get("max_workers") or 0
        worker = spec.get("node_type_id")
        machines = self._price_of(spec.get("driver_node_type_id") or worker) + workers * self._price_of(worker)
        return machines if _is_spot(spec) else machines * ON_DEMAND_PRICE

    def _price_of(self, name: str | None) -> float:
        node_type = self._node_types.get(name or "")
        return (node_choice.price(node_type) if node_type else 0) or 1.0


def _take_step(draft: _Draft, change: Change) -> None:
    match change.kind:
        case ChangeKind.PARAM:
            _change_parameter(draft, change)
        case ChangeKind.TIMEOUT_UP:
            _raise_timeout(draft, change)
        case ChangeKind.SERVERLESS_MEMORY_UP:
            _refuse(
                "Memory of serverless compute cannot be set by the API: set the notebook's environment to high"
                " memory, or move the task to a job cluster."
            )
        case kind:
            for cluster in _clusters_of_failed_tasks(draft):
                CLUSTER_STEPS[kind](draft, cluster, change)


# ── which cluster ───────────────────────────────────────────────────────────────────────────────────────────────────


def _clusters_of_failed_tasks(draft: _Draft) -> list[_Cluster]:
    """Each cluster once, in the order in which the tasks failed."""
    found = [_cluster_of(failure, draft.settings) for failure in draft.facts.failures if failure.task_key]
    if not found:
        _refuse("It is not known which task failed, so neither which cluster to change.")
    return list({cluster.target: cluster for cluster in found}.values())


NO_CLUSTER = {
    ComputeKind.SERVERLESS: "Task {} runs on serverless compute, which has no such setting.",
    ComputeKind.SQL_WAREHOUSE: "Task {} runs on a SQL warehouse that others use too: resize the warehouse.",
    ComputeKind.PIPELINE: "Task {} is a pipeline: change the compute in the pipeline's own settings.",
}


def _cluster_of(failure: TaskFailure, settings: Json) -> _Cluster:
    key = failure.task_key
    entry = entry_of(settings, "tasks", key)
    if entry is None:
        _refuse(f"Task {key} is no longer part of the job.")
    path: tuple[str, ...] = ("for_each_task", "task") if entry.get("for_each_task") else ()
    task = value_at(entry, path) or {}
    if task.get("new_cluster"):
        return _Cluster(f"task:{key}", (*path, "new_cluster"), task["new_cluster"])
    shared = entry_of(settings, "job_clusters", task.get("job_cluster_key"))
    if shared and shared.get("new_cluster"):
        return _Cluster(f"job_cluster:{task['job_cluster_key']}", ("new_cluster",), shared["new_cluster"])
    if task.get("existing_cluster_id"):
        _refuse(
            f"Task {key} runs on an all-purpose cluster that others use too: change the cluster or give the task"
            " a job cluster."
        )
    _refuse(NO_CLUSTER.get(failure.compute, "Task {} has no cluster in the job's settings.").format(key))


# ── what is changed ─────────────────────────────────────────────────────────────────────────────────────────────────


def _raise_worker_memory(draft: _Draft, cluster: _Cluster, change: Change) -> None:
    if not cluster.has_workers:
        _raise_driver_memory(draft, cluster, change)
        return
    found = draft.bigger(cluster, cluster.spec.get("node_type_id"), "memory", node_choice.memory)
    why = f"The workers ran out of memory; this machine has {found.memory_mb / 1024:g} GB."
    draft.edit_cluster(cluster, change, ("node_type_id",), found.node_type_id, why)


def _raise_driver_memory(draft: _Draft, cluster: _Cluster, change: Change) -> None:
    own = cluster.spec.get("driver_node_type_id")
    found = draft.bigger(cluster, own or cluster.spec.get("node_type_id"), "memory", node_choice.memory)
    setting = "driver_node_type_id" if own or cluster.has_workers else "node_type_id"
    why = f"The driver ran out of memory; this machine has {found.memory_mb / 1024:g} GB."
    draft.edit_cluster(cluster, change, (setting,), found.node_type_id, why)


def _add_disk(draft: _Draft, cluster: _Cluster, change: Change) -> None:
    if cluster.spec.get("instance_pool_id"):
        _refuse(f"The {cluster.place} takes its machines from a pool: the pool settles their disks.")
    if not cluster.spec.get("enable_elastic_disk"):
        why = "The disks were full; Databricks now adds more as they fill up."
        draft.edit_cluster(cluster, change, ("enable_elastic_disk",), True, why)
        return
    found = draft.bigger(cluster, cluster.spec.get("node_type_id"), "local disk", node_choice.local_disk)
    why = f"The disks were full; this machine has {found.local_disk_gb} GB of local disk."
    draft.edit_cluster(cluster, change, ("node_type_id",), found.node_type_id, why)


def _add_workers(draft: _Draft, cluster: _Cluster, change: Change) -> None:
    if cluster.spec.get("instance_pool_id"):
        _refuse(f"The {cluster.place} takes its machines from a pool, which may not have more: a person must look.")
    if not cluster.has_workers:
        _refuse(f"The {cluster.place} has a single machine: give it workers, or a bigger machine.")
    path = ("autoscale", "max_workers") if cluster.spec.get("autoscale") else ("num_workers",)
    current = value_at(cluster.spec, path) or 0
    wanted = min(math.ceil(current * MORE_WORKERS), draft.bounds.max_workers)
    if wanted <= current:
        _refuse(f"The {cluster.place} has {current} workers; at most {draft.bounds.max_workers} are allowed.")
    draft.edit_cluster(cluster, change, path, wanted, "The work was too much for the workers there were.")


def _use_other_machine(draft: _Draft, cluster: _Cluster, change: Change) -> None:
    """The driver too where it has a type of its own: which of the two was out of stock is not known for certain."""
    for setting in ("node_type_id", "driver_node_type_id"):
        name = cluster.spec.get(setting)
        if setting == "driver_node_type_id" and not name:
            continue
        machine = draft.machine(cluster, name)
        earlier = draft.changes.get((cluster.target, (*cluster.path, setting)))
        not_again = {machine.node_type_id} | ({earlier.old} if earlier else set())
        most = draft.bounds.max_node_memory_gb
        found = node_choice.other(machine, draft.facts.node_types, not_again=not_again, max_memory_gb=most)
        if found is None:
            _refuse(f"The {cluster.place} cannot have another machine: the workspace has none like {name}.")
        why = f"{name} could not be had; this machine is of about the same size."
        draft.edit_cluster(cluster, change, (setting,), found.node_type_id, why)


def _use_on_demand(draft: _Draft, cluster: _Cluster, change: Change) -> None:
    if cluster.spec.get("instance_pool_id"):
        _refuse(f"The {cluster.place} takes its machines from a pool: the pool settles whether they are spot machines.")
    if cluster.spec.get("aws_attributes") or cluster.spec.get("gcp_attributes"):
        _refuse(f"The {cluster.place} is not on Azure: set its availability to on-demand.")
    if not _is_spot(cluster.spec):
        _refuse(f"The {cluster.place} does not use spot machines, as far as its settings say.")
    why = "Spot machines were taken away; on-demand machines are not."
    path = ("azure_attributes", "availability")
    draft.edit_cluster(cluster, change, path, "ON_DEMAND_AZURE", why)
    first = ("azure_attributes", "first_on_demand")
    if value_at(cluster.spec, first) == 0:
        draft.edit_cluster(cluster, change, first, 1, "The driver is on an on-demand machine as well.")


def _is_spot(spec: Json) -> bool:
    """SPOT_AZURE or SPOT_WITH_FALLBACK_AZURE; without a word about it Azure Databricks uses on-demand machines."""
    return str((spec.get("azure_attributes") or {}).get("availability")).startswith("SPOT")


def _set_spark_conf(draft: _Draft, cluster: _Cluster, change: Change) -> None:
    name = change.name
    furthest = draft.bounds.allowed_spark_conf.get(name)
    if furthest is None:
        _refuse(f"The Spark setting {name} is not one that is changed by itself.")
    conf = cluster.spec.get("spark_conf")
    current = None if not conf or conf.get(name) is None else str(conf[name])
    value = next_values.next_spark_value(name, current, furthest)
    if value is None:
        _refuse(
            f"The Spark setting {name} of the {cluster.place} is {current or 'not set'}: there is no next value"
            f" within {furthest}."
        )
    settled = replace(change, value=value)
    why = "The value there was did not do for this run."
    path = ("spark_conf",)
    if conf == {} or (cluster.target, (*cluster.path, *path)) in draft.changes:
        # An empty object is replaced whole, so that it is there again afterwards, empty.
        draft.edit_cluster(cluster, settled, path, {**(conf or {}), name: value}, why)
    else:
        draft.edit_cluster(cluster, settled, (*path, name), value, why)


CLUSTER_STEPS: Mapping[ChangeKind, Callable[[_Draft, _Cluster, Change], None]] = {
    ChangeKind.WORKER_MEMORY_UP: _raise_worker_memory,
    ChangeKind.DRIVER_MEMORY_UP: _raise_driver_memory,
    ChangeKind.MORE_DISK: _add_disk,
    ChangeKind.MORE_WORKERS: _add_workers,
    ChangeKind.OTHER_NODE_TYPE: _use_other_machine,
    ChangeKind.AVAILABILITY_ON_DEMAND: _use_on_demand,
    ChangeKind.SPARK_CONF: _set_spark_conf,
}


def _raise_timeout(draft: _Draft, change: Change) -> None:
    """That of each task that timed out and has one; else, or where it would be hit next, that of the job."""
    failures = draft.facts.failures
    timed_out = [failure for failure in failures if failure.symptoms.result_state == "TIMEDOUT"] or failures
    longest = 0
    for key in {failure.task_key: None for failure in timed_out}:
        task = entry_of(draft.settings, "tasks", key)
        if task and task.get("timeout_seconds"):
            longest = max(longest, _longer(draft, change, f"task:{key}", task["timeout_seconds"]))
    of_job = draft.settings.get("timeout_seconds") or 0
    if of_job and of_job < (longest or math.inf):
        _longer(draft, change, "job", of_job, at_least=longest)
    elif not longest:
        _optimise_performance(draft, change, timed_out)


def _longer(draft: _Draft, change: Change, target: str, current: int, *, at_least: int = 0) -> int:
    most = int(draft.bounds.max_timeout_hours * 3600)
    wanted = min(max(current * 2, at_least), most)
    if wanted <= current:
        _refuse(f"The timeout of the {place_of(target)} is {current} s already; at most {most} s are allowed.")
    why = "It ran into its timeout; this is the price of a run that hangs, at most."
    draft.edit(change, target, ("timeout_seconds",), wanted, why)
    return wanted


def _optimise_performance(draft: _Draft, change: Change, timed_out: Iterable[TaskFailure]) -> None:
    """Of serverless compute: without a timeout in the job's settings, only a faster start and more compute help."""
    current = draft.settings.get("performance_target")
    done = ("repair", ("performance_target",)) in draft.changes
    if current != "STANDARD" or done or any(failure.compute is not ComputeKind.SERVERLESS for failure in timed_out):
        _refuse("Neither the job nor the task has a timeout in its settings: the time limit is elsewhere.")
    why = "Serverless compute in standard mode starts after minutes and grows slowly."
    draft.add(
        SettingChange(
            change,
            "repair",
            ("performance_target",),
            current,
            PERFORMANCE_OPTIMIZED,
            why,
            PERFORMANCE_OPTIMIZED_PRICE,
        )
    )


def _change_parameter(draft: _Draft, change: Change) -> None:
    """A declared job parameter with its next value: sizes and parallelism halve, waits double."""
    job, run = draft.facts.job, draft.facts.run
    if job is None or change.name not in job.declared_parameters:
        _refuse(f"The job declares no parameter {change.name}.")
    current = run.job_parameters.get(change.name, job.declared_parameters[change.name])
    value = next_values.next_parameter(change.name, current)
    if value is None:
        _refuse(f"The parameter {change.name} is {current!r}: there is no next value to try.")
    why = "The value of the failed run did not do."
    draft.add(SettingChange(replace(change, value=value), f"parameter:{change.name}", (), current, value, why))
