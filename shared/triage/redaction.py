r"""Secrets and personal data out of a text, before anything of it leaves the process.

Two kinds of finders: *shapes*, for secrets that show by themselves what they are (`dapi…`, `AKIA…`, a PEM block; see
`secret_shapes`), and *names*, for values that are secret because of the name before them (`password=`, `--api-key `) or
above them (the head of a column). Both look at the text as it was meant: colours taken out, `%3D`, `\"` and `\u003d`
read as the character they stand for; and once more with the line breaks that a wrap put inside a token removed, and
with what a logger put before each line. What is found is replaced in the original by a marker
such as `[redacted:password]`. Names, ids, hashes, paths, versions and error classes stay.
"""

import html
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from enum import Enum, auto
from functools import lru_cache
from typing import NamedTuple

from shared.triage.secret_shapes import (
    LOWER_RUN,
    PLACEHOLDER,
    SHAPES,
    SLUG,
    WORD,
    Shape,
    has_digit_and_letter,
    is_made_up,
    is_path,
    is_random,
    is_scrap,
)

MOST_PASSES = 4
"""A replaced secret may bring to light another one; after the second pass nothing is left in practice."""


_LINES_OF_A_TABLE = (6, 12)
"""Before and after a marker: how far a row or a head that has changed may tell of others."""
_PERSONAL = ("email", "ip")
_MARKED = re.compile(r"\[redacted:[a-z\-]{1,24}(?:\]|$)")


class _Span(NamedTuple):
    start: int
    end: int
    kind: str


def redact(text: str) -> str:
    """`text` with secrets, e-mail addresses and IP addresses replaced by `[redacted:kind]`.

    Idempotent; cost linear in the size. Works on whole texts: half a secret, cut off before, is not recognised.
    """
    regions = [(0, len(text))]
    for _ in range(MOST_PASSES):
        found = [
            _Span(start + span.start, start + span.end, span.kind)
            for start, end in regions
            for span in _found_in(text[start:end])
        ]
        spans = _merged([span for span in found if not _MARKED.search(text, span.start, span.end)])
        if not spans:
            break
        text, regions = _replaced(text, spans)
    return text


def _replaced(text: str, spans: list[_Span]) -> tuple[str, list[tuple[int, int]]]:
    """The text with markers, and the lines around new markers, where another secret may have come to light."""
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    position = length = 0
    for start, end, kind in spans:
        marker = f"[redacted:{kind}]"
        parts += (text[position:start], marker)
        length += start - position + len(marker)
        position = end
        next_to_a_word = text[end : end + 1].isalnum() or text[end : end + 1] in ("-", "_")
        if kind not in _PERSONAL or next_to_a_word:  # an address alone hides nothing behind it
            places.append((length - len(marker), length))
    text = "".join(parts) + text[position:]
    return text, _lines_around(text, places, *_LINES_OF_A_TABLE)


def _lines_around(text: str, places: list[tuple[int, int]], before: int = 1, after: int = 1) -> list[tuple[int, int]]:
    """The places with the lines they stand in, and some lines before and after; what overlaps becomes one."""
    result: list[tuple[int, int]] = []
    for start, end in places:
        line_start = start + 1
        for _ in range(before + 1):
            line_start = text.rfind("\n", 0, max(0, line_start - 1)) + 1
        line_end = end - 1
        for _ in range(after + 1):
            line_end = text.find("\n", line_end + 1)
            if line_end < 0:
                line_end = len(text)
                break
        if result and line_start <= result[-1][1]:
            result[-1] = (result[-1][0], max(line_end, result[-1][1]))
        else:
            result.append((line_start, line_end))
    return result


def _found_in(text: str) -> Iterator[_Span]:
    plain = _View.without_escapes(text)
    for span in _secrets(plain.text):
        yield plain.original(span)
    breaks = dict(_breaks_before_scraps(plain.text))
    breaks |= {plain.place_of(start): plain.place_of(end) for start, end in _breaks_at_a_width(text)}
    breaks |= dict(_line_prefixes(plain.text))
    joins = sorted(breaks.items())
    for region_start, region_end in _lines_around(plain.text, joins):
        inside = [
            (start - region_start, end - region_start) for start, end in joins if region_start <= start < region_end
        ]
        joined = _View(plain.text[region_start:region_end], [(start, end, "") for start, end in inside])
        for span in _secrets(joined.text):
            start, end, kind = joined.original(span)
            yield plain.original(_Span(region_start + start, region_start + end, kind))


def _merged(spans: list[_Span]) -> list[_Span]:
    result: list[_Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if result and span.start < result[-1].end:
            last = result[-1]
            result[-1] = _Span(last.start, max(last.end, span.end), last.kind)
        elif span.end > span.start:
            result.append(span)
    return result


# --- the text as it was meant ----------------------------------------------------------------------------------------

_ESCAPE = re.compile(
    # One of the characters that an escape begins with first: that is what makes the search fast.
    r"[\x1b\^\[\\%+&'\"\u200b-\u200d\u2060\ufeff\u00ad]"
    r"(?:(?P<colour>(?:(?<=\x1b)|(?<=\^)\[)(?:\[[0-9;?]{0,20}[A-Za-z]|\][^\x07\x1b\n]{0,400}(?:\x07|\x1b\\)|\(B)"
    r"|(?<=\\)\\{0,3}(?:u001[bB]|x1[bB]|033|e)\[[0-9;?]{0,20}[A-Za-z]|(?<=\[)\d{1,3}(?:;\d{1,3}){0,4}m(?!\]))"
    r"|(?P<invisible>(?<=[\u200b-\u200d\u2060\ufeff\u00ad]))"
    r"|(?<=%)(?:25){0,2}(?P<percent>[2-7][0-9A-Fa-f]|0[9ADad])"
    r"|(?P<plus>(?<=%3[ADEade]\+)|(?<=%2[27Cc]\+)|(?<=\+)(?=%(?:2[27]|[57][Bb])))"
    r"|(?<=\\)\\{0,7}(?:(?:u00|x)(?P<code>[2-7][0-9A-Fa-f]|0[9ADad])|(?P<quoted>[\"'/])|(?P<space>[nrt]))"
    r"|(?P<doubled>(?:(?<=[\s=(:,\[{;N]')'{1,7}|(?<=[\s=(:,\[{;N]\")\"{1,7})(?=[^\s,;:)}\]'\"])"
    r"|(?:(?<=[^\s=(:,\[{;'\"]')'{1,7}|(?<=[^\s=(:,\[{;'\"]\")\"{1,7})(?=[\s,;:)}\]>/=]|$))"
    r"|(?<=&)(?:amp;){0,2}(?P<entity>(?:amp|quot|apos|lt|gt|#(?:[3-9]\d|1[01]\d|12[0-6])|#[xX][2-7][0-9A-Fa-f]|#1[03]|#[xX][aAdD]);))"
)
"""Colours (also with the escape character printed or lost), links of a terminal, invisible characters, `%3D`, a form's
`+`, `\\u003d`, `\\x3d`, `\\"`, `\\n`, the doubled quotes of a text inside SQL's or CSV's, `&quot;`."""
_SPACES = {"n": "\n", "r": "\n", "t": "\t"}


def _meaning(found: re.Match[str]) -> str:
    name, value = found.lastgroup, found.group(found.lastgroup or 0)
    match name:
        case "percent" | "code":
            return chr(int(value, 16))
        case "plus":  # a form's space
            return " "
        case "quoted" | "doubled":
            return value[0]
        case "space":
            return _SPACES[value]
        case "entity":
            return html.unescape(f"&{value}")
        case _:
            return ""


class _View:
    """A text with some pieces replaced, that can say where in the original a place of it is."""

    def __init__(self, text: str, changes: list[tuple[int, int, str]]) -> None:
        parts: list[str] = []
        self._starts: list[int] = []
        self._origins: list[tuple[int, int, bool]] = []
        length = position = 0
        for start, end, meaning in [*changes, (len(text), len(text), "")]:
            if start > position:
                parts.append(text[position:start])
                self._starts.append(length)
                self._origins.append((position, start, False))
                length += start - position
            if meaning:
                parts.append(meaning)
                self._starts.append(length)
                self._origins.append((start, end, True))
                length += len(meaning)
            position = end
        self.text = "".join(parts) if changes else text

    @classmethod
    def without_escapes(cls, text: str) -> "_View":
        return cls(text, [(found.start(), found.end(), _meaning(found)) for found in _ESCAPE.finditer(text)])

    def original(self, span: _Span) -> _Span:
        last = bisect_left(self._starts, span.end) - 1
        start = self._original_place(span.start)
        end_origin, end, is_replaced = self._origins[last]
        if not is_replaced:
            end = end_origin + span.end - self._starts[last]
        return _Span(start, end, span.kind)

    def place_of(self, original: int) -> int:
        """Where in this text the place of the original is."""
        index = bisect_right(self._origins, original, key=lambda origin: origin[0]) - 1
        start, _, is_replaced = self._origins[index] if index >= 0 else (original, 0, True)
        return self._starts[max(index, 0)] if is_replaced else self._starts[index] + original - start

    def _original_place(self, place: int) -> int:
        index = bisect_right(self._starts, place) - 1
        start, _, is_replaced = self._origins[index]
        return start if is_replaced else start + place - self._starts[index]


_BREAK = re.compile(r"\n[ \t]{0,16}(?=([^\s\"'<>;&,)}\[\]:(][^\s\"'<>;&,)}\]:(]{1,399})(.?))")
_PARTS_TOKENS = re.compile(r"[\s\"'<>;,)}(\[{\]]")
_STARTS_A_LINE = re.compile(
    r"\d{1,4}[-/:.]\d|[A-Za-z_][\w.\-]{1,60}=[^=]|-{2,5}|\.{2,3}|(?:0x|at|in|File|by|to|and|or)\b"
)
_BEGUN_NAME = re.compile(r"[A-Za-z_][\w.\-]{0,60}$")
_END_OF_A_NAME = re.compile(r"([\w.\-]{1,40})[\"'\\]{0,4}\s{0,2}[=:]")
_HALF_MAILBOX = re.compile(r"[\w.+\-]{1,64}@[\w\-]{0,63}$")
_HALF_IPV6 = re.compile(r"(?:[0-9a-fA-F]{1,4}:){2,7}[0-9a-fA-F]{0,4}$")
_HEX = re.compile(r"[0-9a-fA-F]{1,4}\.?")
_REST_OF_DOMAIN = re.compile(r"[\w\-]{0,63}(?:\.[\w\-]{1,63}){0,4}\.[A-Za-z]{2,24}\.?$")


_WIDTHS = frozenset({72, 76, 78, 79, 80, 96, 99, 100, 110, 119, 120, 127, 128, 131, 132, 140, 160, 180, 200, 240, 250})
"""Where terminals, log viewers and formatters break lines."""
_LEAST_WIDTH, _LEAST_KNOWN_WIDTH = 20, 60
_NEAR, _LEAST_OF_ONE_WIDTH = 8, 3
"""Lines around, and how many of them have to be of one width for it to be that of a wrap."""
_NEVER_A_REST = re.compile(
    r"\[?\d{2,4}[-/]\d\d[-/]\d|\d\d:\d\d:\d\d|(?:at|File|Caused by:?|Traceback|During|The above|Suppressed:|[+\-*#>|]) "
    r"|[+├╞╟┌└]?[\-─═]{2}|\w{1,30}: {1,4}\d{1,3}%|(?:Using cached|Downloading|Collecting|Added) "
    r"|[\w$.]{1,200}(?:Error|Exception)\b|\.{3}|(?:INFO|WARN|WARNING|ERROR|DEBUG|FATAL)\b|<?/|(?:spark|hadoop|fs|hive|kafka|javax?)\.[\w.\-]{1,120}[=\s]"
)


def _breaks_at_a_width(text: str) -> Iterator[tuple[int, int]]:
    """The breaks after lines that end where a hard wrap would end them: what follows may be anything.

    A line with a marker in it has lost its width, so that replacing never makes a new wrap.
    """
    lines = text.split("\n")
    widths = [len(line) for line in lines]
    bare = [len(line.lstrip(" \t")) for line in lines]
    position = 0
    for index, width in enumerate(widths[:-1]):
        position += width + 1
        if _is_full(widths, index) or _is_full(bare, index) or _is_longest_and_open(lines, widths, index):
            rest = lines[index + 1].lstrip(" \t")
            if _may_be_a_rest(lines[index], rest):
                indent = widths[index + 1] - len(rest)
                yield position - 1, position + indent - indent % 2  # an odd space is the text's own


def _is_full(widths: list[int], index: int) -> bool:
    """Whether the line ends where a wrap would end it, be it of a known width or of the width of lines around it."""
    width, following = widths[index], widths[index + 1]
    if width < _LEAST_WIDTH:
        return False
    if width >= _LEAST_KNOWN_WIDTH and (width in _WIDTHS or width in (widths[index - 1], following)):
        return True
    near = widths[max(0, index - _NEAR) : index + _NEAR + 1]
    longest = width + (near.count(width + 1) > near.count(width))  # a space at the end was cut off
    return following <= longest and near.count(longest) + (longest > width) >= _LEAST_OF_ONE_WIDTH


def _is_longest_and_open(lines: list[str], widths: list[int], index: int) -> bool:
    """Whether no line around is longer, and a quote is left open at the end."""
    width = widths[index]
    is_longest = width >= _LEAST_WIDTH and width >= max(widths[max(0, index - 3) : index + 4])
    return is_longest and lines[index].count('"') % 2 == 1


def _may_be_a_rest(line: str, rest: str) -> bool:
    """Whether the break may stand inside a token; lines that begin alike are records and not a wrapped one."""
    is_inside = rest.isprintable() and rest[:1] not in ("", "[", "|") and rest[:1].isascii() and line[-1:] not in "|│┃"
    return is_inside and line.lstrip()[:3] != rest[:3] and "[redacted:" not in line and not _NEVER_A_REST.match(rest)


def _breaks_before_scraps(text: str) -> Iterator[tuple[int, int]]:
    """The breaks where what follows looks like the rest of something random."""
    for found in _BREAK.finditer(text):
        start = found.start()
        while start and text[start - 1] in "\r\\":
            start -= 1
        before = _PARTS_TOKENS.split(text[max(0, start - 80) : start])[-1]
        if not before:
            continue
        if _is_in_a_name(before, _END_OF_A_NAME.match(text, found.end())):
            yield start, found.end()
        elif _STARTS_A_LINE.match(found.group(1)) and before[-1] not in "0123456789.:":
            continue
        elif _is_wrap(before, found.group(1), found.group(2)):
            yield start, found.end()


_PREFIX = re.compile(
    r"\[?\d{2,4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d[\d.,:Z+]{0,12}\]?"
    r"(?: (?:\[(?!redacted:)[^\]\n]{1,60}\]|[A-Z]{4,8})){0,3}(?: [\w.$\-]{1,80}:)? ?"
    r"|(?:std(?:out|err)|[\w.\-]{1,30} ?)\| ?|(?P<frame>\| ?\d{1,6} {0,12}\||[│┃] )"
)
"""What a logger, a program that runs others, a table or a frame puts before each line."""
_MAY_GO_ON = re.compile(
    r"[pPsStTkKcC](?i:(?<=p)(?:ass|wd|rivate)|(?<=s)ecret|(?<=t)oken|(?<=k)ey[\"'<]|(?<=c)redential)"
)
_LINES_IT_MAY_GO_ON = 12


def _line_prefixes(text: str) -> Iterator[tuple[int, int]]:
    """The prefixes of the lines on which something secret, begun on a line with a prefix, may go on."""
    done = 0
    for found in _MAY_GO_ON.finditer(text):
        start = text.rfind("\n", 0, found.start()) + 1
        if start < done:
            continue
        prefixes: list[re.Match[str]] = []
        while len(prefixes) < _LINES_IT_MAY_GO_ON and (prefix := _PREFIX.match(text, start)):
            prefixes.append(prefix)
            start = done = _end_of_row(text, start) + 1
        for prefix in prefixes if len(prefixes) > 1 else ():
            yield prefix.span()
            line = text[prefix.end() : _end_of_row(text, prefix.end())].rstrip()
            if prefix["frame"] and line.endswith(("|", "│", "┃")):
                yield prefix.end() + len(line[:-1].rstrip()), prefix.end() + len(line)


def _is_in_a_name(before: str, rest: re.Match[str] | None) -> bool:
    """Whether the break parts a name that says that its value is secret; neither part says so alone."""
    begun = _BEGUN_NAME.search(before)
    if not rest or not begun or _secret_name(begun.group()) or _secret_name(rest.group(1)):
        return False
    return _secret_name(begun.group() + rest.group(1)) is not None


def _is_wrap(before: str, rest: str, following: str) -> bool:
    if "@" in rest and ":" in before:  # the end of a password in front of a host
        return "://" in before or is_scrap(rest.partition("@")[0])
    if following not in (":", "(") and is_scrap(rest) and not _STARTS_A_LINE.match(rest):
        return True
    if _HALF_MAILBOX.search(before) and _REST_OF_DOMAIN.match(rest):
        return True
    if _HALF_IPV6.search(before) and _HEX.fullmatch(rest):
        return True
    return bool(_IPV4.fullmatch((before + rest).strip("."))) and "." in before + rest[:1]


# --- secrets that show what they are ---------------------------------------------------------------------------------

_CHECKSUM_BEFORE = re.compile(r"(?i:sha-?\d{0,3}|md5|digest|checksum|integrity|etag|hash)[^\w]{1,4}[\"']?$")

_PEM_BEGIN = re.compile(r"-{4,5}BEGIN[\s+]{0,20}[A-Z0-9 +]{0,40}PRIVATE[\s+]{0,20}KEY(?:[\s+]{0,20}BLOCK)?-{4,5}")
_PEM_END = re.compile(r"-{4,5}END[\s+]{0,20}[A-Z0-9 +]{0,40}PRIVATE[\s+]{0,20}KEY(?:[\s+]{0,20}BLOCK)?-{4,5}")
_PEM_BODY = re.compile(
    r"(?:\s{0,20}(?:[^\n]{0,80}?[ :|]{1,2}(?=[A-Za-z0-9+/=]{16,200}[ \t\r]{0,8}(?:\n|$)))?"  # what a logger puts before
    r"(?:[A-Za-z0-9+/=]{16,200}|[A-Za-z0-9+/=]{1,15}(?=\s{0,20}(?:-|$|[A-Za-z0-9+/=]{16}))"
    r"|[A-Z][\w\-]{2,20}: [^\n]{1,100})){0,600}"
)
_PEM_LINE = re.compile(r"[ \t\"]{0,16}[A-Za-z0-9+/=]{1,200}[ \t\r]{0,8}")
_LONGEST_KEY_BLOCK = 12_000
"""Characters: a 16,384-bit RSA key in PEM."""
_MOST_PEM_LINES = 200

_MAILBOX = re.compile(r"(?<![\w.+\-#'])[\w.+\-#][\w.+\-#']{0,63}$")
_MAIL_DOMAIN = re.compile(
    r"@(?:(?:[\w\-]{1,63}\.){1,6}[A-Za-z]{2,24}|(?:[\w\-]{1,20}-)?(?:laptop|desktop|macbook|notebook|workstation|pc)"
    r"(?:-[\w\-]{1,20})?)(?![\w@])",
    re.IGNORECASE,
)
_NOT_AN_EMAIL = re.compile(
    r"(?:\.core\.windows\.net|\.fabric\.microsoft\.com)$|^git@|@sha256"
    r"|\.(?:png|jpe?g|svg|pyc?|ipynb|js|ts|json|ya?ml|jar|whl|egg|csv|tsv|parquet|avro|orc|txt|md|html|zip|gz|sql|scala|java|log)$",
    re.IGNORECASE,
)
_IN_USER_INFO = re.compile(r"(?:://[^\s/@\"'<>]{0,128}|:thin:[^\s@]{0,128})$")
_PASSWORD_OF_USER_INFO = re.compile(r":[^\s/@\"'<>]{1,128}@")

_IPV4 = re.compile(r"[0-9](?<![\w.][0-9])\d{0,2}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\.?\w)")
_DASHED_IPV4 = re.compile(r"\bip-(\d{1,3}-\d{1,3}-\d{1,3}-\d{1,3})\b")
"""As Amazon names its machines: ip-10-1-2-3.eu-west-1.compute.internal."""
_IPV6 = re.compile(
    r"[0-9A-Fa-f](?<![\w:.].)[0-9A-Fa-f]{0,3}:(?:(?:[0-9A-Fa-f]{1,4}:){6}[0-9A-Fa-f]{1,4}"
    r"|(?:[0-9A-Fa-f]{1,4}:){0,5}(?::[0-9A-Fa-f]{1,4}){1,6}|(?:[0-9A-Fa-f]{1,4}:){1,6}:)"
    r"(?:%\w{1,12})?(?![\w:])"
)
"""Both begin with the class of their first character, and look back after it: so the search skips all others fast."""
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|java|jdk|python|scala|photon|delta|odbc|dbr|oid|sec|rev|rule|control|patch|at least|at most)"
    r"|versions?|release|runtime|build|jdbc\d?|package|library|firmware|revision|hotfix|section|chapter|clause|paragraph"
    r"|article|appendix|§|(?:old|new|high|low|great|earli|lat)er than|oracle(?: database)?|upgrad\w{1,4}(?: from)?"
    r"|[=><~!^]=)\.?[ :=\"'(]{0,3}$|[A-Za-z]\d{0,3}[-_]$",
    re.IGNORECASE,
)
_COORDINATE_BEFORE = re.compile(
    r"[A-Za-z][\w.\-]{1,40}:[A-Za-z][\w.\-]{1,40}:$|image \S{1,50}:$|upgrad\w{1,4}(?: from)? \d[\d.]{0,12} to $",
    re.IGNORECASE,
)
"""`group:artifact:1.2.3.4`, `image acme/etl:1.2.3.4`, `upgraded from 12.1 to 12.2.0.1`."""
_VERSION_AFTER = re.compile(
    r"-SNAPSHOT|-RELEASE| (?:LTS\b|SDK\b|(?:release|version|build)\b|or (?:later|newer|higher)"
    r"|of the (?:manual|guide|standard))"
)
_NEXT_IN_A_LIST = re.compile(r"[,;/|]?\s{0,2}(?:and|or|to|-|,)?\s{0,2}[\"'v]{0,2}")
_MACHINE_BEFORE = re.compile(
    r"\b(?:worker|node|host|ip|driver|executor|laptop|desktop|pc|vm|machine|client|server|peer|master|agent|pod)[-_]$",
    re.IGNORECASE,
)
_PORT_AFTER = re.compile(r":\d{2,5}\b")
_NOBODYS_ADDRESS = ("127.", "0.0.0.0", "255.255.", "169.254.", "168.63.129.16")  # noqa: S104 (text, not a binding)


def _secrets(text: str) -> Iterator[_Span]:
    for shape in SHAPES:
        if not shape.hints or any(map(text.__contains__, shape.hints)):
            yield from _of_shape(shape, text)
    yield from _private_keys(text)
    yield from _named(text)
    yield from _inserted(text)
    yield from _personal(text)


def _of_shape(shape: Shape, text: str) -> Iterator[_Span]:
    group = 1 if shape.pattern.groups else 0
    for found in shape.pattern.finditer(text):
        start, end = found.span(group)
        is_checksum = shape.kind == "key" and _CHECKSUM_BEFORE.search(text, max(0, start - 16), start)
        if not is_checksum and shape.is_secret(found.group(group)):
            yield _Span(start, end, shape.kind)


def _private_keys(text: str) -> Iterator[_Span]:
    """Whole PEM blocks; also the rest of one whose beginning or end was cut off."""
    if "PRIVATE" not in text:
        return
    ends = [found.span() for found in _PEM_END.finditer(text)]
    for begin in _PEM_BEGIN.finditer(text):
        index = bisect_left(ends, begin.end(), key=lambda span: span[0])
        if index < len(ends) and ends[index][0] - begin.end() <= _LONGEST_KEY_BLOCK:
            yield _Span(begin.start(), ends[index][1], "private-key")
        else:
            body = _PEM_BODY.match(text, begin.end(), begin.end() + _LONGEST_KEY_BLOCK)
            if body and body.group().strip():
                yield _Span(begin.start(), body.end(), "private-key")
    for start, end in ends:
        first = _start_of_key_lines(text, start)
        yield _Span(first, end, "private-key")


def _start_of_key_lines(text: str, end: int) -> int:
    start = end
    for _ in range(_MOST_PEM_LINES):
        line_start = text.rfind("\n", 0, max(0, start - 1)) + 1
        if start == 0 or not _PEM_LINE.fullmatch(text[line_start:start].rstrip("\n")):
            break
        start = line_start
    return start


def _personal(text: str) -> Iterator[_Span]:
    position = text.find("@")
    while position >= 0:
        domain = _MAIL_DOMAIN.match(text, position)
        mailbox = _MAILBOX.search(text, max(0, position - 65), position) if domain else None
        if domain and mailbox and _is_an_email(text, mailbox.start(), domain.end()):
            yield _Span(mailbox.start(), domain.end(), "email")
        position = text.find("@", position + 1)
    after_version = -1
    for found in _IPV4.finditer(text):
        if _is_somebodys_address(found, after_version):
            yield _Span(*found.span(), "ip")
        else:
            after_version = found.end()
    if "ip-" in text:
        for found in _DASHED_IPV4.finditer(text):
            yield _Span(*found.span(1), "ip")
    if "::" in text or text.count(":") > 6:
        for found in _IPV6.finditer(text):
            is_serial = all(len(group) == 2 for group in found.group().split(":"))  # of a certificate; a fingerprint
            if any(character.isdigit() for character in found.group()) and not is_serial:
                yield _Span(*found.span(), "ip")


def _is_an_email(text: str, start: int, end: int) -> bool:
    """Not so in front of a host in an address, where it is a container, a user or the end of a password."""
    if _NOT_AN_EMAIL.search(text[start:end]):
        return False
    in_user_info = _IN_USER_INFO.search(text, max(0, start - 131), start)
    return not in_user_info or bool(_PASSWORD_OF_USER_INFO.match(text, end))


def _is_somebodys_address(found: re.Match[str], after_version: int) -> bool:
    """Not the version, the number of a section or the identifier that four numbers may be too; those come in lists."""
    address, text, (start, end) = found.group(), found.string, found.span()
    if address.startswith(_NOBODYS_ADDRESS) or any(int(part) > 255 for part in address.split(".")):
        return False
    if _PORT_AFTER.match(text, end) or _MACHINE_BEFORE.search(text, max(0, start - 12), start):
        return True
    if address.endswith(".0") or _VERSION_AFTER.match(text, end):
        return text[end : end + 1] == "/"  # a network
    if after_version >= 0 and start - after_version <= 8 and _NEXT_IN_A_LIST.fullmatch(text, after_version, start):
        return False
    may_be_a_coordinate = text[start - 1 : start] == ":" or text[max(0, start - 4) : start] == " to "
    if may_be_a_coordinate and _COORDINATE_BEFORE.search(text, max(0, start - 84), start):
        return False
    return not _VERSION_BEFORE.search(text, max(0, start - 24), start)


# --- values that are secret because of their name --------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z_][\w.\-]{1,120}(?<!-)")
_ASSIGNED = re.compile(
    r"[\"'\])]{0,3}\s{0,3}(?:(?:=>|->|→|:=|={1,2})[ \t]{0,3}"
    r"|(?::|[\"'] ?, ?(?=[\"']))[ \t]{0,3}(?:\n(?:[ \t]{1,40}|(?=[\"'])))?)"
    r"(?:(?<=\s)[!&]\w{1,20}[ \t])?(?:[|>][+\-]?\n[ \t]{1,40})?(?:[bfruN](?=[\"']))?"
)
"""A sign between name and value; after it YAML's tag, anchor or block, and the letter of a literal."""
_ELSEWHERE = re.compile(
    r"(?:(?:\s[\w:.\-]{1,40}=[\"'][^\"'<>\n]{0,200}[\"']){0,4}>|[\"']\s?>|</(?:name|key)>)(?:</(?:name|key)>)?"
    r"(?:\s{0,40}<(?:value|string)>)?(?:<!\[CDATA\[)?"
    r"|[\"'](?:\s{1,40}[\w:.\-]{1,40}=[\"'][^\"'<>\n]{0,200}[\"']){0,3}\s{1,40}(?:value|Value|VALUE|content)\s?=\s?"
    r"|[\"']\s?,\s{0,40}(?:[\"'][\w\-]{1,40}[\"']\s?:\s?[^\s,{}\[\]]{1,80},\s{0,40}){0,3}"
    r"[\"']\w{0,20}(?:[vV]alue|default|val)[\"']\s?[:=]\s?"
    r"|[\"'](?:\r?\n){2,4}(?=\S)"
    r"|[\"']?:?\n\s{1,40}(?:value|default): "
)
"""`<name>…</name><value>`, `<add key="…" value=`, `<password type="…">`, `{"name": "…", "value":`, a form's part, and
YAML's `- name: …`, `value:`."""
_SPACE = re.compile(
    r"[ \t]{1,60}(?:\.{3,60} ?|\([\w ]{1,20}\) ?)?"
    r"(?:(?:for|of) (?:(?:the )?(?:user|role|login|account) )?[\"'`]?[\w.@\-]{1,60}[\"'`]? )?"
    r"(?:(?:(?:has been|was) )?(?:changed|re?set|updated) to )?"
    r"(?:(?:is|was|value|of)(?: |(?=[:=])))?(?:[:=]\s{0,2})?[ \t]{0,2}"
)
"""No sign between them: spaces or a few words."""
_QUOTED = {quote: re.compile(rf"[^{quote}\n](?:[^{quote}\n]|{quote}(?=\w)){{0,7999}}") for quote in ("'", '"', "`")}
"""A quote before a letter was escaped and belongs to the value."""
_SEPARATOR = re.compile(r"[\"']?(?: {0,80}([|│┃,;\t])| {2}|[ \t]{0,80}(?=\n|$))")
_HEADING = re.compile(r"[A-Za-z_][\w.\-]{0,60}")
_RULE_LINE = re.compile(r"[\s+\-=|:│┃├┼┤─═╞╪╡┏┳┓┡╇┩└┴┘━┠╂┨]{3,1000}")
_NO_SPACE = re.compile(r"\S{1,1000}")
_LONGEST_ROW, _MOST_ROWS, _MOST_CELLS = 1_000, 200, 60
_INSERT = re.compile(r"\(([^()\n]{1,600})\)\s{0,20}(?i:values)\s{0,20}\(([^()\n]{1,2000})\)")
_SQL_VALUE = re.compile(r"\s{0,20}[Nn]?'?((?<=')[^'\n]{0,1000}|[^,'\n]{1,200})'?(?:,|$)")
_HAS_CONTENT = re.compile(r"[^\W_]")
_KEY_OF_YAML = re.compile(r"[\w.\-]{1,60}:(?:\s|$)")
_COLON = re.compile(r"[\"'`]\s?:")
_OPENED = re.compile(r"[\"']\s?[:=]\s?\{")
_ITEM = re.compile(r"[\"']([\w\-]{1,40})[\"']\s?:\s?[\"']([^\"'\n]{8,4000})[\"']")
_INSIDE = re.compile(r"[^{}]{1,6000}")
_BRACED = re.compile(r"\{((?:[^{}\s\"']|\}\}){1,400}|(?:[^{}\n\"']|\}\}){1,400}(?=\}(?:;|$)))\}(?!\})")
"""ODBC: a value may stand in braces, a closing brace in it is doubled."""
_BARE = re.compile(r"(?:[^\s\"'<>;&,)}\]`|]|\|(?!\s|$)|,(?!\s|[\w.\-]{1,40}[=:]|$)|[)}\]](?![\s\"';&,)}\]]|$)){1,4000}")

_WORDS_OF = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_HARMLESS_END = re.compile(
    r"(?:name|scope|type|count|id|file|limit|column|field|table)s?|ur[il]|endpoint|path|length|len|policy|expir\w{1,6}|"
    r"ttl|vault|version|size|arn|ref|reference|format|provider|class|mode|enabled|required|prefix|suffix|alias|algorithm|"
    r"usage|used|yield|rate|through|ratio|percent|threshold|budget|manager|service|error|store|rotation|strategy|valid|invalid|missing|audience|issuer|lifetime|"
    r"location|encryption|stdin|in|at|date|time|created|updated|owner|user|username|host|port|rate|total|max|min|window|bucket"
)
_PASSWORD = re.compile(
    r"passw(?:or)?d|passwort|passphrase|passcode|(?:^|(?<!by)_)(?:pass|pwd|pw)(?:_|$)|(?:pwd|pswd|psw|bindpw|rootpw|userpw)$|^pgpass"
    r"|(?:db|user|store|key|my|root|admin|sql|mail|smtp|ftp|bind|svc|svn|ssl)pass$|secret_string|kennwort|mot_de_passe|contrase|wachtwoord"
)
_MAY_BE_A_COUNT = re.compile(r"(?:(?:first|second|last|dq|tests?|quality|checks?|total|max)_)?pass|(?:old_?)?pwd")
_COUNT = re.compile(r"\d{1,6}(?:[./]\d{1,6})?%?|ok|done|(?:fail|pass|skipp)ed|tests?[_/.]\S{1,200}|/[\w./\-]{0,200}")
"""`PASS=87`, `pass: 12/14`, `PWD=/databricks/driver`: tests that passed, the folder one is in."""
_TELLING = re.compile(
    r"secret|token|credential|api_?key|access_?key|account_?key|shared_?key|private_?key|signing_?key|master_?key|"
    r"encryption_?key|storage_?key|subscription_?key|functions?_?key|host_?key|auth_?key|license_?key|service_?key|"
    r"instrumentation_?key|app(?:lication)?_?key|admin_?key|query_?key|webhook_?key|integration_?key|routing_?key|"
    r"(?:^|_)(?:sas|sig|auth|t?otp_seed|jwt|pat|signature|cookie|session|sid|hmac|otp|pin|salt)$|"
    r"connection_?string|conn_?str|dsn$|account_key_|crypt_?key|key_?(?:base64|value|secret|data|pem)$|_key_?\d$|sessionid|csrf"
)
_SECRET_IDS = ("secret_id", "role_secret_id", "private_key_id")
_WEAK_KEY = re.compile(r"(?:^|_)(?:key|code|auth)$")
_NOT_A_SECRET_KEY = re.compile(
    r"(?:primary|partition|foreign|sort|cache|row|object|blob|idempotency|join|natural|business|surrogate|merge|state|"
    r"lookup|shuffle|group|map|dict|config|record|message|item|unique|cluster|clustering|dedup|public|hash|registry|error|"
    r"status|exit|return|country|zip|postal|currency|response|reason|termination|http|sql|product|language)_(?:key|code)s?$"
)
_SERVICE_BEFORE = re.compile(
    r"(?:api|access|secret|account|private|client|auth|service|subscription|storage|licen[sc]e|activation) $",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(r"[A-Za-z_]{1,24}(?:\.[A-Za-z_]{1,24}){0,4}")
_WORD_OF_A_PARSER = re.compile(r"(?:[A-Z]?[a-z]{2,20}){1,4}\d{0,4}")
"""`token=Identifier123`: what a parser or a tokenizer calls a token."""
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NO_VALUE = re.compile(r"(?:0x)?[\d\-/:.,TZ+]{1,60}$|[A-Za-z_][\w.\-]{1,60}=[^=]|-{2,5}|\.{2,3}")
"""A number, a date, another assignment, a flag."""


class _Trust(Enum):
    """What a name alone says about its value."""

    ANY = auto()
    """Whatever the value is, it is secret: passwords."""
    LIKELY = auto()
    """Secret if it looks like something generated: tokens, keys of services."""
    UNCLEAR = auto()
    """`key`, `code`: secret only if it is long and random."""


class _Name(NamedTuple):
    kind: str
    trust: _Trust
    may_be_a_count: bool = False


@lru_cache(maxsize=4096)
def _secret_name(name: str) -> _Name | None:
    """What a name says about its value, None if nothing."""
    words = [word.lower() for word in _WORDS_OF.findall(name)]
    compact = "_".join(words)
    is_property = name.count(".") > 1  # fs.azure.account.key.ACCOUNT.dfs.core.windows.net
    if not words or _NOT_A_SECRET_KEY.search(compact):
        return None
    if _HARMLESS_END.fullmatch(words[-1]) and not is_property and compact not in _SECRET_IDS:
        return None
    if _PASSWORD.search(compact) or _PASSWORD.search(name.lower()):
        return _Name("password", _Trust.ANY, bool(_MAY_BE_A_COUNT.fullmatch(compact)))
    if _TELLING.search(compact):
        return _Name(next((kind for kind in ("token", "secret", "key") if kind in compact), "secret"), _Trust.LIKELY)
    if _WEAK_KEY.search(compact):  # AZURE_OPENAI_KEY=, as variables of the environment are written
        return _Name("key", _Trust.LIKELY if name.isupper() and "_" in name else _Trust.UNCLEAR)
    return None


def _named(text: str) -> Iterator[_Span]:
    position = header = table_end = 0
    while found := _NAME.search(text, position):
        position = found.end()
        name = _secret_name(found.group().rstrip(".-"))
        is_a_marker = text[max(0, found.start() - 10) : found.start()] == "[redacted:" if name else False
        if name and not is_a_marker:
            if name.trust is _Trust.UNCLEAR and _SERVICE_BEFORE.search(text, max(0, found.start() - 14), found.start()):
                name = _Name(name.kind, _Trust.LIKELY)
            span = _value(text, found, name)
            if span:
                yield span
                position = max(position, span.end)
            else:
                if name.trust is _Trust.LIKELY:
                    yield from _nested(text, found, name)
                if found.start() >= table_end or "\n" not in text[header : found.start()]:
                    header, table_end, cells = _column(text, found, name)
                    yield from cells


def _value(text: str, name_found: re.Match[str], name: _Name) -> _Span | None:
    """The value after the name, if there is one and it is secret."""
    is_flag = text[max(0, name_found.start() - 1) : name_found.start()] == "-"
    after_space = _is_flagged_secret if is_flag else _is_told_secret
    for separator, is_secret in (
        (_ELSEWHERE, _is_assigned_secret),
        (_ASSIGNED, _is_assigned_secret),
        (_SPACE, after_space),
    ):
        found = separator.match(text, name_found.end())
        if found:
            return _value_at(text, name_found, found.end(), name, is_secret)
    return None


def _value_at(
    text: str,
    name_found: re.Match[str],
    place: int,
    name: _Name,
    is_secret: Callable[[re.Match[str], _Name, bool], bool],
) -> _Span | None:
    braced = _BRACED.match(text, place) if name.trust is _Trust.ANY else None
    if braced and not _IDENTIFIER.fullmatch(braced.group(1)):
        return _Span(*braced.span(1), name.kind)
    quote = text[place : place + 1]
    if quote in ("{", "[", "<"):  # an object, a list, a placeholder
        return None
    if _KEY_OF_YAML.match(text, place):
        return None
    value = _QUOTED[quote].match(text, place + 1) if quote in _QUOTED else _BARE.match(text, place)
    if (
        not value
        or PLACEHOLDER.match(value.group())
        or not _HAS_CONTENT.search(value.group())
        or not is_secret(value, name, quote in _QUOTED)
    ):
        return None
    after = text[value.end() + 1 : value.end() + 2]
    is_pair = "," in text[name_found.end() : place] and text[name_found.start() - 1] != "-"
    if is_pair and _IDENTIFIER.fullmatch(value.group()) and (text[name_found.start() - 2] != "(" or after != ")"):
        return None  # a list of words
    if (quote in _QUOTED and _COLON.match(text, value.end())) or (
        name.may_be_a_count and _COUNT.fullmatch(value.group())
    ):
        return None
    return _Span(value.start(), value.end(), name.kind)


class _Header(NamedTuple):
    """A line that may be the head of a table, with a name of something secret in it."""

    cells: list[tuple[int, int]]
    words: list[str]
    column: int
    """The place of the name, counted from the end: rows may begin with a number that has no heading."""
    separator: str
    start: int
    end: int

    @property
    def is_drawn(self) -> bool:
        """Whether lines part the columns, so that it is a table for certain."""
        return self.separator in "|│┃"


def _header(text: str, name_found: re.Match[str]) -> _Header | None:
    start = text.rfind("\n", max(0, name_found.start() - _LONGEST_ROW), name_found.start()) + 1
    end = _end_of_row(text, start)
    separated = _SEPARATOR.match(text, name_found.end())
    if not separated:
        return None
    before = text[start : name_found.start()].rstrip(" \"'")[-1:]
    separator = separated.group(1) or (before if before and before in "|│┃,;\t" else " ")
    if not 0 < text.count(separator, start, end) <= _MOST_CELLS:
        return None
    cells = _cells(text, start, end, separator)
    words = [text[slice(*cell)] for cell in cells]
    if len(words) < 2 or name_found.group() not in words:
        return None
    header = _Header(cells, words, words.index(name_found.group()) - len(words), separator, start, end)
    if not header.is_drawn and not (len(words) > 2 and all(map(_HEADING.fullmatch, words))):
        return None
    return header if separator != " " or "  " in text[start:end].strip() else None


def _column(text: str, name_found: re.Match[str], name: _Name) -> tuple[int, int, list[_Span]]:
    """The values beside or below a name in a table: where its header starts, where it ends, and the secret values."""
    header = _header(text, name_found)
    if not header:
        return 0, 0, []
    if header.is_drawn:
        beside = header.words[header.column + 1] if header.column < -1 else ""
        if _is_secret_cell(beside, name, is_drawn=False):
            return 0, 0, [_Span(*header.cells[header.column + 1], name.kind)]
        above = text.rfind("\n", 0, max(0, header.start - 1)) + 1
        if PLACEHOLDER.match(beside) or len(_cells(text, above, header.start, header.separator)) == len(header.cells):
            return 0, 0, []  # a row, of names and values
    secrets: list[_Span] = []
    end = header.end
    for _ in range(_MOST_ROWS):
        start, end = end + 1, _end_of_row(text, end + 1)
        if header.is_drawn and _RULE_LINE.fullmatch(text, start, end):
            continue
        row = _cells(text, start, end, header.separator)
        if len(row) != len(header.cells) and not (header.separator == " " and len(row) == len(header.cells) + 1):
            break
        if _is_secret_cell(text[slice(*row[header.column])], name, header.is_drawn):
            secrets.append(_Span(*row[header.column], name.kind))
    return header.start, end, secrets


def _end_of_row(text: str, start: int) -> int:
    end = text.find("\n", start, start + _LONGEST_ROW)
    return end if end >= 0 else min(len(text), start + _LONGEST_ROW)


def _cells(text: str, start: int, end: int, separator: str) -> list[tuple[int, int]]:
    """The places of the cells in a line, without the spaces and quotes around them."""
    if separator == " ":
        return [found.span() for found in _NO_SPACE.finditer(text, start, end)]
    places = []
    for cell in text[start:end].split(separator):
        value = cell.strip(" \t\r\"'")
        at = start + cell.find(value)
        places.append((at, at + len(value)))
        start += len(cell) + 1
    return places


def _is_secret_cell(value: str, name: _Name, is_drawn: bool) -> bool:
    if len(value) < 4 or PLACEHOLDER.match(value) or (name.may_be_a_count and _COUNT.fullmatch(value)):
        return False
    if not is_drawn and ("(" in value or not is_made_up(value)):
        return False
    return name.trust is _Trust.ANY or _looks_secret(value, name.trust)


def _inserted(text: str) -> Iterator[_Span]:
    """`INSERT INTO t (name, password) VALUES ('erp', '…')`."""
    for found in _INSERT.finditer(text) if "VALUES" in text or "values" in text else ():
        values = list(_SQL_VALUE.finditer(text, *found.span(2)))
        for column, value in zip(found.group(1).split(","), values, strict=False):
            name = _secret_name(column.strip(' \t\r\n"`[]'))
            start, end = value.span(1)
            if name and _is_secret_cell(text[start:end], name, is_drawn=True):
                yield _Span(start, end, name.kind)


def _nested(text: str, name_found: re.Match[str], name: _Name) -> Iterator[_Span]:
    """`"tokens": {"refresh": "…"}`: what is secret by the name around it."""
    opened = _OPENED.match(text, name_found.end())
    if not opened:
        return
    inside = _INSIDE.match(text, opened.end())
    for item in _ITEM.finditer(text, *inside.span()) if inside else ():
        words = [word.lower() for word in _WORDS_OF.findall(item.group(1))]
        if words and not _HARMLESS_END.fullmatch(words[-1]) and _looks_secret(item.group(2), name.trust):
            yield _Span(*item.span(2), name.kind)


def _is_assigned_secret(value: re.Match[str], name: _Name, is_quoted: bool) -> bool:
    secret, text = value.group(), value.string
    after = text[value.end() : value.end() + 1]
    if not is_quoted:
        is_expression = after in ("[", "(") or "(" in secret[:40]
        if is_expression or (after in (",", ")") and _IDENTIFIER.fullmatch(secret) and not is_scrap(secret)):
            return False
    if name.trust is _Trust.ANY:
        is_sentence = text[value.start() - 1] == " " and after == " " and WORD.fullmatch(secret)
        return not is_sentence
    if name.kind == "token" and not is_quoted and _WORD_OF_A_PARSER.fullmatch(secret):
        return False
    return _looks_secret(secret, name.trust)


def _is_flagged_secret(value: re.Match[str], name: _Name, is_quoted: bool) -> bool:
    secret = value.group()
    is_usage = secret.isupper() and secret.isalpha()  # `--password PASSWORD`, as a program tells how to call it
    return not (secret.startswith("-") or is_usage) and (
        name.trust is _Trust.ANY or is_quoted or _looks_secret(secret, name.trust)
    )


def _is_told_secret(value: re.Match[str], name: _Name, is_quoted: bool) -> bool:
    """`password hunter2`, `the token 9f86…`: without a sign between them only what no sentence would hold."""
    secret = value.group()
    if name.trust is _Trust.ANY:
        is_phrase = " " in secret and (not is_quoted or secret.islower())
        is_generated = is_quoted or ("(" not in secret and (has_digit_and_letter(secret) or is_scrap(secret)))
        return (
            len(secret) >= 8
            and is_generated
            and not is_phrase
            and not WORD.fullmatch(secret)
            and not SLUG.fullmatch(secret)
        )
    return len(secret) >= 16 and _looks_secret(secret, name.trust) and not _UUID.fullmatch(secret)


def _looks_secret(value: str, trust: _Trust) -> bool:
    if len(value) < 8 or "://" in value or " " in value or _NO_VALUE.match(value) or is_path(value):
        return False
    if trust is _Trust.UNCLEAR:
        return len(value) >= 20 and is_random(value)
    if value.replace(".", "").replace("-", "").replace(":", "").isdigit():
        return False
    if SLUG.fullmatch(value):
        return False
    if has_digit_and_letter(value):
        return True
    return len(value) >= 20 and not (any(mark in value for mark in "._-/") and LOWER_RUN.search(value))
