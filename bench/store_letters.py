"""A million dead letters: how fast a filtered page is, more are recorded, and those of a job type are replayed."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

from arena import Arena
from peers.meter import percentiles
from processes import ContenderError
from producers.dead_letters import DeadLetterFilters, DeadLetters
from store_database import Store
from store_graveyard import ERRORS, REFUSED, TIMEOUT, TYPES, bury, kinds, publish
from store_recorder import progress
from store_roles import NAMES, Role, expect_queue, prepare, settings

LETTERS = 1_000_000
RECORDED = 30_000
PAGE = 100
PAGES = 10  # of each filter
PASSES = 2
PURPOSE = "dead letters"


def listing(arena: Arena, effort) -> dict:
    """Milliseconds for a page of 100, over many filters, each followed page by page."""
    return asyncio.run(_list(arena, _graveyard(arena, effort)))


async def _list(arena: Arena, store: Store) -> dict:
    samples, slowest = [], (0.0, "")
    async with DeadLetters(settings(arena, store)) as desk:
        await desk.list(limit=1)  # connects
        for _ in range(PASSES):
            for filters in _filters():
                cursor = None
                for _ in range(PAGES):
                    began = time.perf_counter()
                    page = await desk.list(filters, limit=PAGE, cursor=cursor)
                    samples.append(time.perf_counter() - began)
                    slowest = max(slowest, (samples[-1], repr(filters)))
                    cursor = page.next
                    if cursor is None:
                        break
    return {"pages": len(samples), "slowest": slowest[1]} | percentiles(samples)


def _filters() -> list[DeadLetterFilters]:
    now = datetime.now(UTC)
    common, foreign = TIMEOUT.name, REFUSED.name
    (job_type, group), (other, _) = TYPES[0], TYPES[-1]
    mark = next(kind.fingerprint for kind in kinds() if (kind.job_type, kind.error) == (job_type, common))
    return [
        DeadLetterFilters(),
        DeadLetterFilters(status=None),
        DeadLetterFilters(status="replayed"),
        DeadLetterFilters(status="discarded", type=job_type),
        DeadLetterFilters(type=job_type),
        DeadLetterFilters(error=common),
        DeadLetterFilters(reason="permanent"),
        DeadLetterFilters(group=group),
        DeadLetterFilters(fingerprint=mark),
        DeadLetterFilters(since=now - timedelta(days=1)),
        DeadLetterFilters(since=now - timedelta(hours=1), status=None),
        DeadLetterFilters(type=job_type, error=common),
        DeadLetterFilters(type=job_type, reason="exhausted"),
        DeadLetterFilters(group=group, error=ERRORS[1].name),
        DeadLetterFilters(type=job_type, since=now - timedelta(days=7)),
        DeadLetterFilters(error=common, since=now - timedelta(days=7), status=None),
        DeadLetterFilters(type=other, error=foreign),
        DeadLetterFilters(type=job_type, error=foreign),  # there are many of each, and none that is both
        DeadLetterFilters(reason="exhausted", error=foreign),  # the same
        DeadLetterFilters(type="shop.unknown"),
    ]


def record(arena: Arena, effort) -> dict:
    """Letters/s through one recorder, on top of those that are there; all are in its queue when it starts."""
    store, number = _graveyard(arena, effort), effort.jobs(RECORDED)
    arena.purge(NAMES.dlq)
    asyncio.run(publish(settings(arena, store), number))
    expect_queue(arena, NAMES.dlq, number, "before the measure")
    with store.connect() as connection:
        before, last = connection.execute("SELECT count(*), max(id) FROM hareline_dead_letters").fetchone()
        with Role(arena, store, "recorder") as role:

            def recorded() -> int:
                return connection.execute("SELECT max(id) FROM hareline_dead_letters").fetchone()[0] - last

            done, seconds = progress(recorded, number, role, timeout=60 + number / 200)
            expect_queue(arena, NAMES.dlq, 0, "after all were recorded")
        after = connection.execute("SELECT count(*) FROM hareline_dead_letters").fetchone()[0]
    if after - before != number:
        raise ContenderError(f"{number} letters were in the queue, and the desk has {after - before} more")
    return {"letters": number, "seconds": seconds, "per_second": done / seconds}


def replay(arena: Arena, effort) -> dict:
    """Letters/s from the desk into the outbox: all the dead of one job type."""
    store = _graveyard(arena, effort)
    with store.connect() as connection:
        connection.execute("TRUNCATE hareline_outbox")
        job_type, dead = connection.execute(_LARGEST).fetchone()
        began = time.perf_counter()
        replayed = asyncio.run(_replay(arena, store, job_type))
        seconds = time.perf_counter() - began
        rows = connection.execute("SELECT count(DISTINCT job_id), count(*) FROM hareline_outbox").fetchone()
        connection.execute("TRUNCATE hareline_outbox")
    if (replayed, *rows) != (dead, dead, dead):
        raise ContenderError(f"{dead} letters were dead, {replayed} replayed; {rows[1]} jobs are in the outbox")
    return {"letters": replayed, "seconds": seconds, "per_second": replayed / seconds}


_LARGEST = """
SELECT job_type, count(*) FROM hareline_dead_letters WHERE status = 'dead' GROUP BY job_type ORDER BY 2 DESC LIMIT 1
"""


async def _replay(arena: Arena, store: Store, job_type: str) -> int:
    async with DeadLetters(settings(arena, store)) as desk:
        return await desk.replay(DeadLetterFilters(type=job_type))


def _graveyard(arena: Arena, effort) -> Store:
    """The database with all the letters. Made once for all rounds, as long as one job type has its tenth left dead."""
    letters = int(LETTERS * effort.store)
    for _ in range(2):
        store = arena.postgres.kept(PURPOSE)
        prepare(arena, store)
        with store.connect() as connection:
            if connection.execute("SELECT NOT EXISTS (SELECT FROM hareline_dead_letters)").fetchone()[0]:
                bury(connection, letters)
            if connection.execute(_LARGEST).fetchone()[1] >= letters / 10:
                return store
        arena.postgres.forget(PURPOSE)
    raise ContenderError("no job type has a tenth of the dead letters")
