"""Node types that the stand-in workspace offers: a small, realistic selection of what Azure Databricks lists.

Memory and cores are those of the Azure virtual machine sizes. As on Azure, ``is_graviton`` (an AWS name) is false
even for Arm sizes: there only the ``p`` in the name tells. Whether the real service says so too could not be checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NodeType:
    """One node type. ``memory_gb`` is in GiB, ``disk_gb`` is the local temporary disk (0 = none)."""

    node_type_id: str
    category: str
    num_cores: int
    memory_gb: float
    disk_gb: int
    photon: bool = True
    num_gpus: int = 0
    is_deprecated: bool = False
    is_hidden: bool = False
    status: tuple[str, ...] = ()
    """Empty = available; else NotAvailableInRegion or NotEnabledOnSubscription."""

    def as_json(self) -> dict[str, Any]:
        """Return the entry as ``clusters/list-node-types`` shows it."""
        return {
            "node_type_id": self.node_type_id,
            "memory_mb": int(self.memory_gb * 1024),
            "num_cores": float(self.num_cores),
            "description": self.node_type_id,
            "instance_type_id": self.node_type_id,
            "category": self.category,
            "is_deprecated": self.is_deprecated,
            "is_hidden": self.is_hidden,
            "is_encrypted_in_transit": False,
            "is_graviton": False,
            "is_io_cache_enabled": self.category == STORAGE,
            "num_gpus": self.num_gpus,
            "photon_worker_capable": self.photon,
            "photon_driver_capable": self.photon,
            "support_cluster_tags": True,
            "support_ebs_volumes": True,
            "support_port_forwarding": True,
            "node_instance_type": {
                "instance_type_id": self.node_type_id,
                "local_disks": 1 if self.disk_gb else 0,
                "local_disk_size_gb": self.disk_gb,
            },
            "node_info": {"status": list(self.status), "available_core_quota": 350, "total_core_quota": 350},
        }


GENERAL, MEMORY, COMPUTE = "General Purpose", "Memory Optimized", "Compute Optimized"
STORAGE, GPU = "Storage Optimized", "GPU Accelerated"

_ALL = [
    NodeType("Standard_DS3_v2", GENERAL, 4, 14, 28),
    NodeType("Standard_DS4_v2", GENERAL, 8, 28, 56),
    NodeType("Standard_DS5_v2", GENERAL, 16, 56, 112),
    NodeType("Standard_D3_v2", GENERAL, 4, 14, 200, photon=False, is_deprecated=True),
    NodeType("Standard_D4ds_v5", GENERAL, 4, 16, 150),
    NodeType("Standard_D8ds_v5", GENERAL, 8, 32, 300),
    NodeType("Standard_D16ds_v5", GENERAL, 16, 64, 600),
    NodeType("Standard_D4s_v3", GENERAL, 4, 16, 32, photon=False),
    NodeType("Standard_D4pds_v6", GENERAL, 4, 16, 220),
    NodeType("Standard_D8pds_v6", GENERAL, 8, 32, 440),
    NodeType("Standard_DS12_v2", MEMORY, 4, 28, 56),
    NodeType("Standard_DS13_v2", MEMORY, 8, 56, 112),
    NodeType("Standard_E4ds_v5", MEMORY, 4, 32, 150),
    NodeType("Standard_E8ds_v5", MEMORY, 8, 64, 300),
    NodeType("Standard_E16ds_v5", MEMORY, 16, 128, 600),
    NodeType("Standard_E32ds_v5", MEMORY, 32, 256, 1200),
    NodeType("Standard_E8bds_v5", MEMORY, 8, 64, 300, status=("NotAvailableInRegion",)),
    NodeType("Standard_E8pds_v6", MEMORY, 8, 64, 440),
    NodeType("Standard_F4", COMPUTE, 4, 8, 64, photon=False, is_deprecated=True),
    NodeType("Standard_F8s_v2", COMPUTE, 8, 16, 64),
    NodeType("Standard_F16s_v2", COMPUTE, 16, 32, 128),
    NodeType("Standard_L8s_v3", STORAGE, 8, 64, 1788),
    NodeType("Standard_L16s_v3", STORAGE, 16, 128, 3576),
    NodeType("Standard_L80s_v2", STORAGE, 80, 640, 17880, status=("NotEnabledOnSubscription",)),
    NodeType("Standard_NC4as_T4_v3", GPU, 4, 28, 180, photon=False, num_gpus=1),
    NodeType("Standard_NC8as_T4_v3", GPU, 8, 56, 360, photon=False, num_gpus=1),
    NodeType("Standard_D2ads_v6", GENERAL, 2, 8, 110, is_hidden=True),
]

NODE_TYPES: dict[str, NodeType] = {node_type.node_type_id: node_type for node_type in _ALL}
