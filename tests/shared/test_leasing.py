"""Leases: two retries that want one job, a job that cannot be put back, updates that land long after their time."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shared.admission import Admission
from shared.domain import (
    Category,
    Change,
    ChangeKind,
    DecisionKind,
    EscalationMail,
    IncidentState,
    Lease,
    LeaseNews,
    LeaseState,
    Pause,
    SettingChange,
)
from shared.errors import (
    AgentError,
    HeldError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    RunNotFoundError,
    ThrottledError,
    TransientError,
)
from shared.incidents import Incidents, Parts
from shared.learning import Learning
from shared.leasing import Leasing
from tests.builders import (
    JOB_ID,
    RUN_ID,
    WORKSPACE,
    build_attempt,
    build_diagnosis,
    build_incident,
    build_job_settings,
    build_run_facts,
    build_run_state,
)
from tests.fakes import FakeActionQueues, FakeClock, FakeDecisionHistory, FakeEmailSender, FakeJobRuns
from tests.world import OPERATOR, World, build_settings, build_world

MORE_WORKERS = SettingChange(
    Change(ChangeKind.MORE_WORKERS),
    "job_cluster:main",
    ("new_cluster", "num_workers"),
    old=2,
    new=4,
    why="more of them",
)
EVEN_MORE_WORKERS = SettingChange(
    Change(ChangeKind.MORE_WORKERS),
    "job_cluster:main",
    ("new_cluster", "num_workers"),
    old=4,
    new=8,
    why="even more of them",
)
FIRST_RUN, SECOND_RUN = 1, 2


@pytest.fixture
def runs() -> FakeJobRuns:
    return FakeJobRuns(*(build_run_facts(run=build_run_state(run_id=run_id)) for run_id in (FIRST_RUN, SECOND_RUN)))


@pytest.fixture
def history() -> FakeDecisionHistory:
    return FakeDecisionHistory()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def leasing(runs: FakeJobRuns, history: FakeDecisionHistory, clock: FakeClock) -> Leasing:
    settings = build_settings()
    guids = map(str, range(1000))

    def guid() -> str:
        return next(guids)

    parts = Parts(runs, FakeEmailSender(), history, FakeActionQueues(), settings, clock, guid)
    admission = Admission(history, settings, clock, guid)
    return Leasing(parts, Incidents(parts, admission, Learning(history, settings, clock, guid)))


def workers(runs: FakeJobRuns) -> int:
    return int(runs.job_settings(WORKSPACE, JOB_ID)["job_clusters"][0]["new_cluster"]["num_workers"])


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_retry_that_saw_the_job_free_waits_for_a_lease_that_was_faster(
    leasing: Leasing, runs: FakeJobRuns, history: FakeDecisionHistory, attempt: int
) -> None:
    first = build_incident(run_id=FIRST_RUN, attempts=(build_attempt(run_id=FIRST_RUN),))
    second = build_incident(run_id=SECOND_RUN, attempts=(build_attempt(run_id=SECOND_RUN, number=attempt),))
    leasing.wait_for_free_job(first)
    leasing.wait_for_free_job(second)
    leasing.apply(first, 1, (MORE_WORKERS,))
    with pytest.raises(HeldError):
        leasing.apply(second, attempt, (EVEN_MORE_WORKERS,))
    lease = history.read_lease(WORKSPACE, JOB_ID)
    assert lease is not None
    assert (lease.run_id, lease.state, lease.changes) == (FIRST_RUN, LeaseState.APPLIED, (MORE_WORKERS,))
    assert workers(runs) == 4
    leasing.restore(lease)
    assert workers(runs) == 2


# ── a whole story: run 1001 is retried with three workers instead of two ────────────────────────────────────────────

OTHER_RUN = RUN_ID + 1
NO_RIGHT = NotAuthorisedError("update of job 77: the identity may not change it")


def leased_world(**options: Any) -> World:
    """A world whose run was just retried under a lease, unless a fault is planned for `update_job`."""
    clock = FakeClock()
    diagnosis = build_diagnosis(
        category=Category.WORKER_MEMORY,
        recommended=DecisionKind.RETRY_WITH_PARAMS,
        changes=(Change(ChangeKind.MORE_WORKERS),),
        source="model",
    )
    runs = FakeJobRuns(clock=clock)
    runs.faults.before["update_job"] = options.pop("faults", [])
    world = build_world(runs=runs, clock=clock, diagnosis=diagnosis, **options)
    fail(world, RUN_ID)
    return world


def fail(world: World, run_id: int) -> None:
    """Let a run of the job fail now, and have it retried."""
    world.runs.put_running(build_run_state(run_id=run_id, start_time=world.clock()))
    world.agent.find_failures()
    world.clock.advance(minutes=1)
    world.runs.finish(run_id, succeeded=False)
    world.agent.find_failures()
    world.deliver_all()


def set_workers(world: World, number: int) -> None:
    """Somebody edits the job."""
    settings = world.runs.job_settings(WORKSPACE, JOB_ID)
    settings["job_clusters"][0]["new_cluster"]["num_workers"] = number
    put_settings(world.runs, settings)


def put_settings(runs: FakeJobRuns, settings: dict[str, Any]) -> None:
    """Past all faults: it is not the agent that does it."""
    planned, runs.faults.before["update_job"] = runs.faults.before["update_job"], []
    runs.update_job(WORKSPACE, JOB_ID, new_settings=settings, fields_to_remove=())
    runs.faults.before["update_job"] = planned


def end_retry(world: World, run_id: int = RUN_ID, *, succeeded: bool = True) -> None:
    world.clock.advance(minutes=10)
    world.runs.finish(run_id, succeeded=succeeded)
    world.agent.follow_up()


def lease_of(world: World) -> Lease:
    lease = world.history.read_lease(WORKSPACE, JOB_ID)
    assert lease is not None
    return lease


def mails_of(world: World) -> list[EscalationMail]:
    return [mail for mail in world.mails.sent if isinstance(mail, EscalationMail)]


def events_of(world: World) -> list[str]:
    return [event.kind for event in world.history.events(WORKSPACE, RUN_ID)]


# A job that Databricks refuses to put back


def refuse_from_now_on(world: World, error: AgentError = NO_RIGHT) -> None:
    world.runs.faults.before["update_job"] = [error] * 1000


def test_people_are_told_once_what_they_must_put_back() -> None:
    world = leased_world()
    refuse_from_now_on(world)

    end_retry(world)
    world.run_for(hours=5)

    (mail,) = mails_of(world)
    assert mail.recipients == (OPERATOR,)
    assert mail.job_id == JOB_ID
    assert "job cluster main: new_cluster.num_workers (2 before, 3 for the retry)" in mail.decision.reason
    assert mail.decision.excerpt == str(NO_RIGHT)
    assert mail.decision.rules == ("lease.refused",)
    assert lease_of(world).state is LeaseState.APPLIED
    assert world.incident().state is IncidentState.RECOVERED


def test_a_refused_restore_is_tried_again_once_an_hour() -> None:
    world = leased_world()
    refuse_from_now_on(world)
    end_retry(world)
    world.runs.faults.calls.clear()

    world.run_for(hours=5)

    assert world.runs.faults.calls.count("update_job") == 5


@pytest.mark.parametrize("by_hand", [True, False], ids=["a person put it back", "the right is back"])
def test_a_refused_restore_ends_once_the_old_value_is_there(by_hand: bool) -> None:
    world = leased_world()
    refuse_from_now_on(world)
    end_retry(world)
    world.run_for(minutes=30)

    if by_hand:
        set_workers(world, 2)
    else:
        world.runs.faults.before["update_job"] = []
    world.run_for(hours=2)

    assert workers(world.runs) == 2
    assert lease_of(world).state is LeaseState.CLOSED
    assert [mail.decision.rules for mail in mails_of(world)] == [("lease.refused",)]


def test_a_refusal_that_is_over_before_the_mail_could_go_is_not_mailed() -> None:
    world = leased_world()
    refuse_from_now_on(world)
    world.mails.faults.before["send"] = [TransientError("503")] * 10_000
    end_retry(world)
    world.run_for(minutes=30)

    world.runs.faults.before["update_job"] = []
    world.run_for(hours=2)
    world.mails.faults.before["send"] = []
    world.run_for(hours=1)

    assert lease_of(world).state is LeaseState.CLOSED
    assert mails_of(world) == []


def test_a_job_that_is_gone_needs_nobody() -> None:
    world = leased_world()
    refuse_from_now_on(world, RunNotFoundError("job 77 does not exist"))

    end_retry(world)
    world.run_for(minutes=10)

    assert lease_of(world).state is LeaseState.CLOSED
    assert mails_of(world) == []


def test_no_other_retry_changes_a_job_that_could_not_be_put_back() -> None:
    world = leased_world()
    refuse_from_now_on(world)
    end_retry(world)

    fail(world, OTHER_RUN)

    incident = world.incident(OTHER_RUN)
    assert incident.state is IncidentState.ESCALATED
    assert incident.decision is not None
    assert "policy.lease_stuck" in incident.decision.rules
    assert lease_of(world).run_id == RUN_ID


# What somebody else changed


def test_people_are_told_once_what_was_left_as_somebody_set_it() -> None:
    world = leased_world()
    set_workers(world, 17)

    end_retry(world)
    world.run_for(hours=5)

    (mail,) = mails_of(world)
    assert mail.decision.rules == ("lease.left",)
    assert "job cluster main: new_cluster.num_workers (2 before, 3 for the retry)" in mail.decision.reason
    assert workers(world.runs) == 17
    assert lease_of(world).state is LeaseState.CLOSED


def test_a_job_that_somebody_changed_before_the_retry_is_neither_leased_nor_reported(
    leasing: Leasing, runs: FakeJobRuns, history: FakeDecisionHistory
) -> None:
    settings = build_job_settings()
    settings["job_clusters"][0]["new_cluster"]["num_workers"] = 17
    put_settings(runs, settings)

    with pytest.raises(PermanentError, match="changed by somebody else"):
        leasing.apply(build_incident(run_id=FIRST_RUN), 1, (MORE_WORKERS,))

    assert workers(runs) == 17
    assert history.followed_leases(WORKSPACE) == []


@pytest.mark.parametrize(
    ("fault", "wait"),
    [
        (ThrottledError("429", retry_after_seconds=1200), timedelta(minutes=20)),
        (TransientError("503"), timedelta(minutes=1)),
    ],
)
def test_a_report_waits_for_the_mail_service_and_the_lease_with_it(fault: AgentError, wait: timedelta) -> None:
    world = leased_world()
    set_workers(world, 17)
    world.mails.faults.before["send"] = [fault]
    end_retry(world)
    world.run_for(minutes=1)
    failed_at = world.clock()
    assert world.mails.faults.calls == ["send"]

    while not world.mails.sent:
        assert lease_of(world).state is LeaseState.RESTORED
        world.run_for(minutes=1)

    assert world.clock() - failed_at == wait
    world.run_for(minutes=2)
    assert lease_of(world).state is LeaseState.CLOSED
    assert lease_of(world).reported == (LeaseNews.LEFT,)


@pytest.mark.parametrize("landed", [True, False])
def test_an_unanswered_report_is_looked_up_before_it_is_sent_again(landed: bool) -> None:
    world = leased_world()
    set_workers(world, 17)
    (world.mails.faults.after if landed else world.mails.faults.before)["send"] = [OutcomeUnknownError("no answer")]

    end_retry(world)
    world.run_for(minutes=10)

    assert len(mails_of(world)) == 1
    assert lease_of(world).state is LeaseState.CLOSED


def test_a_report_that_can_never_be_sent_does_not_keep_the_job_leased() -> None:
    world = leased_world()
    set_workers(world, 17)
    world.mails.faults.before["send"] = [PermanentError("nobody to mail")]

    end_retry(world)
    world.run_for(minutes=10)

    assert world.mails.sent == []
    assert lease_of(world).state is LeaseState.CLOSED
    assert "lease_report_failed" in events_of(world)
    assert "lease_reported" not in events_of(world)


def test_a_report_of_which_nobody_may_find_out_whether_it_was_sent_is_not_sent_twice() -> None:
    world = leased_world()
    set_workers(world, 17)
    world.mails.faults.after["send"] = [OutcomeUnknownError("no answer")]
    world.mails.faults.before["was_accepted"] = [PermanentError("403")] * 100

    end_retry(world)
    world.run_for(minutes=10)

    assert len(mails_of(world)) == 1
    assert lease_of(world).state is LeaseState.CLOSED
    assert "lease_report_failed" in events_of(world)


def test_a_report_whose_claim_ran_out_is_not_sent_by_the_slow_worker() -> None:
    world = leased_world()
    set_workers(world, 17)
    save = world.history.save_lease

    def slow(lease: Lease) -> Lease:
        saved = save(lease)
        if lease.report and lease.report.claimed:
            vars(world.history)["save_lease"] = save
            world.clock.advance(seconds=world.settings.claim_settle_seconds)
            world.agent.follow_up()
        return saved

    vars(world.history)["save_lease"] = slow
    end_retry(world)
    world.run_for(minutes=10)

    assert len(mails_of(world)) == 1
    assert lease_of(world).state is LeaseState.CLOSED


def test_a_lease_whose_run_may_not_be_read_any_more_is_put_back() -> None:
    world = leased_world()
    world.runs.faults.before["read_state"] = [NO_RIGHT] * 100

    world.run_for(minutes=10)

    assert world.runs.job_settings(WORKSPACE, JOB_ID) == build_job_settings()
    assert lease_of(world).state is LeaseState.CLOSED
    assert len(world.mails.about_one_run) == 1


def test_a_pause_holds_the_report_and_not_the_job() -> None:
    world = leased_world()
    refuse_from_now_on(world)
    world.history.save_pause(Pause(paused=True, by="ops"))
    end_retry(world)
    world.run_for(minutes=30)
    assert world.mails.sent == []

    world.history.save_pause(Pause(paused=False))
    world.run_for(minutes=2)

    assert len(mails_of(world)) == 1


# An update without an answer


def leak(world: World) -> Callable[[], None]:
    """What an update that asked for three workers does when it lands."""
    settings = world.runs.job_settings(WORKSPACE, JOB_ID)
    settings["job_clusters"][0]["new_cluster"]["num_workers"] = 3
    return lambda: put_settings(world.runs, settings)


def world_in_doubt() -> World:
    """The first update had no answer, the second had one; the retry recovered the run and the job was put back."""
    world = leased_world(faults=[OutcomeUnknownError("no answer")])
    world.run_for(minutes=3)
    assert len(world.runs.repairs) == 1
    end_retry(world)
    world.run_for(minutes=3)
    assert lease_of(world).state is LeaseState.CLOSED
    assert world.runs.job_settings(WORKSPACE, JOB_ID) == build_job_settings()
    return world


@pytest.mark.parametrize("hours", [0.1, 1, 3.9])
def test_an_update_that_lands_hours_later_is_undone(hours: float) -> None:
    world = world_in_doubt()
    lands = leak(world)
    world.run_for(hours=hours)
    lands()

    world.run_for(hours=8)

    assert world.runs.job_settings(WORKSPACE, JOB_ID) == build_job_settings()
    assert "lease_put_back_late" in events_of(world)


def test_an_update_that_may_land_is_looked_for_ever_more_rarely_and_not_for_ever() -> None:
    world = world_in_doubt()
    world.runs.faults.calls.clear()

    world.run_for(hours=24, step_seconds=300)

    assert 5 <= world.runs.faults.calls.count("job_settings") <= 10
    assert world.history.followed_leases(WORKSPACE) == []


def test_a_job_whose_updates_were_all_answered_is_looked_at_once_more() -> None:
    world = leased_world()
    end_retry(world)
    world.runs.faults.calls.clear()

    world.run_for(hours=24, step_seconds=300)

    assert world.runs.faults.calls.count("job_settings") == 1
    assert world.history.followed_leases(WORKSPACE) == []


def test_an_unanswered_update_that_was_seen_to_land_leaves_no_doubt(
    leasing: Leasing, runs: FakeJobRuns, history: FakeDecisionHistory
) -> None:
    incident = build_incident(run_id=FIRST_RUN)
    runs.faults.after["update_job"] = [OutcomeUnknownError("no answer")]
    with pytest.raises(OutcomeUnknownError):
        leasing.apply(incident, 1, (MORE_WORKERS,))

    leasing.apply(incident, 1, (MORE_WORKERS,))

    lease = history.read_lease(WORKSPACE, JOB_ID)
    assert lease is not None
    assert (lease.state, lease.unanswered) == (LeaseState.APPLIED, ())
    assert len(runs.job_updates) == 1


def test_an_update_lands_once_so_the_same_value_set_later_is_somebodys_own() -> None:
    world = world_in_doubt()
    leak(world)()
    world.run_for(hours=1)
    assert workers(world.runs) == 2

    set_workers(world, 3)
    world.run_for(hours=8)

    assert workers(world.runs) == 3


def test_a_next_lease_is_not_held_up_by_the_doubt_and_takes_no_leaked_value_for_the_jobs_own() -> None:
    world = world_in_doubt()
    leak(world)()

    fail(world, OTHER_RUN)

    lease = lease_of(world)
    assert (lease.run_id, lease.state) == (OTHER_RUN, LeaseState.APPLIED)
    assert [(change.old, change.new) for change in lease.changes] == [(2, 3)]
    end_retry(world, OTHER_RUN)
    world.run_for(minutes=5)
    assert world.runs.job_settings(WORKSPACE, JOB_ID) == build_job_settings()


@pytest.mark.parametrize("when", ["before the next lease", "under it", "after it"])
def test_an_update_of_an_earlier_lease_that_lands_around_the_next_one_is_undone(
    leasing: Leasing, runs: FakeJobRuns, history: FakeDecisionHistory, clock: FakeClock, when: str
) -> None:
    """The first asked for four workers without an answer, the next one for eight."""
    first = build_incident(run_id=FIRST_RUN, attempts=(build_attempt(run_id=FIRST_RUN),))
    second = build_incident(run_id=SECOND_RUN, attempts=(build_attempt(run_id=SECOND_RUN),))
    eight = SettingChange(MORE_WORKERS.change, MORE_WORKERS.target, MORE_WORKERS.path, old=2, new=8, why="more")

    def land() -> None:
        settings = build_job_settings()
        settings["job_clusters"][0]["new_cluster"]["num_workers"] = 4
        put_settings(runs, settings)

    def follow_for(hours: float) -> None:
        for _ in range(int(hours * 60)):
            clock.advance(minutes=1)
            for lease in history.followed_leases(WORKSPACE):
                leasing.follow(lease, None)

    runs.faults.before["update_job"] = [OutcomeUnknownError("no answer")]
    with pytest.raises(OutcomeUnknownError):
        leasing.apply(first, 1, (MORE_WORKERS,))
    follow_for(0.1)
    if when == "before the next lease":
        land()
    leasing.apply(second, 1, (eight,))
    assert workers(runs) == 8
    if when == "under it":
        land()
    follow_for(0.1)
    assert workers(runs) == 2
    if when == "after it":
        land()
    follow_for(10)

    assert runs.job_settings(WORKSPACE, JOB_ID) == build_job_settings()
    assert history.followed_leases(WORKSPACE) == []


@pytest.mark.parametrize("error", [PermanentError("the policy forbids it"), NO_RIGHT])
def test_a_change_that_was_refused_leaves_no_lease(error: AgentError) -> None:
    world = leased_world(faults=[error])

    assert lease_of(world).state is LeaseState.CLOSED
    assert world.history.followed_leases(WORKSPACE) == []
    assert world.incident().state is IncidentState.ESCALATED


def test_a_refused_change_under_the_doubt_of_an_earlier_one_does_not_stop_the_watch() -> None:
    world = world_in_doubt()
    world.runs.faults.before["update_job"] = [NO_RIGHT]

    fail(world, OTHER_RUN)
    assert lease_of(world).state is LeaseState.CLOSED
    leak(world)()
    world.run_for(hours=1)

    assert world.runs.job_settings(WORKSPACE, JOB_ID) == build_job_settings()
    world.run_for(hours=24)
    assert world.history.followed_leases(WORKSPACE) == []


def test_a_job_that_cannot_be_looked_at_once_more_is_no_news_and_keeps_what_people_chose() -> None:
    world = world_in_doubt()
    mails = len(mails_of(world))
    set_workers(world, 5)
    world.runs.faults.before["job_settings"] = [NO_RIGHT]

    world.run_for(hours=24, step_seconds=300)

    assert len(mails_of(world)) == mails
    assert workers(world.runs) == 5
    assert world.history.followed_leases(WORKSPACE) == []


def test_a_late_update_that_may_not_be_undone_is_reported_with_what_landed_and_nothing_else() -> None:
    world = world_in_doubt()
    leak(world)()
    world.runs.faults.before["update_job"] = [NO_RIGHT]

    world.run_for(hours=8)

    assert world.runs.job_settings(WORKSPACE, JOB_ID) == build_job_settings()
    assert "lease_restore_refused" in events_of(world)
