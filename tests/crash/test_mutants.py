"""The harness itself is tested: each mutant breaks one rule of the protocol on purpose, and a check must notice.

A check is a reduced run of the crash matrix or of the races, or a story of its own; unmutated, all of them hold.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from shared import incidents as incident_rows
from shared import retrying as retry_step
from shared.delivery import MessageDelivery
from shared.domain import Attempt, Decision, Incident, IncidentState, Lease, LeaseState, Repair, RunState, SettingChange
from shared.errors import OutcomeUnknownError, PausedError, TransientError
from shared.incidents import Incidents
from shared.leasing import Leasing
from shared.mailing import Mailing
from shared.memory_history import InMemoryDecisionHistory
from shared.messages import FailedRunMessage
from shared.ports import OutgoingMessage
from shared.retrying import Retrying
from shared.triage import changes
from tests.builders import JOB_ID, RUN_ID, WORKSPACE, build_job_settings, build_run_facts, build_run_state
from tests.crash.test_crash_points import SCENARIOS, FaultPlan, Play, Scenario, broken_promises, cases_of
from tests.crash.test_interleavings import STORIES, Race
from tests.fakes import FakeClock, FakeDecisionHistory, FakeEmailSender, FakeJobRuns
from tests.world import ProcessDiedError, World, build_world

type Check = Callable[[], bool]
"""Whether what was promised holds."""

SCENARIO = {scenario.name: scenario for scenario in SCENARIOS}
REPAIR = SCENARIO["a repair recovers it"]
LEASE = SCENARIO["a repair with a larger cluster recovers it"]
TWO_REPAIRS = SCENARIO["two repairs fail"]
TWO_RUNS = SCENARIO["two new runs fail"]
MAIL = SCENARIO["people must mend it"]


# ── checks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def crash(scenario: Scenario, call: str) -> Check:
    """The part of the crash matrix in which the first such call goes wrong."""

    def check() -> bool:
        cases = list(cases_of(scenario, detects_duplicates=True))
        step = next(step for step, name, _ in cases if name == call)
        for kind in [kind for of, _, kind in cases if of == step]:
            play = Play(scenario, FaultPlan(FakeClock(), step, kind), detects_duplicates=True)
            if broken_promises(play.to_the_end(), play.plan, scenario):
                return False
        return True

    return check


def races(story: str, count: int = 12) -> Check:
    """So many races of one story, those in which the clocks agree."""

    def check() -> bool:
        first, step = list(STORIES).index(story), 2 * len(STORIES)
        return not any(Race(seed).run().broken_promises() for seed in range(first, first + count * step, step))

    return check


def decided_world(scenario: Scenario = REPAIR, **options: Any) -> World:
    """A failed run that was decided; its action waits in a queue."""
    clock = FakeClock()
    runs = FakeJobRuns(build_run_facts(), clock=clock)
    world = build_world(runs=runs, clock=clock, diagnosis=scenario.diagnosis, **options)
    world.runs.faults.before["repair_run"] = [scenario.refusal] * 10
    failure_id = world.runs.state(RUN_ID).failure_id
    message = FailedRunMessage(workspace=WORKSPACE, run_id=RUN_ID, failure_id=failure_id, source="timer")
    world.agent.decide_action(message)
    return world


def repair_by_hand(world: World) -> None:
    """A person repairs the run, and it fails once more."""
    run = world.runs.state(RUN_ID)
    repair = Repair(7000 + len(run.repairs), None, world.clock())
    world.runs.put_running(replace(run, repairs=(*run.repairs, repair)))
    world.runs.finish(RUN_ID, succeeded=False)


def end_retries(world: World) -> Callable[[], None]:
    def step() -> None:
        for run in world.runs.active_runs(WORKSPACE):
            world.runs.finish(run.run_id, succeeded=False)

    return step


def a_failure_that_was_not_decided_about_is_not_repaired() -> bool:
    """A person's repair fails between the claim and the request."""
    world = decided_world()
    save = world.history.save_incident

    def save_then_repair(incident: Incident) -> Incident:
        saved = save(incident)
        if saved.state is IncidentState.ACTING and not world.runs.state(RUN_ID).repairs:
            repair_by_hand(world)
        return saved

    vars(world.history)["save_incident"] = save_then_repair
    world.deliver_all()
    return not world.runs.repairs


def every_retry_is_counted() -> bool:
    world = decided_world(max_retry_attempts=2)
    world.run_for(hours=1, each=end_retries(world))
    retries = world.history.read_safeguards(WORKSPACE).retries
    return len(world.runs.repairs) == 2 == len(retries) and not any(retry.is_open for retry in retries)


def an_unreadable_pause_stops_everything() -> bool:
    world = decided_world()
    world.history.faults.before["read_pause"] = [TransientError("tables are down")] * 10
    world.deliver_all()
    return not world.runs.repairs


def a_crash_costs_no_time() -> bool:
    """The message of a worker that dies is delivered again at once, half an hour before `follow_up` would notice."""
    world = decided_world()
    world.runs.faults.before["read_state"] = [ProcessDiedError()]
    world.run_for(minutes=5)
    return len(world.runs.repairs) == 1


def a_message_put_off_is_not_dropped() -> bool:
    world = decided_world()
    world.runs.faults.before["read_state"] = [TransientError("503")] * 2
    world.run_for(minutes=10)
    return len(world.runs.repairs) == 1


def a_second_new_run_is_another_run() -> bool:
    world = decided_world(TWO_RUNS, max_retry_attempts=2)
    world.run_for(hours=1, each=end_retries(world))
    return len(world.runs.started) == 2


def people_hear_of_what_is_given_up() -> bool:
    """Databricks is down for more than a day."""
    world = decided_world()
    world.runs.faults.before["read_state"] = [TransientError("503")] * 1000
    world.run_for(hours=26, step_seconds=600)
    return len(world.mails.sent) == 1


def the_job_is_put_back_though_a_person_repaired_it_after_a_crash() -> bool:
    world = decided_world(LEASE)
    world.runs.faults.after["update_job"] = [ProcessDiedError()]
    for queue, messages in list(world.queues.waiting.items()):
        message = messages.pop()
        world.run_timer(lambda queue=queue, message=message: deliver(world, queue, message))  # type: ignore[misc]
    repair_by_hand(world)
    world.run_for(hours=2, each=end_retries(world))
    return world.runs.job_settings(WORKSPACE, JOB_ID) == build_job_settings()


def deliver(world: World, queue: str, message: OutgoingMessage) -> None:
    world.queues.waiting[queue].append(message)
    world.deliver_due()


def an_update_that_lands_after_the_restore_is_undone() -> bool:
    """The request to change the job times out, a person repairs the run, the lease is put back, the request lands."""
    world = decided_world(LEASE)
    update = world.runs.update_job
    under_way: list[Callable[[], None]] = []

    def unanswered(*args: Any, **kwargs: Any) -> None:
        vars(world.runs)["update_job"] = update
        under_way.append(lambda: update(*args, **kwargs))
        raise OutcomeUnknownError("no answer")

    vars(world.runs)["update_job"] = unanswered
    world.deliver_all()
    world.runs.remove(RUN_ID)
    world.runs.put(build_run_facts(run=build_run_state(run_id=RUN_ID + 1)))
    world.clock.advance(seconds=40)
    world.deliver_all()
    world.agent.follow_up()
    under_way.pop()()
    world.run_for(minutes=10)
    return world.runs.job_settings(WORKSPACE, JOB_ID) == build_job_settings()


def what_a_person_set_meanwhile_stays() -> bool:
    world = decided_world(LEASE, max_retry_attempts=1)
    world.deliver_all()
    settings = world.runs.job_settings(WORKSPACE, JOB_ID)
    settings["job_clusters"][0]["new_cluster"]["num_workers"] = 17
    world.runs.update_job(WORKSPACE, JOB_ID, new_settings=settings, fields_to_remove=())
    world.run_for(hours=1, each=end_retries(world))
    now = world.runs.job_settings(WORKSPACE, JOB_ID)["job_clusters"][0]["new_cluster"]["num_workers"]
    return bool(now == 17)


# ── mutants ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def without_compare_and_swap(patch: pytest.MonkeyPatch) -> None:
    """Databricks takes every repair: what would happen if the repair id were not sent at all."""
    repair = FakeJobRuns.repair_run

    def repair_anyway(self: FakeJobRuns, workspace: str, run_id: int, **kwargs: Any) -> int:
        run = self.state(run_id, workspace=workspace)
        if run.is_active:
            self.finish(run_id, succeeded=False, workspace=workspace)
        of = kwargs.pop("latest_repair_id")
        made = repair(self, workspace, run_id, latest_repair_id=run.latest_repair_id, **kwargs)
        self.repairs[-1] = replace(self.repairs[-1], latest_repair_id=of)
        return made

    patch.setattr(FakeJobRuns, "repair_run", repair_anyway)


def with_the_newest_repair_id(patch: pytest.MonkeyPatch) -> None:
    rerun = Retrying._rerun

    def fresh(self: Retrying, incident: Incident, decision: Decision, run: RunState) -> tuple[Incident, int | None]:
        newest = self._parts.runs.read_state(incident.workspace, run.run_id).latest_repair_id
        return rerun(self, incident, replace(decision, latest_repair_id=newest), run)

    patch.setattr(Retrying, "_rerun", fresh)


def settle_first(patch: pytest.MonkeyPatch) -> None:
    deliver_properly = MessageDelivery.deliver

    def swallow(self: MessageDelivery, envelope: Any) -> None:
        try:
            deliver_properly(self, envelope)
        except (Exception, ProcessDiedError):  # noqa: BLE001 - whatever it is, the message is gone
            return

    patch.setattr(MessageDelivery, "deliver", swallow)


def skip_on_redelivery(patch: pytest.MonkeyPatch) -> None:
    deliver_properly = MessageDelivery.deliver

    def once(self: MessageDelivery, envelope: Any) -> None:
        if envelope.delivery_count == 1:
            deliver_properly(self, envelope)

    patch.setattr(MessageDelivery, "deliver", once)


def same_id_for_a_copy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("shared.delivery.bounded_id", lambda text: text.partition(":defer-")[0])


def same_token_for_every_attempt(patch: pytest.MonkeyPatch) -> None:
    run_now = FakeJobRuns.run_now

    def without_attempt(self: FakeJobRuns, workspace: str, job_id: int, *, token: str, **kwargs: Any) -> int:
        return run_now(self, workspace, job_id, token=token.partition(":")[0], **kwargs)

    patch.setattr(FakeJobRuns, "run_now", without_attempt)


def new_token_for_every_request(patch: pytest.MonkeyPatch) -> None:
    run_now = FakeJobRuns.run_now

    def another(self: FakeJobRuns, workspace: str, job_id: int, *, token: str, **kwargs: Any) -> int:
        return run_now(self, workspace, job_id, token=f"{token}:{len(self.tokens)}", **kwargs)

    patch.setattr(FakeJobRuns, "run_now", another)


def forgetting_state(patch: pytest.MonkeyPatch, is_forgotten: Callable[[Incident], bool]) -> None:
    """The row that such a save would write is only made in memory."""
    save = Incidents.save

    def save_perhaps(self: Incidents, incident: Incident) -> Incident:
        return incident if is_forgotten(incident) else save(self, incident)

    patch.setattr(Incidents, "save", save_perhaps)


def claim_after_the_effect(patch: pytest.MonkeyPatch) -> None:
    forgetting_state(patch, lambda incident: incident.state is IncidentState.ACTING and not incident.mail_claim)


def mail_without_claim(patch: pytest.MonkeyPatch) -> None:
    forgetting_state(patch, lambda incident: incident.state is IncidentState.ACTING and bool(incident.mail_claim))


def without_etags(patch: pytest.MonkeyPatch) -> None:
    save = InMemoryDecisionHistory.save_incident

    def overwrite(self: InMemoryDecisionHistory, incident: Incident) -> Incident:
        stored = self.read_incident(incident.workspace, incident.run_id)
        return save(self, replace(incident, etag=stored.etag if stored else ""))

    patch.setattr(FakeDecisionHistory, "save_incident", overwrite)


def lost_races_are_wins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("shared.memory_history.own_earlier_write", lambda value, stored: stored or value)


def was_never_accepted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FakeEmailSender, "was_accepted", lambda *_: False)


def resend_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Incidents, "is_fresh", lambda *_: False)


def blind_resend_of_a_mail(patch: pytest.MonkeyPatch) -> None:
    send = Mailing._send

    def twice(self: Mailing, incident: Incident, decision: Decision, kind: str, key: str) -> None:
        try:
            send(self, incident, decision, kind, key)
        except OutcomeUnknownError:
            send(self, incident, decision, kind, key)

    patch.setattr(Mailing, "_send", twice)


def claim_deleted_on_exception(patch: pytest.MonkeyPatch) -> None:
    carry_out = Retrying._carry_out

    def forget(self: Retrying, incident: Incident, decision: Decision, run: RunState, *, doubtful: bool) -> None:
        try:
            carry_out(self, incident, decision, run, doubtful=doubtful)
        except OutcomeUnknownError:
            stored = self._parts.history.read_incident(incident.workspace, incident.run_id)
            assert stored is not None
            attempts = stored.attempts[:-1]
            self._incidents.save(replace(stored, state=IncidentState.DECIDED, attempts=attempts))
            raise

    patch.setattr(Retrying, "_carry_out", forget)


def lease_applied_before_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    save = Leasing._save
    patch.setattr(
        Leasing,
        "_save",
        lambda self, lease: lease if lease.state is LeaseState.PLANNED else save(self, lease),
    )


def restore_over_a_foreign_value(patch: pytest.MonkeyPatch) -> None:
    def put_back(leased: tuple[SettingChange, ...], settings: Any) -> tuple[Any, tuple[SettingChange, ...]]:
        seen_as_ours = [replace(c, new=at(settings, c)) for c in leased]
        return restore(seen_as_ours, settings)

    def at(settings: Any, change: SettingChange) -> Any:
        holder = changes.holder_of(settings, change.target)
        return changes.value_at(holder, change.path) if holder else None

    restore = changes.restore_body
    patch.setattr(changes, "restore_body", put_back)


def restore_never(patch: pytest.MonkeyPatch) -> None:
    def forget(self: Leasing, lease: Lease) -> None:
        self._save(replace(lease, state=LeaseState.RESTORED, restored_at=self._parts.now()))

    patch.setattr(Leasing, "restore", forget)
    patch.setattr(Leasing, "_put_back", lambda *_: ())


def no_second_look_at_a_restored_job(patch: pytest.MonkeyPatch) -> None:
    def close(self: Leasing, lease: Lease) -> bool:
        self._save(replace(lease, state=LeaseState.CLOSED))
        return True

    patch.setattr(Leasing, "_verify", close)


def job_not_asked_for(patch: pytest.MonkeyPatch) -> None:
    """Each retry takes whatever lease is open for its own."""
    apply = Leasing.apply

    def take(self: Leasing, incident: Incident, attempt: int, wanted: tuple[SettingChange, ...]) -> None:
        lease = self._parts.history.read_lease(incident.workspace, incident.job_id or 0)
        if lease is None or lease.state is LeaseState.CLOSED or lease.run_id == incident.run_id:
            apply(self, incident, attempt, wanted)

    patch.setattr(Leasing, "wait_for_free_job", lambda *_: None)
    patch.setattr(Leasing, "apply", take)


def retry_key_without_attempt(patch: pytest.MonkeyPatch) -> None:
    def key(incident: Incident, _: Attempt) -> str:
        return str(incident.run_id)

    patch.setattr(incident_rows, "retry_key", key)
    patch.setattr(retry_step, "retry_key", key)


def unreadable_pause_is_no_pause(patch: pytest.MonkeyPatch) -> None:
    stop = Incidents.stop_if_paused

    def go_on(self: Incidents) -> None:
        try:
            stop(self)
        except PausedError as error:
            if error.__cause__ is None:
                raise

    patch.setattr(Incidents, "stop_if_paused", go_on)


def giving_up_deletes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Incidents, "park", lambda *_: None)
    patch.setattr("shared.following.Following._follow", lambda *_: False)


@dataclass(frozen=True)
class Mutant:
    """`breaks` is applied; `check` must then fail."""

    breaks: Callable[[pytest.MonkeyPatch], None]
    check: Check


MUTANTS = [
    Mutant(without_compare_and_swap, races("repair", 40)),
    Mutant(with_the_newest_repair_id, a_failure_that_was_not_decided_about_is_not_repaired),
    Mutant(settle_first, a_crash_costs_no_time),
    Mutant(skip_on_redelivery, a_crash_costs_no_time),
    Mutant(same_id_for_a_copy, a_message_put_off_is_not_dropped),
    Mutant(same_token_for_every_attempt, a_second_new_run_is_another_run),
    Mutant(new_token_for_every_request, crash(TWO_RUNS, "JobRuns.run_now")),
    Mutant(claim_after_the_effect, crash(REPAIR, "JobRuns.repair_run")),
    Mutant(mail_without_claim, crash(MAIL, "EmailSender.send")),
    Mutant(without_etags, races("mail")),
    Mutant(lost_races_are_wins, races("mail", 40)),
    Mutant(was_never_accepted, crash(MAIL, "EmailSender.send")),
    Mutant(resend_at_once, races("mail", 40)),
    Mutant(blind_resend_of_a_mail, crash(MAIL, "EmailSender.send")),
    Mutant(claim_deleted_on_exception, crash(REPAIR, "JobRuns.repair_run")),
    Mutant(lease_applied_before_it_is_stored, the_job_is_put_back_though_a_person_repaired_it_after_a_crash),
    Mutant(restore_over_a_foreign_value, what_a_person_set_meanwhile_stays),
    Mutant(restore_never, crash(LEASE, "JobRuns.update_job")),
    Mutant(no_second_look_at_a_restored_job, an_update_that_lands_after_the_restore_is_undone),
    Mutant(job_not_asked_for, races("lease")),
    Mutant(retry_key_without_attempt, every_retry_is_counted),
    Mutant(unreadable_pause_is_no_pause, an_unreadable_pause_stops_everything),
    Mutant(giving_up_deletes, people_hear_of_what_is_given_up),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks.__name__)
def test_every_mutant_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mutant.check()

    mutant.breaks(monkeypatch)

    assert not mutant.check()
