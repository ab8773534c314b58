"""What becomes of jobs is told on the events exchange, in batches that settling never waits for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiormq.abc import DeliveredMessage

from hareline import Job, Permanent, Retry, Transient
from producers.reporter import KEPT, Reporter
from tests.lab import Lab, Number, until
from topology.events import DONE, JobEvent
from topology.publisher import Publisher


class News:
    """The batches that came."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []

    @property
    def events(self) -> list[dict[str, Any]]:
        return [dict(zip(JobEvent._fields, event, strict=True)) for batch in self.batches for event in batch["events"]]

    def of(self, job_id: str) -> list[str]:
        return [event["event"] for event in self.events if event["id"] == job_id]


@asynccontextmanager
async def listening(lab: Lab, routing_key: str = "job.#") -> AsyncIterator[News]:
    """A queue of this test's own on the events exchange."""
    news = News()

    async def take(message: DeliveredMessage) -> None:
        news.batches.append(json.loads(message.body))

    async with lab.control.channel("listening to events") as channel:
        declared = await channel.queue_declare(exclusive=True, auto_delete=True)
        assert declared.queue
        await channel.queue_bind(declared.queue, lab.names.events, routing_key)
        await channel.basic_consume(declared.queue, take, no_ack=True)
        yield news


async def test_every_outcome_is_reported(lab: Lab) -> None:
    """Each settlement is one event with the job's id, type, attempt, time, duration and error."""
    numbers = lab.job_type(retry=Retry(attempts=3, base=0.1, jitter=0.0))
    app = await lab.app(numbers)
    runs: dict[str, int] = {}

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        runs[job.id] = runs.get(job.id, 0) + 1
        if number.n == 1 and job.attempt == 1:
            raise Transient("once")
        if number.n == 2:
            raise Permanent("never")
        if number.n == 3 and runs[job.id] == 1:
            await job.snooze(0.1)
        if number.n == 4:
            await job.cancel("unwanted")

    async with listening(lab) as news:
        async with lab.working(app, settings=replace(lab.settings, report=True)):
            ids = await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(5)])
            await until(lambda: len([e for e in news.events if e["type"] == numbers.name]) == 7, "all is told")
        expected = [
            ["job.done"],
            ["job.retrying", "job.done"],
            ["job.dead"],
            ["job.snoozed", "job.done"],
            ["job.cancelled"],
        ]
        assert [news.of(job_id) for job_id in ids] == expected
        [dead] = [event for event in news.events if event["event"] == "job.dead"]
        assert (dead["type"], dead["attempt"], dead["error"]) == (numbers.name, 1, "Permanent")
        assert dead["duration"] >= 0
        assert dead["detail"] == {"message": "never"}
        [again] = [event for event in news.events if event["event"] == "job.retrying"]
        assert (again["error"], again["detail"]["message"]) == ("Transient", "once")
        assert again["detail"]["due_at"] == pytest.approx(again["at"] + 0.1)
        [put_off] = [event for event in news.events if event["event"] == "job.snoozed"]
        assert put_off["detail"]["due_at"] == pytest.approx(put_off["at"] + 0.1)
        assert {event["replay"] for event in news.events} == {0}
        assert len(news.batches) < len(news.events)


async def test_the_last_events_leave_before_the_worker_does(lab: Lab) -> None:
    """A worker that drains has told all that it did."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    ran: list[int] = []

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        ran.append(number.n)

    async with listening(lab) as news:
        async with lab.working(app, settings=replace(lab.settings, report=True)):
            ids = await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(50)])
            await until(lambda: len(ran) == 50, "all have run")
        await until(lambda: len(news.events) >= 50, "all is told")
        assert sorted(event["id"] for event in news.events) == sorted(ids)


async def test_nobody_needs_to_listen(lab: Lab) -> None:
    """An events exchange without any queue takes the batches, and jobs are settled as ever."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    ran: list[int] = []

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        ran.append(number.n)

    async with lab.working(app, settings=replace(lab.settings, report=True)):
        await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(50)])
        await until(lambda: len(ran) == 50, "all have run")
    assert await lab.ready(numbers) == 0


async def test_without_a_broker_the_oldest_are_dropped_and_counted(lab: Lab) -> None:
    """Memory stays bounded; when the broker is there again, the newest are sent and the count says what is missing."""
    await lab.apply()
    publisher = Publisher(lab.settings, "test of the reporter")
    reporter = Reporter(publisher, lab.names)
    for n in range(KEPT + 10):
        reporter(JobEvent(DONE, str(n), "some.job", 0, 1, 0.0, 0.0))
    assert reporter.dropped == 10
    async with listening(lab) as news:
        publisher.start()
        try:
            await until(lambda: publisher.is_up, "the publisher is up")
            await reporter.close()
            await until(lambda: len(news.events) == KEPT, "the rest is told")
        finally:
            await asyncio.wait_for(publisher.stop(5.0), 60)
        assert news.events[0]["id"] == "10"
        assert {batch["dropped"] for batch in news.batches} == {10}
