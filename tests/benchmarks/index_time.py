"""How long indexing the app takes, against an app with one empty function: `python -m tests.benchmarks.index_time`.

Each figure is the median of several fresh processes, without the host's own start.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROUNDS = 11
EMPTY_APP = """
import azure.functions as func

app = func.FunctionApp()


@app.function_name("empty")
@app.timer_trigger(arg_name="timer", schedule="0 0 * * * *")
def empty(timer: func.TimerRequest) -> None:
    return None
"""


def index_milliseconds(app: Path) -> float:
    finished = subprocess.run(
        [sys.executable, "-m", "local.functions_host", "--app", str(app), "--index-only"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(finished.stdout)["total_ms"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder)
        (empty / "function_app.py").write_text(EMPTY_APP)
        (empty / "host.json").write_text('{"version": "2.0"}')
        pairs = [(index_milliseconds(ROOT), index_milliseconds(empty)) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    sys.stdout.write(f"this app {ours:.0f} ms, an empty one {theirs:.0f} ms, ratio {ours / theirs:.2f}\n")


if __name__ == "__main__":
    main()
