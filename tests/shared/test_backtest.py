"""What would have been decided, and what that could have saved: figures made by hand, and what always holds."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.backtest import EndedRun, Findings, Judged, PastFailure, Repaired, Saved, findings, judge
from shared.domain import Category, DecisionKind, RunFacts
from shared.error_decision_engine import ErrorDecisionEngine
from shared.settings import Settings
from tests.builders import (
    JOB_ID,
    JOB_NAME,
    NOW,
    STARTED,
    WORKSPACE,
    build_run_facts,
    build_run_state,
    build_symptoms,
    build_task_failure,
)

HOUR = timedelta(hours=1)
RETRY, CHANGED = DecisionKind.RETRY, DecisionKind.RETRY_WITH_PARAMS
ESCALATE, SKIP = DecisionKind.ESCALATE_EMAIL, DecisionKind.SKIP


def failed(run_id: int = 1, **overrides: Any) -> Judged:
    """A failure that a plain retry was called for, half an hour after its start."""
    judged = Judged(
        workspace=WORKSPACE,
        run_id=run_id,
        job_id=JOB_ID,
        job_name=JOB_NAME,
        job_parameters={},
        start_time=STARTED,
        failed_at=NOW,
        decision=RETRY,
        category=Category.NETWORK,
        fingerprint="f1",
        cause="Read timed out",
        repaired=None,
    )
    return replace(judged, **overrides)


def ended(run_id: int = 2, **overrides: Any) -> EndedRun:
    """A successful run of the same job, an hour after the failure, by schedule."""
    run = EndedRun(
        workspace=WORKSPACE,
        run_id=run_id,
        job_id=JOB_ID,
        is_failed=False,
        is_on_demand=False,
        seems_repaired=False,
        start_time=NOW + HOUR / 2,
        end_time=NOW + HOUR,
        job_parameters={},
    )
    return replace(run, **overrides)


def repaired(after: timedelta, took: timedelta = HOUR) -> Repaired:
    return Repaired(NOW + after, NOW + after + took)


def figures(failures: list[Judged], runs: list[EndedRun] | None = None, unreadable: int = 0) -> Findings:
    return findings(failures, runs or [], unreadable=unreadable)


# --- deciding --------------------------------------------------------------------------------------------------------


def decision_about(facts: RunFacts, **settings: Any) -> Judged:
    return judge(PastFailure(facts, None), ErrorDecisionEngine(settings=Settings(**settings)))


def test_a_past_failure_is_decided_about_as_if_it_were_fresh() -> None:
    long_ago = build_run_state(start_time=STARTED - 1000 * HOUR, end_time=NOW - 1000 * HOUR)

    judged = decision_about(build_run_facts(run=long_ago))

    assert judged.decision is CHANGED  # memory: what it needs, whether or not it can be changed today
    assert judged.category in (Category.DRIVER_MEMORY, Category.WORKER_MEMORY)
    assert judged.failed_at == NOW - 1000 * HOUR
    assert judged.cause
    assert judged.fingerprint


def test_a_run_that_its_parent_looks_after_is_left_alone() -> None:
    assert decision_about(build_run_facts(parent="adf")).decision is SKIP


def test_the_worst_task_decides() -> None:
    missing = build_symptoms(error="ModuleNotFoundError: No module named 'x'", error_trace="")
    code = build_task_failure(task_key="b", symptoms=missing)

    judged = decision_about(build_run_facts(failures=(build_task_failure(), code)))

    assert judged.decision is ESCALATE


# --- counting --------------------------------------------------------------------------------------------------------


def test_nothing_failed() -> None:
    nothing = figures([], [ended()])

    assert (nothing.runs, nothing.failed, nothing.causes) == (1, 0, ())
    assert nothing.saved_upper_bound == Saved(0, 0.0)
    assert nothing.by_hand_median_hours is None


def test_failures_are_counted_by_decision_category_and_cause() -> None:
    found = figures(
        [
            failed(1, fingerprint="f2", cause="older", job_name="b", failed_at=NOW - HOUR),
            failed(2, fingerprint="f2", cause="newer", job_name="a"),
            failed(3, fingerprint="f2", cause="older", job_name="b", failed_at=NOW - HOUR),
            failed(4, fingerprint="f1", decision=ESCALATE, category=Category.CODE),
        ],
        unreadable=2,
    )

    assert found.failed == 6
    assert found.by_decision == {RETRY: 3, CHANGED: 0, ESCALATE: 1, SKIP: 0}
    assert found.by_category == {Category.NETWORK: 3, Category.CODE: 1}
    assert [(cause.fingerprint, cause.count, cause.cause, cause.jobs) for cause in found.causes] == [
        ("f2", 3, "newer", ("b", "a")),
        ("f1", 1, "Read timed out", (JOB_NAME,)),
    ]


@pytest.mark.parametrize(
    ("failure", "runs", "most", "confirmed"),
    [
        pytest.param(failed(), [], Saved(1, 0.5), Saved(0, 0), id="never healed: its own half hour"),
        pytest.param(failed(), [ended()], Saved(1, 1), Saved(0, 0), id="next run by schedule: possible"),
        pytest.param(failed(), [ended(is_on_demand=True)], Saved(1, 1), Saved(1, 1), id="rerun by a person: confirmed"),
        pytest.param(failed(repaired=repaired(2 * HOUR)), [], Saved(1, 3), Saved(1, 3), id="repaired: confirmed"),
        pytest.param(
            failed(repaired=repaired(HOUR / 4, HOUR / 4)), [ended()], Saved(1, 0.5), Saved(1, 0.5), id="repair first"
        ),
        pytest.param(failed(decision=CHANGED), [ended()], Saved(1, 1), Saved(0, 0), id="a changed retry counts"),
        pytest.param(failed(decision=ESCALATE), [ended()], Saved(0, 0), Saved(0, 0), id="a mail saves no waiting"),
        pytest.param(failed(decision=SKIP), [ended(is_on_demand=True)], Saved(0, 0), Saved(0, 0), id="skipped"),
        pytest.param(failed(), [ended(is_failed=True)], Saved(1, 0.5), Saved(0, 0), id="the next one failed too"),
        pytest.param(failed(), [ended(job_id=5)], Saved(1, 0.5), Saved(0, 0), id="another job"),
        pytest.param(failed(), [ended(workspace="ws2")], Saved(1, 0.5), Saved(0, 0), id="another workspace"),
        pytest.param(failed(), [ended(job_parameters={"day": "2"})], Saved(1, 0.5), Saved(0, 0), id="another day"),
        pytest.param(
            failed(), [ended(start_time=STARTED - HOUR)], Saved(1, 0.5), Saved(0, 0), id="it was under way before"
        ),
        pytest.param(
            failed(), [ended(end_time=NOW - HOUR / 4)], Saved(1, 0.5), Saved(0, 0), id="it had ended before the failure"
        ),
        pytest.param(
            failed(),
            [ended(3, start_time=NOW + 5 * HOUR, end_time=NOW + 6 * HOUR, is_on_demand=True), ended(2)],
            Saved(1, 1),
            Saved(0, 0),
            id="the first success counts",
        ),
    ],
)
def test_what_one_failure_counts_for(failure: Judged, runs: list[EndedRun], most: Saved, confirmed: Saved) -> None:
    found = figures([failure], runs)

    assert found.saved_upper_bound == most
    assert found.confirmed == confirmed


def test_time_is_counted_once_where_several_failures_waited_for_one_success() -> None:
    """An hourly job that failed three times was late by three hours, not by six."""
    failures = [failed(n, start_time=STARTED - n * HOUR, failed_at=NOW - n * HOUR) for n in range(3)]

    found = figures(failures, [ended(9, is_on_demand=True)])

    assert found.saved_upper_bound == Saved(3, 3.0)
    assert found.confirmed == Saved(3, 3.0)


def test_repairs_by_hand_count_whatever_would_have_been_decided() -> None:
    found = figures(
        [
            failed(1, repaired=repaired(HOUR)),
            failed(2, repaired=repaired(2 * HOUR), decision=ESCALATE),
            failed(3, repaired=repaired(9 * HOUR)),
            failed(4),
        ]
    )

    assert (found.by_hand, found.by_hand_median_hours) == (3, 2.0)
    assert found.confirmed.runs == 2


failures = st.builds(
    failed,
    run_id=st.integers(1, 9),
    decision=st.sampled_from(DecisionKind),
    category=st.sampled_from(Category),
    fingerprint=st.sampled_from("abc"),
    job_id=st.sampled_from([1, 2, None]),
    failed_at=st.integers(0, 100).map(lambda hours: NOW + hours * HOUR),
    repaired=st.none() | st.integers(101, 150).map(lambda hours: repaired(hours * HOUR)),
)
runs = st.builds(
    ended,
    run_id=st.integers(10, 20),
    job_id=st.sampled_from([1, 2, None]),
    is_failed=st.booleans(),
    is_on_demand=st.booleans(),
    end_time=st.integers(1, 200).map(lambda hours: NOW + hours * HOUR),
)


@given(
    st.lists(failures, max_size=8, unique_by=lambda failure: failure.run_id),
    st.lists(runs, max_size=8, unique_by=lambda run: run.run_id),
    st.integers(0, 3),
)
def test_figures_add_up(failures: list[Judged], runs: list[EndedRun], unreadable: int) -> None:
    found = figures(failures, runs, unreadable)

    assert sum(found.by_decision.values()) == found.failed - unreadable == len(failures)
    assert sum(found.by_category.values()) == sum(cause.count for cause in found.causes) == len(failures)
    assert found.saved_upper_bound.runs == found.by_decision[RETRY] + found.by_decision[CHANGED]
    assert 0 <= found.confirmed.runs <= found.saved_upper_bound.runs
    assert 0 <= found.confirmed.hours <= found.saved_upper_bound.hours
    counts = [cause.count for cause in found.causes]
    assert counts == sorted(counts, reverse=True)
