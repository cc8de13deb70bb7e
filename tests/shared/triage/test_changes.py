"""A job is edited where planned and nowhere else, and put back to the byte unless somebody changed it meanwhile."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.databricks.job_settings import updated
from shared.domain import Change, ChangeKind, Json, SettingChange
from shared.triage.change_plan import CannotChange, ChangeBounds, plan
from shared.triage.changes import (
    JobEdit,
    cost_factor,
    edits_job,
    holder_of,
    is_applied,
    own_settings,
    parameters_of,
    performance_target,
    restore_body,
    suggested,
    update_body,
    value_at,
)
from tests.shared.triage.clusters import a_cluster, a_failure, a_job, facts_of
from tests.shared.triage.test_change_plan import some_failures, some_jobs, some_words

MEMORY = Change(ChangeKind.WORKER_MEMORY_UP)
NODE_TYPE = ("new_cluster", "node_type_id")
MAX_RESULT = ("new_cluster", "spark_conf", "spark.driver.maxResultSize")


def a_change(
    path: tuple[str, ...] = NODE_TYPE, old: Any = "Standard_E8ds_v5", new: Any = "big", target: str = "job_cluster:main"
) -> SettingChange:
    return SettingChange(MEMORY, target, path, old, new, "")


def sent(edit: JobEdit | None, settings: Json) -> Json:
    """The settings after jobs/update."""
    assert edit is not None
    body = json.loads(json.dumps(edit.new_settings))
    return updated(settings, body, list(edit.fields_to_remove))


def planned(settings: Json, *words: str, tasks: tuple[str, ...] = ("load",)) -> tuple[SettingChange, ...]:
    changes = plan(
        [Change.from_word(word) for word in words], facts_of(settings, *map(a_failure, tasks)), ChangeBounds()
    )
    assert not isinstance(changes, CannotChange), changes
    return changes


def test_the_whole_raw_entry_is_sent_and_no_other() -> None:
    job = a_job()

    edit = update_body([a_change(new="big")], job)

    main = job["job_clusters"][1]
    assert edit == JobEdit({"job_clusters": [{**main, "new_cluster": {**main["new_cluster"], "node_type_id": "big"}}]})


def test_several_changes_of_one_entry_are_one_entry() -> None:
    changes = planned(a_job(), "worker_memory_up", "more_disk", "driver_memory_up", "spark_conf:spark.network.timeout")

    edit = update_body(changes, a_job())

    assert edit
    assert list(edit.new_settings) == ["job_clusters"]
    (entry,) = edit.new_settings["job_clusters"]
    assert entry["new_cluster"] == a_cluster(
        node_type_id="Standard_E16ds_v5",
        driver_node_type_id="Standard_E16ds_v5",
        enable_elastic_disk=True,
        spark_conf={"spark.network.timeout": "240s"},
    )


def test_the_cluster_and_the_timeout_of_one_task_are_one_entry() -> None:
    job = a_job()
    job["tasks"][2]["timeout_seconds"] = 60
    changes = planned(job, "timeout_up", "more_disk", tasks=("report",))

    edit = update_body(changes, job)

    assert edit
    (entry,) = edit.new_settings["tasks"]
    assert (entry["timeout_seconds"], entry["new_cluster"]["enable_elastic_disk"]) == (120, True)
    assert entry["max_retries"] == 1


def test_a_timeout_of_the_job_is_sent_alone() -> None:
    job = a_job(timeout_seconds=60)
    changes = planned(job, "timeout_up")

    edit = update_body(changes, job)

    assert edit == JobEdit({"timeout_seconds": 120})
    assert restore_body(changes, sent(edit, job)) == (JobEdit({"timeout_seconds": 60}), ())


def test_what_is_sent_with_the_repair_does_not_edit_the_job() -> None:
    parameter = SettingChange(Change(ChangeKind.PARAM, "n", "5"), "parameter:n", (), "10", "5", "")
    target = SettingChange(Change(ChangeKind.TIMEOUT_UP), "repair", ("performance_target",), None, "FAST", "")

    assert not edits_job([parameter, target])
    assert parameters_of([parameter, target]) == {"n": "5"}
    assert performance_target([parameter, target]) == "FAST"
    assert performance_target([parameter]) is None
    assert update_body([parameter, target], a_job()) == JobEdit({})
    assert restore_body([parameter, target], a_job()) == (None, ())
    assert is_applied([parameter, target], a_job())
    assert edits_job([parameter, a_change()])


def test_the_price_of_one_cluster_multiplies_and_that_of_several_does_not() -> None:
    def priced(target: str, factor: float) -> SettingChange:
        return SettingChange(MEMORY, target, (str(factor),), 1, 2, "", factor)

    assert cost_factor([]) == 1
    assert cost_factor([priced("task:a", 2), priced("task:a", 1.5), priced("task:b", 2.5)]) == 3


@pytest.mark.parametrize(
    "change",
    [
        a_change(old="another"),
        a_change(target="job_cluster:gone"),
        a_change(target="job_cluster:gone", path=("new_cluster", "enable_elastic_disk"), old=None, new=True),
        a_change(target="task:gone"),
        a_change(path=(*MAX_RESULT[:-1], "spark.x"), old="1", new="2"),
        a_change(path=("timeout_seconds",), target="job", old=5, new=10),
    ],
)
def test_a_job_that_somebody_changed_since_the_decision_is_not_edited(change: SettingChange) -> None:
    assert update_body([change], a_job()) is None
    assert not is_applied([change], a_job())


def test_an_edit_that_has_landed_already_is_seen() -> None:
    changes = planned(a_job(), "worker_memory_up", "more_disk")
    edited = sent(update_body(changes, a_job()), a_job())

    assert not is_applied(changes, a_job())
    assert is_applied(changes, edited)
    assert sent(update_body(changes, edited), edited) == edited


def test_a_restore_leaves_alone_what_somebody_else_changed_and_puts_back_the_rest() -> None:
    changes = planned(a_job(), "worker_memory_up", "more_disk")
    edited = sent(update_body(changes, a_job()), a_job())
    edited["job_clusters"][1]["new_cluster"]["node_type_id"] = "Standard_L8s_v3"

    edit, foreign = restore_body(changes, edited)

    assert [change.path[-1] for change in foreign] == ["node_type_id"]
    assert sent(edit, edited)["job_clusters"][1]["new_cluster"] == a_cluster(node_type_id="Standard_L8s_v3")


def test_a_job_that_is_restored_already_needs_nothing() -> None:
    changes = planned(a_job(), "worker_memory_up", "more_disk")

    assert restore_body(changes, a_job()) == (None, ())


@pytest.mark.parametrize("gone", ["job_clusters", "tasks"])
def test_an_entry_that_is_gone_is_somebody_elses_change(gone: str) -> None:
    task = "load" if gone == "job_clusters" else "report"
    changes = planned(a_job(), "worker_memory_up", tasks=(task,))

    changes += planned(a_job(), "more_disk", tasks=(task,))  # absent before, as it is once the entry is gone

    edit, foreign = restore_body(changes, a_job(**{gone: []}))

    assert edit is None
    assert foreign == changes


def test_a_spark_setting_that_somebody_adds_meanwhile_stays() -> None:
    changes = planned(a_job(), "spark_conf:spark.driver.maxResultSize")
    edited = sent(update_body(changes, a_job()), a_job())
    edited["job_clusters"][1]["new_cluster"]["spark_conf"]["spark.theirs"] = "1"

    edit, foreign = restore_body(changes, edited)

    assert foreign == ()
    assert sent(edit, edited)["job_clusters"][1]["new_cluster"]["spark_conf"] == {"spark.theirs": "1"}


def test_a_top_level_field_that_was_absent_is_removed_again() -> None:
    change = a_change(path=("timeout_seconds",), target="job", old=None, new=60)
    edited = sent(update_body([change], a_job()), a_job())

    edit, _ = restore_body([change], edited)

    assert edit == JobEdit({}, ("timeout_seconds",))
    assert sent(edit, edited) == a_job()


def test_the_next_plan_is_made_on_the_jobs_own_settings_though_a_lease_is_open() -> None:
    first = planned(a_job(), "worker_memory_up", "param:batch_size")
    leased = sent(update_body(first, a_job()), a_job())

    assert own_settings(first, leased) == a_job()
    leased["job_clusters"][1]["new_cluster"]["node_type_id"] = "Standard_L8s_v3"
    assert own_settings(first, leased) == leased, "what is somebody else's is the job's own"


def test_suggestions() -> None:
    changes = (Change(ChangeKind.PARAM, "batch_size", "500"), MEMORY, Change(ChangeKind.PARAM, "open"))

    assert suggested(changes) == {"param:batch_size": "500", "worker_memory_up": "", "param:open": ""}
    assert suggested(()) is None


# Whatever the job looks like


@st.composite
def leases(draw: st.DrawFn) -> tuple[Json, tuple[SettingChange, ...]]:
    """A job and a plan that is possible on it: of the changes drawn as many as can be made."""
    job = draw(some_jobs())
    facts = facts_of(job, *map(a_failure, draw(some_failures)))
    wanted = [Change.from_word(word) for word in draw(some_words)]
    tried = draw(st.one_of(st.just([]), some_words))
    while wanted:
        changes = plan(wanted, facts, ChangeBounds(max_cost_factor=100), tried=tried)
        if not isinstance(changes, CannotChange):
            return job, changes
        wanted = wanted[1:]
    return job, ()


@given(leases())
def test_edit_and_restore_give_the_job_back_to_the_byte(lease: tuple[Json, tuple[SettingChange, ...]]) -> None:
    job, changes = lease
    text = json.dumps(job, sort_keys=True)

    edited = sent(update_body(changes, job), job)
    edit, foreign = restore_body(changes, edited)

    assert is_applied(changes, edited)
    assert (edit is not None) == edits_job(changes)
    assert foreign == ()
    assert json.dumps(sent(edit, edited) if edit else edited, sort_keys=True) == text
    assert json.dumps(job, sort_keys=True) == text, "the settings given are not touched"


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value of nested objects and arrays by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {k: v for name, inner in items for k, v in leaves(inner, (*path, str(name))).items()}
    return found or {path: value}


@given(leases())
def test_nothing_but_the_planned_values_is_touched(lease: tuple[Json, tuple[SettingChange, ...]]) -> None:
    job, changes = lease

    before, after = leaves(job), leaves(sent(update_body(changes, job), job))

    different = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    names = {change.path[-1] for change in changes if change.edits_job}
    assert all(names & set(path) for path in different)
    expected = copy.deepcopy(job)
    for change in changes:
        if change.edits_job and (holder := holder_of(expected, change.target)):
            inner: Any = holder
            for name in change.path[:-1]:
                inner = inner.setdefault(name, {})
            inner[change.path[-1]] = change.new
    assert leaves(expected) == after


@given(leases(), st.data())
def test_a_foreign_value_is_never_overwritten(
    lease: tuple[Json, tuple[SettingChange, ...]], data: st.DataObject
) -> None:
    job, changes = lease
    leased = [change for change in changes if change.edits_job and change.path[-1] != "spark_conf"]
    if not leased:
        return
    edited = sent(update_body(changes, job), job)
    theirs = data.draw(st.lists(st.sampled_from(leased), min_size=1, unique_by=lambda change: change.path))
    for change in theirs:
        holder: Any = holder_of(edited, change.target)
        for name in change.path[:-1]:
            holder = holder[name]
        holder[change.path[-1]] = "theirs"

    edit, foreign = restore_body(changes, edited)

    restored = sent(edit, edited) if edit else edited
    assert set(map(id, foreign)) == set(map(id, theirs))
    for change in leased:
        current = value_at(holder_of(restored, change.target) or {}, change.path)
        assert current == ("theirs" if change in theirs else change.old)
