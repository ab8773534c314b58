"""The outbox: jobs that commit with their caller's transaction, until the relay has published them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from store.tables import outbox
from topology.envelope import RECORD


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One job to be published. ``origin`` says who asked: enqueue, schedule, replay or webhook.

    ``group_name`` is its job type's group.
    ``due_at`` is when it shall run; None or the past means now. Rows with the same ``ordering_key`` are published in
    the order of their ids.
    """

    job_id: str
    job_type: str
    body: bytes
    origin: str
    priority: int | None = None
    due_at: datetime | None = None
    correlation_id: str | None = None
    headers: Mapping[str, Any] | None = None
    ordering_key: str | None = None
    group_name: str | None = None


def recorded_as(record: str | None) -> dict[str, str] | None:
    """The headers of a job of whose type not everything is to be recorded; None where all is."""
    return None if record in {None, "all"} else {RECORD: str(record)}


def values_of(row: OutboxRow) -> dict[str, Any]:
    """The row as the table takes it."""
    return {**asdict(row), "created_at": datetime.now(UTC)}


async def add(connection: AsyncConnection, rows: Sequence[OutboxRow]) -> None:
    """Writes ``rows`` in the caller's transaction: published if it commits, and only then."""
    if rows:
        await connection.execute(insert(outbox), [values_of(row) for row in rows])
