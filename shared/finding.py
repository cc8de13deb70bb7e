"""Step 1, find: a detection tick over a workspace, and the sweep for repairs that began and ended between two ticks."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from shared import deadline, detection, telemetry
from shared.admission import Admission
from shared.domain import RunState, RunSummary
from shared.errors import AgentError, ConflictError, PermanentError, RunNotFoundError, TransientError
from shared.incidents import Incidents, Parts
from shared.triage.redaction import redact

logger = telemetry.logger(__name__)

MAX_SWEEP = 200
"""Old incidents re-read per sweep and workspace, so that a sweep stays inside one function call."""

READ_AT_ONCE = 50
"""Ended runs that are read before those of them that failed are stored and sent: so many at most are read in vain."""

SHARE_KEPT_FOR_STORING = 0.25
"""Of an invocation's time; what cannot be read before is left to the next tick."""

MAX_DELETED = 500
"""Old rows deleted per sweep and workspace: 10,000 failures a month with ten rows each leave 140 an hour."""


class Finding:
    """Looks for failures and sends them on."""

    def __init__(self, parts: Parts, incidents: Incidents, admission: Admission, job_ids: frozenset[int]) -> None:
        self._parts = parts
        self._incidents = incidents
        self._admission = admission
        self._job_ids = job_ids

    def find_failures(self) -> int:
        """One tick over all workspaces; how many failures were sent on.

        A workspace that cannot be read does not hold up the others; its error is raised once they are done.
        """
        found = 0
        problem: AgentError | None = None
        for workspace in self._parts.runs.workspaces:
            try:
                found += self._find_in(workspace)
            except ConflictError:
                logger.info("another tick was faster", extra={"workspace": workspace})
            except AgentError as error:
                logger.warning("tick failed", extra={"workspace": workspace, "reason": redact(str(error))})
                problem = error
        if problem:
            raise problem
        return found

    def _find_in(self, workspace: str) -> int:
        started_at = self._parts.now()
        scan = self._parts.history.read_scan(workspace)
        active = self._parts.runs.active_runs(workspace)
        if scan is None:
            first = detection.first_scan(workspace, active, job_ids=self._job_ids, started_at=started_at)
            self._parts.history.save_scan(first)
            return 0
        overlap = self._parts.settings.overlap
        completed = self._parts.runs.completed_runs(workspace, started_after=detection.window_start(scan, overlap))
        plan = detection.plan_tick(
            scan, active, completed, job_ids=self._job_ids, overlap=overlap, started_at=started_at
        )
        found, look_again = self._send_ended(workspace, plan.to_read, {run.run_id: run for run in completed})
        self._admission.note_runs_seen(workspace, max(0, plan.ended - len(look_again)))  # the next tick counts those
        next_scan = replace(plan.next_scan, active=plan.next_scan.active | look_again)
        is_sweep_due = started_at - scan.swept_at >= timedelta(minutes=self._parts.settings.sweep_interval_minutes)
        if is_sweep_due and self._has_time:
            found += self._sweep(workspace, started_at)
            next_scan = replace(next_scan, swept_at=started_at)
        self._parts.history.save_scan(next_scan)
        if is_sweep_due and self._has_time:
            self._delete_old(workspace, started_at)
        return found

    @property
    def _has_time(self) -> bool:
        return deadline.left() > self._parts.settings.invocation_seconds * SHARE_KEPT_FOR_STORING

    def _send_ended(
        self, workspace: str, run_ids: Iterable[int], completed: Mapping[int, RunSummary]
    ) -> tuple[int, frozenset[int]]:
        """Read the ended runs, send on which failed: how many did, and which are to be looked at in the next tick."""
        found = 0
        look_again: set[int] = set()
        waiting = list(run_ids)
        while waiting and self._has_time:
            batch, waiting = waiting[:READ_AT_ONCE], waiting[READ_AT_ONCE:]
            states, unread = self._states(workspace, batch)
            failed = [state for state in states if state.is_failed]
            for state in failed:
                self._incidents.remember(state)
            self._incidents.send_failed(failed, "timer")
            for run_id in unread:
                self._incidents.send_unread(workspace, run_id, completed.get(run_id))
            found += len(failed) + len(unread)
            look_again |= {state.run_id for state in states if state.is_active}
            look_again |= set(batch) - {state.run_id for state in states} - set(unread)
        if waiting:
            logger.warning("no time to read all ended runs", extra={"workspace": workspace, "runs": len(waiting)})
        return found, frozenset(look_again | set(waiting))

    def send_on(self, workspace: str, run_id: int) -> None:
        """Send one run that is known to have failed to be decided, also where it may not be read."""
        try:
            state = self._parts.runs.read_state(workspace, run_id)
        except RunNotFoundError:
            raise
        except PermanentError:
            self._incidents.send_unread(workspace, run_id, None)
            return
        self._incidents.remember(state)
        self._incidents.send_failed([state], "timer")

    def _states(self, workspace: str, run_ids: Iterable[int]) -> tuple[list[RunState], list[int]]:
        """The runs as they are, and which may not be read or are gone: these do not hold up the others.

        Those for which no time is left, or which Databricks cannot show just now, are in neither.
        """
        states = []
        unread = []
        for run_id in run_ids:
            if not self._has_time:
                break
            try:
                states.append(self._parts.runs.read_state(workspace, run_id))
            except PermanentError as error:
                unread.append(run_id)
                logger.warning(
                    "run cannot be read",
                    extra={"workspace": workspace, "run_id": run_id, "reason": type(error).__name__},
                )
            except TransientError as error:
                logger.warning(
                    "run not read in this tick",
                    extra={"workspace": workspace, "run_id": run_id, "reason": type(error).__name__},
                )
        return states, unread

    def _sweep(self, workspace: str, now: datetime) -> int:
        """Send on closed incidents whose run failed once more after a repair that began and ended between two ticks."""
        since = now - timedelta(days=self._parts.settings.sweep_days)
        closed = [i for i in self._parts.history.closed_incidents(workspace, updated_after=since) if i.failed_at]
        closed.sort(key=lambda incident: incident.updated_at, reverse=True)
        known = {failure for i in closed for failure in (i.failure_id, *i.past_failures)}
        states, _ = self._states(workspace, [incident.watched_run_id for incident in closed[:MAX_SWEEP]])
        again = [state for state in states if state.is_failed and state.failure_id not in known]
        self._incidents.send_failed(again, "sweep")
        return len(again)

    def _delete_old(self, workspace: str, now: datetime) -> None:
        """Never what a sweep still looks at. The tick is stored by now, so that an error here costs nothing of it."""
        settings = self._parts.settings
        before = now - timedelta(days=max(settings.history_days, settings.sweep_days))
        deleted = self._parts.history.delete_older_than(workspace, before, limit=MAX_DELETED)
        logger.info("old rows deleted", extra={"workspace": workspace, "rows": deleted})
