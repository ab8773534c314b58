"""Rows of dead letters: recorded once, found, counted, replayed through the outbox, put away.

Every function works in the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn

from sqlalchemy import ColumnElement, Row, delete, func, literal, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from store.cursors import decode_cursor, encode_cursor
from store.rowset import as_rows, hexed, rowset
from store.tables import dead_letters
from topology.duration import ago
from topology.errors import CursorInvalid, NotFound

DEAD: Final = "dead"
REPLAYED: Final = "replayed"
DISCARDED: Final = "discarded"
STATUSES: Final = (DEAD, REPLAYED, DISCARDED)

_DAY: Final = timedelta(hours=24)
CHUNK: Final = 500
"""Ids in one statement."""
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


_NEW: Final = tuple(field.name for field in fields(NewLetter))
_KEY: Final = ("message_key",)


@dataclass(frozen=True, slots=True)
class DeadLetterFilters:
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
    names = [*_NEW, "recorded_at", "status"]
    told = {"recorded_at": now, "status": DEAD}
    # In the order of their keys, so that two recorders that hold the same letters do not lock each other out.
    ordered = sorted(letters, key=lambda letter: letter.message_key)
    rows: list[dict[str, Any]] = [{name: getattr(letter, name) for name in _NEW} | told for letter in ordered]
    if connection.dialect.name != "postgresql":
        await connection.execute(sqlite_insert(dead_letters).on_conflict_do_nothing(index_elements=_KEY), rows)
        return
    for row in rows:
        row["body"] = hexed(row["body"])
    insertion = postgresql_insert(dead_letters).from_select(names, rowset(dead_letters, names))
    await connection.execute(insertion.on_conflict_do_nothing(index_elements=_KEY), {"rows": as_rows(rows)})


async def page(
    connection: AsyncConnection, filters: DeadLetterFilters, limit: int = 100, cursor: str | None = None
) -> DeadLetterPage:
    """The latest first. Raises CursorInvalid for a cursor of other filters, or none of ours.

    The ``since`` of the first page holds for the pages after it, whatever theirs is: "2h ago" has moved on by then.
    """
    listing = f"dead letters {json.dumps(asdict(filters) | {'since': None})}"
    place: list[ColumnElement[bool]] = []
    if cursor is not None:
        since, position = _position(decode_cursor(listing, cursor))
        if since is None and filters.since is not None:
            raise CursorInvalid("this cursor is of a listing without 'since': begin again without the cursor")
        filters = replace(filters, since=since)
        place.append(tuple_(_t.died_at, _t.id) < position)
    clauses = [*filters.clauses(), *place]
    found: list[DeadLetter] = []
    # One query for each status: every index has the status before the time.
    for status in STATUSES if filters.status is None else (filters.status,):
        query = select(dead_letters).where(_t.status == status, *clauses)
        query = query.order_by(_t.died_at.desc(), _t.id.desc()).limit(limit + 1)
        found += map(letter_of_row, (await connection.execute(query)).all())
    found.sort(key=lambda letter: (letter.died_at, letter.id), reverse=True)
    if len(found) <= limit:
        return DeadLetterPage(tuple(found), None)
    last, since = found[limit - 1], filters.since
    following = [last.died_at.isoformat(), last.id, since and since.isoformat()]
    return DeadLetterPage(tuple(found[:limit]), encode_cursor(listing, following))


def _position(position: list[Any]) -> tuple[datetime | None, Any]:
    try:
        died_at, row, since = position
        return (
            None if since is None else datetime.fromisoformat(since),
            tuple_(literal(datetime.fromisoformat(died_at), _t.died_at.type), literal(int(row), _t.id.type)),
        )
    except (TypeError, ValueError):
        raise CursorInvalid("this cursor is damaged: take it from 'next' of the page before") from None


async def get(connection: AsyncConnection, letter_id: int) -> DeadLetter:
    """One by its id. Raises NotFound."""
    row = (await connection.execute(select(dead_letters).where(_t.id == letter_id))).one_or_none()
    if row is None:
        _missing(letter_id)
    return letter_of_row(row)


async def statuses(connection: AsyncConnection, ids: Sequence[int]) -> dict[int, str]:
    """The status of each of ``ids``, in their order. Raises NotFound for one that is not there."""
    found: dict[int, str] = {}
    for start in range(0, len(ids), CHUNK):
        query = select(_t.id, _t.status).where(_t.id.in_(ids[start : start + CHUNK]))
        found.update((row.id, row.status) for row in await connection.execute(query))
    return {letter_id: found[letter_id] if letter_id in found else _missing(letter_id) for letter_id in ids}


def _missing(letter_id: int) -> NoReturn:
    raise NotFound(f"there is no dead letter {letter_id}: `hareline dlq list` shows the ids")


async def count(connection: AsyncConnection, filters: DeadLetterFilters, *, upto: int | None = None) -> int:
    """How many there are; none beyond ``upto`` are counted."""
    clauses = filters.clauses()
    if filters.status is not None:
        clauses.append(_t.status == filters.status)
    rows = select(_t.id).where(*clauses).limit(upto).subquery()
    return int((await connection.execute(select(func.count()).select_from(rows))).scalar_one())


async def died_within(connection: AsyncConnection, hours: float, now: datetime, *, upto: int | None = None) -> int:
    """How many died within the last ``hours``, whatever became of them since."""
    return await count(connection, DeadLetterFilters(since=ago("hours", hours * 3600, now), status=None), upto=upto)


async def latest_id(connection: AsyncConnection) -> int:
    """The highest id so far, 0 if there is none."""
    return int((await connection.execute(select(func.coalesce(func.max(_t.id), 0)))).scalar_one())


async def ids_after(connection: AsyncConnection, letter_id: int) -> list[int]:
    """Ids that are higher, in their order."""
    return list((await connection.execute(select(_t.id).where(_t.id > letter_id).order_by(_t.id))).scalars())


async def by_ids(connection: AsyncConnection, ids: Sequence[int]) -> list[DeadLetter]:
    """Those of ``ids`` that are there, in the order of their ids."""
    query = select(dead_letters).where(_t.id.in_(ids)).order_by(_t.id)
    return [letter_of_row(row) for row in await connection.execute(query)]


async def stats(connection: AsyncConnection, now: datetime) -> DeadLetterStats:
    """Counts by queue, by type, and of the last 24 hours."""
    query = select(_t.queue, _t.job_type, func.count(), func.min(_t.died_at)).where(_t.status == DEAD)
    rows = (await connection.execute(query.group_by(_t.queue, _t.job_type))).all()
    by_queue: dict[str, int] = {}
    by_type: dict[str, int] = {}
    for queue, job_type, number, _ in rows:
        by_queue[queue or ""] = by_queue.get(queue or "", 0) + number
        by_type[job_type] = by_type.get(job_type, 0) + number
    recent = await count(connection, DeadLetterFilters(since=now - _DAY))
    return DeadLetterStats(
        sum(by_type.values()), by_queue, by_type, recent, min((row[3] for row in rows), default=None)
    )


async def totals(connection: AsyncConnection, now: datetime) -> tuple[int, int]:
    """How many are dead, and how many of these died within the last 24 hours."""
    return await count(connection, DeadLetterFilters()), await count(connection, DeadLetterFilters(since=now - _DAY))


async def groups(connection: AsyncConnection, filters: DeadLetterFilters, limit: int = 100) -> list[DeadLetterGroup]:
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


async def discard(connection: AsyncConnection, ids: Sequence[int]) -> list[int]:
    """Puts the dead ones of ``ids`` away; returns which."""
    done: list[int] = []
    for start in range(0, len(ids), CHUNK):
        chosen = update(dead_letters).where(_t.id.in_(ids[start : start + CHUNK]), _t.status == DEAD)
        done += (await connection.execute(chosen.values(status=DISCARDED).returning(_t.id))).scalars()
    return done


async def clean(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Deletes up to ``limit`` letters that died before then, whatever their status; returns how many.

    One that is being replayed at this moment is left for the next time.
    """
    old = select(_t.id).where(_t.died_at < before).order_by(_t.died_at, _t.id).limit(limit)
    old = old.with_for_update(skip_locked=True)
    return (await connection.execute(delete(dead_letters).where(_t.id.in_(old)))).rowcount


def letter_of_row(row: Row[Any]) -> DeadLetter:
    """What a row of the table says."""
    values = dict(row._mapping)  # noqa: SLF001 - the public name of a Row's mapping
    del values["message_key"]
    body = bytes(values.pop("body"))
    return DeadLetter(type=values.pop("job_type"), group=values.pop("group_name"), body=body, **values)
