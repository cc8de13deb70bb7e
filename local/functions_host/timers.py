"""Timer triggers: when a schedule fires, and the loop that fires it.

Schedules are six-field NCRONTAB (second minute hour day month weekday) in UTC, as in Azure unless WEBSITE_TIME_ZONE is
set. cronsim computes them; whatever it reads differently from NCrontab, which the real host uses, is refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

from .configuration import HostError
from .protocol import TypedData

log = logging.getLogger(__name__)

_FIELD = re.compile(r"(?:[0-9*,/-]|[A-Z]{3})+")
_WEEKDAY_SEVEN = re.compile(r"(?<![0-9/])7")
_LATE = timedelta(seconds=1)
_LONGEST_SLEEP_SECONDS = 60.0  # wake up now and then: the clock may be set, or the machine may have slept


@dataclass(frozen=True)
class Schedule:
    """A checked NCRONTAB expression; make one with ``parse``."""

    expression: str

    @classmethod
    def parse(cls, text: str, used_by: str) -> Schedule:
        """Check ``text``. Raises HostError for what the real host or this one would not understand, with the reason."""
        fields = text.upper().split()
        if len(fields) != 6:
            raise HostError(f"{used_by}: the schedule {text!r} needs six fields: second minute hour day month weekday.")
        if not all(_FIELD.fullmatch(field) for field in fields):
            raise HostError(
                f"{used_by}: the schedule {text!r} uses more than digits, names, * , / and - (no L, W, # or ?)."
            )
        if _WEEKDAY_SEVEN.search(fields[5]):
            raise HostError(f"{used_by}: the schedule {text!r} has weekday 7; Sunday is 0.")
        if not fields[3].startswith("*") and not fields[5].startswith("*"):
            raise HostError(
                f"{used_by}: the schedule {text!r} restricts both day and weekday, which Azure joins by AND and this "
                "host does not. Leave one of them *."
            )
        try:
            next(CronSim(" ".join(fields), datetime(2000, 1, 1, tzinfo=UTC)))
        except (CronSimError, StopIteration) as error:
            raise HostError(f"{used_by}: the schedule {text!r} cannot be read or never fires. {error}") from error
        return cls(" ".join(fields))

    def next_after(self, moment: datetime) -> datetime:
        """The first time the schedule fires strictly after ``moment`` (aware, UTC)."""
        fires: datetime = next(CronSim(self.expression, moment))
        return fires


def timer_value(*, last: datetime | None, following: datetime, past_due: bool) -> TypedData:
    """What the function receives, written as the real host does; ``last`` None (never) is .NET's DateTime.MinValue."""
    last_text = last.isoformat() if last else "0001-01-01T00:00:00+00:00"
    status = {"Last": last_text, "LastUpdated": last_text, "Next": following.isoformat()}
    value = {"Schedule": {"AdjustForDST": True}, "ScheduleStatus": status, "IsPastDue": past_due}
    return TypedData(json=json.dumps(value))


async def run_timer(
    schedule: Schedule,
    fire: Callable[[TypedData], Awaitable[object]],
    *,
    run_on_startup: bool,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Fire on schedule until cancelled, never twice at once.

    A call that outlasts one or more of its next times is followed by a single late one, marked as past due.
    """
    last: datetime | None = None
    if run_on_startup:
        last = now()
        await fire(timer_value(last=None, following=schedule.next_after(last), past_due=False))
    due = schedule.next_after(last or now())
    while True:
        while (wait := (due - now()).total_seconds()) > 0:
            await sleep(min(wait, _LONGEST_SLEEP_SECONDS))
        started = now()
        following = schedule.next_after(started)
        await fire(timer_value(last=last, following=following, past_due=started - due > _LATE))
        last, due = started, following
