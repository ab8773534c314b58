"""What relays do with the outbox: claim rows for a while, then delete, release or put them off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, DateTime, and_, delete, exists, func, or_, select, update
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import AsyncConnection

from store.engine import POSTGRESQL
from store.outbox import OutboxRow
from store.tables import outbox

_CLAIMING: Final = 0x6861_7265_6F75_7462
"""The number of the advisory lock for claims, on PostgreSQL."""
UNREADABLE: Final = (ValueError, TypeError, OverflowError, DataError)
"""What reading a row raises that holds what its column cannot mean."""
_LONGEST_REASON: Final = 500


@dataclass(frozen=True, slots=True)
class Claimed:
    """A row that a relay has for a while. ``attempts`` is how often publishing it has failed."""

    id: int
    attempts: int
    created_at: datetime
    row: OutboxRow


Time = datetime | ColumnElement[datetime]
"""A moment, or the database's own idea of now."""


def clock_of(connection: AsyncConnection) -> Time:
    """Now, by the one clock that all relays of a server share: theirs may differ by more than a lease."""
    return (
        func.statement_timestamp(type_=DateTime(timezone=True))
        if connection.dialect.name == POSTGRESQL
        else datetime.now(UTC)
    )


async def claim(connection: AsyncConnection, relay: str, limit: int, lease: float, now: Time) -> list[Claimed]:
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


async def renew(connection: AsyncConnection, relay: str, ids: Sequence[int], lease: float, now: Time) -> bool:
    """``lease`` seconds more for rows that are ``relay``'s. False if any of them is not, any more."""
    mine = and_(outbox.c.id.in_(ids), outbox.c.claimed_by == relay)
    renewed = update(outbox).where(mine).values(claimed_until=now + timedelta(seconds=lease))
    return (await connection.execute(renewed)).rowcount == len(ids)


async def put_off_unreadable(connection: AsyncConnection, limit: int, pause: float, now: Time) -> list[int]:
    """Puts off what waits and cannot be read, as somebody wrote it by hand (a date of no calendar); returns their ids.

    Where a claim fails over its rows: whoever they are, the others are not to wait for them.
    """
    found: list[int] = []
    waiting = select(outbox.c.id).where(_free(now)).order_by(outbox.c.id).limit(limit)
    for row in (await connection.execute(waiting)).scalars().all():
        try:
            (await connection.execute(select(outbox).where(outbox.c.id == row))).one_or_none()
        except UNREADABLE as error:
            reason = f"the row cannot be read: {error!r}"[:_LONGEST_REASON]
            values = {"attempts": outbox.c.attempts + 1, "error": reason, "retry_at": now + timedelta(seconds=pause)}
            await connection.execute(update(outbox).where(outbox.c.id == row).values(values))
            found.append(row)
    return found


async def published(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Deletes rows that the broker has confirmed."""
    if ids:
        await connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))


async def release(connection: AsyncConnection, relay: str, ids: Sequence[int]) -> None:
    """Gives rows back at once: they could not be published, and that was not their fault."""
    if ids:
        mine = and_(outbox.c.id.in_(ids), outbox.c.claimed_by == relay)
        await connection.execute(update(outbox).where(mine).values(claimed_by=None, claimed_until=None))


async def failed(connection: AsyncConnection, relay: str, row: Claimed, error: str, retry_at: Time) -> None:
    """Puts a row of ``relay``'s off that the broker does not take, and keeps the reason with it."""
    await connection.execute(
        update(outbox)
        .where(outbox.c.id == row.id, outbox.c.claimed_by == relay)
        .values(attempts=row.attempts + 1, error=error, retry_at=retry_at, claimed_by=None, claimed_until=None)
    )


async def anything(connection: AsyncConnection, now: Time) -> bool:
    """Whether a row waits that may be claimed. Takes no lock."""
    return (await connection.execute(select(outbox.c.id).where(_free(now)).limit(1))).first() is not None


def _free(now: Time) -> ColumnElement[bool]:
    return and_(
        or_(outbox.c.claimed_until.is_(None), outbox.c.claimed_until < now),
        or_(outbox.c.retry_at.is_(None), outbox.c.retry_at <= now),
    )


def _claimed(row: Any) -> Claimed:
    fields = {name: getattr(row, name) for name in OutboxRow.__dataclass_fields__}
    return Claimed(row.id, row.attempts, row.created_at, OutboxRow(**fields))
