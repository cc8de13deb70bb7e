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

DEFAULT_RULE = "default.escalate"

STATUS_LIMIT = 64 * 1024
"""Characters of an error in which states are looked for, half of them from its end."""

LONGEST_SENTENCE = 2_000
"""Characters of a sentence that are looked at."""

SHORT_NAME = 14
"""Characters of a quoted name, quotes included, that may be a state or a button ("Repair run")."""

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
    causes = tuple(without_planted_words(cause) for cause in evidence.causes)
    evidence = replace(evidence, text=text, causes=causes)
    status = _status_text(symptoms)
    texts = {
        Where.ANY: text,
        Where.CAUSE: "\n".join(causes),
        Where.STATUS: status,
        Where.SENTENCE: _sentences(status),
    }
    readings = {where: Reading(read, knowledge.vocabulary(where)) for where, read in texts.items()}
    findings = sorted(_findings(symptoms, evidence, readings), key=lambda finding: finding.rank, reverse=True)
    findings = _without_denied(findings, readings[Where.STATUS])
    best = _with_change_for_place(findings[0], symptoms, text)
    decided, sentence, deciding = _under(best, _circumstances(readings[Where.STATUS], _effects_on(best)))
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
    elif place == _ELSEWHERE and _LOW_LEVEL.search(match.line[:120]):
        tier = _HINT  # a log record below ERROR: the job went on after it
    words = (word.format(**match.found.groupdict()) for word in verdict.change_words)
    return Finding(
        rule=signature.id,
        verdict=verdict,
        rank=(tier, place, verdict.confidence, match.line_number),
        changes=tuple(Change.from_word(word) for word in words),
        repeated_changes=signature.repeated_changes,
        may_pass=signature.may_pass,
    )


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
    if _PLATFORM_RECORD.search(match.line):
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


_LOW_LEVEL = re.compile(r"^\s*Suppressed:|(?:^|[\s\[|])(?:WARN(?:ING)?|INFO|DEBUG)(?=[\s\]|:,]|$)")


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
            yield Finding(f"code.{code}", verdict, (tier, _ELSEWHERE, verdict.confidence, 0), _changes(verdict))


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


# --- untrusted text --------------------------------------------------------------------------------------------------

_INSTRUCTION = re.compile(
    r"<\|?/?(?:system|im_start|im_end|instructions?)\|?>"
    r"|\b(?:(?:ignore|disregard|forget|override) (?:all |any |the |your )?(?:\w+ )?"
    r"(?:previous|prior|above|earlier|instructions|rules)\b"
    r"|(?<!the )(?:SYSTEM|ASSISTANT|DEVELOPER)(?: prompt| message| override| note)?: "
    r"|you are (?:now )?(?:the|an?) [\w -]{0,40}\b(?:agent|assistant|model|bot|triage|classifier)\b"
    r"|(?:note|message|notice|hint|instructions?|attention|info)\b[ :]{1,2}(?:to|for) (?:the |any |all )?(?:\w+ )?"
    r"(?:automation|automations|agents?|ai|assistants?|triage|bots?|llm|responder|classifier|robots?)\b"
    r"|(?:automation|triage|agent|bot|assistant|llm)s?\b[:,] ?"
    r"(?:please|set|do|must|should|choose|answer|retry|skip|escalate|mark)\b"
    r"|(?:decision|verdict|recommend(?:ed|ation)|classification|label|action|category|answer|diagnosis)\b"
    r"[\"']? ?(?:[:=]|must be|should be|is) ?[\"']?(?:RETRY|RETRY_WITH_PARAMS|ESCALATE(?:_EMAIL)?|SKIP)\b"
    r"|(?:mark|treat|classify|label|report|record|answer) (?:this|it|the (?:run|failure|error|job)) as\b"
    r"|(?:reply|answer|respond|return|output|choose|say|decide|write|pick)\b(?: only| just)?(?: with| as| for)?"
    r"[: ]{1,2}[\"'`]?"
    r"(?-i:RETRY|RETRY_WITH_PARAMS|ESCALATE(?:_EMAIL)?|SKIP)\b"
    r"|(?<!will )(?<!then )(?:always|just|simply|kindly|automatically) (?:retry|repair|skip|escalate|rerun|re-run)\b"
    r"|(?:do not|don't|never|no need to) (?:repair|escalate|page|alert|skip|e-?mail|notify|wake)\b"
    r"|(?:rerun|retry|repair|restart) with (?:[\w:.]+_up|availability_on_demand|more_|other_|spark_conf|param)\w*"
    r"|(?:automation|ai|triage|bot|agent)s? (?:notice|note|message|hint|instructions?|agents?|override)\b"
    r")",
    re.IGNORECASE,
)

_DATA_VALUE = re.compile(
    r"(\b(?:comments?|notes?|remarks?|desc|title|subject|text|payload|value|raw|rows?|record|header|feedback|review|memo"
    r"|content|cell|column|field|input|data|label|name|free_?text|print|echo)\b(?: [\w.-]{1,40})?[\"']?"
    r"(?: was| is| ?[:=]|,|\()? ?)"
    r"(?:\"[^\"\n]{4,2000}\"|'[^'\n]{4,2000}')",
    re.IGNORECASE,
)

_NAME_OF_FILE = re.compile(
    r"(?P<quote>[\"'])(?:\w{2,8}:)?/(?!(?:usr/|opt/)?s?bin/|databricks/|local_disk0/)"
    r"[^\"'\n ]{0,400} [^\"'\n]{1,400}(?P=quote)"
)
"""A quoted path with spaces in it: whoever named the file wrote it. Paths of programs begin a command instead."""

_VALUE_OF_LINES = re.compile(r"([=:] ?\")[^\"\n]{0,400}\n(?:[^\"\n]{0,2000}\n){0,8}?[^\"\n]{0,400}\"(?=[\s,;.)}\]]|$)")
"""A quoted value that goes over several lines, such as a name with a line break smuggled in."""

_NAME_OF_WORDS = re.compile(r"`[^`\n ]{1,100} [^`\n]{1,200}`")
"""A name of several words in backticks, such as a column's: whoever named it wrote it."""

_NOT_PARSED = re.compile(r"\b(?:KeyError|JSONDecodeError|JsonParseException|UnicodeDecodeError|ValidationError)\b")
_PAYLOAD = re.compile(r"(\b\w{1,40}(?:\[[^\]\n]{0,20}\])? ?[=:] ?)\{[^\n]{4,4000}")
"""A document that was not understood, as a program shows it: what it says is data."""

_TABLE_ROW = re.compile(r"^[ \t]{0,8}\|.{0,4000}\|[ \t]{0,8}$", re.MULTILINE)
"""A row of a printed table, as `show` of a DataFrame prints it: data."""

_ABOUT_DATA = re.compile(
    r"^.{0,200}\b(?:KeyError|ValueError|AssertionError|NumberFormatException|DateTimeParseException|CAST_INVALID_INPUT"
    r"|InvalidOperation|JSONDecodeError|UnicodeDecodeError): .*$",
    re.MULTILINE,
)


_ANOTHER_TIME = re.compile(
    r"\b(?:fine|ok|okay|stable|quiet|no (?:problems?|issues?|failures?)|never again) since\b"
    r"|\b(?:old|earlier|previous|past|unrelated|closed) (?:incident|ticket|post-?mortem|outage)\b"
    r"|\b(?:copied|left over|taken|pasted) from (?:the |an? |its )?(?:\w+ )?(?:template|example|runbook|wiki|manual)\b",
    re.IGNORECASE,
)
"""A line about a failure of the past, or about none."""


def without_planted_words(text: str) -> str:
    """The text without what its author could not mean as an error: quoted values of data fields, rows of printed
    tables, lines about failures of the past, and everything that addresses whoever reads it (the quoted string it
    stands in, or the rest of its line). An error never tells its reader what to decide.
    """
    if '"' in text or "'" in text:
        text = _VALUE_OF_LINES.sub(r'\1…"', text)
        text = _NAME_OF_FILE.sub("…", text)
        text = _DATA_VALUE.sub(r"\1…", text)
        text = _ABOUT_DATA.sub(lambda found: _QUOTED.sub("…", found.group()), text)
    if "`" in text:
        text = _NAME_OF_WORDS.sub("`…`", text)
    if "{" in text and _NOT_PARSED.search(text):
        text = _PAYLOAD.sub(r"\1{…}", text)
    if "|" in text:
        text = _TABLE_ROW.sub("…", text)
    if _ANOTHER_TIME.search(text):
        text = "\n".join(line for line in text.split("\n") if not _ANOTHER_TIME.search(line))
    if not _INSTRUCTION.search(text):
        return text
    return "\n".join(_without_instruction(line) for line in text.split("\n"))


def _without_instruction(line: str) -> str:
    found = _INSTRUCTION.search(line)
    if found is None:
        return line
    start = max(line.rfind(quote, 0, found.start()) for quote in "\"'`(")
    quote = line[start : start + 1].replace("(", ")")
    end = line.find(quote, found.end()) if start >= 0 else -1
    if end >= 0:
        return line[: start + 1] + _without_instruction(line[end:])
    return line[: found.start()]


_PLATFORM_RECORD = re.compile(
    r"\b(?:update_progress|flow_progress|user_action|create_update|pipeline_progress|maintenance_progress|taskinstance"
    r"|local_task_job\w*|update \S+ (?:is |was )?cancell?ed|run ?group|pipeline ?run|activity ?run|run history"
    r"|repair history|(?:status|state|result_state)\W{1,3}(?-i:SKIPPED|CANCELL?ED|EXCLUDED|DISABLED)"
    r"|airflow|scheduler|dagster|prefect|orchestrator|controller|data ?factory|adf|databricks"
    r"|job[_ ]?run|jobs?|audit)\b",
    re.IGNORECASE,
)
_STATUS_KEY = (
    r"\"(?:state_message|message|result_state|life_cycle_state|state|status|reason|error|error_message|details|code"
    r"|cause|termination_code|status_message|statusMessage|errorMessage|description)\" ?: ?"
)
_QUOTED_WORDS = re.compile(r"\"[^\"\n ]{0,160} [^\"\n]{0,160}\"")
_QUOTED_INSTRUCTION = re.compile(rf"\"[^\"\n]{{0,400}}?(?:{_INSTRUCTION.pattern})[^\"\n]{{0,2000}}\"", re.IGNORECASE)
_QUOTED = re.compile(rf"({_STATUS_KEY})?(\"[^\"\n]{{0,2000}}\"|(?<![\w])'[^'\n]{{0,2000}}'(?!\w))")


def _status_text(symptoms: Symptoms) -> str:
    """What the platform or a scheduler said: no records of the job itself, no quoted data, no planted words."""
    error = symptoms.error
    if len(error) > STATUS_LIMIT:
        error = f"{error[: STATUS_LIMIT // 2]}\n{error[-STATUS_LIMIT // 2 :]}"
    text = f"{symptoms.state_message}\n{error}"
    if '="' in text or ': "' in text:
        text = _VALUE_OF_LINES.sub(r'\1…"', text)
    if _NOT_PARSED.search(text):
        text = _PAYLOAD.sub(r"\1{…}", text)
    lines = [line for line in text.split("\n") if not _ANOTHER_TIME.search(line)]
    if _INSTRUCTION.search(text):
        lines = [_QUOTED_INSTRUCTION.sub("", line) for line in lines]
        lines = [line for line in lines if not _INSTRUCTION.search(line)]
    comments = frozenset() if "-- " not in text else frozenset(_sql_comments(lines))
    said = (line for line in lines if not line.startswith(_OWN_WORDS) and line not in comments)
    return "\n".join(_status_part(line) for line in said)


_SQL = re.compile(
    r"\s{0,40}(?:select|insert|merge|from|where|with|update|delete|create|join|left|group|order|union|set|and)\b", re.I
)


_DESCRIBES = re.compile(r"-- (?:description|comment|purpose|title|author|usage|about|doc)\b", re.IGNORECASE)


def _sql_comments(lines: list[str]) -> Iterator[str]:
    """Lines `-- …` that describe a query or stand beside its lines; elsewhere people begin their notes like that."""
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        if line.startswith("-- ") and (_SQL.match(before) or _SQL.match(after) or _DESCRIBES.match(line)):
            yield line


_OF_CODE = re.compile(
    r"\b(?:AssertionError|KeyError|IndexError|TypeError|AttributeError|NameError|JSONDecodeError|NumberFormatException"
    r"|ZeroDivisionError|UnicodeDecodeError)\b: ?"
)
"""Exceptions of the language itself: what follows are values of the program, never what somebody did to the run."""


_SENTENCE_END = re.compile(r"(?<=[\w)\]\"'][.;!?]) +(?=\S)")


def _sentences(status: str) -> str:
    """The sentences of the status lines, each a line of its own; what nobody would say in one breath is cut."""
    return "\n".join(sentence[:LONGEST_SENTENCE] for sentence in _SENTENCE_END.sub("\n", status).split("\n"))


_OWN_WORDS = ("\tat ", "    at ", '  File "', "print", "stdout", "echo ", ">>> ", "|")
"""How lines begin that a stack trace or the job itself wrote."""


def _status_part(line: str) -> str:
    if "Error" in line or "Exception" in line:
        of_code = _OF_CODE.search(line)
        line = line[: of_code.end()] if of_code else line
    head = line[:160]
    has_quotes = '"' in line or "'" in line
    has_level = "INFO" in head or "WARN" in head or "DEBUG" in head
    if not (has_quotes or has_level) or _PLATFORM_RECORD.search(_QUOTED_WORDS.sub(" ", head)):
        return line
    if has_level and _LOW_LEVEL.search(head):
        return ""
    return _QUOTED.sub(_unquoted, line)


def _unquoted(found: re.Match[str]) -> str:
    """A state or a short name stays; a quoted sentence may be anybody's."""
    return found.group() if found.group(1) or len(found.group(2)) <= SHORT_NAME else " "
