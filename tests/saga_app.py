"""A saga for child processes: each step is rows in a real database, and a worker dies at the point it is told.

A file ``POINT-STEP`` in SAGA_DIR is an order: the worker that removes it dies there; with SAGA_PAUSE it waits there
until the test has removed ``POINT-STEP.reached``. SAGA_TWICE publishes every message twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import text

from consumers.handover import HandOver
from consumers.inbox import Inbox
from hareline import App, Job, JobType, Parallel, Permanent, Retry, Saga, Step
from topology.envelope import Message
from topology.subscription import Delivery

TABLES = (
    "CREATE TABLE entries (n INTEGER NOT NULL, what TEXT NOT NULL, amount INTEGER NOT NULL)",
    "CREATE TABLE stock (item INTEGER NOT NULL PRIMARY KEY, held INTEGER NOT NULL)",
)
ENTRY = text("INSERT INTO entries (n, what, amount) VALUES (:n, :what, :amount)")
FOUND = text("SELECT SUM(amount) FROM entries WHERE n = :n AND what = :what")
STOCK = text("UPDATE stock SET held = held - :amount WHERE item = :item")
ITEMS, HELD = 20, 1_000_000
STEPS = ("reserve", "charge", "label", "ship")
RETRY = Retry(attempts=6, base=0.05, factor=1.5, jitter=0.0)


class Order(BaseModel):
    """``fail`` is the step that fails, ``how`` in which way."""

    n: int
    cents: int = 1999
    fail: str = ""
    how: str = "permanent"


class Kept(BaseModel):
    amount: int


def saga_of(make: Callable[[str], JobType[Any]]) -> Saga[Order]:
    """Of job types that ``make`` gives their names to; the last step has nothing that undoes it."""
    reserve, charge, label = (Step(make(name), undo=make(f"un-{name}")) for name in STEPS[:3])
    ship = make("ship")
    return Saga(f"{ship.name}.saga", reserve, Parallel(charge, label), Step(ship), payload=Order)


def amount_of(order: Order, what: str) -> int:
    return {"reserve": 1 + order.n % 3, "charge": order.cents}.get(what, 1)


# -- dying ------------------------------------------------------------------------------------------------------------

PLACE = Path(os.environ.get("SAGA_DIR", "nowhere"))


async def point(name: str, job_type: str) -> None:
    """Dies here, or waits, once, if the test wants it."""
    wanted = PLACE / f"{name}-{job_type.rsplit('.', 1)[-1]}"
    try:
        wanted.unlink()
    except FileNotFoundError:
        return
    if not os.environ.get("SAGA_PAUSE"):
        os.kill(os.getpid(), signal.SIGKILL)
    reached = wanted.with_suffix(".reached")
    reached.touch()
    while reached.exists():  # noqa: ASYNC110 - another process removes the file
        await asyncio.sleep(0.01)


def rig() -> None:
    """Puts the points that no handler sees into this process."""
    publish, abandon, settle_branch = HandOver.publish, Inbox.abandon, Inbox.settle_branch

    async def published(self: HandOver, delivery: Delivery, messages: Sequence[Message]) -> bool:
        if os.environ.get("SAGA_TWICE"):
            messages = [one for message in messages for one in (message, replace(message))]
        await point("publishing", delivery.job_type)
        confirmed = await publish(self, delivery, messages)
        await point("published", delivery.job_type)
        return confirmed

    async def abandoned(self: Inbox, job_id: str, job_type: str, why: str) -> Any:
        found = await abandon(self, job_id, job_type, why)
        await point("decided", job_type)
        return found

    async def met(self: Inbox, saga_id: str, place: tuple[int, int], outcome: str, of: int) -> Any:
        found = await settle_branch(self, saga_id, place, outcome, of)
        await point("joined" if found else "settled", STEPS[1 + place[1]])
        return found

    HandOver.publish = published  # type: ignore[method-assign]
    Inbox.abandon = abandoned  # type: ignore[method-assign]
    Inbox.settle_branch = met  # type: ignore[method-assign]


# -- the steps --------------------------------------------------------------------------------------------------------


def doing(what: str) -> Any:
    async def effect(order: Order, job: Job) -> Kept:
        if (order.fail, order.how) == (what, "permanent"):
            raise Permanent(f"order {order.n} has no {what}")
        async with job.transaction() as connection:
            amount = amount_of(order, what)
            await connection.execute(ENTRY, {"n": order.n, "what": what, "amount": amount})
            if what == "reserve":
                await connection.execute(STOCK, {"amount": amount, "item": order.n % ITEMS})
            await point("in", what)
            if (order.fail, order.how) == (what, "error"):
                raise ValueError(f"order {order.n}: nobody knows why")
            return job.keep(Kept(amount=amount))

    async def handle(order: Order, job: Job) -> Kept:
        await point("before", what)
        kept = await effect(order, job)
        await point("after", what)
        if (order.fail, order.how) == (what, "late"):
            raise ValueError(f"order {order.n} failed after its commit")
        return kept

    return handle


def undoing(what: str) -> Any:
    async def handle(order: Order, job: Job) -> None:
        await point("before", f"un-{what}")
        assert job.saga is not None
        async with job.transaction() as connection:
            kept = job.saga.result
            found = (await connection.execute(FOUND, {"n": order.n, "what": what})).scalar_one()
            if kept is not None and kept.amount != found:
                raise Permanent(f"the slip says {kept.amount}, the books say {found}")
            if found:
                await connection.execute(ENTRY, {"n": order.n, "what": f"un-{what}", "amount": -found})
                if what == "reserve":
                    await connection.execute(STOCK, {"amount": -found, "item": order.n % ITEMS})
            await point("in", f"un-{what}")
        await point("after", f"un-{what}")

    return handle


def app_of(saga: Saga[Order]) -> App:
    made = App(sagas=[saga])
    for what, step in zip(STEPS, saga.steps, strict=True):
        made.handler(step.job_type)(doing(what))
        if step.undo is not None:
            made.handler(step.undo)(undoing(what))
    return made


if prefix := os.environ.get("SAGA_PREFIX"):
    app = app_of(saga_of(lambda name: JobType(f"{prefix}.{name}", Order, retry=RETRY)))
    rig()
    (PLACE / f"{os.getpid()}.pid").touch()
