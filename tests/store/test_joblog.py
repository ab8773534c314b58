"""The job log on both databases: reports that come twice or in any order leave the same rows."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select

from hareline import Jobs, OptionInvalid
from store import joblog, outbox, reporters, tables
from store.engine import Database
from store.joblog import Merged
from store.outbox import OutboxRow
from store.reporters import Heading, with_numbers
from store.schema import upgrade
from store.tables import attempts, jobs
from topology.errors import CursorInvalid, NotFound

pytestmark = pytest.mark.machine

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
T = NOON.timestamp()
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)

texts = st.none() | st.sampled_from(["a", "B", "é", "nul\0"])
details = st.fixed_dictionaries(
    {},
    optional={
        "due_at": st.sampled_from([T, T + 60]),
        "message": texts,
        "payload": texts,
        "priority": st.none() | st.integers(0, 2),
        "correlation_id": texts,
    },
)
events = st.tuples(
    st.sampled_from(list(joblog._EVENTS)),
    st.sampled_from(["j1", "j2"]),
    st.sampled_from(["t", "U"]),
    st.integers(0, 1),
    st.integers(0, 2),
    st.sampled_from([T, T + 0.000001, T + 1.5]),
    st.none() | st.sampled_from([0.25, 1.0]),
    texts,
    st.none() | details,
).map(list)
batches = st.lists(
    st.tuples(st.lists(events, min_size=1, max_size=5), st.dictionaries(st.sampled_from("tU"), st.sampled_from("xYé"))),
    min_size=1,
    max_size=4,
)


async def write(database: Database, *told: tuple[list[Any], dict[str, str]]) -> None:
    for rows, groups in told:
        merged = Merged.empty()
        merged.add(rows, groups)
        async with database.transaction() as connection:
            await joblog.merge(connection, merged)


async def rows_of(database: Database) -> tuple[list[Any], list[Any]]:
    async with database.reading() as connection:
        log = (await connection.execute(select(jobs).order_by(jobs.c.id))).all()
        ends = select(attempts).order_by(attempts.c.job_id, attempts.c.replay, attempts.c.attempt)
        return list(map(tuple, log)), list(map(tuple, (await connection.execute(ends)).all()))


async def any_order(url: str, told: list[Any], shuffled: list[Any], again: list[Any]) -> None:
    database = Database(url)
    try:
        outcomes = []
        together = ([row for rows, _ in told for row in rows], {})
        for order in (told, shuffled, [*shuffled, *again]):
            async with database.transaction() as connection:
                await connection.execute(delete(jobs))
                await connection.execute(delete(attempts))
            await write(database, *order)
            outcomes.append(await rows_of(database))
        assert outcomes[0] == outcomes[1] == outcomes[2]
        await write(database, together)
        assert await rows_of(database) == outcomes[0]
    finally:
        await database.close()


def test_any_order_and_any_repetition_leave_the_same_rows(database_url: str) -> None:
    """Also where reports contradict each other at the very same moment."""

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(batches, st.randoms(use_true_random=False))
    def check(told: list[Any], dice: random.Random) -> None:
        shuffled = [(dice.sample(rows, len(rows)), groups) for rows, groups in dice.sample(told, len(told))]
        asyncio.run(any_order(database_url, told, shuffled, dice.sample(told, max(1, len(told) // 2))))

    check()


async def test_both_databases_upgrade(database: Database) -> None:
    """The tables are those of this version."""
    before, after = await upgrade(database)
    assert before == after


async def test_a_life(database: Database) -> None:
    """Queued with a delay, tried twice: one row of the job, one of each attempt."""
    told: list[Any] = [
        ["job.queued", "a", "mail", 0, 0, T, None, None, {"payload": "{}", "priority": 3, "due_at": T + 9}],
        ["job.retrying", "a", "mail", 0, 1, T + 11, 2.0, "Transient", {"message": "no\0", "due_at": T + 20}],
        ["job.done", "a", "mail", 0, 2, T + 21, 0.5, None, None],
    ]
    await write(database, (told[:1], {"mail": "post"}))
    [[row], _] = await rows_of(database)
    assert row[3] == "scheduled"
    await write(database, (told[1:2], {}))
    async with database.reading() as connection:
        job = (await connection.execute(select(jobs))).one()
    assert (job.status, job.error, job.error_message) == ("retrying", "Transient", "no\ufffd")
    await write(database, (told[2:], {}))
    async with database.reading() as connection:
        job = (await connection.execute(select(jobs))).one()
        ends = (await connection.execute(select(attempts).order_by(attempts.c.attempt))).all()
    assert (job.status, job.group_name, job.priority, job.payload, job.attempt) == ("done", "post", 3, "{}", 2)
    assert (job.accepted_at, job.seen_at, job.error) == (NOON, NOON, None)
    assert job.finished_at - job.started_at == timedelta(seconds=0.5)
    assert [(end.outcome, end.duration, end.error) for end in ends] == [
        ("retrying", 2.0, "Transient"),
        ("done", 0.5, None),
    ]


def test_what_makes_no_sense_is_refused_alone() -> None:
    merged = Merged.empty()
    nonsense: list[Any] = [
        None, [], ["job.done"], ["job.what", "a", "t", 0, 1, T, None, None, None],
        ["job.done", "", "t", 0, 1, T, None, None, None], ["job.done", "a", "t", -1, 1, T, None, None, None],
        ["job.done", "a", "t", 0, True, T, None, None, None], ["job.done", "a", "t", 0, 1, 1e300, None, None, None],
        ["job.done", "a", "t", 0, 1, None, None, None, None], [["x"], "a", "t", 0, 1, T, None, None, None],
        ["job.done", "a", "t", 0, 1, T, 1e300, None, None], ["job.done", "a", "t" * 256, 0, 1, T, None, None, None],
    ]  # fmt: skip
    assert merged.add([*nonsense, ["job.done", "b", "t", 2**40, 2**40, T, None, None, 5]], {}) == 1
    assert (merged.refused, list(merged.jobs)) == (len(nonsense), ["b"])


async def test_the_longest_names_fit_the_indexes(database: Database) -> None:
    """255 characters of four bytes each, of no pattern that could be compressed."""
    dice = random.Random(1)
    job_id, job_type, group = ("".join(chr(dice.randrange(0x10000, 0x10FFFF)) for _ in range(255)) for _ in range(3))
    await write(database, ([["job.dead", job_id, job_type, 0, 1, T, None, "E" * 999, None]], {job_type: group}))
    [row], _ = await rows_of(database)
    assert row[:3] == (job_id, job_type, group)


# -- reading -----------------------------------------------------------------------------------------------------------


async def test_pages_by_filters_and_cursor(database: Database) -> None:
    """The latest first, none twice, none missing, also where many are of one moment; a cursor is of its filters."""
    told = [["job.done", f"j{n:02}", "ab"[n % 2], 0, 1, T + n // 7, 0.0, None, None] for n in range(40)]
    await write(database, (told, {"a": "g"}), ([["job.dead", "x", "b", 0, 1, T + 100, 0.0, "E", None]], {}))
    log = Jobs(database, clock=lambda: NOON + timedelta(seconds=10))
    seen: list[str] = []
    cursor = None
    while True:
        page = await log.list(type="a", limit=3, cursor=cursor)
        seen += [job.id for job in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert seen == sorted((row[1] for row in told if row[2] == "a"), reverse=True)
    assert {job.id for job in (await log.list(group="g", since=timedelta(seconds=6))).items} == {
        row[1] for row in told if row[2] == "a" and row[5] >= T + 4
    }
    assert [job.id for job in (await log.list(status="dead")).items] == ["x"]
    first = (await log.list(limit=1)).next
    assert first
    for bad in (first[:-2], "x", "", first[::-1]):
        with pytest.raises(CursorInvalid):
            await log.list(cursor=bad)
    with pytest.raises(CursorInvalid):
        await log.list(status="done", cursor=first)
    for wrong in ({"status": "well"}, {"limit": 0}, {"since": datetime(2026, 1, 1)}):  # noqa: DTZ001 - the point
        with pytest.raises(OptionInvalid):
            await log.list(**wrong)  # type: ignore[arg-type]


async def test_a_job_that_is_not_published_yet_is_known(database: Database) -> None:
    """Its row in the outbox says so; what nobody knows is not found."""
    log = Jobs(database, clock=lambda: NOON)
    async with database.transaction() as connection:
        rows = [OutboxRow("now", "t", b"{}", "enqueue"), OutboxRow("later", "t", b"{}", "enqueue", due_at=NOON + HOUR)]
        await outbox.add(connection, rows)
    assert [await log.status(job_id) for job_id in ("now", "later")] == ["queued", "scheduled"]
    assert (await log.get("now")).payload == "{}"
    with pytest.raises(NotFound, match="nobody"):
        await log.get("nobody")


async def waits(database: Database, *given: tuple[OutboxRow, datetime]) -> None:
    """Rows in the outbox, as of the times given."""
    async with database.transaction() as connection:
        for row, at in given:
            await connection.execute(insert(tables.outbox).values({**outbox.values_of(row), "created_at": at}))


async def test_pages_hold_what_waits_in_the_outbox_in_its_place(database: Database) -> None:
    """One order over both, however they mix; a job that the log knows as well is there once, as the log has it."""
    told = [["job.done", f"j{n:02}", "a", 0, 1, T + n, 0.0, None, None] for n in range(20)]
    await write(database, (told, {"a": "g"}))
    waiting = [
        (OutboxRow(f"w{n:02}", "ab"[n % 2], b'{"n": 1}', "enqueue", group_name="gh"[n % 2]), NOON + n * SECOND / 2)
        for n in range(30)
    ]
    due = OutboxRow("due", "b", b"\xff", "enqueue", due_at=NOON + HOUR, priority=3)
    await waits(database, *waiting, (due, NOON - HOUR), (OutboxRow("j03", "a", b"{}", "replay"), NOON + HOUR / 2))
    log = Jobs(database, clock=lambda: NOON + HOUR / 2)

    async def everything(limit: int, **filters: Any) -> list[str]:
        seen: list[str] = []
        cursor = None
        while True:
            page = await log.list(limit=limit, cursor=cursor, **filters)
            assert len(page.items) == limit or page.next is None
            seen += [job.id for job in page.items]
            cursor = page.next
            if cursor is None:
                return seen

    places = {row[1]: (T + (row[5] - T), row[1]) for row in told}
    places |= {row.job_id: (at.timestamp(), row.job_id) for row, at in waiting}
    expected = [*sorted(places, key=lambda name: places[name], reverse=True), "due"]
    assert await everything(7) == await everything(1) == expected
    for filters, wanted in (
        ({"status": "queued"}, {row.job_id for row, _ in waiting}),
        ({"status": "scheduled"}, {"due"}),
        ({"status": "done"}, {row[1] for row in told}),
        ({"type": "b"}, {"due", *(row.job_id for row, _ in waiting[1::2])}),
        ({"group": "g"}, {*(row[1] for row in told), *(row.job_id for row, _ in waiting[::2])}),
        ({"since": HOUR / 2, "type": "b"}, {row.job_id for row, _ in waiting[1::2]}),
        ({"status": "dead"}, set()),
    ):
        found = await everything(3, **filters)
        assert (set(found), len(found)) == (wanted, len(wanted)), filters
    [job] = (await log.list(status="scheduled")).items
    assert (job.payload, job.priority, job.due_at) == ("\N{REPLACEMENT CHARACTER}", 3, NOON + HOUR)
    assert job.seen_at == job.accepted_at == NOON - HOUR
    counts = await log.stats()
    assert counts.by_status == {"done": 20, "queued": 30, "scheduled": 1}
    assert counts.by_type == {"a": {"done": 20, "queued": 15}, "b": {"queued": 15, "scheduled": 1}}
    assert counts.by_group == {"g": {"done": 20, "queued": 15}, "h": {"queued": 15}}


async def test_counts(database: Database) -> None:
    told = [
        ["job.done", "a", "t", 0, 1, T - 60, 0.0, None, None],
        ["job.dead", "b", "t", 0, 1, T - 60, 0.0, "E", None],
        ["job.done", "c", "u", 0, 1, T - 7200, 0.0, None, None],
    ]
    await write(database, (told, {"t": "g"}))
    found = await Jobs(database, clock=lambda: NOON).stats()
    assert found.by_status == {"done": 2, "dead": 1}
    assert found.by_type == {"t": {"done": 1, "dead": 1}, "u": {"done": 1}}
    assert found.by_group == {"g": {"done": 1, "dead": 1}}
    assert found.last_hour == {"done": 1, "dead": 1}


# -- who reported ------------------------------------------------------------------------------------------------------


async def test_batches_that_are_missing_are_counted_and_repeated_ones_are_not(database: Database) -> None:
    """A gap is missing until it arrives."""

    async def missing(*numbers: int) -> int:
        async with database.transaction() as connection:
            await reporters.note(connection, [Heading("r", n, n * 2) for n in numbers], NOON)
            found = await reporters.losses(connection)
        assert found.dropped == 10
        return found.missing

    assert await missing(5, 1, 5) == 3
    assert await missing(5, 1) == 3
    assert await missing(2, 3) == 1
    assert await missing(4) == 0


def test_more_gaps_than_are_kept() -> None:
    """The oldest are closed, and stay counted as missing: what comes from there later is not new."""
    ranges, added = with_numbers([], range(1, 2001, 2))
    assert (len(ranges), added) == (200, 1000)
    assert with_numbers(ranges, [2, 1998])[1] == 1
