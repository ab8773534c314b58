"""Orders by the thousand whose workers are killed at random: stock, money and shipments add up to the cent."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.books import Books
from tests.lab import Lab
from tests.saga_app import STEPS, Order

SOAK = bool(os.environ.get("HARELINE_SOAK"))
ORDERS = 5_000 if SOAK else 200
LONG = 1_500.0
KILL_EVERY = (1.0, 4.0)
"""Seconds, at random between them: a worker process takes about one to start."""
HOWS = ("permanent", "error", "late")


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
        while True:
            await asyncio.sleep(draw.uniform(*KILL_EVERY))
            kills += await asyncio.to_thread(books.kill_one, draw)

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
