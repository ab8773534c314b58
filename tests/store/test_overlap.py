"""What overlap=skip and buffer_one make of a job whose end nobody reports: no schedule stands still for ever."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import update

from producers.scheduler import Scheduler
from store.engine import Database
from store.schedule_queue import SILENCE
from store.tables import jobs, outbox
from tests.store.test_scheduler import HOUR, MINUTE, NEW_YEAR, SECOND, Clock, add, ended, of

pytestmark = pytest.mark.machine

TIMEOUT = 600.0
PATIENCE = timedelta(seconds=SILENCE + TIMEOUT)


async def runs(database: Database) -> int:
    return int((await of(database)).runs)


async def runs_at(database: Database, now: datetime) -> int:
    """How often it has run after the rounds of that time: what is due, and then what is released."""
    await Scheduler(database, clock=Clock(now)).issue_due()
    return await runs(database)


async def published(database: Database) -> None:
    """The relay has emptied the outbox."""
    async with database.transaction() as connection:
        await connection.execute(outbox.delete())


@pytest.mark.parametrize("overlap", ["skip", "buffer_one"])
async def test_without_a_job_log_a_job_counts_as_running_for_its_timeout(database: Database, overlap: str) -> None:
    """Reports off, no recorder, or a type that is not recorded: a run cannot last longer than that."""
    await add(database, overlap=overlap, timeout=TIMEOUT)
    assert await runs_at(database, NEW_YEAR) == 1
    await published(database)
    assert await runs_at(database, NEW_YEAR + timedelta(seconds=TIMEOUT) - SECOND) == 1
    assert await runs_at(database, NEW_YEAR + timedelta(seconds=TIMEOUT) + MINUTE) == 2


async def test_a_job_in_the_outbox_is_waited_for_however_long(database: Database) -> None:
    """It has not even been published."""
    await add(database, overlap="skip", timeout=TIMEOUT)
    assert await runs_at(database, NEW_YEAR) == 1
    assert await runs_at(database, NEW_YEAR + 48 * HOUR) == 1
    await published(database)
    assert await runs_at(database, NEW_YEAR + 48 * HOUR + MINUTE) == 2


@pytest.mark.parametrize("overlap", ["skip", "buffer_one"])
@pytest.mark.parametrize("status", ["queued", "running", "retrying", "scheduled"])
async def test_a_report_of_the_end_that_was_lost_blocks_for_a_while(
    database: Database, overlap: str, status: str
) -> None:
    """An hour without news, beyond its timeout and beyond the time it is due: then the job counts as ended."""
    await add(database, overlap=overlap, timeout=TIMEOUT)
    assert await runs_at(database, NEW_YEAR) == 1
    await ended(database, status)  # the log heard of it last at the new year
    assert await runs_at(database, NEW_YEAR + PATIENCE - 2 * SECOND) == 1
    assert await runs_at(database, NEW_YEAR + PATIENCE + 2 * MINUTE) == 2


async def test_a_job_that_is_due_later_is_waited_for(database: Database) -> None:
    """A retry in three hours is no silence."""
    await add(database, overlap="skip", timeout=TIMEOUT)
    assert await runs_at(database, NEW_YEAR) == 1
    await ended(database, "retrying")
    async with database.transaction() as connection:
        await connection.execute(update(jobs).values(due_at=NEW_YEAR + 3 * HOUR))
    assert await runs_at(database, NEW_YEAR + 3 * HOUR + PATIENCE - 2 * MINUTE) == 1
    assert await runs_at(database, NEW_YEAR + 3 * HOUR + PATIENCE + 2 * MINUTE) == 2


async def test_a_long_job_that_is_heard_of_is_waited_for(database: Database) -> None:
    """As long as its timeout allows, and longer while there is news."""
    await add(database, overlap="skip", timeout=12 * 3600.0)
    assert await runs_at(database, NEW_YEAR) == 1
    await ended(database, "running")
    assert await runs_at(database, NEW_YEAR + 12 * HOUR) == 1
    async with database.transaction() as connection:
        await connection.execute(update(jobs).values(updated_at=NEW_YEAR + 12 * HOUR))
    assert await runs_at(database, NEW_YEAR + 24 * HOUR) == 1
    await ended(database)
    assert await runs_at(database, NEW_YEAR + 24 * HOUR + 2 * MINUTE) == 2
