"""The fakes that have rules of their own keep to them."""

from datetime import timedelta

import pytest

from shared.errors import OutcomeUnknownError, RepairRefusedError, RunNotFoundError, TransientError
from shared.ports import OutgoingMessage
from tests.builders import (
    NOW,
    RUN_ID,
    WORKSPACE,
    build_incident,
    build_repair,
    build_run_facts,
    build_run_state,
)
from tests.fakes import FakeActionQueues, FakeClock, FakeDecisionHistory, FakeJobRuns


def repair(runs: FakeJobRuns, *, latest_repair_id: int | None = None) -> int:
    return runs.repair_run(
        WORKSPACE, RUN_ID, latest_repair_id=latest_repair_id, job_parameters={"day": "1"}, legacy_parameters={}
    )


def test_fault_before_leaves_no_effect_and_fault_after_does() -> None:
    history = FakeDecisionHistory()
    history.faults.before["save_incident"] = [TransientError("down"), None]
    history.faults.after["save_incident"] = [OutcomeUnknownError("no answer")]

    with pytest.raises(TransientError, match="down"):
        history.save_incident(build_incident())
    assert history.read_incident(WORKSPACE, RUN_ID) is None

    with pytest.raises(OutcomeUnknownError):
        history.save_incident(build_incident())
    assert history.read_incident(WORKSPACE, RUN_ID) is not None

    assert history.save_incident(build_incident()).etag, "no fault is left"
    assert history.faults.calls == ["save_incident", "read_incident"] * 2 + ["save_incident"]


def test_faults_of_one_fake_are_not_those_of_another() -> None:
    broken, sound = FakeActionQueues(), FakeActionQueues()
    broken.faults.before["send"] = [TransientError("down")]

    sound.send("retries", [OutgoingMessage("{}", "1")])

    assert [message.message_id for _, message in sound.sent] == ["1"]


def test_repair_makes_the_run_active_until_it_is_finished() -> None:
    clock = FakeClock()
    runs = FakeJobRuns(build_run_facts(), clock=clock)

    repair_id = repair(runs)
    assert [run.run_id for run in runs.active_runs(WORKSPACE)] == [RUN_ID]

    clock.advance(minutes=5)
    ended = runs.finish(RUN_ID, succeeded=False)
    assert ended.end_time == NOW + timedelta(minutes=5)
    assert ended.latest_repair_id == repair_id
    assert ended.repairs[-1].result_state == "FAILED"
    assert runs.read_state(WORKSPACE, RUN_ID) == ended
    assert [run.run_id for run in runs.completed_runs(WORKSPACE, started_after=ended.start_time)] == [RUN_ID]
    assert runs.completed_runs(WORKSPACE, started_after=NOW) == []
    assert [one.job_parameters for one in runs.repairs] == [{"day": "1"}]


@pytest.mark.parametrize(
    ("state", "latest_repair_id"),
    [
        ({"is_active": True, "is_failed": False}, None),
        ({"is_failed": False, "result_state": "SUCCESS"}, None),
        ({"repairs": (build_repair(repair_id=1),)}, None),
        ({"repairs": (build_repair(repair_id=1),)}, 2),
        ({}, 1),
    ],
)
def test_repair_of_a_run_that_is_not_as_believed_is_refused(
    state: dict[str, object], latest_repair_id: int | None
) -> None:
    runs = FakeJobRuns(build_run_facts(run=build_run_state(**state)))

    with pytest.raises(RepairRefusedError):
        repair(runs, latest_repair_id=latest_repair_id)

    assert runs.repairs == []


def test_same_token_gives_the_same_run() -> None:
    runs = FakeJobRuns()

    first = runs.run_now(WORKSPACE, 77, token="a", job_parameters={})
    again = runs.run_now(WORKSPACE, 77, token="a", job_parameters={})
    other = runs.run_now(WORKSPACE, 77, token="b", job_parameters={})

    assert first == again != other
    assert [started.token for started in runs.started] == ["a", "b"]
    assert runs.read_state(WORKSPACE, first).is_active


def test_newer_runs_are_those_of_the_job_that_started_later_newest_first() -> None:
    minutes = {1: 1, 2: 3, 3: 2, 4: 0}
    runs = [
        build_run_state(run_id=number, start_time=NOW + timedelta(minutes=after)) for number, after in minutes.items()
    ]
    other_job = build_run_state(run_id=9, job_id=78, start_time=NOW + timedelta(minutes=5))
    fake = FakeJobRuns(*(build_run_facts(run=run) for run in (*runs, other_job)))

    assert [run.run_id for run in fake.newer_runs(WORKSPACE, 77, started_after=NOW)] == [2, 3, 1]


def test_job_update_replaces_fields_and_merges_clusters_by_key() -> None:
    runs = FakeJobRuns(build_run_facts())
    cluster = {"job_cluster_key": "more", "new_cluster": {}}

    runs.update_job(
        WORKSPACE,
        77,
        new_settings={"timeout_seconds": 60, "job_clusters": [cluster]},
        fields_to_remove=["max_concurrent_runs"],
    )

    settings = runs.job_settings(WORKSPACE, 77)
    assert settings["timeout_seconds"] == 60
    assert "max_concurrent_runs" not in settings
    assert [one["job_cluster_key"] for one in settings["job_clusters"]] == ["main", "more"]
    job = runs.read_facts(WORKSPACE, RUN_ID).job
    assert job is not None
    assert job.settings == settings


def test_a_job_is_the_same_whichever_of_its_runs_is_asked_about() -> None:
    first, second = build_run_state(), build_run_state(run_id=RUN_ID + 1)
    runs = FakeJobRuns(build_run_facts(run=first), build_run_facts(run=second, tags={"failure-agent": "retry"}))
    assert runs.job_tags(WORKSPACE, 77) == {"failure-agent": "retry"}

    runs.tag_job(77, {"failure-agent": "off"})
    runs.finish(RUN_ID, succeeded=False)

    seen = [runs.read_facts(WORKSPACE, run.run_id).tags for run in (first, second)]
    assert seen == [runs.job_tags(WORKSPACE, 77)] * 2 == [{"failure-agent": "off"}] * 2
    with pytest.raises(RunNotFoundError):
        runs.job_tags(WORKSPACE, 78)


def test_removed_run_is_not_found() -> None:
    runs = FakeJobRuns(build_run_facts())
    runs.remove(RUN_ID)

    with pytest.raises(RunNotFoundError):
        runs.read_facts(WORKSPACE, RUN_ID)


def test_repeated_ids_wait_once_and_messages_wait_until_due() -> None:
    queues = FakeActionQueues()
    now = OutgoingMessage("{}", "now")
    later = OutgoingMessage("{}", "later", due=NOW + timedelta(seconds=1))

    queues.send("retries", [now, later])
    queues.send("retries", [now])

    assert len(queues.sent) == 3
    assert queues.take("retries", NOW) == [now]
    assert queues.take("retries", NOW) == []
    assert queues.take("retries", NOW + timedelta(seconds=1)) == [later]


def test_broken_batch_accepts_its_first_messages() -> None:
    queues = FakeActionQueues()
    queues.accept_only = 1
    messages = [OutgoingMessage("{}", "1"), OutgoingMessage("{}", "2")]

    with pytest.raises(TransientError):
        queues.send("retries", messages)
    assert queues.waiting["retries"] == messages[:1]

    queues.send("retries", messages)
    assert queues.waiting["retries"] == messages
