"""Which machine comes next, on a realistic list of Azure node types."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain import NodeType
from shared.triage.node_choice import Size, bigger, local_disk, memory, other, price, series
from tests.shared.triage.clusters import WORKSPACE_NODE_TYPES

BY_NAME = {node_type.node_type_id: node_type for node_type in WORKSPACE_NODE_TYPES}


def name_of(node_type: NodeType | None) -> str | None:
    return node_type.node_type_id if node_type else None


@pytest.mark.parametrize(
    ("current", "want"),
    [
        ("Standard_DS3_v2", "Standard_DS4_v2"),
        ("Standard_DS4_v2", "Standard_DS5_v2"),
        ("Standard_DS5_v2", None),
        ("Standard_D4ds_v5", "Standard_D8ds_v5"),
        ("Standard_D4s_v3", "Standard_D8ds_v5"),
        ("Standard_DS12_v2", "Standard_DS13_v2"),
        ("Standard_E4ds_v5", "Standard_E8ds_v5"),
        ("Standard_E8ds_v5", "Standard_E16ds_v5"),
        ("Standard_E16ds_v5", "Standard_E32ds_v5"),
        ("Standard_E32ds_v5", None),
        ("Standard_F8s_v2", "Standard_F16s_v2"),
        ("Standard_L8s_v3", "Standard_L16s_v3"),
        ("Standard_L16s_v3", None),  # the next is not enabled for the subscription
        ("Standard_D4pds_v6", "Standard_D8pds_v6"),
        ("Standard_E8pds_v6", None),  # Arm stays Arm
        ("Standard_NC4as_T4_v3", None),  # GPU
        ("Standard_D3_v2", "Standard_D8ds_v5"),  # not DS4_v2, which has less local disk
    ],
)
def test_the_next_with_more_memory(current: str, want: str | None) -> None:
    assert name_of(bigger(BY_NAME[current], WORKSPACE_NODE_TYPES)) == want


def test_as_many_cores_come_before_more_cores() -> None:
    current = BY_NAME["Standard_E4ds_v5"]
    as_many = replace(current, node_type_id="Standard_M4ds_v9", memory_mb=2 * current.memory_mb)

    assert bigger(current, (*WORKSPACE_NODE_TYPES, as_many)) == as_many


def test_a_few_gb_more_are_no_step() -> None:
    """From 28 GB to 32 GB on as many cores would be half a step, so the next number of cores it is."""
    assert name_of(bigger(BY_NAME["Standard_DS12_v2"], WORKSPACE_NODE_TYPES)) == "Standard_DS13_v2"


def test_of_several_outside_the_series_the_smallest_then_the_first_by_name() -> None:
    current = replace(BY_NAME["Standard_E4ds_v5"], node_type_id="Standard_X1")
    larger = replace(current, node_type_id="Standard_Y8", num_cores=8, memory_mb=72 * 1024)
    smaller = replace(larger, node_type_id="Standard_Z8", memory_mb=60 * 1024)

    assert bigger(current, (larger, smaller)) == smaller
    assert bigger(current, (replace(smaller, node_type_id="Standard_B8"), smaller, larger)) == replace(
        smaller, node_type_id="Standard_B8"
    )


@pytest.mark.parametrize(
    "unfit",
    [
        {"photon_worker_capable": False},
        {"photon_driver_capable": False},
        {"is_arm": True},
        {"num_gpus": 1},
        {"is_available": False},
        {"category": "General Purpose"},
        {"local_disk_gb": 0},
        {"num_cores": 2},
    ],
    ids=str,
)
def test_a_machine_that_is_not_like_the_other_is_not_taken(unfit: dict[str, Any]) -> None:
    current = BY_NAME["Standard_E4ds_v5"]
    fit = replace(current, node_type_id="Standard_E8ds_v5", num_cores=8, memory_mb=2 * current.memory_mb)

    assert bigger(current, [fit]) == fit
    assert bigger(current, [replace(fit, **unfit)]) is None


def test_the_cap_on_memory() -> None:
    current = BY_NAME["Standard_E16ds_v5"]

    assert name_of(bigger(current, WORKSPACE_NODE_TYPES, max_memory_gb=256)) == "Standard_E32ds_v5"
    assert bigger(current, WORKSPACE_NODE_TYPES, max_memory_gb=255) is None


@pytest.mark.parametrize(
    ("current", "want"),
    [
        ("Standard_E8ds_v5", "Standard_E16ds_v5"),
        ("Standard_DS3_v2", "Standard_D4ds_v5"),
        ("Standard_L8s_v3", "Standard_L16s_v3"),
        ("Standard_E32ds_v5", None),
    ],
)
def test_the_next_with_more_local_disk(current: str, want: str | None) -> None:
    assert name_of(bigger(BY_NAME[current], WORKSPACE_NODE_TYPES, by=local_disk)) == want


@pytest.mark.parametrize(
    ("current", "not_again", "want"),
    [
        ("Standard_DS3_v2", set(), "Standard_D4ds_v5"),
        ("Standard_DS3_v2", {"Standard_D4ds_v5"}, None),
        ("Standard_D4ds_v5", set(), "Standard_DS3_v2"),
        ("Standard_D4s_v3", set(), "Standard_D4ds_v5"),
        ("Standard_D4s_v3", {"Standard_D4ds_v5"}, "Standard_DS3_v2"),
        ("Standard_DS13_v2", set(), "Standard_E8ds_v5"),
        ("Standard_E8ds_v5", set(), "Standard_DS13_v2"),
        ("Standard_E32ds_v5", set(), None),
        ("Standard_F8s_v2", set(), None),
        ("Standard_NC4as_T4_v3", set(), None),
        ("Standard_D8pds_v6", set(), None),
    ],
)
def test_another_machine_of_about_the_same_size(current: str, not_again: set[str], want: str | None) -> None:
    found = other(BY_NAME[current], WORKSPACE_NODE_TYPES, not_again=not_again, max_memory_gb=256)

    assert name_of(found) == want


def test_twice_the_machine_is_twice_the_price() -> None:
    assert price(BY_NAME["Standard_E16ds_v5"]) == pytest.approx(2 * price(BY_NAME["Standard_E8ds_v5"]))


def test_memory_is_cheaper_than_cores() -> None:
    assert price(BY_NAME["Standard_E4ds_v5"]) < price(BY_NAME["Standard_D8ds_v5"])


def test_the_series_is_the_name_without_the_size() -> None:
    assert series(BY_NAME["Standard_E8ds_v5"]) == series(BY_NAME["Standard_E16ds_v5"]) == "Standard_E#ds_v5"
    assert series(BY_NAME["Standard_E8pds_v6"]) != series(BY_NAME["Standard_E8ds_v5"])


node_types = st.builds(
    NodeType,
    node_type_id=st.sampled_from([f"Standard_{letter}{size}s_v5" for letter in "DEF" for size in (2, 4, 8, 16)]),
    memory_mb=st.sampled_from([0, 8192, 16384, 32768, 65536, 131072, 524288]),
    num_cores=st.sampled_from([0, 2, 4, 8, 16]),
    category=st.sampled_from(["General Purpose", "Memory Optimized"]),
    num_gpus=st.sampled_from([0, 0, 1]),
    is_arm=st.booleans(),
    photon_driver_capable=st.booleans(),
    photon_worker_capable=st.booleans(),
    local_disk_gb=st.sampled_from([0, 150, 300]),
    is_available=st.booleans(),
)


@given(
    current=node_types,
    offered=st.lists(node_types, max_size=12),
    cap=st.sampled_from([16, 64, 256]),
    by=st.sampled_from([memory, local_disk]),
)
def test_what_is_never_exchanged(current: NodeType, offered: list[NodeType], cap: float, by: Size) -> None:
    found = bigger(current, offered, by=by, max_memory_gb=cap)
    another = other(current, offered, not_again=(), max_memory_gb=cap)

    for node_type in filter(None, (found, another)):
        assert node_type.is_available
        assert node_type.num_gpus == current.num_gpus == 0
        assert node_type.is_arm == current.is_arm
        assert node_type.category == current.category
        assert node_type.photon_worker_capable or not current.photon_worker_capable
        assert node_type.photon_driver_capable or not current.photon_driver_capable
        assert node_type.memory_mb <= cap * 1024
        assert node_type.node_type_id != current.node_type_id
    if found:
        assert found.memory_mb >= current.memory_mb
        assert found.num_cores >= current.num_cores
