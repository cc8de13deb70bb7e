"""`python -m local.emulator` as `make emulators` calls it; what it writes: `tests/deploy/test_other_homes.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from local.emulator import QUEUES, emulator_configuration
from local.stack import ROOT


def emulator(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local.emulator", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_file_is_written_with_its_folders(tmp_path: Path) -> None:
    finished = emulator(tmp_path, "new/Config.json")

    assert finished.returncode == 0, finished.stderr
    written = json.loads((tmp_path / "new" / "Config.json").read_text())
    assert written == emulator_configuration(json.loads(QUEUES.read_text()))


@pytest.mark.parametrize(("arguments", "exit_code"), [(["--help"], 0), ([], 2)])
def test_help_and_a_missing_name_say_how_it_is_used_and_write_nothing(
    arguments: list[str], exit_code: int, tmp_path: Path
) -> None:
    finished = emulator(tmp_path, *arguments)

    assert finished.returncode == exit_code
    assert "python -m local.emulator" in finished.stdout + finished.stderr
    assert list(tmp_path.iterdir()) == []
