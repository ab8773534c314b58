"""Moves the dead-letter queue into the table of dead letters: commits first, acknowledges then."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from opentelemetry import metrics

from consumers.obituary import letter_of
from store import dead_letters as rows
from store import outbox
from store.dead_letters import NewLetter
from store.engine import Database
from store.recovery import persistently
from topology.control import Control
from topology.envelope import new_id
from topology.errors import BrokerUnreachable, HarelineError, SettingsError, TopologyError
from topology.settings import Settings
from topology.spec import Names

logger = logging.getLogger(__name__)

BATCH: Final = 1000
PREFETCH: Final = 2 * BATCH
_TICK: Final = 0.2
"""Seconds between looks at whether to stop, and whether the broker still delivers."""
_LAST_WORD: Final = 5.0
"""Seconds that a commit may take once `drain` was called; what is not committed stays in the queue."""
_BACKOFF: Final = (0.2, 5.0)
_LOOK: Final = 1.0

_alerts: Final = metrics.get_meter("hareline").create_counter(
    "hareline.dead_letters.alerts", description="Times that more jobs than HARELINE_DEAD_ALERT died within an hour."
)


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
        self._settings = settings
        self._database = database
        self._names = Names(settings.namespace)
        self._groups = groups or {}
        self._clock = clock
        self._draining = asyncio.Event()
        self._alert = DeadAlert(settings, database, clock)
        self._seen = False
        self.ready = asyncio.Event()
        """Set while the broker delivers."""

    def drain(self) -> None:
        """Asks `run` to end after the batch in hand."""
        self._draining.set()

    async def run(self) -> None:
        """Records until `drain` is called."""
        pause = _BACKOFF[0]
        while not self._draining.is_set():
            began = time.monotonic()
            try:
                await self._consume()
            except TopologyError as error:
                if not isinstance(error, BrokerUnreachable) and not self._seen:
                    raise
                logger.warning("the dead-letter recorder connects again: %s", error)
            finally:
                self.ready.clear()
            pause = _BACKOFF[0] if time.monotonic() - began > _BACKOFF[1] else min(pause * 2, _BACKOFF[1])
            await self._sleep(pause)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.wait([asyncio.ensure_future(self._draining.wait())], timeout=seconds)

    async def _consume(self) -> None:
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        queue = self._names.dlq
        async with (
            await Control.connect(self._settings.broker_urls, name="hareline dead-letter recorder") as control,
            control.channel(f"consuming {queue}") as opened,
        ):
            channel: Any = opened  # its interface does not name the consumers, which a cancel by the broker takes away
            await channel.basic_qos(prefetch_count=PREFETCH)
            answer = await channel.basic_consume(queue, arrived.put)
            self._seen = True
            self.ready.set()
            while not self._draining.is_set():
                batch = await _gather(arrived)
                if batch and not await self._record(channel, batch):
                    return
                await self._alert.look(fresh=bool(batch))
                if channel.is_closed or answer.consumer_tag not in channel.consumers:
                    raise BrokerUnreachable(f"{queue} is not delivered any more")

    async def _record(self, channel: Any, batch: Sequence[Any]) -> bool:
        """Commits and acknowledges; False where `drain` came and the database did not let it through."""
        now = self._clock()
        letters = [
            letter_of(
                self._names, message.header.properties, message.routing_key or "", message.body, now, self._groups
            )
            for message in batch
        ]

        async def write() -> None:  # a lambda would not be awaited by what repeats it
            await self._write(letters, now)

        writing = asyncio.ensure_future(persistently("the dead-letter recorder", write))
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({writing, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                await asyncio.wait({writing}, timeout=_LAST_WORD)
            if not writing.done():
                logger.warning("%d dead letters stay in %s: the database is away", len(batch), self._names.dlq)
                return False
            writing.result()
        finally:
            writing.cancel()
            draining.cancel()
        tag = batch[-1].delivery_tag
        assert tag is not None
        await channel.basic_ack(tag, multiple=True)
        return True

    async def _write(self, letters: Sequence[NewLetter], now: datetime) -> None:
        try:
            async with self._database.transaction() as connection:
                await rows.record(connection, letters, now)
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


async def _gather(arrived: asyncio.Queue[Any]) -> list[Any]:
    """What has arrived by now, up to a batch; waits for a tick if that is nothing."""
    try:
        batch = [await asyncio.wait_for(arrived.get(), _TICK)]
    except TimeoutError:
        return []
    while len(batch) < BATCH and not arrived.empty():
        batch.append(arrived.get_nowait())
    return batch


class DeadAlert:
    """Tells once when more than HARELINE_DEAD_ALERT jobs died within an hour, and again after it has been fewer.

    A log line, the counter ``hareline.dead_letters.alerts``, and an ``email.send`` job to HARELINE_DEAD_ALERT_EMAIL
    where that is set. Each recorder process tells for itself.
    """

    def __init__(self, settings: Settings, database: Database, clock: Callable[[], datetime]) -> None:
        text = settings.extra.get("HARELINE_DEAD_ALERT", "")
        if text and not text.isdecimal():
            raise SettingsError(f"HARELINE_DEAD_ALERT is '{text}': a whole number of jobs in an hour is needed")
        self._limit = int(text) if text else None
        self._email = settings.extra.get("HARELINE_DEAD_ALERT_EMAIL")
        self._namespace = settings.namespace
        self._database = database
        self._clock = clock
        self._dirty = False
        self._breached = False
        self._looked = float("-inf")

    async def look(self, *, fresh: bool) -> None:
        """Counts, at most once a second and while it matters. ``fresh``: more have died."""
        self._dirty |= fresh
        if self._limit is None or not self._dirty or time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        limit = self._limit
        try:
            async with self._database.transaction() as connection:
                died = await rows.died_within(connection, 1, self._clock(), upto=limit + 1)
                if died > limit and not self._breached and self._email:
                    await outbox.add(connection, [self._mail(self._email, limit)])
        except HarelineError as error:
            logger.warning("cannot count the dead of the last hour: %s", error)
            return
        self._dirty = died > limit  # to see it end
        if died > limit and not self._breached:
            logger.error("more than %d jobs died within an hour: see `hareline dlq groups`", limit)
            _alerts.add(1)
        self._breached = died > limit

    def _mail(self, to: str, limit: int) -> outbox.OutboxRow:
        from consumers.jobs.email import send_email  # noqa: PLC0415 - needs the jobs extra, which few recorders want

        subject = f"{self._namespace}: more than {limit} jobs died within an hour"
        body = send_email.encode({"to": to, "subject": subject, "text": "See `hareline dlq groups`.\n"})
        return outbox.OutboxRow(job_id=new_id(), job_type=send_email.name, body=body, origin="enqueue")
