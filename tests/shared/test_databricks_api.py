"""Requests to a workspace with the official SDK over a real socket: sign-in, repetition, and what errors mean."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from databricks.sdk import errors as sdk
from databricks.sdk.errors.base import DatabricksError
from databricks.sdk.errors.private_link import PrivateLinkValidationError
from requests import exceptions as requests_exceptions

from local.databricks.server import create_databricks_app
from local.http_standin import running
from shared.databricks_api import WorkspaceApi, check_access, translated
from shared.domain import Json
from shared.errors import (
    AgentError,
    ConfigurationError,
    NotAuthorisedError,
    PermanentError,
    RunNotFoundError,
    ThrottledError,
    TransientError,
)
from tests.shared.databricks_service import FakeClock, Service, scripted, serving, settings_for

WORKSPACE_HOST = "https://adb-1234567890123456.7.azuredatabricks.net"
READ = "/api/2.1/clusters/list-node-types"


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(lambda: create_databricks_app(effects_path=None)) as service:
        yield service


def api_of(service: Service) -> WorkspaceApi:
    return WorkspaceApi(service.url, settings_for(service.url), None, service.clock)


# Settings


@pytest.mark.parametrize(
    ("hosts", "changes", "names"),
    [
        ((), {}, ("DATABRICKS_HOST",)),
        ((WORKSPACE_HOST, "https://other.example"), {}, ("DATABRICKS_TOKEN", "DATABRICKS_HOST")),
        ((WORKSPACE_HOST, WORKSPACE_HOST), {"databricks_token": ""}, ("DATABRICKS_HOST",)),
        (
            ("https://dbc-1.cloud.databricks.com",),
            {"databricks_token": ""},
            ("DATABRICKS_TOKEN or DATABRICKS_CLIENT_ID",),
        ),
        (
            ("https://dbc-1.cloud.databricks.com",),
            {"databricks_token": "", "databricks_client_id": "id"},
            ("DATABRICKS_CLIENT_SECRET",),
        ),
        (
            (WORKSPACE_HOST,),
            {"databricks_token": "", "databricks_client_secret": "s"},
            ("DATABRICKS_CLIENT_ID",),
        ),
    ],
)
def test_wrong_settings_are_named(hosts: tuple[str, ...], changes: Json, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_access(settings_for(*hosts, **changes))

    assert caught.value.names == names


# Sign-in


@pytest.fixture
def sign_in() -> Iterator[tuple[str, list[web.Request]]]:
    """A service that keeps the requests that it got and gives tokens to the service principal `id`."""
    seen: list[web.Request] = []

    def token(request: web.Request) -> web.Response:
        if request.headers["Authorization"] != "Basic aWQ6c2VjcmV0":  # id:secret
            return web.json_response({"error": "invalid_client", "error_description": "Client is wrong"}, status=401)
        return web.json_response({"access_token": "principal", "token_type": "Bearer", "expires_in": 3600})

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/oidc/v1/token":
            return token(request)
        if request.path.startswith("/api/"):
            seen.append(request)
            return web.json_response({"node_types": []})
        return web.json_response({"error_code": "NOT_FOUND", "message": "no"}, status=404)

    def create() -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        return app

    with running(create) as url:
        yield url, seen


class FakeCredential:
    """An Entra credential that gives a token for one scope, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def get_token(self, *scopes: str, **_options: Any) -> AccessToken:
        if self.error:
            raise self.error
        return AccessToken(f"entra for {scopes[0]}", 4_000_000_000)


@pytest.mark.parametrize(
    ("changes", "authorization"),
    [
        ({"databricks_token": "pat"}, "Bearer pat"),
        ({"databricks_client_id": "id", "databricks_client_secret": "secret"}, "Bearer principal"),
        ({}, "Bearer entra for 2ff814a6-3304-4ab8-85cb-cd0e6f879c1d/.default"),
    ],
)
def test_ways_to_sign_in(
    sign_in: tuple[str, list[web.Request]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: Json,
    authorization: str,
) -> None:
    url, seen = sign_in
    for name in (
        "ARM_CLIENT_SECRET",
        "ARM_CLIENT_ID",
        "DATABRICKS_TOKEN",
        "DATABRICKS_USERNAME",
        "DATABRICKS_PASSWORD",
    ):
        monkeypatch.setenv(name, "stray")
    stray = tmp_path / "databrickscfg"
    stray.write_text("[stray]\nhost = https://stray.example\nazure_client_id = stray\n")
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(stray))
    monkeypatch.setenv("DATABRICKS_CONFIG_PROFILE", "no such profile")
    settings = settings_for(url, **{"databricks_token": ""} | changes)

    WorkspaceApi(url, settings, FakeCredential(), FakeClock()).get(READ, {})

    assert seen[0].headers["Authorization"] == authorization
    assert seen[0].headers["User-Agent"].startswith("failure-agent/")


@pytest.mark.parametrize(
    ("changes", "credential", "error"),
    [
        (
            {"databricks_client_id": "id", "databricks_client_secret": "wrong"},
            FakeCredential(),
            NotAuthorisedError,
        ),
        ({}, FakeCredential(ClientAuthenticationError("no identity")), NotAuthorisedError),
        ({}, FakeCredential(ServiceRequestError("no network")), TransientError),
    ],
)
def test_no_token_no_request(
    sign_in: tuple[str, list[web.Request]],
    changes: Json,
    credential: FakeCredential,
    error: type[AgentError],
) -> None:
    url, seen = sign_in
    settings = settings_for(url, **{"databricks_token": ""} | changes)

    with pytest.raises(error, match="no token"):
        WorkspaceApi(url, settings, credential, FakeClock()).get(READ, {})

    assert seen == []


def test_a_write_without_a_token_is_not_in_doubt(sign_in: tuple[str, list[web.Request]]) -> None:
    url, seen = sign_in
    credential = FakeCredential(ServiceRequestError("no network"))
    api = WorkspaceApi(url, settings_for(url, databricks_token=""), credential, FakeClock())

    with pytest.raises(TransientError) as caught:
        api.post_once("/api/2.2/jobs/runs/repair", {"run_id": 1}, "repair")

    assert type(caught.value) is TransientError
    assert (seen, api.calls) == ([], 0)


# Reads


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_read_is_repeated_when_the_server_fails(service: Service, status: int) -> None:
    service.set_fault(f"GET {READ}", "error", status=status, times=2)
    api = api_of(service)

    assert api.get(READ, {})["node_types"]
    assert (service.calls(f"GET {READ}"), api.calls) == (3, 3)
    assert service.clock.waits == [1, 2]


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_read_is_sent_three_times_at_most(service: Service, status: int) -> None:
    service.set_fault(f"GET {READ}", "error", status=status)

    with pytest.raises(TransientError):
        api_of(service).get(READ, {})

    assert service.calls(f"GET {READ}") == 3


@pytest.mark.parametrize("kind", ["429", "503", "drop_before"])
def test_the_sdk_repeats_the_other_reads(service: Service, kind: str) -> None:
    service.set_fault(f"GET {READ}", kind, times=1)

    api = api_of(service)

    assert api.get(READ, {})["node_types"]
    assert (service.calls(f"GET {READ}"), api.calls) == (2, 2)


def test_throttling_beyond_the_budget_names_the_wait_and_does_not_wait(service: Service) -> None:
    service.set_fault(f"GET {READ}", "429", retry_after=600)

    with pytest.raises(ThrottledError) as caught:
        api_of(service).get(READ, {})

    assert caught.value.retry_after_seconds == 600
    assert service.clock.waits == []


def test_throttling_that_does_not_end(service: Service) -> None:
    service.set_fault(f"GET {READ}", "429", retry_after=2)

    with pytest.raises(ThrottledError) as caught:
        api_of(service).get(READ, {})

    assert caught.value.retry_after_seconds == 2
    assert sum(service.clock.waits) < 10


@pytest.mark.parametrize("kind", ["503", "drop_before"])
def test_a_service_that_stays_away_is_transient(service: Service, kind: str) -> None:
    service.set_fault(f"GET {READ}", kind)

    with pytest.raises(TransientError) as caught:
        api_of(service).get(READ, {})

    assert type(caught.value) is TransientError


def test_a_page_that_is_not_json_is_transient() -> None:
    page = web.Response(text="<html>maintenance</html>", content_type="text/html")
    with serving(lambda: scripted({"jobs/get": lambda _: page})) as service, pytest.raises(TransientError):
        api_of(service).get("/api/2.2/jobs/get", {})


def test_an_error_shows_neither_configuration_nor_token() -> None:
    refused = {"error_code": "PERMISSION_DENIED", "message": "User does not have permission"}
    with (
        serving(lambda: scripted({"jobs/get": lambda _: web.json_response(refused, status=403)})) as service,
        pytest.raises(NotAuthorisedError) as caught,
    ):
        api_of(service).get("/api/2.2/jobs/get", {})

    assert "User does not have permission" in str(caught.value)
    assert "Config" not in str(caught.value)


def test_threads_share_one_client() -> None:
    clients: list[web.Request] = []

    def metadata(request: web.Request) -> web.Response:
        clients.append(request)  # asked for once by each new client
        return web.json_response({"oidc_endpoint": "https://a.example/oidc"})

    answers = {".well-known/databricks-config": metadata, "jobs/get": lambda _: web.json_response({"job_id": 1})}
    with serving(lambda: scripted(answers)) as service, ThreadPoolExecutor(16) as pool:
        api = api_of(service)
        read = list(pool.map(lambda _: api.get("/api/2.2/jobs/get", {}), range(64)))

    assert read == [{"job_id": 1}] * 64
    assert (len(clients), api.calls) == (1, 64)


def test_a_host_that_is_no_workspace_is_a_matter_of_settings() -> None:
    account = {"oidc_endpoint": "https://accounts.example/oidc/accounts/{account_id}"}
    with (
        serving(lambda: scripted({".well-known/databricks-config": lambda _: web.json_response(account)})) as service,
        pytest.raises(ConfigurationError, match="DATABRICKS_HOST"),
    ):
        api_of(service).get(READ, {})


# What errors mean

TRANSLATIONS: dict[type[DatabricksError], type[AgentError]] = {
    DatabricksError: TransientError,
    sdk.BadRequest: PermanentError,
    sdk.InvalidState: PermanentError,
    sdk.InvalidParameterValue: PermanentError,
    sdk.Unauthenticated: NotAuthorisedError,
    sdk.PermissionDenied: NotAuthorisedError,
    PrivateLinkValidationError: NotAuthorisedError,
    sdk.NotFound: RunNotFoundError,
    sdk.ResourceDoesNotExist: RunNotFoundError,
    sdk.ResourceConflict: TransientError,
    sdk.Aborted: TransientError,
    sdk.AlreadyExists: PermanentError,
    sdk.ResourceAlreadyExists: PermanentError,
    sdk.TooManyRequests: ThrottledError,
    sdk.ResourceExhausted: ThrottledError,
    sdk.RequestLimitExceeded: ThrottledError,
    sdk.Cancelled: TransientError,
    sdk.InternalError: TransientError,
    sdk.Unknown: TransientError,
    sdk.DataLoss: TransientError,
    sdk.NotImplemented: PermanentError,
    sdk.TemporarilyUnavailable: TransientError,
    sdk.DeadlineExceeded: TransientError,
}


def all_error_classes(base: type[DatabricksError] = DatabricksError) -> set[type[DatabricksError]]:
    return {base}.union(*(all_error_classes(child) for child in base.__subclasses__()))


def meaning_of(error: Exception) -> AgentError:
    with pytest.raises(AgentError) as caught, translated("reading"):
        raise error
    return caught.value


def test_every_error_class_of_the_sdk_is_in_the_table() -> None:
    assert set(TRANSLATIONS) == all_error_classes()


@pytest.mark.parametrize(("vendor", "ours"), TRANSLATIONS.items(), ids=lambda cls: cls.__name__)
def test_meaning_of_the_errors_of_the_sdk(vendor: type[DatabricksError], ours: type[AgentError]) -> None:
    error = meaning_of(vendor("what happened"))

    assert type(error) is ours
    assert "what happened" in str(error)
    assert "reading failed" in str(error)


def test_the_sdk_giving_up_means_what_its_last_answer_meant() -> None:
    gave_up = TimeoutError("Timed out after 0:00:05")
    gave_up.__cause__ = sdk.TooManyRequests("slow down", retry_after_secs=3)

    error = meaning_of(gave_up)

    assert isinstance(error, ThrottledError)
    assert error.retry_after_seconds == 3


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("no answer"),
        requests_exceptions.ConnectionError("reset"),
        requests_exceptions.ReadTimeout("late"),
        requests_exceptions.JSONDecodeError("no JSON", "", 0),
    ],
)
def test_trouble_on_the_way_is_transient(error: Exception) -> None:
    assert type(meaning_of(error)) is TransientError


def test_a_refusal_that_says_that_the_run_is_gone() -> None:
    assert isinstance(meaning_of(sdk.InvalidParameterValue("Run 7 does not exist.")), RunNotFoundError)
