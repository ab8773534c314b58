"""News of sagas that were lost with a killed worker, found again in the inbox.

A worker that is killed takes the reports of its last 100 ms along. Where that was the last step of a saga, the log
would have it running for ever. Steps that use ``job.transaction()`` have left a row in the inbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from pydantic_core import from_json
from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from store.sagalog import COMPENSATING, RUNNING, SagaNews, merge, place_of, places_of
from store.tables import inbox, saga_steps, sagas
from topology.events import SAGA_STEP
from topology.slip import job_id

Position = tuple[datetime, str]
BATCH: Final = 200


async def fill(connection: AsyncConnection, silent_since: datetime, after: Position | None) -> Position | None:
    """Looks at some sagas that have not ended and of which nothing was heard since; returns where to go on, or None.

    What the inbox knows of their steps goes into the log.
    """
    found = await _silent(connection, silent_since, after)
    if not found:
        return None
    wanted = {
        job_id(saga.id, place_of(step), undo): (saga, step, undo, name)
        for saga in found
        for step, do, undoing in places_of(saga.itinerary)
        for undo, name in ((False, do), (True, undoing))
        if name is not None
    }
    known = await _known(connection, [saga.id for saga in found])
    news = SagaNews()
    rows = select(inbox.c.job_id, inbox.c.result, inbox.c.abandoned, inbox.c.handled_at)
    decided = rows.where(inbox.c.job_id.in_(wanted), inbox.c.name == "")
    for row in (await connection.execute(decided)).all():
        saga, step, undo, name = wanted[row.job_id]
        if (saga.id, step, undo) not in known:
            news.add([_step(saga, step, undo, name, row)])
    await merge(connection, news)
    return found[-1].updated_at, found[-1].id


async def _silent(connection: AsyncConnection, since: datetime, after: Position | None) -> Sequence[Any]:
    columns = (sagas.c.id, sagas.c.name, sagas.c.itinerary, sagas.c.started_at, sagas.c.updated_at)
    waiting = select(*columns).where(
        sagas.c.status.in_((RUNNING, COMPENSATING)), sagas.c.updated_at < since, sagas.c.itinerary.is_not(None)
    )
    if after is not None:
        waiting = waiting.where(tuple_(sagas.c.updated_at, sagas.c.id) > tuple_(*after))
    return (await connection.execute(waiting.order_by(sagas.c.updated_at, sagas.c.id).limit(BATCH))).all()


async def _known(connection: AsyncConnection, ids: Sequence[str]) -> set[tuple[str, str, bool]]:
    mine = select(saga_steps.c.saga_id, saga_steps.c.step, saga_steps.c.undo).where(saga_steps.c.saga_id.in_(ids))
    return {(saga_id, step, bool(undo)) for saga_id, step, undo in (await connection.execute(mine)).all()}


def _step(saga: Any, step: str, undo: bool, name: str, row: Any) -> list[Any]:
    detail: dict[str, Any] = {"step": step, "type": name, "undo": undo, "began": saga.started_at.timestamp()}
    error = None
    if row.abandoned is not None:
        failed = from_json(row.abandoned)
        error = failed.get("error")
        detail |= {"status": "failed", "message": failed.get("message")}
    elif row.result is not None:
        detail["result"] = from_json(row.result)
    return [SAGA_STEP, saga.id, saga.name, 0, 1, row.handled_at.timestamp(), None, error, detail]
