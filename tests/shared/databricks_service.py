"""A service to talk to, for the tests of the Databricks connector: the stand-in workspace, or scripted answers."""

import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from local.http_standin import EffectLog, Faults, create_app, running
from shared.databricks_connector import DatabricksConnector
from shared.domain import Json
from shared.settings import Settings

NOW = 1_790_000_000.0

FAILED = {"state": {"life_cycle_state": "TERMINATED", "result_state": "FAILED", "state_message": "Workload failed"}}


def a_run(**fields: Any) -> Json:
    """A failed one-time run without tasks, as runs/get shows it."""
    return {"run_id": 5, "job_id": 7, "start_time": 1_790_000_000_000, "run_type": "SUBMIT_RUN"} | FAILED | fields


@dataclass
class FakeClock:
    """Waits at once; remembers for how long it was asked to wait."""

    now: float = NOW
    waits: list[float] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.waits.append(seconds)
        self.now += seconds


def settings_for(*hosts: str, **changes: Any) -> Settings:
    """Settings with a token and short times, unless changed."""
    values: dict[str, Any] = {
        "databricks_host": hosts,
        "databricks_token": "token",
        "databricks_timeout_seconds": 1,
        "databricks_retry_seconds": 5,
    }
    return Settings(**values | changes)


@dataclass
class Service:
    """A running service (the stand-in or scripted answers), and a connector to it."""

    url: str
    clock: FakeClock
    connector: DatabricksConnector

    @property
    def workspace(self) -> str:
        return self.connector.workspaces[0]

    def control(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url}/_standin/{path}", data) as response:
            return json.load(response)

    def load(self, scenario: Json) -> None:
        self.control("scenario", scenario)

    def set_fault(self, match: str, kind: str, **details: Any) -> None:
        self.control("faults", {"faults": [{"match": match, "kind": kind, **details}]})

    def calls(self, path: str) -> int:
        """How many requests for a path have arrived, repetitions by the SDK included."""
        return int(self.control("calls")["by_path"].get(path, 0))


@contextmanager
def serving(create: Callable[[], web.Application], **changes: Any) -> Iterator[Service]:
    """Serve an application, with no settings of the developer's own Databricks about; `changes` are settings."""
    clock = FakeClock()
    with pytest.MonkeyPatch.context() as patch, running(create) as url:
        for name in [name for name in os.environ if name.startswith(("DATABRICKS_", "ARM_"))]:
            patch.delenv(name)
        patch.setenv("DATABRICKS_CONFIG_FILE", "/nonexistent")
        yield Service(url, clock, DatabricksConnector(settings_for(url, **changes), clock=clock))


def scripted(answers: dict[str, Callable[[web.Request], web.Response]]) -> web.Application:
    """An API of a few paths; the others are 404."""
    app = create_app(effects=EffectLog("databricks", None), faults=Faults(), load_scenario=lambda scenario: scenario)

    async def answer(request: web.Request) -> web.Response:
        make = answers.get(request.path.rpartition("/api/")[2].partition("/")[2])
        if make is None:
            return web.json_response({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}, status=404)
        return make(request)

    app.router.add_route("*", "/{path:.*}", answer)
    return app
