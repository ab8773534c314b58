"""A job's way through the real broker, from enqueue to settlement."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from hareline import Job, Permanent, Retry, Transient
from tests.lab import Lab, Number, until
from topology.events import JobEvent

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


# -- handlers ----------------------------------------------------------------------------------------------------------


async def test_plain_handlers_run_in_threads_at_the_same_time(lab: Lab) -> None:
    """A barrier that three jobs must reach together shows it; the event loop stays free meanwhile."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    together = threading.Barrier(3)
    threads: list[str] = []

    @app.handler(numbers)
    def handle(number: Number) -> None:
        together.wait(60)
        threads.append(threading.current_thread().name)

    async with lab.working(app):
        await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(3)])
        await until(lambda: len(threads) == 3, "three jobs met")
    assert len(set(threads)) == 3
    assert threading.current_thread().name not in threads


async def test_a_plain_handler_may_return_what_is_to_be_awaited(lab: Lab) -> None:
    """A decorator that hides an async handler must not turn its jobs into jobs that are done before they run."""
    numbers = lab.job_type(retry=Retry(attempts=1))
    app = await lab.app(numbers)
    ran: list[int] = []

    async def handle(number: Number) -> None:
        await asyncio.sleep(0)
        ran.append(number.n)
        if number.n:
            raise Permanent("even its error counts")

    app.handler(numbers)(lambda number: handle(number))  # noqa: PLW0108 - the decorator in question
    async with lab.working(app):
        await (await lab.producer()).enqueue_many(numbers, [Number(n=0), Number(n=1)])
        [dead] = await lab.dead_letters(numbers, 1)
    assert (sorted(ran), dead.body) == ([0, 1], b'{"n":1}')


async def test_context_variables_do_not_leak_between_jobs(lab: Lab) -> None:
    """What one job sets, no other sees: neither on the event loop nor in a thread that is used again."""
    on_loop, in_thread = lab.job_type("loop"), lab.job_type("thread")
    app = await lab.app(on_loop, in_thread)
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=-1)
    seen: list[int] = []

    def look(number: Number) -> None:
        seen.append(variable.get())
        variable.set(number.n)

    @app.handler(on_loop)
    async def handle(number: Number) -> None:
        look(number)

    app.handler(in_thread)(look)
    async with lab.working(app, concurrency=1):
        producer = await lab.producer()
        for job_type in (on_loop, in_thread):
            await producer.enqueue_many(job_type, [Number(n=n) for n in range(20)])
        await until(lambda: len(seen) == 40, "all jobs ran")
    assert set(seen) == {-1}


# -- timeout -----------------------------------------------------------------------------------------------------------


async def test_an_async_handler_over_its_timeout_is_cancelled_and_retried(lab: Lab) -> None:
    """It is cancelled where it waits, and the next attempt follows."""
    numbers = lab.job_type(retry=FAST, timeout=0.2)
    app = await lab.app(numbers)
    ended: list[str] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        if job.attempt == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
        ended.append("done")

    async with lab.working(app):
        await (await lab.producer()).enqueue(numbers, Number(n=1))
        await until(lambda: "done" in ended, "the second attempt")
    assert ended == ["cancelled", "done"]


async def test_a_thread_over_its_timeout_is_left_behind_and_the_job_goes_on(lab: Lab) -> None:
    """A thread cannot be stopped; its job is retried, or dead as here, without waiting for it."""
    numbers = lab.job_type(retry=Retry(attempts=1), timeout=0.2)
    app = await lab.app(numbers)
    release = threading.Event()

    @app.handler(numbers)
    def handle(number: Number) -> None:
        release.wait(60)

    async with lab.working(app):
        await (await lab.producer()).enqueue(numbers, Number(n=1))
        [dead] = await lab.dead_letters(numbers, 1)
        release.set()
    assert (dead.reason, dead.headers["hareline-error"]) == ("exhausted", "TimeoutError")
    assert "0.2 s" in dead.headers["hareline-error-message"]


async def test_a_handlers_own_timeout_error_is_not_taken_for_ours(lab: Lab) -> None:
    """The dead letter carries the text of the error that was raised."""
    numbers = lab.job_type(retry=Retry(attempts=1))
    app = await lab.app(numbers)

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        raise TimeoutError("the payment service")

    async with lab.working(app):
        await (await lab.producer()).enqueue(numbers, Number(n=1))
        [dead] = await lab.dead_letters(numbers, 1)
    assert dead.headers["hareline-error-message"] == "the payment service"


# -- what a handler may choose -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["job.retry", "raise"])
async def test_a_handler_may_say_when_it_is_retried(lab: Lab, way: str) -> None:
    """``job.retry(after)`` and ``Transient(after=...)`` come before the policy, whose pause would be an hour."""
    numbers = lab.job_type(retry=Retry(attempts=2, base=3600.0))
    app = await lab.app(numbers)
    times: list[float] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        times.append(time.monotonic())
        if job.attempt == 1:
            if way == "raise":
                raise Transient("later", after=0.3)
            await job.retry(0.3)

    async with lab.working(app):
        await (await lab.producer()).enqueue(numbers, Number(n=1))
        await until(lambda: len(times) == 2, "the second attempt")
    assert times[1] - times[0] >= 0.3


async def test_a_snooze_charges_no_attempt(lab: Lab) -> None:
    """However often a job is put off, it has all of its attempts left."""
    numbers = lab.job_type(retry=Retry(attempts=1))
    app = await lab.app(numbers)
    attempts: list[int] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        attempts.append(job.attempt)
        if len(attempts) < 4:
            await job.snooze(0.1 if len(attempts) % 2 else 0)

    async with lab.working(app):
        await (await lab.producer()).enqueue(numbers, Number(n=1))
        await until(lambda: len(attempts) == 4, "the run after three snoozes")
    assert attempts == [1, 1, 1, 1]
    assert await lab.ready(numbers) == 0


async def test_a_cancelled_job_is_settled_and_leaves_nothing(lab: Lab) -> None:
    """No retry and no dead letter: the next job is all that is left."""
    numbers = lab.job_type(retry=FAST)
    app = await lab.app(numbers)
    runs: list[int] = []
    events: list[JobEvent] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        runs.append(number.n)
        if number.n == 1:
            await job.cancel("unsubscribed")

    async with lab.working(app, concurrency=1, observers=[events.append]):
        await (await lab.producer()).enqueue_many(numbers, [Number(n=1), Number(n=2)])
        await until(lambda: len(events) == 2, "both are settled")
    assert (runs, [event.event for event in events]) == ([1, 2], ["job.cancelled", "job.done"])
    assert await lab.ready(numbers) == 0


# -- what a handler should not do --------------------------------------------------------------------------------------


def _raise(error: BaseException) -> None:
    raise error


def _cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


class Odd(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize(
    "misbehave",
    [
        lambda: _raise(asyncio.CancelledError()),
        _cancel_itself,
        lambda: (_cancel_itself(), _raise(ValueError("and then this"))),
        lambda: _raise(SystemExit(1)),
        lambda: _raise(StopIteration()),
        lambda: _raise(Odd()),
        lambda: _raise(Transient("x", after=math.nan)),
    ],
    ids=["cancelled-error", "cancels-itself", "cancels-itself-and-fails", "exit", "stop", "odd", "nan"],
)
async def test_no_handler_stops_the_worker(lab: Lab, misbehave: Callable[[], object]) -> None:
    """An error of any kind is a failed attempt, of this job alone. A cancelled task is still settled."""
    numbers = lab.job_type(retry=FAST)
    app = await lab.app(numbers)
    events: list[JobEvent] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        if number.n == 1 and job.attempt == 1:
            misbehave()

    async with lab.working(app, observers=[events.append]):
        await (await lab.producer()).enqueue_many(numbers, [Number(n=1), Number(n=2)])
        await until(lambda: sum(event.event == "job.done" for event in events) == 2, "both are done in the end")
    assert await lab.ready(numbers) == 0


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(1), KeyError("x")], ids=repr)
async def test_no_error_of_a_thread_is_lost(lab: Lab, error: BaseException) -> None:
    """Those that a future or an event loop treats in a way of its own are failed attempts too."""
    numbers = lab.job_type(retry=Retry(attempts=1))
    app = await lab.app(numbers)

    @app.handler(numbers)
    def handle(number: Number) -> None:
        raise error

    async with lab.working(app):
        await (await lab.producer()).enqueue(numbers, Number(n=1))
        [dead] = await lab.dead_letters(numbers, 1)
    assert dead.reason == "exhausted"
    assert type(error).__name__ in dead.headers["hareline-traceback"]


async def test_a_failing_observer_unsettles_nothing(lab: Lab) -> None:
    """Observers are told, and their own errors are logged."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    told: list[JobEvent] = []

    @app.handler(numbers)
    async def handle(number: Number) -> None: ...

    def broken(event: JobEvent) -> None:
        raise RuntimeError("no such metrics server")

    async with lab.working(app, concurrency=1, observers=[broken, told.append]) as worker:
        await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(3)])
        await until(lambda: len(told) == 3 and worker.running == 0, "all three are settled")
    assert await lab.ready(numbers) == 0


# -- order and number --------------------------------------------------------------------------------------------------


async def test_no_more_jobs_of_a_type_run_than_concurrency_allows(lab: Lab) -> None:
    """Exactly as many as allowed, of each type, and the next one only when one has ended."""
    one, other = lab.job_type("one"), lab.job_type("other")
    app = await lab.app(one, other)
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    release = asyncio.Semaphore(0)
    ended: list[int] = []

    async def handle(number: Number, job: Job) -> None:
        running[job.type] += 1
        most[job.type] = max(most[job.type], running[job.type])
        await release.acquire()
        running[job.type] -= 1
        ended.append(number.n)

    app.handler(one)(handle)
    app.handler(other)(handle)
    async with lab.working(app, concurrency=5):
        producer = await lab.producer()
        for job_type in (one, other):
            await producer.enqueue_many(job_type, [Number(n=n) for n in range(20)])
        await until(lambda: running.total() == 10, "five of each run")
        for _ in range(40):
            release.release()
        await until(lambda: len(ended) == 40, "all have run")
    assert most == {one.name: 5, other.name: 5}


async def test_one_at_a_time_jobs_of_a_type_run_in_their_order(lab: Lab) -> None:
    """First in, first out, where concurrency is one."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    seen: list[int] = []

    @app.handler(numbers)
    async def handle(number: Number) -> None:
        await asyncio.sleep(0)
        seen.append(number.n)

    await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(300)])
    async with lab.working(app, concurrency=1):
        await until(lambda: len(seen) == 300, "all have run")
    assert seen == list(range(300))
