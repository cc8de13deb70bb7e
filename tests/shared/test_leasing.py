"""Leases on a job that two retries want at the same time."""

import pytest

from shared.admission import Admission
from shared.domain import Change, ChangeKind, LeaseState, SettingChange
from shared.errors import HeldError
from shared.incidents import Incidents, Parts
from shared.learning import Learning
from shared.leasing import Leasing
from tests.builders import JOB_ID, WORKSPACE, build_attempt, build_incident, build_run_facts, build_run_state
from tests.fakes import FakeActionQueues, FakeClock, FakeDecisionHistory, FakeEmailSender, FakeJobRuns
from tests.world import build_settings

MORE_WORKERS = SettingChange(
    Change(ChangeKind.MORE_WORKERS),
    "job_cluster:main",
    ("new_cluster", "num_workers"),
    old=2,
    new=4,
    why="more of them",
)
EVEN_MORE_WORKERS = SettingChange(
    Change(ChangeKind.MORE_WORKERS),
    "job_cluster:main",
    ("new_cluster", "num_workers"),
    old=4,
    new=8,
    why="even more of them",
)
FIRST_RUN, SECOND_RUN = 1, 2


@pytest.fixture
def runs() -> FakeJobRuns:
    return FakeJobRuns(*(build_run_facts(run=build_run_state(run_id=run_id)) for run_id in (FIRST_RUN, SECOND_RUN)))


@pytest.fixture
def history() -> FakeDecisionHistory:
    return FakeDecisionHistory()


@pytest.fixture
def leasing(runs: FakeJobRuns, history: FakeDecisionHistory) -> Leasing:
    clock, settings = FakeClock(), build_settings()
    guids = map(str, range(1000))

    def guid() -> str:
        return next(guids)

    parts = Parts(runs, FakeEmailSender(), history, FakeActionQueues(), settings, clock, guid)
    admission = Admission(history, settings, clock, guid)
    return Leasing(parts, Incidents(parts, admission, Learning(history, settings, clock, guid)))


def workers(runs: FakeJobRuns) -> int:
    return int(runs.job_settings(WORKSPACE, JOB_ID)["job_clusters"][0]["new_cluster"]["num_workers"])


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_retry_that_saw_the_job_free_waits_for_a_lease_that_was_faster(
    leasing: Leasing, runs: FakeJobRuns, history: FakeDecisionHistory, attempt: int
) -> None:
    first = build_incident(run_id=FIRST_RUN, attempts=(build_attempt(run_id=FIRST_RUN),))
    second = build_incident(run_id=SECOND_RUN, attempts=(build_attempt(run_id=SECOND_RUN, number=attempt),))
    leasing.wait_for_free_job(first)
    leasing.wait_for_free_job(second)
    leasing.apply(first, 1, (MORE_WORKERS,))
    with pytest.raises(HeldError):
        leasing.apply(second, attempt, (EVEN_MORE_WORKERS,))
    lease = history.read_lease(WORKSPACE, JOB_ID)
    assert lease is not None
    assert (lease.run_id, lease.state, lease.changes) == (FIRST_RUN, LeaseState.APPLIED, (MORE_WORKERS,))
    assert workers(runs) == 4
    leasing.restore(lease)
    assert workers(runs) == 2
