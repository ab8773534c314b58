"""Schedules as a service uses them: made, found, cancelled, paused, run by hand."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from producers.declaration import Misfire, Overlap
from producers.orders import OrderBook
from producers.recurrence import Cron, Once, Recurrence
from producers.timetable import (
    Policy,
    columns_of,
    due_between,
    every_of,
    expect_alive,
    filters_of,
    first_run,
    group_of,
    job_columns,
    moment_of,
    new_columns,
    recurrence_of,
    seconds_of,
    statuses_of,
)
from store import schedules as rows
from store.client import Clock, StoreClient, utc_now
from store.engine import Database
from store.schedule_queue import occurrence_job_id
from store.schedules import ANY, ScheduleCounts, SchedulePage, ScheduleRecord
from topology.contract import JobType
from topology.envelope import new_id
from topology.errors import OptionInvalid, ScheduleInvalid
from topology.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["ANY", "ScheduleCounts", "SchedulePage", "ScheduleRecord", "Schedules"]

P = TypeVar("P")

LARGEST_PAGE: Final = 1000
LARGEST_BACKFILL: Final = 10_000
"""Occurrences that one call of ``backfill`` issues: they are one transaction."""


class Schedules(StoreClient):
    """Jobs that shall run later, or again and again. `hareline scheduler` issues them through the outbox.

    ``source`` is a `Database`, or the `Settings` that name one (by default the environment's). Every method takes
    ``connection``, a SQLAlchemy AsyncConnection to the same database, to work in the caller's transaction: what it
    did then holds if that commits. Raises DatabaseUnavailable where the database is gone, locked, full or read-only;
    nothing was changed then. Close it, or use ``async with``; a database that was handed in stays open.
    """

    def __init__(self, source: Database | Settings | None = None, *, clock: Clock = utc_now) -> None:
        super().__init__(source, clock=clock)
        self._orders = OrderBook(self._settings)

    # -- make ----------------------------------------------------------------------------------------------------------

    async def schedule_once(
        self,
        job_type: JobType[P],
        payload: P | dict[str, Any],
        *,
        at: datetime | None = None,
        delay: float | timedelta | None = None,
        name: str | None = None,
        group: str | None = None,
        unique: bool = False,
        priority: int | None = None,
        misfire: Misfire = "latest",
        misfire_window: float | None = None,
        connection: AsyncConnection | None = None,
    ) -> ScheduleRecord:
        """One job, ``at`` a time or after a ``delay`` (seconds or a timedelta). A time that has passed means now.

        ``unique``: while a schedule of the same type, payload and group can still run, that one is returned, with
        ``existed``. A ``name`` that another has raises ScheduleInvalid. Raises PayloadInvalid, OptionInvalid too.
        """
        if (at is None) == (delay is None):
            raise ScheduleInvalid("give either at or delay")
        now = self._clock()
        if delay is not None:
            seconds = seconds_of("delay", delay)
            if not 0 <= seconds <= timedelta.max.total_seconds():
                raise ScheduleInvalid(f"delay is {delay}: it must be zero or more seconds")
            try:
                at = now + timedelta(seconds=seconds)
            except OverflowError:
                raise ScheduleInvalid(f"delay is {delay}: that is beyond the year 9999") from None
        assert at is not None
        policy = Policy(name, group_of(job_type, group), misfire, misfire_window)
        due = max(moment_of("at", at), now)
        return await self._create(job_type, payload, Once(at), due, policy, unique, priority, connection)

    async def schedule_every(
        self,
        job_type: JobType[P],
        payload: P | dict[str, Any],
        *,
        every: float | timedelta,
        start: datetime | None = None,
        name: str | None = None,
        group: str | None = None,
        unique: bool = False,
        priority: int | None = None,
        misfire: Misfire = "latest",
        misfire_window: float | None = None,
        overlap: Overlap = "allow",
        connection: AsyncConnection | None = None,
    ) -> ScheduleRecord:
        """A job ``every`` so many seconds, first at ``start``, or without it after one interval.

        Runs are at start + n * every, whenever the one before ended. A start that has passed keeps its beat, and
        makes up for nothing: the first run is the next one from now.
        """
        now = self._clock()
        recurrence = every_of(every, start, now)
        policy = Policy(name, group_of(job_type, group), misfire, misfire_window, overlap)
        due = first_run(recurrence, now)
        return await self._create(job_type, payload, recurrence, due, policy, unique, priority, connection)

    async def schedule_cron(
        self,
        job_type: JobType[P],
        payload: P | dict[str, Any],
        expression: str,
        *,
        tz: str = "UTC",
        name: str | None = None,
        group: str | None = None,
        unique: bool = False,
        priority: int | None = None,
        misfire: Misfire = "latest",
        misfire_window: float | None = None,
        overlap: Overlap = "allow",
        connection: AsyncConnection | None = None,
    ) -> ScheduleRecord:
        """A job whenever the five fields of ``expression`` match in the time zone ``tz``."""
        recurrence = Cron(expression, tz)
        policy = Policy(name, group_of(job_type, group), misfire, misfire_window, overlap)
        due = first_run(recurrence, self._clock())
        return await self._create(job_type, payload, recurrence, due, policy, unique, priority, connection)

    # -- find ----------------------------------------------------------------------------------------------------------

    async def get(self, reference: str, *, connection: AsyncConnection | None = None) -> ScheduleRecord:
        """The schedule with this id or name. Raises NotFound."""
        async with self._reading(connection) as open_connection:
            return await rows.get(open_connection, reference)

    async def has_scheduled(
        self,
        job_type: JobType[Any] | str | None = None,
        *,
        args: Any = ANY,
        group: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> bool:
        """Whether one can still run. A paused one counts: whoever would make it again would undo the pause."""
        filters = filters_of(job_type, args, group, rows.ALIVE)
        async with self._reading(connection) as open_connection:
            return await rows.exists(open_connection, filters)

    async def next_scheduled(
        self,
        job_type: JobType[Any] | str | None = None,
        *,
        args: Any = ANY,
        group: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> ScheduleRecord | None:
        """The active one that runs next, or None."""
        filters = filters_of(job_type, args, group, (rows.ACTIVE,))
        async with self._reading(connection) as open_connection:
            return await rows.first(open_connection, filters)

    async def list_actions(
        self,
        job_type: JobType[Any] | str | None = None,
        *,
        args: Any = ANY,
        group: str | None = None,
        status: str | tuple[str, ...] | None = None,
        due_from: datetime | None = None,
        due_before: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> SchedulePage:
        """A page of schedules by their next run; ``next`` is the cursor of the one after it, or None.

        Raises CursorInvalid for a cursor that was altered, or used with other filters.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LARGEST_PAGE:
            raise OptionInvalid(f"limit is {limit!r}: a whole number from 1 to {LARGEST_PAGE} is needed")
        filters = filters_of(job_type, args, group, statuses_of(status), due_from, due_before)
        async with self._reading(connection) as open_connection:
            return await rows.page(open_connection, filters, limit=limit, cursor=cursor)

    async def counts(
        self,
        job_type: JobType[Any] | str | None = None,
        *,
        args: Any = ANY,
        group: str | None = None,
        status: str | tuple[str, ...] | None = None,
        connection: AsyncConnection | None = None,
    ) -> ScheduleCounts:
        """How many, by status, type and group."""
        filters = filters_of(job_type, args, group, statuses_of(status))
        async with self._reading(connection) as open_connection:
            return await rows.counts(open_connection, filters)

    # -- end, stop, go on ----------------------------------------------------------------------------------------------

    async def cancel(self, reference: str, *, connection: AsyncConnection | None = None) -> ScheduleRecord:
        """Ends the schedule of this id or name; one that has ended stays as it is. Jobs already issued still run."""
        async with self._transaction(connection) as open_connection:
            record = await rows.get(open_connection, reference, lock=True)
            if record.status not in rows.ALIVE:
                return record
            return await rows.cancel_one(open_connection, record.id, self._clock())

    async def cancel_next(
        self,
        job_type: JobType[Any] | str | None = None,
        *,
        args: Any = ANY,
        group: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> ScheduleRecord | None:
        """Ends the one that runs next, and returns it; None where there is none."""
        filters = filters_of(job_type, args, group, rows.ALIVE)
        async with self._transaction(connection) as open_connection:
            record = await rows.first(open_connection, filters, lock=True)
            if record is None:
                return None
            return await rows.cancel_one(open_connection, record.id, self._clock())

    async def cancel_all(
        self,
        job_type: JobType[Any] | str | None = None,
        *,
        args: Any = ANY,
        group: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> int:
        """Ends every schedule of this type, with these ``args`` and in this group; returns how many.

        What is left out does not matter: without ``args`` any payload is meant.
        """
        filters = filters_of(job_type, args, group)
        async with self._transaction(connection) as open_connection:
            return await rows.cancel(open_connection, filters, self._clock())

    async def pause(self, reference: str, *, connection: AsyncConnection | None = None) -> ScheduleRecord:
        """Issues nothing until `resume`. A paused schedule may be paused; one that has ended raises ScheduleInvalid."""
        async with self._transaction(connection) as open_connection:
            record = await rows.get(open_connection, reference, lock=True)
            if record.status == rows.PAUSED:
                return record
            expect_alive(record, "paused")
            return await rows.change(open_connection, record.id, status=rows.PAUSED, updated_at=self._clock())

    async def resume(self, reference: str, *, connection: AsyncConnection | None = None) -> ScheduleRecord:
        """Goes on. What fell due during the pause is made up for as ``misfire`` says, as if no scheduler had run.

        Brings back a schedule that is declared in code and was cancelled, from its next run on.
        """
        async with self._transaction(connection) as open_connection:
            record = await rows.get(open_connection, reference, lock=True)
            if record.status == rows.ACTIVE:
                return record
            revived = record.status == rows.CANCELLED and record.source == rows.FROM_CODE
            if not revived:
                expect_alive(record, "resumed")
            now = self._clock()
            due = record.next_run_at
            if record.kind != "once" and (due is None or (record.misfire == "skip" and due < now)):
                due = recurrence_of(record).next_after(now)
            values = {"status": rows.ACTIVE, "next_run_at": due, "error": None, "updated_at": now}
            return await rows.change(open_connection, record.id, **values)

    # -- by hand -------------------------------------------------------------------------------------------------------

    async def run_now(self, reference: str, *, connection: AsyncConnection | None = None) -> str:
        """Issues one more occurrence at once, and returns its job id; the schedule itself goes on as it would.

        Works for a paused one too. It does not ask whether the last occurrence still runs.
        """
        async with self._transaction(connection) as open_connection:
            record = await rows.get(open_connection, reference, lock=True)
            expect_alive(record, "run")
            now, job_id = self._clock(), new_id()
            await rows.issue(open_connection, record, [(now, job_id)], now)
            await rows.change(
                open_connection,
                record.id,
                runs=record.runs + 1,
                last_run_at=now,
                last_job_id=job_id,
                updated_at=now,
            )
            return job_id

    async def backfill(
        self, reference: str, start: datetime, end: datetime, *, connection: AsyncConnection | None = None
    ) -> int:
        """Issues the occurrences due from ``start`` to ``end``, both included, that never were; returns how many.

        Repeating it issues nothing twice while the occurrences are kept (seven days); later, jobs of the same ids once
        more. One transaction, so at most 10,000 at once. The future is left to the scheduler.
        """
        if moment_of("end", end) < moment_of("start", start):
            raise ScheduleInvalid(f"the range ends at {end.isoformat()}, before it starts at {start.isoformat()}")
        async with self._transaction(connection) as open_connection:
            record = await rows.get(open_connection, reference, lock=True)
            if record.kind == "once":
                raise ScheduleInvalid(
                    f"schedule {record.id} runs once: there is nothing to backfill; run it now instead"
                )
            expect_alive(record, "backfilled")
            now = self._clock()
            due_times = due_between(recurrence_of(record), start, min(end, now))
            jobs = [(due, occurrence_job_id(record.id, due)) for due in islice(due_times, LARGEST_BACKFILL + 1)]
            if len(jobs) > LARGEST_BACKFILL:
                raise ScheduleInvalid(
                    f"that range has more than {LARGEST_BACKFILL:,} occurrences: backfill it in parts, "
                    f"the first up to {jobs[LARGEST_BACKFILL - 1][0].isoformat()}"
                )
            issued = await rows.issue(open_connection, record, jobs, now)
            if issued:
                await rows.change(open_connection, record.id, runs=record.runs + issued, updated_at=now)
            return issued

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _create(
        self,
        job_type: JobType[Any],
        payload: Any,
        recurrence: Recurrence,
        due: datetime,
        policy: Policy,
        unique: bool,
        priority: int | None,
        connection: AsyncConnection | None,
    ) -> ScheduleRecord:
        values = job_columns(self._orders, job_type, payload, priority) | policy.columns() | columns_of(recurrence)
        values |= new_columns(due, self._clock(), rows.FROM_API)
        values["unique_key"] = rows.unique_key(job_type.name, values["payload_hash"], policy.group) if unique else None
        async with self._transaction(connection) as open_connection:
            record, taken = await rows.create(open_connection, values)
        if taken == "name":
            raise ScheduleInvalid(f"the name '{policy.name}' belongs to schedule {record.id} already")
        return record
