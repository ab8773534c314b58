"""Orders by the thousand whose workers are killed at random: stock, money and shipments add up to the cent."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.books import Books
from tests.lab import Lab, until
from tests.saga_app import STEPS, Order

SOAK = bool(os.environ.get("HARELINE_SOAK"))
ORDERS = 5_000 if SOAK else 200
LONG = 1_500.0
KILLS = 150 if SOAK else 12
HOWS = ("permanent", "error", "late")


async def _has_written(books: Books, entries: float) -> bool:
    await asyncio.sleep(0.1)
    return (await books.entries()).total() >= entries


@pytest.mark.soak
@pytest.mark.kills
@pytest.mark.machine
@pytest.mark.timeout(1_800)
async def test_the_books_balance_however_often_workers_are_killed(
    lab: Lab, tmp_path: Path, postgresql_url: str
) -> None:
    """A third of the orders fail, at each step and in each way; every tenth is started twice."""
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    books = Books(lab, tmp_path, postgresql_url)
    await books.open()
    orders = [
        Order(
            n=n,
            cents=draw.randrange(1, 100_000),
            fail=draw.choice(STEPS) if draw.random() < 1 / 3 else "",
            how=draw.choice(HOWS),
        )
        for n in range(ORDERS)
    ]
    began, kills = time.monotonic(), 0

    async def kill() -> None:
        nonlocal kills
        written = 0.0
        while True:  # by progress, so that a slow machine has no more of them than a fast one
            written += draw.uniform(0.5, 1.5) * 4 * ORDERS / KILLS
            await until(partial(_has_written, books, written), "the workers get on", LONG)
            kills += books.kill_one(draw)

    async with books.workers("--processes", "3", "--concurrency", "20") as process:
        killing = asyncio.create_task(kill())
        await books.start(orders)
        await books.start(orders[::10])
        await books.balanced(LONG)
        killing.cancel()
        with suppress(asyncio.CancelledError):
            await killing
        assert await books.stopped(process) == 0
    await books.checked()
    failed = sum(bool(order.fail) for order in orders)
    print(f"{ORDERS} orders, {failed} failing, {kills} kills, {time.monotonic() - began:.0f} s, seed {seed}")
