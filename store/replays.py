"""Dead letters back into the outbox: the mark and the outbox row are one transaction, the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ARRAY, Text, cast, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.ext.asyncio import AsyncConnection

from store import outbox
from store.dead_letters import CHUNK, DEAD, REPLAYED, DeadLetter, DeadLetterFilters, letter_of_row
from store.tables import dead_letters
from store.tables import outbox as outbox_table
from topology.envelope import BROKER, FAILURE, REPLACES, REPLAY

ORIGIN: Final = "replay"
_PAST: Final = (*FAILURE, *BROKER)
_t: Final = dead_letters.c


async def replay(connection: AsyncConnection, ids: Sequence[int], now: datetime) -> list[int]:
    """Marks those of ``ids`` that are dead and puts their jobs into the outbox; returns which.

    Of two callers one gets a letter: the other waits for the first one's transaction, and then leaves it out.
    """
    done: list[int] = []
    for start in range(0, len(ids), CHUNK):
        chosen = update(dead_letters).where(_t.id.in_(ids[start : start + CHUNK]), _t.status == DEAD)
        marked = await connection.execute(chosen.values(_mark(now)).returning(dead_letters))
        letters = [letter_of_row(row) for row in marked]
        await outbox.add(connection, [_row(letter) for letter in letters])
        done += [letter.id for letter in letters]
    return done


async def replay_chunk(
    connection: AsyncConnection, filters: DeadLetterFilters, now: datetime, *, after: int, last: int, limit: int
) -> tuple[int, int | None]:
    """Replays up to ``limit`` of the dead ones with ids above ``after``, up to ``last``; returns (how many, last id).

    The id is None when there are no more. What another replay holds at this moment is left to it.
    """
    which = select(_t.id).where(_t.id > after, _t.id <= last, _t.status == DEAD, *filters.clauses())
    which = which.order_by(_t.id).limit(limit)
    if connection.dialect.name != "postgresql":
        ids = list((await connection.execute(which)).scalars())
        return len(await replay(connection, ids, now)), ids[-1] if ids else None
    chosen = which.with_for_update(skip_locked=True).cte("chosen")
    marked = update(dead_letters).where(_t.id.in_(select(chosen.c.id))).values(_mark(now))
    moved = marked.returning(dead_letters).cte("moved")
    headers = moved.c.headers.op("-")(cast(array(list(_PAST)), ARRAY(Text)))
    headers = headers.op("||")(func.jsonb_build_object(cast(REPLAY, Text), moved.c.replays))
    columns = {
        "job_id": moved.c.job_id,
        "job_type": moved.c.job_type,
        "group_name": moved.c.group_name,
        "body": moved.c.body,
        "priority": moved.c.priority,
        "correlation_id": moved.c.correlation_id,
        "headers": cast(headers, JSONB),
        "origin": literal(ORIGIN),
        "created_at": literal(now, _t.replayed_at.type),
    }
    issued = insert(outbox_table).from_select(list(columns), select(*columns.values()).order_by(moved.c.id))
    query = select(func.count(), func.max(moved.c.id)).add_cte(issued.cte("issued"))
    number, highest = (await connection.execute(query)).one()
    return number, highest


async def replace(
    connection: AsyncConnection, letter_id: int, body: bytes, job_id: str, now: datetime
) -> DeadLetter | None:
    """Marks the dead letter as replayed by the new job ``job_id`` with ``body``; None if it is not dead any more."""
    values = _mark(now) | {"replay_job_id": job_id}
    query = update(dead_letters).where(_t.id == letter_id, _t.status == DEAD).values(values)
    row = (await connection.execute(query.returning(dead_letters))).one_or_none()
    if row is None:
        return None
    letter = letter_of_row(row)
    headers = {name: value for name, value in letter.headers.items() if name not in {*_PAST, REPLAY}}
    await outbox.add(connection, [_row(letter, job_id, body, headers | {REPLACES: letter.job_id})])
    return letter


def _mark(now: datetime) -> dict[str, Any]:
    return {"status": REPLAYED, "replays": _t.replays + 1, "replayed_at": now, "replay_job_id": _t.job_id}


def _row(
    letter: DeadLetter, job_id: str | None = None, body: bytes | None = None, headers: Mapping[str, Any] | None = None
) -> outbox.OutboxRow:
    if headers is None:
        headers = {name: value for name, value in letter.headers.items() if name not in _PAST}
        headers = {**headers, REPLAY: letter.replays}
    return outbox.OutboxRow(
        job_id=job_id or letter.job_id,
        job_type=letter.type,
        body=letter.body if body is None else body,
        origin=ORIGIN,
        priority=letter.priority,
        correlation_id=letter.correlation_id,
        headers=headers,
        group_name=letter.group,
    )
