"""Migrations make exactly the tables that the code believes in, on both databases, once, whoever asks."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, select, text
from sqlalchemy.exc import OperationalError

from store import schema
from store.engine import Database, parse_url
from store.tables import inbox, metadata
from tests.databases import opened
from tests.postgres import Cluster
from topology.errors import DatabaseUnavailable, SchemaOutdated, SettingsError

pytestmark = pytest.mark.machine


async def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    def differences(connection):
        context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
        return compare_metadata(context, metadata)

    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []
    await schema.verify(database)


async def test_an_upgrade_may_be_repeated_and_run_by_several_at_once(cluster: Cluster, tmp_path: Path) -> None:
    for url in (cluster.url(cluster.create()), f"sqlite:///{tmp_path / 'new' / 'h.db'}"):
        async with opened(url) as one, opened(url) as other:
            versions = await asyncio.gather(schema.upgrade(one), schema.upgrade(other))
            assert sorted(before or "" for before, _ in versions) == ["", schema.newest()]
            assert {after for _, after in versions} == {schema.newest()}


async def test_a_database_without_the_tables_says_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    for url in (cluster.url(cluster.create()), f"sqlite:///{tmp_path / 'h.db'}"):
        async with opened(url) as database:
            with pytest.raises(SchemaOutdated, match="hareline db upgrade"):
                await schema.verify(database)
            with pytest.raises(SchemaOutdated, match="hareline db upgrade"):
                async with database.transaction() as connection:
                    await connection.execute(select(inbox))


async def test_times_come_back_as_they_went(database: Database) -> None:
    moment = datetime(2026, 3, 29, 1, 30, 0, 123456, UTC)
    async with database.transaction() as connection:
        await connection.execute(insert(inbox).values(job_id="1", name="", job_type="t", handled_at=moment))
    async with database.reading() as connection:
        assert (await connection.execute(select(inbox.c.handled_at))).scalar_one() == moment


async def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    with pytest.raises(Exception, match="has no zone"):
        async with database.transaction() as connection:
            naive = datetime(2026, 3, 29)  # noqa: DTZ001 - the point
            await connection.execute(insert(inbox).values(job_id="1", name="", job_type="t", handled_at=naive))


async def test_an_error_of_the_callers_rolls_back_and_passes(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:
            await connection.execute(
                insert(inbox).values(job_id="1", name="", job_type="t", handled_at=datetime.now(UTC))
            )
            raise ZeroDivisionError
    async with database.reading() as connection:
        assert (await connection.execute(select(inbox))).all() == []


async def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    async with opened("postgresql://nobody:secret@127.0.0.1:1/none") as gone:
        with pytest.raises(DatabaseUnavailable, match="is the server running") as caught:
            await schema.verify(gone)
        assert "secret" not in str(caught.value)
    (tmp_path / "dir.db").mkdir()
    async with opened(f"sqlite:///{tmp_path / 'dir.db'}") as gone:
        with pytest.raises(DatabaseUnavailable, match="unable to open"):
            await schema.verify(gone)
    (tmp_path / "file").touch()
    async with opened(f"sqlite:///{tmp_path / 'file' / 'h.db'}") as gone:
        with pytest.raises(DatabaseUnavailable, match="unable to open"):
            await schema.verify(gone)


async def test_a_server_that_was_killed_is_used_again_when_it_is_back(cluster: Cluster, postgresql: Database) -> None:
    await schema.verify(postgresql)
    cluster.kill()
    try:
        with pytest.raises(DatabaseUnavailable):
            await schema.verify(postgresql)
    finally:
        cluster.start()
    await schema.verify(postgresql)


async def test_a_value_that_does_not_fit_is_no_trouble_of_the_databases(postgresql: Database) -> None:
    """A key larger than an index page: to wait for that to pass would be to wait for ever."""
    with pytest.raises(OperationalError, match="index row"):
        async with postgresql.transaction() as connection:
            large = "".join(map(str, range(20_000)))
            await connection.execute(
                insert(inbox).values(job_id=large, name="", job_type="t", handled_at=datetime.now(UTC))
            )


async def test_a_locked_file_says_so(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.engine._LOCK_TIMEOUT", 0.2)
    async with opened(sqlite_url) as holder, opened(sqlite_url) as other, holder.transaction():
        await schema.verify(other)  # readers do not wait
        with pytest.raises(DatabaseUnavailable, match=r"is locked.*stuck"):
            async with other.transaction() as connection:
                await connection.execute(text("SELECT 1"))


@pytest.mark.parametrize("url", ["", "mysql://host/db", "nonsense", "postgresql://u:secret@[::/x"])
def test_a_url_that_means_nothing(url: str) -> None:
    with pytest.raises(SettingsError, match="postgresql://") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
