"""`agent storm`, the parts that need no stack: the runs that are made, and what is counted of them."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.local_run import RunRow
from agent.storm import CAUSES, Figures, effects_in, expected_of, failing_jobs, figures_of, short_locks, still_changed
from local.databricks.scenario import parse_scenario
from local.stack import QUEUES
from shared.domain import Lease, LeaseState

GOOD = Figures(failures=3, kills=1, duplicates=0, refused=2, lost=0, terminal=3, leases_open=0, mails=1, seconds=9.5)


def row(run_id: int, outcome: str) -> RunRow:
    return RunRow(run_id, "job", "cause", "RETRY", 1, outcome, expected="", as_expected=outcome != "open")


def effect(kind: str, key: str, *, accepted: bool = True) -> dict[str, Any]:
    return {"kind": kind, "key": key, "accepted": accepted}


def lease(job_id: int, state: LeaseState) -> Lease:
    return Lease("w", job_id, job_id, 1, state, (), planned_at=datetime(2026, 1, 1, tzinfo=UTC))


@given(failures=st.integers(1, 60), seed=st.integers())
def test_a_seed_makes_the_same_valid_runs_again(failures: int, seed: int) -> None:
    jobs = failing_jobs(failures, Random(seed))
    assert jobs == failing_jobs(failures, Random(seed))
    plans = parse_scenario({"jobs": jobs}).jobs
    assert len({plan.job_id for plan in plans}) == len(plans)
    assert len({run.run_id for run in expected_of(jobs)}) == failures
    assert all(task.failure for plan in plans for run in plan.runs for task in run.tasks)


def test_many_failures_have_every_cause() -> None:
    jobs = failing_jobs(300, Random(1))
    assert {job["name"].rpartition("-")[0] for job in jobs} == {cause.name for cause in CAUSES}
    pairs = [job["runs"] for job in jobs if len(job["runs"]) == 2]
    assert pairs
    assert all(first["start_offset_seconds"] == second["start_offset_seconds"] for first, second in pairs)


def test_figures_count_what_was_done_twice_refused_mailed_and_lost() -> None:
    effects = [
        effect("repair", "1:1"),
        effect("repair", "1:1", accepted=False),
        effect("repair", "1:2"),
        effect("email", "a"),
        effect("email", "a"),
        effect("email", "b"),
        effect("job_update", ""),
        effect("job_update", ""),
    ]
    rows = [row(1, "recovered"), row(2, "escalated"), row(3, "open")]
    assert figures_of(rows, effects, kills=4, leases_open=1, seconds=2.5) == Figures(
        failures=3, kills=4, duplicates=1, refused=1, lost=1, terminal=2, leases_open=1, mails=3, seconds=2.5
    )


def test_the_object_has_exactly_the_promised_names() -> None:
    names = "failures, kills, duplicates, refused, lost, terminal, leases_open, mails, seconds"
    assert list(asdict(GOOD)) == names.split(", ")


@pytest.mark.parametrize(
    ("figures", "as_promised"),
    [
        (GOOD, True),
        (replace(GOOD, duplicates=1), False),
        (replace(GOOD, lost=1, terminal=2), False),
        (replace(GOOD, leases_open=1), False),
    ],
)
def test_only_a_clean_storm_is_as_promised(figures: Figures, *, as_promised: bool) -> None:
    assert figures.as_promised is as_promised


def test_a_job_is_still_changed_where_a_lease_or_its_settings_say_so() -> None:
    leases = [
        lease(1, LeaseState.PLANNED),
        lease(2, LeaseState.APPLIED),
        lease(3, LeaseState.RESTORED),
        lease(4, LeaseState.CLOSED),
    ]
    at_first = {job_id: {"workers": 2} for job_id in (2, 3, 4, 5)}
    now = {**at_first, 2: {"workers": 4}, 5: {"workers": 4}}
    assert still_changed(leases, at_first, now) == {1, 2, 5}


def test_effects_are_read_from_the_file_that_outlives_the_stand_ins(tmp_path: Path) -> None:
    file = tmp_path / "effects.jsonl"
    assert effects_in(file) == []
    effects = [effect("repair", "1:1"), effect("email", "a")]
    file.write_text("".join(json.dumps(one) + "\n" for one in effects))
    assert effects_in(file) == effects


def test_only_the_locks_of_the_queues_are_shortened(tmp_path: Path) -> None:
    queues = json.loads(short_locks(tmp_path / "new" / "queues.json").read_text())
    assert {queue["lock_seconds"] for queue in queues} == {2}
    usual = json.loads(QUEUES.read_text())
    assert queues == [one | {"lock_seconds": 2} for one in usual]
