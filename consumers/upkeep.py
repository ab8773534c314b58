"""What the recorder does every minute besides recording: removes what is old, and says how things stand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from consumers.instruments import (
    DEAD_LETTERS,
    DEAD_LETTERS_LAST_DAY,
    REPORTS_DROPPED,
    REPORTS_MISSING,
    ROWS_CLEANED,
)
from store import dead_letters, reporters, saga_gaps
from store.engine import Database
from store.recovery import persistently
from store.retention import Retention, clean

logger = logging.getLogger(__name__)

EVERY: Final = 60.0
"""Seconds. A count of a million dead letters takes a tenth of one."""

GAPS_EVERY: Final = 5.0
"""Seconds between looks at sagas of which nothing is heard."""
SILENCE: Final = timedelta(seconds=5)

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


class SagaGaps:
    """Finds in the inbox what the saga log never heard, since the worker was killed that would have told."""

    def __init__(self, database: Database, *, clock: Clock = _utc) -> None:
        self._database = database
        self._clock = clock
        self._position: saga_gaps.Position | None = None

    async def fill(self) -> None:
        """Looks at the next sagas of which nothing was heard for a while; all of them in turn."""

        async def some() -> saga_gaps.Position | None:
            async with self._database.transaction() as connection:
                return await saga_gaps.fill(connection, self._clock() - SILENCE, self._position)

        self._position = await persistently("the look for lost news of sagas", some)


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
