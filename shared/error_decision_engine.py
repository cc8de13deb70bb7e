"""ErrorDecisionEngine: evidence → diagnosis (rules, and the model where they are not sure) → policy → Decision."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from shared import telemetry
from shared.domain import (
    Attempt,
    AttemptKind,
    ComputeKind,
    Decision,
    DecisionKind,
    Diagnosis,
    Evidence,
    FailureId,
    RunFacts,
    SettingChange,
    Symptoms,
    TaskFailure,
)
from shared.errors import AgentError, OutcomeUnknownError, PermanentError, ThrottledError
from shared.learning import Learning
from shared.ports import Diagnoser
from shared.settings import Settings
from shared.triage import rules
from shared.triage.change_plan import ChangeBounds
from shared.triage.changes import suggested
from shared.triage.evidence import collect
from shared.triage.experience import SURE, weigh
from shared.triage.fingerprint import fingerprint
from shared.triage.policy import Limits, Proposal, permit, stand_down

logger = telemetry.logger(__name__)

PROMPT_CHARACTERS = 12_000
"""What a question to the model costs besides the excerpt: the prompt, the schema and the answer, in characters."""

REDACTED = "[redacted:"
"""How a replaced secret begins in an excerpt."""

RULES_FALLBACK = "rules_fallback"
"""Source of a diagnosis by rules where the model's had been wanted."""

SEVERITY = (
    DecisionKind.SKIP,
    DecisionKind.RETRY,
    DecisionKind.RETRY_WITH_PARAMS,
    DecisionKind.ESCALATE_EMAIL,
)
"""A run heals only when each of its failed tasks heals: the most severe task decides for the run."""


class DecisionDict(TypedDict):
    """A decision as JSON, for programs and for the examples of the seed document."""

    decision: str
    recommended: str
    reason: str
    suggested_params: dict[str, str] | None
    category: str
    confidence: float
    rules: list[str]
    fingerprint: str


class Analysis(TypedDict):
    """A decision with what it rests on."""

    decision: DecisionDict
    changes: list[str]
    excerpt: str
    model_used: bool


class ErrorDecisionEngine:
    """Decides about failures. Without a diagnoser, rules decide alone: that is a normal state."""

    def __init__(
        self,
        azure_openai_client: Diagnoser | None = None,
        *,
        settings: Settings | None = None,
        learning: Learning | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._diagnoser = azure_openai_client
        self._learning = learning
        if settings is None:
            from shared.bootstrap import current_settings

            settings = current_settings()
        self._settings = settings
        self._jitter = jitter
        self.limits = limits_of(self._settings)

    def decide(
        self, facts: RunFacts, attempts: Sequence[Attempt] = (), *, now: datetime, may_wait: bool = False
    ) -> Decision:
        """The decision about a failed run.

        `may_wait` = let ThrottledError of the model through, so that the caller can ask again later; otherwise the
        rules decide alone whenever the model does not answer.
        """
        standing_down = stand_down(facts, self.limits)
        failure, evidence, diagnosis = self._worst(facts, may_wait=may_wait)
        mark = fingerprint(evidence)
        telemetry.decided(diagnosis.source)
        if standing_down:
            verdict_decision, reason = DecisionKind.SKIP, standing_down.reason
            verdict_rules: tuple[str, ...] = (f"policy.{standing_down.rule}",)
            changes, delay = diagnosis.changes, 0.0
            setting_changes: tuple[SettingChange, ...] = ()
        else:
            verdict = permit(Proposal(diagnosis, facts, attempts, self.limits, now), jitter=self._jitter())
            verdict_decision, reason, verdict_rules = verdict.decision, verdict.reason, verdict.rules
            changes, delay = verdict.changes, verdict.delay_seconds
            setting_changes = verdict.setting_changes
        return Decision(
            failure_id=facts.run.failure_id,
            decision=verdict_decision,
            recommended=diagnosis.recommended,
            category=diagnosis.category,
            reason=reason,
            confidence=diagnosis.confidence,
            rules=(*diagnosis.rules, *verdict_rules),
            fingerprint=mark,
            excerpt=evidence.excerpt,
            cause=cause_of(failure, evidence),
            changes=changes,
            suggested_params=suggested(changes),
            model_used=diagnosis.source == "model",
            latest_repair_id=facts.run.latest_repair_id,
            delay_seconds=delay,
            setting_changes=setting_changes,
        )

    def analyze_and_decide(self, error_message: str, job_context: Mapping[str, Any] | None = None) -> DecisionDict:
        """Decide about an error text alone.

        `job_context` may hold anything; looked at are `termination_code`, `termination_type`, `task_type`,
        `error_trace`, `logs`, and `attempts` and `attempts_with_params` (retries made so far, whole numbers).
        """
        return self.analyze(error_message, job_context)["decision"]

    def analyze(self, error_message: str, job_context: Mapping[str, Any] | None = None) -> Analysis:
        """Like `analyze_and_decide`, with the changes, the excerpt and whether the model took part."""
        context = job_context or {}
        evidence, diagnosis = self.diagnose(symptoms_of(error_message, context), ComputeKind.UNKNOWN)
        now = datetime.now(UTC)
        attempts = past_attempts(context, now)
        verdict = permit(Proposal(diagnosis, None, attempts, self.limits, now), jitter=self._jitter())
        decision = DecisionDict(
            decision=str(verdict.decision),
            recommended=str(diagnosis.recommended),
            reason=verdict.reason,
            suggested_params=suggested(verdict.changes),
            category=str(diagnosis.category),
            confidence=diagnosis.confidence,
            rules=[*diagnosis.rules, *verdict.rules],
            fingerprint=fingerprint(evidence),
        )
        return Analysis(
            decision=decision,
            changes=[change.word for change in verdict.changes],
            excerpt=evidence.excerpt,
            model_used=diagnosis.source == "model",
        )

    def diagnose(
        self, symptoms: Symptoms, compute: ComputeKind, *, workspace: str = "", may_wait: bool = False
    ) -> tuple[Evidence, Diagnosis]:
        """Evidence and diagnosis of one failed task. Experience takes part where the workspace is named."""
        evidence = collect(symptoms)
        telemetry.redacted(evidence.excerpt.count(REDACTED))
        by_rules = rules.diagnose(symptoms, evidence)
        if self._learning and workspace:
            by_rules = weigh(by_rules, self._learning.recall(workspace, fingerprint(evidence)))
        if not self._asks_model(by_rules):
            return evidence, by_rules
        trusted = {
            "task_type": symptoms.task_type or "unknown",
            "termination_code": symptoms.termination_code or "unknown",
            "termination_type": symptoms.termination_type or "unknown",
            "compute": str(compute),
        }
        if self._learning and workspace:
            answer = self._ask_once(self._learning, workspace, evidence, trusted, by_rules, may_wait=may_wait)
        else:
            answer = self._ask_or_wait(evidence, trusted, by_rules, may_wait=may_wait)
        telemetry.model_wanted(fell_back=answer is None)
        return evidence, answer or replace(by_rules, source=RULES_FALLBACK)

    def _asks_model(self, by_rules: Diagnosis) -> bool:
        if self._diagnoser is None or self._settings.ai_mode == "never":
            return False
        return self._settings.ai_mode == "always" or by_rules.confidence < SURE

    def _ask_once(
        self,
        learning: Learning,
        workspace: str,
        evidence: Evidence,
        trusted: Mapping[str, str],
        by_rules: Diagnosis,
        *,
        may_wait: bool,
    ) -> Diagnosis | None:
        """The model's answer about the cause, for which it is asked once in a window; None where there is none.

        Where a question fails, the rules decide alone until it is time to ask again; about other causes too, unless it
        was refused for what it says itself.
        """
        mark = fingerprint(evidence)
        known = learning.begin_question(workspace, mark)
        if known is None:
            if may_wait:
                problem = "the model is just being asked about the same cause"
                raise ThrottledError(problem, retry_after_seconds=learning.wait_seconds)
            return None
        if learning.was_asked(known):
            return weigh(known.answer, known) if known.answer else None
        if not learning.outage.lets_ask():
            learning.give_question_back(workspace, mark)
            return None
        characters = len(evidence.excerpt) + PROMPT_CHARACTERS
        if not learning.reserve_tokens(characters):
            logger.warning("the model's tokens of the day are used up, rules decide alone")
            learning.give_question_back(workspace, mark)
            return None
        try:
            answer = self._ask(evidence, trusted, by_rules)
        except ThrottledError:
            learning.outage.note_answer()
            learning.return_tokens(characters)
            learning.give_question_back(workspace, mark)
            if may_wait:
                raise
            return None
        except AgentError as error:
            note_silence(error)
            if type(error) is PermanentError:  # a refusal of this very text: the model is there
                learning.outage.note_answer()
            else:
                learning.outage.note_failure()
            if not isinstance(error, OutcomeUnknownError):  # one that was sent may have been paid for
                learning.return_tokens(characters)
            learning.note_failed_question(known)
            return None
        learning.outage.note_answer()
        learning.keep_answer(workspace, mark, answer)
        return weigh(answer, known) if answer else None

    def _ask_or_wait(
        self, evidence: Evidence, trusted: Mapping[str, str], by_rules: Diagnosis, *, may_wait: bool
    ) -> Diagnosis | None:
        """The model's answer; None where it gave none that counts. ThrottledError only where the caller may wait."""
        try:
            return self._ask(evidence, trusted, by_rules)
        except ThrottledError:
            if may_wait:
                raise
        except AgentError as error:
            note_silence(error)
        return None

    def _ask(self, evidence: Evidence, trusted: Mapping[str, str], by_rules: Diagnosis) -> Diagnosis | None:
        assert self._diagnoser is not None
        answer = self._diagnoser.diagnose(evidence, facts=trusted)
        return never_silent(answer, by_rules) if answer else None

    def _worst(self, facts: RunFacts, *, may_wait: bool) -> tuple[TaskFailure | None, Evidence, Diagnosis]:
        """The root-cause task that decides for the run."""
        found = [
            (
                failure,
                *self.diagnose(failure.symptoms, failure.compute, workspace=facts.run.workspace, may_wait=may_wait),
            )
            for failure in facts.failures
        ]
        if not found:
            symptoms = Symptoms(
                state_message=facts.run.state_message,
                termination_code=facts.run.termination_code,
                termination_type=facts.run.termination_type,
                result_state=facts.run.result_state,
            )
            workspace = facts.run.workspace
            return (None, *self.diagnose(symptoms, ComputeKind.UNKNOWN, workspace=workspace, may_wait=may_wait))
        return max(found, key=lambda item: (SEVERITY.index(item[2].recommended), item[2].confidence))


def note_silence(error: AgentError) -> None:
    logger.warning("model did not answer, rules decide alone", extra={"reason": type(error).__name__})


def never_silent(answer: Diagnosis, by_rules: Diagnosis) -> Diagnosis:
    """A skip that only the model sees becomes a mail: a text that talks the model into it must not hide a failure."""
    if answer.recommended is not DecisionKind.SKIP or by_rules.recommended is DecisionKind.SKIP:
        return answer
    return replace(
        answer,
        recommended=DecisionKind.ESCALATE_EMAIL,
        reason=f"{answer.reason} The model would leave it alone; a person should confirm that.",
        rules=(*answer.rules, "policy.model_may_not_skip"),
    )


def limits_of(settings: Settings) -> Limits:
    """The operator's bounds, as the policy wants them."""
    return Limits(
        max_retry_attempts=settings.max_retry_attempts,
        retry_with_params_attempts=settings.retry_with_params_attempts,
        max_failure_age=timedelta(hours=settings.max_failure_age_hours),
        backoff_base_seconds=settings.backoff_base_seconds,
        backoff_cap_seconds=settings.backoff_cap_seconds,
        default_mode=settings.default_mode,
        job_ids=frozenset(map(int, settings.job_ids)),
        job_tags=settings.job_tags,
        bounds=ChangeBounds(
            max_node_memory_gb=settings.max_node_memory_gb,
            max_workers=settings.max_workers,
            max_timeout_hours=settings.max_timeout_hours,
            max_cost_factor=settings.max_cost_factor,
        ),
    )


def cause_of(failure: TaskFailure | None, evidence: Evidence) -> str:
    """One line for tables and subjects: the deepest cause, or what the platform said."""
    line = evidence.deepest_cause or evidence.excerpt.partition("\n")[0]
    if not line and failure:
        line = failure.symptoms.termination_code or ""
    return line[:200] or "no error text"


def symptoms_of(error_message: str, context: Mapping[str, Any]) -> Symptoms:
    def text(name: str) -> str | None:
        value = context.get(name)
        return None if value is None else str(value)

    return Symptoms(
        error=error_message,
        error_trace=text("error_trace") or "",
        logs=text("logs") or "",
        termination_code=text("termination_code"),
        termination_type=text("termination_type"),
        task_type=text("task_type"),
    )


def past_attempts(context: Mapping[str, Any], now: datetime) -> list[Attempt]:
    """Attempts that the caller says were made, for the limits."""

    def count(name: str) -> int:
        value = context.get(name, 0)
        return value if isinstance(value, int) and 0 < value <= 1000 else 0

    made, changed = count("attempts"), count("attempts_with_params")
    return [
        Attempt(n + 1, AttemptKind.REPAIR, FailureId("given"), n < changed, (), now, "")
        for n in range(max(made, changed))
    ]
