"""The scheduler issues each occurrence once, whoever runs beside it, whatever the clock does."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update

from producers.scheduler import Scheduler
from store.engine import Database
from store.recovery import persistently
from store.schedule_queue import occurrence_job_id
from store.tables import jobs, occurrences, outbox, schedules
from tests.databases import opened
from tests.lab import until
from tests.postgres import Cluster

pytestmark = pytest.mark.machine

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


class Clock:
    """A clock that stands until it is set."""

    def __init__(self, now: datetime = NEW_YEAR) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


async def add(database: Database, schedule_id: str = "s", due: datetime = NEW_YEAR, **columns: Any) -> None:
    """A schedule, every minute from the new year unless ``columns`` say otherwise."""
    await add_all(database, [row(schedule_id, due, **columns)])


def row(schedule_id: str, due: datetime = NEW_YEAR, **columns: Any) -> dict[str, Any]:
    kind = columns.pop("kind", "every")
    return {
        "id": schedule_id,
        "kind": kind,
        "job_type": "report.send",
        "payload": json.dumps({"schedule": schedule_id}),
        "payload_hash": "",
        "priority": 3,
        "status": "active",
        "expression": None,
        "zone": None,
        "interval_seconds": 60.0 if kind == "every" else None,
        "start_at": NEW_YEAR if kind == "every" else None,
        "next_run_at": due,
        "misfire": "latest",
        "misfire_window": None,
        "overlap": "allow",
        "source": "api",
        "unique_key": None,
        "created_at": NEW_YEAR,
        "updated_at": NEW_YEAR,
        **columns,
    }


async def add_all(database: Database, rows: list[dict[str, Any]]) -> None:
    async with database.transaction() as connection:
        await connection.execute(insert(schedules), rows)


async def of(database: Database, schedule_id: str = "s") -> Any:
    async with database.reading() as connection:
        return (await connection.execute(select(schedules).where(schedules.c.id == schedule_id))).one()


async def issued(database: Database) -> list[tuple[str, datetime]]:
    """Schedule and due time of every occurrence, which must be exactly what is in the outbox."""
    async with database.reading() as connection:
        found = (await connection.execute(select(occurrences).order_by(occurrences.c.due_at))).all()
        waiting = (await connection.execute(select(outbox).order_by(outbox.c.id))).all()
    assert Counter(one.job_id for one in found) == Counter(one.job_id for one in waiting)
    return [(one.schedule_id, one.due_at) for one in found]


async def count(database: Database) -> int:
    """How many occurrences there are by now; `issued` would look at two tables at two moments."""
    async with database.reading() as connection:
        return int((await connection.execute(select(func.count()).select_from(occurrences))).scalar_one())


async def due_times(database: Database) -> list[datetime]:
    return [due for _, due in await issued(database)]


async def ended(database: Database, status: str = "done") -> None:
    """The job log learns that every job has ended, and the relay has emptied the outbox."""
    async with database.transaction() as connection:
        last = (await connection.execute(select(schedules.c.last_job_id))).scalars().all()
        await connection.execute(outbox.delete())
        await connection.execute(jobs.delete())
        for job_id in filter(None, last):
            await connection.execute(
                insert(jobs).values(
                    id=job_id, type="t", status=status, rank=1, attempt=1, seen_at=NEW_YEAR, updated_at=NEW_YEAR
                )
            )


# -- once, every, cron -------------------------------------------------------------------------------------------------


async def test_an_occurrence_is_a_job_in_the_outbox(database: Database) -> None:
    await add(database)
    clock = Clock(NEW_YEAR - SECOND)
    scheduler = Scheduler(database, clock=clock)
    assert await scheduler.issue_due() == 0
    clock.now = NEW_YEAR + SECOND
    assert await scheduler.issue_due() == 1
    assert await scheduler.issue_due() == 0
    async with database.reading() as connection:
        (job,) = (await connection.execute(select(outbox))).all()
    assert job.job_id == occurrence_job_id("s", NEW_YEAR)
    assert (job.job_type, json.loads(job.body), job.origin, job.priority) == (
        "report.send",
        {"schedule": "s"},
        "schedule",
        3,
    )
    schedule = await of(database)
    assert schedule.next_run_at == NEW_YEAR + MINUTE
    assert (schedule.last_run_at, schedule.last_job_id, schedule.runs) == (clock.now, job.job_id, 1)


async def test_once_is_done_and_no_longer_unique(database: Database) -> None:
    await add(database, kind="once", unique_key="k")
    assert await Scheduler(database, clock=Clock(NEW_YEAR + HOUR)).issue_due() == 1
    schedule = await of(database)
    assert (schedule.status, schedule.next_run_at, schedule.unique_key, schedule.runs) == ("done", None, None, 1)
    assert await due_times(database) == [NEW_YEAR]


async def test_a_rate_does_not_drift_when_the_scheduler_is_late(database: Database) -> None:
    await add(database)
    clock = Clock()
    scheduler = Scheduler(database, clock=clock)
    for minute in range(5):
        clock.now = NEW_YEAR + minute * MINUTE + timedelta(seconds=7.3 * minute)
        await scheduler.issue_due()
    assert await due_times(database) == [NEW_YEAR + n * MINUTE for n in range(5)]


@pytest.mark.parametrize(
    ("zone", "expression", "start", "expected"),
    [
        ("America/Sao_Paulo", "0 0 * * *", "2017-10-13T12:00", ["14 03:00", "15 03:00", "16 02:00"]),
        ("America/Sao_Paulo", "30 23 * * *", "2018-02-16T12:00", ["17 01:30", "18 01:30", "19 02:30"]),
        ("Europe/Lisbon", "30 1 * * *", "2026-03-27T12:00", ["28 01:30", "29 01:00", "30 00:30"]),
        ("Australia/Lord_Howe", "15 2 * * *", "2025-10-03T00:00", ["03 15:45", "04 15:30", "05 15:15"]),
    ],
)
async def test_cron_through_a_change_of_the_clocks(
    database: Database, zone: str, expression: str, start: str, expected: list[str]
) -> None:
    moment = datetime.fromisoformat(start).replace(tzinfo=UTC)
    await add(database, due=moment, kind="cron", expression=expression, zone=zone, misfire="skip")
    clock = Clock(moment + HOUR)  # past the first due time, which only says where to begin
    scheduler = Scheduler(database, clock=clock)
    for _ in range(4 * 72):
        clock.now += HOUR / 4
        await scheduler.issue_due()
    assert [f"{due:%d %H:%M}" for due in await due_times(database)] == expected


# -- what was missed, what overlaps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misfire", "window", "expected"),
    [("latest", None, [10]), ("all", None, [*range(11)]), ("all", 150.0, [8, 9, 10]), ("skip", 5.0, [])],
)
async def test_ten_minutes_missed(database: Database, misfire: str, window: float | None, expected: list[int]) -> None:
    await add(database, misfire=misfire, misfire_window=window)
    clock = Clock(NEW_YEAR + 10 * MINUTE + 20 * SECOND)
    scheduler = Scheduler(database, clock=clock)
    await scheduler.issue_due()
    assert await due_times(database) == [NEW_YEAR + n * MINUTE for n in expected]
    schedule = await of(database)
    assert (schedule.next_run_at, schedule.runs) == (NEW_YEAR + 11 * MINUTE, len(expected))


async def test_a_month_missed_comes_in_bounded_rounds(database: Database) -> None:
    await add(database, misfire="all", interval_seconds=7200.0)
    scheduler = Scheduler(database, clock=Clock(NEW_YEAR + timedelta(days=30)))
    sizes = []
    while await scheduler.issue_due():
        sizes.append(len(await issued(database)))
    assert sizes == [100, 200, 300, 361]
    assert await due_times(database) == [NEW_YEAR + n * 2 * HOUR for n in range(361)]


async def test_skip_leaves_out_what_falls_due_while_the_last_job_runs(database: Database) -> None:
    await add(database, overlap="skip")
    clock = Clock()
    scheduler = Scheduler(database, clock=clock)
    await scheduler.issue_due()
    clock.now += MINUTE  # the job still waits in the outbox
    await scheduler.issue_due()
    assert (await of(database)).runs == 1
    await ended(database, "running")
    clock.now += MINUTE
    await scheduler.issue_due()
    assert (await of(database)).runs == 1
    for status in ("done", "dead", "cancelled"):
        await ended(database, status)
        clock.now += MINUTE
        await scheduler.issue_due()
    assert (await of(database)).runs == 4
    assert (await of(database)).next_run_at == NEW_YEAR + 6 * MINUTE


async def test_a_job_that_the_log_does_not_know_yet_counts_as_running_for_a_while(database: Database) -> None:
    await add(database, overlap="skip", interval_seconds=2.0)
    clock = Clock()
    scheduler = Scheduler(database, clock=clock)
    await scheduler.issue_due()
    async with database.transaction() as connection:
        await connection.execute(outbox.delete())
    clock.now += 2 * SECOND
    await scheduler.issue_due()
    assert (await of(database)).runs == 1
    clock.now += 4 * SECOND
    await scheduler.issue_due()
    assert (await of(database)).runs == 2


async def test_buffer_one_holds_one_back_and_issues_it_when_the_last_one_has_ended(database: Database) -> None:
    await add(database, overlap="buffer_one")
    clock = Clock()
    for _ in range(4):
        await Scheduler(database, clock=clock).issue_due()
        clock.now += MINUTE
    schedule = await of(database)
    assert (schedule.runs, schedule.buffered_at, schedule.next_run_at) == (1, NEW_YEAR + MINUTE, NEW_YEAR + 4 * MINUTE)
    clock.now = NEW_YEAR + 3 * MINUTE + SECOND
    assert await Scheduler(database, clock=clock).issue_due() == 0
    await ended(database)
    assert await Scheduler(database, clock=clock).issue_due() == 1
    schedule = await of(database)
    assert (schedule.runs, schedule.buffered_at, schedule.next_run_at) == (2, None, NEW_YEAR + 4 * MINUTE)
    assert schedule.last_job_id == occurrence_job_id("s", NEW_YEAR + MINUTE)


async def test_what_is_held_back_at_the_end_is_still_issued(database: Database) -> None:
    await add(database, overlap="buffer_one", kind="once", last_job_id="before", last_run_at=NEW_YEAR)
    await Scheduler(database, clock=Clock()).issue_due()
    assert ((await of(database)).status, (await of(database)).buffered_at) == ("active", NEW_YEAR)
    await Scheduler(database, clock=Clock(NEW_YEAR + MINUTE)).issue_due()
    assert ((await of(database)).status, (await of(database)).runs) == ("done", 1)


# -- several, clocks, trouble ------------------------------------------------------------------------------------------


async def test_several_schedulers_issue_each_occurrence_once(database: Database) -> None:
    await add_all(database, [row(f"s{n}", misfire="all") for n in range(300)])
    clock = Clock(NEW_YEAR + 5 * MINUTE)
    async with opened(str(database.url.render_as_string(hide_password=False))) as other:
        schedulers = [Scheduler(database, clock=clock), Scheduler(other, clock=clock), Scheduler(other, clock=clock)]
        for _ in range(3):
            await asyncio.gather(*(scheduler.issue_due() for scheduler in schedulers))
            clock.now += MINUTE
    expected = {(f"s{n}", NEW_YEAR + minute * MINUTE) for n in range(300) for minute in range(8)}
    found = await issued(database)
    assert len(found) == len(expected)
    assert set(found) == expected


async def test_a_clock_that_jumps_an_hour_doubles_and_loses_nothing(database: Database) -> None:
    await add(database, misfire="all")
    clock = Clock()
    scheduler = Scheduler(database, clock=clock)
    jumps = {10: HOUR, 30: -HOUR, 60: -HOUR, 90: HOUR}
    for minute in range(200):
        clock.now += MINUTE + jumps.get(minute, timedelta())
        await scheduler.issue_due()
    times = await due_times(database)
    assert times == [NEW_YEAR + n * MINUTE for n in range(len(times))]
    assert times[-1] == clock.now


async def test_a_clock_that_jumps_under_two_schedulers(database: Database) -> None:
    """One of them sees the new time an instant before the other; both go on at once."""
    await add(database, misfire="all")
    clock, late = Clock(), Clock()
    async with opened(database.url.render_as_string(hide_password=False)) as other:
        schedulers = [Scheduler(database, clock=clock), Scheduler(other, clock=late)]
        jumps = {10: HOUR, 30: -HOUR, 60: -HOUR, 90: HOUR}
        for minute in range(100):
            late.now = clock.now
            clock.now += MINUTE + jumps.get(minute, timedelta())
            await asyncio.gather(*(scheduler.issue_due() for scheduler in schedulers))
    times = await due_times(database)
    assert times == [NEW_YEAR + n * MINUTE for n in range(len(times))]
    assert times[-1] == clock.now


async def test_an_occurrence_that_was_issued_by_hand_is_not_issued_again(database: Database) -> None:
    await add(database)
    async with database.transaction() as connection:
        await connection.execute(
            insert(occurrences).values(schedule_id="s", due_at=NEW_YEAR, job_id="by hand", issued_at=NEW_YEAR)
        )
    assert await Scheduler(database, clock=Clock()).issue_due() == 1
    schedule = await of(database)
    assert (schedule.runs, schedule.next_run_at, schedule.last_job_id) == (0, NEW_YEAR + MINUTE, None)


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "cron", "expression": "0 0 * * *", "zone": "Mars/Olympus"},
        {"kind": "cron", "expression": "nonsense", "zone": "UTC"},
        {"kind": "cron", "expression": None},
        {"kind": "every", "interval_seconds": 0.0},
        {"kind": "sometimes"},
        {"misfire": "never"},
    ],
)
async def test_a_schedule_that_makes_no_sense_is_paused_and_holds_up_no_other(
    database: Database, broken: dict[str, Any]
) -> None:
    await add_all(database, [row("a"), row("b")])
    async with database.transaction() as connection:
        await connection.execute(update(schedules).where(schedules.c.id == "a").values(**broken))
    await Scheduler(database, clock=Clock()).issue_due()
    assert await issued(database) == [("b", NEW_YEAR)]
    schedule = await of(database, "a")
    assert schedule.status == "paused"
    assert schedule.error


@pytest.mark.parametrize("status", ["paused", "cancelled", "done"])
async def test_only_active_schedules_fire(database: Database, status: str) -> None:
    await add(database, status=status)
    assert await Scheduler(database, clock=Clock(NEW_YEAR + HOUR)).issue_due() == 0


async def test_it_runs_until_it_is_asked_to_stop(database: Database) -> None:
    start = datetime.now(UTC)
    await add(database, due=start, start_at=start, interval_seconds=0.2, misfire="all")
    scheduler = Scheduler(database)
    task = asyncio.create_task(scheduler.run())

    async def five() -> bool:
        return await count(database) >= 5

    await until(five, "five occurrences")
    scheduler.drain()
    await asyncio.wait_for(task, 10)
    times = await due_times(database)
    assert times == [start + n * timedelta(seconds=0.2) for n in range(len(times))]


async def test_it_goes_on_when_the_database_is_back(cluster: Cluster, postgresql: Database) -> None:
    start = datetime.now(UTC)
    await add(postgresql, due=start, start_at=start, interval_seconds=0.2, misfire="all")
    scheduler = Scheduler(postgresql)
    task = asyncio.create_task(scheduler.run())
    cluster.kill()
    cluster.start()

    async def counted() -> int:
        return await count(postgresql)

    before = await persistently("the test", counted)

    async def more() -> bool:
        return await persistently("the test", counted) >= before + 5

    await until(more, "it goes on")
    scheduler.drain()
    await asyncio.wait_for(task, 10)
    times = await due_times(postgresql)
    assert times == [start + n * timedelta(seconds=0.2) for n in range(len(times))]
