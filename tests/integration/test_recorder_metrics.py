"""What a recorder tells of itself through OpenTelemetry, and that one that is late slows no worker."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from consumers.event_recorder import EventRecorder
from consumers.recorder import Recorder
from consumers.rounds import Rounds
from consumers.upkeep import take_stock
from hareline import Jobs
from hareline.broker import Broker
from store.engine import Database
from tests.integration.test_recorder import Press, count, done, left, recorded
from tests.integration.test_reporter import listening
from tests.lab import DEADLINE, Lab, Number, clear_namespace, until
from tests.meters import measured
from topology import spec
from topology.publisher import Publisher
from topology.settings import Settings

pytestmark = pytest.mark.machine

Read = Callable[[str], float]
ROOM = 256 * 1024
"""Bytes of the queue of reports, so that some batches fill it."""


@pytest.fixture
def metric() -> Read:
    """The value of ``hareline.recorder.`` so-and-so as an exporter would see it now; 0.0 for what was never told."""
    return lambda name: measured(f"hareline.recorder.{name}")


@pytest.fixture
async def own_lab(broker: Broker, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """A namespace of the test's own: what its recorder's queues hold is this test's."""
    settings = replace(Settings.from_env(), namespace=f"t-{secrets.token_hex(3)}", report=True)
    async with Lab(settings, request.node.name) as lab:
        yield lab
    await clear_namespace(settings)


@asynccontextmanager
async def recording(lab: Lab, database: Database) -> AsyncIterator[None]:
    """A recorder as the command runs it, but for the desk; it looks for losses all the time."""
    own = Database(database.url.render_as_string(hide_password=False))
    parts = [EventRecorder(lab.settings, own), Rounds(lambda: take_stock(own), 0.05)]
    recorder = Recorder(lab.settings, own, parts=parts)
    task = asyncio.create_task(recorder.run())
    try:
        yield
    finally:
        recorder.drain()
        await asyncio.wait_for(task, DEADLINE)


@asynccontextmanager
async def pressing(lab: Lab) -> AsyncIterator[Press]:
    publisher = Publisher(lab.settings, "press")
    publisher.start()
    await until(lambda: publisher.is_up, "the press is connected")
    yield Press(lab, publisher)
    await publisher.stop(1.0)


async def test_lag_events_and_losses_are_metrics(own_lab: Lab, postgresql: Database, metric: Read) -> None:
    """Lag is of the newest batch of the last commit; what is missing or was given up is told until it arrives."""
    await own_lab.apply()
    before = metric("events")
    async with pressing(own_lab) as press, recording(own_lab, postgresql):
        head = {"v": 1, "reporter": press.reporter, "groups": {}}
        await press.raw(json.dumps({**head, "seq": 1, "at": time.time() - 1000, "events": done(10)}).encode())
        await recorded(postgresql, 10)
        await until(lambda: metric("lag") >= 1000, "the lag is told")
        assert metric("lag") < 1000 + DEADLINE
        await press.raw(json.dumps({**head, "seq": 4, "at": time.time(), "events": done(10, 10)}).encode())
        await recorded(postgresql, 20)
        await until(lambda: metric("lag") < 1000, "it has caught up")
        await until(lambda: metric("batches.missing") == 2, "two batches are missing")
        await press.raw(json.dumps({**head, "seq": 2, "dropped": 7, "events": [*done(1, 20), 5]}).encode())
        await press.raw(b"no batch")
        await until(lambda: metric("batches.missing") == 1, "one has arrived")
        await until(lambda: metric("events.dropped") == 7, "its process has given up seven events")
        await until(lambda: metric("events") - before == 21, "what was recorded is counted")
        await until(lambda: metric("events.refused") >= 1 and metric("batches.refused") >= 1, "so is nonsense")
    found = await Jobs(postgresql).stats()
    assert (found.missing, found.dropped) == (1, 7)


async def test_a_recorder_that_is_late_slows_no_worker_and_losses_are_counted(
    own_lab: Lab, postgresql: Database, metric: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue drops the oldest reports of success; every job runs, no reporter gives anything up."""
    monkeypatch.setattr(spec, "RECORDS_BYTES", ROOM)
    numbers = own_lab.job_type()
    app = await own_lab.app(numbers)
    ran: set[str] = set()

    @app.handler(numbers)
    async def handle(number: Number, job: Any) -> None:
        ran.add(job.id)

    sent: set[str] = set()
    async with listening(own_lab, "job.batch.done") as news:
        producer = await own_lab.producer(report=True)
        async with own_lab.working(app):
            while len(news.batches) < 40 or len(sent) < 12_000:
                wave = await producer.enqueue_many(numbers, [Number(n=n) for n in range(50)])
                sent.update(wave)
                await until(lambda: sent <= ran, "the worker keeps up")
        await producer.close()
        await until(lambda: len({e["id"] for e in news.events if e["event"] == "job.done"}) == len(sent), "all is told")
        told = {(batch.heading.reporter, batch.heading.seq) for batch in news.batches}
    kept = await left(own_lab)
    assert 2 < kept < len(told)
    async with recording(own_lab, postgresql):

        async def empty() -> bool:
            return await left(own_lab) == 0 and await count(postgresql) > 0

        await until(empty, "what is left is recorded")
        await until(lambda: metric("batches.missing") > 0, "the loss is told")
    found = await Jobs(postgresql).stats()
    assert found.missing == len(told) - kept
    assert found.dropped == 0
    assert await count(postgresql) < len(sent)
