"""Documentation that says what the code says."""

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from agent.cli import app
from shared.settings import Settings, environment_name

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
HOST_SETTINGS = {"AzureWebJobsStorage", "FUNCTIONS_WORKER_RUNTIME", "PYTHON_THREADPOOL_THREAD_COUNT"}


def setting_names() -> set[str]:
    return {environment_name(name) for name in Settings.model_fields}


def settings_table() -> dict[str, tuple[str, str]]:
    rows = re.findall(r"^\| `([A-Za-z_]+)` \| (.*?) \| (.*?) \|$", SETTINGS, re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows), "a setting stands there twice"
    return {name: (default.strip("`"), meaning) for name, default, meaning in rows}


def test_the_settings_page_names_every_setting_with_its_default_and_meaning() -> None:
    table = settings_table()
    assert set(table) == setting_names()
    for name, field in Settings.model_fields.items():
        default = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
        shown = "" if default in ("", (), {}) else str(default).lower() if isinstance(default, bool) else str(default)
        assert table[environment_name(name)] == (shown, field.description)


def test_example_of_local_settings_names_the_same_settings() -> None:
    text = (ROOT / "local.settings.json.example").read_text()
    values = json.loads(text)["Values"]
    assert set(values) - HOST_SETTINGS == setting_names()
    assert all(text.count(f'"{name}":') == 1 for name in values)


def test_example_env_file_names_only_settings() -> None:
    names = {line.partition("=")[0] for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line[:60]}
    assert {name for name in names if not name.startswith("#")} <= setting_names()


def test_readme_names_every_command() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert set(re.findall(r"`agent ([a-z]+)`", README)) == set(commands)


def test_settings_and_tags_named_in_the_pages_exist() -> None:
    pages = README + (ROOT / "docs" / "runbook.md").read_text()
    words = set(re.findall(r"`([A-Z]{2,}(?:_[A-Z]+)+)(?:=[^`]*)?`", pages))
    decisions = {"RETRY_WITH_PARAMS", "ESCALATE_EMAIL"}
    deployment = (ROOT / "infra" / "main.parameters.json").read_text()
    deployment += (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert words - decisions - set(re.findall(r"[A-Z_]{4,}", deployment)) <= setting_names()


@pytest.mark.parametrize("page", ["README.md", "docs/runbook.md", "docs/settings.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_and_paths_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)} - {""}
    paths = set(re.findall(r"`((?:shared|functions|agent|local|tests|infra|deploy|docs)/[\w./-]+)`", text))
    assert not {link for link in links if not ((ROOT / page).parent / link).exists()}
    assert not {path for path in paths if not (ROOT / path).exists()}


def test_log_messages_that_the_runbook_looks_for_are_logged() -> None:
    source = "".join(path.read_text() for path in (ROOT / "shared").rglob("*.py"))
    messages = re.findall(r'Message == "([^"]+)"', (ROOT / "docs" / "runbook.md").read_text())
    assert messages
    assert [message for message in messages if f'"{message}"' not in source] == []


def test_readme_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("verb", ["setup", "demo", "test", "test-long", "check", "infra-check", "audit", "lock"])
def test_make_knows_the_verbs(verb: str) -> None:
    assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
