"""What of an untrusted text may speak for a failure, and in which lines somebody may say what was done about it.

An error carries what others wrote into it: values of data, names of files, payloads, orders to whoever reads it. None
of that says why the run failed. And what a person, a scheduler or the platform did counts only where it reads like a
status: not in the job's own records, not inside quotes, not in code.
"""

import re
from collections.abc import Iterator

from shared.domain import Symptoms

STATUS_LIMIT = 64 * 1024
"""Characters of an error in which states are looked for, half of them from its end."""

LONGEST_SENTENCE = 800
"""Characters of a sentence that are looked at."""

SHORT_NAME = 14
"""Characters of a quoted name, quotes included, that may be a state or a button ("Repair run")."""

LOW_LEVEL = re.compile(r"(?:^|[\s\[|])(?:WARN(?:ING)?|INFO|DEBUG)(?=[\s\]|:,]|$)")
"""A log record below ERROR: the job went on after it."""

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

_IN_EVERY_ORDER = (
    *("system", "im_start", "im_end", "instruction", "assistant", "developer"),
    *("ignore", "disregard", "forget", "override", "you are"),
    *("automation", "agent", "triage", "bot", "llm", "responder", "classifier", " ai", "ai "),
    *("retry", "escalate", "skip", "repair", "rerun", "re-run", "restart with"),
    *("this as", "it as", "run as", "failure as", "error as", "job as"),
    *("do not ", "don't ", "never ", "no need to"),
)
"""One of these is in all that `_INSTRUCTION` matches: most texts need no closer look."""


def _has_order(text: str) -> bool:
    """Whether the text addresses whoever reads it."""
    lowered = text.lower()
    return any(word in lowered for word in _IN_EVERY_ORDER) and _INSTRUCTION.search(text) is not None


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
    r"|\b(?:old|earlier|previous|past|unrelated|closed) (?:incident|ticket|post-?mortem|outage)\b",
    re.IGNORECASE,
)
"""A line about a failure of the past. It may still tell what somebody did about this one."""
_ABOUT_NOTHING = re.compile(
    r"\b(?:copied|left over|taken|pasted) from (?:the |an? |its )?(?:\w+ )?(?:template|example|runbook|wiki|manual)\b",
    re.IGNORECASE,
)


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
    if not _has_order(text):
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


PLATFORM_RECORD = re.compile(
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


def status_text(symptoms: Symptoms) -> str:
    """What the platform or a scheduler said: no records of the job itself, no quoted data, no planted words."""
    error = symptoms.error
    if len(error) > STATUS_LIMIT:
        error = f"{error[: STATUS_LIMIT // 2]}\n{error[-STATUS_LIMIT // 2 :]}"
    text = f"{symptoms.state_message}\n{error}"
    if '="' in text or ': "' in text:
        text = _VALUE_OF_LINES.sub(r'\1…"', text)
    if _NOT_PARSED.search(text):
        text = _PAYLOAD.sub(r"\1{…}", text)
    lines = [line for line in text.split("\n") if not _ABOUT_NOTHING.search(line)]
    if _has_order(text):
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


def sentences_of(status: str) -> str:
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
    if not (has_quotes or has_level) or PLATFORM_RECORD.search(_QUOTED_WORDS.sub(" ", head)):
        return line
    if has_level and LOW_LEVEL.search(head):
        return ""
    return _QUOTED.sub(_unquoted, line)


def _unquoted(found: re.Match[str]) -> str:
    """A state or a short name stays; a quoted sentence may be anybody's."""
    return found.group() if found.group(1) or len(found.group(2)) <= SHORT_NAME else " "
