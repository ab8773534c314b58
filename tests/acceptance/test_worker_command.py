"""``hareline worker`` as a child process: how it starts, drains, stops and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.lab import Lab, until
from tests.ledger_app import BEGAN, DONE, Work
from tests.workshop import Workshop


@pytest.fixture
async def workshop(lab: Lab, tmp_path: Path) -> Workshop:
    workshop = Workshop(lab, tmp_path)
    await lab.apply(workshop.job_type)
    return workshop


# -- start -------------------------------------------------------------------------------------------------------------


async def test_an_unknown_type_is_a_usage_error(workshop: Workshop) -> None:
    """Exit code 2, and the text names what there is."""
    async with workshop.worker("no.such.type") as process:
        assert await asyncio.wait_for(process.wait(), 60) == 2
    assert workshop.logged("no handler for 'no.such.type'")
    assert workshop.logged(workshop.job_type.name)


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_missing_topology_ends_the_worker_with_the_cure(lab: Lab, tmp_path: Path, processes: int) -> None:
    """Exit code 1, and a sentence that says what is missing and which command creates it; no restart cures it."""
    await lab.apply()
    workshop = Workshop(lab, tmp_path)
    async with workshop.worker("--processes", str(processes)) as process:
        assert await asyncio.wait_for(process.wait(), 60) == 1
    assert workshop.logged("hareline topology apply")
    assert workshop.logged(lab.names.queue(workshop.job_type.name))
    assert not workshop.logged("Traceback")


async def test_a_job_longer_than_the_consumer_timeout_is_warned_about(workshop: Workshop) -> None:
    """At the start, with the setting that helps; the worker works all the same."""
    async with workshop.worker(LEDGER_TIMEOUT="7200") as process:
        await workshop.enqueue([Work(n=1)])
        await workshop.done(1)
        assert await workshop.stopped(process) == 0
    assert workshop.logged("may run for 7200 s")
    assert workshop.logged("HARELINE_CONSUMER_TIMEOUT")


async def test_a_dead_first_address_is_passed_over(workshop: Workshop) -> None:
    """Of several broker URLs the first that answers is used."""
    alive = workshop.lab.settings.broker_urls[0]
    async with workshop.worker(HARELINE_BROKER_URL=f"amqp://guest:guest@127.0.0.1:1/,{alive}") as process:
        await workshop.enqueue([Work(n=1)])
        await workshop.done(1)
        assert await workshop.stopped(process) == 0


# -- stop --------------------------------------------------------------------------------------------------------------


async def test_a_signal_lets_running_jobs_end_and_takes_no_more(workshop: Workshop) -> None:
    """What runs is finished within the grace; what waits in the queue is left to the next worker."""
    await workshop.enqueue([Work(n=n, gate=str(workshop.gate)) for n in range(10)])
    async with workshop.worker("--concurrency", "3") as process:
        await workshop.begun(3)
        process.send_signal(signal.SIGTERM)
        await until(lambda: workshop.logged("3 jobs get 25 s to end"), "the worker is stopping")
        workshop.gate.touch()
        assert await asyncio.wait_for(process.wait(), 60) == 0
    assert workshop.ledger.runs(DONE) == {0: 1, 1: 1, 2: 1}
    assert await workshop.lab.ready(workshop.job_type) == 7
    async with workshop.worker() as process:
        await workshop.done(10)
        assert await workshop.stopped(process) == 0
    assert set(workshop.ledger.runs(DONE).values()) == {1}


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_what_does_not_end_in_time_goes_back_uncharged(workshop: Workshop, kind: str) -> None:
    """After the grace it is in its queue again, and the next worker does it as the first attempt.

    A thread cannot be stopped: the process ends all the same, and with it the thread.
    """
    thread = {"LEDGER_THREAD": "1"} if kind == "thread" else {}
    await workshop.enqueue([Work(n=n, gate=str(workshop.gate)) for n in range(5)])
    async with workshop.worker(HARELINE_GRACE="300ms", **thread) as process:
        await workshop.begun(5)
        assert await workshop.stopped(process) == 0
    assert workshop.logged("5 jobs did not end in time")
    assert not workshop.ledger.rows(DONE)
    assert await workshop.lab.ready(workshop.job_type) == 5
    workshop.gate.touch()
    async with workshop.worker(**thread) as process:
        await workshop.done(5)
        assert await workshop.stopped(process) == 0
    assert workshop.ledger.runs(DONE) == dict.fromkeys(range(5), 1)
    assert {attempt for _, _, attempt in workshop.ledger.rows(DONE)} == {1}


async def test_graceful_restarts_use_up_no_deliveries(workshop: Workshop) -> None:
    """A job that is interrupted by more restarts than its delivery limit allows crashes is still run."""
    await workshop.enqueue([Work(n=1, gate=str(workshop.gate))])
    for restart in range(1, 8):
        async with workshop.worker(HARELINE_GRACE="50ms") as process:
            await until(lambda: len(workshop.ledger.rows(BEGAN)) == restart, "it has begun again")  # noqa: B023
            assert await workshop.stopped(process) == 0
    workshop.gate.touch()
    async with workshop.worker() as process:
        await workshop.done(1)
        assert await workshop.stopped(process) == 0


async def test_the_second_signal_stops_at_once(workshop: Workshop) -> None:
    """Exit code 130 with jobs still running; the next worker does them."""
    await workshop.enqueue([Work(n=1, gate=str(workshop.gate))])
    async with workshop.worker() as process:
        await workshop.begun(1)
        process.send_signal(signal.SIGTERM)
        await until(lambda: workshop.logged("1 jobs get 25 s to end"), "the worker is stopping")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 130
    workshop.gate.touch()
    async with workshop.worker() as process:
        await workshop.done(1)
        assert await workshop.stopped(process) == 0


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.mark.kills
async def test_a_killed_process_is_replaced_and_all_end_together(workshop: Workshop) -> None:
    """Three processes share the work; one is killed, the others go on, a new one comes; SIGTERM ends them all."""
    gated = [Work(n=n, gate=str(workshop.gate)) for n in range(3)]
    await workshop.enqueue(gated)
    async with workshop.worker("--processes", "3", "--concurrency", "1") as process:
        await until(lambda: len(workshop.ledger.pids(BEGAN)) == 3, "each process has a job")
        victim = min(workshop.ledger.pids(BEGAN))
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len(workshop.ledger.pids(BEGAN)) == 4, "a fourth process took the lost job")
        workshop.gate.touch()
        await workshop.done(3)
        assert await workshop.stopped(process) == 0
    assert workshop.ledger.runs(DONE) == {0: 1, 1: 1, 2: 1}
    assert not any(map(alive, workshop.ledger.pids(BEGAN)))


@pytest.mark.kills
async def test_children_do_not_outlive_their_parent(workshop: Workshop) -> None:
    """A parent that is killed can tell nobody: they notice, finish what they run, and end."""
    await workshop.enqueue([Work(n=n, gate=str(workshop.gate)) for n in range(2)])
    async with workshop.worker("--processes", "2", "--concurrency", "1") as process:
        await until(lambda: len(workshop.ledger.pids(BEGAN)) == 2, "each process has a job")
        process.kill()
        await process.wait()
        await until(lambda: workshop.logged("is gone: stopping"), "a child has noticed")
        workshop.gate.touch()
        await until(lambda: not any(map(alive, workshop.ledger.pids(BEGAN))), "both have ended")
    assert workshop.ledger.runs(DONE) == {0: 1, 1: 1}
    assert await workshop.lab.ready(workshop.job_type) == 0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
