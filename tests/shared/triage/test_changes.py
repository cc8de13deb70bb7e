"""What a retry may change, and how far."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain import Change, ChangeKind, RunFacts
from shared.triage.changes import HIGHEST_TIMEOUT_SECONDS, next_value, parameters_of, settle, suggested
from tests.builders import build_job_facts, build_run_facts, build_run_state


def facts(declared: dict[str, str], given_to_run: dict[str, str] | None = None) -> RunFacts:
    return build_run_facts(
        job=build_job_facts(declared_parameters=declared), run=build_run_state(job_parameters=given_to_run or {})
    )


def param(name: str, value: str | None = None) -> Change:
    return Change(ChangeKind.PARAM, name, value)


@pytest.mark.parametrize(
    ("name", "current", "want"),
    [
        ("batch_size", "1000", "500"),
        ("batch_size", "3", "1"),
        ("batch_size", "1", None),
        ("BATCH_SIZE", "10", "5"),
        ("chunk_rows", "8", "4"),
        ("max_parallel", "16", "8"),
        ("concurrency", "4", "2"),
        ("num_threads", "2", "1"),
        ("workers", "0", None),
        ("fetch_rows", "-4", None),
        ("timeout_seconds", "600", "1200"),
        ("max_wait", "1", "2"),
        ("fetch_timeout", "30", "60"),
        ("timeout", "50000", str(HIGHEST_TIMEOUT_SECONDS)),
        ("timeout", str(HIGHEST_TIMEOUT_SECONDS), None),
        ("timeout", "0", None),
        ("timeout", "-1", None),
        ("batch_size", "all", None),
        ("batch_size", "", None),
        ("batch_size", "1.5", None),
        ("batch_size", "9" * 5000, None),
        ("day", "20", None),
    ],
)
def test_the_value_to_try_next(name: str, current: str, want: str | None) -> None:
    assert next_value(name, current) == want


@given(name=st.sampled_from(["batch_size", "threads", "timeout", "wait", "day"]), number=st.integers())
def test_sizes_only_shrink_and_waits_only_grow_to_the_bound(name: str, number: int) -> None:
    value = next_value(name, str(number))

    if value is not None and name in ("timeout", "wait"):
        assert number < int(value) <= min(2 * number, HIGHEST_TIMEOUT_SECONDS)
    elif value is not None:
        assert 1 <= int(value) < number


def test_the_value_that_the_run_had_is_changed_not_the_default_of_the_job() -> None:
    settled = settle((param("batch_size"),), facts({"batch_size": "1000"}, {"batch_size": "200"}))

    assert settled == (param("batch_size", "100"),)


@pytest.mark.parametrize(
    ("changes", "declared"),
    [
        ((), {"batch_size": "1000"}),
        ((param("batch_size"),), {}),
        ((param("batch_size"),), {"batch_size": "one"}),
        ((param("batch_size"), param("other_size")), {"batch_size": "1000"}),
        ((Change(ChangeKind.WORKER_MEMORY_UP),), {"batch_size": "1000"}),
        ((param("batch_size"), Change(ChangeKind.MORE_DISK)), {"batch_size": "1000"}),
        ((Change(ChangeKind.SPARK_CONF, "batch_size"),), {"batch_size": "1000"}),
    ],
    ids=["no change", "not declared", "no number", "one of two declared", "cluster", "parameter and cluster", "conf"],
)
def test_what_cannot_be_carried_out_whole_is_not_carried_out(
    changes: tuple[Change, ...], declared: dict[str, str]
) -> None:
    assert settle(changes, facts(declared)) is None


def test_the_model_cannot_choose_the_value() -> None:
    settled = settle((param("batch_size", "999999999"),), facts({"batch_size": "1000"}))

    assert settled == (param("batch_size", "500"),)


def test_a_run_without_a_job_has_nothing_to_change() -> None:
    assert settle((param("batch_size"),), build_run_facts(job=None)) is None


def test_parameters_and_suggestions() -> None:
    changes = (param("batch_size", "500"), Change(ChangeKind.WORKER_MEMORY_UP), param("open"))

    assert parameters_of(changes) == {"batch_size": "500"}
    assert suggested(changes) == {"param:batch_size": "500", "worker_memory_up": "", "param:open": ""}
    assert suggested(()) is None
