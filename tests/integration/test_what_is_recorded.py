"""``record=`` of a job type holds on every way to the broker, also on those that know no job types."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from hareline import App, DeadLetters, JobType, Permanent, Producer, Schedules
from hareline.broker import Broker
from producers.dead_letters import DeadLetterFilters
from producers.scheduler import Scheduler
from store.engine import Database
from tests.integration.test_dead_letter_recorder import recording
from tests.integration.test_relay import emptied, relaying
from tests.integration.test_reporter import News, listening
from tests.lab import Lab, Number, clear_namespace, until
from topology.settings import Settings

pytestmark = pytest.mark.machine


@pytest.fixture
async def own_lab(broker: Broker, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """A namespace of the test's own: what is told on its events exchange is this test's."""
    settings = replace(Settings.from_env(), namespace=f"t-{secrets.token_hex(3)}", report=True)
    async with Lab(settings, request.node.name) as lab:
        yield lab
    await clear_namespace(settings)


def types_of(lab: Lab) -> tuple[JobType[Any], JobType[Any], JobType[Any]]:
    """One of each kind. None has a group, but for the first."""
    return (
        lab.job_type("all", group="g"),
        lab.job_type("failures", record="failures"),
        lab.job_type("nothing", record="nothing"),
    )


def told(news: News) -> set[tuple[str, str, int]]:
    """Event, the end of the job type's name, replay."""
    return {(event["event"], event["type"].rpartition(".")[2], event["replay"]) for event in news.events}


async def test_a_job_from_the_outbox(own_lab: Lab, postgresql: Database) -> None:
    """The relay tells of it as of its commit, with its group; of one that is not to be recorded it tells nothing."""
    types = types_of(own_lab)
    await own_lab.apply(*types)
    before = datetime.now(UTC).timestamp()
    async with postgresql.transaction() as connection:
        ids = [await Producer().enqueue(kind, Number(n=1), connection=connection) for kind in reversed(types)]
    after = datetime.now(UTC).timestamp()
    async with listening(own_lab) as news:
        async with relaying(own_lab.settings, postgresql):
            await emptied(postgresql)
            await until(lambda: bool(news.events), "the relay has told")
        assert [(event["event"], event["id"]) for event in news.events] == [("job.queued", ids[-1])]
        assert before <= news.events[0]["at"] <= after
        assert news.batches[0].groups == {types[0].name: "g"}


async def test_a_job_of_a_schedule(own_lab: Lab, postgresql: Database) -> None:
    """Issued by a scheduler, or by hand: the schedule keeps what its job type said."""
    types = types_of(own_lab)
    await own_lab.apply(*types)
    schedules = Schedules(postgresql)
    for kind in reversed(types):
        schedule = await schedules.schedule_every(kind, Number(n=1), every=60, start=datetime.now(UTC))
        await schedules.run_now(schedule.id)
        await schedules.schedule_once(kind, Number(n=2), delay=0)
    issued = await Scheduler(postgresql).issue_due()
    assert issued >= 3
    async with listening(own_lab) as news:
        async with relaying(own_lab.settings, postgresql):
            await emptied(postgresql)
            await until(lambda: bool(news.events), "the relay has told")
        assert told(news) == {("job.queued", "all", 0)}
        assert len(news.events) >= 2
        assert {name: group for batch in news.batches for name, group in batch.groups.items()} == {types[0].name: "g"}


async def test_a_job_that_is_replayed(own_lab: Lab, postgresql: Database) -> None:
    """What only failures are recorded of has failed: its replay is told. The producers are silent here."""
    types = types_of(own_lab)
    await own_lab.apply(*types)
    app = App(job_types=types)

    async def handle(number: Number) -> None:
        raise Permanent("never")

    for kind in types:
        app.handler(kind)(handle)
    silent = await own_lab.producer(report=False)
    for kind in types:
        await silent.enqueue(kind, Number(n=1))
    async with own_lab.control.channel("a job that somebody typed") as channel:
        await channel.basic_publish(b'{"n": 2}', exchange=own_lab.names.jobs, routing_key=types[2].name)
    desk = DeadLetters(postgresql)

    async def all_died() -> bool:
        return await desk.count() == 4

    async with recording(own_lab, postgresql), own_lab.working(app, settings=replace(own_lab.settings, report=False)):
        await until(all_died, "all are at the desk")
    assert await desk.replay(DeadLetterFilters()) == 4
    async with listening(own_lab) as news:
        async with relaying(own_lab.settings, postgresql):
            await emptied(postgresql)
            await until(lambda: len(news.events) == 2, "the relay has told")
        assert told(news) == {("job.queued", "all", 1), ("job.queued", "failures", 1)}
