"""From the texts of a failed task to the few lines that say why it failed.

A driver log is mostly chatter: progress bars, INFO records, framework stack frames, the same warning a thousand times.
What is left after those are dropped is ranked, redacted, and cut at line ends only. Every step looks at a line once,
so the cost is linear in the size of the log; no expression has an unbounded quantifier next to another.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise

from shared.domain import Evidence, Symptoms
from shared.triage.redaction import redact

TEXT_LIMIT = 64 * 1024
"""Bytes (UTF-8) of `Evidence.text`."""

EXCERPT_LIMIT = 8_000
"""Bytes (UTF-8) of `Evidence.excerpt`: at four characters a token 2,000 of the 8,000 tokens that a prompt may hold."""

LONGEST_LINE = 4_000
"""Characters; a longer line is redacted, then broken at separators into pieces of at most this size."""

LONGEST_UNBROKEN_LINE = 128 * 1024
"""Characters of one line that are looked at, half of them from its end: redacting more would take too long."""

MOST_CAUSES = 50

_ANSI = re.compile(r"\x1b(?:\[[0-?]{0,30}[ -/]{0,5}[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = bytes((*range(9), 11, 12, *range(14, 32), 127))
_DIGITS = b"0123456789"

_CHATTER_LEVELS = frozenset({"INFO", "DEBUG", "TRACE", "NOTICE", "info", "debug"})
_ALARM_LEVELS = frozenset({"ERROR", "FATAL", "CRITICAL", "SEVERE"})
_LEVEL_PARTS = ("INFO", "DEBUG", "TRACE", "NOTICE", "ERROR", "FATAL", "CRITICAL", "SEVERE", "info", "debug")
_LEVEL = re.compile(rf"(?:^|[\s\[|:=\"'])({'|'.join(_LEVEL_PARTS)})(?=[\s\]|:,\"']|$)")
_RECORD_START = re.compile(r"\[?(?:\d{2,4}[-/]\d{2}[-/]\d{2}|\d{2}:\d{2}:\d{2})")


def _encoded(*words: str) -> frozenset[bytes]:
    """Words to be looked for in lower-case UTF-8."""
    return frozenset(word.lower().encode() for word in words)


_PROGRESS = _encoded(
    "it/s]", "%|", "━━", "[Stage ", "eta 0:", "Using cached ", "Downloading ", "Collecting ",
    "Requirement already satisfied", "B/s]",
)  # fmt: skip
_KNOWN_NOISE = _encoded(
    "ProcfsMetricsGetter", "spark.akka.frameSize", "DynamicSparkConfContextImpl", "has been deprecated",
    "deprecationwarning", "futurewarning", "NativeCodeLoader", "SLF4J:", "log4j:", "listeners did not shut down",
    "GarbageCollectionMetrics", "illegal reflective access", "illegal-access",
    "To adjust logging level use", "Setting default log level", "Using Spark's default log4j",
)  # fmt: skip

_TELLING_COMPONENTS = (
    "BroadcastExchangeExec",
    "ShuffleExchangeExec",
    "hive.metastore",
    "HiveClientImpl",
    "Dataset.collect",
    "collectToPython",
    "OptimizeExecutor",
    "VacuumCommand",
    "MergeIntoCommand",
)  # "Futures timed out" means one thing in a broadcast and another in a metastore call

_FRAMEWORK_PACKAGES = (
    "java.", "javax.", "jdk.", "sun.", "com.sun.", "scala.", "org.apache.", "com.databricks.", "io.delta.", "py4j.",
    "io.netty.", "shaded.", "com.microsoft.", "com.azure.", "com.amazonaws.", "software.amazon.", "com.google.",
    "org.eclipse.", "com.fasterxml.", "net.snowflake.", "com.mysql.", "org.postgresql.", "oracle.", "com.memsql.",
    "net.razorvine.", "net.jpountz.", "io.grpc.", "akka.", "com.esotericsoftware.", "io.unitycatalog.", "okhttp3.",
    "reactor.", "com.mongodb.", "org.mlflow.", "grpc_shaded.", "com.zaxxer.", "org.rocksdb.", "kafkashaded.",
    "spark_", "java.base/", "app//", "com.ibm.", "com.simba.", "org.mariadb.", "com.teradata.", "org.xerial.",
)  # fmt: skip
_FRAMEWORK_PATHS = (
    "/usr/lib/python", "/usr/local/lib/python", "site-packages/", "dist-packages/", "/databricks/spark/",
    "/databricks/python", "<frozen ", "/python_shell/", "/opt/conda/", "py4j-0.",
)  # fmt: skip
_PYTHON_FRAME = re.compile(r'\s{0,8}(?:File "([^"]{1,400})", line \d+|File (<command-[^>]{1,40}>)|File (/\S{1,400}))')
_COMMAND_FRAME = re.compile(r"\s{0,4}(?:File )?<(?:command|ipython-input)-[^>]{1,60}>")
_NUMBERED_CODE = re.compile(r"(?:-{1,4}> ?|\s{1,8})\d{1,6}(?: |$)")
_MARKERS = re.compile(r"[\s~^|.\-=_*#+]{1,400}$")
_REST_OF_TOKEN = re.compile(r"\s{0,16}(?!\w{2,40}=\S)(?=\D{0,400}\d)[A-Za-z0-9+/=_\-%~]{12,400}\s{0,4}$")
_ESCAPED_BREAK = re.compile(r"\\{1,4}r?\\{0,4}n(?=\\{1,4}t|\s|[A-Z=:\"'\[{(<.\-\\]|[a-z]{2,40}[.:])")
_BREAKABLE = re.compile(r"[;,}\]] ?|\. |\s")

# What says that something went wrong, or what somebody did about it. Lower case, found anywhere in a line.
_ALARMS = _encoded(
    "caused by", "exception", "error", "fatal", "traceback", "memory", "oom", "exit code", "exit status", "exited",
    "killed", "sigkill", "sigterm", "signal", "cannot", "could not", "couldn't", "can't", "unable to", "denied",
    "not found", "does not", "doesn't", "no such", "invalid", "fail", "refused", "timed out", "timeout", "time out",
    "unavailable", "quota", "limit", "exceed", "throttl", "too many", "sqlstate", "permission", "forbidden",
    "unauthorized", "no space", "lost", "unresolved", "mismatch", "conflict", "abort", "terminat", "evict", "preempt",
    "unreachable", "disassociat", "deadlock", "full gc", "gc overhead", "exhaust", "expired", "unknown host",
    "resolve", "reset by peer", "corrupt", "missing", "not authorized", "not supported", "must be", "unexpected",
    "retry-after", "decommission", "no route", "unhealthy", "crash", "stopped", "violat", "duplicate", "malformed",
    "threshold", "status code", "statuscode", "statusdescription", "not allowed", "not enough", "insufficient",
    "no module", "no matching", "hung", "stuck", "unresponsive", "not responding",
)  # fmt: skip
_DOINGS = _encoded(
    "cancel", "supersed", "repair", "newer", "skip", "disabled", "paused", "already", "by user", "by the owner",
    "rerun", "re-run", "maintenance", "approved", "run history", "audit", "parent run", "still running", "took over",
    "succeeded", "success since", "last success", "next run", "concurrent run", "in progress", "inprogress",
    "scheduled retry", "will retry", "will be retried", "manually", "stopped by", "killed by", "on purpose",
    "change freeze", "backfill", "replaced by", "resolved by", "fixed by", "restarted by", "handled by", "attempt ",
    "[context]", "[metrics]", "[history]", "metrics:", "of the last", "last runs", "same error", "in a row",
)  # fmt: skip
_RESCUING = _encoded(
    "cancel", "supersed", "repair", "newer", "exception", "exit code", "killed", "oom", "evict", "preempt",
    "decommission", "by user", "by the owner", "still running", "replaced by", "fatal", "no space", "took over",
    "unreachable", "lost", "rerun", "re-run", "refused", "denied", "stopped by", "killed by", "manually", "fail",
    "error", "terminat", "timed out", "quota", "throttl", "skip", "maintenance", "parent run", "concurrent run",
)  # fmt: skip
_TELLING = _ALARMS | _DOINGS | _PROGRESS | _KNOWN_NOISE
_NO_WORDS: set[bytes] = set()

_SHORTEST_WRAP = 40
"""Characters: nobody wraps lines to less."""
_MOST_WRAPPED = 8
"""Lines of one wrapped line that are kept together."""
_BEGINS_ANEW = re.compile(
    r"\[?\d{2,4}[-/]\d\d[-/]\d\d[T ]\d|\[?\d\d:\d\d:\d\d[ ,.]|\s{0,8}(?:at |File \"|\.{3} \d)"
    r"|Caused by: |Traceback |\[Stage |[\w ]{1,40}: {1,3}\d{1,3}%\||\s{0,8}(?:━|Using cached |Downloading |Collecting )"
)

# Ranks of lines, from what is dropped to what is kept first.
_NOISE, _WEAK, _RECORD, _PLAIN, _FRAME, _ALARM, _CAUSE = 0, 1, 2, 3, 3, 6, 9
_MOST_OWN_FRAMES = 5


def collect(symptoms: Symptoms) -> Evidence:
    """The evidence in `symptoms`: noise gone, causes found, bounded and redacted.

    Never raises, whatever the texts hold. Nothing of the texts that is not in the result may leave the process.
    Secrets are replaced before any line is cut, and with the lines around that may hold their other half.
    """
    lines = _lines_of(symptoms)
    kept = _most_informative(lines, _ranks(lines, dropping_repeats=True), TEXT_LIMIT)
    kept = _with_other_halves(lines, kept)
    redacted = redact("\n".join(lines[index] for index in kept)).split("\n")
    ranks = _ranks(redacted)
    within = _most_informative(redacted, ranks, TEXT_LIMIT)
    text_lines, ranks = [redacted[index] for index in within], [ranks[index] for index in within]
    return Evidence(
        text="\n".join(text_lines),
        excerpt=_excerpt(text_lines, ranks),
        causes=_causes(text_lines, ranks),
        error_classes=_error_classes(text_lines),
        sqlstates=_sqlstates(text_lines),
        exception_types=_exception_types(text_lines),
        user_frame=_user_frame(text_lines),
    )


# --- lines -----------------------------------------------------------------------------------------------------------


def _lines_of(symptoms: Symptoms) -> list[str]:
    """All lines of all texts, the short errors first, colours, escapes and over-long lines undone."""
    texts = [symptoms.error, symptoms.state_message, symptoms.error_trace, _cluster_reason(symptoms)]
    texts += [*symptoms.cluster_events, symptoms.logs]
    lines: list[str] = []
    for text in texts:
        if text:
            lines.extend(_split(text))
    return lines


def _cluster_reason(symptoms: Symptoms) -> str:
    if not symptoms.cluster_reason_code and not symptoms.cluster_reason_parameters:
        return ""
    parameters = ", ".join(f"{name}:{value}" for name, value in symptoms.cluster_reason_parameters.items())
    return (
        f"Cluster termination reason: {symptoms.cluster_reason_code or 'unknown'} "
        f"({symptoms.cluster_reason_type or 'unknown'}). Parameters: {parameters}"
    )


def _split(text: str) -> list[str]:
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    raw = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace")
    text = raw.translate(None, _CONTROL).decode("utf-8")
    result: list[str] = []
    for line in text.split("\n"):
        if len(line) <= LONGEST_LINE and "\\n" not in line:
            result.append(line)
        else:
            result.extend(piece for part in _unescaped(line) for piece in _pieces(part))
    return result


def _unescaped(line: str) -> list[str]:
    r"""A stack trace inside a JSON string has its line breaks as `\n`: give them back. A lone `\n` may be a path."""
    if line.count("\\n") < 2:
        return [line]
    return [part.replace("\\t", "\t").replace('\\"', '"') for part in _ESCAPED_BREAK.split(line)]


def _pieces(line: str) -> Iterator[str]:
    """The line, or pieces of it of at most LONGEST_LINE characters, broken between tokens, redacted before."""
    if len(line) <= LONGEST_LINE:
        yield line
        return
    if len(line) > LONGEST_UNBROKEN_LINE:
        half = LONGEST_UNBROKEN_LINE // 2
        yield from _pieces_of_redacted(_to_last_break(line[:half]))
        yield from _pieces_of_redacted(_from_first_break(line[-half:]))
    else:
        yield from _pieces_of_redacted(line)


def _to_last_break(text: str) -> str:
    """Without the token at the end, which the cut may have halved: half a secret is not recognised."""
    return text[: max(text.rfind(" "), text.rfind(","), text.rfind(";"), 0)]


def _from_first_break(text: str) -> str:
    found = _BREAKABLE.search(text)
    return text[found.end() :] if found else ""


def _pieces_of_redacted(line: str) -> Iterator[str]:
    line = redact(line)
    start = 0
    while len(line) - start > LONGEST_LINE:
        window = line[start : start + LONGEST_LINE]
        ends = [found.end() for found in _BREAKABLE.finditer(window, LONGEST_LINE // 2)]
        if not ends:  # one token of thousands of characters: a blob, and no place to cut it safely
            found = _BREAKABLE.search(line, start + LONGEST_LINE)
            start = found.end() if found else len(line)
            continue
        yield line[start : start + ends[-1]]
        start += ends[-1]
    yield line[start:]


# --- ranking ---------------------------------------------------------------------------------------------------------


def _ranks(lines: list[str], *, dropping_repeats: bool = False) -> list[int]:
    """How informative each line is, 0 for noise.

    With `dropping_repeats`, of lines that differ in digits only the first two and the last count.
    """
    repeated = _repeated(lines) if dropping_repeats else frozenset()
    frames = _FrameState()
    ranks: list[int | None] = []
    chatter: list[int] = []
    telling: list[int] = []
    for index, line in enumerate(lines):
        rank = frames.rank(line) if line else _NOISE
        if index in repeated:
            rank = _NOISE
        elif rank is None:
            level = _level(line)
            if level in _ALARM_LEVELS:
                rank = _ALARM + 1
            else:
                (chatter if level in _CHATTER_LEVELS else telling).append(index)
        ranks.append(rank)
    rescued = _words_in(lines, chatter, _RESCUING)
    for index in chatter:
        ranks[index] = _RECORD if index in rescued else _NOISE
    words = _words_in(lines, telling, _TELLING)
    for index in telling:
        if index and _REST_OF_TOKEN.match(lines[index]):
            ranks[index] = ranks[index - 1]
        else:
            ranks[index] = _rank(lines[index], words.get(index, _NO_WORDS))
    result = [rank or _NOISE for rank in ranks]
    return result if any(result) else _last_words(lines)


def _level(line: str) -> str:
    """The level of a log record, empty if the line has none in its first 96 characters."""
    head = line[:96]
    if " INFO " in head and "ERROR" not in head:
        return "INFO"
    if " ERROR " in head and "INFO" not in head:
        return "ERROR"
    found = _LEVEL.search(head) if any(part in head for part in _LEVEL_PARTS) else None
    return found.group(1) if found else ""


def _last_words(lines: list[str]) -> list[int]:
    """Nothing but noise: the last twenty lines are better than none."""
    wanted = {index for index, line in enumerate(lines) if line and not line.isspace()}
    last = set(sorted(wanted)[-20:])
    return [_WEAK if index in last else _NOISE for index in range(len(lines))]


def _repeated(lines: list[str]) -> frozenset[int]:
    shapes = "\n".join(lines).encode("utf-8", "replace").translate(None, _DIGITS).split(b"\n")
    last = {shape: index for index, shape in enumerate(shapes)}
    counts: dict[bytes, int] = {}
    repeated: set[int] = set()
    for index, shape in enumerate(shapes):
        count = counts[shape] = counts.get(shape, 0) + 1
        if count > 2 and last[shape] != index:
            repeated.add(index)
    return frozenset(repeated)


def _words_in(lines: list[str], indexes: list[int], words: Iterable[bytes]) -> dict[int, set[bytes]]:
    """Which of the words stand in which of the lines, whatever their case: one fast scan of the text for each word."""
    text = "\n".join([lines[index] for index in indexes]).encode("utf-8", "replace").lower()
    ends = list(accumulate(len(line) + 1 for line in text.split(b"\n")))
    found: dict[int, set[bytes]] = {}
    for word in words:
        position = text.find(word)
        while position >= 0:
            line = bisect_right(ends, position)
            found.setdefault(indexes[line], set()).add(word)
            position = text.find(word, ends[line])
    return found


def _rank(line: str, words: set[bytes]) -> int:
    head = line[:96]
    if "Caused by" in head or head.startswith(": "):
        return _CAUSE
    if words & _KNOWN_NOISE or (words and words <= _PROGRESS) or _MARKERS.match(line):
        return _NOISE
    telling = min(len(words - _PROGRESS), 2)
    if telling:
        return _ALARM - (2 if "WARN" in head else 0) + telling
    return _WEAK if _RECORD_START.match(head) else _PLAIN


class _FrameState:
    """Follows stack traces line by line: framework frames and their code lines are noise, a user's own are not."""

    def __init__(self) -> None:
        self._in_framework = False
        self._in_frames = False
        self._java_frames = 0
        self._told: set[str] = set()

    def _rank_of_telling(self, frame: str) -> int:
        """A framework frame is noise, but for the first one of a component that tells what was being done."""
        component = next((name for name in _TELLING_COMPONENTS if name in frame), None)
        if component is None or component in self._told:
            return _NOISE
        self._told.add(component)
        return _WEAK

    def rank(self, line: str) -> int | None:
        """Rank of a line of a stack trace; None for any other line."""
        stripped = line.lstrip()
        if stripped.startswith("at ") and stripped != line:
            self._java_frames += 1
            is_framework = stripped.startswith(_FRAMEWORK_PACKAGES, 3)
            if is_framework:
                if self._java_frames == 1:
                    return _WEAK
                return self._rank_of_telling(stripped)
            return _FRAME if self._java_frames <= _MOST_OWN_FRAMES else _WEAK
        if stripped.startswith("... ") and stripped.endswith((" more", "omitted")):
            return _NOISE
        self._java_frames = 0
        if stripped.startswith(("File ", "<command-", "<ipython-")):
            self._in_frames = True
            self._in_framework = any(path in line for path in _FRAMEWORK_PATHS)
            return _NOISE if self._in_framework else _FRAME
        if self._in_frames:
            if line.startswith("    ") or _NUMBERED_CODE.match(line):
                return _NOISE if self._in_framework or _MARKERS.match(line) else _FRAME
            self._in_frames = False
        return None


def _most_informative(lines: list[str], ranks: list[int], limit: int) -> list[int]:
    """Indexes of whole lines of at most `limit` bytes together: higher ranks first, later lines before earlier ones."""
    order = sorted((index for index, rank in enumerate(ranks) if rank), key=lambda index: (-ranks[index], -index))
    chosen: list[int] = []
    room = limit
    for index in order:
        line = lines[index]
        size = (len(line) if line.isascii() else len(line.encode("utf-8", "replace"))) + 1
        if size <= room:
            chosen.append(index)
            room -= size
    return sorted(chosen)


def _with_other_halves(lines: list[str], kept: list[int]) -> list[int]:
    """`kept` and the lines that a hard wrap may have made of one line with a kept one.

    Where a wrap halves a secret, neither half is recognised without the other. What is noise goes after redaction.
    """
    wanted = set(kept)
    for index in kept:
        first = index
        while first > max(0, index - _MOST_WRAPPED) and _may_go_on(lines[first - 1], lines[first]):
            first -= 1
        last = index
        while last + 1 < min(len(lines), index + _MOST_WRAPPED) and _may_go_on(lines[last], lines[last + 1]):
            last += 1
        wanted.update(range(first, last + 1))
    return sorted(wanted)


def _may_go_on(line: str, following: str) -> bool:
    """Whether `following` may be the rest of `line`: not so where the line is short or a new thing begins."""
    return len(line) >= _SHORTEST_WRAP and bool(following) and not _BEGINS_ANEW.match(following)


def _excerpt(lines: list[str], ranks: list[int]) -> str:
    """The most informative of the lines, in the order of the source; how a text begins and ends counts for more."""
    count = len(lines)
    least = min(max(ranks, default=0), _RECORD)
    ranks = [
        (rank + 2 if index < 4 or index >= count - 12 else rank) if rank >= least else _NOISE
        for index, rank in enumerate(ranks)
    ]
    return "\n".join(lines[index] for index in _most_informative(lines, ranks, EXCERPT_LIMIT))


# --- what the lines say ----------------------------------------------------------------------------------------------

_EXCEPTION_LINE = re.compile(
    r"(?:Exception in thread \"[^\"]{1,100}\" |Caused by: |: |E {1,8}|Error: )?"
    r"((?:[A-Za-z_][\w$]{0,60}\.){0,12}[A-Z_][\w$]{0,90})(?::\s|:?$)"
)
_STAGE_FAILURE = re.compile(r"most recent failure: ?Lost task .{1,300}?\): |\(executor [^)]{1,80}\): ")
_INLINE_CAUSE = re.compile(r"Caused by:? ")
_ERROR_CLASS = re.compile(
    r"(?:\[|ErrorClass=|error_?[cC]ode[\"']?\s?[:=]\s?[\"']?|error[cC]lass[\"']?\s?[:=]\s?[\"']?)"
    r"([A-Z][A-Z0-9]{1,40}(?:_[A-Z0-9]{1,40}){1,12}(?:\.[A-Z][A-Z0-9_]{1,90}){0,2})\b"
)
_SQLSTATE = re.compile(r"SQLSTATE[\"']?[:=\s(\[]{1,3}[\"']?([0-9A-Z]{5})\b", re.IGNORECASE)
_TOKEN = re.compile(r"[\w.$]{4,300}")
_EXCEPTION_ENDS = ("Exception", "Error", "Interrupt", "Exit", "Failure", "Timeout", "Fault")
_SAYS_CHAIN = ("The above exception was the direct cause", "During handling of the above exception")


def _is_exception_line(line: str) -> bool:
    found = _EXCEPTION_LINE.match(line)
    if not found:
        return False
    name = found.group(1)
    return name.endswith(_EXCEPTION_ENDS) or ("." in name and name.rpartition(".")[2][:1].isupper())


_SAYS_NOTHING = re.compile(
    r"(?:.{0,80}Job aborted(?: due to stage failure)?[.:]? ?(?:Task \d+ in stage [\d.]{1,12} failed \d+ times)?[,.;]?"
    r"|.{0,80}aborting job|.{0,60}An error occurred while calling \S{1,60}|.{0,60}\d+ flows failed to resolve\b.{0,100}"
    r"|.{0,60}returned non-zero exit status \d+\.?|.{0,60}Update \w{1,40} is FAILED\.?\"?"
    r"|.{0,60}\bwhile waiting for (?:the )?cluster \S{1,60} to be ready\.?"
    r"|(?:\S{1,40} )?(?:state [A-Z_]{4,30} -> [A-Z_]{4,30}|cluster \S{1,60} requested \d+ nodes)"
    r"|(?:Repair|Run|Attempt) \d+ of (?:run|job) \d+(?:: attempt \d+)?"
    r"|\S{1,120}(?:Exception|Error): run \d+|\[(?:Full )?GC .{0,300}"
    r"|(?:\S{1,12}\s{1,4})?\d+ of \d+ (?:FAIL|ERROR) .{0,200}"
    r"|(?:\S{1,12}\s{1,4})?(?:Runtime|Database|Compilation) Error|\S{1,120}Traceback \(most recent call last\)"
    r"|Task \S{1,100} failed\.?|(?:Task \S{1,100} failed with message: )?Workload failed, see run output.{0,200}"
    r"|.{0,60}Encountered an error:?|.{0,80}terminated with error"
    r"|.{0,60}PythonException: Traceback \(most recent call last\):|Traceback.{0,60}"
    r"|.{0,60}due to upstream failure.{0,40}"
    r"|(?:Please|The above|See|Check|Refer to) .{0,200}|.{0,200}Exception in task .{0,80}"
    r"|\[RequestId=[^\]]{0,300}\]|.{0,60}error message:?"
    r"|\S{1,120}(?:Exception|Error|Exist|Denied|Found)[\s:]{0,60}(?:Traceback.{0,60})?)$",
    re.IGNORECASE,
)
_LONGEST_ANNOUNCEMENT = 600
"""Characters: what says nothing says it in few words."""
_GENERAL_WORDS = frozenset((
    "run", "runs", "running", "ran", "job", "jobs", "task", "tasks", "subtask", "step", "command", "cell",
    "notebook", "query", "statement", "application", "driver", "driverwrapper", "workload", "pipeline", "flow",
    "update", "script", "main", "code", "user", "child", "parent", "fail", "fails", "failed", "failing", "failure",
    "failures", "error", "errors", "exception", "exceptions", "fatal", "problem", "went", "wrong", "unexpected",
    "unexpectedly", "unknown", "uncaught", "unhandled", "executing", "executed", "execution", "process",
    "processing", "while", "during", "occurred", "encountered", "raised", "thrown", "happened", "got", "was",
    "were", "is", "has", "have", "had", "been", "did", "not", "be", "being", "will", "would", "may", "with",
    "without", "the", "an", "of", "in", "on", "for", "to", "from", "at", "by", "and", "or", "its", "this", "that",
    "it", "all", "any", "some", "due", "see", "check", "below", "above", "following", "output", "details", "detail",
    "log", "logs", "message", "messages", "reason", "cause", "caused", "more", "information", "info", "attempt",
    "attempts", "retry", "retries", "retrying", "id", "ids", "result", "results", "status", "state", "finished",
    "ended", "completed", "unsuccessfully", "aborted", "aborting", "abort", "cleaning", "cleanup", "skipped",
    "downstream", "upstream", "get",
))  # fmt: skip
"""Words that name neither what failed nor why."""
RECORD_PREFIX = re.compile(
    r"\s{0,8}\[?(?:\d{2,4}[-/]\d{2}[-/]\d{2}[T ])?\d{2}:\d{2}:\d{2}(?:[.,]\d{1,9})?(?:Z|[+\-]\d{2}:?\d{2})?\]?\s{1,4}"
    r"(?:\[?[\w.\-/]{1,60}\]?\s{1,4}){0,2}?(?:\[?(?:ERROR|WARN(?:ING)?|FATAL|INFO|CRITICAL)\]?:?\s{1,4}(?:- )?"
    r"(?![\w$.]{0,80}(?:Exception|Error): )(?:[\w$.\-]{1,80}: )?|(?:[A-Z][\w$.]{1,80}: )?)"
)
"""What a logger puts in front of a message: time, thread, level, component."""
_WORD = re.compile(r"[^\W\d_]{2,}")


_CARRIERS = re.compile(
    r"\s{0,8}(?:(?:Run result unavailable|(?:Task|Job|Run) \S{1,100} failed(?: \(attempt \d+\))?"
    r"|(?:Job|Run|Task)(?: \S{1,100})? failed with (?:the )?(?:error |following )?(?:message|error))"
    r"(?:$|[:.](?: |$))){1,4}\s{0,4}",
    re.IGNORECASE,
)
"""What the run, the job and the task put in front of an error that has its own words."""
_HEADLINE = re.compile(r".{0,60}?\b(?:Runtime|Database|Compilation|Dependency) Error in \w{1,20} \S")
"""How dbt begins an error; the message stands on the next line."""
_STATE = re.compile(r"(?:\S{0,30}\d[\dZ] )?[A-Z]{4,20}(?:_[A-Z]{2,20}){0,3}")
"""A state alone, as in a list of events: `2026-01-23T21:44:40Z TERMINATING`."""
_REMARK = re.compile(
    r"\[[a-z][\w .,\-]{1,60}\]|(?:parent|child|active|newer|next) (?:run|update)\b|last |iteration \d|refresh history"
)


def says_nothing(line: str) -> bool:
    """Whether a line tells only that something failed: "ERROR Driver: Command failed", "Attempt 2 of 4. Run id 77"."""
    if len(line) > _LONGEST_ANNOUNCEMENT:
        return False
    if _SAYS_NOTHING.match(line):
        return True
    last = _WORD.findall(line[-40:].lower())[-1:]
    if not _GENERAL_WORDS.issuperset(last):  # most lines end here, cheaply
        return False
    words = _WORD.findall(_CARRIERS.sub("", RECORD_PREFIX.sub("", line, count=1), count=1).lower())
    return _GENERAL_WORDS.issuperset(words) and bool(words or _CARRIERS.match(line))


def _causes(lines: list[str], ranks: list[int]) -> tuple[str, ...]:
    """One-line causes, outermost first. Python prints the root first ("direct cause of the following"), Java last."""
    bare = [_CARRIERS.sub("", line, count=1) for line in lines]
    blocks: list[list[str]] = [[]]
    previous = ""
    for line, following in pairwise([*bare, ""]):
        stripped = line.strip()
        if stripped.startswith(_SAYS_CHAIN):
            blocks[-1] = blocks[-1] or [previous]
            blocks.append([])
        elif _HEADLINE.match(stripped):
            blocks[-1].append(f"{stripped} {following.strip()}")
        elif any(
            mark in stripped for mark in ("most recent failure", "Caused by", "ErrorClass=")
        ) or _is_exception_line(stripped):
            if stripped.endswith(":") and not stripped.endswith("last):"):  # the message stands on the next line
                stripped = f"{stripped} {following.strip()}"
            blocks[-1].extend(_unwrapped(stripped))
        previous = stripped
    told = [cause for block in reversed(blocks) for cause in block]
    causes = [cause for cause in told if not says_nothing(cause)]
    causes = causes or _told_causes(bare, ranks, [cause for cause in told if _is_exception_line(cause)][-1:])
    causes = causes or [line.strip() for line in lines if line.strip()][:1]
    distinct = [cause for cause, following in pairwise([*causes, ""]) if cause != following]
    if len(distinct) > MOST_CAUSES:
        distinct = distinct[: MOST_CAUSES // 2] + distinct[-MOST_CAUSES // 2 :]
    return tuple(distinct)


def _told_causes(lines: list[str], ranks: list[int], bare_exceptions: list[str]) -> list[str]:
    """Where no exception says why: the last line with an error class, else the last that a tool calls its error, else
    the first loud line that says anything, else an exception without words, else any line."""
    said = [
        (rank, f"{line.strip()} {following.strip()}" if line.endswith(":") else line.strip())
        for rank, (line, following) in zip(ranks, pairwise([*lines, ""]), strict=True)
        if rank and line.strip() and not says_nothing(line.strip()) and not _STATE.fullmatch(line.strip())
    ]
    telling = [(rank, line) for rank, line in said if not _REMARK.match(line)] or said
    with_class = [line for _, line in telling if _ERROR_CLASS.search(line)]
    of_tools = [line for _, line in telling if line.startswith("ERROR: ")]
    loud = [line for rank, line in telling if rank >= _ALARM]
    return with_class[-1:] or of_tools[-1:] or loud[:1] or bare_exceptions or [line for _, line in telling][:1]


def _unwrapped(line: str) -> list[str]:
    """A line and the causes told inside it: a stage failure's lost task, `(Caused by X(…))`."""
    parts = [line]
    for pattern in (_STAGE_FAILURE, _INLINE_CAUSE):
        found = list(pattern.finditer(line))
        if found and found[-1].end() < len(line) and found[-1].end() > 12:
            parts.append(line[found[-1].end() :].strip())
    return parts


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))[:MOST_CAUSES]


def _error_classes(lines: list[str]) -> tuple[str, ...]:
    return _distinct(found.group(1) for line in lines for found in _ERROR_CLASS.finditer(line))


def _sqlstates(lines: list[str]) -> tuple[str, ...]:
    return _distinct(found.group(1).upper() for line in lines for found in _SQLSTATE.finditer(line))


def _exception_types(lines: list[str]) -> tuple[str, ...]:
    tokens = (token for line in lines for token in _TOKEN.findall(line))
    return _distinct(token for token in tokens if token.endswith(_EXCEPTION_ENDS) and token[0].isalpha())


def is_own_frame(line: str) -> bool:
    """Whether a line is a frame, of Python or Java, of the user's own code."""
    stripped = line.strip()
    if stripped.startswith("at "):
        return stripped != line and not stripped.startswith(_FRAMEWORK_PACKAGES, 3)
    is_frame = _PYTHON_FRAME.match(line) or _COMMAND_FRAME.match(line)
    return bool(is_frame) and not any(path in stripped for path in _FRAMEWORK_PATHS)


def _user_frame(lines: list[str]) -> str | None:
    """The frame of the user's own code nearest to the failure: Python's last, else Java's first."""
    own = [line.strip() for line in lines if is_own_frame(line)]
    of_python = [frame for frame in own if not frame.startswith("at ")]
    return of_python[-1] if of_python else next(iter(own), None)
