"""What the recorder does every minute besides recording: removes what is old, and says how things stand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from consumers.instruments import (
    DEAD_LETTERS,
    DEAD_LETTERS_LAST_DAY,
    REPORTS_DROPPED,
    REPORTS_MISSING,
    ROWS_CLEANED,
)
from store import dead_letters, reporters
from store.engine import Database
from store.recovery import persistently
from store.retention import Retention, clean

logger = logging.getLogger(__name__)

EVERY: Final = 60.0
"""Seconds. A count of a million dead letters takes a tenth of one."""

Clock = Callable[[], datetime]


def _utc() -> datetime:
    return datetime.now(UTC)


async def clean_up(database: Database, retention: Retention, *, clock: Clock = _utc) -> dict[str, int]:
    """One round of cleaning; returns how many rows of each are gone. Any number may clean at once."""
    removed = await clean(database, retention, clock=clock)
    for what, count in removed.items():
        if count:
            ROWS_CLEANED.add(count, {"table": what})
            logger.info("removed %d of %s after their retention", count, what)
    return removed


async def take_stock(database: Database, *, clock: Clock = _utc) -> None:
    """Sets the gauges of dead letters and of lost reports: every recorder tells the same."""

    async def look() -> None:
        async with database.reading() as connection:
            lost = await reporters.losses(connection)
            total, recent = await dead_letters.totals(connection, clock())
        REPORTS_MISSING.set(lost.missing)
        REPORTS_DROPPED.set(lost.dropped)
        DEAD_LETTERS.set(total)
        DEAD_LETTERS_LAST_DAY.set(recent)

    await persistently("the count of dead letters and lost reports", look)
