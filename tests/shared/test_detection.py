"""Finding failures: none is missed, none is read twice, and a tick costs what it may cost."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import deadline
from shared.detection import first_scan, plan_tick, window_start
from shared.domain import RunState, RunSummary
from shared.errors import TransientError
from tests.builders import NOW, build_run_state, build_run_summary, build_scan_state
from tests.fakes import FakeClock, FakeJobRuns
from tests.world import build_world

OVERLAP = timedelta(seconds=120)


@dataclass(frozen=True)
class Segment:
    """A stretch in which a run was active: its first, or a repair. Seconds after NOW."""

    start: int
    end: int
    failed: bool


@dataclass(frozen=True)
class RunHistory:
    """A run as Databricks would show it at any second."""

    run_id: int
    segments: tuple[Segment, ...]

    def at(self, second: int) -> RunSummary | None:
        begun = [segment for segment in self.segments if segment.start <= second]
        if not begun:
            return None
        is_active = second < begun[-1].end
        return build_run_summary(
            run_id=self.run_id,
            is_active=is_active,
            is_failed=not is_active and begun[-1].failed,
            start_time=at(self.segments[0].start),
            end_time=None if is_active else at(begun[-1].end),
        )


def at(second: int) -> datetime:
    return NOW + timedelta(seconds=second)


@st.composite
def run_histories(draw: st.DrawFn) -> list[RunHistory]:
    histories = []
    for run_id in range(1, draw(st.integers(1, 6)) + 1):
        second = draw(st.integers(-1000, 2000))
        segments = []
        for _ in range(draw(st.integers(1, 4))):
            end = second + draw(st.integers(1, 900))
            segments.append(Segment(second, end, draw(st.booleans())))
            second = end + draw(st.integers(1, 400))
        histories.append(RunHistory(run_id, tuple(segments)))
    return histories


@dataclass(frozen=True)
class Tick:
    """When a tick began and when it read its two lists. Seconds after NOW."""

    start: int
    active_read: int
    completed_read: int


@st.composite
def tick_series(draw: st.DrawFn) -> list[Tick]:
    ticks, second = [], 0
    for _ in range(draw(st.integers(2, 12))):
        active_read = second + draw(st.integers(0, 20))
        completed_read = active_read + draw(st.integers(0, 20))
        ticks.append(Tick(second, active_read, completed_read))
        second = completed_read + draw(st.integers(1, 400))
    return ticks


@given(histories=run_histories(), ticks=tick_series())
def test_no_failure_is_missed_and_none_is_read_twice(histories: list[RunHistory], ticks: list[Tick]) -> None:
    read: list[tuple[int, datetime]] = []
    seen_active: set[tuple[int, Segment]] = set()

    def listed(second: int) -> list[RunSummary]:
        return [summary for history in histories if (summary := history.at(second))]

    def note_active(second: int, run_ids: frozenset[int]) -> None:
        for history in histories:
            if history.run_id in run_ids:
                seen_active.update((history.run_id, s) for s in history.segments if s.start <= second < s.end)

    all_ids = frozenset(history.run_id for history in histories)
    first, *later = ticks
    active = [run for run in listed(first.active_read) if run.is_active]
    scan = first_scan("ws1", active, job_ids=frozenset(), started_at=at(first.start))
    note_active(first.active_read, all_ids)
    for tick in later:
        window = window_start(scan, OVERLAP)
        plan = plan_tick(
            scan,
            [run for run in listed(tick.active_read) if run.is_active],
            [run for run in listed(tick.completed_read) if not run.is_active and run.start_time >= window],
            job_ids=frozenset(),
            overlap=OVERLAP,
            started_at=at(tick.start),
        )
        note_active(tick.active_read, all_ids)
        states = {run.run_id: run for run in listed(tick.completed_read)}
        read += [(run_id, end) for run_id in plan.to_read if (end := states[run_id].end_time)]
        running_again = frozenset(run_id for run_id in plan.to_read if states[run_id].is_active)
        note_active(tick.completed_read, running_again)
        scan = build_scan_state(
            watermark=plan.next_scan.watermark,
            active=plan.next_scan.active | running_again,
            seen=plan.next_scan.seen,
        )
        for history in histories:
            for number, segment in enumerate(history.segments):
                stays_ended = number + 1 == len(history.segments) or (
                    history.segments[number + 1].start > tick.completed_read
                )
                ended_in_time = first.active_read < segment.end <= tick.active_read
                is_findable = number == 0 or (history.run_id, segment) in seen_active
                if segment.failed and ended_in_time and stays_ended and is_findable:
                    assert (history.run_id, at(segment.end)) in read, (history, tick)

    assert len(read) == len(set(read)), "read again without having ended again"


def test_a_repair_inside_the_window_is_seen_by_its_later_end() -> None:
    run = build_run_summary(start_time=NOW - timedelta(seconds=30))
    scan = build_scan_state(seen={run.run_id: int((NOW - timedelta(seconds=10)).timestamp() * 1000)})

    plan = plan_tick(scan, [], [run], job_ids=frozenset(), overlap=OVERLAP, started_at=NOW)

    assert plan.to_read == (run.run_id,)


@pytest.mark.parametrize("succeeded_run", [True, False])
def test_a_run_that_succeeded_is_not_read(succeeded_run: bool) -> None:
    run = build_run_summary(is_failed=not succeeded_run)

    plan = plan_tick(build_scan_state(), [], [run], job_ids=frozenset(), overlap=OVERLAP, started_at=NOW)

    assert plan.to_read == (() if succeeded_run else (run.run_id,))


def test_runs_of_other_jobs_are_neither_watched_nor_read() -> None:
    others = [build_run_summary(run_id=n, job_id=99, is_active=True, end_time=None) for n in range(3)]
    other_ended = build_run_summary(run_id=9, job_id=99)
    job_ids = frozenset({77})
    scan = first_scan("ws1", others, job_ids=job_ids, started_at=NOW)

    plan = plan_tick(scan, others, [other_ended], job_ids=job_ids, overlap=OVERLAP, started_at=NOW)

    assert plan.to_read == ()
    assert plan.next_scan.active == frozenset()
    assert plan.next_scan.seen == {}


def test_runs_that_are_no_longer_looked_after_are_not_read_while_they_are_active() -> None:
    other = build_run_summary(run_id=5, job_id=99, is_active=True, end_time=None)
    scan = first_scan("ws1", [other], job_ids=frozenset(), started_at=NOW)

    plan = plan_tick(scan, [other], [], job_ids=frozenset({77}), overlap=OVERLAP, started_at=NOW)

    assert (plan.to_read, plan.next_scan.active) == ((), frozenset())


JOBS = 2_000


def workspace_of(jobs: int) -> tuple[FakeJobRuns, FakeClock]:
    """Every job ran successfully an hour ago."""
    clock = FakeClock()
    hour_ago = NOW - timedelta(hours=1)
    runs = FakeJobRuns(clock=clock)
    for job_id in range(jobs):
        runs.put_state(
            build_run_state(
                run_id=10_000 + job_id,
                job_id=job_id,
                is_failed=False,
                result_state="SUCCESS",
                start_time=hour_ago,
                end_time=hour_ago,
            )
        )
    return runs, clock


def test_a_quiet_tick_costs_two_lists_whatever_the_number_of_jobs() -> None:
    runs, clock = workspace_of(JOBS)
    world = build_world(runs=runs, clock=clock)
    world.agent.find_failures()
    clock.advance(minutes=5)
    runs.faults.calls.clear()

    world.agent.find_failures()

    assert runs.faults.calls == ["active_runs", "completed_runs"]


def test_a_busy_tick_stays_within_its_bound() -> None:
    runs, clock = workspace_of(JOBS)
    long_runs = [build_run_state(run_id=n, job_id=n, start_time=NOW - timedelta(hours=2)) for n in range(1, 301)]
    for run in long_runs:
        runs.put_running(run)
    world = build_world(runs=runs, clock=clock)
    world.agent.find_failures()
    clock.advance(minutes=5)
    for run in long_runs[:40]:
        runs.finish(run.run_id, succeeded=False)
    for n in range(401, 501):
        runs.put_state(build_run_state(run_id=n, job_id=n, is_failed=n % 2 == 0, start_time=clock(), end_time=clock()))
    calls = CountedPages(runs)
    world = build_world(runs=runs, clock=clock, history=world.history)

    found = world.agent.find_failures()

    assert found == 40 + 50
    assert calls.made() <= math.ceil(260 / 25) + math.ceil(100 / 25) + 40 + 100


class CountedPages:
    """What the calls made on the fake would cost at Databricks, whose lists come in pages of 25."""

    def __init__(self, runs: FakeJobRuns) -> None:
        self._runs = runs
        self._active = len(runs.active_runs("ws1"))
        runs.faults.calls.clear()

    def made(self) -> int:
        calls = self._runs.faults.calls
        started = len(self._runs.completed_runs("ws1", started_after=self._runs.clock() - timedelta(minutes=7)))
        pages = {"active_runs": self._active, "completed_runs": started}
        return sum(max(1, math.ceil(pages[name] / 25)) if name in pages else 1 for name in calls[:-1])


def test_more_failures_than_one_tick_can_read_are_found_over_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a second for each, and forty seconds for a tick, of which a quarter is kept for storing."""

    class Stopwatch:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    watch = Stopwatch()
    monkeypatch.setattr(deadline, "time", watch)
    runs, clock = workspace_of(0)
    world = build_world(runs=runs, clock=clock, invocation_seconds=40)
    world.agent.find_failures()
    clock.advance(minutes=5)
    for n in range(1, 301):
        runs.put_state(build_run_state(run_id=n, job_id=n, start_time=clock(), end_time=clock()))
    read_state = runs.read_state

    def slow(workspace: str, run_id: int) -> RunState:
        watch.now += 0.25
        return read_state(workspace, run_id)

    monkeypatch.setattr(runs, "read_state", slow)
    found = []
    for _ in range(4):
        with deadline.within(40):
            found.append(world.agent.find_failures())
        clock.advance(minutes=5)

    assert found == [120, 120, 60, 0]
    assert {i.run_id for i in world.history.open_incidents("ws1")} == set(range(1, 301))


def test_a_run_that_cannot_be_read_just_now_does_not_hold_up_the_others_and_is_not_lost() -> None:
    runs, clock = workspace_of(0)
    world = build_world(runs=runs, clock=clock)
    world.agent.find_failures()
    clock.advance(minutes=5)
    for n in range(1, 6):
        runs.put_state(build_run_state(run_id=n, job_id=n, start_time=clock(), end_time=clock()))
    runs.faults.before["read_state"] = [None, TransientError("503")]

    found = [world.agent.find_failures()]
    clock.advance(minutes=5)
    found.append(world.agent.find_failures())

    assert found == [4, 1]
    assert {i.run_id for i in world.history.open_incidents("ws1")} == {1, 2, 3, 4, 5}


def test_active_runs_of_other_jobs_cost_nothing() -> None:
    runs, clock = workspace_of(0)
    for n in range(1, 51):
        runs.put_running(build_run_state(run_id=n, job_id=n))
    world = build_world(runs=runs, clock=clock, job_ids=("1",))
    world.agent.find_failures()
    for _ in range(2):
        clock.advance(minutes=5)
        runs.faults.calls.clear()

        world.agent.find_failures()

        assert runs.faults.calls == ["active_runs", "completed_runs"]
