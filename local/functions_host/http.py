"""HTTP triggers and the host's own admin endpoints, served by aiohttp.

Route templates know literals, ``{name}``, ``{name:int}`` (also long, bool, alpha, guid), ``{name?}`` and ``{*rest}``;
any other constraint and default values are refused. As in Azure routes ignore case, literal segments win over
parameters, and a method that the route does not list is answered by 404. Left out: content negotiation, CORS, the home
page, keys per function.

In Azure a function of level FUNCTION asks for its own key, a key of the app or the master key, one of level ADMIN (and
/admin) for the master key. Core Tools ask for none, whatever the level, and so does this host; where it is given a key,
that one stands for all of them.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from .configuration import HostError
from .functions import Function, HttpTrigger
from .protocol import RpcHttp, RpcHttpCookie, TypedData
from .worker import Outcome

Invoke = Callable[[Function, TypedData, Mapping[str, TypedData]], Awaitable[Outcome]]

_LARGEST_REQUEST_BYTES = 100 * 1024 * 1024  # Azure Functions: request length limit of 100 MB
_PARAMETER = re.compile(r"\{(\*?)([A-Za-z]\w*)(?::([a-z]+))?(\??)\}")
_CONSTRAINTS = {
    "": r"[^/]+",
    "int": r"-?\d+",
    "long": r"-?\d+",
    "bool": r"true|false",
    "alpha": r"[a-z]+",
    "guid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}


@dataclass(frozen=True)
class Route:
    """One HTTP function and the paths it answers. ``precedence`` sorts the more specific template first."""

    function: Function
    trigger: HttpTrigger
    pattern: re.Pattern[str]
    precedence: tuple[int, ...]

    @classmethod
    def of(cls, function: Function, trigger: HttpTrigger, prefix: str) -> Route:
        """Compile the template below ``prefix`` (host.json's routePrefix). Raises HostError for what is left out."""
        segments = [segment for segment in f"{prefix}/{trigger.route}".split("/") if segment]
        if segments and segments[0].lower() in {"admin", "runtime"}:
            raise HostError(f"{function.name}: a route cannot begin with {segments[0]}, the host's own.")
        pattern = "".join(_segment_pattern(function.name, segment) for segment in segments)
        precedence = tuple(_rank(segment) for segment in segments)
        return cls(function, trigger, re.compile(pattern + "/?", re.IGNORECASE), precedence)

    def match(self, method: str, raw_path: str) -> dict[str, str] | None:
        """Route values of a request (still percent-encoded path), or None if this is not its route."""
        if self.trigger.methods and method not in self.trigger.methods:
            return None
        found = self.pattern.fullmatch(raw_path)
        return found and {name: unquote(value) for name, value in found.groupdict().items() if value is not None}


def _segment_pattern(function_name: str, segment: str) -> str:
    pattern, position, optional = "/", 0, False
    for parameter in _PARAMETER.finditer(segment):
        rest, name, constraint, question_mark = parameter.groups()
        if constraint and constraint not in _CONSTRAINTS:
            raise HostError(f"{function_name}: the local host does not know the route constraint {constraint!r}.")
        pattern += re.escape(segment[position : parameter.start()])
        pattern += f"(?P<{name}>{'.*' if rest else _CONSTRAINTS[constraint or '']})"
        position, optional = parameter.end(), optional or bool(rest or question_mark)
    literal = segment[position:]
    if "{" in literal or "}" in literal:
        raise HostError(f"{function_name}: the local host cannot read the route segment {segment!r}.")
    pattern += re.escape(literal)
    return f"(?:{pattern})?" if optional else pattern


def _rank(segment: str) -> int:
    if "{" not in segment:
        return 0
    return 3 if "{*" in segment else 1 if ":" in segment else 2


class Endpoints:
    """Answers requests to the app's HTTP functions and to ``/admin``.

    With a ``function_key`` all but anonymous functions ask for it, and so does ``/admin``. Raises HostError for a route
    that cannot be imitated.
    """

    def __init__(
        self,
        functions: Sequence[Function],
        *,
        invoke: Invoke,
        start_by_hand: Callable[[Function, str], None],
        state: Callable[[], str],
        route_prefix: str,
        function_key: str | None,
    ) -> None:
        self._functions = {function.name.lower(): function for function in functions}
        self._routes = sorted(
            (
                Route.of(function, function.trigger, route_prefix)
                for function in functions
                if isinstance(function.trigger, HttpTrigger) and not function.disabled
            ),
            key=lambda route: route.precedence,
        )
        self._invoke = invoke
        self._start_by_hand = start_by_hand
        self._state = state
        self._function_key = function_key

    def application(self) -> web.Application:
        """The web application to serve."""
        application = web.Application(client_max_size=_LARGEST_REQUEST_BYTES)
        application.router.add_get("/admin/host/status", self._host_status)
        application.router.add_get("/admin/functions", self._list_functions)
        application.router.add_post("/admin/functions/{name}", self._start_function)
        application.router.add_route("*", "/{path:.*}", self._call_function)
        return application

    async def _call_function(self, request: web.Request) -> web.Response:
        for route in self._routes:
            values = route.match(request.method, request.rel_url.raw_path)
            if values is None:
                continue
            if route.trigger.auth_level != "ANONYMOUS":
                self._authorise(request)
            value = TypedData(http=await _request_value(request, values))
            return _response(await self._invoke(route.function, value, {}))
        raise web.HTTPNotFound

    async def _host_status(self, request: web.Request) -> web.Response:
        self._authorise(request)
        return web.json_response({"id": "local", "state": self._state(), "functions": len(self._functions)})

    async def _list_functions(self, request: web.Request) -> web.Response:
        self._authorise(request)
        return web.json_response(
            [
                {"name": function.name, "config": {"bindings": function.bindings}, "isDisabled": function.disabled}
                for function in self._functions.values()
            ]
        )

    async def _start_function(self, request: web.Request) -> web.Response:
        self._authorise(request)
        function = self._functions.get(request.match_info["name"].lower())
        if function is None:
            raise web.HTTPNotFound
        if isinstance(function.trigger, HttpTrigger):
            raise web.HTTPBadRequest(text=f"{function.name} is an HTTP function: call its route.")
        try:
            text = str(json.loads(await request.text() or "{}").get("input") or "")
        except (ValueError, AttributeError) as error:
            raise web.HTTPBadRequest(text='The body must be a JSON object such as {"input": "text"}.') from error
        self._start_by_hand(function, text)
        return web.Response(status=202)

    def _authorise(self, request: web.Request) -> None:
        if self._function_key is None:
            return
        offered = request.headers.get("x-functions-key") or request.query.get("code", "")
        if not hmac.compare_digest(offered.encode(), self._function_key.encode()):
            raise web.HTTPUnauthorized


async def _request_value(request: web.Request, route_values: Mapping[str, str]) -> RpcHttp:
    body = await request.read()
    return RpcHttp(
        method=request.method,
        url=str(request.url),
        headers={name.lower(): ",".join(request.headers.getall(name)) for name in request.headers},
        query={name: ",".join(request.query.getall(name)) for name in request.query},
        params=route_values,
        body=TypedData(bytes=body) if body else TypedData(),
    )


def _response(outcome: Outcome) -> web.Response:
    value = outcome.return_value
    if not outcome.succeeded or value is None:
        return web.Response(status=500)
    if value.WhichOneof("data") != "http":
        return web.Response(text=value.string)
    answer = value.http
    response = web.Response(status=int(answer.status_code), headers=answer.headers, body=answer.body.bytes)
    for cookie in answer.cookies or ():
        _set_cookie(response, cookie)
    return response


def _set_cookie(response: web.Response, cookie: RpcHttpCookie) -> None:
    def value_of(field: str) -> Any:  # noqa: ANN401 - text, number or truth value, as the field has it
        nullable = getattr(cookie, field)
        return nullable.value if nullable else None

    expires, max_age = value_of("expires"), value_of("max_age")
    response.set_cookie(
        cookie.name,
        cookie.value,
        expires=formatdate(expires.seconds, usegmt=True) if expires else None,
        domain=value_of("domain"),
        max_age=None if max_age is None else int(max_age),
        path=value_of("path") or "/",
        secure=value_of("secure"),
        httponly=value_of("http_only"),
        samesite={1: "Lax", 2: "Strict", 3: "None"}.get(cookie.same_site),
    )
