"""Schedules as rows, on both databases: made once where they shall be unique, found, ended, paused, run by hand."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import select

from hareline import (
    ANY,
    BlockingSchedules,
    JobType,
    OptionInvalid,
    PayloadInvalid,
    ScheduleInvalid,
    Schedules,
    Settings,
)
from producers.scheduler import Scheduler
from store.engine import Database
from store.schedule_queue import occurrence_job_id
from store.tables import occurrences, outbox
from topology.errors import CursorInvalid, NotFound

pytestmark = pytest.mark.machine

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Report(BaseModel):
    month: int = 1
    year: int = 2026


report = JobType("report.build", Report)
urgent = JobType("report.urgent", Report, priority=True, group="urgent")


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def schedules(database: Database, clock: Clock) -> Schedules:
    return Schedules(database, clock=clock)


async def rows_of(database: Database, table: Any) -> list[Any]:
    async with database.reading() as connection:
        return list((await connection.execute(select(table).order_by(table.c.job_id))).all())


# -- make --------------------------------------------------------------------------------------------------------------


async def test_once_at_a_time_or_after_a_delay(schedules: Schedules) -> None:
    zone = timezone(timedelta(hours=-3))
    at = await schedules.schedule_once(report, Report(month=5), at=(NOON + HOUR).astimezone(zone), name="may")
    assert (at.kind, at.type, at.status, at.payload) == ("once", "report.build", "active", {"month": 5, "year": 2026})
    assert (at.next_run_at, at.name, at.existed, at.runs, at.priority) == (NOON + HOUR, "may", False, 0, None)
    after = await schedules.schedule_once(report, {"month": 6}, delay=90)
    assert after.next_run_at == NOON + timedelta(seconds=90)
    assert await schedules.get(after.id) == after
    assert await schedules.get("may") == at


async def test_a_time_that_has_passed_means_now(schedules: Schedules) -> None:
    past = await schedules.schedule_once(report, Report(), at=NOON - DAY, misfire="skip")
    assert (past.next_run_at, past.start_at) == (NOON, NOON - DAY)


async def test_every_keeps_the_beat_of_its_start(schedules: Schedules) -> None:
    """Without a start it runs first when one interval has passed; a start in the past makes up for nothing."""
    plain = await schedules.schedule_every(report, Report(), every=600)
    assert (plain.kind, plain.interval, plain.next_run_at) == ("every", 600.0, NOON + 10 * MINUTE)
    ahead = await schedules.schedule_every(report, Report(), every=HOUR, start=NOON + MINUTE)
    assert ahead.next_run_at == NOON + MINUTE
    behind = await schedules.schedule_every(report, Report(), every=HOUR, start=NOON - DAY + MINUTE)
    assert behind.next_run_at == NOON + MINUTE
    at_once = await schedules.schedule_every(report, Report(), every=HOUR, start=NOON)
    assert at_once.next_run_at == NOON


async def test_cron_in_a_time_zone(schedules: Schedules) -> None:
    made = await schedules.schedule_cron(report, Report(), "30 9 * * *", tz="Europe/Lisbon", overlap="skip")
    assert (made.kind, made.expression, made.zone, made.overlap) == ("cron", "30 9 * * *", "Europe/Lisbon", "skip")
    assert made.next_run_at == datetime(2026, 5, 5, 8, 30, tzinfo=UTC)


async def test_priority_and_group_follow_the_job_type(schedules: Schedules) -> None:
    made = await schedules.schedule_once(urgent, Report(), delay=1)
    assert (made.priority, made.group) == (4, "urgent")
    assert (await schedules.schedule_once(urgent, Report(), delay=1, priority=9, group="g")).priority == 9


@pytest.mark.parametrize(
    ("error", "said", "options"),
    [
        (ScheduleInvalid, "either at or delay", {}),
        (ScheduleInvalid, "either at or delay", {"at": NOON, "delay": 1}),
        (ScheduleInvalid, "needs a zone", {"at": datetime(2026, 1, 1)}),  # noqa: DTZ001 - the point
        (ScheduleInvalid, "datetime is needed", {"at": "tomorrow"}),
        (ScheduleInvalid, "zero or more", {"delay": -1}),
        (ScheduleInvalid, "zero or more", {"delay": float("nan")}),
        (ScheduleInvalid, "seconds or a timedelta", {"delay": "1"}),
        (ScheduleInvalid, "beyond the year", {"delay": 86400 * 366 * 9000}),
        (ScheduleInvalid, "misfire is 'never'", {"delay": 1, "misfire": "never"}),
        (ScheduleInvalid, "misfire_window", {"delay": 1, "misfire_window": 0}),
        (ScheduleInvalid, "name is ''", {"delay": 1, "name": ""}),
        (ScheduleInvalid, "group is 5", {"delay": 1, "group": 5}),
        (OptionInvalid, "no priorities", {"delay": 1, "priority": 3}),
    ],
)
async def test_what_makes_no_sense_is_refused(
    schedules: Schedules, error: type[Exception], said: str, options: dict[str, Any]
) -> None:
    with pytest.raises(error, match=said):
        await schedules.schedule_once(report, Report(), **options)
    assert (await schedules.counts()).total == 0


async def test_more_that_makes_no_sense(schedules: Schedules) -> None:
    for every in (0, -5, float("nan"), float("inf"), True):
        with pytest.raises(ScheduleInvalid):
            await schedules.schedule_every(report, Report(), every=every)
    for expression, zone in (
        ("nonsense", "UTC"),
        ("61 * * * *", "UTC"),
        ("0 0 30 2 *", "UTC"),
        ("* * * * *", "Mars/X"),
    ):
        with pytest.raises(ScheduleInvalid):
            await schedules.schedule_cron(report, Report(), expression, tz=zone)
    with pytest.raises(ScheduleInvalid, match="overlap"):
        await schedules.schedule_every(report, Report(), every=1, overlap="queue")  # type: ignore[arg-type]
    with pytest.raises(PayloadInvalid, match="month"):
        await schedules.schedule_once(report, {"month": "may"}, delay=1)
    with pytest.raises(PayloadInvalid, match="month"):
        await schedules.cancel_all(report, args={"month": "may"})
    assert (await schedules.counts()).total == 0


# -- unique ------------------------------------------------------------------------------------------------------------


async def test_a_unique_schedule_is_made_once(schedules: Schedules) -> None:
    """Whatever the order of keys. Another payload or group is another schedule, and so is the next after its end."""
    one = await schedules.schedule_every(report, {"year": 2026, "month": 5}, every=60, unique=True)
    again = await schedules.schedule_once(report, {"month": 5, "year": 2026}, delay=5, unique=True)
    assert (again.id, again.existed, again.kind) == (one.id, True, "every")
    assert (one.existed, one.unique) == (False, True)
    for other in ({"month": 6, "year": 2026}, {"month": 5, "year": 2025}):
        assert not (await schedules.schedule_once(report, other, delay=5, unique=True)).existed
    assert not (await schedules.schedule_once(report, {"month": 5}, delay=5, unique=True, group="g")).existed
    assert not (await schedules.schedule_once(report, {"month": 5}, delay=5)).existed
    await schedules.pause(one.id)
    assert (await schedules.schedule_once(report, {"month": 5}, delay=5, unique=True)).id == one.id
    await schedules.cancel(one.id)
    assert not (await schedules.schedule_once(report, {"month": 5}, delay=5, unique=True)).existed


async def test_many_at_once_make_one(schedules: Schedules) -> None:
    made = await asyncio.gather(
        *(schedules.schedule_every(report, Report(), every=60, unique=True, name="n") for _ in range(8))
    )
    assert len({record.id for record in made}) == 1
    assert sorted(record.existed for record in made) == [False] + [True] * 7


async def test_a_name_belongs_to_one_that_can_still_run(schedules: Schedules) -> None:
    one = await schedules.schedule_every(report, Report(), every=60, name="n")
    with pytest.raises(ScheduleInvalid, match=f"'n' belongs to schedule {one.id}"):
        await schedules.schedule_every(report, Report(), every=60, name="n")
    with pytest.raises(ScheduleInvalid, match="belongs"):
        await schedules.schedule_every(report, Report(), every=60, name="n", unique=True)
    await schedules.cancel("n")
    other = await schedules.schedule_every(report, Report(), every=60, name="n")
    assert (await schedules.get("n")).id == other.id
    assert (await schedules.get(one.id)).name is None


# -- find --------------------------------------------------------------------------------------------------------------


async def test_has_and_next(schedules: Schedules) -> None:
    """`ANY` means any payload, and an empty payload the empty one; a paused schedule is had, and not next."""
    assert not await schedules.has_scheduled(report)
    assert await schedules.next_scheduled(report) is None
    late = await schedules.schedule_once(report, Report(month=2), delay=HOUR, group="g")
    soon = await schedules.schedule_once(report, Report(month=3), delay=MINUTE)
    await schedules.schedule_once(urgent, Report(), delay=1)
    assert await schedules.next_scheduled(report) == soon
    assert await schedules.next_scheduled("report.build", group="g") == late
    assert await schedules.next_scheduled(report, args=Report(month=2)) == late
    assert await schedules.has_scheduled(report, args=ANY)
    assert not await schedules.has_scheduled(report, args={})
    assert not await schedules.has_scheduled("report.build", args={})
    assert await schedules.has_scheduled("report.build", args={"year": 2026, "month": 2})
    await schedules.pause(late.id)
    assert await schedules.has_scheduled(group="g")
    assert await schedules.next_scheduled(group="g") is None
    await schedules.cancel(late.id)
    assert not await schedules.has_scheduled(group="g")


async def test_pages_hold_every_schedule_once(schedules: Schedules) -> None:
    """In the order of the next run, those that ended last; many that are due at the same time too."""
    for n in range(7):
        await schedules.schedule_once(report, Report(month=n), delay=60 if n < 5 else n)
    for n in range(3):
        await schedules.cancel((await schedules.schedule_once(urgent, Report(month=n), delay=1)).id)
    seen, cursor = [], None
    while True:
        page = await schedules.list_actions(limit=2, cursor=cursor)
        seen += page.items
        if (cursor := page.next) is None:
            break
    assert len({record.id for record in seen}) == len(seen) == 10
    assert [record.payload["month"] for record in seen][:2] == [5, 6]
    assert [record.status for record in seen] == ["active"] * 7 + ["cancelled"] * 3
    assert len((await schedules.list_actions(report, limit=7)).items) == 7
    assert (await schedules.list_actions(report, limit=7)).next is None


async def test_lists_and_counts_by_what_is_asked_for(schedules: Schedules) -> None:
    await schedules.schedule_once(report, Report(month=1), delay=MINUTE, group="a")
    await schedules.schedule_once(report, Report(month=2), delay=HOUR, group="b")
    paused = await schedules.schedule_once(urgent, Report(month=2), delay=DAY, group="b")
    await schedules.pause(paused.id)

    async def months(*args: Any, **filters: Any) -> list[int]:
        return [record.payload["month"] for record in (await schedules.list_actions(*args, **filters)).items]

    assert await months(report) == [1, 2]
    assert await months(group="b") == [2, 2]
    assert await months(report, args={"month": 2}) == [2]
    assert await months(status="paused") == [2]
    assert await months(status=("active", "paused")) == [1, 2, 2]
    assert await months(due_from=NOON + HOUR, due_before=NOON + DAY) == [2]
    counts = await schedules.counts()
    assert (counts.total, counts.by_status) == (3, {"active": 2, "paused": 1})
    assert counts.by_type == {"report.build": 2, "report.urgent": 1}
    assert counts.by_group == {"a": 1, "b": 2}
    assert (await schedules.counts(report, group="b")).total == 1


async def test_a_cursor_that_was_altered_or_is_anothers(schedules: Schedules) -> None:
    for n in range(3):
        await schedules.schedule_once(report, Report(month=n), delay=60)
    cursor = (await schedules.list_actions(limit=1)).next
    assert cursor is not None
    for bad in ("", "x", cursor[:-3], cursor[:10] + ("A" if cursor[10] != "A" else "B") + cursor[11:], "é"):
        with pytest.raises(CursorInvalid):
            await schedules.list_actions(limit=1, cursor=bad)
    with pytest.raises(CursorInvalid, match="same filters"):
        await schedules.list_actions(report, limit=1, cursor=cursor)
    for limit in (0, -1, 1001, True, "5"):
        with pytest.raises(OptionInvalid, match="limit"):
            await schedules.list_actions(limit=limit)  # type: ignore[arg-type]
    with pytest.raises(OptionInvalid, match="status"):
        await schedules.list_actions(status="pending")


# -- end, stop, go on --------------------------------------------------------------------------------------------------


async def test_cancel_all_says_how_many(schedules: Schedules) -> None:
    for month in (1, 2, 2):
        await schedules.schedule_once(report, Report(month=month), delay=60)
    await schedules.schedule_once(report, Report(month=2), delay=60, group="g")
    paused = await schedules.schedule_once(urgent, Report(), delay=60)
    await schedules.pause(paused.id)
    assert await schedules.cancel_all(report, args={}) == 1
    assert await schedules.cancel_all(report, args=Report(month=2), group="g") == 1
    assert await schedules.cancel_all(report) == 2
    assert await schedules.cancel_all(report) == 0
    assert await schedules.cancel_all() == 1
    assert (await schedules.counts()).by_status == {"cancelled": 5}


async def test_cancel_next_ends_the_one_that_runs_next(schedules: Schedules) -> None:
    late = await schedules.schedule_once(report, Report(), delay=HOUR)
    soon = await schedules.schedule_once(report, Report(), delay=MINUTE)
    ended = await schedules.cancel_next(report)
    assert ended is not None
    assert (ended.id, ended.status, ended.next_run_at) == (soon.id, "cancelled", None)
    assert (await schedules.cancel_next(report)).id == late.id  # type: ignore[union-attr]
    assert await schedules.cancel_next(report) is None
    assert await schedules.cancel(late.id) == await schedules.get(late.id)


@pytest.mark.parametrize(
    ("misfire", "due"), [("latest", NOON + HOUR), ("all", NOON + HOUR), ("skip", NOON + DAY + HOUR)]
)
async def test_a_resumed_schedule_makes_up_as_misfire_says(
    schedules: Schedules, clock: Clock, misfire: Any, due: datetime
) -> None:
    """`latest` and `all` leave the missed times to the scheduler, as if it had been down; `skip` begins anew."""
    made = await schedules.schedule_every(report, Report(), every=HOUR, misfire=misfire)
    paused = await schedules.pause(made.id)
    assert (paused.status, paused.next_run_at) == ("paused", NOON + HOUR)
    assert await schedules.pause(made.id) == paused
    clock.now += DAY + timedelta(minutes=5)
    resumed = await schedules.resume(made.id)
    assert (resumed.status, resumed.next_run_at) == ("active", due)
    assert await schedules.resume(made.id) == resumed


async def test_what_has_ended_stays_so(schedules: Schedules) -> None:
    made = await schedules.schedule_every(report, Report(), every=HOUR)
    await schedules.cancel(made.id)
    for operation in (schedules.pause, schedules.resume, schedules.run_now):
        with pytest.raises(ScheduleInvalid, match="is cancelled"):
            await operation(made.id)
    with pytest.raises(ScheduleInvalid, match="is cancelled"):
        await schedules.backfill(made.id, NOON, NOON)
    for operation in (schedules.get, schedules.cancel, schedules.pause, schedules.resume, schedules.run_now):
        with pytest.raises(NotFound, match="'nobody'"):
            await operation("nobody")


# -- by hand -----------------------------------------------------------------------------------------------------------


async def test_run_now_issues_one_more(schedules: Schedules, database: Database) -> None:
    made = await schedules.schedule_every(urgent, Report(month=3), every=HOUR, priority=7)
    job_id = await schedules.run_now(made.id)
    [row] = await rows_of(database, outbox)
    assert (row.job_id, row.job_type, row.origin, row.priority) == (job_id, "report.urgent", "schedule", 7)
    assert row.body == b'{"month":3,"year":2026}'
    after = await schedules.get(made.id)
    assert (after.runs, after.last_job_id, after.last_run_at) == (1, job_id, NOON)
    assert (after.status, after.next_run_at) == ("active", NOON + HOUR)


async def test_backfill_issues_what_never_was(schedules: Schedules, database: Database, clock: Clock) -> None:
    """Both ends included, again issues nothing, overlapping ranges the difference, the future nothing."""
    made = await schedules.schedule_cron(report, Report(), "0 * * * *")
    assert await schedules.backfill(made.id, NOON - 3 * HOUR, NOON - HOUR) == 3
    assert await schedules.backfill(made.id, NOON - 3 * HOUR, NOON - HOUR) == 0
    assert await schedules.backfill(made.id, NOON - 4 * HOUR, NOON + DAY) == 2
    due = sorted(row.due_at for row in await rows_of(database, occurrences))
    assert due == [NOON - n * HOUR for n in (4, 3, 2, 1, 0)]
    jobs = await rows_of(database, outbox)
    assert [row.job_id for row in jobs] == [row.job_id for row in await rows_of(database, occurrences)]
    after = await schedules.get(made.id)
    assert (after.runs, after.next_run_at) == (5, made.next_run_at)


async def test_backfills_at_once_issue_each_occurrence_once(schedules: Schedules, database: Database) -> None:
    made = await schedules.schedule_cron(report, Report(), "* * * * *")
    issued = await asyncio.gather(
        *(schedules.backfill(made.id, NOON - n * HOUR, NOON - MINUTE) for n in (10, 12, 11, 12))
    )
    assert sum(issued) == 12 * 60
    assert len(await rows_of(database, outbox)) == 12 * 60
    assert len({row.job_id for row in await rows_of(database, outbox)}) == 12 * 60


async def test_a_backfill_and_a_scheduler_issue_an_occurrence_once(
    schedules: Schedules, database: Database, clock: Clock
) -> None:
    """Whoever comes first, under the same job id; the scheduler goes on where it was."""
    made = await schedules.schedule_every(report, Report(), every=MINUTE, misfire="all")
    clock.now += 10 * MINUTE
    assert await schedules.backfill(made.id, NOON, NOON + 4 * MINUTE) == 4
    await Scheduler(database, clock=clock).issue_due()
    assert await schedules.backfill(made.id, NOON, clock.now) == 0
    issued = await rows_of(database, occurrences)
    assert sorted(row.due_at for row in issued) == [NOON + n * MINUTE for n in range(1, 11)]
    assert {row.job_id for row in issued} == {occurrence_job_id(made.id, row.due_at) for row in issued}
    assert sorted(row.job_id for row in await rows_of(database, outbox)) == sorted(row.job_id for row in issued)
    assert (await schedules.get(made.id)).runs == 10


async def test_backfill_has_bounds(schedules: Schedules) -> None:
    made = await schedules.schedule_cron(report, Report(), "* * * * *")
    with pytest.raises(ScheduleInvalid, match="10,000 occurrences: backfill it in parts"):
        await schedules.backfill(made.id, NOON - 30 * DAY, NOON)
    with pytest.raises(ScheduleInvalid, match="before it starts"):
        await schedules.backfill(made.id, NOON, NOON - HOUR)
    with pytest.raises(ScheduleInvalid, match="needs a zone"):
        await schedules.backfill(made.id, datetime(2026, 1, 1), NOON)  # noqa: DTZ001 - the point
    once = await schedules.schedule_once(report, Report(), delay=1)
    with pytest.raises(ScheduleInvalid, match="runs once"):
        await schedules.backfill(once.id, NOON, NOON)


async def test_a_rolled_back_transaction_leaves_nothing(schedules: Schedules, database: Database) -> None:
    """With ``connection`` everything belongs to the caller's transaction; it reads its own changes."""
    kept = await schedules.schedule_every(report, Report(), every=HOUR)
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:
            made = await schedules.schedule_once(report, Report(), delay=1, unique=True, connection=connection)
            again = await schedules.schedule_once(report, Report(), delay=1, unique=True, connection=connection)
            assert (again.id, again.existed) == (made.id, True)
            assert (await schedules.next_scheduled(report, connection=connection)) == made
            await schedules.run_now(kept.id, connection=connection)
            assert await schedules.cancel_all(connection=connection) == 2
            raise ZeroDivisionError
    assert (await schedules.list_actions()).items == (kept,)
    assert await rows_of(database, outbox) == []
    async with database.transaction() as connection:
        await schedules.cancel(kept.id, connection=connection)
    assert (await schedules.get(kept.id)).status == "cancelled"


def test_without_an_event_loop(database_url: str) -> None:
    """The same from plain code, from several threads too; errors are the same ones."""
    schedules = BlockingSchedules(Settings(database_url=database_url))
    with ThreadPoolExecutor(4) as threads:
        made = list(
            threads.map(
                lambda month: schedules.schedule_every(report, {"month": month % 2}, every=60, unique=True), range(8)
            )
        )
    assert sum(not record.existed for record in made) == 2
    assert schedules.has_scheduled(report, args={"month": 1})
    assert len(schedules.list_actions(report).items) == 2
    with pytest.raises(NotFound):
        schedules.pause("nobody")
    assert schedules.cancel_all(report) == 2
