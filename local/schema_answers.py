"""JSON schemas of structured output: the check that Azure OpenAI makes, and answers that fit a schema without a model.

Left out: the nesting depth (the service allows five levels) and keywords that openai's pydantic schemas do not use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

type Schema = dict[str, Any]

MAX_PROPERTIES = 100  # Azure OpenAI structured outputs: at most 100 properties in all
UNSUPPORTED_KEYWORDS = frozenset(  # Azure OpenAI structured outputs: "unsupported type-specific keywords"
    [
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "multipleOf"),
        *("patternProperties", "unevaluatedProperties", "propertyNames", "minProperties", "maxProperties"),
        *("unevaluatedItems", "contains", "minContains", "maxContains", "minItems", "maxItems", "uniqueItems"),
    ]
)
NO_RULE_TEXT = "No rule of the stand-in matches this text."
LOW_CONFIDENCE, HIGH_CONFIDENCE = 0.1, 0.99


def schema_error(schema: Schema) -> str | None:
    """Say what the service would refuse in a strict schema, None if nothing."""
    if schema.get("type") != "object" or "anyOf" in schema:
        return "the root must be an object and not anyOf"
    properties = 0
    for part in _schema_parts(schema):
        unsupported = sorted(UNSUPPORTED_KEYWORDS & part.keys())
        if unsupported:
            return f"{', '.join(map(repr, unsupported))} is not permitted"
        if part.get("type") == "object":
            names = part.get("properties", {}).keys()
            properties += len(names)
            if part.get("additionalProperties") is not False:
                return "'additionalProperties' is required to be supplied and to be false"
            if set(part.get("required", [])) != set(names):
                return "'required' is required to be supplied and to include every key in properties"
    if properties > MAX_PROPERTIES:
        return f"it has {properties} properties, {MAX_PROPERTIES} are allowed"
    return None


def _schema_parts(schema: Schema) -> Iterator[Schema]:
    """Yield the schema and every schema in it; references are not followed, definitions are."""
    yield schema
    for group in ("properties", "$defs"):
        for part in schema.get(group, {}).values():
            yield from _schema_parts(part)
    for part in schema.get("anyOf", []):
        yield from _schema_parts(part)
    if "items" in schema:
        yield from _schema_parts(schema["items"])


def _alternatives(part: Schema) -> list[Schema]:
    """Return the alternatives of an ``anyOf`` or of a list of types."""
    return list(part["anyOf"]) if "anyOf" in part else [{**part, "type": kind} for kind in part["type"]]


def _words(part: Schema) -> list[Any]:
    """Return the closed list of values of an ``enum`` or a ``const``; empty for other parts."""
    return [part["const"]] if "const" in part else list(part.get("enum", []))


class AnswerWriter:
    """Writes an answer that fits a schema: one that claims nothing, or one that obeys the orders in a text."""

    def __init__(self, schema: Schema, orders: str | None = None) -> None:
        self._schema = schema
        self._orders = orders

    def write(self) -> object:
        """Return the answer as a JSON value."""
        return self._value(self._schema, "")

    def _value(self, part: Schema, name: str) -> object:
        part = self._resolved(part)
        if "const" in part:
            return part["const"]
        if "enum" in part:
            return self._choice(part["enum"], name)
        if "anyOf" in part or isinstance(part.get("type"), list):
            return self._alternative(_alternatives(part), name)
        if part.get("type") == "object":
            return {key: self._value(value, key) for key, value in part.get("properties", {}).items()}
        if part.get("type") == "array":
            return self._list(part["items"], name)
        return self._scalar(str(part.get("type")), name)

    def _resolved(self, part: Schema) -> Schema:
        while "$ref" in part:
            part = self._schema["$defs"][part["$ref"].rsplit("/", 1)[-1]]
        return part

    def _choice(self, words: list[Any], name: str) -> object:
        ordered = self._ordered_word(words, name)
        if ordered is not None:
            return ordered
        if "confidence" in name:
            wanted = "low" if self._orders is None else "high"
            return next((word for word in words if str(word).lower() == wanted), words[0])
        return self._last_named(words) or words[0]

    def _alternative(self, parts: list[Schema], name: str) -> object:
        parts = [self._resolved(part) for part in parts]
        wanted = next((part for part in parts if part.get("type") != "null" and self._is_ordered(part, name)), None)
        if wanted is not None:
            return self._value(wanted, name)
        if any(part.get("type") == "null" for part in parts):
            return None
        return self._value(parts[0], name)

    def _list(self, items: Schema, name: str) -> list[object]:
        return [self._value(items, name)] if self._is_ordered(items, name) else []

    def _scalar(self, kind: str, name: str) -> object:
        if kind == "string":
            return self._text(name)
        if kind in ("number", "integer"):
            return self._number(kind, name)
        return self._ordered_value(name).lower() == "true" if kind == "boolean" else None

    def _text(self, name: str) -> str:
        if "quote" in name:
            return self._line_with_the_last_order()
        honest = NO_RULE_TEXT if name in ("reason", "explanation", "rationale", "summary") else ""
        return self._ordered_value(name) or honest

    def _number(self, kind: str, name: str) -> float:
        ordered = self._ordered_value(name)
        if re.fullmatch(r"-?\d+(\.\d+)?", ordered):
            return int(float(ordered)) if kind == "integer" else float(ordered)
        if kind == "number" and "confidence" in name:
            return LOW_CONFIDENCE if self._orders is None else HIGH_CONFIDENCE
        return 0

    def _is_ordered(self, part: Schema, name: str) -> bool:
        """Tell whether the text has an order for this part of the answer."""
        part = self._resolved(part)
        if "enum" in part or "const" in part:
            return self._last_named(_words(part)) is not None
        if "anyOf" in part or isinstance(part.get("type"), list):
            return any(self._is_ordered(option, name) for option in _alternatives(part))
        if part.get("type") == "object":
            return self._object_is_ordered(part.get("properties", {}))
        if part.get("type") == "array":
            return self._is_ordered(part["items"], name)
        return self._ordered_value(name) != "" or ("quote" in name and self._line_with_the_last_order() != "")

    def _object_is_ordered(self, properties: Schema) -> bool:
        kinds = [value for value in properties.values() if "const" in value]  # they tell the members of a union apart
        if kinds:
            return all(self._is_ordered(value, "") for value in kinds)
        return any(self._is_ordered(value, key) for key, value in properties.items())

    def _ordered_value(self, name: str) -> str:
        """Return the value of the last ``name: value``, ``name = value`` or ``"name": "value"`` in the text, or ""."""
        order = rf"""(?i)\b{re.escape(name)}["']?\s*[:=]\s*["']?([^"'\n,{{}}\[\]]+)"""
        values: list[str] = re.findall(order, self._orders or "") if name else []
        return values[-1].strip() if values else ""

    def _ordered_word(self, words: list[Any], name: str) -> object:
        value = self._ordered_value(name)
        return next((word for word in words if re.match(rf"(?i){re.escape(str(word))}(?!\w)", value)), None)

    def _last_named(self, words: list[Any]) -> object:
        """Return the one of the words that the text names last, None if it names none."""
        last, found = -1, None
        for word in words:
            for mention in re.finditer(rf"(?i)(?<!\w){re.escape(str(word))}(?!\w)", self._orders or ""):
                if mention.start() > last:
                    last, found = mention.start(), word
        return found

    def _line_with_the_last_order(self) -> str:
        """Return the line that names an enum word last: an injected answer quotes the text it comes from."""
        words = {str(word) for part in _schema_parts(self._schema) for word in _words(part)}
        for line in reversed((self._orders or "").splitlines()):
            if any(re.search(rf"(?i)(?<!\w){re.escape(word)}(?!\w)", line) for word in words):
                return line.strip()
        return ""
