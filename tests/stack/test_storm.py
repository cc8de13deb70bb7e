"""The promise under fire: the host is killed while failures are under way, by the command that everybody can run."""

import json
import subprocess
import sys

import pytest

from local.stack import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.long, pytest.mark.timeout(360)]


def test_killed_again_and_again_nothing_is_done_twice_or_lost() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "agent", "storm", "--failures", "24", "--kills", "3", "--seed", "5", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=350,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    figures = json.loads(finished.stdout)
    assert figures["failures"] == figures["terminal"] == 24
    assert figures["kills"] == 3
    assert figures["duplicates"] == figures["lost"] == figures["leases_open"] == 0
    assert finished.stdout.count("\n") == 1
