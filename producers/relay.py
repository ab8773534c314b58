"""The relay: carries what is committed in the outbox to the broker.

    claim a batch (committed) -> publish, confirmed -> delete (committed)

Killed in between, the rows are claimed again when the lease is over, and go out with the same message ids: at least
once, never never. A relay that lives renews its lease for as long as a batch takes. No transaction is open while the
broker is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from producers.reporter import CLOSING, Reporter
from store import claims
from store.claims import Claimed
from store.engine import Database
from store.listening import listen
from store.outbox import OutboxRow
from store.recovery import persistently
from store.replays import ORIGIN as REPLAY
from topology.envelope import SAGA, Malformed, Message, new_job
from topology.errors import DatabaseUnavailable, EnqueueError, PublishError, Refused, Unroutable
from topology.publisher import Publisher
from topology.settings import Settings
from topology.slip import slip_in
from topology.spec import Names

logger = logging.getLogger(__name__)

BATCH: Final = 500
LANES: Final = 2
"""Batches under way at once: one is with the broker while the other is with the database."""
LEASE: Final = 5.0
"""Seconds for which a claimed row is this relay's, unless it renews that. If it dies, others publish the row then."""
_CHANNEL: Final = "hareline_outbox"
_POLL: Final = {"postgresql": 1.0, "sqlite": 0.05}
_GATHER: Final = 0.02
"""Seconds from a claim to the next one, unless a batch was full. Claims cost the same for one row as for fifty."""
_BROKER_POLL: Final = 0.05
_RETRY_MOST: Final = 60.0
_TRIES: Final = 5
"""Times that a lane steps aside for rows that cannot be read, before it takes that for a fault of its own."""
_CHAIN: Final = 10.0
"""Seconds after which no further row of an ordering key is sent: the rest of the batch is not deleted before."""


class _Hold:
    """A batch in hand: whose rows these are, and until when. ``until`` is by the event loop's own clock."""

    def __init__(self, rows: Sequence[Claimed], until: float) -> None:
        self.ids = [row.id for row in rows]
        self.until = until
        self.over = asyncio.Event()
        self.lock = asyncio.Lock()
        """Renewing and settling touch the same rows: one after the other."""

    def lasts(self, seconds: float) -> bool:
        """Whether the rows are this relay's for ``seconds`` more."""
        return time.monotonic() + seconds < self.until


_NOTHING: Final[tuple[list[Claimed], _Hold]] = ([], _Hold((), 0.0))


class Relay:
    """Publishes outbox rows until `drain`. Any number may run at once on one database."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        lease: float = LEASE,
    ) -> None:
        self._names = Names(settings.namespace)
        self._timeout = settings.publish_timeout
        self._database = database
        self._lease = lease
        self._id = str(uuid.uuid4())
        self._publisher = Publisher(settings, "relay")
        self._reporter = Reporter(self._publisher, self._names) if settings.report else None
        self._draining = asyncio.Event()
        self._woken = asyncio.Event()
        self._looking = asyncio.Lock()
        """One lane looks for rows at a time: two woken by one commit would ask the same thing twice."""
        self._more = True
        self._claimed_at = 0.0
        self.relayed = 0
        """How many rows were published and deleted."""

    async def run(self) -> None:
        """Works until `drain` is called, then finishes the batches that are under way."""
        self._publisher.start()
        ears = asyncio.create_task(self._listen())
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(LANES):
                    group.create_task(self._lane(), name=f"relay lane {number}")
        finally:
            ears.cancel()
            if self._reporter is not None:
                await self._reporter.close(CLOSING)
            await self._publisher.stop(self._timeout)
            await self._database.close()

    def drain(self) -> None:
        """Asks the relay to stop: no more claims."""
        self._draining.set()
        self._woken.set()

    # -- one lane --------------------------------------------------------------------------------------------------

    async def _lane(self) -> None:
        while not self._draining.is_set():
            async with self._looking:
                rows, hold = await self._next_batch()
            if rows:
                await self._carry(rows, hold)

    async def _next_batch(self) -> tuple[list[Claimed], _Hold]:
        """What there is to carry, as soon as there is something; nothing where it is no time for that."""
        if not self._publisher.is_up:
            await asyncio.sleep(_BROKER_POLL)  # nobody tells; and a claim now would only be given back
            self._more = True
            return _NOTHING
        if not self._more:
            await self._rest()
        if self._draining.is_set():
            return _NOTHING
        self._woken.clear()
        rows, hold = await self._claim_readable()
        self._more = len(rows) == BATCH
        if rows:
            self._claimed_at = time.monotonic()
        return rows, hold

    async def _carry(self, rows: Sequence[Claimed], hold: _Hold) -> None:
        """One batch from claim to delete."""
        keeping = asyncio.create_task(self._keep(hold))
        try:
            fates = await self._publish(rows, hold)
            await persistently("the relay", lambda: self._settle(rows, fates, hold))
        finally:
            hold.over.set()
            await keeping

    async def _claim_readable(self) -> tuple[list[Claimed], _Hold]:
        for _ in range(_TRIES):
            with suppress(*claims.UNREADABLE):
                return await persistently("the relay", self._claim)
            await persistently("the relay", self._put_off_unreadable)  # the other lane may have been faster: no matter
        return await persistently("the relay", self._claim)

    async def _claim(self) -> tuple[list[Claimed], _Hold]:
        database = self._database
        async with database.statements() if database.is_postgresql else database.reading() as connection:
            if not await claims.anything(connection, claims.clock_of(connection)):
                return [], _Hold((), 0.0)  # an idle relay takes no locks
        async with self._database.transaction() as connection:
            until = time.monotonic() + self._lease
            rows = await claims.claim(connection, self._id, BATCH, self._lease, claims.clock_of(connection))
        return rows, _Hold(rows, until)

    async def _keep(self, hold: _Hold) -> None:
        """Renews the lease while the broker, or the database, takes its time. Most batches are done long before."""
        while not hold.over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(hold.over.wait(), self._lease / 3)
                return
            until = time.monotonic() + self._lease
            with suppress(DatabaseUnavailable):  # if it stays so, the hold ends: nothing more is sent of a key
                async with hold.lock, self._database.transaction() as connection:
                    now = claims.clock_of(connection)
                    if not await claims.renew(connection, self._id, hold.ids, self._lease, now):
                        return
                hold.until = until

    async def _put_off_unreadable(self) -> list[int]:
        async with self._database.transaction() as connection:
            found = await claims.put_off_unreadable(connection, BATCH, _RETRY_MOST, claims.clock_of(connection))
        for row in found:
            logger.error("row %d stays in the outbox: it cannot be read; see its column error", row)
        return found

    async def _settle(self, rows: Sequence[Claimed], fates: dict[int, PublishError | None], hold: _Hold) -> None:
        done = [row.id for row in rows if row.id in fates and fates[row.id] is None]
        faulty = [row for row in rows if isinstance(fates.get(row.id), Unroutable | Refused)]
        settled = {*done, *(row.id for row in faulty)}
        if self._database.is_postgresql and len(done) == len(rows):  # as it nearly always is: one round trip
            async with hold.lock, self._database.statements() as connection:
                await claims.published(connection, done)
            self.relayed += len(done)
            return
        async with hold.lock, self._database.transaction() as connection:
            await claims.published(connection, done)
            for row in faulty:
                await self._put_off(connection, row, fates[row.id])
            await claims.release(connection, self._id, [row.id for row in rows if row.id not in settled])
        self.relayed += len(done)

    async def _put_off(self, connection: AsyncConnection, row: Claimed, error: PublishError | None) -> None:
        pause = min(2.0 ** min(row.attempts, 10), _RETRY_MOST)
        if row.attempts == 0:
            logger.warning("%s %s stays in the outbox: %s", row.row.job_type, row.row.job_id, error)
        retry_at = claims.clock_of(connection) + timedelta(seconds=pause)
        await claims.failed(connection, self._id, row, str(error), retry_at)

    async def _rest(self) -> None:
        """Until a commit is announced, or it is time to look; and not right after a claim, so that rows gather."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL[self._database.dialect]):
                await self._woken.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._claimed_at + _GATHER - time.monotonic()):
                await self._draining.wait()

    async def _listen(self) -> None:
        if self._database.is_postgresql:
            await listen(self._database, _CHANNEL, self._woken.set)

    # -- publishing ------------------------------------------------------------------------------------------------

    async def _publish(self, rows: Sequence[Claimed], hold: _Hold) -> dict[int, PublishError | None]:
        """What became of each row: None where the broker has it. Rows that were not tried are left out."""
        free = [row for row in rows if row.row.ordering_key is None]
        keyed = sorted((row for row in rows if row.row.ordering_key is not None), key=_order)
        chains = [list(chain) for _, chain in groupby(keyed, key=lambda row: row.row.ordering_key)]
        fates: dict[int, PublishError | None] = {}
        sent = [(row, self._send(row)) for row in free]
        following = [asyncio.create_task(self._follow(chain, fates, hold)) for chain in chains]
        for row, (message, confirm) in sent:
            fates[row.id] = await self._outcome(row, message, confirm)
        if following:
            await asyncio.wait(following)
        return fates

    async def _follow(self, chain: Sequence[Claimed], fates: dict[int, PublishError | None], hold: _Hold) -> None:
        """One after the other: what follows a row that failed must not overtake it, nor what is another's by now."""
        end = time.monotonic() + _CHAIN
        for row in chain:
            if not hold.lasts(self._lease / 3) or time.monotonic() > end:
                return
            fates[row.id] = await self._outcome(row, *self._send(row))
            if fates[row.id] is not None:
                return

    def _send(self, claimed: Claimed) -> tuple[Message | None, asyncio.Future[None]]:
        try:
            message = self._message(claimed.row)
        except Exception as error:  # noqa: BLE001 - a time beyond the ladder, headers that are none: whatever it holds
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(Refused(str(error) if isinstance(error, EnqueueError) else repr(error)))
            return None, refused
        return message, self._publisher.send(message, self._timeout)

    def _message(self, row: OutboxRow) -> Message:
        delay = 0.0 if row.due_at is None else (row.due_at - datetime.now(UTC)).total_seconds()
        return new_job(
            self._names,
            row.job_type,
            row.body,
            job_id=row.job_id,
            delay=max(0.0, delay),
            priority=row.priority,
            correlation_id=row.correlation_id,
            headers=row.headers,
        )

    async def _outcome(
        self, claimed: Claimed, message: Message | None, confirm: asyncio.Future[None]
    ) -> PublishError | None:
        try:
            await confirm
        except PublishError as error:
            return error
        if self._reporter is not None and message is not None:
            # As of its commit to the outbox, so that its place in a listing stays the same.
            at = claimed.created_at.timestamp()
            self._reporter.queued(message, group=claimed.row.group_name, at=at)
            if claimed.row.headers and SAGA in claimed.row.headers:
                self._tell_of_a_start(claimed.row)
        return None

    def _tell_of_a_start(self, row: OutboxRow) -> None:
        if row.origin == REPLAY or self._reporter is None:
            return  # it is under way since long
        with suppress(Malformed):  # whoever runs it says so
            slip = slip_in(row.headers or {})
            assert slip is not None
            self._reporter.started(slip, row.body)


def _order(row: Claimed) -> tuple[str, int]:
    return row.row.ordering_key or "", row.id
