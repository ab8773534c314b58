"""The inbox: which jobs have committed their effects, noted in the very transaction that has the effects."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningInsert

from store.engine import POSTGRESQL, SQLITE
from store.tables import inbox


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


def _row(job_id: str, job_type: str, name: str) -> dict[str, Any]:
    return {"job_id": job_id, "job_type": job_type, "name": name, "handled_at": datetime.now(UTC)}


# Made once: each job runs it, and to make it anew costs more than to run it.
_CLAIMING: Final[Mapping[str, ReturningInsert[tuple[str]]]] = {
    POSTGRESQL: postgresql.insert(inbox).on_conflict_do_nothing().returning(inbox.c.job_id),
    SQLITE: sqlite.insert(inbox).on_conflict_do_nothing().returning(inbox.c.job_id),
}
