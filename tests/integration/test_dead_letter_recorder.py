"""The recorder of dead letters with a real broker and a real database: each dead job one row, whatever is killed."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from consumers.dead_letter_recorder import DeadLetterRecorder
from hareline import App, DeadLetters, Permanent, Settings
from hareline.broker import Broker
from producers.dead_letters import DeadLetterFilters
from store.engine import Database
from store.tables import outbox
from tests.lab import DEADLINE, ROOT, Lab, clear_namespace, until

pytestmark = pytest.mark.machine

CHILD = """
import asyncio
from consumers.dead_letter_recorder import DeadLetterRecorder
from store.engine import Database
from topology.settings import Settings

async def main():
    settings = Settings.from_env()
    await DeadLetterRecorder(settings, Database.from_settings(settings)).run()

asyncio.run(main())
"""


@pytest.fixture
async def desk_lab(broker: Broker, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """A namespace of the test's own: what is in its dead-letter queue is this test's."""
    settings = replace(Settings.from_env(), namespace=f"t-{secrets.token_hex(3)}", report=False)
    async with Lab(settings, request.node.name) as lab:
        yield lab
    await clear_namespace(settings)


@asynccontextmanager
async def recording(lab: Lab, database: Database, **extra: str) -> AsyncIterator[DeadLetterRecorder]:
    recorder = DeadLetterRecorder(replace(lab.settings, extra=extra), database)
    task = asyncio.create_task(recorder.run())
    ready = asyncio.create_task(recorder.ready.wait())
    await asyncio.wait({task, ready}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    assert not task.done(), task.exception()
    try:
        yield recorder
    finally:
        recorder.drain()
        await asyncio.wait_for(task, DEADLINE)
        ready.cancel()


async def bury(lab: Lab, number: int, **properties: Any) -> None:
    """Puts messages straight into the dead-letter queue."""
    async with lab.control.channel("burying") as channel:
        from pamqp.commands import Basic  # noqa: PLC0415 - as the control connection's client wants it

        for n in range(number):
            given = {"message_id": f"job-{n}", "message_type": "gone", **properties}
            await channel.basic_publish(
                b"\xff\x00%d" % n, routing_key=lab.names.dlq, properties=Basic.Properties(**given)
            )


async def test_a_job_that_dies_is_a_row_with_all_that_is_known(desk_lab: Lab, postgresql: Database) -> None:
    """Its queue is empty then, and the alert was told once."""
    job_type = desk_lab.job_type()
    await desk_lab.apply(job_type)
    app = App(job_types=[job_type])

    @app.handler(job_type)
    async def handle(payload: Any) -> None:
        raise Permanent(f"never {payload.n}")

    producer = await desk_lab.producer()
    job_id = await producer.enqueue(job_type, {"n": 7})
    desk = DeadLetters(postgresql)
    alert = {"HARELINE_DEAD_ALERT": "0", "HARELINE_DEAD_ALERT_EMAIL": "ops@example.org"}
    async with recording(desk_lab, postgresql, **alert), desk_lab.working(app):

        async def is_there() -> bool:
            return await desk.count() == 1

        await until(is_there, "the row")

        async def mails() -> bool:
            async with postgresql.reading() as connection:
                return [row.job_type for row in await connection.execute(select(outbox))] == ["email.send"]

        await until(mails, "the mail")
    (found,) = (await desk.list()).items
    assert (found.job_id, found.type, found.queue) == (job_id, job_type.name, desk_lab.names.queue(job_type.name))
    assert (found.error, found.message, found.attempts, found.payload) == ("Permanent", "never 7", 1, {"n": 7})
    assert found.traceback
    assert "in handle" in found.traceback
    assert found.first_failed_at
    assert found.first_failed_at <= found.died_at <= found.recorded_at
    assert (await desk_lab.control.counts(desk_lab.names.dlq)).ready == 0  # type: ignore[union-attr]


async def test_what_the_broker_itself_dead_lettered_says_that_its_worker_was_lost(
    desk_lab: Lab, database: Database
) -> None:
    job_type = desk_lab.job_type(delivery_limit=1)
    await desk_lab.apply(job_type)
    await (await desk_lab.producer()).enqueue(job_type, {"n": 1})
    desk = DeadLetters(database)
    for _ in range(3):  # a worker that takes the job and dies

        async def ready() -> bool:
            counts = await desk_lab.control.counts(desk_lab.names.queue(job_type.name))
            dead = await desk_lab.control.counts(desk_lab.names.dlq)
            return bool((counts and counts.ready) or (dead and dead.ready))

        await until(ready, "the message to come back or die")
        async with desk_lab.control.channel("taking") as channel:
            await channel.basic_get(desk_lab.names.queue(job_type.name))
    async with recording(desk_lab, database):

        async def is_there() -> bool:
            return await desk.count() == 1

        await until(is_there, "the row")
    (found,) = (await desk.list()).items
    assert (found.reason, found.type) == ("worker-lost", job_type.name)
    assert found.queue == desk_lab.names.queue(job_type.name)


async def test_malformed_messages_are_kept_byte_for_byte(desk_lab: Lab, database: Database) -> None:
    await desk_lab.apply(desk_lab.job_type())
    odd = {"hareline-attempt": "x", "hareline-died-at": "never", "x-death": "odd", "nul": "a\0b"}
    await bury(desk_lab, 1, headers=odd, message_type=None, message_id=None)
    desk = DeadLetters(database)
    async with recording(desk_lab, database):

        async def is_there() -> bool:
            return await desk.count() == 1

        await until(is_there, "the row")
    (found,) = (await desk.list()).items
    assert (found.body, found.payload) == (b"\xff\x000", "\\xff\x000")
    assert await desk.replay(DeadLetterFilters()) == 1
    async with database.reading() as connection:
        assert (await connection.execute(select(outbox.c.body))).scalar_one() == found.body


async def test_a_killed_recorder_loses_and_doubles_nothing(
    desk_lab: Lab, postgresql: Database, postgresql_url: str, tmp_path: Path
) -> None:
    await desk_lab.apply(desk_lab.job_type())
    await bury(desk_lab, 2000)
    desk = DeadLetters(postgresql)
    environment = desk_lab.environment("", HARELINE_DATABASE_URL=postgresql_url, PYTHONPATH=str(ROOT))
    for wanted in (1, 1001):
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, env=environment, cwd=tmp_path)
        try:

            async def has_begun(wanted: int = wanted) -> bool:
                return await desk.count() >= wanted

            await until(has_begun, "the child to record")
        finally:
            child.send_signal(signal.SIGKILL)
            await child.wait()
    async with recording(desk_lab, postgresql), recording(desk_lab, postgresql):

        async def all_there() -> bool:
            counts = await desk_lab.control.counts(desk_lab.names.dlq)
            return await desk.count() == 2000 and counts is not None and counts.ready == 0

        await until(all_there, "all rows")
    assert await desk.count() == 2000


async def test_a_database_that_is_away_is_waited_for(desk_lab: Lab, postgresql: Database) -> None:
    """Read-only for a while, as a replica is after a failover; drained meanwhile, the messages stay."""
    await desk_lab.apply(desk_lab.job_type())
    name = postgresql.url.database
    alter = 'ALTER DATABASE "{}" SET default_transaction_read_only = {}'
    async with postgresql.transaction() as connection:
        await connection.execute(text(alter.format(name, "on")))
    away = Database(postgresql.url.render_as_string(hide_password=False))
    desk = DeadLetters(away)
    await bury(desk_lab, 5)
    async with recording(desk_lab, away):
        await asyncio.wait_for(_fetched(desk_lab), DEADLINE)
    await away.close()
    async with recording(desk_lab, away):
        await asyncio.wait_for(_fetched(desk_lab), DEADLINE)
        assert await desk.count() == 0
        async with postgresql.transaction() as connection:
            await connection.execute(text("SET TRANSACTION READ WRITE"))
            await connection.execute(text(alter.format(name, "off")))
        await away.close()

        async def all_there() -> bool:
            return await desk.count() == 5

        await until(all_there, "the rows")
    await away.close()


async def _fetched(lab: Lab) -> None:
    async def none_ready() -> bool:
        counts = await lab.control.counts(lab.names.dlq)
        return counts is not None and counts.ready == 0

    await until(none_ready, "the recorder to have them in hand")
