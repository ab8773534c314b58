"""Imports CSV files of any size: one job splits a file, and one job for every hundred rows takes them in.

    customers = CsvImport("customers", Customer, FileRoot("/srv/imports"))
    app = App(job_types=customers.job_types)

    @customers.saves(app)
    async def save(connection: AsyncConnection, rows: Sequence[Customer]) -> None:
        await connection.execute(insert(table), [row.model_dump() for row in rows])

    await producer.enqueue(customers.split, ImportFile(source="2026/customers.csv"))

Every row is saved once or refused once, whatever dies or comes twice on the way; see `store.imports` for what is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from consumers.job import Job
from consumers.jobs import Handlers
from consumers.jobs.csv_payloads import Chunk, ImportFile
from consumers.jobs.csv_records import Dialect, Record, as_mapping, records
from consumers.jobs.files import FileRoot
from consumers.outcome import Permanent
from topology.contract import JobType, Retry
from topology.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from store.imports import RowError

R = TypeVar("R", bound=BaseModel)

Save = Callable[["AsyncConnection", Sequence[R]], Awaitable[None]]
"""Writes valid rows in the transaction of the connection, and has no other effect."""

__all__ = ["BadRow", "Chunk", "CsvImport", "ImportFile", "Save"]

_LONGEST_RAW: Final = 10_000


class BadRow(Exception):
    """A `Save` raises it for a row that a rule refuses which the model cannot know; ``field`` may name the column."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class CsvImport(Generic[R]):
    """The two job types of an import and their handlers; ``row`` is the model that every row must fit.

    ``name`` begins the job types' names. ``settings`` (default: the environment's) name the broker, and the database
    that has Hareline's tables, the import's and the rows'.
    """

    def __init__(self, name: str, row: type[R], files: FileRoot, *, settings: Settings | None = None) -> None:
        self.name = name
        self.row = row
        self.files = files
        self.split: JobType[ImportFile] = JobType(
            f"{name}.import", ImportFile, retry=Retry(attempts=10, base=5.0, cap=600.0), timeout=900.0
        )
        self.chunk: JobType[Chunk] = JobType(
            f"{name}.import-rows", Chunk, retry=Retry(attempts=8, base=2.0, cap=300.0), timeout=120.0, record="failures"
        )
        self._settings = settings

    @property
    def job_types(self) -> list[JobType[Any]]:
        """For ``App(job_types=...)``."""
        return [self.split, self.chunk]

    @property
    def settings(self) -> Settings:
        """Those given, or the environment's."""
        return self._settings or Settings.from_env()

    @property
    def required(self) -> list[str]:
        """The columns that a file must have: what the model calls its fields in its input, where it needs them."""
        fields = self.row.model_fields.items()
        return [str(field.validation_alias or field.alias or name) for name, field in fields if field.is_required()]

    def saves(self, app: Handlers) -> Callable[[Save[R]], Save[R]]:
        """Decorates the function that writes valid rows, and gives ``app`` the two handlers."""

        def register(save: Save[R]) -> Save[R]:
            from consumers.jobs.csv_split import Splitter  # noqa: PLC0415 - an app that only publishes needs no store

            splitter = Splitter(self)

            @app.handler(self.split)
            async def split(request: ImportFile, job: Job) -> None:
                await splitter.run(request, job)

            @app.handler(self.chunk)
            async def take_in(chunk: Chunk, job: Job) -> None:
                await self._take_in(chunk, job, save)

            return save

        return register

    async def _take_in(self, chunk: Chunk, job: Job, save: Save[R]) -> None:
        from store import imports  # noqa: PLC0415 - a producer needs no SQLAlchemy

        content = await asyncio.to_thread(self.files.read, chunk.source, chunk.start, chunk.end)
        if hashlib.sha256(content).hexdigest() != chunk.digest:
            raise Permanent(f"{chunk.source} has changed since it was split: rows from {chunk.row} are not imported")
        good: list[tuple[R, _Place]] = []
        refused: list[list[RowError]] = []
        for place in _places(content, chunk):
            try:
                good.append((self.row.model_validate(_given(as_mapping(chunk.columns, place.record))), place))
            except ValidationError as error:
                refused.append(place.errors(error))
            except ValueError as error:
                refused.append([place.error(str(error))])
        async with job.transaction() as connection:
            if not await imports.enter(connection, chunk.import_id, chunk.number, len(content)):
                return  # the inbox has forgotten by now, and this has not
            bad = await _save(connection, good, save)
            await imports.count(connection, chunk.import_id, chunk.number, len(good) - len(bad), refused + bad)


class _Place:
    """A record and where it stands, to say so in its errors."""

    def __init__(self, record: Record, row: int, encoding: str) -> None:
        self.record = record
        self._row = row
        self._encoding = encoding

    def error(self, message: str, field: str | None = None) -> RowError:
        from store.imports import RowError  # noqa: PLC0415

        raw = self.record.content.decode(self._encoding, errors="replace").strip("\r\n")
        return RowError(self._row, self.record.line, field, _storable(message), _storable(raw[:_LONGEST_RAW]))

    def errors(self, error: ValidationError) -> list[RowError]:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        return [self.error(one["msg"], ".".join(str(part) for part in one["loc"]) or None) for one in details]


def _storable(text: str) -> str:
    """PostgreSQL has no place for a null character in a text."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _places(content: bytes, chunk: Chunk) -> Iterator[_Place]:
    found = records(io.BytesIO(content), Dialect(chunk.encoding, chunk.delimiter), start=chunk.start, line=chunk.line)
    for row, record in enumerate(found, chunk.row):
        yield _Place(record, row, chunk.encoding)


def _given(mapping: dict[str, Any]) -> dict[str, Any]:
    """An empty field is one that is not given: the model's default holds, or it is missing."""
    return {name: value for name, value in mapping.items() if value != ""}


async def _save(connection: AsyncConnection, good: Sequence[tuple[R, _Place]], save: Save[R]) -> list[list[RowError]]:
    """All at once; where the database or a rule refuses a row, one by one, to find which. Returns the refused."""
    from sqlalchemy.exc import DataError, IntegrityError  # noqa: PLC0415

    if not good:
        return []
    try:
        async with connection.begin_nested():
            await save(connection, [row for row, _ in good])
    except (BadRow, IntegrityError, DataError):
        pass
    else:
        return []
    refused = []
    for row, place in good:
        try:
            async with connection.begin_nested():
                await save(connection, [row])
        except BadRow as error:
            refused.append([place.error(str(error), error.field)])
        except (IntegrityError, DataError) as error:
            refused.append([place.error(str(error.orig).splitlines()[0])])
    return refused
