"""The worked example of a saga: real webhooks, a payment provider that fails over real HTTP, real workers."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

import pytest

from hareline import DeadLetterFilters, DeadLetters, Sagas
from tests.lab import DEADLINE, Lab, until
from tests.shop import SECRET, WORKERS, Shop, module, shop

ORDERS = range(1001, 1051)
"""One with each trouble, and others that go well."""

# The demo runs the same shop on each broker.
pytestmark = [pytest.mark.timeout(900), pytest.mark.machine]


async def send(made: Shop) -> Counter[int]:
    async with made.receiving() as receiver:
        answers: Counter[int] = await module("woocommerce").send(receiver, SECRET, ORDERS)
        return answers


async def one_is_stuck(log: Sagas) -> bool:
    counts = await log.counts()
    return counts.get("stuck") == 1 and sum(counts.values()) == len(ORDERS) and not counts.get("running")


async def test_orders_that_fail_at_each_step_are_undone_and_the_books_balance(lab: Lab, sqlite_url: str) -> None:
    """Each order is taken once, though some webhooks come twice; a refund that was refused is replayed."""
    undone = sum(module("troubles").is_undone(number) for number in ORDERS)
    async with shop(lab, sqlite_url) as made, made.working():
        assert await send(made) == {202: 50, 200: 5}
        await made.ended(len(ORDERS) - 1)
        async with Sagas(made.settings) as log, DeadLetters(made.settings) as desk:
            await until(lambda: one_is_stuck(log), "one saga is stuck", 3 * DEADLINE)
            assert not (await made.balance()).is_good
            await until(lambda: has_letter(desk), "the refund that was refused is on the desk", 3 * DEADLINE)
            await made.mend()
            (letter,) = (await desk.list(DeadLetterFilters(type="card.refund"))).items
            assert await desk.replay([letter.id]) == 1
        await made.ended(len(ORDERS))
        found = await made.balance()
    assert found.differences == ()
    assert (found.orders, found.completed, found.compensated) == (len(ORDERS), len(ORDERS) - undone, undone)
    assert 0 < found.refunded < found.charged


async def has_letter(desk: DeadLetters) -> bool:
    return await desk.count(DeadLetterFilters(type="card.refund")) == 1


@pytest.mark.kills
async def test_no_cent_is_lost_when_every_worker_is_killed_in_the_middle(lab: Lab, postgresql_url: str) -> None:
    async with shop(lab, postgresql_url) as made:
        await made.mend()
        async with made.working() as workers, made.working():
            await send(made)
            for done, types in enumerate(WORKERS, start=1):
                await until(lambda done=done: some_charges(made, 5 * done), "orders are being charged", 3 * DEADLINE)
                workers[types].send_signal(signal.SIGKILL)
            await asyncio.gather(*(worker.wait() for worker in workers.values()))
            await made.ended(len(ORDERS))
            found = await made.balance()
    assert found.differences == ()


async def some_charges(made: Shop, expected: int) -> bool:
    return (await made.books())["charges"] >= expected


async def test_a_second_saga_for_an_order_does_nothing(lab: Lab, sqlite_url: str) -> None:
    contracts = module("contracts")
    order = contracts.Order.model_validate(module("woocommerce").document(1001))
    async with shop(lab, sqlite_url) as made, made.working():
        producer = await lab.producer(report=True)
        await producer.start(contracts.fulfil, order)
        await made.ended(1)
        await producer.start(contracts.fulfil, order)
        await made.ended(2)
        found, books = await made.balance(), await made.books()
    assert (found.completed, found.compensated, found.differences) == (1, 1, ())
    assert books["charges"] == 1
