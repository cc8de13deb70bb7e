"""Step 3, retry: admit, claim, change what must change, repair with the frozen repair id; at most once per attempt."""

from collections.abc import Mapping
from dataclasses import replace

from shared.admission import Admission
from shared.domain import (
    Attempt,
    AttemptKind,
    AttemptOutcome,
    Decision,
    DecisionKind,
    Incident,
    IncidentState,
    RunState,
)
from shared.errors import (
    HeldError,
    OutcomeUnknownError,
    PermanentError,
    RepairImpossibleError,
    RepairRefusedError,
    RunNotFoundError,
)
from shared.incidents import Incidents, Parts, refusal_of, retry_key
from shared.leasing import Leasing
from shared.messages import RetryMessage
from shared.triage import changes
from shared.triage.policy import SWITCHED_OFF, Limits, StandDown, mode_of, newer_run_does_it, withdrawn
from shared.triage.safeguards import RetryRecord


class Retrying:
    """Carries out the retries that were decided."""

    def __init__(
        self,
        parts: Parts,
        incidents: Incidents,
        admission: Admission,
        leasing: Leasing,
        limits: Limits,
        *,
        may_start_runs: bool = True,
        may_lease_jobs: bool = True,
    ) -> None:
        """`may_start_runs` False = only repairs: without a lasting history nothing counts the runs started.

        `may_lease_jobs` False = no job is changed: without `follow_up` nothing would put it back.
        """
        self._parts = parts
        self._incidents = incidents
        self._admission = admission
        self._leasing = leasing
        self._limits = limits
        self._may_start_runs = may_start_runs
        self._may_lease_jobs = may_lease_jobs

    def retry_run(self, message: RetryMessage) -> None:
        """Make the retry, or look up what became of an earlier try to make it."""
        incident = self._parts.history.read_incident(message.workspace, message.run_id)
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
            self._incidents.send_action(incident)  # given to people meanwhile; their message may have been cut off
            return
        self._incidents.stop_if_paused()
        try:
            run = self._parts.runs.read_state(incident.workspace, incident.watched_run_id)
            done_by_another = self._no_longer_wanted(run)
        except RunNotFoundError as error:
            self._gone(incident, error)
            return
        except PermanentError as error:
            self._incidents.escalate_unread(incident, error)
            return
        if incident.state is IncidentState.DECIDED:
            if claimed := self._claim(incident, decision, run, done_by_another):
                self._carry_out(claimed, decision, run, doubtful=False)
        else:
            self._resume(incident, decision, run, done_by_another)

    def _gone(self, incident: Incident, error: RunNotFoundError) -> None:
        """The run or its job was deleted."""
        why = f"the run is gone: {error}"
        if incident.open_attempt:
            self._incidents.end_attempt(incident, AttemptOutcome.GONE, IncidentState.SKIPPED, why)
        else:
            self._incidents.close(incident, IncidentState.SKIPPED, why)

    def _claim(
        self, incident: Incident, decision: Decision, run: RunState, done_by_another: StandDown | None
    ) -> Incident | None:
        """The first try: is it still wanted, may it be made now, and then the claim before anything is done.

        None where it is not made.
        """
        if run.is_active or not run.is_failed or run.failure_id != incident.failure_id:
            self._incidents.close(incident, IncidentState.SKIPPED, "repaired by somebody else before the retry")
            return None
        if done_by_another:
            self._incidents.close(incident, IncidentState.SKIPPED, done_by_another.reason)
            return None
        if self._is_withdrawn(incident, decision, run):
            return None
        if run.end_time and self._parts.now() - run.end_time > self._limits.max_failure_age:
            hours = self._limits.max_failure_age.total_seconds() / 3600
            why = f"The retry waited until the failure was more than {hours:g} hours old."
            self._incidents.escalate(incident, why, rule="too_old")
            return None
        if changes.edits_job(decision.setting_changes):
            if not self._may_lease_jobs:
                why = "A pass without queues does not change jobs: nothing would put the settings back."
                self._incidents.escalate(incident, why, rule="no_lease")
                return None
            try:
                self._leasing.wait_for_free_job(incident)
            except PermanentError as error:
                self._incidents.escalate(incident, str(error), rule="lease_stuck")
                return None
        attempt = Attempt(
            number=len(incident.attempts) + 1,
            kind=AttemptKind.REPAIR,
            failure_id=incident.failure_id,
            with_changes=decision.decision is DecisionKind.RETRY_WITH_PARAMS,
            changes=tuple(change.word for change in decision.changes),
            claimed_at=self._parts.now(),
            claim_guid=self._parts.guid(),
        )
        if refusal := self._not_admitted(incident, decision, run, attempt):
            self._incidents.escalate(incident, refusal.reason, rule=refusal.rule)
            return None
        return self._incidents.save(
            replace(
                incident,
                state=IncidentState.ACTING,
                attempts=(*incident.attempts, attempt),
                due_at=self._parts.now(),
            )
        )

    def _resume(self, incident: Incident, decision: Decision, run: RunState, done_by_another: StandDown | None) -> None:
        """A claim is stored, so an earlier try may have landed. A repair that shows is taken for it."""
        attempt = incident.open_attempt
        if attempt is None:
            return
        if attempt.kind is AttemptKind.REPAIR and run.latest_repair_id != decision.latest_repair_id:
            self._retrying(incident, run.latest_repair_id)
            return
        if self._incidents.is_fresh(attempt.claimed_at):
            raise OutcomeUnknownError(f"run {run.run_id}: an earlier repair request may still arrive")
        # A new run of ours would look like somebody else's here.
        if attempt.kind is AttemptKind.REPAIR and done_by_another:
            why = done_by_another.reason
            self._incidents.end_attempt(incident, AttemptOutcome.SUPERSEDED, IncidentState.SKIPPED, why)
            return
        if not self._is_withdrawn(incident, decision, run):
            self._carry_out(incident, decision, run, doubtful=True)

    def _is_withdrawn(self, incident: Incident, decision: Decision, run: RunState) -> bool:
        """Whether the mode or the job's tags, read now, forbid the retry: then people make it, or with `off` nobody."""
        settings = self._parts.settings
        try:
            tags = self._tags_now(run)
        except RunNotFoundError as error:
            self._gone(incident, error)
            return True
        except PermanentError as error:
            self._incidents.escalate_unread(incident, error)
            return True
        mode = mode_of(tags, settings.default_mode)
        refusal = withdrawn(decision.decision, tags, mode, dry_run=settings.dry_run)
        if refusal is None:
            return False
        incident = replace(incident, mode=mode)
        attempt = incident.open_attempt
        if refusal is not SWITCHED_OFF:
            may_have_started = attempt is not None and attempt.kind is AttemptKind.RUN_NOW
            self._give_to_people(incident, refusal.reason, rule=refusal.rule, may_have_started=may_have_started)
        elif attempt:
            self._incidents.end_attempt(incident, AttemptOutcome.UNKNOWN, IncidentState.SKIPPED, refusal.reason)
        else:
            self._incidents.close(incident, IncidentState.SKIPPED, refusal.reason)
        return True

    def _tags_now(self, run: RunState) -> Mapping[str, str]:
        job_id = run.readable_job_id
        return {} if job_id is None else self._parts.runs.job_tags(run.workspace, job_id)

    def _give_to_people(
        self, incident: Incident, why: str, *, rule: str = "not_possible", may_have_started: bool
    ) -> None:
        """`may_have_started` = an earlier request may have started a new run; a repair would show by now."""
        if may_have_started:
            why = f"{why} Whether an earlier request has started a new run is not known: please look."
        outcome = AttemptOutcome.UNKNOWN if may_have_started else None
        self._incidents.escalate(incident, why, rule=rule, outcome=outcome)

    def _no_longer_wanted(self, run: RunState) -> StandDown | None:
        """A newer run of the job that did the work while this retry waited."""
        if run.job_id is None:
            return None
        newer = self._parts.runs.newer_runs(run.workspace, run.job_id, started_after=run.start_time)
        return newer_run_does_it(run, newer)

    def _not_admitted(
        self, incident: Incident, decision: Decision, run: RunState, attempt: Attempt
    ) -> StandDown | None:
        """Why the safeguards refuse it; HeldError where it must wait."""
        hours = ((run.end_time - run.start_time).total_seconds() / 3600) if run.end_time else 0.0
        wanted = RetryRecord(
            key=retry_key(incident, attempt),
            job_id=incident.job_id,
            fingerprint=decision.fingerprint,
            hours=hours * changes.cost_factor(decision.setting_changes),
            at=self._parts.now(),
        )
        answer = self._admission.admit(incident.workspace, wanted)
        if answer is None or isinstance(answer, StandDown):
            return answer
        raise HeldError(answer.reason, seconds=max(1.0, (answer.until - self._parts.now()).total_seconds()))

    def _carry_out(self, incident: Incident, decision: Decision, run: RunState, *, doubtful: bool) -> None:
        """The effects themselves, under a claim that is already stored.

        `doubtful` = an earlier try under the same claim may have landed. Sending once more is safe: a repair carries
        the same frozen repair id, a run-now the same token, a lease the same values.
        """
        may_have_started = doubtful and incident.attempts[-1].kind is AttemptKind.RUN_NOW
        try:
            if changes.edits_job(decision.setting_changes):
                self._leasing.apply(incident, incident.attempts[-1].number, decision.setting_changes)
            incident, effect_id = self._rerun(incident, decision, run)
            if effect_id is None:
                effect_id = self._run_now(incident, decision, run)
        except RepairRefusedError as error:
            self._after_refusal(incident, decision, error, doubtful=doubtful)
            return
        except RunNotFoundError as error:
            self._gone(incident, error)
            return
        except PermanentError as error:
            needs = "CAN_MANAGE" if changes.edits_job(decision.setting_changes) else "CAN_MANAGE_RUN"
            why = f"The retry was not possible: {refusal_of(error, needs=needs)}"
            self._give_to_people(incident, why, may_have_started=may_have_started)
            return
        self._retrying(incident, effect_id)

    def _rerun(self, incident: Incident, decision: Decision, run: RunState) -> tuple[Incident, int | None]:
        """Repair the run. None for the repair's id where that is impossible: it is noted that a new run is started."""
        attempt = incident.attempts[-1]
        if attempt.kind is AttemptKind.RUN_NOW:
            return incident, None
        try:
            return incident, self._parts.runs.repair_run(
                incident.workspace,
                run.run_id,
                latest_repair_id=decision.latest_repair_id,
                job_parameters=parameters_of(run, decision),
                legacy_parameters=run.legacy_parameters,
                performance_target=changes.performance_target(decision.setting_changes),
            )
        except RepairImpossibleError:
            if run.job_id is None or not self._may_start_runs:
                raise
            attempt = replace(attempt, kind=AttemptKind.RUN_NOW)
            return self._incidents.save(replace(incident, attempts=(*incident.attempts[:-1], attempt))), None

    def _run_now(self, incident: Incident, decision: Decision, run: RunState) -> int:
        """Start a new run; its id. The token makes a repetition return the same run."""
        assert run.job_id is not None
        new_run_id = self._parts.runs.run_now(
            incident.workspace,
            run.job_id,
            token=retry_key(incident, incident.attempts[-1]),
            job_parameters=parameters_of(run, decision),
            performance_target=changes.performance_target(decision.setting_changes),
        )
        self._parts.history.link_run(incident.workspace, new_run_id, incident_run_id=incident.run_id)
        return new_run_id

    def _after_refusal(
        self, incident: Incident, decision: Decision, error: RepairRefusedError, *, doubtful: bool
    ) -> None:
        """The compare-and-swap failed: an earlier request of ours landed, or somebody else was faster."""
        if not doubtful:
            self._incidents.end_attempt(
                incident, AttemptOutcome.SUPERSEDED, IncidentState.SKIPPED, "repaired by somebody else"
            )
            return
        run = self._parts.runs.read_state(incident.workspace, incident.watched_run_id)
        if run.latest_repair_id == decision.latest_repair_id:
            raise OutcomeUnknownError(f"run {run.run_id}: refused, but no other repair shows yet") from error
        self._retrying(incident, run.latest_repair_id)

    def _retrying(self, incident: Incident, effect_id: int | None) -> None:
        attempt = replace(incident.attempts[-1], effect_id=effect_id)
        watched = incident.watched_run_id
        if attempt.kind is AttemptKind.RUN_NOW and effect_id is not None:
            watched = effect_id
        incident = self._incidents.save(
            replace(
                incident,
                state=IncidentState.RETRYING,
                attempts=(*incident.attempts[:-1], attempt),
                watched_run_id=watched,
                due_at=self._parts.now(),
            )
        )
        self._incidents.record(incident, "retried", attempt=attempt.number, how=str(attempt.kind), effect_id=effect_id)


def parameters_of(run: RunState, decision: Decision) -> Mapping[str, str]:
    """The run's own job parameters, with those that the decision changes."""
    return {**run.job_parameters, **changes.parameters_of(decision.setting_changes)}
