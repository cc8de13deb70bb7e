"""Which runs a detection tick must look at, so that no failure is missed and none is read twice. Pure.

A run that is active at one tick and not at the next has ended in between: that finds long runs, and repairs. A run that
both began and ended between two ticks is in the list of completed runs that started after the watermark; ticks overlap.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.domain import RunSummary, ScanState


@dataclass(frozen=True, slots=True)
class TickPlan:
    """Of `ended` runs since the last tick, `to_read` may have failed; `next_scan` is stored once they are sent on."""

    to_read: tuple[int, ...]
    ended: int
    next_scan: ScanState


def window_start(scan: ScanState, overlap: timedelta) -> datetime:
    """From when on the list of completed runs must reach back."""
    return scan.watermark - overlap


def first_scan(
    workspace: str, active: Iterable[RunSummary], *, job_ids: frozenset[int], started_at: datetime
) -> ScanState:
    """The very first tick: what failed before it is history, what is active now is watched."""
    return ScanState(workspace, started_at, frozenset(watched_of(active, job_ids)), {}, started_at)


def watched_of(runs: Iterable[RunSummary], job_ids: frozenset[int]) -> dict[int, RunSummary]:
    """The runs of the jobs that are looked after, by id. Empty `job_ids` = all jobs."""
    return {run.run_id: run for run in runs if not job_ids or run.job_id in job_ids}


def plan_tick(
    scan: ScanState,
    active: Collection[RunSummary],
    completed: Iterable[RunSummary],
    *,
    job_ids: frozenset[int],
    overlap: timedelta,
    started_at: datetime,
) -> TickPlan:
    """`started_at` is the time just before the lists were read: the next watermark. Empty `job_ids` = all jobs."""
    ended = watched_of(completed, job_ids)
    watched = watched_of(active, job_ids).keys() - ended.keys()
    left = scan.active - {run.run_id for run in active}
    fresh = {run_id for run_id, run in ended.items() if scan.seen.get(run_id) != milliseconds(run.end_time)}
    succeeded = {run_id for run_id, run in ended.items() if not run.is_failed}
    to_read = tuple(sorted((left | fresh) - succeeded))
    horizon = started_at - overlap
    seen: Mapping[int, int] = {
        run_id: milliseconds(run.end_time) for run_id, run in ended.items() if run.start_time >= horizon
    }
    next_scan = ScanState(scan.workspace, started_at, frozenset(watched), seen, scan.swept_at, scan.etag)
    return TickPlan(to_read, len(left | fresh), next_scan)


def milliseconds(time: datetime | None) -> int:
    return int(time.timestamp() * 1000) if time else 0
