"""Cluster policies: may a job cluster have the values that it asks for?

Of the policy language the types ``fixed``, ``allowlist``, ``blocklist``, ``forbidden`` and ``range`` are imitated;
``regex`` and ``unlimited`` allow everything, ``dbus_per_hour`` and ``cluster_type`` are not checked.
"""

from __future__ import annotations

from local.databricks.job_settings import Json, dotted


def violation(definition: Json, cluster: Json) -> str | None:
    """Return why a cluster breaks a policy, None if it keeps it. An attribute that is not set breaks nothing."""
    for attribute, rule in definition.items():
        value = dotted(cluster, attribute)
        if value is not None and not _allows(rule, value):
            return f"Validation failed for {attribute}, the value {value!r} is not allowed by the rule {rule}"
    return None


def _allows(rule: Json, value: object) -> bool:
    match rule.get("type"):
        case "fixed":
            return value == rule.get("value")
        case "allowlist":
            return value in rule.get("values", [])
        case "blocklist":
            return value not in rule.get("values", [])
        case "forbidden":
            return False
        case "range":
            number = float(str(value))
            return bool(rule.get("minValue", number) <= number <= rule.get("maxValue", number))
        case _:
            return True
