"""Claims: a row is one relay's until its lease is over, and keys keep their order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from store import claims, outbox
from store.engine import Database
from store.outbox import OutboxRow

pytestmark = pytest.mark.machine

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def row(n: int, key: str | None = None) -> OutboxRow:
    return OutboxRow(f"job-{n}", "numbers", b"{}", "enqueue", ordering_key=key)


async def add(database: Database, *rows: OutboxRow) -> None:
    async with database.transaction() as connection:
        await outbox.add(connection, rows)


async def claim(database: Database, relay: str, limit: int = 9, now: datetime = NOW) -> list[claims.Claimed]:
    async with database.transaction() as connection:
        return await claims.claim(connection, relay, limit, 30.0, now)


def names(rows: list[claims.Claimed]) -> list[str]:
    return [claimed.row.job_id for claimed in rows]


async def test_a_claim_is_one_relays_until_its_lease_is_over(database: Database) -> None:
    await add(database, row(1), row(2), row(3))
    assert names(await claim(database, "a", 2)) == ["job-1", "job-2"]
    assert names(await claim(database, "b")) == ["job-3"]
    assert await claim(database, "c") == []
    assert names(await claim(database, "c", now=NOW + timedelta(seconds=31))) == ["job-1", "job-2", "job-3"]


async def test_a_key_is_held_back_behind_its_first(database: Database) -> None:
    """While another relay has an earlier row, and while that one waits for its next try."""
    await add(database, row(1, "k"), row(2, "k"), row(3, "other"), row(4))
    [first] = await claim(database, "a", 1)
    assert names(await claim(database, "b")) == ["job-3", "job-4"]
    async with database.transaction() as connection:
        await claims.failed(connection, "a", first, "no queue takes it", NOW + timedelta(seconds=5))
    assert await claim(database, "b") == []
    later = NOW + timedelta(seconds=6)
    assert [(c.row.job_id, c.attempts) for c in await claim(database, "b", now=later)] == [("job-1", 1), ("job-2", 0)]


async def test_what_is_released_may_be_claimed_at_once_and_only_by_its_relay(database: Database) -> None:
    await add(database, row(1))
    [mine] = await claim(database, "a")
    async with database.transaction() as connection:
        await claims.release(connection, "b", [mine.id])
    assert await claim(database, "b") == []
    async with database.transaction() as connection:
        await claims.release(connection, "a", [mine.id])
    assert names(await claim(database, "b")) == ["job-1"]
