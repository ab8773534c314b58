"""``job.transaction()`` under a real worker: whatever is delivered how often, the effect is there once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from pika.spec import BasicProperties
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import create_async_engine

from consumers.outcome import Done
from consumers.retry import classify
from hareline import AlreadyDone, Job, JobType, Retry
from store.engine import Database
from store.tables import inbox
from tests.databases import opened
from tests.inbox_app import EFFECT, Effect
from tests.lab import ROOT, Lab, Number, until
from topology.envelope import PERSISTENT, Envelope, Message
from topology.events import JobEvent
from topology.publisher import Publisher
from topology.settings import Settings

pytestmark = pytest.mark.machine


@pytest.fixture
async def effects(database: Database) -> Database:
    async with database.transaction() as connection:
        await connection.execute(text("CREATE TABLE effects (n INTEGER NOT NULL)"))
    return database


async def counted(database: Database) -> Counter[int]:
    async with database.reading() as connection:
        return Counter((await connection.execute(text("SELECT n FROM effects"))).scalars().all())


async def noted(database: Database) -> int:
    async with database.reading() as connection:
        return len((await connection.execute(select(inbox))).all())


def with_database(lab: Lab, database: Database) -> Settings:
    return replace(lab.settings, database_url=database.url.render_as_string(hide_password=False))


async def publish(lab: Lab, job_type: JobType, ns: list[int]) -> None:
    """Messages whose ids are their numbers: equal numbers are deliveries of one job."""
    publisher = Publisher(lab.settings, "test of the inbox")
    publisher.start()
    try:
        for n in ns:
            properties = BasicProperties(delivery_mode=PERSISTENT, message_id=f"id-{n}")
            await publisher.send(Message(lab.names.jobs, job_type.name, properties, b'{"n":%d}' % n), 30.0)
    finally:
        await publisher.stop(5.0)


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_duplicates_at_the_same_time_have_one_effect_and_settle_as_done(
    lab: Lab, effects: Database, kind: str
) -> None:
    numbers = lab.job_type(retry=Retry(attempts=1))
    app = await lab.app(numbers)
    events: list[JobEvent] = []

    async def handle(number: Number, job: Job) -> None:
        async with job.transaction() as connection:
            await connection.execute(EFFECT, {"n": number.n})
            await asyncio.sleep(0.01)  # the others come meanwhile

    def handle_plainly(number: Number, job: Job) -> None:
        with job.transaction() as connection:
            connection.execute(EFFECT, {"n": number.n})

    app.handler(numbers)(handle if kind == "async" else handle_plainly)
    await publish(lab, numbers, [n for n in range(20) for _ in range(3)])
    async with lab.working(app, settings=with_database(lab, effects), observers=[events.append]):
        await until(lambda: len(events) == 60, "all are settled")
    assert await counted(effects) == Counter(range(20))
    assert {event.event for event in events} == {"job.done"}
    assert await noted(effects) == 20


async def test_a_failure_rolls_both_back_and_the_next_attempt_runs(lab: Lab, effects: Database) -> None:
    numbers = lab.job_type(retry=Retry(attempts=3, base=0.1, jitter=0.0))
    app = await lab.app(numbers)
    attempts: list[int] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        async with job.transaction() as connection:
            await connection.execute(EFFECT, {"n": number.n})
            attempts.append(job.attempt)
            if job.attempt == 1:
                raise ConnectionError

    async with lab.working(app, settings=with_database(lab, effects)) as worker:
        await publish(lab, numbers, [1])
        await until(lambda: attempts == [1, 2] and worker.running == 0, "the second attempt")
        await publish(lab, numbers, [1, 2])
        await until(lambda: attempts == [1, 2, 1] or len(attempts) > 3, "another job's first attempt")
        await until(lambda: len(attempts) == 4 and worker.running == 0, "and its second")
    assert await counted(effects) == Counter([1, 2])


async def test_several_transactions_of_one_job_have_names(lab: Lab, effects: Database) -> None:
    """The first is committed, the second fails: the next attempt goes round the first and does the second."""
    numbers = lab.job_type(retry=Retry(attempts=3, base=0.1, jitter=0.0))
    app = await lab.app(numbers)
    ended: list[int] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        for part in (1, 2):
            with suppress(AlreadyDone):
                async with job.transaction(name=f"part {part}") as connection:
                    await connection.execute(EFFECT, {"n": 10 * number.n + part})
                    if part == 2 and job.attempt == 1:
                        raise ConnectionError
        ended.append(job.attempt)

    await publish(lab, numbers, [1])
    async with lab.working(app, settings=with_database(lab, effects)):
        await until(lambda: ended == [2], "the second attempt")
    assert await counted(effects) == Counter([11, 12])


async def test_what_could_lose_the_second_half_of_a_job_is_dead_lettered(lab: Lab, effects: Database) -> None:
    """A named transaction that is not gone round, and two without names."""
    named, twice = lab.job_type("named", retry=Retry(attempts=2, base=0.1)), lab.job_type("twice")
    app = await lab.app(named, twice)

    @app.handler(named)
    async def handle(number: Number, job: Job) -> None:
        async with job.transaction(name="first"):
            pass
        raise ConnectionError

    @app.handler(twice)
    async def handle_twice(number: Number, job: Job) -> None:
        for _ in range(2):
            async with job.transaction():
                pass

    await publish(lab, named, [1])
    await publish(lab, twice, [2])
    async with lab.working(app, settings=with_database(lab, effects)):
        (one,) = await lab.dead_letters(named, 1)
        (other,) = await lab.dead_letters(twice, 1)
    assert "suppress(AlreadyDone)" in str(one.headers)
    assert "need names" in str(other.headers)


async def test_a_service_has_its_own_engine(lab: Lab, effects: Database, tmp_path: Path) -> None:
    numbers = lab.job_type()
    app = await lab.app(numbers)
    events: list[JobEvent] = []
    engine = create_async_engine(effects.engine.url)

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        async with job.transaction(engine=engine) as connection:
            await connection.execute(EFFECT, {"n": number.n})

    await publish(lab, numbers, [1, 1, 2])
    settings = replace(lab.settings, database_url=f"sqlite:///{tmp_path / 'unused.db'}")
    try:
        async with lab.working(app, settings=settings, observers=[events.append]):
            await until(lambda: len(events) == 3, "all are settled")
    finally:
        await engine.dispose()
    assert await counted(effects) == Counter([1, 2])
    assert not (tmp_path / "unused.db").exists()


@pytest.mark.kills
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_worker_killed_between_commit_and_acknowledgement(
    lab: Lab, effects: Database, tmp_path: Path, kind: str
) -> None:
    """The broker delivers the job again, and the next worker finds that it is done."""
    job_type = lab.job_type(payload=Effect)
    await lab.apply(job_type)
    fatal = tmp_path / "fatal"
    fatal.touch()
    jobs = [Effect(n=n, fatal=str(fatal) if n == 5 else "") for n in range(10)]
    await (await lab.producer()).enqueue_many(job_type, jobs)
    more = {
        "HARELINE_DATABASE_URL": with_database(lab, effects).database_url,
        "INBOX_TYPE": job_type.name,
        **({"INBOX_THREAD": "1"} if kind == "plain" else {}),
    }
    async with lab.child("worker", app="tests.inbox_app:app", cwd=tmp_path, **more) as first:
        assert await asyncio.wait_for(first.wait(), 60) != 0
    assert not fatal.exists()
    async with lab.child("worker", app="tests.inbox_app:app", cwd=tmp_path, **more) as second:

        async def all_there() -> bool:
            return len(await counted(effects)) == 10 and await lab.ready(job_type) == 0

        await until(all_there, "every effect is there")
        second.terminate()
        assert await asyncio.wait_for(second.wait(), 60) == 0
    assert await counted(effects) == Counter(range(10))
    assert await lab.ready(job_type) == 0


def test_a_worker_that_does_not_use_it_does_not_import_sqlalchemy() -> None:
    code = "import sys, hareline.roles, consumers.inbox; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


async def test_a_handler_can_be_called_without_a_worker(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARELINE_DATABASE_URL", sqlite_url)
    envelope = Envelope("id", "t", 1, 0, "id", None, {}, b"")
    async with Job(envelope).transaction() as connection:
        await connection.execute(text("SELECT 1"))
    with pytest.raises(AlreadyDone) as caught:
        async with Job(envelope).transaction():
            pytest.fail("ran twice")
    assert isinstance(classify(caught.value, Retry(unexpected="dead"), 1), Done)
    async with opened(sqlite_url) as database:
        assert await noted(database) == 1
