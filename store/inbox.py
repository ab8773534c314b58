"""The inbox: which jobs have committed their effects, noted in the very transaction that has the effects."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningInsert

from store.engine import POSTGRESQL
from store.tables import inbox


async def claim(connection: AsyncConnection, job_id: str, job_type: str, name: str = "") -> bool:
    """Notes in the caller's transaction that the job has its effects; False if another one has committed that.

    A transaction elsewhere that has claimed the same and is not decided is waited for.
    """
    return (await connection.execute(_claiming(connection.dialect.name, job_id, job_type, name))).first() is not None


def claim_blocking(connection: Connection, job_id: str, job_type: str, name: str = "") -> bool:
    """The same as `claim` for plain functions."""
    return connection.execute(_claiming(connection.dialect.name, job_id, job_type, name)).first() is not None


def _claiming(dialect: str, job_id: str, job_type: str, name: str) -> ReturningInsert[tuple[str]]:
    row = {"job_id": job_id, "job_type": job_type, "name": name, "handled_at": datetime.now(UTC)}
    if dialect == POSTGRESQL:
        return postgresql.insert(inbox).values(row).on_conflict_do_nothing().returning(inbox.c.job_id)
    return sqlite.insert(inbox).values(row).on_conflict_do_nothing().returning(inbox.c.job_id)
