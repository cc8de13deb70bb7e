"""Jobs on the clusters of a realistic Azure workspace, for the tests of changes."""

from typing import Any

from local.databricks.node_types import NODE_TYPES
from shared.databricks_runs import node_type
from shared.domain import ComputeKind, Json, RunFacts, TaskFailure
from tests.builders import build_job_facts, build_run_facts, build_symptoms, build_task_failure

WORKSPACE_NODE_TYPES = tuple(node_type(listed.as_json()) for listed in NODE_TYPES.values())


def a_cluster(**values: Any) -> Json:
    """Two workers of 64 GB; None removes a value."""
    cluster = {"spark_version": "16.4.x-scala2.12", "node_type_id": "Standard_E8ds_v5", "num_workers": 2} | values
    return {name: value for name, value in cluster.items() if value is not None}


def a_job(**fields: Any) -> Json:
    """Tasks `extract` and `load` share a cluster, `report` has its own, `each` runs a nested task on one of its own."""
    return {
        "name": "nightly_orders",
        "max_concurrent_runs": 1,
        "job_clusters": [
            {"job_cluster_key": "idle", "new_cluster": a_cluster(node_type_id="Standard_D4ds_v5")},
            {"job_cluster_key": "main", "new_cluster": a_cluster()},
        ],
        "tasks": [
            {"task_key": "extract", "job_cluster_key": "main", "notebook_task": {"notebook_path": "/extract"}},
            {"task_key": "load", "job_cluster_key": "main", "notebook_task": {"notebook_path": "/load"}},
            {"task_key": "report", "new_cluster": a_cluster(node_type_id="Standard_DS4_v2"), "max_retries": 1},
            {
                "task_key": "each",
                "for_each_task": {
                    "inputs": "[1, 2]",
                    "task": {"task_key": "one", "new_cluster": a_cluster(node_type_id="Standard_E4ds_v5")},
                },
            },
        ],
        "a_field_of_tomorrow": {"x": [1, None]},
    } | fields


def a_job_on(cluster: Json, **fields: Any) -> Json:
    """The job with another shared cluster."""
    job = a_job(**fields)
    job["job_clusters"][1]["new_cluster"] = cluster
    return job


def a_failure(task_key: str = "load", compute: ComputeKind = ComputeKind.JOB_CLUSTER, **symptoms: Any) -> TaskFailure:
    """A task that failed."""
    return build_task_failure(task_key=task_key, compute=compute, symptoms=build_symptoms(**symptoms))


def facts_of(settings: Json, *failures: TaskFailure, **overrides: Any) -> RunFacts:
    """A failed run of the job; by default its task `load` failed."""
    job = build_job_facts(
        settings=settings, declared_parameters={"batch_size": "1000", "day": "today", "api_timeout": "30"}
    )
    known: dict[str, Any] = {"failures": failures or (a_failure(),), "job": job, "node_types": WORKSPACE_NODE_TYPES}
    return build_run_facts(**known | overrides)
