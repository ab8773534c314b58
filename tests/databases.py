"""Databases with Hareline's tables, one for each test: fixtures that `tests.conftest` hands on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from store.engine import POSTGRESQL, SQLITE, Database
from store.schema import upgrade
from tests.postgres import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A private PostgreSQL server. Missing means failed, never skipped."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgresql_template(cluster: Cluster) -> str:
    """A migrated database to copy from: faster than migrating one for each test."""
    name = cluster.create()
    asyncio.run(upgraded(cluster.url(name)))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    asyncio.run(upgraded(f"sqlite:///{path}"))
    return path


@pytest.fixture
def postgresql_url(cluster: Cluster, postgresql_template: str) -> Iterator[str]:
    """A database of this test's own on PostgreSQL, migrated."""
    name = cluster.create(postgresql_template)
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """A database of this test's own in a file, migrated."""
    path = tmp_path / "hareline.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=[POSTGRESQL, SQLITE])
def database_url(request: pytest.FixtureRequest) -> str:
    """The conformance suite's: the test runs once on each."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open `Database` on each of both."""
    async with opened(database_url) as database:
        yield database


@pytest.fixture
async def postgresql(postgresql_url: str) -> AsyncIterator[Database]:
    """An open `Database` on PostgreSQL."""
    async with opened(postgresql_url) as database:
        yield database


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """A `Database` that is closed at the end."""
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


async def upgraded(url: str) -> None:
    """Makes the tables."""
    async with opened(url) as database:
        await upgrade(database)
