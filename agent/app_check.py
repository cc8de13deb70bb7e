"""Asks the deployed app for its own check: HTTP GET /api/check."""

import json
import re
import urllib.request
from email.message import Message
from http.client import HTTPException
from typing import IO, Annotated, override
from urllib.error import HTTPError
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter, ValidationError

from shared.checking import CheckResult
from shared.errors import AgentError, ConfigurationError, NotAuthorisedError, PermanentError, TransientError
from shared.setting_values import base_of

ROUTE = "/api/check"
ANSWER_SECONDS = 240
"""A little longer than Azure's front end waits for the app (230 seconds)."""

OF_THE_APP = (
    '--name "$(azd env get-value FUNCTION_APP_NAME)" --resource-group "$(azd env get-value AZURE_RESOURCE_GROUP)"'
)
GET_THE_KEY = (
    f'export FUNCTION_APP_KEY="$(az functionapp keys list {OF_THE_APP} --query functionKeys.default --output tsv)"'
)
GET_ADDRESS = f"az functionapp show {OF_THE_APP} --query defaultHostName --output tsv"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_RESULTS = TypeAdapter(Annotated[list[CheckResult], Field(min_length=1)])


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for the app alone, not for whoever it may point to."""

    @override
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def ask_app(address: str, *, key: str) -> list[CheckResult]:
    """What the app at this address can reach.

    Raises ConfigurationError for an address that is none, for 404, and where the app lacks settings, NotAuthorisedError
    where it refuses the key, TransientError where it does not answer, PermanentError for an answer that is no report.
    """
    url = url_of(address)
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(
            f"FUNCTION_APP_KEY holds no key; get it with:\n{GET_THE_KEY}", names=("FUNCTION_APP_KEY",)
        )
    request = urllib.request.Request(url, headers={"x-functions-key": key} if key else {})
    try:
        status, body = answer_to(request)
    except (OSError, HTTPException) as error:
        raise TransientError(
            f"{url} does not answer: {error}. Is the address right ({GET_ADDRESS}), and may this network reach the app?"
        ) from error
    if status != 200:
        raise error_of(status, body, url, has_key=bool(key))
    return results_in(body, url)


def answer_to(request: urllib.request.Request) -> tuple[int, bytes]:
    """Status and body, whatever the status. Raises OSError or HTTPException where none comes.

    What is meant for this machine goes through no proxy: over plain http it would read the key.
    """
    no_proxy = [urllib.request.ProxyHandler({})] if urlsplit(request.full_url).hostname in LOOPBACK else []
    try:
        with urllib.request.build_opener(NoRedirect, *no_proxy).open(request, timeout=ANSWER_SECONDS) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def url_of(address: str) -> str:
    """The function's URL. Raises ConfigurationError for what is no address, or would let the key travel unencrypted.

    What was given is never repeated: an address copied from the portal may hold the key.
    """
    base = base_of(address)
    if base is None or has_more_than_host(address) or not is_host_name(urlsplit(base).hostname or ""):
        raise ConfigurationError("--app: give the address of the app alone, such as https://<app>.azurewebsites.net")
    if base.startswith("http://") and urlsplit(base).hostname not in LOOPBACK:
        raise ConfigurationError("--app: the address must be https, since the key is sent along")
    return base + ROUTE


def has_more_than_host(address: str) -> bool:
    """Whether a path, a query or a fragment follows."""
    parts = urlsplit(address if "://" in address else f"https://{address}")
    return bool(parts.path.strip("/") or parts.query or parts.fragment)


def is_host_name(name: str) -> bool:
    """Whether it can be looked up: no part between two dots is empty or longer than 63 characters (RFC 1035)."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


def results_in(body: bytes, url: str) -> list[CheckResult]:
    """The results in the app's answer. Raises PermanentError where there are none."""
    try:
        return _RESULTS.validate_python(json.loads(body)["checks"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise PermanentError(
            f"{url} answered with something that is no report: is that the address of this app?"
        ) from error


def error_of(status: int, body: bytes, url: str, *, has_key: bool) -> AgentError:
    """What an answer other than 200 means, and what to do."""
    match status:
        case 401:
            what = "refuses the key in FUNCTION_APP_KEY" if has_key else "asks for a key"
            return NotAuthorisedError(f"{url} {what}; get it with:\n{GET_THE_KEY}")
        case 403:
            return NotAuthorisedError(
                f"{url} answered 403: the app is stopped, or its network keeps this machine out; start it with:\n"
                f"az functionapp start {OF_THE_APP}"
            )
        case 404:
            return ConfigurationError(
                f"{url}: there is no such function. Deploy the app first (azd deploy). If it is deployed, it stopped at"
                " its start: the exception in its log names the settings (docs/runbook.md)"
            )
        case 503 if problem := problem_in(body):
            return ConfigurationError(f"the app is not set up: {problem}")
        case _ if status >= 500 or status == 429:
            return TransientError(
                f"{url} answered {status}: try again; if that stays so, look into the app's log (docs/runbook.md)"
            )
        case _:
            return PermanentError(f"{url} answered {status}: is that the address of this app ({GET_ADDRESS})?")


def problem_in(body: bytes) -> str:
    """The settings that the app says it lacks; empty where the answer is another's."""
    try:
        problem = json.loads(body)["problem"]
    except (ValueError, KeyError, TypeError):
        return ""
    return re.sub(r"\s+", " ", str(problem))
