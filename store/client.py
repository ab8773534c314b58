"""What a service's own code opens to ask the database: schedules, dead letters, the job log share this life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from store.engine import Database
from topology.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The clock that everything has unless a test gives another."""
    return datetime.now(UTC)


class StoreClient:
    """Works on a `Database` that was handed in, which stays open, or on one of its own, which `close` closes.

    ``source`` is that database, or the `Settings` that name one (by default the environment's).
    """

    def __init__(self, source: Database | Settings | None = None, *, clock: Clock = utc_now) -> None:
        self._owned = not isinstance(source, Database)
        if isinstance(source, Database):
            self._database, self._settings = source, Settings()
        else:
            self._settings = source or Settings.from_env()
            self._database = Database.from_settings(self._settings)
        self._clock = clock

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the database, unless it was handed in."""
        if self._owned:
            await self._database.close()

    @asynccontextmanager
    async def _transaction(self, connection: AsyncConnection | None = None) -> AsyncIterator[AsyncConnection]:
        """The caller's transaction where ``connection`` is given, else one of its own."""
        if connection is not None:
            yield connection
            return
        async with self._database.transaction() as own:
            yield own

    @asynccontextmanager
    async def _reading(self, connection: AsyncConnection | None = None) -> AsyncIterator[AsyncConnection]:
        """The same for queries alone."""
        if connection is not None:
            yield connection
            return
        async with self._database.reading() as own:
            yield own
