"""Budget, slots, daily limits and circuit breakers: tables and invariants."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from shared.triage.policy import StandDown
from shared.triage.safeguards import (
    RetryRecord,
    SafeguardLimits,
    Safeguards,
    Wait,
    admit,
    note_failure,
    note_outcome,
    note_runs_seen,
)

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LIMITS = SafeguardLimits()
EMPTY = Safeguards("w")


def retry(key: str, *, job_id: int = 1, fingerprint: str = "f", hours: float = 0.1, at: datetime = NOW) -> RetryRecord:
    return RetryRecord(key, job_id, fingerprint, hours, at)


def admitted(
    state: Safeguards, wanted: RetryRecord, now: datetime = NOW, limits: SafeguardLimits = LIMITS
) -> Safeguards:
    answer = admit(state, wanted, now, limits)
    assert isinstance(answer, Safeguards), answer
    return answer


def after_failures(count: int, fingerprint: str = "f", now: datetime = NOW) -> Safeguards:
    state = EMPTY
    for _ in range(count):
        state = note_failure(state, fingerprint, now, LIMITS)
    return state


def test_the_first_retry_is_let_through_and_asking_again_changes_nothing() -> None:
    state = admitted(EMPTY, retry("1:1"))
    assert admitted(state, retry("1:1")) == state


def test_slots_are_taken_until_a_retry_ends() -> None:
    state = EMPTY
    for number in range(LIMITS.max_concurrent):
        state = admitted(state, retry(f"{number}:1", job_id=number, fingerprint=f"f{number}"))
    held = admit(state, retry("9:1", job_id=9, fingerprint="g"), NOW, LIMITS)
    assert isinstance(held, Wait)
    assert (held.rule, held.until) == ("concurrency", NOW + LIMITS.slot_wait)
    state = note_outcome(state, "0:1", succeeded=True, now=NOW, limits=LIMITS)
    roomy = replace(LIMITS, budget_floor=100)
    admitted(state, retry("9:1", job_id=9, fingerprint="g"), limits=roomy)


def test_budget_is_a_share_of_the_runs_seen_with_a_floor() -> None:
    limits = replace(LIMITS, max_concurrent=1000)

    def let_through(runs_seen: int) -> int:
        state = note_runs_seen(EMPTY, runs_seen, NOW, limits)
        for number in range(200):
            answer = admit(state, retry(f"{number}:1", job_id=number, fingerprint=f"f{number}"), NOW, limits)
            if isinstance(answer, Wait):
                assert answer.rule == "retry_budget"
                assert answer.until == NOW + limits.budget_window
                return number
            assert isinstance(answer, Safeguards)
            state = answer
        return 200

    assert let_through(0) == limits.budget_floor
    assert let_through(1000) == 100


def test_a_job_has_a_limit_a_day() -> None:
    limits = replace(LIMITS, max_concurrent=1000, budget_floor=1000)
    state = EMPTY
    for number in range(limits.per_job_and_day):
        state = admitted(state, retry(f"{number}:1"), limits=limits)
    refused = admit(state, retry("99:1"), NOW, limits)
    assert isinstance(refused, StandDown)
    assert refused.rule == "job_day_limit"
    admitted(state, retry("99:1"), now=NOW + timedelta(days=1), limits=limits)


def test_compute_hours_are_capped_a_day() -> None:
    state = admitted(EMPTY, retry("1:1", hours=99.5))
    refused = admit(state, retry("2:1", job_id=2, hours=1.0), NOW, LIMITS)
    assert isinstance(refused, StandDown)
    assert refused.rule == "cost_cap"


def test_many_failures_of_one_cause_open_its_breaker_and_no_other() -> None:
    state = after_failures(LIMITS.breaker_failures)
    assert state.breakers["f"].opened_at == NOW
    state = admitted(state, retry("1:1"))
    held = admit(state, retry("2:1", job_id=2), NOW, LIMITS)
    assert isinstance(held, Wait)
    assert held.rule == "breaker_open"
    admitted(state, retry("3:1", job_id=3, fingerprint="other"))


def test_slow_failures_do_not_open_a_breaker() -> None:
    state = EMPTY
    for number in range(100):
        state = note_failure(state, "f", NOW + number * MINUTE, LIMITS)
    assert state.breakers["f"].opened_at is None


def test_a_canary_that_succeeds_closes_the_breaker() -> None:
    state = admitted(after_failures(50), retry("1:1"))
    state = note_outcome(state, "1:1", succeeded=True, now=NOW, limits=LIMITS)
    assert "f" not in state.breakers
    admitted(state, retry("2:1", job_id=2))


def test_canaries_come_one_at_a_time_with_the_interval_and_then_people_decide() -> None:
    state, now = after_failures(50), NOW
    for number in range(LIMITS.canary_attempts):
        state = admitted(state, retry(f"{number}:1", job_id=number, at=now), now=now)
        assert isinstance(admit(state, retry("x:1", job_id=77), now, LIMITS), Wait)
        state = note_outcome(state, f"{number}:1", succeeded=False, now=now, limits=LIMITS)
        if number < LIMITS.canary_attempts - 1:
            held = admit(state, retry("y:1", job_id=78), now + MINUTE, LIMITS)
            assert isinstance(held, Wait)
            assert held.until == now + LIMITS.canary_interval
        now += LIMITS.canary_interval
    refused = admit(state, retry("z:1", job_id=79), now, LIMITS)
    assert isinstance(refused, StandDown)
    assert refused.rule == "canaries_failed"
    admitted(state, retry("z:1", job_id=79), now=now + timedelta(days=1))


def test_three_failed_retries_of_a_cause_open_its_breaker() -> None:
    state = EMPTY
    for number in range(LIMITS.breaker_failed_retries):
        state = admitted(state, retry(f"{number}:1", job_id=number))
        state = note_outcome(state, f"{number}:1", succeeded=False, now=NOW, limits=LIMITS)
    assert state.breakers["f"].opened_at == NOW


steps = st.lists(
    st.tuples(
        st.sampled_from(["fail", "ask", "good", "bad", "pass"]), st.integers(0, 12), st.sampled_from(["f", "g", "h"])
    ),
    max_size=120,
)


@given(steps)
def test_never_more_slots_nor_canaries_than_allowed(events: list[tuple[str, int, str]]) -> None:
    state, now = EMPTY, NOW
    for what, number, fingerprint in events:
        key = f"{number}:1"
        if what == "fail":
            state = note_failure(state, fingerprint, now, LIMITS)
        elif what == "ask":
            answer = admit(state, retry(key, job_id=number, fingerprint=fingerprint, at=now), now, LIMITS)
            state = answer if isinstance(answer, Safeguards) else state
        elif what == "pass":
            now += MINUTE * number
        else:
            state = note_outcome(state, key, succeeded=what == "good", now=now, limits=LIMITS)
        under_way = [record for record in state.retries if record.is_open]
        assert len(under_way) <= LIMITS.max_concurrent
        for name, breaker in state.breakers.items():
            if breaker.canary_key:
                assert any(record.key == breaker.canary_key and record.fingerprint == name for record in under_way)
