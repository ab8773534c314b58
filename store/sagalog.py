"""The saga log's rows: news of sagas merged into one row a saga and one for each step and undo that ended.

Merging is idempotent, and news may come in any order: what a saga's status is follows from all its rows together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic_core import from_json, to_json
from sqlalchemy import case, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from store.engine import POSTGRESQL
from store.tables import saga_steps, sagas
from topology.events import SAGA_STARTED, SAGA_STEP, SAGA_TURNED
from topology.slip import job_id

RUNNING: Final = "running"
COMPENSATING: Final = "compensating"
COMPLETED: Final = "completed"
COMPENSATED: Final = "compensated"
STUCK: Final = "stuck"
STATUSES: Final = (RUNNING, COMPENSATING, COMPLETED, COMPENSATED, STUCK)
ENDED: Final = (COMPLETED, COMPENSATED)

NEWS: Final = frozenset({SAGA_STARTED, SAGA_STEP, SAGA_TURNED})
DONE: Final = "done"
_STEP_STATUSES: Final = (DONE, "failed", "dead")
_ORDER: Final = ("status", "ended_at")
"""Which of two reports of a step rules: done is more than dead, as after a replay; failed, once decided, is final."""
_LONGEST: Final = 255
_LONGEST_MESSAGE: Final = 2000
_LARGEST: Final = 2**31 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CHUNK: Final = 500


def status_of(itinerary: str | None, undos: str | None, steps: Mapping[tuple[str, bool], str]) -> str:
    """The status of a saga. ``steps`` are the statuses of (step, whether its undo) that are known to have ended.

    News of any step may be lost with a worker that was killed: later steps tell that the earlier ones are done.
    ``undos`` is the JSON list of what is to be undone, once the saga has turned round. Stuck is one that waits in the
    dead-letter queue for a person: with an undo, or with a step that killed its workers too fast to be undone. Pure.
    """
    if "dead" in steps.values():
        return STUCK
    places = [] if itinerary is None else places_of(itinerary)
    if undos is not None:
        planned = from_json(undos)
    elif any(undo or status == "failed" for (_, undo), status in steps.items()):
        # The news that it turned round were lost with a worker. Undos end with the first step that has one.
        planned = [step for step, _, undo in places if undo is not None][:1]
    else:
        last = [step for step, _, _ in places if place_of(step)[0] == place_of(places[-1][0])[0]]
        return COMPLETED if places and all(steps.get((step, False)) == "done" for step in last) else RUNNING
    # One after the other: when the last is done, so are those before it, whether or not that was heard.
    return COMPENSATED if not planned or steps.get((planned[-1], True)) == "done" else COMPENSATING


def places_of(itinerary: str) -> list[tuple[str, str, str | None]]:
    """(Step, its job type, its undo's) of an itinerary, in the order in which they are done."""
    return [
        (f"{stage}.{number}", branch[0], branch[1])
        for stage, branches in enumerate(from_json(itinerary))
        for number, branch in enumerate(branches)
    ]


@dataclass(slots=True)
class SagaNews:
    """News of sagas merged in memory. ``refused`` counts those that make no sense."""

    sagas: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: dict[tuple[str, str, bool], dict[str, Any]] = field(default_factory=dict)
    refused: int = 0

    def add(self, events: Iterable[Any]) -> int:
        """Takes rows of events whose names are in `NEWS`; returns how many it took."""
        taken = 0
        for event in events:
            try:
                self._take(event)
            except (ValueError, TypeError, OverflowError, KeyError, AttributeError):
                self.refused += 1
            else:
                taken += 1
        return taken

    def _take(self, event: Any) -> None:
        name, saga_id, saga_name, replay, attempt, at, duration, error, detail = event
        moment = _moment(at)
        began = moment if detail.get("began") is None else _moment(detail["began"])
        row = self.sagas.setdefault(_text(saga_id), _blank(_text(saga_id), _text(saga_name), began))
        row["started_at"] = min(row["started_at"], began)
        row["updated_at"] = max(row["updated_at"], moment)
        itinerary = detail.get("itinerary")
        if itinerary is not None:
            places_of(itinerary)
            row["itinerary"] = itinerary
        if name == SAGA_STARTED:
            row["deadline"] = None if detail.get("deadline") is None else _moment(detail["deadline"])
            row["payload"] = _optional(detail.get("payload"), None)
        elif name == SAGA_TURNED:
            row["undos"] = to_json([_text(step) for step in detail["undos"]]).decode()
            row |= {"failed_step": _text(detail["step"]), "error": _optional(error, _LONGEST)}
            row["error_message"] = _optional(detail.get("message"), _LONGEST_MESSAGE)
        else:
            self._take_step(row["id"], (replay, attempt, moment, duration, error), detail)

    def _take_step(self, saga_id: str, run: tuple[Any, ...], detail: Mapping[str, Any]) -> None:
        replay, attempt, moment, duration, error = run
        step, undo, status = _text(detail["step"]), detail.get("undo") is True, detail.get("status", "done")
        if status not in _STEP_STATUSES:
            raise ValueError(status)
        job = _text(detail.get("job_id") or job_id(saga_id, place_of(step), undo))
        result = None if "result" not in detail else to_json(detail["result"]).decode()
        row = {
            "saga_id": saga_id, "step": step, "undo": int(undo), "job_id": job,
            "job_type": _text(detail["type"]), "status": status, "replay": _count(replay),
            "attempt": _count(attempt), "result": result,
            "error": _optional(error, _LONGEST), "error_message": _optional(detail.get("message"), _LONGEST_MESSAGE),
            "duration": None if duration is None else float(duration), "ended_at": moment,
        }  # fmt: skip
        key = (saga_id, step, undo)
        before = self.steps.get(key)
        if before is None or _rank(row) > _rank(before):
            self.steps[key] = row


def place_of(step: str) -> tuple[int, int]:
    """Stage and branch of a step. Raises ValueError."""
    stage, branch = map(int, step.split("."))
    return stage, branch


def _rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _ORDER)


def _blank(saga_id: str, name: str, began: datetime) -> dict[str, Any]:
    told = dict.fromkeys(("itinerary", "payload", "deadline", "undos", "failed_step", "error", "error_message"))
    return {"id": saga_id, "name": name, "status": RUNNING, "started_at": began, "updated_at": began, **told}


def _moment(seconds: Any) -> datetime:
    return _EPOCH + timedelta(microseconds=round(float(seconds) * 1_000_000))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST or "\0" in value:
        raise ValueError(f"{value!r} is no name")
    return value


def _optional(value: Any, longest: int | None) -> str | None:
    return value[:longest].replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else None


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return min(value, _LARGEST)


# -- into the tables ---------------------------------------------------------------------------------------------------


async def merge(connection: AsyncConnection, news: SagaNews) -> None:
    """Merges into the tables, and finds what became of each saga. Rows go in the order of their keys."""
    if not news.sagas:
        return
    make = postgresql_insert if connection.dialect.name == POSTGRESQL else sqlite_insert
    plain: Any = make(sagas)
    told = ("itinerary", "payload", "deadline", "undos", "failed_step", "error", "error_message")
    postgresql = connection.dialect.name == POSTGRESQL
    least, greatest = (func.least, func.greatest) if postgresql else (func.min, func.max)
    changes: dict[str, Any] = {name: func.coalesce(sagas.c[name], plain.excluded[name]) for name in told}
    changes["started_at"] = least(sagas.c.started_at, plain.excluded.started_at)
    changes["updated_at"] = greatest(sagas.c.updated_at, plain.excluded.updated_at)
    # These rows are locked from here on: of two recorders the later one sees the steps of the earlier.
    rows = [news.sagas[key] for key in sorted(news.sagas)]
    await connection.execute(plain.on_conflict_do_update(index_elements=["id"], set_=changes), rows)
    if news.steps:
        await _merge_steps(connection, make, [news.steps[key] for key in sorted(news.steps)])
    ids = sorted(news.sagas)
    for start in range(0, len(ids), _CHUNK):
        await _find_status(connection, ids[start : start + _CHUNK])


async def _merge_steps(connection: AsyncConnection, make: Any, rows: Sequence[dict[str, Any]]) -> None:
    plain: Any = make(saga_steps)
    newer = tuple_(*(plain.excluded[name] for name in _ORDER)) > tuple_(*(saga_steps.c[name] for name in _ORDER))
    kept = {"saga_id", "step", "undo"}
    changes = {c.name: case((newer, plain.excluded[c.name]), else_=c) for c in saga_steps.c if c.name not in kept}
    await connection.execute(
        plain.on_conflict_do_update(index_elements=["saga_id", "step", "undo"], set_=changes), rows
    )


async def _find_status(connection: AsyncConnection, ids: Sequence[str]) -> None:
    columns = (sagas.c.id, sagas.c.itinerary, sagas.c.undos, sagas.c.updated_at)
    found = (await connection.execute(select(*columns).where(sagas.c.id.in_(ids)))).all()
    steps: dict[str, dict[tuple[str, bool], str]] = {saga_id: {} for saga_id in ids}
    ended = select(saga_steps.c.saga_id, saga_steps.c.step, saga_steps.c.undo, saga_steps.c.status)
    for saga_id, step, undo, status in (await connection.execute(ended.where(saga_steps.c.saga_id.in_(ids)))).all():
        steps[saga_id][step, bool(undo)] = status
    for row in found:
        status = status_of(row.itinerary, row.undos, steps[row.id])
        finished = row.updated_at if status in ENDED else None
        change = update(sagas).where(sagas.c.id == row.id, sagas.c.status != status)
        await connection.execute(change.values(status=status, finished_at=finished))
