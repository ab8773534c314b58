"""Who decides that a saga's step has failed: not its timeout, not a shutdown, not a deploy, but one row, once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from hareline import App, Job, Permanent, Retry, Saga, Step
from store.engine import Database
from tests.databases import upgraded
from tests.inbox_app import EFFECT
from tests.lab import Lab, Number, until
from tests.postgres import Cluster
from tests.sagas import Story, story

ONCE = Retry(attempts=1)


async def effects_of(url: str) -> list[int]:
    database = Database(url)
    try:
        async with database.reading() as connection:
            return list((await connection.execute(text("SELECT n FROM effects"))).scalars())
    finally:
        await database.close()


async def with_effects(url: str) -> None:
    database = Database(url)
    async with database.transaction() as connection:
        await connection.execute(text("CREATE TABLE effects (n INTEGER NOT NULL)"))
    await database.close()


def handled_by(made: Story, name: str, handler: Any) -> None:
    """Puts another handler in the place of the story's."""
    job_type = made.steps[name].job_type
    del made.app.registry._routes[job_type.name]
    made.app.handler(job_type)(handler)


# -- plain handlers that go on after their timeout ---------------------------------------------------------------------


@pytest.mark.parametrize("commits", ["before the decision", "after the decision"])
async def test_a_thread_goes_on_after_its_timeout(
    lab: Lab, sqlite_url: str, caplog: pytest.LogCaptureFixture, commits: str
) -> None:
    """Either its transaction counts, and the saga goes on; or the failure does, and the transaction is refused."""
    made = await story(lab, sqlite_url, "reserve", "charge", "ship", retry=replace(ONCE), timeout=1.0)
    await with_effects(sqlite_url)
    go, ended = threading.Event(), threading.Event()

    def slow(number: Number, job: Job) -> None:
        try:
            if commits == "after the decision":
                go.wait(60)
            with job.transaction() as connection:
                connection.execute(EFFECT, {"n": number.n})
                go.wait(60)
        finally:
            ended.set()

    handled_by(made, "charge", slow)
    producer = await lab.producer()
    async with made.working():
        await producer.start(made.saga, Number(n=7))
        if commits == "before the decision":
            await until(lambda: "ran longer than its timeout" in caplog.text, "the timeout passed")
            go.set()
            await until(lambda: "ship" in made.ran, "the saga went on")
            assert await effects_of(sqlite_url) == [7]
            assert made.ran == ["reserve", "ship"]
        else:
            await until(lambda: made.ran == ["reserve", "un-charge", "un-reserve"], f"undone, not {made.ran}")
            go.set()
            await asyncio.to_thread(ended.wait, 60)
            assert await effects_of(sqlite_url) == []


async def test_a_named_transaction_is_refused_in_a_step_and_not_in_an_undo(lab: Lab, sqlite_url: str) -> None:
    """The decision that a step has failed would not hold for it."""
    made = await story(lab, sqlite_url, "reserve", "charge")
    await with_effects(sqlite_url)

    async def insert(number: Number, job: Job) -> None:
        async with job.transaction(name="one") as connection:
            await connection.execute(EFFECT, {"n": number.n})
        made.told.append(("inserted", None))

    handled_by(made, "charge", insert)
    undo = made.steps["reserve"].undo
    assert undo is not None
    del made.app.registry._routes[undo.name]
    made.app.handler(undo)(insert)
    producer = await lab.producer()
    async with made.working():
        await producer.start(made.saga, Number(n=7))
        await until(lambda: made.ran == ["reserve", "inserted"], f"the saga is undone: {made.ran}")
    assert await effects_of(sqlite_url) == [7]


# -- a database that is away -------------------------------------------------------------------------------------------


async def test_a_failure_waits_for_a_locked_database(
    lab: Lab, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = await story(lab, sqlite_url, "reserve", "charge")
    made.failing["charge"] = Permanent("no")
    producer = await lab.producer()
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with made.working():
        await producer.start(made.saga, Number(n=7))
        await until(lambda: "its saga waits for the database" in caplog.text, "it waits")
        assert made.ran == ["reserve", "charge"]
        other.execute("ROLLBACK")
        await until(lambda: made.ran == ["reserve", "charge", "un-reserve"], "the saga is undone")
    other.close()


@pytest.mark.machine
@pytest.mark.kills
async def test_a_worker_ends_while_a_failure_waits_and_another_one_decides(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL is killed before the step fails; the worker drains all the same, and nothing is lost."""
    with Cluster() as cluster:
        url = cluster.url(cluster.create())
        await upgraded(url)
        made = await story(lab, url, "reserve", "charge")
        made.lab.settings = replace(lab.settings, grace=1.0)
        made.failing["charge"] = Permanent("no")
        producer = await lab.producer()
        cluster.kill()
        async with made.working():
            await producer.start(made.saga, Number(n=7))
            await until(lambda: "its saga waits for the database" in caplog.text, "it waits")
        assert "un-reserve" not in made.ran
        cluster.start()
        async with made.working():
            await until(lambda: made.ran[-1] == "un-reserve", "the saga is undone")
        assert set(made.ran[2:-1]) <= {"charge", "un-charge"}


# -- deploys -----------------------------------------------------------------------------------------------------------


async def test_a_deploy_adds_a_step_and_takes_an_undo_away_while_a_saga_runs(lab: Lab, sqlite_url: str) -> None:
    """The saga that runs goes by its own itinerary, also to an undo that no saga knows any more."""
    made = await story(lab, sqlite_url, "reserve", "charge", "ship")
    producer = await lab.producer()
    async with made.working(made.steps["reserve"].job_type.name):
        await producer.start(made.saga, Number(n=7))
        await until(lambda: made.ran == ["reserve"], "the saga has begun")
    pack, old = lab.job_type("pack"), made.steps
    undo = old["charge"].undo
    assert undo is not None
    new = Saga(made.saga.name, old["reserve"], Step(old["charge"].job_type), Step(pack), old["ship"], payload=Number)
    app = App(sagas=[new], job_types=[undo])
    await lab.apply(*app.job_types, undos=app.undos)
    async with lab.control.channel("a deploy") as channel:
        key = lab.names.compensation(undo.name)
        await channel.queue_unbind(lab.names.queue(undo.name), lab.names.events, key)
    for name, route in made.app.registry._routes.items():
        app.registry._routes[name] = route

    async def packs(_: Number) -> None:
        made.told.append(("pack", None))

    app.handler(pack)(packs)
    made.failing["ship"] = Permanent("no such address")
    made.app = app
    async with made.working():
        await until(lambda: len(made.told) >= 5, f"the old saga is undone: {made.ran}")
        assert made.ran == ["reserve", "charge", "ship", "un-charge", "un-reserve"]
        made.told.clear()
        await producer.start(new, Number(n=8))
        await until(lambda: len(made.told) >= 5, f"the new saga is undone: {made.ran}")
        assert made.ran == ["reserve", "charge", "pack", "ship", "un-reserve"]


async def test_a_deploy_takes_a_step_away_while_a_saga_runs(lab: Lab, sqlite_url: str) -> None:
    """Its queue and its handler must stay for as long; the saga need not know it any more."""
    made = await story(lab, sqlite_url, "reserve", "charge", "ship")
    producer = await lab.producer()
    async with made.working(made.steps["reserve"].job_type.name):
        await producer.start(made.saga, Number(n=7))
        await until(lambda: made.ran == ["reserve"], "the saga has begun")
    old = made.steps
    new = Saga(made.saga.name, old["reserve"], old["ship"], payload=Number)
    app = App(sagas=[new], job_types=[old["charge"].job_type, *made.saga.undos])
    for name, route in made.app.registry._routes.items():
        app.registry._routes[name] = route
    made.app = app
    async with made.working():
        await until(lambda: len(made.told) >= 3, f"the old saga is complete: {made.ran}")
        assert made.ran == ["reserve", "charge", "ship"]
        await producer.start(new, Number(n=8))
        await until(lambda: len(made.told) >= 5, f"the new saga is complete: {made.ran}")
        assert made.ran[3:] == ["reserve", "ship"]


# -- a shutdown in the middle of a step --------------------------------------------------------------------------------


async def test_a_step_that_a_shutdown_interrupted_may_have_had_effects(lab: Lab, sqlite_url: str) -> None:
    """The next run says for certain that it has done nothing; but of the first one nobody knows."""
    made = await story(lab, sqlite_url, "reserve", "charge")
    made.lab.settings = replace(lab.settings, grace=0.2)
    began = asyncio.Event()

    async def interrupted(_: Number) -> None:
        made.told.append(("charge", None))
        if began.is_set():
            raise Permanent("the bank says that this has been charged")
        began.set()
        await asyncio.Event().wait()

    handled_by(made, "charge", interrupted)
    producer = await lab.producer()
    async with made.working():
        await producer.start(made.saga, Number(n=7))
        await asyncio.wait_for(began.wait(), 60)
    async with made.working():
        await until(lambda: "un-reserve" in made.ran, f"the saga is undone: {made.ran}")
    assert made.ran == ["reserve", "charge", "charge", "un-charge", "un-reserve"]
