"""The shared base of the HTTP stand-ins, driven with a plain HTTP client over a socket."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from local.http_standin import EffectLog, Faults, RefusedError, create_app, running


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    status: int
    headers: dict[str, str]
    body: dict[str, object]


@dataclass(frozen=True)
class Standin:
    """A small stand-in: POST /write/{key} records an effect and says so."""

    url: str
    effects: EffectLog
    effects_file: Path
    scenarios: list[dict[str, object]]

    def call(self, method: str, path: str, body: object = None, *, timeout: float = 5) -> Answer:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=timeout)
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body))
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), json.loads(response.read()))
        finally:
            connection.close()

    def set_fault(self, **fault: object) -> None:
        assert self.call("POST", "/_standin/faults", {"faults": [{"match": "POST /write", **fault}]}).status == 200

    def keys(self) -> list[object]:
        return [effect["key"] for effect in self.effects.effects]

    def wait_for_effect(self, key: str) -> None:
        deadline = time.monotonic() + 5
        while key not in self.keys():
            assert time.monotonic() < deadline, f"no effect {key}"
            time.sleep(0.005)


@contextmanager
def small_standin(effects_file: Path) -> Iterator[Standin]:
    effects = EffectLog("small", effects_file)
    scenarios: list[dict[str, object]] = []

    def load_scenario(scenario: dict[str, object]) -> dict[str, object]:
        if "runs" not in scenario:
            raise ValueError("runs is missing")
        scenarios.append(scenario)
        return {"loaded": len(scenarios)}

    async def write(request: web.Request) -> web.Response:
        body = json.loads(await request.read() or b"{}")
        key = request.match_info["key"]
        effects.record(kind="repair", workspace="ws", run_id="7", job_id="1", key=key, accepted=True, sent=body)
        return web.json_response({"on_disk": key in effects_file.read_text()})

    async def read(_request: web.Request) -> web.Response:
        return web.json_response({"read": True})

    async def refuse(_request: web.Request) -> web.Response:
        raise RefusedError(409, "Conflict", "not now", headers={"X-Reason": "busy"}, param="key")

    def app() -> web.Application:
        app = create_app(effects=effects, faults=Faults(), load_scenario=load_scenario)
        app.router.add_post("/write/{key}", write)
        app.router.add_get("/write/{key}", read)
        app.router.add_put("/write/{key}", refuse)
        return app

    with running(app) as url:
        yield Standin(url, effects, effects_file, scenarios)


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    with small_standin(tmp_path / "state" / "effects.jsonl") as standin:
        yield standin


def test_an_effect_is_in_the_file_before_the_answer_leaves(standin: Standin) -> None:
    answers = [standin.call("POST", "/write/a"), standin.call("POST", "/write/b", {"sent": 1})]

    assert [answer.body for answer in answers] == [{"on_disk": True}, {"on_disk": True}]
    lines = [json.loads(line) for line in standin.effects_file.read_text().splitlines()]
    assert [(line["seq"], line["key"]) for line in lines] == [(1, "a"), (2, "b")]
    assert set(lines[0]) == {
        "seq", "at", "service", "kind", "workspace", "run_id", "job_id", "key", "accepted", "sent",
    }  # fmt: skip
    assert standin.call("GET", "/_standin/effects").body == {"effects": lines}


@pytest.mark.parametrize(
    ("fault", "status", "retry_after"),
    [
        ({"kind": "429", "retry_after": 2}, 429, "2"),
        ({"kind": "429"}, 429, None),
        ({"kind": "503", "retry_after": 0.5}, 503, "0.5"),
        ({"kind": "500"}, 500, None),
        ({"kind": "error", "status": 403}, 403, None),
    ],
)
def test_an_error_fault_answers_instead_of_the_handler(
    standin: Standin, fault: dict[str, object], status: int, retry_after: str | None
) -> None:
    standin.set_fault(**fault)

    answer = standin.call("POST", "/write/a")

    assert (answer.status, answer.headers.get("Retry-After")) == (status, retry_after)
    assert answer.body["error_code"]
    assert standin.keys() == []


def test_an_error_fault_may_bring_its_own_body(standin: Standin) -> None:
    standin.set_fault(kind="error", status=400, body={"error_code": "INVALID_STATE"})

    assert standin.call("POST", "/write/a").body == {"error_code": "INVALID_STATE"}


def test_a_handler_that_refuses_answers_as_azure_services_do(standin: Standin) -> None:
    answer = standin.call("PUT", "/write/a")

    assert (answer.status, answer.headers["X-Reason"]) == (409, "busy")
    assert answer.body == {"error": {"code": "Conflict", "message": "not now", "param": "key"}}


def test_drop_before_closes_the_connection_and_nothing_lands(standin: Standin) -> None:
    standin.set_fault(kind="drop_before", times=1)

    with pytest.raises(ConnectionError):
        standin.call("POST", "/write/a")

    standin.call("POST", "/write/b")
    assert standin.keys() == ["b"]


def test_drop_after_lands_and_closes_the_connection(standin: Standin) -> None:
    standin.set_fault(kind="drop_after")

    with pytest.raises(ConnectionError):
        standin.call("POST", "/write/a")

    assert standin.keys() == ["a"]


def test_slow_lands_at_once_and_answers_later(standin: Standin) -> None:
    standin.set_fault(kind="slow", seconds=30)

    with pytest.raises(TimeoutError):
        standin.call("POST", "/write/a", timeout=0.2)

    assert standin.keys() == ["a"]


def test_slow_answers_in_the_end(standin: Standin) -> None:
    standin.set_fault(kind="slow", seconds=0.1)
    asked_at = time.monotonic()

    assert standin.call("POST", "/write/a").status == 200
    assert time.monotonic() - asked_at >= 0.1


def test_late_closes_the_connection_and_lands_later_with_its_body(standin: Standin) -> None:
    standin.set_fault(kind="late", seconds=0.2)

    with pytest.raises(ConnectionError):
        standin.call("POST", "/write/a", {"sent": 1})

    assert standin.keys() == []
    standin.wait_for_effect("a")
    assert standin.effects.effects[0]["sent"] == {"sent": 1}


def test_a_request_that_has_not_landed_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with small_standin(tmp_path / "effects.jsonl") as standin:
        standin.set_fault(kind="late", seconds=3600)
        with pytest.raises(ConnectionError):
            standin.call("POST", "/write/a", {})

    assert standin.keys() == []


def test_skip_and_times_count_matching_requests_only(standin: Standin) -> None:
    standin.set_fault(kind="503", skip=1, times=2)

    assert standin.call("GET", "/write/a").status == 200
    statuses = [standin.call("POST", "/write/a").status for _ in range(5)]

    assert statuses == [200, 503, 503, 200, 200]
    assert standin.call("GET", "/_standin/faults").body["faults"] == [
        {"match": "POST /write", "kind": "503", "times": 2, "skip": 1, "seconds": 1.0, "status": 500, "applied": 2}
    ]


def test_the_first_rule_with_times_left_applies(standin: Standin) -> None:
    standin.set_fault(kind="429", times=1)
    standin.set_fault(match="* /wri", kind="503")

    assert [standin.call("POST", "/write/a").status for _ in range(2)] == [429, 503]
    assert standin.call("GET", "/write/a").status == 503


def test_clear_replaces_the_rules(standin: Standin) -> None:
    standin.set_fault(kind="429")

    standin.call("POST", "/_standin/faults", {"clear": True})

    assert standin.call("POST", "/write/a").status == 200


@pytest.mark.parametrize("path", ["/_standin/health", "/_standin/effects", "/_standin/faults"])
def test_faults_never_meet_the_control_paths(standin: Standin, path: str) -> None:
    standin.set_fault(match="* /", kind="500")

    assert standin.call("GET", path).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {"faults": [{"match": "POST /write", "kind": "unknown"}]},
        {"faults": [{"match": "/write", "kind": "429"}]},
        {"faults": [{"match": "POST /write", "kind": "429", "time": 1}]},
        {"fault": []},
        [],
    ],
)
def test_faults_that_are_not_understood_are_refused_whole(standin: Standin, body: object) -> None:
    standin.set_fault(kind="429")

    assert standin.call("POST", "/_standin/faults", body).status == 400

    assert standin.call("POST", "/write/a").status == 429


def test_a_scenario_reaches_the_stand_in(standin: Standin) -> None:
    assert standin.call("POST", "/_standin/scenario", {"runs": []}).body == {"loaded": 1}
    assert standin.scenarios == [{"runs": []}]


@pytest.mark.parametrize(("body", "reason"), [({"jobs": []}, "runs is missing"), ([1], "must be a JSON object")])
def test_a_wrong_scenario_is_refused_with_the_reason(standin: Standin, body: object, reason: str) -> None:
    answer = standin.call("POST", "/_standin/scenario", body)

    assert answer.status == 400
    assert reason in str(answer.body["error"])


PROGRAM = """
import sys
from local.http_standin import EffectLog, Faults, create_app, run_standin
run_standin(create_app(effects=EffectLog("x", None), faults=Faults(), load_scenario=dict), int(sys.argv[1]))
"""


@contextmanager
def standin_process(port: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, port], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_process_says_ready_serves_and_ends_with_sigterm() -> None:
    with standin_process("0") as process:
        assert process.stdout is not None
        word, port = process.stdout.readline().split()
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
        connection.request("GET", "/_standin/health")
        assert (word, json.loads(connection.getresponse().read())) == ("READY", {"ok": True})
        connection.close()

        with standin_process(port) as second:
            _, complaint = second.communicate(timeout=10)
            assert second.returncode == 1
            assert f"cannot listen on 127.0.0.1:{port}" in complaint

        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=10)
        assert (process.returncode, rest, errors) == (0, "", "")
