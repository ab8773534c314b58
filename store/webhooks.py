"""Webhook deliveries: the key, the fingerprint and the outbox row commit together, or none of them does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import Table, insert, select, tuple_
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from store.engine import POSTGRESQL
from store.outbox import OutboxRow, values_of
from store.tables import outbox, webhooks
from topology.errors import NotFound

RETENTION: Final = 7 * 86_400.0
"""Seconds that a key is remembered: senders give up repeating after three days or so."""

Fate = Literal["new", "repeat", "conflict"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A verified delivery, and the outbox rows that it becomes if its key is new for its source.

    ``started_id`` and ``started_type`` are the id and type of the job that it starts, or the id and name of the saga;
    only a saga that begins with parallel steps has several rows.
    """

    webhook_id: str
    source: str
    idempotency_key: str
    fingerprint: str
    event: str | None
    started_id: str
    started_type: str
    rows: tuple[OutboxRow, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of an arrival. ``webhook_id`` is the first one's where it is a repeat.

    "conflict": the key is known, and came with another fingerprint.
    """

    webhook_id: str
    fate: Fate


@dataclass(frozen=True, slots=True)
class WebhookRecord:
    """A delivery that was accepted. Times are aware, in UTC.

    ``job_id`` and ``job_type`` are those of the job that it started, or the id and name of the saga.
    """

    webhook_id: str
    source: str
    event: str | None
    job_id: str
    job_type: str
    received_at: datetime


async def accept(
    connection: AsyncConnection, arrivals: Sequence[Arrival], now: datetime, retention: float = RETENTION
) -> list[Kept]:
    """Writes in the caller's transaction what is new, and tells the fate of each, in order.

    Of several with one key, here or in other transactions, one is new. A transaction elsewhere that has written the
    key and is not decided is waited for. ``retention`` is seconds; a key that is older is new again.
    """
    firsts: dict[tuple[str, str], Arrival] = {}
    for arrival in arrivals:
        firsts.setdefault((arrival.source, arrival.idempotency_key), arrival)
    # In the same order for everybody: two transactions that wait for each other's keys would be a deadlock.
    ordered = [firsts[key] for key in sorted(firsts)]
    new = await _claim(connection, ordered, now, retention)
    rows = [values_of(row) for arrival in ordered if arrival.webhook_id in new for row in arrival.rows]
    if rows:
        await connection.execute(insert(outbox), rows)
    known = {key: (first.webhook_id, first.fingerprint) for key, first in firsts.items() if first.webhook_id in new}
    known |= await _stored(connection, [key for key in firsts if key not in known])
    return [_fate(arrival, *known[arrival.source, arrival.idempotency_key], new) for arrival in arrivals]


async def accept_new(
    connection: AsyncConnection, arrivals: Sequence[Arrival], now: datetime, retention: float = RETENTION
) -> set[str]:
    """Writes what is new in one statement, and returns the webhook ids of that. PostgreSQL alone, and a row for each.

    `accept` is for the others. The same holds for both; but where ``connection`` commits each statement, what is
    returned here is committed, after one round trip instead of four.
    """
    firsts: dict[tuple[str, str], Arrival] = {}
    for arrival in arrivals:
        firsts.setdefault((arrival.source, arrival.idempotency_key), arrival)
    given = [firsts[key] for key in sorted(firsts)]  # in the order that `accept` has: see there
    arrays = [[getattr(arrival, name) for arrival in given] for name in _OF_ARRIVAL]
    arrays += [[getattr(arrival.rows[0], name) for arrival in given] for name in _OF_ROW]
    arrays += [[_as_json(arrival.rows[0].headers) for arrival in given]]
    times = (now, now + timedelta(seconds=retention))
    result = await connection.exec_driver_sql(_ACCEPT_NEW, (*arrays, *times))
    return set(result.scalars())


async def find(connection: AsyncConnection, source: str, webhook_id: str) -> WebhookRecord:
    """A delivery by its id. Raises NotFound."""
    names = WebhookRecord.__dataclass_fields__
    mine = select(*(webhooks.c[name] for name in names)).where(
        webhooks.c.webhook_id == webhook_id, webhooks.c.source == source
    )
    row = (await connection.execute(mine)).one_or_none()
    if row is None:
        raise NotFound(f"no webhook {webhook_id} of '{source}' is known, or its retention is over")
    return WebhookRecord(**row._mapping)  # noqa: SLF001 - the documented way to a row as a mapping


def _fate(arrival: Arrival, webhook_id: str, fingerprint: str, new: set[str]) -> Kept:
    if arrival.webhook_id in new:
        return Kept(webhook_id, "new")
    return Kept(webhook_id, "repeat" if arrival.fingerprint == fingerprint else "conflict")


async def _claim(connection: AsyncConnection, arrivals: list[Arrival], now: datetime, retention: float) -> set[str]:
    """The webhook ids of those whose key is theirs now."""
    if not arrivals:
        return set()
    make: Any = postgresql_insert if connection.dialect.name == POSTGRESQL else sqlite_insert
    statement = make(webhooks).values([_values(arrival, now, retention) for arrival in arrivals])
    key = (webhooks.c.source, webhooks.c.idempotency_key)
    renewed = {column.name: statement.excluded[column.name] for column in webhooks.c if column not in key}
    statement = statement.on_conflict_do_update(index_elements=key, set_=renewed, where=webhooks.c.expires_at <= now)
    return set((await connection.execute(statement.returning(webhooks.c.webhook_id))).scalars())


def _values(arrival: Arrival, now: datetime, retention: float) -> dict[str, Any]:
    return {
        "webhook_id": arrival.webhook_id,
        "source": arrival.source,
        "idempotency_key": arrival.idempotency_key,
        "fingerprint": arrival.fingerprint,
        "event": arrival.event,
        "job_id": arrival.started_id,
        "job_type": arrival.started_type,
        "received_at": now,
        "expires_at": now + timedelta(seconds=retention),
    }


async def _stored(connection: AsyncConnection, keys: list[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
    if not keys:
        return {}
    columns = (webhooks.c.source, webhooks.c.idempotency_key, webhooks.c.webhook_id, webhooks.c.fingerprint)
    found = select(*columns).where(tuple_(webhooks.c.source, webhooks.c.idempotency_key).in_(keys))
    return {
        (source, key): (webhook_id, fingerprint)
        for source, key, webhook_id, fingerprint in (await connection.execute(found)).all()
    }


def _as_json(headers: Any) -> str | None:
    return None if headers is None else json.dumps(dict(headers))


_OF_ARRIVAL: Final = ("webhook_id", "source", "idempotency_key", "fingerprint", "event", "started_id", "started_type")
_OF_ROW: Final = tuple(name for name in OutboxRow.__dataclass_fields__ if name != "headers")


def _accept_new_statement() -> str:
    dialect: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]

    def types(table: Table, *names: str) -> list[str]:
        return [str(table.c[name].type.compile(dialect=dialect)) for name in names]

    names = [*_OF_ARRIVAL, *_OF_ROW, "headers"]
    told = [*_OF_ARRIVAL, "received_at", "expires_at"]
    kept = [name.replace("started_", "job_") for name in told]
    arrays = [
        f"%s::{kind}[]" for kind in (*types(webhooks, *kept[: len(_OF_ARRIVAL)]), *types(outbox, *_OF_ROW, "headers"))
    ]
    key = ("source", "idempotency_key")
    renewed = [f"{name} = excluded.{name}" for name in kept if name not in key]
    queued = [*_OF_ROW, "headers"]
    # The outbox row hangs on the key: both are written, or neither is.
    return f"""
    WITH given AS (
        SELECT * FROM unnest({", ".join(arrays)}) WITH ORDINALITY AS given({", ".join(names)}, place),
            (SELECT %s::timestamptz AS received_at, %s::timestamptz AS expires_at) AS times
    ), mine AS (
        INSERT INTO {webhooks.name} AS known ({", ".join(kept)}) SELECT {", ".join(told)} FROM given ORDER BY place
        ON CONFLICT ({", ".join(key)}) DO UPDATE SET {", ".join(renewed)}
            WHERE known.expires_at <= excluded.received_at
        RETURNING webhook_id
    ), queued AS (
        INSERT INTO {outbox.name} ({", ".join(queued)}, created_at)
        SELECT {", ".join(queued)}, received_at FROM given JOIN mine USING (webhook_id) ORDER BY place
    )
    SELECT webhook_id FROM mine
    """  # noqa: S608 - of our own names alone


_ACCEPT_NEW: Final = _accept_new_statement()
