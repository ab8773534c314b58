"""Where the parallel steps of a saga meet: whoever settles last sees them all."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from store.engine import POSTGRESQL
from store.tables import saga_joins


async def settle_branch(
    connection: AsyncConnection, saga_id: str, place: tuple[int, int], outcome: str, of: int
) -> list[str] | None:
    """Notes the outcome of a branch, unless it has one; the outcomes by branch once all ``of`` are known, None before.

    Branches of one stage take their turns: else two that commit at the same time would each miss the other. Whoever
    asks again, as a redelivery does, gets the same answer.
    """
    stage, branch = place
    row = {
        "saga_id": saga_id, "stage": stage, "branch": branch, "outcome": outcome, "settled_at": datetime.now(UTC)
    }  # fmt: skip
    if connection.dialect.name == POSTGRESQL:  # SQLite's transactions are one at a time anyway
        await connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{saga_id}/{stage}", 0))))
        await connection.execute(postgresql.insert(saga_joins).values(row).on_conflict_do_nothing())
    else:
        await connection.execute(sqlite.insert(saga_joins).values(row).on_conflict_do_nothing())
    settled = select(saga_joins.c.outcome).where(saga_joins.c.saga_id == saga_id, saga_joins.c.stage == stage)
    outcomes = list((await connection.execute(settled.order_by(saga_joins.c.branch))).scalars())
    return outcomes if len(outcomes) >= of else None
