"""`agent diagnose`, run as a command: an error text from a file or from standard input, and what is none."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agent.cli import app
from shared.settings import Settings, environment_name

OUT_OF_MEMORY = "java.lang.OutOfMemoryError: Java heap space"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_name(name), raising=False)


def diagnose(*arguments: str, given: bytes = b"") -> Result:
    return CliRunner().invoke(app, ["diagnose", "--json", *arguments], input=given)


def test_a_text_is_read_from_a_file_and_from_standard_input_alike(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text(OUT_OF_MEMORY)

    results = [diagnose(str(file)), diagnose(given=OUT_OF_MEMORY.encode()), diagnose("-", given=OUT_OF_MEMORY.encode())]

    assert [result.exit_code for result in results] == [0, 0, 0]
    assert len({result.stdout for result in results}) == 1
    assert json.loads(results[0].stdout)["decision"] == "RETRY_WITH_PARAMS"


@pytest.mark.parametrize(
    "given", [b"", b" \r\n\t\n", b"\xef\xbb\xbf\n", b"\0\0"], ids=["none", "blank", "bom", "zeros"]
)
def test_where_there_is_nothing_to_read_it_says_so_and_ends_as_a_usage_error(given: bytes, tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_bytes(given)

    from_input, from_file = diagnose(given=given), diagnose(str(file))

    assert (from_input.exit_code, from_file.exit_code) == (2, 2)
    assert "standard input is empty" in json.loads(from_input.stdout)["error"]
    assert f"{file} is empty" in json.loads(from_file.stdout)["error"]


def test_what_is_no_utf_8_is_read_all_the_same() -> None:
    result = diagnose(given=b"\xff\xfe " + OUT_OF_MEMORY.encode())

    assert json.loads(result.stdout)["decision"] == "RETRY_WITH_PARAMS"


def test_an_empty_text_with_a_termination_code_can_be_decided(tmp_path: Path) -> None:
    result = diagnose("--termination-code", "USER_CANCELED")

    assert json.loads(result.stdout)["decision"] == "SKIP"
