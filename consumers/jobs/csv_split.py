"""Splits a CSV file into jobs, a bounded piece in each run: one that dies loses little and repeats nothing."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from io import SEEK_END
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn

from consumers.job import Job
from consumers.jobs.csv_payloads import CHUNK, Chunk, ImportFile
from consumers.jobs.csv_records import Dialect, Record, find_dialect, header, records
from consumers.outcome import Permanent
from producers.producer import Producer
from store import imports
from store.engine import Database
from store.imports import Cursor, Start

if TYPE_CHECKING:
    from consumers.jobs.csv_import import CsvImport

_IDS: Final = uuid.UUID("3f0a5d5e-6f0f-5a53-8c0e-5a3d7f3b2c90")
_AT_ONCE: Final = 20
"""Chunks that are enqueued together, after which the place is noted."""
_IN_ONE_RUN: Final = 2000
"""Chunks that one run of the job enqueues; then it goes back to its queue, far from any timeout."""
_BLOCK: Final = 1 << 20


class Splitter:
    """The handler of an import's first job."""

    def __init__(self, case: CsvImport[Any]) -> None:
        self._case = case
        self._files = case.files

    async def run(self, request: ImportFile, job: Job) -> None:
        """Enqueues a job for every hundred rows, from where an earlier run or job with this content has stopped.

        Permanent: a file that is missing, empty, has no fitting header, or changes meanwhile.
        """
        async with AsyncExitStack() as stack:
            database = Database.from_settings(self._case.settings, pool=1)
            stack.push_async_callback(database.close)
            version, digest = await self._identify(request.source, job, database)
            file = await asyncio.to_thread(stack.enter_context, self._files.open(request.source))
            dialect, columns, first = await asyncio.to_thread(self._begin, file, request)
            identity = f"{self._case.name}\0{request.source}\0{digest}\0{request.label}"
            start = Start(
                id=str(uuid.uuid5(_IDS, identity)),
                name=self._case.name,
                source=request.source,
                digest=digest,
                version=version,
                data_start=first.end,
                data_end=await asyncio.to_thread(file.seek, 0, SEEK_END),
                line=first.next_line,
            )
            async with database.transaction() as connection:
                state = await imports.begin(connection, start, job.id)
            if state.status == "split":
                return
            producer = await stack.enter_async_context(Producer(self._case.settings))
            await asyncio.to_thread(file.seek, state.position)
            pieces = _Pieces(file, dialect, columns, request.source, state)
            await self._enqueue(pieces, producer, database, job, version)

    async def _identify(self, source: str, job: Job, database: Database) -> tuple[str, str]:
        """The file's version and the hash of its content, which is what this job has begun with."""
        version = await asyncio.to_thread(self._files.version, source)
        async with database.transaction() as connection:
            found = await imports.known(connection, job.id)
        if found is not None and found.version == version:
            return version, found.digest
        digest = await asyncio.to_thread(self._digest, source)
        if found is not None and found.digest != digest:
            await self._fail(database, found.id, f"{source} has changed since this import began")
        return version, digest

    async def _enqueue(self, pieces: _Pieces, producer: Producer, database: Database, job: Job, version: str) -> None:
        for _ in range(_IN_ONE_RUN // _AT_ONCE):
            try:
                batch = await asyncio.to_thread(pieces.take, _AT_ONCE)
            except Permanent as error:
                await self._fail(database, pieces.import_id, str(error))
            # Before anything of it is enqueued: what was read may be neither the old file nor the new one.
            if await asyncio.to_thread(self._files.version, pieces.source) != version:
                await self._fail(database, pieces.import_id, f"{pieces.source} has changed while it was being split")
            await asyncio.gather(
                *(producer.enqueue(self._case.chunk, one, key=f"{one.import_id}/{one.number}") for one in batch)
            )
            async with database.transaction() as connection:
                await imports.advance(connection, pieces.import_id, pieces.cursor, split=len(batch) < _AT_ONCE)
            if len(batch) < _AT_ONCE:
                return
        await job.snooze(0.0)

    async def _fail(self, database: Database, import_id: str, reason: str) -> NoReturn:
        async with database.transaction() as connection:
            await imports.fail(connection, import_id, reason)
        raise Permanent(reason)

    def _digest(self, source: str) -> str:
        digest = hashlib.sha256()
        with self._files.open(source) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def _begin(self, file: Any, request: ImportFile) -> tuple[Dialect, list[str], Record]:
        """The file's dialect, its columns, and the header's record."""
        dialect = find_dialect(file.read(_BLOCK), request.encoding, request.delimiter)
        file.seek(dialect.bom)
        first = next(records(file, dialect, start=dialect.bom), None)
        if first is None:
            raise Permanent(f"{request.source} is empty: not even a header")
        if first.flaw:
            raise Permanent(f"{request.source}: the header cannot be read: {first.flaw}")
        return dialect, header(first.fields, self._case.required), first


class _Pieces:
    """The rest of a file, as payloads of a hundred rows each, and the cursor behind the last one."""

    def __init__(self, file: Any, dialect: Dialect, columns: list[str], source: str, state: Any) -> None:
        self.source = source
        self.import_id: str = state.id
        self.cursor = Cursor(state.position, state.line, state.rows, state.chunks)
        self._dialect = dialect
        self._columns = columns
        self._records: Iterator[Record] = records(file, dialect, start=state.position, line=state.line)

    def take(self, count: int) -> list[Chunk]:
        """Up to ``count``; fewer at the end of the file."""
        return list(islice(iter(self._next, None), count))

    def _next(self) -> Chunk | None:
        rows = list(islice(self._records, CHUNK))
        if not rows:
            return None
        at, last = self.cursor, rows[-1]
        self.cursor = Cursor(last.end, last.next_line, at.rows + len(rows), at.chunks + 1)
        return Chunk(
            import_id=self.import_id,
            number=at.chunks,
            source=self.source,
            start=at.position,
            end=last.end,
            digest=hashlib.sha256(b"".join(row.content for row in rows)).hexdigest(),
            row=at.rows + 1,
            line=at.line,
            encoding=self._dialect.encoding,
            delimiter=self._dialect.delimiter,
            columns=self._columns,
        )
