"""Databricks workspaces: failed runs, everything about one of them, and the two writes that retry it.

The official SDK carries every request (authentication, repetition of reads, errors); its dataclasses are not used, see
`databricks_runs`. The SDK is imported and a client built at the first call, never at import or construction.
"""

import io
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import urlsplit

from shared import databricks_runs
from shared.databricks_runs import RUN_ARRAYS, SETTINGS_ARRAYS
from shared.domain import JobFacts, Json, NewerRun, RunFacts, RunState, RunSummary, TaskFailure
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
from shared.settings import Settings

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from databricks.sdk.core import ApiClient, CredentialsStrategy

log = logging.getLogger(__name__)

PRODUCT, PRODUCT_VERSION = "failure-agent", "0.1.0"
JOBS = "/api/2.2/jobs"
CLUSTERS = "/api/2.1/clusters"

RUNS_PER_PAGE = 25  # the most that jobs/runs/list gives
MAX_DETAILED_TASKS = 20
MAX_ITERATIONS = 3
MAX_ITERATION_PAGES = 5
PARALLEL_READS = 8
READ_ATTEMPTS = 3
MAX_TOKEN_LENGTH = 64  # Jobs API, run-now: idempotency_token has at most 64 characters
EVENTS_AFTER_THE_RUN = timedelta(minutes=10)  # a cluster ends, and says why, after its last task

AZURE_DOMAINS = (".azuredatabricks.net", ".databricks.azure.us", ".databricks.azure.cn")
AZURE_DATABRICKS_SCOPE = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d/.default"  # the same application in every tenant


class Clock(Protocol):
    """What waiting is measured and done with; the module `time` is one."""

    def time(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


class DatabricksConnector:
    """Runs of Databricks jobs in one or more workspaces; implements `ports.JobRuns`. Safe for several threads.

    Without settings they are taken from the environment at the first call. `credential` is the Entra credential for
    Azure hosts that have neither a token nor a service principal; by default `DefaultAzureCredential`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        credential: "TokenCredential | None" = None,
        clock: Clock = cast("Clock", time),
    ) -> None:
        self._given_settings = settings
        self._credential = credential
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def workspaces(self) -> tuple[str, ...]:
        """Names of the workspaces. Raises ConfigurationError if the settings of Databricks are missing or conflict."""
        return tuple(self._workspaces)

    @property
    def calls(self) -> int:
        """API calls made so far; repetitions by the SDK and requests for a token are not counted."""
        return sum(workspace.calls for workspace in self._workspaces.values())

    def active_runs(self, workspace: str) -> list[RunSummary]:
        return self._list_runs(workspace, {"active_only": True})

    def completed_runs(self, workspace: str, *, started_after: datetime) -> list[RunSummary]:
        query = {"completed_only": True, "start_time_from": _milliseconds(started_after)}
        return self._list_runs(workspace, query)

    def _list_runs(self, workspace: str, query: Json) -> list[RunSummary]:
        pages = self._workspace(workspace).get_pages(f"{JOBS}/runs/list", {**query, "limit": RUNS_PER_PAGE})
        summaries = [databricks_runs.run_summary(raw) for page in pages for raw in page.get("runs", [])]
        # A run that starts while pages are read moves the others down, so that one of them comes twice.
        return list({summary.run_id: summary for summary in summaries}.values())

    def read_state(self, workspace: str, run_id: int) -> RunState:
        return databricks_runs.run_state(workspace, self._workspace(workspace).run(run_id))

    def read_facts(self, workspace: str, run_id: int) -> RunFacts:
        """Everything about a failed run. Of its root-cause tasks, the first 20 to fail are read.

        What cannot be read about a task (its output, its cluster) is left empty; `job` is None if it is gone or hidden.
        """
        api = self._workspace(workspace)
        raw = api.run(run_id)
        run = databricks_runs.run_state(workspace, raw)
        with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="read-facts") as pool:
            try:
                job = pool.submit(_read_job, api, run)
                newer = pool.submit(_read_newer_runs, api, run)
                failures = _read_failures(api, raw, run, pool)
                facts_of_job = job.result()
                return RunFacts(
                    run=run,
                    task_count=databricks_runs.task_count(raw),
                    failures=failures,
                    job=facts_of_job,
                    newer_runs=newer.result(),
                    parent=databricks_runs.parent_of(raw, facts_of_job.tags if facts_of_job else {}),
                )
            except AgentError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def repair_run(
        self,
        workspace: str,
        run_id: int,
        *,
        latest_repair_id: int | None,
        job_parameters: Mapping[str, str],
        legacy_parameters: Mapping[str, object],
    ) -> int:
        """Rerun all failed tasks and what depends on them; the repair id. The request is sent exactly once.

        Beyond the errors of the port: a refusal whose text is not known is a plain PermanentError; a workspace that
        could not be connected to is a plain TransientError, as nothing was sent.
        """
        body = databricks_runs.repair_body(
            run_id,
            latest_repair_id=latest_repair_id,
            job_parameters=job_parameters,
            legacy_parameters=legacy_parameters,
        )
        what = f"repair of run {run_id} in workspace {workspace}"
        try:
            answer = self._workspace(workspace).post_once(f"{JOBS}/runs/repair", body, what)
        except NotAuthorisedError:
            raise
        except PermanentError as error:
            is_invalid_state = getattr(error.__cause__, "error_code", None) == "INVALID_STATE"
            meaning = databricks_runs.refused_repair(str(error), is_invalid_state=is_invalid_state)
            if meaning is PermanentError:
                raise
            raise meaning(str(error)) from error.__cause__
        return _id_in(answer, "repair_id", what)

    def run_now(self, workspace: str, job_id: int, *, token: str, job_parameters: Mapping[str, str]) -> int:
        """Start a new run of the job; its run id. The request is sent exactly once.

        The same token gives the same run, also where that run has failed. Raises ValueError for a token that is empty
        or longer than 64 characters.
        """
        if not 0 < len(token) <= MAX_TOKEN_LENGTH:
            raise ValueError(f"an idempotency token has 1 to {MAX_TOKEN_LENGTH} characters, not {len(token)}")
        body: Json = {"job_id": job_id, "idempotency_token": token}
        if job_parameters:
            body["job_parameters"] = dict(job_parameters)
        what = f"new run of job {job_id} in workspace {workspace}"
        return _id_in(self._workspace(workspace).post_once(f"{JOBS}/run-now", body, what), "run_id", what)

    def _workspace(self, name: str) -> "_Workspace":
        try:
            return self._workspaces[name]
        except KeyError:
            known = ", ".join(self._workspaces)
            raise ConfigurationError(
                f"workspace {name!r} is not one of DATABRICKS_HOST ({known}); add its URL there",
                names=("DATABRICKS_HOST",),
            ) from None

    @property
    def _workspaces(self) -> "Mapping[str, _Workspace]":
        with self._lock:  # two threads must not make two sets of clients
            return self._built_workspaces

    @cached_property
    def _built_workspaces(self) -> "Mapping[str, _Workspace]":
        settings = self._given_settings or _settings_of_the_environment()
        _check_access(settings)
        built = [
            _Workspace(workspace_name(host), host, settings, self._credential, self._clock)
            for host in settings.databricks_host
        ]
        return {workspace.name: workspace for workspace in built}


def _settings_of_the_environment() -> Settings:
    from shared.bootstrap import current_settings

    return current_settings()


def workspace_name(host: str) -> str:
    """Short stable name of a workspace, free of the characters that a table key may not hold (`/ \\ # ?`).

    The workspace id where the URL tells it (`https://adb-<id>.<n>.azuredatabricks.net`), else the host and port.
    """
    url = urlsplit(host)
    found = re.match(r"adb-(\d+)\.", url.hostname or "")
    if found:
        return found[1]
    return url.hostname or "" if url.port is None else f"{url.hostname}-{url.port}"


def _is_azure(host: str) -> bool:
    return (urlsplit(host).hostname or "").endswith(AZURE_DOMAINS)


def _check_access(settings: Settings) -> None:
    """Raise ConfigurationError unless there is exactly one way to sign in at every host."""
    settings.require(("databricks_host",))
    hosts = settings.databricks_host
    if len({workspace_name(host) for host in hosts}) < len(hosts):
        raise ConfigurationError("DATABRICKS_HOST names a workspace twice", names=("DATABRICKS_HOST",))
    if settings.databricks_token:
        if len(hosts) > 1:
            raise ConfigurationError(
                "DATABRICKS_TOKEN belongs to one workspace, but DATABRICKS_HOST names several: use a service principal"
                " (DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET) or a managed identity",
                names=("DATABRICKS_TOKEN", "DATABRICKS_HOST"),
            )
    elif settings.databricks_client_id or settings.databricks_client_secret:
        settings.require(("databricks_client_id",), ("databricks_client_secret",))
    elif not all(map(_is_azure, hosts)):
        settings.require(("databricks_token", "databricks_client_id"))


def _read_job(api: "_Workspace", run: RunState) -> JobFacts | None:
    """The job as it is now; None for a one-time run, a deleted job, or one that the identity may not see."""
    if run.job_id is None or run.run_type in ("SUBMIT_RUN", "WORKFLOW_RUN"):
        return None
    try:
        return databricks_runs.job_facts(api.job(run.job_id))
    except (RunNotFoundError, NotAuthorisedError):
        log.info("job not readable", extra={"workspace": api.name, "run_id": run.run_id, "job_id": run.job_id})
        return None


def _read_newer_runs(api: "_Workspace", run: RunState) -> tuple[NewerRun, ...]:
    """The latest runs (at most 25) of the job that started after this one."""
    if run.job_id is None or run.run_type in ("SUBMIT_RUN", "WORKFLOW_RUN"):
        return ()
    start = _milliseconds(run.start_time) + 1
    query = {"job_id": run.job_id, "start_time_from": start, "limit": RUNS_PER_PAGE}
    return databricks_runs.newer_runs(api.get(f"{JOBS}/runs/list", query).get("runs", []), run)


def _read_failures(api: "_Workspace", raw: Json, run: RunState, pool: ThreadPoolExecutor) -> tuple[TaskFailure, ...]:
    if not run.is_failed:
        return ()
    tasks = databricks_runs.root_causes(raw)[:MAX_DETAILED_TASKS]
    if not tasks:
        return (databricks_runs.run_level_failure(raw),)
    clusters = {
        cluster_id: (pool.submit(_read_cluster, api, cluster_id), pool.submit(_read_events, api, cluster_id, run))
        for cluster_id in {databricks_runs.classic_cluster_id(task, raw) for task in tasks}
        if cluster_id
    }
    outputs = [pool.submit(_read_outputs, api, task) for task in tasks]
    failures = []
    for task, output in zip(tasks, outputs, strict=True):
        cluster_id = databricks_runs.classic_cluster_id(task, raw)
        cluster, events = (future.result() for future in clusters[cluster_id]) if cluster_id else ({}, [])
        failures.append(
            databricks_runs.task_failure(task, raw, outputs=output.result(), cluster=cluster, cluster_events=events)
        )
    return tuple(failures)


def _read_outputs(api: "_Workspace", task: Json) -> list[Json]:
    """What the task run put out; of a for-each task, what its first failed iterations did."""
    if not databricks_runs.is_for_each(task):
        return [_read_output(api, task["run_id"])]
    return [_read_output(api, iteration["run_id"]) for iteration in _read_failed_iterations(api, task["run_id"])]


def _read_failed_iterations(api: "_Workspace", task_run_id: int) -> list[Json]:
    failed: list[Json] = []
    try:
        for number, page in enumerate(api.get_pages(f"{JOBS}/runs/get", {"run_id": task_run_id}), start=1):
            failed += databricks_runs.failed_iterations(page)
            if len(failed) >= MAX_ITERATIONS or number == MAX_ITERATION_PAGES:
                break
    except PermanentError as error:
        log.warning("iterations not readable", extra=_about(api, error, task_run_id=task_run_id))
    return failed[:MAX_ITERATIONS]


def _read_output(api: "_Workspace", task_run_id: int) -> Json:
    try:
        return api.get(f"{JOBS}/runs/get-output", {"run_id": task_run_id})
    except PermanentError as error:
        log.warning("task output not readable", extra=_about(api, error, task_run_id=task_run_id))
        return {}


def _read_cluster(api: "_Workspace", cluster_id: str) -> Json:
    try:
        return api.get(f"{CLUSTERS}/get", {"cluster_id": cluster_id})
    except PermanentError as error:
        log.warning("cluster not readable", extra=_about(api, error, cluster_id=cluster_id))
        return {}


def _read_events(api: "_Workspace", cluster_id: str, run: RunState) -> list[Json]:
    """What happened to the cluster during the run, the oldest first: the last 50 events, as the API gives by default."""
    body: Json = {"cluster_id": cluster_id, "start_time": _milliseconds(run.start_time), "order": "DESC"}
    if run.end_time:
        body["end_time"] = _milliseconds(run.end_time + EVENTS_AFTER_THE_RUN)
    try:
        events = api.read_by_post(f"{CLUSTERS}/events", body).get("events", [])
    except PermanentError as error:
        log.warning("cluster events not readable", extra=_about(api, error, cluster_id=cluster_id))
        return []
    return list(reversed(events))


def _about(api: "_Workspace", error: AgentError, **details: object) -> Json:
    return {"workspace": api.name, "error": type(error).__name__, **details}


class _Workspace:
    """One workspace: its client of the SDK, built at the first call, and the ways to send a request."""

    def __init__(
        self, name: str, host: str, settings: Settings, credential: "TokenCredential | None", clock: Clock
    ) -> None:
        self.name = name
        self.calls = 0
        self._host = host
        self._settings = settings
        self._credential = credential
        self._clock = clock
        self._lock = threading.Lock()
        self._built: ApiClient | None = None

    def run(self, run_id: int) -> Json:
        """A run with all its tasks, clusters, parameters and repairs."""
        pages = self.get_pages(f"{JOBS}/runs/get", {"run_id": run_id, "include_history": True})
        return databricks_runs.joined_pages(pages, RUN_ARRAYS)

    def job(self, job_id: int) -> Json:
        """A job with its whole settings."""
        pages = list(self.get_pages(f"{JOBS}/get", {"job_id": job_id}))
        settings = databricks_runs.joined_pages((page.get("settings", {}) for page in pages), SETTINGS_ARRAYS)
        return {**pages[0], "settings": settings}

    def get_pages(self, path: str, query: Json) -> Iterator[Json]:
        """Every page of a read, as far as they are asked for."""
        page = self.get(path, query)
        yield page
        while token := page.get("next_page_token"):
            page = self.get(path, {**query, "page_token": token})
            yield page

    def get(self, path: str, query: Json) -> Json:
        return self._repeated(lambda api: api.do("GET", path, query=query), f"GET {path} {query}")

    def read_by_post(self, path: str, body: Json) -> Json:
        """A read that the API wants as a POST; to repeat it does no harm."""
        return self._repeated(lambda api: api.do("POST", path, body=body), f"POST {path} {body}")

    def _repeated(self, request: "Callable[[ApiClient], object]", what: str) -> Json:
        """Send a read, up to three times if the server fails: the SDK repeats after 429, 503 and lost connections
        only, not after 500, 502 and 504. In all not longer than `databricks_retry_seconds`, as far as new attempts go.
        """
        from databricks.sdk import errors as sdk

        api = self._client()
        give_up = self._clock.time() + self._settings.databricks_retry_seconds
        attempt = 1
        while True:
            self._count()
            try:
                with _translated(f"{what} in workspace {self.name}"):
                    return cast("Json", request(api))
            except TransientError as error:
                failed_inside = isinstance(error.__cause__, sdk.InternalError | sdk.DeadlineExceeded)
                failed_inside |= type(error.__cause__) is sdk.DatabricksError  # 502, which has no class of its own
                if not failed_inside or attempt == READ_ATTEMPTS or self._clock.time() + attempt > give_up:
                    raise
            self._clock.sleep(attempt)
            attempt += 1

    def post_once(self, path: str, body: Json, what: str) -> Json:
        """Send a write exactly once.

        Raises OutcomeUnknownError where it was sent and no clear answer came; TransientError where it was never sent;
        ThrottledError or a PermanentError where it was certainly not carried out.
        """
        api = self._client()
        self._count()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            with _translated(what):
                data = _SentOnce(json.dumps(body).encode())
                return cast("Json", api.do("POST", path, headers=headers, data=data))
        except ThrottledError:
            raise
        except TransientError as error:
            if _was_never_sent(error.__cause__):
                raise
            raise OutcomeUnknownError(f"{error}; it may have been carried out all the same") from error.__cause__

    def _count(self) -> None:
        with self._lock:
            self.calls += 1

    def _client(self) -> "ApiClient":
        with self._lock:
            if self._built is None:
                with _translated(f"sign-in at {self._host}"):
                    self._built = self._new_client()
            return self._built

    def _new_client(self) -> "ApiClient":
        from databricks.sdk.core import ApiClient, Config

        strategy = self._credentials_strategy()
        config = Config(
            host=self._host,
            credentials_strategy=strategy,
            # Set, so that stray variables of another kind of sign-in in the environment are no conflict.
            auth_type=strategy.auth_type(),
            config_file="/nonexistent",  # else a profile in ~/.databrickscfg could be read
            http_timeout_seconds=self._settings.databricks_timeout_seconds,
            # For now: a new Config asks the host about itself, and goes on without if it does not answer.
            retry_timeout_seconds=1,
            product=PRODUCT,
            product_version=PRODUCT_VERSION,
            clock=_BoundedClock(self._clock, self._settings.databricks_retry_seconds),  # type: ignore[arg-type]  # it is only called
        )
        config.retry_timeout_seconds = self._settings.databricks_retry_seconds
        return ApiClient(config)

    def _credentials_strategy(self) -> "CredentialsStrategy":
        settings = self._settings
        if settings.databricks_token:
            return _bearer_strategy("pat", lambda: settings.databricks_token)
        if settings.databricks_client_id:
            return _bearer_strategy("oauth-m2m", _service_principal_token(self._host, settings))
        return _bearer_strategy("azure-identity", self._identity_token())

    def _identity_token(self) -> Callable[[], str]:
        credential = self._credential
        if credential is None:
            from azure.identity import DefaultAzureCredential

            credential = DefaultAzureCredential(
                managed_identity_client_id=self._settings.azure_client_id or None,
                exclude_interactive_browser_credential=True,
            )
        return lambda: credential.get_token(AZURE_DATABRICKS_SCOPE).token


class _SentOnce(io.BytesIO):
    """A body that the SDK sends once.

    The SDK repeats every request, writes too, after a lost connection or a timeout; no setting turns that off. It
    does not for a body that cannot be rewound (`_BaseClient.do`: "Do not retry if the stream is not seekable").
    """

    def seekable(self) -> bool:
        return False


class _BoundedClock:
    """The clock that the SDK waits with. It refuses a wait longer than the whole budget.

    The SDK sleeps for as long as Retry-After says, whatever its own deadline, and a function must not sleep for
    minutes. The TimeoutError, raised where the SDK handles the answer, has that answer as its context.
    """

    def __init__(self, clock: Clock, longest_seconds: float) -> None:
        self._clock = clock
        self._longest_seconds = longest_seconds

    def time(self) -> float:
        return self._clock.time()

    def sleep(self, seconds: float) -> None:
        if seconds > self._longest_seconds:
            raise TimeoutError(f"asked to wait {seconds:.0f} s, longer than {self._longest_seconds:.0f} s")
        self._clock.sleep(seconds)


def _bearer_strategy(auth_type: str, token: Callable[[], str]) -> "CredentialsStrategy":
    """Sign-in with a token that is asked for at every request (those who give it cache it)."""
    from databricks.sdk.core import CredentialsStrategy

    class BearerToken(CredentialsStrategy):
        def auth_type(self) -> str:
            return auth_type

        def __call__(self, _config: object) -> Callable[[], dict[str, str]]:
            return lambda: {"Authorization": f"Bearer {_token_or_error(token)}"}

    return BearerToken()


def _service_principal_token(host: str, settings: Settings) -> Callable[[], str]:
    """Tokens of a Databricks service principal, from the workspace's own token endpoint.

    The SDK's strategy `oauth-m2m` first looks that endpoint up, with a budget of five minutes that cannot be set.
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


def _token_or_error(token: Callable[[], str]) -> str:
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        return token()
    except (ClientAuthenticationError, ValueError, NotImplementedError) as error:
        # ValueError and NotImplementedError are what databricks.sdk.oauth.retrieve_token raises for a refusal.
        raise NotAuthorisedError(f"no token for Databricks: {_first_line(error)}") from error
    except AzureError as error:
        raise TransientError(f"no token for Databricks just now: {_first_line(error)}") from error


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """The one place where exceptions of the SDK and its HTTP client become those of `shared.errors`.

    All of them are OSErrors: DatabricksError, requests.RequestException, the TimeoutError of the SDK's own repetition.
    """
    try:
        yield
    except OSError as error:
        raise _agent_error(error, what) from _answer_behind(error)


def _answer_behind(error: OSError) -> OSError:
    """The last answer or failure that the SDK had when it gave up repeating, else the error itself."""
    behind = error.__cause__ or error.__context__
    return behind if isinstance(error, TimeoutError) and isinstance(behind, OSError) else error


def _agent_error(error: OSError, what: str) -> AgentError:
    from databricks.sdk import errors as sdk

    error = _answer_behind(error)
    code = getattr(error, "error_code", None) or type(error).__name__
    text = f"{what} failed: {code}: {_first_line(error)}"
    match error:
        case sdk.TooManyRequests():
            return ThrottledError(text, retry_after_seconds=error.retry_after_secs)
        case sdk.Unauthenticated() | sdk.PermissionDenied():
            return NotAuthorisedError(text)
        case sdk.NotFound():
            return RunNotFoundError(text)
        case sdk.BadRequest() if "does not exist" in text:
            return RunNotFoundError(text)
        case sdk.BadRequest() | sdk.NotImplemented() | sdk.AlreadyExists() | sdk.ResourceAlreadyExists():
            return PermanentError(text)
        case _:
            return TransientError(text)


def _first_line(error: BaseException) -> str:
    """A short text. What the SDK adds to 401 and 403 about its configuration is left out."""
    line = str(error).partition("\n")[0].partition(" Config: ")[0]
    return line[:300]


def _was_never_sent(error: BaseException | None) -> bool:
    """Whether no connection could be made, so that nothing was sent."""
    from requests.exceptions import ConnectionError as RequestsConnectionError
    from requests.exceptions import ConnectTimeout
    from urllib3.exceptions import NewConnectionError

    if isinstance(error, ConnectTimeout):
        return True
    if not isinstance(error, RequestsConnectionError) or not error.args:
        return False
    return isinstance(getattr(error.args[0], "reason", None), NewConnectionError)


def _id_in(answer: Json, name: str, what: str) -> int:
    try:
        return int(answer[name])
    except (KeyError, TypeError, ValueError):
        raise OutcomeUnknownError(f"{what}: the answer of Databricks has no {name}") from None


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
