"""What has been kept long enough is removed, on both databases: nothing else, whoever is killed or cleans as well."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from pika.spec import BasicProperties
from sqlalchemy import func, insert, select, text

from consumers.obituary import letter_of
from consumers.rounds import Rounds
from consumers.upkeep import clean_up
from hareline import JobType, Schedule, Schedules
from hareline.cli import cli
from producers.reconcile import reconcile
from store import dead_letters as letters
from store import joblog, sagalog
from store.engine import Database
from store.joblog import Merged
from store.retention import Retention, clean
from store.sagalog import SagaNews
from store.tables import (
    answers,
    attempts,
    dead_letters,
    inbox,
    jobs,
    keys,
    occurrences,
    saga_joins,
    saga_steps,
    sagas,
    schedules,
    webhooks,
)  # fmt: skip
from tests.databases import opened
from tests.lab import DEADLINE, ROOT, until
from topology.settings import Settings
from topology.spec import Names

pytestmark = pytest.mark.machine

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
DAYS = Retention.of(Settings())
TABLES = {
    "jobs": jobs, "sagas": sagas, "saga_joins": saga_joins, "dead_letters": dead_letters, "inbox": inbox, "keys": keys,
    "occurrences": occurrences, "schedules": schedules, "webhooks": webhooks, "answers": answers,
}  # fmt: skip

CHILD = """
import asyncio, sys
from datetime import datetime
from store.engine import Database
from store.retention import Retention, clean
from topology.settings import Settings

async def main():
    database = Database.from_settings(Settings.from_env())
    now = datetime.fromisoformat(sys.argv[1])
    told = lambda what, removed: print(what, removed, flush=True)
    await clean(database, Retention.of(Settings()), batch=5, progress=told, clock=lambda: now)

asyncio.run(main())
"""


async def rows(database: Database) -> dict[str, int]:
    async with database.reading() as connection:
        return {
            name: (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for name, table in TABLES.items()
        }


async def aged(database: Database, count: int, days: float, now: datetime = NOW) -> None:
    """Rows of every kind, ``days`` old."""
    moment = now - timedelta(days=days)
    names = [f"{days}-{n}" for n in range(count)]
    headers = {"hareline-died-at": moment.isoformat()}
    dead = [
        letter_of(Names("t"), BasicProperties(message_id=name, type="t", headers=headers), b"{}", now, {})
        for name in names
    ]
    merged = Merged.empty()
    merged.add([["job.done", name, "t", 0, 1, moment.timestamp(), 1.0, None, None] for name in names], {})
    seen = [{"job_id": name, "name": "", "job_type": "t", "handled_at": moment} for name in names]
    known = [{"job_id": name, "job_type": "t", "created_at": moment} for name in names]
    issued = [{"schedule_id": name, "due_at": moment, "job_id": name, "issued_at": moment} for name in names]
    joined = [{"saga_id": n, "stage": 0, "branch": 0, "outcome": "{}", "settled_at": moment} for n in names]
    news = SagaNews()
    detail = {"step": "0.0", "type": "t", "began": moment.timestamp(), "itinerary": '[[["t", null]]]'}
    news.add([["saga.step", name, "s", 0, 1, moment.timestamp(), 1.0, None, detail] for name in names])
    async with database.transaction() as connection:
        await letters.record(connection, dead, now)
        await joblog.merge(connection, merged)
        await sagalog.merge(connection, news)
        for table, values in ((inbox, seen), (keys, known), (occurrences, issued), (saga_joins, joined)):
            await connection.execute(insert(table), values)


async def test_what_is_older_goes_in_batches_and_nothing_else(database: Database) -> None:
    await aged(database, 7, days=31)
    await aged(database, 2, days=8)
    await aged(database, 1, days=6)
    told: list[tuple[str, int]] = []
    removed = await clean(database, DAYS, batch=3, progress=lambda *step: told.append(step), clock=lambda: NOW)
    gone = {"jobs": 9, "sagas": 9, "saga_joins": 9, "dead_letters": 7, "inbox": 9, "keys": 9, "occurrences": 9}
    assert removed == dict.fromkeys(TABLES, 0) | gone
    assert [step for step in told if step[0] == "dead_letters"] == [("dead_letters", n) for n in (3, 6, 7)]
    async with database.reading() as connection:
        assert len((await connection.execute(select(saga_steps))).all()) == 1
    kept = {"jobs": 1, "sagas": 1, "saga_joins": 1, "dead_letters": 3, "inbox": 1, "keys": 1, "occurrences": 1}
    assert await rows(database) == dict.fromkeys(TABLES, 0) | kept
    assert set((await clean(database, DAYS, clock=lambda: NOW)).values()) == {0}


async def test_dead_letters_go_whatever_became_of_them(database: Database) -> None:
    await aged(database, 3, days=31)
    async with database.transaction() as connection:
        first, second, _ = (await connection.execute(select(dead_letters.c.id))).scalars()
        await letters.discard(connection, [first])
        await connection.execute(dead_letters.update().where(dead_letters.c.id == second).values(status="replayed"))
    assert (await clean(database, DAYS, clock=lambda: NOW))["dead_letters"] == 3


async def test_schedules_go_a_month_after_they_ended(database: Database) -> None:
    """Not those that can still run, however old; and not what code declares: that it was cancelled must be known."""
    long_ago = Schedules(database, clock=lambda: NOW - timedelta(days=31))
    job = JobType("t", dict[str, int])
    alive = await long_ago.schedule_every(job, {"n": 1}, every=60)
    await long_ago.cancel((await long_ago.schedule_every(job, {"n": 2}, every=60)).id)
    await reconcile(database, [Schedule(name="s", job_type=job, payload={"n": 3}, every=60)], now=NOW)
    await long_ago.cancel("s")
    lately = Schedules(database, clock=lambda: NOW - timedelta(days=29))
    ended = await lately.cancel((await lately.schedule_every(job, {"n": 4}, every=60)).id)
    assert (await clean(database, DAYS, clock=lambda: NOW))["schedules"] == 1
    left = (await lately.list_actions()).items
    assert {record.name or record.id for record in left} == {alive.id, ended.id, "s"}


async def test_jobs_are_kept_by_how_they_ended(database: Database) -> None:
    """Done ones for 7 days, dead ones for 30, with their attempts; what is due later stays."""

    def days_ago(days: float) -> float:
        return (NOW - timedelta(days=days)).timestamp()

    merged = Merged.empty()
    merged.add(
        [
            *(["job.done", f"old{n}", "t", 0, 1, days_ago(8), 1.0, None, None] for n in range(1200)),
            ["job.done", "new", "t", 0, 1, days_ago(6), 1.0, None, None],
            ["job.dead", "dead-new", "t", 0, 1, days_ago(29), 1.0, "E", None],
            ["job.dead", "dead-old", "t", 0, 1, days_ago(31), 1.0, "E", None],
            ["job.queued", "silent", "t", 0, 0, days_ago(31), None, None, None],
            ["job.queued", "later", "t", 0, 0, days_ago(31), None, None, {"due_at": days_ago(-5)}],
        ],
        {},
    )
    async with database.transaction() as connection:
        await joblog.merge(connection, merged)
    assert (await clean_up(database, DAYS, clock=lambda: NOW))["jobs"] == 1202
    async with database.reading() as connection:
        assert set((await connection.execute(select(jobs.c.id))).scalars()) == {"new", "dead-new", "later"}
        assert set((await connection.execute(select(attempts.c.job_id))).scalars()) == {"new", "dead-new"}


async def test_a_retention_longer_than_time_keeps_everything(database: Database) -> None:
    await aged(database, 1, days=31)
    assert set((await clean(database, Retention.for_all(1e15), clock=lambda: NOW)).values()) == {0}


@pytest.mark.kills
async def test_a_killed_clean_up_is_gone_on_with(database: Database, database_url: str) -> None:
    """Every row is there in full or gone in full, and the next one removes the rest."""
    await aged(database, 60, days=31)
    environment = {**os.environ, "HARELINE_DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, NOW.isoformat(), env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    await asyncio.wait_for(child.stdout.readline(), DEADLINE)
    child.send_signal(signal.SIGKILL)
    await child.wait()
    async with database.reading() as connection:
        orphans = select(func.count()).where(attempts.c.job_id.not_in(select(jobs.c.id)))
        assert (await connection.execute(orphans)).scalar_one() == 0
    left = await rows(database)
    assert left["jobs"] < 60
    assert await clean(database, DAYS, clock=lambda: NOW) == left
    assert set((await rows(database)).values()) == {0}


async def test_two_at_once_share_the_work(database: Database, database_url: str) -> None:
    await aged(database, 60, days=31)
    async with opened(database_url) as other:
        one, two = await asyncio.gather(
            clean(database, DAYS, batch=7, clock=lambda: NOW), clean(other, DAYS, batch=7, clock=lambda: NOW)
        )
        await clean(database, DAYS, clock=lambda: NOW)  # what one held while the other looked
    assert all(one[name] + two[name] <= 60 for name in TABLES)
    assert set((await rows(database)).values()) == {0}


async def test_the_recorders_part_waits_for_its_database(postgresql: Database) -> None:
    """Read-only at first, as a replica is after a failover."""
    await aged(postgresql, 3, days=31)
    name = postgresql.url.database
    alter = 'ALTER DATABASE "{}" SET default_transaction_read_only = {}'
    async with postgresql.transaction() as connection:
        await connection.execute(text(alter.format(name, "on")))
    async with opened(postgresql.url.render_as_string(hide_password=False)) as away:
        part = Rounds(lambda: clean_up(away, DAYS, clock=lambda: NOW), 0.01)
        task = asyncio.create_task(part.run())
        assert not (await asyncio.wait({task}, timeout=0.3))[0]
        async with postgresql.transaction() as connection:
            await connection.execute(text("SET TRANSACTION READ WRITE"))
            await connection.execute(text(alter.format(name, "off")))
        await away.engine.dispose()  # the setting counts for new connections

        async def all_gone() -> bool:
            return set((await rows(postgresql)).values()) == {0}

        await until(all_gone, "everything old is gone")
        part.drain()
        await asyncio.wait_for(task, DEADLINE)


def test_the_command_cleans_by_the_settings_or_by_one_age(database_url: str) -> None:
    async def old() -> None:
        async with opened(database_url) as database:
            await aged(database, 2, days=10, now=datetime.now(UTC))

    asyncio.run(old())
    environment = {"HARELINE_DATABASE_URL": database_url}

    def run(*arguments: str, **more: str) -> dict[str, int]:
        done = CliRunner().invoke(cli, ["db", "clean", "--json", *arguments], env=environment | more)
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    none = dict.fromkeys(TABLES, 0)
    assert run("--older-than", "30d") == none
    longer = {"HARELINE_JOBS_DONE_RETENTION": "20d", "HARELINE_INBOX_RETENTION": "20d"}
    assert run(**longer) == none
    assert run(**longer, HARELINE_DEAD_RETENTION="9d") == none | {"dead_letters": 2}
    assert run("--older-than", "9d", **longer) == dict.fromkeys(TABLES, 2) | {
        "dead_letters": 0,
        "schedules": 0,
        "webhooks": 0,
        "answers": 0,
    }
