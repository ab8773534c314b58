"""The database: one engine, one transaction at a time for each caller, one kind of error for all its moods."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    InvalidatePoolError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from topology.errors import DatabaseUnavailable, SchemaOutdated, SettingsError
from topology.settings import Settings

logger = logging.getLogger(__name__)

POSTGRESQL: Final = "postgresql"
SQLITE: Final = "sqlite"
_DRIVERS: Final = {POSTGRESQL: "postgresql+psycopg", SQLITE: "sqlite+aiosqlite"}
_BLOCKING_DRIVERS: Final = {POSTGRESQL: "postgresql+psycopg", SQLITE: "sqlite+pysqlite"}
_EXTRA: Final = {POSTGRESQL: "postgres", SQLITE: "server"}
_CONNECT_TIMEOUT: Final = 10
_LOCK_TIMEOUT: Final = 10.0
"""Seconds that a writer waits for another one on SQLite."""
_POOL: Final = 5
ONE_AT_A_TIME: Final = 1
"""The pool of a process that only writes, on SQLite: its writers wait in line here instead of all trying their luck."""
_FRESH: Final = 0.2
"""Seconds for which a connection that worked is taken to work; a server takes longer than that to start anew."""


class Database:
    """PostgreSQL or SQLite, by URL. Connects at first use; close it with `close`.

    Raises SettingsError for a URL that means neither.
    """

    def __init__(self, url: str, *, pool: int = _POOL) -> None:
        self.url = parse_url(url)
        self._pool = pool
        self._engine: AsyncEngine | None = None

    @classmethod
    def from_settings(cls, settings: Settings, *, pool: int = _POOL) -> Database:
        """The database of ``HARELINE_DATABASE_URL``."""
        return cls(settings.database_url, pool=pool)

    @property
    def dialect(self) -> str:
        """``postgresql`` or ``sqlite``."""
        return self.url.get_backend_name()

    @property
    def is_postgresql(self) -> bool:
        """Whether rows can be claimed with SKIP LOCKED, and changes be listened to."""
        return self.dialect == POSTGRESQL

    @property
    def engine(self) -> AsyncEngine:
        """The engine, made at first use."""
        if self._engine is None:
            self._engine = _async_engine(self.url, self._pool)
        return self._engine

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction, committed at the end and rolled back on any error.

        Raises DatabaseUnavailable where the database is gone, locked, full or read-only: nothing is committed then.
        (A connection lost in the very commit leaves open whether it was: be idempotent.)
        """
        with translated(self.url):
            async with self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for queries alone: on SQLite it takes no lock that writers would wait for."""
        with translated(self.url):
            async with self.engine.connect() as connection:
                yield await connection.execution_options(hareline_reading=True)

    @asynccontextmanager
    async def statements(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which each statement is a transaction of its own, committed with it. PostgreSQL alone.

        Raises as `transaction` does.
        """
        with translated(self.url):
            async with self.engine.connect() as connection:
                yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    async def close(self) -> None:
        """Closes the pool; a later use opens another."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()


def parse_url(url: str) -> URL:
    """Understands ``postgresql://user:password@host/database`` and ``sqlite:///path``, with or without a driver."""
    if not url:
        raise SettingsError("HARELINE_DATABASE_URL is empty: write postgresql://user@host/database or sqlite:///path")
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        # It may hold a password: say nothing of it.
        raise SettingsError(
            "HARELINE_DATABASE_URL is no database address: write postgresql://user@host/database or sqlite:///path"
        ) from None
    if backend == "postgres":
        parsed, backend = parsed.set(drivername=POSTGRESQL), POSTGRESQL
    if backend not in _DRIVERS:
        raise SettingsError(f"HARELINE_DATABASE_URL: '{backend}' is not supported; use postgresql:// or sqlite:///")
    return parsed


def pool_of_writers(url: URL, wanted: int) -> int:
    """How many connections are of use to a process that has ``wanted`` writers, and no readers."""
    return ONE_AT_A_TIME if url.get_backend_name() == SQLITE else wanted


def blocking_engine(url: URL, *, pool: int = _POOL) -> Engine:
    """A synchronous engine for plain functions that run in threads."""
    backend = url.get_backend_name()
    engine = create_engine(url.set(drivername=_BLOCKING_DRIVERS[backend]), **_options(url, pool))
    if backend == SQLITE:
        _tune_sqlite(engine, url)
    else:
        _try_before_use(engine)
    return engine


def _async_engine(url: URL, pool: int) -> AsyncEngine:
    backend = url.get_backend_name()
    if backend == SQLITE and url.database:
        _make_room(url, Path(url.database))
    try:
        engine = create_async_engine(url.set(drivername=_DRIVERS[backend]), **_options(url, pool))
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"a {backend} database needs '{error.name}': pip install 'hareline[{_EXTRA[backend]}]'"
        ) from error
    if backend == SQLITE:
        _tune_sqlite(engine.sync_engine, url)
    else:
        _try_before_use(engine.sync_engine)
    return engine


def _make_room(url: URL, file: Path) -> None:
    """Makes the file's directory, and says what is wrong before the driver starts a thread to find out."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnavailable(_text(url, f"unable to open database file ({error})")) from error
    if file.is_dir():
        raise DatabaseUnavailable(_text(url, "unable to open database file: it is a directory"))


def _options(url: URL, pool: int) -> dict[str, Any]:
    if url.get_backend_name() == SQLITE:
        options: dict[str, Any] = {"connect_args": {"timeout": _LOCK_TIMEOUT}}
        if pool == ONE_AT_A_TIME and url.database not in {None, "", ":memory:"}:
            options |= {"pool_size": pool, "max_overflow": 0, "pool_timeout": _LOCK_TIMEOUT}
        return options
    return {
        # No overflow: those connections are closed at once after their use, and under load each use made a new one.
        "pool_size": 2 * pool,
        "max_overflow": 0,
        "pool_use_lifo": True,
        "pool_timeout": _CONNECT_TIMEOUT,
        "connect_args": {"connect_timeout": _CONNECT_TIMEOUT},
    }


def _try_before_use(engine: Engine) -> None:
    """A connection that died while it was idle is replaced before anybody notices.

    One that worked a moment ago is not tried: a round trip is a good part of what a short transaction costs.
    """

    @event.listens_for(engine, "connect")
    @event.listens_for(engine, "checkin")
    def _(_: object, record: ConnectionPoolEntry) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _(connection: DBAPIConnection, record: ConnectionPoolEntry, _: object) -> None:
        if time.monotonic() - record.info["used"] < _FRESH:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error  # the others of its age as well: they are tried anew, too


def _tune_sqlite(engine: Engine, url: URL) -> None:
    """WAL, so that readers and the one writer do not wait for each other; writers queue up at their BEGIN."""
    if url.database and url.database != ":memory:":
        _notice_another_file(engine, url, Path(url.database))

    @event.listens_for(engine, "connect")
    def _(connection: DBAPIConnection, _: object) -> None:
        # The driver's own idea of when a transaction begins is off: we say BEGIN.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={int(_LOCK_TIMEOUT * 1000)}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _(connection: Any) -> None:
        # A transaction that reads first and then writes could find that another one has written meanwhile.
        reading = connection.get_execution_options().get("hareline_reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _notice_another_file(engine: Engine, url: URL, file: Path) -> None:
    """A connection holds on to a file that was moved, deleted or replaced, and what it writes there nobody finds."""

    def identity() -> tuple[int, int] | None:
        try:
            found = file.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    found: set[tuple[int, int] | None] = set()

    def expect_file() -> None:
        if found and identity() is None:
            raise DatabaseUnavailable(_text(url, "the database file is gone while this process runs: put it back"))

    @event.listens_for(engine, "do_connect")
    def _(*_: object) -> None:
        expect_file()  # or the driver would make another one, which is empty

    @event.listens_for(engine, "connect")
    def _(_: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info["file"] = identity()
        found.add(identity())

    @event.listens_for(engine, "checkout")
    def _(_: DBAPIConnection, record: ConnectionPoolEntry, __: object) -> None:
        expect_file()
        if identity() != record.info["file"]:
            raise DisconnectionError("another file has taken the place of the one that was opened")


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Turns what a driver raises about the database's own troubles into DatabaseUnavailable; the rest passes."""
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnavailable(_text(url, str(error))) from error
    except DBAPIError as error:
        if not _is_trouble(error):
            raise
        cause = str(error.orig).strip()
        if _lacks_tables(cause):
            raise SchemaOutdated(
                f"{shown(url)} does not have Hareline's tables: run `hareline db upgrade` ({cause.splitlines()[0]})"
            ) from error
        raise DatabaseUnavailable(_text(url, cause)) from error


def shown(url: URL) -> str:
    """The address without its password."""
    return url.render_as_string(hide_password=True)


_DISK_FULL: Final = {"53100", "53200", "53300", "53400"}
_TOO_LARGE: Final = "54"
_READ_ONLY: Final = {"25006"}


def _is_trouble(error: DBAPIError) -> bool:
    if error.connection_invalidated or _lacks_tables(str(error.orig)):
        return True
    if (getattr(error.orig, "sqlstate", None) or "").startswith(_TOO_LARGE):
        return False  # operational to the driver, but no wait makes a value fit
    if isinstance(error, OperationalError | InterfaceError):
        # SQLite calls it operational, too, when a statement is wrong: that is its author's trouble.
        return getattr(error.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR
    return getattr(error.orig, "sqlstate", None) in _DISK_FULL | _READ_ONLY


def _lacks_tables(cause: str) -> bool:
    mine = "hareline_" in cause
    return mine and ("no such table" in cause or "no such column" in cause or "does not exist" in cause)


def _text(url: URL, cause: str) -> str:
    first = cause.splitlines()[0] if cause else "no reason given"
    cure = next((cure for mark, cure in _CURES.items() if mark in cause), "")
    return f"{shown(url)}: {first}" + (f"; {cure}" if cure else "")


_CURES: Final = {
    "database is locked": "another process has held the write lock for long: is one stuck in a transaction?",
    "readonly database": "the file or its directory is not writable for this user",
    "read-only": "this server takes no writes: is it a replica?",
    "disk is full": "free some disk space",
    "No space left": "free some disk space",
    "unable to open database file": "does its directory exist, and may this user write there?",
    "Connection refused": "is the server running, and at this address?",
    "connection refused": "is the server running, and at this address?",
    "password authentication failed": "check the user and password in HARELINE_DATABASE_URL",
}
