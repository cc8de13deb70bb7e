"""What is remembered of causes, in a history that others write too; and an engine that makes use of it."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.domain import Category, Change, ChangeKind, Decision, DecisionKind, Diagnosis, Evidence, RunFacts
from shared.error_decision_engine import PROMPT_CHARACTERS, ErrorDecisionEngine
from shared.errors import (
    AgentError,
    ConfigurationError,
    ConflictError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    ThrottledError,
    TransientError,
)
from shared.learning import CHARACTERS_PER_TOKEN, PATIENCE, SLACK_SECONDS, TRIES, Learning, Outage
from shared.triage.evidence import collect
from shared.triage.experience import Experience, Fix, TokenMeter
from shared.triage.fingerprint import fingerprint
from tests.builders import (
    NOW,
    WORKSPACE,
    build_decision,
    build_diagnosis,
    build_run_facts,
    build_run_state,
    build_symptoms,
    build_task_failure,
)
from tests.fakes import FakeClock, FakeDecisionHistory, FakeDiagnoser
from tests.world import build_settings

CAUSE = "f00d"
ANSWER = build_diagnosis(category=Category.REMOTE_SERVICE, rules=("model",), source="model")
WORKER_MEMORY = Change(ChangeKind.WORKER_MEMORY_UP)
CHANGED = build_decision(decision=DecisionKind.RETRY_WITH_PARAMS, changes=(WORKER_MEMORY,))


class Desk:
    """A Learning with its history, its clock and its guids."""

    def __init__(self, history: FakeDecisionHistory | None = None, **settings: Any) -> None:
        self.history = history or FakeDecisionHistory()
        self.clock = FakeClock()
        self.settings = build_settings(**{"ai_mode": "unsure"} | settings)
        self.learning = Learning(self.history, self.settings, self.clock, self._guid)
        self._guids = 0

    def _guid(self) -> str:
        self._guids += 1
        return f"{id(self)}-{self._guids}"

    @property
    def known(self) -> Experience:
        return self.learning.recall(WORKSPACE, CAUSE)

    def engine(self, model: FakeDiagnoser) -> ErrorDecisionEngine:
        return ErrorDecisionEngine(model, settings=self.settings, learning=self.learning, jitter=lambda: 0.0)


def before_saving(history: FakeDecisionHistory, method: str, other: Callable[[], object]) -> None:
    """Let somebody else write between the read and the next write of that method."""
    honest = getattr(history, method)

    def save(value: Any) -> Any:
        setattr(history, method, honest)
        other()
        return honest(value)

    setattr(history, method, save)


# ── experience ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_known_of_a_new_cause() -> None:
    desk = Desk()

    assert desk.known == Experience(WORKSPACE, CAUSE)
    assert not desk.learning.was_asked(desk.known)


def test_results_are_kept_by_workspace_and_cause() -> None:
    desk = Desk()
    desk.learning.note_result(WORKSPACE, "1001:1", CHANGED, worked=True)

    assert desk.known.fixes == (Fix(DecisionKind.RETRY_WITH_PARAMS, ("worker_memory_up",), worked=1),)
    assert desk.learning.recall("other", CAUSE).fixes == ()
    assert desk.learning.recall(WORKSPACE, "beef").fixes == ()


@pytest.mark.parametrize("worked", [True, False])
def test_a_result_that_is_told_again_counts_once(worked: bool) -> None:
    desk = Desk()
    for key in ("1001:1", "1001:1", "1002:1", "1001:1"):
        desk.learning.note_result(WORKSPACE, key, CHANGED, worked=worked)

    (fix,) = desk.known.fixes
    assert (fix.worked, fix.failed) == ((2, 0) if worked else (0, 2))


@pytest.mark.parametrize("answer", [ANSWER, None], ids=["an answer", "a void one"])
def test_an_answer_is_kept_for_the_window(answer: Diagnosis | None) -> None:
    desk = Desk(ai_window_minutes=60)
    desk.learning.keep_answer(WORKSPACE, CAUSE, answer)

    assert desk.known.answer == answer
    desk.clock.advance(minutes=59)
    assert desk.learning.was_asked(desk.known)
    desk.clock.advance(minutes=1)
    assert not desk.learning.was_asked(desk.known)


def test_an_answer_and_results_do_not_push_each_other_out() -> None:
    desk = Desk()
    desk.learning.note_result(WORKSPACE, "1001:1", CHANGED, worked=True)
    desk.learning.keep_answer(WORKSPACE, CAUSE, ANSWER)
    desk.learning.note_result(WORKSPACE, "1002:1", CHANGED, worked=True)

    assert desk.known.answer == ANSWER
    assert [fix.worked for fix in desk.known.fixes] == [2]


# ── races ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_writers_at_once_lose_neither_result() -> None:
    desk = Desk()
    other = Desk(desk.history)
    before_saving(
        desk.history,
        "save_experience",
        lambda: other.learning.note_result(WORKSPACE, "1002:1", CHANGED, worked=False),
    )

    desk.learning.note_result(WORKSPACE, "1001:1", CHANGED, worked=True)

    (fix,) = desk.known.fixes
    assert (fix.worked, fix.failed) == (1, 1)
    assert set(desk.known.counted) == {"1001:1", "1002:1"}


def test_two_tellers_of_one_result_at_once_count_it_once() -> None:
    desk = Desk()
    other = Desk(desk.history)
    before_saving(
        desk.history,
        "save_experience",
        lambda: other.learning.note_result(WORKSPACE, "1001:1", CHANGED, worked=True),
    )

    desk.learning.note_result(WORKSPACE, "1001:1", CHANGED, worked=True)

    assert [fix.worked for fix in desk.known.fixes] == [1]


def test_a_write_whose_answer_was_lost_counts_once_when_the_step_is_repeated() -> None:
    desk = Desk()
    desk.history.faults.after["save_experience"] = [TransientError("the answer was lost")]
    with pytest.raises(TransientError):
        desk.learning.note_result(WORKSPACE, "1001:1", CHANGED, worked=True)

    desk.learning.note_result(WORKSPACE, "1001:1", CHANGED, worked=True)

    assert [fix.worked for fix in desk.known.fixes] == [1]


def test_a_row_that_never_stands_still_is_given_up_with_its_name() -> None:
    desk = Desk()
    desk.history.faults.before["save_experience"] = [ConflictError("changed")] * TRIES

    with pytest.raises(ConflictError, match=CAUSE):
        desk.learning.note_result(WORKSPACE, "1001:1", CHANGED, worked=True)

    assert desk.known.fixes == ()


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def used(desk: Desk) -> int:
    return desk.history.read_token_meter(desk.clock().date().isoformat()).used


def test_tokens_are_booked_until_the_cap_and_never_past_it() -> None:
    desk = Desk(ai_tokens_per_day=250)

    assert [desk.learning.reserve_tokens(99 * CHARACTERS_PER_TOKEN) for _ in range(4)] == [True, True, False, False]
    assert used(desk) == 200
    assert desk.learning.reserve_tokens(49 * CHARACTERS_PER_TOKEN), "a shorter question still fits"
    assert used(desk) == 250


def test_the_cap_is_of_a_day_in_utc() -> None:
    desk = Desk(ai_tokens_per_day=100)
    desk.clock.now = datetime(2026, 11, 24, 23, 59, tzinfo=UTC)
    assert desk.learning.reserve_tokens(280)
    assert not desk.learning.reserve_tokens(280)

    desk.clock.advance(minutes=1)

    assert desk.learning.reserve_tokens(280)
    assert desk.history.read_token_meter("2026-11-24").used == used(desk) == 94


def test_a_cap_of_nothing_lets_nothing_pass() -> None:
    assert not Desk(ai_tokens_per_day=0).learning.reserve_tokens(0)


def test_two_askers_at_once_do_not_pass_the_cap_together() -> None:
    desk = Desk(ai_tokens_per_day=150)
    other = Desk(desk.history, ai_tokens_per_day=150)
    before_saving(desk.history, "save_token_meter", lambda: other.learning.reserve_tokens(290))

    assert not desk.learning.reserve_tokens(290)
    assert used(desk) == 97


def test_a_meter_that_never_stands_still_is_given_up_with_its_day() -> None:
    desk = Desk()
    desk.history.faults.before["save_token_meter"] = [ConflictError("changed")] * TRIES

    with pytest.raises(ConflictError, match="2026-11-20"):
        desk.learning.reserve_tokens(10)

    assert desk.history.read_token_meter("2026-11-20") == TokenMeter("2026-11-20")


# ── an engine that learns ───────────────────────────────────────────────────────────────────────────────────────────

STRANGE = "the flux capacitor is misaligned"
RESET = "java.net.SocketException: Connection reset"
NAME_ERROR = "NameError: name 'df' is not defined"


def failing(error: str, run_id: int = 1001) -> RunFacts:
    failure = build_task_failure(symptoms=build_symptoms(error=error, error_trace=""))
    return build_run_facts(run=build_run_state(run_id=run_id), failures=(failure,))


def mark_of(error: str) -> str:
    return fingerprint(collect(build_symptoms(error=error, error_trace="")))


def note(desk: Desk, decision: Decision, *results: bool) -> None:
    """Retries like this decision went so."""
    for number, worked in enumerate(results):
        desk.learning.note_result(WORKSPACE, f"{number}:1", decision, worked=worked)


def test_a_storm_of_one_cause_is_one_question() -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    engine = desk.engine(model)

    decisions = [engine.decide(failing(f"{STRANGE} in run {n}", n), now=NOW) for n in range(1001, 1051)]

    assert len({decision.fingerprint for decision in decisions}) == 1
    assert all(decision.category is Category.REMOTE_SERVICE and decision.model_used for decision in decisions)
    assert len(model.asked) == 1
    assert 0 < used(desk) <= (len(STRANGE) + 100 + PROMPT_CHARACTERS) // CHARACTERS_PER_TOKEN


def test_a_question_whose_answer_was_void_is_not_repeated_within_the_window() -> None:
    desk, model = Desk(ai_window_minutes=60), FakeDiagnoser(None)
    engine = desk.engine(model)

    for run_id in (1001, 1002):
        assert engine.decide(failing(STRANGE, run_id), now=NOW).decision is DecisionKind.ESCALATE_EMAIL
        desk.clock.advance(minutes=59)

    assert model.faults.calls == ["diagnose"]


FAILURES = [TransientError("503"), PermanentError("401: no role"), ConfigurationError("404: no deployment", names=())]


@pytest.mark.parametrize("failure", FAILURES, ids=["down", "refused", "no deployment"])
def test_a_question_that_failed_is_asked_again_after_a_wait_that_doubles(failure: AgentError) -> None:
    desk, model = Desk(defer_base_seconds=60, defer_cap_seconds=200, ai_window_minutes=60), FakeDiagnoser(ANSWER)
    model.faults.before["diagnose"] = [failure] * 5
    engine = desk.engine(model)
    asked_after: list[int] = []

    for second in range(0, 3_600, 10):
        if engine.decide(failing(STRANGE), now=NOW, may_wait=True).model_used:
            break
        if len(model.faults.calls) > len(asked_after):
            asked_after.append(second)
        desk.clock.advance(seconds=10)

    assert asked_after == [0, 60, 180, 420, 900]
    assert second == 1_860
    assert desk.learning.recall(WORKSPACE, mark_of(STRANGE)).failed_questions == 0, "an answer ends the doubling"


def fail_questions(desk: Desk, count: int) -> None:
    """So many questions about the cause in a row, each as soon as it may be asked, without an answer."""
    for _ in range(count):
        taken = desk.learning.begin_question(WORKSPACE, CAUSE)
        assert taken is not None
        assert not desk.learning.was_asked(taken)
        desk.learning.note_failed_question(taken)
        desk.clock.advance(minutes=desk.settings.ai_window_minutes)


@pytest.mark.parametrize("failures", [1, 8, 50])
def test_waits_after_failed_questions_double_up_to_the_window_of_an_answer(failures: int) -> None:
    desk = Desk(defer_base_seconds=60, defer_cap_seconds=120, ai_window_minutes=60)
    fail_questions(desk, failures - 1)
    taken = desk.learning.begin_question(WORKSPACE, CAUSE)
    assert taken is not None
    desk.learning.note_failed_question(taken)

    rest = timedelta(minutes=min(2 ** (failures - 1), 60))
    desk.clock.now += rest - timedelta(seconds=1)
    assert desk.learning.was_asked(desk.known)
    desk.clock.advance(seconds=1)
    assert not desk.learning.was_asked(desk.known)


def test_an_outage_of_a_day_costs_a_cause_one_question_an_hour_and_leaves_tokens() -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    model.faults.before["diagnose"] = [OutcomeUnknownError("timed out")] * 10_000
    engine = desk.engine(model)

    for _ in range(24 * 12):
        for error in (STRANGE, "the warp core is offline", "the tricorder is jammed"):
            engine.decide(failing(error), now=NOW)
        desk.clock.advance(minutes=5)

    assert 24 <= len(model.faults.calls) <= 3 * 30
    assert used(desk) < desk.settings.ai_tokens_per_day / 2


def test_a_late_failure_leaves_the_answer_of_another_alone() -> None:
    desk = Desk()
    slow = desk.learning.begin_question(WORKSPACE, CAUSE)
    assert slow is not None
    desk.clock.advance(minutes=5)
    assert desk.learning.begin_question(WORKSPACE, CAUSE) is not None, "whoever asked is taken for dead"
    desk.learning.keep_answer(WORKSPACE, CAUSE, ANSWER)

    desk.learning.note_failed_question(slow)

    assert (desk.known.answer, desk.known.failed_questions) == (ANSWER, 0)


def test_a_late_failure_leaves_the_question_that_another_has_in_hand_alone() -> None:
    desk = Desk()
    slow = desk.learning.begin_question(WORKSPACE, CAUSE)
    assert slow is not None
    desk.clock.advance(minutes=5)
    other = desk.learning.begin_question(WORKSPACE, CAUSE)

    desk.learning.note_failed_question(slow)

    assert desk.known == other


# ── an outage of the model as a whole ───────────────────────────────────────────────────────────────────────────────


def test_one_failed_question_speaks_for_the_model_and_one_asker_at_a_time_tries_again() -> None:
    clock = FakeClock()
    outage = Outage(clock, first_rest=timedelta(minutes=1), longest_rest=timedelta(minutes=5), longest_try=TRY)
    assert [outage.lets_ask() for _ in range(3)] == [True] * 3, "it is not known to be down"

    for rest in (1, 2, 4, 5, 5):
        outage.note_failure()
        clock.advance(seconds=60 * rest - 1)
        assert not outage.lets_ask()
        clock.advance(seconds=1)
        assert [outage.lets_ask() for _ in range(3)] == [True, False, False]

    outage.note_answer()
    assert [outage.lets_ask() for _ in range(3)] == [True] * 3
    outage.note_failure()
    clock.advance(minutes=1)
    assert outage.lets_ask(), "an answer ends the doubling"


TRY = timedelta(seconds=75)


def test_questions_that_were_under_way_together_count_as_one_failure() -> None:
    clock = FakeClock()
    outage = Outage(clock, first_rest=timedelta(minutes=1), longest_rest=timedelta(minutes=15), longest_try=TRY)
    for _ in range(16):
        outage.note_failure()

    clock.advance(minutes=1)

    assert outage.lets_ask()


def test_where_the_asker_that_tries_dies_another_tries() -> None:
    clock = FakeClock()
    outage = Outage(clock, first_rest=timedelta(minutes=1), longest_rest=timedelta(minutes=15), longest_try=TRY)
    outage.note_failure()
    clock.advance(minutes=1)
    assert outage.lets_ask()

    clock.now += TRY

    assert [outage.lets_ask() for _ in range(2)] == [True, False]


def test_of_many_askers_at_once_one_tries() -> None:
    clock = FakeClock()
    outage = Outage(clock, first_rest=timedelta(minutes=1), longest_rest=timedelta(minutes=15), longest_try=TRY)
    outage.note_failure()
    clock.advance(minutes=1)
    ready = threading.Barrier(16)

    def ask(_: int) -> bool:
        ready.wait()
        return outage.lets_ask()

    with ThreadPoolExecutor(16) as askers:
        assert sum(askers.map(ask, range(16))) == 1


@pytest.mark.parametrize(
    ("failure", "speaks_for_all"),
    [
        (TransientError("cannot be reached"), True),
        (OutcomeUnknownError("timed out"), True),
        (NotAuthorisedError("401: no role"), True),
        (ConfigurationError("404: no deployment", names=()), True),
        (PermanentError("400: too long"), False),
        (ThrottledError("429"), False),
    ],
    ids=lambda value: getattr(value, "args", ("",))[0] or str(value),
)
def test_while_the_model_is_out_another_cause_is_left_to_the_rules_for_a_rest(
    failure: AgentError, speaks_for_all: bool
) -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    model.faults.before["diagnose"] = [failure]
    engine = desk.engine(model)
    assert not engine.decide(failing(STRANGE), now=NOW).model_used
    cost = used(desk)

    decision = engine.decide(failing("the warp core is offline"), now=NOW, may_wait=True)

    assert decision.model_used is not speaks_for_all
    if speaks_for_all:
        assert used(desk) == cost
        desk.clock.advance(seconds=desk.settings.defer_base_seconds)
        assert engine.decide(failing("the warp core is offline"), now=NOW).model_used


def test_an_answer_that_is_kept_is_used_while_the_model_is_out() -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    engine = desk.engine(model)
    assert engine.decide(failing(STRANGE), now=NOW).model_used
    model.faults.before["diagnose"] = [TransientError("cannot be reached")]
    engine.decide(failing("the warp core is offline"), now=NOW)

    assert engine.decide(failing(STRANGE, 1002), now=NOW).model_used


@pytest.mark.parametrize("given", [ThrottledError("429"), ANSWER, None], ids=["429", "answer", "void"])
def test_a_try_that_the_model_answers_ends_the_outage(given: ThrottledError | Diagnosis | None) -> None:
    desk, model = Desk(), FakeDiagnoser(None if isinstance(given, ThrottledError) else given)
    model.faults.before["diagnose"] = [
        TransientError("cannot be reached"),
        given if isinstance(given, ThrottledError) else None,
    ]
    engine = desk.engine(model)
    engine.decide(failing(STRANGE), now=NOW)
    desk.clock.advance(seconds=desk.settings.defer_base_seconds)
    engine.decide(failing("the warp core is offline"), now=NOW)
    model.answer = ANSWER

    assert engine.decide(failing("the tricorder is jammed"), now=NOW).model_used


def test_of_all_that_wait_for_a_failed_question_one_asks_again() -> None:
    desk = Desk()
    failed = FakeDiagnoser()
    failed.faults.before["diagnose"] = [TransientError("503")]
    desk.engine(failed).decide(failing(STRANGE), now=NOW)
    desk.clock.advance(seconds=desk.settings.defer_base_seconds)
    second = FakeDiagnoser(ANSWER)
    other = Desk(desk.history)
    other.clock.advance(seconds=desk.settings.defer_base_seconds)
    elsewhere = other.engine(second)
    first = desk.engine(WhileAsking(ANSWER, lambda: elsewhere.decide(failing(STRANGE, 1002), now=NOW, may_wait=False)))

    assert first.decide(failing(STRANGE), now=NOW).model_used
    assert second.asked == []


def test_a_question_that_had_no_answer_keeps_its_tokens_booked_and_each_repetition_books_its_own() -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    model.faults.before["diagnose"] = [OutcomeUnknownError("timed out")]
    engine = desk.engine(model)
    engine.decide(failing(STRANGE), now=NOW)
    once = used(desk)
    desk.clock.advance(seconds=desk.settings.defer_base_seconds)

    assert engine.decide(failing(STRANGE), now=NOW).model_used
    assert used(desk) == 2 * once > 0


def test_a_busy_model_is_asked_again() -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    model.faults.before["diagnose"] = [ThrottledError("429")]
    with pytest.raises(ThrottledError):
        desk.engine(model).decide(failing(STRANGE), now=NOW, may_wait=True)

    assert desk.engine(model).decide(failing(STRANGE), now=NOW, may_wait=True).model_used


def test_another_cause_and_another_window_are_other_questions() -> None:
    desk, model = Desk(ai_window_minutes=60), FakeDiagnoser(ANSWER)
    engine = desk.engine(model)
    engine.decide(failing(STRANGE), now=NOW)
    engine.decide(failing("the warp core is offline"), now=NOW)
    assert len(model.asked) == 2

    desk.clock.advance(minutes=61)
    engine.decide(failing(STRANGE), now=NOW)

    assert len(model.asked) == 3


def test_without_tokens_the_rules_decide_alone() -> None:
    desk, model = Desk(ai_tokens_per_day=1_000), FakeDiagnoser(ANSWER)

    decision = desk.engine(model).decide(failing(STRANGE), now=NOW)

    assert (decision.decision, decision.model_used) == (DecisionKind.ESCALATE_EMAIL, False)
    assert model.asked == []
    assert used(desk) == 0


@pytest.mark.parametrize(
    ("error", "tried", "results", "want"),
    [
        (RESET, build_decision(), (False, False), DecisionKind.ESCALATE_EMAIL),
        (RESET, build_decision(), (False,), DecisionKind.RETRY),
        (RESET, CHANGED, (True, True), DecisionKind.RETRY_WITH_PARAMS),
        (STRANGE, build_decision(), (True, True), DecisionKind.RETRY),
        (NAME_ERROR, build_decision(), (True, True), DecisionKind.ESCALATE_EMAIL),
    ],
)
def test_what_happened_before_takes_part(
    error: str, tried: Decision, results: tuple[bool, ...], want: DecisionKind
) -> None:
    desk = Desk(ai_mode="never")
    engine = desk.engine(FakeDiagnoser())
    cause = engine.decide(failing(error), now=NOW).fingerprint
    note(desk, replace(tried, fingerprint=cause), *results)

    assert engine.decide(failing(error), now=NOW).recommended is want


def test_a_question_that_the_service_refuses_costs_no_tokens_however_often_it_is_asked() -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    model.faults.before["diagnose"] = [ThrottledError("429")] * 5
    engine = desk.engine(model)

    for _ in range(5):
        with pytest.raises(ThrottledError):
            engine.decide(failing(STRANGE), now=NOW, may_wait=True)
    assert used(desk) == 0

    assert engine.decide(failing(STRANGE), now=NOW, may_wait=True).model_used
    assert 0 < used(desk) <= (len(STRANGE) + 100 + PROMPT_CHARACTERS) // CHARACTERS_PER_TOKEN


@pytest.mark.parametrize(
    "refusal",
    [
        ThrottledError("429"),
        PermanentError("401: no role"),
        ConfigurationError("404: no deployment", names=()),
        TransientError("cannot be reached"),
    ],
)
def test_a_question_that_is_refused_or_never_sent_costs_no_tokens(refusal: AgentError) -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    model.faults.before["diagnose"] = [refusal]

    decision = desk.engine(model).decide(failing(STRANGE), now=NOW)

    assert not decision.model_used
    assert used(desk) == 0


class WhileAsking(FakeDiagnoser):
    """A model that lets something happen while it is thinking."""

    def __init__(self, answer: Diagnosis | None, meanwhile: Callable[[], object]) -> None:
        super().__init__(answer)
        self.meanwhile = meanwhile

    def diagnose(self, evidence: Evidence, *, facts: Mapping[str, str]) -> Diagnosis | None:
        self.meanwhile()
        return super().diagnose(evidence, facts=facts)


@pytest.mark.parametrize("may_wait", [True, False])
def test_of_two_workers_with_one_cause_one_asks_and_the_other_waits_or_decides_by_rules(may_wait: bool) -> None:
    desk = Desk()
    others: list[object] = []
    second = FakeDiagnoser(ANSWER)
    other = Desk(desk.history).engine(second)

    def decide_elsewhere() -> None:
        try:
            others.append(other.decide(failing(STRANGE, 1002), now=NOW, may_wait=may_wait).model_used)
        except ThrottledError as error:
            others.append(error.retry_after_seconds)

    first = desk.engine(WhileAsking(ANSWER, decide_elsewhere))

    assert first.decide(failing(STRANGE), now=NOW, may_wait=may_wait).model_used
    assert others == ([desk.learning.wait_seconds] if may_wait else [False])
    assert second.asked == []
    assert other.decide(failing(STRANGE, 1002), now=NOW, may_wait=may_wait).model_used, "it takes the answer over"
    assert second.asked == []


def test_two_workers_that_take_the_question_at_once_ask_once() -> None:
    desk = Desk()
    other = Desk(desk.history)
    taken: list[Experience | None] = []
    before_saving(
        desk.history, "save_experience", lambda: taken.append(other.learning.begin_question(WORKSPACE, CAUSE))
    )

    assert desk.learning.begin_question(WORKSPACE, CAUSE) is None
    assert taken != [None]


@pytest.mark.parametrize(
    ("timeout", "retries", "invocation", "longest"),
    [(30, 1, 240, 60), (5, 0, 240, 5), (60, 2, 240, 180), (60, 5, 240, 240), (120, 5, 540, 540)],
)
def test_the_waits_of_a_message_outlast_the_longest_question_and_no_more(
    timeout: int, retries: int, invocation: int, longest: int
) -> None:
    desk = Desk(azure_openai_timeout_seconds=timeout, azure_openai_max_retries=retries, invocation_seconds=invocation)
    assert desk.learning.begin_question(WORKSPACE, CAUSE) is not None

    for _ in range(PATIENCE):
        assert desk.learning.begin_question(WORKSPACE, CAUSE) is None, "it is still in hand"
        desk.clock.advance(seconds=desk.learning.wait_seconds)

    assert desk.learning.begin_question(WORKSPACE, CAUSE) is not None, "whoever asked is taken for dead"
    assert desk.learning.wait_seconds * PATIENCE == pytest.approx(longest + SLACK_SECONDS)


def test_a_question_whose_asker_died_is_asked_by_another_after_a_short_time() -> None:
    class DiedError(BaseException):
        pass

    desk, model = Desk(), FakeDiagnoser(ANSWER)
    model.faults.before["diagnose"] = [DiedError()]
    engine = desk.engine(model)
    with pytest.raises(DiedError):
        engine.decide(failing(STRANGE), now=NOW, may_wait=True)

    with pytest.raises(ThrottledError):
        engine.decide(failing(STRANGE), now=NOW, may_wait=True)
    desk.clock.advance(seconds=2 * desk.settings.azure_openai_timeout_seconds + SLACK_SECONDS)

    assert engine.decide(failing(STRANGE), now=NOW, may_wait=True).model_used


def test_a_question_for_which_no_tokens_are_left_is_free_for_the_next_day() -> None:
    desk, model = Desk(ai_tokens_per_day=10), FakeDiagnoser(ANSWER)
    engine = desk.engine(model)
    assert not engine.decide(failing(STRANGE), now=NOW).model_used

    assert Desk(desk.history).engine(model).decide(failing(STRANGE), now=NOW, may_wait=True).model_used


def test_returned_tokens_never_make_the_meter_negative() -> None:
    desk = Desk()
    desk.learning.return_tokens(100)
    assert used(desk) == 0


def test_a_fix_that_worked_twice_spares_the_question() -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    engine = desk.engine(model)
    cause = engine.decide(failing(STRANGE), now=NOW).fingerprint
    note(desk, replace(CHANGED, fingerprint=cause), True, True)
    desk.clock.advance(hours=2)

    decision = engine.decide(failing(STRANGE), now=NOW)

    assert decision.recommended is DecisionKind.RETRY_WITH_PARAMS
    assert decision.changes == (WORKER_MEMORY,)
    assert "history.worked_before" in decision.rules
    assert len(model.asked) == 1


@pytest.mark.parametrize("hours", [0, 2], ids=["its answer is kept", "it is asked again"])
def test_the_model_cannot_repeat_what_failed_twice(hours: int) -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    engine = desk.engine(model)
    first = engine.decide(failing(STRANGE), now=NOW)
    assert first.decision is DecisionKind.RETRY
    note(desk, first, False, False)
    desk.clock.advance(hours=hours)

    decision = engine.decide(failing(STRANGE, 1002), now=NOW)

    assert decision.decision is DecisionKind.ESCALATE_EMAIL
    assert "history.failed_before" in decision.rules


def test_without_a_workspace_nothing_is_remembered() -> None:
    desk, model = Desk(), FakeDiagnoser(ANSWER)
    engine = desk.engine(model)

    assert [engine.analyze(STRANGE)["model_used"] for _ in range(2)] == [True, True]
    assert desk.history.faults.calls == []
