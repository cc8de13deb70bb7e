"""What becomes of a delivered message: done, put off, given up, or refused; and an outage of one virtual hour."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from shared.delivery import DEFERRALS, FIRST_SEEN, ORIGINAL_ID, Envelope
from shared.domain import Category, DecisionKind, DigestMail, FailureId, IncidentState, Pause
from shared.errors import (
    AgentError,
    ConfigurationError,
    ConflictError,
    HeldError,
    InvalidMessageError,
    PausedError,
    PermanentError,
    StoreRefusedError,
    ThrottledError,
    TransientError,
)
from shared.messages import EMAILS, FAILED_RUNS, QUEUES, RETRIES, FailedRunMessage, RetryMessage
from shared.ports import OutgoingMessage
from shared.triage.policy import IDEMPOTENT_TAG
from tests.builders import (
    NOW,
    RUN_ID,
    WORKSPACE,
    build_diagnosis,
    build_incident,
    build_job_facts,
    build_run_facts,
    build_run_state,
    build_symptoms,
    build_task_failure,
)
from tests.fakes import FakeClock, FakeJobRuns
from tests.world import World, build_world, envelope_of

FAILED = FailedRunMessage(
    workspace=WORKSPACE, run_id=RUN_ID, failure_id=FailureId(f"{WORKSPACE}:{RUN_ID}:original"), source="timer"
)
ESCALATION = build_diagnosis(category=Category.CODE, recommended=DecisionKind.ESCALATE_EMAIL, source="model")


def envelope(body: bytes | str = FAILED.to_json(), queue: str = FAILED_RUNS, **properties: object) -> Envelope:
    return Envelope(queue, body.encode() if isinstance(body, str) else body, FAILED.message_id, 1, properties)


def failing_world(error: BaseException | None, **options: Any) -> World:
    """One failed run, whose facts cannot be read because of the error."""
    clock = FakeClock()
    world = build_world(runs=FakeJobRuns(build_run_facts(), clock=clock), clock=clock, **options)
    world.runs.faults.before["read_facts"] = [error]
    return world


def only_copy(world: World, queue: str = FAILED_RUNS) -> OutgoingMessage:
    ((sent_to, message),) = world.queues.sent
    assert sent_to == queue
    return message


# ── done, or refused ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_is_carried_out() -> None:
    world = failing_world(None)

    world.delivery.deliver(envelope())

    assert world.incident().state is IncidentState.DECIDED
    assert world.history.rejected == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"\x00\xff\xfe\x80 binary",
        b"[1, 2]",
        json.dumps({**json.loads(FAILED.to_json()), "schema_version": 2}).encode(),
        json.dumps({**json.loads(FAILED.to_json()), "note": "s3cret-value"}).encode(),
        json.dumps({"run_id": 1}).encode(),
    ],
    ids=["empty", "no json", "binary", "a list", "another schema", "an extra field", "missing fields"],
)
@pytest.mark.parametrize("queue", QUEUES)
def test_what_is_not_understood_is_recorded_without_its_body_and_raised(queue: str, body: bytes) -> None:
    world = failing_world(None)

    with pytest.raises(InvalidMessageError):
        world.delivery.deliver(envelope(body, queue))

    (rejected,) = world.history.rejected.values()
    assert (rejected.queue, rejected.message_id, rejected.at) == (queue, FAILED.message_id, NOW)
    assert rejected.body_sha256 == hashlib.sha256(body).hexdigest()
    assert rejected.reason.startswith("not a ")
    assert "s3cret-value" not in repr(rejected)


def test_what_can_never_be_done_is_recorded_and_raised() -> None:
    world = failing_world(None)
    nothing_decided = RetryMessage(
        workspace=WORKSPACE, run_id=RUN_ID, failure_id=FailureId(FAILED.failure_id), attempt=1
    )

    with pytest.raises(PermanentError, match="nothing was decided"):
        world.delivery.deliver(envelope(nothing_decided.to_json(), RETRIES))

    assert [r.reason for r in world.history.rejected.values()] == [
        f"no incident for run {RUN_ID}: nothing was decided about it"
    ]
    assert world.queues.sent == []


@pytest.mark.parametrize("error", [ConfigurationError("no host"), KeyError("bug"), RecursionError(), MemoryError()])
def test_bugs_and_crashes_are_raised_and_not_put_off(error: BaseException) -> None:
    world = failing_world(error)

    with pytest.raises(type(error)):
        world.delivery.deliver(envelope())

    assert world.queues.sent == []
    assert world.history.rejected == {}


@pytest.mark.parametrize(("races", "copies"), [(1, 0), (2, 0), (3, 1)])
def test_a_step_that_loses_a_race_begins_anew_and_is_put_off_in_the_end(races: int, copies: int) -> None:
    world = failing_world(None)
    world.runs.faults.before["read_facts"] = [ConflictError("412")] * races

    world.delivery.deliver(envelope())

    assert sum(message.message_id.endswith(":defer-1") for _, message in world.queues.sent) == copies
    assert world.history.rejected == {}


@pytest.mark.parametrize("problem", [TransientError("tables are down"), StoreRefusedError("403")])
def test_a_history_that_cannot_record_a_refusal_leaves_it_to_the_log(
    problem: AgentError, caplog: pytest.LogCaptureFixture
) -> None:
    world = failing_world(None)
    world.history.faults.before["record_rejected"] = [problem]

    with pytest.raises(InvalidMessageError) as raised:
        world.delivery.deliver(envelope(b"no json"))

    assert str(raised.value) in [vars(record).get("refusal") for record in caplog.records]


# ── put off ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_service_that_cannot_answer_makes_the_message_a_later_copy() -> None:
    world = failing_world(TransientError("503"))

    world.delivery.deliver(envelope())

    copy = only_copy(world)
    assert copy.body == FAILED.to_json()
    assert copy.message_id == f"{FAILED.message_id}:defer-1"
    assert copy.due == NOW + timedelta(seconds=30)
    assert copy.properties == {DEFERRALS: 1, FIRST_SEEN: NOW.isoformat(), ORIGINAL_ID: FAILED.message_id}


def test_the_wait_doubles_up_to_the_cap_and_the_first_time_is_kept() -> None:
    world = failing_world(None, jitter=lambda: 1.0)
    world.runs.faults.before["read_facts"] = [TransientError("503") for _ in range(40)]
    world.delivery.deliver(envelope())

    waits: list[float] = []
    for n in range(2, 41):
        copy = world.queues.sent[-1][1]
        assert copy.due is not None
        waits.append((copy.due - world.clock()).total_seconds())
        world.clock.now = copy.due
        world.delivery.deliver(envelope_of(FAILED_RUNS, copy))
        assert world.queues.sent[-1][1].message_id == f"{FAILED.message_id}:defer-{n}"
        assert world.queues.sent[-1][1].properties[FIRST_SEEN] == NOW.isoformat()

    assert waits[:6] == [60, 120, 240, 480, 900, 900]
    assert set(waits[5:]) == {900}


@pytest.mark.parametrize("jitter", [0.0, 0.25, 0.999])
def test_the_wait_is_spread_over_its_upper_half(jitter: float) -> None:
    world = failing_world(TransientError("503"), jitter=lambda: jitter)

    world.delivery.deliver(envelope(deferrals=3, first_seen=NOW.isoformat()))

    due = only_copy(world).due
    assert due is not None
    assert 240 <= (due - NOW).total_seconds() < 480


def test_the_id_stays_short_and_distinct_however_often_it_is_put_off() -> None:
    world = failing_world(TransientError("503"))
    long_id = "failed:" + "w" * 200

    world.delivery.deliver(Envelope(FAILED_RUNS, FAILED.to_json().encode(), long_id, 1, {DEFERRALS: 11}))

    assert len(only_copy(world).message_id) <= 128
    assert only_copy(world).properties[ORIGINAL_ID] == long_id


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [(5.0, 5.0), (0.0, 0.0), (3600.0, 3600.0), (None, 30.0), (1e12, 86_400.0)],
)
def test_a_service_that_names_a_time_is_asked_again_then(retry_after: float | None, seconds: float) -> None:
    """A figure beyond the time after which the message is given up is not taken at its word."""
    world = failing_world(ThrottledError("429", retry_after_seconds=retry_after))

    world.delivery.deliver(envelope())

    assert only_copy(world).due == NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("error", "deferrals", "seconds"),
    [
        (HeldError("no slot", seconds=60), 0, 60),
        (HeldError("no slot", seconds=60), 3, 240),
        (HeldError("no slot", seconds=60), 10, 450),
        (HeldError("the next canary", seconds=600), 10, 600),
        (PausedError("paused", seconds=300), 10, 300),
    ],
)
def test_what_waits_for_its_turn_asks_ever_more_rarely_but_a_pause_is_looked_at_steadily(
    error: AgentError, deferrals: int, seconds: float
) -> None:
    world = failing_world(error)

    world.delivery.deliver(envelope(deferrals=deferrals))

    assert only_copy(world).due == NOW + timedelta(seconds=seconds)


def test_a_copy_that_cannot_be_sent_means_the_message_is_abandoned() -> None:
    world = failing_world(TransientError("Databricks is down"))
    world.queues.faults.before["send"] = [TransientError("Service Bus is down")]

    with pytest.raises(TransientError, match="Service Bus"):
        world.delivery.deliver(envelope())

    assert [r.reason for r in world.history.rejected.values()] == ["Service Bus is down"]


def test_a_message_that_cannot_be_given_up_is_kept_with_the_reason() -> None:
    world = failing_world(TransientError("Databricks does not answer"))
    world.history.faults.before["read_incident"] = [None, StoreRefusedError("the row is damaged")]

    with pytest.raises(StoreRefusedError):
        world.delivery.deliver(envelope(deferrals=90, first_seen=first_seen(25)))

    assert [r.reason for r in world.history.rejected.values()] == ["the row is damaged"]


@pytest.mark.parametrize(("seconds", "is_noted"), [(60, False), (899, False), (900, True), (7200, True)])
def test_a_long_wait_is_noted_with_the_incident_and_a_short_one_is_not_worth_a_write(
    seconds: float, is_noted: bool
) -> None:
    world = failing_world(ThrottledError("429", retry_after_seconds=seconds))
    before = world.history.save_incident(build_incident(state=IncidentState.DETECTED, decision=None, due_at=NOW))

    world.delivery.deliver(envelope())

    assert world.incident().due_at == (NOW + timedelta(seconds=seconds) if is_noted else before.due_at)


def test_a_wait_that_cannot_be_noted_is_a_wait_all_the_same() -> None:
    world = failing_world(ThrottledError("429", retry_after_seconds=7200))
    world.history.save_incident(build_incident(state=IncidentState.DETECTED, decision=None, due_at=NOW))
    world.history.faults.before["save_incident"] = [ConflictError("412")]

    world.delivery.deliver(envelope())

    assert only_copy(world).due == NOW + timedelta(hours=2)


@pytest.mark.parametrize("service", ["Databricks", "e-mail"])
def test_an_outage_of_hours_leaves_one_message_for_each_failure(service: str) -> None:
    """The broker forgets ids within minutes, so each copy that `follow_up` sends would wait beside the others."""
    world = failing_world(None, diagnosis=ESCALATION)
    world.history.save_incident(build_incident(state=IncidentState.DETECTED, decision=None, due_at=NOW))
    world.queues.detects_duplicates = False
    break_service(world, service, until=NOW + timedelta(hours=12))
    world.queues.send(FAILED_RUNS, [OutgoingMessage(FAILED.to_json(), FAILED.message_id)])

    world.run_for(hours=6)

    assert sum(map(len, world.queues.waiting.values())) == 1


@pytest.mark.parametrize(
    "properties",
    [
        {DEFERRALS: "many", FIRST_SEEN: "yesterday"},
        {DEFERRALS: None, FIRST_SEEN: None},
        {FIRST_SEEN: 5, ORIGINAL_ID: ""},
    ],
)
def test_properties_that_make_no_sense_are_ignored(properties: dict[str, Any]) -> None:
    world = failing_world(TransientError("503"))

    world.delivery.deliver(envelope(**properties))

    assert only_copy(world).message_id.startswith(f"{FAILED.message_id}:defer-")


# ── given up ────────────────────────────────────────────────────────────────────────────────────────────────────────


def first_seen(hours: float) -> str:
    return (NOW - timedelta(hours=hours)).isoformat()


def test_after_a_day_the_incident_is_given_to_people() -> None:
    world = failing_world(TransientError("Databricks does not answer"))
    world.history.save_incident(build_incident())

    world.delivery.deliver(envelope(deferrals=90, first_seen=first_seen(24.1)))
    world.deliver_all()

    assert world.incident().state is IncidentState.ESCALATED
    (mail,) = world.mails.about_one_run
    assert "Given up after 24 hours: Databricks does not answer" in mail.decision.reason


def test_a_failure_after_a_closed_one_is_given_to_people_too() -> None:
    """The first failure was mailed; after a person's repair it failed again, and could not be read for a day."""
    world = failing_world(None, diagnosis=ESCALATION)
    world.delivery.deliver(envelope())
    world.deliver_all()
    assert world.incident().state is IncidentState.ESCALATED
    again = FAILED.model_copy(update={"failure_id": f"{WORKSPACE}:{RUN_ID}:7001"})
    world.runs.faults.before["read_facts"] = [TransientError("Databricks does not answer")]

    world.delivery.deliver(envelope(again.to_json(), deferrals=90, first_seen=first_seen(25)))
    world.deliver_all()

    assert [mail.key for mail in world.mails.sent] == [
        f"{FAILED.failure_id}:escalation",
        f"{again.failure_id}:escalation",
    ]
    assert world.incident().past_failures == (FAILED.failure_id,)


def test_a_mail_that_could_not_go_for_a_day_parks_the_incident() -> None:
    world = failing_world(None, diagnosis=ESCALATION)
    world.delivery.deliver(envelope())
    (mail,) = world.queues.take(EMAILS, NOW)
    world.mails.faults.before["send"] = [TransientError("the e-mail service does not answer")]

    world.delivery.deliver(envelope(mail.body, EMAILS, first_seen=first_seen(25)))

    assert world.incident().state is IncidentState.PARKED
    assert "e-mail service" in world.incident().ended_why


def test_a_pause_is_never_given_up_on() -> None:
    world = failing_world(None)
    world.delivery.deliver(envelope())
    (retry,) = world.queues.take(RETRIES, NOW)
    world.history.save_pause(Pause(True))

    world.delivery.deliver(envelope(retry.body, RETRIES, deferrals=5000, first_seen=first_seen(24 * 30)))

    (copy,) = world.queues.waiting[RETRIES]
    assert copy.due == NOW + timedelta(seconds=world.settings.pause_check_seconds)
    assert world.incident().state is IncidentState.DECIDED


# ── an outage ───────────────────────────────────────────────────────────────────────────────────────────────────────

ONE_HOUR = timedelta(hours=1)


def down_until(clock: FakeClock, end: datetime, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method as it is while its service is down: it raises until the time has come."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if clock() < end:
            raise TransientError("the service does not answer")
        return method(*args, **kwargs)

    return call


def break_service(world: World, service: str, *, until: datetime) -> None:
    parts: dict[str, tuple[Any, tuple[str, ...]]] = {
        "Databricks": (
            world.runs,
            ("active_runs", "completed_runs", "read_state", "read_facts", "repair_run", "run_now"),
        ),
        "Azure OpenAI": (world.model, ("diagnose",)),
        "e-mail": (world.mails, ("send", "was_accepted")),
        "tables": (world.history, ("read_scan", "save_scan", "read_incident", "save_incident", "record", "read_pause")),
    }
    part, methods = parts[service]
    for name in methods:
        setattr(part, name, down_until(world.clock, until, getattr(part, name)))


CONNECTION_RESET = build_task_failure(
    symptoms=build_symptoms(error="java.net.SocketException: Connection reset", error_trace="")
)
PEOPLE_MUST_MEND = frozenset({2, 4, 6})
RUNS = range(1, 7)


def world_with_six_active_runs() -> tuple[World, Callable[[], None]]:
    """Every ten minutes one of the runs fails; a repaired one succeeds within the minute."""
    clock = FakeClock()
    runs = FakeJobRuns(clock=clock)
    world = build_world(runs=runs, clock=clock, jitter=lambda: 0.5)
    for run_id in RUNS:
        run = build_run_state(run_id=run_id, job_id=run_id, start_time=NOW)
        tags = {IDEMPOTENT_TAG: "false"} if run_id in PEOPLE_MUST_MEND else {}
        runs.put(build_run_facts(run=run, job=build_job_facts(job_id=run_id, tags=tags), failures=(CONNECTION_RESET,)))
        runs.put_running(run)
    world.agent.find_failures()

    def environment() -> None:
        for run_id in RUNS:
            repaired = bool(runs.state(run_id).repairs)
            if runs.state(run_id).is_active and (repaired or clock() >= NOW + timedelta(minutes=10 * run_id)):
                runs.finish(run_id, succeeded=repaired)

    return world, environment


@pytest.mark.parametrize("service", ["Databricks", "Azure OpenAI", "e-mail", "tables"])
def test_an_hour_without_a_service_loses_nothing_and_heals(service: str) -> None:
    world, environment = world_with_six_active_runs()
    break_service(world, service, until=NOW + ONE_HOUR)

    world.run_for(hours=3, each=environment)

    assert world.dead == []
    assert all(not messages for messages in world.queues.waiting.values())
    assert {run_id: world.incident(run_id).state for run_id in RUNS} == {
        run_id: IncidentState.ESCALATED if run_id in PEOPLE_MUST_MEND else IncidentState.RECOVERED for run_id in RUNS
    }
    assert sorted(reported_runs(world)) == sorted(PEOPLE_MUST_MEND)
    assert sorted(repair.run_id for repair in world.runs.repairs) == sorted(set(RUNS) - PEOPLE_MUST_MEND)


def reported_runs(world: World) -> list[int]:
    """The runs that people were told about, in mails of their own and in digests, repetitions included."""
    runs: list[int] = []
    for mail in world.mails.sent:
        if isinstance(mail, DigestMail):
            runs += [incident.run_id for group in mail.groups for incident in group.examples]
        else:
            runs.append(mail.run_id)
    return runs


def test_during_an_outage_messages_wait_instead_of_being_delivered_over_and_over() -> None:
    world, environment = world_with_six_active_runs()
    break_service(world, "e-mail", until=NOW + timedelta(hours=5))

    world.run_for(hours=5, each=environment)

    assert max(world.deliveries.values()) == 1
    assert len(world.deliveries) < 200
