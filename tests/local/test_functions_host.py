"""The local Functions host: its rules in tables, and one running host that is driven over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from azure.servicebus import ServiceBusReceivedMessage
from hypothesis import given
from hypothesis import strategies as st

from local.functions_host.configuration import (
    HostConfiguration,
    HostError,
    apply_local_settings,
    is_disabled,
    parse_time_span,
    read_host_json,
    resolve_references,
)
from local.functions_host.functions import Function, HttpTrigger, QueueTrigger, TimerTrigger, read_functions
from local.functions_host.http import Route
from local.functions_host.logs import JsonLines, invocation_scope
from local.functions_host.protocol import TypedData
from local.functions_host.queues import listen
from local.functions_host.timers import Schedule, run_timer
from tests.local.running_host import SAMPLE_APP, RunningHost, run_to_the_end, running_host

# --- app settings and host.json ---------------------------------------------------------------------------------------


def test_references_are_replaced_by_app_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE", "failed-runs")
    assert resolve_references("%QUEUE%-x", "decide") == "failed-runs-x"


def test_a_missing_setting_is_named_with_who_needs_it() -> None:
    with pytest.raises(HostError, match="decide needs the app setting NOT_THERE"):
        resolve_references("%NOT_THERE%", "decide")


def test_local_settings_do_not_override_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"SET": "before"})
    (tmp_path / "local.settings.json").write_text('{"Values": {"SET": "file", "UNSET": "file"}}')
    apply_local_settings(tmp_path)
    assert dict(os.environ) == {"SET": "before", "UNSET": "file"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Values": {"A": 1}}', "the value of A must be a string"),
        ('{"IsEncrypted": true, "Values": {}}', "is encrypted"),
        ('{"Values": []}', "must be an object of strings"),
        ("[]", "must hold a JSON object"),
        ("{", "is not valid JSON"),
    ],
)
def test_local_settings_that_cannot_be_read_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "local.settings.json").write_text(text)
    with pytest.raises(HostError, match=message):
        apply_local_settings(tmp_path)


def test_host_json_is_read(tmp_path: Path) -> None:
    service_bus = {
        "maxConcurrentCalls": 4,
        "prefetchCount": 2,
        "maxAutoLockRenewalDuration": "00:10:00",
        "autoCompleteMessages": False,
    }
    extensions = {"http": {"routePrefix": "/v1/"}, "serviceBus": service_bus}
    document = {"version": "2.0", "functionTimeout": "00:10:00", "extensions": extensions}
    (tmp_path / "host.json").write_text(json.dumps(document))
    assert read_host_json(tmp_path) == HostConfiguration(
        route_prefix="v1",
        max_concurrent_calls=4,
        prefetch_count=2,
        lock_renewal=timedelta(minutes=10),
        auto_complete=False,
        function_timeout=timedelta(minutes=10),
    )


def test_host_json_defaults_are_those_of_the_real_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    (tmp_path / "host.json").write_text('{"version": "2.0", "functionTimeout": "-1"}')
    assert read_host_json(tmp_path) == HostConfiguration(
        route_prefix="api",
        max_concurrent_calls=32,
        prefetch_count=0,
        lock_renewal=timedelta(minutes=5),
        auto_complete=True,
        function_timeout=None,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No host.json"),
        ("{}", '"version" must be "2.0"'),
        ('{"version": "2.0", "functionTimeout": "10 minutes"}', "'10 minutes' is not a time span"),
        ('{"version": "2.0", "extensions": []}', "value of the wrong kind"),
        ('{"version": "2.0", "extensions": {"serviceBus": {"maxConcurrentCalls": "many"}}}', "value of the wrong kind"),
    ],
)
def test_host_json_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "host.json").write_text(text)
    with pytest.raises(HostError, match=message):
        read_host_json(tmp_path)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=30)))
def test_time_spans_are_read_as_dotnet_writes_them(span: timedelta) -> None:
    seconds = int(span.total_seconds())
    days, rest = divmod(seconds, 86400)
    text = f"{days}." * bool(days) + f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    assert parse_time_span(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(("value", "disabled"), [("1", True), ("TRUE", True), ("0", False), ("", False)])
def test_a_setting_disables_a_function(monkeypatch: pytest.MonkeyPatch, value: str, disabled: bool) -> None:
    monkeypatch.setenv("AzureWebJobs.tick.Disabled", value)
    assert is_disabled("tick") is disabled


# --- names and bindings -----------------------------------------------------------------------------------------------

TIMER = {"type": "timerTrigger", "direction": "IN", "name": "timer", "schedule": "0 * * * * *"}
QUEUE = {"type": "serviceBusTrigger", "direction": "IN", "name": "message", "queueName": "q", "connection": "C"}
HTTP = {"type": "httpTrigger", "direction": "IN", "name": "req", "authLevel": "ANONYMOUS"}
RESPONSE = {"type": "http", "direction": "OUT", "name": "$return"}


def metadata(name: str, *bindings: dict[str, Any], retry_options: object = None) -> SimpleNamespace:
    texts = [json.dumps(binding) for binding in bindings]
    return SimpleNamespace(name=name, function_id=f"id of {name}", raw_bindings=texts, retry_options=retry_options)


def test_supported_triggers_become_functions() -> None:
    http = HTTP | {"route": "/a/", "methods": ["get"]}
    functions = read_functions([metadata("t", TIMER), metadata("q", QUEUE), metadata("h", http, RESPONSE)])
    assert [(function.name, function.parameter, function.trigger) for function in functions] == [
        ("t", "timer", TimerTrigger("0 * * * * *", run_on_startup=False)),
        ("q", "message", QueueTrigger("q", "C", auto_complete=None)),
        ("h", "req", HttpTrigger("a", frozenset({"GET"}), "ANONYMOUS")),
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "No functions found"),
        ([], "No functions found"),
        ([metadata("a b", TIMER)], "'a b' is no valid function name"),
        ([metadata("host", TIMER)], "'host' is no valid function name"),
        ([metadata("f" * 129, TIMER)], "is no valid function name"),
        ([metadata("tick", TIMER), metadata("Tick", TIMER)], "Two functions are named tick"),
        ([metadata("f", TIMER | {"name": "my_timer"})], "'my_timer' is no valid arg_name"),
        ([metadata("f", TIMER, QUEUE)], "exactly one trigger, this one has 2"),
        ([metadata("f", RESPONSE)], "exactly one trigger, this one has 0"),
        ([metadata("f", HTTP, RESPONSE | {"name": "req"})], "two bindings are named 'req'"),
        (
            [metadata("f", TIMER, {"type": "blob", "direction": "OUT", "name": "o"})],
            "does not support the blob binding",
        ),
        ([metadata("f", TIMER, {"type": "serviceBus", "direction": "OUT", "name": "o"})], "the serviceBus binding"),
        ([metadata("f", {"type": "blobTrigger", "direction": "IN", "name": "b"})], "does not support blobTrigger"),
        ([metadata("f", QUEUE | {"cardinality": "MANY"})], "neither batches nor sessions"),
        ([metadata("f", QUEUE | {"isSessionsEnabled": True})], "neither batches nor sessions"),
        ([metadata("f", {k: v for k, v in QUEUE.items() if k != "queueName"})], "does not support serviceBusTrigger"),
        ([metadata("f", TIMER, retry_options=SimpleNamespace())], "retry policies are not supported"),
    ],
)
def test_what_cannot_run_is_refused(entries: list[SimpleNamespace] | None, message: str) -> None:
    with pytest.raises(HostError, match=message):
        read_functions(entries)


# --- timers -----------------------------------------------------------------------------------------------------------

NOON = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)  # a Friday


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/5 * * * * *", datetime(2026, 5, 1, 12, 0, 5, tzinfo=UTC)),
        ("0 */2 * * * *", datetime(2026, 5, 1, 12, 2, tzinfo=UTC)),
        ("30 0 12 * * *", datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)),
        ("0 0 12 * * *", datetime(2026, 5, 2, 12, tzinfo=UTC)),
        ("0 0 9-17 * * mon-thu", datetime(2026, 5, 4, 9, tzinfo=UTC)),
        ("0 0 0 29 FEB *", datetime(2028, 2, 29, tzinfo=UTC)),
    ],
)
def test_next_time(expression: str, expected: datetime) -> None:
    assert Schedule.parse(expression, "f").next_after(NOON) == expected


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("* * * * *", "needs six fields"),
        ("00:05:00", "needs six fields"),
        ("0 0 0 L * *", "no L, W, # or"),
        ("0 0 0 LW * *", "no L, W, # or"),
        ("0 0 0 15W * *", "no L, W, # or"),
        ("0 0 0 ? * *", "no L, W, # or"),
        ("0 0 0 * * 5#2", "no L, W, # or"),
        ("0 0 0 * * 5L", "no L, W, # or"),
        ("0 0 0 * * 1-7", "Sunday is 0"),
        ("0 0 0 13 * FRI", "restricts both day and weekday"),
        ("0 0 24 * * *", "Bad hour"),
        ("0 0 0 30 2 *", "never fires"),
    ],
)
def test_schedules_that_azure_reads_differently_or_not_at_all_are_refused(expression: str, reason: str) -> None:
    with pytest.raises(HostError, match=reason):
        Schedule.parse(expression, "f")


@given(
    st.integers(0, 59),
    st.integers(0, 59),
    st.integers(0, 23),
    st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=10_000)),
)
def test_a_daily_schedule_fires_within_a_day_at_its_time(second: int, minute: int, hour: int, later: timedelta) -> None:
    moment = NOON + later
    fires = Schedule.parse(f"{second} {minute} {hour} * * *", "f").next_after(moment)
    assert moment < fires <= moment + timedelta(days=1)
    assert (fires.hour, fires.minute, fires.second) == (hour, minute, second)


@dataclass
class TimerRun:
    """Runs a timer on a clock that moves only by sleeping and by the time that calls take."""

    call_seconds: list[float]
    clock: datetime = NOON
    calls: list[tuple[str, bool]] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.clock += timedelta(seconds=seconds)

    async def fire(self, value: TypedData) -> None:
        if len(self.calls) == len(self.call_seconds):
            raise asyncio.CancelledError
        self.calls.append((f"{self.clock:%H:%M:%S}", json.loads(value.json)["IsPastDue"]))
        self.clock += timedelta(seconds=self.call_seconds[len(self.calls) - 1])

    def run(self, *, run_on_startup: bool = False) -> list[tuple[str, bool]]:
        schedule = Schedule.parse("0 * * * * *", "f")
        timer = run_timer(schedule, self.fire, run_on_startup=run_on_startup, now=lambda: self.clock, sleep=self.sleep)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(timer)
        return self.calls


def test_a_timer_fires_on_schedule() -> None:
    assert TimerRun([1, 1, 1]).run() == [("12:01:00", False), ("12:02:00", False), ("12:03:00", False)]


def test_a_call_that_outlasts_its_next_times_is_followed_by_one_late_call() -> None:
    assert TimerRun([150, 1, 1]).run() == [("12:01:00", False), ("12:03:30", True), ("12:04:00", False)]


def test_a_timer_can_also_run_at_startup() -> None:
    assert TimerRun([1, 1]).run(run_on_startup=True) == [("12:00:00", False), ("12:01:00", False)]


# --- HTTP routes ------------------------------------------------------------------------------------------------------


def route(template: str, *, methods: frozenset[str] = frozenset(), prefix: str = "api") -> Route:
    trigger = HttpTrigger(template, methods, "ANONYMOUS")
    return Route.of(Function("f", "id", "req", trigger, (), disabled=False), trigger, prefix)


@pytest.mark.parametrize(
    ("template", "path", "values"),
    [
        ("health", "/api/health", {}),
        ("health", "/API/Health/", {}),
        ("health", "/api/healthy", None),
        ("health", "/health", None),
        ("runs/{id}", "/api/runs/7", {"id": "7"}),
        ("runs/{id}", "/api/runs/", None),
        ("runs/{id}", "/api/runs/a%2Fb%20c", {"id": "a/b c"}),
        ("runs/{id}/x", "/api/runs/7/8/x", None),
        ("runs/{id:int}", "/api/runs/-7", {"id": "-7"}),
        ("runs/{id:int}", "/api/runs/seven", None),
        (
            "runs/{id:guid}",
            "/api/runs/0f2a65cb-998f-4a50-b1df-f382ad793551",
            {"id": "0f2a65cb-998f-4a50-b1df-f382ad793551"},
        ),
        ("runs/{id?}", "/api/runs", {}),
        ("runs/{id?}", "/api/runs/7", {"id": "7"}),
        ("files/{*rest}", "/api/files/a/b/c", {"rest": "a/b/c"}),
        ("files/{*rest}", "/api/files", {}),
        ("files/{name}.{kind}", "/api/files/a.txt", {"name": "a", "kind": "txt"}),
    ],
)
def test_routes(template: str, path: str, values: dict[str, str] | None) -> None:
    assert route(template).match("GET", path) == values


def test_a_route_answers_its_methods_only() -> None:
    assert route("x", methods=frozenset({"POST"})).match("GET", "/api/x") is None
    assert route("x", methods=frozenset({"POST"})).match("POST", "/api/x") == {}


def test_an_empty_prefix_puts_routes_at_the_root() -> None:
    assert route("health", prefix="").match("GET", "/health") == {}


def test_the_more_specific_route_comes_first() -> None:
    templates = ["a/{*rest}", "a/{b}", "a/{b:int}", "a/b"]
    assert sorted(templates, key=lambda template: route(template).precedence) == templates[::-1]


@pytest.mark.parametrize(
    ("template", "prefix", "message"),
    [
        ("{id:range(1,2)}", "api", "cannot read the route segment"),
        ("{id:decimal}", "api", "does not know the route constraint 'decimal'"),
        ("{id=7}", "api", "cannot read the route segment"),
        ("admin/x", "", "cannot begin with admin"),
    ],
)
def test_routes_that_cannot_be_imitated_are_refused(template: str, prefix: str, message: str) -> None:
    with pytest.raises(HostError, match=message):
        route(template, prefix=prefix)


# --- queues -----------------------------------------------------------------------------------------------------------


@dataclass
class FakeMessage:
    message_id: str


@dataclass
class FakeReceiver:
    """A queue in memory. ``failures`` are raised, one at each try to connect or receive, before messages come."""

    messages: list[str]
    failures: list[Exception] = field(default_factory=list)
    settled: dict[str, str] = field(default_factory=dict)
    settle_error: Exception | None = None

    async def __aenter__(self) -> FakeReceiver:
        self._fail_if_told_to()
        return self

    async def receive_messages(
        self, max_message_count: int | None = 1, max_wait_time: float | None = None
    ) -> list[ServiceBusReceivedMessage]:
        await asyncio.sleep(0)
        self._fail_if_told_to()
        if not self.messages:
            await asyncio.sleep(3600)
        return [cast("ServiceBusReceivedMessage", FakeMessage(self.messages.pop(0)))]

    async def complete_message(self, message: ServiceBusReceivedMessage) -> None:
        self._settle(message, "completed")

    async def abandon_message(self, message: ServiceBusReceivedMessage) -> None:
        self._settle(message, "abandoned")

    def _settle(self, message: ServiceBusReceivedMessage, how: str) -> None:
        self.settled[str(message.message_id)] = how
        if self.settle_error:
            raise self.settle_error

    def _fail_if_told_to(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


@dataclass
class Calls:
    """What a queue's function was called with, and how many calls ran at once at most."""

    failing: frozenset[str] = frozenset()
    handled: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def handle(self, message: ServiceBusReceivedMessage) -> bool:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        for _ in range(5):
            await asyncio.sleep(0)
        self.running -= 1
        self.handled.append(str(message.message_id))
        return message.message_id not in self.failing


def drain(receiver: FakeReceiver, calls: Calls, *, max_concurrent_calls: int = 2, auto_complete: bool = True) -> None:
    """Listen until every message of the receiver was handled and settled."""
    expected = len(receiver.messages)

    async def run() -> None:
        tasks: set[asyncio.Task[None]] = set()

        def spawn(work: Coroutine[None, None, None]) -> None:
            tasks.add(asyncio.get_running_loop().create_task(work))

        connected = asyncio.Event()
        listener = asyncio.create_task(
            listen(
                "work",
                receiver,
                calls.handle,
                spawn,
                on_connected=connected.set,
                max_concurrent_calls=max_concurrent_calls,
                auto_complete=auto_complete,
            )
        )
        async with asyncio.timeout(5):
            await connected.wait()
            while len(tasks) < expected:
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
        listener.cancel()

    asyncio.run(run())


def test_success_completes_and_failure_abandons() -> None:
    receiver, calls = FakeReceiver(["a", "b", "c"]), Calls(failing=frozenset({"b"}))
    drain(receiver, calls)
    assert receiver.settled == {"a": "completed", "b": "abandoned", "c": "completed"}


def test_without_auto_complete_only_failures_are_settled() -> None:
    receiver, calls = FakeReceiver(["a", "b"]), Calls(failing=frozenset({"b"}))
    drain(receiver, calls, auto_complete=False)
    assert receiver.settled == {"b": "abandoned"}


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_than_max_concurrent_calls_run_at_once(limit: int) -> None:
    calls = Calls()
    drain(FakeReceiver([str(number) for number in range(20)]), calls, max_concurrent_calls=limit)
    assert calls.most_running == limit
    assert len(calls.handled) == 20


def test_a_lost_broker_is_logged_once_and_then_used_again(caplog: pytest.LogCaptureFixture) -> None:
    receiver, calls = FakeReceiver(["a"], failures=[OSError("refused"), OSError("refused")]), Calls()
    with caplog.at_level(logging.INFO):
        drain(receiver, calls)
    assert receiver.settled == {"a": "completed"}
    assert [record.message for record in caplog.records] == [
        "Lost queue work, trying again until it is back",
        "Receiving from queue work",
    ]


def test_a_message_that_cannot_be_settled_does_not_end_the_listener(caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls()
    drain(FakeReceiver(["a", "b"], settle_error=OSError("lock lost")), calls)
    assert calls.handled == ["a", "b"]
    assert "Could not settle a message of queue work; it will be delivered again" in caplog.messages


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_record_becomes_one_json_line_with_its_extra_fields() -> None:
    record = logging.makeLogRecord(
        {"name": "shared.x", "levelname": "INFO", "msg": "run\n%s", "args": (7,), "run_id": 7}
    )
    with invocation_scope("abc", "decide"):
        line = JsonLines().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert datetime.fromisoformat(fields.pop("time")).tzinfo is not None
    assert fields == {
        "level": "INFO",
        "logger": "shared.x",
        "message": "run\n7",
        "invocation_id": "abc",
        "function": "decide",
        "run_id": 7,
    }


# --- a running host ---------------------------------------------------------------------------------------------------

SETTINGS = {
    "TICK_SCHEDULE": "0 0 0 1 1 *",
    "WORK_QUEUE": "work",
    "SERVICE_BUS": "not used",
    "AzureWebJobs.work.Disabled": "true",
    "PYTHON_THREADPOOL_THREAD_COUNT": "3",
}


@pytest.fixture(scope="module")
def host() -> Iterator[RunningHost]:
    with running_host(SETTINGS, "--function-key", "secret") as running:
        yield running


@dataclass
class Reply:
    status: int
    text: str
    headers: dict[str, str]


def request(host: RunningHost, method: str, path: str, *, body: str | None = None, **headers: str) -> Reply:
    data = None if body is None else body.encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    wanted = urllib.request.Request(host.url + path, data=data, headers=names, method=method)
    try:
        with urllib.request.urlopen(wanted, timeout=10) as reply:
            return Reply(reply.status, reply.read().decode(), dict(reply.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read().decode(), dict(error.headers))


def test_an_http_function_gets_the_request_and_its_answer_gets_out(host: RunningHost) -> None:
    reply = request(host, "POST", "/API/items/7/left?q=a&q=b", body="text", X_Sent="héllo".encode().decode("latin-1"))
    assert (reply.status, reply.text) == (201, "POST 7 left a,b text")
    assert reply.headers["x-echo"] == "héllo".encode().decode("latin-1")
    assert reply.headers["Set-Cookie"] == "seen=yes; HttpOnly; Path=/api; SameSite=Lax"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/items/7", 201),
        ("PUT", "/api/items/7", 404),
        ("GET", "/api/items/seven", 404),
        ("GET", "/api/nothing", 404),
        ("GET", "/api/items/all", 401),
        ("GET", "/api/items/all?code=wrong", 401),
        ("GET", "/api/items/all?code=secret", 200),
        ("GET", "/api/broken/raise", 500),
        ("GET", "/api/broken/cancel", 500),
        ("GET", "/api/broken/exit", 500),
        ("GET", "/api/broken/fine", 200),
        ("GET", "/admin/functions", 401),
        ("POST", "/admin/functions/nothing?code=secret", 404),
        ("POST", "/admin/functions/item?code=secret", 400),
    ],
)
def test_statuses(host: RunningHost, method: str, path: str, status: int) -> None:
    assert request(host, method, path).status == status


def test_the_key_may_be_a_header(host: RunningHost) -> None:
    assert request(host, "GET", "/api/items/all", x_functions_key="secret").text == "all"


def test_the_thread_count_setting_reaches_the_app(host: RunningHost) -> None:
    assert request(host, "GET", "/api/broken/threads").text == "3"


def test_admin_status_and_functions(host: RunningHost) -> None:
    status = json.loads(request(host, "GET", "/admin/host/status?code=secret").text)
    assert status == {"id": "local", "state": "Running", "functions": 6}
    functions = json.loads(request(host, "GET", "/admin/functions?code=secret").text)
    assert {entry["name"]: entry["isDisabled"] for entry in functions} == {
        "tick": False,
        "at_start": False,
        "work": True,
        "item": False,
        "all_items": False,
        "broken": False,
    }


def test_admin_starts_a_timer_whose_log_names_the_invocation(host: RunningHost) -> None:
    assert request(host, "POST", "/admin/functions/Tick?code=secret", body="{}").status == 202
    (tick,) = host.wait_for(lambda record: record["message"] == "tick")
    (executed,) = host.wait_for(lambda record: record["message"] == "Executed tick")
    assert (tick["function"], tick["logger"], tick["past_due"]) == ("tick", "sample", False)
    assert tick["next"].endswith("-01-01T00:00:00+00:00")
    assert executed["invocation_id"] == tick["invocation_id"]
    assert executed["succeeded"] is True


def test_admin_starts_a_queue_function_even_if_it_is_disabled(host: RunningHost) -> None:
    body = json.dumps({"input": "typed in"})
    assert request(host, "POST", "/admin/functions/work?code=secret", body=body).status == 202
    (message,) = host.wait_for(lambda record: record["message"] == "message")
    assert message["body"] == "typed in"


def test_admin_refuses_a_body_that_is_no_json_object(host: RunningHost) -> None:
    assert request(host, "POST", "/admin/functions/tick?code=secret", body="[]").status == 400


def test_a_timer_may_run_on_startup(host: RunningHost) -> None:
    (at_start,) = host.wait_for(lambda record: record["message"] == "at start")
    assert at_start["function"] == "at_start"


def test_the_host_says_ready_once_on_standard_output_and_ends_on_sigterm() -> None:
    with running_host(SETTINGS) as host:
        assert host.stop() == 0
        assert host.output == ""


# --- indexing ---------------------------------------------------------------------------------------------------------


def test_index_only_reports_functions_times_and_heavy_modules() -> None:
    result = run_to_the_end({}, "--index-only", app=SAMPLE_APP)
    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert report.pop("functions") == ["tick", "at_start", "work", "item", "all_items", "broken"]
    assert report.pop("modules") == []
    assert set(report) == {"import_ms", "index_ms", "total_ms"}
    assert report["total_ms"] == pytest.approx(report["import_ms"] + report["index_ms"], abs=0.2)


TIMER_APP = """
import azure.functions as func, jinja2
app = func.FunctionApp()
@app.timer_trigger(arg_name="timer", schedule="0 * * * * *")
def tick(timer: func.TimerRequest) -> None:
    pass
"""


def test_index_only_names_a_heavy_module_that_the_app_imports(tmp_path: Path) -> None:
    (tmp_path / "function_app.py").write_text(TIMER_APP)
    assert json.loads(run_to_the_end({}, "--index-only", app=tmp_path).stdout)["modules"] == ["jinja2"]


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (None, {}, "No function_app.py in"),
        ("import azure.functions as func\napp = func.FunctionApp()", {}, "No functions found"),
        ("import not_there", {}, "cannot be indexed. ModuleNotFoundError"),
        (TIMER_APP.replace("func.TimerRequest", "int"), {}, "cannot be indexed. FunctionLoadError"),
        (
            TIMER_APP.replace('"timer"', '"my_timer"').replace("(timer:", "(my_timer:"),
            {},
            "'my_timer' is no valid arg_name",
        ),
        (TIMER_APP, {"PYTHON_SCRIPT_FILE_NAME": "json.py"}, "json.py is hidden by"),
    ],
)
def test_an_app_that_cannot_be_indexed_ends_the_host_with_the_reason(
    tmp_path: Path, source: str | None, settings: dict[str, str], message: str
) -> None:
    if source is not None:
        (tmp_path / settings.get("PYTHON_SCRIPT_FILE_NAME", "function_app.py")).write_text(source)
    result = run_to_the_end(settings, "--index-only", app=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in json.loads(result.stderr.splitlines()[-1])["message"]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("TICK_SCHEDULE", "tick needs the app setting TICK_SCHEDULE"),
        ("WORK_QUEUE", "work needs the app setting WORK_QUEUE"),
        ("SERVICE_BUS", "work needs the app setting SERVICE_BUS"),
        ("nothing", "work: the setting SERVICE_BUS holds no Service Bus connection string"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_ends_the_host_with_its_name(missing: str, message: str) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != missing and "Disabled" not in name}
    result = run_to_the_end(settings, "--port", "0", app=SAMPLE_APP)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in json.loads(result.stderr.splitlines()[-1])["message"]


def test_a_port_that_is_taken_ends_the_host_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_to_the_end(SETTINGS, "--port", str(port), app=SAMPLE_APP)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"Cannot listen on port {port}" in json.loads(result.stderr.splitlines()[-1])["message"]
