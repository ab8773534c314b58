"""What stands behind ``job.transaction()``. SQLAlchemy is imported when the first handler asks for it, not before."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic_core import from_json

from consumers.outcome import Abandoned, AlreadyDone, Permanent
from consumers.saga_view import Kept
from topology.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from store.engine import Database
    from store.inbox import Verdict

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
            # A worker that never comes here stays small.
            from store.engine import Database, parse_url, pool_of_writers  # noqa: PLC0415

            url = self._settings.database_url
            self._database = Database(url, pool=pool_of_writers(parse_url(url), self._pool))
        return self._database.engine

    @property
    def blocking_engine(self) -> Engine:
        """For threads. Raises SettingsError."""
        with self._opening:
            if self._blocking is None:
                from store.engine import blocking_engine, parse_url, pool_of_writers  # noqa: PLC0415 - the same

                url = parse_url(self._settings.database_url)
                self._blocking = blocking_engine(url, pool=pool_of_writers(url, self._pool))
            return self._blocking

    async def abandon(self, job_id: str, job_type: str, why: str) -> Verdict:
        """Decides that a saga's step is never to have effects, unless it has committed some: see `Verdict`.

        A transaction of the step that is not decided yet is waited for. Raises a StoreError, SettingsError.
        """
        from store.engine import translated  # noqa: PLC0415 - see engine
        from store.inbox import abandon  # noqa: PLC0415

        engine = self.engine
        with translated(engine.url):
            async with engine.begin() as connection:
                return await abandon(connection, job_id, job_type, why)

    async def settle_branch(self, saga_id: str, place: tuple[int, int], outcome: str, of: int) -> list[str] | None:
        """Notes how a parallel step ended; the outcomes of all ``of`` branches once all are known, None before."""
        from store.engine import translated  # noqa: PLC0415 - see engine
        from store.saga_joins import settle_branch  # noqa: PLC0415

        engine = self.engine
        with translated(engine.url):
            async with engine.begin() as connection:
                return await settle_branch(connection, saga_id, place, outcome, of)

    async def close(self) -> None:
        """Closes the connections, if there are any."""
        if self._database is not None:
            await self._database.close()
        if self._blocking is not None:
            await asyncio.to_thread(self._blocking.dispose)


class Transaction:
    """``async with`` gives an AsyncConnection, ``with`` a Connection, in a transaction that also has the inbox row.

    Commits at the end of the block, rolls back on any error. Raises AlreadyDone at its beginning if a transaction of
    the same job and name has committed, Abandoned if the job is a saga's step that has failed for good before, and
    DatabaseUnavailable where the database is gone, locked, full or read-only.
    """

    def __init__(self, inbox: Inbox, notes: Kept, name: str, engine: AsyncEngine | Engine | None) -> None:
        self._inbox = inbox
        self._notes = notes
        self._job = (notes.job_id, notes.job_type)
        self._name = name
        self._engine = engine
        self._used = notes.used
        self._stack: Any = None

    async def __aenter__(self) -> AsyncConnection:
        from sqlalchemy.ext.asyncio import AsyncEngine  # noqa: PLC0415 - see Inbox.engine

        from store.engine import translated  # noqa: PLC0415
        from store.inbox import claim, keep, verdict  # noqa: PLC0415

        engine = self._inbox.engine if self._engine is None else self._engine
        if not isinstance(engine, AsyncEngine):
            raise Permanent("`async with job.transaction(engine=...)` needs an AsyncEngine; use `with` for an Engine")
        self._begin()
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(translated(engine.url))
                connection = await stack.enter_async_context(engine.begin())
                if not await claim(connection, *self._job, self._name):
                    self._refuse(await verdict(connection, self._job[0], self._name))

                async def last_statement(kind: type[BaseException] | None, *_: object) -> None:
                    if kind is None and (result := self._notes.to_store) is not None:
                        await keep(connection, self._job[0], self._name, result)

                stack.push_async_exit(last_statement)
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
        from store.inbox import claim_blocking, keep_blocking, verdict_blocking  # noqa: PLC0415

        engine = self._inbox.blocking_engine if self._engine is None else self._engine
        if not isinstance(engine, Engine):
            raise Permanent("`with job.transaction(engine=...)` needs an Engine; use `async with` for an AsyncEngine")
        self._begin()
        try:
            with ExitStack() as stack:
                stack.enter_context(translated(engine.url))
                connection = stack.enter_context(engine.begin())
                if not claim_blocking(connection, *self._job, self._name):
                    self._refuse(verdict_blocking(connection, self._job[0], self._name))

                def last_statement(kind: type[BaseException] | None, *_: object) -> None:
                    if kind is None and (result := self._notes.to_store) is not None:
                        keep_blocking(connection, self._job[0], self._name, result)

                stack.push(last_statement)
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
        if self._name and self._notes.is_step:
            raise Permanent(
                f"{self._job[1]}: a saga's step has one transaction, without a name: whether it failed is decided there"
            )
        if self._name in self._used:
            raise Permanent(f"{self._job[1]}: two transactions of one job need names: job.transaction(name=...)")
        self._used.add(self._name)

    def _refuse(self, earlier: Verdict) -> NoReturn:
        if earlier.abandoned is not None:
            raise Abandoned(f"{self._job[1]} {self._job[0]} has failed for good before: {earlier.abandoned[:200]}")
        raise AlreadyDone(*self._job, self._name, None if earlier.result is None else from_json(earlier.result))

    def _ended(self, kind: type[BaseException] | None, swallowed: bool | None) -> bool | None:
        if kind is not None:
            self._used.discard(self._name)
        else:
            self._notes.committed = True
        return swallowed
