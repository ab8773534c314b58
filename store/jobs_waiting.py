"""Jobs that wait in the outbox and that the job log does not know yet, as the log would have them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Column, Select, and_, case, cast, func, literal, not_, null, or_, select

from store.columns import Moment
from store.tables import jobs, outbox

STATUSES: Final = ("scheduled", "queued")
"""What such a job can be."""


def rows(columns: Sequence[Column[Any]], now: datetime, status: str | None = None) -> Select[Any]:
    """A query for ``columns`` of the job log, and for ``body``, the payload as it is; of one of `STATUSES`, or of both.

    One that the log knows is left out: that is a replay, which ended before, or was published a moment ago.
    """
    later = and_(outbox.c.due_at.is_not(None), outbox.c.due_at > literal(now, Moment))
    told: dict[str, Any] = {
        "id": outbox.c.job_id,
        "type": outbox.c.job_type,
        "group_name": outbox.c.group_name,
        "status": case((later, "scheduled"), else_="queued"),
        "attempt": literal(0),
        "priority": outbox.c.priority,
        "correlation_id": outbox.c.correlation_id,
        "seen_at": outbox.c.created_at,
        "accepted_at": outbox.c.created_at,
        "due_at": outbox.c.due_at,
    }
    here = [told.get(column.name, cast(null(), column.type)).label(column.name) for column in columns]
    # Not as an EXISTS: PostgreSQL makes a join of that, expects one row of it, and sorts all of the outbox for a page.
    # Of an inequality it expects nearly all rows, and takes them in the order of the index until the page is full.
    known = select(jobs.c.id).where(jobs.c.id == outbox.c.job_id).scalar_subquery()
    query = select(*here, outbox.c.body).where(func.coalesce(known, "") != outbox.c.job_id)
    if status is None:
        return query
    return query.where(later if status == "scheduled" else or_(outbox.c.due_at.is_(None), not_(later)))
