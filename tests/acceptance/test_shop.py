"""The worked example of a saga: real webhooks, a payment provider that fails over real HTTP, real workers."""

from __future__ import annotations

import pytest

from hareline import DeadLetters
from producers.dead_letters import DeadLetterFilters
from tests.lab import Lab, until
from tests.shop import Shop, module, shop

ORDERS = range(1001, 1051)


async def start(made: Shop) -> None:
    producer = await made.lab.producer(report=True)
    contracts, woocommerce = module("contracts"), module("woocommerce")
    for number in ORDERS:
        order = contracts.Order.model_validate(woocommerce.document(number))
        await producer.start(contracts.fulfil, order, key=f"order-{number}")


async def test_orders_that_fail_at_each_step_are_undone_and_the_books_balance(lab: Lab, sqlite_url: str) -> None:
    async with shop(lab, sqlite_url) as made, made.working():
        await start(made)
        await made.ended(len(ORDERS) - 1)
        print(await made.balance())
