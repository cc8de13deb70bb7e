"""Requests to one Databricks workspace by the official SDK: sign-in, repetition of reads, writes sent exactly once.

The SDK's generic `ApiClient.do` is used, raw JSON in and out. The SDK is imported and the client built at the first
request, never at import or construction: that import takes more than a second.
"""

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast, override

from shared import deadline
from shared.domain import Json
from shared.errors import (
    AgentError,
    ConfigurationError,
    NotAuthorisedError,
    OutcomeUnknownError,
    PermanentError,
    RunNotFoundError,
    ThrottledError,
    TransientError,
)
from shared.setting_values import sign_in_clash
from shared.settings import Settings
from shared.workspace_hosts import workspace_name

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from databricks.sdk.clock import Clock as SdkClock
    from databricks.sdk.core import ApiClient, CredentialsStrategy
    from requests import PreparedRequest, Response

PRODUCT, PRODUCT_VERSION = "failure-agent", "0.1.0"
READ_ATTEMPTS = 3
POOL = 20  # connections that are kept, as the SDK has it
METADATA_SECONDS = 5
METADATA_RETRY_SECONDS = 1

AZURE_DATABRICKS_SCOPE = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d/.default"  # the same application in every tenant


class Clock(Protocol):
    """What waiting is measured and done with; the module `time` is one."""

    def time(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


def check_access(settings: Settings) -> None:
    """Raise ConfigurationError unless there is one way to sign in at every host of DATABRICKS_HOST."""
    settings.require(("databricks_host",))
    clash = sign_in_clash(
        settings.databricks_host,
        token=settings.databricks_token,
        client_id=settings.databricks_client_id,
        client_secret=settings.databricks_client_secret,
    )
    if clash:
        raise ConfigurationError(clash.text, names=clash.names)


class WorkspaceApi:
    """The API of one workspace. Safe for several threads.

    Reads raise TransientError, ThrottledError, NotAuthorisedError, RunNotFoundError or a plain PermanentError.
    """

    def __init__(self, host: str, settings: Settings, credential: "TokenCredential | None", clock: Clock) -> None:
        self.name = workspace_name(host)
        self._host = host
        self._settings = settings
        self._credential = credential
        self._clock = clock
        self._calls = 0
        self._calls_lock = threading.Lock()
        self._client_lock = threading.Lock()
        self._built_client: ApiClient | None = None

    @property
    def calls(self) -> int:
        """API requests made so far, repetitions included; those for a token or about the host are not counted."""
        return self._calls

    def get(self, path: str, query: Json) -> Json:
        """One answer of a read."""
        return self._repeated(lambda client: client.do("GET", path, query=query), f"GET {path} {query}")

    def get_pages(self, path: str, query: Json) -> Iterator[Json]:
        """The answers of a read that comes in pages, each fetched when it is asked for."""
        page = self.get(path, query)
        yield page
        while token := page.get("next_page_token"):
            page = self.get(path, {**query, "page_token": token})
            yield page

    def read_by_post(self, path: str, body: Json) -> Json:
        """One answer of a read that the API wants as a POST; to repeat it does no harm."""
        return self._repeated(lambda client: client.do("POST", path, body=body), f"POST {path} {body}")

    def post_once(self, path: str, body: Json, what: str) -> Json:
        """Send a write exactly once.

        Raises OutcomeUnknownError where it was sent and no clear answer came; a plain TransientError where nothing was
        sent (no token, no connection); ThrottledError or a PermanentError where it was certainly not carried out.
        """
        client = self._client()
        data = _SentOnce(json.dumps(body).encode())
        try:
            with translated(what):
                return cast("Json", client.do("POST", path, headers={"Content-Type": "application/json"}, data=data))
        except ThrottledError:
            raise
        except TransientError as error:
            if _was_never_sent(error.__cause__):
                raise
            raise OutcomeUnknownError(f"{error}; it may have been carried out all the same") from error.__cause__

    def _repeated(self, request: "Callable[[ApiClient], object]", what: str) -> Json:
        """Send a read, up to three times if the server fails.

        The SDK repeats after 429, 503 and lost connections, not after 500, 502 and 504. No attempt starts later than
        `databricks_retry_seconds` after the first.
        """
        client = self._client()
        last_start = self._clock.time() + self._settings.databricks_retry_seconds
        for attempt in range(1, READ_ATTEMPTS):
            try:
                return self._send(client, request, what)
            except TransientError as error:
                if not _failed_in_server(error.__cause__) or self._clock.time() + attempt > last_start:
                    raise
            self._clock.sleep(attempt)
        return self._send(client, request, what)

    def _send(self, client: "ApiClient", request: "Callable[[ApiClient], object]", what: str) -> Json:
        with translated(f"{what} in workspace {self.name}"):
            return cast("Json", request(client))

    def _client(self) -> "ApiClient":
        with self._client_lock:
            if self._built_client is None:
                self._built_client = self._new_client()
            return self._built_client

    def _new_client(self) -> "ApiClient":
        from databricks.sdk.core import ApiClient, Config

        strategy = self._credentials_strategy()
        try:
            config = Config(
                host=self._host,
                credentials_strategy=strategy,
                # Set, so that variables of other kinds of sign-in in the environment are no conflict.
                auth_type=strategy.auth_type(),
                config_file="/nonexistent",  # else a profile in ~/.databrickscfg could be read
                # A new Config asks the host about itself and goes on without an answer, but only after this time.
                http_timeout_seconds=deadline.bounded(min(METADATA_SECONDS, self._settings.databricks_timeout_seconds)),
                retry_timeout_seconds=METADATA_RETRY_SECONDS,
                product=PRODUCT,
                product_version=PRODUCT_VERSION,
                clock=cast("SdkClock", _BoundedClock(self._clock, self._settings.databricks_retry_seconds)),
            )
        except ValueError as error:
            raise ConfigurationError(
                f"DATABRICKS_HOST {self._host} cannot be used as a workspace: {_first_line(error)}",
                names=("DATABRICKS_HOST",),
            ) from error
        config.http_timeout_seconds = self._settings.databricks_timeout_seconds
        config.retry_timeout_seconds = self._settings.databricks_retry_seconds
        return _bounded(ApiClient(config))

    def _credentials_strategy(self) -> "CredentialsStrategy":
        settings = self._settings
        if settings.databricks_token:
            return self._bearer_strategy("pat", lambda: settings.databricks_token)
        if settings.databricks_client_id:
            return self._bearer_strategy("oauth-m2m", _service_principal_token(self._host, settings))
        return self._bearer_strategy("azure-identity", _identity_token(self._credential, settings))

    def _bearer_strategy(self, auth_type: str, token: Callable[[], str]) -> "CredentialsStrategy":
        """Sign-in with a token. The SDK asks for it at every request, its own repetitions too, so here all are counted.

        Who gives the token caches it.
        """
        from databricks.sdk.core import CredentialsStrategy

        def headers() -> dict[str, str]:
            authorization = f"Bearer {_token_or_error(token)}"
            with self._calls_lock:
                self._calls += 1
            return {"Authorization": authorization}

        class BearerToken(CredentialsStrategy):
            def auth_type(self) -> str:
                return auth_type

            def __call__(self, _config: object) -> Callable[[], dict[str, str]]:
                return headers

        return BearerToken()


class _SentOnce(io.BytesIO):
    """A body that the SDK sends once.

    The SDK repeats every request, writes too, after a lost connection or a timeout, and no setting turns that off: even
    the shortest budget permits a second attempt where the first fails at once. It does not repeat a body that cannot be
    rewound (`_BaseClient.do`: "Do not retry if the stream is not seekable"), so that is what a write gets.
    """

    def seekable(self) -> bool:
        return False


def _bounded(client: "ApiClient") -> "ApiClient":
    """The client, each of whose tries ends with the invocation's deadline; the SDK has one timeout for all requests."""
    from requests.adapters import HTTPAdapter

    class BoundedAdapter(HTTPAdapter):
        @override
        def send(
            self,
            request: "PreparedRequest",
            stream: bool = False,
            timeout: Any = None,
            verify: bool | str = True,
            cert: Any = None,
            proxies: dict[str, str] | None = None,
        ) -> "Response":
            return super().send(request, stream, deadline.bounded(timeout), verify, cert, proxies)

    adapter = BoundedAdapter(pool_connections=POOL, pool_maxsize=POOL, pool_block=True)
    for scheme in ("https://", "http://"):
        client._api_client._session.mount(scheme, adapter)
    return client


class _BoundedClock:
    """The clock that the SDK waits with. It refuses a wait longer than the whole budget.

    The SDK sleeps for as long as Retry-After says, past its own deadline, but a function must not sleep for minutes.
    The TimeoutError is raised where the SDK handles the answer, so it has that answer as its context.
    """

    def __init__(self, clock: Clock, longest_seconds: float) -> None:
        self._clock = clock
        self._longest_seconds = longest_seconds

    def time(self) -> float:
        return self._clock.time()

    def sleep(self, seconds: float) -> None:
        if seconds > self._longest_seconds + 1:  # the SDK adds up to a second at random
            raise TimeoutError(f"asked to wait {seconds:.0f} s, longer than {self._longest_seconds:.0f} s")
        if seconds > deadline.bounded(seconds):
            raise TimeoutError(f"asked to wait {seconds:.0f} s, longer than this invocation may take")
        self._clock.sleep(seconds)


def _service_principal_token(host: str, settings: Settings) -> Callable[[], str]:
    """Tokens of a Databricks service principal, from the workspace's own token endpoint.

    The SDK's own strategy looks that endpoint up first, with a budget of five minutes that cannot be set.
    """
    from databricks.sdk.oauth import ClientCredentials

    source = ClientCredentials(
        client_id=settings.databricks_client_id,
        client_secret=settings.databricks_client_secret,
        token_url=f"{host}/oidc/v1/token",
        scopes="all-apis",
        use_header=True,
    )
    return lambda: str(source.token().access_token)


def _identity_token(credential: "TokenCredential | None", settings: Settings) -> Callable[[], str]:
    """Entra tokens of the app's managed identity (or of whoever is signed in on a developer's machine)."""
    if credential is None:
        from azure.identity import DefaultAzureCredential

        credential = DefaultAzureCredential(managed_identity_client_id=settings.azure_client_id or None)
    return lambda: credential.get_token(AZURE_DATABRICKS_SCOPE).token


def _token_or_error(token: Callable[[], str]) -> str:
    """The token. Raises NotAuthorisedError where it was refused, TransientError where it could not be had just now.

    Network trouble (an OSError) is passed on: the SDK repeats the request then. For a refusal its `retrieve_token`
    raises ValueError or, for an answer without a token, NotImplementedError.
    """
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        return token()
    except OSError:
        raise
    except (ClientAuthenticationError, ValueError, NotImplementedError) as error:
        raise NotAuthorisedError(f"no token for Databricks: {_first_line(error)}") from error
    except AzureError as error:
        raise TransientError(f"no token for Databricks just now: {_first_line(error)}") from error


@contextmanager
def translated(what: str) -> Iterator[None]:
    """The one place where exceptions of the SDK and its HTTP client become those of `shared.errors`.

    All of them are OSErrors: DatabricksError, requests.RequestException, the TimeoutError of the SDK's own repetition.
    """
    try:
        yield
    except OSError as error:
        cause = _answer_behind(error)
        raise _agent_error(cause, what) from cause


def _answer_behind(error: OSError) -> OSError:
    """The last answer or failure that the SDK had when it gave up repeating; else the error itself."""
    behind = error.__cause__ or error.__context__
    return behind if isinstance(error, TimeoutError) and isinstance(behind, OSError) else error


def _agent_error(error: OSError, what: str) -> AgentError:
    from databricks.sdk import errors as sdk

    code = getattr(error, "error_code", None) or type(error).__name__
    text = f"{what} failed: {code}: {_first_line(error)}"
    match error:
        case sdk.TooManyRequests():
            # The SDK says 1 where the answer had no Retry-After.
            return ThrottledError(text, retry_after_seconds=error.retry_after_secs)
        case sdk.Unauthenticated() | sdk.PermissionDenied():
            return NotAuthorisedError(text)
        case sdk.NotFound():
            return RunNotFoundError(text)
        case sdk.BadRequest() if re.search(r"does(n't| not) exist", text):
            return RunNotFoundError(text)
        case sdk.BadRequest() | sdk.NotImplemented() | sdk.AlreadyExists() | sdk.ResourceAlreadyExists():
            return PermanentError(text)
        case _:
            return TransientError(text)


def _first_line(error: BaseException) -> str:
    """A short text. What the SDK adds to 401 and 403 about its configuration is left out."""
    line = str(error).partition("\n")[0].partition(" Config: ")[0]
    return line[:300]


def _failed_in_server(error: BaseException | None) -> bool:
    """Whether the answer was 500, 502 or 504; 502 has no class of its own in the SDK."""
    from databricks.sdk.errors import DeadlineExceeded, InternalError
    from databricks.sdk.errors.base import DatabricksError

    return isinstance(error, InternalError | DeadlineExceeded) or type(error) is DatabricksError


def _was_never_sent(error: BaseException | None) -> bool:
    """Whether there was no token or no connection could be made, so that nothing was sent."""
    from requests import exceptions
    from urllib3.exceptions import NewConnectionError

    if not isinstance(error, OSError) or isinstance(error, exceptions.ConnectTimeout):
        return True  # what is not an OSError was met while signing in
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, exceptions.ConnectionError) and isinstance(reason, NewConnectionError)
