"""What becomes of jobs is told on the events exchange, in batches that settling never waits for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiormq.abc import Basic, DeliveredMessage

from consumers.report_batch import ReportBatch, read_batch
from hareline import BlockingProducer, Job, JobType, Permanent, Retry, Transient
from producers.reporter import KEPT, Reporter
from tests.lab import Lab, Number, until
from topology.events import DONE, JobEvent
from topology.publisher import Publisher
from topology.settings import Settings


class News:
    """The batches that came."""

    def __init__(self) -> None:
        self.batches: list[ReportBatch] = []

    @property
    def events(self) -> list[dict[str, Any]]:
        return [dict(zip(JobEvent._fields, event, strict=True)) for batch in self.batches for event in batch.events]

    def of(self, job_id: str) -> list[str]:
        return [event["event"] for event in self.events if event["id"] == job_id]


@asynccontextmanager
async def listening(lab: Lab, routing_key: str = "job.#") -> AsyncIterator[News]:
    """A queue of this test's own on the events exchange."""
    news = News()

    async def take(message: DeliveredMessage) -> None:
        news.batches.append(read_batch(message.body))

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
        assert {batch.heading.dropped for batch in news.batches} == {10}


async def test_a_job_is_known_from_the_moment_it_is_accepted(lab: Lab) -> None:
    """Both producers report at the confirm, the worker at the end."""
    numbers = lab.job_type(group="numbers")
    app = await lab.app(numbers)

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        pass

    settings = replace(lab.settings, report=True)
    async with listening(lab) as news:
        producer = await lab.producer(report=True)
        ids = [await producer.enqueue(numbers, Number(n=1)), *await producer.enqueue_many(numbers, [Number(n=2)])]
        ids.append(await producer.enqueue(numbers, Number(n=3), delay=0.2, correlation_id="c"))
        ids += await asyncio.to_thread(_enqueue_twice, settings, numbers)
        await until(lambda: all(news.of(job_id) == ["job.queued"] for job_id in ids), "all are queued")
        details = {e["id"]: e["detail"] for e in news.events}
        assert [json.loads(details[job_id]["payload"])["n"] for job_id in ids] == [1, 2, 3, 4, 5]
        assert details[ids[2]]["correlation_id"] == "c"
        assert details[ids[2]]["due_at"] > 0
        async with lab.working(app, settings=settings):
            await until(lambda: all(news.of(job_id) == ["job.queued", "job.done"] for job_id in ids), "all are done")
        assert all(batch.groups == {numbers.name: "numbers"} for batch in news.batches)


def _enqueue_twice(settings: Settings, numbers: JobType[Any]) -> list[str]:
    with BlockingProducer(settings) as producer:
        return [producer.enqueue(numbers, Number(n=4)), *producer.enqueue_many(numbers, [Number(n=5)])]


async def test_a_long_job_is_reported_as_started_once(lab: Lab) -> None:
    """A short one is not: it costs one event."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    go = asyncio.Event()

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        if number.n:
            await go.wait()

    async with listening(lab) as news:
        producer = await lab.producer()
        async with lab.working(app, settings=replace(lab.settings, report=True)):
            long = await producer.enqueue(numbers, Number(n=1))
            await until(lambda: news.of(long) == ["job.started"], "it is reported while it runs")
            short = await producer.enqueue(numbers, Number(n=0))
            await until(lambda: news.of(short) == ["job.done"], "the short one is done")
            go.set()
            await until(lambda: news.of(long) == ["job.started", "job.done"], "the long one is done")
        started, done = (e for e in news.events if e["id"] == long)
        assert started["at"] < done["at"]
        assert (started["duration"], started["attempt"]) == (None, 1)


async def test_success_and_failure_go_to_queues_of_their_own(lab: Lab) -> None:
    """A listener to one routing key hears nothing of the other; what nobody can understand has died, too."""
    numbers = lab.job_type(retry=Retry(attempts=1))
    app = await lab.app(numbers)

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        if number.n:
            raise Permanent("n" * 600)

    async with listening(lab, "job.batch.done") as good, listening(lab, "job.batch.failed") as bad:
        async with lab.working(app, settings=replace(lab.settings, report=True)):
            producer = await lab.producer()
            ids = await producer.enqueue_many(numbers, [Number(n=0), Number(n=1)])
            async with lab.control.channel("a message that says nonsense") as channel:
                await channel.basic_publish(
                    b"{}",
                    exchange=lab.names.jobs,
                    routing_key=numbers.name,
                    properties=Basic.Properties(headers={"hareline-attempt": "x"}),
                )
            await until(lambda: len(bad.events) == 2 and len(good.events) == 1, "all is told")
        assert [(e["event"], e["id"]) for e in good.events] == [("job.done", ids[0])]
        by_error = {e["error"]: e for e in bad.events}
        assert by_error.keys() == {"Permanent", "Malformed"}
        assert by_error["Permanent"]["id"] == ids[1]
        assert by_error["Permanent"]["detail"] == {"message": "n" * 500}
        assert {e["event"] for e in bad.events} == {"job.dead"}


async def test_reports_can_be_turned_off(lab: Lab) -> None:
    """``HARELINE_REPORT=off``, or ``record`` for a job type: nothing is published."""
    silent, loud = lab.job_type("silent", record="nothing"), lab.job_type("loud")
    app = await lab.app(silent, loud)
    ran: list[int] = []

    @app.handler(silent)
    async def quiet(number: Number) -> None:
        ran.append(number.n)

    @app.handler(loud)
    async def handle(number: Number) -> None:
        ran.append(number.n)

    async with listening(lab) as news:
        reporting = await lab.producer(report=True)
        async with lab.working(app, "*.loud"):
            await (await lab.producer()).enqueue(loud, Number(n=1))
            await until(lambda: len(ran) == 1, "it has run, and nobody reports")
        async with lab.working(app, settings=replace(lab.settings, report=True)):
            await reporting.enqueue(silent, Number(n=2))
            last = await reporting.enqueue(loud, Number(n=3))
            await until(lambda: set(news.of(last)) == {"job.queued", "job.done"}, "the last one is told")
        assert {e["id"] for e in news.events} == {last}
        assert len(ran) == 3
