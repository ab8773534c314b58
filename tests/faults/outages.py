"""What befalls databases, as context managers: within the block the database is in trouble, after it no longer."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

import store.engine
from tests.lab import until
from tests.postgres import Cluster

GUEST = "guest"
"""A user of PostgreSQL that is nobody special: whom a limit of connections hits."""


@dataclass(frozen=True)
class Place:
    """A database, ``url`` as the roles use it. ``file`` on SQLite, ``cluster`` and ``name`` on PostgreSQL."""

    url: str
    file: Path | None = None
    cluster: Cluster | None = None
    name: str = ""

    def sql(self, *statements: str) -> None:
        """As the superuser, whatever the server forbids by default; in the server's ``postgres`` database."""
        assert self.cluster is not None
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(self.cluster.url("postgres"), autocommit=True, options=options) as connection:
            for statement in statements:
                connection.execute(statement)

    def cut(self) -> None:
        """Ends every connection to the database."""
        self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'")


Outage = Callable[[Place], AbstractAsyncContextManager[None]]


# -- SQLite ------------------------------------------------------------------------------------------------------------


@contextmanager
def pragmas(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Each use of a connection, of engines made from here on, begins with these PRAGMAs, as they are then."""
    wanted: dict[str, str] = {}
    tune = store.engine._tune_sqlite

    def tuned(engine: object, url: object) -> None:
        tune(engine, url)  # type: ignore[arg-type]

        @event.listens_for(engine, "checkout")
        def _(connection: Any, _: object, __: object) -> None:
            cursor = connection.cursor()
            for name, value in wanted.items():
                cursor.execute(f"PRAGMA {name}={value}")
            cursor.close()

    monkeypatch.setattr("store.engine._tune_sqlite", tuned)
    yield wanted


@asynccontextmanager
async def locked(place: Place) -> AsyncIterator[None]:
    """Another process holds the write lock."""
    assert place.file is not None
    holder = sqlite3.connect(place.file, isolation_level=None, timeout=30)
    try:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.execute("ROLLBACK")
    finally:
        holder.close()


@asynccontextmanager
async def moved(place: Place) -> AsyncIterator[None]:
    """The file is moved away under its processes, and moved back."""
    assert place.file is not None
    files = [place.file.with_name(place.file.name + end) for end in ("", "-wal", "-shm")]
    there = [file for file in files if file.exists()]
    for file in there:
        file.rename(file.with_name(f"moved-{file.name}"))
    yield
    for file in there:
        file.with_name(f"moved-{file.name}").rename(file)


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def killed(place: Place) -> AsyncIterator[None]:
    """SIGKILL to the server, and a start on its old data."""
    assert place.cluster is not None
    place.cluster.kill()
    try:
        yield
    finally:
        place.cluster.start()  # in this thread: the server ends with the thread that started it


@asynccontextmanager
async def read_only(place: Place) -> AsyncIterator[None]:
    """The server takes no writes, on connections that there are either."""
    place.sql("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    try:
        await until(lambda: _setting(place) == "on", "the server takes no writes")
        yield
    finally:
        place.sql("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
        await until(lambda: _setting(place) == "off", "the server takes writes")


def _setting(place: Place) -> str:
    with psycopg.connect(place.url.replace("+psycopg", "")) as connection:
        return str(connection.execute("SHOW default_transaction_read_only").fetchone()[0])  # type: ignore[index]


@asynccontextmanager
async def exhausted(place: Place) -> AsyncIterator[None]:
    """All connections that the roles may have are taken, and those that they had are gone."""
    place.sql(f"ALTER ROLE {GUEST} CONNECTION LIMIT 0")
    place.cut()
    try:
        yield
    finally:
        place.sql(f"ALTER ROLE {GUEST} CONNECTION LIMIT -1")


@asynccontextmanager
async def cut_again_and_again(place: Place) -> AsyncIterator[None]:
    """Connections do not live long."""
    over = threading.Event()

    def cut() -> None:
        while not over.wait(0.05):
            place.cut()

    cutting = asyncio.create_task(asyncio.to_thread(cut))
    try:
        yield
    finally:
        over.set()
        await cutting


@asynccontextmanager
async def tables_locked(place: Place) -> AsyncIterator[None]:
    """Another session, a migration for example, has the tables for itself."""
    assert place.cluster is not None
    async with await psycopg.AsyncConnection.connect(place.cluster.url(place.name)) as holder:
        tables = ", ".join(f"hareline_{table}" for table in ("outbox", "schedules", "jobs", "dead_letters", "inbox"))
        await holder.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
        yield
        await holder.rollback()
