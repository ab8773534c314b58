"""A CSV file through real jobs into a real database: every good row once, every bad row kept."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import pytest
from sqlalchemy import func, select

from consumers.jobs import csv_split
from consumers.jobs.csv_import import CsvImport
from consumers.jobs.csv_payloads import ImportFile
from consumers.jobs.csv_progress import Imports, Progress
from consumers.jobs.files import FileRoot
from consumers.outcome import Permanent
from hareline import App, Producer
from store.engine import Database
from tests.csv_app import Files, Person, build, metadata, people
from tests.lab import Lab, until
from topology.errors import NotFound

pytestmark = pytest.mark.machine


@dataclass
class Case:
    """An import with its queues, its tables and its worker."""

    lab: Lab
    app: App
    case: CsvImport[Person]
    database: Database
    imports: Imports
    producer: Producer

    async def start(self, source: str = "people.csv", **options: str) -> str:
        return await self.producer.enqueue(self.case.split, ImportFile(source=source, **options))

    async def ended(self, job_id: str, within: float = 60.0) -> Progress:
        """Once it is done or failed."""
        found: list[Progress] = []

        async def over() -> bool:
            if await self.knows(job_id):
                found[:] = [await self.imports.progress(job_id)]
            return bool(found) and found[0].status != "running"

        await until(over, "the import ends", within)
        return found[0]

    async def knows(self, job_id: str) -> bool:
        try:
            await self.imports.progress(job_id)
        except NotFound:
            return False
        return True

    async def rows(self) -> int:
        async with self.database.reading() as connection:
            return int((await connection.execute(select(func.count()).select_from(people))).scalar_one())


@asynccontextmanager
async def importing(lab: Lab, database: Database, files: FileRoot, *, work: bool = True) -> AsyncIterator[Case]:
    settings = replace(lab.settings, database_url=database.url.render_as_string(hide_password=False))
    app, case = build(lab.job_type("people").name, files, settings)
    lab._types[:] = case.job_types
    await lab.apply(*case.job_types)
    async with database.transaction() as connection:
        await connection.run_sync(metadata.create_all)
    imports = Imports(database)
    await imports.create_tables()
    made = Case(lab, app, case, database, imports, await lab.producer())
    if not work:
        yield made
        return
    async with lab.working(app, settings=settings):
        yield made


def write(path: Path, rows: int, header: str = "n,name") -> Path:
    path.write_text(header + "\n" + "".join(f'{n},"Person {n},\nof {n}"\n' for n in range(1, rows + 1)))
    return path


async def test_every_good_row_is_saved_and_every_bad_one_kept(lab: Lab, database: Database, tmp_path: Path) -> None:
    """The model's errors, the rule's, the table's, and records that do not fit, each with its row, line and text."""
    lines = ["n;name;note", *(f"{n};Person {n};" for n in range(1, 251))]
    lines[3] = "x;Person 3;"
    lines[100] = ";;"
    lines[101] = "101;forbidden;"
    lines[102] = "150;an earlier Person 150;"
    lines[200] = "200;too;many;fields"
    lines[201] = '201;"broken"quote;'
    lines[202] = "202;nul\0;"
    (tmp_path / "people.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    async with importing(lab, database, FileRoot(str(tmp_path))) as case:
        job_id = await case.start()
        done = await case.ended(job_id)
        refused = await case.imports.errors(job_id)
        nul = 1 if database.is_postgresql else 0  # SQLite takes it
        assert (done.status, done.rows, done.saved, done.failed, done.percent) == ("done", 250, 244 - nul, 6 + nul, 100)
        assert await case.rows() == 244 - nul
        assert done.chunks == done.chunks_done == 3
        found = {(error.row, error.line, error.field, error.raw) for error in refused if error.row != 202}
        assert found == {
            (3, 4, "n", "x;Person 3;"),
            (100, 101, "n", ";;"),
            (100, 101, "name", ";;"),
            (101, 102, "name", "101;forbidden;"),
            (150, 151, None, "150;Person 150;"),
            (200, 201, None, "200;too;many;fields"),
            (201, 202, None, '201;"broken"quote;'),
        }
        messages = " ".join(error.message for error in refused)
        for part in ("valid integer", "Field required", "nobody may be called that", "4 fields where the header has 3"):
            assert part in messages
        assert await case.imports.errors(done.id, after=101, limit=1) == [e for e in refused if e.row == 150]


async def test_the_same_file_is_imported_once(lab: Lab, database: Database, tmp_path: Path) -> None:
    """Again under its name: recognised. Another label, or other content, is another import."""
    path = write(tmp_path / "people.csv", 120)
    async with importing(lab, database, FileRoot(str(tmp_path))) as case:
        first = await case.ended(await case.start())
        os.utime(path, (1, 1))
        again = await case.ended(await case.start())
        assert again == first
        assert (first.saved, await case.rows()) == (120, 120)
        labelled = await case.ended(await case.start(label="once more"))
        assert (labelled.saved, labelled.failed) == (0, 120)
        write(path, 121)
        longer = await case.ended(await case.start())
        assert (longer.saved, longer.failed) == (1, 120)
        assert [one.id for one in await case.imports.latest(case.case.name)] == [longer.id, labelled.id, first.id]


async def test_two_jobs_for_one_file_at_the_same_time(lab: Lab, database: Database, tmp_path: Path) -> None:
    """They share the work, and every row is saved once."""
    write(tmp_path / "people.csv", 5000)
    async with importing(lab, database, FileRoot(str(tmp_path))) as case:
        ids = await asyncio.gather(*(case.start() for _ in range(4)))
        ended = [await case.ended(job_id) for job_id in ids]
        assert {(one.id, one.saved, one.failed) for one in ended} == {(ended[0].id, 5000, 0)}
        assert await case.rows() == 5000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "not even a header"),
        (b"\n\r\n", "not even a header"),
        (b"number,title\n1,x\n", "no column 'n'"),
        (b"n,name,n\n1,x,1\n", "'n' twice"),
        (b'n,"name\n', "header cannot be read"),
    ],
)
async def test_what_cannot_be_imported_is_dead_at_once(
    lab: Lab, postgresql: Database, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "people.csv").write_bytes(content)
    async with importing(lab, postgresql, FileRoot(str(tmp_path))) as case:
        await case.start()
        (letter,) = await lab.dead_letters(case.case.split, 1)
        assert letter.reason == "permanent"
        assert reason in str(letter.headers)


async def test_a_header_alone_is_an_import_of_nothing(lab: Lab, postgresql: Database, tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("n,name\n")
    async with importing(lab, postgresql, FileRoot(str(tmp_path))) as case:
        done = await case.ended(await case.start())
        assert (done.status, done.rows, done.chunks, done.percent) == ("done", 0, 0, 100.0)


async def test_a_file_that_only_fsspec_reaches(lab: Lab, postgresql: Database, tmp_path: Path) -> None:
    """In the memory of the process, in UTF-16 as spreadsheets write it."""
    text = "n\tname\r\n" + "".join(f"{n}\tPersön {n}\r\n" for n in range(1, 351))
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/2026/people.txt", text.encode("utf-16"))
    async with importing(lab, postgresql, FileRoot(f"memory://{tmp_path.name}")) as case:
        done = await case.ended(await case.start("2026/people.txt"))
        assert (done.saved, done.failed, await case.rows()) == (350, 0, 350)


async def test_a_file_that_changes_before_its_rows_are_read(lab: Lab, postgresql: Database, tmp_path: Path) -> None:
    """Parts that are other bytes by now are dead and say so; parts that are the same are imported."""
    path = write(tmp_path / "people.csv", 300)
    async with importing(lab, postgresql, FileRoot(str(tmp_path)), work=False) as case:
        await case.start()
        async with lab.working(case.app, case.case.split.name, settings=case.case.settings):
            await until(lambda: split(case), "the file is split")
        content = bytearray(path.read_bytes())
        content[-20:-16] = b"XXXX"
        path.write_bytes(bytes(content))
        async with lab.working(case.app, case.case.chunk.name, settings=case.case.settings):
            (letter,) = await lab.dead_letters(case.case.chunk, 1)
            assert "has changed since it was split: rows from 201" in str(letter.headers)
            await until(lambda: saved(case, 200), "the other rows are in")
        (state,) = await case.imports.latest(case.case.name)
        assert (state.status, state.chunks, state.chunks_done) == ("running", 3, 2)


class Changing(Files):
    """Changes when it is looked at before the second batch."""

    def version(self, relative: str) -> str:
        version = super().version(relative)
        if self._asked == 3:  # type: ignore[attr-defined]
            write(Path(self.inside(relative)), 4001)
            return super().version(relative)
        return version


async def test_a_file_that_changes_while_it_is_split(lab: Lab, postgresql: Database, tmp_path: Path) -> None:
    """The import fails for good and says why; what it is now can be imported as another one."""
    write(tmp_path / "people.csv", 4000)
    files = Changing(str(tmp_path))
    async with importing(lab, postgresql, files) as case:
        job_id = await case.start()
        failed = await case.ended(job_id)
        (letter,) = await lab.dead_letters(case.case.split, 1)
        assert (failed.status, failed.rows, failed.chunks) == ("failed", None, 20)
        assert "has changed while it was being split" in str(letter.headers)
        assert failed.reason == "people.csv has changed while it was being split"
        done = await case.ended(await case.start())
        assert (done.status, done.rows, done.done) == ("done", 4001, 4001)
        assert await case.rows() == 4001


@pytest.mark.parametrize(
    "source", ["../people.csv", "/etc/passwd", "a/../../b", "link/people.csv", "a\\b", "a//b", "."]
)
def test_a_source_cannot_leave_the_root(tmp_path: Path, source: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    write(tmp_path / "people.csv", 1)
    with pytest.raises(Permanent):
        FileRoot(str(root)).read(source)


class Vanishing(Files):
    """Gone when it is looked at before the second batch."""

    def version(self, relative: str) -> str:
        version = super().version(relative)
        if self._asked == 3:  # type: ignore[attr-defined]
            Path(self.inside(relative)).unlink()
            return super().version(relative)
        return version


async def test_a_file_that_vanishes_while_it_is_split(lab: Lab, postgresql: Database, tmp_path: Path) -> None:
    """The import has failed; put back and enqueued again, the same one is split to its end."""
    write(tmp_path / "people.csv", 4000)
    async with importing(lab, postgresql, Vanishing(str(tmp_path))) as case:
        failed = await case.ended(await case.start())
        assert (failed.status, failed.chunks, failed.reason) == ("failed", 20, "people.csv: no such file")
        write(tmp_path / "people.csv", 4000)
        await case.start()
        await until(lambda: split(case), "it is split")
        (found,) = await case.imports.latest(case.case.name)
        # Rows whose jobs came while the file was gone are dead letters, to be replayed.
        assert (found.id, found.rows, found.chunks, found.failed) == (failed.id, 4000, 40, 0)


async def test_a_job_that_comes_again_after_its_end_is_done(lab: Lab, postgresql: Database, tmp_path: Path) -> None:
    """Even where the file is another one by now: that is for another job to import."""
    path = write(tmp_path / "people.csv", 10)
    async with importing(lab, postgresql, FileRoot(str(tmp_path))) as case:
        job_id = await case.producer.enqueue(case.case.split, ImportFile(source="people.csv"), key="again")
        first = await case.ended(job_id)
        write(path, 20)
        assert await case.producer.enqueue(case.case.split, ImportFile(source="people.csv"), key="again") == job_id
        other = await case.ended(await case.start())
        assert (other.rows, other.saved, await case.imports.progress(job_id)) == (20, 10, first)


async def test_a_long_file_is_split_in_several_runs(
    lab: Lab, postgresql: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job goes back to its queue now and then, with no attempt charged, and goes on where it was."""
    monkeypatch.setattr(csv_split, "_IN_ONE_RUN", 20)
    hashed = []
    digest = csv_split.Splitter._digest

    def counted(splitter: csv_split.Splitter, source: str) -> str:
        hashed.append(source)
        return digest(splitter, source)

    monkeypatch.setattr(csv_split.Splitter, "_digest", counted)
    write(tmp_path / "people.csv", 6001)
    files = Files(str(tmp_path))
    async with importing(lab, postgresql, files) as case:
        done = await case.ended(await case.start())
        assert (done.status, done.rows, done.saved, done.chunks) == ("done", 6001, 6001, 61)
        assert await case.rows() == 6001
        runs, batches = 4, 4
        assert files._asked == runs + batches  # type: ignore[attr-defined]
        assert hashed == ["people.csv"]


@pytest.mark.soak
async def test_a_hundred_thousand_rows(lab: Lab, database: Database, tmp_path: Path) -> None:
    """At full size with --soak; the file is never in memory as a whole."""
    rows = 100_000 if os.environ.get("HARELINE_SOAK") else 10_000
    write(tmp_path / "people.csv", rows)
    async with importing(lab, database, FileRoot(str(tmp_path))) as case:
        began = time.monotonic()
        done = await case.ended(await case.start(), within=170.0)
        print(f"{rows} rows on {database.dialect}: {time.monotonic() - began:.1f} s")
        assert (done.status, done.rows, done.saved, done.failed) == ("done", rows, rows, 0)
        assert await case.rows() == rows


async def split(case: Case) -> bool:
    return any(one.rows is not None for one in await case.imports.latest(case.case.name))


async def saved(case: Case, count: int) -> bool:
    return (await case.imports.latest(case.case.name))[0].saved == count
