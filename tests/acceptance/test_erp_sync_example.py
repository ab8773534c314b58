"""The worked ERP sync against a real HTTP server that fails on command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from consumers.breaker import Breaker
from consumers.circuit import State
from examples.erp_sync.app import Api, Order, build, counts, sync_order
from examples.erp_sync.erp import Erp
from hareline import Job, Transient
from hareline.loopback import free_ports
from tests.example_script import own_namespace, run_example
from tests.lab import Lab, until
from topology.envelope import Envelope
from topology.settings import Settings

# The examples are of one broker or another; the sagas and the breaker below them are tested on each.
pytestmark = pytest.mark.machine


@pytest.fixture
async def mine(session_settings: Settings) -> AsyncIterator[Lab]:
    async with own_namespace(session_settings, "erp") as lab:
        yield lab


@pytest.fixture
async def erp() -> AsyncIterator[Erp]:
    async with Erp().serve() as erp:
        yield erp


@asynccontextmanager
async def syncing(lab: Lab, erp: Erp, *, patience: float = 30.0) -> AsyncIterator[Breaker]:
    """A worker of the example's app."""
    breaker = Breaker("erp", failures=5, reset=3.0, probes=3, counts=counts)
    await lab.apply(sync_order)
    async with lab.working(build(Api(f"http://127.0.0.1:{erp.port}", timeout=patience, pause=0.01), breaker)):
        yield breaker


async def enqueue(lab: Lab, count: int, first: int = 1) -> None:
    orders = [Order(id=n, version=1, total=9.5) for n in range(first, first + count)]
    await (await lab.producer()).enqueue_many(sync_order, orders)


async def test_the_commands_do_what_they_say(mine: Lab) -> None:
    output = await run_example(mine, "erp_sync/app.py", {"8090": str(free_ports(1)[0])})
    assert output.rstrip().endswith('{"mode": "ok", "orders": 8}')


async def test_a_blip_costs_no_attempt(mine: Lab, erp: Erp) -> None:
    """Two connections of three break: tenacity asks again within the attempt, and the breaker stays closed."""
    erp.mode = "blip"
    async with syncing(mine, erp) as breaker:
        await enqueue(mine, 20)
        await until(lambda: len(erp.orders) == 20, "all orders are in")
        assert {attempt for _, attempt, _ in erp.requests} == {1}
        assert len(erp.requests) == 60
        assert breaker.state is State.CLOSED


@pytest.mark.parametrize("mode", ["limited", "busy"])
async def test_retry_after_is_kept_to(mine: Lab, erp: Erp, mode: str) -> None:
    """The ERP is asked again when it said, not before; a limit is no failure of the ERP's."""
    erp.mode, erp.retry_after = mode, 3
    async with syncing(mine, erp) as breaker:
        await enqueue(mine, 1)
        await until(lambda: bool(erp.requests), "the ERP was asked")
        erp.mode = "ok"
        await until(lambda: len(erp.orders) == 1, "the order is in")
        attempts, times = [attempt for _, attempt, _ in erp.requests], [time for _, _, time in erp.requests]
        assert attempts == list(range(1, len(attempts) + 1))
        assert min(later - earlier for earlier, later in pairwise(times)) >= 2.9
        await until(lambda: breaker.standing().failures == 0, "the breaker knows that the ERP is up")
        assert breaker.state is State.CLOSED


@pytest.mark.parametrize("mode", ["down", "hang", "reset"])
async def test_an_outage_opens_the_breaker_and_costs_few_attempts(mine: Lab, erp: Erp, mode: str) -> None:
    """Afterwards every order is in; only those that found out lost an attempt, whatever the others waited."""
    erp.mode = mode
    async with syncing(mine, erp, patience=2.0 if mode == "hang" else 30.0) as breaker:
        await enqueue(mine, 40)
        await until(lambda: breaker.state is State.OPEN, "the breaker is open")
        erp.mode = "ok"
        await until(lambda: len(erp.orders) == 40, "all orders are in")
        await until(lambda: breaker.state is State.CLOSED, "the breaker is closed")
        # Ten run at a time, and four that failed may have made room before the fifth; then three at a time may try.
        assert len({path for path, attempt, _ in erp.requests if attempt > 1}) <= 20
        assert sorted(erp.orders) == sorted(f"/orders/{n}" for n in range(1, 41))


async def test_what_the_erp_will_never_take_is_dead_and_no_outage(mine: Lab, erp: Erp) -> None:
    async with syncing(mine, erp) as breaker:
        producer = await mine.producer()
        await producer.enqueue_many(sync_order, [Order(id=n, version=1, total=-1) for n in range(8)])
        letters = await mine.dead_letters(sync_order, 8)
        assert {letter.reason for letter in letters} == {"permanent"}
        assert "422" in str(letters[0].headers)
        assert (breaker.state, breaker.standing().failures) == (State.CLOSED, 0)


def job(number: int) -> Job:
    job_id = f"0192f0c1-0000-7000-8000-{number:012}"
    return Job(Envelope(job_id, "erp.sync-order", 1, 0, job_id, None, {}, b""))


async def test_a_repeat_and_an_older_version_change_nothing(erp: Erp) -> None:
    """The ERP knows a repeat by its key; a version that was overtaken is done with."""
    api = Api(f"http://127.0.0.1:{erp.port}")
    async with api.client() as client:
        await api.put(Order(id=1, version=2, total=2.0), job(2), client)
        await api.put(Order(id=1, version=2, total=2.0), job(2), client)
        await api.put(Order(id=1, version=1, total=1.0), job(1), client)
    assert (erp.repeats, erp.orders["/orders/1"]["version"]) == (1, 2)


async def test_tenacity_gives_up_after_three_tries(erp: Erp) -> None:
    erp.mode = "reset"
    api = Api(f"http://127.0.0.1:{erp.port}", pause=0.01)
    async with api.client() as client:
        with pytest.raises(Transient):
            await asyncio.wait_for(api.put(Order(id=1, version=1, total=1.0), job(1), client), 60)
    assert len(erp.requests) == 3
