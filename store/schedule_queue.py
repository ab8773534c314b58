"""Schedules that fall due: claimed, issued and moved on in one transaction, by any number of schedulers at once."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Float,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    exists,
    extract,
    func,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from store import outbox
from store.columns import Moment
from store.tables import jobs, occurrences, schedules
from store.tables import outbox as outbox_table

ENDED: Final = ("done", "dead", "cancelled")
UNKNOWN_FOR: Final = 5.0
"""Seconds. A job that has left the outbox and is not in the job log counts as running for its timeout, and so long."""
SILENCE: Final = 3600.0
"""Seconds. A job that the log says waits or runs, and that nothing is heard of for so long beyond its timeout, has
ended: the report of its end was lost, and its schedule must not stand still for ever."""
ORIGIN: Final = "schedule"
_OCCURRENCE_IDS: Final = uuid.UUID("5b9f3a52-6f0e-4c39-9a43-1d0a3c5b7e21")


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """What a scheduler needs to know of a row. ``busy``: its last job has not ended, and its overlap policy asks."""

    id: str
    kind: str
    job_type: str
    job_group: str | None
    record: str | None
    payload: str
    priority: int | None
    expression: str | None
    zone: str | None
    interval_seconds: float | None
    start_at: datetime | None
    next_run_at: datetime | None
    misfire: str
    misfire_window: float | None
    overlap: str
    buffered_at: datetime | None
    busy: bool


@dataclass(frozen=True, slots=True)
class Advance:
    """What becomes of a claimed schedule: the due times to issue now, and its state afterwards."""

    schedule: DueSchedule
    issue: tuple[datetime, ...]
    next_run_at: datetime | None
    status: str
    buffered_at: datetime | None = None
    error: str | None = None


def occurrence_job_id(schedule_id: str, due_at: datetime) -> str:
    """The id of an occurrence's job: the same whoever issues it."""
    return str(uuid.uuid5(_OCCURRENCE_IDS, f"{schedule_id}\0{due_at.timestamp():.6f}"))


async def claim_due(connection: AsyncConnection, now: datetime, limit: int) -> list[DueSchedule]:
    """Active schedules that are due, the longest due first. No other scheduler sees them until the transaction ends."""
    due = schedules.c.next_run_at
    return await _claim(connection, _claimable(now, limit).where(due <= now).order_by(due))


async def claim_released(connection: AsyncConnection, now: datetime, limit: int) -> list[DueSchedule]:
    """Active schedules that hold an occurrence back, and whose last job has ended meanwhile."""
    held = schedules.c.buffered_at
    waiting = _claimable(now, limit).where(held.is_not(None), not_(_running(now)))
    return await _claim(connection, waiting.order_by(held))


async def advance(connection: AsyncConnection, advances: Sequence[Advance], now: datetime) -> int:
    """Issues what is due and moves the schedules on; returns how many occurrences were new.

    One that was issued before, by hand or by a scheduler with another clock, is left as it is.
    """
    if not advances:
        return 0
    new = await _recorded(connection, advances, now)
    due = [(moment, one.schedule) for one in advances for moment in one.issue if (one.schedule.id, moment) in new]
    due.sort(key=lambda pair: pair[0])
    await outbox.add(connection, [_outbox_row(schedule, moment) for moment, schedule in due])
    changes = [_changes(one, [moment for moment in one.issue if (one.schedule.id, moment) in new]) for one in advances]
    await connection.execute(_MOVE_ON, [change | {"now": now} for change in changes])
    return len(due)


async def next_due(connection: AsyncConnection) -> datetime | None:
    """When the next active schedule is due."""
    moment: datetime | None = (
        await connection.execute(select(func.min(schedules.c.next_run_at)).where(schedules.c.status == "active"))
    ).scalar_one()
    return moment


_COLUMNS: Final = tuple(schedules.c[name] for name in DueSchedule.__slots__ if name != "busy")

_MOVE_ON: Final = (
    update(schedules)
    .where(schedules.c.id == bindparam("schedule"))
    .values(
        next_run_at=bindparam("due"),
        status=bindparam("state"),
        buffered_at=bindparam("held"),
        error=bindparam("trouble"),
        runs=schedules.c.runs + bindparam("issued"),
        last_run_at=case((bindparam("issued") > 0, bindparam("now", type_=Moment)), else_=schedules.c.last_run_at),
        last_job_id=func.coalesce(bindparam("job", type_=Text), schedules.c.last_job_id),
        # Another schedule may be the unique one from now on.
        unique_key=case((bindparam("state", type_=Text) == "done", None), else_=schedules.c.unique_key),
        updated_at=bindparam("now", type_=Moment),
    )
)


def _claimable(now: datetime, limit: int) -> Select[Any]:
    asked = and_(schedules.c.overlap != "allow", _running(now))
    return (
        select(*_COLUMNS, asked.label("busy"))
        .where(schedules.c.status == "active")
        .limit(limit)
        .with_for_update(of=schedules, skip_locked=True)
    )


def _running(now: datetime) -> ColumnElement[bool]:
    """Whether a schedule's last job has not ended, as far as outbox and job log know. False in the end, always."""
    last, timeout = schedules.c.last_job_id, func.coalesce(schedules.c.timeout, 0.0)
    waits = exists().where(outbox_table.c.job_id == last)
    known = exists().where(jobs.c.id == last)
    silent_since = now.timestamp() - SILENCE - timeout
    heard = or_(_seconds(jobs.c.updated_at) > silent_since, _seconds(jobs.c.due_at) > silent_since)
    runs = exists().where(jobs.c.id == last, jobs.c.status.not_in(ENDED), heard)
    longest = case((timeout > UNKNOWN_FOR, timeout), else_=UNKNOWN_FOR)
    fresh = and_(not_(known), _seconds(schedules.c.last_run_at) > now.timestamp() - longest)
    return and_(last.is_not(None), or_(waits, runs, fresh))


def _seconds(moment: ColumnElement[Any]) -> ColumnElement[float]:
    """Unix seconds; on SQLite whole ones."""
    return cast(extract("epoch", moment), Float)


async def _claim(connection: AsyncConnection, statement: Select[Any]) -> list[DueSchedule]:
    return [_due_schedule(row) for row in await connection.execute(statement)]


def _due_schedule(row: Row[Any]) -> DueSchedule:
    return DueSchedule(**{**row._mapping, "busy": bool(row.busy)})  # noqa: SLF001 - public, whatever its name


async def _recorded(
    connection: AsyncConnection, advances: Sequence[Advance], now: datetime
) -> set[tuple[str, datetime]]:
    """Writes the occurrences; returns those that nobody had written before."""
    rows = [
        {
            "schedule_id": one.schedule.id,
            "due_at": moment,
            "job_id": occurrence_job_id(one.schedule.id, moment),
            "issued_at": now,
        }
        for one in advances
        for moment in one.issue
    ]
    if not rows:
        return set()
    insert = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    statement = insert(occurrences).on_conflict_do_nothing().returning(occurrences.c.schedule_id, occurrences.c.due_at)
    return {(row.schedule_id, row.due_at) for row in await connection.execute(statement, rows)}


def _outbox_row(schedule: DueSchedule, due: datetime) -> outbox.OutboxRow:
    return outbox.OutboxRow(
        occurrence_job_id(schedule.id, due),
        schedule.job_type,
        schedule.payload.encode(),
        ORIGIN,
        priority=schedule.priority,
        headers=outbox.recorded_as(schedule.record),
        group_name=schedule.job_group,
    )


def _changes(one: Advance, issued: Sequence[datetime]) -> dict[str, Any]:
    return {
        "schedule": one.schedule.id,
        "due": one.next_run_at,
        "state": one.status,
        "held": one.buffered_at,
        "trouble": one.error,
        "issued": len(issued),
        "job": occurrence_job_id(one.schedule.id, issued[-1]) if issued else None,
    }
