"""Whether a cluster policy forbids a value. Pure.

Attributes are dotted paths into a cluster's settings (`autoscale.max_workers`, `spark_conf.spark.network.timeout`),
rules have a type (Azure Databricks, "Compute policy reference"). Read here are `fixed`, `forbidden`, `allowlist`,
`blocklist` and `range`; about any other (`regex`, `unlimited`, the virtual `dbus_per_hour`) Databricks has the word.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from shared.domain import ClusterPolicy, Json

NAMED_VALUES = 5


def forbidden(policy: ClusterPolicy, path: tuple[str, ...], value: Any) -> str | None:  # noqa: ANN401 - raw JSON
    """Why the policy does not let a cluster have the value at the path; None where it does, as far as is known."""
    for attribute, wanted in _attributes(".".join(path), value):
        rule = policy.rules.get(attribute)
        if rule and not _allows(rule, wanted):
            return f"its rule for {attribute} ({_described(rule)}) forbids {wanted}"
    return None


def _attributes(path: str, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - raw JSON
    """The value by its dotted path; of an object, each value in it."""
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, inner in value.items():
        yield from _attributes(f"{path}.{name}", inner)


def _allows(rule: Json, value: Any) -> bool:  # noqa: ANN401 - raw JSON
    match rule.get("type"):
        case "fixed":
            return _word(value) == _word(rule.get("value"))
        case "forbidden":
            return False
        case "allowlist":
            return _word(value) in map(_word, rule.get("values") or ())
        case "blocklist":
            return _word(value) not in map(_word, rule.get("values") or ())
        case "range":
            return _is_between(value, rule.get("minValue"), rule.get("maxValue"))
        case _:
            return True


def _word(value: Any) -> str:  # noqa: ANN401 - raw JSON
    """Policies write numbers and truth values as text or not, as they like."""
    return str(value).lower()


def _is_between(value: Any, low: Any, high: Any) -> bool:  # noqa: ANN401 - raw JSON
    try:
        number = float(value)
        return (low is None or float(low) <= number) and (high is None or number <= float(high))
    except (TypeError, ValueError):
        return True


def _described(rule: Json) -> str:
    match rule.get("type"):
        case "fixed":
            return f"fixed to {rule.get('value')}"
        case "allowlist" | "blocklist" as kind:
            values = [str(value) for value in rule.get("values") or ()]
            more = ", …" if len(values) > NAMED_VALUES else ""
            return f"{'one of' if kind == 'allowlist' else 'none of'} {', '.join(values[:NAMED_VALUES])}{more}"
        case "range":
            bounds = (("at least", rule.get("minValue")), ("at most", rule.get("maxValue")))
            return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
        case kind:
            return str(kind)
