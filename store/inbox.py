"""The inbox: which jobs have committed their effects, noted in the very transaction that has the effects."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Table, delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningInsert

from store.engine import POSTGRESQL, Database
from store.recovery import persistently
from store.tables import inbox, keys, occurrences
from topology.duration import ago

RETENTION: Final = 7 * 86400.0
"""Seconds that a row is kept by default: far longer than a delivery of the job may still come a second time."""
_BATCH: Final = 1000
_AGED: Final = {"inbox": (inbox, "handled_at"), "keys": (keys, "created_at"), "occurrences": (occurrences, "issued_at")}


async def claim(connection: AsyncConnection, job_id: str, job_type: str, name: str = "") -> bool:
    """Notes in the caller's transaction that the job has its effects; False if another one has committed that.

    A transaction elsewhere that has claimed the same and is not decided is waited for.
    """
    return (await connection.execute(_claiming(connection.dialect.name, job_id, job_type, name))).first() is not None


def claim_blocking(connection: Connection, job_id: str, job_type: str, name: str = "") -> bool:
    """The same as `claim` for plain functions."""
    return connection.execute(_claiming(connection.dialect.name, job_id, job_type, name)).first() is not None


def _claiming(dialect: str, job_id: str, job_type: str, name: str) -> ReturningInsert[tuple[str]]:
    row = {"job_id": job_id, "job_type": job_type, "name": name, "handled_at": datetime.now(UTC)}
    if dialect == POSTGRESQL:
        return postgresql.insert(inbox).values(row).on_conflict_do_nothing().returning(inbox.c.job_id)
    return sqlite.insert(inbox).values(row).on_conflict_do_nothing().returning(inbox.c.job_id)


async def clean(
    database: Database,
    older_than: float = RETENTION,
    *,
    batch: int = _BATCH,
    progress: Callable[[str, int], None] = lambda *_: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> dict[str, int]:
    """Removes rows of the inbox, the keys and the occurrences that are older than ``older_than`` seconds.

    In transactions of ``batch`` rows, so that nobody waits for long; may be killed and repeated. ``progress`` is
    told (table, removed so far) after each. Returns how many of each. Waits for a database that is away. Raises
    OptionInvalid for an age beyond the calendar.
    """
    before = ago("older_than", older_than, now())
    removed = dict.fromkeys(_AGED, 0)
    for title, (table, column) in _AGED.items():
        while True:

            async def remove(table: Table = table, column: str = column) -> int:
                return await _remove(database, table, column, before, batch)

            count = await persistently("the clean-up", remove)
            removed[title] += count
            if count:
                progress(title, removed[title])
            if count < batch:
                break
    return removed


async def _remove(database: Database, table: Table, column: str, before: datetime, batch: int) -> int:
    key: Any = tuple_(*table.primary_key.columns)
    old = select(*table.primary_key.columns).where(table.c[column] < before).order_by(table.c[column]).limit(batch)
    async with database.transaction() as connection:
        return (await connection.execute(delete(table).where(key.in_(old)))).rowcount
