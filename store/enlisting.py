"""Outbox rows in a transaction that is somebody else's: SQLAlchemy's, async or not, or Django's.

Nothing here begins, commits or rolls back: the rows share the fate of what the caller writes beside them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, insert
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from store.engine import POSTGRESQL, SQLITE
from store.outbox import OutboxRow, values_of
from store.tables import keys, outbox
from topology.errors import OptionInvalid

_DIALECTS: Final = (POSTGRESQL, SQLITE)
_COLUMNS: Final = (
    "job_id",
    "job_type",
    "body",
    "origin",
    "priority",
    "due_at",
    "correlation_id",
    "headers",
    "ordering_key",
    "group_name",
    "created_at",
)
_ASYNC: Final = "an AsyncConnection or AsyncSession of SQLAlchemy's"
_BLOCKING: Final = "a Connection or Session of SQLAlchemy's, or django.db.connection"


async def enlist(connection: Any, rows: Sequence[OutboxRow], *, keyed: bool) -> bool | None:
    """Writes ``rows`` into the transaction of ``connection``, an AsyncConnection or AsyncSession.

    ``keyed`` rows (one) are written unless their job id was before; returns whether it was. None where not keyed.
    Raises OptionInvalid for a connection of any other kind; what the database says is SQLAlchemy's own error.
    """
    if isinstance(connection, AsyncSession):
        connection = await connection.connection()
    if not isinstance(connection, AsyncConnection):
        raise OptionInvalid(
            f"connection is {type(connection).__name__}: Producer needs {_ASYNC}; BlockingProducer takes {_BLOCKING}"
        )
    return await connection.run_sync(_write, rows, keyed)


def enlist_blocking(connection: Any, rows: Sequence[OutboxRow], *, keyed: bool) -> bool | None:
    """As `enlist`, for a Connection, a Session, or Django's connection."""
    if isinstance(connection, Session):
        connection = connection.connection()
    if isinstance(connection, Connection):
        return _write(connection, rows, keyed)
    if hasattr(connection, "vendor") and hasattr(connection, "cursor"):
        return _write_django(connection, rows, keyed)
    raise OptionInvalid(
        f"connection is {type(connection).__name__}: BlockingProducer needs {_BLOCKING}; Producer takes {_ASYNC}"
    )


def _write(connection: Connection, rows: Sequence[OutboxRow], keyed: bool) -> bool | None:
    _check(connection.dialect.name)
    if keyed:
        make = postgresql_insert if connection.dialect.name == POSTGRESQL else sqlite_insert
        first = rows[0]
        found = connection.execute(
            make(keys)
            .values(job_id=first.job_id, job_type=first.job_type, created_at=datetime.now(UTC))
            .on_conflict_do_nothing()
            .returning(keys.c.job_id)
        ).all()
        if not found:
            return True
    if rows:
        connection.execute(insert(outbox), [values_of(row) for row in rows])
    return False if keyed else None


def _write_django(connection: Any, rows: Sequence[OutboxRow], keyed: bool) -> bool | None:
    vendor = connection.vendor
    _check(vendor)
    with connection.cursor() as cursor:
        if keyed:
            cursor.execute(
                "INSERT INTO hareline_keys (job_id, job_type, created_at) VALUES (%s, %s, %s) "
                "ON CONFLICT DO NOTHING RETURNING job_id",
                [rows[0].job_id, rows[0].job_type, _moment(datetime.now(UTC), vendor)],
            )
            if cursor.fetchone() is None:
                return True
        # Column by column from a constant: nothing of the caller's gets into the statement.
        places = ", ".join("CAST(%s AS jsonb)" if vendor == POSTGRESQL and c == "headers" else "%s" for c in _COLUMNS)
        statement = f"INSERT INTO hareline_outbox ({', '.join(_COLUMNS)}) VALUES ({places})"  # noqa: S608 - constants
        if rows:
            cursor.executemany(statement, [_plain(values_of(row), vendor) for row in rows])
    return False if keyed else None


def _plain(values: dict[str, Any], vendor: str) -> list[Any]:
    """The values of `_COLUMNS` as drivers take them."""
    plain = dict(values)
    for name in ("due_at", "created_at"):
        plain[name] = _moment(values[name], vendor)
    plain["headers"] = None if values["headers"] is None else json.dumps(dict(values["headers"]))
    return [plain[name] for name in _COLUMNS]


def _moment(value: datetime | None, vendor: str) -> Any:
    """As `store.columns.Moment` writes it."""
    if value is None or vendor == POSTGRESQL:
        return value
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


def _check(dialect: str) -> None:
    if dialect not in _DIALECTS:
        raise OptionInvalid(f"connection is to {dialect}: the outbox can be in {' or '.join(_DIALECTS)}")
