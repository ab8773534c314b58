"""The saga log as it is read: pages, one saga step by step; and what is removed after its retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic_core import from_json
from sqlalchemy import and_, delete, func, literal, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from store.columns import Moment
from store.cursors import decode_cursor, encode_cursor
from store.jobs_read import AttemptRecord
from store.sagalog import DONE, ENDED, place_of, places_of
from store.tables import attempts, jobs, saga_steps, sagas
from topology.errors import CursorInvalid, NotFound
from topology.slip import job_id
from topology.text import flaw_of, shown

DO: Final = "do"
UNDO: Final = "undo"
PENDING: Final = "pending"
SKIPPED: Final = "skipped"


@dataclass(frozen=True, slots=True)
class SagaStep:
    """A step, or the undo of one. ``step`` is its place: stage and branch from 0. Times are aware, in UTC; seconds.

    ``status`` is done, failed (and undone since), or dead (it waits in the dead-letter queue); before that the job's
    own: queued, running, retrying, scheduled. A step still to come is pending, one that never will is skipped.
    ``result`` is JSON text. ``runs`` are the attempts that the job log knows.
    """

    step: str
    type: str
    direction: str
    status: str
    attempts: int
    job_id: str
    ended_at: datetime | None
    duration: float | None
    error: str | None
    error_message: str | None
    result: str | None
    runs: Sequence[AttemptRecord] = ()


@dataclass(frozen=True, slots=True)
class SagaRecord:
    """A saga as it is known. ``steps`` are in the order in which they are done and undone, empty in a listing."""

    id: str
    name: str
    status: str
    started_at: datetime
    deadline: datetime | None
    finished_at: datetime | None
    failed_step: str | None
    error: str | None
    error_message: str | None
    payload: str | None
    updated_at: datetime
    steps: Sequence[SagaStep] = ()


@dataclass(frozen=True, slots=True)
class SagaPage:
    """``next`` is the cursor of the page after, None at the end."""

    items: list[SagaRecord]
    next: str | None


async def page(
    connection: AsyncConnection,
    *,
    status: str | None = None,
    name: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> SagaPage:
    """Sagas, those that started last first. Raises CursorInvalid."""
    listing = f"sagas {status!r} {name!r}"
    query = select(*_COLUMNS).order_by(sagas.c.started_at.desc(), sagas.c.id.desc()).limit(limit + 1)
    for column, value in ((sagas.c.status, status), (sagas.c.name, name)):
        if value is not None:
            query = query.where(column == value)
    if since is not None:
        query = query.where(sagas.c.started_at >= since)
    if cursor is not None:
        try:
            moment, last = decode_cursor(listing, cursor)
            before = literal(datetime.fromisoformat(moment), Moment), literal(str(last))
        except (TypeError, ValueError):
            raise CursorInvalid("this cursor does not name a place among sagas") from None
        query = query.where(tuple_(sagas.c.started_at, sagas.c.id) < tuple_(*before))
    found = [_record(row) for row in (await connection.execute(query)).all()]
    items = found[:limit]
    more = len(found) > limit
    return SagaPage(items, encode_cursor(listing, [items[-1].started_at.isoformat(), items[-1].id]) if more else None)


async def counts(connection: AsyncConnection) -> Mapping[str, int]:
    """How many sagas there are, by status."""
    query = select(sagas.c.status, func.count()).group_by(sagas.c.status)
    return {row[0]: row[1] for row in (await connection.execute(query)).all()}


async def get(connection: AsyncConnection, saga_id: str) -> SagaRecord:
    """One saga with its steps and their attempts. Raises NotFound."""
    row: Any = None
    if not flaw_of(saga_id):
        query = select(*_COLUMNS, sagas.c.itinerary, sagas.c.undos).where(sagas.c.id == saga_id)
        row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound(f"no saga {shown(saga_id)} is known: it was never reported, or its retention is over")
    ended = await connection.execute(select(saga_steps).where(saga_steps.c.saga_id == saga_id))
    known = {(step.step, bool(step.undo)): step for step in ended.all()}
    wanted = _places(row, known)
    ids = {place: known[place].job_id if place in known else _job_id(saga_id, place) for place, _ in wanted}
    logged = await connection.execute(select(jobs.c.id, jobs.c.status).where(jobs.c.id.in_(ids.values())))
    statuses = {row[0]: row[1] for row in logged.all()}
    runs = await _runs(connection, list(ids.values()))
    # What was heard of a later step tells that this one is done, even if its own news were lost with a worker.
    reached = max((place_of(step)[0] for step, undo in known if not undo), default=-1)
    steps = [
        _step(
            place, job_type, known.get(place), ids[place], runs.get(ids[place], []), row, statuses,
            is_passed=not place[1] and place_of(place[0])[0] < reached,
        )
        for place, job_type in wanted
    ]  # fmt: skip
    return _record(row, steps)


def _places(row: Any, known: Mapping[tuple[str, bool], Any]) -> list[tuple[tuple[str, bool], str]]:
    """Every step and undo of a saga with its job type, in order; what only the log knows comes last."""
    places = [] if row.itinerary is None else places_of(row.itinerary)
    undo_types = {step: undo for step, _, undo in places}
    wanted = [((step, False), do) for step, do, _ in places]
    if row.undos is not None:
        wanted += [((step, True), undo_types.get(step) or "") for step in from_json(row.undos)]
    there = {place for place, _ in wanted}
    return wanted + [(place, known[place].job_type) for place in sorted(known) if place not in there]


def _job_id(saga_id: str, place: tuple[str, bool]) -> str:
    return job_id(saga_id, place_of(place[0]), place[1])


async def _runs(connection: AsyncConnection, ids: list[str]) -> dict[str, list[AttemptRecord]]:
    query = select(attempts).where(attempts.c.job_id.in_(ids)).order_by(attempts.c.replay, attempts.c.attempt)
    found: dict[str, list[AttemptRecord]] = {}
    for run in (await connection.execute(query)).all():
        record = AttemptRecord(
            run.replay, run.attempt, run.outcome, run.ended_at, run.duration, run.error, run.error_message
        )
        found.setdefault(run.job_id, []).append(record)
    return found


def _step(
    place: tuple[str, bool],
    job_type: str,
    known: Any,
    job: str,
    runs: list[AttemptRecord],
    saga: Any,
    statuses: Mapping[str, str],
    *,
    is_passed: bool,
) -> SagaStep:
    step, undo = place
    direction = UNDO if undo else DO
    if known is None:
        status = DONE if is_passed else statuses.get(job, SKIPPED if saga.undos is not None and not undo else PENDING)
        return SagaStep(step, job_type, direction, status, len(runs), job, None, None, None, None, None, runs)
    tries = max(len(runs), known.attempt)
    return SagaStep(
        step, known.job_type, direction, known.status, tries, job, known.ended_at, known.duration, known.error,
        known.error_message, known.result, runs,
    )  # fmt: skip


async def clean(connection: AsyncConnection, done_before: datetime, failed_before: datetime, limit: int) -> int:
    """Removes up to ``limit`` sagas that ended before the first time, or were silent since the second."""
    kinds = or_(
        and_(sagas.c.status.in_(ENDED), sagas.c.updated_at < done_before),
        and_(sagas.c.status.not_in(ENDED), sagas.c.updated_at < failed_before),
    )
    old = select(sagas.c.id).where(kinds).limit(limit).with_for_update(skip_locked=True)
    ids = sorted((await connection.execute(old)).scalars())
    if ids:
        await connection.execute(delete(saga_steps).where(saga_steps.c.saga_id.in_(ids)))
        await connection.execute(delete(sagas).where(sagas.c.id.in_(ids)))
    return len(ids)


_NAMES: Final = (
    "id", "name", "status", "started_at", "deadline", "finished_at", "failed_step", "error", "error_message", "payload",
    "updated_at",
)  # fmt: skip
_COLUMNS: Final = tuple(sagas.c[name] for name in _NAMES)


def _record(row: Any, steps: Sequence[SagaStep] = ()) -> SagaRecord:
    return SagaRecord(**{name: getattr(row, name) for name in _NAMES}, steps=steps)
