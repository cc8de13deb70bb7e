"""Runs the local Functions host in a process of its own, since the worker library keeps one app per process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SAMPLE_APP = Path(__file__).parent / "sample_app"
COMMAND = (sys.executable, "-m", "local.functions_host")


@dataclass
class RunningHost:
    """A host that said READY. ``records`` are its log lines so far, ``output`` what it wrote after READY."""

    process: subprocess.Popen[str]
    ready_line: str
    records: list[dict[str, Any]] = field(default_factory=list)
    output: str = ""

    @property
    def url(self) -> str:
        """Where its HTTP functions are."""
        return f"http://127.0.0.1:{self.ready_line.split()[1]}"

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], bool], count: int = 1, seconds: float = 10
    ) -> list[dict[str, Any]]:
        """The first ``count`` log records that are wanted; fails the test if they do not come in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [record for record in list(self.records) if wanted(record)]
            if len(found) >= count:
                return found[:count]
            time.sleep(0.01)
        raise AssertionError(f"fewer than {count} such records in {self.records}")

    def stop(self) -> int:
        """Send SIGTERM and wait; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=15)
        assert self.process.stdout is not None
        self.output = self.process.stdout.read()
        return code


@contextmanager
def running_host(settings: Mapping[str, str], *arguments: str, app: Path = SAMPLE_APP) -> Iterator[RunningHost]:
    """Start the host on ``app`` with these app settings, wait until it is ready, and stop it afterwards."""
    process = subprocess.Popen(
        [*COMMAND, "--app", str(app), "--port", "0", *arguments],
        cwd=ROOT,
        env=os.environ | dict(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines = iter(process.stderr)
    host = RunningHost(process, "")
    reader = threading.Thread(target=lambda: host.records.extend(json.loads(line) for line in lines), daemon=True)
    reader.start()
    host.ready_line = process.stdout.readline()
    try:
        assert host.ready_line.startswith("READY "), host.records
        yield host
    finally:
        if process.poll() is None:
            host.stop()
        reader.join(timeout=5)
        process.stdout.close()
        process.stderr.close()


def run_to_the_end(settings: Mapping[str, str], *arguments: str, app: Path) -> subprocess.CompletedProcess[str]:
    """Run a host that ends by itself."""
    return subprocess.run(
        [*COMMAND, "--app", str(app), *arguments],
        cwd=ROOT,
        env=os.environ | dict(settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
