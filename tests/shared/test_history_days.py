"""Old incidents are deleted after a sweep, once an hour."""

from datetime import timedelta
from typing import Any

import pytest

from shared.domain import IncidentState
from shared.errors import TransientError
from tests.builders import NOW, RUN_ID, WORKSPACE, build_incident
from tests.world import World, build_world


def world_with_an_incident(
    *, days_old: float, state: IncidentState = IncidentState.ESCALATED, **settings: Any
) -> World:
    """An incident that last changed so long ago; the next tick, in an hour, sweeps."""
    world = build_world(**settings)
    world.agent.find_failures()
    updated_at = NOW - timedelta(days=days_old)
    world.history.save_incident(build_incident(state=state, updated_at=updated_at, failed_at=None))
    world.clock.advance(hours=1)
    return world


@pytest.mark.parametrize(
    ("days_old", "settings", "kept"),
    [
        (401, {}, False),
        (399, {}, True),
        (61, {"history_days": 60}, False),
        (399, {"history_days": 60, "sweep_days": 400}, True),
    ],
)
def test_a_closed_incident_is_deleted_after_its_days_unless_sweeps_look_at_it(
    days_old: float, settings: dict[str, Any], kept: bool
) -> None:
    world = world_with_an_incident(days_old=days_old, **settings)

    world.agent.find_failures()

    assert (world.history.read_incident(WORKSPACE, RUN_ID) is not None) is kept


def test_an_open_incident_is_never_deleted() -> None:
    world = world_with_an_incident(days_old=4_000, state=IncidentState.RETRYING)

    world.agent.find_failures()

    assert world.history.read_incident(WORKSPACE, RUN_ID)


def test_it_is_not_looked_for_in_every_tick() -> None:
    world = world_with_an_incident(days_old=1)
    for _ in range(12):
        world.agent.find_failures()
        world.clock.advance(minutes=5)

    assert world.history.faults.calls.count("delete_older_than") == 1


def test_a_tick_is_stored_before_old_rows_are_deleted() -> None:
    world = world_with_an_incident(days_old=401)
    world.history.faults.before["delete_older_than"] = [TransientError("503")]

    with pytest.raises(TransientError):
        world.agent.find_failures()

    scan = world.history.read_scan(WORKSPACE)
    assert scan is not None
    assert scan.watermark == scan.swept_at == world.clock()
