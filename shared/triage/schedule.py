"""When a job's schedule fires next. Pure.

Databricks schedules are Quartz cron expressions with a time zone: seconds, minutes, hours, day of month, month, day of
week (1 or SUN to 7 or SAT), and perhaps a year. `?` means no rule. Rules that are not read here (`W`, `#`, `nL`) give
None: an unknown next run is treated as none.
"""

import re
from collections.abc import Mapping
from datetime import datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
LOOK_AHEAD = timedelta(days=8)
"""What is further away than this cannot be sooner than a retry's end."""


def next_fire(settings: Mapping[str, Any], now: datetime) -> datetime | None:
    """The next start by schedule after `now` (aware), within eight days; None where there is none, or it is paused."""
    schedule = settings.get("schedule")
    if not isinstance(schedule, Mapping) or schedule.get("pause_status") == "PAUSED":
        return None
    try:
        zone = ZoneInfo(str(schedule.get("timezone_id") or "UTC"))
        return next_of(str(schedule.get("quartz_cron_expression", "")), now.astimezone(zone))
    except (ValueError, ZoneInfoNotFoundError, OSError):
        return None


def next_of(expression: str, now: datetime) -> datetime | None:
    """The first time after `now`, in its time zone. Raises ValueError for an expression that is not understood."""
    fields = expression.upper().split()
    if len(fields) not in (6, 7):
        raise ValueError("a Quartz expression has six or seven fields")
    seconds, minutes, hours = (numbers(fields[i], 0, high) for i, high in enumerate((59, 59, 23)))
    months = numbers(fields[4], 1, 12, MONTHS)
    weekdays = numbers(fields[5], 1, 7, DAYS)
    years = numbers(fields[6], 1970, 2199) if len(fields) == 7 else None
    times = [time(h, m, s) for h in sorted(hours) for m in sorted(minutes) for s in sorted(seconds)]
    for offset in range(LOOK_AHEAD.days + 1):
        day = now.date() + timedelta(days=offset)
        if day.month not in months or (years is not None and day.year not in years):
            continue
        if not is_day_of_month(fields[3], day) or (day.isoweekday() % 7 + 1) not in weekdays:
            continue
        for at in times:
            moment = datetime.combine(day, at, tzinfo=now.tzinfo)
            if moment > now:
                return moment
    return None


def is_day_of_month(field: str, day: Any) -> bool:  # noqa: ANN401 - a date
    if field == "L":
        return bool((day + timedelta(days=1)).day == 1)
    return day.day in numbers(field, 1, 31)


def numbers(field: str, low: int, high: int, names: tuple[str, ...] = ()) -> set[int]:
    """The numbers that one field stands for. Raises ValueError for a rule that is not read here."""
    found: set[int] = set()
    for index, name in enumerate(names):
        field = field.replace(name, str(index + low))
    for part in field.split(","):
        match = re.fullmatch(r"(\*|\?|\d+)(?:-(\d+))?(?:/(\d+))?", part)
        if not match:
            raise ValueError(f"cannot read {part!r}")
        first, last, step = match.groups()
        begin = low if first in "*?" else int(first)
        end = int(last) if last else high if first in "*?" or step else begin
        if not (low <= begin <= high and low <= end <= high):
            raise ValueError(f"{part!r} is out of range")
        found.update(range(begin, end + 1, int(step or 1)))
    return found
