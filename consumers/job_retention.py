"""Removes from the job log what has been kept long enough."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from consumers.instruments import JOBS_CLEANED, REPORTS_DROPPED, REPORTS_MISSING
from store import reporters
from store.engine import Database
from store.jobs_read import clean
from store.recovery import persistently
from topology.settings import Settings

logger = logging.getLogger(__name__)

EVERY: Final = 60.0
"""Seconds between two rounds."""
BATCH: Final = 500


class JobRetention:
    """Cleans every minute, a few hundred rows a transaction, so that it holds up nobody; several may run at once."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        every: float = EVERY,
    ) -> None:
        self._done = timedelta(seconds=settings.jobs_done_retention)
        self._failed = timedelta(seconds=settings.jobs_failed_retention)
        self._database = database
        self._clock = clock
        self._every = every
        self._draining = asyncio.Event()

    async def run(self) -> None:
        """Cleans until `drain` is called."""
        draining = asyncio.create_task(self._draining.wait())
        cleaning = asyncio.create_task(self._clean_for_ever())
        await asyncio.wait({draining, cleaning}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if cleaning.done():
            await cleaning
        cleaning.cancel()
        await asyncio.wait({cleaning})

    def drain(self) -> None:
        """Asks it to stop; a transaction under way is rolled back."""
        self._draining.set()

    async def clean(self) -> int:
        """One round; returns how many jobs were removed."""
        removed = 0
        while number := await persistently("the clean-up of the job log", self._clean_some):
            removed += number
        if removed:
            JOBS_CLEANED.add(removed)
            logger.info("removed %d jobs from the log", removed)
        return removed

    async def _clean_some(self) -> int:
        now = self._clock()
        async with self._database.transaction() as connection:
            return await clean(connection, now - self._done, now - self._failed, BATCH)

    async def _clean_for_ever(self) -> None:
        while True:
            await self.clean()
            await persistently("the count of lost reports", self._look_for_losses)
            await asyncio.sleep(self._every)

    async def _look_for_losses(self) -> None:
        async with self._database.reading() as connection:
            found = await reporters.losses(connection)
        REPORTS_MISSING.set(found.missing)
        REPORTS_DROPPED.set(found.dropped)
