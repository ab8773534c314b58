"""Answers of a service's own API, kept by the caller's idempotency key, so that a repeated call is not run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from store.engine import POSTGRESQL
from store.tables import answers

RETENTION: Final = 86_400.0
"""Seconds that an answer is kept."""

State = Literal["mine", "busy", "conflict", "stored"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call: whose key it is (``scope``), the key, what tells calls apart, and an id of this call's own."""

    scope: str
    key: str
    fingerprint: str
    owner: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the first call was answered. ``headers`` are pairs, in Latin-1."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Begun:
    """Where a call stands: it is to be run, another one runs, the key came with another call, or there is an answer."""

    state: State
    answer: Answer | None = None


async def begin(connection: AsyncConnection, call: Call, now: datetime, lease: float, retention: float) -> Begun:
    """Claims the key for ``lease`` seconds, or tells why not. A key without an answer whose lease is over is free."""
    make: Any = postgresql_insert if connection.dialect.name == POSTGRESQL else sqlite_insert
    statement = make(answers).values(
        scope=call.scope,
        idempotency_key=call.key,
        fingerprint=call.fingerprint,
        owner=call.owner,
        locked_until=now + timedelta(seconds=lease),
        expires_at=now + timedelta(seconds=retention),
    )
    key = (answers.c.scope, answers.c.idempotency_key)
    renewed = {column.name: statement.excluded[column.name] for column in answers.c if column not in key}
    free = or_(answers.c.expires_at <= now, and_(answers.c.status.is_(None), answers.c.locked_until <= now))
    statement = statement.on_conflict_do_update(index_elements=key, set_=renewed, where=free)
    if (await connection.execute(statement.returning(answers.c.owner))).first() is not None:
        return Begun("mine")
    row = (await connection.execute(select(answers).where(_is(call)))).one_or_none()
    if row is None:
        return Begun("busy")  # it failed and gave the key back this very moment: the caller may try again
    if row.fingerprint != call.fingerprint:
        return Begun("conflict")
    if row.status is None:
        return Begun("busy")
    return Begun("stored", Answer(row.status, [(name, value) for name, value in row.headers], bytes(row.body)))


async def finish(connection: AsyncConnection, call: Call, answer: Answer) -> bool:
    """Keeps the answer; False if the lease was over and another call has taken the key."""
    values = {"status": answer.status, "headers": [list(pair) for pair in answer.headers], "body": answer.body}
    mine = update(answers).where(_is(call), answers.c.owner == call.owner).values(**values)
    return (await connection.execute(mine)).rowcount > 0


async def release(connection: AsyncConnection, call: Call) -> None:
    """Gives the key back: the call failed, and the next one with this key is to be run."""
    mine = and_(_is(call), answers.c.owner == call.owner, answers.c.status.is_(None))
    await connection.execute(delete(answers).where(mine))


def _is(call: Call) -> Any:
    return and_(answers.c.scope == call.scope, answers.c.idempotency_key == call.key)
