"""In-memory fakes of every port: they keep state, record accepted effects and fail when told to.

Faults are given per method, oldest first. `fake.faults.before["send"]` is raised instead of doing anything,
`fake.faults.after["send"]` once everything was done: the effect landed, its answer was lost. None lets one call pass.
"""

import copy
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from shared import ports
from shared.domain import (
    Diagnosis,
    DigestMail,
    EscalationMail,
    Evidence,
    JobFacts,
    Json,
    NewerRun,
    Repair,
    RunFacts,
    RunState,
    RunSummary,
)
from shared.errors import RepairRefusedError, RunNotFoundError, TransientError
from shared.memory_history import InMemoryDecisionHistory
from shared.ports import OutgoingMessage
from tests.builders import NOW, WORKSPACE, build_run_facts, build_run_state


class Faults:
    """What the calls of one fake are to raise, and the names of all calls made, refused ones included."""

    def __init__(self) -> None:
        self.before: defaultdict[str, list[BaseException | None]] = defaultdict(list)
        self.after: defaultdict[str, list[BaseException | None]] = defaultdict(list)
        self.calls: list[str] = []

    def raise_next(self, planned: defaultdict[str, list[BaseException | None]], method: str) -> None:
        """Raise the oldest fault planned for the method, if there is one."""
        error = planned[method].pop(0) if planned[method] else None
        if error is not None:
            raise error


def fault_injectable[T: type](port: type) -> Callable[[T], T]:
    """Class decorator: every method of the port goes through `self.faults`."""

    def decorate(fake: T) -> T:
        for name, _ in inspect.getmembers(port, inspect.isfunction):
            if not name.startswith("_") and hasattr(fake, name):
                setattr(fake, name, _with_faults(name, getattr(fake, name)))
        return fake

    return decorate


def _with_faults(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        faults: Faults = self.faults
        faults.calls.append(name)
        faults.raise_next(faults.before, name)
        result = method(self, *args, **kwargs)
        faults.raise_next(faults.after, name)
        return result

    return call


class FakeClock:
    """A clock that stands still until it is advanced. Call it for the time (aware UTC)."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **delta: float) -> datetime:
        """Move on by `timedelta(**delta)`; the new time."""
        self.now += timedelta(**delta)
        return self.now


@dataclass(frozen=True, slots=True)
class RepairMade:
    """A repair that the fake accepted."""

    workspace: str
    run_id: int
    repair_id: int
    latest_repair_id: int | None
    job_parameters: Mapping[str, str]
    legacy_parameters: Mapping[str, object]
    performance_target: str | None = None


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run-now that the fake accepted."""

    workspace: str
    job_id: int
    run_id: int
    token: str
    job_parameters: Mapping[str, str]
    performance_target: str | None = None


@fault_injectable(ports.JobRuns)
class FakeJobRuns:
    """Workspaces with runs that only move when a test says so.

    Repairs follow the documented rules: refused while the run is active, has succeeded, or where `latest_repair_id` is
    not the run's own; an accepted one makes the run active. Repair ids count from 9001, new run ids from 5001.
    A job update replaces top-level fields and merges `tasks` and `job_clusters` by key; all runs of the job see it.
    """

    def __init__(
        self, *runs: RunFacts, workspaces: tuple[str, ...] = (WORKSPACE,), clock: FakeClock | None = None
    ) -> None:
        self.faults = Faults()
        self.clock = clock or FakeClock()
        self.repairs: list[RepairMade] = []
        self.started: list[RunStarted] = []
        self.job_updates: list[tuple[int, Json]] = []
        self.tokens: dict[str, int] = {}
        self._workspaces = workspaces
        self._facts: dict[tuple[str, int], RunFacts] = {}
        self._jobs: dict[tuple[str, int], JobFacts] = {}
        self._active: set[tuple[str, int]] = set()
        self._runs_of_job: defaultdict[tuple[str, int | None], set[int]] = defaultdict(set)
        for facts in runs:
            self.put(facts)

    @property
    def workspaces(self) -> tuple[str, ...]:
        return self._workspaces

    def put(self, facts: RunFacts) -> None:
        """Add a run, or replace what is known about it. Its job is from then on the one of all runs of that job."""
        run = facts.run
        self._facts[run.workspace, run.run_id] = facts
        if facts.job:
            self._jobs[run.workspace, facts.job.job_id] = facts.job
        self._runs_of_job[run.workspace, run.job_id].add(run.run_id)
        (self._active.add if run.is_active else self._active.discard)((run.workspace, run.run_id))

    def put_state(self, run: RunState) -> None:
        """Replace the state of a run, leaving its other facts; a run that is not there gets default facts."""
        facts = self._facts.get((run.workspace, run.run_id)) or build_run_facts(run=run)
        self.put(self._with_job_as_it_is(replace(facts, run=run)))

    def tag_job(self, job_id: int, tags: Mapping[str, str], *, workspace: str = WORKSPACE) -> None:
        """Give the job these tags and no others: a person does."""
        self._jobs[workspace, job_id] = replace(self._job(workspace, job_id), tags=dict(tags))

    def state(self, run_id: int, *, workspace: str = WORKSPACE) -> RunState:
        """The run as it is. Not a call of the agent: never counted, never made to fail."""
        return self._known(workspace, run_id).run

    def put_running(self, run: RunState) -> None:
        """Like `put_state`, with the run active."""
        self.put_state(_running(run))

    def remove(self, run_id: int, *, workspace: str = WORKSPACE) -> None:
        """Make the run gone, as Databricks does after 60 days."""
        gone = self._facts.pop((workspace, run_id))
        self._runs_of_job[workspace, gone.run.job_id].discard(run_id)
        self._active.discard((workspace, run_id))

    def finish(self, run_id: int, *, succeeded: bool, workspace: str = WORKSPACE) -> RunState:
        """End an active run, and its latest repair, now."""
        run = self.state(run_id, workspace=workspace)
        result = "SUCCESS" if succeeded else "FAILED"
        repairs = (*run.repairs[:-1], replace(run.repairs[-1], result_state=result)) if run.repairs else ()
        ended = replace(
            run,
            is_active=False,
            is_failed=not succeeded,
            life_cycle_state="TERMINATED",
            result_state=result,
            termination_code="SUCCESS" if succeeded else "RUN_EXECUTION_ERROR",
            termination_type="SUCCESS" if succeeded else "CLIENT_ERROR",
            end_time=self.clock(),
            repairs=repairs,
        )
        self.put_state(ended)
        return ended

    def active_runs(self, workspace: str) -> list[RunSummary]:
        return summaries(self._facts[key].run for key in sorted(self._active) if key[0] == workspace)

    def completed_runs(self, workspace: str, *, started_after: datetime) -> list[RunSummary]:
        runs = (facts.run for (of, _), facts in self._facts.items() if of == workspace)
        return summaries(run for run in runs if not run.is_active and run.start_time >= started_after)

    def read_state(self, workspace: str, run_id: int) -> RunState:
        return self._known(workspace, run_id).run

    def read_facts(self, workspace: str, run_id: int) -> RunFacts:
        return self._with_job_as_it_is(self._known(workspace, run_id))

    def _with_job_as_it_is(self, facts: RunFacts) -> RunFacts:
        """A job is one thing, whichever of its runs is asked about."""
        if facts.job is None:
            return facts
        return replace(facts, job=self._jobs.get((facts.run.workspace, facts.job.job_id), facts.job))

    def _known(self, workspace: str, run_id: int) -> RunFacts:
        facts = self._facts.get((workspace, run_id))
        if facts is None:
            raise RunNotFoundError(f"run {run_id} of workspace {workspace} does not exist")
        return facts

    def repair_run(
        self,
        workspace: str,
        run_id: int,
        *,
        latest_repair_id: int | None,
        job_parameters: Mapping[str, str],
        legacy_parameters: Mapping[str, object],
        performance_target: str | None = None,
    ) -> int:
        run = self._known(workspace, run_id).run
        if run.is_active or not run.is_failed or run.latest_repair_id != latest_repair_id:
            raise RepairRefusedError(f"run {run_id} of workspace {workspace} changed since the decision")
        repair_id = 9001 + len(self.repairs)
        self.repairs.append(
            RepairMade(
                workspace,
                run_id,
                repair_id,
                latest_repair_id,
                dict(job_parameters),
                dict(legacy_parameters),
                performance_target,
            )
        )
        repairs = (*run.repairs, Repair(repair_id, None, self.clock()))
        self.put_state(_running(replace(run, repairs=repairs)))
        return repair_id

    def run_now(
        self,
        workspace: str,
        job_id: int,
        *,
        token: str,
        job_parameters: Mapping[str, str],
        performance_target: str | None = None,
    ) -> int:
        if token in self.tokens:
            return self.tokens[token]
        run_id = self.tokens[token] = 5001 + len(self.started)
        self.started.append(RunStarted(workspace, job_id, run_id, token, dict(job_parameters), performance_target))
        run = build_run_state(
            workspace=workspace,
            run_id=run_id,
            job_id=job_id,
            trigger="ONE_TIME",
            start_time=self.clock(),
            job_parameters=dict(job_parameters),
        )
        self.put_state(_running(run))
        return run_id

    def newer_runs(self, workspace: str, job_id: int, *, started_after: datetime) -> tuple[NewerRun, ...]:
        runs = [self._facts[workspace, run_id].run for run_id in self._runs_of_job[workspace, job_id]]
        newer = [run for run in runs if run.start_time > started_after]
        newest = sorted(newer, key=lambda run: run.start_time, reverse=True)[:25]
        return tuple(NewerRun(run.run_id, run.is_active, run.result_state, run.job_parameters) for run in newest)

    def job_tags(self, workspace: str, job_id: int) -> Mapping[str, str]:
        return dict(self._job(workspace, job_id).tags)

    def job_settings(self, workspace: str, job_id: int) -> Json:
        return copy.deepcopy(self._job(workspace, job_id).settings)

    def update_job(self, workspace: str, job_id: int, *, new_settings: Json, fields_to_remove: Sequence[str]) -> None:
        job = self._job(workspace, job_id)
        merged = {**job.settings, **copy.deepcopy(new_settings)}
        for name, key in (("tasks", "task_key"), ("job_clusters", "job_cluster_key")):
            if name in new_settings:
                items = {item[key]: item for item in (*job.settings.get(name, ()), *merged[name])}
                merged[name] = list(items.values())
        for name in fields_to_remove:
            merged.pop(name, None)
        self.job_updates.append((job_id, merged))
        self._jobs[workspace, job_id] = replace(job, settings=merged)

    def _job(self, workspace: str, job_id: int) -> JobFacts:
        job = self._jobs.get((workspace, job_id))
        if job is None:
            raise RunNotFoundError(f"job {job_id} of workspace {workspace} does not exist")
        return job


def summaries(runs: Iterable[RunState]) -> list[RunSummary]:
    """Rows of a list of runs, the latest start first."""
    return [
        RunSummary(run.run_id, run.job_id, run.is_active, run.is_failed, run.start_time, run.end_time)
        for run in sorted(runs, key=lambda run: run.start_time, reverse=True)
    ]


def _running(run: RunState) -> RunState:
    return replace(
        run,
        is_active=True,
        is_failed=False,
        life_cycle_state="RUNNING",
        result_state=None,
        termination_code=None,
        termination_type=None,
        end_time=None,
    )


@dataclass(frozen=True, slots=True)
class Question:
    """What the model was asked."""

    evidence: Evidence
    facts: Mapping[str, str]


@fault_injectable(ports.Diagnoser)
class FakeDiagnoser:
    """A model that always answers the same; None = its answer is void."""

    def __init__(self, answer: Diagnosis | None = None) -> None:
        self.faults = Faults()
        self.answer = answer
        self.asked: list[Question] = []

    def diagnose(self, evidence: Evidence, *, facts: Mapping[str, str]) -> Diagnosis | None:
        self.asked.append(Question(evidence, dict(facts)))
        return self.answer


@fault_injectable(ports.EmailSender)
class FakeEmailSender:
    """Keeps the mails handed over, repeated ones included."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.sent: list[EscalationMail | DigestMail] = []

    @property
    def about_one_run(self) -> list[EscalationMail]:
        """The mails that are no digests."""
        return [mail for mail in self.sent if isinstance(mail, EscalationMail)]

    def send(self, mail: EscalationMail | DigestMail) -> None:
        self.sent.append(mail)

    def was_accepted(self, key: str) -> bool:
        return any(mail.key == key for mail in self.sent)


@fault_injectable(ports.ActionQueues)
class FakeActionQueues:
    """Queues with duplicate detection that never forgets an id.

    `sent` holds every message handed over, dropped repetitions included; `waiting` what a receiver would get.
    `detects_duplicates` False = the window of duplicate detection has always passed.
    `accept_only` = k makes the next send accept k messages and then fail, as a broken batch does.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.sent: list[tuple[str, OutgoingMessage]] = []
        self.waiting: defaultdict[str, list[OutgoingMessage]] = defaultdict(list)
        self.accept_only: int | None = None
        self.detects_duplicates = True
        self._ids: set[tuple[str, str]] = set()

    def send(self, queue: str, messages: Sequence[OutgoingMessage]) -> None:
        accepted, self.accept_only = messages[: self.accept_only], None
        for message in accepted:
            self.sent.append((queue, message))
            if not self.detects_duplicates or (queue, message.message_id) not in self._ids:
                self._ids.add((queue, message.message_id))
                self.waiting[queue].append(message)
        if len(accepted) < len(messages):
            raise TransientError(f"queue {queue} accepted {len(accepted)} of {len(messages)} messages")

    def take(self, queue: str, now: datetime) -> list[OutgoingMessage]:
        """Receive and complete all messages that are due, in the order sent."""
        due: list[OutgoingMessage] = []
        later: list[OutgoingMessage] = []
        for message in self.waiting[queue]:
            (due if message.due is None or message.due <= now else later).append(message)
        self.waiting[queue] = later
        return due


@fault_injectable(ports.DecisionHistory)
class FakeDecisionHistory(InMemoryDecisionHistory):
    """The in-memory history, with faults."""

    def __init__(self) -> None:
        super().__init__()
        self.faults = Faults()


if TYPE_CHECKING:
    FITTING: tuple[ports.JobRuns, ports.Diagnoser, ports.EmailSender, ports.ActionQueues, ports.DecisionHistory] = (
        FakeJobRuns(),
        FakeDiagnoser(),
        FakeEmailSender(),
        FakeActionQueues(),
        FakeDecisionHistory(),
    )
