"""An outage of one workspace: thousands of runs fail within five minutes, of forty causes, and the whole flow goes on.

Fakes and virtual time; the broker honours due times and now and then delivers twice what was completed already. Nothing
may be lost or done twice, few retries may be made, and few mails may be sent whose sums say everything.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from shared.databricks_agent import DatabricksAgent
from shared.delivery import MessageDelivery
from shared.domain import DigestMail, Incident, IncidentState, RunFacts, failure_id_of
from shared.error_decision_engine import ErrorDecisionEngine
from shared.learning import Learning
from shared.messages import FailedRunMessage
from tests.builders import (
    NOW,
    WORKSPACE,
    build_diagnosis,
    build_job_facts,
    build_run_facts,
    build_run_state,
    build_symptoms,
    build_task_failure,
)
from tests.fakes import (
    FakeActionQueues,
    FakeClock,
    FakeDecisionHistory,
    FakeDiagnoser,
    FakeEmailSender,
    FakeJobRuns,
)
from tests.world import World, build_settings, build_world

CAUSES = 40
STORM_SECONDS = 300
FIRST_RUN = 100_000

OUTAGE = timedelta(minutes=15)
"""From the first failure on: until then every retry fails. Afterwards those of `HEALING_CAUSES` succeed."""

HEALING_CAUSES = 2

RETRY_TAKES = timedelta(minutes=3)

FINE_STEP_SECONDS = 15
COARSE_STEP_SECONDS = 150
LONGEST_HOURS = 30

FIRST_MINUTE = NOW + timedelta(seconds=FINE_STEP_SECONDS + 60)
"""The first runs fail a step after NOW, and breakers are to be open a minute later."""

TOLD = (IncidentState.ESCALATED, IncidentState.FAILED_AGAIN)
ENDS = {*TOLD, IncidentState.RECOVERED}

NAMES = ("orders", "stock", "prices", "events", "users", "visits", "claims", "trips")
SERVICES = ("billing", "ledger", "geo", "mail", "search")


def cause_of(number: int) -> int:
    """Every other failure is of the outage itself, cause 0; the rest is spread evenly over the other causes."""
    return 0 if number % 2 == 0 else 1 + number // 2 % (CAUSES - 1)


def cause_text(cause: int) -> str:
    """One error text per cause; names make the difference, for numbers are not part of a fingerprint."""
    service, table = SERVICES[cause % len(SERVICES)], NAMES[cause // len(SERVICES)]
    return f"java.net.SocketTimeoutException: {service}.internal: read of {table} timed out"


@dataclass
class Storm:
    """`failures` runs that fail evenly within five minutes from NOW, cause by cause in turn."""

    failures: int
    seed: int = 1
    world: World = field(init=False)
    mail_times: list[datetime] = field(default_factory=list)
    repair_times: list[datetime] = field(default_factory=list)
    breaker_opened_at: datetime | None = None
    repeated: int = 0
    asked_in_first_hour: int = 0
    _next: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.world = build_storm_world(self.random)
        self.world.agent.find_failures()

    def run(self) -> "Storm":
        """Until every incident is closed and nothing waits."""
        self.world.run_for(each=self.environment, step_seconds=FINE_STEP_SECONDS, minutes=10)
        self.world.run_for(each=self.environment, minutes=50)
        self.asked_in_first_hour = len(self.world.model.asked)
        for _ in range(LONGEST_HOURS * 60):
            if self.is_over():
                break
            self.world.run_for(each=self.environment, step_seconds=COARSE_STEP_SECONDS, seconds=COARSE_STEP_SECONDS)
        self.note()
        return self

    def environment(self) -> None:
        """What the world does between two steps: runs fail, retries end, old messages come once more."""
        self.note()
        self._end_retries()
        self._fail_runs()
        self._repeat_messages()

    def note(self) -> None:
        """Keep when the effects of the last step were seen. Nothing moves the clock within a step."""
        world = self.world
        self.mail_times += [world.clock()] * (len(world.mails.sent) - len(self.mail_times))
        self.repair_times += [world.clock()] * (len(world.runs.repairs) - len(self.repair_times))
        breakers = world.history.read_safeguards(WORKSPACE).breakers.values()
        if self.breaker_opened_at is None and any(breaker.opened_at for breaker in breakers):
            self.breaker_opened_at = min(breaker.opened_at for breaker in breakers if breaker.opened_at)

    def is_over(self) -> bool:
        return (
            self._next == self.failures
            and not any(self.world.queues.waiting.values())
            and not self.world.history.open_incidents(WORKSPACE)
        )

    def incidents(self) -> list[Incident]:
        history = self.world.history
        closed = history.closed_incidents(WORKSPACE, updated_after=NOW - timedelta(days=1))
        return history.open_incidents(WORKSPACE) + closed

    def _fail_runs(self) -> None:
        passed = (self.world.clock() - NOW).total_seconds()
        due = min(self.failures, int(self.failures * passed / STORM_SECONDS))
        for number in range(self._next, due):
            self.world.runs.put(failed_run(number, self.world.clock()))
        self._next = due

    def _end_retries(self) -> None:
        """A retry takes a few minutes; whether it heals is a matter of its cause, and of the outage."""
        now = self.world.clock()
        is_over = now - NOW > OUTAGE
        for summary in self.world.runs.active_runs(WORKSPACE):
            run = self.world.runs.state(summary.run_id)
            began = run.repairs[-1].start_time
            if began is None or now - began < RETRY_TAKES:
                continue
            cause = cause_of(run.run_id - FIRST_RUN)
            self.world.runs.finish(run.run_id, succeeded=is_over and cause < HEALING_CAUSES)

    def _repeat_messages(self) -> None:
        """One message in a hundred of those handed over lately comes again although it was completed."""
        for queue, message in self.world.queues.sent[-self.failures // 10 :]:
            if self.random.random() < 0.01:
                self.world.queues.waiting[queue].append(replace(message, due=None))
                self.repeated += 1


def build_storm_world(source: random.Random) -> World:
    """A world whose engine learns, as the app's does, so that one cause is one question to the model."""
    clock = FakeClock(NOW)
    settings = build_settings(ai_mode="always", ai_tokens_per_day=10**9)
    model = FakeDiagnoser(build_diagnosis(source="model"))
    runs, mails, queues = FakeJobRuns(clock=clock), FakeEmailSender(), FakeActionQueues()
    history = FakeDecisionHistory()
    guids = iter(range(10**9))

    def guid() -> str:
        return f"guid-{next(guids)}"

    learning = Learning(history, settings, clock, guid)
    engine = ErrorDecisionEngine(model, settings=settings, learning=learning, jitter=source.random)
    agent = DatabricksAgent(
        None, runs, mails, engine, settings=settings, history=history, queues=queues, clock=clock, guid=guid
    )
    delivery = MessageDelivery(
        agent, queues=queues, history=history, settings=settings, clock=clock, jitter=source.random
    )
    return World(clock, runs, model, mails, queues, history, settings, agent, delivery)


def failed_run(number: int, now: datetime) -> RunFacts:
    """The run of that number, a minute after it began; each run is of a job of its own."""
    job_id = FIRST_RUN + number
    symptoms = build_symptoms(error=cause_text(cause_of(number)), error_trace="")
    return build_run_facts(
        run=build_run_state(
            run_id=FIRST_RUN + number, job_id=job_id, start_time=now - timedelta(minutes=1), end_time=now
        ),
        failures=(build_task_failure(symptoms=symptoms),),
        job=build_job_facts(job_id=job_id),
    )


@pytest.fixture
def silence() -> Iterator[None]:
    """A million log records would be kept by pytest."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("failures", [1_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_an_outage_is_neither_a_storm_of_retries_nor_of_mails(failures: int) -> None:
    began = time.monotonic()

    storm = Storm(failures).run()

    seconds = time.monotonic() - began
    world, incidents = storm.world, storm.incidents()
    causes = {incident.decision.fingerprint for incident in incidents if incident.decision}
    mailed = [incident for incident in incidents if incident.mailed]
    assert len(causes) == CAUSES
    assert storm.repeated > failures / 10

    # nothing lost, everything ends
    assert len(incidents) == failures
    assert {incident.state for incident in incidents} <= ENDS
    assert not world.dead

    # few retries, none twice
    assert storm.breaker_opened_at is not None
    assert storm.breaker_opened_at <= FIRST_MINUTE
    assert sum(at <= FIRST_MINUTE for at in storm.repair_times) <= 5
    repairs = Counter((repair.run_id, repair.latest_repair_id) for repair in world.runs.repairs)
    assert set(repairs.values()) == {1}
    assert not world.runs.started
    assert sum(len(incident.attempts) for incident in incidents) == len(world.runs.repairs)
    assert any(incident.state is IncidentState.RECOVERED for incident in incidents)

    # few mails, and their sums say everything
    assert sum(at <= NOW + timedelta(hours=1) for at in storm.mail_times) <= 8
    assert set(Counter(mail.key for mail in world.mails.sent).values()) == {1}
    assert sum(mail.total if isinstance(mail, DigestMail) else 1 for mail in world.mails.sent) == len(mailed)
    assert all(
        mail.total == sum(group.count for group in mail.groups)
        for mail in world.mails.sent
        if isinstance(mail, DigestMail)
    )
    assert len(mailed) == sum(incident.state in TOLD for incident in incidents)

    # few questions
    assert storm.asked_in_first_hour <= len(causes)
    assert seconds <= 60


def test_what_waits_for_its_turn_is_not_sent_again() -> None:
    clock = FakeClock(NOW)
    runs = FakeJobRuns(*(failed_run(number, NOW) for number in range(2)), clock=clock)
    world = build_world(runs=runs, clock=clock, max_concurrent_retries=1)
    for run_id in (FIRST_RUN, FIRST_RUN + 1):
        message = FailedRunMessage(
            workspace=WORKSPACE, run_id=run_id, failure_id=failure_id_of(WORKSPACE, run_id, None), source="timer"
        )
        world.agent.decide_action(message)

    world.run_for(hours=3)

    assert len(world.runs.repairs) == 1
    assert not [message for _, message in world.queues.sent if "again" in message.message_id]
    assert sum(len(waiting) for waiting in world.queues.waiting.values()) == 1
