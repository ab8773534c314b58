"""Makes the schedules in the database what the code declares."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from producers.declaration import Schedule
from producers.orders import OrderBook
from producers.recurrence import Cron, Every
from producers.timetable import Policy, columns_of, every_of, first_run, group_of, job_columns, new_columns
from store import schedules as rows
from store.engine import Database
from store.schedules import ScheduleRecord
from topology.errors import EnqueueError, ScheduleInvalid
from topology.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

logger = logging.getLogger(__name__)

_WHEN = ("kind", "expression", "zone", "interval_seconds", "start_at")


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The names of declared schedules that were made, were changed, were right, or are declared no longer.

    Those in ``removed`` still run: whoever means to end them cancels them.
    """

    created: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]


async def reconcile(
    database: Database,
    declarations: Iterable[Schedule],
    settings: Settings | None = None,
    *,
    now: datetime | None = None,
) -> Reconciled:
    """One transaction, which may be repeated, and which any number of schedulers may run at once.

    What differs is changed; its next run is computed anew where its time was changed. A schedule that an operator
    paused or cancelled stays so. One of the same name that was made by hand becomes the code's. Raises
    ScheduleInvalid, which names the schedule, and DatabaseUnavailable; nothing is changed then.
    """
    moment = now or datetime.now(UTC)
    orders = OrderBook(settings or Settings())
    wanted = sorted(declarations, key=lambda declaration: declaration.name)  # one order, so that nobody waits in a ring
    planned = {declaration.name: _columns(orders, declaration, moment) for declaration in wanted}
    if len(planned) != len(wanted):
        raise ScheduleInvalid("two declared schedules have the same name")
    done: dict[str, list[str]] = {"created": [], "changed": [], "unchanged": [], "removed": []}
    async with database.transaction() as connection:
        for declaration in wanted:
            outcome = await _apply(connection, declaration, planned[declaration.name], moment)
            done[outcome].append(declaration.name)
        for record in await rows.declared(connection):
            if record.name is not None and record.name not in planned:
                done["removed"].append(record.name)
    for name in done["removed"]:
        logger.warning(
            "schedule '%s' is not declared any more and still runs: `hareline schedule cancel %s` ends it", name, name
        )
    return Reconciled(**{outcome: tuple(names) for outcome, names in done.items()})


def _columns(orders: OrderBook, declaration: Schedule, now: datetime) -> dict[str, Any]:
    try:
        policy = Policy(
            declaration.name,
            group_of(declaration.job_type, declaration.group),
            declaration.misfire,
            declaration.misfire_window,
            declaration.overlap,
        )
        job = job_columns(orders, declaration.job_type, declaration.payload, declaration.priority)
        return job | policy.columns() | columns_of(_recurrence(declaration, now))
    except (ScheduleInvalid, EnqueueError) as error:
        raise ScheduleInvalid(f"schedule '{declaration.name}': {error}") from error


def _recurrence(declaration: Schedule, now: datetime) -> Every | Cron:
    if declaration.cron is not None:
        return Cron(declaration.cron, declaration.tz)
    assert declaration.every is not None
    return every_of(declaration.every, declaration.start, now)


async def _apply(connection: AsyncConnection, declaration: Schedule, columns: dict[str, Any], now: datetime) -> str:
    due = first_run(_recurrence(declaration, now), now)
    created = columns | new_columns(due, now, rows.FROM_CODE) | {"unique_key": None}
    found = await rows.by_name(connection, declaration.name)
    if found is None:
        found, taken = await rows.create(connection, created)
        if taken is None:
            return "created"
        found = await rows.get(connection, found.id, lock=True)
    return await _adapt(connection, declaration, found, columns, due, now)


async def _adapt(
    connection: AsyncConnection,
    declaration: Schedule,
    found: ScheduleRecord,
    columns: dict[str, Any],
    due: datetime,
    now: datetime,
) -> str:
    before = _columns_of(found)
    columns = dict(columns)
    if declaration.start is None and found.interval is not None and found.interval == columns["interval_seconds"]:
        # Nobody says when it begins: it keeps the beat that it has.
        columns["start_at"] = found.start_at
    different = {name for name in before if columns[name] != before[name]}
    stray = found.source != rows.FROM_CODE
    if not different and not stray:
        return "unchanged"
    values = columns | {"source": rows.FROM_CODE, "unique_key": None, "updated_at": now}
    moved = not different.isdisjoint(_WHEN)
    if (stray and found.status not in rows.ALIVE) or (moved and found.status == rows.DONE):
        values |= {"status": rows.ACTIVE, "next_run_at": due}
    elif moved and found.status in rows.ALIVE:
        values |= {"next_run_at": due, "buffered_at": None}
    await rows.change(connection, found.id, **values)
    return "changed"


def _columns_of(record: ScheduleRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "job_type": record.type,
        "job_group": record.job_group,
        "record": record.record,
        "timeout": record.timeout,
        "payload_hash": rows.payload_hash(record.payload),
        "priority": record.priority,
        "group_name": record.group,
        "kind": record.kind,
        "expression": record.expression,
        "zone": record.zone,
        "interval_seconds": record.interval,
        "start_at": record.start_at,
        "misfire": record.misfire,
        "misfire_window": record.misfire_window,
        "overlap": record.overlap,
    }
