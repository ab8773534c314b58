"""How far an import has come: what was split, which parts are in, and the rows that were refused.

The tables are the service's own, beside those that an import fills: `create_tables` makes them, or ``metadata`` goes
into the service's migrations. Statements are for the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Row,
    Select,
    Table,
    Text,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from store.columns import Moment
from store.engine import POSTGRESQL
from topology.errors import NotFound

metadata: Final = MetaData()

imports: Final = Table(
    "csv_imports",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, index=True),
    Column("source", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("reason", Text),
    Column("data_start", BigInteger, nullable=False),
    Column("data_end", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("line", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("chunks", Integer, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
)
"""``status`` is splitting, split or failed. Up to ``position`` the file is split, into ``chunks`` with ``rows``."""

jobs: Final = Table(
    "csv_import_jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("import_id", Text, nullable=False),
)
"""Which import each job began, went on with, or found done."""

chunks: Final = Table(
    "csv_import_chunks",
    metadata,
    Column("import_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("saved", Integer, nullable=False),
    Column("refused", Integer, nullable=False),
    Column("done_at", Moment, nullable=False),
    PrimaryKeyConstraint("import_id", "number"),
)
"""The parts that are in: each row commits with the rows of its part."""

errors: Final = Table(
    "csv_import_errors",
    metadata,
    Column("import_id", Text, nullable=False),
    Column("row", BigInteger, nullable=False),
    Column("position", Integer, nullable=False),
    Column("line", BigInteger, nullable=False),
    Column("field", Text),
    Column("message", Text, nullable=False),
    Column("raw", Text, nullable=False),
    PrimaryKeyConstraint("import_id", "row", "position"),
)
"""Why a row was refused; ``position`` counts the errors of one row. ``row`` is from 1, without the header."""


@dataclass(frozen=True, slots=True)
class Start:
    """An import as its first job finds it. Offsets are bytes; ``line`` is the first one after the header."""

    id: str
    name: str
    source: str
    digest: str
    version: str
    data_start: int
    data_end: int
    line: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """Up to where a file is split: the offset and the line of what comes next, and what came before."""

    position: int
    line: int
    rows: int
    chunks: int


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row was refused. ``field`` is None where the row as a whole is wrong."""

    row: int
    line: int
    field: str | None
    message: str
    raw: str


@dataclass(frozen=True, slots=True)
class Progress:
    """``status`` is running, done or failed. ``rows`` is None until the whole file is split; ``percent`` is by bytes.

    ``done`` rows are ``saved`` or ``failed``. Chunks that are neither done nor running are among the dead letters.
    """

    id: str
    source: str
    status: str
    reason: str | None
    rows: int | None
    done: int
    saved: int
    failed: int
    percent: float
    chunks: int
    chunks_done: int


async def create_tables(connection: AsyncConnection) -> None:
    """Makes those tables that are missing."""
    await connection.run_sync(metadata.create_all)


async def known(connection: AsyncConnection, job_id: str) -> Row[Any] | None:
    """The import that this job has begun, or None."""
    found = select(imports).join(jobs, jobs.c.import_id == imports.c.id).where(jobs.c.job_id == job_id)
    return (await connection.execute(found)).one_or_none()


async def begin(connection: AsyncConnection, start: Start, job_id: str) -> Row[Any]:
    """The import as it stands: begun now, or by an earlier job with the same content."""
    now = datetime.now(UTC)
    fresh = {"position": start.data_start, "rows": 0, "chunks": 0, "status": "splitting"}
    values = {name: getattr(start, name) for name in Start.__slots__}
    await _insert_new(connection, imports, {**values, **fresh, "started_at": now, "updated_at": now})
    await _insert_new(connection, jobs, {"job_id": job_id, "import_id": start.id})
    return (await connection.execute(select(imports).where(imports.c.id == start.id))).one()


async def advance(connection: AsyncConnection, import_id: str, cursor: Cursor, *, split: bool) -> None:
    """Up to ``cursor`` every part is enqueued. One that is further already is left alone."""
    values = {
        "position": cursor.position,
        "line": cursor.line,
        "rows": cursor.rows,
        "chunks": cursor.chunks,
        "status": "split" if split else "splitting",
        "reason": None,
        "updated_at": datetime.now(UTC),
    }
    here = (imports.c.id == import_id) & (imports.c.position <= cursor.position) & (imports.c.status != "split")
    await connection.execute(update(imports).where(here).values(values))


async def fail(connection: AsyncConnection, import_id: str, reason: str) -> None:
    """The file cannot be split any further."""
    here = (imports.c.id == import_id) & (imports.c.status != "split")
    values = {"status": "failed", "reason": reason, "updated_at": datetime.now(UTC)}
    await connection.execute(update(imports).where(here).values(values))


async def enter(connection: AsyncConnection, import_id: str, number: int, size: int) -> bool:
    """Notes that the part is in; False if it was before. Its counts follow with `count`."""
    values = {"import_id": import_id, "number": number, "bytes": size, "saved": 0, "refused": 0}
    return await _insert_new(connection, chunks, {**values, "done_at": datetime.now(UTC)})


async def count(
    connection: AsyncConnection, import_id: str, number: int, saved: int, refused: Sequence[Sequence[RowError]]
) -> None:
    """What became of the part's rows; ``refused`` has the errors of each row that is not saved."""
    here = (chunks.c.import_id == import_id) & (chunks.c.number == number)
    await connection.execute(update(chunks).where(here).values(saved=saved, refused=len(refused)))
    rows = [
        {"import_id": import_id, "position": place, **{name: getattr(error, name) for name in RowError.__slots__}}
        for found in refused
        for place, error in enumerate(found)
    ]
    if rows:
        await connection.execute(insert(errors), rows)


async def progress(connection: AsyncConnection, any_id: str) -> Progress:
    """Of the import with this id, or of that of the job with this id. Raises NotFound."""
    found = (await connection.execute(_progress().where(imports.c.id == any_id))).one_or_none()
    if found is None:
        mine = select(jobs.c.import_id).where(jobs.c.job_id == any_id)
        found = (await connection.execute(_progress().where(imports.c.id == mine.scalar_subquery()))).one_or_none()
    if found is None:
        raise NotFound(f"no import, and no job that has begun one, has the id {any_id}")
    return _as_progress(found)


async def latest(connection: AsyncConnection, name: str, limit: int) -> list[Progress]:
    """The imports of that name, the latest first."""
    wanted = _progress().where(imports.c.name == name).order_by(imports.c.started_at.desc(), imports.c.id).limit(limit)
    return [_as_progress(row) for row in await connection.execute(wanted)]


async def row_errors(connection: AsyncConnection, import_id: str, after: int, limit: int) -> list[RowError]:
    """Errors in the order of the rows, of rows after ``after``; up to ``limit``."""
    wanted = select(*(errors.c[name] for name in RowError.__slots__))
    wanted = wanted.where(errors.c.import_id == import_id, errors.c.row > after)
    wanted = wanted.order_by(errors.c.row, errors.c.position).limit(limit)
    return [RowError(*row) for row in await connection.execute(wanted)]


async def _insert_new(connection: AsyncConnection, table: Table, values: dict[str, Any]) -> bool:
    make = postgresql.insert if connection.dialect.name == POSTGRESQL else sqlite.insert
    key = next(iter(table.primary_key.columns))
    done = await connection.execute(make(table).values(values).on_conflict_do_nothing().returning(key))
    return done.first() is not None


def _progress() -> Select[Any]:
    mine = chunks.c.import_id == imports.c.id
    sums = {
        "saved": func.coalesce(func.sum(chunks.c.saved), 0),
        "refused": func.coalesce(func.sum(chunks.c.refused), 0),
        "bytes": func.coalesce(func.sum(chunks.c.bytes), 0),
        "chunks_done": func.count(),
    }
    columns = (select(value).where(mine).scalar_subquery().label(f"sum_{name}") for name, value in sums.items())
    return select(imports, *columns)


def _as_progress(row: Row[Any]) -> Progress:
    complete = row.status == "split" and row.sum_chunks_done >= row.chunks
    size = row.data_end - row.data_start
    return Progress(
        id=row.id,
        source=row.source,
        status="done" if complete else "failed" if row.status == "failed" else "running",
        reason=row.reason,
        rows=row.rows if row.status == "split" else None,
        done=int(row.sum_saved + row.sum_refused),
        saved=int(row.sum_saved),
        failed=int(row.sum_refused),
        percent=100.0 if complete else round(min(99.9, 100.0 * float(row.sum_bytes) / size), 1) if size else 0.0,
        chunks=row.chunks,
        chunks_done=row.sum_chunks_done,
    )
