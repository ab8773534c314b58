"""Schedules that an app declares become rows, once, whoever begins; what operators decided stays."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hareline import App, HarelineError, JobType, PayloadInvalid, Schedule, ScheduleInvalid, Schedules
from producers.reconcile import Reconciled, reconcile
from store.engine import Database
from tests.lab import Number
from topology.errors import ContractError

pytestmark = pytest.mark.machine

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)

count = JobType("count", Number)
HOURLY = Schedule(name="hourly", job_type=count, payload=Number(n=1), every=HOUR)
MORNING = Schedule(name="morning", job_type=count, payload={"n": 2}, cron="0 9 * * *", tz="Europe/Lisbon", group="g")


def outcome(**names: Any) -> Reconciled:
    return Reconciled(**{"created": (), "changed": (), "unchanged": (), "removed": ()} | names)


@pytest.fixture
def schedules(database: Database) -> Schedules:
    return Schedules(database, clock=lambda: NOON)


async def test_declared_schedules_are_made_once(database: Database, schedules: Schedules) -> None:
    assert await reconcile(database, [MORNING, HOURLY], now=NOON) == outcome(created=("hourly", "morning"))
    hourly, morning = await schedules.get("hourly"), await schedules.get("morning")
    assert (hourly.kind, hourly.interval, hourly.next_run_at, hourly.source) == ("every", 3600.0, NOON + HOUR, "code")
    assert (morning.expression, morning.zone, morning.group) == ("0 9 * * *", "Europe/Lisbon", "g")
    assert await reconcile(database, [MORNING, HOURLY], now=NOON + HOUR / 2) == outcome(unchanged=("hourly", "morning"))
    assert await schedules.get("hourly") == hourly


async def test_several_schedulers_may_begin_at_once(database: Database, schedules: Schedules) -> None:
    done = await asyncio.gather(*(reconcile(database, [HOURLY, MORNING], now=NOON) for _ in range(5)))
    assert sorted(one.created for one in done) == [(), (), (), (), ("hourly", "morning")]
    assert all(one.created or one.unchanged == ("hourly", "morning") for one in done)
    changed = replace(HOURLY, every=60)
    done = await asyncio.gather(*(reconcile(database, [changed, MORNING], now=NOON) for _ in range(5)))
    assert sorted(one.changed for one in done) == [(), (), (), (), ("hourly",)]
    assert (await schedules.counts()).total == 2


async def test_a_changed_declaration_changes_its_row(database: Database, schedules: Schedules) -> None:
    """The next run is computed anew if its time changed, and is kept if only its job did."""
    await reconcile(database, [HOURLY, MORNING], now=NOON)
    before = await schedules.get("hourly")
    later = NOON + HOUR / 2
    payload = replace(HOURLY, payload=Number(n=7), overlap="skip", misfire="all", misfire_window=60)
    assert await reconcile(database, [payload, MORNING], now=later) == outcome(
        changed=("hourly",), unchanged=("morning",)
    )
    after = await schedules.get("hourly")
    assert (after.id, after.payload, after.overlap, after.misfire) == (before.id, {"n": 7}, "skip", "all")
    assert after.next_run_at == NOON + HOUR
    await reconcile(database, [replace(HOURLY, every=600), replace(MORNING, tz="UTC")], now=later)
    assert (await schedules.get("hourly")).next_run_at == later + timedelta(minutes=10)
    assert (await schedules.get("morning")).next_run_at == datetime(2026, 5, 5, 9, 0, tzinfo=UTC)
    await reconcile(database, [replace(MORNING, name="hourly"), MORNING], now=later)
    assert (await schedules.get("hourly")).kind == "cron"


async def test_what_an_operator_decided_stays(database: Database, schedules: Schedules) -> None:
    """A pause outlives a change; one that was cancelled comes back when somebody resumes it."""
    await reconcile(database, [HOURLY, MORNING], now=NOON)
    await schedules.pause("hourly")
    await schedules.cancel("morning")
    assert await reconcile(database, [HOURLY, MORNING], now=NOON) == outcome(unchanged=("hourly", "morning"))
    await reconcile(database, [replace(HOURLY, every=60), replace(MORNING, tz="UTC")], now=NOON)
    hourly, morning = await schedules.get("hourly"), await schedules.get("morning")
    assert (hourly.status, hourly.interval) == ("paused", 60.0)
    assert (morning.status, morning.zone, morning.next_run_at) == ("cancelled", "UTC", None)
    resumed = await schedules.resume("morning")
    assert (resumed.status, resumed.next_run_at) == ("active", datetime(2026, 5, 5, 9, 0, tzinfo=UTC))
    with pytest.raises(ScheduleInvalid, match="belongs to"):
        await schedules.schedule_every(count, Number(n=1), every=1, name="hourly")


async def test_what_is_declared_no_longer_is_told_and_runs_on(
    database: Database, schedules: Schedules, caplog: pytest.LogCaptureFixture
) -> None:
    await reconcile(database, [HOURLY, MORNING], now=NOON)
    assert await reconcile(database, [HOURLY], now=NOON) == outcome(unchanged=("hourly",), removed=("morning",))
    assert "hareline schedule cancel morning" in caplog.text
    assert (await schedules.get("morning")).status == "active"
    await schedules.cancel("morning")
    assert await reconcile(database, [HOURLY], now=NOON) == outcome(unchanged=("hourly",))


async def test_one_that_was_made_by_hand_becomes_the_codes(database: Database, schedules: Schedules) -> None:
    made = await schedules.schedule_once(count, Number(n=5), delay=1, name="hourly", unique=True)
    await schedules.schedule_once(count, Number(n=5), delay=1, name="other")
    assert await reconcile(database, [HOURLY], now=NOON) == outcome(changed=("hourly",))
    taken = await schedules.get("hourly")
    assert (taken.id, taken.source, taken.kind, taken.unique) == (made.id, "code", "every", False)
    assert (await schedules.get("other")).source == "api"


@pytest.mark.parametrize(
    "change",
    [
        {"every": 0},
        {"every": "1h"},
        {"every": None, "cron": "nonsense"},
        {"every": None, "cron": "0 9 * * *", "tz": "Mars/Olympus"},
        {"misfire": "never"},
        {"overlap": "never"},
        {"priority": 5},
        {"group": ""},
    ],
)
async def test_nonsense_names_the_schedule_and_changes_nothing(
    database: Database, schedules: Schedules, change: dict[str, Any]
) -> None:
    with pytest.raises(ScheduleInvalid, match="schedule 'hourly': "):
        await reconcile(database, [MORNING, replace(HOURLY, **change)], now=NOON)
    assert (await schedules.counts()).total == 0


def test_what_a_declaration_refuses_by_itself() -> None:
    cases: list[tuple[type[HarelineError], dict[str, Any]]] = [
        (ScheduleInvalid, {"every": None}),
        (ScheduleInvalid, {"cron": "* * * * *"}),
        (ScheduleInvalid, {"every": None, "cron": "* * * * *", "start": NOON}),
        (ScheduleInvalid, {"name": ""}),
        (PayloadInvalid, {"payload": {"n": "x"}}),
    ]
    for error, change in cases:
        with pytest.raises(error):
            replace(HOURLY, **change)
    with pytest.raises(ContractError, match="add 'count' to the app's job_types"):
        App(schedules=[HOURLY])
    with pytest.raises(ContractError, match="two schedules have the name 'hourly'"):
        App(job_types=[count], schedules=[HOURLY, replace(MORNING, name="hourly")])
    assert App(job_types=[count], schedules=[HOURLY]).schedules == (HOURLY,)
