"""What a cluster policy forbids, and how that is said."""

from typing import Any

import pytest

from shared.domain import ClusterPolicy, Json
from shared.triage.cluster_policy import forbidden

NODE = ("node_type_id",)
E8, E16 = "Standard_E8ds_v5", "Standard_E16ds_v5"
WORKERS = ("num_workers",)


@pytest.mark.parametrize(
    ("attribute", "rule", "path", "value", "want"),
    [
        ("node_type_id", {"type": "fixed", "value": E8}, NODE, E8, None),
        ("node_type_id", {"type": "fixed", "value": E8}, NODE, E16, f"fixed to {E8}"),
        ("enable_elastic_disk", {"type": "fixed", "value": "true"}, ("enable_elastic_disk",), True, None),
        ("enable_elastic_disk", {"type": "fixed", "value": False}, ("enable_elastic_disk",), True, "fixed to False"),
        ("node_type_id", {"type": "allowlist", "values": [E8, E16]}, NODE, E16, None),
        ("node_type_id", {"type": "allowlist", "values": [E8]}, NODE, E16, f"one of {E8}"),
        ("node_type_id", {"type": "allowlist", "values": list("abcdef")}, NODE, E16, "one of a, b, c, d, e, …"),
        ("node_type_id", {"type": "allowlist"}, NODE, E16, "one of "),
        ("node_type_id", {"type": "blocklist", "values": [E16]}, NODE, E16, f"none of {E16}"),
        ("node_type_id", {"type": "blocklist", "values": [E16]}, NODE, E8, None),
        ("driver_node_type_id", {"type": "forbidden", "hidden": True}, ("driver_node_type_id",), E16, "forbidden"),
        ("num_workers", {"type": "range", "maxValue": 8}, WORKERS, 8, None),
        ("num_workers", {"type": "range", "maxValue": 8}, WORKERS, 9, "at most 8"),
        ("num_workers", {"type": "range", "minValue": 1, "maxValue": "8"}, WORKERS, 9, "at least 1 and at most 8"),
        ("num_workers", {"type": "range", "minValue": 10}, WORKERS, 9, "at least 10"),
        ("num_workers", {"type": "range"}, WORKERS, 9, None),
        ("num_workers", {"type": "range", "maxValue": "many"}, WORKERS, 9, None),
        ("autoscale.max_workers", {"type": "range", "maxValue": 8}, ("autoscale", "max_workers"), 9, "at most 8"),
        ("autoscale.max_workers", {"type": "range", "maxValue": 8}, WORKERS, 9, None),
        (
            "azure_attributes.availability",
            {"type": "fixed", "value": "SPOT_WITH_FALLBACK_AZURE"},
            ("azure_attributes", "availability"),
            "ON_DEMAND_AZURE",
            "fixed to SPOT_WITH_FALLBACK_AZURE",
        ),
        ("spark_conf.a.b", {"type": "fixed", "value": "4g"}, ("spark_conf", "a.b"), "8g", "fixed to 4g"),
        ("spark_conf.a.b", {"type": "fixed", "value": "4g"}, ("spark_conf",), {"c": "1", "a.b": "8g"}, "fixed to 4g"),
        ("spark_conf.a.b", {"type": "range", "maxValue": 4}, ("spark_conf", "a.b"), "8g", None),
        ("node_type_id", {"type": "regex", "pattern": "Standard_D.*"}, NODE, E16, None),
        ("node_type_id", {"type": "unlimited", "defaultValue": E8}, NODE, E16, None),
        ("node_type_id", {}, NODE, E16, None),
    ],
)
def test_a_rule_speaks_of_its_own_attribute(
    attribute: str, rule: Json, path: tuple[str, ...], value: Any, want: str | None
) -> None:
    found = forbidden(ClusterPolicy("p1", "Small clusters", {attribute: rule}), path, value)

    assert (found is None) is (want is None)
    assert want is None or f"its rule for {attribute} ({want}) forbids " in str(found)
