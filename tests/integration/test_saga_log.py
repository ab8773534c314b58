"""What the recorder makes of sagas: their status, and each step and undo with its attempts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from consumers.recorder import Recorder
from hareline import DeadLetters, Permanent, Sagas
from producers.relay import Relay
from store.engine import Database
from tests.lab import Lab, Number, until
from tests.sagas import Story, story
from topology.settings import Settings


def recorded(lab: Lab, url: str) -> Settings:
    return replace(lab.settings, database_url=url, report=True)


@asynccontextmanager
async def running(role: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(role.run())
    try:
        yield
    finally:
        role.drain()
        await task


async def started(made: Story, settings: Settings) -> str:
    producer = await made.lab.producer(report=True)
    return await producer.start(made.saga, Number(n=7))


async def test_a_saga_that_completes_is_shown_step_by_step(lab: Lab, sqlite_url: str) -> None:
    made, settings = await story(lab, sqlite_url, "reserve", "charge"), recorded(lab, sqlite_url)
    async with running(Recorder(settings, Database(sqlite_url))), lab.working(made.app, settings=settings):
        saga_id = await started(made, settings)
        async with Sagas(settings) as log:
            await until(lambda: _is(log, saga_id, "completed"), "the saga is completed in the log")
            await until(lambda: _has_payload(log, saga_id), "the producer's own news of it have come")
            found = await log.get(saga_id)
            (listed,) = (await log.list(name=made.saga.name)).items
    assert [(step.direction, step.status, step.attempts) for step in found.steps] == [("do", "done", 1)] * 2
    assert [step.type for step in found.steps] == [step.job_type.name for step in made.saga.steps]
    assert found.steps[0].result == '{"what":"reserve","n":7}'
    assert found.payload == '{"n":7}'
    assert found.finished_at is not None
    assert listed.id == saga_id


async def test_a_saga_with_a_dead_undo_is_stuck_until_its_replay_finishes_it(lab: Lab, sqlite_url: str) -> None:
    made, settings = await story(lab, sqlite_url, "reserve", "charge", "ship"), recorded(lab, sqlite_url)
    made.failing |= {"ship": Permanent("no address"), "un-charge": Permanent("the bank is closed")}
    relay = Relay(settings, Database(sqlite_url))
    async with (
        running(Recorder(settings, Database(sqlite_url))),
        running(relay),
        lab.working(made.app, settings=settings),
        Sagas(settings) as log,
        DeadLetters(settings) as desk,
    ):
        saga_id = await started(made, settings)
        await until(lambda: _is(log, saga_id, "stuck"), "the saga is stuck in the log")
        # The dead letter is recorded by itself, often before the news of the worker.
        fates = ["done", "done", "failed", "dead", "done"]
        await until(lambda: _are(log, saga_id, fates), "all steps and undos are in the log")
        found = await log.get(saga_id)
        assert (found.failed_step, found.error, found.error_message) == ("2.0", "Permanent", "no address")
        del made.failing["un-charge"]
        await until(lambda: _one_letter(desk), "the dead undo is recorded")
        (letter,) = (await desk.list()).items
        assert await desk.replay([letter.id]) == 1
        await until(lambda: _is(log, saga_id, "compensated"), "the saga is compensated in the log")
    assert made.ran == ["reserve", "charge", "ship", "un-charge", "un-reserve", "un-charge"]


async def _is(log: Sagas, saga_id: str, status: str) -> bool:
    items = (await log.list(status=status)).items
    return saga_id in [item.id for item in items]


async def _are(log: Sagas, saga_id: str, fates: list[str]) -> bool:
    return [step.status for step in (await log.get(saga_id)).steps] == fates


async def _has_payload(log: Sagas, saga_id: str) -> bool:
    return (await log.get(saga_id)).payload is not None


async def _one_letter(desk: DeadLetters) -> bool:
    return await desk.count() == 1
