"""The recorder: from the reports on a real broker to rows in a real database, whatever dies in between."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from consumers.event_recorder import EventRecorder
from hareline import Job, Jobs, Permanent, Retry, Transient
from store.engine import Database
from store.tables import attempts, jobs, reporters
from tests.lab import Lab, Number, until
from tests.postgres import Cluster
from topology.envelope import notice
from topology.errors import TopologyError
from topology.publisher import Publisher

pytestmark = pytest.mark.machine


class Press:
    """Publishes batches as a reporter would."""

    def __init__(self, lab: Lab, publisher: Publisher) -> None:
        self._names, self._publisher = lab.names, publisher
        self.reporter = str(uuid.uuid4())

    async def send(self, seq: int, events: list[Any], key: str = "job.batch.done") -> None:
        head = {"v": 1, "reporter": self.reporter, "seq": seq, "dropped": 0, "groups": {"t": "g"}}
        await self.raw(json.dumps({**head, "events": events}).encode(), key)

    async def raw(self, body: bytes, key: str = "job.batch.done") -> None:
        await self._publisher.send(notice(self._names, key, body), 30)


@pytest.fixture
async def press(lab: Lab) -> AsyncIterator[Press]:
    await lab.apply()
    async with lab.control.channel("emptying") as channel:
        for queue in (lab.names.records, lab.names.records_failed):
            await channel.queue_purge(queue)
    publisher = Publisher(lab.settings, "press")
    publisher.start()
    await until(lambda: publisher.is_up, "the press is connected")
    yield Press(lab, publisher)
    await publisher.stop(1.0)


@asynccontextmanager
async def recording(lab: Lab, database: Database, **options: Any) -> AsyncIterator[EventRecorder]:
    recorder = EventRecorder(lab.settings, database, **options)
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        recorder.drain()
        await asyncio.wait_for(task, 60)


def done(number: int, start: int = 0) -> list[Any]:
    at = time.time()
    return [["job.done", f"j{n:06}", "t", 0, 1, at, 0.1, None, None] for n in range(start, start + number)]


async def count(database: Database, table: Any = jobs) -> int:
    async with database.reading() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


async def recorded(database: Database, number: int) -> None:
    async def there() -> bool:
        return await count(database) == number

    await until(there, f"{number} jobs are in the log")


async def left(lab: Lab) -> int:
    found = [await lab.control.counts(queue) for queue in (lab.names.records, lab.names.records_failed)]
    return sum(counts.ready for counts in found if counts is not None)


async def test_what_waited_is_caught_up_with_and_nonsense_loops_never(
    lab: Lab, press: Press, database: Database
) -> None:
    """Batches from before the recorder started, one twice, and bodies that are none."""
    for n in range(5):
        await press.send(n + 1, done(100, n * 100))
    await press.send(2, done(100, 100))
    for body in (b"", b"\xff", b"[]", b'{"v": 2}', b'{"v": 1, "events": [], "reporter": "r", "seq": true}'):
        await press.raw(body, "job.batch.failed")
    await press.send(
        7, [["job.dead", "bad", "t", 0, 1, time.time(), 0.1, "E", {"message": "m"}], 5], "job.batch.failed"
    )
    groups: dict[str, str] = {}
    async with recording(lab, database, groups=groups) as recorder:
        await recorded(database, 501)
        await until(lambda: recorder.refused == 5, "nonsense is counted")
    assert groups == {"t": "g"}
    assert await left(lab) == 0
    async with database.reading() as connection:
        row = (await connection.execute(select(reporters))).one()
    assert (row.highest, row.received) == (7, 6)
    job = await Jobs(database).get("bad")
    assert (job.status, job.group, job.error, job.attempts[0].error_message) == ("dead", "g", "E", "m")


async def test_missing_queues_are_named_with_the_cure(lab: Lab, postgresql: Database) -> None:
    recorder = EventRecorder(replace(lab.settings, namespace="nothing-here"), postgresql)
    with pytest.raises(TopologyError, match="hareline topology apply"):
        await asyncio.wait_for(recorder.run(), 60)


async def test_two_recorders_at_once(lab: Lab, press: Press, postgresql: Database) -> None:
    """They meet on the same jobs, and block each other for moments at most."""
    async with recording(lab, postgresql), recording(lab, postgresql):
        for n in range(30):
            queued = [["job.queued", *row[1:4], 0, row[5] - 1, None, None, {"payload": "{}"}] for row in done(200)]
            await press.send(2 * n + 1, queued)
            await press.send(2 * n + 2, done(200))
        await recorded(postgresql, 200)
        await until(lambda: _received(postgresql, 60), "all batches are counted")
    page = await Jobs(postgresql).list(limit=1000)
    assert {(job.status, job.payload) for job in page.items} == {("done", "{}")}


async def _received(database: Database, number: int) -> bool:
    async with database.reading() as connection:
        return (await connection.execute(select(func.sum(reporters.c.received)))).scalar_one() == number


async def test_a_recorder_that_is_killed_and_started_again(
    lab: Lab, press: Press, postgresql: Database, postgresql_url: str, tmp_path: Path
) -> None:
    """Every batch is counted once, and every job is there."""
    environment = {"HARELINE_DATABASE_URL": postgresql_url}
    sent = 0
    for round_ in range(4):
        async with lab.child("recorder", app="", cwd=tmp_path, **environment) as process:
            for _ in range(20):
                await press.send(sent + 1, done(500, sent * 500))
                sent += 1

            async def some(least: int = round_ * 20 * 500) -> bool:
                return await count(postgresql) > least

            await until(some, "it has begun on this round")
            process.send_signal(signal.SIGKILL)
            await process.wait()
    async with lab.child("recorder", app="", cwd=tmp_path, **environment) as process:
        await recorded(postgresql, sent * 500)
        await until(lambda: _received(postgresql, sent), "all batches are counted")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    assert await count(postgresql, attempts) == sent * 500
    assert await left(lab) == 0


@pytest.mark.kills
async def test_a_database_that_is_killed_and_comes_back(
    lab: Lab, press: Press, cluster: Cluster, postgresql: Database
) -> None:
    """Nothing is acknowledged meanwhile; the recorder goes on by itself."""
    async with recording(lab, postgresql):
        await press.send(1, done(10))
        await recorded(postgresql, 10)
        await asyncio.to_thread(cluster.kill)
        try:
            for n in range(1, 21):
                await press.send(n + 1, done(10, n * 10))
        finally:
            # In this thread: the server ends with the thread that started it.
            cluster.start()
        await recorded(postgresql, 210)
        await until(lambda: _received(postgresql, 21), "all batches are counted")


@pytest.mark.kills
async def test_a_stop_while_the_database_is_away_gives_everything_back(
    lab: Lab, press: Press, cluster: Cluster, postgresql: Database
) -> None:
    """It ends within its patience; what was not committed waits in the queue for the next recorder."""
    await asyncio.to_thread(cluster.kill)
    try:
        async with recording(lab, postgresql) as recorder:
            await recorder.ready.wait()
            await press.send(1, done(10))

            async def taken() -> bool:
                return await left(lab) == 0

            await until(taken, "the batch is with the recorder")

        async def back() -> bool:
            return await left(lab) == 1

        await until(back, "the batch is back")
    finally:
        cluster.start()
    async with recording(lab, postgresql):
        await recorded(postgresql, 10)


async def test_a_batch_that_the_database_refuses_is_dropped_alone(lab: Lab, press: Press, postgresql: Database) -> None:
    """Its neighbours in the same transaction are recorded, and it does not come back."""
    async with postgresql.transaction() as connection:
        await connection.execute(text("ALTER TABLE hareline_jobs ADD CHECK (type <> 'poison')"))
    await press.send(1, done(10))
    await press.send(2, [["job.done", "p", "poison", 0, 1, time.time(), 0.1, None, None]])
    await press.send(3, done(10, 10))
    async with recording(lab, postgresql) as recorder:
        await recorded(postgresql, 20)
        await until(lambda: recorder.refused == 1, "the refusal is counted")
    assert await left(lab) == 0


async def test_from_enqueue_to_the_log(lab: Lab, press: Press, postgresql: Database) -> None:
    """A real producer and a real worker: every outcome with its attempts."""
    numbers = lab.job_type(retry=Retry(attempts=3, base=0.1, jitter=0.0), group="sums")
    app = await lab.app(numbers)

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        if number.n == 1 and job.attempt == 1:
            raise Transient("once")
        if number.n == 2:
            raise Permanent("never")

    settings = replace(lab.settings, report=True)
    log = Jobs(postgresql)
    async with recording(lab, postgresql), lab.working(app, settings=settings):
        producer = await lab.producer(report=True)
        ids = await producer.enqueue_many(numbers, [Number(n=n) for n in range(3)])
        later = await producer.enqueue(numbers, Number(n=4), delay=3600)

        async def all_told() -> bool:
            found = {job.id: job for job in (await log.list(type=numbers.name)).items}
            ended = [job for job in found.values() if job.finished_at and job.accepted_at]
            return len(ended) == 3 and later in found

        await until(all_told, "all is in the log")
    found = [await log.get(job_id) for job_id in ids]
    assert [job.status for job in found] == ["done", "done", "dead"]
    assert [[a.outcome for a in job.attempts] for job in found] == [["done"], ["retrying", "done"], ["dead"]]
    assert {(job.group, json.loads(job.payload or "")["n"]) for job in found} == {("sums", 0), ("sums", 1), ("sums", 2)}
    assert await log.status(later) == "scheduled"
