"""What the app says of itself: one trace from find to mail, metrics, and log records that name what they are about."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, cast

import pytest
from aiohttp import web
from azure.core.settings import settings as azure_core
from azure.servicebus import ServiceBusClient, ServiceBusReceiveMode
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, messaging_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics, messaging_metrics
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

from local.service_bus import QueueConfig, running_broker
from shared import deadline, telemetry
from shared.action_queues import ServiceBusActionQueues
from shared.auditing import Auditing
from shared.databricks_agent import DatabricksAgent
from shared.delivery import Envelope, MessageDelivery
from shared.domain import Category, Change, ChangeKind, DecisionKind, FailureId, IncidentState
from shared.error_decision_engine import ErrorDecisionEngine
from shared.errors import (
    ConfigurationError,
    OutcomeUnknownError,
    PermanentError,
    RunNotFoundError,
    ThrottledError,
    TransientError,
)
from shared.messages import EMAILS, FAILED_RUNS, QUEUES, RETRIES, FailedRunMessage
from shared.ports import OutgoingMessage
from shared.settings import Settings
from shared.timers import Timers
from tests.builders import (
    JOB_ID,
    RUN_ID,
    WORKSPACE,
    build_diagnosis,
    build_incident,
    build_run_facts,
    build_run_state,
    build_symptoms,
    build_task_failure,
)
from tests.fakes import FakeClock, FakeJobRuns
from tests.shared.databricks_service import FAILED, a_run, scripted, serving
from tests.shared.recorded_telemetry import Recorded, recorded
from tests.world import World, build_world

ROOT = Path(__file__).parents[2]
ESCALATION = build_diagnosis(category=Category.CODE, recommended=DecisionKind.ESCALATE_EMAIL, source="model")
MORE_WORKERS = build_diagnosis(
    category=Category.WORKER_MEMORY,
    recommended=DecisionKind.RETRY_WITH_PARAMS,
    changes=(Change(ChangeKind.MORE_WORKERS),),
    source="model",
)

PASSWORD = "hunter2-Xq9vB7"
SIGNED_LINK = (
    "https://acct.blob.core.windows.net/c/f.csv?sv=2026-01-01&se=2026-12-01&sr=b&sig=aBcD3fGh1JkLmN0pQrStUv%3D"
)
LEAKING = f"SparkException: cannot read {SIGNED_LINK} with password={PASSWORD}"


@pytest.fixture
def told() -> Iterator[Recorded]:
    with recorded() as kept:
        yield kept


def timers_of(world: World, agent: DatabricksAgent | None = None) -> Timers:
    auditing = Auditing(world.runs, world.history, world.settings, world.clock)
    return Timers(agent or world.agent, auditing, world.settings)


def fail_run(world: World, run_id: int = RUN_ID, error: str = LEAKING) -> None:
    failure = build_task_failure(symptoms=build_symptoms(error=error, error_trace=error, logs=error))
    run = build_run_state(run_id=run_id, start_time=world.clock(), end_time=world.clock(), state_message=error)
    world.runs.put(build_run_facts(run=run, failures=(failure,)))


# ── traces ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Post:
    """A broker, the app's own adapter to send with, and the official client to receive with as the host does."""

    def __init__(self, address: str) -> None:
        self.queues = ServiceBusActionQueues(Settings(service_bus_connection=address))
        self._client = ServiceBusClient.from_connection_string(address)
        at_once = ServiceBusReceiveMode.RECEIVE_AND_DELETE
        self._receivers = {q: self._client.get_queue_receiver(q, receive_mode=at_once) for q in QUEUES}

    def receive(self, queue: str) -> Envelope:
        (message,) = self._receivers[queue].receive_messages(max_message_count=1, max_wait_time=10)
        properties = {_text(name): _text(value) for name, value in (message.application_properties or {}).items()}
        return Envelope(queue, b"".join(message.body), message.message_id or "", 1, properties)

    def close(self) -> None:
        self.queues.close()
        self._client.close()


def _text(value: object) -> Any:
    return value.decode() if isinstance(value, bytes) else value


@pytest.fixture(scope="module")
def post() -> Iterator[Post]:
    with running_broker([QueueConfig(name) for name in QUEUES]) as address:
        post = Post(address)
        yield post
        post.close()


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def id_of(span: ReadableSpan) -> int:
    return span.get_span_context().span_id  # type: ignore[union-attr]


def trace_of(span: ReadableSpan) -> int:
    return span.get_span_context().trace_id  # type: ignore[union-attr]


def test_from_find_to_mail_it_is_one_trace_across_the_queues(told: Recorded, post: Post) -> None:
    clock = FakeClock()
    world = build_world(runs=FakeJobRuns(clock=clock), clock=clock, diagnosis=ESCALATION)
    agent = DatabricksAgent(
        None,
        world.runs,
        world.mails,
        ErrorDecisionEngine(world.model, settings=world.settings, jitter=lambda: 0.0),
        settings=world.settings,
        history=world.history,
        queues=post.queues,
        clock=clock,
    )
    delivery = MessageDelivery(
        agent, queues=post.queues, history=world.history, settings=world.settings, clock=clock, jitter=lambda: 0.0
    )
    timers = timers_of(world, agent)
    timers.find_failures()
    clock.advance(minutes=5)
    fail_run(world)
    clock.advance(minutes=5)

    timers.find_failures()
    delivery.deliver(post.receive(FAILED_RUNS))
    delivery.deliver(post.receive(EMAILS))

    assert [mail.run_id for mail in world.mails.about_one_run] == [RUN_ID]
    first, found = told.spans("find_failures")
    chain = [
        found,
        told.span("send failed-runs"),
        told.span("process failed-runs"),
        told.span("send emails"),
        told.span("process emails"),
    ]
    assert [parent_of(span) for span in chain] == [None, *(id_of(span) for span in chain[:-1])]
    assert {trace_of(span) for span in chain} == {trace_of(found)}
    assert trace_of(first) != trace_of(found)
    sent, processed = chain[1], chain[2]
    assert (sent.kind, processed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(processed.attributes or {}) == {
        "messaging.system": "servicebus",
        "messaging.destination.name": FAILED_RUNS,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": f"failed:{WORKSPACE}:{RUN_ID}:original",
        "messaging.servicebus.message.delivery_count": 1,
        "remediation.workspace": WORKSPACE,
        "remediation.run_id": str(RUN_ID),
        "remediation.failure_id": f"{WORKSPACE}:{RUN_ID}:original",
    }
    assert PASSWORD not in told.everything()
    assert "sig=" not in told.everything()


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
COPIED = {"traceparent": TRACEPARENT}


class SpanOfTheClient:
    """As the Service Bus client sees the tracing that is installed with the provider in Azure."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def to_header(self) -> dict[str, str]:
        return {"traceparent": "00-11111111111111111111111111111111-2222222222222222-01"}

    def add_attribute(self, name: str, value: object) -> None: ...


def test_the_clients_own_tracing_does_not_name_the_trace_a_second_time(told: Recorded, post: Post) -> None:
    azure_core.tracing_implementation.set_value(cast("Any", SpanOfTheClient))
    try:
        post.queues.send("retries", [OutgoingMessage("{}", "new"), OutgoingMessage("{}", "copy", properties=COPIED)])
    finally:
        azure_core.tracing_implementation.unset_value()

    new, copy = post.receive(RETRIES), post.receive(RETRIES)
    own = telemetry.context_of(new.properties)
    assert own is not None
    assert id_of(told.span("send retries")) == trace.get_current_span(own).get_span_context().span_id
    assert copy.properties["traceparent"] == TRACEPARENT
    assert new.properties["Diagnostic-Id"] == new.properties["traceparent"]


@pytest.mark.parametrize("name", ["traceparent", "Diagnostic-Id"])
def test_a_message_that_is_put_off_keeps_its_trace(told: Recorded, name: str) -> None:
    world = build_world()
    fail_run(world)
    world.agent.find_failures()
    world.runs.faults.before["read_facts"] = [TransientError("503")]
    failed = world_message(world)

    world.delivery.deliver(replace(failed, properties={name: TRACEPARENT}))

    (_, copy) = world.queues.sent[-1]
    assert copy.properties[name] == TRACEPARENT
    span = told.span("process failed-runs")
    assert span.parent
    assert format_trace_id(trace_of(span)) in TRACEPARENT
    assert format_span_id(span.parent.span_id) in TRACEPARENT


def world_message(world: World) -> Envelope:
    """The message about the default run, as if the tick had found it."""
    message = FailedRunMessage(
        workspace=WORKSPACE, run_id=RUN_ID, failure_id=FailureId(f"{WORKSPACE}:{RUN_ID}:original"), source="timer"
    )
    return Envelope(FAILED_RUNS, message.to_json().encode(), message.message_id, 1, {})


@pytest.mark.parametrize("given", ["", "nonsense", "00-0-0-01", None, 7])
def test_without_a_readable_trace_a_new_one_begins(told: Recorded, given: object) -> None:
    with telemetry.processing(
        "retries", message_id="1", delivery_count=1, properties={"traceparent": given}, host_traceparent=str(given)
    ):
        pass
    span = told.span("process retries")
    assert span.parent is None
    assert span.links == ()


def test_the_hosts_own_span_is_the_parent_of_a_tick_and_linked_to_a_message(told: Recorded) -> None:
    world = build_world()
    timers_of(world).follow_up(TRACEPARENT)
    fail_run(world)
    world.delivery.deliver(replace(world_message(world), host_traceparent=TRACEPARENT))

    assert format_trace_id(trace_of(told.span("follow_up"))) in TRACEPARENT
    (link,) = told.span("process failed-runs").links
    assert format_span_id(link.context.span_id) in TRACEPARENT


def test_a_failure_is_told_by_its_name_alone(told: Recorded) -> None:
    world = build_world()
    fail_run(world)
    world.runs.faults.before["read_facts"] = [ConfigurationError(f"cannot: {PASSWORD}")]

    with pytest.raises(ConfigurationError):
        world.delivery.deliver(world_message(world))

    span = told.span("process failed-runs")
    assert (span.attributes or {})["error.type"] == "ConfigurationError"
    assert span.status.description == "ConfigurationError"
    assert span.events == ()
    assert PASSWORD not in told.everything()
    ((labels, seconds),) = told.metrics()["messaging.process.duration"]
    assert labels["error.type"] == "ConfigurationError"
    assert seconds > 0


def test_names_are_those_of_the_pinned_conventions() -> None:
    assert Schemas.V1_44_0.value == telemetry.SCHEMA
    known = {
        value
        for module in (messaging_attributes, gen_ai_attributes, messaging_metrics, gen_ai_metrics, error_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    text = (ROOT / "shared" / "telemetry.py").read_text()
    used = {word for word in text.replace('"', " ").split() if word.startswith(("messaging.", "gen_ai.", "error."))}
    used = {word.rstrip(":,)]") for word in used}
    assert len(used) > 15
    assert used - known == {"error.set_attribute"} & used
    systems = messaging_attributes.MessagingSystemValues, gen_ai_attributes.GenAiProviderNameValues
    assert (systems[0].SERVICEBUS.value, systems[1].AZURE_AI_OPENAI.value) == (
        telemetry.SERVICE_BUS,
        telemetry.AZURE_OPENAI,
    )


def test_without_a_provider_nothing_happens_and_no_heavy_part_is_loaded() -> None:
    code = """
import json, sys
from shared import telemetry
with telemetry.sending("retries", ["1"]):
    properties = telemetry.trace_properties()
with telemetry.processing("retries", message_id="1", delivery_count=1, properties={}):
    with telemetry.asking_model("m", max_tokens=1):
        telemetry.decided("rules")
    telemetry.audited("ws1", duplicates=0, orphans=0, unledgered=0)
heavy = [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "azure", "pydantic"))]
print(json.dumps([properties, heavy]))
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(finished.stdout) == [{}, []]


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def labelled(told: Recorded, name: str, label: str) -> dict[str, float]:
    return {labels[label]: value for labels, value in told.metrics().get(name, ())}


@pytest.mark.parametrize("name", ["find_failures", "follow_up", "audit"])
def test_a_timer_that_came_to_its_end_beats_once(told: Recorded, name: str) -> None:
    world = build_world()
    getattr(timers_of(world), name)()
    assert labelled(told, "remediation.heartbeat", "step") == {name: 1}


def test_a_timer_that_failed_does_not_beat_and_has_its_deadline(told: Recorded) -> None:
    world = build_world(invocation_seconds=200)
    left: list[float] = []
    world.runs.faults.before["active_runs"] = [TransientError("503")]
    honest = world.agent.find_failures

    def find_failures() -> int:
        left.append(deadline.bounded(1000))
        return honest()

    world.agent.find_failures = find_failures  # type: ignore[method-assign]
    with pytest.raises(TransientError):
        timers_of(world).find_failures()
    assert "remediation.heartbeat" not in told.metrics()
    assert 190 < left[0] <= 200
    assert deadline.bounded(1000) == 1000


def test_a_step_is_under_the_deadline_and_what_becomes_of_its_message_is_not(told: Recorded) -> None:
    """A step that used all of its time up can still be put off."""
    world = build_world()
    fail_run(world)
    left: list[float] = []

    def decide(*_: object, **__: object) -> None:
        left.append(deadline.bounded(1000))
        raise TransientError("no time is left")

    honest_send = world.queues.send

    def send(queue: str, messages: Any) -> None:
        left.append(deadline.bounded(1000))
        honest_send(queue, messages)

    world.agent.decide_action = decide  # type: ignore[method-assign]
    world.queues.send = send  # type: ignore[method-assign]
    world.delivery.deliver(world_message(world))

    of_step, of_copy = left
    assert of_step <= world.settings.invocation_seconds
    assert of_copy == 1000
    assert world.queues.sent[-1][1].message_id.endswith(":defer-1")


@pytest.mark.parametrize(
    ("answer", "error", "mode", "source", "fallback"),
    [
        (ESCALATION, None, "always", "model", 0),
        (None, None, "always", "rules_fallback", 1),
        (ESCALATION, TransientError("503"), "always", "rules_fallback", 1),
        (ESCALATION, None, "never", "rules", None),
    ],
)
def test_decisions_are_counted_by_what_they_rest_on(
    told: Recorded, answer: Any, error: BaseException | None, mode: str, source: str, fallback: int | None
) -> None:
    world = build_world(ai_mode=mode)
    world.model.answer = answer
    world.model.faults.before["diagnose"] = [error]
    fail_run(world)

    world.delivery.deliver(world_message(world))

    metrics = told.metrics()
    assert metrics["remediation.decisions"] == [({"source": source}, 1)]
    assert metrics.get("remediation.llm.fallback_ratio", []) == ([] if fallback is None else [({}, fallback)])
    assert metrics["remediation.redaction.hits"][0][1] >= 2


def test_what_is_reserved_and_which_breakers_are_open_is_told(told: Recorded) -> None:
    world = build_world(breaker_failures=2, clock=FakeClock())
    for run_id in (RUN_ID, RUN_ID + 1):
        fail_run(world, run_id)
        world.agent._steps.finding.send_on(WORKSPACE, run_id)
    world.deliver_due()
    assert labelled(told, "remediation.breaker.state", "workspace") == {WORKSPACE: 1}
    world.deliver_all()
    assert world.incident().state is IncidentState.RETRYING
    assert labelled(told, "remediation.spend.reserved", "workspace") == {WORKSPACE: 0}


def test_the_oldest_open_incident_is_told_by_each_follow_up(told: Recorded) -> None:
    world = build_world()
    world.agent.follow_up()
    assert labelled(told, "remediation.incident.age", "workspace") == {WORKSPACE: 0}
    for run_id, minutes in ((1, 5), (2, 50)):
        found = world.clock() - timedelta(minutes=minutes)
        world.history.save_incident(build_incident(run_id=run_id, detected_at=found, due_at=world.clock()))

    world.agent.follow_up()

    assert labelled(told, "remediation.incident.age", "workspace") == {WORKSPACE: 3000}


@pytest.mark.parametrize(
    ("send", "was_accepted", "reason"),
    [
        (PermanentError(f"refused: {PASSWORD}"), None, "mail_refused"),
        (OutcomeUnknownError("no answer"), PermanentError("no right to look"), "mail_in_doubt"),
        (ThrottledError("429", retry_after_seconds=7 * 3600), None, "waited_too_long"),
    ],
)
def test_an_incident_that_nobody_was_told_about_is_counted_with_the_kind_of_reason(
    told: Recorded, send: Exception, was_accepted: Exception | None, reason: str
) -> None:
    world = build_world(diagnosis=ESCALATION)
    fail_run(world)
    world.agent._steps.finding.send_on(WORKSPACE, RUN_ID)
    world.mails.faults.before["send"] = [send] * 1000
    world.mails.faults.before["was_accepted"] = [was_accepted] * 1000

    world.run_for(hours=30, step_seconds=1200)

    assert world.incident().state is IncidentState.PARKED
    assert told.metrics()["remediation.parked"] == [({"reason": reason}, 1)]
    assert PASSWORD not in told.everything()


@pytest.mark.parametrize(("call", "times"), [("save_incident", 0), ("record", 1)])
def test_what_is_parked_is_counted_once_it_is_stored_and_not_before(told: Recorded, call: str, times: int) -> None:
    world = build_world(diagnosis=ESCALATION)
    fail_run(world)
    world.agent._steps.finding.send_on(WORKSPACE, RUN_ID)
    world.delivery.deliver(world_message(world))
    world.mails.faults.before["send"] = [PermanentError("refused")]
    claimed = [None] if call == "save_incident" else []
    world.history.faults.before[call] = [*claimed, TransientError("503")]

    world.deliver_due()

    assert sum(value for _, value in told.metrics().get("remediation.parked", ())) == times


def test_a_failure_that_people_were_told_about_is_not_counted_as_parked(told: Recorded) -> None:
    world = build_world(diagnosis=ESCALATION)
    fail_run(world)
    world.agent._steps.finding.send_on(WORKSPACE, RUN_ID)
    world.deliver_all()

    assert world.incident().state is IncidentState.ESCALATED
    assert "remediation.parked" not in told.metrics()


# ── logs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Records(logging.Handler):
    """Every record with the message that was being delivered when it was made."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.kept: list[tuple[logging.LogRecord, Envelope | None]] = []
        self.delivering: Envelope | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append((record, self.delivering))


@pytest.fixture
def records() -> Iterator[Records]:
    handler = Records()
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def test_no_record_holds_a_secret_or_a_body_and_each_of_a_step_names_its_run(told: Recorded, records: Records) -> None:
    world = build_world()
    deliver = world.delivery.deliver
    bodies = set()

    def watched(envelope: Envelope) -> None:
        bodies.add(envelope.body.decode())
        records.delivering = envelope
        try:
            deliver(envelope)
        finally:
            records.delivering = None

    world.delivery.deliver = watched  # type: ignore[method-assign]
    timers = timers_of(world)
    timers.find_failures()
    world.clock.advance(minutes=1)
    for run_id in range(RUN_ID, RUN_ID + 6):
        fail_run(world, run_id)
    answers = [build_diagnosis(source="model"), ESCALATION, None]
    world.model.faults.before["diagnose"] = [None, ThrottledError("429"), TransientError("503")]
    world.runs.faults.before["read_facts"] = [None, TransientError("503"), PermanentError("cannot be read")]
    world.runs.faults.before["repair_run"] = [TransientError("503"), PermanentError("refused")]
    world.mails.faults.before["send"] = [ThrottledError("429"), PermanentError("refused")]
    for minute in range(90):
        world.model.answer = answers[minute % 3]
        world.clock.advance(minutes=1)
        for step in (timers.find_failures, timers.follow_up, timers.audit):
            world.run_timer(step)
        world.deliver_all()
        for run in world.runs.active_runs(WORKSPACE):
            world.runs.finish(run.run_id, succeeded=bool(minute % 2))

    assert len(bodies) > 10
    assert {envelope.queue for _, envelope in records.kept if envelope} == {FAILED_RUNS, RETRIES, EMAILS}
    for record, envelope in records.kept:
        text = repr(vars(record)) + record.getMessage()
        assert PASSWORD not in text
        assert "sig=" not in text
        assert not any(body in text for body in bodies)
        if envelope is not None:
            of_message = json.loads(envelope.body)
            fields = vars(record)
            assert fields.get("run_id") == of_message["run_id"], record
            assert fields.get("queue", envelope.queue) == envelope.queue
    assert PASSWORD not in told.everything()


def test_a_record_names_the_message_and_the_incident(records: Records) -> None:
    world = build_world()
    fail_run(world)
    world.runs.faults.before["read_facts"] = [TransientError("503")]

    world.delivery.deliver(world_message(world))

    (record,) = [record for record, _ in records.kept if record.getMessage() == "message put off"]
    fields = vars(record)
    assert {name: fields[name] for name in ("queue", "message_id", "workspace", "run_id", "failure_id")} == {
        "queue": FAILED_RUNS,
        "message_id": f"failed:{WORKSPACE}:{RUN_ID}:original",
        "workspace": WORKSPACE,
        "run_id": RUN_ID,
        "failure_id": f"{WORKSPACE}:{RUN_ID}:original",
    }


def test_a_record_of_the_connector_names_the_run_of_the_step(records: Records) -> None:
    """Also where it is made in one of the threads that read side by side."""
    task = {"task_key": "main", "run_id": 50, "notebook_task": {}} | FAILED
    answers = {"jobs/runs/get": lambda _: web.json_response(a_run(tasks=[task]))}

    with serving(lambda: scripted(answers)) as service, telemetry.log_fields(run_id=5):
        service.connector.read_facts(service.workspace, 5)

    (record,) = [record for record, _ in records.kept if record.getMessage() == "task output not readable"]
    assert (vars(record)["run_id"], vars(record)["task_run_id"]) == (5, 50)


def test_a_record_about_a_lease_names_its_run(records: Records) -> None:
    """The timer that follows leases is not about one run."""
    world = build_world(diagnosis=MORE_WORKERS)
    fail_run(world)
    world.agent._steps.finding.send_on(WORKSPACE, RUN_ID)
    world.deliver_all()
    world.runs.finish(RUN_ID, succeeded=True)
    world.runs.faults.before["job_settings"] = [RunNotFoundError("job 77 does not exist")] * 10

    world.run_for(minutes=2)

    gone = [vars(record) for record, _ in records.kept if record.getMessage() == "leased job is gone"]
    assert gone
    assert {(fields["run_id"], fields["job_id"]) for fields in gone} == {(RUN_ID, JOB_ID)}


def test_a_field_of_the_record_itself_wins_and_nothing_stays_after_the_step(records: Records) -> None:
    log = telemetry.logger("a.module")
    with telemetry.log_fields(run_id=1, queue="retries"):
        log.warning("inside", extra={"run_id": 2})
    log.warning("outside")
    inside, outside = (vars(record) for record, _ in records.kept)
    assert (inside["run_id"], inside["queue"]) == (2, "retries")
    assert "run_id" not in outside
