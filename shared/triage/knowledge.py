"""What the triage knows, as data: `signatures.yaml` (texts) and `codes.yaml` (codes), checked and compiled once.

A pattern is a regular expression or a list of them, matched without regard to case, `^` and `$` at line ends;
`(?-i:…)` insists on case; `{{name}}` stands for the alternatives of that name in `words`, so that a pattern reads like
a sentence. It is tried only on lines in which one of its `keywords` (literals, lower case) stands, so most of them
cost nothing.
"""

import functools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from shared.domain import Category, Change, DecisionKind
from shared.errors import ConfigurationError

SIGNATURES_FILE = Path(__file__).with_name("signatures.yaml")
CODES_FILE = Path(__file__).with_name("codes.yaml")

_FLAGS = re.IGNORECASE | re.MULTILINE


class Where(StrEnum):
    """Where a signature may match. `sentence`: in one sentence of the status lines, each tried as a line of its own."""

    ANY = "any"
    STATUS = "status"
    SENTENCE = "sentence"


class Weight(StrEnum):
    """How much a match says: `decisive` wins wherever it stands, `symptom` only when nothing better matched."""

    DECISIVE = "decisive"
    CAUSE = "cause"
    SYMPTOM = "symptom"


class Effect(StrEnum):
    """What the circumstances told in a text do to a diagnosis."""

    PERSISTENT = "persistent"
    PASSING = "passing"
    LATE_INPUT = "late_input"
    CHANGE_TRIED = "change_tried"
    SOMEBODY_INVOLVED = "somebody_involved"
    NOT_DONE = "not_done"


class Reading:
    """A text that many patterns are tried on, with its lines.

    `present`: of the keywords of all patterns that will be tried those that stand in it; without it each looks for its
    own.
    """

    def __init__(self, text: str, present: frozenset[str] | None = None) -> None:
        self.text = text
        self.lines = text.split("\n")
        self._lowered_lines = [line.lower() for line in self.lines]
        self._lowered = "\n".join(self._lowered_lines)
        self._ends = list(accumulate(len(line) + 1 for line in self._lowered_lines))
        self._lines_of_keyword: dict[str, list[int]] = {}
        self.present = present

    def lines_with(self, keywords: frozenset[str]) -> list[int]:
        """Numbers of the lines in which one of `keywords` (lower case) stands."""
        present = _among(self._lowered, keywords) if self.present is None else self.present & keywords
        if not present:
            return []
        if len(self.lines) == 1:
            return [0]
        return sorted({number for keyword in present for number in self._lines_with(keyword)})

    def _lines_with(self, keyword: str) -> list[int]:
        numbers = self._lines_of_keyword.get(keyword)
        if numbers is None:
            numbers = self._lines_of_keyword[keyword] = []
            position = self._lowered.find(keyword)
            while position >= 0:
                number = bisect_right(self._ends, position)
                numbers.append(number)
                position = self._lowered.find(keyword, self._ends[number])
        return numbers


def _among(text: str, keywords: Iterable[str]) -> frozenset[str]:
    """Those of `keywords` that stand in the text."""
    return frozenset([keyword for keyword in keywords if keyword in text])


_BEGINNING = 4
"""Characters of a keyword by which most keywords of a large vocabulary are ruled out."""


def present(text: str, vocabulary: frozenset[str]) -> frozenset[str]:
    """Those of many keywords (lower case) that stand in the text, whatever its case.

    Only keywords whose beginning occurs in the text are looked for.
    """
    text = text.lower()
    by_beginning = _by_beginning(vocabulary)
    beginnings = {text[start : start + _BEGINNING] for start in range(len(text) - _BEGINNING + 1)}
    possible = [keyword for start in beginnings & by_beginning.keys() for keyword in by_beginning[start]]
    return _among(text, [*possible, *by_beginning.get("", ())])


@functools.cache
def _by_beginning(vocabulary: frozenset[str]) -> Mapping[str, list[str]]:
    """The keywords by their beginning; those too short to have one under the empty text."""
    keywords: dict[str, list[str]] = {}
    for keyword in vocabulary:
        keywords.setdefault(keyword[:_BEGINNING] if len(keyword) >= _BEGINNING else "", []).append(keyword)
    return keywords


@dataclass(frozen=True, slots=True)
class Match:
    """A match of a pattern: the line (or lines) it stands in, and the number of the first of them."""

    line: str
    line_number: int
    found: re.Match[str]


@dataclass(frozen=True, slots=True)
class Pattern:
    """An expression with the literals of which one must occur in a line before it is tried there.

    It is tried line by line, or on the text as a whole when it says that it spans lines (`[\\s\\S]`). `unless` speaks
    against a match by matching the same line.
    """

    keywords: frozenset[str]
    expression: re.Pattern[str]
    unless: re.Pattern[str] | None

    def matches(self, reading: Reading) -> Iterator[Match]:
        """All matches, in the order of the lines."""
        numbers = reading.lines_with(self.keywords)
        if not numbers:
            return
        candidates = (
            self._spanning(reading) if "[\\s\\S]" in self.expression.pattern else self._single(reading, numbers)
        )
        for match in candidates:
            if self.unless is None or not self.unless.search(match.line):
                yield match

    def _single(self, reading: Reading, numbers: list[int]) -> Iterator[Match]:
        for number in numbers:
            line = reading.lines[number]
            found = self.expression.search(line)
            if found is not None:
                yield Match(line, number, found)

    def _spanning(self, reading: Reading) -> Iterator[Match]:
        text = reading.text
        for found in self.expression.finditer(text):
            start = text.rfind("\n", 0, found.start()) + 1
            end = text.find("\n", found.end())
            yield Match(text[start : end if end >= 0 else len(text)], text.count("\n", 0, start), found)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a code or a text means. `{name}` in a change word is filled by the group of that name of the pattern."""

    decision: DecisionKind
    category: Category
    confidence: float
    why: str
    change_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Signature:
    """One entry of `signatures`. `repeated_changes`: what to change when the same happens again and again.

    `may_pass`: reads like a lasting fault, but is a hiccup where the same work mostly succeeds.
    """

    id: str
    pattern: Pattern
    verdict: Verdict
    where: Where = Where.ANY
    weight: Weight = Weight.CAUSE
    repeated_changes: tuple[str, ...] = ()
    may_pass: bool = False
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Circumstance:
    """One entry of `circumstances`: what a text tells about how often and how long something has failed."""

    id: str
    pattern: Pattern
    effect: Effect
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Codes:
    """The tables of `codes.yaml`, by code."""

    termination_codes: Mapping[str, Verdict]
    termination_types: Mapping[str, Verdict]
    cluster_reasons: Mapping[str, Verdict]
    sqlstate_classes: Mapping[str, Verdict]
    sqlstates: Mapping[str, Verdict]
    conditions: Mapping[str, Verdict]
    exceptions: Mapping[str, Verdict]


@functools.cache
def signatures() -> tuple[Signature, ...]:
    """All signatures. Raises ConfigurationError naming the entry when the file is not in order."""
    return read_signatures(SIGNATURES_FILE.read_text(encoding="utf-8"))


@functools.cache
def circumstances() -> tuple[Circumstance, ...]:
    """All circumstances. Raises ConfigurationError naming the entry when the file is not in order."""
    return read_circumstances(SIGNATURES_FILE.read_text(encoding="utf-8"))


@functools.cache
def vocabulary(*places: Where) -> frozenset[str]:
    """The keywords of all patterns that are tried on these readings; circumstances are told in status lines."""
    patterns = [signature.pattern for signature in signatures() if signature.where in places]
    if Where.STATUS in places:
        patterns += [circumstance.pattern for circumstance in circumstances()]
    return frozenset().union(*(pattern.keywords for pattern in patterns))


def candidates(where: Where, present: Iterable[str]) -> list[Signature]:
    """The signatures for this kind of reading that one of the keywords `present` in it belongs to, in their order."""
    by_keyword = _signatures_by_keyword(where)
    numbers = {number for keyword in present for number in by_keyword.get(keyword, ())}
    known = signatures()
    return [known[number] for number in sorted(numbers)]


@functools.cache
def _signatures_by_keyword(where: Where) -> Mapping[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for number, signature in enumerate(signatures()):
        if signature.where is where:
            for keyword in signature.pattern.keywords:
                numbers.setdefault(keyword, []).append(number)
    return numbers


@functools.cache
def codes() -> Codes:
    """All code tables. Raises ConfigurationError naming table and code when the file is not in order."""
    tables = _load(CODES_FILE.read_text(encoding="utf-8"), CODES_FILE.name)
    return Codes(**{name: _table(name, tables.get(name)) for name in Codes.__dataclass_fields__})


def read_signatures(text: str) -> tuple[Signature, ...]:
    """The signatures of a YAML text in the form of `signatures.yaml`. Raises ConfigurationError naming the entry."""
    content = _load(text, SIGNATURES_FILE.name)
    words = _words(content)
    return _unique([_signature(entry, words) for entry in _entries(content.get("signatures"), "signatures")])


def read_circumstances(text: str) -> tuple[Circumstance, ...]:
    """The circumstances of a YAML text in the form of `signatures.yaml`. Raises ConfigurationError naming the entry."""
    content = _load(text, SIGNATURES_FILE.name)
    words = _words(content)
    return _unique([_circumstance(entry, words) for entry in _entries(content.get("circumstances"), "circumstances")])


@functools.cache
def _load(text: str, name: str) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(text, Loader=loader)  # noqa: S506 (both are safe loaders)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{name} must hold named lists or tables at its top")
    return content


def _entries(entries: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError(f"{name} must be a list of entries")
    return entries


_WORD = re.compile(r"\{\{(\w+)\}\}")


def _words(content: dict[str, Any]) -> Mapping[str, str]:
    """The named alternatives that patterns may use; a word may use those before it, or take all of them over."""
    lists: dict[str, list[str]] = {}
    words: dict[str, str] = {}
    for name, alternatives in content.get("words", {}).items():
        if not isinstance(alternatives, list) or not all(isinstance(text, str) and text for text in alternatives):
            raise ConfigurationError(f"words.{name}: must be a list of expressions")
        lists[name] = []
        for text in alternatives:
            spelled_out = _spelled_out(f"words.{name}", text, words)
            whole = _WORD.fullmatch(text)
            lists[name] += lists[whole.group(1)] if whole else [spelled_out]
        words[name] = _by_first_letter(lists[name])
    return words


_LETTER_FIRST = re.compile(r"[a-z][^?*+{|]")


def _by_first_letter(alternatives: list[str]) -> str:
    """One expression for all, those with the same first letter together: an engine that tries them one by one gives
    up sooner."""
    by_letter: dict[str, list[str]] = {}
    others = []
    for text in alternatives:
        if _LETTER_FIRST.match(text):
            by_letter.setdefault(text[0], []).append(text[1:])
        else:
            others.append(text)
    grouped = [f"{letter}(?:{'|'.join(rests)})" for letter, rests in by_letter.items()]
    return f"(?:{'|'.join([*grouped, *others])})"


def _spelled_out(name: str, expression: str, words: Mapping[str, str]) -> str:
    unknown = set(_WORD.findall(expression)) - words.keys()
    if unknown:
        raise ConfigurationError(f"{name}: {sorted(unknown)} is not among `words`")
    return _WORD.sub(lambda found: words[found.group(1)], expression)


def _unique[Entry: (Signature, Circumstance)](entries: list[Entry]) -> tuple[Entry, ...]:
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise ConfigurationError(f"{entry.id}: the id occurs twice; give each entry its own")
        seen.add(entry.id)
    return tuple(entries)


_COMMON_FIELDS = {"id", "keywords", "pattern", "unless", "examples"}
_VERDICT_FIELDS = {"decision", "category", "confidence", "why", "changes"}
_SIGNATURE_FIELDS = _COMMON_FIELDS | _VERDICT_FIELDS | {"where", "weight", "source", "repeated_changes", "may_pass"}
_CIRCUMSTANCE_FIELDS = _COMMON_FIELDS | {"effect"}


def _signature(entry: dict[str, Any], words: Mapping[str, str]) -> Signature:
    name = _id_of(entry)
    _check_fields(name, entry, _SIGNATURE_FIELDS)
    if not entry.get("source"):
        raise ConfigurationError(f"{name}: `source` must name the documentation the knowledge is from")
    return Signature(
        id=name,
        pattern=_pattern(name, entry, words),
        verdict=_verdict(name, entry),
        where=_member(name, "where", Where, entry.get("where", Where.ANY)),
        weight=_member(name, "weight", Weight, entry.get("weight", Weight.CAUSE)),
        repeated_changes=_change_words(name, entry.get("repeated_changes", [])),
        may_pass=entry.get("may_pass") is True,
        examples=_examples(name, entry),
    )


def _circumstance(entry: dict[str, Any], words: Mapping[str, str]) -> Circumstance:
    name = _id_of(entry)
    _check_fields(name, entry, _CIRCUMSTANCE_FIELDS)
    return Circumstance(
        id=name,
        pattern=_pattern(name, entry, words),
        effect=_member(name, "effect", Effect, entry.get("effect")),
        examples=_examples(name, entry),
    )


def _table(name: str, rows: object) -> Mapping[str, Verdict]:
    if not isinstance(rows, dict):
        raise ConfigurationError(f"{CODES_FILE.name}: table {name} is missing")
    table = {}
    for code, row in rows.items():
        _check_fields(f"{name}.{code}", row, _VERDICT_FIELDS)
        table[str(code)] = _verdict(f"{name}.{code}", row)
    return table


def _id_of(entry: dict[str, Any]) -> str:
    name = entry.get("id")
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"an entry has no `id`: {str(entry)[:120]}")
    return name


def _check_fields(name: str, entry: object, allowed: set[str]) -> None:
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{name}: must be a table of fields")
    unknown = entry.keys() - allowed
    if unknown:
        raise ConfigurationError(f"{name}: unknown fields {sorted(unknown)}; allowed are {sorted(allowed)}")


def _pattern(name: str, entry: dict[str, Any], words: Mapping[str, str]) -> Pattern:
    keywords = entry.get("keywords")
    if not isinstance(keywords, list) or not keywords or not all(isinstance(word, str) and word for word in keywords):
        raise ConfigurationError(f"{name}: `keywords` must be a list of literals, one of which is in every match")
    if any(word != word.lower() for word in keywords):
        raise ConfigurationError(f"{name}: `keywords` must be lower case")
    return Pattern(
        keywords=frozenset(keywords),
        expression=_compiled(name, "pattern", entry.get("pattern"), words),
        unless=_compiled(name, "unless", entry["unless"], words) if "unless" in entry else None,
    )


def _compiled(name: str, part: str, expressions: object, words: Mapping[str, str]) -> re.Pattern[str]:
    alternatives: list[object] = expressions if isinstance(expressions, list) else [expressions]
    texts = [expression for expression in alternatives if isinstance(expression, str) and expression]
    if not texts or len(texts) != len(alternatives):
        raise ConfigurationError(f"{name}: `{part}` must be a regular expression or a list of them")
    try:
        return re.compile("|".join(_spelled_out(name, text, words) for text in texts), _FLAGS)
    except re.PatternError as error:
        raise ConfigurationError(f"{name}: `{part}` is not a valid regular expression: {error}") from error


def _verdict(name: str, entry: dict[str, Any]) -> Verdict:
    confidence = entry.get("confidence")
    if not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
        raise ConfigurationError(f"{name}: `confidence` must be a number from 0 to 1")
    why = entry.get("why")
    if not isinstance(why, str) or not why:
        raise ConfigurationError(f"{name}: `why` must be one sentence for people")
    decision = _member(name, "decision", DecisionKind, entry.get("decision"))
    change_words = _change_words(name, entry.get("changes", []))
    if (decision is DecisionKind.RETRY_WITH_PARAMS) != bool(change_words):
        raise ConfigurationError(f"{name}: `changes` belong to RETRY_WITH_PARAMS, and to nothing else")
    return Verdict(
        decision=decision,
        category=_member(name, "category", Category, entry.get("category")),
        confidence=float(confidence),
        why=why,
        change_words=change_words,
    )


def _change_words(name: str, words: object) -> tuple[str, ...]:
    if not isinstance(words, list):
        raise ConfigurationError(f"{name}: changes must be a list of words such as worker_memory_up")
    for word in words:
        try:
            Change.from_word(word)
        except (ValueError, AttributeError) as error:
            raise ConfigurationError(f"{name}: {word!r} is not a change that a retry may make") from error
    return tuple(words)


def _member[Member: StrEnum](name: str, part: str, kind: type[Member], value: object) -> Member:
    try:
        return kind(str(value))
    except ValueError as error:
        raise ConfigurationError(f"{name}: `{part}` must be one of {[str(member) for member in kind]}") from error


def _examples(name: str, entry: dict[str, Any]) -> Mapping[str, tuple[str, ...]]:
    examples = entry.get("examples")
    if not isinstance(examples, dict):
        raise ConfigurationError(f"{name}: `examples` must hold `positive` and `negative` texts")
    result = {}
    for kind in ("positive", "negative"):
        texts = examples.get(kind)
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ConfigurationError(f"{name}: at least one {kind} example is needed")
        result[kind] = tuple(texts)
    return result
