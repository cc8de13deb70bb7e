"""Step 1, find: a detection tick over a workspace, and the sweep for repairs that began and ended between two ticks."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from shared import detection
from shared.admission import Admission
from shared.domain import RunState
from shared.errors import AgentError, ConflictError, PermanentError
from shared.incidents import Incidents, Parts

logger = logging.getLogger(__name__)

MAX_SWEEP = 200
"""Old incidents re-read per sweep and workspace, so that a sweep stays inside one function call."""


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
                logger.warning("tick failed", extra={"workspace": workspace, "reason": str(error)})
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
        states = self._states(workspace, plan.to_read)
        failed = [state for state in states if state.is_failed]
        still_active = {state.run_id for state in states if state.is_active}
        next_scan = replace(plan.next_scan, active=plan.next_scan.active | still_active)
        self._admission.note_runs_seen(workspace, plan.ended)
        for state in failed:
            self._incidents.remember(state)
        self._incidents.send_failed(failed, "timer")
        if started_at - scan.swept_at >= timedelta(minutes=self._parts.settings.sweep_interval_minutes):
            failed += self._sweep(workspace, started_at)
            next_scan = replace(next_scan, swept_at=started_at)
        self._parts.history.save_scan(next_scan)
        return len(failed)

    def send_on(self, workspace: str, run_id: int) -> None:
        """Send one run that is known to have failed to be decided."""
        state = self._parts.runs.read_state(workspace, run_id)
        self._incidents.remember(state)
        self._incidents.send_failed([state], "timer")

    def _states(self, workspace: str, run_ids: Iterable[int]) -> list[RunState]:
        states = []
        for run_id in run_ids:
            try:
                states.append(self._parts.runs.read_state(workspace, run_id))
            except PermanentError as error:  # gone, or not ours to read: no reason to read all others again and again
                logger.warning(
                    "run cannot be read",
                    extra={"workspace": workspace, "run_id": run_id, "reason": type(error).__name__},
                )
        return states

    def _sweep(self, workspace: str, now: datetime) -> list[RunState]:
        """Closed incidents whose run failed once more after a repair that began and ended between two ticks."""
        since = now - timedelta(days=self._parts.settings.sweep_days)
        closed = [i for i in self._parts.history.closed_incidents(workspace, updated_after=since) if i.failed_at]
        closed.sort(key=lambda incident: incident.updated_at, reverse=True)
        known = {failure for i in closed for failure in (i.failure_id, *i.past_failures)}
        states = self._states(workspace, [incident.watched_run_id for incident in closed[:MAX_SWEEP]])
        again = [state for state in states if state.is_failed and state.failure_id not in known]
        self._incidents.send_failed(again, "sweep")
        return again
