"""What stands behind ``job.transaction()``. SQLAlchemy is imported when the first handler asks for it, not before."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

from consumers.outcome import AlreadyDone, Permanent
from topology.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from store.engine import Database

_LARGEST_POOL = 10


class Inbox:
    """The worker's database, opened at first use; one for coroutines, one for plain handlers in threads."""

    def __init__(self, settings: Settings, concurrency: int) -> None:
        self._settings = settings
        self._pool = min(concurrency, _LARGEST_POOL)
        self._database: Database | None = None
        self._blocking: Engine | None = None
        self._opening = threading.Lock()

    @property
    def engine(self) -> AsyncEngine:
        """For coroutines. Raises SettingsError."""
        if self._database is None:
            from store.engine import Database  # noqa: PLC0415 - a worker that never comes here stays small

            self._database = Database.from_settings(self._settings, pool=self._pool)
        return self._database.engine

    @property
    def blocking_engine(self) -> Engine:
        """For threads. Raises SettingsError."""
        with self._opening:
            if self._blocking is None:
                from store.engine import blocking_engine, parse_url  # noqa: PLC0415 - the same

                self._blocking = blocking_engine(parse_url(self._settings.database_url))
            return self._blocking

    async def close(self) -> None:
        """Closes the connections, if there are any."""
        if self._database is not None:
            await self._database.close()
        if self._blocking is not None:
            await asyncio.to_thread(self._blocking.dispose)


class Transaction:
    """``async with`` gives an AsyncConnection, ``with`` a Connection, in a transaction that also has the inbox row.

    Commits at the end of the block, rolls back on any error. Raises AlreadyDone at its beginning if a transaction of
    the same job and name has committed, and DatabaseUnavailable where the database is gone, locked, full or read-only.
    """

    def __init__(
        self, inbox: Inbox, job: tuple[str, str], name: str, engine: AsyncEngine | Engine | None, used: set[str]
    ) -> None:
        self._inbox = inbox
        self._job = job
        self._name = name
        self._engine = engine
        self._used = used
        self._stack: Any = None

    async def __aenter__(self) -> AsyncConnection:
        from sqlalchemy.ext.asyncio import AsyncEngine  # noqa: PLC0415 - see Inbox.engine

        from store.engine import translated  # noqa: PLC0415
        from store.inbox import claim  # noqa: PLC0415

        engine = self._inbox.engine if self._engine is None else self._engine
        if not isinstance(engine, AsyncEngine):
            raise Permanent("`async with job.transaction(engine=...)` needs an AsyncEngine; use `with` for an Engine")
        self._begin()
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(translated(engine.url))
                connection = await stack.enter_async_context(engine.begin())
                self._must_be_new(await claim(connection, *self._job, self._name))
                self._stack = stack.pop_all()
        except BaseException:
            self._used.discard(self._name)
            raise
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            swallowed: bool | None = await self._stack.__aexit__(kind, error, trace)
        except BaseException:
            self._used.discard(self._name)
            raise
        return self._ended(kind, swallowed)

    def __enter__(self) -> Connection:
        from sqlalchemy import Engine  # noqa: PLC0415 - see Inbox.engine

        from store.engine import translated  # noqa: PLC0415
        from store.inbox import claim_blocking  # noqa: PLC0415

        engine = self._inbox.blocking_engine if self._engine is None else self._engine
        if not isinstance(engine, Engine):
            raise Permanent("`with job.transaction(engine=...)` needs an Engine; use `async with` for an AsyncEngine")
        self._begin()
        try:
            with ExitStack() as stack:
                stack.enter_context(translated(engine.url))
                connection = stack.enter_context(engine.begin())
                self._must_be_new(claim_blocking(connection, *self._job, self._name))
                self._stack = stack.pop_all()
        except BaseException:
            self._used.discard(self._name)
            raise
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            swallowed: bool | None = self._stack.__exit__(kind, error, trace)
        except BaseException:
            self._used.discard(self._name)
            raise
        return self._ended(kind, swallowed)

    def _begin(self) -> None:
        """A second one of the same name in one run would take the first one's row for an earlier delivery's."""
        if self._name in self._used:
            raise Permanent(f"{self._job[1]}: two transactions of one job need names: job.transaction(name=...)")
        self._used.add(self._name)

    def _must_be_new(self, new: bool) -> None:
        if not new:
            raise AlreadyDone(*self._job, self._name)

    def _ended(self, kind: type[BaseException] | None, swallowed: bool | None) -> bool | None:
        if kind is not None:
            self._used.discard(self._name)
        return swallowed
