"""Incidents as the steps write them: every change of a row with its event, and the messages that carry it on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from shared import telemetry
from shared.admission import Admission
from shared.domain import (
    Attempt,
    AttemptKind,
    AttemptOutcome,
    Category,
    Change,
    Decision,
    DecisionKind,
    Event,
    FailureId,
    Incident,
    IncidentState,
    RunState,
    RunSummary,
    unread_failure_id,
)
from shared.errors import AgentError, ConflictError, NotAuthorisedError, PausedError, PermanentError
from shared.learning import Learning
from shared.messages import (
    EMAILS,
    FAILED_RUNS,
    RETRIES,
    EmailMessage,
    FailedRunMessage,
    RetryMessage,
    bounded_id,
)
from shared.ports import ActionQueues, DecisionHistory, EmailSender, JobRuns, OutgoingMessage
from shared.settings import Settings

logger = telemetry.logger(__name__)

UNREAD = "policy.unread"
"""The rule of a decision about a run that may not be read."""


class Parked(StrEnum):
    """Why an incident ended without anybody having been told."""

    MAIL_REFUSED = "mail_refused"
    MAIL_IN_DOUBT = "mail_in_doubt"
    WAITED_TOO_LONG = "waited_too_long"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the steps work with. `now` and `guid` are given, so that tests decide them."""

    runs: JobRuns
    mails: EmailSender
    history: DecisionHistory
    queues: ActionQueues
    settings: Settings
    now: Callable[[], datetime]
    guid: Callable[[], str]


class Incidents:
    """Reads and writes incidents, and sends what they call for."""

    def __init__(self, parts: Parts, admission: Admission, learning: Learning) -> None:
        self._parts = parts
        self._history = parts.history
        self._admission = admission
        self._learning = learning

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def new(self, state: RunState) -> Incident:
        """An incident for a failure seen for the first time; not yet stored."""
        bare = self.new_unread(state.workspace, state.run_id, state.failure_id)
        return replace(
            bare, job_id=state.job_id, job_name=state.name, page_url=state.page_url, failed_at=state.end_time
        )

    def new_unread(self, workspace: str, run_id: int, failure_id: FailureId) -> Incident:
        """The same for a failure of which no more than this can be read."""
        now = self._parts.now()
        return Incident(
            workspace=workspace,
            run_id=run_id,
            watched_run_id=run_id,
            job_id=None,
            job_name="",
            page_url="",
            state=IncidentState.DETECTED,
            failure_id=failure_id,
            detected_at=now,
            updated_at=now,
            due_at=now,
        )

    def remember(self, state: RunState) -> None:
        """A row for a failure seen for the first time, so that it cannot be lost with its message."""
        if not self.may_be_a_retry(state):
            self._keep_first(self.new(state))

    def _keep_first(self, incident: Incident) -> None:
        if self._history.read_incident(incident.workspace, incident.run_id) is None:
            try:
                self.save(incident)
            except ConflictError:
                logger.info("incident is known already", extra={"run_id": incident.run_id})

    def may_be_a_retry(self, run: RunState) -> bool:
        """Whether a run that is not known may have been started for an incident whose link to it is not stored yet.

        The link is stored before the attempt names the run: ask this first and read the run's incident afterwards.
        """
        if run.trigger != "ONE_TIME":  # runs.list: started on demand, through the UI or the API
            return False
        return any(
            attempt.kind is AttemptKind.RUN_NOW and attempt.effect_id is None
            for incident in self._history.open_incidents(run.workspace)
            if incident.job_id == run.job_id and (attempt := incident.open_attempt)
        )

    def next_failure(self, incident: Incident, failure_id: FailureId, run: RunState | None) -> Incident:
        """The incident as it enters its next failure (not yet stored): its open attempt, if it has one, has failed.

        `run` None = it could not be read.
        """
        if incident.failure_id == failure_id:
            return incident
        attempts = incident.attempts
        if attempt := incident.open_attempt:
            effect = attempt.effect_id
            if run:
                effect = run.run_id if attempt.kind is AttemptKind.RUN_NOW else run.latest_repair_id
            ours = attempt.effect_id in (None, effect)
            outcome = AttemptOutcome.FAILED_AGAIN if ours else AttemptOutcome.SUPERSEDED
            ended = replace(attempt, effect_id=attempt.effect_id or effect, outcome=outcome, ended_at=self._parts.now())
            attempts = (*attempts[:-1], ended)
            self._note_end(incident, ended)
        incident = replace(
            incident,
            failure_id=failure_id,
            past_failures=(*incident.past_failures, incident.failure_id),
            attempts=attempts,
            decision=None,
            mail_claim="",
            mail_claimed_at=None,
            resends=0,
        )
        if run is None:
            return incident
        return replace(
            incident,
            job_id=run.job_id,
            failed_at=run.end_time,
            watched_run_id=run.run_id,
            page_url=run.page_url,
        )

    def save(self, incident: Incident) -> Incident:
        return self._history.save_incident(
            replace(incident, updated_at=self._parts.now(), write_guid=self._parts.guid())
        )

    def record(self, incident: Incident, kind: str, **details: object) -> None:
        """Keep an event and log it, as fields."""
        self._history.record(Event(incident.workspace, incident.run_id, self._parts.now(), kind, details))
        logger.info(
            "incident %s",
            kind,
            extra={
                "workspace": incident.workspace,
                "run_id": incident.run_id,
                "job_id": incident.job_id,
                "failure_id": incident.failure_id,
                "state": str(incident.state),
            },
        )

    def close(self, incident: Incident, state: IncidentState, why: str, **details: object) -> Incident:
        if state is IncidentState.FAILED_AGAIN:
            self._note_failed_fixes(incident)
        incident = self.save(replace(incident, state=state, ended_why=why, due_at=self._parts.now()))
        self.record(incident, str(state), why=why, **details)
        return incident

    def give_up(self, incident: Incident, reason: Parked, why: str) -> None:
        """Close an incident that nobody is told about; it is counted, so that the operator hears of it."""
        incident = self.save(replace(incident, state=IncidentState.PARKED, ended_why=why, due_at=self._parts.now()))
        telemetry.parked(reason)  # as soon as it is stored: whatever goes wrong from here on, it is not given up again
        self.record(incident, str(incident.state), why=why, reason=str(reason))

    def _note_failed_fixes(self, incident: Incident) -> None:
        """Each way of retrying that did not heal the incident counts once, however often it was tried."""
        if incident.decision is None:
            return
        for changes in dict.fromkeys(a.changes for a in incident.attempts if a.outcome is AttemptOutcome.FAILED_AGAIN):
            tried = replace(
                incident.decision,
                decision=DecisionKind.RETRY_WITH_PARAMS if changes else DecisionKind.RETRY,
                changes=tuple(Change.from_word(word) for word in changes),
            )
            key = f"{incident.run_id}:{','.join(changes)}"
            self._learning.note_result(incident.workspace, key, tried, worked=False)

    def end_attempt(self, incident: Incident, outcome: AttemptOutcome, state: IncidentState, why: str) -> Incident:
        """Close the incident together with its open attempt."""
        attempt = replace(incident.attempts[-1], outcome=outcome, ended_at=self._parts.now())
        self._note_end(incident, attempt)
        return self.close(replace(incident, attempts=(*incident.attempts[:-1], attempt)), state, why)

    def _note_end(self, incident: Incident, attempt: Attempt) -> None:
        """Tell the safeguards and the experience how a retry went, before the incident says so itself."""
        worked = attempt.outcome is AttemptOutcome.RECOVERED
        self._admission.note_outcome(incident.workspace, retry_key(incident, attempt), succeeded=worked)
        if worked and incident.decision:
            self._learning.note_result(incident.workspace, retry_key(incident, attempt), incident.decision, worked=True)

    def escalate(
        self,
        incident: Incident,
        why: str,
        *,
        rule: str = "not_possible",
        outcome: AttemptOutcome | None = AttemptOutcome.UNKNOWN,
    ) -> None:
        """Turn to people what could not be done. In a dry run they are not told, as of every decision.

        `outcome` = how the open attempt ends, where there is one; None = it never became an effect and does not count.
        """
        attempts = incident.attempts
        if attempt := incident.open_attempt:
            self._admission.note_outcome(incident.workspace, retry_key(incident, attempt), succeeded=False)
            ended = (replace(attempt, outcome=outcome, ended_at=self._parts.now()),) if outcome else ()
            attempts = (*attempts[:-1], *ended)
        decision = incident.decision or unread_decision(incident.failure_id)
        decision = replace(
            decision,
            decision=DecisionKind.ESCALATE_EMAIL,
            reason=f"{decision.reason} {why}",
            rules=tuple(dict.fromkeys((*decision.rules, f"policy.{rule}"))),
            carried_out=True,
            not_carried_out_why="",
        )
        incident = self.save(
            replace(
                incident,
                attempts=attempts,
                decision=decision,
                recipients=incident.recipients or self._parts.settings.escalation_emails,
                state=IncidentState.SKIPPED if self._parts.settings.dry_run else IncidentState.DECIDED,
                ended_why=why if self._parts.settings.dry_run else "",
                due_at=self._parts.now(),
            )
        )
        self.record(incident, "escalated", why=why)
        self.send_action(incident)

    def park(self, message: RetryMessage | EmailMessage | FailedRunMessage, why: str) -> None:
        """Give an incident up that could not move for too long, and tell people, unless it is the mail that failed."""
        incident = self._history.read_incident(message.workspace, message.run_id)
        if incident is None or message.failure_id in incident.past_failures:
            return
        same_failure = incident.failure_id == message.failure_id
        if isinstance(message, FailedRunMessage) and not (same_failure and incident.decision):
            self.escalate(self.next_failure(incident, message.failure_id, None), why)
        elif same_failure and incident.state in (IncidentState.DECIDED, IncidentState.ACTING):
            if isinstance(message, EmailMessage):
                self.give_up(incident, Parked.WAITED_TOO_LONG, why)
            else:
                self.escalate(incident, why)

    def escalate_unread(self, incident: Incident, error: PermanentError) -> None:
        """Tell people of a run that Databricks refuses for good to show; of the same run once."""
        if incident.decision and UNREAD in incident.decision.rules:
            return
        why = f"Databricks does not show what became of it: {refusal_of(error, needs='CAN_VIEW')}"
        self.escalate(incident, why, rule="unread")

    def note_wait(self, message: RetryMessage | EmailMessage | FailedRunMessage, until: datetime) -> None:
        """Note with the incident how long its message waits, so that `follow_up` does not take it for lost.

        A short wait is not worth a write, which might cost another worker its own.
        """
        incident = self._history.read_incident(message.workspace, message.run_id)
        if (
            incident is None
            or incident.state.is_terminal
            or incident.state is IncidentState.GATHERED  # it waits for a digest, not for a message
            or message.failure_id in incident.past_failures
        ):
            return
        if until - incident.due_at >= timedelta(minutes=self._parts.settings.stale_after_minutes) / 2:
            self.save(replace(incident, due_at=until))

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def send_failed(self, states: Sequence[RunState], source: str) -> None:
        """Send failures on to be decided."""
        messages = [
            FailedRunMessage.model_validate(
                {
                    "workspace": state.workspace,
                    "run_id": state.run_id,
                    "failure_id": state.failure_id,
                    "source": source,
                }
            )
            for state in states
        ]
        if messages:
            self._parts.queues.send(FAILED_RUNS, [OutgoingMessage(m.to_json(), m.message_id) for m in messages])

    def send_unread(self, workspace: str, run_id: int, run: RunSummary | None) -> None:
        """Send on, and remember, a run that may not be read; None = not even the list of ended runs has it."""
        failure_id = unread_failure_id(workspace, run_id, run.end_time if run else None)
        incident = self.new_unread(workspace, run_id, failure_id)
        self._keep_first(replace(incident, job_id=run.job_id, failed_at=run.end_time) if run else incident)
        message = FailedRunMessage(workspace=workspace, run_id=run_id, failure_id=failure_id, source="timer")
        self._send(FAILED_RUNS, message, again=0)

    def send_action(self, incident: Incident, *, again: int = 0) -> None:
        """Send what the stored decision calls for. `again` makes the id a new one, for a repetition on purpose."""
        if incident.decision is None or incident.state is not IncidentState.DECIDED:
            return
        decision = incident.decision
        if decision.decision.is_retry and decision.carried_out:
            due = incident.due_at if incident.due_at > self._parts.now() else None
            self._send(RETRIES, retry_message(incident, len(incident.attempts) + 1), again=again, due=due)
        else:
            self._send(EMAILS, email_message(incident), again=again)

    def send_overdue(self, incident: Incident, *, again: int) -> None:
        """Send an overdue incident's message once more. A claim that was cut off is looked at again, not repeated."""
        if incident.state is IncidentState.ACTING and incident.mail_claim:
            self._send(EMAILS, email_message(incident), again=again)
        elif incident.state is IncidentState.ACTING:
            self._send(RETRIES, retry_message(incident, len(incident.attempts)), again=again)
        elif incident.decision is None:
            message = FailedRunMessage(
                workspace=incident.workspace,
                run_id=incident.watched_run_id,
                failure_id=incident.failure_id,
                source="follow_up",
            )
            self._send(FAILED_RUNS, message, again=again)
        else:
            self.send_action(incident, again=again)

    def _send(
        self,
        queue: str,
        message: RetryMessage | EmailMessage | FailedRunMessage,
        *,
        again: int,
        due: datetime | None = None,
    ) -> None:
        message_id = bounded_id(f"{message.message_id}:again-{again}") if again else message.message_id
        self._parts.queues.send(queue, [OutgoingMessage(message.to_json(), message_id, due)])

    # ── may it act? ─────────────────────────────────────────────────────────────────────────────────────────────────

    def stop_if_paused(self) -> None:
        """Raise PausedError where a person has paused all actions, or where that cannot be read."""
        seconds = self._parts.settings.pause_check_seconds
        try:
            pause = self._history.read_pause()
        except AgentError as error:
            raise PausedError(
                f"cannot read whether actions are paused, so they are: {error}", seconds=seconds
            ) from error
        if pause.paused:
            raise PausedError(
                f"all actions are paused by {pause.by or 'somebody'}: {pause.why or 'no reason given'}", seconds=seconds
            )

    def is_fresh(self, claimed_at: datetime | None) -> bool:
        """Whether a write that was claimed at that time may still be sent, and may still arrive."""
        if claimed_at is None:
            return False
        return (self._parts.now() - claimed_at).total_seconds() < self._parts.settings.claim_settle_seconds


def retry_key(incident: Incident, attempt: Attempt) -> str:
    """Name of a retry in the safeguards."""
    return f"{incident.run_id}:{attempt.number}"


def retry_message(incident: Incident, attempt: int) -> RetryMessage:
    return RetryMessage(
        workspace=incident.workspace, run_id=incident.run_id, failure_id=incident.failure_id, attempt=attempt
    )


def email_message(incident: Incident) -> EmailMessage:
    is_suggestion = incident.decision is not None and incident.decision.decision.is_retry
    return EmailMessage(
        workspace=incident.workspace,
        run_id=incident.run_id,
        failure_id=incident.failure_id,
        kind="suggestion" if is_suggestion else "escalation",
    )


def refusal_of(error: PermanentError, *, needs: str) -> str:
    """What Databricks answered, and the permission on the job that is missing, if it is that."""
    if isinstance(error, NotAuthorisedError):
        return f"{error}. The agent's identity needs {needs} on the job."
    return str(error)


def unread_decision(failure_id: FailureId) -> Decision:
    """The decision about a failure that could never be read: people must look."""
    return Decision(
        failure_id=failure_id,
        decision=DecisionKind.ESCALATE_EMAIL,
        recommended=DecisionKind.ESCALATE_EMAIL,
        category=Category.UNKNOWN,
        reason="The failed run could not be read.",
        confidence=0.0,
        rules=(UNREAD,),
        fingerprint="",
        excerpt="",
        cause="the run could not be read",
    )
