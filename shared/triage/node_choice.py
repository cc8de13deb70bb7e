"""Which other machine a cluster could use: a bigger one, or another one of the same size. Pure.

Never a machine with graphics processors, never another processor architecture, never one without Photon in place of one
with it, never one that the workspace cannot have. Within its category (General Purpose, Memory Optimized …), because a
category is a ratio of memory, cores and disk that somebody chose.
"""

import re
from collections.abc import Callable, Container, Iterable

from shared.domain import NodeType

A_STEP_UP = 1.8
"""Sizes double from step to step; 28 GB after 14 GB or 112 GB after 64 GB count as a step, a few GB more do not."""

ABOUT_EQUAL = 0.25

GB_OF_MEMORY_PER_CORE = 10
"""A core costs about as much as this much memory: Azure list prices of D4ds_v5 (4 cores, 16 GB) and E4ds_v5 (4, 32)."""

type Size = Callable[[NodeType], float]


def memory(node_type: NodeType) -> float:
    """In MB."""
    return node_type.memory_mb


def local_disk(node_type: NodeType) -> float:
    """In GB."""
    return node_type.local_disk_gb


def price(node_type: NodeType) -> float:
    """Relative price of an hour, in cores. DBUs of Databricks grow with the same sizes."""
    return node_type.num_cores + node_type.memory_mb / 1024 / GB_OF_MEMORY_PER_CORE


def bigger(
    current: NodeType, offered: Iterable[NodeType], *, by: Size = memory, max_memory_gb: float = float("inf")
) -> NodeType | None:
    """The next size up, None if there is none: with as many cores if possible, else with the next number of cores.

    Of several the one of the same series, else the smallest.
    """
    fitting = [
        node_type
        for node_type in substitutes(current, offered)
        if by(node_type) >= A_STEP_UP * by(current)
        and by(node_type) > 0
        and node_type.num_cores >= current.num_cores
        and current.memory_mb <= node_type.memory_mb <= max_memory_gb * 1024
        and node_type.local_disk_gb >= current.local_disk_gb
    ]
    return min(
        fitting,
        key=lambda n: (n.num_cores, series(n) != series(current), n.memory_mb, by(n), n.node_type_id),
        default=None,
    )


def other(
    current: NodeType, offered: Iterable[NodeType], *, not_again: Container[str], max_memory_gb: float
) -> NodeType | None:
    """Another machine with about as many cores and as much memory, the most alike; None if there is none."""
    fitting = [
        node_type
        for node_type in substitutes(current, offered)
        if node_type.node_type_id not in not_again
        and _about(node_type.num_cores, current.num_cores)
        and _about(node_type.memory_mb, current.memory_mb)
        and node_type.memory_mb <= max_memory_gb * 1024
    ]
    return min(fitting, key=lambda n: (_unlike(n, current), n.local_disk_gb == 0, n.node_type_id), default=None)


def substitutes(current: NodeType, offered: Iterable[NodeType]) -> list[NodeType]:
    """The machines that can take the place of this one without changing what runs on it."""
    return [
        node_type
        for node_type in offered
        if node_type.is_available
        and node_type.node_type_id != current.node_type_id
        and node_type.category == current.category
        and node_type.num_gpus == current.num_gpus == 0
        and node_type.is_arm == current.is_arm
        and node_type.photon_driver_capable >= current.photon_driver_capable
        and node_type.photon_worker_capable >= current.photon_worker_capable
    ]


def series(node_type: NodeType) -> str:
    """The name without its size: `Standard_E#ds_v5`."""
    return re.sub(r"\d+", "#", node_type.node_type_id, count=1)


def _about(number: float, wanted: float) -> bool:
    return abs(number - wanted) <= ABOUT_EQUAL * wanted


def _unlike(node_type: NodeType, current: NodeType) -> float:
    return abs(node_type.num_cores - current.num_cores) + abs(node_type.memory_mb - current.memory_mb) / 1024
