"""Sagas whose workers, broker and database go away at every point: shipped or undone, and each effect once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.books import Books
from tests.lab import Lab, until
from tests.nodes import Node
from tests.saga_app import STEPS, Order

pytestmark = [pytest.mark.timeout(600), pytest.mark.kills]

GOOD, UNSHIPPABLE = Order(n=1), Order(n=2, cents=4950, fail="ship")
POINTS = ("before", "in", "after", "publishing", "published")


async def books_of(lab: Lab, directory: Path, url: str) -> Books:
    books = Books(lab, directory, url)
    await books.open()
    return books


on_postgresql = pytest.mark.machine
CASES = [
    *(pytest.param("sqlite", point, id=f"sqlite-{point}") for point in POINTS),
    *(pytest.param("postgresql", point, id=f"postgresql-{point}", marks=on_postgresql) for point in ("in", "after")),
]


# -- workers that are killed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "point"), CASES)
async def test_a_worker_dies_in_each_step_and_each_undo(
    lab: Lab, tmp_path: Path, request: pytest.FixtureRequest, kind: str, point: str
) -> None:
    """Before the handler, inside its transaction, after its commit, before and after the publish of the next."""
    books = await books_of(lab, tmp_path, request.getfixturevalue(f"{kind}_url"))
    books.order_deaths(*(f"{point}-{what}" for what in ("reserve", "charge", "un-label", "un-reserve")))
    await books.start([GOOD, UNSHIPPABLE])
    async with books.workers() as process:
        await books.balanced()
        assert books.deaths_to_come == []
        assert await books.stopped(process) == 0
    await books.checked()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=on_postgresql)])
async def test_a_worker_dies_while_a_failure_is_decided_and_where_branches_meet(
    lab: Lab, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """Both branches may come to the meeting at the same moment; whoever dies there comes again and sees the same."""
    books = await books_of(lab, tmp_path, request.getfixturevalue(f"{kind}_url"))
    books.order_deaths("decided-ship", "publishing-ship", "joined-charge", "joined-label", "settled-charge")
    await books.start([GOOD, UNSHIPPABLE, *(Order(n=n) for n in range(3, 20))])
    async with books.workers() as process:
        await books.balanced()
        await until(lambda: set(books.deaths_to_come) <= {"joined-label", "joined-charge", "settled-charge"}, "deaths")
        assert await books.stopped(process) == 0
    await books.checked()


async def test_every_message_comes_twice(lab: Lab, tmp_path: Path, sqlite_url: str) -> None:
    """Whatever a step does: what another delivery has committed counts, and so does what one has given up."""
    books = await books_of(lab, tmp_path, sqlite_url)
    failing = [(fail, how) for fail in STEPS for how in ("permanent", "error", "late")]
    orders = [Order(n=n, fail=fail, how=how) for n, (fail, how) in enumerate([("", ""), *failing, *failing])]
    await books.start(orders, times=2)
    async with books.workers(SAGA_TWICE="1") as process:
        await books.balanced()
        assert await books.stopped(process) == 0
    await books.checked()


# -- brokers that are killed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["before", "after", "publishing", "published"])
async def test_the_broker_dies_in_a_step_and_in_an_undo(
    lab: Lab, node: Node, tmp_path: Path, sqlite_url: str, point: str
) -> None:
    books = await books_of(lab, tmp_path, sqlite_url)
    await node.keep_topology()
    books.order_deaths(f"{point}-charge", f"{point}-un-charge")
    await books.start([GOOD, UNSHIPPABLE])
    async with books.workers("--concurrency", "10", SAGA_PAUSE="1") as process:
        for what in ("charge", "un-charge"):
            reached = books.place / f"{point}-{what}.reached"
            await until(reached.exists, f"a worker is {point} {what}")
            await node.kill()
            await node.start()
            reached.unlink()
        async with Lab(lab.settings, "after") as again:
            books.lab = again
            await books.balanced()
            assert await books.stopped(process) == 0
            await books.checked()
