"""Every call that a step makes of a port goes wrong in every way that a service can go wrong, one at a time.

The calls are not listed here: plain plays are recorded, and a call site is the step, the path through the steps' own
functions, and the call. A new call is covered by itself. Whatever the fault: nothing is done twice, nothing is lost,
every lease is put back or reported, every message is completed, put off or dead-lettered with a reason, and where
nothing else can happen people are told.
"""

import inspect
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache, partial
from itertools import count
from typing import Any

import pytest

from shared import ports
from shared.databricks_agent import DatabricksAgent
from shared.delivery import Envelope, MessageDelivery
from shared.domain import (
    Category,
    Change,
    ChangeKind,
    DecisionKind,
    Diagnosis,
    DigestMail,
    Incident,
    IncidentState,
    Lease,
    Mode,
    Pause,
    Repair,
)
from shared.error_decision_engine import ErrorDecisionEngine
from shared.errors import (
    AgentError,
    ConfigurationError,
    ConflictError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    RepairImpossibleError,
    RepairRefusedError,
    RunNotFoundError,
    StoreNotAuthorisedError,
    StoreRefusedError,
    ThrottledError,
    TransientError,
)
from shared.learning import Learning
from shared.messages import FAILED_RUNS
from shared.ports import OutgoingMessage
from tests.builders import JOB_ID, RUN_ID, WORKSPACE, build_diagnosis, build_job_settings, build_run_state
from tests.crash.written_model import broken_incident_rules, broken_lease_rules
from tests.world import ProcessDiedError, World, build_world

SETTLE = timedelta(seconds=60)
"""`claim_settle_seconds`: so long an unanswered write may still arrive."""

FIX_TAKES = timedelta(hours=2)
"""After so long a person has mended what the agent cannot work without: its tables, its queues, its settings."""


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Fault:
    """What one call site meets. `error` None = the call is answered, but long after its claim has run out.

    `lasts` None = for good; zero = once. `effect`: what becomes of the request behind an error. `of` = the only port
    that answers so; empty = all of them.
    """

    name: str
    error: Callable[[str], Exception] | None
    lasts: timedelta | None = timedelta(0)
    effect: str = "none"
    of: str = ""

    def __str__(self) -> str:
        return self.name


def throttled(seconds: float | None) -> Callable[[str], Exception]:
    return lambda call: ThrottledError(f"{call}: 429", retry_after_seconds=seconds)


FAULTS = (
    Fault("throttled for 90 s", throttled(90)),
    Fault("throttled without Retry-After", throttled(None)),
    Fault("transient once", TransientError),
    Fault("transient for an hour", TransientError, lasts=timedelta(hours=1)),
    Fault("unknown, not done", OutcomeUnknownError),
    Fault("unknown, done", OutcomeUnknownError, effect="done"),
    Fault("unknown, lands later", OutcomeUnknownError, effect="late"),
    Fault("not authorised", NotAuthorisedError, lasts=None),
    Fault("permanent", PermanentError, lasts=None),
    Fault("permanent once", PermanentError),
    Fault("not found", RunNotFoundError, lasts=None, of="JobRuns"),
    Fault("refused", RepairRefusedError, lasts=None, of="JobRuns"),
    Fault("impossible", RepairImpossibleError, lasts=None, of="JobRuns"),
    Fault("configuration error", ConfigurationError, lasts=FIX_TAKES),
    Fault("conflict", ConflictError),
    Fault("bug once", KeyError),
    Fault("bug until mended", KeyError, lasts=FIX_TAKES),
    Fault("slow answer, another worker goes on", None),
)

OF_A_STORE: Mapping[Callable[[str], Exception], Callable[[str], Exception]] = {
    NotAuthorisedError: StoreNotAuthorisedError,
    PermanentError: StoreRefusedError,
}
"""How the agent's own tables and queues refuse: that is never taken for a refusal of Databricks or the mail service."""


def is_of_a_store(call: str) -> bool:
    return call.startswith(("DecisionHistory.", "ActionQueues."))


FINAL = (NotAuthorisedError, PermanentError, RunNotFoundError, RepairRefusedError, RepairImpossibleError)
"""Answers that waiting does not change: the play may end another way than without the fault."""

NOTHING_LEFT_TO_DO = (RunNotFoundError, RepairRefusedError)
"""The run is gone, or somebody else repaired it: nobody need be told."""


@dataclass(frozen=True, order=True)
class CallSite:
    """`step` is the agent's method, or `deliver`; `path` the functions between it and the call, outermost first."""

    step: str
    path: str
    call: str

    @property
    def must_be_mended(self) -> bool:
        """Whether the agent can do nothing without it, not even tell people: its own tables and queues, the lists of
        runs. Its timers and messages fail then, which is an alert of the platform's.
        """
        return is_of_a_store(self.call) or self.call in ("JobRuns.active_runs", "JobRuns.completed_runs")

    @property
    def asks_model(self) -> bool:
        """Whether the model may go unasked without it: then the rules decide alone, and perhaps another way."""
        remembers = self.step == "decide_action" and "Learning." in self.path and "next_failure" not in self.path
        return remembers or self.call.startswith("Diagnoser.")

    def __str__(self) -> str:
        return f"{self.step}: {self.path} -> {self.call}"


STEPS = ("find_failures", "decide_action", "retry_run", "send_email", "follow_up", "park", "note_wait")


def site_of(call: str) -> CallSite:
    """Where in the steps the call that is being made comes from."""
    path: list[str] = []
    step = "deliver"
    frame = sys._getframe(2)
    while frame is not None:
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        if module == "shared.databricks_agent":
            step = name.rpartition(".")[2]
            break
        if module.startswith("shared.") and "<" not in name:
            path.append(name)
        frame = frame.f_back  # type: ignore[assignment]
    return CallSite(step, " > ".join(reversed(path)), call)


@dataclass
class Interceptor:
    """Between the agent and its ports: records every call site, and makes one of them fail."""

    play: "Play"
    site: CallSite | None = None
    fault: Fault | None = None
    sites: dict[CallSite, None] = field(default_factory=dict)
    landings: list[tuple[datetime, Callable[[], Any]]] = field(default_factory=list)
    struck_at: datetime | None = None
    is_off: bool = False

    def wrap(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.is_off:
                return method(*args, **kwargs)
            if self.fault is None:
                self.sites[site_of(name)] = None
            elif self.site is not None and name == self.site.call and self._strikes() and site_of(name) == self.site:
                return self._strike(name, partial(method, *args, **kwargs), row=args[0] if args else None)
            return method(*args, **kwargs)

        return call

    def _strikes(self) -> bool:
        return self.struck_at is None or self._lasts is None or self.will_be_mended

    @property
    def _lasts(self) -> timedelta | None:
        assert self.fault is not None
        assert self.site is not None
        return FIX_TAKES if self.fault.lasts is None and self.site.must_be_mended else self.fault.lasts

    @property
    def will_be_mended(self) -> bool:
        """Whether the fault has begun and will still end."""
        if self.struck_at is None or self._lasts is None:
            return False
        return self.play.world.clock() < self.struck_at + self._lasts

    def _strike(self, name: str, method: Callable[[], Any], *, row: object) -> Any:
        assert self.fault is not None
        clock = self.play.world.clock
        self.struck_at = self.struck_at or clock()
        if self.fault.error is None:
            result = method()
            clock.advance(seconds=SETTLE.total_seconds() + 30)
            self.play.another_worker()
            return result
        somebody_inserted_it = self.fault.error is ConflictError and getattr(row, "etag", None) == ""
        if self.fault.effect == "done" or somebody_inserted_it:
            method()
        elif self.fault.effect == "late":
            self.landings.append((clock() + SETTLE / 2, method))
        error = OF_A_STORE.get(self.fault.error, self.fault.error) if is_of_a_store(name) else self.fault.error
        raise error(f"{name}: {self.fault.name}")

    @contextmanager
    def off(self) -> Iterator[None]:
        """For what the outside world does, and for looking at the result."""
        before, self.is_off = self.is_off, True
        yield
        self.is_off = before

    def land(self) -> None:
        """Let requests that are due arrive; they may be refused by then."""
        now = self.play.world.clock()
        due = [landing for at, landing in self.landings if at <= now]
        self.landings = [(at, landing) for at, landing in self.landings if at > now]
        for landing in due:
            try:
                landing()
            except (AgentError, ProcessDiedError):
                continue


# ── plays ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Scenario:
    """Failed runs of one job and what becomes of them. `outcomes` = how retries end, in order; then they fail.

    `refusal` is what each repair meets. `planned` are faults that belong to the story: `mails.after.send` and what the
    calls of it raise, in order. `outside` = what people and other tools do at the beginning of that minute.
    """

    name: str
    runs: int = 1
    outcomes: tuple[bool, ...] = ()
    diagnosis: Diagnosis = field(default_factory=lambda: build_diagnosis(source="model"))
    planned: Mapping[str, Sequence[BaseException | None]] = field(default_factory=dict)
    outside: Mapping[int, Callable[["Play"], None]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def pause(play: "Play") -> None:
    play.world.history.save_pause(Pause(paused=True, by="a person", why="a test"))


def resume(play: "Play") -> None:
    play.world.history.save_pause(Pause(paused=False))


def repair_by_hand(play: "Play") -> None:
    """A person repairs the run."""
    run = play.world.runs.state(RUN_ID)
    repair = Repair(7001 + len(run.repairs), None, play.world.clock())
    play.world.runs.put_running(replace(run, repairs=(*run.repairs, repair)))


def repair_by_hand_and_resume(play: "Play") -> None:
    """A person repairs the run once the agent knows of it and still waits."""
    if play.world.history.read_incident(WORKSPACE, RUN_ID) is None:
        play.next_minute = repair_by_hand_and_resume
        return
    repair_by_hand(play)
    play.next_minute = resume


def repair_between_ticks(play: "Play") -> None:
    """A person repairs the run, and it fails again before the next tick."""
    repair_by_hand(play)
    play.world.runs.finish(RUN_ID, succeeded=False)


def remove_run(play: "Play") -> None:
    play.world.runs.remove(RUN_ID)


def edit_leased_value(play: "Play") -> None:
    """A person sets the number of workers, as soon as it is changed for a retry."""
    if play.world.runs.job_settings(WORKSPACE, JOB_ID) == play.own_settings:
        play.next_minute = edit_leased_value
        return
    cluster = deepcopy(play.own_settings["job_clusters"][0])
    cluster["new_cluster"]["num_workers"] = 11
    play.world.runs.update_job(WORKSPACE, JOB_ID, new_settings={"job_clusters": [cluster]}, fields_to_remove=())
    play.own_settings = play.world.runs.job_settings(WORKSPACE, JOB_ID)


def send_nonsense(play: "Play") -> None:
    play.world.queues.send(FAILED_RUNS, [OutgoingMessage("no message of ours", "nonsense")])


MORE_WORKERS = build_diagnosis(
    category=Category.WORKER_MEMORY,
    recommended=DecisionKind.RETRY_WITH_PARAMS,
    changes=(Change(ChangeKind.MORE_WORKERS),),
    source="model",
)
CODE = build_diagnosis(category=Category.CODE, recommended=DecisionKind.ESCALATE_EMAIL, source="model")

NO_REPAIR = {"runs.before.repair_run": [RepairImpossibleError("this run cannot be repaired")] * 10}
DIES = ProcessDiedError()

SCENARIOS = (
    Scenario("a repair with more workers heals it", outcomes=(True,), diagnosis=MORE_WORKERS),
    Scenario("two repairs fail", outcomes=(False, False)),
    Scenario("a second new run heals it", outcomes=(False, True), planned=NO_REPAIR),
    Scenario("two repairs with more workers fail", outcomes=(False, False), diagnosis=MORE_WORKERS),
    Scenario("it may not be repaired", planned={"runs.before.repair_run": [NotAuthorisedError("no right")] * 10}),
    Scenario("several of one cause", runs=3, diagnosis=CODE),
    Scenario("one slot, two runs", runs=2, outcomes=(True, True), settings={"max_concurrent_retries": 1}),
    Scenario("two leases on one job", runs=2, outcomes=(True, True), diagnosis=MORE_WORKERS),
    Scenario("it is only suggested", settings={"default_mode": Mode.OBSERVE}),
    Scenario("switched off", settings={"default_mode": Mode.OFF}),
    Scenario("paused for a while", outcomes=(True,), outside={0: pause, 20: resume}),
    Scenario("repaired by hand before the retry", outcomes=(True,), outside={0: pause, 2: repair_by_hand_and_resume}),
    Scenario("repaired by hand between two ticks", diagnosis=CODE, outside={30: repair_between_ticks}),
    Scenario("gone while its retry runs", outside={1: remove_run}),
    Scenario("a message that nobody understands", diagnosis=CODE, outside={1: send_nonsense}),
    Scenario("a worker dies after the repair", outcomes=(True,), planned={"runs.after.repair_run": [DIES]}),
    Scenario("a worker dies after the new run", outcomes=(True,), planned=NO_REPAIR | {"runs.after.run_now": [DIES]}),
    Scenario(
        "a worker dies after the job was changed",
        outcomes=(True,),
        diagnosis=MORE_WORKERS,
        planned={"runs.after.update_job": [DIES]},
    ),
    Scenario("a worker dies after the mail", diagnosis=CODE, planned={"mails.after.send": [DIES]}),
    Scenario("a worker dies after the digest", runs=3, diagnosis=CODE, planned={"mails.after.send": [None, DIES]}),
    Scenario(
        "Databricks refuses once to put the job back",
        outcomes=(True,),
        diagnosis=MORE_WORKERS,
        planned={"runs.before.update_job": [None, NotAuthorisedError("no right on the job")]},
    ),
    Scenario(
        "a person edits the job during the retry",
        outcomes=(True,),
        diagnosis=MORE_WORKERS,
        outside={1: edit_leased_value},
    ),
    Scenario(
        "never readable",
        planned={"runs.before.read_facts": [TransientError("503")] * 1000},
        settings={"defer_give_up_hours": 2},
    ),
)
SCENARIO = {scenario.name: scenario for scenario in SCENARIOS}

MINUTES = 60
"""So long a play is followed by the minute, then every ten. It is the window of duplicate detection too."""

LONGEST_HOURS = 30

SWEEP_MINUTES = 20


def learning_world(**options: Any) -> World:
    """A world whose engine remembers causes and answers, as the app's does."""
    world = build_world(**({"max_retry_attempts": 2, "sweep_interval_minutes": SWEEP_MINUTES} | options))
    guids = (f"guid-{number}" for number in count())
    world.agent = DatabricksAgent(
        None,
        world.runs,
        world.mails,
        ErrorDecisionEngine(
            world.model,
            settings=world.settings,
            learning=Learning(world.history, world.settings, world.clock, partial(next, guids)),
            jitter=lambda: 0.0,
        ),
        settings=world.settings,
        history=world.history,
        queues=world.queues,
        clock=world.clock,
        guid=partial(next, guids),
    )
    world.delivery = MessageDelivery(
        world.agent,
        queues=world.queues,
        history=world.history,
        settings=world.settings,
        clock=world.clock,
        jitter=lambda: 0.0,
    )
    return world


class Play:
    """A scenario from the failure of its runs until everything is quiet, with one fault or none."""

    def __init__(self, scenario: Scenario, site: CallSite | None = None, fault: Fault | None = None) -> None:
        self.scenario = scenario
        self.run_ids = [RUN_ID + number for number in range(scenario.runs)]
        self.io = Interceptor(self, site, fault)
        self.world = learning_world(diagnosis=scenario.diagnosis, **scenario.settings)
        self.next_minute: Callable[[Play], None] | None = None
        self.own_settings = build_job_settings()
        self.broken: list[str] = []
        self.raised: dict[str, Exception] = {}
        self._outcomes = list(scenario.outcomes)
        self._now_doing: Callable[[], Any] = lambda: None
        world = self.world
        for run_id in self.run_ids:
            world.runs.put_running(build_run_state(run_id=run_id, job_parameters={"part": str(run_id)}))
        world.agent.find_failures()
        for name, errors in scenario.planned.items():
            part, when, call = name.split(".")
            getattr(getattr(world, part).faults, when)[call] = list(errors)
        self._instrument()

    def _instrument(self) -> None:
        world = self.world
        parts = (
            (world.runs, ports.JobRuns),
            (world.history, ports.DecisionHistory),
            (world.mails, ports.EmailSender),
            (world.queues, ports.ActionQueues),
            (world.model, ports.Diagnoser),
        )
        vars(world.history)["save_incident"] = self._watched(
            world.history.save_incident,
            lambda row: world.history.read_incident(row.workspace, row.run_id),
            broken_incident_rules,
        )
        vars(world.history)["save_lease"] = self._watched(
            world.history.save_lease,
            lambda row: world.history.read_lease(row.workspace, row.job_id),
            broken_lease_rules,
        )
        for part, port in parts:
            for name, _ in inspect.getmembers(port, inspect.isfunction):
                if not name.startswith("_") and hasattr(part, name):
                    setattr(part, name, self.io.wrap(f"{port.__name__}.{name}", getattr(part, name)))
        vars(world.delivery)["deliver"] = self._remembered(world.delivery.deliver)
        vars(world.agent)["find_failures"] = self._remembered(world.agent.find_failures)
        vars(world.agent)["follow_up"] = self._remembered(world.agent.follow_up)

    def _watched[T: (Incident, Lease)](
        self, save: Callable[[T], T], read: Callable[[T], T | None], rules: Callable[[T | None, T], list[str]]
    ) -> Callable[[T], T]:
        """A save that notes what of the model's rules it breaks."""

        def call(row: T) -> T:
            with self.io.off():
                before = read(row)
            saved = save(row)
            if before is None or before != saved:
                self.broken += rules(before, saved)
            return saved

        return call

    def _remembered(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, which another worker may be given too while it runs; what it raises is kept."""

        def call(*args: Any) -> Any:
            self._now_doing = partial(step, *args)
            try:
                return step(*args)
            except Exception as error:
                if args and isinstance(args[0], Envelope):
                    self.raised[args[0].message_id] = error
                raise

        return call

    def another_worker(self) -> None:
        """The lock ran out: somebody else does the same, while its first worker stands still."""
        try:
            self._now_doing()
        except (AgentError, ProcessDiedError):
            return

    def to_the_end(self) -> "Play":
        """Until every incident is closed and nothing waits, and ten steps more."""
        with self.io.off():
            for run_id in self.run_ids:
                self.world.runs.finish(run_id, succeeded=False)
        quiet = 0
        for minute in range(MINUTES + LONGEST_HOURS * 6):
            is_fine = minute < MINUTES
            self.world.queues.detects_duplicates = is_fine
            act, self.next_minute = self.next_minute or self.scenario.outside.get(minute), None
            if act:
                with self.io.off():
                    act(self)
            self.world.run_for(
                minutes=1 if is_fine else 10, step_seconds=60 if is_fine else 600, each=self._environment
            )
            with self.io.off():
                quiet = quiet + 1 if self._is_quiet(minute) else 0
            if quiet == 5:
                break
        return self

    def _environment(self) -> None:
        with self.io.off():
            self.io.land()
            for run in self.world.runs.active_runs(WORKSPACE):
                self.world.runs.finish(run.run_id, succeeded=self._outcomes.pop(0) if self._outcomes else False)

    def _is_quiet(self, minute: int) -> bool:
        history = self.world.history
        return (
            minute >= max(self.scenario.outside, default=-SWEEP_MINUTES) + SWEEP_MINUTES
            and not self.io.will_be_mended
            and not history.open_incidents(WORKSPACE)
            and not self.open_leases()
            and not any(self.world.queues.waiting.values())
            and not self.io.landings
            and all(history.read_incident(WORKSPACE, run_id) for run_id in self.run_ids)
        )

    def open_leases(self) -> list[Lease]:
        """Leases that are not closed; where the fault is for good, those that people were told of do not count."""
        leases = self.world.history.open_leases(WORKSPACE)
        reported = {mail.run_id for mail in self.world.mails.about_one_run if mail.kind == "lease"}
        is_for_good = self.io.fault is not None and self.io.fault.lasts is None
        return [lease for lease in leases if not (is_for_good and lease.run_id in reported)]


# ── promises ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Ending:
    """How a play ended: the incident of each run, retries made, failures that people were told about."""

    incidents: tuple[Incident | None, ...]
    retries: int
    told: int

    @property
    def states(self) -> list[IncidentState | None]:
        return [incident.state if incident else None for incident in self.incidents]


def ending_of(play: Play) -> Ending:
    world = play.world
    with play.io.off():
        incidents = tuple(world.history.read_incident(WORKSPACE, run_id) for run_id in play.run_ids)
    told = sum(mail.total for mail in world.mails.sent if isinstance(mail, DigestMail))
    told += sum(mail.kind != "lease" for mail in world.mails.about_one_run)
    return Ending(incidents, len(world.runs.repairs) + len(world.runs.started), told)


@dataclass(frozen=True)
class Recording:
    """The call sites of all plain plays, each with the scenarios that pass it; and how each scenario ends."""

    sites: Mapping[CallSite, Sequence[str]]
    endings: Mapping[str, Ending]
    broken: Mapping[str, Sequence[str]]


@cache
def recording() -> Recording:
    sites: dict[CallSite, list[str]] = {}
    endings: dict[str, Ending] = {}
    broken: dict[str, list[str]] = {}
    for scenario in SCENARIOS:
        play = Play(scenario).to_the_end()
        endings[scenario.name] = ending_of(play)
        broken[scenario.name] = broken_promises(play)
        for site in play.io.sites:
            sites.setdefault(site, []).append(scenario.name)
    return Recording(sites, endings, broken)


def broken_promises(play: Play) -> list[str]:
    """What of the promises does not hold."""
    world = play.world
    ending = ending_of(play)
    with play.io.off():
        still_open = world.history.open_incidents(WORKSPACE)
        leases = play.open_leases()
        is_reported = not leases and bool(world.history.open_leases(WORKSPACE))
        settings = play.own_settings
        if play.scenario.name != "gone while its retry runs":
            settings = world.runs.job_settings(WORKSPACE, JOB_ID)
    repairs = Counter((repair.run_id, repair.latest_repair_id) for repair in world.runs.repairs)
    tokens = Counter(run.token for run in world.runs.started)
    mails = Counter(mail.key for mail in world.mails.sent)
    attempts = sum(len(incident.attempts) for incident in ending.incidents if incident)
    promises = {
        "the fault never struck": play.io.fault is None or play.io.struck_at is not None,
        f"incidents are open: {[(i.run_id, i.state) for i in still_open]}": not still_open,
        f"repaired twice: {repairs}": all(n == 1 for n in repairs.values()),
        f"started twice: {tokens}": all(n == 1 for n in tokens.values()),
        f"{ending.retries} retries of {attempts} attempts": ending.retries <= attempts,
        f"mailed twice: {mails}": all(n == 1 for n in mails.values()),
        f"open leases: {leases}": not leases,
        f"the job was left changed: {settings}": settings == play.own_settings or is_reported,
        f"messages still wait: {dict(world.queues.waiting)}": not any(world.queues.waiting.values()),
    }
    broken = play.broken + [what for what, holds in promises.items() if not holds]
    for envelope in world.dead:
        broken += unexplained(envelope, play)
    for number in range(len(play.run_ids)):
        broken += broken_promises_to(number, ending, play)
    return broken + other_ending(ending, play)


def broken_promises_to(number: int, ending: Ending, play: Play) -> list[str]:
    """What was not kept to the run of that number."""
    incident, fault, site = ending.incidents[number], play.io.fault, play.io.site
    if incident is None:
        return [f"the incident of run {play.run_ids[number]} is lost"]
    broken = []
    if len(incident.attempts) > play.world.settings.max_retry_attempts:
        broken.append(f"{len(incident.attempts)} retries of run {incident.run_id}")
    if fault is None or site is None:
        return broken
    excuses = (
        incident.state is recording().endings[play.scenario.name].states[number],
        incident.state is IncidentState.RECOVERED,
        bool(incident.mailed),
        incident.state is IncidentState.SKIPPED and fault.error in NOTHING_LEFT_TO_DO,
        incident.state is IncidentState.PARKED and site.call.startswith("EmailSender."),
    )
    if not any(excuses):
        broken.append(f"nobody was told of run {incident.run_id}, {incident.state}: {incident.ended_why}")
    return broken


def other_ending(ending: Ending, play: Play) -> list[str]:
    """Where waiting or another try helps, a play ends as it does without the fault."""
    fault, site = play.io.fault, play.io.site
    if fault is None or site is None:
        return []
    if site.asks_model or (fault.error in FINAL and not site.must_be_mended):
        return []
    plain = recording().endings[play.scenario.name]
    if (ending.states, ending.retries, ending.told) == (plain.states, plain.retries, plain.told):
        return []
    return [f"ended {[str(state) for state in ending.states]}, {ending.retries} retries, {ending.told} told"]


def unexplained(envelope: Envelope, play: Play) -> list[str]:
    """A dead-lettered message whose reason is not in the history although it is none of a bug or of wrong settings."""
    error = play.raised[envelope.message_id]
    if play.io.site and play.io.site.call == "DecisionHistory.record_rejected":
        return []  # where the reason cannot be stored, the log has it
    rejected = [of for of in play.world.history.rejected if of[:2] == (envelope.queue, envelope.message_id)]
    if isinstance(error, PermanentError | TransientError) and not isinstance(error, ConflictError) and not rejected:
        return [f"{envelope.message_id} was dead-lettered without a reason: {error}"]
    return []


# ── the matrix ──────────────────────────────────────────────────────────────────────────────────────────────────────

SHARE = 4
"""One of so many cells is in the short run: each call site with a quarter of the faults, and the other way round."""


def cells() -> Iterator[Any]:
    """Every call site with every fault, in the first scenario that passes it; the long run adds another one."""
    for row, (site, names) in enumerate(sorted(recording().sites.items())):
        for column, fault in enumerate(FAULTS):
            if not site.call.startswith(fault.of):
                continue
            for name in dict.fromkeys((names[0], names[len(names) // 2])):
                is_short = (row + column) % SHARE == 0 and name == names[0]
                marks = [] if is_short else [pytest.mark.long]
                yield pytest.param(site, fault, name, marks=marks, id=f"{site} | {fault} | {name}")


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Each play logs what it should, and pytest would keep it all."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("site", "fault", "scenario"), list(cells()))
def test_a_call_that_fails_repeats_and_loses_nothing(site: CallSite, fault: Fault, scenario: str) -> None:
    play = Play(SCENARIO[scenario], site, fault).to_the_end()

    assert broken_promises(play) == []


def test_without_a_fault_every_promise_holds() -> None:
    assert {name: broken for name, broken in recording().broken.items() if broken} == {}


def test_the_plain_plays_pass_every_call_of_the_steps() -> None:
    """What a port offers and no play calls would not be covered by the matrix."""
    called = {site.call for site in recording().sites}
    offered = {
        f"{port.__name__}.{name}"
        for port in (ports.JobRuns, ports.EmailSender, ports.ActionQueues, ports.DecisionHistory, ports.Diagnoser)
        for name, _ in inspect.getmembers(port, inspect.isfunction)
        if not name.startswith("_")
    }

    assert {site.step for site in recording().sites} == {*STEPS, "deliver"}
    for_people = {"DecisionHistory.events", "DecisionHistory.open_leases", "DecisionHistory.save_pause"}
    assert offered - called == for_people


def test_an_outage_does_not_multiply_the_messages_of_one_failure() -> None:
    """A message that is put off is still there: its incident is not overdue."""
    play = Play(Scenario("outage", planned={"runs.before.read_facts": [TransientError("503")] * 10_000}))
    with play.io.off():
        play.world.runs.finish(RUN_ID, succeeded=False)

    play.world.run_for(hours=6)

    assert len(play.world.queues.waiting[FAILED_RUNS]) == 1
