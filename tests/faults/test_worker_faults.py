"""Workers and brokers that are killed while jobs run: every job is done or in the dead-letter queue, none is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.faults.proxy import Proxy
from tests.lab import Lab, until
from tests.ledger_app import BEGAN, DONE, Work
from tests.nodes import Node
from tests.workshop import Workshop

pytestmark = pytest.mark.timeout(600)

SOAK = bool(os.environ.get("HARELINE_SOAK"))
JOBS = 20_000 if SOAK else 4_000
LONG = 300.0


async def workshop_of(lab: Lab, directory: Path, *, priority: bool = False) -> Workshop:
    workshop = Workshop(lab, directory, priority=priority)
    await lab.apply(workshop.job_type)
    return workshop


async def balanced(workshop: Workshop, jobs: int, dead: int = 0) -> None:
    """Waits for the books to close: every job done, ``dead`` of them dead, and nothing left in the queue."""
    await workshop.done(jobs - dead, LONG)
    await workshop.settled()
    done = workshop.ledger.runs(DONE)
    again = sum(count - 1 for count in done.values())
    print(f"{jobs} jobs: {len(done)} done, {dead} dead, 0 lost, {again} run twice")


async def no_dead_letters(workshop: Workshop, but: int = 0) -> None:
    """None of ours, ``but`` those that were taken off already. Other tests' may lie there."""
    counts = await workshop.lab.control.counts(workshop.lab.names.dlq)
    if counts is not None and counts.ready:
        with pytest.raises(AssertionError, match=f"{but} of {but + 1} dead letters"):
            await workshop.lab.dead_letters(workshop.job_type, but + 1, within=1.0)


# -- jobs that kill ----------------------------------------------------------------------------------------------------


@pytest.mark.kills
@pytest.mark.parametrize("killers", [1, 3] if SOAK else [1])
@pytest.mark.parametrize("kind", ["plain", "priority"])
async def test_a_job_that_kills_its_worker_goes_alone(lab: Lab, tmp_path: Path, kind: str, killers: int) -> None:
    """Among a hundred neighbours, twenty at a time: exactly the killers are dead, every innocent is done."""
    workshop = await workshop_of(lab, tmp_path, priority=kind == "priority")
    jobs = [Work(n=n, seconds=0.02) for n in range(100)]
    for killer in range(killers):
        jobs.insert(30 + 20 * killer, Work(n=1000 + killer, kill=True))
    ids = await workshop.enqueue(jobs)
    guilty = {job_id for job_id, job in zip(ids, jobs, strict=True) if job.kill}
    async with workshop.worker("--processes", "2", "--concurrency", "20") as process:
        dead = await lab.dead_letters(workshop.job_type, killers, LONG)
        await balanced(workshop, 100 + killers, killers)
        assert await workshop.stopped(process) == 0
    assert {letter.id for letter in dead} == guilty
    assert {letter.reason for letter in dead} <= {"worker-lost", "delivery_limit"}
    assert set(workshop.ledger.runs(DONE)) == set(range(100))
    await no_dead_letters(workshop, killers)


# -- workers that are killed -------------------------------------------------------------------------------------------


@pytest.mark.kills
@pytest.mark.parametrize("kind", ["plain", "priority"])
async def test_no_job_is_lost_when_workers_are_killed(lab: Lab, tmp_path: Path, kind: str) -> None:
    """Four times one of two workers is killed in the middle of its jobs, and another one takes its place."""
    workshop = await workshop_of(lab, tmp_path, priority=kind == "priority")
    await workshop.enqueue([Work(n=n, seconds=0.005) for n in range(JOBS)])
    async with AsyncExitStack() as stack:

        async def another() -> Process:
            return await stack.enter_async_context(workshop.worker("--concurrency", "20"))

        workers = [await another(), await another()]
        for kill in range(1, 5):
            await until(
                lambda: len(workshop.ledger.runs(DONE)) >= JOBS * kill // 6,  # noqa: B023
                "some more are done",
                LONG,
            )
            victim = workers.pop(0)
            victim.kill()
            await victim.wait()
            workers.append(await another())
        await balanced(workshop, JOBS)
        for worker in workers:
            # The last one may not have come so far as to know what to do with a signal.
            assert await workshop.stopped(worker) in {0, -signal.SIGTERM}
    assert set(workshop.ledger.runs(DONE)) == set(range(JOBS))
    assert set(workshop.ledger.runs(BEGAN)) == set(range(JOBS))
    await no_dead_letters(workshop)


# -- brokers that are killed -------------------------------------------------------------------------------------------


@pytest.mark.kills
@pytest.mark.parametrize("kind", ["plain", "priority"])
async def test_no_job_is_lost_when_the_broker_is_killed(lab: Lab, node: Node, tmp_path: Path, kind: str) -> None:
    """SIGKILL in the middle of the jobs, twice; the workers wait for it and go on by themselves.

    A classic queue forgets many of its acknowledgements in the crash, so there far more run twice.
    """
    workshop = await workshop_of(lab, tmp_path, priority=kind == "priority")
    await node.keep_topology()
    jobs = JOBS if kind == "plain" else JOBS // 8
    await workshop.enqueue([Work(n=n, seconds=0.005) for n in range(jobs)])
    async with workshop.worker("--processes", "2", "--concurrency", "20") as process:
        for kill in (1, 2):
            await until(
                lambda: len(workshop.ledger.runs(DONE)) >= jobs * kill // 4,  # noqa: B023
                "some more are done",
                LONG,
            )
            await node.kill()
            await asyncio.shield(node.start())
        await workshop.done(jobs, LONG)
        async with Lab(lab.settings, "after") as again:
            workshop.lab = again
            await balanced(workshop, jobs)
            assert await workshop.stopped(process) == 0
            await no_dead_letters(workshop)
    assert set(workshop.ledger.runs(DONE)) == set(range(jobs))


# -- networks that fail ------------------------------------------------------------------------------------------------


async def test_no_job_is_lost_when_the_network_is_cut(lab: Lab, tmp_path: Path) -> None:
    """Eight resets in the middle of the jobs. Only those whose acknowledgement the cut took along run twice."""
    workshop = await workshop_of(lab, tmp_path)
    await workshop.enqueue([Work(n=n, seconds=0.005) for n in range(JOBS)])
    async with (
        Proxy(lab.settings.broker_urls[0]) as proxy,
        workshop.worker("--concurrency", "20", HARELINE_BROKER_URL=proxy.url) as process,
    ):
        for cut in range(1, 9):
            await until(
                lambda: len(workshop.ledger.runs(DONE)) >= JOBS * cut // 10,  # noqa: B023
                "some more are done",
                LONG,
            )
            proxy.cut()
        await balanced(workshop, JOBS)
        assert await workshop.stopped(process) == 0
    assert set(workshop.ledger.runs(DONE)) == set(range(JOBS))
    await no_dead_letters(workshop)


async def test_a_worker_drains_although_the_network_has_stalled(lab: Lab, tmp_path: Path) -> None:
    """Nothing passes and nobody says so: a SIGTERM still ends the worker, and the next one does its jobs."""
    workshop = await workshop_of(lab, tmp_path)
    async with (
        Proxy(lab.settings.broker_urls[0]) as proxy,
        workshop.worker(HARELINE_BROKER_URL=proxy.url, HARELINE_GRACE="1s") as process,
    ):
        await workshop.enqueue([Work(n=n, gate=str(workshop.gate)) for n in range(5)])
        await workshop.begun(5)
        proxy.stall(new=True)
        workshop.gate.touch()
        assert await workshop.stopped(process) == 0
    async with workshop.worker() as process:
        # Of the first run nobody could be told.
        await until(lambda: len(workshop.ledger.rows(DONE)) == 10, "all five are done again")
        await workshop.settled()
        assert await workshop.stopped(process) == 0
