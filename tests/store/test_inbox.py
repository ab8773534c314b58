"""The inbox on both databases: one transaction for the effects and the row, and one commit for a job."""

from __future__ import annotations

import asyncio

import pytest

from store.engine import Database
from store.inbox import claim

pytestmark = pytest.mark.machine


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
