"""The job log's rows: reports merged into one row a job and one an attempt.

Merging is commutative and idempotent: reports that arrive twice or in any order leave the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Final

from sqlalchemy import ColumnElement, Table, Text, bindparam, case, collate, func, tuple_
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from store.rowset import as_rows, rowset
from store.tables import attempts, jobs
from topology.events import CANCELLED, DEAD, DONE, QUEUED, RETRYING, SNOOZED, STARTED

SCHEDULED: Final = "scheduled"
STATUSES: Final = (SCHEDULED, "queued", "running", "retrying", "done", "dead", "cancelled")

_EVENTS: Final = {
    QUEUED: (0, "queued"),
    STARTED: (1, "running"),
    SNOOZED: (1, SCHEDULED),
    RETRYING: (2, "retrying"),
    DONE: (3, "done"),
    DEAD: (3, "dead"),
    CANCELLED: (3, "cancelled"),
}
"""Phase within an attempt, and status."""
_ENDS: Final = 3
_LAST_ATTEMPT: Final = 2**24 - 1
_LAST_REPLAY: Final = 2**31 - 1
_LONGEST_NAME: Final = 255
"""As in AMQP. It also keeps rows within what PostgreSQL takes into an index."""
_LONGEST_MESSAGE: Final = 2000

# What the ruling report says goes together: it is copied as a whole, never mixed.
_RULED: Final = (
    "type", "status", "rank", "attempt", "due_at", "started_at", "finished_at", "duration", "error", "error_message",
    "updated_at",
)  # fmt: skip
_ACCEPTED: Final = ("accepted_at", "payload", "priority", "correlation_id")
_JOB_ORDER: Final = ("rank", "updated_at", "status", "type", "due_at", "duration", "error", "error_message")
_ATTEMPT_ORDER: Final = ("rank", "ended_at", "outcome", "duration", "error", "error_message")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Merged:
    """Reports merged in memory, ready to be merged into the tables. ``refused`` counts those that make no sense."""

    jobs: dict[str, dict[str, Any]]
    attempts: dict[tuple[str, int, int], dict[str, Any]]
    refused: int = 0

    @classmethod
    def empty(cls) -> Merged:
        """Nothing yet."""
        return cls({}, {})

    def add(self, events: Iterable[Any], groups: dict[str, str]) -> int:
        """Takes the event rows of one batch, refusing those that are none; returns how many it took."""
        taken = 0
        for event in events:
            try:
                self._take(event, groups)
            except (ValueError, TypeError, OverflowError):
                self.refused += 1
            else:
                taken += 1
        return taken

    def _take(self, event: Any, groups: dict[str, str]) -> None:
        name, job_id, job_type, replay, attempt, at, duration, error, detail = event
        phase, status = _EVENTS[name] if name in _EVENTS else _refuse(name)
        if not job_id or not isinstance(job_id, str) or not isinstance(job_type, str):
            _refuse(job_id)
        if max(len(job_id), len(job_type)) > _LONGEST_NAME:
            _refuse(job_id)
        replay, attempt = _count(replay, _LAST_REPLAY), _count(attempt, _LAST_ATTEMPT)
        moment = _moment(at)
        detail = detail if isinstance(detail, dict) else {}
        due = _moment(detail["due_at"]) if detail.get("due_at") is not None else None
        took = float(duration) if duration is not None and isfinite(duration) else None
        if name == QUEUED and due is not None and due > moment:
            status = SCHEDULED
        rank = replay * 2**32 + attempt * 2**8 + phase
        job_id = _clean(job_id)
        failure = {
            "error": _text(error, _LONGEST_NAME),
            "error_message": _text(detail.get("message"), _LONGEST_MESSAGE),
        }
        row = {
            "id": job_id,
            "type": _clean(job_type),
            "group_name": _text(groups.get(job_type), _LONGEST_NAME),
            "status": status,
            "rank": rank,
            "attempt": attempt,
            "seen_at": moment,
            "due_at": due,
            "started_at": moment if name == STARTED else moment - timedelta(seconds=took) if took is not None else None,
            "finished_at": moment if phase == _ENDS else None,
            "duration": took,
            **failure,
            "updated_at": moment,
            **_acceptance(name, moment, detail),
        }
        mine = self.jobs.get(job_id)
        self.jobs[job_id] = row if mine is None else _merge(mine, row)
        if name in {RETRYING, DONE, DEAD, CANCELLED}:
            key = (job_id, replay, attempt)
            ended = {
                "job_id": job_id, "replay": replay, "attempt": attempt, "outcome": status, "rank": rank,
                "ended_at": moment, "duration": took, **failure,
            }  # fmt: skip
            before = self.attempts.get(key)
            if before is None or _order(ended, _ATTEMPT_ORDER) > _order(before, _ATTEMPT_ORDER):
                self.attempts[key] = ended


def _refuse(value: object) -> Any:
    raise ValueError(f"{value!r} makes no sense here")


def _count(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        _refuse(value)
    return min(int(value), most)


def _moment(seconds: Any) -> datetime:
    return _EPOCH + timedelta(microseconds=round(float(seconds) * 1_000_000))


def _clean(value: str) -> str:
    # PostgreSQL has no NUL in a text.
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in value else value


def _text(value: Any, longest: int) -> str | None:
    return _clean(value[:longest]) if isinstance(value, str) else None


def _acceptance(name: str, moment: datetime, detail: dict[str, Any]) -> dict[str, Any]:
    if name != QUEUED:
        return dict.fromkeys(_ACCEPTED)
    priority = detail.get("priority")
    fits = isinstance(priority, int) and not isinstance(priority, bool) and 0 <= priority <= 255  # noqa: PLR2004 - AMQP
    return {
        "accepted_at": moment,
        "payload": _clean(detail["payload"]) if isinstance(detail.get("payload"), str) else None,
        "priority": priority if fits else None,
        "correlation_id": _text(detail.get("correlation_id"), _LONGEST_NAME),
    }


# -- which report rules: the same order in memory and in SQL -----------------------------------------------------------

_NOTHING: Final[dict[str, Any]] = {"duration": -1.0e300, "priority": -1, "due_at": _EPOCH, "accepted_at": _EPOCH}


def _order(row: dict[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(_NOTHING.get(name, "") if row[name] is None else row[name] for name in names)


def _merge(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    ruling = other if _order(other, _JOB_ORDER) > _order(mine, _JOB_ORDER) else mine
    merged = {name: ruling[name] for name in _RULED}
    told = [row for row in (mine, other) if row["accepted_at"] is not None]
    first = min(told, key=lambda row: _order(row, _ACCEPTED), default=mine)
    merged |= {name: first[name] for name in _ACCEPTED}
    merged["id"] = mine["id"]
    merged["group_name"] = max(mine["group_name"] or "", other["group_name"] or "") or None
    merged["seen_at"] = min(mine["seen_at"], other["seen_at"])
    return merged


def _sql_order(columns: Any, names: Sequence[str], table: Table, *, postgresql: bool) -> ColumnElement[Any]:
    parts: list[Any] = []
    for name in names:
        part: Any = columns[name]
        if table.c[name].nullable:
            part = func.coalesce(part, bindparam(None, _NOTHING.get(name, ""), type_=table.c[name].type))
        if postgresql and isinstance(table.c[name].type, Text):
            part = collate(part, "C")  # by code point, as Python and SQLite compare
        parts.append(part)
    return tuple_(*parts)


# -- into the tables ---------------------------------------------------------------------------------------------------


async def merge(connection: AsyncConnection, merged: Merged) -> None:
    """Merges into the tables, one statement each, rows in the order of their keys so that several never deadlock."""
    if merged.jobs:
        rows = [merged.jobs[key] for key in sorted(merged.jobs)]
        await _upsert(connection, jobs, rows, ["id"], _job_changes)
    if merged.attempts:
        ended = [merged.attempts[key] for key in sorted(merged.attempts)]
        await _upsert(connection, attempts, ended, ["job_id", "replay", "attempt"], _attempt_changes)


async def _upsert(
    connection: AsyncConnection, table: Table, rows: list[dict[str, Any]], key: list[str], changes: Any
) -> None:
    names = list(rows[0])
    if connection.dialect.name != "postgresql":
        plain = sqlite_insert(table)
        await connection.execute(
            plain.on_conflict_do_update(index_elements=key, set_=changes(plain.excluded, postgresql=False)), rows
        )
        return
    insertion = postgresql_insert(table).from_select(names, rowset(table, names))
    statement = insertion.on_conflict_do_update(index_elements=key, set_=changes(insertion.excluded, postgresql=True))
    await connection.execute(statement, {"rows": as_rows(rows)})


def _job_changes(excluded: Any, *, postgresql: bool) -> dict[str, Any]:
    def order(columns: Any, names: Sequence[str]) -> Any:
        return _sql_order(columns, names, jobs, postgresql=postgresql)

    rules = order(excluded, _JOB_ORDER) > order(jobs.c, _JOB_ORDER)
    first = excluded.accepted_at.is_not(None) & (
        jobs.c.accepted_at.is_(None) | (order(excluded, _ACCEPTED) < order(jobs.c, _ACCEPTED))
    )
    least, greatest = (func.least, func.greatest) if postgresql else (func.min, func.max)
    group, other = jobs.c.group_name, excluded.group_name
    return {
        **{name: case((rules, excluded[name]), else_=jobs.c[name]) for name in _RULED},
        **{name: case((first, excluded[name]), else_=jobs.c[name]) for name in _ACCEPTED},
        "seen_at": least(jobs.c.seen_at, excluded.seen_at),
        "group_name": greatest(
            collate(func.coalesce(group, other), "C") if postgresql else func.coalesce(group, other),
            func.coalesce(other, group),
        ),
    }


def _attempt_changes(excluded: Any, *, postgresql: bool) -> dict[str, Any]:
    newer = _sql_order(excluded, _ATTEMPT_ORDER, attempts, postgresql=postgresql)
    older = _sql_order(attempts.c, _ATTEMPT_ORDER, attempts, postgresql=postgresql)
    return {name: case((newer > older, excluded[name]), else_=attempts.c[name]) for name in _ATTEMPT_ORDER}
