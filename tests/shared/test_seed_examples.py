"""The examples of the user's own document run as written, but for the package's name, against the local stand-ins.

They are kept word for word in tests/seed_examples. Delta tables are real ones; Spark is stood in for by the four calls
that the example makes.
"""

import base64
import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import deltalake
import pyarrow as pa
import pytest

from local.acs_email import create_email_app
from local.azure_openai import create_openai_app
from local.databricks.server import create_databricks_app
from local.http_standin import EffectLog, running
from shared.settings import Settings, environment_name

EXAMPLES = Path(__file__).parent.parent / "seed_examples"

MENDABLE, BROKEN, ELSEWHERE = 9123, 9456, 9789


def failed_job(job_id: int, run_id: int, error: str) -> dict[str, Any]:
    """A job whose run failed a minute ago."""
    task = {"task_key": "main", "failure": {"error": error, "error_trace": error}}
    run = {"run_id": run_id, "start_offset_seconds": -90.0, "duration_seconds": 30.0, "tasks": [task]}
    return {"job_id": job_id, "name": f"job {job_id}", "settings": {}, "runs": [run]}


SCENARIO: dict[str, object] = {
    "workspace": "4242",
    "jobs": [
        failed_job(123, MENDABLE, "java.net.SocketException: Connection reset"),
        failed_job(456, BROKEN, "NameError: name 'orders' is not defined"),
        failed_job(789, ELSEWHERE, "NameError: name 'customers' is not defined"),
    ],
}


@dataclass
class Services:
    """Where the stand-ins listen."""

    databricks: str
    openai: str
    email: str

    def effects(self, kind: str) -> list[dict[str, Any]]:
        url = self.email if kind == "email" else self.databricks
        with urllib.request.urlopen(f"{url}/_standin/effects", timeout=5) as answer:
            found = json.load(answer)["effects"]
        return [effect for effect in found if effect["kind"] == kind and effect["accepted"]]

    def mailed_to(self) -> list[str]:
        return [effect["key"].rpartition(":")[2] for effect in self.effects("email")]


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """The three services, and an environment that names them as the document's .env does."""
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_name(name), raising=False)
    with ExitStack() as stack:
        found = Services(
            databricks=stack.enter_context(
                running(lambda: create_databricks_app(effects_path=None, scenario=SCENARIO))
            ),
            openai=stack.enter_context(running(lambda: create_openai_app(EffectLog("openai", None)))),
            email=stack.enter_context(running(lambda: create_email_app(EffectLog("email", None), tmp_path / "mails"))),
        )
        environment = {
            "AZURE_OPENAI_KEY": "any-key",
            "AZURE_OPENAI_ENDPOINT": found.openai,
            "AZURE_OPENAI_DEPLOYMENT": "gpt-4",
            "DATABRICKS_HOST": found.databricks,
            "DATABRICKS_TOKEN": "any-token",
            "DATABRICKS_CONFIG_FILE": "/nonexistent",
            "ACS_ENDPOINT": found.email,
            "ACS_ACCESS_KEY": base64.b64encode(b"any key").decode(),
            "SENDER_EMAIL": "agent@contoso.example",
            "MAX_RETRY_ATTEMPTS": "3",
            "RETRY_WITH_PARAMS_ATTEMPTS": "2",
            "DEFAULT_MODE": "full",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield found


def run_example(number: int, names: dict[str, Any]) -> None:
    """Execute an example in a namespace that earlier ones may have filled, as cells of one notebook do."""
    (file,) = EXAMPLES.glob(f"{number}_*.py.txt")
    code = file.read_text(encoding="utf-8").replace("from src.", "from shared.")
    exec(compile(code, file.name, "exec"), names)


@dataclass
class SparkOnDelta:
    """`spark`, as far as the example uses it: data frames of dictionaries, appended to Delta tables below `root`."""

    root: Path

    def createDataFrame(self, rows: list[dict[str, Any]]) -> "DataFrame":  # noqa: N802 - Spark's name
        return DataFrame(pa.Table.from_pylist(rows), self.root)


@dataclass
class DataFrame:
    """A data frame that is its own writer."""

    table: pa.Table
    root: Path
    chosen: dict[str, str] = field(default_factory=dict)

    @property
    def write(self) -> Self:
        return self

    def mode(self, mode: str) -> Self:
        self.chosen["mode"] = mode
        return self

    def option(self, name: str, value: str) -> Self:
        self.chosen[name] = value
        return self

    def save(self, path: str) -> None:
        assert self.chosen == {"mode": "append", "mergeSchema": "true"}
        table = self.root / path.lstrip("/")
        table.mkdir(parents=True, exist_ok=True)
        deltalake.write_deltalake(str(table), self.table, mode="append", schema_mode="merge")


def test_monitoring_error_analysis_and_the_delta_log(
    services: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}

    run_example(1, names)
    run_example(2, names)
    names["spark"] = SparkOnDelta(tmp_path)
    run_example(7, names)
    run_example(7, names)

    actions = names["summary"]["actions"]
    assert {name: action["run_ids"] for name, action in actions.items()} == {
        "retried": str(MENDABLE),
        "retried_with_params": "",
        "escalated": str(BROKEN),
        "skipped": "",
    }
    assert [effect["run_id"] for effect in services.effects("repair")] == [str(MENDABLE)]
    assert services.mailed_to() == ["team@example.com"]
    printed = capsys.readouterr().out
    assert "Decision: RETRY_WITH_PARAMS\n" in printed
    assert "Suggested params: {" in printed
    rows = deltalake.DeltaTable(str(tmp_path / "delta/agent_decisions")).to_pyarrow_table().to_pylist()
    assert rows == [actions["escalated"]] * 2
    assert names["email_notifier"].test_connection() is True


@pytest.mark.usefixtures("services")
def test_an_empty_action_can_be_logged_before_a_full_one(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    run_example(1, names)
    actions = names["summary"]["actions"]

    for action in (actions["skipped"], actions["escalated"]):
        run_example(7, {"spark": SparkOnDelta(tmp_path), "summary": {"actions": {"escalated": action}}})

    rows = deltalake.DeltaTable(str(tmp_path / "delta/agent_decisions")).to_pyarrow_table().to_pylist()
    assert sorted(row["count"] for row in rows) == [0, 1]


@pytest.mark.usefixtures("services")
def test_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = [
        {
            "error_message": f"OutOfMemoryError in stage {n}",
            "decision": "RETRY_WITH_PARAMS",
            "reason": "Too little memory.",
        }
        for n in range(12)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/run_history.json").write_text(json.dumps(history), encoding="utf-8")
    names: dict[str, Any] = {}

    for number in (1, 3, 4):
        run_example(number, names)

    lines = (tmp_path / "data/training_data.jsonl").read_text(encoding="utf-8-sig").splitlines()
    roles = [[message["role"] for message in json.loads(line)["messages"]] for line in lines]
    assert roles == [["system", "user", "assistant"]] * 12
    assert names["job_id"].startswith("ftjob-")
    assert names["status"]["id"] == names["job_id"]
    assert names["job_id"] in capsys.readouterr().out


def test_the_job_runner(services: Services) -> None:
    names: dict[str, Any] = {}

    run_example(6, names)
    run_example(5, names)

    actions = names["summary"]["actions"]
    assert (actions["retried"]["count"], actions["escalated"]["count"]) == (1, 2)
    assert set(services.mailed_to()) == {"data-team@company.com"}
