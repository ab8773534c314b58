"""A database that is locked, full, read-only or gone: the error names cause and cure, and work goes on by itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event, insert, select, text

from store.engine import Database
from store.inbox import claim
from store.recovery import persistently
from store.tables import inbox
from tests.databases import opened
from tests.lab import DEADLINE
from tests.postgres import Cluster
from topology.errors import DatabaseUnavailable

pytestmark = [pytest.mark.machine, pytest.mark.timeout(300)]

ROOM = 16 * 1024 * 1024


async def note(database: Database, job_id: str) -> None:
    async with database.transaction() as connection:
        await claim(connection, job_id, "t")


async def noted(database: Database) -> set[str]:
    async with database.reading() as connection:
        return set((await connection.execute(select(inbox.c.job_id))).scalars())


class Waiting:
    """An operation under `persistently`; it has been refused at least once when `refused` is set."""

    def __init__(self, database: Database, job_id: str) -> None:
        self.database = database
        self.job_id = job_id
        self.refused = asyncio.Event()
        self.task = asyncio.create_task(persistently("the test", self._try))

    async def _try(self) -> None:
        try:
            await note(self.database, self.job_id)
        except DatabaseUnavailable:
            self.refused.set()
            raise

    async def seen_refused(self) -> None:
        await asyncio.wait_for(self.refused.wait(), DEADLINE)
        assert not self.task.done()

    async def ended(self) -> None:
        await asyncio.wait_for(self.task, DEADLINE)


def pragma(database: Database, statement: str) -> None:
    """Runs a PRAGMA on every connection that is opened from now on."""
    event.listen(database.engine.sync_engine, "connect", lambda c, _: c.cursor().execute(f"PRAGMA {statement}"))


async def test_a_file_that_is_locked(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.engine._LOCK_TIMEOUT", 0.2)
    async with opened(sqlite_url) as holder, opened(sqlite_url) as other:
        async with holder.transaction():
            with pytest.raises(DatabaseUnavailable, match=r"is locked.*stuck in a transaction"):
                await note(other, "1")
            waiting = Waiting(other, "2")
            await waiting.seen_refused()
        await waiting.ended()
        assert await noted(other) == {"2"}


async def test_a_file_that_may_not_grow(sqlite_url: str) -> None:
    async with opened(sqlite_url) as full:
        pragma(full, "max_page_count=1")  # as many as there are
        with pytest.raises(DatabaseUnavailable, match=r"is full.*free some"):
            async with full.transaction() as connection:
                row = {"name": "", "job_type": "x" * 100_000, "handled_at": datetime.now(UTC)}
                await connection.execute(insert(inbox).values(job_id="big", **row))
        assert await noted(full) == set()
    async with opened(sqlite_url) as roomy:
        await note(roomy, "1")
        assert await noted(roomy) == {"1"}


async def test_a_file_that_may_only_be_read(sqlite_url: str) -> None:
    async with opened(sqlite_url) as database:
        pragma(database, "query_only=1")
        with pytest.raises(DatabaseUnavailable, match=r"readonly database.*not writable"):
            await note(database, "1")
        waiting = Waiting(database, "2")
        await waiting.seen_refused()
        pragma(database, "query_only=0")
        await database.engine.dispose()
        await waiting.ended()
        assert await noted(database) == {"2"}


async def test_a_server_that_takes_no_writes(cluster: Cluster, postgresql: Database) -> None:
    name = postgresql.url.database
    assert name is not None
    cluster.sql("postgres", f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(DatabaseUnavailable, match=r"read-only transaction.*replica"):
        await note(postgresql, "1")
    waiting = Waiting(postgresql, "2")
    await waiting.seen_refused()
    cluster.sql("postgres", f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await postgresql.engine.dispose()  # the setting counts for new connections
    await waiting.ended()
    assert await noted(postgresql) == {"2"}


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 16 MiB. Skipped by design where it cannot be mounted: it takes root and the kernel's leave."""
    directory = Path("/tmp") / f"hareline-full-{os.getpid()}"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(directory)], check=False, capture_output=True
    )
    try:
        if mounted.returncode != 0:
            pytest.skip("needs a small file system of its own, which only root can mount")
        (directory / "space").mkdir()
        shutil.chown(directory / "space", "postgres", "postgres")
        yield directory / "space"
    finally:
        subprocess.run(["umount", str(directory)], check=False, capture_output=True)
        directory.rmdir()


async def test_a_server_whose_disk_is_full(cluster: Cluster, postgresql: Database, small_disk: Path) -> None:
    name = postgresql.url.database
    assert name is not None
    space = f"space_{name}"
    cluster.sql("postgres", f"CREATE TABLESPACE {space} LOCATION '{small_disk}'")
    try:
        cluster.sql(name, f"ALTER TABLE hareline_inbox SET TABLESPACE {space}")
        fill = small_disk.parent / "fill"
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        fill.write_bytes(b"\0" * free)
        with pytest.raises(DatabaseUnavailable, match=r"No space left.*free some disk space"):
            await note(postgresql, "1")
        waiting = Waiting(postgresql, "2")
        await waiting.seen_refused()
        fill.unlink()
        await waiting.ended()
        assert await noted(postgresql) == {"2"}
    finally:
        await postgresql.close()
        cluster.sql(name, "DROP TABLE hareline_inbox")
        cluster.sql("postgres", f"DROP TABLESPACE {space}")


@pytest.mark.kills
async def test_a_server_that_is_killed_under_its_writers(cluster: Cluster, postgresql: Database) -> None:
    """Every write is there afterwards, whether its commit was answered or had to be repeated."""
    await note(postgresql, "before")
    stop = asyncio.Event()
    written: list[str] = []

    async def write(writer: int) -> None:
        while not stop.is_set():
            job_id = f"{writer}-{len(written)}"
            await persistently("the test", lambda: note(postgresql, job_id))  # noqa: B023
            written.append(job_id)

    writers = [asyncio.create_task(write(writer)) for writer in range(4)]
    try:
        await reached(written, 50)
        cluster.kill()
        try:
            with pytest.raises(DatabaseUnavailable):
                await note(postgresql, "gone")
        finally:
            cluster.start()
        await reached(written, len(written) + 50)
    finally:
        stop.set()
    await asyncio.wait_for(asyncio.gather(*writers), DEADLINE)
    assert set(written) | {"before"} <= await noted(postgresql)


async def reached(written: list[str], count: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while len(written) < count:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.02)


async def test_a_mistake_in_a_statement_is_not_the_databases(database: Database) -> None:
    for statement in ("SELEC 1", "SELECT * FROM nobody_has_this"):
        with pytest.raises(Exception, match=r"(?i)syntax error|no such table|does not exist") as caught:
            async with database.transaction() as connection:
                await connection.execute(text(statement))
        assert not isinstance(caught.value, DatabaseUnavailable)
