"""Rows of schedules: made, found, listed, cancelled, paused, and the occurrences that somebody asks for by hand.

Every function works in the caller's transaction. What falls due is the scheduler's affair, not this module's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from store import outbox
from store.cursors import decode_cursor, encode_cursor
from store.tables import occurrences, schedules
from topology.errors import CursorInvalid, DatabaseUnavailable, NotFound
from topology.text import flaw_of, shown

ACTIVE: Final = "active"
PAUSED: Final = "paused"
DONE: Final = "done"
CANCELLED: Final = "cancelled"
STATUSES: Final = (ACTIVE, PAUSED, DONE, CANCELLED)
ALIVE: Final = (ACTIVE, PAUSED)
"""A schedule that is one of these can still run."""

FROM_CODE: Final = "code"
"""The ``source`` of schedules that an app declares; all others are made by ``api``."""
FROM_API: Final = "api"

_CHUNK: Final = 500
"""Rows for one statement: SQLite takes 32,766 values at once."""
_TRIES: Final = 5


class Anything(Enum):
    """The type of `ANY`."""

    ANY = "any args"

    def __repr__(self) -> str:
        return "ANY"


ANY: Final = Anything.ANY
"""Any payload at all, where ``args`` are asked for: an empty payload would mean the empty payload."""


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """A schedule as it was when it was read. ``payload`` is plain JSON; times are aware, in UTC.

    ``next_run_at`` is None once it is done or cancelled. ``existed`` is True where a unique schedule was asked for
    and this one was there before. ``error`` is why the scheduler could not issue its last occurrence. ``job_group``,
    ``record`` and ``timeout`` are the job type's own, as they were when it was scheduled.
    """

    id: str
    name: str | None
    type: str
    kind: str
    payload: Any
    group: str | None
    status: str
    next_run_at: datetime | None
    last_run_at: datetime | None
    last_job_id: str | None
    runs: int
    priority: int | None
    expression: str | None
    zone: str | None
    interval: float | None
    start_at: datetime | None
    misfire: str
    misfire_window: float | None
    overlap: str
    unique: bool
    source: str
    error: str | None
    created_at: datetime
    updated_at: datetime
    job_group: str | None = None
    record: str | None = None
    timeout: float | None = None
    existed: bool = False


@dataclass(frozen=True, slots=True)
class Filters:
    """Which schedules are meant; what is left out does not matter. ``hashed`` is a payload's `payload_hash`."""

    statuses: tuple[str, ...] = ()
    job_type: str | None = None
    group: str | None = None
    hashed: str | None = None
    due_from: datetime | None = None
    due_before: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """For a WHERE."""
        table = schedules.c
        wanted: list[ColumnElement[bool]] = []
        if self.statuses:
            wanted.append(table.status.in_(self.statuses))
        for column, value in ((table.job_type, self.job_type), (table.group_name, self.group)):
            if value is not None:
                wanted.append(column == value)
        if self.hashed is not None:
            wanted.append(table.payload_hash == self.hashed)
        if self.due_from is not None:
            wanted.append(table.next_run_at >= self.due_from)
        if self.due_before is not None:
            wanted.append(table.next_run_at < self.due_before)
        return wanted


@dataclass(frozen=True, slots=True)
class SchedulePage:
    """A page of schedules, and the cursor of the one after it: None on the last."""

    items: tuple[ScheduleRecord, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class ScheduleCounts:
    """How many schedules there are, in all and by status, job type and group (None: without one)."""

    total: int
    by_status: Mapping[str, int]
    by_type: Mapping[str, int]
    by_group: Mapping[str | None, int]


def payload_hash(payload: Any) -> str:
    """The same for equal JSON, whatever the order of keys."""
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def unique_key(job_type: str, hashed: str, group: str | None) -> str:
    """What a unique schedule is alone with: its job type, payload and group."""
    return hashlib.sha256(json.dumps([job_type, hashed, group]).encode()).hexdigest()


async def create(connection: AsyncConnection, values: Mapping[str, Any]) -> tuple[ScheduleRecord, str | None]:
    """The new row; or the one that is in its way, and in which column: ``unique_key``, or else ``name``.

    A name that a finished schedule of the API's has is free to take.
    """
    if values.get("name"):
        finished = and_(schedules.c.status.not_in(ALIVE), schedules.c.source != FROM_CODE)
        await connection.execute(
            update(schedules).where(schedules.c.name == values["name"], finished).values(name=None)
        )
    insertion = _insert(connection, schedules).values(**values).on_conflict_do_nothing().returning(schedules)
    for _ in range(_TRIES):
        row = (await connection.execute(insertion)).one_or_none()
        if row is not None:
            return _record(row), None
        for column in ("unique_key", "name"):
            if values.get(column):
                same = select(schedules).where(schedules.c[column] == values[column])
                row = (await connection.execute(same)).one_or_none()
                if row is not None:
                    return replace(_record(row), existed=True), column
        # It was in the way a moment ago, and has ended since.
    raise DatabaseUnavailable("a schedule of the same name or kind comes and goes: try again")


async def get(connection: AsyncConnection, reference: str, *, lock: bool = False) -> ScheduleRecord:
    """The schedule with this id, or else this name. ``lock`` keeps it as it is until the transaction ends.

    Raises NotFound.
    """
    wanted = select(schedules).where(or_(schedules.c.id == reference, schedules.c.name == reference))
    query = wanted.order_by((schedules.c.id == reference).desc()).limit(1)
    found = None if flaw_of(reference) else await connection.execute(query.with_for_update() if lock else query)
    row = None if found is None else found.one_or_none()
    if row is None:
        raise NotFound(f"no schedule has the id or the name {shown(reference)}: see `hareline schedule list`")
    return _record(row)


async def by_name(connection: AsyncConnection, name: str) -> ScheduleRecord | None:
    """The schedule of this name, locked until the transaction ends."""
    query = select(schedules).where(schedules.c.name == name).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _record(row)


async def change(connection: AsyncConnection, schedule_id: str, **values: Any) -> ScheduleRecord:
    """Sets columns, and returns the row as it is then."""
    changing = update(schedules).where(schedules.c.id == schedule_id).values(**values).returning(schedules)
    return _record((await connection.execute(changing)).one())


async def page(connection: AsyncConnection, filters: Filters, *, limit: int, cursor: str | None = None) -> SchedulePage:
    """Schedules in the order of their next run; those that have none come last.

    One that runs while somebody pages moves on, and may be seen again; none is missed. Raises CursorInvalid.
    """
    # Without the times: "due before now" is another moment on the next page, and the position says all that is needed.
    listing = f"schedules {replace(filters, due_from=None, due_before=None)}"
    table = schedules.c
    query = select(schedules).where(*filters.conditions())
    if cursor is not None:
        query = query.where(_after(decode_cursor(listing, cursor)))
    query = query.order_by(table.next_run_at.asc().nulls_last(), table.id).limit(limit + 1)
    records = [_record(row) for row in (await connection.execute(query)).all()]
    shown, more = records[:limit], len(records) > limit
    return SchedulePage(tuple(shown), encode_cursor(listing, _position(shown[-1])) if more else None)


async def first(connection: AsyncConnection, filters: Filters, *, lock: bool = False) -> ScheduleRecord | None:
    """The one that runs next of those that ``filters`` mean, or None."""
    table = schedules.c
    query: Select[Any] = select(schedules).where(*filters.conditions())
    query = query.order_by(table.next_run_at.asc().nulls_last(), table.id).limit(1)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    return None if row is None else _record(row)


async def exists(connection: AsyncConnection, filters: Filters) -> bool:
    """Whether there is any."""
    query = select(schedules.c.id).where(*filters.conditions()).limit(1)
    return (await connection.execute(query)).first() is not None


async def counts(connection: AsyncConnection, filters: Filters) -> ScheduleCounts:
    """By status, type and group."""
    found: list[dict[Any, int]] = []
    for column in (schedules.c.status, schedules.c.job_type, schedules.c.group_name):
        query = select(column, func.count()).where(*filters.conditions()).group_by(column).order_by(column)
        found.append({row[0]: row[1] for row in (await connection.execute(query)).all()})
    return ScheduleCounts(sum(found[0].values()), *found)


async def cancel(connection: AsyncConnection, filters: Filters, now: datetime) -> int:
    """Ends every schedule that ``filters`` mean and that can still run; returns how many."""
    alive = schedules.c.status.in_(ALIVE)
    ending = update(schedules).where(*filters.conditions(), alive).values(**ended(CANCELLED, now))
    return (await connection.execute(ending)).rowcount


async def cancel_one(connection: AsyncConnection, schedule_id: str, now: datetime) -> ScheduleRecord:
    """Ends one."""
    return await change(connection, schedule_id, **ended(CANCELLED, now))


async def clean(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Deletes up to ``limit`` schedules that ended before then; returns how many.

    One that is declared in code stays: that it was cancelled must be known when it is declared again.
    """
    over = and_(schedules.c.status.in_((DONE, CANCELLED)), schedules.c.next_run_at.is_(None))
    over = and_(over, schedules.c.updated_at < before, schedules.c.source != FROM_CODE)
    old = select(schedules.c.id).where(over).limit(limit).with_for_update(skip_locked=True)
    return (await connection.execute(delete(schedules).where(schedules.c.id.in_(old)))).rowcount


def ended(status: str, now: datetime) -> dict[str, Any]:
    """The columns of a schedule that will not run again: whoever wants a unique one may make it anew."""
    return {"status": status, "next_run_at": None, "buffered_at": None, "unique_key": None, "updated_at": now}


async def issue(
    connection: AsyncConnection, record: ScheduleRecord, jobs: Sequence[tuple[datetime, str]], now: datetime
) -> int:
    """Writes occurrences (due time, job id) and their jobs to the outbox; returns how many were new.

    One that was issued before is left as it is: (schedule, due time) is unique.
    """
    issued: list[Row[Any]] = []
    for start in range(0, len(jobs), _CHUNK):
        rows = [
            {"schedule_id": record.id, "due_at": due_at, "job_id": job_id, "issued_at": now}
            for due_at, job_id in jobs[start : start + _CHUNK]
        ]
        insertion = _insert(connection, occurrences).values(rows).on_conflict_do_nothing()
        result = await connection.execute(insertion.returning(occurrences.c.due_at, occurrences.c.job_id))
        issued += result.all()
    if not issued:
        return 0
    body = (await connection.execute(select(schedules.c.payload).where(schedules.c.id == record.id))).scalar_one()
    issued.sort(key=lambda row: row.due_at)
    await outbox.add(
        connection,
        [
            outbox.OutboxRow(
                row.job_id,
                record.type,
                body.encode(),
                "schedule",
                priority=record.priority,
                headers=outbox.recorded_as(record.record),
                group_name=record.job_group,
            )
            for row in issued
        ],
    )
    return len(issued)


async def declared(connection: AsyncConnection) -> list[ScheduleRecord]:
    """All that came from code and can still run, by name."""
    mine = select(schedules).where(schedules.c.source == FROM_CODE, schedules.c.status.in_(ALIVE))
    return [_record(row) for row in (await connection.execute(mine.order_by(schedules.c.name))).all()]


def _insert(connection: AsyncConnection, table: Any) -> Any:
    return (postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert)(table)


def _position(record: ScheduleRecord) -> list[Any]:
    return [None if record.next_run_at is None else record.next_run_at.isoformat(), record.id]


def _after(position: list[Any]) -> ColumnElement[bool]:
    table = schedules.c
    try:
        moment, last = position
        due = None if moment is None else datetime.fromisoformat(moment)
    except (TypeError, ValueError):
        raise CursorInvalid("this cursor does not name a place among schedules") from None
    if due is None:
        return and_(table.next_run_at.is_(None), table.id > last)
    later = or_(table.next_run_at > due, table.next_run_at.is_(None))
    return or_(later, and_(table.next_run_at == due, table.id > last))


def _record(row: Row[Any]) -> ScheduleRecord:
    return ScheduleRecord(
        id=row.id,
        name=row.name,
        type=row.job_type,
        kind=row.kind,
        payload=json.loads(row.payload),
        group=row.group_name,
        status=row.status,
        next_run_at=row.next_run_at,
        last_run_at=row.last_run_at,
        last_job_id=row.last_job_id,
        runs=row.runs,
        priority=row.priority,
        expression=row.expression,
        zone=row.zone,
        interval=None if row.interval_seconds is None else float(row.interval_seconds),
        start_at=row.start_at,
        misfire=row.misfire,
        misfire_window=row.misfire_window,
        overlap=row.overlap,
        unique=row.unique_key is not None,
        source=row.source,
        error=row.error,
        created_at=row.created_at,
        updated_at=row.updated_at,
        job_group=row.job_group,
        record=row.record,
        timeout=row.timeout,
    )
