"""The HTTP face of the stand-in workspace: the routes of the Databricks REST API that a caretaker of jobs needs.

Imitated under 2.0, 2.1 and 2.2 alike: jobs/runs/list, get, get-output, repair, cancel; jobs/get, list, run-now, update;
clusters/get, events, list-node-types; policies/clusters/get; pipelines/ID/events; sql/history/queries; the SCIM "Me"
and permissions/TYPE/ID (see ``rights.py``).
Every bearer token is good but two: ``bad-token`` gets 403, ``read-only`` gets 403 for every write.

Effects (writes that were asked for) have these keys:

- repair: run id, ``:``, how many executions of the run have failed so far; two accepted ones with one key are a double
  repair.
- run_now: the idempotency token up to its second ``:`` if it begins with ``RUN_ID:ATTEMPT``; else 16 hex digits of the
  SHA-256 of the token, or of the request if there is no token. A repeated token starts nothing and leaves no effect.
- job_update: job id, ``:``, 16 hex digits of the SHA-256 of the settings that result.

Also served: GET /_standin/calls (API calls by path), POST /_standin/calls/reset, GET /_standin/jobs/ID (settings as
they are).

Left out: rate limits (set faults instead), OAuth, paging of pipeline events and query history and their filters.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from local.databricks import answers
from local.databricks.answers import Answers
from local.databricks.job_settings import Json, updated
from local.databricks.node_types import NODE_TYPES
from local.databricks.rights import Rights
from local.databricks.scenario import parse_scenario
from local.databricks.workspace import (
    RepairRequest,
    RequestRefusedError,
    RunFilter,
    RunNowRequest,
    Workspace,
    invalid,
)
from local.http_standin import EffectLog, Faults, create_app

API = r"/api/{version:2\.[012]}"
MAX_RUNS_PAGE = 25
MAX_JOBS_PAGE = 100
DEFAULT_PAGE = 20
RUN_ARRAYS = ("tasks", "job_clusters", "job_parameters", "repair_history")
SETTINGS_ARRAYS = ("tasks", "job_clusters", "parameters", "environments")
PARENT_OUTPUT_REFUSED = (
    "Retrieving the output of runs with multiple tasks is not supported. "
    "Please retrieve the output of each individual task run instead."
)
TOKEN_WITH_ATTEMPT = re.compile(r"(\d+):(\d+)")


class _UpdateBody(BaseModel):
    job_id: int
    new_settings: Json = Field(default_factory=dict)
    fields_to_remove: list[str] = Field(default_factory=list)


class _CancelBody(BaseModel):
    run_id: int


class _ClusterEventsBody(BaseModel):
    cluster_id: str
    start_time: int = 0
    end_time: int | None = None
    event_types: list[str] = Field(default_factory=list)
    order: Literal["ASC", "DESC"] = "DESC"
    offset: int = 0
    limit: int = Field(default=50, gt=0, le=500)


class _RecordEffect(Protocol):
    """Records the effect of one write once it is known how it was answered."""

    def __call__(self, *, accepted: bool, **details: object) -> None: ...


@dataclass
class DatabricksStandin:
    """The handlers over one workspace; ``clock`` gives seconds since 1970."""

    effects: EffectLog
    workspace: Workspace = field(default_factory=Workspace)
    clock: Callable[[], float] = time.time
    calls: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.rights = Rights(self.workspace)

    def load(self, scenario: dict[str, object]) -> dict[str, object]:
        """Load a scenario now; raises ValueError if it is not valid or takes an id twice."""
        return self.workspace.load(parse_scenario(scenario), self.clock())

    def add_routes(self, app: web.Application) -> None:
        """Add all routes and the middlewares that count calls, check the token and form error answers."""
        app.middlewares.insert(0, self.count_call)
        app.middlewares.append(self.guard)
        app.add_routes(
            [
                web.get(f"{API}/jobs/runs/list", self.list_runs),
                web.get(f"{API}/jobs/runs/get", self.get_run),
                web.get(f"{API}/jobs/runs/get-output", self.get_run_output),
                web.post(f"{API}/jobs/runs/repair", self.repair),
                web.post(f"{API}/jobs/runs/cancel", self.cancel),
                web.get(f"{API}/jobs/get", self.get_job),
                web.get(f"{API}/jobs/list", self.list_jobs),
                web.post(f"{API}/jobs/run-now", self.run_now),
                web.post(f"{API}/jobs/update", self.update_job),
                web.get(f"{API}/clusters/get", self.get_cluster),
                web.post(f"{API}/clusters/events", self.list_cluster_events),
                web.get(f"{API}/clusters/list-node-types", self.list_node_types),
                web.get(f"{API}/policies/clusters/get", self.get_policy),
                web.get(f"{API}/pipelines/{{pipeline_id}}/events", self.list_pipeline_events),
                web.get(f"{API}/sql/history/queries", self.list_queries),
                *self.rights.routes(API),
                web.get("/_standin/calls", self.get_calls),
                web.post("/_standin/calls/reset", self.reset_calls),
                web.get("/_standin/jobs/{job_id}", self.get_job_as_it_is),
            ]
        )

    @web.middleware
    async def count_call(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Count every API call, those that a fault answers included."""
        if request.path.startswith("/api/"):
            self.calls[f"{request.method} {request.path}"] += 1
        return await handler(request)

    @web.middleware
    async def guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Let the workspace catch up with the time, and answer refusals as Databricks does."""
        self.workspace.advance(self.clock())
        try:
            if request.path.startswith("/api/"):
                _check_token(request)
            return await handler(request)
        except RequestRefusedError as refused:
            body = {"error_code": refused.error_code, "message": refused.message}
            return web.json_response(body, status=refused.status)
        except web.HTTPNotFound:
            message = f"No API found for '{request.method} {request.path}'"
            return web.json_response({"error_code": "ENDPOINT_NOT_FOUND", "message": message}, status=404)

    def _answers(self, request: web.Request) -> Answers:
        return Answers(self.workspace, f"{request.scheme}://{request.host}", self.clock())

    # Runs

    async def list_runs(self, request: web.Request) -> web.Response:
        """GET jobs/runs/list."""
        query = request.query
        wanted = RunFilter(
            job_id=_number(query, "job_id"),
            active_only=query.get("active_only") == "true",
            completed_only=query.get("completed_only") == "true",
            run_type=query.get("run_type"),
            start_time_from=_number(query, "start_time_from"),
            start_time_to=_number(query, "start_time_to"),
            before=_run_key(query["page_token"]) if query.get("page_token") else None,
        )
        if wanted.active_only and wanted.completed_only:
            raise invalid("active_only and completed_only cannot both be true.")
        limit = _limit(query, MAX_RUNS_PAGE)
        found = list(islice(self.workspace.runs(wanted, self.clock()), limit + 1))
        shown = found[:limit]
        form = self._answers(request)
        expand = query.get("expand_tasks") == "true"
        runs = []
        for run in shown:
            entry, more = answers.page_arrays(form.run(run, with_tasks=expand), RUN_ARRAYS, 0)
            runs.append({**entry, "has_more": more} if expand else entry)
        answer: Json = {"runs": runs, "has_more": len(found) > limit} if runs else {"has_more": False}
        if len(found) > limit:
            start, run_id = shown[-1].key
            answer["next_page_token"] = f"{start}_{run_id}"
        return web.json_response(answer)

    async def get_run(self, request: web.Request) -> web.Response:
        """GET jobs/runs/get, for job runs and task runs."""
        run_id = _required_number(request.query, "run_id")
        offset = _number(request.query, "page_token") or 0
        form = self._answers(request)
        task_run = self.workspace.task_run(run_id)
        if task_run:
            return web.json_response(form.task_run(*task_run))
        history = request.query.get("include_history") == "true"
        full = form.run(self.workspace.run(run_id), with_tasks=True, with_history=history)
        answer, more = answers.page_arrays(full, RUN_ARRAYS, offset)
        if more:
            answer["next_page_token"] = str(offset + answers.ARRAY_PAGE)
        return web.json_response(answer)

    async def get_run_output(self, request: web.Request) -> web.Response:
        """GET jobs/runs/get-output; refused for a job run."""
        run_id = _required_number(request.query, "run_id")
        task_run = self.workspace.task_run(run_id)
        if task_run is None:
            self.workspace.run(run_id)
            raise invalid(PARENT_OUTPUT_REFUSED)
        return web.json_response(self._answers(request).output(*task_run))

    async def repair(self, request: web.Request) -> web.Response:
        """POST jobs/runs/repair."""
        wanted = await _parsed(request, RepairRequest)
        job_id = self.workspace.job_id_of(wanted.run_id)
        record = self._recorder(
            "repair",
            run_id=str(wanted.run_id),
            job_id="" if job_id is None else str(job_id),
            key=f"{wanted.run_id}:{self.workspace.terminal_failures(wanted.run_id)}",
            request=wanted.model_dump(exclude={"run_id"}, exclude_none=True),
        )
        with _refusal_recorded(record):
            _check_may_write(request)
            repair_id = self.workspace.repair(wanted, self.clock())
        record(accepted=True, status=200, repair_id=repair_id)
        return web.json_response({"repair_id": repair_id})

    async def cancel(self, request: web.Request) -> web.Response:
        """POST jobs/runs/cancel; leaves no effect."""
        _check_may_write(request)
        wanted = await _parsed(request, _CancelBody)
        self.workspace.cancel(wanted.run_id, self.clock())
        return web.json_response({})

    # Jobs

    async def get_job(self, request: web.Request) -> web.Response:
        """GET jobs/get."""
        offset = _number(request.query, "page_token") or 0
        job_id = _required_number(request.query, "job_id")
        self.rights.check_may_view(job_id, request)
        answer = answers.job(self.workspace.job(job_id), with_arrays=True)
        answer["settings"], more = answers.page_arrays(answer["settings"], SETTINGS_ARRAYS, offset)
        if more:
            answer["next_page_token"] = str(offset + answers.ARRAY_PAGE)
        return web.json_response(answer)

    async def list_jobs(self, request: web.Request) -> web.Response:
        """GET jobs/list, in the order of job ids."""
        query = request.query
        limit = _limit(query, MAX_JOBS_PAGE)
        name = query.get("name", "").lower()
        found = [
            job
            for job in self.workspace.jobs_from(_number(query, "page_token") or 0)
            if name in ("", str(job.settings["name"]).lower()) and self.rights.may_view(job.job_id, request)
        ]
        jobs = []
        for job in found[:limit]:
            entry = answers.job(job, with_arrays=query.get("expand_tasks") == "true")
            entry["settings"], more = answers.page_arrays(entry["settings"], SETTINGS_ARRAYS, 0)
            jobs.append({**entry, "has_more": more})
        answer: Json = {"jobs": jobs, "has_more": len(found) > limit}
        if len(found) > limit:
            answer["next_page_token"] = str(found[limit].job_id)
        return web.json_response(answer)

    async def run_now(self, request: web.Request) -> web.Response:
        """POST jobs/run-now."""
        wanted = await _parsed(request, RunNowRequest)
        key, source_run_id = _run_now_key(wanted)
        record = self._recorder(
            "run_now",
            run_id="" if source_run_id is None else str(source_run_id),
            job_id=str(wanted.job_id),
            key=key,
            request=wanted.model_dump(exclude={"job_id"}, exclude_none=True),
        )
        with _refusal_recorded(record):
            _check_may_write(request)
            run_id, is_new = self.workspace.run_now(wanted, self.clock(), source_run_id=source_run_id)
        if is_new:
            record(accepted=True, status=200, new_run_id=str(run_id))
        return web.json_response({"run_id": run_id, "number_in_job": run_id})

    async def update_job(self, request: web.Request) -> web.Response:
        """POST jobs/update."""
        wanted = await _parsed(request, _UpdateBody)
        before = self.workspace.jobs.get(wanted.job_id)
        settings = updated(before.settings if before else {}, wanted.new_settings, wanted.fields_to_remove)
        record = self._recorder(
            "job_update",
            run_id="",
            job_id=str(wanted.job_id),
            key=f"{wanted.job_id}:{_digest(settings)}",
            fields=sorted({*wanted.new_settings, *wanted.fields_to_remove}),
        )
        with _refusal_recorded(record):
            _check_may_write(request)
            self.workspace.update_job(wanted.job_id, wanted.new_settings, wanted.fields_to_remove)
        record(accepted=True, status=200)
        return web.json_response({})

    # Compute

    async def get_cluster(self, request: web.Request) -> web.Response:
        """GET clusters/get."""
        return web.json_response(answers.cluster(self.workspace.cluster(request.query.get("cluster_id", ""))))

    async def list_cluster_events(self, request: web.Request) -> web.Response:
        """POST clusters/events."""
        wanted = await _parsed(request, _ClusterEventsBody)
        events = [
            event
            for event in self.workspace.cluster(wanted.cluster_id).events
            if event["timestamp"] >= wanted.start_time
            and (wanted.end_time is None or event["timestamp"] <= wanted.end_time)
            and (not wanted.event_types or event["type"] in wanted.event_types)
        ]
        events.sort(key=lambda event: int(event["timestamp"]))
        if wanted.order == "DESC":
            events.reverse()
        after = wanted.offset + wanted.limit
        answer: Json = {"events": events[wanted.offset : after], "total_count": len(events)}
        if len(events) > after:
            answer["next_page"] = {**wanted.model_dump(exclude_none=True), "offset": after}
        return web.json_response(answer)

    async def list_node_types(self, _request: web.Request) -> web.Response:
        """GET clusters/list-node-types."""
        return web.json_response({"node_types": [node_type.as_json() for node_type in NODE_TYPES.values()]})

    async def get_policy(self, request: web.Request) -> web.Response:
        """GET policies/clusters/get; the definition is JSON in a string."""
        policy = self.workspace.policies.get(request.query.get("policy_id", ""))
        if policy is None:
            message = f"Cluster policy {request.query.get('policy_id')} does not exist."  # wording assumed
            raise RequestRefusedError(404, "RESOURCE_DOES_NOT_EXIST", message)
        definition = json.dumps(policy.definition)
        return web.json_response({"policy_id": policy.policy_id, "name": policy.name, "definition": definition})

    async def list_pipeline_events(self, request: web.Request) -> web.Response:
        """GET pipelines/ID/events: all events of the scenario."""
        return web.json_response({"events": self.workspace.pipeline_events.get(request.match_info["pipeline_id"], [])})

    async def list_queries(self, _request: web.Request) -> web.Response:
        """GET sql/history/queries: all queries of the scenario."""
        return web.json_response({"res": self.workspace.queries, "has_next_page": False})

    # Control

    async def get_calls(self, _request: web.Request) -> web.Response:
        """GET /_standin/calls."""
        return web.json_response({"total": self.calls.total(), "by_path": dict(self.calls)})

    async def reset_calls(self, _request: web.Request) -> web.Response:
        """POST /_standin/calls/reset."""
        self.calls.clear()
        return web.json_response({"total": 0, "by_path": {}})

    async def get_job_as_it_is(self, request: web.Request) -> web.Response:
        """GET /_standin/jobs/ID; shows deleted jobs too."""
        job = self.workspace.jobs.get(int(request.match_info["job_id"]))
        if job is None:
            return web.json_response({"error": f"There is no job {request.match_info['job_id']}."}, status=404)
        return web.json_response({"job_id": job.job_id, "settings": job.settings, "deleted": job.deleted})

    def _recorder(self, kind: str, *, run_id: str, job_id: str, key: str, **about: object) -> _RecordEffect:
        def record(*, accepted: bool, **details: object) -> None:
            self.effects.record(
                kind=kind,
                workspace=self.workspace.workspace_id,
                run_id=run_id,
                job_id=job_id,
                key=key,
                accepted=accepted,
                **about,
                **details,
            )

        return record


def create_databricks_app(
    *, effects_path: Path | None, scenario: dict[str, object] | None = None, clock: Callable[[], float] = time.time
) -> web.Application:
    """Return the application of one workspace; raises ValueError if the scenario is not valid."""
    effects = EffectLog("databricks", effects_path)
    standin = DatabricksStandin(effects, clock=clock)
    app = create_app(effects=effects, faults=Faults(), load_scenario=standin.load)
    standin.add_routes(app)
    if scenario is not None:
        standin.load(scenario)
    return app


@contextmanager
def _refusal_recorded(record: _RecordEffect) -> Iterator[None]:
    """Record a write that the workspace refuses before the refusal leaves."""
    try:
        yield
    except RequestRefusedError as refused:
        record(accepted=False, status=refused.status, error_code=refused.error_code, message=refused.message)
        raise


async def _parsed[Body: BaseModel](request: web.Request, form: type[Body]) -> Body:
    try:
        return form.model_validate_json(await request.read())
    except ValidationError as error:
        raise RequestRefusedError(400, "MALFORMED_REQUEST", f"The body is not understood: {error}") from error


def _check_token(request: web.Request) -> None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme != "Bearer" or not token:
        raise RequestRefusedError(401, "UNAUTHENTICATED", "Credential was not sent or was of an unsupported type.")
    if token == "bad-token":
        raise RequestRefusedError(403, "PERMISSION_DENIED", "Invalid access token.")


def _check_may_write(request: web.Request) -> None:
    if request.headers.get("Authorization") == "Bearer read-only":
        raise RequestRefusedError(403, "PERMISSION_DENIED", "The token may read but not change anything.")


def _run_now_key(wanted: RunNowRequest) -> tuple[str, int | None]:
    """Return the key of the effect and the run that the token names as its source."""
    token = wanted.idempotency_token
    named = TOKEN_WITH_ATTEMPT.match(token) if token else None
    if named:
        return named[0], int(named[1])
    return _digest(token or wanted.model_dump()), None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise invalid(f"The value of {name} must be a number, it is {text!r}.") from None


def _required_number(query: Mapping[str, str], name: str) -> int:
    number = _number(query, name)
    if number is None:
        raise invalid(f"Missing required field: {name}")
    return number


def _limit(query: Mapping[str, str], maximum: int) -> int:
    """Return the page size; 0 stands for the maximum."""
    limit = _number(query, "limit")
    if limit is None:
        return DEFAULT_PAGE
    if not 0 <= limit <= maximum:
        raise invalid(f"The limit must be between 0 and {maximum}, it is {limit}.")
    return limit or maximum


def _run_key(page_token: str) -> tuple[int, int]:
    start, _, run_id = page_token.partition("_")
    try:
        return int(start), int(run_id)
    except ValueError:
        raise invalid(f"The page_token {page_token!r} is not valid.") from None
