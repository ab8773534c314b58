"""Schedulers that are killed while schedules fall due: each occurrence is in the outbox exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select

from store.engine import Database
from store.tables import occurrences, outbox, schedules
from tests.lab import until
from tests.store.test_scheduler import count, row

pytestmark = [pytest.mark.machine, pytest.mark.kills, pytest.mark.timeout(300)]

SOAK = bool(os.environ.get("HARELINE_SOAK"))
SCHEDULES = 100
KILLS = 20 if SOAK else 4
INTERVAL = 0.5
ROOT = Path(__file__).parents[2]


async def scheduler(url: str) -> Process:
    """``hareline scheduler`` as a process of its own."""
    environment = {**os.environ, "HARELINE_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "hareline", "scheduler", env=environment)


async def test_killed_schedulers_neither_double_nor_lose_an_occurrence(database: Database) -> None:
    """Two processes; one after the other is killed amid its rounds and replaced. Then all times must be there."""
    url = database.url.render_as_string(hide_password=False)
    start = datetime.now(UTC).replace(microsecond=0)
    rows = [row(f"s{n}", start, start_at=start, interval_seconds=INTERVAL, misfire="all") for n in range(SCHEDULES)]
    async with database.transaction() as connection:
        await connection.execute(insert(schedules), rows)
    processes = [await scheduler(url), await scheduler(url)]
    try:
        for _ in range(KILLS):
            before = await count(database)

            async def more(before: int = before) -> bool:
                return await count(database) >= before + 2 * SCHEDULES

            await until(more, "occurrences are issued")
            victim = processes.pop(0)
            victim.kill()
            await victim.wait()
            processes.append(await scheduler(url))
        # From here on nothing new falls due, and the rest of what did is made up for.
        end = datetime.now(UTC)

        async def caught_up() -> bool:
            async with database.reading() as connection:
                last = await connection.execute(select(func.min(schedules.c.next_run_at)))
                return last.scalar_one() > end

        await until(caught_up, "all that fell due is issued")
        for process in processes:
            process.send_signal(signal.SIGTERM)
            # The youngest one may not have come to handle signals yet.
            assert await asyncio.wait_for(process.wait(), 30) in {0, -signal.SIGTERM}
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
    await _books_balance(database, start)


async def _books_balance(database: Database, start: datetime) -> None:
    async with database.reading() as connection:
        found = (await connection.execute(select(occurrences))).all()
        published = (await connection.execute(select(outbox.c.job_id))).scalars().all()
        ends = (await connection.execute(select(schedules.c.id, schedules.c.next_run_at, schedules.c.runs))).all()
    assert max(Counter(published).values()) == 1
    assert sorted(published) == sorted(one.job_id for one in found)
    due = {(one.schedule_id, one.due_at) for one in found}
    step = timedelta(seconds=INTERVAL)
    expected = {(one.id, start + n * step) for one in ends for n in range((one.next_run_at - start) // step)}
    assert due == expected
    assert sum(one.runs for one in ends) == len(expected)
    print(f"{len(expected)} occurrences, {KILLS} kills: 0 lost, 0 twice")
