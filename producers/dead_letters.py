"""The dead-letter desk as a service uses it: dead jobs found, replayed, edited, put away."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

from store import dead_letters as rows
from store import replays
from store.client import Clock, StoreClient, utc_now
from store.dead_letters import (
    DEAD,
    STATUSES,
    DeadLetter,
    DeadLetterFilters,
    DeadLetterGroup,
    DeadLetterPage,
    DeadLetterStats,
)
from store.engine import Database
from store.recovery import persistently
from topology.contract import JobType
from topology.duration import ago
from topology.envelope import new_id
from topology.errors import NotFound, OptionInvalid, PayloadInvalid, PayloadTooLarge
from topology.settings import Settings
from topology.text import expect_storable, shown

__all__ = ["DeadLetter", "DeadLetterFilters", "DeadLetterGroup", "DeadLetterPage", "DeadLetterStats", "DeadLetters"]

T = TypeVar("T")

LARGEST_PAGE: Final = 1000
RETENTION: Final = timedelta(days=30)
_CHUNK: Final = 2000
_CLEAN: Final = 1000
_IN_FLIGHT: Final = 10_000
"""Ids that a watch looks back: of several recorders, one may commit lower ids later than another its higher ones."""
_LAST_CHUNK: Final = 10.0
"""Seconds that the chunk under way may take when a replay is cancelled."""


Progress = Callable[[int], None] | None


class DeadLetters(StoreClient):
    """What the recorder has taken from the dead-letter queue. Replays go through the outbox: a running relay publishes.

    ``source`` is a `Database`, or the `Settings` that name one (by default the environment's). ``job_types`` are
    those whose edited payloads can be validated. Raises DatabaseUnavailable where the database is gone, locked, full
    or read-only. Close it, or use ``async with``; a database that was handed in stays open.
    """

    def __init__(
        self,
        source: Database | Settings | None = None,
        *,
        job_types: Iterable[JobType[Any]] = (),
        clock: Clock = utc_now,
    ) -> None:
        super().__init__(source, clock=clock)
        self._types = {job_type.name: job_type for job_type in job_types}

    async def list(
        self, filters: DeadLetterFilters | None = None, *, limit: int = 100, cursor: str | None = None
    ) -> DeadLetterPage:
        """A page, the latest first. Raises CursorInvalid for a cursor that was altered or is of other filters."""
        if not 1 <= limit <= LARGEST_PAGE:
            raise OptionInvalid(f"limit is {limit}: from 1 to {LARGEST_PAGE}")
        async with self._reading() as connection:
            return await rows.page(connection, _checked(filters), limit, cursor)

    async def get(self, letter_id: int) -> DeadLetter:
        """One by its id. Raises NotFound."""
        async with self._reading() as connection:
            return await rows.get(connection, _checked_id(letter_id))

    async def count(self, filters: DeadLetterFilters | None = None) -> int:
        """How many there are."""
        async with self._reading() as connection:
            return await rows.count(connection, _checked(filters))

    async def died_within(self, hours: float) -> int:
        """How many died within the last ``hours``, whatever became of them since."""
        async with self._reading() as connection:
            return await rows.died_within(connection, hours, self._clock())

    async def latest_id(self) -> int:
        """The highest id so far, 0 if there is none."""
        async with self._reading() as connection:
            return await rows.latest_id(connection)

    async def watch(
        self, *, every: float = 1.0, on_ready: Callable[[], None] = lambda: None
    ) -> AsyncIterator[DeadLetter]:
        """Dead letters as they are recorded from now on, for ever. Looks ``every`` so many seconds.

        ``on_ready`` is called when it is known what is new.
        Raises DatabaseUnavailable if the database is away at the start; waits for one that goes away later.
        """
        async with self._reading() as connection:
            latest = await rows.latest_id(connection)
            seen = set(await rows.ids_after(connection, latest - _IN_FLIGHT))
        on_ready()
        while True:

            async def look(after: int = latest - _IN_FLIGHT) -> list[int]:
                async with self._reading() as connection:
                    return await rows.ids_after(connection, after)

            ids = await persistently("the watch", look)
            fresh = [letter_id for letter_id in ids if letter_id not in seen]
            for start in range(0, len(fresh), LARGEST_PAGE):
                for letter in await self._fetched(fresh[start : start + LARGEST_PAGE]):
                    yield letter
            seen, latest = set(ids), max([latest, *ids])
            await asyncio.sleep(every)

    async def _fetched(self, ids: Sequence[int]) -> Sequence[DeadLetter]:
        async def fetch() -> Sequence[DeadLetter]:
            async with self._reading() as connection:
                return await rows.by_ids(connection, ids)

        return await persistently("the watch", fetch)

    async def stats(self) -> DeadLetterStats:
        """Total, by queue, by type, of the last 24 hours, and when the oldest died."""
        async with self._reading() as connection:
            return await rows.stats(connection, self._clock())

    async def groups(self, filters: DeadLetterFilters | None = None, *, limit: int = 100) -> Sequence[DeadLetterGroup]:
        """By job type and exception, the largest first."""
        async with self._reading() as connection:
            return await rows.groups(connection, _checked(filters), limit)

    async def replay(
        self,
        which: Sequence[int] | DeadLetterFilters,
        *,
        rate: float | None = None,
        dry_run: bool = False,
        progress: Progress = None,
    ) -> int:
        """Replays dead letters by id, or all that match; returns how many. ``rate`` is the most in a second.

        Mark and outbox row are one transaction: each is published exactly once by the relay, whatever crashes.
        Letters that are not dead (any more) are left out; unknown ids raise NotFound before anything is done. All
        that match: in chunks, of what was there at the beginning; ended half-way, the same call goes on with what
        is left. ``progress`` is called with the number of each chunk, also of the one under way when it is cancelled.
        """
        if rate is not None and not 0 < rate < math.inf:
            raise OptionInvalid(f"rate is {rate}: a number above zero, of letters in a second, is needed")
        chunk = _CHUNK if rate is None else max(1, min(_CHUNK, int(rate)))
        if isinstance(which, DeadLetterFilters):
            return await self._replay_all(_dead(which), rate, chunk, dry_run, progress)
        ids = list(dict.fromkeys(map(_checked_id, which)))
        async with self._reading() as connection:
            found = await rows.statuses(connection, ids)
        dead = [letter_id for letter_id in ids if found[letter_id] == DEAD]
        if dry_run:
            return len(dead)
        total, began = 0, time.monotonic()
        for start in range(0, len(dead), chunk):
            await _pace(total, rate, began)
            total += await _to_the_end(self._replay_some(dead[start : start + chunk], progress))
        return total

    async def _replay_some(self, ids: Sequence[int], progress: Progress) -> int:
        async with self._transaction() as connection:
            number = len(await replays.replay(connection, ids, self._clock()))
        if progress is not None:
            progress(number)
        return number

    async def _replay_all(
        self, filters: DeadLetterFilters, rate: float | None, chunk: int, dry_run: bool, progress: Progress
    ) -> int:
        async with self._reading() as connection:
            if dry_run:
                return await rows.count(connection, filters)
            # What dies again meanwhile is not replayed again: that would never end.
            last = await rows.latest_id(connection)
        after: int | None = 0
        total, began = 0, time.monotonic()
        while after is not None:
            await _pace(total, rate, began)
            number, after = await _to_the_end(self._replay_chunk(filters, after, last, chunk, progress))
            total += number
        return total

    async def _replay_chunk(
        self, filters: DeadLetterFilters, after: int, last: int, limit: int, progress: Progress
    ) -> tuple[int, int | None]:
        async with self._transaction() as connection:
            number, highest = await replays.replay_chunk(
                connection, filters, self._clock(), after=after, last=last, limit=limit
            )
        if progress is not None and highest is not None:
            progress(number)
        return number, highest

    async def edit(self, letter_id: int, payload: Any) -> str:
        """Replays the dead letter with another payload, as a new job that names the old; returns the new job's id.

        Validated where the job type is known: raises PayloadInvalid. Raises NotFound for one that is not dead.
        """
        letter = await self.get(letter_id)
        body = self._encoded(letter.type, payload)
        job_id = new_id()
        async with self._transaction() as connection:
            done = await replays.replace(connection, letter_id, body, job_id, self._clock())
        if done is None:
            now = await self.get(letter_id)
            raise NotFound(f"dead letter {letter_id} is {now.status}: only a dead one can be edited")
        return job_id

    def _encoded(self, job_type: str, payload: Any) -> bytes:
        known = self._types.get(job_type)
        if known is not None:
            body = known.encode(payload)
        else:
            try:
                body = json.dumps(payload, allow_nan=False, separators=(",", ":")).encode()
            except (TypeError, ValueError) as error:
                raise PayloadInvalid(f"{job_type}: the payload cannot be written as JSON: {error}") from error
        if len(body) > self._settings.max_payload:
            raise PayloadTooLarge(f"{job_type}: {len(body):,} bytes, the limit is {self._settings.max_payload:,}")
        return body

    async def discard(self, ids: Sequence[int]) -> int:
        """Puts dead letters away until `clean` deletes them; returns how many were dead. Unknown ids raise NotFound."""
        ids = list(dict.fromkeys(map(_checked_id, ids)))
        async with self._transaction() as connection:
            await rows.statuses(connection, ids)
            return len(await rows.discard(connection, ids))

    async def clean(self, older_than: timedelta = RETENTION) -> int:
        """Deletes what died longer ago than that, in small transactions; returns how many."""
        if older_than < timedelta(0):
            raise OptionInvalid("older_than is negative")
        before, total = ago("older_than", older_than, self._clock()), 0
        while True:
            async with self._transaction() as connection:
                number = await rows.clean(connection, before, _CLEAN)
            total += number
            if number < _CLEAN:
                return total


async def _to_the_end(chunk: Coroutine[Any, Any, T]) -> T:
    """A chunk is either done and counted, or not begun: a cancel waits for the one under way."""
    task = asyncio.ensure_future(chunk)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=_LAST_CHUNK)
        task.cancel()
        raise


async def _pace(done: int, rate: float | None, began: float) -> None:
    if rate is not None:
        await asyncio.sleep(max(0.0, began + done / rate - time.monotonic()))


def _checked(filters: DeadLetterFilters | None) -> DeadLetterFilters:
    filters = filters or DeadLetterFilters()
    expect_storable(
        type=filters.type,
        error=filters.error,
        reason=filters.reason,
        group=filters.group,
        fingerprint=filters.fingerprint,
    )
    if filters.status is not None and filters.status not in STATUSES:
        raise OptionInvalid(f"status is '{filters.status}': {', '.join(STATUSES)} or None for all")
    if filters.since is not None and filters.since.utcoffset() is None:
        raise OptionInvalid(f"since is {filters.since.isoformat()}: a time needs a zone")
    return filters


def _dead(filters: DeadLetterFilters) -> DeadLetterFilters:
    if _checked(filters).status != DEAD:
        raise OptionInvalid("only what is dead can be replayed: leave the status out")
    return filters


def _checked_id(letter_id: int) -> int:
    if isinstance(letter_id, bool) or not isinstance(letter_id, int) or not 0 < letter_id < 2**63:
        raise NotFound(f"there is no dead letter {shown(letter_id)}: ids are whole numbers")
    return letter_id
