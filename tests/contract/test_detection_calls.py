"""What a detection tick costs, counted by the Databricks stand-in: the real connector, 2,000 jobs, a moved clock.

The bound: ceil(active runs / 25) + ceil(runs started in the window / 25) + newly finished runs; a quiet tick is two
calls.
"""

import json
import math
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from local.databricks.server import create_databricks_app
from local.http_standin import running
from shared.databricks_connector import DatabricksConnector
from shared.settings import Settings, environment_name
from tests.fakes import FakeClock
from tests.world import World, build_settings, build_world

JOBS = 2_000
LONG_RUNS = 300
LONG_RUNS_ENDING = 40
STARTED_IN_WINDOW = 100
FIVE_MINUTES = 300.0
HOUR = 3600.0
FAILURE = {"error": "NameError: name 'orders' is not defined"}


def run(run_id: int, start: float, duration: float, *, fails: bool) -> dict[str, Any]:
    task = {"task_key": "main", "failure": FAILURE} if fails else {"task_key": "main"}
    return {"run_id": run_id, "start_offset_seconds": start, "duration_seconds": duration, "tasks": [task]}


def runs_of(job: int, *, busy: bool) -> list[dict[str, Any]]:
    """Job 1 to 300 have a run that has been active for hours (40 of them fail soon), all others one of an hour ago.

    Where it is busy, 100 more jobs have a short run a minute after the first tick; every other one fails.
    """
    if job <= LONG_RUNS:
        ends_soon = busy and job <= LONG_RUNS_ENDING
        return [run(job, -2 * HOUR, 2 * HOUR + (60 if ends_soon else HOUR), fails=ends_soon)]
    runs = [run(job, -HOUR, 60, fails=False)]
    if busy and job <= LONG_RUNS + STARTED_IN_WINDOW:
        runs.append(run(10_000 + job, 60, 30, fails=job % 2 == 0))
    return runs


@dataclass(frozen=True)
class Workspace:
    """A stand-in workspace, its clock, and an agent that looks after it."""

    url: str
    world: World

    @property
    def calls(self) -> dict[str, int]:
        """API calls by path since the last reset."""
        with urllib.request.urlopen(f"{self.url}/_standin/calls", timeout=5) as answer:
            found: dict[str, int] = json.load(answer)["by_path"]
        return found

    def tick_after_five_minutes(self) -> int:
        """The number of failures found, with only this tick's calls counted."""
        self.world.clock.advance(seconds=FIVE_MINUTES)
        reset = urllib.request.Request(f"{self.url}/_standin/calls/reset", method="POST")
        urllib.request.urlopen(reset, timeout=5).close()
        return self.world.agent.find_failures()


@pytest.fixture
def workspace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_name(name), raising=False)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", "/nonexistent")
    busy: bool = request.param
    clock = FakeClock()
    jobs = [
        {"job_id": job, "settings": {"max_concurrent_runs": 5}, "runs": runs_of(job, busy=busy)}
        for job in range(1, JOBS + 1)
    ]
    scenario: dict[str, object] = {"workspace": "4242", "jobs": jobs}
    with running(
        lambda: create_databricks_app(effects_path=None, scenario=scenario, clock=lambda: clock().timestamp())
    ) as url:
        settings = build_settings(databricks_host=(url,), databricks_token="any-token")
        world = build_world(clock=clock, connector=DatabricksConnector(settings))
        world.agent.find_failures()
        yield Workspace(url, world)


@pytest.mark.parametrize("workspace", [False], indirect=True, ids=["quiet"])
def test_a_quiet_tick_is_one_list_of_active_and_one_of_completed_runs(workspace: Workspace) -> None:
    assert workspace.tick_after_five_minutes() == 0

    assert sum(workspace.calls.values()) == math.ceil(LONG_RUNS / 25) + 1


@pytest.mark.parametrize("workspace", [True], indirect=True, ids=["busy"])
def test_a_busy_tick_stays_within_its_bound_and_the_next_is_quiet(workspace: Workspace) -> None:
    found = workspace.tick_after_five_minutes()

    active = LONG_RUNS - LONG_RUNS_ENDING
    newly_finished = LONG_RUNS_ENDING + STARTED_IN_WINDOW
    assert found == LONG_RUNS_ENDING + STARTED_IN_WINDOW // 2
    assert sum(workspace.calls.values()) <= (
        math.ceil(active / 25) + math.ceil(STARTED_IN_WINDOW / 25) + newly_finished
    )
    assert workspace.tick_after_five_minutes() == 0
    assert sum(workspace.calls.values()) <= math.ceil(active / 25) + math.ceil(STARTED_IN_WINDOW / 25)
