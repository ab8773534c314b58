"""The saga log on both databases: news that come twice or in any order leave the same rows and the same status."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select

from hareline import OptionInvalid, Sagas
from store import saga_gaps, sagalog, sagas_read
from store.engine import Database
from store.inbox import abandon, claim
from store.sagalog import SagaNews, status_of
from store.tables import saga_steps, sagas
from topology.errors import CursorInvalid, NotFound
from topology.slip import job_id

pytestmark = pytest.mark.machine

T = datetime(2026, 5, 4, 12, 0, tzinfo=UTC).timestamp()
ITINERARY = json.dumps([[["reserve", "release"]], [["charge", "refund"]], [["ship", None]]])


def step(place: str, status: str = "done", *, undo: bool = False, at: float = 1.0, **more: Any) -> list[Any]:
    stage, branch = map(int, place.split("."))
    detail = {"step": place, "type": f"type {place} {undo}", **more}
    if status != "done":
        detail |= {"status": status, "began": T}
    if undo:
        detail |= {"undo": True, "job_id": job_id("s", (stage, branch), undo)}
    error = None if status == "done" else "Permanent"
    return ["saga.step", "s", "order", 0, 1, T + at, 0.5, error, detail]


STARTED = ["saga.started", "s", "order", 0, 0, T, None, None, {"itinerary": ITINERARY, "began": T, "payload": "{}"}]
TURNED = [
    "saga.turned", "s", "order", 0, 0, T + 4, None, "Permanent",
    {"step": "2.0", "message": "no", "undos": ["1.0", "0.0"], "itinerary": ITINERARY, "began": T},
]  # fmt: skip
COMPENSATED = [
    STARTED, step("0.0", result={"n": 1}), step("1.0", at=2), step("2.0", "failed", at=3, message="no"), TURNED,
    step("1.0", undo=True, at=5), step("0.0", undo=True, at=6),
]  # fmt: skip


async def write(database: Database, *batches: list[list[Any]]) -> None:
    for batch in batches:
        news = SagaNews()
        news.add(batch)
        async with database.transaction() as connection:
            await sagalog.merge(connection, news)


async def rows(database: Database) -> tuple[list[Any], list[Any]]:
    async with database.reading() as connection:
        found = (await connection.execute(select(sagas))).all()
        steps = (await connection.execute(select(saga_steps).order_by(saga_steps.c.step, saga_steps.c.undo))).all()
    return [tuple(row) for row in found], [tuple(row) for row in steps]


async def status(database: Database, *events: list[Any]) -> str:
    await write(database, *([event] for event in events))
    async with database.reading() as connection:
        return (await sagas_read.get(connection, "s")).status


async def test_news_in_any_order_twice_and_in_any_batches_leave_the_same_rows(database: Database) -> None:
    await write(database, COMPENSATED)
    expected = await rows(database)
    assert expected[0][0][2] == "compensated"
    draw = random.Random(7)
    for _ in range(20):
        async with database.transaction() as connection:
            await connection.execute(delete(sagas))
            await connection.execute(delete(saga_steps))
        news = draw.sample(COMPENSATED * 2, k=2 * len(COMPENSATED))
        cut = draw.randrange(len(news))
        await write(database, news[:cut], news[cut:])
        assert await rows(database) == expected


async def test_two_recorders_at_once_find_the_status_of_both_halves(database: Database) -> None:
    await asyncio.gather(*(write(database, [event]) for event in COMPENSATED))
    assert (await rows(database))[0][0][2] == "compensated"


async def test_the_status_follows_the_steps(database: Database) -> None:
    assert await status(database, STARTED) == "running"
    assert await status(database, step("0.0"), step("1.0")) == "running"
    assert await status(database, step("2.0")) == "completed"


async def test_a_dead_undo_makes_it_stuck_until_it_is_done(database: Database) -> None:
    assert await status(database, *COMPENSATED[:5]) == "compensating"
    assert await status(database, step("1.0", "dead", undo=True, at=5), COMPENSATED[6]) == "stuck"
    assert await status(database, step("1.0", undo=True, at=9)) == "compensated"
    assert await status(database, step("1.0", "dead", undo=True, at=10)) == "compensated"


async def test_what_is_lost_with_a_killed_worker_follows_from_later_steps(database: Database) -> None:
    assert await status(database, STARTED, step("1.0")) == "running"
    async with database.reading() as connection:
        found = await sagas_read.get(connection, "s")
    assert [one.status for one in found.steps] == ["done", "done", "pending"]
    assert await status(database, step("2.0")) == "completed"


async def test_undos_tell_by_themselves_that_it_turned_round(database: Database) -> None:
    assert await status(database, STARTED, step("1.0", undo=True)) == "compensating"
    assert await status(database, step("0.0", undo=True)) == "compensated"


async def test_a_step_that_failed_with_nothing_to_undo_ends_it(database: Database) -> None:
    only = [*STARTED[:8], {"itinerary": json.dumps([[["ship", None]]]), "began": T}]
    assert await status(database, only, step("0.0", "failed")) == "compensated"


async def test_what_nobody_told_is_found_in_the_inbox(database: Database) -> None:
    """The last step's news, and then the last undo's, went with their workers; the inbox has both."""
    now = datetime.fromtimestamp(T, UTC) + timedelta(minutes=1)
    await write(database, COMPENSATED[:6])
    async with database.transaction() as connection:
        await claim(connection, job_id("s", (0, 0), undoing=True), "release")
    assert await look(database, now - timedelta(hours=1)) is None
    assert await status(database) == "compensating"
    position = await look(database, now)
    assert position is not None
    assert await status(database) == "compensated"
    assert await look(database, now, position) is None


async def test_a_failure_that_nobody_told_is_found_too(database: Database) -> None:
    await write(database, COMPENSATED[:3])
    async with database.transaction() as connection:
        why = json.dumps({"error": "Permanent", "message": "no", "undo": False})
        await abandon(connection, job_id("s", (2, 0), undoing=False), "ship", why)
    await look(database, datetime.fromtimestamp(T, UTC) + timedelta(minutes=1))
    assert await status(database) == "compensating"
    async with database.reading() as connection:
        found = await sagas_read.get(connection, "s")
    assert [(one.status, one.error) for one in found.steps][2] == ("failed", "Permanent")


async def look(database: Database, silent_since: datetime, after: Any = None) -> Any:
    async with database.transaction() as connection:
        return await saga_gaps.fill(connection, silent_since, after)


async def test_one_saga_step_by_step(database: Database) -> None:
    await write(database, COMPENSATED[:4])
    async with database.reading() as connection:
        found = await sagas_read.get(connection, "s")
    assert [(s.direction, s.type, s.status) for s in found.steps] == [
        ("do", "type 0.0 False", "done"), ("do", "type 1.0 False", "done"), ("do", "type 2.0 False", "failed"),
    ]  # fmt: skip
    assert (found.steps[0].result, found.payload, found.steps[2].error) == ('{"n":1}', "{}", "Permanent")
    await write(database, [TURNED])
    async with database.reading() as connection:
        found = await sagas_read.get(connection, "s")
    assert [(s.direction, s.type, s.status) for s in found.steps[3:]] == [
        ("undo", "refund", "pending"), ("undo", "release", "pending"),
    ]  # fmt: skip
    assert (found.failed_step, found.error_message) == ("2.0", "no")


async def test_pages_filters_and_what_is_refused(database: Database) -> None:
    def saga(number: int) -> list[Any]:
        event = ["saga.started", f"s{number}", "even" if number % 2 == 0 else "odd", 0, 0, T, None, None]
        return [*event, {"itinerary": ITINERARY, "began": T + number}]

    await write(database, [saga(number) for number in range(5)])
    async with Sagas(database) as log:
        page = await log.list(limit=2)
        assert [item.id for item in page.items] == ["s4", "s3"]
        assert [item.id for item in (await log.list(limit=2, cursor=page.next)).items] == ["s2", "s1"]
        assert [item.id for item in (await log.list(name="odd")).items] == ["s3", "s1"]
        assert [item.id for item in (await log.list(since=datetime.fromtimestamp(T + 4, UTC))).items] == ["s4"]
        assert (await log.list(status="stuck")).items == []
        assert await log.counts() == {"running": 5}
        for wrong in ({"status": "well"}, {"limit": 0}, {"name": "nul\0"}):
            with pytest.raises(OptionInvalid):
                await log.list(**wrong)
        with pytest.raises(CursorInvalid):
            await log.list(name="odd", cursor=page.next)
        for unknown in ("nobody", "nul\0"):
            with pytest.raises(NotFound):
                await log.get(unknown)


@pytest.mark.parametrize(
    "event",
    [
        ["saga.step", "s", "order", 0, 1, T, None, None, None],
        ["saga.step", "", "order", 0, 1, T, None, None, step("0.0")[8]],
        ["saga.step", "s", "order", 0, 1, T, None, None, {**step("0.0")[8], "status": "well"}],
        ["saga.step", "s", "order", -1, 1, T, None, None, step("0.0")[8]],
        ["saga.step", "s", "order", 0, 1, float("nan"), None, None, step("0.0")[8]],
        ["saga.turned", "s", "order", 0, 0, T, None, "E", {"step": "0.0", "began": T, "undos": [None]}],
        ["saga.started", "s", "order", 0, 0, T, None, None, {"began": T, "itinerary": "{}x"}],
        ["saga.started", "s"],
        7,
    ],
)
async def test_news_that_make_no_sense_are_refused_alone(database: Database, event: Any) -> None:
    news = SagaNews()
    assert news.add([event, STARTED]) == 1
    assert news.refused == 1
    async with database.transaction() as connection:
        await sagalog.merge(connection, news)
    assert await status(database) == "running"


async def test_ended_sagas_are_removed_before_those_that_wait(database: Database) -> None:
    other = [[*event[:1], "other", *event[2:]] for event in COMPENSATED[:5]]
    await write(database, COMPENSATED, other)
    later = datetime.fromtimestamp(T, UTC) + timedelta(hours=1)
    async with database.transaction() as connection:
        assert await sagas_read.clean(connection, later, later - timedelta(hours=2), 10) == 1
        assert await sagas_read.clean(connection, later, later, 10) == 1
    assert await rows(database) == ([], [])


def test_the_status_of_what_is_known_in_part() -> None:
    assert status_of(None, None, {}) == "running"
    assert status_of(None, None, {("0.0", False): "dead"}) == "stuck"
    assert status_of(ITINERARY, "[]", {}) == "compensated"
