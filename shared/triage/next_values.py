"""The value to try next: of a job parameter by the words in its name, of a Spark setting by the kind that it is. Pure.

Names, units and defaults of Spark settings: Apache Spark, "Configuration"; where Databricks has its own default, that.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

SMALLER = ("batch", "chunk", "parallel", "concurren", "threads", "workers", "page_size", "fetch")
LONGER = ("timeout", "wait", "deadline")
HIGHEST_TIMEOUT_SECONDS = 86_400


def next_parameter(name: str, current: str) -> str | None:
    """The value to try next, or None where there is none to try (not a number, or already at the bound)."""
    try:
        number = int(current)
    except ValueError:
        return None
    lowered = name.lower()
    if any(word in lowered for word in LONGER):
        longer = min(number * 2, HIGHEST_TIMEOUT_SECONDS)
        return str(longer) if longer > number > 0 else None
    if any(word in lowered for word in SMALLER):
        return str(number // 2) if number >= 2 else None
    return None


BYTES: Mapping[str, float] = {
    "b": 1,
    "k": 2**10,
    "kb": 2**10,
    "m": 2**20,
    "mb": 2**20,
    "g": 2**30,
    "gb": 2**30,
    "t": 2**40,
    "tb": 2**40,
}
SECONDS: Mapping[str, float] = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
NUMBER: Mapping[str, float] = {"": 1}


@dataclass(frozen=True, slots=True)
class SparkSetting:
    """How one setting is stepped.

    `default` is used where the cluster does not set it; `factor` leads to the next value. `units` are those its values
    may have, `bare` is the unit of a value without one.
    """

    default: str
    factor: float
    units: Mapping[str, float]
    bare: str


STEPPED: Mapping[str, SparkSetting] = {
    "spark.driver.maxResultSize": SparkSetting("4g", 2, BYTES, "b"),  # Databricks' default; Spark's own is 1g
    "spark.executor.memoryOverhead": SparkSetting("1g", 1.5, BYTES, "m"),  # by default a tenth of the memory
    "spark.kryoserializer.buffer.max": SparkSetting("64m", 2, BYTES, "m"),
    "spark.connect.grpc.maxInboundMessageSize": SparkSetting("128m", 2, BYTES, "b"),
    "spark.rpc.message.maxSize": SparkSetting("128", 2, BYTES, "m"),
    "spark.sql.files.maxPartitionBytes": SparkSetting("128m", 0.5, BYTES, "b"),
    "spark.sql.shuffle.partitions": SparkSetting("200", 2, NUMBER, ""),
    "spark.sql.broadcastTimeout": SparkSetting("300", 2, SECONDS, "s"),
    "spark.network.timeout": SparkSetting("120s", 2, SECONDS, "s"),
    # Shrunk: it is asked for where the metastore's database refuses more connections. The default is unverified.
    "spark.databricks.hive.metastore.client.pool.size": SparkSetting("20", 0.5, NUMBER, ""),
}

FIXED: Mapping[str, str] = {
    "spark.sql.autoBroadcastJoinThreshold": "-1",
    "spark.sql.codegen.wholeStage": "false",
}
"""Settings with one value that helps: it switches off what failed."""

FURTHEST: Mapping[str, str] = {
    "spark.driver.maxResultSize": "16g",
    "spark.executor.memoryOverhead": "8g",
    "spark.kryoserializer.buffer.max": "2047m",  # Spark refuses 2048m
    "spark.connect.grpc.maxInboundMessageSize": "1g",
    "spark.rpc.message.maxSize": "2047",  # Spark refuses 2048
    "spark.sql.files.maxPartitionBytes": "16m",
    "spark.sql.shuffle.partitions": "8000",
    "spark.sql.broadcastTimeout": "3600",
    "spark.network.timeout": "1200s",
    "spark.databricks.hive.metastore.client.pool.size": "1",
    **FIXED,
}
"""How far each may be changed: the highest value, of those that shrink the lowest."""


def next_spark_value(name: str, current: str | None, furthest: str) -> str | None:
    """The value to try next; None where there is none: not known, already as far as allowed, switched off (0), `auto`.

    `current` None = not set. A value that has no unit stays without one.
    """
    if name in FIXED:
        return FIXED[name] if current is None or current.strip().lower() != FIXED[name] else None
    setting = STEPPED.get(name)
    if setting is None:
        return None
    text = setting.default if current is None else current
    value, bound = quantity(text, setting), quantity(furthest, setting)
    if value is None or bound is None or value <= 0:
        return None
    wanted = value * setting.factor
    wanted = min(wanted, bound) if setting.factor > 1 else max(wanted, bound)
    return _written(wanted, value, text, setting)


def _written(wanted: float, value: float, text: str, setting: SparkSetting) -> str | None:
    """As text, in the unit of the old value or a smaller one; None where rounding leaves nothing of the step."""
    unit = _unit(text)
    if not unit:
        number = int(wanted / setting.units[setting.bare])
        written = str(number)
    else:
        smaller = [u for u in setting.units if setting.units[u] <= setting.units[unit] and len(u) <= len(unit)]
        exact = [u for u in smaller if wanted % setting.units[u] == 0]
        unit = max(exact or smaller, key=lambda u: (setting.units[u], u == unit))
        number = int(wanted / setting.units[unit])
        written = f"{number}{unit}"
    reached = quantity(written, setting)
    moved = reached is not None and (reached > value if setting.factor > 1 else 0 < reached < value)
    return written if moved else None


def quantity(text: str, setting: SparkSetting) -> float | None:
    """A value in bytes, in seconds or as a number; None where it is none of these."""
    found = re.fullmatch(r"\s*(-?\d{1,15})\s*([a-z]*)\s*", text.lower(), re.ASCII)
    if not found:
        return None
    unit = found[2] or setting.bare
    return int(found[1]) * setting.units[unit] if unit in setting.units else None


def _unit(text: str) -> str:
    return text.strip().lower().lstrip("-0123456789 ")
