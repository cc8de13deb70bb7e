"""When a job's schedule fires next."""

from datetime import UTC, datetime

import pytest

from shared.triage.schedule import next_fire

NOW = datetime(2026, 11, 24, 3, 10, tzinfo=UTC)  # a Tuesday


@pytest.mark.parametrize(
    ("expression", "zone", "want"),
    [
        ("0 0 * * * ?", "UTC", datetime(2026, 11, 24, 4, 0, tzinfo=UTC)),
        ("0 0/15 * * * ?", "UTC", datetime(2026, 11, 24, 3, 15, tzinfo=UTC)),
        ("0 30 6 * * ?", "Europe/Berlin", datetime(2026, 11, 24, 5, 30, tzinfo=UTC)),
        ("0 0 3 ? * MON-FRI", "UTC", datetime(2026, 11, 25, 3, 0, tzinfo=UTC)),
        ("0 0 3 ? * 1,7", "UTC", datetime(2026, 11, 28, 3, 0, tzinfo=UTC)),
        ("10 5 2 L * ?", "UTC", datetime(2026, 11, 30, 2, 5, 10, tzinfo=UTC)),
        ("0 0 3 1 DEC ? 2026", "UTC", datetime(2026, 12, 1, 3, 0, tzinfo=UTC)),
        ("0 0 3 1 JAN ?", "UTC", None),
        ("0 0 3 ? * 6#3", "UTC", None),
        ("0 0 3 15W * ?", "UTC", None),
        ("nonsense", "UTC", None),
        ("0 0 99 * * ?", "UTC", None),
        ("0 0 * * * ?", "Middle/Earth", None),
    ],
)
def test_next_fire(expression: str, zone: str, want: datetime | None) -> None:
    settings = {"schedule": {"quartz_cron_expression": expression, "timezone_id": zone}}
    assert next_fire(settings, NOW) == want


def test_a_paused_schedule_and_no_schedule_never_fire() -> None:
    assert next_fire({}, NOW) is None
    paused = {"quartz_cron_expression": "0 0 * * * ?", "timezone_id": "UTC", "pause_status": "PAUSED"}
    assert next_fire({"schedule": paused}, NOW) is None
