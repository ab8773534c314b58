"""A job's way through the real broker, from enqueue to settlement."""

from __future__ import annotations

import asyncio

from hareline import Job, Permanent, Retry, Transient
from tests.lab import Lab, Number

FAST = Retry(attempts=3, base=0.1, factor=1.0, jitter=0.0)


async def test_a_job_runs_once_with_its_payload(lab: Lab) -> None:
    """What is enqueued arrives at the handler as the same model, under the id that enqueue returned."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    seen: asyncio.Queue[tuple[Number, str, int]] = asyncio.Queue()

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        seen.put_nowait((number, job.id, job.attempt))

    async with lab.working(app):
        producer = await lab.producer()
        job_id = await producer.enqueue(numbers, Number(n=7))
        assert await asyncio.wait_for(seen.get(), 60) == (Number(n=7), job_id, 1)
    assert await lab.ready(numbers) == 0


async def test_a_transient_error_is_retried_until_it_succeeds(lab: Lab) -> None:
    """Each attempt is counted, and the last one settles the job."""
    numbers = lab.job_type(retry=FAST)
    app = await lab.app(numbers)
    attempts: list[int] = []
    succeeded = asyncio.Event()

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        attempts.append(job.attempt)
        if job.attempt < 3:
            raise Transient("not yet")
        succeeded.set()

    async with lab.working(app):
        await (await lab.producer()).enqueue(numbers, Number(n=1))
        await asyncio.wait_for(succeeded.wait(), 60)
    assert attempts == [1, 2, 3]


async def test_a_permanent_error_goes_to_the_dead_letter_queue_at_once(lab: Lab) -> None:
    """No attempt is spent on what can never succeed; the dead letter says what happened."""
    numbers = lab.job_type(retry=FAST)
    app = await lab.app(numbers)

    @app.handler(numbers)
    def handle(number: Number) -> None:
        raise Permanent("no such customer")

    async with lab.working(app):
        job_id = await (await lab.producer()).enqueue(numbers, Number(n=1))
        [dead] = await lab.dead_letters(numbers, 1)
    assert (dead.id, dead.reason, dead.body) == (job_id, "permanent", b'{"n":1}')
    assert dead.headers["hareline-error"] == "Permanent"
    assert dead.headers["hareline-error-message"] == "no such customer"
    assert "no such customer" in dead.headers["hareline-traceback"]
    assert dead.headers["hareline-attempts"] == 1
    assert dead.headers["hareline-origin-queue"] == lab.names.queue(numbers.name)


async def test_a_job_whose_attempts_are_used_up_is_dead(lab: Lab) -> None:
    """After the last attempt the job waits in the dead-letter queue with the times of its failures."""
    numbers = lab.job_type(retry=FAST)
    app = await lab.app(numbers)

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        raise ValueError("always")

    async with lab.working(app):
        await (await lab.producer()).enqueue(numbers, Number(n=1))
        [dead] = await lab.dead_letters(numbers, 1)
    assert (dead.reason, dead.headers["hareline-attempts"]) == ("exhausted", 3)
    assert dead.headers["hareline-first-failed-at"] < dead.headers["hareline-last-failed-at"]
