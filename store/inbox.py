"""The inbox: which jobs have committed their effects, noted in the very transaction that has the effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Select, Update, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningInsert

from store.engine import POSTGRESQL, SQLITE
from store.tables import inbox


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided of a job: it is done and kept ``result``, or it was ``abandoned``, and why. JSON texts."""

    result: str | None
    abandoned: str | None


async def claim(connection: AsyncConnection, job_id: str, job_type: str, name: str = "") -> bool:
    """Notes in the caller's transaction that the job has its effects; False if another one has committed that.

    A transaction elsewhere that has claimed the same and is not decided is waited for.
    """
    claiming = _CLAIMING[connection.dialect.name]
    return (await connection.execute(claiming, _row(job_id, job_type, name))).first() is not None


def claim_blocking(connection: Connection, job_id: str, job_type: str, name: str = "") -> bool:
    """The same as `claim` for plain functions."""
    claiming = _CLAIMING[connection.dialect.name]
    return connection.execute(claiming, _row(job_id, job_type, name)).first() is not None


async def keep(connection: AsyncConnection, job_id: str, name: str, result: str) -> None:
    """Stores what the job returned, as JSON, with its row."""
    await connection.execute(_keeping(job_id, name, result))


def keep_blocking(connection: Connection, job_id: str, name: str, result: str) -> None:
    """The same as `keep` for plain functions."""
    connection.execute(_keeping(job_id, name, result))


async def verdict(connection: AsyncConnection, job_id: str, name: str = "") -> Verdict:
    """What was committed for a job whose claim failed."""
    return _verdict((await connection.execute(_looking(job_id, name))).first())


def verdict_blocking(connection: Connection, job_id: str, name: str = "") -> Verdict:
    """The same as `verdict` for plain functions."""
    return _verdict(connection.execute(_looking(job_id, name)).first())


async def abandon(connection: AsyncConnection, job_id: str, job_type: str, why: str) -> Verdict:
    """Decides that the job is never to have effects, unless it has committed some: what was decided first counts."""
    row = {**_row(job_id, job_type, ""), "abandoned": why}
    if (await connection.execute(_CLAIMING[connection.dialect.name], row)).first() is not None:
        return Verdict(None, why)
    return await verdict(connection, job_id)


def _keeping(job_id: str, name: str, result: str) -> Update:
    return update(inbox).where(inbox.c.job_id == job_id, inbox.c.name == name).values(result=result)


def _looking(job_id: str, name: str) -> Select[tuple[str | None, str | None]]:
    return select(inbox.c.result, inbox.c.abandoned).where(inbox.c.job_id == job_id, inbox.c.name == name)


def _verdict(row: Any) -> Verdict:
    return Verdict(None, None) if row is None else Verdict(row.result, row.abandoned)


def _row(job_id: str, job_type: str, name: str) -> dict[str, Any]:
    return {"job_id": job_id, "job_type": job_type, "name": name, "handled_at": datetime.now(UTC)}


# Made once: each job runs it, and to make it anew costs more than to run it.
_CLAIMING: Final[Mapping[str, ReturningInsert[tuple[str]]]] = {
    POSTGRESQL: postgresql.insert(inbox).on_conflict_do_nothing().returning(inbox.c.job_id),
    SQLITE: sqlite.insert(inbox).on_conflict_do_nothing().returning(inbox.c.job_id),
}
