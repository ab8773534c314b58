"""The PostgreSQL of the store's scenarios: a private one, or databases of the bench's own on one that was named."""

import contextlib
import os
from dataclasses import dataclass
from typing import Self

import psycopg
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from processes import ContenderError
from tests.postgres import Cluster, installed

MISSING = (
    "PostgreSQL's server is not installed, and the store is measured on a real one: "
    "apt-get install postgresql, or name one with --database"
)
SETTINGS = (
    *("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers", "work_mem"),
    *("max_wal_size", "checkpoint_timeout", "autovacuum", "jit"),
)


@dataclass(frozen=True)
class Store:
    """One database; `url` is for HARELINE_DATABASE_URL."""

    url: str

    def connect(self) -> psycopg.Connection:
        """A connection on which every statement is a transaction of its own. Use it as a context manager."""
        return psycopg.connect(self.url, autocommit=True, application_name="bench")


class Postgres:
    """Context manager: what it made is gone at the end. Nothing is started before somebody asks for a database.

    Raises ContenderError where no server can be had. On a server named by `url`, whose user must be allowed to make
    databases, it works in new ones alone.
    """

    def __init__(self, url: str | None):
        self._given = url
        self._cluster: Cluster | None = None
        self._made: list[str] = []
        self._number = 0
        self._kept: dict[str, Store] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error):
        for name in list(self._made) if self._cluster is None else []:
            with contextlib.suppress(psycopg.Error):
                self._drop(name)
        if self._cluster is not None:
            self._cluster.__exit__()

    def facts(self) -> dict:
        """Version, whose server it is, and the settings that matter."""
        with psycopg.connect(self._address(None), autocommit=True) as connection:
            version = connection.execute("SHOW server_version").fetchone()[0]
            settings = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in SETTINGS}
        whose = "named by --database" if self._given else "private, as initdb makes it"
        return {"version": version, "server": whose, "settings": settings}

    @contextlib.contextmanager
    def fresh(self):
        """An empty database, dropped at the end. Hareline's tables are for `hareline db upgrade` to make."""
        name = self._create()
        try:
            yield Store(self._address(name))
        finally:
            self._drop(name)

    def kept(self, purpose: str) -> Store:
        """The database for `purpose`, made at the first call and kept until `forget` or the end."""
        if purpose not in self._kept:
            self._kept[purpose] = Store(self._address(self._create()))
        return self._kept[purpose]

    def forget(self, purpose: str) -> None:
        """Drops what `kept` made."""
        store = self._kept.pop(purpose, None)
        if store is not None:
            self._drop(make_url(store.url).database)

    def _create(self) -> str:
        self._number += 1
        name = f"hareline_bench_{os.getpid()}_{self._number}"
        self._run(f'CREATE DATABASE "{name}"')
        self._made.append(name)
        return name

    def _drop(self, name: str) -> None:
        self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._made.remove(name)

    def _run(self, statement: str) -> None:
        with psycopg.connect(self._address(None), autocommit=True) as connection:
            connection.execute(statement)

    def _address(self, database: str | None) -> str:
        """Of a database; None is the one that the server was named with."""
        if self._given:
            url = parse_address(self._given)
            return url.set(database=database or url.database).render_as_string(hide_password=False)
        if self._cluster is None:
            self._start()
        return self._cluster.url(database or "postgres")

    def _start(self) -> None:
        if installed() is None:  # what installs it for tests is not for whoever measures
            raise ContenderError(MISSING)
        cluster = Cluster(safe=True)
        try:
            cluster.__enter__()
        except (AssertionError, OSError, KeyError) as error:
            cluster.__exit__()
            raise ContenderError(f"no PostgreSQL: {error}") from None
        self._cluster = cluster


def parse_address(url: str) -> URL:
    """A PostgreSQL address as libpq takes it. Raises ValueError."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("it is no database address: postgresql://user@host/database is needed") from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise ValueError("the figures are for PostgreSQL: postgresql://user@host/database is needed")
    return parsed.set(drivername="postgresql")
