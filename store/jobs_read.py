"""The job log as it is read: pages, one job with its attempts, counts; and what is removed after its retention."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import LargeBinary, Row, Text, and_, cast, delete, func, literal, null, or_, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from store import jobs_waiting, reporters
from store.columns import Moment
from store.cursors import decode_cursor, encode_cursor
from store.tables import attempts, jobs
from store.tables import reporters as reporting
from topology.errors import CursorInvalid, NotFound
from topology.text import flaw_of, shown


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """How one attempt ended. ``replay`` counts the replays from the dead-letter desk before it; seconds."""

    replay: int
    attempt: int
    outcome: str
    ended_at: datetime
    duration: float | None
    error: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as it is known. Times are aware, in UTC; ``duration`` is the seconds of the last run.

    ``seen_at`` is the earliest moment it is known of, ``due_at`` when it runs next. ``payload`` is JSON text, None
    where it was not reported. ``attempts`` are empty in a listing.
    """

    id: str
    type: str
    group: str | None
    status: str
    attempt: int
    priority: int | None
    payload: str | None
    correlation_id: str | None
    seen_at: datetime
    accepted_at: datetime | None
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    duration: float | None
    error: str | None
    error_message: str | None
    attempts: Sequence[AttemptRecord] = ()


@dataclass(frozen=True, slots=True)
class JobPage:
    """``next`` is the cursor of the page after, None at the end."""

    items: list[JobRecord]
    next: str | None


@dataclass(frozen=True, slots=True)
class JobStats:
    """Counts. ``last_hour`` counts attempts by how they ended, ``missing`` batches of reports that did not arrive."""

    by_status: Mapping[str, int]
    by_type: Mapping[str, Mapping[str, int]]
    by_group: Mapping[str, Mapping[str, int]]
    last_hour: Mapping[str, int]
    missing: int
    dropped: int


async def page(
    connection: AsyncConnection,
    now: datetime,
    *,
    status: str | None = None,
    job_type: str | None = None,
    group: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> JobPage:
    """Jobs, those seen last first, with those that wait in the outbox at ``now``. Raises CursorInvalid."""
    listing = f"jobs {status!r} {job_type!r} {group!r}"
    before = None if cursor is None else _position(decode_cursor(listing, cursor))

    def latest(seen: Any, *conditions: Any) -> Any:
        """The first rows of ``seen`` on this page: of each of two sources no more are needed."""
        query = select(seen).where(*conditions).order_by(seen.c.seen_at.desc(), seen.c.id.desc()).limit(limit + 1)
        for column, value in ((seen.c.type, job_type), (seen.c.group_name, group)):
            if value is not None:
                query = query.where(column == value)
        if since is not None:
            query = query.where(seen.c.seen_at >= since)
        if before is not None:
            query = query.where(tuple_(seen.c.seen_at, seen.c.id) < tuple_(*before))
        return query

    logged = select(*_COLUMNS, cast(null(), LargeBinary).label("body")).subquery()
    sources = [latest(logged) if status is None else latest(logged, logged.c.status == status)]
    if status in {None, *jobs_waiting.STATUSES}:
        sources.append(latest(jobs_waiting.rows(_COLUMNS, now, status).subquery()))
    # One statement, and so one moment: between two of them a job could leave the outbox and be in neither.
    both = union_all(*(select(source.subquery()) for source in sources)).subquery()
    page_of_both = select(both).order_by(both.c.seen_at.desc(), both.c.id.desc()).limit(limit + 1)
    found = [_record(row) for row in (await connection.execute(page_of_both)).all()]
    items = found[:limit]
    more = len(found) > limit
    return JobPage(items, encode_cursor(listing, [items[-1].seen_at.isoformat(), items[-1].id]) if more else None)


def _position(position: list[Any]) -> tuple[Any, Any]:
    try:
        moment, last = position
        return literal(datetime.fromisoformat(moment), Moment), literal(str(last), Text)
    except (TypeError, ValueError):
        raise CursorInvalid("this cursor does not name a place among jobs") from None


async def get(connection: AsyncConnection, job_id: str, now: datetime) -> JobRecord:
    """One job with its attempts; one that waits in the outbox is queued, or scheduled. Raises NotFound."""
    if flaw_of(job_id):
        raise _unknown(job_id)
    logged = select(jobs).where(jobs.c.id == job_id)
    waiting = jobs_waiting.rows(_COLUMNS, now).subquery()
    for source in (logged, select(waiting).where(waiting.c.id == job_id).limit(1), logged):
        # The log once more: it may have moved there between two looks.
        row = (await connection.execute(source)).one_or_none()
        if row is not None:
            break
    else:
        raise _unknown(job_id)
    mine = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.replay, attempts.c.attempt)
    names = [field.name for field in fields(AttemptRecord)]
    ended = [
        AttemptRecord(**{name: getattr(attempt, name) for name in names})
        for attempt in (await connection.execute(mine)).all()
    ]
    return replace(_record(row), attempts=ended)


def _unknown(job_id: str) -> NotFound:
    return NotFound(f"no job {shown(job_id)} is known: it was never reported, or its retention is over")


async def stats(connection: AsyncConnection, now: datetime) -> JobStats:
    """Counts of the whole log and of what waits in the outbox."""
    logged = select(jobs.c.status, jobs.c.type, jobs.c.group_name)
    waiting = jobs_waiting.rows((jobs.c.status, jobs.c.type, jobs.c.group_name), now)
    kinds = [
        select(source.c.status, source.c.type, source.c.group_name, func.count().label("number")).group_by(
            source.c.status, source.c.type, source.c.group_name
        )
        for source in (logged.subquery(), waiting.subquery())
    ]
    by_status: Counter[str] = Counter()
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    by_group: dict[str, Counter[str]] = defaultdict(Counter)
    for row in (await connection.execute(union_all(*kinds))).all():
        by_status[row.status] += row.number
        by_type[row.type][row.status] += row.number
        if row.group_name is not None:
            by_group[row.group_name][row.status] += row.number
    recent = select(attempts.c.outcome, func.count()).where(attempts.c.ended_at > now - timedelta(hours=1))
    last_hour = {row[0]: row[1] for row in (await connection.execute(recent.group_by(attempts.c.outcome))).all()}
    lost = await reporters.losses(connection)
    return JobStats(by_status, by_type, by_group, last_hour, lost.missing, lost.dropped)


async def clean(connection: AsyncConnection, done_before: datetime, failed_before: datetime, limit: int) -> int:
    """Removes up to ``limit`` jobs that ended before, with their attempts; returns how many.

    Done and cancelled ones by the first time, dead ones by the second. One that is said to wait or run, though
    nothing was heard of it for longer than either and it is not due later, lost the report of its end: it goes too.
    """
    silent = min(done_before, failed_before)
    waiting = jobs.c.status.in_(("scheduled", "queued", "running", "retrying"))
    kinds = (
        and_(jobs.c.status.in_(("done", "cancelled")), jobs.c.updated_at < done_before, jobs.c.seen_at < done_before),
        and_(jobs.c.status == "dead", jobs.c.updated_at < failed_before, jobs.c.seen_at < failed_before),
        and_(
            waiting,
            jobs.c.updated_at < silent,
            jobs.c.seen_at < silent,
            or_(jobs.c.due_at.is_(None), jobs.c.due_at < silent),
        ),
    )
    removed = 0
    for kind in kinds:
        old = select(jobs.c.id).where(kind).limit(limit - removed).with_for_update(skip_locked=True)
        ids = sorted((await connection.execute(old)).scalars())
        if ids:
            await connection.execute(delete(attempts).where(attempts.c.job_id.in_(ids)))
            await connection.execute(delete(jobs).where(jobs.c.id.in_(ids)))
        removed += len(ids)
        if removed >= limit:
            return removed
    await connection.execute(delete(reporting).where(reporting.c.seen_at < failed_before))
    return removed


_NAMES: Final = tuple(field.name for field in fields(JobRecord) if field.name not in {"group", "attempts"})
_COLUMNS: Final = (*(jobs.c[name] for name in _NAMES), jobs.c.group_name)


def _record(row: Row[Any]) -> JobRecord:
    values = {name: getattr(row, name) for name in _NAMES}
    if getattr(row, "body", None) is not None:
        values["payload"] = bytes(row.body).decode(errors="replace")
    return JobRecord(**values, group=row.group_name)
