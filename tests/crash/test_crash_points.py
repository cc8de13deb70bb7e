"""Every I/O call of the whole flow dies once, before it is made and after; retries and mails also time out and land
later. Whatever the point: nothing is done twice, nothing is lost, and every incident ends as it does without a crash.

The broker delivers again what was abandoned, the timers go on, time is virtual. Workers run one after the other here;
that two of them race on one message is tested in tests/shared/test_databricks_agent.py.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from shared import ports
from shared.domain import Category, Change, ChangeKind, DecisionKind, Diagnosis, IncidentState, Mode
from shared.errors import AgentError, NotAuthorisedError, OutcomeUnknownError, RepairImpossibleError
from tests.builders import JOB_ID, RUN_ID, WORKSPACE, build_diagnosis, build_job_settings, build_run_state
from tests.fakes import FakeClock
from tests.world import ProcessDiedError, World, build_world

EFFECTS = ("JobRuns.repair_run", "JobRuns.run_now", "JobRuns.update_job", "EmailSender.send")

KINDS = {
    "dies before": None,
    "dies after": None,
    "lands in 30 s": timedelta(seconds=30),
    "lands in 90 s": timedelta(seconds=90),
    "lands in 180 s": timedelta(seconds=180),
}
"""What happens at the step. An unanswered mail lands within `claim_settle_seconds` (60) or never: the service has no
compare-and-swap, so that much is assumed of it. Retries may land at any time, and a job that was changed is looked at
once more after it was put back."""

TOO_LATE_FOR_MAIL = ("lands in 90 s", "lands in 180 s")

LASTING = ("DecisionHistory.save_incident", "DecisionHistory.save_lease")
"""After the last of these calls an undisturbed play only repeats quiet ticks; those are not gone through."""

LONGEST_MINUTES = 240


@dataclass
class FaultPlan:
    """Counts the I/O calls of the agent and makes one of them go wrong. `step` 0 = none."""

    clock: FakeClock
    step: int = 0
    kind: str = ""
    made: list[str] = field(default_factory=list)
    landings: list[tuple[datetime, Callable[[], Any]]] = field(default_factory=list)
    _is_off: bool = False

    def wrap(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._is_off:
                return method(*args, **kwargs)
            self.made.append(name)
            strikes = len(self.made) == self.step
            if strikes and self.kind == "dies before":
                raise ProcessDiedError
            if strikes and (delay := KINDS[self.kind]):
                self.landings.append((self.clock() + delay, lambda: method(*args, **kwargs)))
                raise OutcomeUnknownError(f"{name}: no answer")
            result = method(*args, **kwargs)
            if strikes:
                raise ProcessDiedError
            return result

        return call

    @contextmanager
    def off(self) -> Iterator[None]:
        """For what the outside world does: it is not the agent that makes these calls."""
        self._is_off = True
        yield
        self._is_off = False

    def land(self) -> None:
        """Let requests that are due arrive; Databricks may refuse them by then."""
        due = [landing for at, landing in self.landings if at <= self.clock()]
        self.landings = [(at, landing) for at, landing in self.landings if at > self.clock()]
        for landing in due:
            try:
                landing()
            except AgentError:
                continue


@dataclass(frozen=True)
class Scenario:
    """One failed run. `outcomes` = how its retries end, in order; `want` = how its incident ends."""

    name: str
    want: IncidentState
    mails: int
    outcomes: tuple[bool, ...] = ()
    diagnosis: Diagnosis | None = None
    refusal: AgentError | None = None
    mode: Mode = Mode.FULL


SCENARIOS = [
    Scenario("a repair recovers it", IncidentState.RECOVERED, 0, (True,)),
    Scenario(
        "a repair with a larger cluster recovers it",
        IncidentState.RECOVERED,
        0,
        (True,),
        diagnosis=build_diagnosis(
            category=Category.WORKER_MEMORY,
            recommended=DecisionKind.RETRY_WITH_PARAMS,
            changes=(Change(ChangeKind.MORE_WORKERS),),
            source="model",
        ),
    ),
    Scenario("two repairs fail", IncidentState.FAILED_AGAIN, 1, (False, False)),
    Scenario(
        "two new runs fail", IncidentState.FAILED_AGAIN, 1, (False, False), refusal=RepairImpossibleError("no repair")
    ),
    Scenario("it may not be retried", IncidentState.ESCALATED, 1, refusal=NotAuthorisedError("no right on the job")),
    Scenario(
        "people must mend it",
        IncidentState.ESCALATED,
        1,
        diagnosis=build_diagnosis(category=Category.CODE, recommended=DecisionKind.ESCALATE_EMAIL, source="model"),
    ),
    Scenario(
        "nothing is to be done",
        IncidentState.SKIPPED,
        0,
        mode=Mode.OFF,
    ),
]


class Play:
    """A scenario from the failure of the run until everything is quiet, with one fault."""

    def __init__(self, scenario: Scenario, plan: FaultPlan, *, detects_duplicates: bool) -> None:
        self.plan = plan
        self.world = build_world(
            clock=plan.clock, diagnosis=scenario.diagnosis, max_retry_attempts=2, default_mode=scenario.mode
        )
        self._outcomes = list(scenario.outcomes)
        self.world.queues.detects_duplicates = detects_duplicates
        self.world.runs.faults.before["repair_run"] = [scenario.refusal] * 100
        self.world.runs.put_running(build_run_state())
        self.world.agent.find_failures()
        self.instrument()

    def instrument(self) -> None:
        parts = (
            (self.world.runs, ports.JobRuns),
            (self.world.history, ports.DecisionHistory),
            (self.world.mails, ports.EmailSender),
            (self.world.queues, ports.ActionQueues),
            (self.world.model, ports.Diagnoser),
        )
        for part, port in parts:
            for name, _ in inspect.getmembers(port, inspect.isfunction):
                if not name.startswith("_") and hasattr(part, name):
                    setattr(part, name, self.plan.wrap(f"{port.__name__}.{name}", getattr(part, name)))

    def to_the_end(self) -> World:
        """Until the incident is closed, nothing waits and nothing can land any more; then ten minutes more."""
        with self.plan.off():
            self.world.runs.finish(RUN_ID, succeeded=False)
        quiet = 0
        for _ in range(LONGEST_MINUTES):
            self.world.run_for(minutes=1, each=self.environment)
            with self.plan.off():
                quiet = quiet + 1 if self._is_quiet() else 0
            if quiet == 10:
                break
        return self.world

    def environment(self) -> None:
        """Requests that were under way arrive; what is active ends within the minute."""
        with self.plan.off():
            self.plan.land()
            for run in self.world.runs.active_runs(WORKSPACE):
                self.world.runs.finish(run.run_id, succeeded=self._outcomes.pop(0) if self._outcomes else False)

    def _is_quiet(self) -> bool:
        incident = self.world.history.read_incident(WORKSPACE, RUN_ID)
        waiting = any(self.world.queues.waiting.values())
        return (
            bool(incident and incident.state.is_terminal)
            and not self.world.history.open_incidents(WORKSPACE)
            and not self.world.history.open_leases(WORKSPACE)
            and not waiting
            and not self.plan.landings
        )


def cases_of(scenario: Scenario, *, detects_duplicates: bool) -> Iterator[tuple[int, str, str]]:
    """Every I/O call of the undisturbed play, with every way in which it can go wrong."""
    plan = FaultPlan(FakeClock())
    world = Play(scenario, plan, detects_duplicates=detects_duplicates).to_the_end()
    assert world.incident().state is scenario.want
    last = max(n for n, name in enumerate(plan.made) if name in LASTING) + 2
    for step, name in enumerate(plan.made[:last], 1):
        for kind, delay in KINDS.items():
            if delay is None or (name in EFFECTS and not (name == "EmailSender.send" and kind in TOO_LATE_FOR_MAIL)):
                yield step, name, kind


@pytest.mark.parametrize("detects_duplicates", [True, False], ids=["duplicate detection", "window has passed"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_crash_loses_or_repeats_anything(scenario: Scenario, detects_duplicates: bool) -> None:
    cases = list(cases_of(scenario, detects_duplicates=detects_duplicates))
    sys.stdout.write(f"{scenario.name}: {len(cases)} cases\n")  # shown by pytest -s
    failures = []

    for step, name, kind in cases:
        play = Play(scenario, FaultPlan(FakeClock(), step, kind), detects_duplicates=detects_duplicates)
        if broken := broken_promises(play.to_the_end(), play.plan, scenario):
            failures.append(f"step {step}, {name} {kind}: {', '.join(broken)}")

    assert len(cases) >= 20
    assert not failures, f"{len(failures)} of {len(cases)} cases:\n" + "\n".join(failures)


def broken_promises(world: World, plan: FaultPlan, scenario: Scenario) -> list[str]:
    """What of the promises does not hold; nothing is checked by calls, all by effects and stored state."""
    with plan.off():
        incident = world.history.read_incident(WORKSPACE, RUN_ID)
        still_open = world.history.open_incidents(WORKSPACE)
        open_leases = world.history.open_leases(WORKSPACE)
        settings = world.runs.job_settings(WORKSPACE, JOB_ID)
        others = world.history.closed_incidents(WORKSPACE, updated_after=plan.clock() - timedelta(days=2))
    mails = Counter(mail.key for mail in world.mails.sent)
    repairs = Counter((repair.run_id, repair.latest_repair_id) for repair in world.runs.repairs)
    retries = len(world.runs.repairs) + len(world.runs.started)
    promises = {
        "the fault never struck": len(plan.made) >= plan.step,
        "lost": incident is not None,
        f"open: {[i.state for i in still_open]}": not still_open,
        f"ended {incident and incident.state}": incident is not None and incident.state is scenario.want,
        f"{len(others)} incidents": len(others) == 1,
        f"repaired twice: {repairs}": all(count == 1 for count in repairs.values()),
        f"{retries} retries": retries == len(scenario.outcomes),
        f"tokens {list(world.runs.tokens)}": len(world.runs.tokens) == len(world.runs.started),
        f"mailed {mails}": len(mails) == scenario.mails == sum(mails.values()),
        f"open leases {open_leases}": not open_leases,
        f"the job was left changed: {settings}": settings == build_job_settings(),
        f"dead-lettered {world.dead}": not world.dead,
        "attempts and retries differ": incident is not None and len(incident.attempts) == retries,
    }
    return [what for what, holds in promises.items() if not holds]
