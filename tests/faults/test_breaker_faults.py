"""Breakers where processes die, brokers go and networks fail: no job is lost or charged, and no breaker stays shut."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from pathlib import Path

import pytest

from consumers.circuit import State
from hareline import App, Breaker, Job, Retry
from tests.faults.proxy import Proxy
from tests.lab import Lab, Number, until
from tests.ledger_app import BEGAN, DONE, Work
from tests.nodes import Node
from tests.service import Service, call
from tests.workshop import Workshop

RECOVERY = 200.0
"""Seconds for a broker that was killed: on a busy machine its quorum queues take a minute to have leaders again."""
JOBS = 60


@pytest.fixture
async def workshop(lab: Lab, tmp_path: Path) -> Workshop:
    workshop = Workshop(lab, tmp_path, app="tests.breaker_app:app")
    await lab.apply(workshop.job_type)
    return workshop


def environment(service: Service) -> dict[str, str]:
    return {
        "SERVICE_PORT": str(service.port),
        "BREAKER_NAME": f"b-{secrets.token_hex(4)}",
        "BREAKER_RESET": "4",
        "BREAKER_PROBES": "1",
    }


async def opened(workshop: Workshop, times: int = 1) -> None:
    await until(lambda: workshop.log.read_text().count("is open") >= times, "the breakers are open")
    await workshop.paused()


@pytest.mark.kills
async def test_a_worker_killed_during_its_probe_gives_the_right_to_try_back(workshop: Workshop) -> None:
    """The broker sees its connection end; the other worker tries, and closes the breaker."""
    async with Service() as service:
        await service.be("failing")
        settings = environment(service)
        async with workshop.worker(**settings) as one, workshop.worker(**settings) as two:
            await until(lambda: workshop.log.read_text().count("consuming") == 2, "both consume")
            await workshop.enqueue([Work(n=n) for n in range(JOBS)])
            await opened(workshop, 2)
            before = len(workshop.ledger.rows(BEGAN))
            await service.be("hanging")
            await until(lambda: service.at_once == 1, "a probe")
            await until(lambda: len(workshop.ledger.rows(BEGAN)) > before, "it is noted")
            victim = workshop.ledger.rows(BEGAN)[-1][1]
            survivor = two if victim == one.pid else one
            os.kill(victim, signal.SIGKILL)
            await until(lambda: service.at_once == 1 and service.calls >= 2, "the other one's probe")
            assert workshop.ledger.rows(BEGAN)[-1][1] == survivor.pid
            assert service.most_at_once == 1
            await service.be("up")
            await workshop.done(JOBS)
            await workshop.settled()
            assert await workshop.stopped(survivor) == 0
    assert workshop.ledger.runs(DONE).keys() == set(range(JOBS))
    await workshop.lab.dead_letters(workshop.job_type, 0)


@pytest.mark.kills
async def test_a_worker_stopped_during_its_probe_charges_nothing(workshop: Workshop) -> None:
    """Its job goes back, its right too; the next worker does all of them."""
    async with Service() as service:
        await service.be("failing")
        settings = environment(service)
        async with workshop.worker(**settings, HARELINE_GRACE="100ms") as one:
            await workshop.enqueue([Work(n=n) for n in range(JOBS)])
            await opened(workshop)
            await service.be("hanging")
            await until(lambda: service.at_once == 1, "a probe")
            assert await workshop.stopped(one) == 0
        await service.be("up")
        async with workshop.worker(**settings) as two:
            await workshop.done(JOBS)
            await workshop.settled()
            assert await workshop.stopped(two) == 0
    assert workshop.ledger.runs(DONE).keys() == set(range(JOBS))
    assert max(attempt for _, _, attempt in workshop.ledger.rows(BEGAN)) <= 3


@pytest.mark.kills
@pytest.mark.timeout(500)
async def test_the_broker_is_killed_while_the_breaker_is_open(workshop: Workshop, node: Node) -> None:
    """Both workers come back, agree again on who may try, and all jobs are done."""
    await node.keep_topology()
    async with Service() as service:
        await service.be("failing")
        settings = environment(service)
        async with workshop.worker(**settings) as one, workshop.worker(**settings) as two:
            await until(lambda: workshop.log.read_text().count("consuming") == 2, "both consume")
            await workshop.enqueue([Work(n=n) for n in range(JOBS)])
            await opened(workshop, 2)
            await node.kill()
            await asyncio.shield(node.start())
            await until(lambda: workshop.log.read_text().count("consuming") == 4, "both are back", RECOVERY)
            await service.be("hanging")
            await until(lambda: service.at_once == 1, "a probe")
            await service.be("up")
            async with Lab(workshop.lab.settings, "after") as again:
                workshop.lab = again
                await workshop.done(JOBS, RECOVERY)
                await workshop.settled()
                assert await workshop.stopped(one) == 0
                assert await workshop.stopped(two) == 0
                await again.dead_letters(workshop.job_type, 0)
    assert workshop.ledger.runs(DONE).keys() == set(range(JOBS))


@pytest.mark.timeout(500)
async def test_a_network_that_is_cut_again_and_again_leaves_no_breaker_stuck(lab: Lab) -> None:
    """Each cut ends the listening and the right to try, in whatever state the breaker is."""
    numbers = lab.job_type(retry=Retry(attempts=50, base=0.1, jitter=0.0))
    await lab.apply(numbers)
    name = f"b-{secrets.token_hex(4)}"
    async with Service() as service, Proxy(lab.settings.broker_urls[0]) as proxy:
        done: set[int] = set()
        breakers = [Breaker(name, reset=0.3, probes=1) for _ in range(2)]
        apps = [app_of(numbers, breaker, service, done) for breaker in breakers]
        through = type(lab.settings).from_env({"HARELINE_BROKER_URL": proxy.url, "HARELINE_REPORT": "off",
                                               "HARELINE_NAMESPACE": lab.settings.namespace})  # fmt: skip
        async with lab.working(apps[0], settings=through), lab.working(apps[1], settings=through):
            await service.be("failing")
            await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(JOBS)])
            for turn in range(8):
                await until(lambda: any(b.state is not State.CLOSED for b in breakers), "one is open")
                await service.be("hanging" if turn % 2 else "failing")
                proxy.cut()
            await service.be("up")
            await until(lambda: len(done) == JOBS, "all are done", RECOVERY)
            await until(lambda: all(b.state is State.CLOSED for b in breakers), "both are closed")


async def test_a_stalled_network_keeps_no_replica_from_trying_for_ever(lab: Lab) -> None:
    """With the broker silent what a worker has running goes on, by what it sees itself, and it drains."""
    numbers = lab.job_type(retry=Retry(attempts=50, base=0.1, jitter=0.0))
    await lab.apply(numbers)
    async with Service() as service, Proxy(lab.settings.broker_urls[0]) as proxy:
        done: set[int] = set()
        breaker = Breaker(f"b-{secrets.token_hex(4)}", reset=0.3)
        app = app_of(numbers, breaker, service, done)
        through = type(lab.settings).from_env({"HARELINE_BROKER_URL": proxy.url, "HARELINE_REPORT": "off",
                                               "HARELINE_NAMESPACE": lab.settings.namespace,
                                               "HARELINE_GRACE": "1s", "HARELINE_PUBLISH_TIMEOUT": "1s"})  # fmt: skip
        await service.be("failing")
        async with lab.working(app, settings=through):
            await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(JOBS)])
            await until(lambda: breaker.state is State.OPEN, "it opens")
            proxy.stall(new=True)
            await until(lambda: breaker.state is State.HALF_OPEN, "its time passes")
        proxy.cut()  # else the broker would take its jobs and its right to try back when it misses a few heartbeats
        await service.be("up")
        async with lab.working(app_of(numbers, Breaker(breaker.name, reset=0.3), service, done)):
            await until(lambda: len(done) == JOBS, "all are done")


def app_of(job_type, breaker: Breaker, service: Service, done: set[int]) -> App:
    app = App(job_types=[job_type])

    @app.handler(job_type, breaker=breaker)
    async def handle(number: Number, job: Job) -> None:
        async with breaker:
            await call(service.port)
        done.add(number.n)

    return app
