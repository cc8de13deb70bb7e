"""A whole agent on fakes, with a clock that a test moves and a broker that delivers again what was not completed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from shared.databricks_agent import DatabricksAgent
from shared.delivery import Envelope, MessageDelivery
from shared.domain import Diagnosis, Incident, Mode
from shared.error_decision_engine import ErrorDecisionEngine
from shared.messages import QUEUES
from shared.ports import JobRuns, OutgoingMessage
from shared.settings import Settings
from tests.builders import RUN_ID, WORKSPACE, build_diagnosis
from tests.fakes import FakeActionQueues, FakeClock, FakeDecisionHistory, FakeDiagnoser, FakeEmailSender, FakeJobRuns

MAX_DELIVERIES = 10

OPERATOR = "ops@example.com"


class ProcessDiedError(BaseException):
    """The worker was killed: nothing in the app can catch it."""


@dataclass
class World:
    """The agent, its surroundings, and what the broker holds. `dead` = the dead-letter queue."""

    clock: FakeClock
    runs: FakeJobRuns
    model: FakeDiagnoser
    mails: FakeEmailSender
    queues: FakeActionQueues
    history: FakeDecisionHistory
    settings: Settings
    agent: DatabricksAgent
    delivery: MessageDelivery
    dead: list[Envelope] = field(default_factory=list)
    deliveries: Counter[tuple[str, str]] = field(default_factory=Counter)

    def incident(self, run_id: int = RUN_ID) -> Incident:
        found = self.history.read_incident(WORKSPACE, run_id)
        assert found is not None, f"no incident for run {run_id}"
        return found

    def deliver_due(self) -> int:
        """Deliver every message that is due, once; abandoned ones stay. How many were delivered."""
        delivered = 0
        for queue in QUEUES:
            for message in self.queues.take(queue, self.clock()):
                self._deliver(queue, message)
                delivered += 1
        return delivered

    def _deliver(self, queue: str, message: OutgoingMessage) -> None:
        self.deliveries[queue, message.message_id] += 1
        count = self.deliveries[queue, message.message_id]
        envelope = envelope_of(queue, message, count)
        try:
            self.delivery.deliver(envelope)
        except (Exception, ProcessDiedError):  # noqa: BLE001 - as the host does, whatever it is
            if count >= MAX_DELIVERIES:
                self.dead.append(envelope)
            else:
                self.queues.waiting[queue].insert(0, replace(message, due=None))

    def deliver_all(self) -> None:
        """Deliver until nothing is due now."""
        while self.deliver_due():
            pass

    def run_timer(self, step: Callable[[], object]) -> None:
        """One call of a timer function: what it raises is logged by the host, and the next call comes in time."""
        try:
            step()
        except (Exception, ProcessDiedError):  # noqa: BLE001 - as the host does, whatever it is
            return

    def run_for(self, *, each: Callable[[], object] | None = None, step_seconds: float = 60, **delta: float) -> None:
        """Let virtual time pass: every step both timers run and everything due is delivered; `each` before them."""
        end = self.clock() + timedelta(**delta)
        while self.clock() < end:
            self.clock.advance(seconds=step_seconds)
            if each:
                each()
            self.run_timer(self.agent.find_failures)
            self.deliver_all()
            self.run_timer(self.agent.follow_up)
            self.deliver_all()


def envelope_of(queue: str, message: OutgoingMessage, delivery_count: int = 1) -> Envelope:
    """The message as its receiver gets it."""
    return Envelope(queue, message.body.encode(), message.message_id, delivery_count, dict(message.properties))


def build_settings(**overrides: Any) -> Settings:
    """Everything is carried out, and the operator is told; nothing of it comes from the environment."""
    values = {"default_mode": Mode.FULL, "escalation_emails": (OPERATOR,), "ai_mode": "always"}
    return Settings.model_validate(Settings.model_construct().model_dump() | values | overrides)


def build_world(
    *,
    runs: FakeJobRuns | None = None,
    clock: FakeClock | None = None,
    history: FakeDecisionHistory | None = None,
    diagnosis: Diagnosis | None = None,
    jitter: Callable[[], float] = lambda: 0.0,
    connector: JobRuns | None = None,
    **settings: Any,
) -> World:
    """A world in which the model always gives the same diagnosis (a plain retry), so that a test can choose it.

    With a `connector` the agent works on that instead of the fake runs.
    """
    clock = clock or FakeClock()
    runs = runs or FakeJobRuns(clock=clock)
    runs.clock = clock
    model = FakeDiagnoser(diagnosis or build_diagnosis(source="model"))
    mails, queues, history = FakeEmailSender(), FakeActionQueues(), history or FakeDecisionHistory()
    chosen = build_settings(**settings)
    guids = iter(range(1_000_000))
    agent = DatabricksAgent(
        None,
        connector or runs,
        mails,
        ErrorDecisionEngine(model, settings=chosen, jitter=jitter),
        settings=chosen,
        history=history,
        queues=queues,
        clock=clock,
        guid=lambda: f"guid-{next(guids)}",
    )
    delivery = MessageDelivery(agent, queues=queues, history=history, settings=chosen, clock=clock, jitter=jitter)
    return World(clock, runs, model, mails, queues, history, chosen, agent, delivery)
