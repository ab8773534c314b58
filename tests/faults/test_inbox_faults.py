"""The database goes away inside a handler's transaction: the job is retried, and its effect is there once."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest
from sqlalchemy import text

from hareline import Job, Retry
from store.engine import Database
from tests.inbox_app import EFFECT
from tests.lab import Lab, Number, until
from tests.postgres import Cluster
from topology.events import DONE, RETRYING, JobEvent

pytestmark = pytest.mark.machine


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_the_connection_is_cut_between_a_statement_and_its_commit(
    lab: Lab, postgresql: Database, cluster: Cluster, kind: str
) -> None:
    """The handler learns of it at its commit. Nothing of the first attempt stays, neither effect nor inbox row."""
    async with postgresql.transaction() as connection:
        await connection.execute(text("CREATE TABLE effects (n INTEGER NOT NULL)"))
    numbers = lab.job_type(retry=Retry(attempts=3, base=0.1, jitter=0.0))
    app = await lab.app(numbers)
    events: list[JobEvent] = []
    pid = text("SELECT pg_backend_pid()")

    def cut(backend: int) -> None:
        with psycopg.connect(cluster.url("postgres"), autocommit=True) as superuser:
            superuser.execute("SELECT pg_terminate_backend(%s, 10000)", [backend])

    async def handle(number: Number, job: Job) -> None:
        async with job.transaction() as connection:
            await connection.execute(EFFECT, {"n": number.n})
            if job.attempt == 1:
                cut((await connection.execute(pid)).scalar_one())

    def handle_plainly(number: Number, job: Job) -> None:
        with job.transaction() as connection:
            connection.execute(EFFECT, {"n": number.n})
            if job.attempt == 1:
                cut(connection.execute(pid).scalar_one())

    app.handler(numbers)(handle if kind == "async" else handle_plainly)
    settings = replace(lab.settings, database_url=postgresql.url.render_as_string(hide_password=False))
    async with lab.working(app, settings=settings, observers=[events.append]):
        await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(5)])
        await until(lambda: [event.event for event in events].count(DONE) == 5, "all are done")
    assert [event.event for event in events].count(RETRYING) == 5
    assert {event.error for event in events if event.event == RETRYING} == {"DatabaseUnavailable"}
    async with postgresql.reading() as connection:
        found = (await connection.execute(text("SELECT n FROM effects ORDER BY n"))).scalars().all()
        rows = (await connection.execute(text("SELECT count(*) FROM hareline_inbox"))).scalar_one()
    assert (found, rows) == ([0, 1, 2, 3, 4], 5)
