"""The receiver's clock jumps: what is refused for it comes again, and no key is forgotten that should be known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hareline import WebhookReceiver
from store.engine import Database
from tests.webhooks import NOWHERE, SOURCES, TOKEN, listening, problem, started

pytestmark = pytest.mark.machine

TRUE = 1_900_000_000.0
HOUR, DAY = 3600.0, 86_400.0
TIMED = ("standard", "stripe", "slack")
TIMELESS = ("generic", "github", "woocommerce", "shopify")


class Clock:
    """The receiver's; the senders' are right."""

    def __init__(self) -> None:
        self.off = 0.0

    def __call__(self) -> float:
        return TRUE + self.off


@asynccontextmanager
async def receiving(database: Database, clock: Clock) -> AsyncIterator[Any]:
    async with listening(WebhookReceiver(SOURCES, NOWHERE, database=database, clock=clock)) as found:
        yield found


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_an_hour_off_signed_times_are_refused_and_the_others_taken(database: Database, jump: float) -> None:
    clock = Clock()
    async with receiving(database, clock) as receiver:
        clock.off = jump
        for scheme in TIMED:
            problem(await receiver.deliver(scheme, now=TRUE), 401)
        for scheme in TIMELESS:
            assert (await receiver.deliver(scheme, now=TRUE)).status_code == 202
        assert len(await started(database)) == len(TIMELESS)
        clock.off = 0.0
        for scheme in TIMED:
            assert (await receiver.deliver(scheme, now=TRUE + 60)).status_code == 202, "the sender's repeat"
        for scheme in TIMELESS:
            assert (await receiver.deliver(scheme, now=TRUE)).status_code == 200
        assert len(await started(database)) == len(TIMED) + len(TIMELESS)


@pytest.mark.parametrize(("first", "then"), [(0.0, HOUR), (0.0, -HOUR), (HOUR, 0.0), (-HOUR, 0.0)])
async def test_a_key_is_known_on_either_side_of_a_jump(database: Database, first: float, then: float) -> None:
    clock = Clock()
    async with receiving(database, clock) as receiver:
        clock.off = first
        assert (await receiver.deliver()).status_code == 202
        clock.off = then
        assert (await receiver.deliver()).status_code == 200
        problem(await receiver.deliver(document={"id": 8}), 422)
        clock.off = then + 7 * DAY - HOUR - 1  # the worst that an hour can do to seven days
        assert (await receiver.deliver()).status_code == 200
        assert len(await started(database)) == 1
        clock.off = first + 7 * DAY
        assert (await receiver.deliver()).status_code == 202, "its retention is over"


async def test_a_clock_that_came_back_from_far_ahead_keeps_what_is_known(database: Database) -> None:
    """Keys that it met out there stay longer; what it was told by then is answered and listed as ever."""
    clock = Clock()
    async with receiving(database, clock) as receiver:
        clock.off = 400 * DAY
        ahead = await receiver.deliver(key="ahead")
        clock.off = 0.0
        again = await receiver.deliver(key="ahead")
        assert (again.status_code, again.json()) == (200, ahead.json())
        clock.off = 8 * DAY
        assert (await receiver.deliver(key="ahead")).status_code == 200
        path = f"/webhooks/generic/{ahead.json()['webhook_id']}"
        told = await receiver.client.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
        assert told.json()["status"] == "queued"
    assert len(await started(database)) == 1
