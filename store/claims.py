"""What relays do with the outbox: claim rows for a while, then delete, release or put them off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from store.engine import POSTGRESQL
from store.outbox import OutboxRow
from store.tables import outbox

_CLAIMING: Final = 0x6861_7265_6F75_7462
"""The number of the advisory lock for claims, on PostgreSQL."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A row that a relay has for a while. ``attempts`` is how often publishing it has failed."""

    id: int
    attempts: int
    created_at: datetime
    row: OutboxRow


async def claim(connection: AsyncConnection, relay: str, limit: int, lease: float, now: datetime) -> list[Claimed]:
    """Up to ``limit`` rows, oldest first, that nobody else gets for ``lease`` seconds.

    A row of an ordering key is not claimed while an earlier one of its key is claimed by another relay, or waits
    for its next try: so the order of a key is kept, whoever publishes it.
    """
    if connection.dialect.name == POSTGRESQL:
        # Two relays that look at the same moment do not see each other's claims. Claims are short: one at a time.
        await connection.execute(select(func.pg_advisory_xact_lock(_CLAIMING)))
    earlier = outbox.alias("earlier")
    held_back = exists().where(
        earlier.c.ordering_key == outbox.c.ordering_key,
        earlier.c.id < outbox.c.id,
        or_(earlier.c.claimed_until >= now, earlier.c.retry_at > now),
    )
    wanted = (
        select(outbox.c.id)
        .where(_free(now), or_(outbox.c.ordering_key.is_(None), ~held_back))
        .order_by(outbox.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = (
        update(outbox)
        .where(outbox.c.id.in_(wanted))
        .values(claimed_by=relay, claimed_until=now + timedelta(seconds=lease))
        .returning(outbox)
    )
    rows = sorted((await connection.execute(claimed)).all(), key=lambda row: row.id)
    return [_claimed(row) for row in rows]


async def published(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Deletes rows that the broker has confirmed."""
    if ids:
        await connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))


async def release(connection: AsyncConnection, relay: str, ids: Sequence[int]) -> None:
    """Gives rows back at once: they could not be published, and that was not their fault."""
    if ids:
        mine = and_(outbox.c.id.in_(ids), outbox.c.claimed_by == relay)
        await connection.execute(update(outbox).where(mine).values(claimed_by=None, claimed_until=None))


async def failed(connection: AsyncConnection, row: Claimed, error: str, retry_at: datetime) -> None:
    """Puts a row off that the broker does not take, and keeps the reason with it."""
    await connection.execute(
        update(outbox)
        .where(outbox.c.id == row.id)
        .values(attempts=row.attempts + 1, error=error, retry_at=retry_at, claimed_by=None, claimed_until=None)
    )


async def anything(connection: AsyncConnection, now: datetime) -> bool:
    """Whether a row waits that may be claimed. Takes no lock."""
    return (await connection.execute(select(outbox.c.id).where(_free(now)).limit(1))).first() is not None


def _free(now: datetime) -> ColumnElement[bool]:
    return and_(
        or_(outbox.c.claimed_until.is_(None), outbox.c.claimed_until < now),
        or_(outbox.c.retry_at.is_(None), outbox.c.retry_at <= now),
    )


def _claimed(row: Any) -> Claimed:
    fields = {name: getattr(row, name) for name in OutboxRow.__dataclass_fields__}
    return Claimed(row.id, row.attempts, row.created_at, OutboxRow(**fields))
