"""`agent check`: what it says, the command that mends it, and the exit code."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner, Result

from agent.app_check import ask_app, url_of
from agent.cli import app
from agent.output import ExitCode, exit_code_of, messages
from local.acs_email import create_email_app
from local.databricks.server import create_databricks_app
from local.http_standin import EffectLog, running
from shared import bootstrap
from shared.checking import Connection, Failure, fix_of, result_of
from shared.databricks_rights import MissingRightsError, UnknownIdentityError
from shared.errors import (
    AgentError,
    ConfigurationError,
    NotAuthorisedError,
    PermanentError,
    StoreNotAuthorisedError,
    TransientError,
)
from shared.role_commands import Grant, Principal
from tests.shared.databricks_service import Service, serving

APPLICATION_ID = "11111111-2222-3333-4444-555555555555"
CONNECTIONS = ["Databricks", "Databricks rights", "Service Bus", "Tables", "E-mail", "Azure OpenAI"]
SET = (
    "FUNCTION_APP_",
    "DATABRICKS_",
    "ACS_",
    "AZURE_",
    "SERVICE_BUS_",
    "TABLES_",
    "SENDER_",
    "ESCALATION_",
    "JOB_",
    "DEFAULT_",
    "AI_",
)


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the developer's own, neither in the environment nor in a file."""
    for name in [name for name in os.environ if name.startswith(SET)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A workspace in which the identity is a service principal, and the settings that point to it."""
    with serving(lambda: create_databricks_app(effects_path=None)) as running_service:
        me = {"userName": APPLICATION_ID, "groups": []}
        running_service.control("rights", {"me": me, "shown_to": "all"})
        monkeypatch.setenv("DATABRICKS_HOST", running_service.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", "token")
        yield running_service


def load_viewed_jobs(service: Service, count: int) -> None:
    """Jobs 1, 2, … that the identity may only view."""
    tasks = [{"task_key": "load"}]
    service.load(
        {"jobs": [{"job_id": n, "settings": {"name": f"job-{n}", "tasks": tasks}} for n in range(1, count + 1)]}
    )
    viewer = {"service_principal_name": APPLICATION_ID, "all_permissions": [{"permission_level": "CAN_VIEW"}]}
    service.control("rights", {"permissions": {f"jobs/{n}": [viewer] for n in range(1, count + 1)}})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check", *arguments])


def checks(result: Result) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def connection(error: AgentError) -> Connection:
    def attempt() -> str:
        raise error

    return Connection("Somewhere", attempt, "the command", "where to look")


# --- One result


@pytest.mark.parametrize(
    ("error", "fix", "failure", "code"),
    [
        (NotAuthorisedError("no"), "the command", Failure.REFUSED, ExitCode.USAGE_OR_SETTINGS),
        (StoreNotAuthorisedError("no"), "the command", Failure.REFUSED, ExitCode.USAGE_OR_SETTINGS),
        (TransientError("away"), "where to look", Failure.UNREACHABLE, ExitCode.UNREACHABLE),
        (PermanentError("odd"), "where to look", Failure.UNEXPECTED, ExitCode.EXPECTATION_FAILED),
        (ConfigurationError("no such queue"), "where to look", Failure.REFUSED, ExitCode.USAGE_OR_SETTINGS),
    ],
)
def test_what_to_do_and_the_exit_code_follow_from_the_error(
    error: AgentError, fix: str, failure: Failure, code: ExitCode
) -> None:
    result = result_of(connection(error))
    assert (result.ok, result.detail, result.fix, result.failure) == (False, str(error), fix, failure)
    assert exit_code_of(error) == code


def test_a_missing_setting_is_fixed_by_setting_it() -> None:
    error = ConfigurationError("missing", names=("SENDER_EMAIL",))
    assert "--settings SENDER_EMAIL=" in fix_of(error, connection(error))


def test_missing_rights_are_fixed_by_granting_them() -> None:
    principal = Principal(APPLICATION_ID, is_service_principal=True)
    error = MissingRightsError("missing", principal=principal, missing=(Grant("jobs", "7", "CAN_VIEW"),), host="")
    assert fix_of(error, connection(error)).startswith("databricks permissions update jobs 7 --json ")


def test_an_identity_that_the_workspace_does_not_know_is_fixed_by_making_it_known() -> None:
    error = UnknownIdentityError("missing", application_id=APPLICATION_ID, host="https://adb-1.2.azuredatabricks.net")
    assert fix_of(error, connection(error)).splitlines() == [
        "export DATABRICKS_HOST=https://adb-1.2.azuredatabricks.net",
        f"databricks service-principals create --application-id {APPLICATION_ID} --display-name failure-agent --active",
    ]


def test_what_works_needs_nothing() -> None:
    result = result_of(Connection("Somewhere", lambda: "well", "the command", "where to look"))
    assert (result.ok, result.detail, result.fix, result.failure) == (True, "well", "", None)


# --- The command


def test_without_settings_each_is_named_with_where_to_set_it() -> None:
    result = run("--json")
    found = checks(result)
    assert result.exit_code == ExitCode.USAGE_OR_SETTINGS
    assert list(found) == [name for name in CONNECTIONS if name != "Databricks rights"]
    assert {name for name, check in found.items() if check["ok"]} == {"Azure OpenAI"}
    assert all(set(check) == {"name", "ok", "detail", "fix", "failure"} for check in found.values())
    assert {check["failure"] for check in found.values()} == {None, "refused"}
    assert "--settings DATABRICKS_HOST='<value>'" in found["Databricks"]["fix"]
    assert "--settings SERVICE_BUS_CONNECTION__fullyQualifiedNamespace='<value>'" in found["Service Bus"]["fix"]


def test_a_missing_permission_shows_as_the_command_that_grants_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_viewed_jobs(service, 1)
    monkeypatch.setenv("DEFAULT_MODE", "retry")
    result = run("--json")
    found = checks(result)
    assert list(found) == CONNECTIONS
    assert found["Databricks"]["ok"]
    assert not found["Databricks rights"]["ok"]
    assert result.exit_code == ExitCode.USAGE_OR_SETTINGS
    assert found["Databricks rights"]["fix"] == (
        "databricks permissions update jobs 1 --json"
        f' \'{{"access_control_list":[{{"service_principal_name":"{APPLICATION_ID}",'
        '"permission_level":"CAN_MANAGE_RUN"}]}\''
    )


def test_a_model_that_is_never_asked_needs_no_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AZURE_OPENAI_MAX_RETRIES", "0")
    assert checks(run("--json"))["Azure OpenAI"]["failure"] == "refused"
    monkeypatch.setenv("AI_MODE", "never")
    model = checks(run("--json"))["Azure OpenAI"]
    assert (model["ok"], model["detail"]) == (True, "none configured: rules decide alone")


def test_in_the_default_mode_to_view_the_jobs_is_enough(service: Service) -> None:
    load_viewed_jobs(service, 1)
    rights = checks(run("--json"))["Databricks rights"]
    assert rights["ok"]
    assert "CAN_VIEW on 1 job (directly)" in rights["detail"]
    assert rights["fix"] == ""


def test_for_people_commands_stand_below_the_table_each_on_one_line(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_viewed_jobs(service, 7)
    monkeypatch.setenv("DEFAULT_MODE", "retry")
    lines = run().stdout.splitlines()
    commands = [line for line in lines if line.startswith("databricks permissions update jobs ")]
    assert len(commands) == 5
    assert all(line.endswith("}]}'") for line in commands)
    assert any(line.startswith("for id in 6 7; do databricks permissions update jobs ") for line in lines)


def test_each_of_several_workspaces_is_asked(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(lambda: create_databricks_app(effects_path=None)) as other:
        load_viewed_jobs(service, 1)
        monkeypatch.setenv("DATABRICKS_HOST", f"{service.url},{other}")
        monkeypatch.delenv("DATABRICKS_TOKEN")
        monkeypatch.setenv("DATABRICKS_CLIENT_ID", APPLICATION_ID)
        monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "secret")
        names = list(checks(run("--json")))
    assert [name for name in names if name.startswith("Databricks rights in 127.0.0.1-")] == names[1:3]


def test_each_connection_names_the_roles_of_its_own_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("AZURE_CLIENT_ID", APPLICATION_ID),
        ("SERVICE_BUS_CONNECTION__fullyQualifiedNamespace", "sb-abc.servicebus.windows.net"),
        ("TABLES_ENDPOINT", "https://stabc.table.core.windows.net"),
        ("ACS_ENDPOINT", "https://acs-abc.europe.communication.azure.com"),
        ("AZURE_OPENAI_ENDPOINT", "https://cog-abc.openai.azure.com"),
    ):
        monkeypatch.setenv(name, value)
    found = {one.name: one.where_refused for one in bootstrap.connections(bootstrap.current_settings(), str)}
    whole = {name: re.findall(r'--role "([^"]+)"', text) for name, text in found.items()}
    assert all(names == names[: len(names) // 2] * 2 for names in whole.values()), "for you here, and for the app"
    roles = {name: names[: len(names) // 2] for name, names in whole.items()}
    assert roles == {
        "Databricks": [],
        "Service Bus": ["Azure Service Bus Data Sender", "Azure Service Bus Data Receiver"],
        "Tables": ["Storage Table Data Contributor"],
        "E-mail": ["Communication and Email Service Owner"],
        "Azure OpenAI": ["Cognitive Services OpenAI User"],
    }


def test_a_mail_service_that_refuses_the_key_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(lambda: create_email_app(EffectLog("email", None), tmp_path)) as url:
        for name, value in (
            ("ACS_ENDPOINT", url),
            ("ACS_ACCESS_KEY", "c2VjcmV0"),
            ("SENDER_EMAIL", "agent@example.com"),
            ("ESCALATION_EMAILS", "people@example.com"),
        ):
            monkeypatch.setenv(name, value)
        refuse_everything(url)
        mail = checks(run("--json"))["E-mail"]
    assert not mail["ok"]
    assert mail["fix"].startswith("ACS_ACCESS_KEY is refused")


def refuse_everything(url: str) -> None:
    fault = {"match": "* /emails", "kind": "error", "status": 401, "body": {"error": {"code": "Denied"}}}
    urlopen(f"{url}/_standin/faults", json.dumps({"faults": [fault]}).encode()).close()


# --- The app's own check


@dataclass
class DeployedApp:
    """Answers as an app in Azure may, and keeps the requests that it got."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def reports(self, *results: dict[str, object]) -> None:
        self.body = json.dumps({"checks": results}).encode()


@pytest.fixture
def deployed() -> Iterator[DeployedApp]:
    answers = DeployedApp()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.requests.append((self.path, self.headers.get("x-functions-key")))
            self.send_response(answers.status)
            for name, value in answers.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answers.body)))
            self.end_headers()
            self.wfile.write(answers.body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    answers.url = f"http://127.0.0.1:{server.server_port}"
    yield answers
    server.shutdown()
    server.server_close()


WELL = {"name": "Tables", "ok": True, "detail": "not paused", "fix": "", "failure": None}
REFUSED = {"name": "Tables", "ok": False, "detail": "[no]", "fix": "az role assignment create …", "failure": "refused"}
AWAY = {"name": "E-mail", "ok": False, "detail": "away", "fix": "look there", "failure": "unreachable"}
ODD = {"name": "Model", "ok": False, "detail": "odd", "fix": "look there", "failure": "unexpected"}
FOUR_FIELDS = {"name": "Model", "ok": False, "detail": "odd", "fix": "look there"}


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([WELL], ExitCode.AS_EXPECTED),
        ([WELL, REFUSED], ExitCode.USAGE_OR_SETTINGS),
        ([AWAY], ExitCode.UNREACHABLE),
        ([AWAY, REFUSED], ExitCode.USAGE_OR_SETTINGS),
        ([AWAY, ODD], ExitCode.EXPECTATION_FAILED),
        ([FOUR_FIELDS], ExitCode.EXPECTATION_FAILED),
    ],
)
def test_what_the_app_found_is_shown_as_if_it_were_found_here(
    deployed: DeployedApp, results: list[dict[str, object]], code: ExitCode
) -> None:
    deployed.reports(*results)

    as_json, as_table = run("--app", deployed.url, "--json"), run("--app", deployed.url)

    assert as_json.exit_code == as_table.exit_code == code
    assert json.loads(as_json.stdout) == {"checks": [{"failure": None} | result for result in results]}
    for result in results:
        assert str(result["detail"]) in as_table.stdout
        assert str(result["fix"]) in as_table.stdout.splitlines() or not result["fix"]
    assert deployed.requests == [("/api/check", None)] * 2


def test_the_key_comes_from_the_environment(deployed: DeployedApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNCTION_APP_KEY", "s3cret-key\n")
    deployed.reports(WELL)
    assert run("--app", deployed.url).exit_code == ExitCode.AS_EXPECTED
    assert deployed.requests == [("/api/check", "s3cret-key")]


def test_a_key_goes_to_no_other_address(deployed: DeployedApp) -> None:
    deployed.status, deployed.headers = 302, {"Location": f"{deployed.url}/elsewhere"}
    with pytest.raises(PermanentError, match="answered 302"):
        ask_app(deployed.url, key="s3cret-key")
    assert deployed.requests == [("/api/check", "s3cret-key")]


def test_what_is_no_key_is_not_sent_and_not_shown(deployed: DeployedApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNCTION_APP_KEY", "s3cret\nkey")
    result = run("--app", deployed.url)
    assert result.exit_code == ExitCode.USAGE_OR_SETTINGS
    assert "s3cret" not in result.output
    assert "FUNCTION_APP_KEY" in result.stderr
    assert deployed.requests == []


NOT_SET_UP = json.dumps({"ok": False, "problem": "missing settings: SENDER_EMAIL. Set them …"}).encode()
KEY_COMMAND = (
    'export FUNCTION_APP_KEY="$(az functionapp keys list --name "$(azd env get-value FUNCTION_APP_NAME)"'
    ' --resource-group "$(azd env get-value AZURE_RESOURCE_GROUP)" --query functionKeys.default --output tsv)"'
)


@pytest.mark.parametrize(
    ("status", "body", "said", "code"),
    [
        (401, b"", KEY_COMMAND, ExitCode.USAGE_OR_SETTINGS),
        (403, b"This web app is stopped.", "az functionapp start", ExitCode.USAGE_OR_SETTINGS),
        (404, b"", "azd deploy", ExitCode.USAGE_OR_SETTINGS),
        (503, NOT_SET_UP, "missing settings: SENDER_EMAIL", ExitCode.USAGE_OR_SETTINGS),
        (503, b"<html>Service Unavailable</html>", "answered 503: try again", ExitCode.UNREACHABLE),
        (504, b"", "answered 504: try again", ExitCode.UNREACHABLE),
        (429, b"", "answered 429: try again", ExitCode.UNREACHABLE),
        (400, b"", "answered 400: is that the address", ExitCode.EXPECTATION_FAILED),
        (200, b"<html>", "no report", ExitCode.EXPECTATION_FAILED),
        (200, b"[]", "no report", ExitCode.EXPECTATION_FAILED),
        (200, b'{"checks": [{"name": "Tables"}]}', "no report", ExitCode.EXPECTATION_FAILED),
        (200, b'{"ok": true}', "no report", ExitCode.EXPECTATION_FAILED),
        (200, b'{"checks": []}', "no report", ExitCode.EXPECTATION_FAILED),
    ],
)
def test_every_other_answer_says_what_to_do(
    deployed: DeployedApp, status: int, body: bytes, said: str, code: ExitCode
) -> None:
    deployed.status, deployed.body = status, body

    as_text, as_json = run("--app", deployed.url), run("--app", deployed.url, "--json")

    assert as_text.exit_code == as_json.exit_code == code
    assert said in as_text.stderr
    assert said in json.loads(as_json.stdout)["error"]


def test_an_app_that_cannot_be_reached_says_so() -> None:
    result = run("--app", "http://127.0.0.1:1")
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "does not answer" in result.stderr


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("https://func-abc.azurewebsites.net", "https://func-abc.azurewebsites.net/api/check"),
        ("func-abc.azurewebsites.net/", "https://func-abc.azurewebsites.net/api/check"),
        ("HTTPS://func-abc.azurewebsites.net", "https://func-abc.azurewebsites.net/api/check"),
        ("https://münchen.example.com", "https://münchen.example.com/api/check"),
        ("http://localhost:17071", "http://localhost:17071/api/check"),
    ],
)
def test_the_address_of_the_app(address: str, url: str) -> None:
    assert url_of(address) == url


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://",
        "https://a.example/api/check",
        "https://a.example?x",
        "ftp://a.example",
        "http://a.example",
        "https://a:b",
        "https://.azurewebsites.net",
        "https://a..b",
        f"https://{'a' * 64}.azurewebsites.net",
        "https://a.example/api/check?code=s3cret-key",
        "http://a.example/?code=s3cret-key",
        "https://user:s3cret-key@a.example",
        "http://user:s3cret-key@a.example",
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_sent_and_never_repeated(address: str) -> None:
    as_text, as_json = run("--app", address), run("--app", address, "--json")
    assert as_text.exit_code == as_json.exit_code == ExitCode.USAGE_OR_SETTINGS
    assert "--app" in as_text.stderr
    assert "--app" in json.loads(as_json.stdout)["error"]
    assert "s3cret" not in as_text.output + as_json.output


def test_while_the_app_checks_nothing_is_shown_that_may_hold_a_key(
    deployed: DeployedApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []

    def keep(text: object) -> AbstractContextManager[None]:
        shown.append(text)
        return nullcontext()

    monkeypatch.setattr(messages, "status", keep)
    deployed.reports(WELL)

    run("--app", deployed.url)
    run("--app", "https://a.example/api/check?code=s3cret-key")

    assert shown
    assert "s3cret" not in str(shown)


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_a_key_for_this_machine_goes_through_no_proxy(
    deployed: DeployedApp, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Over plain http a proxy would read it."""
    for other in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, deployed.url)
    deployed.reports(WELL)

    with pytest.raises(TransientError):
        ask_app("http://localhost:1", key="s3cret-key")

    assert deployed.requests == []
