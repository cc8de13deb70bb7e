"""Evidence to decision: when the model is asked, what becomes of its answer, and that the policy has the last word."""

import json
from typing import Any

import pytest

from shared.domain import Category, Change, ChangeKind, Decision, DecisionKind, Diagnosis
from shared.error_decision_engine import DecisionDict, ErrorDecisionEngine, cause_of
from shared.errors import PermanentError, ThrottledError, TransientError
from shared.triage.policy import MODE_TAG
from tests.builders import (
    NOW,
    build_attempt,
    build_diagnosis,
    build_evidence,
    build_repair,
    build_run_facts,
    build_run_state,
    build_symptoms,
    build_task_failure,
)
from tests.fakes import FakeDiagnoser
from tests.world import build_settings

BY_MODEL = build_diagnosis(
    category=Category.REMOTE_SERVICE,
    recommended=DecisionKind.RETRY,
    reason="The partner's service was down.",
    rules=("model",),
    source="model",
)
RESET = "java.net.SocketException: Connection reset"
STRANGE = "the flux capacitor is misaligned"
NAME_ERROR = "NameError: name 'df' is not defined"


def engine(model: FakeDiagnoser | None = None, **settings: Any) -> ErrorDecisionEngine:
    chosen = build_settings(**{"ai_mode": "unsure"} | settings)
    return ErrorDecisionEngine(model, settings=chosen, jitter=lambda: 0.5)


def failing(*errors: str) -> Any:
    """A run with one failed task per error."""
    failures = tuple(
        build_task_failure(task_key=f"task{n}", symptoms=build_symptoms(error=error, error_trace=""))
        for n, error in enumerate(errors)
    )
    return build_run_facts(failures=failures)


# ── whether the model is asked ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ai_mode", "error", "asked"),
    [
        ("never", RESET, False),
        ("never", STRANGE, False),
        ("unsure", RESET, False),
        ("unsure", STRANGE, True),
        ("always", RESET, True),
        ("always", STRANGE, True),
    ],
)
def test_when_the_model_is_asked(ai_mode: str, error: str, asked: bool) -> None:
    model = FakeDiagnoser(BY_MODEL)

    decision = engine(model, ai_mode=ai_mode).decide(failing(error), now=NOW)

    assert bool(model.asked) is asked
    assert decision.model_used is asked
    assert (decision.category is Category.REMOTE_SERVICE) is asked


@pytest.mark.parametrize("ai_mode", ["never", "unsure", "always"])
def test_without_a_model_the_rules_decide(ai_mode: str) -> None:
    decision = engine(None, ai_mode=ai_mode).decide(failing(STRANGE), now=NOW)

    assert decision.decision is DecisionKind.ESCALATE_EMAIL
    assert not decision.model_used


@pytest.mark.parametrize(
    "error",
    [TransientError("503"), ThrottledError("429"), PermanentError("401"), None],
    ids=["down", "busy", "refused", "a void answer"],
)
def test_a_model_that_gives_no_answer_leaves_the_rules_alone(error: BaseException | None) -> None:
    model = FakeDiagnoser(None)
    model.faults.before["diagnose"] = [error]
    with_model = engine(model).decide(failing(STRANGE), now=NOW)

    assert with_model == engine(None).decide(failing(STRANGE), now=NOW)
    assert not with_model.model_used


def test_a_busy_model_is_waited_for_where_there_is_time() -> None:
    model = FakeDiagnoser(BY_MODEL)
    model.faults.before["diagnose"] = [ThrottledError("429", retry_after_seconds=7)]

    with pytest.raises(ThrottledError) as busy:
        engine(model).decide(failing(STRANGE), now=NOW, may_wait=True)

    assert busy.value.retry_after_seconds == 7
    assert engine(model).decide(failing(STRANGE), now=NOW, may_wait=True).model_used


def test_a_model_that_is_down_is_not_waited_for() -> None:
    model = FakeDiagnoser(BY_MODEL)
    model.faults.before["diagnose"] = [TransientError("503")]

    assert not engine(model).decide(failing(STRANGE), now=NOW, may_wait=True).model_used


def test_the_model_is_given_the_excerpt_trusted_facts_and_what_the_rules_say() -> None:
    model = FakeDiagnoser(BY_MODEL)

    engine(model, ai_mode="always").decide(failing(f"password=hunter2hunter2 {RESET}"), now=NOW)

    (question,) = model.asked
    assert "hunter2" not in question.evidence.excerpt
    assert question.facts == {
        "task_type": "notebook_task",
        "termination_code": "RUN_EXECUTION_ERROR",
        "termination_type": "CLIENT_ERROR",
        "compute": "job_cluster",
    }


# ── the policy has the last word ────────────────────────────────────────────────────────────────────────────────────


def test_the_model_cannot_lift_a_limit() -> None:
    model = FakeDiagnoser(BY_MODEL)
    attempts = [build_attempt(number=n) for n in (1, 2, 3)]

    decision = engine(model, ai_mode="always").decide(failing(STRANGE), attempts, now=NOW)

    assert decision.decision is DecisionKind.ESCALATE_EMAIL
    assert decision.recommended is DecisionKind.RETRY
    assert decision.rules == ("model", "policy.retry_limit")


def test_the_model_cannot_overrule_a_stand_down() -> None:
    facts = build_run_facts(tags={MODE_TAG: "off"})

    decision = engine(FakeDiagnoser(BY_MODEL), ai_mode="always").decide(facts, now=NOW)

    assert decision.decision is DecisionKind.SKIP
    assert decision.rules[-1] == "policy.switched_off"
    assert decision.delay_seconds == 0


def test_a_decision_freezes_the_repair_that_it_was_made_for() -> None:
    facts = build_run_facts(run=build_run_state(repairs=(build_repair(repair_id=501), build_repair(repair_id=502))))

    decision = engine(FakeDiagnoser(BY_MODEL), ai_mode="always").decide(facts, now=NOW)

    assert (decision.latest_repair_id, decision.failure_id) == (502, "ws1:1001:502")
    assert decision.delay_seconds == 60  # half of 30 s, doubled twice


# ── several failed tasks ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("errors", [(RESET, NAME_ERROR), (NAME_ERROR, RESET), (RESET, NAME_ERROR, RESET)])
def test_the_task_that_a_retry_cannot_heal_decides_for_the_run(errors: tuple[str, ...]) -> None:
    decision = engine().decide(failing(*errors), now=NOW)

    assert decision.decision is DecisionKind.ESCALATE_EMAIL
    assert decision.cause == NAME_ERROR


def test_a_run_without_a_failed_task_is_decided_by_its_own_state() -> None:
    run = build_run_state(
        state_message="An unexpected error", termination_code="INTERNAL_ERROR", termination_type="INTERNAL_ERROR"
    )

    decision = engine().decide(build_run_facts(run=run, failures=()), now=NOW)

    assert decision.cause == "An unexpected error"
    assert "code.INTERNAL_ERROR" in decision.rules


@pytest.mark.parametrize(
    ("evidence", "want"),
    [
        (build_evidence(causes=("outer", "inner")), "inner"),
        (build_evidence(causes=(), excerpt="first line\nsecond"), "first line"),
        (build_evidence(causes=(), excerpt=""), "RUN_EXECUTION_ERROR"),
        (build_evidence(causes=("x" * 500,)), "x" * 200),
    ],
)
def test_the_cause_is_one_short_line(evidence: Any, want: str) -> None:
    assert cause_of(build_task_failure(), evidence) == want


def test_no_text_at_all_still_has_a_cause() -> None:
    assert cause_of(None, build_evidence(causes=(), excerpt="")) == "no error text"


# ── an error text alone ─────────────────────────────────────────────────────────────────────────────────────────────

OUT_OF_MEMORY = "OutOfMemoryError: Java heap space"


def test_the_decision_has_the_keys_and_types_that_the_seed_document_uses() -> None:
    decision = engine().analyze_and_decide(error_message=OUT_OF_MEMORY, job_context={"job_id": 123, "data": object()})

    assert (
        set(decision)
        == set(DecisionDict.__annotations__)
        == {
            "decision",
            "recommended",
            "reason",
            "suggested_params",
            "category",
            "confidence",
            "rules",
            "fingerprint",
        }
    )
    assert json.loads(json.dumps(decision)) == decision
    assert decision["decision"] == decision["recommended"] == "RETRY_WITH_PARAMS"
    assert decision["category"] in ("driver_memory", "worker_memory")
    assert isinstance(decision["confidence"], float)
    assert isinstance(decision["suggested_params"], dict)
    assert all(isinstance(value, str) for value in decision["suggested_params"].values())


def test_what_needs_no_change_suggests_none() -> None:
    assert engine().analyze_and_decide(NAME_ERROR)["suggested_params"] is None


@pytest.mark.parametrize(
    ("error", "context", "rule"),
    [
        (RESET, {"attempts": 2}, None),
        (RESET, {"attempts": 3}, "policy.retry_limit"),
        (RESET, {"attempts_with_params": 2}, None),
        (OUT_OF_MEMORY, {"attempts": 2}, None),
        (OUT_OF_MEMORY, {"attempts": 2, "attempts_with_params": 2}, "policy.changed_retry_limit"),
        (OUT_OF_MEMORY, {"attempts_with_params": 3}, "policy.retry_limit"),
        (RESET, {"attempts": "3"}, None),
        (RESET, {"attempts": -3}, None),
        (RESET, {"attempts": True}, None),
        (RESET, {"attempts": 10**9}, None),
        (RESET, None, None),
    ],
)
def test_the_retries_made_so_far_reach_the_limits(error: str, context: Any, rule: str | None) -> None:
    decision = engine().analyze_and_decide(error, context)

    limits = [name for name in decision["rules"] if name.endswith("limit")]
    assert limits == ([rule] if rule else [])
    assert (decision["decision"] == "ESCALATE_EMAIL") is bool(rule)


@pytest.mark.parametrize(
    "error", ["", " \n\t", "\x00\x01", "\ud800 lone surrogate", "é" * 10_000, "x" * 300_000, "Ω\r\n" * 5_000]
)
def test_any_text_gets_a_decision(error: str) -> None:
    decision = engine().analyze_and_decide(error, {"logs": error, "error_trace": error})

    assert decision["decision"] in {str(kind) for kind in DecisionKind}
    assert decision["fingerprint"]


def test_the_analysis_carries_what_the_decision_rests_on() -> None:
    change = Change(ChangeKind.PARAM, "batch_size")
    answer = Diagnosis(
        Category.WORKER_MEMORY, DecisionKind.RETRY_WITH_PARAMS, "Too much at once.", 0.9, ("model",), (change,), "model"
    )

    analysis = engine(FakeDiagnoser(answer)).analyze(STRANGE)

    assert (analysis["changes"], analysis["model_used"]) == (["param:batch_size"], True)
    assert STRANGE in analysis["excerpt"]
    assert analysis["decision"]["suggested_params"] == {"param:batch_size": ""}


def test_two_occurrences_of_one_cause_compare_equal() -> None:
    def decided(error: str) -> Decision:
        return engine().decide(failing(error), now=NOW)

    one, other = (decided(f"{RESET} by peer 10.0.0.{n}:5432 at 2026-11-20T0{n}:00:00Z") for n in (4, 7))

    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != decided(NAME_ERROR).fingerprint


def test_a_skip_that_only_the_model_sees_becomes_a_mail() -> None:
    answer = build_diagnosis(recommended=DecisionKind.SKIP, changes=(), confidence=0.99, source="model")
    engine = ErrorDecisionEngine(FakeDiagnoser(answer), settings=build_settings(ai_mode="always"))
    decision = engine.analyze("KeyError: 'sku'")["decision"]
    assert decision["decision"] == "ESCALATE_EMAIL"
    assert "policy.model_may_not_skip" in decision["rules"]
