"""A worker's life with its connection, its queues and its neighbours; in this process, on a real broker."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from dataclasses import replace

import pytest
from pika.spec import BasicProperties

from consumers.worker import Worker
from hareline import Job, Retry
from tests.lab import Lab, Number, until
from tests.nodes import Node
from topology.apply import verify_for_worker
from topology.envelope import DELIVERIES, PERSISTENT, Message
from topology.errors import TopologyError
from topology.events import JobEvent
from topology.link import Connection
from topology.publisher import Publisher

FAST = Retry(attempts=3, base=0.1, jitter=0.0)


def cut(worker: Worker) -> None:
    """Ends the worker's consuming connection as the network would: the socket is shut, with no goodbye."""
    connection = worker._link.connection
    assert connection is not None
    connection._amqp._transport._sock.shutdown(socket.SHUT_RDWR)


# -- start -------------------------------------------------------------------------------------------------------------


async def test_a_missing_queue_ends_the_start_with_the_cure(lab: Lab) -> None:
    """``run`` raises TopologyError before anything is consumed; the text names the queue and the command."""
    there, missing = lab.job_type("there"), lab.job_type("missing")
    app = await lab.app(there)
    ran: list[int] = []

    @app.handler(there)
    async def handle(number: Number) -> None:
        ran.append(number.n)

    @app.handler(missing)
    async def handle_missing(number: Number) -> None: ...

    async def verify(connection: Connection) -> None:
        await verify_for_worker(lab.spec(there, missing), connection, None)

    await (await lab.producer()).enqueue(there, Number(n=1))
    worker = Worker(app.registry, app.registry.select(), lab.settings, verify=verify)
    with pytest.raises(TopologyError, match="hareline topology apply") as raised:
        await asyncio.wait_for(worker.run(), 60)
    assert lab.names.queue(missing.name) in str(raised.value)
    assert ran == []


async def test_long_jobs_are_warned_about(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """Those alone whose timeout reaches the broker's consumer timeout."""
    long, short = lab.job_type("long", timeout=1800.0), lab.job_type("short", timeout=1799.0)
    app = await lab.app(long, short)

    @app.handler(long)
    @app.handler(short)
    async def handle(number: Number) -> None: ...

    with caplog.at_level(logging.WARNING, "consumers.worker"):
        async with lab.working(app):
            pass
    [warning] = [record.getMessage() for record in caplog.records if "consumer_timeout" in record.getMessage()]
    assert warning.startswith(long.name)


async def test_a_worker_may_be_stopped_before_it_is_connected(lab: Lab) -> None:
    """With no broker in reach it ends at once all the same."""
    numbers = lab.job_type()
    app = await lab.app(numbers)

    @app.handler(numbers)
    async def handle(number: Number) -> None: ...

    settings = replace(lab.settings, broker_urls=("amqp://guest:guest@127.0.0.1:1/",))
    worker = Worker(app.registry, app.registry.select(), settings)
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    worker.drain()
    await asyncio.wait_for(running, 60)


# -- connection --------------------------------------------------------------------------------------------------------


async def test_a_lost_connection_comes_back_and_no_job_runs_twice_at_once(lab: Lab) -> None:
    """The job runs on; its redelivery waits for it and is settled by what came of it, without a second run."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    runs: Counter[int] = Counter()
    events: list[JobEvent] = []
    release = asyncio.Event()

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        runs[number.n] += 1
        await release.wait()

    async with lab.working(app, observers=[events.append]) as worker:
        producer = await lab.producer()
        await producer.enqueue_many(numbers, [Number(n=n) for n in range(5)])
        await until(lambda: len(runs) == 5, "all run")
        for _ in range(2):
            worker.ready.clear()
            cut(worker)
            await asyncio.wait_for(worker.ready.wait(), 60)
            await until(lambda: worker.running >= 10, "all have been delivered again")
        release.set()
        await until(lambda: worker.running == 0, "all are settled")
        await producer.enqueue(numbers, Number(n=99))
        await until(lambda: runs[99] == 1, "the next job runs")
    assert runs == {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 99: 1}
    assert await lab.ready(numbers) == 0
    assert {event.event for event in events} <= {"job.done", "job.snoozed"}


async def test_a_failure_that_could_not_be_told_is_used_when_the_job_returns(lab: Lab) -> None:
    """The attempt is charged once, although it was delivered twice."""
    numbers = lab.job_type(retry=FAST)
    app = await lab.app(numbers)
    attempts: list[int] = []
    release = asyncio.Event()

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        attempts.append(job.attempt)
        if job.attempt == 1:
            await release.wait()
            raise ConnectionError("gone")

    async with lab.working(app) as worker:
        await (await lab.producer()).enqueue(numbers, Number(n=1))
        await until(lambda: attempts, "it runs")
        worker.ready.clear()
        cut(worker)
        release.set()
        await until(lambda: len(attempts) == 2 and worker.running == 0, "the second attempt")
    assert attempts == [1, 2]
    assert await lab.ready(numbers) == 0


@pytest.mark.kills
async def test_a_worker_outlives_its_broker(lab: Lab, node: Node) -> None:
    """After a restart of the broker it consumes again by itself."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    seen: list[int] = []

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        seen.append(number.n)

    async with lab.working(app):
        producer = await lab.producer(publish_timeout=60.0)
        await producer.enqueue(numbers, Number(n=1))
        await until(lambda: seen == [1], "the first job")
        await node.stop()
        waiting = asyncio.create_task(producer.enqueue(numbers, Number(n=2)))
        await node.start()
        await asyncio.wait_for(waiting, 60)
        await until(lambda: 2 in seen, "the job after the restart")


# -- queues ------------------------------------------------------------------------------------------------------------


async def test_a_queue_that_is_deleted_and_made_again_is_consumed_again(lab: Lab) -> None:
    """Twice, with time in between for a subscription to fail; the other queues' jobs go on all the while."""
    coming, staying = lab.job_type("coming"), lab.job_type("staying")
    app = await lab.app(coming, staying)
    seen: Counter[str] = Counter()

    async def handle(number: Number, job: Job) -> None:
        seen[job.type] += 1

    app.handler(coming)(handle)
    app.handler(staying)(handle)
    async with lab.working(app) as worker:
        producer = await lab.producer()
        for turn in (1, 2):
            before = worker._subscriptions[0]
            await lab.control.delete_queue(lab.names.queue(coming.name))
            await until(lambda: worker._subscriptions[0] is not before, "a subscription to nothing")  # noqa: B023
            await producer.enqueue(staying, Number(n=turn))
            await until(lambda: seen[staying.name] == turn, "the other queue's job")  # noqa: B023
            await lab.apply(coming, staying)
            await producer.enqueue(coming, Number(n=turn))
            await until(lambda: seen[coming.name] == turn, "a job from the new queue")  # noqa: B023


async def test_a_drain_does_not_wait_for_a_queue_that_is_gone(lab: Lab) -> None:
    """The worker ends in good order although its queue has been deleted under it."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    begun, release = asyncio.Event(), asyncio.Event()

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        begun.set()
        await release.wait()

    async with lab.working(app):
        await (await lab.producer()).enqueue(numbers, Number(n=1))
        await asyncio.wait_for(begun.wait(), 60)
        await lab.control.delete_queue(lab.names.queue(numbers.name))
        release.set()


# -- drain -------------------------------------------------------------------------------------------------------------


async def test_a_connection_that_comes_back_during_the_drain_brings_no_jobs(lab: Lab) -> None:
    """Nothing is taken any more once the worker was asked to stop; what was lost is the next worker's."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    runs: list[int] = []
    release = asyncio.Event()

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        runs.append(number.n)
        await release.wait()

    producer = await lab.producer()
    await producer.enqueue_many(numbers, [Number(n=n) for n in range(4)])
    async with lab.working(app, concurrency=2) as worker:
        await until(lambda: len(runs) == 2, "two run")
        first = worker._link.connection
        worker.drain()
        await until(lambda: not worker._subscriptions[0].is_consuming, "it takes no more")
        cut(worker)
        await until(lambda: worker._link.connection not in {None, first}, "the connection is back")
        release.set()
    assert sorted(runs) == [0, 1]
    assert await lab.ready(numbers) == 4
    async with lab.working(app):
        await until(lambda: len(runs) == 6, "the next worker does what was left")
    assert sorted(runs) == [0, 0, 1, 1, 2, 3]


async def test_a_drain_in_full_flow_charges_no_delivery(lab: Lab) -> None:
    """What the broker had sent off when the worker stopped must not count as returned by a crash."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    seen: list[int] = []
    charged: list[object] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        seen.append(number.n)
        if count := job.headers.get("x-delivery-count"):
            charged.append(count)

    await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(3000)])
    for stop in range(1, 7):
        async with lab.working(app, concurrency=50):
            await until(lambda: len(seen) >= min(3000, stop * 500), "some more have run")  # noqa: B023
    assert sorted(seen) == list(range(3000))
    assert charged == []


# -- suspects ----------------------------------------------------------------------------------------------------------


async def test_a_suspect_runs_alone_and_then_the_others_go_on(lab: Lab) -> None:
    """A job that came back twice waits for its neighbours and keeps new ones away; none of them is charged."""
    numbers = lab.job_type(retry=Retry(attempts=1))
    app = await lab.app(numbers)
    publisher = Publisher(lab.settings, "test of suspects")
    company: list[set[int]] = []
    running: set[int] = set()
    seen: Counter[int] = Counter()

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        running.add(number.n)
        seen[number.n] += 1
        if number.n >= 100:
            company.append(set(running))
        await asyncio.sleep(0)
        running.discard(number.n)

    publisher.start()
    try:
        for n in [*range(30), 100, 101, 102, *range(30, 60)]:
            headers = {DELIVERIES: 2} if n >= 100 else None
            properties = BasicProperties(delivery_mode=PERSISTENT, message_id=f"id-{n}", headers=headers)
            await publisher.send(Message(lab.names.jobs, numbers.name, properties, b'{"n":%d}' % n), 30.0)
    finally:
        await publisher.stop(5.0)
    async with lab.working(app, concurrency=20) as worker:
        await until(lambda: len(seen) == 63 and worker.running == 0, "all have run")
    assert set(seen.values()) == {1}
    assert sorted(map(sorted, company)) == [[100], [101], [102]]
    assert await lab.ready(numbers) == 0


async def test_a_suspect_whose_connection_is_lost_leaves_the_worker_consuming(lab: Lab) -> None:
    """It is still alone afterwards, is not run a second time, and the others go on when it has ended."""
    numbers = lab.job_type(retry=Retry(attempts=1))
    app = await lab.app(numbers)
    publisher = Publisher(lab.settings, "test of suspects")
    release = asyncio.Event()
    seen: list[int] = []

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        seen.append(number.n)
        if number.n == 100:
            await release.wait()

    publisher.start()
    try:
        properties = BasicProperties(delivery_mode=PERSISTENT, message_id="id-100", headers={DELIVERIES: 2})
        await publisher.send(Message(lab.names.jobs, numbers.name, properties, b'{"n":100}'), 30.0)
        async with lab.working(app) as worker:
            await until(lambda: seen == [100], "the suspect runs")
            await (await lab.producer()).enqueue(numbers, Number(n=1))
            worker.ready.clear()
            cut(worker)
            await asyncio.wait_for(worker.ready.wait(), 60)
            assert seen == [100]
            release.set()
            await until(lambda: 1 in seen and worker.running == 0, "the other job")
    finally:
        await publisher.stop(5.0)
    assert sorted(seen) == [1, 100]
    assert await lab.ready(numbers) == 0
