"""From evidence to a diagnosis by knowledge alone: signatures of texts, tables of codes, and what the text tells
about how often the same has failed before.

Everything that fits is a finding; the finding with the highest rank decides. In this order: what somebody has already
done about it, what is decisive wherever it stands, then the deepest cause before outer ones before the rest of the
text, then codes, then nothing known: escalate. Texts are untrusted: words that address whoever reads them are cut out
first, and what somebody has done about a failure counts only in lines that read like a status, not inside quoted data.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from shared.domain import Category, Change, ChangeKind, DecisionKind, Diagnosis, Evidence, Symptoms
from shared.triage import knowledge
from shared.triage.knowledge import Effect, Match, Reading, Signature, Verdict, Weight, Where
from shared.triage.untrusted_text import LOW_LEVEL, PLATFORM_RECORD, sentences_of, status_text, without_planted_words

DEFAULT_RULE = "default.escalate"
_CODE_RULE = "code."

MOST_MATCHES = 8
"""Matches of one signature that are looked at, to find the one in the deepest cause."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule that fired. `rank` is compared: higher decides."""

    rule: str
    verdict: Verdict
    rank: tuple[float, int, float, int]
    changes: tuple[Change, ...] = ()
    repeated_changes: tuple[str, ...] = ()
    may_pass: bool = False


# Tiers of a rank. What somebody has done already comes before all; a code alone says less than any text.
_HANDLED, _DECISIVE, _CAUSE, _SYMPTOM, _HINT, _CODE, _NOTHING = 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0
_TIERS = {Weight.DECISIVE: _DECISIVE, Weight.CAUSE: _CAUSE, Weight.SYMPTOM: _SYMPTOM}

# Places of a rank.
_DEEPEST, _OUTER, _ELSEWHERE = 2, 1, 0

_UNKNOWN = Verdict(
    decision=DecisionKind.ESCALATE_EMAIL,
    category=Category.UNKNOWN,
    confidence=0.2,
    why="No rule knows this failure; a person should look at it.",
)


def diagnose(symptoms: Symptoms, evidence: Evidence) -> Diagnosis:
    """What the rules make of a failure. Never raises for any text; no rule fitting means: escalate, not sure."""
    text = without_planted_words(evidence.text)
    causes = tuple(cause if cause in text else without_planted_words(cause) for cause in evidence.causes)
    evidence = replace(evidence, text=text, causes=causes)
    status = status_text(symptoms)
    said = knowledge.present(status, knowledge.vocabulary(Where.STATUS, Where.SENTENCE))
    readings = {
        Where.ANY: Reading(text, knowledge.present(text, knowledge.vocabulary(Where.ANY))),
        Where.STATUS: Reading(status, said),
        Where.SENTENCE: Reading(sentences_of(status), said),
    }
    findings = sorted(_findings(symptoms, evidence, readings), key=lambda finding: finding.rank, reverse=True)
    records = [finding.rule for finding in findings if _is_final_record(finding)]
    findings = _without_denied(findings, readings[Where.STATUS])
    best = _with_change_for_place(findings[0], symptoms, text)
    told = _circumstances(readings[Where.STATUS], _effects_on(best))
    if records:  # the text names a limit, the platform a user: a person has to look
        told[Effect.SOMEBODY_INVOLVED] = records[0]
    decided, sentence, deciding = _under(best, told)
    rules = dict.fromkeys((best.rule, *deciding, *(finding.rule for finding in findings[1:])))
    return Diagnosis(
        category=decided.verdict.category,
        recommended=decided.verdict.decision,
        reason=f"{decided.verdict.why}{sentence}",
        confidence=decided.verdict.confidence,
        rules=tuple(rules),
        changes=decided.changes,
    )


# --- findings --------------------------------------------------------------------------------------------------------


def _findings(symptoms: Symptoms, evidence: Evidence, readings: Mapping[Where, Reading]) -> Iterator[Finding]:
    yield Finding(DEFAULT_RULE, _UNKNOWN, (_NOTHING, _ELSEWHERE, 0.0, 0))
    yield from _of_signatures(readings, evidence)
    yield from _of_termination(symptoms)
    yield from _of_cluster_reason(symptoms, evidence.text)
    yield from _of_conditions(evidence)
    yield from _of_sqlstates(evidence)
    yield from _of_exception(evidence)


def _of_signatures(readings: Mapping[Where, Reading], evidence: Evidence) -> Iterator[Finding]:
    for where, searched in readings.items():
        for signature in knowledge.candidates(where, searched.present or ()):
            matches = islice(signature.pattern.matches(searched), MOST_MATCHES)
            findings = [_finding(signature, match, searched, evidence) for match in matches]
            if findings:
                yield max(findings, key=lambda finding: finding.rank)


def _finding(signature: Signature, match: Match, reading: Reading, evidence: Evidence) -> Finding:
    verdict = signature.verdict
    tier, place = _TIERS[signature.weight], _place(match, evidence)
    if verdict.category is Category.CANCELLED and _goes_on_to_fail(match, reading, evidence):
        tier = _HINT
    elif verdict.decision is DecisionKind.SKIP and signature.weight is Weight.DECISIVE:
        tier = _HANDLED
    elif tier == _DECISIVE:
        place = _ELSEWHERE  # decisive wherever it stands: the surer one wins
    elif place == _ELSEWHERE and _is_aside(match.line):
        tier = _HINT
    words = (word.format(**match.found.groupdict()) for word in verdict.change_words)
    return Finding(
        rule=signature.id,
        verdict=verdict,
        rank=(tier, place, verdict.confidence, match.line_number),
        changes=tuple(Change.from_word(word) for word in words),
        repeated_changes=signature.repeated_changes,
        may_pass=signature.may_pass,
    )


_SOURCE = re.compile(
    r"(?:-{1,4}> ?|\s{1,8})\d{1,6} |\s{2,}(?:return|raise|with|for|if|def|try|await"
    r"|(?!status|details?|debug|error|message|code|reason)\w[\w.]{0,60} ?=) ?\S"
)


def _is_aside(line: str) -> bool:
    """A record below ERROR, after which the job went on; what was suppressed; a line of code in a traceback."""
    return bool(LOW_LEVEL.search(line[:120]) or _SOURCE.match(line)) or line.lstrip().startswith("Suppressed:")


def _place(match: Match, evidence: Evidence) -> int:
    """Whether a match stands in the deepest cause, in an outer one, or elsewhere in the text."""
    deepest = evidence.deepest_cause
    if deepest and deepest in match.line:
        is_single = "\n" not in match.line
        if not is_single or match.found.end() > match.line.find(deepest):
            return _DEEPEST
    return _OUTER if any(cause in match.line for cause in evidence.causes) else _ELSEWHERE


_CANCEL_WORDS = re.compile(r"cancel|interrupt|abort|kill|stop|terminat", re.IGNORECASE)
_ECHO_OF_CANCEL = re.compile(
    r"cancell?ed|interrupted|shut ?down|\b(?:was|been|is|got) (?:stopped|terminated|deleted|killed|aborted)\b",
    re.IGNORECASE,
)
"""What the exceptions say that a stopped run leaves behind: they are no failure of their own."""


def _goes_on_to_fail(match: Match, reading: Reading, evidence: Evidence) -> bool:
    """Whether a failure of another kind follows the words about a cancelled run: then the job itself printed them.

    A platform's own record is believed wherever it stands.
    """
    if PLATFORM_RECORD.search(match.line):
        return False
    names = [name for name in evidence.exception_types if not _CANCEL_WORDS.search(name)]
    following = [line for line in reading.lines[match.line_number + 1 :] if any(name in line for name in names)]
    return any(not _ECHO_OF_CANCEL.search(line) for line in following)


def _without_denied(findings: list[Finding], status: Reading) -> list[Finding]:
    """The findings, without those at the top that others speak against.

    A cancelled state is an effect where the text names the limit that ended the run. And where it says that nobody
    has done the work again, what reads like it was about something else.
    """
    denied: set[Category] = set()
    if any(finding.verdict.category is Category.TIMEOUT and finding.rank[0] == _DECISIVE for finding in findings):
        denied.add(Category.CANCELLED)
    if findings[0].verdict.category is Category.SUPERSEDED and _circumstances(status, frozenset({Effect.NOT_DONE})):
        denied.add(Category.SUPERSEDED)
    return [finding for finding in findings if finding.verdict.category not in denied]


def _is_final_record(finding: Finding) -> bool:
    """Whether the run's own termination code says that it was dealt with, such as USER_CANCELED."""
    return finding.rule.startswith(_CODE_RULE) and finding.rank[0] == _HANDLED


def _of_termination(symptoms: Symptoms) -> Iterator[Finding]:
    tables = knowledge.codes()
    for code, table in (
        (symptoms.termination_code, tables.termination_codes),
        (symptoms.termination_type, tables.termination_types),
    ):
        verdict = table.get(code or "")
        if verdict is not None:
            is_final = verdict.decision is DecisionKind.SKIP and verdict.confidence >= 0.9
            tier = _HANDLED if is_final else _CODE
            yield Finding(f"{_CODE_RULE}{code}", verdict, (tier, _ELSEWHERE, verdict.confidence, 0), _changes(verdict))


_REASON_IN_TEXT = re.compile(
    r"\b([A-Z][A-Z0-9_]{6,70})\b ?\((?:CLIENT_ERROR|CLOUD_FAILURE|SERVICE_FAULT|SUCCESS)\)"
    r"|\b(?:[Rr]eason|reason_code|termination_reason|code)\b[\"']?[:= ]{1,3}[\"']?([A-Z][A-Z0-9_]{6,70})\b"
)


def _of_cluster_reason(symptoms: Symptoms, text: str) -> Iterator[Finding]:
    table = knowledge.codes().cluster_reasons
    named = [symptoms.cluster_reason_code or ""]
    named += [first or second for first, second in _REASON_IN_TEXT.findall(text)]
    for code in dict.fromkeys(named):
        verdict = table.get(code)
        if verdict is not None:
            rank = (_CAUSE if verdict.confidence > 0.5 else _CODE, _OUTER, verdict.confidence, 0)
            yield Finding(f"cluster.{code}", verdict, rank, _changes(verdict))


_CONDITION = re.compile(r"\b[A-Z][A-Z0-9]{2,40}(?:_[A-Z0-9]{1,40}){1,12}\b")


def _of_conditions(evidence: Evidence) -> Iterator[Finding]:
    table = knowledge.codes().conditions
    deepest = evidence.deepest_cause
    named = [name.partition(".")[0] for name in evidence.error_classes]
    named += _CONDITION.findall(evidence.text)
    for name in dict.fromkeys(named):
        verdict = table.get(name)
        if verdict is not None:
            place = _DEEPEST if name in deepest else _OUTER
            rank = (_CAUSE if verdict.confidence > 0.5 else _CODE, place, verdict.confidence, 0)
            yield Finding(f"condition.{name}", verdict, rank, _changes(verdict))


def _of_sqlstates(evidence: Evidence) -> Iterator[Finding]:
    tables = knowledge.codes()
    for state in evidence.sqlstates:
        verdict = tables.sqlstates.get(state) or tables.sqlstate_classes.get(state[:2])
        if verdict is not None:
            place = _DEEPEST if state in evidence.deepest_cause else _OUTER
            rank = (_SYMPTOM if verdict.confidence > 0.5 else _CODE, place, verdict.confidence, 0)
            yield Finding(f"sqlstate.{state}", verdict, rank, _changes(verdict))


_TYPE = re.compile(r"(?:[A-Za-z_][\w$]{0,60}\.){0,12}([A-Z]\w{2,90})(?=:|\s|$)")


def _of_exception(evidence: Evidence) -> Iterator[Finding]:
    """The type of the deepest cause whose type is known: an outer one wraps it."""
    table = knowledge.codes().exceptions
    for place, cause in zip((_DEEPEST, _OUTER, _OUTER, _OUTER), reversed(evidence.causes), strict=False):
        for name in _TYPE.findall(cause[:300]):
            if name in table:
                verdict = table[name]
                yield Finding(f"exception.{name}", verdict, (_SYMPTOM, place, verdict.confidence, 0), _changes(verdict))
                return


def _changes(verdict: Verdict) -> tuple[Change, ...]:
    return tuple(Change.from_word(word) for word in verdict.change_words)


_TASK_OF_EXECUTOR = re.compile(r"\(TID \d|\bexecutor\b|\bLost task\b|\bstage failure\b", re.IGNORECASE)
_SERVERLESS = re.compile(
    r"(?:^|[\s(\[,:=])serverless(?=$|[\s)\],;:.])(?! (?:sql )?warehouse)", re.IGNORECASE | re.MULTILINE
)
_DRIVER_FAILED = frozenset({"DRIVER_ERROR"})
_MEMORY_OF_NODES = frozenset({ChangeKind.DRIVER_MEMORY_UP, ChangeKind.WORKER_MEMORY_UP})


def _with_change_for_place(best: Finding, symptoms: Symptoms, text: str) -> Finding:
    """The finding with its first change moved to where the memory ran out.

    A Java heap is full on the driver when the platform says that the driver failed and no task of an executor is
    named; and serverless compute has no nodes to choose, but a larger memory for the process of the job.
    """
    if not best.changes:
        return best
    first, *others = best.changes
    kind = first.kind
    if (
        kind is ChangeKind.WORKER_MEMORY_UP
        and symptoms.termination_code in _DRIVER_FAILED
        and not _TASK_OF_EXECUTOR.search(text)
    ):
        kind = ChangeKind.DRIVER_MEMORY_UP
    if kind in _MEMORY_OF_NODES and _SERVERLESS.search(text):
        kind = ChangeKind.SERVERLESS_MEMORY_UP
    if kind is first.kind:
        return best
    return replace(best, changes=(Change(kind), *others))


# --- circumstances ---------------------------------------------------------------------------------------------------


def _circumstances(reading: Reading, effects: frozenset[Effect]) -> dict[Effect, str]:
    """What the status lines tell about how often and how long this has failed: effect and the rule that saw it."""
    told: dict[Effect, str] = {}
    for circumstance in knowledge.circumstances():
        effect = circumstance.effect
        if effect in effects and effect not in told and any(circumstance.pattern.matches(reading)):
            told[effect] = circumstance.id
    return told


def _effects_on(best: Finding) -> frozenset[Effect]:
    """Which circumstances could change what this finding means."""
    match best.verdict.decision:
        case DecisionKind.RETRY:
            return frozenset({Effect.SOMEBODY_INVOLVED, Effect.PERSISTENT})
        case DecisionKind.RETRY_WITH_PARAMS:
            return frozenset({Effect.SOMEBODY_INVOLVED, Effect.CHANGE_TRIED})
        case DecisionKind.ESCALATE_EMAIL if best.verdict.category is Category.NOT_FOUND:
            return frozenset({Effect.PERSISTENT, Effect.LATE_INPUT})
        case DecisionKind.ESCALATE_EMAIL if best.may_pass or _is_unsure(best.verdict):
            return frozenset({Effect.PERSISTENT, Effect.PASSING})
        case _:
            return frozenset()


def _is_unsure(verdict: Verdict) -> bool:
    return verdict.confidence < _UNSURE and verdict.category in _PASSES_WITH_TIME


_PASSES_WITH_TIME = frozenset({Category.PLATFORM, Category.REMOTE_SERVICE, Category.NETWORK})
_UNSURE = 0.6


def _under(best: Finding, told: dict[Effect, str]) -> tuple[Finding, str, tuple[str, ...]]:
    """The finding as the circumstances leave it, a sentence that says why, and the rules that changed it."""
    verdict = best.verdict
    if verdict.decision.is_retry and Effect.SOMEBODY_INVOLVED in told:
        rule = told[Effect.SOMEBODY_INVOLVED]
        return _decided(best, DecisionKind.ESCALATE_EMAIL), _SAID[Effect.SOMEBODY_INVOLVED], (rule,)
    if verdict.decision is DecisionKind.RETRY and Effect.PERSISTENT in told:
        rule = told[Effect.PERSISTENT]
        if best.repeated_changes:
            changes = tuple(Change.from_word(word) for word in best.repeated_changes)
            changed = replace(verdict, decision=DecisionKind.RETRY_WITH_PARAMS)
            return replace(best, verdict=changed, changes=changes), " It happens again and again.", (rule,)
        return _decided(best, DecisionKind.ESCALATE_EMAIL), _SAID[Effect.PERSISTENT], (rule,)
    if verdict.decision is DecisionKind.RETRY_WITH_PARAMS and Effect.CHANGE_TRIED in told:
        return _decided(best, DecisionKind.ESCALATE_EMAIL), _SAID[Effect.CHANGE_TRIED], (told[Effect.CHANGE_TRIED],)
    if verdict.decision is DecisionKind.ESCALATE_EMAIL and Effect.PERSISTENT not in told:
        for effect in (Effect.LATE_INPUT, Effect.PASSING):
            if effect in told:
                return _decided(best, DecisionKind.RETRY), _SAID[effect], (told[effect],)
    return best, "", ()


_SAID = {
    Effect.SOMEBODY_INVOLVED: " Somebody seems to be at work on it already, so it is not repeated automatically.",
    Effect.PERSISTENT: " It has failed this way before, so trying again would not help.",
    Effect.CHANGE_TRIED: " The change that would help has already been tried.",
    Effect.LATE_INPUT: " What it reads is only late, so a later attempt finds it.",
    Effect.PASSING: " The same work mostly succeeds, so another attempt is worth it.",
}


def _decided(best: Finding, decision: DecisionKind) -> Finding:
    return replace(best, verdict=replace(best.verdict, decision=decision), changes=())
