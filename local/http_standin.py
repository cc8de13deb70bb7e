"""What the HTTP stand-ins for Databricks, Azure OpenAI and ACS Email have in common.

Each of them is an aiohttp application of its own with the routes of its service. This module adds what no real service
has, all of it under ``/_standin``: the log of effects (writes that were asked for), faults on demand and scenarios.

Left out on purpose: TLS, and access control for ``/_standin`` (the stand-ins listen on the loopback address only).
Under the fault ``late`` a handler gets a body that was read before: ``request.read()`` and ``request.json()`` work,
``request.can_read_body`` and multipart uploads do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONTROL_PREFIX = "/_standin"
MAX_BODY_BYTES = 16 * 1024 * 1024  # the largest real limit is that of ACS Email: 10 MB per request
ERROR_CODES = {
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}


class EffectLog:
    """Writes that a stand-in was asked for; with a path, also appended to that file, one JSON line each."""

    def __init__(self, service: str, path: Path | None) -> None:
        self._service = service
        self._path = path
        self._effects: list[dict[str, object]] = []

    def record(
        self, *, kind: str, workspace: str, run_id: str, job_id: str, key: str, accepted: bool, **details: object
    ) -> dict[str, object]:
        """Keep one effect and return it. The file has it when this returns, so before the answer leaves.

        ``kind`` is repair, run_now, job_update or email; ``key`` is equal for two effects that are the same act.
        """
        effect: dict[str, object] = {
            "seq": len(self._effects) + 1,
            "at": datetime.now(UTC).isoformat(),
            "service": self._service,
            "kind": kind,
            "workspace": workspace,
            "run_id": run_id,
            "job_id": job_id,
            "key": key,
            "accepted": accepted,
            **details,
        }
        self._effects.append(effect)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(effect) + "\n")
        return effect

    @property
    def effects(self) -> list[dict[str, object]]:
        """All effects so far, oldest first."""
        return list(self._effects)


class RefusedError(Exception):
    """Raised by a handler that answers with an error as Azure services give it: ``{"error": {"code", "message"}}``.

    ``details`` are more fields of the error object.
    """

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None, **details: object
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self._headers = headers
        self._details = details

    def response(self) -> web.Response:
        """Build the answer."""
        body = {"error": {"code": self.code, "message": str(self), **self._details}}
        return web.json_response(body, status=self.status, headers=self._headers)


class FaultRule(BaseModel):
    """One fault: which requests it meets and what happens to them."""

    model_config = ConfigDict(extra="forbid")

    match: str = Field(pattern=r"^(\*|[A-Z]+) /")
    """Method (or ``*``), one space, prefix of the path."""
    kind: Literal["429", "503", "500", "error", "drop_before", "drop_after", "slow", "late"]
    times: int | None = Field(default=None, ge=1)
    """How many requests it meets; None = all."""
    skip: int = Field(default=0, ge=0)
    """How many matching requests pass untouched first."""
    retry_after: float | None = None
    """Value of the Retry-After header, in seconds."""
    seconds: float = Field(default=1.0, ge=0)
    """Delay of ``slow`` and ``late``."""
    status: int = 500
    """Status of ``error``."""
    body: object = None
    """JSON body of an error answer; None = a body in which each of the three clients finds a code and a message."""

    def matches(self, method: str, path: str) -> bool:
        """Tell whether a request is of the kind that this rule names."""
        wanted_method, prefix = self.match.split(" ", 1)
        return wanted_method in ("*", method) and path.startswith(prefix)

    def error_response(self) -> web.Response:
        """Build the answer of the kinds that answer with an error."""
        status = self.status if self.kind == "error" else int(self.kind)
        code = ERROR_CODES.get(status, "INJECTED_FAULT")
        message = f"Fault injected by the stand-in: {status}"
        body = self.body
        if body is None:
            body = {"error_code": code, "message": message, "error": {"code": code, "message": message}}
        headers = {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:g}"}
        return web.json_response(body, status=status, headers=headers)


@dataclass
class _SetFault:
    """A rule with what has happened to it since it was set."""

    rule: FaultRule
    skipped: int = 0
    applied: int = 0

    def takes(self, method: str, path: str) -> bool:
        """Count a matching request and tell whether the fault applies to it."""
        if not self.rule.matches(method, path) or self.applied == self.rule.times:
            return False
        if self.skipped < self.rule.skip:
            self.skipped += 1
            return False
        self.applied += 1
        return True


class _FaultsBody(BaseModel):
    """Body of POST /_standin/faults."""

    model_config = ConfigDict(extra="forbid")

    faults: list[FaultRule] = Field(default_factory=list)
    clear: bool = False


class Faults:
    """The faults that were set, in order.

    ========================  ==========================================================================
    429, 503, 500, error      an error answer, the handler does not run
    drop_before               the connection is closed, the handler does not run
    drop_after                the handler runs (its effect lands), then the connection is closed
    slow                      the handler runs at once, the answer comes ``seconds`` later
    late                      the connection is closed at once, the handler runs ``seconds`` later
    ========================  ==========================================================================
    """

    def __init__(self) -> None:
        self._set: list[_SetFault] = []
        self._late: set[asyncio.Task[None]] = set()

    def load(self, body: object) -> None:
        """Add the faults of a JSON body; with ``"clear": true`` they replace all earlier ones.

        Raises ValueError if the body is not understood; then nothing changes.
        """
        try:
            parsed = _FaultsBody.model_validate(body)
        except ValidationError as error:
            raise ValueError(f"The faults are not understood, nothing was changed: {error}") from error
        if parsed.clear:
            self._set.clear()
        self._set.extend(_SetFault(rule) for rule in parsed.faults)

    def state(self) -> list[dict[str, object]]:
        """Return every rule with the number of requests that it has met (``applied``)."""
        return [{**fault.rule.model_dump(exclude_none=True), "applied": fault.applied} for fault in self._set]

    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Run the handler under the first fault that takes the request, or as it is."""
        rule = next((fault.rule for fault in self._set if fault.takes(request.method, request.path)), None)
        if rule is None:
            return await handler(request)
        if rule.kind == "drop_before":
            return _drop(request)
        if rule.kind == "drop_after":
            with contextlib.suppress(web.HTTPException):
                await handler(request)
            return _drop(request)
        if rule.kind == "slow":
            response = await handler(request)
            await asyncio.sleep(rule.seconds)
            return response
        if rule.kind == "late":
            await request.read()  # after the connection is closed there is no body to read
            task = asyncio.create_task(_run_later(request, handler, rule.seconds))
            self._late.add(task)  # the event loop keeps weak references only
            task.add_done_callback(self._late.discard)
            return _drop(request)
        return rule.error_response()

    async def cancel_late(self) -> None:
        """Forget the requests that have not landed yet; for the end of the process."""
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)


async def _run_later(request: web.Request, handler: Handler, seconds: float) -> None:
    await asyncio.sleep(seconds)
    with contextlib.suppress(web.HTTPException):
        await handler(request)


def _drop(request: web.Request) -> web.Response:
    """Close the connection without an answer. aiohttp wants a response all the same; it goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@web.middleware
async def _answer_refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefusedError as refusal:
        return refusal.response()


async def _get_health(_request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


async def read_json_object(request: web.Request) -> dict[str, object]:
    """Read the body of a request; raises ValueError if it is not a JSON object."""
    body = await request.json()
    if not isinstance(body, dict):
        raise ValueError(f"The body must be a JSON object, it is a {type(body).__name__}.")  # noqa: TRY004 - a bad value
    return body


def create_app(
    *, effects: EffectLog, faults: Faults, load_scenario: Callable[[dict[str, object]], dict[str, object]]
) -> web.Application:
    """Return an application with the ``/_standin`` routes, which applies the faults to every other path.

    ``load_scenario`` gets the JSON object sent to POST /_standin/scenario and returns the answer; a ValueError from it
    becomes a 400 with its text. Handlers may raise RefusedError.
    """

    @web.middleware
    async def apply_faults(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(CONTROL_PREFIX):
            return await handler(request)
        return await faults.handle(request, handler)

    async def get_effects(_request: web.Request) -> web.Response:
        return web.json_response({"effects": effects.effects})

    async def get_faults(_request: web.Request) -> web.Response:
        return web.json_response({"faults": faults.state()})

    async def post_faults(request: web.Request) -> web.Response:
        try:
            faults.load(await request.json())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"faults": faults.state()})

    async def post_scenario(request: web.Request) -> web.Response:
        try:
            return web.json_response(load_scenario(await read_json_object(request)))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)

    async def forget_late_requests(_app: web.Application) -> None:
        await faults.cancel_late()

    app = web.Application(middlewares=[apply_faults, _answer_refusals], client_max_size=MAX_BODY_BYTES)
    app.router.add_get(f"{CONTROL_PREFIX}/effects", get_effects)
    app.router.add_get(f"{CONTROL_PREFIX}/health", _get_health)
    app.router.add_get(f"{CONTROL_PREFIX}/faults", get_faults)
    app.router.add_post(f"{CONTROL_PREFIX}/faults", post_faults)
    app.router.add_post(f"{CONTROL_PREFIX}/scenario", post_scenario)
    app.on_cleanup.append(forget_late_requests)
    return app


async def _serve(app: web.Application, port: int, ready: Callable[[int], None], stop: asyncio.Event) -> None:
    """Serve on 127.0.0.1 until ``stop`` is set; ``ready`` gets the port once connections are accepted."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        _host, bound_port = runner.addresses[0][:2]
        ready(bound_port)
        await stop.wait()
    finally:
        await runner.cleanup()


def run_standin(app: web.Application, port: int) -> None:
    """Serve on 127.0.0.1:port (0 = any free port) until SIGTERM or SIGINT.

    Prints one line to stdout once connections are accepted: ``READY <port>``. Exits with a message if that port is in
    use.
    """

    def announce(bound_port: int) -> None:
        sys.stdout.write(f"READY {bound_port}\n")
        sys.stdout.flush()

    async def serve_until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await _serve(app, port, announce, stop)

    try:
        asyncio.run(serve_until_signal())
    except OSError as error:
        sys.exit(f"The stand-in cannot listen on 127.0.0.1:{port}: {error}. Stop what uses the port or choose another.")


@contextmanager
def running(app_factory: Callable[[], web.Application]) -> Iterator[str]:
    """Serve the application in a thread for the length of a ``with`` block; gives ``http://127.0.0.1:PORT``."""
    started: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve_until_stopped() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        await _serve(app_factory(), 0, lambda port: started.set_result((port, loop, stop)), stop)

    def serve() -> None:
        try:
            asyncio.run(serve_until_stopped())
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)  # raised in the thread that waits for the start

    thread = threading.Thread(target=serve, name="http-standin", daemon=True)
    thread.start()
    port, loop, stop = started.result(timeout=10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)
