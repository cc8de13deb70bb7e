"""Changes of a job's settings for the length of one retry: stored, applied, restored, verified (ADR 7).

A repair runs with the job's current settings, so a retry with more memory edits the job. The lease is written down
before the job is touched, with every old and new value. It ends when the retry has ended: old values are put back, only
where ours are still there; what somebody else changed meanwhile is left alone and people are told. Where Databricks
refuses to take the old values back, people are told to do it, and it is tried again once an hour.

A job that was put back is looked at once more after a while. Where an update had no answer, it may land much later:
the lease is closed then all the same, but its job is looked at for hours, ever more rarely, and what of ours turns up
is put back. A next lease takes these changes over and never takes their values for the job's own.
"""

from dataclasses import replace
from datetime import timedelta

from shared import telemetry
from shared.domain import Incident, Json, Lease, LeaseNews, LeaseReport, LeaseState, SettingChange
from shared.errors import AgentError, HeldError, PermanentError, RunNotFoundError
from shared.incidents import Incidents, Parts
from shared.triage import changes

logger = telemetry.logger(__name__)

WATCHED_FOR = timedelta(hours=8)
"""How long an update without an answer may still land. Databricks names no bound; nothing on the way holds longer."""

RESTORE_AGAIN_AFTER = timedelta(hours=1)
"""Pace of the attempts after Databricks refused to put a job back: a right comes back by hand, not by the minute."""


class Leasing:
    """Applies and restores leases. At most one per job is open."""

    def __init__(self, parts: Parts, incidents: Incidents) -> None:
        self._parts = parts
        self._incidents = incidents

    def wait_for_free_job(self, incident: Incident) -> None:
        """Raise HeldError while another lease on the job is open; one of an earlier attempt of this run is put back.

        Raises PermanentError where that lease cannot be put back: a person must do it first.
        """
        if incident.job_id is None:
            return
        lease = self._parts.history.read_lease(incident.workspace, incident.job_id)
        if lease is None or lease.state is LeaseState.CLOSED:
            return
        # Not one of the coming attempt: another worker that has the same message is just making it.
        is_left_over = lease.run_id == incident.run_id and lease.attempt <= len(incident.attempts)
        if is_left_over and lease.state in (LeaseState.PLANNED, LeaseState.APPLIED) and lease.refused_at is None:
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
        is_first_try = lease is None or lease.state is LeaseState.CLOSED or lease.attempt != attempt
        if lease is None or is_first_try:
            lease = self._plan(incident, attempt, wanted, before=lease)
        elif lease.state is LeaseState.APPLIED:
            return
        else:
            lease = self._save(self._in_doubt(lease))
        try:
            lease = self._change_job(lease)
        except PermanentError:
            if is_first_try:  # nothing of this lease can be there, now or later; of the one before it something may
                now = self._parts.now()
                self._save(replace(lease, state=LeaseState.CLOSED, restored_at=now, looked_at=now))
            raise
        self._save(replace(lease, state=LeaseState.APPLIED, applied_at=self._parts.now()))
        self._incidents.record(incident, "lease_applied", changes=[c.change.word for c in lease.changes])

    def _plan(
        self, incident: Incident, attempt: int, wanted: tuple[SettingChange, ...], *, before: Lease | None
    ) -> Lease:
        """Write the lease down in place of the one before, of which unanswered updates may still land."""
        assert incident.job_id is not None
        return self._save(
            Lease(
                workspace=incident.workspace,
                job_id=incident.job_id,
                run_id=incident.run_id,
                attempt=attempt,
                state=LeaseState.PLANNED,
                changes=wanted,
                planned_at=self._parts.now(),
                unanswered=before.unanswered if before else (),
                watched_until=before.watched_until if before else None,
                etag=before.etag if before else "",
            )
        )

    def _change_job(self, lease: Lease) -> Lease:
        """Give the job the new values; the lease with what is still unanswered."""
        settings = self._parts.runs.job_settings(lease.workspace, lease.job_id)
        still_unanswered = replace(lease, unanswered=changes.not_landed(lease.unanswered, settings))
        if changes.is_applied(lease.changes, settings):
            return still_unanswered
        body = changes.update_body(lease.changes, changes.own_settings(lease.unanswered, settings))
        if body is None:
            raise PermanentError("The job's settings were changed by somebody else before the retry.")
        self._parts.runs.update_job(
            lease.workspace, lease.job_id, new_settings=body.new_settings, fields_to_remove=body.fields_to_remove
        )
        return still_unanswered

    def follow(self, lease: Lease, incident: Incident | None) -> bool:
        """Move a lease on: put it back once its retry has ended, verify it later. Whether anything was done."""
        if lease.refused_at and self._parts.now() - lease.refused_at < RESTORE_AGAIN_AFTER:
            return False
        if lease.state in (LeaseState.RESTORED, LeaseState.CLOSED):
            return self._verify(lease)
        attempt = incident.open_attempt if incident else None
        if attempt and attempt.number == lease.attempt and incident and not incident.state.is_terminal:
            return False
        self.restore(lease)
        return True

    def restore(self, lease: Lease) -> None:
        """Put back what is still ours."""
        if lease.state is LeaseState.PLANNED:
            lease = self._in_doubt(lease)
        try:
            settings = self._settings_of(lease)
            foreign = self._put_back(lease, settings)
        except PermanentError as error:
            self._note_refusal(lease, error)
            return
        if settings is None:
            lease = replace(lease, unanswered=())
        elif lease.applied_at is None:
            lease = replace(lease, unanswered=changes.not_landed(lease.unanswered, settings))
        now = self._parts.now()
        restored = replace(
            lease, state=LeaseState.RESTORED, restored_at=now, foreign=foreign, refused_at=None, report=None
        )
        if foreign and not lease.reported:
            restored = replace(restored, report=LeaseReport(LeaseNews.LEFT, now))
        self._save(restored)
        details: dict[str, object] = {"left_alone": list(foreign)}
        if others := self._ran_meanwhile(lease):
            details |= {"other_runs": others, "cost_factor": changes.cost_factor(lease.changes)}
        self._record(lease, "lease_restored", **details)

    def _note_refusal(self, lease: Lease, error: PermanentError) -> None:
        """Databricks refuses for good: the job may have our values until a person acts, so nothing else changes it."""
        now = self._parts.now()
        state = LeaseState.RESTORED if lease.restored_at else LeaseState.APPLIED
        refused = replace(lease, state=state, refused_at=now, refusal=str(error))
        if LeaseNews.REFUSED not in lease.reported and not (lease.report and lease.report.claimed):
            refused = replace(refused, report=LeaseReport(LeaseNews.REFUSED, now))
        self._save(refused)
        self._record(lease, "lease_restore_refused", error=type(error).__name__)

    def _verify(self, lease: Lease) -> bool:
        """Nothing of ours may be back: looked at after a while, then, where an update may land, ever more rarely."""
        now = self._parts.now()
        restored_at = lease.restored_at or lease.planned_at
        last = lease.looked_at or restored_at
        pause = timedelta(seconds=self._parts.settings.claim_settle_seconds)
        if lease.state is LeaseState.CLOSED:
            pause = max(pause, last - restored_at)
        if now - last < pause:
            return False
        is_watched = lease.watched_until is not None and now < lease.watched_until
        try:
            settings = self._settings_of(lease)
        except PermanentError as error:
            if lease.refused_at:
                self._note_refusal(lease, error)
            else:  # it was put back: that it cannot be looked at now is no news for anybody
                state = lease.state if lease.report else LeaseState.CLOSED
                left = lease.unanswered if is_watched else ()
                self._save(replace(lease, state=state, looked_at=now, unanswered=left))
            return True
        try:
            self._put_back(lease, settings)
        except PermanentError as error:
            if lease.state is LeaseState.CLOSED and settings is not None:  # what landed late, and nothing else, is ours
                lease = replace(lease, changes=tuple(changes.present(lease.unanswered, settings)))
            self._note_refusal(lease, error)
            return True
        left = changes.not_landed(lease.unanswered, settings) if settings is not None and is_watched else ()
        report = None if lease.report and lease.report.news is LeaseNews.REFUSED else lease.report
        state = lease.state if report else LeaseState.CLOSED
        self._save(replace(lease, state=state, looked_at=now, refused_at=None, report=report, unanswered=left))
        return True

    def _settings_of(self, lease: Lease) -> Json | None:
        """The job's settings as they are; None where the job is gone."""
        try:
            return self._parts.runs.job_settings(lease.workspace, lease.job_id)
        except RunNotFoundError:
            logger.info("leased job is gone", extra=about(lease))
            return None

    def _put_back(self, lease: Lease, settings: Json | None) -> tuple[str, ...]:
        """Restore the values that are ours; the places of those that are not any more.

        Of a closed lease only what an update without an answer left: anything else is somebody's own choice by now.
        """
        if settings is None:
            return ()
        leased = () if lease.state is LeaseState.CLOSED else lease.changes
        ours = (*leased, *changes.present(lease.unanswered, settings))
        body, foreign = changes.restore_body(ours, settings)
        if body is not None:
            try:
                self._parts.runs.update_job(
                    lease.workspace,
                    lease.job_id,
                    new_settings=body.new_settings,
                    fields_to_remove=body.fields_to_remove,
                )
            except RunNotFoundError:
                return ()
            if lease.restored_at:
                values = [changes.place_and_name(change) for change in changes.present(ours, settings)]
                self._record(lease, "lease_put_back_late", values=values)
        return tuple(map(changes.place_and_name, foreign))

    def _in_doubt(self, lease: Lease) -> Lease:
        """The lease, noting that one more update for it may have had no answer and may still land."""
        unanswered = (*lease.unanswered, *(change for change in lease.changes if change.edits_job))
        return replace(lease, unanswered=unanswered, watched_until=self._parts.now() + WATCHED_FOR)

    def _ran_meanwhile(self, lease: Lease) -> list[int]:
        """Other runs of the job that started while it was changed, and ran at its price."""
        if lease.applied_at is None:
            return []
        try:
            newer = self._parts.runs.newer_runs(lease.workspace, lease.job_id, started_after=lease.applied_at)
        except AgentError as error:
            logger.warning(
                "cannot read what ran while the job was changed",
                extra={**about(lease), "reason": type(error).__name__},
            )
            return []
        return [run.run_id for run in newer if run.run_id != lease.run_id]

    def _taken(self, lease: Lease) -> HeldError | PermanentError:
        if lease.refused_at:
            return PermanentError(
                f"Job {lease.job_id} still has settings of an earlier retry (run {lease.run_id}), which Databricks"
                " refuses to take back: a person must put them back first."
            )
        return HeldError(
            f"job {lease.job_id}: its settings are changed for run {lease.run_id} until that retry has ended",
            seconds=self._parts.settings.slot_wait_seconds,
        )

    def _record(self, lease: Lease, kind: str, **details: object) -> None:
        if incident := self._parts.history.read_incident(lease.workspace, lease.run_id):
            self._incidents.record(incident, kind, **details)

    def _save(self, lease: Lease) -> Lease:
        return self._parts.history.save_lease(replace(lease, write_guid=self._parts.guid()))


def about(lease: Lease) -> Json:
    """Fields of a log record: the timer that follows leases is not about one run."""
    return {"workspace": lease.workspace, "run_id": lease.run_id, "job_id": lease.job_id}
