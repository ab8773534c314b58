"""All roles at once on a database that gets into trouble while they work: all wait, and lose and double nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import func, insert, select, text

from consumers.recorder import Recorder
from hareline import App, Job, JobType, Permanent, Producer, Retry, Settings
from hareline.broker import Broker
from producers.relay import Relay
from producers.scheduler import Scheduler
from store.engine import Database
from store.tables import dead_letters, jobs, outbox, schedules
from tests.databases import opened
from tests.faults import outages
from tests.faults.outages import Outage, Place
from tests.faults.proxy import Proxy
from tests.lab import DEADLINE, Lab, clear_namespace, until
from tests.postgres import Cluster
from tests.store.test_scheduler import row
from topology.settings import Settings as AllSettings

pytestmark = [pytest.mark.machine, pytest.mark.timeout(300)]

MANY = 20
PADDING = "x" * 20_000
"""So large that a file which may not grow cannot take it."""
EFFECT = text("INSERT INTO effects (n, padding) VALUES (:n, :padding)")
WAITS = ("the relay", "the scheduler", "the recorder", "the dead-letter recorder")
DEADLY = 1_000
"""Jobs with this number and above die."""


class Work(BaseModel):
    n: int
    padding: str = PADDING


class Town:
    """Relay, scheduler, recorder and a worker, whose jobs write into the same database."""

    def __init__(self, lab: Lab, place: Place, work: JobType[Work], proxy: Proxy) -> None:
        self.lab, self.place, self.work, self.proxy = lab, place, work, proxy
        self.settings = replace(lab.settings, database_url=place.url, report=True)
        self.now = datetime.now(UTC)
        self.failed_attempts = 0
        self.relay = Relay(replace(self.settings, broker_urls=(proxy.url,)), Database(place.url))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        app = App(job_types=[self.work])

        @app.handler(self.work)
        async def handle(work: Work, job: Job) -> None:
            if work.n >= DEADLY:
                raise Permanent("as it was told")
            try:
                async with job.transaction() as connection:
                    await connection.execute(EFFECT, {"n": work.n, "padding": work.padding})
            except BaseException:
                self.failed_attempts += 1
                raise

        services = [
            self.relay,
            Scheduler(Database(self.place.url), clock=lambda: self.now),
            Recorder(self.settings, Database(self.place.url)),
        ]
        running = [asyncio.create_task(service.run()) for service in services]
        try:
            async with self.lab.working(app, settings=self.settings):
                yield
        finally:
            for service in services:
                service.drain()
            await asyncio.wait_for(asyncio.gather(*running), DEADLINE)

    async def order(self, database: Database, first: int, number: int) -> set[int]:
        """Schedules that are due an hour later, and jobs in the outbox, which the relay cannot carry before `begin`."""
        await self.proxy.refuse()
        await until(lambda: not self.relay._publisher.is_up, "the relay has lost the broker")
        scheduled, enqueued = range(first, first + number), range(first + number, first + 2 * number)
        rows = [
            row(
                f"s{n}",
                self.now + timedelta(hours=1),
                kind="once",
                priority=None,
                job_type=self.work.name,
                payload=json.dumps({"n": n, "padding": PADDING}),
            )
            for n in scheduled
        ]
        async with database.transaction() as connection:
            await connection.execute(insert(schedules), rows)
            await Producer(self.settings).enqueue_many(self.work, [Work(n=n) for n in enqueued], connection=connection)
        return {*scheduled, *enqueued}

    async def begin(self, first: int, number: int) -> set[int]:
        """Sets all to work, and enqueues more jobs straight to the broker: some of them die."""
        self.now += timedelta(hours=2)
        await self.proxy.accept()
        numbers = [*range(first, first + number), *range(DEADLY + first, DEADLY + first + number)]
        producer = await self.lab.producer(report=True)
        await producer.enqueue_many(self.work, [Work(n=n) for n in numbers])
        return set(numbers)

    async def books(self, database: Database, numbers: set[int]) -> list[Any]:
        """What there is and shall be, in pairs: effects, jobs in the log that ended, dead letters, outbox."""
        deadly = {n for n in numbers if n >= DEADLY}
        async with database.reading() as connection:
            effects = Counter((await connection.execute(text("SELECT n FROM effects"))).scalars().all())
            ended = Counter((await connection.execute(select(jobs.c.status))).scalars().all())
            dead = (await connection.execute(select(func.count()).select_from(dead_letters))).scalar_one()
            waiting = (await connection.execute(select(func.count()).select_from(outbox))).scalar_one()
        wanted = Counter({"done": len(numbers - deadly), "dead": len(deadly)})
        return [(effects, Counter(numbers - deadly)), (ended, +wanted), (dead, len(deadly)), (waiting, 0)]

    async def balanced(self, database: Database, numbers: set[int]) -> None:
        books: list[Any] = []

        async def balance() -> bool:
            books[:] = await self.books(database, numbers)
            return all(found == wanted for found, wanted in books)

        try:
            await until(balance, "all is done and written down, once")
        except AssertionError as error:
            raise AssertionError(f"{error}: {books}") from None


@pytest.fixture
async def own_lab(broker: Broker, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """A namespace of the test's own: a recorder takes all that is in its queues."""
    settings: AllSettings = replace(Settings.from_env(), namespace=f"t-{secrets.token_hex(3)}", report=False)
    async with Lab(settings, request.node.name) as lab:
        yield lab
    await clear_namespace(settings)


async def live_through(
    lab: Lab,
    place: Place,
    free_url: str,
    outage: Outage,
    logged: pytest.LogCaptureFixture,
    waits: tuple[str, ...],
    more_than_once: bool = False,
) -> None:
    """Work, the outage amid more work, its end: then all is there once. ``waits``: who must have said so."""
    caplog = logged
    caplog.set_level(logging.INFO)
    work = lab.job_type(payload=Work, retry=Retry(attempts=100, base=0.1, factor=1.5, cap=1.0), timeout=60.0)
    await lab.apply(work)
    async with AsyncExitStack() as stack:
        free = await stack.enter_async_context(opened(free_url))
        async with free.transaction() as connection:
            await connection.execute(text("CREATE TABLE effects (n INTEGER NOT NULL, padding TEXT)"))
            if place.cluster is not None:
                await connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {outages.GUEST}"))
                await connection.execute(text(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {outages.GUEST}"))
        proxy = await stack.enter_async_context(Proxy(lab.settings.broker_urls[0]))
        town = Town(lab, place, work, proxy)
        await stack.enter_async_context(town.open())
        numbers = await town.order(free, 0, 1) | await town.begin(2, 1)
        await town.balanced(free, numbers)
        assert town.failed_attempts == 0

        numbers |= await town.order(free, 100, MANY)
        async with outage(place):
            numbers |= await town.begin(100 + 2 * MANY, MANY)

            def said(who: str) -> int:
                return sum(record.getMessage().startswith(f"{who} waits for the database") for record in caplog.records)

            await until(lambda: all(said(who) for who in waits), f"all of {waits} have said that they wait")
            if waits:
                await until(lambda: town.failed_attempts >= 1, "a handler has failed")
            # One line for each thing that waits, and a relay has two lanes.
            assert more_than_once or all(said(who) <= 2 for who in WAITS)
        await town.balanced(free, numbers)
        for who in waits:
            assert any(record.getMessage().startswith(f"{who} goes on") for record in caplog.records)


async def test_sqlite_locked(
    own_lab: Lab, sqlite_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.engine._LOCK_TIMEOUT", 0.3)
    place = Place(sqlite_url, file=Path(sqlite_url.removeprefix("sqlite:///")))
    await live_through(own_lab, place, sqlite_url, outages.locked, caplog, WAITS)


async def test_sqlite_moved_away_and_back(own_lab: Lab, sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    place = Place(sqlite_url, file=Path(sqlite_url.removeprefix("sqlite:///")))
    await live_through(own_lab, place, sqlite_url, outages.moved, caplog, WAITS)


@pytest.mark.parametrize(
    ("name", "value", "usual", "waits"),
    [
        ("query_only", "1", "0", WAITS),
        # A relay that only deletes needs no room.
        ("max_page_count", "1", "1000000", ("the scheduler", "the recorder", "the dead-letter recorder")),
    ],
    ids=["read-only", "full"],
)
async def test_sqlite(
    own_lab: Lab, sqlite_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    name: str, value: str, usual: str, waits: tuple[str, ...],
) -> None:  # fmt: skip
    place = Place(sqlite_url, file=Path(sqlite_url.removeprefix("sqlite:///")))
    free = Database(sqlite_url)
    _ = free.engine  # made before: this one is not hit
    with outages.pragmas(monkeypatch) as wanted:

        @asynccontextmanager
        async def outage(_: Place) -> AsyncIterator[None]:
            wanted[name] = value
            yield
            wanted[name] = usual

        monkeypatch.setattr("tests.faults.test_roles_in_an_outage.opened", lambda _: _left_open(free))
        await live_through(own_lab, place, sqlite_url, outage, caplog, waits)
    await free.close()


@asynccontextmanager
async def _left_open(database: Database) -> AsyncIterator[Database]:
    yield database


@pytest.mark.kills
@pytest.mark.parametrize(
    ("outage", "waits"),
    [
        (outages.killed, WAITS),
        (outages.read_only, WAITS),
        (outages.exhausted, WAITS),
        (outages.cut_again_and_again, ()),
        (outages.tables_locked, ()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_postgresql(
    own_lab: Lab, cluster: Cluster, postgresql: Database, caplog: pytest.LogCaptureFixture, outage: Outage,
    waits: tuple[str, ...],
) -> None:  # fmt: skip
    name = postgresql.url.database or ""
    cluster.sql("postgres", f"DROP ROLE IF EXISTS {outages.GUEST}", f"CREATE ROLE {outages.GUEST} LOGIN")
    url = postgresql.url.set(username=outages.GUEST).render_as_string(hide_password=False)
    place = Place(url, cluster=cluster, name=name)
    free_url = postgresql.url.render_as_string(hide_password=False)
    try:
        more = outage is outages.cut_again_and_again
        await live_through(own_lab, place, free_url, outage, caplog, waits, more_than_once=more)
    finally:
        cluster.sql(name, f"DROP OWNED BY {outages.GUEST}")
        cluster.sql("postgres", f"DROP ROLE {outages.GUEST}")
