"""Dead letters as rows, on both databases: recorded once, found, replayed exactly once, edited, put away."""

from __future__ import annotations

import asyncio
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pika.spec import BasicProperties
from sqlalchemy import select

from consumers.obituary import letter_of
from hareline import DeadLetters, JobType, OptionInvalid, PayloadInvalid
from producers.dead_letters import DeadLetterFilters
from store import dead_letters as rows
from store import replays
from store.dead_letters import NewLetter
from store.engine import Database
from store.tables import outbox
from tests.lab import DEADLINE, Number
from topology.errors import CursorInvalid, NotFound
from topology.spec import Names

pytestmark = pytest.mark.machine

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
number = JobType("number.count", Number)


def letter(n: int, body: bytes = b'{"n": 1}', job_type: str = "number.count", **headers: Any) -> NewLetter:
    died = (NOON - timedelta(minutes=n)).isoformat()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {"hareline-died-at": died, "hareline-error": "ValueError", "hareline-error-message": f"no {n}"} | given
    properties = BasicProperties(message_id=f"job-{n}", type=job_type, headers=given)
    return letter_of(Names("t"), properties, body, NOON, {})


async def recorded(database: Database, *letters: NewLetter) -> None:
    async with database.transaction() as connection:
        await rows.record(connection, letters, NOON)


async def published(database: Database) -> list[Any]:
    async with database.reading() as connection:
        return list((await connection.execute(select(outbox).order_by(outbox.c.id))).all())


@pytest.fixture
def desk(database: Database) -> DeadLetters:
    return DeadLetters(database, job_types=[number], clock=lambda: NOON)


async def test_a_letter_that_comes_twice_is_one_row(database: Database, desk: DeadLetters) -> None:
    await recorded(database, letter(1), letter(2), letter(1))
    await recorded(database, letter(2))
    assert await desk.count() == 2


async def test_pages_filters_and_cursors(database: Database, desk: DeadLetters) -> None:
    await recorded(database, *(letter(n) for n in range(7)), letter(50, job_type="other"))
    seen: list[str] = []
    cursor = None
    for _ in range(3):
        page = await desk.list(DeadLetterFilters(type="number.count"), limit=3, cursor=cursor)
        seen += [item.job_id for item in page.items]
        cursor = page.next
    assert (seen, cursor) == ([f"job-{n}" for n in range(7)], None)
    cursor = (await desk.list(DeadLetterFilters(), limit=3)).next
    assert cursor is not None
    for wrong in (cursor[:-2] + "xx", "nonsense"):
        with pytest.raises(CursorInvalid):
            await desk.list(DeadLetterFilters(), limit=3, cursor=wrong)
    with pytest.raises(CursorInvalid):
        await desk.list(DeadLetterFilters(type="other"), cursor=cursor)
    assert len((await desk.list(DeadLetterFilters(since=NOON - timedelta(minutes=2), status=None))).items) == 3
    assert (await desk.list(DeadLetterFilters(error="KeyError"))).items == ()
    with pytest.raises(NotFound):
        await desk.get(999)


async def test_stats_and_groups(database: Database, desk: DeadLetters) -> None:
    await recorded(database, letter(1), letter(2), letter(3 * 24 * 60), letter(4, hareline_error="KeyError"))
    stats = await desk.stats()
    assert (stats.total, stats.last_24h, stats.by_type) == (4, 3, {"number.count": 4})
    assert stats.oldest == NOON - timedelta(days=3)
    assert [(group.error, group.count) for group in await desk.groups()] == [("ValueError", 3), ("KeyError", 1)]
    assert await desk.died_within(1) == 3


async def test_a_replay_goes_to_the_outbox_as_it_was_without_its_failures(
    database: Database, desk: DeadLetters
) -> None:
    odd = {"x_death": [{"reason": "rejected", "count": 2}], "hareline_replay": 2, "mine": "kept"}
    await recorded(database, letter(1, b"\x00\xff not json", hareline_undecodable="so", hareline_attempt=3, **odd))
    (item,) = (await desk.list()).items
    assert item.payload == "\x00\\xff not json"
    assert await desk.replay([item.id], dry_run=True) == 1
    assert await published(database) == []
    assert await desk.replay([item.id, item.id]) == 1
    assert await desk.replay([item.id]) == 0
    (row,) = await published(database)
    assert (row.job_id, row.job_type, row.body, row.origin) == ("job-1", "number.count", b"\x00\xff not json", "replay")
    assert row.headers == {"mine": "kept", "hareline-replay": 3}
    now = await desk.get(item.id)
    assert (now.status, now.replays, now.replayed_at, now.replay_job_id) == ("replayed", 3, NOON, "job-1")


async def test_all_that_match_in_the_same_form(database: Database, desk: DeadLetters) -> None:
    await recorded(database, *(letter(n, mine="kept", hareline_attempt=3) for n in range(30)))
    await recorded(database, letter(99, job_type="other"))
    told: list[int] = []
    assert await desk.replay(DeadLetterFilters(type="number.count"), rate=1000, progress=told.append) == 30
    found = await published(database)
    assert sum(told) == len(found) == len({row.job_id for row in found}) == 30
    assert all(row.headers == {"mine": "kept", "hareline-replay": 1} for row in found)
    assert {row.origin for row in found} == {"replay"}
    assert await desk.replay(DeadLetterFilters(type="number.count")) == 0
    with pytest.raises(OptionInvalid):
        await desk.replay(DeadLetterFilters(), rate=0)


async def test_two_callers_replay_each_letter_once(database: Database, desk: DeadLetters) -> None:
    await recorded(database, *(letter(n) for n in range(200)))
    ids = [item.id for item in (await desk.list(limit=200)).items]
    done = await asyncio.gather(desk.replay(ids), desk.replay(sorted(ids)), desk.replay(DeadLetterFilters()))
    found = await published(database)
    assert sum(done) == len(found) == len({row.job_id for row in found}) == 200


async def test_a_rolled_back_replay_has_done_nothing(database: Database, desk: DeadLetters) -> None:
    await recorded(database, letter(1))
    (item,) = (await desk.list()).items
    with pytest.raises(RuntimeError):
        async with database.transaction() as connection:
            await replays.replay(connection, [item.id], NOON)
            raise RuntimeError
    assert (await desk.get(item.id)).status == "dead"
    assert await published(database) == []


async def test_an_edit_is_a_new_job_that_names_the_old(database: Database, desk: DeadLetters) -> None:
    await recorded(database, letter(1, b"nonsense"))
    (item,) = (await desk.list()).items
    with pytest.raises(PayloadInvalid):
        await desk.edit(item.id, {"n": "x"})
    job_id = await desk.edit(item.id, {"n": 5})
    (row,) = await published(database)
    assert (row.job_id, row.body, row.headers) == (job_id, b'{"n":5}', {"hareline-replaces": "job-1"})
    assert (await desk.get(item.id)).replay_job_id == job_id
    with pytest.raises(NotFound):
        await desk.edit(item.id, {"n": 6})


async def test_discard_and_clean(database: Database, desk: DeadLetters) -> None:
    await recorded(database, letter(1), letter(31 * 24 * 60))
    new, old = (await desk.list()).items
    assert await desk.discard([new.id]) == 1
    assert await desk.replay([new.id]) == 0
    assert await desk.clean() == 1
    with pytest.raises(NotFound):
        await desk.get(old.id)
    assert (await desk.get(new.id)).status == "discarded"


async def test_headers_that_no_database_takes_are_kept_in_a_form_that_it_does(
    database: Database, desk: DeadLetters
) -> None:
    await recorded(database, letter(1, odd="a\0b", nan=float("nan"), raw=b"\xff\0", at=NOON, hareline_error="E\0"))
    (item,) = (await desk.list()).items
    assert (item.headers["odd"], item.headers["nan"], item.error) == ("a\ufffdb", "nan", "E\ufffd")


async def test_since_is_the_same_moment_on_every_page(database: Database, desk: DeadLetters) -> None:
    """Even if the following page is asked for later, when "so long ago" is another moment."""
    await recorded(database, *(letter(n) for n in range(8)))
    page = await desk.list(DeadLetterFilters(since=NOON - timedelta(minutes=5)), limit=4)
    later = DeadLetterFilters(since=NOON - timedelta(minutes=4))
    rest = await desk.list(later, limit=4, cursor=page.next)
    assert ([item.job_id for item in rest.items], rest.next) == (["job-4", "job-5"], None)
    with pytest.raises(CursorInvalid, match="without 'since'"):
        await desk.list(later, limit=4, cursor=(await desk.list(limit=4)).next)


async def test_a_group_is_replayed_by_its_fingerprint(database: Database, desk: DeadLetters) -> None:
    await recorded(database, letter(1), letter(2), letter(3, hareline_error="KeyError"))
    largest, other = await desk.groups()
    assert await desk.replay(DeadLetterFilters(fingerprint=largest.fingerprint)) == largest.count == 2
    assert {row.job_id for row in await published(database)} == {"job-1", "job-2"}
    assert [group.fingerprint for group in await desk.groups()] == [other.fingerprint]


async def test_a_rate_is_never_exceeded(database: Database, desk: DeadLetters) -> None:
    await recorded(database, *(letter(n) for n in range(60)))
    ids = [item.id for item in (await desk.list()).items]
    for which in (ids[:30], DeadLetterFilters()):
        began = time.monotonic()
        assert await desk.replay(which, rate=20) == 30
        assert time.monotonic() - began >= 1


async def test_an_unknown_id_stops_a_replay_before_it_began(database: Database, desk: DeadLetters) -> None:
    await recorded(database, *(letter(n) for n in range(3)))
    ids = [item.id for item in (await desk.list()).items]
    for act in (desk.replay, desk.discard):
        with pytest.raises(NotFound, match="no dead letter 999"):
            await act([*ids, 999])
    assert await published(database) == []
    assert await desk.count() == 3


async def test_a_watch_sees_what_commits_late_with_a_lower_id(postgresql: Database) -> None:
    """Of two recorders, the one that began first may commit last."""
    desk = DeadLetters(postgresql)
    ready = asyncio.Event()
    seen = desk.watch(every=0.01, on_ready=ready.set)
    first = asyncio.ensure_future(anext(seen))
    await asyncio.wait_for(ready.wait(), DEADLINE)
    async with postgresql.transaction() as slow:
        await rows.record(slow, [letter(1)], NOON)
        await recorded(postgresql, letter(2))
        assert (await asyncio.wait_for(first, DEADLINE)).job_id == "job-2"
    assert (await asyncio.wait_for(anext(seen), DEADLINE)).job_id == "job-1"


async def test_names_that_no_index_takes_are_cut(database: Database, desk: DeadLetters) -> None:
    long = secrets.token_hex(20_000)  # nothing that could be compressed
    queue = f"t.{long}"
    await recorded(
        database, letter(1, job_type="", hareline_error=long, hareline_reason=long, hareline_origin_queue=queue)
    )
    (item,) = (await desk.list()).items
    assert (item.type, item.error, item.reason, item.queue) == (long[:255], long[:255], long[:255], queue)
