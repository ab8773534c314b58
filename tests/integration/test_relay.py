"""The relay between a real database and a real broker: what commits is published, whatever dies in between."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from hareline import JobType, Producer, Settings
from producers.relay import Relay
from store.engine import Database
from store.tables import outbox
from tests.databases import opened
from tests.faults.proxy import Proxy
from tests.integration.topology_fixtures import take_all
from tests.lab import DEADLINE, Lab, Number, until
from tests.postgres import Cluster
from topology.errors import DatabaseUnavailable

pytestmark = pytest.mark.machine


@asynccontextmanager
async def relaying(settings: Settings, database: Database, lease: float = 30.0) -> AsyncIterator[Relay]:
    """A relay in this event loop, with a pool of its own."""
    relay = Relay(settings, Database(database.url.render_as_string(hide_password=False)), lease=lease)
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.drain()
        await asyncio.wait_for(task, DEADLINE)


async def commit(database: Database, job_type: JobType[Number], numbers: range, **options: str) -> list[str]:
    async with database.transaction() as connection:
        payloads = [Number(n=n) for n in numbers]
        return await Producer().enqueue_many(job_type, payloads, connection=connection, **options)


async def waiting(database: Database) -> int:
    async with database.reading() as connection:
        return (await connection.execute(select(func.count()).select_from(outbox))).scalar_one()


async def emptied(database: Database, within: float = 120.0) -> None:
    async def empty() -> bool:
        return await waiting(database) == 0

    await until(empty, "the outbox is empty", within)


async def job_type_of(lab: Lab) -> JobType[Number]:
    job_type = lab.job_type()
    await lab.apply(job_type)
    return job_type


async def arrived(lab: Lab, job_type: JobType[Number]) -> list[tuple[str, int]]:
    """(job id, n) of everything in the queue, in its order."""
    messages = await take_all(lab.control, lab.names.queue(job_type.name), await lab.ready(job_type))
    return [(m.header.properties.message_id, Number.model_validate_json(m.body).n) for m in messages]


async def test_what_commits_is_published_with_its_id_and_the_row_goes(lab: Lab, database: Database) -> None:
    job_type = await job_type_of(lab)
    async with relaying(lab.settings, database):
        ids = await commit(database, job_type, range(1200))
        await emptied(database)
    assert await arrived(lab, job_type) == list(zip(ids, range(1200), strict=True))


async def test_a_row_that_no_queue_takes_waits_with_its_reason_and_blocks_nobody(lab: Lab, database: Database) -> None:
    """It goes out by itself when the topology knows its type."""
    known, unknown = await job_type_of(lab), lab.job_type("unknown")
    async with relaying(lab.settings, database):
        await commit(database, unknown, range(1))
        await commit(database, known, range(20))

        async def only_one_is_left() -> bool:
            async with database.reading() as connection:
                rows = (await connection.execute(select(outbox.c.error, outbox.c.attempts))).all()
            return len(rows) == 1 and rows[0].attempts >= 1 and "topology plan" in rows[0].error

        await until(only_one_is_left, "the known are gone")
        await lab.apply(unknown)
        await emptied(database)
    assert len(await arrived(lab, unknown)) == 1


async def test_the_order_of_a_key_is_kept_with_several_relays(lab: Lab, database: Database) -> None:
    """Three relays, four keys, 400 rows each, committed one by one while they work."""
    job_type = await job_type_of(lab)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(relaying(lab.settings, database))
        for n in range(100):
            async with database.transaction() as connection:
                for key in range(4):
                    payload = Number(n=key * 1000 + n)
                    await Producer().enqueue(job_type, payload, connection=connection, ordering_key=f"key-{key}")
        await emptied(database)
    numbers = [n for _, n in await arrived(lab, job_type)]
    for key in range(4):
        assert [n % 1000 for n in numbers if n // 1000 == key] == list(range(100))


async def test_several_relays_publish_each_row_once(lab: Lab, database: Database) -> None:
    job_type = await job_type_of(lab)
    ids = await commit(database, job_type, range(3000))
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(relaying(lab.settings, database)) for _ in range(3)]
        await emptied(database)
    assert Counter(job_id for job_id, _ in await arrived(lab, job_type)) == Counter(ids)
    assert sum(relay.relayed for relay in relays) == 3000


async def test_rows_wait_for_a_broker_that_is_away(lab: Lab, database: Database) -> None:
    """Committed while nobody listens, cut off in the midst of it: all there in the end."""
    job_type = await job_type_of(lab)
    async with Proxy(lab.settings.broker_urls[0]) as proxy:
        await proxy.refuse()
        settings = replace(lab.settings, broker_urls=(proxy.url,))
        async with relaying(settings, database) as relay:
            ids = await commit(database, job_type, range(2000))
            await proxy.accept()
            for share in (1, 2, 3):
                await until(lambda: relay.relayed >= 400 * share, "some more are published", 120.0)  # noqa: B023
                proxy.cut()
            await emptied(database)
    assert {job_id for job_id, _ in await arrived(lab, job_type)} == set(ids)


async def test_relays_killed_again_and_again_lose_nothing(lab: Lab, database_url: str) -> None:
    """SIGKILL to real processes under load. What goes out twice carries the same id."""
    job_type = await job_type_of(lab)
    environment = lab.environment("tests.ledger_app:app", HARELINE_DATABASE_URL=database_url)
    program = (sys.executable, "-m", "tests.relay_process", "1.0")
    async with opened(database_url) as database:
        ids: list[str] = []
        for turn in range(5):
            process = await asyncio.create_subprocess_exec(*program, env=environment)
            before = await waiting(database)
            ids += await commit(database, job_type, range(turn * 1500, turn * 1500 + 1500))

            async def moving(full: int = before + 1500) -> bool:
                return await waiting(database) < full

            await until(moving, "rows are going", 60.0)
            process.kill()
            await process.wait()
        last = await asyncio.create_subprocess_exec(*program, env=environment)
        await emptied(database)
        last.terminate()
        assert await asyncio.wait_for(last.wait(), DEADLINE) == 0
    got = Counter(job_id for job_id, _ in await arrived(lab, job_type))
    assert set(got) == set(ids)


async def test_a_database_that_is_killed_is_waited_for(lab: Lab, cluster: Cluster, postgresql: Database) -> None:
    """The relay goes on by itself, woken by a new connection that listens."""
    job_type = await job_type_of(lab)
    async with relaying(lab.settings, postgresql, lease=1.0):
        ids = await commit(postgresql, job_type, range(1500))
        cluster.kill()
        cluster.start()
        await until(lambda: _commits(postgresql, job_type, ids), "the database takes rows again")
        await emptied(postgresql)
    assert set(ids) <= {job_id for job_id, _ in await arrived(lab, job_type)}


async def _commits(database: Database, job_type: JobType[Number], ids: list[str]) -> bool:
    try:
        ids += await commit(database, job_type, range(1500, 1600))
    except DatabaseUnavailable:
        return False
    return True
