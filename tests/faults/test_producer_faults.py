"""What the producer guarantees while the broker and the network fail: all that it accepted is in the queue.

Each test keeps a ledger: the ids that `enqueue` returned on one side, the messages in the queue on the other. None may
be missing, none may have been refused that waiting would have saved, and duplicates are counted.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from hareline import JobType, Producer
from tests.faults.proxy import Proxy
from tests.integration.topology_fixtures import take_all
from tests.lab import DEADLINE, Lab, until
from tests.nodes import Node
from topology.control import Control
from topology.errors import BrokerBlocked, ConnectionLost, NotConfirmed

JOBS = 20_000 if os.environ.get("HARELINE_SOAK") else 5_000
CALLERS = 20
PATIENT = 120.0
GROWN_UP = 2.0
"""Seconds after which RabbitMQ 3.10 has written down that a queue exists: one that is younger is forgotten in a crash,
with all that was confirmed for it, and its name answers to nobody any more."""


class Ledger:
    """``JOBS`` jobs, enqueued one by one by some callers at once, and what became of each."""

    def __init__(self, producer: Producer, job_type: JobType[Any], jobs: int = JOBS) -> None:
        self.producer = producer
        self.job_type = job_type
        self.jobs = jobs
        self.accepted: list[str] = []
        self.refused: list[Exception] = []
        self._next = 0

    async def fill(self, fault: Callable[[], Awaitable[None]], at: int | None = None) -> None:
        """Enqueues all; when ``at`` are accepted (default: a quarter), ``fault`` happens, in the midst of it."""
        quarter = self.jobs // 4 if at is None else at
        happened = asyncio.Event()

        async def call() -> None:
            while self._next < self.jobs:
                if self._next >= self.jobs - quarter:
                    await happened.wait()
                number, self._next = self._next, self._next + 1
                try:
                    self.accepted.append(await self.producer.enqueue(self.job_type, {"n": number}, timeout=PATIENT))
                except Exception as error:  # noqa: BLE001 - the ledger takes down whatever it is
                    self.refused.append(error)

        async def strike() -> None:
            await until(lambda: len(self.accepted) + len(self.refused) >= quarter, "a quarter is accepted")
            await fault()
            happened.set()

        await asyncio.wait_for(asyncio.gather(strike(), *(call() for _ in range(CALLERS))), PATIENT)

    async def check(self, lab: Lab, most_duplicates: int) -> int:
        """Every accepted job is in the queue, and no other; returns how many are there twice."""
        assert self.refused == []
        assert len(set(self.accepted)) == self.jobs
        arrived = await arrivals(lab, self.job_type, self.jobs)
        missing = set(self.accepted) - set(arrived)
        assert not missing, f"{len(missing)} of {self.jobs} accepted jobs were lost"
        assert set(arrived) == set(self.accepted)
        duplicates = len(arrived) - self.jobs
        assert duplicates <= most_duplicates
        print(f"{self.jobs} jobs, {duplicates} duplicates")
        return duplicates


async def arrivals(lab: Lab, job_type: JobType[Any], expected: int) -> list[str]:
    """The ids of all messages in the queue, over a connection that the fault has not touched."""
    async with await Control.connect(lab.settings.broker_urls) as control:
        messages = await take_all(control, lab.names.queue(job_type.name), expected)
    return [message.header.properties.message_id for message in messages]


async def grown_up(lab: Lab) -> JobType[Any]:
    """A job type with a queue that is old enough to survive a crash of the broker."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    await asyncio.sleep(GROWN_UP)
    return numbers


@asynccontextmanager
async def through(lab: Lab, query: str = "", **changes: Any) -> AsyncIterator[tuple[Proxy, Producer]]:
    """A producer behind a proxy, connected."""
    async with Proxy(lab.settings.broker_urls[0]) as proxy:
        settings = replace(lab.settings, broker_urls=(proxy.url + query,), **changes)
        async with Producer(settings) as producer:
            await until(lambda: producer._publisher.is_up, "the producer is connected")
            yield proxy, producer


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


# -- the broker --------------------------------------------------------------------------------------------------------


@pytest.mark.kills
async def test_the_broker_killed_while_publishing_loses_nothing(lab: Lab, node: Node) -> None:
    """Callers wait over the crash and the restart; what was unconfirmed goes again under the same id."""
    numbers = await grown_up(lab)
    await node.keep_topology()
    ledger = Ledger(await lab.producer(), numbers)

    async def crash() -> None:
        await node.kill()
        await node.start()

    await ledger.fill(crash)
    await ledger.check(lab, most_duplicates=CALLERS)


@pytest.mark.kills
async def test_a_batch_survives_the_broker_being_killed(lab: Lab, node: Node) -> None:
    """A full window of unconfirmed jobs is on its way when the broker dies; the batch still returns every id."""
    numbers = await grown_up(lab)
    await node.keep_topology()
    window = 500
    producer = await lab.producer(max_unconfirmed=window)
    sent = 0

    def payloads() -> Any:
        nonlocal sent
        for n in range(JOBS):
            sent = n
            yield {"n": n}

    batch = asyncio.create_task(producer.enqueue_many(numbers, payloads(), timeout=PATIENT))
    await until(lambda: sent >= JOBS // 4, "a quarter is on its way")
    await node.kill()
    await node.start()
    ids = await asyncio.wait_for(batch, PATIENT)
    arrived = await arrivals(lab, numbers, JOBS)
    assert (len(set(ids)), set(arrived)) == (JOBS, set(ids))
    assert len(arrived) - JOBS <= window


@pytest.mark.kills
async def test_a_memory_alarm_makes_callers_wait_and_then_say_why(lab: Lab, node: Node) -> None:
    """Within its timeout a call waits for the alarm to clear; past it, BrokerBlocked. Then all goes on."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = await lab.producer()
    first = await producer.enqueue(numbers, {"n": 0})
    try:
        await node.ctl("set_vm_memory_high_watermark", "0.00001")
        patient = asyncio.create_task(producer.enqueue(numbers, {"n": 1}, timeout=PATIENT))
        await until(lambda: producer._publisher._blocked, "the broker says that it is blocked")
        with pytest.raises(BrokerBlocked, match="memory or disk alarm") as caught:
            await producer.enqueue(numbers, {"n": 2}, timeout=0.5)
        assert not caught.value.maybe_enqueued
        assert not patient.done()
    finally:
        await node.ctl("set_vm_memory_high_watermark", "0.4")
    accepted = [first, await asyncio.wait_for(patient, DEADLINE), await producer.enqueue(numbers, {"n": 3})]
    assert await arrivals(lab, numbers, 3) == accepted


# -- the network -------------------------------------------------------------------------------------------------------


async def test_connections_cut_again_and_again_lose_nothing(lab: Lab) -> None:
    """Ten resets in the midst of it; every caller gets its id."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    cuts = 10
    async with through(lab) as (proxy, producer):
        ledger = Ledger(producer, numbers)

        async def cut() -> None:
            for number in range(cuts):
                mark = ledger.jobs // 4 + number * (ledger.jobs // 25)
                await until(lambda mark=mark: len(ledger.accepted) >= mark, "publishing goes on")
                proxy.cut()

        await ledger.fill(cut)
        assert proxy.accepted > 1
    await ledger.check(lab, most_duplicates=cuts * CALLERS)


async def test_a_broker_that_refuses_for_a_while_is_waited_for(lab: Lab) -> None:
    """Cut, and nothing listens; callers wait, and go on when something does."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    async with through(lab) as (proxy, producer):
        ledger = Ledger(producer, numbers)

        async def go() -> None:
            await proxy.refuse()
            with pytest.raises(ConnectionLost):
                await producer.enqueue(numbers, {"n": -1}, timeout=0.3)
            await proxy.accept()

        await ledger.fill(go)
    await ledger.check(lab, most_duplicates=CALLERS)


@pytest.mark.parametrize("towards_client", [True, False], ids=["towards the client", "towards the broker"])
async def test_a_half_closed_connection_is_replaced(lab: Lab, towards_client: bool) -> None:
    """One direction ends in good order, the other stays open: nobody waits for what cannot come."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    async with through(lab) as (proxy, producer):
        ledger = Ledger(producer, numbers, 1000)

        async def half_close() -> None:
            proxy.half_close(towards_client=towards_client)

        await ledger.fill(half_close)
        assert proxy.accepted > 1
    await ledger.check(lab, most_duplicates=CALLERS)


async def test_a_stalled_connection_is_found_by_its_heartbeat(lab: Lab) -> None:
    """Nothing passes and nobody is told, as when a firewall forgets; the producer finds out and connects anew."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    async with through(lab, "?heartbeat=1") as (proxy, producer):
        ledger = Ledger(producer, numbers, 1000)

        async def stall() -> None:
            proxy.stall()

        await ledger.fill(stall)
        assert proxy.accepted > 1
    await ledger.check(lab, most_duplicates=CALLERS)


async def test_a_stall_that_passes_costs_only_those_who_would_not_wait(lab: Lab) -> None:
    """NotConfirmed at the caller's timeout, which says that the job may run; the connection is used again after it."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    async with through(lab) as (proxy, producer):
        first = await producer.enqueue(numbers, {"n": 0})
        proxy.stall()
        patient = asyncio.create_task(producer.enqueue(numbers, {"n": 1}, timeout=PATIENT))
        with pytest.raises(NotConfirmed, match="did not confirm it in time") as caught:
            await producer.enqueue(numbers, {"n": 2}, key="hasty", timeout=0.5)
        assert caught.value.maybe_enqueued
        assert not patient.done()
        proxy.resume()
        accepted = [first, await asyncio.wait_for(patient, DEADLINE), await producer.enqueue(numbers, {"n": 3})]
        assert proxy.accepted == 1
    arrived = await arrivals(lab, numbers, 4)
    assert set(arrived) == {*accepted, numbers.id_for_key("hasty")}
    assert len(arrived) == 4


async def test_what_was_not_sent_for_a_full_window_did_not_happen(lab: Lab) -> None:
    """Behind a stall and a window of one: the second caller knows that its job was not sent."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    async with through(lab, max_unconfirmed=1) as (proxy, producer):
        proxy.stall()
        patient = asyncio.create_task(producer.enqueue(numbers, {"n": 1}, timeout=PATIENT))
        await asyncio.sleep(0)  # it has run up to its wait
        with pytest.raises(NotConfirmed, match="it was not sent") as caught:
            await producer.enqueue(numbers, {"n": 2}, timeout=0.3)
        assert not caught.value.maybe_enqueued
        proxy.resume()
        await asyncio.wait_for(patient, DEADLINE)
    assert await arrivals(lab, numbers, 1) == [patient.result()]


# -- which broker ------------------------------------------------------------------------------------------------------


async def test_no_broker_at_all_is_an_error_within_the_timeout(lab: Lab) -> None:
    """ConnectionLost names the address and the reason, without the password."""
    url = f"amqp://guest:secret@127.0.0.1:{free_port()}/"
    async with asyncio.timeout(DEADLINE), Producer(replace(lab.settings, broker_urls=(url,))) as producer:
        with pytest.raises(ConnectionLost, match=r"amqp://127\.0\.0\.1:\d+/.*refused") as caught:
            await producer.enqueue(lab.job_type(), {"n": 1}, timeout=0.5)
    assert not caught.value.maybe_enqueued
    assert "secret" not in str(caught.value)


async def test_of_two_brokers_the_first_is_dead(lab: Lab) -> None:
    """The next address is tried at once."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    urls = (f"amqp://guest:guest@127.0.0.1:{free_port()}/", *lab.settings.broker_urls)
    producer = await lab.producer(broker_urls=urls)
    ids = await producer.enqueue_many(numbers, [{"n": n} for n in range(10)])
    assert await arrivals(lab, numbers, 10) == ids


async def test_of_two_brokers_the_first_is_silent(lab: Lab) -> None:
    """One that accepts and never answers does not use up the time that a publish may wait."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    async with Proxy(lab.settings.broker_urls[0]) as proxy:
        proxy.stall(new=True)
        producer = await lab.producer(broker_urls=(proxy.url, *lab.settings.broker_urls), publish_timeout=10.0)
        job_id = await producer.enqueue(numbers, {"n": 1})
        assert proxy.accepted == 1
    assert await arrivals(lab, numbers, 1) == [job_id]


async def test_a_broker_that_goes_is_replaced_by_the_other(lab: Lab) -> None:
    """Both are up; the one in use goes for good, in the midst of it."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    url = lab.settings.broker_urls[0]
    async with Proxy(url) as one, Proxy(url) as other:
        producer = await lab.producer(broker_urls=(one.url, other.url))
        ledger = Ledger(producer, numbers, 2000)
        await ledger.fill(one.refuse)
        assert (one.accepted, other.accepted) == (1, 1)
        await producer.close()
    await ledger.check(lab, most_duplicates=CALLERS)


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_closing_waits_for_what_is_on_its_way(lab: Lab) -> None:
    """Calls that were made before it return their ids, even those still waiting for a connection."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = Producer(replace(lab.settings, max_unconfirmed=50))
    await producer.open()
    calls = [asyncio.create_task(producer.enqueue(numbers, {"n": n})) for n in range(500)]
    await asyncio.sleep(0)  # each has run up to its wait
    await producer.close()
    assert all(call.done() for call in calls)
    assert await arrivals(lab, numbers, 500) == [call.result() for call in calls]


async def test_closing_without_a_broker_ends_in_time_and_fails_who_waits(lab: Lab) -> None:
    """The timeout of close is the limit; each caller is told."""
    producer = Producer(replace(lab.settings, broker_urls=(f"amqp://127.0.0.1:{free_port()}/",)))
    await producer.open()
    calls = [asyncio.create_task(producer.enqueue(lab.job_type(), {"n": 1}, timeout=PATIENT)) for _ in range(3)]
    await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE):
        await producer.close(timeout=0.3)
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionLost] * 3


async def test_closing_behind_a_stall_ends_in_time(lab: Lab) -> None:
    """A broker that does not even answer the close holds nobody up."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    async with through(lab) as (proxy, producer):
        proxy.stall(new=True)
        call = asyncio.create_task(producer.enqueue(numbers, {"n": 1}, timeout=PATIENT))
        await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE):
            await producer.close(timeout=0.3)
        with pytest.raises(NotConfirmed):
            await call


async def test_closing_does_not_wait_for_callers_who_have_gone(lab: Lab) -> None:
    """A cancelled call leaves nothing behind that would have to be flushed."""
    producer = Producer(replace(lab.settings, broker_urls=(f"amqp://127.0.0.1:{free_port()}/",)))
    await producer.open()
    call = asyncio.create_task(producer.enqueue(lab.job_type(), {"n": 1}, timeout=PATIENT))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    async with asyncio.timeout(DEADLINE):
        await producer.close(timeout=PATIENT)
