"""Priorities, in whatever form the broker has them: classic queues before 4.3, quorum queues from then on."""

from __future__ import annotations

import asyncio
import random

from hareline import Job, Retry, Transient
from tests.lab import Lab, Number, until


async def test_priorities_are_kept_in_strict_order(lab: Lab) -> None:
    """Higher first, over all ten levels; first in, first out within a level."""
    numbers = lab.job_type(priority=True)
    app = await lab.app(numbers)
    seen: list[tuple[int, int]] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        await asyncio.sleep(0)
        seen.append(divmod(number.n, 100))

    order = [level for level in range(10) for _ in range(10)]
    random.Random(7).shuffle(order)
    producer = await lab.producer()
    for place, level in enumerate(order):
        await producer.enqueue(numbers, Number(n=level * 100 + place), priority=level)
    async with lab.working(app, concurrency=1):
        await until(lambda: len(seen) == 100, "all have run")
    assert seen == sorted(seen, key=lambda run: (-run[0], run[1]))


async def test_a_job_without_a_priority_is_in_the_middle(lab: Lab) -> None:
    """It runs after those above four and before those below."""
    numbers = lab.job_type(priority=True)
    app = await lab.app(numbers)
    seen: list[int] = []

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        seen.append(number.n)

    producer = await lab.producer()
    await producer.enqueue(numbers, Number(n=3), priority=3)
    await producer.enqueue(numbers, Number(n=4))
    await producer.enqueue(numbers, Number(n=5), priority=5)
    async with lab.working(app, concurrency=1):
        await until(lambda: len(seen) == 3, "all have run")
    assert seen == [5, 4, 3]


async def test_a_retry_keeps_its_priority(lab: Lab) -> None:
    """After its pause in the ladder a job comes before whatever waits below it."""
    numbers = lab.job_type(priority=True, retry=Retry(attempts=2, base=0.1, jitter=0.0))
    app = await lab.app(numbers)
    seen: list[tuple[int, int]] = []
    again = asyncio.Event()

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        seen.append((number.n, job.attempt))
        if number.n == 9 and job.attempt == 1:
            raise Transient("later")
        if number.n == 1 and not again.is_set():
            # Holds the only place until the retry waits in the queue, ahead of all the others.
            await until(lambda: lab.ready(numbers), "something waits")
            before = await lab.ready(numbers)
            await until(lambda: grown(before), "the retry is back")
            again.set()

    async def grown(before: int) -> bool:
        return await lab.ready(numbers) > before or before == 21

    producer = await lab.producer()
    await producer.enqueue(numbers, Number(n=9), priority=9)
    await producer.enqueue_many(numbers, [Number(n=1) for _ in range(21)], priority=1)
    async with lab.working(app, concurrency=1):
        await until(lambda: len(seen) == 23, "all have run")
    assert seen[:3] == [(9, 1), (1, 1), (9, 2)]
