"""Delays on a real broker: never early, never behind a longer one, never stuck behind a queue that is gone."""

from __future__ import annotations

import asyncio
import itertools
import time

from aiormq.abc import DeliveredMessage

from hareline import Job, JobType, Retry, Transient
from tests.lab import Lab, Number, until


async def unroutable_of(lab: Lab, job_type: JobType[Number], expected: int) -> list[bytes]:
    """The bodies of delayed jobs of ``job_type`` that had nowhere to go; they are left where they are."""
    found: list[bytes] = []
    arrived = asyncio.Event()

    async def take(message: DeliveredMessage) -> None:
        if str(message.delivery.routing_key).endswith(job_type.name):
            found.append(message.body)
        if len(found) >= expected:
            arrived.set()

    async with lab.control.channel("reading what is unroutable") as channel:
        await channel.basic_consume(lab.names.unroutable, take)
        await asyncio.wait_for(arrived.wait(), 60)
    return found


async def test_a_short_delay_passes_a_thousand_long_ones(lab: Lab) -> None:
    """2 s behind a thousand of an hour: not early, and long before the rest, none of which has come."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    seen: list[tuple[int, float]] = []

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        seen.append((number.n, time.monotonic()))

    async with lab.working(app):
        producer = await lab.producer()
        await producer.enqueue_many(numbers, [Number(n=n) for n in range(1000)], delay=3600.0)
        began = time.monotonic()
        await producer.enqueue(numbers, Number(n=-1), delay=2.0)
        await until(lambda: seen, "the short delay has passed")
        [(n, arrived)] = seen
    assert n == -1
    assert arrived - began >= 2.0


async def test_delays_of_all_lengths_arrive_and_none_early(lab: Lab) -> None:
    """One of every length up to 3 s, published in one go, in an order of their own."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    arrived: dict[int, float] = {}

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        arrived[number.n] = time.monotonic()

    async with lab.working(app):
        producer = await lab.producer()
        began = time.monotonic()
        tenths = sorted(range(31), key=lambda n: n * 7 % 31)
        await asyncio.gather(*(producer.enqueue(numbers, Number(n=n), delay=n / 10) for n in tenths))
        await until(lambda: len(arrived) == 31, "all have arrived")
    early = {n: at - began for n, at in arrived.items() if at - began < n / 10}
    assert not early


async def test_a_deleted_destination_stalls_nobody(lab: Lab) -> None:
    """Its jobs land in the unroutable queue; those that share its levels arrive as if nothing had been."""
    gone, alive = lab.job_type("gone"), lab.job_type("alive")
    app = await lab.app(gone, alive)
    seen: list[int] = []

    @app.handler(alive)
    async def handle(number: Number) -> None:
        seen.append(number.n)

    producer = await lab.producer()
    for n in range(20):
        await producer.enqueue(gone, Number(n=n), delay=1.5)
        await producer.enqueue(alive, Number(n=n), delay=1.5)
    await lab.control.delete_queue(lab.names.queue(gone.name))
    async with lab.working(app, alive.name):
        await until(lambda: len(seen) == 20, "all jobs with a queue have arrived")
    assert sorted(seen) == list(range(20))
    bodies = await unroutable_of(lab, gone, 20)
    assert sorted(bodies) == sorted(f'{{"n":{n}}}'.encode() for n in range(20))


async def test_retries_may_take_the_same_way_again_and_again(lab: Lab) -> None:
    """The broker drops what it takes for a cycle; a fresh copy for each attempt is none."""
    numbers = lab.job_type(retry=Retry(attempts=8, base=0.3, factor=1.0, jitter=0.0))
    app = await lab.app(numbers)
    attempts: list[tuple[int, float]] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        attempts.append((job.attempt, time.monotonic()))
        if job.attempt < 8:
            raise Transient("again")

    async with lab.working(app):
        await (await lab.producer()).enqueue(numbers, Number(n=1), delay=0.3)
        await until(lambda: len(attempts) == 8, "the eighth attempt")
    assert [attempt for attempt, _ in attempts] == list(range(1, 9))
    assert all(later - earlier >= 0.3 for (_, earlier), (_, later) in itertools.pairwise(attempts))
