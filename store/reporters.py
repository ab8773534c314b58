"""What is known of the processes that report: which of their batches arrived, so that losses can be told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from store.tables import reporters

_GAPS: Final = 200
"""Gaps kept for each reporter. Of more the oldest are closed: what was missing there counts as lost for good."""


@dataclass(frozen=True, slots=True)
class Heading:
    """Of one batch: who sent it, its number from 1, and how many events its process had given up by then."""

    reporter: str
    seq: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Losses:
    """``missing`` batches were sent and have not arrived (or not yet); ``dropped`` events were never sent."""

    missing: int
    dropped: int


async def note(connection: AsyncConnection, headings: Sequence[Heading], now: datetime) -> None:
    """Counts batches as arrived. One that arrives twice counts once. Do it last: it locks the reporters' rows."""
    by_reporter: dict[str, list[Heading]] = defaultdict(list)
    for heading in headings:
        by_reporter[heading.reporter].append(heading)
    if not by_reporter:
        return
    names = sorted(by_reporter)
    insertion = (postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert)(reporters)
    fresh = [{"id": name, "highest": 0, "received": 0, "dropped": 0, "ranges": [], "seen_at": now} for name in names]
    await connection.execute(insertion.on_conflict_do_nothing(), fresh)
    mine = select(reporters).where(reporters.c.id.in_(names)).order_by(reporters.c.id).with_for_update()
    changes = []
    for row in (await connection.execute(mine)).all():
        told = by_reporter[row.id]
        ranges, added = with_numbers(row.ranges, {heading.seq for heading in told})
        changes.append({
            "key": row.id,
            "highest": max(row.highest, *(heading.seq for heading in told)),
            "received": row.received + added,
            "dropped": max(row.dropped, *(heading.dropped for heading in told)),
            "ranges": ranges,
            "seen_at": max(row.seen_at, now),
        })  # fmt: skip
    await connection.execute(update(reporters).where(reporters.c.id == bindparam("key")), changes)


async def losses(connection: AsyncConnection) -> Losses:
    """Of all reporters that are remembered."""
    missing, dropped = func.sum(reporters.c.highest - reporters.c.received), func.sum(reporters.c.dropped)
    row = (await connection.execute(select(missing, dropped))).one()
    return Losses(int(row[0] or 0), int(row[1] or 0))


def with_numbers(ranges: list[Any], numbers: Iterable[int]) -> tuple[list[list[int]], int]:
    """``ranges`` (pairs of first and last, sorted) with ``numbers`` in them, and how many of those are new."""
    new = [n for n in sorted(set(numbers)) if not any(first <= n <= last for first, last in ranges)]
    joined: list[list[int]] = []
    for first, last in sorted([*([a, b] for a, b in ranges), *([n, n] for n in new)]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], last)
        else:
            joined.append([first, last])
    if len(joined) > _GAPS:
        surplus = len(joined) - _GAPS
        joined[: surplus + 1] = [[joined[0][0], joined[surplus][1]]]
    return joined, len(new)
