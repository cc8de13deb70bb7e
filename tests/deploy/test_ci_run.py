"""`.ci/run` on a machine of stand-in commands: what it installs it says, and nothing that was left out goes unsaid."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REAL = ("bash", "cat", "chmod", "dirname", "mktemp", "rm", "timeout")
LEFT_OUT = "NOT LOOKED AT"


class Machine:
    """A folder with a copy of `.ci/run`, and a PATH of few commands, most of which do nothing."""

    def __init__(self, folder: Path, *, user: int) -> None:
        self.folder = folder
        self._commands = folder / "bin"
        self._commands.mkdir()
        for name in REAL:
            (self._commands / name).symlink_to(shutil.which(name) or name)
        self.put("id", f"echo {user}")
        self.put("make", 'echo "made $*"')
        (folder / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")

    def put(self, name: str, script: str) -> None:
        command = self._commands / name
        command.write_text(f"#!/usr/bin/env bash\n{script}\n")
        command.chmod(0o755)

    def run(self) -> subprocess.CompletedProcess[str]:
        command = self.folder / ".ci" / "run"
        environment = {"PATH": str(self._commands), "TMPDIR": str(self.folder), "HOME": os.devnull}
        return subprocess.run([command], env=environment, capture_output=True, text=True, check=True)


def test_an_installation_is_announced_and_its_output_is_not_shown_where_it_went_well(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=0)
    machine.put("apt-get", f"echo noise; echo > {tmp_path}/bin/chromium; chmod +x {tmp_path}/bin/chromium")
    done = machine.run()

    first, second, *_ = done.stdout.splitlines()
    assert first.startswith("Installing Debian's package chromium")
    assert second == "made lint types", "after it, the checks"
    assert "noise" not in done.stdout + done.stderr
    assert LEFT_OUT not in done.stderr


@pytest.mark.parametrize("code", [1, 100])
def test_an_installation_that_fails_shows_its_output_and_the_checks_run_all_the_same(tmp_path: Path, code: int) -> None:
    machine = Machine(tmp_path, user=0)
    machine.put("apt-get", f"echo 'E: unable to locate'; echo 'W: and so' >&2; exit {code}")
    done = machine.run()

    assert "E: unable to locate" in done.stderr
    assert f"chromium was not installed (exit code {code}," in done.stderr
    assert "made demo" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(LEFT_OUT)


@pytest.mark.parametrize(("user", "has_browser"), [(1000, False), (0, True)], ids=["no root", "it is there"])
def test_nothing_is_installed_without_need_or_right(tmp_path: Path, user: int, has_browser: bool) -> None:
    machine = Machine(tmp_path, user=user)
    machine.put("apt-get", f"echo > {tmp_path}/installed")
    if has_browser:
        machine.put("chromium", "")
    done = machine.run()

    assert not (tmp_path / "installed").exists()
    assert "Installing" not in done.stdout
    assert (LEFT_OUT in done.stderr) is not has_browser
