"""Workers that die in the middle of an import: every row is in once, and the rest goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from consumers.jobs.files import FileRoot
from store.engine import Database
from tests.integration.test_csv_import import Case, importing, write
from tests.lab import DEADLINE, Lab, until

pytestmark = [pytest.mark.kills, pytest.mark.machine]

ROWS = 4100


@asynccontextmanager
async def worker(case: Case, root: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process, killed at the end of the block."""
    environment = {
        "CSV_NAME": case.case.name,
        "CSV_ROOT": str(root),
        "CSV_KILL_SPLITTER": str(root / "kill-splitter"),
        "CSV_KILL_WORKER": str(root / "kill-worker"),
        "HARELINE_DATABASE_URL": case.database.url.render_as_string(hide_password=False),
    }
    started = case.lab.child("worker", "--concurrency", "4", app="tests.csv_app:app", cwd=root, **environment)
    async with started as process:
        yield process


@asynccontextmanager
async def processes(case: Case, root: Path, count: int = 2) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Worker processes, each replaced when it dies, as a supervisor does."""
    died: list[asyncio.subprocess.Process] = []

    async def supervise() -> None:
        while True:
            async with worker(case, root) as process:
                await process.wait()
                died.append(process)

    tasks = [asyncio.create_task(supervise()) for _ in range(count)]
    try:
        yield died
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole(case: Case, job_id: str) -> None:
    """All rows are there, each once, and counted once."""
    done = await case.ended(job_id, within=120.0)
    assert (done.status, done.rows, done.saved, done.failed) == ("done", ROWS, ROWS, 0)
    assert await case.rows() == ROWS


@pytest.mark.parametrize("fatal", ["kill-splitter", "kill-worker"])
async def test_a_killed_process_loses_and_repeats_no_row(
    lab: Lab, database: Database, tmp_path: Path, fatal: str
) -> None:
    """Killed between two batches of the splitter, and between a part's rows and their commit."""
    write(tmp_path / "people.csv", ROWS)
    (tmp_path / fatal).touch()
    async with importing(lab, database, FileRoot(str(tmp_path)), work=False) as case:
        job_id = await case.start()
        async with processes(case, tmp_path) as died:
            await whole(case, job_id)
            await until(lambda: len(died) == 1, "one process died of it")
            assert [process.returncode for process in died] == [-9]


async def test_a_splitter_killed_and_the_file_changed_before_another_goes_on(
    lab: Lab, postgresql: Database, tmp_path: Path
) -> None:
    """What goes on is not the import that was begun: it fails and says so, and imports nothing of the new file."""
    path = write(tmp_path / "people.csv", ROWS)
    (tmp_path / "kill-splitter").touch()
    async with importing(lab, postgresql, FileRoot(str(tmp_path)), work=False) as case:
        job_id = await case.start()
        async with worker(case, tmp_path) as process:
            assert await asyncio.wait_for(process.wait(), DEADLINE) == -9
        write(path, ROWS + 1)
        async with worker(case, tmp_path):
            failed = await case.ended(job_id)
            assert (failed.status, failed.chunks) == ("failed", 20)
            assert failed.reason == "people.csv has changed since this import began"
