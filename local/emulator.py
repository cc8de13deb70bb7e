"""Configuration of Microsoft's Service Bus emulator, made from the one queue definition `local/queues.json`.

`python -m local.emulator FILE` writes it. Left out, because the emulator allows no more (its documentation, 2025): a
message lives one hour at most and duplicates are remembered for five minutes at most, against 14 days and one hour in
Azure and on the stand-in.
"""

import argparse
import json
from pathlib import Path
from typing import Any

LONGEST_LIFE_SECONDS = 3600
LONGEST_MEMORY_SECONDS = 300

QUEUES = Path(__file__).parent / "queues.json"


def emulator_configuration(queues: list[dict[str, Any]]) -> dict[str, Any]:
    """The emulator's Config.json for queues as in `local/queues.json`."""
    return {
        "UserConfig": {
            "Namespaces": [{"Name": "sbemulatorns", "Queues": [emulated(queue) for queue in queues]}],
            "Logging": {"Type": "Console"},
        }
    }


def emulated(queue: dict[str, Any]) -> dict[str, Any]:
    return {
        "Name": queue["name"],
        "Properties": {
            "DeadLetteringOnMessageExpiration": True,
            "DefaultMessageTimeToLive": duration(min(queue["default_ttl_seconds"], LONGEST_LIFE_SECONDS)),
            "DuplicateDetectionHistoryTimeWindow": duration(
                min(queue["duplicate_detection_seconds"], LONGEST_MEMORY_SECONDS)
            ),
            "LockDuration": duration(queue["lock_seconds"]),
            "MaxDeliveryCount": queue["max_delivery_count"],
            "RequiresDuplicateDetection": True,
            "RequiresSession": False,
        },
    }


def duration(seconds: int) -> str:
    """ISO 8601, as Service Bus writes durations."""
    return f"PT{seconds // 60}M" if seconds % 60 == 0 else f"PT{seconds}S"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.emulator", description="Write the emulator's Config.json.")
    parser.add_argument("file", type=Path, help="where to write it; folders are made")
    target: Path = parser.parse_args().file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(emulator_configuration(json.loads(QUEUES.read_text())), indent=2) + "\n")


if __name__ == "__main__":
    main()
