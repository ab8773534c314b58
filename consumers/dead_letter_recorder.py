"""Moves the dead-letter queue into the table of dead letters: commits first, acknowledges then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from consumers.dead_alert import DeadAlert
from consumers.intake import Intake
from consumers.obituary import letter_of, saga_news_of
from store import dead_letters as rows
from store import sagalog
from store.dead_letters import NewLetter
from store.engine import Database
from store.recovery import persistently
from store.sagalog import SagaNews
from topology.errors import HarelineError
from topology.settings import Settings
from topology.spec import Names
from topology.subscription import Delivery

logger = logging.getLogger(__name__)

BATCH: Final = 1000
PREFETCH: Final = 3 * BATCH
"""One batch is committed, one is read, one is on its way."""
_BYTES: Final = 16 * 1024 * 1024
"""Of bodies, after which a batch takes no further message: it is one statement."""
_TICK: Final = 0.2
"""Seconds between looks at whether to stop, and whether the broker still delivers."""
_MOMENT: Final = 0.05
"""Seconds that a batch which is not full waits for more."""
_LAST_WORD: Final = 5.0
"""Seconds that a commit may take once `drain` was called; what is not committed stays in the queue."""


class DeadLetterRecorder:
    """Each message of the dead-letter queue becomes one row, however often it is delivered and whatever crashes.

    Any number may run at once. It waits for a broker or database that is away. ``groups`` names the group of a job
    type. Raises TopologyError where there is no dead-letter queue, SchemaOutdated where there are no tables.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        groups: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._names = Names(settings.namespace)
        self._groups = groups or {}
        self._clock = clock
        self._draining = asyncio.Event()
        self._alert = DeadAlert(settings, database, clock)
        self._intake = Intake(settings, "hareline dead-letter recorder", [self._names.dlq], PREFETCH, self._draining)
        self.ready = self._intake.ready
        """Set while the broker delivers."""

    def drain(self) -> None:
        """Asks `run` to end after the batch in hand."""
        self._draining.set()

    async def run(self) -> None:
        """Records until `drain` is called."""
        self._intake.start()
        try:
            await self._record_all()
            if self._intake.unfit is not None:
                raise self._intake.unfit
            await self._intake.told()
        finally:
            await self._intake.stop()

    async def _record_all(self) -> None:
        recording: asyncio.Task[None] = asyncio.create_task(_nothing())
        try:
            while not self._draining.is_set():
                batch = await _gather(self._intake.arrived)
                # The letters of a batch are read while the one before is committed, no further ahead than that.
                now = self._clock()
                letters = [self._letter(delivery, now) for delivery in batch]
                if not await self._decided(recording):
                    return
                if batch:
                    recording = asyncio.create_task(self._record(batch, letters, now))
                await self._alert.look()
            await self._decided(recording)
        finally:
            recording.cancel()
            await asyncio.wait({recording})

    def _letter(self, delivery: Delivery, now: datetime) -> NewLetter:
        return letter_of(self._names, delivery.properties, delivery.body, now, self._groups)

    async def _decided(self, recording: asyncio.Task[None]) -> bool:
        """Waits for a batch to be committed and acknowledged; False where `drain` came and it does not get through."""
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait([recording, draining], return_when=asyncio.FIRST_COMPLETED)
            if not recording.done():
                await asyncio.wait({recording}, timeout=_LAST_WORD)
        finally:
            draining.cancel()
        if not recording.done():
            logger.warning("a batch of dead letters stays in %s: the database is away", self._names.dlq)
            return False
        recording.result()
        return True

    async def _record(self, batch: Sequence[Delivery], letters: Sequence[NewLetter], now: datetime) -> None:
        """Commits and then acknowledges."""

        async def write() -> None:  # a lambda would not be awaited by what repeats it
            await self._write(letters, now)

        await persistently("the dead-letter recorder", write)
        self._alert.note()
        for delivery in batch:
            delivery.acks.done(delivery.tag)

    async def _write(self, letters: Sequence[NewLetter], now: datetime) -> None:
        news = SagaNews()
        news.add(event for letter in letters if (event := saga_news_of(letter)) is not None)
        try:
            async with self._database.transaction() as connection:
                await rows.record(connection, letters, now)
                await sagalog.merge(connection, news)
        except HarelineError:
            raise
        except Exception:
            logger.exception("the database refuses a batch of %d dead letters: one by one", len(letters))
            for letter in letters:
                await self._write_one(letter, now)

    async def _write_one(self, letter: NewLetter, now: datetime) -> None:
        """What the database refuses for its headers is recorded without them, so that it cannot stop the others."""
        try:
            async with self._database.transaction() as connection:
                await rows.record(connection, [letter], now)
        except HarelineError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a driver raises about the values
            bare = replace(letter, headers={}, traceback=None, message=f"its headers cannot be stored: {error!r}"[:500])
            async with self._database.transaction() as connection:
                await rows.record(connection, [bare], now)


async def _nothing() -> None:
    """Has been recorded before the first batch."""


async def _gather(arrived: asyncio.Queue[Delivery]) -> list[Delivery]:
    """A batch; or what has come a moment after the first of it; or nothing, where nothing comes for a tick."""
    try:
        batch = [await asyncio.wait_for(arrived.get(), _TICK)]
    except TimeoutError:
        return []
    if arrived.qsize() < BATCH:
        await asyncio.sleep(_MOMENT)  # a commit costs as much for one as for a hundred
    size = len(batch[0].body)
    while len(batch) < BATCH and size < _BYTES and not arrived.empty():
        batch.append(arrived.get_nowait())
        size += len(batch[-1].body)
    return [delivery for delivery in batch if delivery.acks.is_open]  # else it is delivered again
