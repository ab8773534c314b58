"""Cron expressions in time zones: the calendar is cronsim's, the clock changes are ours. Pure.

An expression names times on the wall. Which moments those are, where clocks change, follows Debian's cron:

- An expression whose minute and hour do not begin with ``*`` names single times of the day. Each fires exactly once:
  one that the gap swallows at the gap's end (together with all others in it), one that comes twice at its first coming.
- Every other expression follows elapsed time: it fires at each moment when the wall shows a time that it names, so not
  in the gap, and twice in the fold.

cronsim has rules for this too, but loses times where a clock changes by 30 minutes; see docs/adr/0009.
"""

from __future__ import annotations

import difflib
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

from topology.errors import ScheduleInvalid
from topology.text import shown

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_LONGEST: Final = 250
_SOME_DAY: Final = datetime(2000, 1, 1)  # noqa: DTZ001 - a time on the wall, of no zone
_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)
_FIVE_FIELDS: Final = "five fields are needed: minute, hour, day of month, month, day of week, as in '30 2 * * MON-FRI'"


@lru_cache(maxsize=4096)
def fields_of(expression: str) -> str:
    """The expression as cronsim takes it. Raises ScheduleInvalid for nonsense, and for what never comes."""
    if not isinstance(expression, str) or not expression.strip():
        raise ScheduleInvalid(f"the cron expression is {expression!r}: {_FIVE_FIELDS}")
    if len(expression) > _LONGEST:
        raise ScheduleInvalid(f"the cron expression has {len(expression)} characters: at most {_LONGEST} are taken")
    fields = ALIASES.get(expression.strip().lower(), expression)
    try:
        first = next(CronSim(fields, _SOME_DAY), None)
    except (CronSimError, AssertionError, ValueError, OverflowError) as error:
        if _is_readable_in_another_month(fields):
            raise _never(expression) from None
        raise ScheduleInvalid(f"the cron expression '{expression}' cannot be read: {error}; {_FIVE_FIELDS}") from None
    if first is None:
        raise _never(expression)
    return fields


def _never(expression: str) -> ScheduleInvalid:
    return ScheduleInvalid(f"the cron expression '{expression}' names a date that never comes: change day or month")


def _is_readable_in_another_month(fields: str) -> bool:
    """Whether only day and month together are wrong, as on 30 February: cronsim calls that a bad day."""
    try:
        *time, day, month, weekday = fields.split()
        for one in ((day, "*"), ("*", month)):
            CronSim(" ".join((*time, *one, weekday)), _SOME_DAY)
    except (CronSimError, AssertionError, ValueError, OverflowError):
        return False
    return True


@lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo:
    """The time zone of that name. Raises ScheduleInvalid if there is none, naming those that look alike."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        known = available_timezones()
        alike = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
        cure = f"did you mean {' or '.join(alike)}?" if alike else "write one as in Europe/Lisbon, or UTC"
        raise ScheduleInvalid(f"the time zone {shown(name)} is not known: {cure}") from None


def next_moment(fields: str, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """The first moment after ``moment`` at which an expression (of `fields_of`) fires in ``zone``, in UTC.

    None where the calendar ends before.
    """
    try:
        if _names_single_times(fields):
            return _next_single_time(fields, zone, moment)
        return _next_elapsed_time(fields, zone, moment)
    except (OverflowError, ValueError):  # the year 9999
        return None


def _names_single_times(fields: str) -> bool:
    *_, minute, hour, _, _, _ = fields.split()
    return not minute.startswith("*") and not hour.startswith("*")


def _next_single_time(fields: str, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """Times on the wall, in order, are moments in order; several in a gap are one moment, hence the comparison."""
    for wall in CronSim(fields, _wall(zone, moment)):
        fires = _moment(zone, wall)
        if fires > moment:
            return fires
    return None


def _next_elapsed_time(fields: str, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """From one change of the clocks to the next, the wall runs as fast as the time."""
    after = moment.replace(microsecond=0)
    while True:
        offset = _offset(zone, after)
        shift = timezone(offset)
        wall = next(CronSim(fields, after.astimezone(shift).replace(tzinfo=None)), None)
        if wall is None:
            return None
        candidate = wall.replace(tzinfo=shift).astimezone(UTC)
        change = _first_change(zone, after, candidate, offset)
        if change is None:
            return candidate
        if _names(fields, _wall(zone, change)):
            return change
        after = change


def _first_change(zone: ZoneInfo, start: datetime, end: datetime, offset: timedelta) -> datetime | None:
    """The first moment after ``start`` and up to ``end`` whose offset is another than ``offset``, if there is one.

    Looks at every day, which is the nearest that changes come to one another.
    """
    low = start
    while low < end:
        high = min(low + _DAY, end)
        if _offset(zone, high) != offset:
            return _bisected(zone, low, high, offset)
        low = high
    return None


def _bisected(zone: ZoneInfo, low: datetime, high: datetime, offset: timedelta) -> datetime:
    """``low`` has the offset and ``high`` has not: the whole second of the change between them."""
    while high - low > _SECOND:
        middle = low + timedelta(seconds=int((high - low).total_seconds()) // 2)
        if _offset(zone, middle) == offset:
            low = middle
        else:
            high = middle
    return high


def _names(fields: str, wall: datetime) -> bool:
    return next(CronSim(fields, wall - _SECOND), None) == wall


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _wall(zone: ZoneInfo, moment: datetime) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None)


def _moment(zone: ZoneInfo, wall: datetime) -> datetime:
    """When the wall shows that time: the first time that it does, or the end of the gap that swallows it."""
    moment = wall.replace(tzinfo=zone).astimezone(UTC)
    shown = _wall(zone, moment)
    if shown == wall:
        return moment
    # With the offset before the change, a time in the gap comes out as far behind the gap's end as it is behind the
    # gap's beginning; and the change is where the offset becomes another.
    before = wall.replace(tzinfo=zone).utcoffset() or timedelta()
    return _bisected(zone, moment - _DAY, moment, before)
