"""The pool of connections to PostgreSQL: kept after their use, and replaced where they died while they were idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from store import engine
from store.engine import Database
from topology.errors import DatabaseUnavailable

pytestmark = pytest.mark.machine

BACKEND = text("SELECT pg_backend_pid()")


@pytest.fixture
async def pool(postgresql_url: str) -> AsyncIterator[Database]:
    database = Database(postgresql_url, pool=2)
    yield database
    await database.close()


async def at_once(database: Database, count: int) -> set[int]:
    """The server processes of ``count`` connections that are in use at the same time."""
    all_here = asyncio.Barrier(count)

    async def one() -> int:
        async with database.transaction() as connection:
            await all_here.wait()
            return int((await connection.execute(BACKEND)).scalar_one())

    return set(await asyncio.gather(*(one() for _ in range(count))))


async def test_what_was_opened_under_load_is_used_again(pool: Database) -> None:
    opened = await at_once(pool, 4)
    assert len(opened) == 4
    assert await at_once(pool, 4) == opened


async def test_an_idle_connection_that_died_is_replaced(
    pool: Database, postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_FRESH", 0.0)  # as if it had been idle for long
    opened = await at_once(pool, 4)
    await ended(postgresql, opened)
    assert not opened & await at_once(pool, 4)


async def test_one_that_died_a_moment_ago_is_an_error_once(
    pool: Database, postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_FRESH", 3600.0)
    opened = await at_once(pool, 4)
    await ended(postgresql, opened)
    with pytest.raises(DatabaseUnavailable):
        await at_once(pool, 1)
    assert not opened & await at_once(pool, 4)


async def test_a_statement_commits_by_itself(pool: Database, postgresql: Database) -> None:
    async with pool.statements() as connection:
        await connection.execute(text("CREATE TABLE effects (n integer)"))
        async with postgresql.transaction() as elsewhere:
            await elsewhere.execute(text("INSERT INTO effects VALUES (1)"))
    with pytest.raises(ZeroDivisionError):
        async with pool.transaction() as connection:  # the next one to use it has a transaction again
            await connection.execute(text("DELETE FROM effects"))
            raise ZeroDivisionError
    async with pool.reading() as connection:
        assert (await connection.execute(text("SELECT n FROM effects"))).scalars().all() == [1]


async def ended(database: Database, backends: set[int]) -> None:
    """Ends server processes, and returns when they are gone."""
    async with database.reading() as connection:
        for backend in backends:
            ending = text("SELECT pg_terminate_backend(:pid, 10000)")
            assert (await connection.execute(ending, {"pid": backend})).scalar_one()
