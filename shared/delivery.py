"""What becomes of a delivered queue message: done, put off, given up, or refused.

Returning completes the message. Raising abandons it, and Service Bus delivers it again at once, so raising is kept for
crashes and messages that cannot be understood. A service that cannot answer just now makes the message a scheduled copy
of itself under a new id (the same id would be dropped by duplicate detection).
"""

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from shared import deadline, telemetry
from shared.databricks_agent import DatabricksAgent, utc_now
from shared.errors import (
    AgentError,
    ConflictError,
    HeldError,
    InvalidMessageError,
    PausedError,
    PermanentError,
    ThrottledError,
    TransientError,
)
from shared.messages import (
    EMAILS,
    FAILED_RUNS,
    RETRIES,
    EmailMessage,
    FailedRunMessage,
    RetryMessage,
    bounded_id,
)
from shared.ports import ActionQueues, DecisionHistory, OutgoingMessage
from shared.settings import Settings
from shared.triage.redaction import redact

logger = telemetry.logger(__name__)

type Message = FailedRunMessage | RetryMessage | EmailMessage

MESSAGE_TYPES: Mapping[str, type[Message]] = {
    FAILED_RUNS: FailedRunMessage,
    RETRIES: RetryMessage,
    EMAILS: EmailMessage,
}

DEFERRALS = "deferrals"
FIRST_SEEN = "first_seen"
ORIGINAL_ID = "original_id"

TRIES_AFTER_A_LOST_RACE = 3
"""A step that finds its row changed by somebody faster begins anew at once, so often; then the message is put off.

Raising would count as a failed call of the function, and ten of them end in the dead-letter queue.
"""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message as it came from its queue. `host_traceparent` is the host's span of this invocation, if it has one."""

    queue: str
    body: bytes
    message_id: str
    delivery_count: int
    properties: Mapping[str, object]
    host_traceparent: str = ""

    @property
    def deferrals(self) -> int:
        value = self.properties.get(DEFERRALS, 0)
        return value if isinstance(value, int) else 0

    @property
    def original_id(self) -> str:
        return str(self.properties.get(ORIGINAL_ID) or self.message_id)


class MessageDelivery:
    """Takes messages to the agent's steps and settles what cannot be done now."""

    def __init__(
        self,
        agent: DatabricksAgent,
        *,
        queues: ActionQueues,
        history: DecisionHistory,
        settings: Settings,
        clock: Callable[[], datetime] = utc_now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._agent = agent
        self._queues = queues
        self._history = history
        self._settings = settings
        self._now = clock
        self._jitter = jitter

    def deliver(self, envelope: Envelope) -> None:
        """Carry the message's step out. Raises what must be delivered again, or go to the dead-letter queue.

        The step itself has a deadline; what is to become of the message afterwards has the time that is then left.
        """
        with (
            telemetry.log_fields(queue=envelope.queue, message_id=envelope.message_id),
            telemetry.processing(
                envelope.queue,
                message_id=envelope.message_id,
                delivery_count=envelope.delivery_count,
                properties=envelope.properties,
                host_traceparent=envelope.host_traceparent,
            ),
        ):
            self._settle(envelope, self._understood(envelope))

    def _understood(self, envelope: Envelope) -> Message:
        try:
            return MESSAGE_TYPES[envelope.queue].parse(envelope.body)
        except InvalidMessageError as error:
            self._reject(envelope, error)
            raise

    def _settle(self, envelope: Envelope, message: Message) -> None:
        ids = {"workspace": message.workspace, "run_id": message.run_id, "failure_id": message.failure_id}
        telemetry.name_in_span(**ids)
        with telemetry.log_fields(**ids):
            try:
                with deadline.within(self._settings.invocation_seconds):
                    self._carry_out_despite_races(message, envelope.deferrals)
            except TransientError as error:
                self._put_off_or_reject(envelope, message, error)
            except PermanentError as error:
                self._reject(envelope, error)
                raise

    def _carry_out_despite_races(self, message: Message, deferrals: int) -> None:
        for _ in range(TRIES_AFTER_A_LOST_RACE - 1):
            try:
                self._carry_out(message, deferrals)
            except ConflictError:
                continue
            return
        self._carry_out(message, deferrals)

    def _carry_out(self, message: Message, deferrals: int) -> None:
        match message:
            case FailedRunMessage():
                self._agent.decide_action(message, deferrals=deferrals)
            case RetryMessage():
                self._agent.retry_run(message)
            case EmailMessage():
                self._agent.send_email(message)
            case _:
                assert_never(message)

    def _put_off_or_reject(self, envelope: Envelope, message: Message, error: TransientError) -> None:
        """Where it can be neither put off nor given up, it is delivered again, until the dead-letter queue takes it."""
        try:
            self._put_off(envelope, message, error)
        except ConflictError:
            raise
        except AgentError as refusal:
            self._reject(envelope, refusal)
            raise

    def _put_off(self, envelope: Envelope, message: Message, error: TransientError) -> None:
        now = self._now()
        first_seen = self._first_seen(envelope, now)
        waited = now - first_seen
        if waited > timedelta(hours=self._settings.defer_give_up_hours) and not isinstance(error, HeldError):
            self._agent.park(message, f"Given up after {waited.total_seconds() / 3600:.0f} hours: {error}")
            return
        count = envelope.deferrals + 1
        due = now + timedelta(seconds=self._delay_seconds(error, count))
        copy = OutgoingMessage(
            body=envelope.body.decode(),
            message_id=bounded_id(f"{envelope.original_id}:defer-{count}"),
            due=due,
            properties={
                **telemetry.kept_trace_properties(envelope.properties),
                DEFERRALS: count,
                FIRST_SEEN: first_seen.isoformat(),
                ORIGINAL_ID: envelope.original_id,
            },
        )
        self._queues.send(envelope.queue, [copy])
        self._note_wait(message, due)
        logger.warning(
            "message put off",
            extra={
                "deferrals": count,
                "due": due.isoformat(),
                "reason": type(error).__name__,
            },
        )

    def _note_wait(self, message: Message, due: datetime) -> None:
        try:
            self._agent.note_wait(message, due)
        except AgentError as error:  # the copy is there: at worst `follow_up` sends another one
            logger.info("wait not noted", extra={"reason": type(error).__name__})

    def _delay_seconds(self, error: TransientError, count: int) -> float:
        """Thousands may wait for the same turn: they ask ever more rarely, and not all at the same time."""
        if isinstance(error, PausedError):
            return error.seconds
        if isinstance(error, ThrottledError) and error.retry_after_seconds is not None:
            longest_wait = self._settings.defer_give_up_hours * 3600
            return min(error.retry_after_seconds, longest_wait) + self._jitter()
        longest = min(self._settings.defer_cap_seconds, self._settings.defer_base_seconds * 2 ** (min(count, 20) - 1))
        backoff = float(longest) * (0.5 + self._jitter() / 2)
        return max(error.seconds, backoff) if isinstance(error, HeldError) else backoff

    def _first_seen(self, envelope: Envelope, now: datetime) -> datetime:
        try:
            return datetime.fromisoformat(str(envelope.properties[FIRST_SEEN]))
        except (KeyError, ValueError):
            return now

    def _reject(self, envelope: Envelope, error: AgentError) -> None:
        """Keep why it is refused, in the history; where that cannot be written, in the log."""
        try:
            self._history.record_rejected(
                queue=envelope.queue,
                message_id=envelope.message_id,
                reason=str(error),
                body_sha256=hashlib.sha256(envelope.body).hexdigest(),
                at=self._now(),
            )
        except AgentError as problem:
            refusal = redact(str(error))
            logger.error("refusal not recorded", extra={"reason": type(problem).__name__, "refusal": refusal})  # noqa: TRY400 - its text alone
        logger.error("message refused", extra={"reason": type(error).__name__})
