"""Failures per second through the whole local stack: `python -m tests.benchmarks.throughput [FAILURES]`.

All runs fail at once; the clock runs from the first tick's chance to see them until every incident is terminal.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from agent.local_run import Observer, duplicates
from local.stack import running_stack

DEFAULT_FAILURES = 200


def scenario(failures: int) -> dict[str, object]:
    """Half of them heal when repaired, half need a person."""
    errors = ("java.net.SocketTimeoutException: Read timed out", "ModuleNotFoundError: No module named 'lightgbm'")
    jobs = [
        {
            "job_id": 1000 + n,
            "name": f"job-{n}",
            "settings": {"tasks": [{"task_key": "load", "notebook_task": {"notebook_path": "/load"}}]},
            "runs": [
                {
                    "run_id": 500_000 + n,
                    "start_offset_seconds": 0.5,
                    "duration_seconds": 0.5,
                    "tasks": [
                        {
                            "task_key": "load",
                            "failure": {"error": errors[n % 2]},
                            "heals_when": {"kind": "after_attempts", "attempts": 1},
                        }
                    ],
                }
            ],
        }
        for n in range(failures)
    ]
    return {"workspace": "1234567890123456", "jobs": jobs}


def main() -> None:
    failures = int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FAILURES
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "scenario.json"
        file.write_text(json.dumps(scenario(failures)))
        with running_stack(Path(name) / "stack", scenario=file) as stack:
            observer = Observer(stack)
            began = time.monotonic()
            while (closed := observer.closed_count()) < failures:
                if time.monotonic() - began > 600:
                    break
                time.sleep(0.5)
            seconds = time.monotonic() - began
            twice = duplicates(observer.effects())
    sys.stdout.write(f"{closed} failures in {seconds:.1f} s: {closed / seconds:.1f} a second, {twice} done twice\n")


if __name__ == "__main__":
    main()
