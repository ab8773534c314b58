"""Rows of dead letters: recorded once, found, counted, replayed through the outbox, put away.

Every function works in the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ARRAY, ColumnElement, Row, Text, cast, delete, func, insert, literal, select, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from store import outbox
from store.cursors import decode_cursor, encode_cursor
from store.tables import dead_letters
from store.tables import outbox as outbox_table
from topology.duration import ago
from topology.envelope import BROKER, FAILURE, REPLACES, REPLAY
from topology.errors import CursorInvalid, NotFound

DEAD: Final = "dead"
REPLAYED: Final = "replayed"
DISCARDED: Final = "discarded"
STATUSES: Final = (DEAD, REPLAYED, DISCARDED)
ORIGIN: Final = "replay"

_PAST: Final = (*FAILURE, *BROKER)
_CHUNK: Final = 500
_t: Final = dead_letters.c


@dataclass(frozen=True, slots=True)
class NewLetter:
    """A dead letter to be recorded; see `store.tables.dead_letters`. Texts hold no NUL, ``headers`` is plain JSON."""

    message_key: str
    job_id: str
    job_type: str
    group_name: str | None
    queue: str | None
    reason: str | None
    error: str | None
    message: str | None
    traceback: str | None
    attempts: int | None
    first_failed_at: datetime | None
    last_failed_at: datetime | None
    died_at: datetime
    body: bytes
    priority: int | None
    correlation_id: str | None
    content_type: str | None
    content_encoding: str | None
    headers: Mapping[str, Any]
    fingerprint: str
    replays: int
    replaces: str | None


@dataclass(frozen=True, slots=True)
class Filters:
    """Which dead letters; what is None does not matter. ``status`` None means all."""

    type: str | None = None
    error: str | None = None
    reason: str | None = None
    group: str | None = None
    fingerprint: str | None = None
    since: datetime | None = None
    status: str | None = DEAD

    def clauses(self) -> list[ColumnElement[bool]]:
        """All but the status, as conditions."""
        pairs = (
            (_t.job_type, self.type),
            (_t.error, self.error),
            (_t.reason, self.reason),
            (_t.group_name, self.group),
            (_t.fingerprint, self.fingerprint),
        )
        found = [column == value for column, value in pairs if value is not None]
        return found if self.since is None else [*found, _t.died_at >= self.since]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as it was when it was read. ``body`` is exactly what the message carried."""

    id: int
    job_id: str
    type: str
    group: str | None
    queue: str | None
    reason: str | None
    error: str | None
    message: str | None
    traceback: str | None
    attempts: int | None
    first_failed_at: datetime | None
    last_failed_at: datetime | None
    died_at: datetime
    recorded_at: datetime
    body: bytes
    priority: int | None
    correlation_id: str | None
    content_type: str | None
    content_encoding: str | None
    headers: Mapping[str, Any]
    fingerprint: str
    status: str
    replays: int
    replayed_at: datetime | None
    replay_job_id: str | None
    replaces: str | None

    @property
    def payload(self) -> Any:
        """The body as JSON; what is none is shown as text, bytes that are no UTF-8 as ``\\xNN``."""
        text = self.body.decode(errors="backslashreplace")
        try:
            return json.loads(text, parse_constant=_refused)
        except (ValueError, RecursionError):
            return text


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """``next`` is the cursor of the following page, None on the last."""

    items: tuple[DeadLetter, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class DeadLetterStats:
    """Counts of what is dead, neither replayed nor discarded."""

    total: int
    by_queue: Mapping[str, int]
    by_type: Mapping[str, int]
    last_24h: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """Dead letters of one job type that died of the same. ``message`` is of the latest recorded, ``example`` its id."""

    fingerprint: str
    type: str
    error: str | None
    count: int
    first_died_at: datetime
    last_died_at: datetime
    example: int
    message: str | None


async def record(connection: AsyncConnection, letters: Sequence[NewLetter], now: datetime) -> None:
    """Adds ``letters``; one whose ``message_key`` is there already changes nothing."""
    if not letters:
        return
    kind = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    statement = kind(dead_letters).on_conflict_do_nothing(index_elements=["message_key"])
    # In the order of their keys, so that two recorders that hold the same letters do not lock each other out.
    rows = [asdict(letter) | {"recorded_at": now, "status": DEAD} for letter in letters]
    await connection.execute(statement, sorted(rows, key=lambda row: str(row["message_key"])))


async def page(
    connection: AsyncConnection, filters: Filters, limit: int = 100, cursor: str | None = None
) -> DeadLetterPage:
    """The latest first. Raises CursorInvalid for a cursor of other filters, or none of ours."""
    listing = f"dead letters {json.dumps(asdict(filters), default=str)}"
    clauses = filters.clauses()
    if cursor is not None:
        clauses.append(tuple_(_t.died_at, _t.id) < _position(listing, cursor))
    found: list[DeadLetter] = []
    # One query for each status: every index has the status before the time.
    for status in STATUSES if filters.status is None else (filters.status,):
        query = select(dead_letters).where(_t.status == status, *clauses)
        query = query.order_by(_t.died_at.desc(), _t.id.desc()).limit(limit + 1)
        found += map(_letter, (await connection.execute(query)).all())
    found.sort(key=lambda letter: (letter.died_at, letter.id), reverse=True)
    if len(found) <= limit:
        return DeadLetterPage(tuple(found), None)
    last = found[limit - 1]
    return DeadLetterPage(tuple(found[:limit]), encode_cursor(listing, [last.died_at.isoformat(), last.id]))


def _position(listing: str, cursor: str) -> Any:
    position = decode_cursor(listing, cursor)
    try:
        died_at, row = position
        return tuple_(literal(datetime.fromisoformat(died_at), _t.died_at.type), literal(int(row), _t.id.type))
    except (TypeError, ValueError):
        raise CursorInvalid("this cursor is damaged: take it from 'next' of the page before") from None


async def get(connection: AsyncConnection, letter_id: int) -> DeadLetter:
    """One by its id. Raises NotFound."""
    row = (await connection.execute(select(dead_letters).where(_t.id == letter_id))).one_or_none()
    if row is None:
        raise NotFound(f"there is no dead letter {letter_id}: `hareline dlq list` shows the ids")
    return _letter(row)


async def count(connection: AsyncConnection, filters: Filters, *, upto: int | None = None) -> int:
    """How many there are; none beyond ``upto`` are counted."""
    clauses = filters.clauses()
    if filters.status is not None:
        clauses.append(_t.status == filters.status)
    rows = select(_t.id).where(*clauses).limit(upto).subquery()
    return int((await connection.execute(select(func.count()).select_from(rows))).scalar_one())


async def died_within(connection: AsyncConnection, hours: float, now: datetime, *, upto: int | None = None) -> int:
    """How many died within the last ``hours``, whatever became of them since."""
    return await count(connection, Filters(since=ago("hours", hours * 3600, now), status=None), upto=upto)


async def latest_id(connection: AsyncConnection) -> int:
    """The highest id so far, 0 if there is none."""
    return int((await connection.execute(select(func.coalesce(func.max(_t.id), 0)))).scalar_one())


async def recorded_after(connection: AsyncConnection, letter_id: int, limit: int = 1000) -> list[DeadLetter]:
    """Those with higher ids, in the order of their ids."""
    query = select(dead_letters).where(_t.id > letter_id).order_by(_t.id).limit(limit)
    return [_letter(row) for row in await connection.execute(query)]


async def stats(connection: AsyncConnection, now: datetime) -> DeadLetterStats:
    """Counts by queue, by type, and of the last 24 hours."""
    query = select(_t.queue, _t.job_type, func.count(), func.min(_t.died_at)).where(_t.status == DEAD)
    rows = (await connection.execute(query.group_by(_t.queue, _t.job_type))).all()
    by_queue: dict[str, int] = {}
    by_type: dict[str, int] = {}
    for queue, job_type, number, _ in rows:
        by_queue[queue or ""] = by_queue.get(queue or "", 0) + number
        by_type[job_type] = by_type.get(job_type, 0) + number
    recent = await count(connection, Filters(since=now - timedelta(hours=24)))
    return DeadLetterStats(
        sum(by_type.values()), by_queue, by_type, recent, min((row[3] for row in rows), default=None)
    )


async def groups(connection: AsyncConnection, filters: Filters, limit: int = 100) -> list[DeadLetterGroup]:
    """By job type and exception, the largest first."""
    clauses = filters.clauses()
    if filters.status is not None:
        clauses.append(_t.status == filters.status)
    number = func.count().label("number")
    kinds = select(
        _t.fingerprint, _t.job_type, _t.error, number, func.min(_t.died_at), func.max(_t.died_at), func.max(_t.id)
    )
    kinds = kinds.where(*clauses).group_by(_t.fingerprint, _t.job_type, _t.error).order_by(number.desc()).limit(limit)
    rows = (await connection.execute(kinds)).all()
    examples = select(_t.id, _t.message).where(_t.id.in_([row[6] for row in rows]))
    messages = {row[0]: row[1] for row in (await connection.execute(examples)).all()}
    return [
        DeadLetterGroup(key, job_type, error, number_of, first, last, example, messages.get(example))
        for key, job_type, error, number_of, first, last, example in rows
    ]


async def replay(connection: AsyncConnection, ids: Sequence[int], now: datetime) -> list[int]:
    """Marks those of ``ids`` that are dead and puts their jobs into the outbox; returns which.

    Of two callers one gets a letter: the other waits for the first one's transaction, and then leaves it out.
    """
    done: list[int] = []
    for start in range(0, len(ids), _CHUNK):
        chosen = update(dead_letters).where(_t.id.in_(ids[start : start + _CHUNK]), _t.status == DEAD)
        letters = [_letter(row) for row in await connection.execute(chosen.values(_mark(now)).returning(dead_letters))]
        await outbox.add(connection, [_row(letter) for letter in letters])
        done += [letter.id for letter in letters]
    return done


async def replay_chunk(
    connection: AsyncConnection, filters: Filters, now: datetime, *, after: int, last: int, limit: int
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
    letter = _letter(row)
    headers = {name: value for name, value in letter.headers.items() if name not in {*_PAST, REPLAY}}
    await outbox.add(connection, [_row(letter, job_id, body, headers | {REPLACES: letter.job_id})])
    return letter


async def discard(connection: AsyncConnection, ids: Sequence[int]) -> list[int]:
    """Puts the dead ones of ``ids`` away; returns which."""
    done: list[int] = []
    for start in range(0, len(ids), _CHUNK):
        chosen = update(dead_letters).where(_t.id.in_(ids[start : start + _CHUNK]), _t.status == DEAD)
        done += (await connection.execute(chosen.values(status=DISCARDED).returning(_t.id))).scalars()
    return done


async def clean(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Deletes up to ``limit`` letters that died before then, whatever their status; returns how many."""
    old = select(_t.id).where(_t.died_at < before).order_by(_t.died_at, _t.id).limit(limit)
    return (await connection.execute(delete(dead_letters).where(_t.id.in_(old)))).rowcount


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


def _letter(row: Row[Any]) -> DeadLetter:
    values = dict(row._mapping)  # noqa: SLF001 - the public name of a Row's mapping
    del values["message_key"]
    body = bytes(values.pop("body"))
    return DeadLetter(type=values.pop("job_type"), group=values.pop("group_name"), body=body, **values)
