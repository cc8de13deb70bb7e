"""The audit, on workspaces in which duplicates, orphans and people's own repairs were planted."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.auditing import LOOKS_BACK, MAX_CLAIMS, Auditing, Counts, Retry, judge
from shared.domain import Attempt, AttemptKind, AttemptOutcome, Incident, IncidentState, Repair
from shared.errors import NotAuthorisedError, TransientError
from tests.builders import (
    NOW,
    RUN_ID,
    WORKSPACE,
    build_attempt,
    build_incident,
    build_run_facts,
    build_run_state,
    build_task_failure,
)
from tests.fakes import FakeClock, FakeDecisionHistory, FakeJobRuns
from tests.shared.recorded_telemetry import Recorded, recorded
from tests.world import build_settings, build_world

CLAIMED = NOW - timedelta(hours=1)
SETTLE = timedelta(seconds=60)


class Desk:
    """An audit of one or more workspaces, an hour after a claim."""

    def __init__(self, *workspaces: str) -> None:
        self.clock = FakeClock()
        self.runs = FakeJobRuns(workspaces=workspaces or (WORKSPACE,), clock=self.clock)
        self.history = FakeDecisionHistory()
        self.auditing = Auditing(self.runs, self.history, build_settings(), self.clock)

    def repaired(self, *repairs: tuple[int, float], run_id: int = RUN_ID, workspace: str = WORKSPACE) -> None:
        """A run with repairs: id, and seconds from the claim until it began."""
        made = tuple(Repair(number, "FAILED", CLAIMED + timedelta(seconds=after)) for number, after in repairs)
        self.runs.put_state(build_run_state(workspace=workspace, run_id=run_id, repairs=made))

    def knows(self, *attempts: Attempt, run_id: int = RUN_ID, workspace: str = WORKSPACE, **changes: Any) -> None:
        """An incident of the history with these attempts."""
        changed = {"state": IncidentState.RECOVERED, "updated_at": NOW - timedelta(minutes=5), **changes}
        self.history.save_incident(build_incident(workspace=workspace, run_id=run_id, attempts=attempts, **changed))

    def started(self, run_id: int, after: float, *, trigger: str = "ONE_TIME") -> None:
        """Another run of the job, so many seconds after the claim."""
        start = CLAIMED + timedelta(seconds=after)
        self.runs.put_state(build_run_state(run_id=run_id, trigger=trigger, start_time=start, end_time=None))


def claim(effect_id: int | None = 9001, **changes: Any) -> Attempt:
    return build_attempt(**{"effect_id": effect_id, "claimed_at": CLAIMED, **changes})


@pytest.fixture
def told() -> Iterator[Recorded]:
    with recorded() as kept:
        yield kept


# ── one claim ───────────────────────────────────────────────────────────────────────────────────────────────────────

ONE = Counts(claims=1)


@pytest.mark.parametrize(
    ("effect_id", "outcome", "repairs", "want"),
    [
        (9001, "recovered", [(9001, 2)], ONE),
        (9001, "failed_again", [(501, -900), (9001, 2)], ONE),
        (9001, "recovered", [(9001, 2), (9002, 40)], replace(ONE, duplicates=1)),
        (9001, "recovered", [(9001, 2), (9002, 20), (9003, 50)], replace(ONE, duplicates=2)),
        (9001, "failed_again", [(9001, 2), (9002, 300)], ONE),  # a person, once ours had failed
        (9001, "failed_again", [(8999, -600), (9001, 2)], ONE),  # a person, before ours
        (None, "superseded", [(9002, 1)], ONE),
        (None, "superseded", [(9002, 1), (9003, 30)], replace(ONE, duplicates=1)),
        (None, "gone", [], ONE),
        (None, "pending", [], replace(ONE, orphans=1)),
        (None, "pending", [(9002, 900)], replace(ONE, orphans=1)),  # somebody else's, much later
        (9001, "failed_again", [], replace(ONE, orphans=1)),
        (None, "pending", [(9002, 3)], replace(ONE, unledgered=1)),
        (9001, "pending", [(9002, 3), (9003, 9)], replace(ONE, unledgered=1, duplicates=1)),
    ],
)
def test_a_claim_against_the_repair_history(
    effect_id: int | None, outcome: str, repairs: list[tuple[int, float]], want: Counts
) -> None:
    attempt = claim(effect_id, outcome=AttemptOutcome(outcome))
    made = [Retry(number, CLAIMED + timedelta(seconds=after)) for number, after in repairs]

    assert judge(build_incident(attempts=(attempt,)), attempt, made, settle=SETTLE) == want


def test_a_quick_next_attempt_is_not_taken_for_a_duplicate() -> None:
    first, second = claim(9001), claim(9002, number=2, claimed_at=CLAIMED + timedelta(seconds=30))
    incident = build_incident(attempts=(first, second))
    made = [Retry(9001, CLAIMED), Retry(9002, CLAIMED + timedelta(seconds=31))]

    assert [judge(incident, attempt, made, settle=SETTLE) for attempt in incident.attempts] == [ONE, ONE]


@given(st.lists(st.integers(min_value=61, max_value=10_000)), st.lists(st.integers(min_value=11, max_value=10_000)))
def test_what_others_do_at_other_times_is_never_counted_as_ours(later: list[int], earlier: list[int]) -> None:
    attempt = claim()
    times = [CLAIMED + timedelta(seconds=s) for s in later] + [CLAIMED - timedelta(seconds=s) for s in earlier]
    made = [Retry(9001, CLAIMED), *(Retry(100 + n, time) for n, time in enumerate(times)), Retry(99, None)]

    assert judge(build_incident(attempts=(attempt,)), attempt, made, settle=SETTLE) == ONE


# ── a workspace ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_planted_duplicate_is_found_and_a_persons_repair_is_not_counted(
    told: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk()
    desk.repaired((9001, 2), (9002, 45))
    desk.knows(claim())
    desk.repaired((9001, 2), (9007, 1200), run_id=2002)
    desk.knows(claim(run_id=2002), run_id=2002)

    assert desk.auditing.audit() == Counts(claims=2, duplicates=1)

    assert told.metrics()["remediation.duplicate_actions"] == [({"workspace": WORKSPACE}, 1)]
    (found,) = [record for record in caplog.records if record.getMessage() == "claim and retries do not agree"]
    assert (vars(found)["run_id"], vars(found)["duplicates"]) == (RUN_ID, 1)
    (said,) = [record for record in caplog.records if record.getMessage() == "audited"]
    assert said.levelname == "ERROR"


def test_nothing_amiss_is_said_with_zeros(told: Recorded) -> None:
    desk = Desk()
    desk.repaired((9001, 2))
    desk.knows(claim())

    desk.auditing.audit()

    metrics = told.metrics()
    for name in ("duplicate_actions", "orphan_actions", "unledgered_actions"):
        assert metrics[f"remediation.{name}"] == [({"workspace": WORKSPACE}, 0)]


def test_one_failure_repaired_twice_by_the_historys_own_account_is_a_duplicate() -> None:
    desk = Desk()
    desk.repaired((9001, 2), (9002, 600))
    desk.knows(claim(), claim(9002, number=2, claimed_at=CLAIMED + timedelta(seconds=598)))

    assert desk.auditing.audit() == Counts(claims=2, duplicates=1)


@pytest.mark.parametrize(
    ("claimed_at", "want"),
    [
        (NOW - timedelta(seconds=30), Counts()),
        (NOW - timedelta(minutes=10), Counts(claims=1)),
        (NOW - timedelta(minutes=31), Counts(claims=1, orphans=1)),
        (NOW - LOOKS_BACK, Counts()),
    ],
    ids=["may still arrive", "may be under way", "an orphan", "too long ago"],
)
def test_a_claim_is_an_orphan_once_nothing_can_come_of_it(claimed_at: datetime, want: Counts) -> None:
    desk = Desk()
    desk.repaired()
    desk.knows(claim(None, claimed_at=claimed_at), state=IncidentState.ACTING)

    assert desk.auditing.audit() == want


@pytest.mark.parametrize(
    ("runs", "want"),
    [
        ([(5001, 1, "ONE_TIME")], Counts(claims=1)),
        ([(5001, 1, "ONE_TIME"), (5002, 40, "ONE_TIME")], Counts(claims=1, duplicates=1)),
        ([(5001, 1, "ONE_TIME"), (5002, 40, "PERIODIC")], Counts(claims=1)),
        ([(5001, 1, "ONE_TIME"), (5002, 4000, "ONE_TIME")], Counts(claims=1)),
    ],
    ids=["one", "twice", "its schedule", "a person later"],
)
def test_runs_that_were_started_anew_are_audited_too(runs: list[tuple[int, float, str]], want: Counts) -> None:
    desk = Desk()
    desk.repaired()
    for run_id, after, trigger in runs:
        desk.started(run_id, after, trigger=trigger)
    desk.knows(claim(5001, kind=AttemptKind.RUN_NOW))

    assert desk.auditing.audit() == want


def test_what_cannot_be_read_is_counted_and_holds_nothing_up() -> None:
    desk = Desk()
    desk.repaired((9001, 2), (9002, 5))
    desk.knows(claim())
    desk.knows(claim(run_id=2002), run_id=2002)
    desk.knows(claim(run_id=2003), run_id=2003)
    desk.repaired((9001, 2), run_id=2003)
    desk.runs.faults.before["read_state"] = [None, None, NotAuthorisedError("no right")]

    assert desk.auditing.audit() == Counts(claims=1, duplicates=1, unread=2)


def test_an_audit_is_bounded() -> None:
    desk = Desk()
    for run_id in range(1, MAX_CLAIMS + 6):
        desk.repaired((9001, 2), run_id=run_id)
        desk.knows(claim(run_id=run_id), run_id=run_id)

    assert desk.auditing.audit() == Counts(claims=MAX_CLAIMS, unread=5)
    assert desk.runs.faults.calls.count("read_state") == MAX_CLAIMS


def test_a_workspace_that_does_not_answer_does_not_hold_up_the_others(told: Recorded) -> None:
    desk = Desk("down", WORKSPACE)
    desk.history.faults.before["open_incidents"] = [TransientError("503")]

    with pytest.raises(TransientError):
        desk.auditing.audit()

    assert told.metrics()["remediation.duplicate_actions"] == [({"workspace": WORKSPACE}, 0)]
    assert desk.auditing.latest("down") is None


def test_it_reads_only() -> None:
    desk = Desk()
    desk.repaired((9001, 2), (9002, 5))
    desk.knows(claim())
    desk.history.faults.calls.clear()

    desk.auditing.audit()

    assert set(desk.runs.faults.calls) == {"read_state"}
    assert set(desk.history.faults.calls) == {"open_incidents", "closed_incidents", "record"}


def test_the_last_audit_is_kept_in_the_history_for_two_days() -> None:
    desk = Desk()
    assert desk.auditing.latest(WORKSPACE) is None
    desk.auditing.audit()
    desk.clock.advance(hours=1)
    desk.repaired((9001, 2), (9002, 5))
    desk.knows(claim())
    desk.auditing.audit()

    for hours in (0, 20):
        desk.clock.advance(hours=hours)
        latest = desk.auditing.latest(WORKSPACE)
        assert latest
        assert latest.at == NOW + timedelta(hours=1)
        assert latest.details == {"claims": 1, "duplicates": 1, "orphans": 0, "unledgered": 0, "unread": 0}
    desk.clock.advance(days=2)
    assert desk.auditing.latest(WORKSPACE) is None


def test_what_the_agent_itself_does_is_clean_and_a_second_request_that_lands_is_seen() -> None:
    world = build_world(runs=FakeJobRuns(build_run_facts(failures=(build_task_failure(),))))
    auditing = Auditing(world.runs, world.history, world.settings, world.clock)
    world.agent._steps.finding.send_on(WORKSPACE, RUN_ID)
    world.deliver_all()
    world.runs.finish(RUN_ID, succeeded=True)
    world.clock.advance(minutes=5)
    assert auditing.audit() == ONE

    run = world.runs.state(RUN_ID)
    late = Repair(9999, None, (run.repairs[-1].start_time or NOW) + timedelta(seconds=20))
    world.runs.put_state(replace(run, repairs=(*run.repairs, late)))

    assert auditing.audit() == replace(ONE, duplicates=1)


def test_incidents_know_their_claims() -> None:
    """What the audit relies on: a claim's failure names the run that was repaired."""
    incident: Incident = build_incident(attempts=(claim(run_id=42),), run_id=42)
    assert incident.attempts[0].failure_id == f"{WORKSPACE}:42:original"
