"""The local stack is one per folder, and takes no port from anybody. Its parts at work: `tests/stack`."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli import app
from local.stack import DEFAULT_PORTS, HOST, ROOT, OccupiedError, Stack, accepts, free_ports, take_folder

HOLD = "import sys; from pathlib import Path; from local.stack import take_folder\n"
HOLD += "lock = take_folder(Path(sys.argv[1])); print('taken', flush=True); sys.stdin.read()"

START = "import sys; from pathlib import Path; from local.stack import Stack\n"
START += "starting = Stack(Path(sys.argv[1]), base_port=0).start(); next(starting); print(next(starting), flush=True)\n"
START += "sys.stdin.read()"


@contextmanager
def another_stack(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the folder, as far as the lock goes."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout
        assert other.stdout.readline() == b"taken\n"
        yield other
    finally:
        other.kill()
        other.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a stack that runs has written."""
    (tmp_path / "mails").mkdir()
    (tmp_path / "mails" / "one.html").write_text("a mail")
    (tmp_path / "effects.jsonl").write_text("{}\n")
    (tmp_path / "stack.json").write_text('{"host": "of the first"}')
    return tmp_path


def assert_untouched(folder: Path) -> None:
    assert (folder / "mails" / "one.html").read_text() == "a mail"
    assert (folder / "effects.jsonl").read_text() == "{}\n"
    assert json.loads((folder / "stack.json").read_text()) == {"host": "of the first"}


def test_a_second_stack_in_a_folder_is_refused_and_leaves_the_first_ones_files_alone(folder: Path) -> None:
    with another_stack(folder) as other:
        second = Stack(folder, base_port=0)
        with pytest.raises(OccupiedError, match=rf"process {other.pid}\).*stack\.json.*kill {other.pid}'"):
            next(second.start())
        second.stop()
        assert_untouched(folder)
        with pytest.raises(OccupiedError, match=f"process {other.pid}"):
            take_folder(folder)


def test_the_folder_of_a_stack_that_was_killed_is_taken_over(folder: Path) -> None:
    with another_stack(folder) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        take_folder(folder).close()


def test_the_folder_of_a_stack_that_was_killed_is_free_once_its_parts_have_ended_too(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", START, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout
    assert owner.stdout.readline() == b"service_bus\n", "its tables run"
    owner.kill()
    owner.communicate()

    with pytest.raises(OccupiedError, match=rf"process {owner.pid}\).*if that process is gone.*'kill \d+'") as refusal:
        take_folder(tmp_path)
    (part,) = re.findall(r"'kill (\d+)'\.$", str(refusal.value))
    os.kill(int(part), signal.SIGTERM)

    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            take_folder(tmp_path).close()
        except OccupiedError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("the folder is still taken")


def test_the_command_line_loads_where_there_is_no_fcntl() -> None:
    without = "import sys; sys.modules['fcntl'] = None; import agent.cli"
    subprocess.run([sys.executable, "-c", without], cwd=ROOT, check=True)


def test_a_stack_that_has_ended_frees_its_folder(tmp_path: Path) -> None:
    first = Stack(tmp_path, base_port=0)
    starting = first.start()
    assert next(starting) == "tables"
    first.stop()

    take_folder(tmp_path).close()


def test_a_taken_port_is_named_and_nothing_is_touched(folder: Path) -> None:
    first_port = base_of_free_ports()
    databricks = first_port + list(DEFAULT_PORTS).index("databricks")
    with socket.create_server((HOST, databricks)), pytest.raises(OccupiedError) as caught:
        next(Stack(folder, base_port=first_port).start())

    assert f"port {databricks} (databricks)" in str(caught.value)
    assert "--base-port 0" in str(caught.value)
    assert_untouched(folder)


@pytest.mark.parametrize("command", ["start", "demo", "storm"])
def test_a_command_that_needs_the_folder_says_so_and_ends_as_a_usage_error(
    folder: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"agent.{command}.FOLDER", folder)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with another_stack(folder) as other:
            as_text = CliRunner().invoke(app, [command])
            as_json = CliRunner().invoke(app, [command, "--json"])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    assert (as_text.exit_code, as_json.exit_code) == (2, 2)
    assert f"process {other.pid}" in json.loads(as_json.stdout)["error"]
    assert_untouched(folder)


def base_of_free_ports() -> int:
    """A port that is free together with the six after it."""
    while True:
        (first,) = free_ports(1)
        ports = range(first, first + len(DEFAULT_PORTS))
        if ports.stop <= 65_536 and not any(accepts(port) for port in ports):
            return first
