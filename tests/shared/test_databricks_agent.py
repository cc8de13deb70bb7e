"""The use cases on fakes: what is stored, what was really done, who was told. Calls are not looked at, effects are."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from shared.domain import (
    AttemptKind,
    AttemptOutcome,
    Category,
    Change,
    ChangeKind,
    ComputeKind,
    DecisionKind,
    Diagnosis,
    DigestMail,
    EscalationMail,
    FailureId,
    IncidentState,
    Mode,
    Pause,
    Repair,
    RunFacts,
)
from shared.errors import (
    ConfigurationError,
    ConflictError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PausedError,
    PermanentError,
    RepairImpossibleError,
    RepairRefusedError,
    RunNotFoundError,
    StoreNotAuthorisedError,
    StoreRefusedError,
    ThrottledError,
    TransientError,
)
from shared.messages import EMAILS, FAILED_RUNS, RETRIES, EmailMessage, FailedRunMessage, RetryMessage
from shared.ports import OutgoingMessage
from shared.triage.policy import IDEMPOTENT_TAG, MAX_ATTEMPTS_TAG, MODE_TAG, OWNER_TAG
from tests.builders import (
    JOB_ID,
    NOW,
    RUN_ID,
    WORKSPACE,
    build_diagnosis,
    build_incident,
    build_job_facts,
    build_job_settings,
    build_newer_run,
    build_repair,
    build_run_facts,
    build_run_state,
    build_symptoms,
    build_task_failure,
)
from tests.fakes import FakeClock, FakeJobRuns
from tests.world import OPERATOR, ProcessDiedError, World, build_world

ESCALATION = build_diagnosis(
    category=Category.CODE, recommended=DecisionKind.ESCALATE_EMAIL, reason="A name is not defined.", source="model"
)
SKIP = build_diagnosis(category=Category.CANCELLED, recommended=DecisionKind.SKIP, source="model")
SMALLER_BATCH = build_diagnosis(
    category=Category.DRIVER_MEMORY,
    recommended=DecisionKind.RETRY_WITH_PARAMS,
    changes=(Change(ChangeKind.PARAM, "batch_size"),),
    source="model",
)
MORE_WORKERS = build_diagnosis(
    category=Category.WORKER_MEMORY,
    recommended=DecisionKind.RETRY_WITH_PARAMS,
    changes=(Change(ChangeKind.MORE_WORKERS),),
    source="model",
)
ORIGINAL_FAILURE = FailureId(f"{WORKSPACE}:{RUN_ID}:original")


def world_with(facts: RunFacts | None = None, **options: Any) -> World:
    """A world with one failed run (the default one)."""
    clock = FakeClock()
    return build_world(runs=FakeJobRuns(facts or build_run_facts(), clock=clock), clock=clock, **options)


def failed(run_id: int = RUN_ID, repair: int | None = None) -> FailedRunMessage:
    failure_id = FailureId(f"{WORKSPACE}:{run_id}:{repair or 'original'}")
    return FailedRunMessage(workspace=WORKSPACE, run_id=run_id, failure_id=failure_id, source="timer")


def retry(failure_id: FailureId = ORIGINAL_FAILURE, attempt: int = 1) -> RetryMessage:
    return RetryMessage(workspace=WORKSPACE, run_id=RUN_ID, failure_id=failure_id, attempt=attempt)


def email(kind: Any = "escalation", failure_id: FailureId = ORIGINAL_FAILURE) -> EmailMessage:
    return EmailMessage(workspace=WORKSPACE, run_id=RUN_ID, failure_id=failure_id, kind=kind)


def sent_to(world: World, queue: str) -> list[OutgoingMessage]:
    return [message for name, message in world.queues.sent if name == queue]


def decide_and_deliver(world: World, message: FailedRunMessage | None = None) -> None:
    world.agent.decide_action(message or failed())
    world.deliver_all()


def finish_and_follow(world: World, *, succeeded: bool, run_id: int = RUN_ID) -> None:
    world.clock.advance(minutes=10)
    world.runs.finish(run_id, succeeded=succeeded)
    world.agent.follow_up()
    world.deliver_all()


def events_of(world: World) -> list[str]:
    return [event.kind for event in world.history.events(WORKSPACE, RUN_ID)]


# ── the main road ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_repair_recovers_the_run() -> None:
    world = world_with()

    decide_and_deliver(world)
    assert world.incident().state is IncidentState.RETRYING
    finish_and_follow(world, succeeded=True)

    incident = world.incident()
    assert incident.state is IncidentState.RECOVERED
    assert [(a.number, a.kind, a.effect_id, a.outcome) for a in incident.attempts] == [
        (1, AttemptKind.REPAIR, 9001, AttemptOutcome.RECOVERED)
    ]
    assert [(r.run_id, r.latest_repair_id) for r in world.runs.repairs] == [(RUN_ID, None)]
    assert world.mails.sent == []
    assert events_of(world) == ["decided", "retried", "recovered"]


def test_a_run_that_fails_again_is_retried_to_the_limit_and_then_mailed() -> None:
    world = world_with(max_retry_attempts=2)

    decide_and_deliver(world)
    finish_and_follow(world, succeeded=False)
    assert world.incident().failure_id == f"{WORKSPACE}:{RUN_ID}:9001"
    assert [a.outcome for a in world.incident().attempts] == [AttemptOutcome.FAILED_AGAIN, AttemptOutcome.PENDING]
    finish_and_follow(world, succeeded=False)

    incident = world.incident()
    assert incident.state is IncidentState.FAILED_AGAIN
    assert [r.latest_repair_id for r in world.runs.repairs] == [None, 9001]
    assert [a.outcome for a in incident.attempts] == [AttemptOutcome.FAILED_AGAIN] * 2
    assert incident.decision is not None
    assert "policy.retry_limit" in incident.decision.rules
    assert incident.decision.recommended is DecisionKind.RETRY
    (mail,) = world.mails.about_one_run
    assert (mail.kind, mail.recipients, len(mail.attempts)) == ("escalation", (OPERATOR,), 2)


def test_a_retry_with_parameters_sends_the_changed_value_beside_the_runs_own() -> None:
    job = build_job_facts(declared_parameters={"batch_size": "1000", "day": "1"})
    run = build_run_state(job_parameters={"batch_size": "200", "day": "7"}, legacy_parameters={"notebook_params": {}})
    world = world_with(build_run_facts(job=job, run=run), diagnosis=SMALLER_BATCH)

    decide_and_deliver(world)

    (repair,) = world.runs.repairs
    assert repair.job_parameters == {"batch_size": "100", "day": "7"}
    assert repair.legacy_parameters == {"notebook_params": {}}
    (attempt,) = world.incident().attempts
    assert (attempt.with_changes, attempt.changes) == (True, ("param:batch_size",))


def test_what_people_must_mend_is_mailed_once() -> None:
    world = world_with(diagnosis=ESCALATION)

    decide_and_deliver(world)

    assert world.incident().state is IncidentState.ESCALATED
    assert world.runs.repairs == []
    (mail,) = world.mails.about_one_run
    assert (mail.key, mail.run_id, mail.recipients) == (f"{ORIGINAL_FAILURE}:escalation", RUN_ID, (OPERATOR,))


def test_a_skip_is_recorded_and_nothing_else() -> None:
    world = world_with(build_run_facts(tags={MODE_TAG: "off"}))

    decide_and_deliver(world)

    incident = world.incident()
    assert incident.state is IncidentState.SKIPPED
    assert "The mode is off for this job" in incident.ended_why
    assert (world.runs.repairs, world.mails.sent, world.queues.sent) == ([], [], [])
    assert events_of(world) == ["decided"]


def test_the_backoff_is_a_message_that_comes_later() -> None:
    world = world_with(jitter=lambda: 0.5, backoff_base_seconds=60)

    decide_and_deliver(world)
    assert world.runs.repairs == []
    world.clock.advance(seconds=29)
    world.deliver_all()
    assert world.runs.repairs == []
    world.clock.advance(seconds=1)
    world.deliver_all()

    assert len(world.runs.repairs) == 1


# ── find ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def world_watching_a_run(**options: Any) -> World:
    """The default run is active, and the first tick has been."""
    world = build_world(**options)
    world.runs.put_running(build_run_state())
    world.agent.find_failures()
    world.clock.advance(minutes=5)
    return world


def test_what_failed_before_the_first_tick_is_history() -> None:
    world = world_with()

    assert world.agent.find_failures() == 0
    world.clock.advance(minutes=5)
    world.agent.find_failures()

    assert world.history.open_incidents(WORKSPACE) == []


def test_a_failure_is_sent_once_and_kept_before_it_is_sent() -> None:
    world = world_watching_a_run()
    world.runs.finish(RUN_ID, succeeded=False)

    assert world.agent.find_failures() == 1
    assert world.agent.find_failures() == 0

    assert world.incident().state is IncidentState.DETECTED
    assert [m.message_id for m in sent_to(world, FAILED_RUNS)] == [failed().message_id]


def test_a_tick_that_cannot_send_finds_the_same_failures_at_the_next() -> None:
    world = world_watching_a_run()
    for run_id in (2, 3):
        world.runs.put_state(build_run_state(run_id=run_id, start_time=world.clock(), end_time=world.clock()))
    world.queues.accept_only = 1

    with pytest.raises(TransientError):
        world.agent.find_failures()
    assert world.agent.find_failures() == 2

    assert sorted(m.message_id for m in world.queues.waiting[FAILED_RUNS]) == [
        failed(2).message_id,
        failed(3).message_id,
    ]


def test_a_workspace_that_cannot_be_read_does_not_hold_up_the_others() -> None:
    clock = FakeClock()
    runs = FakeJobRuns(workspaces=("ws0", WORKSPACE), clock=clock)
    world = build_world(runs=runs, clock=clock)
    world.agent.find_failures()
    clock.advance(minutes=5)
    runs.put_state(build_run_state(start_time=clock(), end_time=clock()))
    runs.faults.before["active_runs"] = [TransientError("ws0 is down")]

    with pytest.raises(TransientError, match="ws0"):
        world.agent.find_failures()

    assert world.incident().state is IncidentState.DETECTED


@pytest.mark.parametrize("error", [NotAuthorisedError("no right on this job"), PermanentError("not understood")])
def test_one_run_that_can_never_be_read_does_not_hold_up_the_tick_and_people_are_told(error: PermanentError) -> None:
    world = world_watching_a_run()
    for run_id in (2, 3):
        world.runs.put_state(build_run_state(run_id=run_id, start_time=world.clock(), end_time=world.clock()))
    world.runs.faults.before["read_state"] = [error]
    world.runs.faults.before["read_facts"] = [None, error]  # the other run comes first

    assert world.agent.find_failures() == 2

    scan = world.history.read_scan(WORKSPACE)
    assert scan is not None
    assert scan.watermark == world.clock()
    world.deliver_all()
    (mail,) = world.mails.about_one_run
    assert (mail.run_id, mail.job_id) == (2, JOB_ID)
    assert str(error) in mail.decision.reason
    assert ("CAN_VIEW" in mail.decision.reason) == isinstance(error, NotAuthorisedError)


def test_a_run_that_leaves_the_list_of_active_ones_and_may_not_be_read_is_given_to_people() -> None:
    """Whoever takes the agent's right to a job away takes its runs out of both lists."""
    world = world_watching_a_run()
    vars(world.runs)["active_runs"] = lambda _: []
    world.runs.faults.before["read_state"] = [NotAuthorisedError("403")]
    world.runs.faults.before["read_facts"] = [NotAuthorisedError("403")]

    assert world.agent.find_failures() == 1
    world.deliver_all()

    assert world.incident().state is IncidentState.ESCALATED
    assert len(world.mails.sent) == 1


def test_a_run_that_can_be_read_after_all_is_decided_about_under_its_own_name() -> None:
    world = world_watching_a_run()
    world.runs.finish(RUN_ID, succeeded=False)
    world.runs.faults.before["read_state"] = [NotAuthorisedError("403")]

    world.agent.find_failures()
    world.deliver_all()

    incident = world.incident()
    assert (incident.state, incident.failure_id, incident.job_id) == (
        IncidentState.RETRYING,
        ORIGINAL_FAILURE,
        JOB_ID,
    )
    assert len(world.model.asked) == 1
    assert world.mails.sent == []


def test_a_run_deleted_between_list_and_read_is_noted_as_gone() -> None:
    world = world_watching_a_run()
    world.runs.remove(RUN_ID)

    world.agent.find_failures()
    world.deliver_all()

    assert world.incident().state is IncidentState.SKIPPED
    assert "gone" in world.incident().ended_why


def test_a_run_repaired_between_list_and_read_is_watched() -> None:
    world = world_watching_a_run()
    world.runs.finish(RUN_ID, succeeded=False)
    listed = world.runs.completed_runs(WORKSPACE, started_after=NOW - timedelta(days=1))
    assert len(listed) == 1
    repair_by_hand(world)
    world.runs.faults.calls.clear()

    assert world.agent.find_failures() == 0
    world.clock.advance(minutes=5)
    world.runs.finish(RUN_ID, succeeded=False)

    assert world.agent.find_failures() == 1


def test_the_sweep_finds_a_repair_that_failed_between_two_ticks() -> None:
    world = world_watching_a_run(diagnosis=ESCALATION)
    world.runs.finish(RUN_ID, succeeded=False)
    world.agent.find_failures()
    world.deliver_all()
    assert world.incident().state is IncidentState.ESCALATED
    for _ in range(3):
        world.clock.advance(minutes=5)
        world.agent.find_failures()
    repair_by_hand(world)
    world.runs.finish(RUN_ID, succeeded=False)

    found = []
    for _ in range(15):
        world.clock.advance(minutes=5)
        found.append(world.agent.find_failures())

    assert sum(found) == 1
    world.deliver_all()
    assert world.incident().failure_id == f"{WORKSPACE}:{RUN_ID}:7001"


def repair_by_hand(world: World, *, repair_id: int = 7001, run_id: int = RUN_ID) -> None:
    run = world.runs.read_state(WORKSPACE, run_id)
    world.runs.put_running(replace(run, repairs=(*run.repairs, Repair(repair_id, None, world.clock()))))


# ── decide ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failure_delivered_again_is_not_decided_again() -> None:
    world = world_with()

    world.agent.decide_action(failed())
    stored = world.incident()
    world.model.answer = ESCALATION
    world.agent.decide_action(failed())

    assert world.incident() == stored
    assert len(world.model.asked) == 1
    assert [m.message_id for m in sent_to(world, RETRIES)] == [retry().message_id] * 2


def test_a_decision_that_was_stored_but_not_sent_is_sent_on_redelivery() -> None:
    world = world_with()
    world.queues.faults.before["send"] = [ProcessDiedError()]

    with pytest.raises(ProcessDiedError):
        world.agent.decide_action(failed())
    world.agent.decide_action(failed())

    assert [m.message_id for m in world.queues.waiting[RETRIES]] == [retry().message_id]
    assert len(world.model.asked) == 1


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.RETRY])
def test_what_the_mode_does_not_carry_out_is_mailed_as_a_suggestion(mode: Mode) -> None:
    job = build_job_facts(declared_parameters={"batch_size": "1000"})
    world = world_with(build_run_facts(job=job), diagnosis=SMALLER_BATCH, default_mode=mode)

    decide_and_deliver(world)

    incident = world.incident()
    assert incident.decision is not None
    assert incident.decision.decision is DecisionKind.RETRY_WITH_PARAMS, "the mode does not change the decision"
    assert not incident.decision.carried_out
    assert str(mode) in incident.decision.not_carried_out_why
    assert incident.state is IncidentState.ESCALATED
    assert [mail.kind for mail in world.mails.about_one_run] == ["suggestion"]
    assert world.runs.repairs == []


@pytest.mark.parametrize(
    ("tag", "default", "repairs"),
    [("full", Mode.OBSERVE, 1), ("observe", Mode.FULL, 0), ("off", Mode.FULL, 0)],
)
def test_the_tag_of_the_job_overrides_the_default_mode(tag: str, default: Mode, repairs: int) -> None:
    world = world_with(build_run_facts(tags={MODE_TAG: tag}), default_mode=default)

    decide_and_deliver(world)

    assert len(world.runs.repairs) == repairs


@pytest.mark.parametrize("diagnosis", [None, ESCALATION, SKIP], ids=["retry", "mail", "skip"])
def test_a_dry_run_decides_and_changes_nothing(diagnosis: Any) -> None:
    world = world_with(diagnosis=diagnosis, dry_run=True)

    decide_and_deliver(world)

    incident = world.incident()
    assert incident.decision is not None
    assert incident.state is IncidentState.SKIPPED
    assert (world.runs.repairs, world.runs.started, world.mails.sent, world.queues.sent) == ([], [], [], [])


def test_the_owner_named_by_the_jobs_tag_is_told() -> None:
    world = world_with(
        build_run_facts(tags={OWNER_TAG: "orders"}), diagnosis=ESCALATION, owners={"orders": "orders@example.com"}
    )

    decide_and_deliver(world)

    assert world.mails.about_one_run[0].recipients == ("orders@example.com",)


def test_an_address_of_a_foreign_domain_on_a_job_is_not_told() -> None:
    world = world_with(
        build_run_facts(tags={OWNER_TAG: "eve@evil.test"}),
        diagnosis=ESCALATION,
        allowed_recipient_domains=("example.com",),
    )

    decide_and_deliver(world)

    assert world.mails.about_one_run[0].recipients == (OPERATOR,)


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        (build_run_facts(tags={IDEMPOTENT_TAG: "false"}), "policy.not_idempotent"),
        (build_run_facts(tags={MAX_ATTEMPTS_TAG: "0"}), "policy.retry_limit"),
    ],
)
def test_what_may_not_be_repaired_is_mailed_with_the_rule(facts: RunFacts, rule: str) -> None:
    world = world_with(facts)

    decide_and_deliver(world)

    assert world.runs.repairs == []
    (mail,) = world.mails.about_one_run
    assert rule in mail.decision.rules


HOURLY = {**build_job_settings(), "schedule": {"quartz_cron_expression": "0 0 * * * ?", "timezone_id": "UTC"}}
RUNNING = {"is_active": True, "is_failed": False, "result_state": None, "end_time": None}


@pytest.mark.parametrize(
    ("run", "other", "rule"),
    [
        (RUNNING | {"life_cycle_state": "RUNNING"}, {}, "running_again"),
        (RUNNING | {"life_cycle_state": "WAITING_FOR_RETRY"}, {}, "running_again"),
        ({"is_failed": False, "result_state": "SUCCESS"}, {}, "not_failed"),
        ({}, {"newer_runs": (build_newer_run(),)}, "newer_run_succeeded"),
        ({}, {"newer_runs": (build_newer_run(is_active=True, result_state=None),)}, "newer_run_active"),
        *(({}, {"parent": parent}, "healed_by_parent") for parent in ("run_job", "adf", "airflow", "submit")),
        ({}, {"job": build_job_facts(is_continuous=True)}, "continuous_job"),
        ({}, {"job": build_job_facts(is_paused=True)}, "paused_job"),
        ({"start_time": NOW - timedelta(hours=2)}, {"job": build_job_facts(settings=HOURLY)}, "next_run_comes_first"),
        ({}, {"job": build_job_facts(tags={MODE_TAG: "off"})}, "switched_off"),
    ],
)
@pytest.mark.parametrize("diagnosis", [build_diagnosis(source="model"), MORE_WORKERS], ids=["plain", "changed"])
def test_a_run_that_needs_no_retry_gets_none_and_nobody_is_told(
    run: dict[str, Any], other: dict[str, Any], rule: str, diagnosis: Diagnosis
) -> None:
    world = world_with(build_run_facts(run=build_run_state(**run), **other), diagnosis=diagnosis)

    decide_and_deliver(world)
    world.run_for(hours=1)

    incident = world.incident()
    assert incident.state is IncidentState.SKIPPED
    assert incident.decision is not None
    assert f"policy.{rule}" in incident.decision.rules
    assert incident.ended_why == incident.decision.reason
    assert (world.runs.repairs, world.runs.started, world.runs.job_updates) == ([], [], [])
    assert world.mails.sent == []


def test_a_newer_run_that_did_the_work_means_nothing_is_done() -> None:
    world = world_with(build_run_facts(newer_runs=(build_newer_run(),)))

    decide_and_deliver(world)

    assert world.incident().state is IncidentState.SKIPPED
    assert (world.runs.repairs, world.mails.sent) == ([], [])


def test_a_model_that_asks_for_time_is_given_some_and_then_done_without() -> None:
    world = world_with()
    world.model.faults.before["diagnose"] = [ThrottledError("busy", retry_after_seconds=5)] * 4

    for deferrals in range(3):
        with pytest.raises(ThrottledError):
            world.agent.decide_action(failed(), deferrals=deferrals)
    world.agent.decide_action(failed(), deferrals=3)

    decision = world.incident().decision
    assert decision is not None
    assert not decision.model_used


def test_a_run_repaired_by_somebody_else_before_the_decision_is_left_alone() -> None:
    world = world_with()
    repair_by_hand(world)

    decide_and_deliver(world)

    incident = world.incident()
    assert (incident.state, incident.failure_id) == (IncidentState.SKIPPED, ORIGINAL_FAILURE)
    assert (world.runs.repairs, world.mails.sent) == ([], [])


def test_a_run_that_failed_again_meanwhile_is_handled_at_its_newer_failure() -> None:
    world = world_with(build_run_facts(run=build_run_state(repairs=(build_repair(repair_id=501),))))

    decide_and_deliver(world, failed())

    incident = world.incident()
    assert incident.failure_id == f"{WORKSPACE}:{RUN_ID}:501"
    assert incident.past_failures == (ORIGINAL_FAILURE,)
    assert [r.latest_repair_id for r in world.runs.repairs] == [501]


def test_a_late_message_about_an_older_failure_does_not_undo_the_newer_one() -> None:
    """The message about the failure after repair 501 was put off; repair 502 failed and was decided meanwhile."""
    world = world_with(diagnosis=ESCALATION)
    decide_and_deliver(world)
    repairs = (build_repair(repair_id=501), build_repair(repair_id=502))
    world.runs.put_state(build_run_state(repairs=repairs))
    world.model.answer = build_diagnosis(source="model")
    world.agent.decide_action(failed(repair=502))
    decided = world.incident()

    world.agent.decide_action(failed(repair=501))
    world.deliver_all()

    assert decided.failure_id == f"{WORKSPACE}:{RUN_ID}:502"
    assert world.incident().failure_id == decided.failure_id
    assert [r.latest_repair_id for r in world.runs.repairs] == [502]


def test_a_run_that_is_gone_before_the_decision_is_closed() -> None:
    world = world_watching_a_run()
    world.runs.finish(RUN_ID, succeeded=False)
    world.agent.find_failures()
    world.runs.remove(RUN_ID)

    world.deliver_all()

    assert world.incident().state is IncidentState.SKIPPED
    assert "gone" in world.incident().ended_why


def test_an_unknown_run_that_is_gone_leaves_nothing_behind() -> None:
    world = world_with()

    decide_and_deliver(world, failed(run_id=404))

    assert world.history.read_incident(WORKSPACE, 404) is None


# ── retry ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pause_between_decision_and_action_holds_the_action() -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.history.save_pause(Pause(True, by="ann", why="migration"))

    with pytest.raises(PausedError, match="ann: migration"):
        world.agent.retry_run(retry())
    assert world.runs.repairs == []
    world.history.save_pause(Pause(False))
    world.agent.retry_run(retry())

    assert len(world.runs.repairs) == 1


def test_a_pause_holds_mails_too() -> None:
    world = world_with(diagnosis=ESCALATION)
    world.agent.decide_action(failed())
    world.history.save_pause(Pause(True))

    with pytest.raises(PausedError, match="somebody: no reason given"):
        world.agent.send_email(email())

    assert world.mails.sent == []


def test_a_pause_that_cannot_be_read_is_a_pause() -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.history.faults.before["read_pause"] = [TransientError("tables are down")]

    with pytest.raises(PausedError, match="tables are down"):
        world.agent.retry_run(retry())

    assert world.runs.repairs == []


# ── a mode or a tag that changes while a retry waits ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("diagnosis", "tags", "mode", "rule"),
    [
        (None, {MODE_TAG: "observe"}, Mode.OBSERVE, "policy.mode_changed"),
        (None, {MODE_TAG: "nonsense"}, Mode.OBSERVE, "policy.mode_changed"),
        (MORE_WORKERS, {MODE_TAG: "retry"}, Mode.RETRY, "policy.mode_changed"),
        (None, {IDEMPOTENT_TAG: "false"}, Mode.FULL, "policy.not_idempotent"),
    ],
)
def test_a_retry_that_the_job_does_not_allow_any_more_is_given_to_people(
    diagnosis: Any, tags: dict[str, str], mode: Mode, rule: str
) -> None:
    world = world_with(diagnosis=diagnosis)
    world.agent.decide_action(failed())
    world.runs.tag_job(JOB_ID, tags)

    world.deliver_all()

    incident = world.incident()
    assert (world.runs.repairs, world.runs.job_updates, incident.attempts) == ([], [], ())
    assert incident.state is IncidentState.ESCALATED
    (mail,) = world.mails.about_one_run
    assert mail.decision.decision is DecisionKind.ESCALATE_EMAIL
    assert mail.decision.recommended.is_retry, "what was to be done is suggested"
    assert rule in mail.decision.rules
    assert mail.mode is mode


def test_a_retry_of_a_job_that_was_switched_off_is_dropped() -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.runs.tag_job(JOB_ID, {MODE_TAG: "off"})

    world.deliver_all()

    incident = world.incident()
    assert (incident.state, incident.mode, incident.attempts) == (IncidentState.SKIPPED, Mode.OFF, ())
    assert MODE_TAG in incident.ended_why
    assert (world.runs.repairs, world.mails.sent) == ([], [])


@pytest.mark.parametrize(
    ("changed", "state", "mails"),
    [
        ({"default_mode": Mode.OFF}, IncidentState.SKIPPED, 0),
        ({"default_mode": Mode.OBSERVE}, IncidentState.ESCALATED, 1),
        ({"default_mode": Mode.RETRY}, IncidentState.RETRYING, 0),
        ({"dry_run": True}, IncidentState.SKIPPED, 0),
    ],
)
def test_a_restart_with_other_settings_holds_for_retries_that_wait(
    changed: dict[str, Any], state: IncidentState, mails: int
) -> None:
    before = world_with()
    before.agent.decide_action(failed())

    world = build_world(runs=before.runs, clock=before.clock, history=before.history, **changed)
    world.agent.retry_run(retry())
    world.deliver_all()

    assert world.incident().state is state
    assert len(world.runs.repairs) == (state is IncidentState.RETRYING)
    assert len(world.mails.sent) == mails


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_a_repair_that_landed_before_the_mode_changed_is_followed(mode: str) -> None:
    world = world_with()
    world.runs.faults.after["repair_run"] = [OutcomeUnknownError("no answer")]
    world.agent.decide_action(failed())
    with pytest.raises(OutcomeUnknownError):
        world.agent.retry_run(retry())
    world.runs.tag_job(JOB_ID, {MODE_TAG: mode})

    world.clock.advance(minutes=2)
    world.agent.retry_run(retry())

    assert world.incident().state is IncidentState.RETRYING
    assert (len(world.runs.repairs), world.mails.sent) == (1, [])


@pytest.mark.parametrize(
    ("mode", "state", "outcomes"),
    [("off", IncidentState.SKIPPED, [AttemptOutcome.UNKNOWN]), ("retry", IncidentState.ESCALATED, [])],
)
def test_a_repair_that_did_not_land_is_not_repeated_in_a_mode_without_it_and_its_job_is_put_back(
    mode: str, state: IncidentState, outcomes: list[AttemptOutcome]
) -> None:
    world = world_with(diagnosis=MORE_WORKERS)
    world.runs.faults.before["repair_run"] = [OutcomeUnknownError("no answer")]
    world.agent.decide_action(failed())
    with pytest.raises(OutcomeUnknownError):
        world.agent.retry_run(retry())
    assert world.runs.job_settings(WORKSPACE, JOB_ID) != build_job_settings()
    world.runs.tag_job(JOB_ID, {MODE_TAG: mode})

    world.run_for(minutes=5)

    incident = world.incident()
    assert (incident.state, [attempt.outcome for attempt in incident.attempts]) == (state, outcomes)
    assert world.runs.repairs == []
    assert world.runs.job_settings(WORKSPACE, JOB_ID) == build_job_settings()


def test_people_are_told_to_look_where_a_new_run_may_have_been_started_before_the_mode_changed() -> None:
    world = world_with()
    world.runs.faults.before["repair_run"] = [RepairImpossibleError("run-job task")]
    world.runs.faults.after["run_now"] = [OutcomeUnknownError("no answer")]
    world.agent.decide_action(failed())
    with pytest.raises(OutcomeUnknownError):
        world.agent.retry_run(retry())
    world.runs.tag_job(JOB_ID, {MODE_TAG: "observe"})

    world.clock.advance(minutes=2)
    world.deliver_all()

    assert len(world.runs.started) == 1
    assert [attempt.outcome for attempt in world.incident().attempts] == [AttemptOutcome.UNKNOWN]
    (mail,) = world.mails.about_one_run
    assert "please look" in mail.decision.reason


def test_a_retry_waits_while_the_tags_of_its_job_cannot_be_read() -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.runs.faults.before["job_tags"] = [TransientError("503")]

    with pytest.raises(TransientError):
        world.agent.retry_run(retry())
    assert (world.runs.repairs, world.incident().attempts) == ([], ())
    world.agent.retry_run(retry())

    assert len(world.runs.repairs) == 1


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (NotAuthorisedError("job 77: no right"), IncidentState.ESCALATED),
        (RunNotFoundError("job 77 does not exist"), IncidentState.SKIPPED),
    ],
)
def test_a_run_whose_job_is_hidden_or_gone_by_now_is_not_repaired(error: Exception, state: IncidentState) -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.runs.faults.before["job_tags"] = [error] * 10

    world.deliver_all()

    assert world.incident().state is state
    assert world.runs.repairs == []


@pytest.mark.parametrize("run_type", ["SUBMIT_RUN", "WORKFLOW_RUN"])
def test_of_a_one_time_run_no_job_is_asked_for_its_tags(run_type: str) -> None:
    world = world_with(build_run_facts(run=build_run_state(run_type=run_type), job=None))

    decide_and_deliver(world)

    assert len(world.runs.repairs) == 1


def test_a_run_repaired_by_somebody_else_before_the_retry_is_left_alone() -> None:
    world = world_with()
    world.agent.decide_action(failed())
    repair_by_hand(world)

    world.deliver_all()

    assert world.incident().state is IncidentState.SKIPPED
    assert (world.runs.repairs, world.incident().attempts) == ([], ())


def test_a_run_repaired_by_somebody_else_between_claim_and_request_is_left_alone() -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.runs.faults.before["repair_run"] = [RepairRefusedError("the run is active")]

    world.deliver_all()

    incident = world.incident()
    assert incident.state is IncidentState.SKIPPED
    assert [a.outcome for a in incident.attempts] == [AttemptOutcome.SUPERSEDED]
    assert (world.runs.repairs, world.mails.sent) == ([], [])


def test_a_run_that_is_gone_before_the_retry_is_closed() -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.runs.remove(RUN_ID)

    world.deliver_all()

    assert world.incident().state is IncidentState.SKIPPED


def test_a_run_that_is_gone_after_the_retry_is_closed() -> None:
    world = world_with()
    decide_and_deliver(world)
    world.runs.remove(RUN_ID)

    world.agent.follow_up()

    incident = world.incident()
    assert (incident.state, incident.attempts[0].outcome) == (IncidentState.SKIPPED, AttemptOutcome.GONE)


def test_where_a_repair_is_impossible_a_new_run_of_the_job_is_the_same_incident() -> None:
    world = world_with(max_retry_attempts=2)
    world.runs.faults.before["repair_run"] = [RepairImpossibleError("run-job task"), None]

    decide_and_deliver(world)
    (started,) = world.runs.started
    assert (started.job_id, started.token) == (JOB_ID, f"{RUN_ID}:1")
    assert world.incident().watched_run_id == started.run_id
    finish_and_follow(world, succeeded=False, run_id=started.run_id)

    incident = world.incident()
    assert world.incident(started.run_id) == incident, "the new run belongs to the first one's incident"
    assert incident.failure_id == f"{WORKSPACE}:{started.run_id}:original"
    assert [(a.number, a.kind, a.outcome) for a in incident.attempts] == [
        (1, AttemptKind.RUN_NOW, AttemptOutcome.FAILED_AGAIN),
        (2, AttemptKind.REPAIR, AttemptOutcome.PENDING),
    ]
    assert [r.run_id for r in world.runs.repairs] == [started.run_id]
    finish_and_follow(world, succeeded=True, run_id=started.run_id)
    assert world.incident().state is IncidentState.RECOVERED


def test_a_new_run_found_by_the_tick_is_the_same_incident() -> None:
    world = world_watching_a_run()
    world.runs.finish(RUN_ID, succeeded=False)
    world.agent.find_failures()
    world.runs.faults.before["repair_run"] = [RepairImpossibleError("run-job task")]
    world.deliver_all()
    (started,) = world.runs.started
    world.clock.advance(minutes=5)
    world.runs.finish(started.run_id, succeeded=False)

    world.agent.find_failures()
    world.deliver_all()

    assert [incident.run_id for incident in world.history.open_incidents(WORKSPACE)] == [RUN_ID]
    assert len(world.incident().attempts) == 2


def test_a_one_time_run_that_cannot_be_repaired_is_mailed() -> None:
    world = world_with(build_run_facts(run=build_run_state(job_id=None), job=None))
    world.runs.faults.before["repair_run"] = [RepairImpossibleError("submitted run")]

    decide_and_deliver(world)

    assert world.runs.started == []
    (mail,) = world.mails.about_one_run
    assert "policy.not_possible" in mail.decision.rules
    assert world.incident().attempts == ()


def test_a_retry_that_is_not_allowed_is_mailed() -> None:
    world = world_with()
    world.runs.faults.before["repair_run"] = [NotAuthorisedError("the identity lacks CAN_MANAGE_RUN on job 77")]

    decide_and_deliver(world)

    (mail,) = world.mails.about_one_run
    assert "CAN_MANAGE_RUN" in mail.decision.reason
    assert world.incident().state is IncidentState.ESCALATED


def test_a_retry_message_that_comes_after_the_failure_was_given_to_people_does_not_repair() -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.runs.faults.before["repair_run"] = [NotAuthorisedError("no right")]
    world.agent.retry_run(retry())
    world.queues.waiting[EMAILS].clear()

    world.agent.retry_run(retry())

    assert world.runs.repairs == []
    assert len(sent_to(world, EMAILS)) == 2, "the mail's message is sent again: the first may never have been"


def test_an_unanswered_repair_that_landed_is_not_sent_again() -> None:
    world = world_with()
    world.runs.faults.after["repair_run"] = [OutcomeUnknownError("no answer")]
    world.agent.decide_action(failed())
    with pytest.raises(OutcomeUnknownError):
        world.agent.retry_run(retry())

    world.agent.retry_run(retry())

    incident = world.incident()
    assert incident.state is IncidentState.RETRYING
    assert incident.attempts[0].effect_id == 9001
    assert len(world.runs.repairs) == 1


def test_an_unanswered_repair_that_never_landed_is_sent_once_more_with_the_same_repair_id() -> None:
    world = world_with(build_run_facts(run=build_run_state(repairs=(build_repair(repair_id=501),))))
    world.runs.faults.before["repair_run"] = [OutcomeUnknownError("no answer")]
    message = failed(repair=501)
    world.agent.decide_action(message)
    with pytest.raises(OutcomeUnknownError):
        world.agent.retry_run(retry(message.failure_id))

    world.clock.advance(seconds=59)
    with pytest.raises(OutcomeUnknownError, match="may still arrive"):
        world.agent.retry_run(retry(message.failure_id))
    assert world.runs.repairs == []
    world.clock.advance(seconds=1)
    world.agent.retry_run(retry(message.failure_id))

    assert [r.latest_repair_id for r in world.runs.repairs] == [501]
    assert [a.number for a in world.incident().attempts] == [1]


def test_an_unanswered_repair_that_lands_between_read_and_second_request_is_recognised() -> None:
    world = world_with()
    world.runs.faults.before["repair_run"] = [OutcomeUnknownError("no answer")]
    world.agent.decide_action(failed())
    with pytest.raises(OutcomeUnknownError):
        world.agent.retry_run(retry())
    world.clock.advance(seconds=61)
    stale = world.runs.read_state(WORKSPACE, RUN_ID)
    world.runs.repair_run(WORKSPACE, RUN_ID, latest_repair_id=None, job_parameters={}, legacy_parameters={})
    landed = world.runs.read_state(WORKSPACE, RUN_ID)
    world.runs.put_state(stale)
    world.runs.faults.before["repair_run"] = [RepairRefusedError("the run is active")]

    with pytest.raises(OutcomeUnknownError, match="no other repair shows yet"):
        world.agent.retry_run(retry())
    world.runs.put_state(landed)
    world.agent.retry_run(retry())

    assert world.incident().attempts[0].effect_id == 9001
    assert len(world.runs.repairs) == 1


def test_an_unanswered_run_now_is_repeated_with_the_same_token() -> None:
    world = world_with()
    world.runs.faults.before["repair_run"] = [RepairImpossibleError("run-job task")]
    world.runs.faults.after["run_now"] = [OutcomeUnknownError("no answer")]
    world.agent.decide_action(failed())
    with pytest.raises(OutcomeUnknownError):
        world.agent.retry_run(retry())

    world.clock.advance(seconds=60)
    world.agent.retry_run(retry())

    assert len(world.runs.started) == 1
    assert world.incident().watched_run_id == world.runs.started[0].run_id


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"is_active": False, "is_failed": False, "result_state": "SUCCESS"}, AttemptOutcome.SUPERSEDED),
        ({"is_active": True, "is_failed": False, "result_state": None}, AttemptOutcome.SUPERSEDED),
        ({"is_failed": True, "result_state": "FAILED"}, AttemptOutcome.PENDING),
    ],
    ids=["it succeeded", "it is active", "it failed too"],
)
def test_a_retry_held_after_its_claim_asks_again_whether_a_newer_run_does_the_work(
    change: dict[str, Any], outcome: AttemptOutcome
) -> None:
    world = world_with(diagnosis=MORE_WORKERS)
    world.agent.decide_action(failed())
    world.runs.faults.before["update_job"] = [TransientError("503")]
    world.deliver_all()
    assert world.incident().state is IncidentState.ACTING
    world.runs.put_state(build_run_state(run_id=RUN_ID + 1, start_time=NOW + timedelta(minutes=1), **change))

    world.clock.advance(minutes=5)
    world.deliver_all()

    assert [attempt.outcome for attempt in world.incident().attempts] == [outcome]
    assert bool(world.runs.repairs) is (outcome is AttemptOutcome.PENDING)
    assert (world.incident().state is IncidentState.SKIPPED) is not bool(world.runs.repairs)
    assert bool(world.runs.job_updates) is bool(world.runs.repairs)


def test_a_new_run_gets_the_performance_target_of_the_decision() -> None:
    """Serverless compute in standard mode without a timeout in the job: only the faster mode helps."""
    serverless = build_task_failure(compute=ComputeKind.SERVERLESS, symptoms=build_symptoms(result_state="TIMEDOUT"))
    job = build_job_facts(settings={**build_job_settings(), "performance_target": "STANDARD"})
    longer = build_diagnosis(
        category=Category.TIMEOUT,
        recommended=DecisionKind.RETRY_WITH_PARAMS,
        changes=(Change(ChangeKind.TIMEOUT_UP),),
        source="model",
    )
    world = world_with(build_run_facts(job=job, failures=(serverless,)), diagnosis=longer)
    world.runs.faults.before["repair_run"] = [RepairImpossibleError("run-job task")]

    decide_and_deliver(world)

    assert [started.performance_target for started in world.runs.started] == ["PERFORMANCE_OPTIMIZED"]


def test_a_retry_that_waited_until_the_failure_was_old_goes_into_the_digest_instead() -> None:
    """Paused for a night, or the app was stopped: what the decision permitted then is no longer permitted."""
    world = world_with()
    world.agent.decide_action(failed())
    world.clock.advance(hours=6, minutes=1)

    world.run_for(hours=2)

    assert world.runs.repairs == []
    assert_only_in_a_digest(world)


def test_an_old_failure_is_never_repaired_and_goes_into_the_digest() -> None:
    world = world_with(build_run_facts(run=build_run_state(end_time=NOW - timedelta(hours=7))))

    decide_and_deliver(world)
    world.run_for(hours=2)

    assert world.runs.repairs == []
    assert_only_in_a_digest(world)


def assert_only_in_a_digest(world: World) -> None:
    (digest,) = world.mails.sent
    assert isinstance(digest, DigestMail)
    assert digest.total == 1
    incident = world.incident()
    assert incident.state is IncidentState.ESCALATED
    assert incident.decision is not None
    assert "policy.too_old" in incident.decision.rules


def test_stale_messages_do_nothing() -> None:
    world = world_with()
    decide_and_deliver(world)
    finish_and_follow(world, succeeded=True)
    closed = world.incident()

    world.agent.decide_action(failed())
    world.agent.retry_run(retry())
    world.agent.retry_run(retry(FailureId(f"{WORKSPACE}:{RUN_ID}:1")))
    world.agent.send_email(email())
    world.agent.send_email(email("suggestion"))
    world.deliver_all()

    assert world.incident() == closed
    assert len(world.runs.repairs) == 1
    assert world.mails.sent == []


@pytest.mark.parametrize("step", ["retry_run", "send_email"])
def test_an_action_on_an_incident_that_does_not_exist_is_refused(step: str) -> None:
    world = build_world()
    message = retry() if step == "retry_run" else email()

    with pytest.raises(PermanentError, match=f"no incident for run {RUN_ID}"):
        getattr(world.agent, step)(message)


# ── two workers on one message ──────────────────────────────────────────────────────────────────────────────────────


def test_two_workers_on_one_decision_store_one() -> None:
    world = world_with()
    world.history.faults.before["save_incident"] = [ConflictError("the other worker was faster")]

    with pytest.raises(ConflictError):
        world.agent.decide_action(failed())

    assert world.queues.sent == []


def test_two_workers_on_one_retry_repair_once() -> None:
    world = world_with()
    world.agent.decide_action(failed())
    worker_that_interleaves(world, during="read_state", step=lambda: world.agent.retry_run(retry()))

    with pytest.raises(ConflictError):
        world.agent.retry_run(retry())

    assert len(world.runs.repairs) == 1
    assert world.incident().state is IncidentState.RETRYING


def test_two_workers_on_one_mail_send_one() -> None:
    world = world_with(diagnosis=ESCALATION)
    world.agent.decide_action(failed())
    worker_that_interleaves(world, during="read_pause", step=lambda: world.agent.send_email(email()))

    with pytest.raises(ConflictError):
        world.agent.send_email(email())

    assert len(world.mails.sent) == 1
    assert world.incident().state is IncidentState.ESCALATED


def worker_that_interleaves(world: World, *, during: str, step: Any) -> None:
    """Another worker does the same step to its end while the first one is inside the call `during`."""
    part: Any = world.runs if during == "read_state" else world.history
    own = getattr(part, during)

    def interleaved(*args: Any, **kwargs: Any) -> Any:
        setattr(part, during, own)
        result = own(*args, **kwargs)
        step()
        return result

    setattr(part, during, interleaved)


# ── a run that Databricks does not show ─────────────────────────────────────────────────────────────────────────────

HIDDEN = [NotAuthorisedError("the identity may not see run 1001"), PermanentError("not understood")]


def assert_people_were_told_once(world: World, error: PermanentError) -> None:
    world.run_for(hours=6)
    (mail,) = world.mails.about_one_run
    assert str(error) in mail.decision.reason
    assert mail.decision.rules[-1] == "policy.unread"
    assert ("CAN_VIEW" in mail.decision.reason) == isinstance(error, NotAuthorisedError)
    assert world.incident().state is IncidentState.ESCALATED
    assert world.dead == []


@pytest.mark.parametrize("error", HIDDEN)
def test_a_failure_that_may_not_be_read_is_given_to_people_once(error: PermanentError) -> None:
    world = world_with()
    world.runs.faults.before["read_facts"] = [error] * 100

    decide_and_deliver(world)

    assert_people_were_told_once(world, error)


@pytest.mark.parametrize("error", HIDDEN)
def test_a_run_that_ends_badly_again_and_still_may_not_be_read_is_no_news(error: PermanentError) -> None:
    world = world_with()
    world.runs.faults.before["read_facts"] = [error] * 100
    decide_and_deliver(world)

    decide_and_deliver(world, failed(repair=7001))

    assert_people_were_told_once(world, error)


def test_in_a_dry_run_nobody_is_told_of_what_may_not_be_read() -> None:
    world = world_with(dry_run=True)
    world.runs.faults.before["read_facts"] = [NotAuthorisedError("403")]

    decide_and_deliver(world)

    assert world.mails.sent == []
    assert world.incident().state is IncidentState.SKIPPED


@pytest.mark.parametrize("error", HIDDEN)
@pytest.mark.parametrize("call", ["read_state", "newer_runs"])
def test_a_retry_that_may_not_look_at_its_run_is_given_to_people(call: str, error: PermanentError) -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.runs.faults.before[call] = [error]

    world.deliver_all()

    assert world.runs.repairs == []
    assert world.incident().attempts == ()
    assert_people_were_told_once(world, error)


@pytest.mark.parametrize("error", HIDDEN)
def test_a_claimed_retry_that_may_not_be_looked_up_counts_with_an_unknown_outcome(error: PermanentError) -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.runs.faults.after["repair_run"] = [OutcomeUnknownError("no answer")]
    world.runs.faults.before["read_state"] = [None, error]

    world.run_for(minutes=2)

    (attempt,) = world.incident().attempts
    assert attempt.outcome is AttemptOutcome.UNKNOWN
    world.runs.finish(RUN_ID, succeeded=True)
    assert_people_were_told_once(world, error)


@pytest.mark.parametrize("error", HIDDEN)
def test_a_retry_whose_run_may_not_be_followed_ends_with_an_unknown_outcome(error: PermanentError) -> None:
    world = world_with()
    decide_and_deliver(world)
    world.runs.faults.before["read_state"] = [error] * 100

    world.agent.follow_up()

    (attempt,) = world.incident().attempts
    assert attempt.outcome is AttemptOutcome.UNKNOWN
    assert not any(retry.is_open for retry in world.history.read_safeguards(WORKSPACE).retries)
    assert_people_were_told_once(world, error)


@pytest.mark.parametrize("error", [NotAuthorisedError("403"), PermanentError("400"), RepairImpossibleError("no")])
def test_a_started_run_whose_start_is_refused_when_it_is_asked_for_again_counts(error: PermanentError) -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.runs.faults.before["repair_run"] = [RepairImpossibleError("run-job task")]
    world.runs.faults.after["run_now"] = [OutcomeUnknownError("no answer")]
    world.runs.faults.before["run_now"] = [None, error]

    world.run_for(minutes=5)

    assert len(world.runs.started) == 1
    (attempt,) = world.incident().attempts
    assert (attempt.kind, attempt.outcome) == (AttemptKind.RUN_NOW, AttemptOutcome.UNKNOWN)
    (mail,) = world.mails.about_one_run
    assert "is not known" in mail.decision.reason


def test_a_new_run_that_is_refused_at_once_does_not_count() -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.runs.faults.before["repair_run"] = [RepairImpossibleError("run-job task")]
    world.runs.faults.before["run_now"] = [NotAuthorisedError("403")]

    world.deliver_all()

    assert world.incident().attempts == ()
    (mail,) = world.mails.about_one_run
    assert "CAN_MANAGE_RUN" in mail.decision.reason


@pytest.mark.parametrize("error", [StoreNotAuthorisedError("a role is missing"), StoreRefusedError("400")])
@pytest.mark.parametrize("call", ["read_incident", "save_incident", "read_pause", "read_safeguards", "record"])
def test_a_refusal_of_the_tables_is_waited_for_and_never_told_as_one_of_databricks(
    call: str, error: StoreRefusedError
) -> None:
    world = world_with()
    world.agent.decide_action(failed())
    world.history.faults.before[call] = [error]

    world.run_for(minutes=10)

    assert len(world.runs.repairs) == 1
    assert world.mails.sent == []
    assert world.dead == []


# ── mail ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mail_that_was_accepted_before_a_crash_is_not_sent_again() -> None:
    world = world_with(diagnosis=ESCALATION)
    world.agent.decide_action(failed())
    world.mails.faults.after["send"] = [ProcessDiedError()]
    with pytest.raises(ProcessDiedError):
        world.agent.send_email(email())

    with pytest.raises(OutcomeUnknownError, match="may be under way"):
        world.agent.send_email(email())
    world.clock.advance(seconds=60)
    world.agent.send_email(email())

    assert len(world.mails.sent) == 1
    assert world.incident().state is IncidentState.ESCALATED
    assert world.incident().mailed == (f"{ORIGINAL_FAILURE}:escalation",)


def test_a_mail_that_was_not_accepted_before_a_crash_is_sent() -> None:
    world = world_with(diagnosis=ESCALATION)
    world.agent.decide_action(failed())
    world.mails.faults.before["send"] = [ProcessDiedError()]
    with pytest.raises(ProcessDiedError):
        world.agent.send_email(email())

    world.clock.advance(seconds=60)
    world.agent.send_email(email())

    assert len(world.mails.sent) == 1


def test_a_mail_that_cannot_go_now_is_free_to_go_at_once_later() -> None:
    world = world_with(diagnosis=ESCALATION)
    world.agent.decide_action(failed())
    world.mails.faults.before["send"] = [ThrottledError("100 mails an hour", retry_after_seconds=30)]

    with pytest.raises(ThrottledError):
        world.agent.send_email(email())
    assert (world.incident().state, world.incident().mail_claim) == (IncidentState.DECIDED, "")
    world.agent.send_email(email())

    assert len(world.mails.sent) == 1


def test_a_mail_that_can_never_be_looked_up_is_not_sent_twice_and_parks_the_incident() -> None:
    world = world_with(diagnosis=ESCALATION)
    world.agent.decide_action(failed())
    world.mails.faults.after["send"] = [OutcomeUnknownError("no answer")]
    world.mails.faults.before["was_accepted"] = [NotAuthorisedError("no right to read mails")] * 100

    world.run_for(hours=2)

    assert len(world.mails.sent) == 1
    assert world.incident().state is IncidentState.PARKED
    assert "no right to read mails" in world.incident().ended_why
    assert world.dead == []


def test_a_claim_that_ran_out_before_the_mail_went_is_not_sent_by_the_slow_worker() -> None:
    world = world_with(diagnosis=ESCALATION)
    world.agent.decide_action(failed())

    def stand_still() -> None:
        world.clock.advance(seconds=world.settings.claim_settle_seconds)
        world.agent.send_email(email())

    worker_that_interleaves(world, during="save_incident", step=stand_still)
    with pytest.raises(OutcomeUnknownError, match="has run out"):
        world.agent.send_email(email())

    assert len(world.mails.sent) == 1
    assert world.incident().state is IncidentState.ESCALATED


def test_a_mail_that_can_never_go_parks_the_incident_and_says_so() -> None:
    world = world_with(diagnosis=ESCALATION)
    world.agent.decide_action(failed())
    world.mails.faults.before["send"] = [PermanentError("the sender's domain is not linked")]

    with pytest.raises(PermanentError):
        world.agent.send_email(email())

    incident = world.incident()
    assert incident.state is IncidentState.PARKED
    assert "domain is not linked" in incident.ended_why


# ── follow up ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_recovered_by_somebody_elses_repair_is_not_our_success() -> None:
    world = world_with()
    decide_and_deliver(world)
    world.runs.finish(RUN_ID, succeeded=False)
    repair_by_hand(world)

    finish_and_follow(world, succeeded=True)

    incident = world.incident()
    assert (incident.state, incident.attempts[0].outcome) == (IncidentState.RECOVERED, AttemptOutcome.SUPERSEDED)


def test_a_retry_under_way_is_left_alone() -> None:
    world = world_with()
    decide_and_deliver(world)
    before = world.incident()

    world.clock.advance(hours=5)

    assert world.agent.follow_up() == 0
    assert world.incident() == before


LOST = [
    ("detected", FAILED_RUNS, failed().message_id),
    ("decided to retry", RETRIES, retry().message_id),
    ("decided to mail", EMAILS, email().message_id),
    ("claimed a repair", RETRIES, retry().message_id),
    ("claimed a mail", EMAILS, email().message_id),
]


@pytest.mark.parametrize(("where", "queue", "message_id"), LOST, ids=[where for where, _, _ in LOST])
def test_what_is_overdue_is_sent_again_under_a_new_id(where: str, queue: str, message_id: str) -> None:
    """Each time the message was lost: the queue was purged, or it lies in the dead-letter queue."""
    world = world_with(diagnosis=ESCALATION if "mail" in where else None)
    if where == "detected":
        world.history.save_incident(build_incident(due_at=NOW))
    else:
        world.agent.decide_action(failed())
    if "claimed" in where:
        part: Any = world.mails if "mail" in where else world.runs
        part.faults.before["send" if "mail" in where else "repair_run"] = [ProcessDiedError()]
        with pytest.raises(ProcessDiedError):
            world.agent.send_email(email()) if "mail" in where else world.agent.retry_run(retry())
    world.queues.waiting.clear()

    world.clock.advance(minutes=29)
    assert world.agent.follow_up() == 0
    world.clock.advance(minutes=1)
    assert world.agent.follow_up() == 1
    assert world.agent.follow_up() == 0, "and not once a minute from then on"

    assert [(q, m.message_id) for q in world.queues.waiting for m in world.queues.waiting[q]] == [
        (queue, f"{message_id}:again-1")
    ]
    world.run_for(minutes=3)
    assert len(world.mails.sent) + len(world.runs.repairs) == 1


def test_what_is_held_by_a_pause_is_not_sent_again_and_again() -> None:
    world = world_with()
    world.history.save_pause(Pause(True))
    world.agent.decide_action(failed())

    world.run_for(hours=5)

    assert sum(len(messages) for messages in world.queues.waiting.values()) == 1
    world.history.save_pause(Pause(False))
    world.run_for(minutes=10)
    assert len(world.runs.repairs) == 1


def test_one_incident_that_cannot_be_followed_does_not_hold_up_the_others() -> None:
    clock = FakeClock()
    runs = FakeJobRuns(*(build_run_facts(run=build_run_state(run_id=n)) for n in (1, 2)), clock=clock)
    world = build_world(runs=runs, clock=clock)
    for run_id in (1, 2):
        decide_and_deliver(world, failed(run_id))
        runs.finish(run_id, succeeded=True)
    runs.faults.before["read_state"] = [TransientError("busy")]

    assert world.agent.follow_up() == 1

    assert [world.incident(n).state for n in (1, 2)] == [IncidentState.RETRYING, IncidentState.RECOVERED]


# ── giving up ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_retry_given_up_is_turned_into_a_mail() -> None:
    world = world_with()
    world.agent.decide_action(failed())

    world.agent.park(retry(), "Given up after 24 hours: Databricks does not answer")
    world.queues.waiting[RETRIES].clear()
    world.deliver_all()

    (mail,) = world.mails.about_one_run
    assert "Given up after 24 hours" in mail.decision.reason
    assert world.incident().state is IncidentState.ESCALATED


def test_a_failure_given_up_before_it_could_be_read_is_turned_into_a_mail() -> None:
    world = world_with()
    world.history.save_incident(build_incident())

    world.agent.park(failed(), "Given up after 24 hours")
    world.deliver_all()

    (mail,) = world.mails.about_one_run
    assert (mail.decision.category, mail.recipients) == (Category.UNKNOWN, (OPERATOR,))


def test_a_mail_given_up_parks_the_incident() -> None:
    world = world_with(diagnosis=ESCALATION)
    world.agent.decide_action(failed())

    world.agent.park(email(), "Given up after 24 hours: the e-mail service does not answer")

    assert world.incident().state is IncidentState.PARKED
    assert "e-mail service" in world.incident().ended_why


def test_giving_up_an_old_message_does_not_touch_what_came_after() -> None:
    world = world_with()
    decide_and_deliver(world)
    finish_and_follow(world, succeeded=False)
    retrying = world.incident()

    world.agent.park(failed(), "Given up")
    world.agent.park(retry(), "Given up")
    world.agent.park(email(), "Given up")

    assert world.incident() == retrying


# ── one pass without queues ─────────────────────────────────────────────────────────────────────────────────────────


def monitored(*facts: RunFacts, **options: Any) -> World:
    clock = FakeClock(NOW + timedelta(minutes=1))
    return build_world(runs=FakeJobRuns(*facts, clock=clock), clock=clock, **options)


def run_facts(run_id: int, **run: Any) -> RunFacts:
    job = build_job_facts(job_id=run.get("job_id", JOB_ID))
    return build_run_facts(run=build_run_state(run_id=run_id, **run), job=job)


def test_one_pass_acts_and_says_what_it_did() -> None:
    world = monitored(run_facts(1), run_facts(2))

    summary = world.agent.monitor_jobs()

    at = world.clock().isoformat()
    assert summary["actions"] == {
        "retried": {"count": 2, "run_ids": "1,2", "at": at},
        "retried_with_params": {"count": 0, "run_ids": "", "at": at},
        "escalated": {"count": 0, "run_ids": "", "at": at},
        "skipped": {"count": 0, "run_ids": "", "at": at},
    }
    assert sorted(r.run_id for r in world.runs.repairs) == [1, 2]
    assert [(r["run_id"], r["decision"], r["outcome"]) for r in summary["runs"]] == [
        (1, "RETRY", "open"),
        (2, "RETRY", "open"),
    ]


def test_a_pass_over_nothing_has_the_same_shape() -> None:
    world = monitored()

    summary = world.agent.monitor_jobs()

    assert {(a["count"], a["run_ids"]) for a in summary["actions"].values()} == {(0, "")}  # type: ignore[index]
    assert summary["runs"] == []


def test_a_pass_looks_only_at_runs_that_ended_in_its_window() -> None:
    world = monitored(
        run_facts(1, end_time=NOW - timedelta(minutes=28)),
        run_facts(2, start_time=NOW - timedelta(hours=20)),
        run_facts(3, start_time=NOW - timedelta(hours=2), end_time=NOW - timedelta(minutes=30)),
        diagnosis=ESCALATION,
    )

    assert world.agent.monitor_jobs()["actions"]["escalated"]["run_ids"] == "1,2"


def test_a_pass_can_be_kept_to_jobs_and_told_whom_to_mail() -> None:
    world = monitored(run_facts(1, job_id=77), run_facts(2, job_id=78), diagnosis=ESCALATION)

    summary = world.agent.monitor_jobs(job_ids=[78], escalation_emails=["team@example.com"])

    assert summary["actions"]["escalated"]["run_ids"] == "2"
    assert [(m.run_id, m.recipients) for m in world.mails.about_one_run] == [(2, ("team@example.com",))]


def test_a_dry_pass_says_what_it_would_have_done_and_does_nothing() -> None:
    world = monitored(run_facts(1), dry_run=True, default_mode=Mode.OBSERVE)

    summary = world.agent.monitor_jobs()

    assert summary["actions"]["retried"]["count"] == 1
    assert (world.runs.repairs, world.runs.started, world.mails.sent) == ([], [], [])


def test_one_run_that_cannot_be_read_does_not_hold_up_the_others_and_is_not_hidden() -> None:
    world = monitored(run_facts(1), run_facts(2), run_facts(3))
    world.runs.faults.before["read_facts"] = [TransientError("busy"), None, None]
    world.runs.faults.before["read_state"] = [None, None, None, TransientError("busy")]

    summary = world.agent.monitor_jobs()

    assert [(r["run_id"], r["decision"], r["outcome"]) for r in summary["runs"]] == [
        (2, "RETRY", "open"),
        (1, "ESCALATE_EMAIL", "open"),
        (3, "ESCALATE_EMAIL", "open"),
    ]
    assert "busy" in summary["runs"][1]["reason"]
    assert summary["actions"]["retried"]["run_ids"] == "2"
    assert summary["actions"]["escalated"]["count"] == 0


@pytest.mark.parametrize(("dry_run", "mails", "outcome"), [(False, 1, "escalated"), (True, 0, "open")])
def test_a_pass_tells_people_of_a_run_that_may_not_be_read(dry_run: bool, mails: int, outcome: str) -> None:
    world = monitored(run_facts(1), dry_run=dry_run)
    for call in ("read_state", "read_facts"):
        world.runs.faults.before[call] = [NotAuthorisedError("403")] * 10

    (report,) = world.agent.monitor_jobs()["runs"]

    assert (report["run_id"], report["decision"], report["outcome"]) == (1, "ESCALATE_EMAIL", outcome)
    assert "CAN_VIEW" in report["reason"]
    assert len(world.mails.sent) == mails


def test_without_a_history_the_limit_counts_the_repairs_of_the_run() -> None:
    repairs = tuple(build_repair(repair_id=n) for n in (501, 502, 503))
    world = monitored(run_facts(1, repairs=repairs))
    agent = without_history(world)

    summary = agent.monitor_jobs()

    assert summary["actions"]["escalated"]["run_ids"] == "1"
    assert world.runs.repairs == []


def test_without_a_history_no_new_runs_are_started_without_end() -> None:
    """A new run has no repair history: nothing would count how many of them were started."""
    world = monitored(run_facts(1))
    world.runs.faults.before["repair_run"] = [RepairImpossibleError("run-job task")] * 10
    agent = without_history(world)

    for _ in range(5):
        agent.monitor_jobs()
        world.clock.advance(minutes=20)
        for started in world.runs.started:
            if world.runs.read_state(WORKSPACE, started.run_id).is_active:
                world.runs.finish(started.run_id, succeeded=False)

    assert len(world.runs.started) <= world.settings.max_retry_attempts
    assert world.mails.sent


def test_a_pass_without_queues_changes_no_job_because_nothing_would_put_it_back() -> None:
    world = monitored(run_facts(1), diagnosis=MORE_WORKERS)

    without_history(world).monitor_jobs()

    assert world.runs.job_updates == []
    assert world.runs.repairs == []
    (mail,) = world.mails.sent
    assert isinstance(mail, EscalationMail)
    assert "policy.no_lease" in mail.decision.rules
    assert mail.decision.suggested_params == {"more_workers": ""}


def without_history(world: World) -> Any:
    from shared.databricks_agent import DatabricksAgent
    from shared.error_decision_engine import ErrorDecisionEngine

    engine = ErrorDecisionEngine(world.model, settings=world.settings, jitter=lambda: 0.0)
    return DatabricksAgent(None, world.runs, world.mails, engine, settings=world.settings, clock=world.clock)


def test_steps_that_need_a_history_or_queues_say_so() -> None:
    agent = without_history(build_world())

    with pytest.raises(PermanentError, match="history"):
        agent.decide_action(failed())
    with pytest.raises(ConfigurationError, match="AZURE_OPENAI_ENDPOINT"):
        agent.get_fine_tune_status("ftjob-1")
