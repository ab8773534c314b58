"""Transactions of one worker on SQLite, where only one can write at a time."""

from __future__ import annotations

import asyncio

from sqlalchemy import event, text

from consumers.inbox import Inbox, Transaction
from consumers.saga_view import Kept
from topology.settings import Settings


async def test_on_sqlite_the_transactions_of_one_worker_wait_in_line(sqlite_url: str) -> None:
    """One connection is enough: of many that all try for the file's lock, some may not get it in time."""
    inbox, connections = Inbox(Settings(database_url=sqlite_url), 10), []
    event.listen(inbox.engine.sync_engine, "connect", lambda *_: connections.append(1))

    async def write(number: int) -> None:
        async with Transaction(inbox, Kept(f"job-{number}", "job"), "", None):
            pass

    try:
        await asyncio.gather(*map(write, range(40)))
        async with inbox.engine.begin() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM hareline_inbox")) == 40
    finally:
        await inbox.close()
    assert len(connections) == 1
