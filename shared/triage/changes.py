"""Settled changes of a retry: what they send with the repair, what they cost, how the job is edited and put back. Pure.

A change that edits the job is part of a lease: `update_body` makes the edit, `restore_body` puts back what is still
ours once the repair has ended. Job parameters and the performance target are sent with the repair alone.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.domain import Change, Json, SettingChange

KEYS = {"tasks": "task_key", "job_clusters": "job_cluster_key"}
"""Arrays of a job's settings whose entries jobs/update merges by a key."""


@dataclass(frozen=True, slots=True)
class JobEdit:
    """What jobs/update is to be sent. Of `tasks` and `job_clusters` only the entries that change, whole and raw."""

    new_settings: Json
    fields_to_remove: tuple[str, ...] = ()


def edits_job(changes: Iterable[SettingChange]) -> bool:
    """Whether the job itself is edited, so that a lease is needed."""
    return any(change.edits_job for change in changes)


def parameters_of(changes: Iterable[SettingChange]) -> Mapping[str, str]:
    """Job parameters by name, to be sent with the repair."""
    parameters = (change for change in changes if change.target.startswith("parameter:"))
    return {change.target.removeprefix("parameter:"): change.new for change in parameters}


def performance_target(changes: Iterable[SettingChange]) -> str | None:
    """To be sent with the repair; None = as the job has it."""
    return next((str(change.new) for change in changes if change.target == "repair"), None)


def cost_factor(changes: Sequence[SettingChange]) -> float:
    """Price of the compute for the same time against now: of one cluster; of several, that of the dearest."""
    targets = {change.target for change in changes}
    factors = (math.prod(change.cost_factor for change in changes if change.target == target) for target in targets)
    return max(factors, default=1.0)


def asked_for(changes: Iterable[SettingChange]) -> tuple[Change, ...]:
    """The changes that were asked for; those of parameters and Spark settings with the value that they get."""
    return tuple(dict.fromkeys(change.change for change in changes))


def suggested(changes: tuple[Change, ...]) -> dict[str, str] | None:
    """The changes as a flat dict for people and programs: `{"worker_memory_up": "", "param:batch_size": "500"}`."""
    return {change.word: change.value or "" for change in changes} or None


def described(change: SettingChange) -> str:
    """`job cluster main: node_type_id Standard_DS3_v2 → Standard_DS4_v2, about 2 times the price. The workers …`"""
    setting = f" {change.path[-1]}" if change.path else ""
    old = "not set" if change.old is None else change.old
    price = "" if math.isclose(change.cost_factor, 1) else f", about {change.cost_factor:.2g} times the price"
    return f"{place_of(change.target)}:{setting} {old} → {change.new}{price}. {change.why}"


def place_of(target: str) -> str:
    """`job cluster main`, `task load`, `job`, `parameter batch_size`, `repair`."""
    return target.replace(":", " ", 1).replace("job_cluster", "job cluster", 1)


def place_and_name(change: SettingChange) -> str:
    """Which value of the job it is: `job cluster main: new_cluster.node_type_id`."""
    return f"{place_of(change.target)}: {'.'.join(change.path)}"


def is_applied(changes: Iterable[SettingChange], settings: Json) -> bool:
    """Whether the job has all the new values already."""
    return all(_is_at(settings, change, change.new) for change in changes if change.edits_job)


def update_body(changes: Iterable[SettingChange], settings: Json) -> JobEdit | None:
    """The edit that gives the job the new values.

    None where a value is neither the old nor the new one: somebody changed the job since the decision.
    """
    ours = [change for change in changes if change.edits_job]
    if not all(_is_at(settings, change, change.old) or _is_at(settings, change, change.new) for change in ours):
        return None
    edited = copy.deepcopy(settings)
    for change in ours:
        if holder := holder_of(edited, change.target):
            put(holder, change.path, change.new)
    return _edit(ours, edited)


def restore_body(
    changes: Sequence[SettingChange], settings_now: Json
) -> tuple[JobEdit | None, tuple[SettingChange, ...]]:
    """The edit that puts back what is still ours (None = nothing), and what somebody else changed meanwhile.

    A value that is the old one again is neither. Of several changes of one value, each may be the one that is there.
    """
    leased = [change for change in changes if change.edits_job]
    ours = present(leased, settings_now)
    own = own_settings(ours, settings_now)
    theirs = [change for change in leased if change not in ours and not _is_at(own, change, change.old)]
    return _edit(ours, own) if ours else None, tuple(theirs)


def present(changes: Iterable[SettingChange], settings: Json) -> tuple[SettingChange, ...]:
    """Those changes of the job whose new value is there."""
    return tuple(change for change in changes if change.edits_job and _is_at(settings, change, change.new))


def not_landed(unanswered: Iterable[SettingChange], settings: Json) -> tuple[SettingChange, ...]:
    """The changes of unanswered updates without one for each that is there: every update lands once at most."""
    landed: list[SettingChange] = []
    left: list[SettingChange] = []
    for change in unanswered:
        is_there = change not in landed and present((change,), settings)
        (landed if is_there else left).append(change)
    return tuple(left)


def own_settings(changes: Sequence[SettingChange], settings_now: Json) -> Json:
    """The job's settings without what a lease that is open on it changes."""
    own = copy.deepcopy(settings_now)
    for change in changes:
        holder = holder_of(own, change.target) if change.edits_job else None
        if holder and value_at(holder, change.path) == change.new:
            put(holder, change.path, change.old)
    return own


def _edit(changes: Iterable[SettingChange], edited: Json) -> JobEdit:
    """What of the edited settings must be sent for these changes."""
    body: Json = {}
    removed: list[str] = []
    for target, field in dict.fromkeys((change.target, change.path[0]) for change in changes):
        if target != "job":
            entries = body.setdefault(_array_of(target), [])
            entry = holder_of(edited, target)
            if entry not in entries:
                entries.append(entry)
        elif field in edited:
            body[field] = edited[field]
        else:
            removed.append(field)
    return JobEdit(body, tuple(removed))


def _is_at(settings: Json, change: SettingChange, value: Any) -> bool:  # noqa: ANN401 - anything that JSON may hold
    """Whether the place that a change is for is still there and has the value (None = has none)."""
    holder = holder_of(settings, change.target)
    return holder is not None and bool(value_at(holder, change.path) == value)


def entry_of(settings: Json, array: str, key: str | None) -> Json | None:
    """The task or the job cluster of that key; None if there is none."""
    found = (entry for entry in settings.get(array) or () if key and entry.get(KEYS[array]) == key)
    return next(found, None)


def holder_of(settings: Json, target: str) -> Json | None:
    """The object in the settings that the target of a change stands for; None if it is gone."""
    return settings if target == "job" else entry_of(settings, _array_of(target), target.partition(":")[2])


def _array_of(target: str) -> str:
    return "tasks" if target.startswith("task:") else "job_clusters"


def value_at(holder: Json, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - anything that JSON may hold
    """The value that the path leads to; None if there is none."""
    value: Any = holder
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def put(holder: Json, path: tuple[str, ...], value: Any) -> None:  # noqa: ANN401 - anything that JSON may hold
    """Set the value that the path leads to; None removes it, and the objects around it that are empty without it."""
    inner = holder
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    if value is not None:
        inner[path[-1]] = value
        return
    inner.pop(path[-1], None)
    if not inner and len(path) > 1:
        put(holder, path[:-1], None)
