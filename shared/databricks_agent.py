"""DatabricksAgent: the use cases, one method per step of DESIGN §2; `monitor_jobs` chains them without queues.

Each step may be cut off at any line and be delivered again. The rules that make this harmless: the history is written
before and after every effect; an effect that may have happened is looked up, never sent blind a second time; a message
is only a reference, so an old one finds the incident moved on and does nothing.
"""

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from shared import detection
from shared.domain import (
    Attempt,
    AttemptKind,
    AttemptOutcome,
    Category,
    Decision,
    DecisionKind,
    EscalationMail,
    Event,
    FailureId,
    Incident,
    IncidentState,
    Json,
    RunFacts,
    RunState,
    RunSummary,
)
from shared.decision_history import InMemoryDecisionHistory
from shared.error_decision_engine import ErrorDecisionEngine
from shared.errors import (
    AgentError,
    ConfigurationError,
    ConflictError,
    OutcomeUnknownError,
    PausedError,
    PermanentError,
    RepairImpossibleError,
    RepairRefusedError,
    RunNotFoundError,
    TransientError,
)
from shared.messages import (
    EMAILS,
    FAILED_RUNS,
    RETRIES,
    EmailMessage,
    FailedRunMessage,
    QueueMessage,
    RetryMessage,
    bounded_id,
)
from shared.monitoring import InlineQueues, Summary, summarise, unread_report
from shared.ports import ActionQueues, DecisionHistory, EmailSender, JobRuns, OutgoingMessage
from shared.settings import Settings
from shared.triage.changes import parameters_of
from shared.triage.policy import carry_out, mode_of, recipients_of

if TYPE_CHECKING:
    from shared.azure_openai_client import AzureOpenAIClient

logger = logging.getLogger(__name__)

NO_MORE_WAITING = 1_000
"""A number of deferrals from which on nothing waits for the model any more."""

MAX_SWEEP = 200
"""Old incidents re-read per sweep and workspace, so that a sweep stays inside one function call."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_guid() -> str:
    return uuid.uuid4().hex


class DatabricksAgent:
    """Finds failed runs, decides, retries, mails, follows up. All parts are given; nothing is built here."""

    def __init__(
        self,
        azure_openai_client: "AzureOpenAIClient | None",
        databricks_connector: JobRuns,
        email_notifier: EmailSender,
        error_decision_engine: ErrorDecisionEngine,
        *,
        settings: Settings | None = None,
        history: DecisionHistory | None = None,
        queues: ActionQueues | None = None,
        clock: Callable[[], datetime] = utc_now,
        guid: Callable[[], str] = new_guid,
    ) -> None:
        self._openai = azure_openai_client
        self._runs = databricks_connector
        self._mails = email_notifier
        self._engine = error_decision_engine
        if settings is None:
            from shared.bootstrap import current_settings

            settings = current_settings()
        self._settings = settings
        self._history_or_none = history
        self._queues_or_none = queues
        self._now = clock
        self._guid = guid
        self._may_start_runs = True

    @property
    def _history(self) -> DecisionHistory:
        if self._history_or_none is None:
            raise PermanentError("this step needs a decision history; monitor_jobs works without one")
        return self._history_or_none

    @property
    def _queues(self) -> ActionQueues:
        if self._queues_or_none is None:
            raise PermanentError("this step needs queues; monitor_jobs works without them")
        return self._queues_or_none

    # ── find ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def find_failures(self) -> int:
        """One detection tick over all workspaces; how many failures were sent to be decided.

        A workspace that cannot be read does not hold up the others; its error is raised once they are done.
        """
        found = 0
        problem: AgentError | None = None
        for workspace in self._runs.workspaces:
            try:
                found += self._find_in(workspace)
            except ConflictError:
                logger.info("another tick was faster", extra={"workspace": workspace})
            except AgentError as error:
                logger.warning("tick failed", extra={"workspace": workspace, "reason": str(error)})
                problem = error
        if problem:
            raise problem
        return found

    def _find_in(self, workspace: str) -> int:
        started_at = self._now()
        scan = self._history.read_scan(workspace)
        active = self._runs.active_runs(workspace)
        job_ids = self._engine.limits.job_ids
        if scan is None:
            self._history.save_scan(detection.first_scan(workspace, active, job_ids=job_ids, started_at=started_at))
            return 0
        overlap = self._settings.overlap
        completed = self._runs.completed_runs(workspace, started_after=detection.window_start(scan, overlap))
        plan = detection.plan_tick(
            scan,
            active,
            completed,
            job_ids=job_ids,
            overlap=overlap,
            started_at=started_at,
        )
        states = self._states(workspace, plan.to_read)
        failed = [state for state in states if state.is_failed]
        next_scan = replace(
            plan.next_scan, active=plan.next_scan.active | {state.run_id for state in states if state.is_active}
        )
        for state in failed:
            self._remember(state)
        self._send_failed(failed, "timer")
        if started_at - scan.swept_at >= timedelta(minutes=self._settings.sweep_interval_minutes):
            failed += self._sweep(workspace, started_at)
            next_scan = replace(next_scan, swept_at=started_at)
        self._history.save_scan(next_scan)
        return len(failed)

    def _states(self, workspace: str, run_ids: Iterable[int]) -> list[RunState]:
        states = []
        for run_id in run_ids:
            try:
                states.append(self._runs.read_state(workspace, run_id))
            except PermanentError as error:  # gone, or not ours to read: no reason to read all others again and again
                logger.warning(
                    "run cannot be read",
                    extra={"workspace": workspace, "run_id": run_id, "reason": type(error).__name__},
                )
        return states

    def _sweep(self, workspace: str, now: datetime) -> list[RunState]:
        """Closed incidents whose run failed once more after a repair that began and ended between two ticks."""
        since = now - timedelta(days=self._settings.sweep_days)
        closed = [i for i in self._history.closed_incidents(workspace, updated_after=since) if i.failed_at]
        closed.sort(key=lambda incident: incident.updated_at, reverse=True)
        known = {failure for i in closed for failure in (i.failure_id, *i.past_failures)}
        states = self._states(workspace, [incident.watched_run_id for incident in closed[:MAX_SWEEP]])
        again = [state for state in states if state.is_failed and state.failure_id not in known]
        self._send_failed(again, "sweep")
        return again

    def _remember(self, state: RunState) -> None:
        """A row for a failure seen for the first time, so that it cannot be lost with its message."""
        if self._history.read_incident(state.workspace, state.run_id) is None and not self._may_be_a_retry(state):
            try:
                self._save(self._new_incident(state))
            except ConflictError:
                logger.info("incident is known already", extra={"run_id": state.run_id})

    def _may_be_a_retry(self, run: RunState) -> bool:
        """Whether a run that is not known may have been started for an incident whose link to it is not stored yet."""
        if run.trigger != "ONE_TIME":  # runs.list: started on demand, through the UI or the API
            return False
        return any(
            attempt.kind is AttemptKind.RUN_NOW and attempt.effect_id is None
            for incident in self._history.open_incidents(run.workspace)
            if incident.job_id == run.job_id and (attempt := incident.open_attempt)
        )

    def _send_failed(self, states: Sequence[RunState], source: str) -> None:
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
            self._queues.send(FAILED_RUNS, [OutgoingMessage(m.to_json(), m.message_id) for m in messages])

    # ── decide ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def decide_action(self, message: FailedRunMessage, *, deferrals: int = 0) -> None:
        """Decide once about the failure, store the decision, send its action; a stored one is only sent again."""
        incident = self._history.read_incident(message.workspace, message.run_id)
        if incident and message.failure_id in incident.past_failures:
            return
        if incident and incident.failure_id == message.failure_id and incident.decision:
            self._send_action(incident)
            return
        try:
            facts = self._runs.read_facts(message.workspace, message.run_id)
        except RunNotFoundError as error:
            if incident:
                self._close(incident, IncidentState.SKIPPED, f"the run is gone: {error}")
            return
        if incident is None and self._may_be_a_retry(facts.run):
            raise OutcomeUnknownError(f"run {facts.run.run_id}: it may be a retry whose start was not recorded yet")
        if facts.run.failure_id != message.failure_id:
            if incident and incident.failure_id == facts.run.failure_id:
                return  # the message was late: the failure after it has been decided already
            if facts.run.is_failed and not facts.run.is_active:
                self._send_failed([facts.run], message.source)
        self._decide(incident, facts, message.failure_id, may_wait=deferrals < 3)

    def _decide(self, incident: Incident | None, facts: RunFacts, failure_id: FailureId, *, may_wait: bool) -> Incident:
        now = self._now()
        incident = self._next_failure(incident, failure_id, facts.run) if incident else self._new_incident(facts.run)
        decision = self._engine.decide(facts, incident.attempts, now=now, may_wait=may_wait)
        if facts.run.failure_id != failure_id:
            decision = replace(
                decision,
                failure_id=failure_id,
                decision=DecisionKind.SKIP,
                reason="The run was repaired by somebody else before a decision was made.",
                rules=(*decision.rules, "policy.repaired_meanwhile"),
            )
        mode = mode_of(facts.tags, self._settings.default_mode)
        done, why = carry_out(decision.decision, mode, dry_run=self._settings.dry_run)
        decision = replace(decision, carried_out=done, not_carried_out_why=why)
        incident = replace(
            incident,
            failure_id=failure_id,
            job_name=facts.job.name if facts.job else incident.job_name,
            decision=decision,
            mode=mode,
            recipients=recipients_of(
                facts.tags,
                owners=self._settings.owners,
                default=self._settings.escalation_emails,
                allowed_domains=self._settings.allowed_recipient_domains,
            ),
            due_at=now + timedelta(seconds=decision.delay_seconds),
            state=IncidentState.DECIDED,
            ended_why="",
        )
        if decision.decision is DecisionKind.SKIP or self._settings.dry_run:
            incident = replace(incident, state=IncidentState.SKIPPED, ended_why=why or decision.reason)
        incident = self._save(incident)
        self._record(
            incident,
            "decided",
            decision=str(decision.decision),
            recommended=str(decision.recommended),
            category=str(decision.category),
            rules=list(decision.rules),
            fingerprint=decision.fingerprint,
            carried_out=decision.carried_out,
            model_used=decision.model_used,
        )
        self._send_action(incident)
        return incident

    def _new_incident(self, state: RunState) -> Incident:
        now = self._now()
        return Incident(
            workspace=state.workspace,
            run_id=state.run_id,
            watched_run_id=state.run_id,
            job_id=state.job_id,
            job_name=state.name,
            page_url=state.page_url,
            state=IncidentState.DETECTED,
            failure_id=state.failure_id,
            detected_at=now,
            updated_at=now,
            due_at=now,
            failed_at=state.end_time,
        )

    def _next_failure(self, incident: Incident, failure_id: FailureId, run: RunState | None) -> Incident:
        """The incident as it enters its next failure: the open attempt, if there is one, has failed.

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
            ended = replace(attempt, effect_id=attempt.effect_id or effect, outcome=outcome, ended_at=self._now())
            attempts = (*attempts[:-1], ended)
        incident = replace(
            incident,
            failure_id=failure_id,
            past_failures=(*incident.past_failures, incident.failure_id),
            attempts=attempts,
            decision=None,
            mail_claim="",
            resends=0,
        )
        if run is None:
            return incident
        return replace(incident, failed_at=run.end_time, watched_run_id=run.run_id, page_url=run.page_url)

    def _send_action(self, incident: Incident, *, again: int = 0) -> None:
        """Send what the stored decision calls for. `again` makes the id a new one, for a repetition on purpose."""
        decision = incident.decision
        if decision is None or incident.state is not IncidentState.DECIDED:
            return
        message: QueueMessage
        if decision.decision.is_retry and decision.carried_out:
            queue, due = RETRIES, incident.due_at if incident.due_at > self._now() else None
            message = RetryMessage(
                workspace=incident.workspace,
                run_id=incident.run_id,
                failure_id=incident.failure_id,
                attempt=len(incident.attempts) + 1,
            )
        else:
            queue, due = EMAILS, None
            message = EmailMessage(
                workspace=incident.workspace,
                run_id=incident.run_id,
                failure_id=incident.failure_id,
                kind="suggestion" if decision.decision.is_retry else "escalation",
            )
        message_id = bounded_id(f"{message.message_id}:again-{again}") if again else message.message_id
        self._queues.send(queue, [OutgoingMessage(message.to_json(), message_id, due)])

    # ── retry ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def retry_run(self, message: RetryMessage) -> None:
        """Claim, re-read the run, repair it with the repair id frozen in the decision; at most once per attempt."""
        incident = self._history.read_incident(message.workspace, message.run_id)
        if incident is None:
            raise PermanentError(f"no incident for run {message.run_id}: nothing was decided about it")
        decision = incident.decision
        if (
            incident.failure_id != message.failure_id
            or decision is None
            or not decision.carried_out
            or incident.state not in (IncidentState.DECIDED, IncidentState.ACTING)
        ):
            return
        if not decision.decision.is_retry:
            self._send_action(incident)  # given to people meanwhile; a crash may have come before their message
            return
        self._stop_if_paused()
        try:
            run = self._runs.read_state(incident.workspace, incident.watched_run_id)
        except RunNotFoundError as error:
            self._close(incident, IncidentState.SKIPPED, f"the run is gone: {error}")
            return
        attempt = incident.open_attempt
        if attempt is None or incident.state is IncidentState.DECIDED:
            if run.is_active or not run.is_failed or run.failure_id != incident.failure_id:
                self._close(incident, IncidentState.SKIPPED, "repaired by somebody else before the retry")
                return
            if run.end_time and self._now() - run.end_time > self._engine.limits.max_failure_age:
                hours = self._settings.max_failure_age_hours
                self._escalate(incident, f"The retry waited until the failure was more than {hours:g} hours old.")
                return
            self._carry_out_retry(self._claim_retry(incident, decision), decision, run, doubtful=False)
            return
        if attempt.kind is AttemptKind.REPAIR and run.latest_repair_id != decision.latest_repair_id:
            self._retrying(incident, run.latest_repair_id)
            return
        if self._is_fresh(attempt.claimed_at):
            raise OutcomeUnknownError(f"run {run.run_id}: an earlier repair request may still arrive")
        self._carry_out_retry(incident, decision, run, doubtful=True)

    def _claim_retry(self, incident: Incident, decision: Decision) -> Incident:
        attempt = Attempt(
            number=len(incident.attempts) + 1,
            kind=AttemptKind.REPAIR,
            failure_id=incident.failure_id,
            with_changes=decision.decision is DecisionKind.RETRY_WITH_PARAMS,
            changes=tuple(change.word for change in decision.changes),
            claimed_at=self._now(),
            claim_guid=self._guid(),
        )
        return self._save(
            replace(incident, state=IncidentState.ACTING, attempts=(*incident.attempts, attempt), due_at=self._now())
        )

    def _carry_out_retry(self, incident: Incident, decision: Decision, run: RunState, *, doubtful: bool) -> None:
        """The effect itself, under a claim that is already stored.

        `doubtful` = an earlier try under the same claim may have landed. Sending once more is safe: a repair carries
        the same frozen repair id, a run-now the same token.
        """
        attempt = incident.attempts[-1]
        parameters = {**run.job_parameters, **parameters_of(decision.setting_changes)}
        try:
            if attempt.kind is AttemptKind.REPAIR:
                try:
                    effect_id = self._runs.repair_run(
                        incident.workspace,
                        run.run_id,
                        latest_repair_id=decision.latest_repair_id,
                        job_parameters=parameters,
                        legacy_parameters=run.legacy_parameters,
                    )
                except RepairImpossibleError:
                    if run.job_id is None or not self._may_start_runs:
                        raise
                    attempt = replace(attempt, kind=AttemptKind.RUN_NOW)
                    incident = self._save(replace(incident, attempts=(*incident.attempts[:-1], attempt)))
            if attempt.kind is AttemptKind.RUN_NOW:
                effect_id = self._run_now(incident, attempt, run, parameters)
        except RepairRefusedError as error:
            self._after_refusal(incident, decision, error, doubtful=doubtful)
            return
        except RunNotFoundError as error:
            self._close(incident, IncidentState.SKIPPED, f"the run is gone: {error}")
            return
        except PermanentError as error:
            self._escalate(incident, f"the retry was not possible: {error}")
            return
        self._retrying(incident, effect_id)

    def _run_now(self, incident: Incident, attempt: Attempt, run: RunState, parameters: dict[str, str]) -> int:
        """A new run where a repair is impossible. The token makes a repetition return the same run."""
        assert run.job_id is not None
        token = f"{incident.run_id}:{attempt.number}"
        new_run_id = self._runs.run_now(incident.workspace, run.job_id, token=token, job_parameters=parameters)
        self._history.link_run(incident.workspace, new_run_id, incident_run_id=incident.run_id)
        return new_run_id

    def _after_refusal(
        self, incident: Incident, decision: Decision, error: RepairRefusedError, *, doubtful: bool
    ) -> None:
        """The compare-and-swap failed: an earlier request of ours landed, or somebody else was faster."""
        if not doubtful:
            self._end_attempt(incident, AttemptOutcome.SUPERSEDED, IncidentState.SKIPPED, "repaired by somebody else")
            return
        run = self._runs.read_state(incident.workspace, incident.watched_run_id)
        if run.latest_repair_id == decision.latest_repair_id:
            raise OutcomeUnknownError(f"run {run.run_id}: refused, but no other repair shows yet") from error
        self._retrying(incident, run.latest_repair_id)

    def _is_fresh(self, claimed_at: datetime) -> bool:
        return self._now() - claimed_at < timedelta(seconds=self._settings.claim_settle_seconds)

    def _retrying(self, incident: Incident, effect_id: int | None) -> None:
        attempt = replace(incident.attempts[-1], effect_id=effect_id)
        watched = incident.watched_run_id
        if attempt.kind is AttemptKind.RUN_NOW and effect_id is not None:
            watched = effect_id
        incident = self._save(
            replace(
                incident,
                state=IncidentState.RETRYING,
                attempts=(*incident.attempts[:-1], attempt),
                watched_run_id=watched,
                due_at=self._now(),
            )
        )
        self._record(incident, "retried", attempt=attempt.number, how=str(attempt.kind), effect_id=effect_id)

    # ── mail ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def send_email(self, message: EmailMessage) -> None:
        """Claim, send one mail with a key of its own, mark it done; a doubtful one is looked up, not sent again."""
        incident = self._history.read_incident(message.workspace, message.run_id)
        if incident is None:
            raise PermanentError(f"no incident for run {message.run_id}: there is nothing to mail about")
        key = f"{message.failure_id}:{message.kind}"
        decision = incident.decision
        if (
            incident.failure_id != message.failure_id
            or decision is None
            or (decision.decision.is_retry and decision.carried_out)
            or incident.state not in (IncidentState.DECIDED, IncidentState.ACTING)
        ):
            return
        self._stop_if_paused()
        if incident.mail_claim == key:
            if self._is_fresh(incident.due_at):
                raise OutcomeUnknownError(f"run {incident.run_id}: an earlier mail may be under way")
            if self._mails.was_accepted(key):
                self._mailed(incident, key)
                return
        incident = self._save(replace(incident, mail_claim=key, state=IncidentState.ACTING, due_at=self._now()))
        try:
            self._mails.send(self._mail(incident, decision, message.kind, key))
        except OutcomeUnknownError:
            raise
        except TransientError:
            self._save(replace(incident, mail_claim="", state=IncidentState.DECIDED))
            raise
        except PermanentError as error:
            self._close(incident, IncidentState.PARKED, f"the mail could not be sent: {error}")
            raise
        self._mailed(incident, key)

    def _mail(self, incident: Incident, decision: Decision, kind: str, key: str) -> EscalationMail:
        return EscalationMail(
            kind=kind,
            key=key,
            workspace=incident.workspace,
            run_id=incident.watched_run_id,
            job_id=incident.job_id,
            job_name=incident.job_name,
            page_url=incident.page_url,
            failed_at=incident.failed_at,
            decision=decision,
            attempts=incident.attempts,
            recipients=incident.recipients,
            mode=incident.mode,
        )

    def _mailed(self, incident: Incident, key: str) -> None:
        state = IncidentState.FAILED_AGAIN if incident.attempts else IncidentState.ESCALATED
        incident = replace(incident, mailed=(*incident.mailed, key))
        self._close(incident, state, "mailed", recipients=len(incident.recipients))

    def _stop_if_paused(self) -> None:
        try:
            pause = self._history.read_pause()
        except AgentError as error:
            raise PausedError(f"cannot read whether actions are paused, so they are: {error}") from error
        if pause.paused:
            raise PausedError(f"all actions are paused by {pause.by or 'somebody'}: {pause.why or 'no reason given'}")

    # ── follow up ───────────────────────────────────────────────────────────────────────────────────────────────────

    def follow_up(self) -> int:
        """Close retries that have ended, send again what is overdue; how many incidents were moved."""
        moved = 0
        for workspace in self._runs.workspaces:
            for incident in self._history.open_incidents(workspace):
                try:
                    moved += self._follow(incident)
                except (ConflictError, PausedError) as error:
                    logger.info("left alone", extra={"run_id": incident.run_id, "reason": type(error).__name__})
                except AgentError as error:
                    logger.warning(
                        "could not follow up", extra={"run_id": incident.run_id, "reason": type(error).__name__}
                    )
        return moved

    def _follow(self, incident: Incident) -> bool:
        if incident.state is IncidentState.RETRYING:
            return self._follow_retry(incident)
        if self._now() - incident.due_at < timedelta(minutes=self._settings.stale_after_minutes):
            return False
        if incident.decision:
            self._stop_if_paused()  # a held message is still there: more copies of it would only pile up
        again = incident.resends + 1
        incident = self._save(replace(incident, resends=again, due_at=self._now()))
        if incident.state is IncidentState.ACTING:
            # The message of a claim that was cut off is lost: the claim is looked at again, never simply repeated.
            self._resend_claim(incident, again)
        elif incident.decision is None:
            self._resend_detected(incident, again)
        else:
            self._send_action(incident, again=again)
        self._record(incident, "sent_again", times=again)
        return True

    def _follow_retry(self, incident: Incident) -> bool:
        attempt = incident.open_attempt
        if attempt is None:
            return False
        try:
            run = self._runs.read_state(incident.workspace, incident.watched_run_id)
        except RunNotFoundError:
            self._end_attempt(incident, AttemptOutcome.GONE, IncidentState.SKIPPED, "the run is gone")
            return True
        if run.is_active or run.failure_id == incident.failure_id:
            return False  # under way, or the repair does not show yet
        if run.is_failed:
            self._send_failed([run], "follow_up")
            return True
        if attempt.kind is AttemptKind.RUN_NOW or attempt.effect_id == run.latest_repair_id:
            why = f"recovered by attempt {attempt.number}"
            self._end_attempt(incident, AttemptOutcome.RECOVERED, IncidentState.RECOVERED, why)
        else:
            why = "recovered by somebody else's repair"
            self._end_attempt(incident, AttemptOutcome.SUPERSEDED, IncidentState.RECOVERED, why)
        return True

    def _resend_claim(self, incident: Incident, again: int) -> None:
        if incident.mail_claim:
            mail = EmailMessage(
                workspace=incident.workspace,
                run_id=incident.run_id,
                failure_id=incident.failure_id,
                kind="suggestion" if incident.mail_claim.endswith(":suggestion") else "escalation",
            )
            message: QueueMessage = mail
            queue, message_id = EMAILS, mail.message_id
        else:
            retry = RetryMessage(
                workspace=incident.workspace,
                run_id=incident.run_id,
                failure_id=incident.failure_id,
                attempt=len(incident.attempts),
            )
            message, queue, message_id = retry, RETRIES, retry.message_id
        self._queues.send(queue, [OutgoingMessage(message.to_json(), bounded_id(f"{message_id}:again-{again}"))])

    def _resend_detected(self, incident: Incident, again: int) -> None:
        message = FailedRunMessage(
            workspace=incident.workspace,
            run_id=incident.watched_run_id,
            failure_id=incident.failure_id,
            source="follow_up",
        )
        self._queues.send(
            FAILED_RUNS, [OutgoingMessage(message.to_json(), bounded_id(f"{message.message_id}:again-{again}"))]
        )

    # ── one pass without queues ─────────────────────────────────────────────────────────────────────────────────────

    def monitor_jobs(
        self,
        job_ids: Iterable[int] | None = None,
        escalation_emails: Sequence[str] | None = None,
        *,
        window: timedelta | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Summary:
        """Find, decide and act in this process, about the runs that failed within the window (30 minutes by default).

        The way to run the agent inside a Databricks job, a container or cron. Without a history, attempts are counted
        from the runs' repair histories, and mails may repeat when windows overlap. A run that cannot be dealt with now
        is reported as `open` and does not hold up the others.
        """
        window = window or timedelta(minutes=self._settings.monitor_window_minutes)
        queues = InlineQueues()
        history = self._history_or_none or InMemoryDecisionHistory()
        emails = tuple(escalation_emails) if escalation_emails else self._settings.escalation_emails
        one_pass = DatabricksAgent(
            self._openai,
            self._runs,
            self._mails,
            self._engine,
            settings=self._settings.model_copy(update={"escalation_emails": emails}),
            history=history,
            queues=queues,
            clock=self._now,
            guid=self._guid,
        )
        # New runs have no repair history: without a history of our own, nothing would count how many were started.
        one_pass._may_start_runs = self._history_or_none is not None
        failed = self._failed_within(window, frozenset(job_ids or ()))
        incidents, unread = [], []
        for number, (workspace, run) in enumerate(failed, 1):
            if progress:
                progress(f"run {run.run_id} ({number} of {len(failed)})")
            problem = one_pass._handle(workspace, run.run_id, queues)
            incident = history.read_incident(workspace, run.run_id)
            if incident and incident.decision:
                incidents.append(incident)
            elif problem:
                unread.append(unread_report(run, problem))
        return summarise(incidents, unread, at=self._now(), dry_run=self._settings.dry_run)

    def _failed_within(self, window: timedelta, job_ids: frozenset[int]) -> list[tuple[str, RunSummary]]:
        now = self._now()
        started_after = now - window - timedelta(hours=self._settings.monitor_lookback_hours)
        wanted = job_ids or self._engine.limits.job_ids
        return [
            (workspace, run)
            for workspace in self._runs.workspaces
            for run in self._runs.completed_runs(workspace, started_after=started_after)
            if run.is_failed
            and run.end_time is not None
            and run.end_time >= now - window
            and (not wanted or run.job_id in wanted)
        ]

    def _handle(self, workspace: str, run_id: int, queues: InlineQueues) -> str:
        """Take one run as far as it goes now; what stopped it, or nothing."""
        try:
            state = self._runs.read_state(workspace, run_id)
            self._remember(state)
            self._send_failed([state], "timer")
            while taken := queues.take():
                queue, message = taken
                body = message.body.encode()
                if queue == FAILED_RUNS:
                    self.decide_action(FailedRunMessage.parse(body), deferrals=NO_MORE_WAITING)
                elif queue == RETRIES:
                    self.retry_run(RetryMessage.parse(body))
                else:
                    self.send_email(EmailMessage.parse(body))
        except AgentError as error:
            logger.warning("run left open", extra={"run_id": run_id, "reason": str(error)})
            return str(error)
        return ""

    # ── fine-tuning ─────────────────────────────────────────────────────────────────────────────────────────────────

    def prepare_training_data(self, run_history_file: str | Path, output_file: str | Path) -> int:
        """Write a fine-tuning file from a JSON array of `{error_message, decision, reason}`; how many examples."""
        from shared.training_data import write_training_data

        return write_training_data(Path(run_history_file), Path(output_file))

    def fine_tune_error_model(self, training_data_path: str | Path, model_name: str, suffix: str) -> str:
        """Start a fine-tuning job; its id."""
        return self._model().start_fine_tuning(Path(training_data_path), model=model_name, suffix=suffix)

    def get_fine_tune_status(self, job_id: str) -> Json:
        """`id, status, model, fine_tuned_model, error` of a fine-tuning job."""
        return self._model().fine_tuning_status(job_id)

    def _model(self) -> "AzureOpenAIClient":
        if self._openai is None:
            raise ConfigurationError("fine-tuning needs AZURE_OPENAI_ENDPOINT", names=("AZURE_OPENAI_ENDPOINT",))
        return self._openai

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def park(self, message: QueueMessage, why: str) -> None:
        """Give an incident up that could not move for too long, and tell people (by the mail's own queue message)."""
        incident = self._history.read_incident(message.workspace, message.run_id)
        if incident is None or message.failure_id in incident.past_failures:
            return
        same_failure = incident.failure_id == message.failure_id
        if isinstance(message, FailedRunMessage) and not (same_failure and incident.decision):
            self._escalate(self._next_failure(incident, message.failure_id, None), why)
        elif same_failure and incident.state in (IncidentState.DECIDED, IncidentState.ACTING):
            if isinstance(message, EmailMessage):
                self._close(incident, IncidentState.PARKED, why)
            else:
                self._escalate(incident, why)

    def _escalate(self, incident: Incident, why: str) -> None:
        """Turn to people what could not be done; an attempt that never became an effect does not count."""
        attempts = incident.attempts
        if incident.open_attempt and incident.state is IncidentState.ACTING:
            attempts = attempts[:-1]
        decision = incident.decision or unread_decision(incident.failure_id)
        decision = replace(
            decision,
            decision=DecisionKind.ESCALATE_EMAIL,
            reason=f"{decision.reason} {why}",
            rules=(*decision.rules, "policy.not_possible"),
            carried_out=True,
            not_carried_out_why="",
        )
        recipients = incident.recipients or self._settings.escalation_emails
        incident = self._save(
            replace(
                incident,
                attempts=attempts,
                decision=decision,
                recipients=recipients,
                state=IncidentState.DECIDED,
                due_at=self._now(),
            )
        )
        self._record(incident, "escalated", why=why)
        self._send_action(incident)

    def _end_attempt(self, incident: Incident, outcome: AttemptOutcome, state: IncidentState, why: str) -> None:
        attempt = replace(incident.attempts[-1], outcome=outcome, ended_at=self._now())
        self._close(replace(incident, attempts=(*incident.attempts[:-1], attempt)), state, why)

    def _close(self, incident: Incident, state: IncidentState, why: str, **details: object) -> None:
        incident = self._save(replace(incident, state=state, ended_why=why, due_at=self._now()))
        self._record(incident, str(state), why=why, **details)

    def _save(self, incident: Incident) -> Incident:
        return self._history.save_incident(replace(incident, updated_at=self._now(), write_guid=self._guid()))

    def _record(self, incident: Incident, kind: str, **details: object) -> None:
        self._history.record(Event(incident.workspace, incident.run_id, self._now(), kind, details))
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


def unread_decision(failure_id: FailureId) -> Decision:
    """The decision about a failure that could never be read: people must look."""
    return Decision(
        failure_id=failure_id,
        decision=DecisionKind.ESCALATE_EMAIL,
        recommended=DecisionKind.ESCALATE_EMAIL,
        category=Category.UNKNOWN,
        reason="The failed run could not be read.",
        confidence=0.0,
        rules=("policy.unread",),
        fingerprint="",
        excerpt="",
        cause="the run could not be read",
    )
