"""The inbox on both databases: one transaction for the effects and the row, and one commit for a job."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy import func, insert, select

from hareline.cli import cli
from store.engine import Database
from store.inbox import claim, clean
from store.tables import inbox, keys, occurrences
from tests.databases import opened

pytestmark = pytest.mark.machine

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)


async def rows(database: Database) -> dict[str, int]:
    async with database.reading() as connection:
        return {
            table.name: (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (inbox, keys, occurrences)
        }


async def test_a_job_is_claimed_once_for_each_name(database: Database) -> None:
    async with database.transaction() as connection:
        assert await claim(connection, "1", "t")
    async with database.transaction() as connection:
        assert not await claim(connection, "1", "t")
        assert await claim(connection, "1", "t", "other")
        assert await claim(connection, "2", "t")


async def test_a_rolled_back_claim_never_was(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:
            assert await claim(connection, "1", "t")
            raise ZeroDivisionError
    async with database.transaction() as connection:
        assert await claim(connection, "1", "t")


async def test_of_two_at_the_same_time_the_second_waits_and_then_knows(database: Database) -> None:
    begun = asyncio.Event()

    async def second() -> bool:
        await begun.wait()
        async with database.transaction() as connection:
            return await claim(connection, "1", "t")

    task = asyncio.create_task(second())
    async with database.transaction() as connection:
        assert await claim(connection, "1", "t")
        begun.set()
        done, _ = await asyncio.wait({task}, timeout=0.3)
        assert not done
    assert await task is False


async def aged(database: Database, count: int, days: float) -> None:
    moment = NOW - timedelta(days=days)
    async with database.transaction() as connection:
        for n in range(count):
            key = f"{days}-{n}"
            await connection.execute(insert(inbox).values(job_id=key, name="", job_type="t", handled_at=moment))
            await connection.execute(insert(keys).values(job_id=key, job_type="t", created_at=moment))
            issued = {"due_at": moment, "job_id": key, "issued_at": moment}
            await connection.execute(insert(occurrences).values(schedule_id=key, **issued))


async def test_cleaning_removes_what_is_older_in_batches_and_nothing_else(database: Database) -> None:
    await aged(database, 7, days=8)
    await aged(database, 2, days=6)
    told: list[tuple[str, int]] = []
    removed = await clean(database, batch=3, progress=lambda *step: told.append(step), now=lambda: NOW)
    assert removed == {"inbox": 7, "keys": 7, "occurrences": 7}
    assert told[:3] == [("inbox", 3), ("inbox", 6), ("inbox", 7)]
    assert set((await rows(database)).values()) == {2}
    assert set((await clean(database, now=lambda: NOW)).values()) == {0}


def test_the_command_cleans_and_says_what(database_url: str) -> None:
    async def old() -> None:
        async with opened(database_url) as database:
            await aged(database, 2, days=(NOW - datetime.now(UTC)).days + 10)

    asyncio.run(old())
    environment = {"HARELINE_DATABASE_URL": database_url}
    kept = CliRunner().invoke(cli, ["db", "clean", "--older-than", "30d", "--json"], env=environment)
    assert (kept.exit_code, kept.stdout.strip()) == (0, '{"inbox": 0, "keys": 0, "occurrences": 0}')
    short = CliRunner().invoke(cli, ["db", "clean"], env={**environment, "HARELINE_INBOX_RETENTION": "5d"})
    assert (short.exit_code, short.stdout.strip()) == (0, "removed 2 of inbox, 2 of keys, 2 of occurrences")
