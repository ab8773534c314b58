"""The form of a batch of reports: see docs/reference/messages.md. `consumers.report_batch` reads it.

What happens to every job is told in columns, since that costs both sides, and the broker, a fraction of an object for
each; whatever is rare is a row. Payloads follow as they are: JSON in JSON would be written twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic_core import to_json

VERSION: Final = 1

DoneRow = tuple[str, str, float, float]
"""Job type, job id, Unix seconds of the end of its first run, seconds that it took."""

Row = tuple[str, str, str, int, int, float, float | None, str | None, Mapping[str, Any] | None]
"""A `JobEvent`, or the same as a plain tuple."""


class QueuedRow(NamedTuple):
    """A job that was accepted: its payload as it is, None where it is not told."""

    type: str
    id: str
    at: float
    body: bytes | None
    priority: int | None = None
    due_at: float | None = None
    correlation_id: str | None = None
    replay: int | None = None


@dataclass(slots=True)
class Batch:
    """What one message tells: accepted jobs, first runs that went well, and any other events."""

    queued: Sequence[tuple[Any, ...]] = ()
    done: Sequence[DoneRow] = ()
    events: Sequence[Row] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.queued) + len(self.done) + len(self.events)

    def types(self) -> set[str]:
        """The names of its job types."""
        names = {row[0] for row in self.queued}
        names.update([row[0] for row in self.done])
        names.update([row[2] for row in self.events])
        return names

    def without_nonsense(self) -> Batch:
        """Without rows that cannot be written: text that is no Unicode, from whoever wrote the message."""
        return Batch(
            [row for row in self.queued if _can_be_written((*row[:3], *row[4:]))],
            [row for row in self.done if _can_be_written(row)],
            [row for row in self.events if _can_be_written(tuple(row))],
        )


def encoded(head: Mapping[str, Any], batch: Batch) -> bytes:
    """The message body. Raises ValueError for text that is no Unicode."""
    queued, payloads = _queued_columns(batch.queued)
    # As plain tuples: pydantic takes three times as long over named ones.
    told = {"v": VERSION, **head, "queued": queued, "done": _done_columns(batch.done)}
    line = to_json(told | {"events": list(map(tuple, batch.events))}, inf_nan_mode="null")
    return b"\n".join((line, b"".join(payloads))) if payloads else line


def _queued_columns(rows: Sequence[tuple[Any, ...]]) -> tuple[dict[str, dict[str, Any]], list[bytes]]:
    columns: dict[str, dict[str, Any]] = {}
    payloads: list[bytes] = []
    for name, same in _by_type(rows):
        _, ids, times, bodies, *rest = zip(*same, strict=True)
        told = [body for body in bodies if body is not None]
        payloads += told
        sizes = map(len, told) if len(told) == len(bodies) else [None if b is None else len(b) for b in bodies]
        columns[name] = {"id": ids, "at": times, "size": list(sizes)}
        for field_name, values in zip(QueuedRow._fields[4:], rest, strict=True):
            if values.count(None) < len(values):
                columns[name][field_name] = values
    return columns, payloads


def _done_columns(rows: Sequence[DoneRow]) -> dict[str, dict[str, Any]]:
    columns = {}
    for name, same in _by_type(rows):
        _, ids, times, durations = zip(*same, strict=True)
        columns[name] = {"id": ids, "at": times, "duration": durations}
    return columns


def _by_type(rows: Sequence[tuple[Any, ...]]) -> Iterable[tuple[str, Sequence[tuple[Any, ...]]]]:
    names = {row[0] for row in rows}
    if len(names) == 1:
        return [(names.pop(), rows)]
    sorted_out: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        sorted_out[row[0]].append(row)
    return sorted_out.items()


def _can_be_written(row: tuple[Any, ...]) -> bool:
    try:
        to_json(row, inf_nan_mode="null")
    except ValueError:
        return False
    return True
