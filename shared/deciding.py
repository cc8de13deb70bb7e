"""Step 2, decide: once per failure; the stored decision is the only one, however often its message comes."""

from dataclasses import replace
from datetime import timedelta

from shared.admission import Admission
from shared.domain import Decision, DecisionKind, FailureId, Incident, IncidentState, LeaseState, RunFacts, is_unread
from shared.error_decision_engine import ErrorDecisionEngine
from shared.errors import ConflictError, OutcomeUnknownError, PermanentError, RunNotFoundError
from shared.incidents import UNREAD, Incidents, Parts
from shared.learning import PATIENCE
from shared.messages import FailedRunMessage
from shared.triage import changes
from shared.triage.policy import carry_out, mode_of, recipients_of


class Deciding:
    """Reads a failure, decides, stores the decision, sends its action."""

    def __init__(self, parts: Parts, incidents: Incidents, admission: Admission, engine: ErrorDecisionEngine) -> None:
        self._parts = parts
        self._incidents = incidents
        self._admission = admission
        self._engine = engine

    def decide_action(self, message: FailedRunMessage, *, deferrals: int = 0) -> None:
        """Decide about the failure; a decision that is stored already is only sent again."""
        incident = self._parts.history.read_incident(message.workspace, message.run_id)
        if incident and message.failure_id in incident.past_failures:
            return
        if incident and incident.failure_id == message.failure_id and incident.decision:
            self._incidents.send_action(incident)
            return
        try:
            facts = self._with_own_settings(self._parts.runs.read_facts(message.workspace, message.run_id))
        except RunNotFoundError as error:
            if incident:
                self._incidents.close(incident, IncidentState.SKIPPED, f"the run is gone: {error}")
            return
        except PermanentError as error:
            self._give_up_reading(incident, message, error)
            return
        if incident is None and self._incidents.may_be_a_retry(facts.run):
            raise OutcomeUnknownError(f"run {facts.run.run_id}: it may be a retry whose start was not recorded yet")
        if incident is None and self._parts.history.read_incident(message.workspace, message.run_id):
            raise ConflictError(f"run {facts.run.run_id} became known meanwhile: read it again")
        if facts.run.failure_id != message.failure_id:
            if incident and incident.failure_id == facts.run.failure_id:
                return  # the message was late: the failure after it has been decided already
            if facts.run.is_failed and not facts.run.is_active:
                self._incidents.send_failed([facts.run], message.source)
                if is_unread(message.failure_id):
                    return  # it can be read by now, and is decided about under its own name
        self._decide(incident, facts, message.failure_id, may_wait=deferrals < PATIENCE)

    def _give_up_reading(self, incident: Incident | None, message: FailedRunMessage, error: PermanentError) -> None:
        if incident is None:
            incident = self._incidents.new_unread(message.workspace, message.run_id, message.failure_id)
        elif incident.decision is None or UNREAD not in incident.decision.rules:
            incident = self._incidents.next_failure(incident, message.failure_id, None)
        self._incidents.escalate_unread(incident, error)

    def _with_own_settings(self, facts: RunFacts) -> RunFacts:
        """The facts with the job's settings as they are without our changes: no change is made on top of another."""
        if facts.job is None:
            return facts
        lease = self._parts.history.read_lease(facts.run.workspace, facts.job.job_id)
        if lease is None:
            return facts
        leased = () if lease.state is LeaseState.CLOSED else lease.changes
        own = changes.own_settings((*leased, *lease.unanswered), facts.job.settings)
        return replace(facts, job=replace(facts.job, settings=own))

    def _decide(self, incident: Incident | None, facts: RunFacts, failure_id: FailureId, *, may_wait: bool) -> None:
        now = self._parts.now()
        settings = self._parts.settings
        incident = (
            self._incidents.next_failure(incident, failure_id, facts.run)
            if incident
            else self._incidents.new(facts.run)
        )
        decision = self._engine.decide(facts, incident.attempts, now=now, may_wait=may_wait)
        if facts.run.failure_id != failure_id:
            decision = moved_on(decision, failure_id)
        mode = mode_of(facts.tags, settings.default_mode)
        done, why = carry_out(decision.decision, mode, dry_run=settings.dry_run)
        decision = replace(decision, carried_out=done, not_carried_out_why=why)
        incident = replace(
            incident,
            failure_id=failure_id,
            job_name=facts.job.name if facts.job else incident.job_name,
            decision=decision,
            mode=mode,
            recipients=recipients_of(
                facts.tags,
                owners=settings.owners,
                default=settings.escalation_emails,
                allowed_domains=settings.allowed_recipient_domains,
            ),
            due_at=now + timedelta(seconds=decision.delay_seconds),
            state=IncidentState.DECIDED,
            ended_why="",
        )
        if decision.decision is DecisionKind.SKIP or settings.dry_run:
            incident = replace(incident, state=IncidentState.SKIPPED, ended_why=why or decision.reason)
        elif decision.recommended.is_retry:
            self._admission.note_failure(incident.workspace, decision.fingerprint)
        incident = self._incidents.save(incident)
        self._incidents.record(
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
        self._incidents.send_action(incident)


def moved_on(decision: Decision, failure_id: FailureId) -> Decision:
    """The decision about a failure that is no longer the run's latest."""
    return replace(
        decision,
        failure_id=failure_id,
        decision=DecisionKind.SKIP,
        reason="The run was repaired by somebody else before a decision was made.",
        rules=(*decision.rules, "policy.repaired_meanwhile"),
    )
