"""The tables of codes: every value of the platform's enumerations is placed, and placed where it belongs."""

import pytest
from databricks.sdk.service.compute import TerminationReasonCode
from databricks.sdk.service.jobs import TerminationCodeCode, TerminationTypeType

from shared.domain import ChangeKind, DecisionKind
from shared.triage import knowledge

RETRY, CHANGED = DecisionKind.RETRY, DecisionKind.RETRY_WITH_PARAMS
ESCALATE, SKIP = DecisionKind.ESCALATE_EMAIL, DecisionKind.SKIP


def test_every_termination_code_is_placed() -> None:
    table = knowledge.codes().termination_codes
    assert {code.value for code in TerminationCodeCode} <= table.keys()
    assert "CLUSTER_TERMINATED_BY_USER" in table, "documented by Databricks, though not in the SDK's list"


def test_every_termination_type_is_placed() -> None:
    assert {kind.value for kind in TerminationTypeType} == set(knowledge.codes().termination_types)


def test_every_cluster_termination_reason_of_every_cloud_is_placed() -> None:
    table = knowledge.codes().cluster_reasons
    assert {code.value for code in TerminationReasonCode} == set(table)
    assert len(table) == 187


@pytest.mark.parametrize(
    ("code", "decision"),
    [
        ("USER_CANCELED", SKIP),
        ("DISABLED", SKIP),
        ("SKIPPED", SKIP),
        ("MAX_CONCURRENT_RUNS_EXCEEDED", SKIP),
        ("CLUSTER_TERMINATED_BY_USER", SKIP),
        ("INTERNAL_ERROR", RETRY),
        ("CLOUD_FAILURE", RETRY),
        ("CLUSTER_REQUEST_LIMIT_EXCEEDED", RETRY),
        ("DRIVER_ERROR", CHANGED),
        ("RUN_EXECUTION_ERROR", ESCALATE),
        ("UNAUTHORIZED_ERROR", ESCALATE),
        ("INVALID_RUN_CONFIGURATION", ESCALATE),
        ("BUDGET_POLICY_LIMIT_EXCEEDED", ESCALATE),
    ],
)
def test_termination_codes(code: str, decision: DecisionKind) -> None:
    assert knowledge.codes().termination_codes[code].decision is decision


def test_what_says_misconfiguration_is_never_retried() -> None:
    for code, verdict in knowledge.codes().cluster_reasons.items():
        if code.endswith("_DUE_TO_MISCONFIG") or code.startswith(("INVALID_", "SECRET_")):
            assert verdict.decision is ESCALATE, code


@pytest.mark.parametrize("word", ["THROTTL", "RATE_LIMITED", "REQUEST_LIMIT_EXCEEDED"])
def test_what_says_throttled_is_retried(word: str) -> None:
    found = [verdict for code, verdict in knowledge.codes().cluster_reasons.items() if word in code]
    assert found
    assert {verdict.decision for verdict in found} == {RETRY}


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("DRIVER_OUT_OF_MEMORY", ChangeKind.DRIVER_MEMORY_UP),
        ("DRIVER_OUT_OF_DISK", ChangeKind.MORE_DISK),
        ("CLOUD_PROVIDER_RESOURCE_STOCKOUT", ChangeKind.OTHER_NODE_TYPE),
        ("AWS_MAX_SPOT_INSTANCE_COUNT_EXCEEDED_FAILURE", ChangeKind.AVAILABILITY_ON_DEMAND),
    ],
)
def test_shortages_call_for_the_change_that_ends_them(code: str, change: ChangeKind) -> None:
    verdict = knowledge.codes().cluster_reasons[code]
    assert (verdict.decision, verdict.change_words) == (CHANGED, (str(change),))


@pytest.mark.parametrize(
    ("state", "decision"),
    [("40001", RETRY), ("2D521", RETRY), ("53200", CHANGED), ("42501", ESCALATE), ("42P01", ESCALATE), ("HY008", SKIP)],
)
def test_sqlstates(state: str, decision: DecisionKind) -> None:
    assert knowledge.codes().sqlstates[state].decision is decision


def test_the_classes_of_all_single_sqlstates_are_placed() -> None:
    tables = knowledge.codes()
    assert {state[:2] for state in tables.sqlstates} <= tables.sqlstate_classes.keys()


@pytest.mark.parametrize(
    ("state_class", "decision"), [("08", RETRY), ("22", ESCALATE), ("42", ESCALATE), ("82", CHANGED)]
)
def test_sqlstate_classes(state_class: str, decision: DecisionKind) -> None:
    assert knowledge.codes().sqlstate_classes[state_class].decision is decision
