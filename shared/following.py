"""Step 5, follow up: the outcome of every open retry, leases put back, digests sent, and what is overdue sent again."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial

from shared import telemetry
from shared.domain import AttemptKind, AttemptOutcome, Incident, IncidentState, Lease
from shared.errors import AgentError, ConflictError, HeldError, PermanentError, RunNotFoundError
from shared.incidents import Incidents, Parts
from shared.leasing import Leasing
from shared.mailing import Mailing

logger = telemetry.logger(__name__)


class Following:
    """Runs on a timer; each part of it is safe to be cut off and to be done again."""

    def __init__(self, parts: Parts, incidents: Incidents, leasing: Leasing, mailing: Mailing) -> None:
        self._parts = parts
        self._incidents = incidents
        self._leasing = leasing
        self._mailing = mailing

    def follow_up(self) -> int:
        """Move on whatever can be; how many things were moved. One that cannot does not hold up the others."""
        moved = 0
        for workspace in self._parts.runs.workspaces:
            incidents = self._parts.history.open_incidents(workspace)
            oldest = min((incident.detected_at for incident in incidents), default=self._parts.now())
            telemetry.oldest_incident(workspace, (self._parts.now() - oldest).total_seconds())
            for incident in incidents:
                moved += self._try("incident", incident.run_id, partial(self._follow, incident))
            for lease in self._parts.history.followed_leases(workspace):
                moved += self._try("lease report", lease.run_id, partial(self._mailing.report_lease, lease))
                moved += self._try("lease", lease.run_id, partial(self._follow_lease, lease))
            moved += self._try("digest", 0, partial(self._mailing.send_digest, workspace))
        return moved

    def _follow_lease(self, lease: Lease) -> bool:
        if lease.report:  # a mail about it, or the attempt to send one, was noted with it
            lease = self._parts.history.read_lease(lease.workspace, lease.job_id) or lease
        return self._leasing.follow(lease, self._parts.history.read_incident(lease.workspace, lease.run_id))

    def _try(self, what: str, run_id: int, step: Callable[[], bool]) -> bool:
        try:
            return step()
        except (ConflictError, HeldError):
            logger.info("%s moved meanwhile, or waits", what, extra={"run_id": run_id})
        except AgentError as error:
            logger.warning("could not follow up %s", what, extra={"run_id": run_id, "reason": type(error).__name__})
        return False

    def _follow(self, incident: Incident) -> bool:
        if incident.state is IncidentState.RETRYING:
            return self._follow_retry(incident)
        if incident.state is IncidentState.GATHERED:
            return False
        overdue = self._parts.now() - incident.due_at
        if overdue < timedelta(minutes=self._parts.settings.stale_after_minutes):
            return False
        again = incident.resends + 1
        incident = self._incidents.save(replace(incident, resends=again, due_at=self._parts.now()))
        self._incidents.send_overdue(incident, again=again)
        self._incidents.record(incident, "sent_again", times=again)
        return True

    def _follow_retry(self, incident: Incident) -> bool:
        attempt = incident.open_attempt
        if attempt is None:
            return False
        try:
            run = self._parts.runs.read_state(incident.workspace, incident.watched_run_id)
        except RunNotFoundError:
            self._incidents.end_attempt(incident, AttemptOutcome.GONE, IncidentState.SKIPPED, "the run is gone")
            return True
        except PermanentError as error:
            self._incidents.escalate_unread(incident, error)
            return True
        if run.is_active or run.failure_id == incident.failure_id:
            return False  # under way, or the repair does not show yet
        if run.is_failed:
            if self._parts.now() < incident.due_at:
                return False  # its message waits
            self._incidents.send_failed([run], "follow_up")
            return True
        if attempt.kind is AttemptKind.RUN_NOW or attempt.effect_id == run.latest_repair_id:
            why = f"recovered by attempt {attempt.number}"
            self._incidents.end_attempt(incident, AttemptOutcome.RECOVERED, IncidentState.RECOVERED, why)
        else:
            why = "recovered by somebody else's repair"
            self._incidents.end_attempt(incident, AttemptOutcome.SUPERSEDED, IncidentState.RECOVERED, why)
        return True
