"""A batch of reports as it comes from the broker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json

from store.reporters import Heading
from topology.events import DONE, QUEUED

_VERSION: Final = 1
_OPTIONAL: Final = ("priority", "due_at", "correlation_id", "replay")
_LARGEST: Final = 2**62
_LONGEST_NAME: Final = 200


class NoBatch(Exception):
    """A message that cannot be understood as a batch; the text says why."""


@dataclass(frozen=True, slots=True)
class ReportBatch:
    """``events`` are not looked at yet: one that makes no sense is refused alone. ``sent_at`` is Unix seconds, or 0.

    ``sagas`` are those of them that are news of sagas.
    """

    heading: Heading
    sent_at: float
    groups: dict[str, str]
    events: list[Any]
    sagas: list[Any]

    def __len__(self) -> int:
        """How many events it holds."""
        return len(self.events) + len(self.sagas)


def read_batch(body: bytes) -> ReportBatch:
    """Understands a message body. Raises NoBatch."""
    line, _, payloads = body.partition(b"\n")
    try:
        value = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise NoBatch(f"it is not JSON: {error}") from None
    if not isinstance(value, dict) or value.get("v") != _VERSION:
        raise NoBatch("it is of no version that is understood here")
    groups, reporter = value.get("groups") or {}, value.get("reporter")
    events, done, queued = value.get("events") or [], value.get("done") or {}, value.get("queued") or {}
    if not all(isinstance(part, dict) for part in (groups, done, queued)) or not isinstance(events, list):
        raise NoBatch("it has no list of events")
    if not isinstance(reporter, str) or not 0 < len(reporter) <= _LONGEST_NAME or "\0" in reporter:
        raise NoBatch("it does not say who sent it")
    heading = Heading(reporter, _number(value.get("seq"), 1), _number(value.get("dropped", 0), 0))
    at = value.get("at")
    sent_at = float(at) if isinstance(at, int | float) and not isinstance(at, bool) else 0.0
    sagas = [event for event in events if _is_of_a_saga(event)]
    others = [event for event in events if not _is_of_a_saga(event)] if sagas else events
    return ReportBatch(heading, sent_at, groups, [*_queued(queued, payloads), *_done(done), *others], sagas)


def _is_of_a_saga(event: Any) -> bool:
    return isinstance(event, list) and bool(event) and isinstance(event[0], str) and event[0].startswith("saga.")


def _done(told: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, columns in told.items():
        ids, times, durations = _columns(columns, ("id", "at", "duration"))
        for job_id, at, duration in zip(ids, times, durations, strict=True):
            yield DONE, job_id, name, 0, 1, at, duration, None, None


def _queued(told: dict[str, Any], payloads: bytes) -> Iterator[tuple[Any, ...]]:
    place = 0
    for name, columns in told.items():
        optional = [key for key in _OPTIONAL if isinstance(columns, dict) and columns.get(key) is not None]
        ids, times, sizes, *rest = _columns(columns, ("id", "at", "size", *optional))
        others: Iterable[tuple[Any, ...]] = zip(*rest, strict=True) if rest else ((),) * len(ids)
        for job_id, at, size, values in zip(ids, times, sizes, others, strict=True):
            detail = {key: value for key, value in zip(optional, values, strict=True) if value is not None}
            replay = detail.pop("replay", 0)
            if size is not None:
                end = place + _number(size, 0)
                detail["payload"] = payloads[place:end].decode(errors="replace")
                place = end
            yield QUEUED, job_id, name, replay, 0, at, None, None, detail or None
    if place != len(payloads):
        raise NoBatch(f"its payloads have {len(payloads)} bytes, though it says {place}")


def _columns(columns: Any, names: Sequence[str]) -> list[list[Any]]:
    """The columns of these names, which must be equally long."""
    found = [columns.get(name) for name in names] if isinstance(columns, dict) else [None]
    if not all(isinstance(column, list) for column in found) or len({len(column or ()) for column in found}) != 1:
        raise NoBatch("its columns do not fit together")
    return [column for column in found if column is not None]


def _number(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _LARGEST:
        raise NoBatch(f"it counts with {value!r}")
    return int(value)
