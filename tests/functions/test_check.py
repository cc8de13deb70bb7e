"""The function `check`: the real app in the local host, asked over HTTP, on the stand-ins of everything it uses."""

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread, current_thread
from typing import Any
from urllib.error import HTTPError

import pytest

from agent.app_check import ask_app
from local import azurite
from local.acs_email import create_email_app
from local.azure_openai import create_openai_app
from local.databricks.server import create_databricks_app
from local.http_standin import EffectLog, running
from local.service_bus import QueueConfig, running_broker
from shared import bootstrap, deadline, messages
from shared.checking import CheckResult, Connection, Failure, results_within
from shared.errors import StoreNotAuthorisedError
from shared.settings import Settings
from tests.local.running_host import ROOT, running_host

CONNECTIONS = ["Databricks", "Databricks rights", "Service Bus", "Tables", "E-mail", "Azure OpenAI"]
APPLICATION_ID = "11111111-2222-3333-4444-555555555555"
KEY = "key-of-the-function"
SECRETS = {"DATABRICKS_TOKEN": "s3cret-token", "ACS_ACCESS_KEY": "czNjcmV0", "AZURE_OPENAI_KEY": "s3cret-model"}
QUICK = Connection("Quick", lambda: "well", "", "")
QUIET = ("find_failures", "decide_action", "retry_run", "send_email", "follow_up", "audit")


@dataclass
class App:
    """The app in a host, and the workspace that it looks at."""

    url: str
    workspace: str

    def answer(self, key: str = KEY) -> tuple[int, Any]:
        request = urllib.request.Request(f"{self.url}/api/check", headers={"x-functions-key": key} if key else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def set_rights(self, **rights: object) -> None:
        urllib.request.urlopen(f"{self.workspace}/_standin/rights", json.dumps(rights).encode()).close()

    def load_job(self, job_id: int) -> None:
        job = {"job_id": job_id, "settings": {"name": "load", "tasks": [{"task_key": "load"}]}}
        urllib.request.urlopen(f"{self.workspace}/_standin/scenario", json.dumps({"jobs": [job]}).encode()).close()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("check")
    with (
        azurite.running_azurite(folder / "azurite") as tables,
        running_broker([QueueConfig(name=name) for name in messages.QUEUES]) as service_bus,
        running(lambda: create_databricks_app(effects_path=None)) as workspace,
        running(lambda: create_email_app(EffectLog("email", None), folder)) as email,
        running(lambda: create_openai_app(EffectLog("openai", None))) as model,
        running_host(
            settings(workspace=workspace, service_bus=service_bus, tables=tables, email=email, model=model),
            *("--function-key", KEY),
            app=ROOT,
        ) as host,
    ):
        yield App(host.url, workspace)


def settings(*, workspace: str, service_bus: str, tables: str, email: str, model: str) -> dict[str, str]:
    return {
        "DATABRICKS_HOST": workspace,
        "SERVICE_BUS_CONNECTION": service_bus,
        "TABLES_CONNECTION_STRING": tables,
        "ACS_ENDPOINT": email,
        "AZURE_OPENAI_ENDPOINT": model,
        "AZURE_OPENAI_DEPLOYMENT": "local",
        "SENDER_EMAIL": "agent@example.com",
        "ESCALATION_EMAILS": "people@example.com",
        "DEFAULT_MODE": "retry",
        **SECRETS,
        **{f"AzureWebJobs.{name}.Disabled": "true" for name in QUIET},
    }


@pytest.mark.parametrize("key", ["", "wrong"])
def test_without_the_key_nothing_is_told(app: App, key: str) -> None:
    status, text = app.answer(key)
    assert status == 401
    assert "Databricks" not in text


def test_the_app_says_what_it_reaches_and_the_command_for_a_right_that_it_lacks_and_shows_no_secret(app: App) -> None:
    app.load_job(1)
    viewer = {"service_principal_name": APPLICATION_ID, "all_permissions": [{"permission_level": "CAN_VIEW"}]}
    app.set_rights(me={"userName": APPLICATION_ID, "groups": []}, permissions={"jobs/1": [viewer]}, shown_to="all")

    results = ask_app(app.url, key=KEY)  # as `agent check --app` does

    assert [result.name for result in results] == CONNECTIONS
    (rights,) = [result for result in results if result != CheckResult(result.name, True, result.detail, "")]
    assert (rights.name, rights.ok, rights.failure) == ("Databricks rights", False, Failure.REFUSED)
    assert rights.fix == (
        "databricks permissions update jobs 1 --json"
        f' \'{{"access_control_list":[{{"service_principal_name":"{APPLICATION_ID}",'
        '"permission_level":"CAN_MANAGE_RUN"}]}\''
    )
    shown = json.dumps([result.shown() for result in results])
    assert not any(secret in shown for secret in [*SECRETS.values(), "AccountKey", "SharedAccessKey="])


class Refusing(BaseHTTPRequestHandler):
    """A table service whose identity-based access control says no, in the words of Azure Storage."""

    def do_POST(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.send_header("x-ms-error-code", "AuthorizationPermissionMismatch")
        self.end_headers()

    do_GET = do_POST  # noqa: N815 - the name that the library calls

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def refusing_tables() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield azurite.connection_string(server.server_port)
    server.shutdown()
    server.server_close()


def test_refused_tables_a_missing_queue_and_a_silent_workspace_are_told_apart(
    refusing_tables: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        running_broker([QueueConfig(name="retries")]) as service_bus,
        running(lambda: create_email_app(EffectLog("email", None), tmp_path)) as email,
    ):
        away = "http://127.0.0.1:1"
        environment = settings(
            workspace=away, service_bus=service_bus, tables=refusing_tables, email=email, model=away
        ) | {"DATABRICKS_RETRY_SECONDS": "1", "AZURE_OPENAI_MAX_RETRIES": "0"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        bootstrap._services.cache_clear()
        report: Any = bootstrap.check()

    checks = {check["name"]: check for check in report["checks"]}
    assert {name: check["failure"] for name, check in checks.items()} == {
        "Databricks": Failure.UNREACHABLE,
        "Databricks rights": Failure.UNREACHABLE,
        "Service Bus": Failure.REFUSED,
        "Tables": Failure.REFUSED,
        "E-mail": None,
        "Azure OpenAI": Failure.UNREACHABLE,
    }
    assert checks["Tables"]["fix"].startswith("TABLES_CONNECTION_STRING is refused")
    assert "queue failed-runs does not exist" in checks["Service Bus"]["detail"]
    assert "DATABRICKS_HOST" in checks["Databricks"]["fix"]


# --- In the app


IN_AZURE: dict[str, Any] = {
    "SERVICE_BUS_CONNECTION__fullyQualifiedNamespace": "sb-abc.servicebus.windows.net",
    "tables_endpoint": "https://stabc.table.core.windows.net",
    "acs_endpoint": "https://acs-abc.europe.communication.azure.com",
    "azure_openai_endpoint": "https://cog-abc.openai.azure.com",
}


@pytest.mark.parametrize(
    ("client_id", "assignee"),
    [(APPLICATION_ID, APPLICATION_ID), ("", '"$(azd env get-value IDENTITY_CLIENT_ID)"')],
)
def test_in_the_app_a_missing_role_is_the_command_that_gives_it_to_the_app_alone(client_id: str, assignee: str) -> None:
    def refuse() -> str:
        raise StoreNotAuthorisedError("refused")

    wanted = Settings(azure_client_id=client_id, **IN_AZURE)
    offered = list(bootstrap.connections(wanted, str, in_the_app=True))
    refused = [Connection(one.name, refuse, one.where_refused, one.where_unreachable) for one in offered]

    fixes = {result.name: result.fix.splitlines() for result in results_within(5, refused)}

    (command,) = fixes["Tables"]
    role = '--role "Storage Table Data Contributor"'
    assert command.startswith(f'az role assignment create {role} --assignee {assignee} --scope "$(az resource list ')
    assert [line.split('"')[1] for line in fixes["Service Bus"]] == [
        "Azure Service Bus Data Sender",
        "Azure Service Bus Data Receiver",
    ]
    assert not any("signed-in-user" in line for lines in fixes.values() for line in lines)


def test_what_does_not_end_in_time_counts_as_unreachable_and_holds_up_nothing() -> None:
    """Neither the answer nor the end of the process, which waits for every thread that is no daemon."""
    let_go, begun = Event(), list[Thread]()

    def wait() -> str:
        begun.append(current_thread())
        let_go.wait(30)
        return "late"

    try:
        results = results_within(0.2, [Connection("Slow", wait, "", "look there"), QUICK])
        (slow,) = begun
        assert slow.is_alive()
        assert slow.daemon
    finally:
        let_go.set()

    assert results == [
        CheckResult("Slow", False, "no answer within 0.2 seconds", "look there", Failure.UNREACHABLE),
        CheckResult("Quick", True, "well", ""),
    ]


def test_each_attempt_works_under_the_deadline() -> None:
    def say_time_left() -> str:
        return "in time" if deadline.left() <= 5 else "no deadline"

    assert results_within(5, [Connection("One", say_time_left, "", "")]) == [CheckResult("One", True, "in time", "")]


@pytest.mark.parametrize("bug", [KeyError("s3cret"), TimeoutError("s3cret")], ids=lambda bug: type(bug).__name__)
def test_a_bug_in_one_attempt_hides_nothing_else(bug: Exception) -> None:
    def stumble() -> str:
        raise bug

    text = f"failed with {type(bug).__name__}: the log says more"
    assert results_within(5, [Connection("Odd", stumble, "", "look there"), QUICK]) == [
        CheckResult("Odd", False, text, "look there", Failure.UNEXPECTED),
        CheckResult("Quick", True, "well", ""),
    ]


def test_the_app_answers_before_the_front_end_of_azure_gives_up() -> None:
    assert bootstrap.CHECK_SECONDS < 230


def test_without_its_settings_the_app_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    import azure.functions as func

    from functions import check

    monkeypatch.delenv("SENDER_EMAIL", raising=False)
    bootstrap._services.cache_clear()
    call = check.check.build().get_user_function()
    answer = call(func.HttpRequest("GET", "/api/check", body=b""))
    assert answer.status_code == 503
    assert "SENDER_EMAIL" in json.loads(answer.get_body())["problem"]
