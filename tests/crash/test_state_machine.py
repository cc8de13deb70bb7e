"""Whatever people, Databricks and failing services do in whatever order: the agent stays within the written model.

Hypothesis makes up histories of two jobs: runs fail, timers tick, messages come late, twice or in another order,
people repair, edit, pause and tag, services fail, requests land late, days pass. After each step the model's rules
hold; at the end all is driven until it is quiet: then nothing is open, left changed or forgotten.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from shared import ports
from shared.domain import (
    Category,
    Change,
    ChangeKind,
    DecisionKind,
    Diagnosis,
    DigestMail,
    Evidence,
    Incident,
    IncidentState,
    Lease,
    LeaseState,
    Pause,
    Repair,
    RunFacts,
)
from shared.errors import AgentError, NotAuthorisedError, OutcomeUnknownError, ThrottledError, TransientError
from shared.messages import FAILED_RUNS, QUEUES
from shared.ports import OutgoingMessage
from tests.builders import (
    JOB_ID,
    NOW,
    WORKSPACE,
    build_diagnosis,
    build_job_facts,
    build_job_settings,
    build_run_facts,
    build_run_state,
    build_symptoms,
    build_task_failure,
)
from tests.crash.test_error_matrix import learning_world
from tests.crash.written_model import Outside, broken_incident_rules, broken_lease_rules
from tests.world import MAX_DELIVERIES, ProcessDiedError, envelope_of

JOBS = (JOB_ID, JOB_ID + 1)
MAX_RETRIES, MAX_CHANGED = 3, 2
FIRST_RUN = 1001
PERSONS_REPAIRS = 7001

STALE = timedelta(minutes=30)
"""`stale_after_minutes`: an incident this late is sent again."""

KINDS: dict[str, Diagnosis | None] = {
    "connection": build_diagnosis(source="model"),
    "memory": build_diagnosis(
        category=Category.WORKER_MEMORY,
        recommended=DecisionKind.RETRY_WITH_PARAMS,
        changes=(Change(ChangeKind.MORE_WORKERS),),
        source="model",
    ),
    "code": build_diagnosis(category=Category.CODE, recommended=DecisionKind.ESCALATE_EMAIL, source="model"),
    "cancelled": None,
}
"""Kinds of failures, with what the model makes of them; None = the rules decide."""

EFFECTS = {"repair_run": 180, "update_job": 30, "send": 30}
"""Calls that change the world outside, and after how many seconds an unanswered one lands: e-mail and job updates have
no compare-and-swap, so for these it is within `claim_settle_seconds`."""

FAULTS = ("transient", "throttled", "dies before", "dies after", "not authorised", "lands later")

PORTS = {
    "runs": ports.JobRuns,
    "history": ports.DecisionHistory,
    "mails": ports.EmailSender,
    "queues": ports.ActionQueues,
    "model": ports.Diagnoser,
}

A_WEEK = 7 * 24 * 60
LONGEST_HOURS = 60


class Machine(RuleBasedStateMachine):
    """The agent on fakes, and the world around it as the model sees it."""

    def __init__(self) -> None:
        super().__init__()
        logging.disable(logging.CRITICAL)
        self.world = learning_world(
            max_retry_attempts=MAX_RETRIES, retry_with_params_attempts=MAX_CHANGED, max_concurrent_retries=2
        )
        self.outside = Outside({job: build_job_settings() for job in JOBS}, dict.fromkeys(JOBS, "full"))
        self.broken: list[str] = []
        self.fault: tuple[str, str] | None = None
        self.fault_calls = 0
        self.told_in_doubt = 0
        self.landings: list[tuple[datetime, Callable[[], Any]]] = []
        self.run_ids: list[int] = []
        self.deliveries: dict[str, int] = {}
        self.next_value = 100
        self._is_agent = True
        self._lands = False
        self._seen = {"repairs": 0, "job_updates": 0, "mails": 0}
        vars(self.world.model)["diagnose"] = self._diagnose
        self._watch()
        for part, port in PORTS.items():
            fake = getattr(self.world, part)
            for name, _ in inspect.getmembers(port, inspect.isfunction):
                if not name.startswith("_"):
                    setattr(fake, name, self._guarded(part, name, getattr(fake, name)))
        self.world.agent.find_failures()

    def teardown(self) -> None:
        try:
            self._drive_to_quiescence()
        finally:
            logging.disable(logging.NOTSET)

    # ── around the agent ────────────────────────────────────────────────────────────────────────────────────────────

    def _diagnose(self, evidence: Evidence, **_: object) -> Diagnosis | None:
        return next((diagnosis for kind, diagnosis in KINDS.items() if kind in evidence.text), None)

    def _guarded(self, part: str, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_agent or self.fault is None or self.fault[0] != part:
                return method(*args, **kwargs)
            self.fault_calls -= 1
            kind, self.fault = self.fault[1], self.fault if self.fault_calls else None
            if part == "mails" and kind in ("dies after", "lands later"):
                self.told_in_doubt += len(self.run_ids)  # at most: a run may move on before the mail is noted with it
            return self._fail(kind, name, lambda: method(*args, **kwargs))

        return call

    def _fail(self, kind: str, name: str, request: Callable[[], Any]) -> Any:
        match kind:
            case "transient":
                raise TransientError(f"{name}: 503")
            case "throttled":
                raise ThrottledError(f"{name}: 429", retry_after_seconds=120)
            case "dies before":
                raise ProcessDiedError
            case "dies after":
                request()
                raise ProcessDiedError
            case "not authorised" if name in EFFECTS:
                raise NotAuthorisedError(f"{name}: 403")
            case "lands later" if name in EFFECTS:
                self.landings.append((self.world.clock() + timedelta(seconds=EFFECTS[name]), request))
                raise OutcomeUnknownError(f"{name}: no answer")
        return request()

    @contextmanager
    def _people(self) -> Iterator[None]:
        """What is done here is not done by the agent."""
        self._is_agent = False
        yield
        self._is_agent = True

    def _watch(self) -> None:
        """Compare each stored incident and lease with the one that it replaces."""
        history = self.world.history
        read_incident, save_incident = history.read_incident, history.save_incident
        read_lease, save_lease = history.read_lease, history.save_lease

        def incident(row: Incident) -> Incident:
            before = read_incident(row.workspace, row.run_id)
            saved = save_incident(row)
            if saved != before:
                self.broken += broken_incident_rules(before, saved)
            return saved

        def lease(row: Lease) -> Lease:
            before = read_lease(row.workspace, row.job_id)
            saved = save_lease(row)
            self.broken += broken_lease_rules(before, saved) if saved != before else []
            return saved

        vars(history)["save_incident"], vars(history)["save_lease"] = incident, lease

    def _runs(self, *, active: bool) -> list[int]:
        """Runs that are active, or that have failed."""
        states = [self.world.runs.state(run_id) for run_id in self.run_ids]
        return [run.run_id for run in states if (run.is_active if active else run.is_failed and not run.is_active)]

    # ── Databricks and people ───────────────────────────────────────────────────────────────────────────────────────

    @rule(kind=st.sampled_from(sorted(KINDS)), job_id=st.sampled_from(JOBS))
    def a_run_fails(self, kind: str, job_id: int) -> None:
        run_id = FIRST_RUN + len(self.run_ids)
        now = self.world.clock()
        is_cancelled = kind == "cancelled"
        run = build_run_state(
            run_id=run_id,
            job_id=job_id,
            job_parameters={"part": str(run_id)},
            start_time=now - timedelta(minutes=1),
            end_time=now,
            result_state="CANCELED" if is_cancelled else "FAILED",
            termination_code="USER_CANCELED" if is_cancelled else "RUN_EXECUTION_ERROR",
        )
        symptoms = build_symptoms(
            error=f"java.lang.IllegalStateException: trouble with {kind}",
            error_trace="",
            termination_code=run.termination_code,
            result_state=run.result_state,
        )
        job = self._job_facts(job_id)
        facts = build_run_facts(run=run, failures=(build_task_failure(symptoms=symptoms),), job=job)
        self.world.runs.put(facts)
        self.run_ids.append(run_id)
        self.outside.failures[run_id] += 1

    def _job_facts(self, job_id: int) -> Any:
        known = [self._facts(run_id).job for run_id in self.run_ids]
        tags = {"failure-agent": self.outside.modes[job_id]}
        new = build_job_facts(job_id=job_id, tags=tags, settings=build_job_settings())
        return next((job for job in known if job and job.job_id == job_id), new)

    def _facts(self, run_id: int) -> RunFacts:
        with self._people():
            return self.world.runs.read_facts(WORKSPACE, run_id)

    @precondition(lambda self: self._runs(active=True))
    @rule(data=st.data(), succeeds=st.booleans())
    def a_run_ends(self, data: st.DataObject, succeeds: bool) -> None:
        self._end(data.draw(st.sampled_from(self._runs(active=True))), succeeds=succeeds)

    def _end(self, run_id: int, *, succeeds: bool) -> None:
        self.world.runs.finish(run_id, succeeded=succeeds)
        self.outside.failures[run_id] += not succeeds

    @precondition(lambda self: self._runs(active=False))
    @rule(data=st.data())
    def a_person_repairs_the_run(self, data: st.DataObject) -> None:
        run = self.world.runs.state(data.draw(st.sampled_from(self._runs(active=False))))
        repair = Repair(PERSONS_REPAIRS + len(run.repairs), None, self.world.clock())
        self.world.runs.put_running(replace(run, repairs=(*run.repairs, repair)))

    @precondition(lambda self: self._runs(active=False))
    @rule(data=st.data())
    def a_newer_run_succeeds(self, data: st.DataObject) -> None:
        old = self._facts(data.draw(st.sampled_from(self._runs(active=False))))
        now = self.world.clock()
        run = replace(
            old.run,
            run_id=FIRST_RUN + len(self.run_ids),
            is_failed=False,
            result_state="SUCCESS",
            termination_code="SUCCESS",
            start_time=now,
            end_time=now,
            repairs=(),
        )
        self.world.runs.put(replace(old, run=run))
        self.run_ids.append(run.run_id)

    @precondition(lambda self: not self.landings)
    @rule(job_id=st.sampled_from(JOBS), in_the_lease=st.booleans())
    def a_person_edits_the_job(self, job_id: int, in_the_lease: bool) -> None:
        """Sets a value that retries change, or another one: more workers than a retry may have, never the same."""
        if not any(self._facts(run_id).run.job_id == job_id for run_id in self.run_ids):
            return
        self.next_value += 1
        with self._people():
            now = self.world.runs.job_settings(WORKSPACE, job_id)
            wanted = self.outside.settings[job_id]
            if in_the_lease:
                for one in (now, wanted):
                    one["job_clusters"][0]["new_cluster"]["num_workers"] = self.next_value
                edit = {"job_clusters": now["job_clusters"]}
            else:
                wanted["max_concurrent_runs"] = self.next_value
                edit = {"max_concurrent_runs": self.next_value}
            self.world.runs.update_job(WORKSPACE, job_id, new_settings=edit, fields_to_remove=())
        self._seen["job_updates"] += 1

    @rule(job_id=st.sampled_from(JOBS), mode=st.sampled_from(["full", "full", "retry", "observe", "off"]))
    def a_person_tags_the_job(self, job_id: int, mode: str) -> None:
        self.outside.modes[job_id] = mode
        if any(self._facts(run_id).run.job_id == job_id for run_id in self.run_ids):
            self.world.runs.tag_job(job_id, {"failure-agent": mode})

    @rule(paused=st.sampled_from([False, False, True]))
    def a_person_pauses_or_resumes(self, paused: bool) -> None:
        with self._people():
            self.world.history.save_pause(Pause(paused=paused))
        self.outside.is_paused = paused

    @rule(minutes=st.sampled_from([1, 1, 5, 40, A_WEEK]))
    def time_passes(self, minutes: int) -> None:
        self.world.clock.advance(minutes=minutes)
        self._land()

    def _land(self) -> None:
        """Requests that were under way arrive; they may be refused by then."""
        now = self.world.clock()
        due = [request for at, request in self.landings if at <= now]
        self.landings = [(at, request) for at, request in self.landings if at > now]
        self.note_effects()
        self._lands = True
        for request in due:
            try:
                request()
            except AgentError:
                continue
        self.note_effects()
        self._lands = False

    @rule(part=st.sampled_from(sorted(PORTS)), kind=st.sampled_from(FAULTS), calls=st.sampled_from([1, 2, 5, 100]))
    def a_service_fails(self, part: str, kind: str, calls: int) -> None:
        """For so many calls, unless it works again before."""
        self.fault, self.fault_calls = (part, kind), calls

    @precondition(lambda self: self.fault)
    @rule()
    def the_service_works_again(self) -> None:
        self.fault = None

    # ── the app ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule()
    def find_failures(self) -> None:
        self._tick(self.world.agent.find_failures)

    @rule()
    def follow_up(self) -> None:
        nothing_stops_it = self.fault is None and not self.outside.is_paused
        self._tick(self.world.agent.follow_up)
        if nothing_stops_it:
            self.broken += self._overdue()

    @rule(minutes=st.integers(1, 5))
    def the_app_goes_on(self, minutes: int) -> None:
        """Everything in its usual order."""
        for _ in range(minutes):
            self.time_passes(minutes=1)
            self.find_failures()
            self.all_messages_come()
            self.follow_up()
            self.all_messages_come()
            self.note_effects()

    @rule(kind=st.sampled_from(["connection", "memory", "memory", "code"]), job_id=st.sampled_from(JOBS))
    def a_run_fails_and_is_dealt_with(self, kind: str, job_id: int) -> None:
        self.a_run_fails(kind=kind, job_id=job_id)
        self.the_app_goes_on(minutes=1)

    def _tick(self, step: Callable[[], int]) -> None:
        try:
            step()
        except (AgentError, ProcessDiedError):
            return

    def _overdue(self) -> list[str]:
        """Incidents that nothing moves on: neither a message, nor a retry, nor a digest, nor `follow_up`."""
        moved = (IncidentState.RETRYING, IncidentState.GATHERED)
        late = self.world.clock() - STALE
        rows = self.world.history.open_incidents(WORKSPACE)
        return [f"run {row.run_id} is overdue" for row in rows if row.state not in moved and row.due_at <= late]

    @precondition(lambda self: any(self.world.queues.waiting.values()))
    @rule(data=st.data())
    def a_message_comes(self, data: st.DataObject) -> None:
        """Any that is due: queues keep no order here."""
        now = self.world.clock()
        waiting = [(q, m) for q in QUEUES for m in self.world.queues.waiting[q] if m.due is None or m.due <= now]
        if waiting:
            queue, message = data.draw(st.sampled_from(waiting))
            self.world.queues.waiting[queue].remove(message)
            self._deliver(queue, message)

    @precondition(lambda self: any(self.world.queues.waiting.values()))
    @rule()
    def all_messages_come(self) -> None:
        for queue in QUEUES:
            self.all_messages_of(queue)

    def all_messages_of(self, queue: str) -> None:
        for message in self.world.queues.take(queue, self.world.clock()):
            self._deliver(queue, message)

    @precondition(lambda self: self.world.queues.sent)
    @rule(data=st.data())
    def an_old_message_comes_again(self, data: st.DataObject) -> None:
        """Delivered twice, or put back from the dead-letter queue, however long ago it was."""
        queue, message = data.draw(st.sampled_from(self.world.queues.sent))
        self.deliveries[message.message_id] = MAX_DELIVERIES
        self._deliver(queue, message)

    def _deliver(self, queue: str, message: OutgoingMessage) -> None:
        count = self.deliveries[message.message_id] = self.deliveries.get(message.message_id, 0) + 1
        try:
            self.world.delivery.deliver(envelope_of(queue, message, count))
        except (AgentError, ProcessDiedError):
            if count < MAX_DELIVERIES:
                self.world.queues.waiting[queue].append(replace(message, due=None))

    # ── what must hold ──────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def the_model_holds(self) -> None:
        self.note_effects()
        assert self.broken == []
        self.retries_stay_within_the_limits()
        self.a_changed_job_has_a_lease()
        assert self._noted() <= self._told()

    def note_effects(self) -> None:
        """Ask the model about every effect that is new."""
        runs, before = self.world.runs, self._seen
        late = self._lands
        for repair in runs.repairs[before["repairs"] :]:
            job_id = runs.state(repair.run_id).job_id or 0
            self.broken += self.outside.broken_by_repair(repair.run_id, job_id, was_sent_before=late)
        for job_id, settled in runs.job_updates[before["job_updates"] :]:
            self.broken += self.outside.broken_by_update(job_id, settled, was_sent_before=late)
        for mail in self.world.mails.sent[before["mails"] :]:
            self.broken += self.outside.broken_by_mail(mail.key, was_sent_before=late)
            if isinstance(mail, DigestMail) and mail.total != sum(group.count for group in mail.groups):
                self.broken.append(f"{mail.key}: {mail.total} is not the sum of its groups")
        self._seen = {
            "repairs": len(runs.repairs),
            "job_updates": len(runs.job_updates),
            "mails": len(self.world.mails.sent),
        }

    def retries_stay_within_the_limits(self) -> None:
        with self._people():
            for run_id in self.run_ids:
                incident = self.world.history.read_incident(WORKSPACE, run_id)
                attempts = incident.attempts if incident else ()
                assert len(attempts) <= MAX_RETRIES
                assert sum(attempt.with_changes for attempt in attempts) <= MAX_CHANGED
                repairs = [repair for repair in self.world.runs.repairs if repair.run_id == run_id]
                assert len(repairs) <= MAX_RETRIES

    def a_changed_job_has_a_lease(self) -> None:
        for job_id in self._known_jobs():
            with self._people():
                settled = self.world.runs.job_settings(WORKSPACE, job_id)
                lease = self.world.history.read_lease(WORKSPACE, job_id)
            if settled != self.outside.settings[job_id]:
                assert lease is not None
                assert lease.state is not LeaseState.CLOSED or lease.unanswered

    def _known_jobs(self) -> set[int]:
        return {job_id for run_id in self.run_ids if (job_id := self.world.runs.state(run_id).job_id)}

    def _incidents(self) -> list[Incident]:
        history = self.world.history
        with self._people():
            closed = history.closed_incidents(WORKSPACE, updated_after=NOW - timedelta(days=1))
            return history.open_incidents(WORKSPACE) + closed

    def _noted(self) -> int:
        return sum(len(incident.mailed) for incident in self._incidents())

    def _told(self) -> int:
        mails = self.world.mails
        digests = sum(mail.total for mail in mails.sent if isinstance(mail, DigestMail))
        return digests + sum(mail.kind != "lease" for mail in mails.about_one_run)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _drive_to_quiescence(self) -> None:
        """Services work, nobody pauses, and what runs ends: then everything must come to rest."""
        self.fault = None
        self.a_person_pauses_or_resumes(paused=False)
        for _ in range(LONGEST_HOURS):
            self.world.run_for(hours=1, step_seconds=300, each=self._environment)
            self.note_effects()
            if self._is_quiet():
                break
        self.the_model_holds()
        assert self._is_quiet(), f"open: {[(i.run_id, i.state) for i in self._incidents() if not i.state.is_terminal]}"
        for job_id in self._known_jobs():
            assert self.world.runs.job_settings(WORKSPACE, job_id) == self.outside.settings[job_id]
        for run_id in self._runs(active=False):
            assert self.world.history.read_incident(WORKSPACE, run_id), f"the failure of run {run_id} is lost"
        assert self._told() - self._noted() <= self.told_in_doubt, "a mail that nothing accounts for"

    def _environment(self) -> None:
        self._land()
        for run_id in self._runs(active=True):
            self._end(run_id, succeeds=run_id % 2 == 0)

    def _is_quiet(self) -> bool:
        history = self.world.history
        return (
            not self.landings
            and not history.open_incidents(WORKSPACE)
            and not history.followed_leases(WORKSPACE)
            and not any(self.world.queues.waiting.values())
            and not self._runs(active=True)
        )


def run_machine(examples: int, steps: int, *phases: Phase) -> None:
    """So many histories of so many steps, always the same ones."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        phases=phases or (Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(Machine, settings=chosen)


@pytest.mark.timeout(420)  # seconds; a history that fails is made shorter for up to five minutes
@pytest.mark.parametrize(
    ("examples", "steps"), [(80, 30), pytest.param(400, 50, marks=pytest.mark.long)], ids=["short", "full"]
)
def test_whatever_happens_the_agent_stays_within_the_written_model(examples: int, steps: int) -> None:
    run_machine(examples, steps)


MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "nothing asks whether actions are paused": ("shared.incidents.Incidents.stop_if_paused", lambda _: None),
    "every mode carries everything out": ("shared.domain.Mode.carries_out", lambda *_: True),
    "the mode is not read again before a retry": ("shared.retrying.Retrying._is_withdrawn", lambda *_: False),
    "no job is put back": ("shared.triage.changes.restore_body", lambda *_: (None, ())),
    "retries are not limited": ("shared.triage.policy.retry_limit", lambda _: None),
}


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_machine_notices(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTANTS[mutant])

    with pytest.raises(AssertionError):
        run_machine(100, 50, Phase.generate)


def test_a_job_that_is_switched_off_while_its_retry_waits_is_not_repaired() -> None:
    machine = Machine()
    machine.a_run_fails(kind="connection", job_id=JOB_ID)
    machine.find_failures()
    machine.all_messages_of(FAILED_RUNS)
    machine.a_person_tags_the_job(job_id=JOB_ID, mode="off")

    machine.the_app_goes_on(minutes=5)

    assert machine.world.runs.repairs == []
