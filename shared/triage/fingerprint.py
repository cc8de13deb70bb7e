"""One short name for one cause, so that two occurrences of it can be recognised as the same.

What differs between occurrences (ids, dates, counts, addresses, line numbers, wrappers) is taken out of the line that
names the cause; what makes it another cause (table, column, module, secret scope, remote service, status code) stays.
"""

import hashlib
import re
from collections.abc import Iterable

from shared.domain import Evidence

_MATCHED_LENGTH = 2_000
"""Characters of a line that take part; causes differ long before."""

_CLASS = re.compile(r"(?:\[|ErrorClass=)([A-Z][A-Z0-9]{1,40}(?:_[A-Z0-9]{1,40}){1,10})(?:\.[A-Z0-9_]{2,90}){0,2}\]")
_WRAPPER_CLASSES = frozenset(
    {
        "STREAM_FAILED",
        "TASK_WRITE_FAILED",
        "FAILED_EXECUTE_UDF",
        "FAILED_READ_FILE",
        "UNCLASSIFIED_ERROR",
        "UNITY_CATALOG_INITIALIZATION_FAILED",
    }
)

_RECORD_PREFIX = re.compile(
    r"\s{0,8}\[?(?:\d{2,4}[-/]\d{2}[-/]\d{2}[T ])?\d{2}:\d{2}:\d{2}(?:[.,]\d{1,9})?(?:Z|[+\-]\d{2}:?\d{2})?\]?\s{1,4}"
    r"(?:\[?[\w.\-/]{1,60}\]?\s{1,4}){0,2}?(?:\[?(?:ERROR|WARN(?:ING)?|FATAL|INFO|CRITICAL)\]?:?\s{1,4})?"
    r"(?:[A-Z][\w$.]{1,80}: )?"
)
_WRAPPERS = (
    re.compile(r"^\s{0,8}(?:Caused by:?|Suppressed:|Error:|ERROR:|FATAL:|FAILED:|Details?:|E  ?|:|-) "),
    re.compile(r"^Run \d+(?: \([^)]{0,100}\))?(?: failed)?: "),
    re.compile(r'^Exception in thread "[^"]{1,100}" '),
    re.compile(r"^Job aborted due to stage failure: (?:.{0,300}?most recent failure: )?"),
    re.compile(r"^(?:Task \d+ in stage [\d.]+ failed \d+ times,? ?)?(?:most recent failure: )?Lost task .{0,300}?\): "),
    re.compile(r"^Lost task .{0,300}?\): "),
    re.compile(r"^(?:[\w$]{1,80}\.){0,12}[\w$]{0,80}(?:Exception|Error): "
               r"(?=(?:[\w$]{1,80}\.){0,12}[A-Z][\w$]{0,80}(?:Exception|Error)\b)"),
    re.compile(r"^(?:[\w$]{1,80}\.){0,12}(?:Spark|Py4JJava|Python|Execution|Runtime)(?:Exception|Error): "
               r"(?=Job aborted|\[[A-Z]|Task |Lost task|An error occurred|Traceback)"),
    re.compile(r"^(?:[\w$]{1,80}\.){0,12}[\w$]{0,80}(?:Exception|Error): (?=\[[A-Z][A-Z0-9_.]{4,160}\])"),
    re.compile(r"^(?:[\w$]{1,80}\.){0,12}(?:Workflow|NotebookExecution)Exception: "),
    re.compile(r"^An error occurred while calling \S{1,60} ?"),
)  # fmt: skip
_QUALIFIER = re.compile(
    r"\b(?:[a-z_][\w$]{0,60}\.){1,12}(?=[A-Z][\w$]{0,80}(?:Exception|Error|Interrupt|Exit|Failure|Fault)\b)"
)
_TAILS = re.compile(
    r"(?:[;.]? ?SQLSTATE: ?\w{5}|; line \d+,? pos(?:ition)? \d+|Did you mean[^\]\n]{0,1000}\]?\.?"
    r"|\(line \d+, pos(?:ition)? \d+\)"
    r"|\(\w{1,40}\.(?:py|scala|java|c|cc|cpp):\d+\)|ClientConnectionId:\S{1,60}"
    r"|Proxies: .{0,200}|Retry-After:? ?\d+)"
)
_ADVICE = re.compile(
    r"[.;]? (?:Verify|Please|Refer to|See|For more|You can|To tolerate|If you|Check|Ensure|Make sure|It is possible|"
    r"Conflicting commit)\b(?:.{0,400}?(?= [Ee]rror (?:code|message):? )|.*)"
)
_INLINE_CAUSE = re.compile(r"\(Caused by (\w{1,80}).{0,2000}")
_VARIABLE = re.compile(
    r"(?P<code>\b(?:AADSTS|ORA-|DPY-|KB|HY|TF|BUG)\d+"
    r"|(?:HTTP(?:/\d\.\d)?(?: Error| response code:?| status:?)?|[Ss]tatus ?[Cc]ode[=:]? ?|status[=:] ?|\bcode[=:]? ?"
    r"|[Ee]rror ?[Cc]?o?d?e?[=:]? "
    r"|\bErrno |exit(?:ed)?(?: with)?(?: exit)? (?:code|status) ?|->) ?\(?-?\d{1,6}\b|\b[45]\d\d (?=[A-Z][a-z]+))"
    r"|(?P<url>\b[a-z][a-z0-9+.\-]{1,20}://[^\s'\"<>|,;)\]}]{1,600})"
    r"|(?P<marker>\[redacted:[a-z\-]{1,30}\](?::\d+)?)"
    r"|(?P<id>\b\d{4}-\d{6}-[a-z0-9]{8}\b|part-\d{3,6}[\w.\-]{0,120}"
    r"|(?<![0-9a-fA-F])[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}(?![0-9a-fA-F])"
    r"|(?i:request|trace|activity|correlation|operation|query|session|statement|group)"
    r"[ _\-]?(?i:id)[\"']?\s?[:=]\s?[\"']?[\w.\-]{1,80}"
    r"|\b(?=[a-f\-]{0,40}\d)[0-9a-f]{2,40}(?:-[0-9a-f]{2,40}){1,8}\b|\b0x[0-9a-fA-F]{2,16}\b|@[0-9a-f]{5,16}\b|#\d+\w?"
    r"|\b(?=[a-f]{0,40}\d)[0-9a-f]{6,64}\b|\b\d[0-9]{0,8}[a-f][0-9a-f]{1,8}\b)"
    r"|(?P<number>(?<![A-Za-z_\d])-?\d+(?:[.,:/\-T]\d+)*(?:[eE][+\-]?\d+)?"
    r"(?: ?(?:[KMGT]i?B|bytes|ms|secs?|seconds|s|min|minutes|h|hours|%)\b)?)"
    r"|(?P<tail>(?<=[A-Za-z_])\d{3,})"
)
_URL = re.compile(r"([a-z][a-z0-9+.\-]{1,20})://(?:([^/@\s]{0,200})@)?([^/?#\s:]{0,200})(?::\d+)?([^?#\s]{0,600})")
_GENERATED_LABEL = re.compile(r"(?=[a-z\-]{0,60}\d)[0-9a-f]{6,}|\d+")
_PATH_NUMBERS = re.compile(
    r"[0-9a-fA-F]{8}-[0-9a-fA-F\-]{20,40}|part-\d+[\w.\-]{0,120}|(?<![A-Za-z])\d[\d\-_.:T]{0,30}"
    r"|(?<=[A-Za-z_])\d{3,}|[0-9a-f]{12,}"
)
_REPEATED = re.compile(r"#(?:[\s.,:/x*\-+]{0,4}#)+")
_REPEATED_QUOTES = re.compile(r"(['\"])\1+")
_SPACES = re.compile(r"\s+")

_HOST = re.compile(
    r"://(?:[^/@\s'\"]{0,200}@)?([A-Za-z][\w\-]{0,62}(?:\.[\w\-]{1,62}){1,8})|host='?([\w.\-]{3,120})'?|"
    r"(?<![\w.@])([A-Za-z][\w\-]{0,62}(?:\.[A-Za-z][\w\-]{1,62}){1,8}):\d{2,5}\b|"
    r"\b(?:host|server|endpoint|broker|redirected from)[ :=]{1,3}'?\"?([A-Za-z][\w\-]{0,62}(?:\.[\w\-]{1,62}){1,8})",
    re.IGNORECASE,
)
_OBJECT = re.compile(
    r"(?:\b(?:merge into|insert into|table|view|topic|dataset|volume|bucket)[ :=]{1,3}[`'\"]?"
    r"|\b(?:s3a?|gs|abfss?|wasbs?|dbfs):/{1,2})"
    r"([\w@.\-/`]{3,120})",
    re.IGNORECASE,
)
_COLUMN = re.compile(r"[ |]{0,60}-- (.{1,200}?)(?: \(nullable|$)")
"""A column in a schema as Spark prints it: `|-- name: type (nullable = true)`."""
_LINES_NEAR = 4
_IS_FRAME_OR_RECORD = re.compile(r"\s{1,8}at |\s{0,8}File |" + _RECORD_PREFIX.pattern)
_NAMED = re.compile(
    r"`[^`\n]{1,120}`(?:\.`[^`\n]{1,120}`){0,3}|'[A-Za-z_][\w.\-]{1,120}'|\b\w{1,60}\.\w{1,60}\.\w{1,60}\b"
)
_REMOTE = re.compile(
    r"connect|timed? ?out|refused|http|unavailable|reset|resol|unauthori[sz]ed|forbidden|ssl|certificate|request|"
    r"gateway|communications link|socket|throttl|too many|auth|log[io]n|smtp|ftp|denied",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z]{3,}")
_TYPE = re.compile(
    r"^(?:[\w$]{1,60}\.){0,12}[\w$]{0,90}(?:exception|error|interrupt|timeout|exit|failure)(?:: ?|$)", re.IGNORECASE
)
_FEW_WORDS = 6
_WORDS_THAT_NEED_NO_TYPE = 5
"""A message of so many words says the same whichever exception carries it."""


def fingerprint(evidence: Evidence, *, category: str = "") -> str:
    """16 hexadecimal digits that two occurrences of one cause share. `category` counts only where no cause is named."""
    cause = _telling_cause(evidence)
    parts = [normalise(cause)]
    if not _names_something(parts[0]):
        parts += _what_it_was_about(evidence, cause)
    if "schema" in parts[0]:
        parts += _columns_in_dispute(evidence.text)
    if not parts[0]:
        parts += [category, *evidence.error_classes, *evidence.sqlstates]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def normalise(line: str) -> str:
    """The line without what differs from one occurrence to the next; lower case, `#` for every number and id."""
    line = line[:_MATCHED_LENGTH].replace("[redacted:ip]", "0.0.0.0")  # noqa: S104 (a text, no binding)
    line = _QUALIFIER.sub("", _unwrapped(line))
    line = _INLINE_CAUSE.sub(r" by \1", line)
    line = _ADVICE.sub("", _TAILS.sub(" ", line))
    line = _REPEATED.sub("#", _VARIABLE.sub(_constant, line))
    line = _SPACES.sub(" ", _REPEATED_QUOTES.sub(r"\1", line)).strip(" .,:;-").lower()
    message = _TYPE.sub("", line, count=1)
    return message if len(_WORD.findall(message)) >= _WORDS_THAT_NEED_NO_TYPE else line


def _unwrapped(line: str) -> str:
    line = line[found.end() :] if (found := _RECORD_PREFIX.match(line)) else line
    for _ in range(8):
        before = line
        for wrapper in _WRAPPERS:
            line = wrapper.sub("", line, count=1)
        if line == before:
            break
    return line


def _constant(found: re.Match[str]) -> str:
    match found.lastgroup:
        case "code":
            return found.group()
        case "url":
            return _constant_url(found.group())
        case _:
            return "#"


def _constant_url(url: str) -> str:
    """Scheme, host and the fixed parts of the path; generated host labels and numbers are variable."""
    found = _URL.match(url)
    if not found:
        return "#"
    scheme, container, host, path = found.groups()
    container = f"{container}@" if container and scheme.startswith(("abfs", "wasb")) else ""
    return f"{scheme}://{container}{_constant_host(host)}{_PATH_NUMBERS.sub('#', path)}"


def _constant_host(host: str) -> str:
    return ".".join(_GENERATED_LABEL.sub("#", label) for label in host.lower().split("."))


def _telling_cause(evidence: Evidence) -> str:
    """The deepest cause with an error class of its own, else the deepest that says anything at all."""
    causes = [
        cause
        for cause, outer in zip(evidence.causes, ("", *evidence.causes), strict=False)
        if f"(Caused by {cause}" not in outer
    ]
    for cause in reversed(causes):
        if any(found.group(1) not in _WRAPPER_CLASSES for found in _CLASS.finditer(cause[:_MATCHED_LENGTH])):
            return cause
    for cause in reversed(causes):
        if _WORD.search(_TYPE.sub("", _unwrapped(cause[:_MATCHED_LENGTH]), count=1)):
            return cause
    return evidence.deepest_cause


def _names_something(cause: str) -> bool:
    return bool(_HOST.search(cause) or _NAMED.search(cause))


def _what_it_was_about(evidence: Evidence, cause: str) -> list[str]:
    """What makes two causes of the same general words differ: the remote service, the table or the path."""
    lines = [line for line in _lines_near(evidence.text.split("\n"), cause) if not _IS_FRAME_OR_RECORD.match(line)]
    about = [normalise(found.group(1)) for line in lines for found in _OBJECT.finditer(line[:_MATCHED_LENGTH])]
    if len(_WORD.findall(cause)) <= _FEW_WORDS and _REMOTE.search(cause):
        about += _hosts(evidence.causes) or _hosts(lines)
    return sorted(set(about))


def _columns_in_dispute(text: str) -> list[str]:
    """The columns that stand in one of the schemas told in the text and not in another."""
    schemas: list[set[str]] = []
    for line in text.split("\n"):
        column = _COLUMN.match(line)
        if column and schemas:
            schemas[-1].add(column.group(1))
        elif line.strip() == "root":
            schemas.append(set())
    return sorted(set[str]().union(*schemas) - set[str].intersection(*schemas)) if schemas else []


def _lines_near(lines: list[str], cause: str) -> list[str]:
    index = next((index for index, line in enumerate(lines) if cause in line), 0)
    return lines[max(0, index - _LINES_NEAR) : index + _LINES_NEAR + 1]


def _hosts(lines: Iterable[str]) -> list[str]:
    found = (match.groups() for line in lines for match in _HOST.finditer(line[:_MATCHED_LENGTH]))
    return sorted({_constant_host(next(filter(None, groups))) for groups in found})
