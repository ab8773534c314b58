"""Takes the batches of reports off the broker and into the job log: commits first, acknowledges then."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from consumers.instruments import BATCHES_REFUSED, EVENTS_RECORDED, EVENTS_REFUSED, LAG
from consumers.intake import Intake
from consumers.report_batch import NoBatch, ReportBatch, read_batch
from store import joblog, reporters, sagalog
from store.engine import Database
from store.joblog import Merged
from store.recovery import persistently
from store.sagalog import SagaNews
from topology.errors import HarelineError
from topology.settings import Settings
from topology.spec import Names
from topology.subscription import Delivery

logger = logging.getLogger(__name__)

PREFETCH: Final = 4
"""Messages of each queue that are here at a time; each has 5,000 events at most."""
_TOGETHER: Final = 10_000
"""Events after which a transaction takes no further message."""
_FINISH: Final = 10.0
"""Seconds for the last transaction when it stops. What is not committed then goes back to the queue."""


class EventRecorder:
    """Consumes ``<ns>.records`` and ``<ns>.records.failed``. Any number of them may run at once.

    A batch is acknowledged once it is committed; one that comes twice changes nothing. What is no batch is logged,
    counted and dropped. While the database is away nothing is acknowledged, and the queues keep what they can hold.
    ``groups`` learns the groups of job types.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        groups: dict[str, str] | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._groups = {} if groups is None else groups
        names = Names(settings.namespace)
        self._draining = asyncio.Event()
        queues = (names.records_failed, names.records)
        self._intake = Intake(settings, "hareline recorder", queues, PREFETCH, self._draining)
        self._waiting = self._intake.arrived
        self.ready = self._intake.ready
        self.recorded = 0
        self.refused = 0

    async def run(self) -> None:
        """Records until `drain` is called, then finishes what it has begun.

        Raises TopologyError if the first broker that answers does not have the queues.
        """
        self._intake.start()
        writing = asyncio.create_task(self._write_all())
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait({writing, draining}, return_when=asyncio.FIRST_COMPLETED)
            if self._intake.unfit is not None:
                raise self._intake.unfit
            if writing.done():
                await writing
            await self._finish()
        finally:
            writing.cancel()
            draining.cancel()
            await asyncio.wait({writing, draining})
            await self._intake.stop()

    def drain(self) -> None:
        """Asks it to stop."""
        self._draining.set()

    async def _finish(self) -> None:
        await self._intake.pause()
        try:
            async with asyncio.timeout(_FINISH):
                await self._waiting.join()
        except TimeoutError:
            logger.warning("what is not recorded yet goes back to the broker's queue: the database takes too long")
        await self._intake.told()

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _write_all(self) -> None:
        while True:
            deliveries = [await self._waiting.get()]
            batches: list[ReportBatch] = []
            try:
                self._read(deliveries[0], batches)
                while not self._waiting.empty() and sum(map(len, batches)) < _TOGETHER:
                    deliveries.append(self._waiting.get_nowait())
                    self._read(deliveries[-1], batches)
                await self._write_or_drop(batches)
                for delivery in deliveries:
                    delivery.acks.done(delivery.tag)
            finally:
                for _ in deliveries:
                    self._waiting.task_done()

    def _read(self, delivery: Delivery, batches: list[ReportBatch]) -> None:
        if not delivery.acks.is_open:
            return  # it is delivered again, to somebody
        try:
            batches.append(read_batch(delivery.body))
        except NoBatch as error:
            self.refused += 1
            BATCHES_REFUSED.add(1)
            logger.warning("a message in %s is no batch of reports and is dropped: %s", delivery.queue, error)

    async def _write_or_drop(self, batches: list[ReportBatch]) -> None:
        """A batch that the database refuses for what is in it must neither come back for ever nor hold up others."""
        if not batches:
            return
        try:
            await self._write(batches)
        except HarelineError:
            raise
        except Exception:
            if len(batches) > 1:
                for batch in batches:
                    await self._write_or_drop([batch])
                return
            self.refused += 1
            BATCHES_REFUSED.add(1)
            logger.exception("a batch of reports cannot be recorded and is dropped: this is a fault in Hareline")

    async def _write(self, batches: list[ReportBatch]) -> None:
        merged = Merged.empty()
        for batch in batches:
            self._groups.update(batch.groups)
        taken = sum(merged.add(batch.events, batch.groups) for batch in batches)
        news = SagaNews()
        taken += sum(news.add(batch.sagas) for batch in batches)

        async def once() -> None:
            async with self._database.transaction() as connection:
                await joblog.merge(connection, merged)
                await sagalog.merge(connection, news)
                await reporters.note(connection, [batch.heading for batch in batches], self._clock())

        await persistently("the recorder", once)
        self.recorded += taken
        EVENTS_RECORDED.add(taken)
        refused = merged.refused + news.refused
        if refused:
            EVENTS_REFUSED.add(refused)
            logger.warning("%d reports make no sense and are dropped", refused)
        # Not of the events: a relay tells of jobs as of their commit, which may be long ago.
        newest = max(batch.sent_at for batch in batches)
        if newest:
            LAG.set(max(0.0, time.time() - newest))
