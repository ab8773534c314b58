"""When a schedule fires: once, at a fixed rate, or by the calendar; and what becomes of missed times. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias, get_args

from producers import cron
from topology.errors import ScheduleInvalid

Misfire: TypeAlias = Literal["latest", "all", "skip"]
MISFIRES: Final[tuple[str, ...]] = get_args(Misfire)

ON_TIME: Final = 60.0
"""Seconds that an occurrence may be late without being missed, where `skip` is asked for with no window."""
MOST_AT_ONCE: Final = 100
"""Occurrences of one schedule in one round; what `all` leaves over comes in the next ones."""
_SHORTEST: Final = timedelta(milliseconds=1)
_LONGEST: Final = timedelta(days=36_525)
_INSTANT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Once:
    """Fires at ``at`` alone. Raises ScheduleInvalid for a time without a zone."""

    at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", _utc("at", self.at))

    def next_after(self, moment: datetime) -> datetime | None:
        """``at``, unless that is not after ``moment``. In UTC."""
        return self.at if self.at > moment else None


@dataclass(frozen=True, slots=True)
class Every:
    """Fires at ``start``, and every ``interval`` seconds from it: the times never drift.

    Raises ScheduleInvalid for an interval that is not between a millisecond and a century, and for a start without
    a zone.
    """

    interval: float
    start: datetime

    def __post_init__(self) -> None:
        seconds = self.interval
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
            raise ScheduleInvalid(f"the interval is {seconds!r}: seconds are needed")
        if not _SHORTEST.total_seconds() <= seconds <= _LONGEST.total_seconds():
            raise ScheduleInvalid(
                f"the interval is {seconds:g} seconds: it must be positive, from a millisecond to a century"
            )
        object.__setattr__(self, "interval", float(seconds))
        object.__setattr__(self, "start", _utc("start", self.start))

    def next_after(self, moment: datetime) -> datetime | None:
        """The first multiple of the interval after ``moment``, counted from the start. In UTC."""
        if moment < self.start:
            return self.start
        step = timedelta(seconds=self.interval)
        try:
            return self.start + step * ((moment - self.start) // step + 1)
        except OverflowError:  # the year 9999
            return None


@dataclass(frozen=True, slots=True)
class Cron:
    """Fires when the wall in ``zone`` shows a time that ``expression`` names.

    Five fields as in Debian's cron, with its rules where clocks change (`producers.cron`), or six with seconds in
    front; names of months and days, ``L``, ``LW``, ``5L``, ``MON#2``, and ``@hourly`` to ``@yearly``. Raises
    ScheduleInvalid for an expression that cannot be read or never fires, and for an unknown zone.
    """

    expression: str
    zone: str = "UTC"

    def __post_init__(self) -> None:
        cron.fields_of(self.expression)
        cron.zone_of(self.zone)

    def next_after(self, moment: datetime) -> datetime | None:
        """The first time after ``moment``. In UTC."""
        return cron.next_moment(cron.fields_of(self.expression), cron.zone_of(self.zone), moment.astimezone(UTC))


Recurrence: TypeAlias = Once | Every | Cron


def occurrences(
    recurrence: Recurrence,
    due: datetime,
    now: datetime,
    misfire: Misfire = "latest",
    window: float | None = None,
    limit: int = MOST_AT_ONCE,
) -> tuple[list[datetime], datetime | None]:
    """What to issue now of a schedule whose next run was to be at ``due``, and when its next run is (None: never).

    An occurrence is missed once another one is due after it, or when it is older than ``window`` seconds.

    - ``latest``: of all that are due, the last one.
    - ``all``: all of them in order, at most ``limit``; the others are due in the next round.
    - ``skip``: none that was missed; without a window, one is late after `ON_TIME` seconds.
    """
    if due > now:
        return [], due
    if misfire == "skip" and window is None:
        window = ON_TIME
    oldest = due if window is None else max(due, now - timedelta(seconds=min(window, _LONGEST.total_seconds())))
    if misfire == "all":
        times = _from(recurrence, due, oldest, now, limit)
        return times, _after(recurrence, times[-1] if times else now, due)
    last = _last(recurrence, due, now)
    return [last] if last >= oldest else [], _after(recurrence, now, due)


def _after(recurrence: Recurrence, moment: datetime, due: datetime) -> datetime | None:
    """The run after ``moment``. ``due`` may be none of the recurrence's own times (a run that was moved)."""
    return recurrence.next_after(max(moment, due))


def _from(recurrence: Recurrence, due: datetime, oldest: datetime, now: datetime, limit: int) -> list[datetime]:
    times: list[datetime] = []
    moment = due if due >= oldest else recurrence.next_after(oldest - _INSTANT)
    while moment is not None and moment <= now and len(times) < limit:
        times.append(moment)
        moment = recurrence.next_after(moment)
    return times


def _last(recurrence: Recurrence, due: datetime, now: datetime) -> datetime:
    """The last time up to ``now``, ``due`` if there is none after it. Looks back in strides that double."""
    stride = timedelta(minutes=1)
    while now - stride > due:
        found = _latest_of(_times(recurrence, now - stride, now))
        if found is not None:
            return found
        stride *= 2
    return _latest_of(_times(recurrence, due, now)) or due


def _times(recurrence: Recurrence, after: datetime, until: datetime) -> Iterator[datetime]:
    if isinstance(recurrence, Every):  # which may have a great many, and tells the last one at once
        after = max(after, until - timedelta(seconds=recurrence.interval))
    moment = recurrence.next_after(after)
    while moment is not None and moment <= until:
        yield moment
        moment = recurrence.next_after(moment)


def _latest_of(times: Iterator[datetime]) -> datetime | None:
    latest = None
    for latest in times:  # noqa: B007 - the last one is what is asked for
        pass
    return latest


def _utc(name: str, moment: datetime) -> datetime:
    if not isinstance(moment, datetime):
        raise ScheduleInvalid(f"{name} is {moment!r}: a datetime is needed")
    if moment.utcoffset() is None:
        raise ScheduleInvalid(f"{name} is {moment.isoformat()}: a time needs a zone, for example datetime.now(UTC)")
    try:
        return moment.astimezone(UTC)
    except (OverflowError, ValueError):
        raise ScheduleInvalid(f"{name} is {moment.isoformat()}: that is beyond the calendar") from None
