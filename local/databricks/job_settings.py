"""Job settings as Databricks keeps them: raw JSON, never changed in place. Every function here returns a new value."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

MERGED_BY = {"tasks": "task_key", "job_clusters": "job_cluster_key"}


def updated(settings: Json, new_settings: Json, fields_to_remove: list[str]) -> Json:
    """Return the settings after ``jobs/update``.

    Top-level fields are replaced whole; ``tasks`` and ``job_clusters`` are merged by their key, each entry replaced
    whole. A field to remove is a top-level name or ``tasks/KEY`` or ``job_clusters/KEY``. Source: docstring of
    ``JobsAPI.update`` in databricks-sdk.
    """
    result = dict(settings)
    for field in fields_to_remove:
        name, _, entry_key = field.partition("/")
        if not entry_key:
            result.pop(name, None)
        elif name in MERGED_BY:
            result[name] = [entry for entry in result.get(name, []) if entry.get(MERGED_BY[name]) != entry_key]
    for name, value in new_settings.items():
        result[name] = _merged(result.get(name, []), value, MERGED_BY[name]) if name in MERGED_BY else value
    return result


def _merged(old: list[Json], new: list[Json], key: str) -> list[Json]:
    by_key = {entry.get(key): entry for entry in old}
    by_key.update({entry.get(key): entry for entry in new})
    return list(by_key.values())


def task_entry(settings: Json, task_key: str) -> Json:
    """Return the raw task, or a bare one if the settings do not have it."""
    for entry in settings.get("tasks", []):
        if entry.get("task_key") == task_key:
            found: Json = entry
            return found
    return {"task_key": task_key}


def cluster_spec(settings: Json, task: Json) -> Json | None:
    """Return the classic cluster that a task asks for, its own or the shared job cluster; None = any other compute."""
    own: Json | None = task.get("new_cluster")
    if own is not None:
        return own
    for entry in settings.get("job_clusters", []):
        if entry.get("job_cluster_key") == task.get("job_cluster_key"):
            shared: Json | None = entry.get("new_cluster")
            return shared
    return None


def cluster_specs(settings: Json) -> list[Json]:
    """Return all classic clusters of a job, those of tasks and the shared ones."""
    entries = [*settings.get("tasks", []), *settings.get("job_clusters", [])]
    return [entry["new_cluster"] for entry in entries if "new_cluster" in entry]


def dotted(value: Json, path: str) -> object:
    """Return the value at a dotted path such as ``azure_attributes.availability``, None if it is not there.

    Names that contain dots themselves (Spark settings) are found too: ``spark_conf.spark.sql.shuffle.partitions``.
    """
    if path in value:
        found: object = value[path]
        return found
    for name, inner in value.items():
        if isinstance(inner, dict) and path.startswith(f"{name}."):
            return dotted(inner, path.removeprefix(f"{name}."))
    return None
