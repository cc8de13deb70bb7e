"""When a task that failed would succeed: the rules a scenario can name, judged on what was really done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from local.databricks.job_settings import Json, cluster_spec, dotted
from local.databricks.node_types import NODE_TYPES

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Circumstances:
    """All that decides whether one attempt of a task succeeds."""

    attempts_before: int
    """Attempts of this task that were made before, in this run and in the run that it was started again from."""
    settings: Json
    """The job's settings in force."""
    task: Json
    """The task's entry in these settings."""
    job_parameters: dict[str, str]

    @property
    def cluster(self) -> Json:
        """The classic cluster of the task, empty for any other compute."""
        return cluster_spec(self.settings, self.task) or {}

    def memory_gb(self, *, of_driver: bool) -> float:
        """Memory of one worker or of the driver in GiB; 0 where no known node type is set (pools, serverless)."""
        name = self.cluster.get("node_type_id")
        if of_driver:
            name = self.cluster.get("driver_node_type_id") or name
        node_type = NODE_TYPES.get(str(name))
        return node_type.memory_gb if node_type else 0.0


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AfterAttempts(_Rule):
    """Heals by itself once so many attempts were made."""

    kind: Literal["after_attempts"]
    attempts: int

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        return circumstances.attempts_before >= self.attempts


class WorkerMemory(_Rule):
    """Heals on workers with enough memory."""

    kind: Literal["worker_memory_gb_at_least"]
    gb: float

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        return circumstances.memory_gb(of_driver=False) >= self.gb


class DriverMemory(_Rule):
    """Heals on a driver with enough memory."""

    kind: Literal["driver_memory_gb_at_least"]
    gb: float

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        return circumstances.memory_gb(of_driver=True) >= self.gb


class JobParameter(_Rule):
    """Heals with one value of a job parameter."""

    kind: Literal["job_parameter"]
    name: str
    value: str

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        return circumstances.job_parameters.get(self.name) == self.value


class SparkConfAtLeast(_Rule):
    """Heals with a Spark setting that is large enough; values may have a unit (``8g``, ``512m``)."""

    kind: Literal["spark_conf_at_least"]
    name: str
    value: str

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        value = quantity(str(circumstances.cluster.get("spark_conf", {}).get(self.name)))
        wanted = quantity(self.value)
        return value is not None and wanted is not None and value >= wanted


class SparkConfEquals(_Rule):
    """Heals with one value of a Spark setting."""

    kind: Literal["spark_conf_equals"]
    name: str
    value: str

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        return str(circumstances.cluster.get("spark_conf", {}).get(self.name)) == self.value


class TimeoutAtLeast(_Rule):
    """Heals when neither the task's nor the job's timeout is shorter (0 or absent = no timeout)."""

    kind: Literal["timeout_seconds_at_least"]
    seconds: int

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        timeouts = (circumstances.task.get("timeout_seconds"), circumstances.settings.get("timeout_seconds"))
        return all(timeout >= self.seconds for timeout in timeouts if timeout)


class NodeTypeNot(_Rule):
    """Heals on any other worker node type, as after a stock-out."""

    kind: Literal["node_type_not"]
    node_type: str

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        return circumstances.cluster.get("node_type_id") not in (None, self.node_type)


class WorkersAtLeast(_Rule):
    """Heals with enough workers, fixed or as the maximum of autoscaling."""

    kind: Literal["workers_at_least"]
    workers: int

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        autoscale = circumstances.cluster.get("autoscale", {})
        workers: int = autoscale.get("max_workers", circumstances.cluster.get("num_workers", 0))
        return workers >= self.workers


class ClusterAttributeEquals(_Rule):
    """Heals with one value of a cluster attribute, such as ``azure_attributes.availability``."""

    kind: Literal["cluster_attribute_equals"]
    name: str
    value: str | int | bool

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        return dotted(circumstances.cluster, self.name) == self.value


class Never(_Rule):
    """Never heals."""

    kind: Literal["never"] = "never"

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        return False


class All(_Rule):
    """Heals when all of its rules hold."""

    kind: Literal["all"]
    of: list[HealsWhen] = Field(min_length=1)

    def holds(self, circumstances: Circumstances) -> bool:
        """Tell whether the next attempt succeeds."""
        return all(rule.holds(circumstances) for rule in self.of)


HealsWhen = Annotated[
    AfterAttempts
    | WorkerMemory
    | DriverMemory
    | JobParameter
    | SparkConfAtLeast
    | SparkConfEquals
    | TimeoutAtLeast
    | NodeTypeNot
    | WorkersAtLeast
    | ClusterAttributeEquals
    | Never
    | All,
    Field(discriminator="kind"),
]
All.model_rebuild()


def quantity(text: str) -> float | None:
    """Read a number with an optional unit of bytes (``200``, ``8g``, ``512MB``); None for a word such as ``auto``."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)b?\s*", text.lower())
    if not found:
        return None
    return float(found[1]) * _UNITS[found[2]]
