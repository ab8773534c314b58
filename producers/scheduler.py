"""The scheduler: writes what falls due to the outbox, once, however many schedulers there are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, cast

from sqlalchemy.ext.asyncio import AsyncConnection

from producers.recurrence import MISFIRES, MOST_AT_ONCE, Cron, Every, Misfire, Once, Recurrence, occurrences
from store import schedule_queue
from store.engine import Database
from store.recovery import persistently
from store.schedule_queue import Advance, DueSchedule
from topology.errors import ScheduleInvalid

logger = logging.getLogger(__name__)

BATCH: Final = 500
"""Schedules in one transaction."""
_ALL_IN_BATCH: Final = 5_000
"""Occurrences in one transaction, where many schedules make up for what they missed."""
_PACE: Final = 0.05
"""Seconds between two rounds that were not full: what falls due meanwhile costs one transaction and not many."""
_LONGEST_SLEEP: Final = 0.5
"""Seconds until new schedules and released ones are looked for."""
_LAST_ROUND: Final = 5.0
"""Seconds for the round under way when the scheduler is asked to stop."""

Claim = Callable[[AsyncConnection, datetime, int], Awaitable[list[DueSchedule]]]


class Scheduler:
    """Issues occurrences until `drain`. Any number may run on one database; none of them leads.

    Each occurrence is issued exactly once: claiming it, noting it, writing its outbox row and moving its schedule on
    are one transaction. ``clock`` tells the time; where it jumps, nothing is issued twice. While the database is
    away the scheduler waits for it. A schedule that makes no sense is paused with an ``error``, and holds up no other.
    """

    def __init__(self, database: Database, *, clock: Callable[[], datetime] | None = None) -> None:
        self._database = database
        self._clock = clock or (lambda: datetime.now(UTC))
        self._stopping = asyncio.Event()
        self._looked = -_LONGEST_SLEEP

    async def run(self) -> None:
        """Issues what falls due until `drain` is called; the transaction under way is finished."""
        logger.info("the scheduler runs")
        stopping = asyncio.create_task(self._stopping.wait())
        work = asyncio.create_task(self._work())
        try:
            await asyncio.wait({stopping, work}, return_when=asyncio.FIRST_COMPLETED)
            # A database that is away is not waited for. What is cut then was not committed, or was in full.
            await asyncio.wait({work}, timeout=_LAST_ROUND)
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
        finally:
            stopping.cancel()
            work.cancel()
            await self._database.close()
        logger.info("the scheduler has stopped")

    def drain(self) -> None:
        """Asks it to stop."""
        self._stopping.set()

    async def issue_due(self) -> int:
        """One round: issues what is due now and what is released, at most a batch of each; returns how many rows.

        Raises DatabaseUnavailable.
        """
        rows = await self._round(schedule_queue.claim_due)
        now = asyncio.get_running_loop().time()
        if now - self._looked >= _LONGEST_SLEEP:
            self._looked = now
            rows += await self._round(schedule_queue.claim_released)
        return rows

    async def _work(self) -> None:
        while not self._stopping.is_set():
            rows = await persistently("the scheduler", self.issue_due)
            pause = 0.0 if rows >= BATCH else await persistently("the scheduler", self._pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _round(self, claim: Claim) -> int:
        async with self._database.transaction() as connection:
            now = self._clock()
            due = await claim(connection, now, BATCH)
            if not due:
                return 0
            at_most = max(1, min(MOST_AT_ONCE, _ALL_IN_BATCH // len(due)))
            advances = [plan(schedule, now, at_most) for schedule in due]
            await schedule_queue.advance(connection, advances, now)
        for one in advances:
            if one.error is not None:
                logger.error("schedule %s is paused: %s", one.schedule.id, one.error)
        return len(due)

    async def _pause(self) -> float:
        """Seconds to sleep. Short ones, so that a clock that was set forward is noticed."""
        async with self._database.reading() as connection:
            due = await schedule_queue.next_due(connection)
        if due is None:
            return _LONGEST_SLEEP
        return min(max((due - self._clock()).total_seconds(), _PACE), _LONGEST_SLEEP)


def plan(schedule: DueSchedule, now: datetime, limit: int = MOST_AT_ONCE) -> Advance:
    """What to issue of a claimed schedule and what then becomes of it, by its misfire and overlap policies.

    One that makes no sense any more (a zone that this machine does not know) is paused. Pure.
    """
    try:
        times, following = _times(schedule, now, limit)
    except (ScheduleInvalid, ValueError, TypeError, OverflowError) as error:
        return Advance(schedule, (), schedule.next_run_at, "paused", schedule.buffered_at, str(error))
    held: datetime | None = None
    if schedule.overlap != "allow":
        waiting = times if schedule.buffered_at is None else [schedule.buffered_at, *times]
        times = [] if schedule.busy else waiting[:1]
        rest = waiting[len(times) :]
        held = rest[0] if rest and schedule.overlap == "buffer_one" else None
    status = "done" if following is None and held is None else "active"
    return Advance(schedule, tuple(times), following, status, held)


def _times(schedule: DueSchedule, now: datetime, limit: int) -> tuple[list[datetime], datetime | None]:
    due = schedule.next_run_at
    if due is None:
        return [], None
    if schedule.misfire not in MISFIRES:
        raise ScheduleInvalid(f"misfire is '{schedule.misfire}': it must be latest, all or skip")
    misfire = cast("Misfire", schedule.misfire)
    return occurrences(_recurrence(schedule, due), due, now, misfire, schedule.misfire_window, limit)


def _recurrence(schedule: DueSchedule, due: datetime) -> Recurrence:
    if schedule.kind == "once":
        return Once(due)
    if schedule.kind == "every" and schedule.interval_seconds is not None:
        return Every(schedule.interval_seconds, schedule.start_at or due)
    if schedule.kind == "cron" and schedule.expression is not None:
        return Cron(schedule.expression, schedule.zone or "UTC")
    raise ScheduleInvalid(f"a schedule of kind '{schedule.kind}' needs an interval or an expression")
