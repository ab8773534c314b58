"""What operators are told of dead letters: the alert, once for each time, and the gauges."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from consumers import dead_alert
from consumers.dead_alert import DeadAlert
from consumers.upkeep import clean_up, take_stock
from hareline import DeadLetters
from store.engine import Database
from store.retention import Retention
from store.tables import outbox
from tests.graveyard import bury
from tests.meters import measured
from topology.errors import SettingsError
from topology.settings import Settings

pytestmark = pytest.mark.machine

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


async def mails(database: Database) -> int:
    async with database.reading() as connection:
        found = list((await connection.execute(select(outbox.c.job_type, outbox.c.body))).all())
    assert all(row.job_type == "email.send" and b"more than 3 jobs died" in bytes(row.body) for row in found)
    return len(found)


async def test_it_tells_once_and_again_after_it_was_fewer(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A log line, the counter and the e-mail job, each time."""
    monkeypatch.setattr(dead_alert, "LOOK", 0.0)
    clock = Clock()
    extra = {"HARELINE_DEAD_ALERT": "3", "HARELINE_DEAD_ALERT_EMAIL": "ops@example.org"}
    alert = DeadAlert(Settings(extra=extra), database, clock)
    before = measured("hareline.dead_letters.alerts")

    async def told() -> tuple[int, float, int]:
        await alert.look()
        lines = [record for record in caplog.records if record.levelno == logging.ERROR]
        return len(lines), measured("hareline.dead_letters.alerts") - before, await mails(database)

    async def die(number: int, first: int) -> None:
        await bury(database, number, first=first, died_at=clock.now)
        alert.note()

    assert await told() == (0, 0, 0)
    await die(3, 0)
    assert await told() == (0, 0, 0)
    await die(1, 3)
    assert await told() == (1, 1, 1)
    await die(5, 4)
    assert await told() == (1, 1, 1)
    clock.now += HOUR + timedelta(seconds=1)
    assert await told() == (1, 1, 1)
    await die(3, 20)
    assert await told() == (1, 1, 1)
    await die(1, 30)
    assert await told() == (2, 2, 2)


async def test_without_a_limit_nothing_is_counted(database: Database) -> None:
    alert = DeadAlert(Settings(), database, Clock())
    await bury(database, 50, died_at=NOON)
    alert.note()
    await alert.look()
    assert await mails(database) == 0


def test_a_limit_that_is_no_number_is_refused(database: Database) -> None:
    with pytest.raises(SettingsError, match="HARELINE_DEAD_ALERT is 'many'"):
        DeadAlert(Settings(extra={"HARELINE_DEAD_ALERT": "many"}), database, Clock())


async def test_the_gauges_tell_what_is_dead_and_what_died_today(database: Database) -> None:
    measured("hareline.dead_letters")
    await bury(database, 3, died_at=NOON - timedelta(days=2))
    await bury(database, 2, first=10, died_at=NOON - HOUR)
    await take_stock(database, clock=Clock())
    assert (measured("hareline.dead_letters"), measured("hareline.dead_letters.last_24h")) == (5, 2)
    desk = DeadLetters(database)
    await desk.discard([(await desk.list()).items[0].id])
    await take_stock(database, clock=Clock())
    assert (measured("hareline.dead_letters"), measured("hareline.dead_letters.last_24h")) == (4, 1)


async def test_what_was_cleaned_is_counted(database: Database) -> None:
    before = measured("hareline.recorder.cleaned", table="dead_letters")
    await bury(database, 3, died_at=NOON - timedelta(days=31))
    await clean_up(database, Retention.of(Settings()), clock=Clock())
    assert measured("hareline.recorder.cleaned", table="dead_letters") - before == 3
