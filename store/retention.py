"""What is kept how long, and how it is removed: the one list that the recorder and ``hareline db clean`` go by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from sqlalchemy import Table, delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from store import dead_letters, jobs_read, sagas_read, schedules
from store.engine import Database
from store.recovery import persistently
from store.tables import answers, inbox, keys, occurrences, saga_joins, webhooks
from topology.settings import Settings

BATCH: Final = 1000
"""Rows in one transaction, so that nobody waits for long."""

Remove = Callable[[AsyncConnection, datetime, int], Awaitable[int]]
"""Removes at most so many of what is too old at that time; returns how many."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long rows are kept, in seconds.

    Jobs and sagas in their logs by how they ended; dead letters since they died, whatever became of them; rows of the
    inbox, keys of jobs and issued occurrences of schedules far longer than their jobs may still come a second time;
    schedules since they ended. Webhooks and answers say themselves until when.
    """

    jobs_done: float
    jobs_failed: float
    dead_letters: float
    inbox: float
    keys: float
    occurrences: float
    schedules: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the environment says."""
        seen = settings.inbox_retention
        done, failed = settings.jobs_done_retention, settings.jobs_failed_retention
        return cls(done, failed, settings.dead_retention, inbox=seen, keys=seen, occurrences=seen, schedules=failed)

    @classmethod
    def for_all(cls, seconds: float) -> Self:
        """The same for everything."""
        return cls(seconds, seconds, seconds, seconds, seconds, seconds, seconds)

    def removals(self) -> dict[str, Remove]:
        """By what they are called in what operators read."""

        async def old_jobs(connection: AsyncConnection, now: datetime, most: int) -> int:
            done, failed = _before(now, self.jobs_done), _before(now, self.jobs_failed)
            return await jobs_read.clean(connection, done, failed, most)

        async def old_letters(connection: AsyncConnection, now: datetime, most: int) -> int:
            return await dead_letters.clean(connection, _before(now, self.dead_letters), most)

        async def old_schedules(connection: AsyncConnection, now: datetime, most: int) -> int:
            return await schedules.clean(connection, _before(now, self.schedules), most)

        async def old_sagas(connection: AsyncConnection, now: datetime, most: int) -> int:
            done, failed = _before(now, self.jobs_done), _before(now, self.jobs_failed)
            return await sagas_read.clean(connection, done, failed, most)

        return {
            "jobs": old_jobs,
            "sagas": old_sagas,
            "saga_joins": _aged(saga_joins, "settled_at", self.inbox),
            "dead_letters": old_letters,
            "inbox": _aged(inbox, "handled_at", self.inbox),
            "keys": _aged(keys, "created_at", self.keys),
            "occurrences": _aged(occurrences, "issued_at", self.occurrences),
            "schedules": old_schedules,
            "webhooks": _aged(webhooks, "expires_at", 0.0),
            "answers": _aged(answers, "expires_at", 0.0),
        }


def _before(now: datetime, seconds: float) -> datetime:
    try:
        return now - timedelta(seconds=seconds)
    except OverflowError:  # longer than time itself: for ever
        return datetime.min.replace(tzinfo=UTC)


def _aged(table: Table, column: str, seconds: float) -> Remove:
    async def remove(connection: AsyncConnection, now: datetime, most: int) -> int:
        key: Any = tuple_(*table.primary_key.columns)
        old = select(*table.primary_key.columns).where(table.c[column] < _before(now, seconds))
        # What another clean-up has in hand is left to it.
        old = old.order_by(table.c[column]).limit(most).with_for_update(skip_locked=True)
        return (await connection.execute(delete(table).where(key.in_(old)))).rowcount

    return remove


async def clean(
    database: Database,
    retention: Retention,
    *,
    batch: int = BATCH,
    progress: Callable[[str, int], None] = lambda *_: None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> dict[str, int]:
    """Removes what has been kept long enough; returns how many of each.

    In transactions of ``batch`` rows; may be killed, repeated, and run by several at once. ``progress`` is told
    (what, removed so far) after each. Waits for a database that is away.
    """
    now = clock()
    removed: dict[str, int] = {}
    for what, remove in retention.removals().items():
        removed[what] = 0
        while True:

            async def some(remove: Remove = remove) -> int:
                async with database.transaction() as connection:
                    return await remove(connection, now, batch)

            count = await persistently("the clean-up", some)
            removed[what] += count
            if count:
                progress(what, removed[what])
            if count < batch:
                break
    return removed
