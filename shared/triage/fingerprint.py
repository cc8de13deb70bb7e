"""One short name for one cause, so that two occurrences of it can be recognised as the same.

Of the deepest line that tells anything the innermost message counts, without wrappers. What differs between
occurrences (ids, dates, counts, addresses of executors, line numbers) is taken out of it; what makes it another cause
(table, column, module, version, secret scope, principal, remote service, status code) stays. Where the message names
nothing, what stands near it says what it was about.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

from shared.domain import Evidence
from shared.triage.evidence import RECORD_PREFIX, is_own_frame, says_nothing

_MATCHED_LENGTH = 2_000
"""Characters of a line that take part; causes differ long before."""

_CLASS = re.compile(r"(?:\[|ErrorClass=)([A-Z][A-Z0-9]{1,40}(?:_[A-Z0-9]{1,40}){1,10})(?:\.[A-Z0-9_]{2,90}){0,2}\]")
_WRAPPER_CLASSES = frozenset(
    {
        "STREAM_FAILED",
        "TASK_WRITE_FAILED",
        "FAILED_EXECUTE_UDF",
        "FAILED_READ_FILE",
        "FAILED_JDBC",
        "FOREACH_BATCH_USER_FUNCTION_ERROR",
        "UNCLASSIFIED_ERROR",
        "UNITY_CATALOG_INITIALIZATION_FAILED",
    }
)

# --- the innermost message of a line ----------------------------------------------------------------------------------

_WRAPPERS = (
    re.compile(r"^\s{0,8}(?:Caused by:?|Suppressed:|(?:Fatal )?[Ee]rror:|ERROR:|FATAL:|FAILED:|Details?:|E  ?|:|-) "),
    re.compile(r"^Run \d+(?: \([^)]{0,100}\))?(?: failed)?: "),
    re.compile(r'^Exception in thread "[^"]{1,100}" '),
    re.compile(r"^Job aborted due to stage failure: (?:.{0,300}?most recent failure: )?"),
    re.compile(r"^(?:Task \d+ in stage [\d.]+ failed \d+ times,? ?)?(?:most recent failure: )?Lost task .{0,300}?\): "),
    re.compile(r"^Lost task .{0,300}?\): |^Lost executor \S{1,60} on \S{1,80}: "),
    re.compile(r"^(?:[\w$]{1,80}\.){0,12}[\w$]{0,80}(?:Exception|Error): "
               r"(?=(?:[\w$]{1,80}\.){0,12}[A-Z][\w$]{0,80}(?:Exception|Error)\b)"),
    re.compile(r"^(?:[\w$]{1,80}\.){0,12}(?:Spark|Py4JJava|Python|Execution|Runtime)(?:Exception|Error): "
               r"(?=Job aborted|\[[A-Z]|Task |Lost task|An error occurred|Traceback)"),
    re.compile(r"^(?:[\w$]{1,80}\.){0,12}[\w$]{0,80}(?:Exception|Error): (?=\[[A-Z][A-Z0-9_.]{4,160}\])"),
    re.compile(r"^(?:[\w$]{1,80}\.){0,12}(?:Workflow|NotebookExecution)Exception: "),
    re.compile(r"^(?:\S{1,12}\s{1,4})?(?:Database|Runtime|Compilation|Dependency) Error in \w{1,20} \S{1,120} "
               r"\([^)]{1,200}\)\s{0,8}(?:\d\d:\d\d:\d\d\s{1,8})?(?=\S)"),
    re.compile(r"^Query \S{1,60}: (?=\[[A-Z])|^\w{1,30} exited with code \d+: "
               r"|^Completed with \d+ errors?(?: and \d+ warnings?)?: "),
    re.compile(r"^(?:Task|Job|Run|Step|Activity) \S{1,100} failed(?: \(attempt \d+\))?(?: with (?:the )?error)?: "),
    re.compile(r"^Error (?:running|executing) (?:query|statement|command|notebook|task|job): "),
    re.compile(r"^An error occurred while calling \S{1,60} ?"),
)  # fmt: skip
_TYPE_NAME = r"(?:[a-z_][\w$]{0,60}\.){1,12}[A-Z][\w$]{0,80}(?:Exception|Error|Interrupt|Failure|Fault)"
_INNER = re.compile(
    rf"\b(?={_TYPE_NAME}: )|\b(?=(?:AADSTS|ORA-|DPY-|TNS-)\d{{4}})"
    r"|(?<=[.;,):] )ERROR: |(?<=exited with code \d )ERROR: |\bCause(?:d by)?: "
    r"|\b[Ee]rror [Mm]essage: |\bdatabricks_error_message: ?|\bterminated with exception: |\b[Rr]eason: "
    r"|\bin unexpected state \w{1,40}: "
)
"""Where an inner message begins in a line that tells one inside another."""
_MOST_INNER = 4
"""Beginnings that are tried, from the last."""
_PROVIDER_CODE = re.compile(r"\b(?:azure|aws|gcp)(?:_api)?_error_code: ?([\w.]{3,80})")
_PROVIDER_MESSAGE = re.compile(
    r"\b(?:azure|aws|gcp)(?:_api)?_error_message: ?(.{1,600}?)(?:\.(?=\s|$)|, ?[a-z]{2,20}_[a-z_]{2,40}:|$)"
)
_IN_JSON = re.compile(
    r"([\"'])\w{0,40}(?:[mM]essage|[dD]escription|[dD]etails?|msg|error|exception|reason|cause|trace|title)\1\s?:\s?"
    r"([\"'])((?:(?!\2)[^\\]|\\.){3,2000})(?:\2|$)"
)
_CODE_IN_JSON = re.compile(
    r"[\"'](?:error_?[cC]ode|code|status(?:_?[cC]ode)?)[\"']\s?:\s?[\"']?([A-Za-z_]{3,60}|[1-5]\d\d)\b"
)

# --- what differs between occurrences, and what does not -------------------------------------------------------------

_QUALIFIER = re.compile(
    r"\b(?:[a-z_][\w$]{0,60}\.){1,12}"
    r"(?=[A-Z][\w$]{0,80}(?:Exception|Error|Interrupt|Exit|Failure|Fault)\b|[A-Z][A-Za-z]{2,80}: )"
)
_TAILS = re.compile(
    r"(?:[;.]? ?SQLSTATE: ?\w{5}|; line \d+,? pos(?:ition)? \d+|Did you mean[^\]\n]{0,1000}\]?\.?"
    r"|\(line \d+, pos(?:ition)? \d+\)|\(from versions: [^)]{0,1900}\)"
    rf"|\({_TYPE_NAME}\)|\((?:CLOUD_FAILURE|CLIENT_ERROR|SERVICE_FAULT|SUCCESS)\)"
    r"|\(\w{1,40}\.(?:py|scala|java|c|cc|cpp):\d+\)|ClientConnectionId:\S{1,60}"
    r"|Proxies: .{0,200}|Retry-After:? ?\d+)"
)
_ADVICE = re.compile(
    r"[.;]? (?:Verify|Please|Refer to|See|For more|You can|To tolerate|If you|Check|Ensure|Make sure|It is possible|"
    r"Conflicting commit|Correct the value|Use `|If necessary)\b(?:.{0,400}?(?= [Ee]rror (?:code|message):? )|.*)"
)
_CAUSE_IN_BRACKETS = re.compile(
    r"\(Caused by (\w{1,80})(?:.{0,400}?\b(certificate verify failed: [\w ]{1,80}))?.{0,2000}"
)
_GUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_CODES = (
    r"\b(?:AADSTS|KB|HY|TF|BUG|[A-Z]{2,6}-)\d{3,8}\b|\bSQL\d{4,5}[NWC]\b|\bSQLCODE[:= ]{1,2}-?\d{1,5}"
    r"|(?:HTTP(?:/\d\.\d)?(?: Error| response code:?| status:?)?|[Ss]tatus ?[Cc]ode[\"']?[=:]? ?"
    r"|status(?:[=:] ?| (?=\d{3}\b))|\bcode[=:]? ?|[Ee]rror ?[Cc]?o?d?e?[=:]? "
    r"|\bErrno |exit(?:ed)?(?: with)?(?: exit)? (?:code|status)(?: is)?:? ?|->) ?\(?(?:-?\d{1,6}|0x[0-9a-fA-F]{1,8})\b"
    r"|\b[45]\d\d (?=[A-Z][a-z]+)"
    r"|'[0-9][0-9A-Z]{4}'|\[[0-9A-Z]{5}\](?= ?\[)|\((?=\d{1,4}[A-Z])[0-9][0-9A-Z]{4}\)"
)
"""Numbers of errors, of vendors and of protocols, and SQLSTATEs."""
_VERSIONS = (
    r"[=<>~!]=\s?\d[\w.\-]{0,30}|\b[a-z][\w.\-]{0,80}:[A-Za-z][\w.\-]{0,80}:\d{1,6}\.\d[\w.\-]{0,30}\b"
    r"|\b\w[\w.]{0,60}-\d{1,6}(?:\.\d{1,6}){1,4}[\w.+\-]{0,60}\.(?:whl|jar|egg|zip|tar\.gz)\b"
    r"|/[\w.\-]{1,80}:\d{1,6}(?:\.\d{1,6}){1,3}[\w.\-]{0,30}\b"
    r"|\b(?i:version|python|java|runtime|scala)[ :=]{1,2}['\"]?\d{1,3}(?:\.\d{1,4}){1,3}\b"
    r"|(?<![\d.])\d{1,3}\.\d{1,3}\.(?:\d{1,3}|x-[\w.\-]{1,30})(?![\d.]{0,2}\d)"
    r"|\b[a-z]\w{1,6}\.\d{0,2}(?:xlarge|large|medium|metal)\b"
    r"|\b(?i:branch|tag|ref|reference|revision|subnet|vnet|vault|bucket|queue|topic|policy|role) "
    r"['\"]?[\w.\-]{1,80}(?:/[\w.\-]{1,80}){0,6}"
)
"""Versions asked for: of packages, files, images, runtimes; sizes of machines; names that end in numbers."""
_PRINCIPAL = rf"(?i:\b(?:principal|app|application(?: with identifier)?|client|user)(?: id)?[ '\":=]{{1,4}}){_GUID}"
_TIME = (
    r"\b\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}[\d:.,]{0,16}(?:Z\b|[+\-]\d{2}:?\d{2}\b)?"
    r"|\b(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6},? )?(?:\d{1,2}[ \-])?"
    r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}[ \-]\d{1,4}(?:[ ,:]{1,2}\d{1,4}){0,5}\b"
)
_LABEL = (
    r"(?<![A-Za-z0-9_])(?=[A-Za-z\-_]{0,80}\d)(?=[\d\-_]{0,80}[A-Za-z])"
    r"[A-Za-z0-9_]{1,80}(?:-{1,2}[A-Za-z0-9_]{1,80}){0,20}"
)
"""A name of letters and digits."""
_VARIABLE = re.compile(
    rf"(?P<kept>{_CODES}|{_VERSIONS}|{_PRINCIPAL})"
    r"|(?P<url>\b[a-z][a-z0-9+.\-]{1,20}://[^\s'\"<>|,;)\]}]{1,600})"
    r"|(?P<path>(?:\bdbfs:|(?<![\w.:/@]))/(?:[\w.\-=@+%]{1,120}/){1,20}[\w.\-=@+%*]{0,120})"
    r"|(?P<id>\[redacted:[a-z\-]{1,30}\](?::\d+)?|\b\d{4}-\d{6}-[a-z0-9]{8}\b|part-\d{3,6}[\w.\-]{0,120}"
    r"|(?i:(?:x-ms-)?(?:client-)?(?:req(?:uest)?|trace|tracking|span|activity|correlation|operation|query|session"
    r"|statement|group|instance)[ _\-]?id)[\"']?\s?[:=]\s?[\"']?[\w.\-+/=]{1,120}"
    r"|\b0x[0-9a-fA-F]{1,16}\b|@[0-9a-f]{5,16}\b|#\d+\w?)"
    r"|(?P<name>(?<![\w.\-/@$])[A-Za-z][\w\-]{0,62}(?:\.[\w\-]{1,62}){0,6}\.[A-Za-z]{2,24}(?![\w.\-(]))"
    rf"|(?P<time>{_TIME})"
    r"|(?P<number>(?<![A-Za-z_\d])-?\d+(?:[.,:/\-T]\d+)*(?:Z\b|[eE][+\-]?\d+)?"
    r"(?: ?(?:[KMGT]i?B|bytes|ms|secs?|seconds|s|min|minutes|h|hours|%)\b)?(?![A-Za-z\d_\-]))"
    rf"|(?P<token>{_LABEL})"
    r"|(?P<rest>(?<![A-Za-z_\d])-?\d+|(?<=[A-Za-z_])\d{3,})"
)
_IN_PATH = re.compile(
    rf"(?P<id>{_GUID}|part-\d+[\w.\-]{{0,120}}|(?<=/)tmp[\w\-]{{6,12}}(?=/|$)|(?<=/)[0-9a-f]{{2}}(?=/))"
    r"|(?P<number>(?<![A-Za-z\d])\d{4}[\-_/]?\d{2}[\d\-_.:T/]{0,30}Z?(?![A-Za-z\d])|(?<![A-Za-z\d])\d+(?![A-Za-z\d\-_]))"
    rf"|(?P<token>{_LABEL})"
    r"|(?P<rest>(?<![A-Za-z])\d[\d\-_.:T]{0,30}|(?<=[A-Za-z_])\d{3,})"
)
_NUMBER_IN_TOKEN = re.compile(r"(?<![A-Za-z_\d])-?\d+|(?<=[A-Za-z_])\d{3,}")
_HEX = re.compile(r"[0-9a-fA-F]{2,}")
_HEX_WITH_DASHES = re.compile(r"(?=[a-f\-]{0,40}\d)[0-9a-f]{2,40}(?:-[0-9a-f]{2,40}){1,8}")
_LETTERS_OR_DIGITS = re.compile(r"\d+|[A-Za-z]+")
_URL = re.compile(r"([a-z][a-z0-9+.\-]{1,20})://(?:([^/@\s]{0,200})@)?([^/?#\s:]{0,200})(?::\d+)?([^?#\s]{0,600})")
_GENERATED = re.compile(
    r"(?<![a-z\d])(?=[a-z]{0,60}\d)[0-9a-f]{6,}(?![a-z\d])|^\d+$|\d{3,}|\d{1,3}(?:-\d{1,3}){3}"
    r"|(?<![a-z])(?:broker|kafka|node|worker|executor|replica|shard|b)-?\d{1,4}"
)
"""What is generated or interchangeable in a label of a host's name; `sql-erp-02` is one server and not another."""
_FILE_ENDINGS = frozenset((
    "csv", "json", "jsonl", "parquet", "avro", "orc", "txt", "gz", "xml", "xlsx", "zip", "log", "snappy", "crc",
    "bz2", "zst", "dat", "tmp", "py", "sql", "scala", "java", "kt", "sh",
))  # fmt: skip
_REPEATED = re.compile(r"#(?:[\s.,:/x*\-+]{0,4}#)+")
_REPEATED_QUOTES = re.compile(r"(['\"])\1+")
_SPACES = re.compile(r"\s+")
_END_OF_QUOTATION = re.compile(r"\"[}\]]{1,4}$")
"""Where a line was taken out of a record in JSON."""
_BRACKETED = re.compile(r" ?[\[(][^\[\]()]{1,120}[\])]")
_CLAUSE_END = re.compile(r"(?<=[.;,]) |(?<=,)(?=#)")
_INCIDENTAL = frozenset((
    "id", "ids", "reqid", "requestid", "traceid", "request", "trace", "span", "correlation", "activity",
    "operation", "query", "session", "statement", "group", "cluster", "run", "job", "task", "stage", "executor",
    "attempt", "attempts", "retry", "retries", "try", "tries", "of", "in", "at", "after", "for", "on", "by", "the",
    "and", "min", "minutes", "s", "sec", "secs", "seconds", "ms", "h", "hours", "time", "times", "timestamp",
    "date", "pid", "tid", "thread", "partition", "batch", "instance", "node", "worker", "driver", "elapsed", "took",
    "duration", "uptime", "char", "pos", "position", "line", "column", "row", "offset", "extended", "additional",
    "used", "total",
))  # fmt: skip
"""Words of a clause that tells only when, where and how often: "(retry 3)", "Cluster 0811-…, run 77"."""
_TYPE = re.compile(
    r"^(?:(?:[\w$]{1,60}\.){0,12}[\w$]{0,90}(?i:exception|error|interrupt|timeout|exit|failure)"
    r"|[A-Z]{3,40}(?:_[A-Z]{1,40}){1,10}|FATAL|(?:[A-Z][a-z]{1,40}){2,6})(?:: ?|$)"
)
_WORD = re.compile(r"[A-Za-z]{3,}")
_WORDS_THAT_NEED_NO_TYPE = 4
"""A message of so many words says the same whichever exception carries it."""

# --- what it was about -----------------------------------------------------------------------------------------------

_HOST = re.compile(
    r"://(?:[^/@\s'\"]{0,200}@)?([A-Za-z][\w\-]{0,62}(?:\.[\w\-]{1,62}){1,8})|host='?([\w.\-]{3,120})'?|"
    r"(?<![\w.@])([A-Za-z][\w\-]{0,62}(?:\.[A-Za-z][\w\-]{1,62}){1,8}):\d{2,5}\b|"
    r"\b(?:host|server|endpoint|broker|redirected from)[ :=]{1,3}(?:tcp:)?'?\"?"
    r"([A-Za-z][\w\-]{0,62}(?:\.[\w\-]{1,62}){1,8})",
    re.IGNORECASE,
)
_OBJECT = re.compile(
    r"\b(?:table|view|topic|dataset|volume|bucket|container|queue|index|collection|flow|model|endpoint|notebook"
    r"|notebook path)(?:_name)?['\"]?[ :=]{1,3}[`'\"]([^`'\"\n]{1,120}(?:`\.`[^`\n]{1,120}){0,3})[`'\"]"
    r"|\b(?:merge into|insert into|table|view|topic|dataset|volume|bucket|flow|notebook(?: path)?)"
    r"(?:\s?[:=]\s?|\s(?=[\w\-]{0,60}[._/]\w))([\w@.\-/]{3,120})"
    r"|\b(lib[\w\-]{2,60}\.so)\b"
    r"|\b((?:s3a?|gs|abfss?|wasbs?|dbfs):/{1,2}[\w@.\-/=]{3,200})",
    re.IGNORECASE,
)
_STATEMENT = re.compile(
    r"\b(?:MERGE INTO|INSERT (?:INTO|OVERWRITE)|DELETE FROM|COPY INTO|UPDATE \S{1,120} SET)\s.{3,800}", re.IGNORECASE
)
_END_OF_JSON = re.compile(r'"[,}\]]')
_COLUMN = re.compile(r"[ |]{0,60}-- (.{1,200}?)(?: \(nullable|$)")
"""A column in a schema as Spark prints it: `|-- name: type (nullable = true)`."""
_LINES_NEAR = 4
_BEGINNING = 12
"""Characters of a line that is taken for the beginning of a cause."""
_IS_FRAME_OR_RECORD = re.compile(r"\s{1,8}at |\s{0,8}File |" + RECORD_PREFIX.pattern)
_QUOTED = re.compile(
    r"`[^`\n]{1,120}`(?:\.`[^`\n]{1,120}`){0,3}|(['\"])(?!(?:NoneType|int|str|float|list|dict|bool|bytes|tuple|set|object"
    r"|ascii|charmap|utf-?[\d#]*|\d[\dA-Z]{4}|[#\d.,\-]+)\1)[^'\"\s]{1,120}\1",
    re.IGNORECASE,
)
"""A name in quotes; types, encodings, numbers and SQLSTATEs name nothing of the user's."""
_MODEL = re.compile(r"\b(?:Database|Runtime|Compilation) Error in \w{1,20} (\w{1,120})")
"""The model of dbt whose query fails; a table or a function is the same whichever model asks for it."""
_OPERATION = re.compile(r"\b[A-Za-z]{3,40}(?= on [a-z0-9]{2,8}://)")
_NAMED = re.compile(
    r"\b[A-Za-z_]\w{0,60}\.\w{1,60}\.\w{1,60}\b"
    r"|\b(?:scope|key|name|user|role|principal|database|schema|secret)[:=] ?[\w\-]{2,80}|\w==\d"
)
_REMOTE = re.compile(
    r"connect|timed? ?out|refused|http|unavailable|reset|resol|unauthori[sz]ed|forbidden|ssl|certificate|request|"
    r"gateway|tcp|communications link|socket|throttl|too many|auth|log[io]n|smtp|ftp|denied|"
    r"pkix|tls|handshake|proxy|dns|lookup|unreachable|network|credential|expired|deadline|rpc",
    re.IGNORECASE,
)
_FEW_WORDS = 10
_NOT_OF_A_SERVICE = ("docs.", "adb-", "spark.apache.", "aka.ms", "go.microsoft.", "github.")
"""How hosts begin that stand in advice and in links to a run."""
_ERROR_OF_CODE = re.compile(
    r"\b(?:\w{0,40}Decode|Assertion|Value|Type|Index|Key|Attribute|Name|UnboundLocal|ZeroDivision|Recursion|Match"
    r"|StopIteration|NullPointer|IndexOutOfBounds|IllegalArgument|IllegalState|NoSuchElement|ClassCast|NumberFormat"
    r"|Arithmetic|\w{0,40}Pars(?:e|er|ing))(?:Error|Exception)\b"
)
_FUNCTION = re.compile(
    r"\s{0,8}(?:File )?[\"<]?([^\"<>\n]{1,300}?)[\">]?(?::\d+|, line \d+|>)?,? in ([\w<>]{1,80})"
    r"|\s{1,8}at ([\w.$]{1,200})\("
)
_TASK = re.compile(r"\b[Tt]ask (\S{1,100}) failed")


def fingerprint(evidence: Evidence, *, category: str = "") -> str:
    """16 hexadecimal digits that two occurrences of one cause share. `category` counts only where no cause is named."""
    parts = _essence(evidence)
    if not any(parts):
        parts += [category, *evidence.error_classes, *evidence.sqlstates]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def _essence(evidence: Evidence) -> list[str]:
    """The message that tells the cause, and what it was about."""
    cause = _telling_cause(evidence)
    if says_nothing(cause) and (tasks := _TASK.findall(evidence.text)):
        return [normalise(tasks[-1])]
    message = normalise(cause)
    parts = [message]
    if not _names_something(message):
        parts += _what_it_was_about(evidence, cause, message)
    if "schema" in message:
        parts += _columns_in_dispute(evidence.text)
    if (model := _MODEL.search(cause)) and not ("`.`" in message or _NAMED.search(message)):
        parts.append(model.group(1).lower())
    return parts


def normalise(line: str) -> str:
    """The line without what differs from one occurrence to the next; lower case, `#` for every number and id."""
    line = line[:_MATCHED_LENGTH].replace("[redacted:ip]", "0.0.0.0")  # noqa: S104 (a text, no binding)
    line = _CAUSE_IN_BRACKETS.sub(r" by \1 \2", _TAILS.sub(" ", _innermost(line)[0]))
    line = _ADVICE.sub("", _QUALIFIER.sub("", line))
    line = _without_type(line)
    line = _REPEATED.sub("#", _VARIABLE.sub(_constant, line))
    line = _SPACES.sub(" ", _REPEATED_QUOTES.sub(r"\1", line)).lower()
    return _without_incidentals(_END_OF_QUOTATION.sub("", line) if "{" not in line else line).strip(" .,:;-")


def _without_type(line: str) -> str:
    """The message without the types in front of it, unless it is so short that they tell more than it does."""
    message = _TYPE.sub("", _TYPE.sub("", line, count=1), count=1)
    return message if len(_WORD.findall(message)) >= _WORDS_THAT_NEED_NO_TYPE else line


@lru_cache(maxsize=64)
def _innermost(line: str) -> tuple[str, str]:
    """The innermost message that a line tells, and the outer message that it stands in, if any."""
    line = line[found.end() :] if (found := RECORD_PREFIX.match(line)) else line
    outer = ""
    for _ in range(8):
        before = line
        for wrapper in _WRAPPERS:
            line = wrapper.sub("", line, count=1)
        line, around = _message_in_json(line)
        message = _message_of_provider(line)
        line = _after_last_beginning(message)
        outer += around + message[: len(message) - len(line)]
        if line == before:
            break
    return line, outer


def _after_last_beginning(line: str) -> str:
    for found in reversed(list(_INNER.finditer(line))[-_MOST_INNER:]):
        if _tells(line[found.end() :]):
            return line[found.end() :]
    return line


def _message_of_provider(line: str) -> str:
    """What the cloud said when it gave no machine: its code and the first sentence of its message."""
    code, message = _PROVIDER_CODE.search(line), _PROVIDER_MESSAGE.search(line)
    return f"{code.group(1)}: {message.group(1)}" if code and message else line


def _message_in_json(line: str) -> tuple[str, str]:
    """In a line of JSON the message with an error class, else the longest, after its code; and what stands before."""
    before, brace, _ = line.partition("{")
    messages = [_first_line(_unescaped(found.group(3))) for found in _IN_JSON.finditer(line)] if brace else []
    messages = [message for message in messages if _tells(message)]
    if not messages:
        return line, ""
    with_class = [message for message in messages if _CLASS.search(message)]
    if with_class:
        return with_class[0], before
    message, code = max(messages, key=len), _CODE_IN_JSON.search(line)
    return (f"{code.group(1)}: {message}" if code else message), before


def _unescaped(value: str) -> str:
    try:
        return str(json.loads(f'"{value}"'))
    except ValueError:
        return value.replace('\\"', '"').replace("\\n", "\n")


def _first_line(text: str) -> str:
    """The first line, with the next where it only announces one."""
    first, _, rest = text.strip().partition("\n")
    return f"{first} {rest.strip().partition('\n')[0]}" if first.endswith(":") else first


def _tells(text: str) -> bool:
    return bool(_WORD.search(_TYPE.sub("", text.strip(), count=1))) and not says_nothing(text)


def _without_incidentals(line: str) -> str:
    line = _BRACKETED.sub(lambda found: "" if _is_incidental(found.group()) else found.group(), line)
    clauses = _CLAUSE_END.split(line)
    return " ".join([clause for clause in clauses if not _is_incidental(clause)] or clauses)


def _is_incidental(clause: str) -> bool:
    return "#" in clause and all(word in _INCIDENTAL for word in re.findall(r"[a-z_]+", clause))


def _constant(found: re.Match[str]) -> str:
    match found.lastgroup:
        case "kept":
            return found.group()
        case "url":
            return _constant_url(found.group())
        case "path":
            return _constant_path(found.group())
        case "name":
            return _constant_name(found.group())
        case "token":
            return _constant_token(found.group())
        case _:
            return "#"


def _constant_token(token: str) -> str:
    """A name; from its first generated piece on (`etl-worker-7f9c4d8b-x2k4q`) nothing with a digit in it stays."""
    if _HEX_WITH_DASHES.fullmatch(token):
        return "#"
    pieces = re.split(r"(--|[-_])", token)
    first = next((index for index, piece in enumerate(pieces) if piece == "--" or _is_generated(piece)), None)
    if first is None:
        return _NUMBER_IN_TOKEN.sub("#", token)
    named = re.sub(r"\d{2,}", "#", "".join(pieces[:first]))
    return named + "".join(
        "#" if re.search(r"\d", piece) or _HEX.fullmatch(piece) else piece for piece in pieces[first:]
    )


def _is_generated(piece: str) -> bool:
    """Whether a run of letters and digits has the shape of an id: hexadecimal, many digits, or mixed through."""
    digits = sum(character.isdigit() for character in piece)
    is_hexadecimal = len(piece) >= 6 and digits >= (1 if len(piece) >= 8 else 2) and bool(_HEX.fullmatch(piece))
    return is_hexadecimal or digits >= 6 or len(_LETTERS_OR_DIGITS.findall(piece)) > 4


def _constant_url(url: str) -> str:
    """Scheme, host and the fixed parts of the path; generated host labels and numbers are variable."""
    found = _URL.match(url)
    if not found:
        return "#"
    scheme, container, host, path = found.groups()
    is_container = scheme.startswith(("abfs", "wasb")) or ".dfs." in host or ".blob." in host
    container = f"{container}@" if container and is_container else ""
    return f"{scheme}://{container}{_constant_host(host)}{_constant_path(path)}"


def _constant_path(path: str) -> str:
    return path if path.endswith((".whl", ".jar", ".egg", ".tar.gz")) else _IN_PATH.sub(_constant, path)


def _constant_name(name: str) -> str:
    """A dotted name: a file's numbers are variable, a host's only where they are generated."""
    return _constant_path(name) if _is_file(name) else _constant_host(name)


def _is_file(name: str) -> bool:
    return name.rpartition(".")[2].lower() in _FILE_ENDINGS


def _constant_host(host: str) -> str:
    return ".".join(_GENERATED.sub("#", label) for label in host.lower().split("."))


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
        if _tells(_innermost(cause[:_MATCHED_LENGTH])[0]):
            return cause
    return evidence.deepest_cause


def _names_something(message: str) -> bool:
    return any(name.search(message) for name in (_QUOTED, _HOST, _NAMED))


def _what_it_was_about(evidence: Evidence, cause: str, message: str) -> list[str]:
    """What makes two causes of the same general words differ: the remote service, the table, the path, the function."""
    lines = evidence.text.split("\n")
    index = _line_of(cause, lines)
    near = lines[max(0, index - _LINES_NEAR) : index + _LINES_NEAR + 1]
    near = [line[:_MATCHED_LENGTH] for line in near if not _IS_FRAME_OR_RECORD.match(line)]
    about = [normalise(next(filter(None, found.groups()))) for line in near for found in _OBJECT.finditer(line)]
    about += [normalise(found.group()) for line in near for found in _STATEMENT.finditer(line)]
    about += [normalise(_END_OF_JSON.split(line)[0]) for title, line in pairwise(near) if title.startswith("== SQL")]
    outer = _innermost(cause[:_MATCHED_LENGTH])[1]
    for name in (_QUOTED, _OPERATION):
        about += [normalise(found.group().strip("'\"`")) for found in name.finditer(outer)]
    about += _hosts([outer])
    if len(_WORD.findall(message)) <= _FEW_WORDS and _REMOTE.search(message):
        about += _hosts(evidence.causes) or _hosts(near)
    if error := _ERROR_OF_CODE.search(cause):
        about += _function(lines, index, is_java=error.group().endswith(("Exception", "MatchError")))
    return sorted(set(about))


def _line_of(cause: str, lines: list[str]) -> int:
    """Where a cause stands, which may have been told on two lines."""
    whole = (index for index, line in enumerate(lines) if cause in line)
    begun = (index for index, line in enumerate(lines) if len(line) >= _BEGINNING and cause.startswith(line.strip()))
    return next(whole, next(begun, 0))


def _function(lines: list[str], index: int, *, is_java: bool) -> list[str]:
    """The user's function that an error of code comes from: told after it in Java, mostly before in Python."""
    frames = lines[index + 1 :] if is_java else [*reversed(lines[:index]), *lines[index + 1 :]]
    frame = next((line for line in frames if is_own_frame(line) and line.lstrip().startswith("at ") == is_java), "")
    found = _FUNCTION.match(frame)
    return [normalise(name) for name in found.groups() if name] if found else []


def _columns_in_dispute(text: str) -> list[str]:
    """The columns that stand in one of the schemas told in the text and not in another; of a single schema, all."""
    schemas: list[set[str]] = []
    for line in text.split("\n"):
        column = _COLUMN.match(line)
        if column and schemas:
            schemas[-1].add(column.group(1))
        elif line.strip() == "root":
            schemas.append(set())
    if len(schemas) < 2:
        return sorted(set[str]().union(*schemas))
    return sorted(set[str]().union(*schemas) - set[str].intersection(*schemas))


def _hosts(lines: Iterable[str]) -> list[str]:
    found = (match.groups() for line in lines for match in _HOST.finditer(line[:_MATCHED_LENGTH]))
    hosts = {_constant_host(next(filter(None, groups))) for groups in found}
    return sorted(host for host in hosts if not (host.startswith(_NOT_OF_A_SERVICE) or _is_file(host)))
