"""Changes of a job's settings for the length of one retry: stored, applied, restored, verified.

A repair runs with the job's current settings, so a retry with more memory edits the job. The lease is written down
before the job is touched, with every old and new value. It ends when the retry has ended: old values are put back, only
where ours are still there; what somebody else changed meanwhile is reported and left alone. A lease that was put back
is looked at once more after a while, in case an update that had timed out landed late.
"""

import logging
from dataclasses import replace

from shared.domain import Incident, Lease, LeaseState, SettingChange
from shared.errors import HeldError, PermanentError, RunNotFoundError
from shared.incidents import Incidents, Parts
from shared.triage import changes

logger = logging.getLogger(__name__)


class Leasing:
    """Applies and restores leases. At most one per job is open."""

    def __init__(self, parts: Parts, incidents: Incidents) -> None:
        self._parts = parts
        self._incidents = incidents

    def wait_for_free_job(self, incident: Incident) -> None:
        """Raise HeldError while another lease on the job is open; one of an earlier attempt of this run is put back."""
        if incident.job_id is None:
            return
        lease = self._parts.history.read_lease(incident.workspace, incident.job_id)
        if lease is None or lease.state is LeaseState.CLOSED:
            return
        # Not one of the coming attempt: another worker that has the same message is just making it.
        is_left_over = lease.run_id == incident.run_id and lease.attempt <= len(incident.attempts)
        if is_left_over and lease.state in (LeaseState.PLANNED, LeaseState.APPLIED):
            self.restore(lease)
        raise self._taken(lease)

    def apply(self, incident: Incident, attempt: int, wanted: tuple[SettingChange, ...]) -> None:
        """Change the job for this attempt, whatever an earlier try has done of it already.

        Raises HeldError where another retry that also saw the job free was faster, PermanentError where the job was
        changed meanwhile or Databricks refuses the change.
        """
        assert incident.job_id is not None
        lease = self._parts.history.read_lease(incident.workspace, incident.job_id)
        if lease and lease.state is not LeaseState.CLOSED and lease.run_id != incident.run_id:
            raise self._taken(lease)
        if lease is None or lease.state is LeaseState.CLOSED or lease.attempt != attempt:
            lease = self._save(
                Lease(
                    workspace=incident.workspace,
                    job_id=incident.job_id,
                    run_id=incident.run_id,
                    attempt=attempt,
                    state=LeaseState.PLANNED,
                    changes=wanted,
                    planned_at=self._parts.now(),
                    etag=lease.etag if lease else "",
                )
            )
        if lease.state is LeaseState.APPLIED:
            return
        settings = self._parts.runs.job_settings(incident.workspace, incident.job_id)
        if not changes.is_applied(lease.changes, settings):
            body = changes.update_body(lease.changes, settings)
            if body is None:
                raise PermanentError("The job's settings were changed by somebody else before the retry.")
            self._parts.runs.update_job(
                incident.workspace, incident.job_id, new_settings=body.new_settings, fields_to_remove=()
            )
        self._save(replace(lease, state=LeaseState.APPLIED, applied_at=self._parts.now()))
        self._incidents.record(incident, "lease_applied", changes=[c.change.word for c in lease.changes])

    def follow(self, lease: Lease, incident: Incident | None) -> bool:
        """Move a lease on: put it back once its retry has ended, verify it later. Whether anything was done."""
        if lease.state is LeaseState.RESTORED:
            return self._verify(lease)
        attempt = incident.open_attempt if incident else None
        if attempt and attempt.number == lease.attempt and incident and not incident.state.is_terminal:
            return False
        self.restore(lease)
        return True

    def restore(self, lease: Lease) -> None:
        """Put back what is still ours."""
        foreign = self._put_back(lease)
        now = self._parts.now()
        self._save(replace(lease, state=LeaseState.RESTORED, restored_at=now, foreign=foreign))
        if incident := self._parts.history.read_incident(lease.workspace, lease.run_id):
            details: dict[str, object] = {"left_alone": list(foreign)}
            if others := self._ran_meanwhile(lease):
                details |= {"other_runs": others, "cost_factor": changes.cost_factor(lease.changes)}
            self._incidents.record(incident, "lease_restored", **details)

    def _verify(self, lease: Lease) -> bool:
        """Some time after the restore: nothing of ours may be back."""
        assert lease.restored_at is not None
        waited = (self._parts.now() - lease.restored_at).total_seconds()
        if waited < self._parts.settings.claim_settle_seconds:
            return False
        self._put_back(lease)
        self._save(replace(lease, state=LeaseState.CLOSED))
        return True

    def _put_back(self, lease: Lease) -> tuple[str, ...]:
        """Restore the values that are ours; the words of those that are not any more."""
        try:
            settings = self._parts.runs.job_settings(lease.workspace, lease.job_id)
        except RunNotFoundError:
            logger.info("leased job is gone", extra={"workspace": lease.workspace, "job_id": lease.job_id})
            return ()
        body, foreign = changes.restore_body(lease.changes, settings)
        if body is not None:
            self._parts.runs.update_job(
                lease.workspace, lease.job_id, new_settings=body.new_settings, fields_to_remove=body.fields_to_remove
            )
        return tuple(change.change.word for change in foreign)

    def _ran_meanwhile(self, lease: Lease) -> list[int]:
        """Other runs of the job that started while it was changed, and ran at its price."""
        if lease.applied_at is None:
            return []
        newer = self._parts.runs.newer_runs(lease.workspace, lease.job_id, started_after=lease.applied_at)
        return [run.run_id for run in newer if run.run_id != lease.run_id]

    def _taken(self, lease: Lease) -> HeldError:
        return HeldError(
            f"job {lease.job_id}: its settings are changed for run {lease.run_id} until that retry has ended",
            seconds=self._parts.settings.slot_wait_seconds,
        )

    def _save(self, lease: Lease) -> Lease:
        return self._parts.history.save_lease(replace(lease, write_guid=self._parts.guid()))
