r"""Secrets and personal data out of a text, before anything of it leaves the process.

Two kinds of finders: *shapes*, for secrets that show by themselves what they are (`dapi…`, `AKIA…`, a PEM block), and
*names*, for values that are secret because of the name before them (`password=`, `"client_secret": `, `--api-key `).
Both look at the text as it was meant: colours taken out, `%3D`, `\"` and `\u003d` read as the character they
stand for, and once more with the line breaks that a wrap put inside a token removed. What is found is replaced in
the original by a marker such as `[redacted:password]`. Names, ids, hashes, paths, versions and error classes stay.
"""

import html
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from enum import Enum, auto
from functools import lru_cache
from typing import NamedTuple

MOST_PASSES = 4
"""A replaced secret may bring to light another one; after the second pass nothing is left in practice."""


_PERSONAL = ("email", "ip")
_MARKED = re.compile(r"\[redacted:[a-z\-]{1,24}(?:\]|$)")


class _Span(NamedTuple):
    start: int
    end: int
    kind: str
    since: int
    """Where what tells that it is a secret begins: the name before it, or the secret itself."""


def redact(text: str) -> str:
    """`text` with secrets, e-mail addresses and IP addresses replaced by `[redacted:kind]`.

    Idempotent; cost linear in the size. Works on whole texts: half a secret, cut off before, is not recognised.
    """
    regions = [(0, len(text))]
    for _ in range(MOST_PASSES):
        found = [
            _Span(start + span.start, start + span.end, span.kind, start + span.since)
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
    for start, end, kind, _ in spans:
        marker = f"[redacted:{kind}]"
        parts += (text[position:start], marker)
        length += start - position + len(marker)
        position = end
        next_to_a_word = text[end : end + 1].isalnum() or text[end : end + 1] in ("-", "_")
        if kind not in _PERSONAL or next_to_a_word:  # an address alone hides nothing behind it
            places.append((length - len(marker), length))
    text = "".join(parts) + text[position:]
    return text, _lines_around(text, places)


def _lines_around(text: str, places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The places with the lines they stand in, one line before and one after; what overlaps becomes one."""
    result: list[tuple[int, int]] = []
    for start, end in places:
        line_start = text.rfind("\n", 0, max(0, text.rfind("\n", 0, start))) + 1
        next_end = text.find("\n", end)
        next_end = text.find("\n", next_end + 1) if next_end >= 0 else -1
        line_end = len(text) if next_end < 0 else next_end
        if result and line_start <= result[-1][1]:
            result[-1] = (result[-1][0], max(line_end, result[-1][1]))
        else:
            result.append((line_start, line_end))
    return result


def _found_in(text: str) -> Iterator[_Span]:
    plain = _View.without_escapes(text)
    for span in _secrets(plain.text):
        yield plain.original(span)
    joins = sorted(
        {
            *_breaks_before_scraps(plain.text),
            *((plain.place_of(start), plain.place_of(end)) for start, end in _breaks_at_a_width(text)),
        }
    )
    for region_start, region_end in _lines_around(plain.text, joins):
        inside = [
            (start - region_start, end - region_start) for start, end in joins if region_start <= start < region_end
        ]
        joined = _View(plain.text[region_start:region_end], [(start, end, "") for start, end in inside])
        for span in _secrets(joined.text):
            start, end, kind, since = joined.original(span)
            if any(since < join_start <= end + 1 for join_start, _ in inside):  # it goes on, or its end is told, after
                yield plain.original(_Span(region_start + start, region_start + end, kind, region_start + since))


def _merged(spans: list[_Span]) -> list[_Span]:
    result: list[_Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if result and span.start < result[-1].end:
            last = result[-1]
            result[-1] = _Span(last.start, max(last.end, span.end), last.kind, last.since)
        elif span.end > span.start:
            result.append(span)
    return result


# --- the text as it was meant ----------------------------------------------------------------------------------------

_ESCAPE = re.compile(
    r"(?P<colour>(?:\x1b|\\{1,4}(?:u001[bB]|x1[bB]|033|e))\[[0-9;?]{0,20}[A-Za-z])"
    r"|(?P<invisible>[\u200b-\u200d\u2060\ufeff\u00ad])"
    r"|%(?:25){0,2}(?P<percent>[2-7][0-9A-Fa-f]|0[9ADad])"
    r"|(?P<plus>(?:(?<=%3[ADEade])|(?<=%2[27Cc]))\+|\+(?=%(?:2[27]|[57][Bb])))"
    r"|\\{1,8}u00(?P<unicode>[2-7][0-9A-Fa-f]|0[9ADad])"
    r"|\\{1,8}(?P<quoted>[\"'/])"
    r"|\\{1,8}(?P<space>[nrt])"
    r"|(?P<entity>&(?:amp|quot|apos|lt|gt|#(?:[3-9]\d|1[01]\d|12[0-6])|#[xX][2-7][0-9A-Fa-f]|#1[03]|#[xX][aAdD]);)"
)
_SPACES = {"n": "\n", "r": "\n", "t": "\t"}


def _meaning(found: re.Match[str]) -> str:
    name, value = found.lastgroup, found.group(found.lastgroup or 0)
    match name:
        case "percent" | "unicode":
            return chr(int(value, 16))
        case "plus":  # a form's space
            return " "
        case "quoted":
            return value
        case "space":
            return _SPACES[value]
        case "entity":
            return html.unescape(value)
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
        if not any(mark in text for mark in ("\x1b", "%", "\\", "&")) and text.isascii():
            return cls(text, [])
        return cls(text, [(found.start(), found.end(), _meaning(found)) for found in _ESCAPE.finditer(text)])

    def original(self, span: _Span) -> _Span:
        last = bisect_left(self._starts, span.end) - 1
        start = self._original_place(span.start)
        end_origin, end, is_replaced = self._origins[last]
        if not is_replaced:
            end = end_origin + span.end - self._starts[last]
        return _Span(start, end, span.kind, self._original_place(span.since))

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
_TOKEN_BEFORE = re.compile(r"[^\s\"'<>;,)}(\[{\]]{1,80}$")
_STARTS_A_LINE = re.compile(
    r"\d{1,4}[-/:.]\d|[A-Za-z_][\w.\-]{1,60}=[^=]|-{2,5}|\.{2,3}|(?:0x|at|in|File|by|to|and|or)\b"
)
_HALF_MAILBOX = re.compile(r"[\w.+\-]{1,64}@[\w\-]{0,63}$")
_HALF_IPV6 = re.compile(r"(?:[0-9a-fA-F]{1,4}:){2,7}[0-9a-fA-F]{0,4}$")
_HEX = re.compile(r"[0-9a-fA-F]{1,4}\.?")
_REST_OF_DOMAIN = re.compile(r"[\w\-]{0,63}(?:\.[\w\-]{1,63}){0,4}\.[A-Za-z]{2,24}\.?$")


_WIDTHS = frozenset({72, 76, 78, 79, 80, 96, 99, 100, 110, 119, 120, 127, 128, 131, 132, 140, 160, 180, 200, 240, 250})
"""Where terminals, log viewers and formatters break lines."""
_LEAST_WIDTH = 60
_NEVER_A_REST = re.compile(
    r"\[?\d{2,4}[-/]\d\d[-/]\d|\d\d:\d\d:\d\d|(?:at|File|Caused by:?|Traceback|During|The above|Suppressed:|[+\-*#>|]) "
    r"|[\w$.]{1,200}(?:Error|Exception)\b|\.{3}|(?:INFO|WARN|WARNING|ERROR|DEBUG|FATAL)\b|<?/|(?:spark|hadoop|fs|hive|kafka|javax?)\.[\w.\-]{1,120}[=\s]"
)


def _breaks_at_a_width(text: str) -> Iterator[tuple[int, int]]:
    """The breaks after lines that end where a hard wrap would end them: what follows may be anything.

    A line with a marker in it has lost its width, so that replacing never makes a new wrap.
    """
    lines = text.split("\n")
    widths = [len(line) for line in lines]
    position = 0
    for index, width in enumerate(widths[:-1]):
        position += width + 1
        if width < _LEAST_WIDTH or not (width in _WIDTHS or width in (widths[index - 1], widths[index + 1])):
            continue
        rest = lines[index + 1].lstrip(" \t")
        if _may_be_a_rest(lines[index], rest):
            yield position - 1, position + widths[index + 1] - len(rest)


def _may_be_a_rest(line: str, rest: str) -> bool:
    """Whether the break may stand inside a token; lines that begin alike are records and not a wrapped one."""
    is_inside = rest.isprintable() and rest[:1] not in ("", "[", "|") and rest[:1].isascii()
    return is_inside and line.lstrip()[:3] != rest[:3] and "[redacted:" not in line and not _NEVER_A_REST.match(rest)


def _breaks_before_scraps(text: str) -> Iterator[tuple[int, int]]:
    """The breaks where what follows looks like the rest of something random."""
    for found in _BREAK.finditer(text):
        start = found.start()
        while start and text[start - 1] in "\r\\":
            start -= 1
        if _STARTS_A_LINE.match(found.group(1)) and text[start - 1 : start] not in tuple("0123456789.:"):
            continue
        before = _TOKEN_BEFORE.search(text, max(0, start - 80), start)
        if before and _is_wrap(before.group(), found.group(1), found.group(2)):
            yield start, found.end()


def _is_wrap(before: str, rest: str, following: str) -> bool:
    if "@" in rest and ":" in before:  # the end of a password in front of a host
        return _is_scrap(rest.partition("@")[0])
    if following not in (":", "(") and _is_scrap(rest) and not _STARTS_A_LINE.match(rest):
        return True
    if _HALF_MAILBOX.search(before) and _REST_OF_DOMAIN.match(rest):
        return True
    if _HALF_IPV6.search(before) and _HEX.fullmatch(rest):
        return True
    return bool(_IPV4.fullmatch((before + rest).strip("."))) and "." in before + rest[:1]


_LOWER_RUN = re.compile(r"[a-z]{6}")
_CAMEL = re.compile(r"[A-Z]?[a-z]{4}|[._/]")


def _is_scrap(word: str) -> bool:
    """Whether a word looks like a piece of a secret and not like a word, a class name or a number."""
    if word.endswith("="):
        return True
    if word.isdigit():
        return len(word) >= 6
    has_digit = any(character.isdigit() for character in word)
    has_letter = any(character.isalpha() for character in word)
    if not has_letter or _LOWER_RUN.search(word):
        return has_digit and (len(word) >= 24 or not _CAMEL.search(word))
    if any(character in "!#$^*?~" for character in word):
        return True
    has_both_cases = word != word.lower() and word != word.upper() and not word.istitle()
    return has_digit or has_both_cases


# --- secrets that show what they are ---------------------------------------------------------------------------------

_ALONE = r"(?<![A-Za-z0-9])"
_END = r"(?![A-Za-z0-9])"


def _has_digit_and_letter(value: str) -> bool:
    return any(character.isdigit() for character in value) and any(character.isalpha() for character in value)


def _is_random(value: str) -> bool:
    """Upper case, lower case and digits mixed, as encoders make it and people do not."""
    return value != value.lower() and value != value.upper() and any(character.isdigit() for character in value)


def _is_credential(value: str) -> bool:
    """After `Bearer` or `Basic`: a credential and not the next word of a sentence."""
    return len(value) >= 8 and (_has_digit_and_letter(value) or value.endswith("=") or len(value) >= 24)


def _is_anything(_: str) -> bool:
    return True


class _Shape(NamedTuple):
    """A secret known by its look. `hints`: the expression runs only where one of these stands in the text."""

    kind: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    is_secret: Callable[[str], bool] = _is_anything


def _shape(kind: str, hints: str, pattern: str, is_secret: Callable[[str], bool] = _is_anything) -> _Shape:
    return _Shape(kind, tuple(hints.split()), re.compile(pattern), is_secret)


# Forms as published by the issuers and in the rules of gitleaks (MIT). The first group, if any, is the secret.
_SHAPES = (
    _shape(
        "databricks-token", "dapi dose dkea dsapi", _ALONE + r"d(?:api|ose|kea|sapi)[0-9a-f]{30,40}(?:-\d{1,2})?" + _END
    ),
    _shape("jwt", "eyJ", _ALONE + r"eyJ[\w\-]{8,8000}(?:\.[\w\-]{2,8000}){1,4}={0,2}"),
    _shape("aws-key", "AKIA ASIA ABIA ACCA", _ALONE + r"A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}" + _END),
    _shape(
        "aws-token",
        "FwoGZXIvYXdz IQoJb3JpZ2lu FQoGZXIvYXdz",
        r"(?:FwoGZXIvYXdz|IQoJb3JpZ2lu|FQoGZXIvYXdz)[\w+/=\-]{20,4000}",
    ),
    _shape(
        "google-key",
        "AIza ya29. GOCSPX- 1//0",
        _ALONE + r"(?:AIza[\w\-]{30,40}|ya29\.[\w\-.]{20,1000}|GOCSPX-[\w\-]{20,40}|1//0[\w\-]{30,200})",
    ),
    _shape(
        "github-token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        _ALONE + r"(?:gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_\w{20,255})",
    ),
    _shape("gitlab-token", "gl", _ALONE + r"gl(?:pat|ptt|dt|rt|cbt|soat|ft|agent|imt|oas)-[\w\-.]{18,300}"),
    _shape("slack-token", "xox xapp-", _ALONE + r"(?:xox[a-z](?:\.xox[a-z])?-[\w\-]{10,250}|xapp-\d-[\w\-]{10,250})"),
    _shape("webhook", "hooks.slack.com", r"hooks\.slack\.com/((?:services|workflows|triggers)/[\w/\-]{8,200})"),
    _shape(
        "webhook",
        "webhook.office.com outlook.office",
        r"(?:webhook\.office\.com|outlook\.office(?:365)?\.com)/((?:webhookb2|webhook)/[\w@/.\-]{8,400})",
    ),
    _shape("webhook", "discord", r"discord(?:app)?\.com/api/webhooks/(\d{5,30}/[\w\-]{20,200})"),
    _shape(
        "stripe-key",
        "_live_ _test_ whsec_",
        _ALONE + r"(?:(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,250}|whsec_[A-Za-z0-9+/=]{20,200})",
    ),
    _shape("sendgrid-key", "SG.", _ALONE + r"SG\.[\w\-]{16,32}\.[\w\-]{16,64}"),
    _shape("npm-token", "npm_", _ALONE + r"npm_[A-Za-z0-9]{30,60}"),
    _shape("pypi-token", "pypi-", _ALONE + r"pypi-Ag[\w\-]{16,1000}"),
    _shape("openai-key", "sk-", _ALONE + r"sk-[\w\-]{20,300}", _has_digit_and_letter),
    _shape("huggingface-token", "hf_ api_org_", _ALONE + r"(?:hf|api_org)_[A-Za-z0-9]{28,60}"),
    _shape("twilio-key", "SK AC", _ALONE + r"(?:SK|AC)[0-9a-f]{32}" + _END),
    _shape("mail-service-key", "key- -us", _ALONE + r"(?:key-[0-9a-f]{32}|[0-9a-f]{32}-us\d{1,2})" + _END),
    _shape("shopify-token", "shp", _ALONE + r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    _shape("square-token", "sq0", _ALONE + r"sq0[a-z]{3}-[\w\-]{20,60}"),
    _shape("digitalocean-token", "_v1_", _ALONE + r"do[opr]_v1_[0-9a-f]{32,64}"),
    _shape("atlassian-token", "ATATT3 ATBB ATCTT3", _ALONE + r"AT(?:ATT3|CTT3|BB)[\w=\-]{16,400}"),
    _shape("grafana-token", "glsa_ glc_", _ALONE + r"gl(?:sa|c)_[\w+/=]{20,400}"),
    _shape("newrelic-key", "NRAK- NRII- NRJS-", _ALONE + r"NR(?:AK|II|JS)-[\w\-]{19,50}"),
    _shape("vault-token", "hvs. hvb. hvr.", _ALONE + r"hv[sbr]\.[\w\-]{20,300}"),
    _shape("terraform-token", ".atlasv1.", r"[A-Za-z0-9]{14}\.atlasv1\.[\w\-]{30,100}"),
    _shape("docker-token", "dckr_", _ALONE + r"dckr_(?:pat|oat)_[\w\-]{20,80}"),
    _shape("dbt-token", "dbtc_ dbtu_ dbts_", _ALONE + r"dbt[cus]_[\w+/=\-]{20,100}"),
    _shape("notion-token", "secret_ ntn_", _ALONE + r"(?:secret_[A-Za-z0-9]{40,50}|ntn_[A-Za-z0-9]{40,60})"),
    _shape("linear-key", "lin_", _ALONE + r"lin_(?:api|oauth)_[A-Za-z0-9]{30,80}"),
    _shape("telegram-token", ":AA", _ALONE + r"\d{8,10}:AA[\w\-]{32,34}"),
    _shape("airtable-token", "pat", _ALONE + r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}"),
    _shape("postman-key", "PMAK-", _ALONE + r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    _shape("sentry-token", "sntry", _ALONE + r"sntry[su]_[\w+/=\-]{30,300}"),
    _shape("age-key", "AGE-SECRET-KEY-", r"AGE-SECRET-KEY-1[A-Z0-9]{40,70}"),
    _shape("entra-secret", "Q~", r"(?<![\w~.\-])[\w~.\-]{3}\dQ~[\w~.\-]{28,40}"),
    _shape("azure-devops-token", "AZDO", r"[A-Za-z0-9]{70,80}AZDO[A-Za-z0-9]{4}"),
    _shape(
        "azure-key",
        "AzFu AzCa AzSe AIoT ACDb AStg APIM ACR+ AzEv AzSB +ASb +AEh",
        r"(?<![\w+/])[\w+/\-]{20,90}(?:AzFu|AzCa|AzSe|AIoT|ACDb|AStg|APIM|ACR\+|AzEv|AzSB|\+ASb|\+AEh)[\w+/\-]{4,20}={0,2}",
    ),
    _shape(
        "password-hash",
        "$2 $apr1$ $6$ $5$ $1$ $argon2",
        r"\$(?:2[abxy]\$\d\d\$[./A-Za-z0-9]{50,60}|(?:apr1|[156])\$[\w./$=]{16,150}|argon2[id]{1,2}\$[\w./$=,+]{20,200})",
    ),
    _shape(
        "password-hash",
        "SHA MD5 SCRYPT CRYPT PBKDF2",
        r"\{(?:S?SHA\d{0,3}|S?MD5|S?CRYPT|PBKDF2[\w\-]{0,10})\}[\w+/=.$]{12,300}",
    ),
    _shape(
        "ssh-key",
        "AAAA",
        r"\b(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-\w{1,12}|sk-[\w\-]{1,20}@openssh\.com)[ +]{1,2}"
        r"(AAAA[\w+/=\-]{20,4000}(?:[ +]{1,2}[^\s\"'@<>,;]{1,64})?(?:@[\w.\-]{1,80})?)",
    ),
    _shape("ssh-key", "b3BlbnNzaC1rZXktdjE", r"b3BlbnNzaC1rZXktdjE[A-Za-z0-9+/=\s]{20,8000}"),
    _shape("credential", "earer", r"[Bb]earer[ +:=\"']{1,4}([\w.~+/=\-]{8,8000})", _is_credential),
    _shape("credential", "BEARER", r"BEARER[ :=\"']{1,4}([\w.~+/=\-]{8,8000})", _is_credential),
    _shape("credential", "asic", r"\b[Bb]asic[ +]([A-Za-z0-9+/]{8,800}={0,2})", _is_credential),
    _shape("credential", "SSWS", r"\bSSWS[ +:=]{1,2}([\w\-]{16,200})"),
    _shape("credential", "cnonce response=", r"\bresponse=[\"']?([0-9a-fA-F]{32,128})" + _END),
    _shape("signature", "Signature=", r"Signature=([\w+/=\-]{20,2000})"),
    _shape(
        "credential",
        "uthorization AUTHORIZATION",
        r"(?:[Aa]uthorization|AUTHORIZATION)[\"']{0,2}\s?[:=,]\s{0,2}[\"']?(?!Digest\b)"
        r"(?:SharedKey(?:Lite)? [\w\-]{1,60}:|[A-Za-z][\w\-]{1,30}[ :]\s?|)(?:token=)?[\"']?([\w.~+/=\-]{8,8000})",
        _is_credential,
    ),
    _shape("password", "://", r"://[^\s/:\"'<>\[\]]{0,128}:((?!\[redacted:)[^\s/\"'<>]{1,300})@(?=[\w\[.\-$*{])"),
    _shape(
        "password",
        "://",
        r"://[^\s/@:\"'<>\[\]]{0,128}:((?!\[redacted:)[^\s@\"'<>]{1,300})@(?=[\w\[\-]{1,60}\.[\w.\-]{2,60}(?:[:/\s\"']|$))",
    ),
    _shape("token", "://", r"://([^\s/@:\"'<>\[\]]{20,300})@(?=[\w.\-])", _has_digit_and_letter),
    _shape("password", "oracle:thin:", r"oracle:thin:[^\s/@]{1,80}/([^\s@]{1,128})@"),
    _shape(
        "password",
        "curl wget http",
        r"(?:curl|wget|https?)\b[^\n]{0,300}?\s(?:-u|--user)[ =]{0,2}[\"']?[^\s:\"']{1,80}:([^\s\"']{1,200})",
    ),
    _shape(
        "password",
        "ldap",
        r"\bldap[a-z]{3,10}\b[^\n]{0,300}?\s-w ?[\"']?([^\s\"']{4,128})",
    ),
    _shape(
        "password",
        "mysql sshpass login",
        r"(?:mysql\w{0,10}|sshpass|login)\b[^\n]{0,300}?\s-p ?[\"']?([^\s\"']{4,128})",
    ),
    _shape(
        "password",
        "login LOGIN",
        r"\b(?:login|LOGIN) \S{1,80}\s{1,4}(?:password|PASSWORD)\s{1,4}(\S{1,128})",
        _is_scrap,
    ),
    _shape(
        "password",
        "dentified DENTIFIED",
        r"(?i:identified\s{1,3}by)\s{1,3}(?:(?i:password)\s)?[\"']?([^\s\"';]{1,128})",
    ),
    _shape(
        "password",
        "5432: 6432: 3306: 1433: 1521: 5439: pgpass",
        r"(?<![\w.\-*])[\w.\-*]{1,120}:(?:\d{4,5}|\*):[\w*\-]{1,64}:[\w*\-.]{1,64}:((?!\[redacted:|\d{1,5}(?!\S))[^\s\"',]{4,128})",
    ),
    _shape(
        "cookie",
        "ookie COOKIE",
        r"(?:[Cc]ookie|COOKIE)[\"']{0,2}\s?[:=]\s{0,2}[\"']?"
        r"([^\n\"'\s=;]{1,80}=(?!\[redacted:)[^\s;\"']{1,4000}(?:; ?[^\s;\"']{1,4000}){0,40})",
    ),
    _shape(
        "cookie",
        "ARRAffinity AWSALB SESS sessionid SessionId sid csrf CSRF XSRF AspNetCore __Secure- __Host- DATAAPP",
        r"(?<![\w.\-])(?:ARRAffinity(?:SameSite)?|AWSALB\w{0,10}|JSESSIONID|PHPSESSID|ASPSESSIONID\w{0,10}|ASP\.NET_SessionId"
        r"|sessionid|connect\.sid|csrf_?token|_csrf|X?C?SRF-TOKEN|\.AspNetCore\.[\w.]{1,60}|__(?:Secure|Host)-[\w.\-]{1,40}"
        r"|DATAAPP\w{0,10})=[\"']?([\w%+/=.~\-]{16,4000})",
        _has_digit_and_letter,
    ),
    _shape("password", "assword", r"[Pp]assword\b[^\n\"'=:]{0,40}[\"']([^\s\"']{6,128})[\"']", _is_random),
    _shape("password", "redis", r"(?:redis-cli\b[^\n]{0,200}? -a|\brequirepass)\s{1,4}[\"']?([^\s\"']{4,256})"),
    _shape("key", "=", r"(?<![\w+/=\-])([A-Za-z0-9+/]{86}==)(?![\w=])", _is_random),
    _shape("key", "=", r"(?<![\w+/=\-:])([A-Za-z0-9+/]{43}=)(?![\w=])", _is_random),
    _shape("azure-devops-token", "", _ALONE + r"[a-z2-7]{52}" + _END, _has_digit_and_letter),
)

_CHECKSUM_BEFORE = re.compile(r"(?i:sha-?\d{0,3}|md5|digest|checksum|integrity|etag|hash)[^\w]{1,4}[\"']?$")

_PEM_BEGIN = re.compile(r"-{4,5}BEGIN[\s+]{0,20}[A-Z0-9 +]{0,40}PRIVATE[\s+]{0,20}KEY(?:[\s+]{0,20}BLOCK)?-{4,5}")
_PEM_END = re.compile(r"-{4,5}END[\s+]{0,20}[A-Z0-9 +]{0,40}PRIVATE[\s+]{0,20}KEY(?:[\s+]{0,20}BLOCK)?-{4,5}")
_PEM_BODY = re.compile(
    r"(?:\s{0,20}(?:[A-Za-z0-9+/=]{16,200}|[A-Za-z0-9+/=]{1,15}(?=\s{0,20}(?:-|$|[A-Za-z0-9+/=]{16}))"
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

_IPV4 = re.compile(r"(?<![\w.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\.?\w)")
_DASHED_IPV4 = re.compile(r"\bip-(\d{1,3}-\d{1,3}-\d{1,3}-\d{1,3})\b")
"""As Amazon names its machines: ip-10-1-2-3.eu-west-1.compute.internal."""
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:(?:[0-9A-Fa-f]{1,4}:){6}[0-9A-Fa-f]{1,4}"
    r"|[0-9A-Fa-f]{1,4}:(?:[0-9A-Fa-f]{1,4}:){0,5}(?::[0-9A-Fa-f]{1,4}){1,6}"
    r"|[0-9A-Fa-f]{1,4}:(?:[0-9A-Fa-f]{1,4}:){1,6}:)"
    r"(?:%\w{1,12})?(?![\w:])"
)
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|java|jdk|python|scala|photon|delta|odbc|dbr)|version|release|runtime|build|jdbc\d?|package|library|"
    r"oracle(?: database)?|upgrad\w{1,4}(?: from)?(?: \d[\d.]{0,12} to)?|[=><~!^]=)\.?[ :=\"'(]{0,3}$"
    r"|[A-Za-z]\d{0,3}[-_]$",
    re.IGNORECASE,
)
_MACHINE_BEFORE = re.compile(
    r"\b(?:worker|node|host|ip|driver|executor|laptop|desktop|pc|vm|machine|client|server|peer|master|agent|pod)[-_]$",
    re.IGNORECASE,
)
_PORT_AFTER = re.compile(r":\d{2,5}\b")
_NOBODYS_ADDRESS = ("127.", "0.0.0.0", "255.255.", "169.254.", "168.63.129.16")  # noqa: S104 (text, not a binding)


def _secrets(text: str) -> Iterator[_Span]:
    for shape in _SHAPES:
        if not shape.hints or any(hint in text for hint in shape.hints):
            yield from _of_shape(shape, text)
    yield from _private_keys(text)
    yield from _named(text)
    yield from _personal(text)


def _of_shape(shape: _Shape, text: str) -> Iterator[_Span]:
    group = 1 if shape.pattern.groups else 0
    for found in shape.pattern.finditer(text):
        start, end = found.span(group)
        is_checksum = shape.kind == "key" and _CHECKSUM_BEFORE.search(text, max(0, start - 16), start)
        if not is_checksum and shape.is_secret(found.group(group)):
            yield _Span(start, end, shape.kind, found.start())


def _private_keys(text: str) -> Iterator[_Span]:
    """Whole PEM blocks; also the rest of one whose beginning or end was cut off."""
    if "PRIVATE" not in text:
        return
    ends = [found.span() for found in _PEM_END.finditer(text)]
    for begin in _PEM_BEGIN.finditer(text):
        index = bisect_left(ends, begin.end(), key=lambda span: span[0])
        if index < len(ends) and ends[index][0] - begin.end() <= _LONGEST_KEY_BLOCK:
            yield _Span(begin.start(), ends[index][1], "private-key", begin.start())
        else:
            body = _PEM_BODY.match(text, begin.end(), begin.end() + _LONGEST_KEY_BLOCK)
            yield _Span(begin.start(), body.end() if body else begin.end(), "private-key", begin.start())
    for start, end in ends:
        first = _start_of_key_lines(text, start)
        yield _Span(first, end, "private-key", first)


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
            yield _Span(mailbox.start(), domain.end(), "email", mailbox.start())
        position = text.find("@", position + 1)
    for found in _IPV4.finditer(text):
        if _is_somebodys_address(found):
            yield _Span(*found.span(), "ip", found.start())
    if "ip-" in text:
        for found in _DASHED_IPV4.finditer(text):
            yield _Span(*found.span(1), "ip", found.start())
    if "::" in text or text.count(":") > 6:
        for found in _IPV6.finditer(text):
            if any(character.isdigit() for character in found.group()):
                yield _Span(*found.span(), "ip", found.start())


def _is_an_email(text: str, start: int, end: int) -> bool:
    """Not so in front of a host in an address, where it is a container, a user or the end of a password."""
    if _NOT_AN_EMAIL.search(text[start:end]):
        return False
    in_user_info = _IN_USER_INFO.search(text, max(0, start - 131), start)
    return not in_user_info or bool(_PASSWORD_OF_USER_INFO.match(text, end))


def _is_somebodys_address(found: re.Match[str]) -> bool:
    address, start = found.group(), found.start()
    if address.startswith(_NOBODYS_ADDRESS) or any(int(part) > 255 for part in address.split(".")):
        return False
    if _PORT_AFTER.match(found.string, found.end()) or _MACHINE_BEFORE.search(found.string, max(0, start - 12), start):
        return True
    return not _VERSION_BEFORE.search(found.string, max(0, start - 40), start)


# --- values that are secret because of their name --------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z_][\w.\-]{1,120}")
_ASSIGNED = re.compile(
    r"[\"'\])]{0,3}\s{0,3}(?:(?:=>|->|:=|={1,2})[ \t]{0,3}|(?::|[\"'] ?, ?(?=[\"']))\s{0,3})(?:[bru](?=[\"']))?"
)
_ELSEWHERE = re.compile(
    r">(?:</(?:name|key)>\s{0,40}<(?:value|string)>)?|</(?:name|key)>\s{0,40}<(?:value|string)>"
    r"|[\"']>|[\"']\s{1,40}(?:value|Value|VALUE|content)\s?=\s?"
    r"|[\"']\s?,\s{0,40}[\"'](?:value|Value|default|val)[\"']\s?[:=]\s?"
    r"|[\"']?\n\s{1,40}(?:value|default): "
)
"""`<name>…</name><value>`, `<add key="…" value=`, `{"name": "…", "value":` and YAML's `- name: …`, `value:`."""
_SPACE = re.compile(r"[ \t]{1,3}(?:(?:is|was|value|of) )?[:=]?\s{0,2}")
_QUOTED = {'"': re.compile(r'[^"\n]{1,8000}'), "'": re.compile(r"[^'\n]{1,8000}"), "`": re.compile(r"[^`\n]{1,8000}")}
_OPENED = re.compile(r"[\"']\s?[:=]\s?\{")
_ITEM = re.compile(r"[\"']([\w\-]{1,40})[\"']\s?:\s?[\"']([^\"'\n]{8,4000})[\"']")
_INSIDE = re.compile(r"[^{}]{1,6000}")
_BRACED = re.compile(r"\{((?:[^{}\s\"']|\}\}){1,400})\}(?!\})")
"""ODBC: a value may stand in braces, a closing brace in it is doubled."""
_BARE = re.compile(r"(?:[^\s\"'<>;&,)}\]`]|,(?!\s|[\w.\-]{1,40}[=:]|$)|[)}\]](?![\s\"';&,)}\]]|$)){1,4000}")

_WORDS_OF = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_HARMLESS_END = re.compile(
    r"(?:name|scope|type|count|id|file|limit|column|field|table)s?|ur[il]|endpoint|path|length|len|policy|expir\w{1,6}|"
    r"ttl|vault|version|size|arn|ref|reference|format|provider|class|mode|enabled|required|prefix|suffix|alias|algorithm|"
    r"usage|used|budget|manager|service|error|store|rotation|strategy|valid|invalid|missing|audience|issuer|lifetime|"
    r"location|encryption|in|at|date|time|created|updated|owner|user|username|host|port|rate|total|max|min|window|bucket"
)
_PASSWORD = re.compile(
    r"passw(?:or)?d|passwort|passphrase|passcode|(?:^|_)(?:pass|pwd|pw)(?:_|$)|pwd$|^pgpass|userpass"
)
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
_PLACEHOLDER = re.compile(
    r"(?i:\*{2,}|x{3,}$|\.{2,}|\[|\{|<|\$(?:[{(]|[a-z_]{1,60}(?:[.:][\w.]{1,60})?$)|%\(|none$|null$|nil$|true$|false$|undefined$|redacted|masked|hidden|removed|"
    r"empty$|n/a$|-+$|unset$|yes$|no$|string$|str$|required$|optional$|expired$|missing$|invalid$|todo$|changeme$|"
    r"dbutils\b|os\.|env\b|self\.|config\b|settings\b|args\b|getpass|keyvault|secretscope)"
)
_SERVICE_BEFORE = re.compile(
    r"(?:api|access|secret|account|private|client|auth|service|subscription|storage) $", re.IGNORECASE
)
_IDENTIFIER = re.compile(r"[A-Za-z_]{1,24}(?:\.[A-Za-z_]{1,24}){0,4}")
_WORD = re.compile(r"[A-Za-z][a-z]{0,30}[.,:;!?]?")
_WORD_OF_A_PARSER = re.compile(r"(?:[A-Z]?[a-z]{2,20}){1,4}\d{0,4}")
"""`token=Identifier123`: what a parser or a tokenizer calls a token."""
_NO_VALUE = re.compile(r"(?:0x)?[\d\-/:.,TZ+]{1,60}$|[A-Za-z_][\w.\-]{1,60}=[^=]|-{2,5}|\.{2,3}")
"""A number, a date, another assignment, a flag."""
_SLUG = re.compile(r"[a-z]{1,24}\d{0,4}(?:[-_./:][a-z]{0,24}\d{0,4}){1,8}")


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
        return _Name("password", _Trust.ANY)
    if _TELLING.search(compact):
        return _Name(next((kind for kind in ("token", "secret", "key") if kind in compact), "secret"), _Trust.LIKELY)
    return _Name("key", _Trust.UNCLEAR) if _WEAK_KEY.search(compact) else None


def _named(text: str) -> Iterator[_Span]:
    position = 0
    while found := _NAME.search(text, position):
        position = found.end()
        if text[max(0, found.start() - 10) : found.start()] == "[redacted:":  # the word is the kind in a marker
            continue
        name = _secret_name(found.group().rstrip(".-"))
        if name:
            if name.trust is _Trust.UNCLEAR and _SERVICE_BEFORE.search(text, max(0, found.start() - 14), found.start()):
                name = _Name(name.kind, _Trust.LIKELY)
            span = _value(text, found, name)
            if span:
                yield span
                position = max(position, span.end)
            elif name.trust is _Trust.LIKELY:
                yield from _nested(text, found, name)


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
        return _Span(*braced.span(1), name.kind, name_found.start())
    quote = text[place : place + 1]
    if quote in ("{", "[", "<"):  # an object, a list, a placeholder
        return None
    value = _QUOTED[quote].match(text, place + 1) if quote in _QUOTED else _BARE.match(text, place)
    if not value or _PLACEHOLDER.match(value.group()) or not is_secret(value, name, quote in _QUOTED):
        return None
    return _Span(value.start(), value.end(), name.kind, name_found.start())


def _nested(text: str, name_found: re.Match[str], name: _Name) -> Iterator[_Span]:
    """`"tokens": {"refresh": "…"}`: what is secret by the name around it."""
    opened = _OPENED.match(text, name_found.end())
    if not opened:
        return
    inside = _INSIDE.match(text, opened.end())
    for item in _ITEM.finditer(text, *inside.span()) if inside else ():
        words = [word.lower() for word in _WORDS_OF.findall(item.group(1))]
        if words and not _HARMLESS_END.fullmatch(words[-1]) and _looks_secret(item.group(2), name.trust):
            yield _Span(*item.span(2), name.kind, name_found.start())


def _is_assigned_secret(value: re.Match[str], name: _Name, is_quoted: bool) -> bool:
    secret, text = value.group(), value.string
    after = text[value.end() : value.end() + 1]
    if not is_quoted:
        is_expression = after in ("[", "(") or "(" in secret[:40]
        if is_expression or (after in (",", ")") and _IDENTIFIER.fullmatch(secret) and not _is_scrap(secret)):
            return False
    if name.trust is _Trust.ANY:
        is_sentence = text[value.start() - 1] == " " and after == " " and _WORD.fullmatch(secret)
        return not is_sentence
    if name.kind == "token" and not is_quoted and _WORD_OF_A_PARSER.fullmatch(secret):
        return False
    return _looks_secret(secret, name.trust)


def _is_flagged_secret(value: re.Match[str], name: _Name, is_quoted: bool) -> bool:
    secret = value.group()
    return not secret.startswith("-") and (name.trust is _Trust.ANY or is_quoted or _looks_secret(secret, name.trust))


def _is_told_secret(value: re.Match[str], name: _Name, is_quoted: bool) -> bool:
    """`password hunter2`, `the token 9f86…`: without a sign between them only what no sentence would hold."""
    secret = value.group()
    if name.trust is _Trust.ANY:
        is_made_up = is_quoted or _has_digit_and_letter(secret) or _is_scrap(secret)
        return (
            len(secret) >= 8
            and " " not in secret
            and is_made_up
            and not _WORD.fullmatch(secret)
            and not _SLUG.fullmatch(secret)
        )
    return len(secret) >= 16 and _looks_secret(secret, name.trust)


def _looks_secret(value: str, trust: _Trust) -> bool:
    if len(value) < 8 or "://" in value or " " in value or _NO_VALUE.match(value) or _is_path(value):
        return False
    if trust is _Trust.UNCLEAR:
        return len(value) >= 20 and _is_random(value)
    if value.replace(".", "").replace("-", "").replace(":", "").isdigit():
        return False
    if _SLUG.fullmatch(value):
        return False
    if _has_digit_and_letter(value):
        return True
    return len(value) >= 20 and not any(character in value for character in "._-/")


def _is_path(value: str) -> bool:
    """Base64 may begin with a slash too; a path has words between its slashes."""
    return value.startswith(("/", "./")) and not (
        value.endswith("=")
        or any(len(part) >= 16 and _is_random(part) and "." not in part for part in value.split("/"))
    )
