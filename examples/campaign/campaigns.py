"""What is known of campaigns: tables, and the statements on them. Each runs in the transaction of its caller."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Float, Integer, MetaData, PrimaryKeyConstraint, Row, Table, Text, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from store.columns import Moment

metadata = MetaData()
campaigns = Table(
    "campaigns",
    metadata,
    Column("name", Text, primary_key=True),
    Column("status", Text, nullable=False),  # draft, running, paused, cancelled
    Column("subject", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("per_second", Float, nullable=False),
    Column("starts", Integer, nullable=False, server_default="0"),
    Column("next_at", Moment),
)
recipients = Table(
    "campaign_recipients",
    metadata,
    Column("campaign", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="pending"),  # then queued; then sent or bounced
    Column("detail", Text),
    PrimaryKeyConstraint("campaign", "email"),
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a campaign is. ``pending`` recipients have no job yet, ``queued`` ones have one that is not done."""

    name: str
    status: str
    pending: int
    queued: int
    sent: int
    bounced: int


async def create(connection: AsyncConnection, name: str, subject: str, text: str, per_second: float) -> None:
    """Makes a draft, unless there is a campaign of that name."""
    values = {"name": name, "status": "draft", "subject": subject, "text": text, "per_second": per_second}
    await connection.execute(_insert(connection, campaigns).values(values).on_conflict_do_nothing())


async def add(connection: AsyncConnection, name: str, people: Iterable[tuple[str, str]]) -> None:
    """Adds pairs of address and name. An address is in a campaign once, however often it comes and however written."""
    rows = [{"campaign": name, "email": email.strip().lower(), "name": who} for email, who in people]
    if rows:
        await connection.execute(_insert(connection, recipients).on_conflict_do_nothing(), rows)


async def get(connection: AsyncConnection, name: str, *, lock: bool = False) -> Row[Any] | None:
    """The campaign; with ``lock``, nobody else has it until the transaction ends."""
    wanted = select(campaigns).where(campaigns.c.name == name)
    return (await connection.execute(wanted.with_for_update() if lock else wanted)).one_or_none()


async def change(
    connection: AsyncConnection, name: str, status: str, *, of: tuple[str, ...], per_second: float | None = None
) -> Row[Any] | None:
    """The campaign in its new status, or None where it is in none of ``of``. ``starts`` counts how often it began."""
    values: dict[str, Any] = {"status": status}
    if status == "running":
        values["starts"] = campaigns.c.starts + 1
    if per_second is not None:
        values["per_second"] = per_second
    here = (campaigns.c.name == name) & campaigns.c.status.in_(of)
    changing = update(campaigns).where(here).values(values).returning(campaigns)
    found: Row[Any] | None = (await connection.execute(changing)).one_or_none()
    return found


async def take(connection: AsyncConnection, name: str, count: int, next_at: datetime) -> list[Row[Any]]:
    """Marks up to ``count`` recipients as queued and returns them. The next ones are due at ``next_at``."""
    wanted = select(recipients.c.email).where(recipients.c.campaign == name, recipients.c.status == "pending")
    here = (recipients.c.campaign == name) & recipients.c.email.in_(wanted.order_by(recipients.c.email).limit(count))
    taken = await connection.execute(update(recipients).where(here).values(status="queued").returning(recipients))
    rows = list(taken)
    await connection.execute(update(campaigns).where(campaigns.c.name == name).values(next_at=next_at))
    return rows


async def recipient(connection: AsyncConnection, name: str, email: str) -> Row[Any] | None:
    """One recipient with the campaign's status as ``campaign_status``."""
    wanted = select(recipients, campaigns.c.status.label("campaign_status"))
    wanted = wanted.join(campaigns, campaigns.c.name == recipients.c.campaign)
    wanted = wanted.where(recipients.c.campaign == name, recipients.c.email == email)
    return (await connection.execute(wanted)).one_or_none()


async def note(connection: AsyncConnection, name: str, email: str, status: str, detail: str | None = None) -> None:
    """What became of the mail: sent, or bounced with what the server said."""
    here = (recipients.c.campaign == name) & (recipients.c.email == email)
    await connection.execute(update(recipients).where(here).values(status=status, detail=detail))


async def standing(connection: AsyncConnection, name: str) -> Standing | None:
    """Counts. ``status`` is done once a running campaign has nobody left."""
    found = await get(connection, name)
    if found is None:
        return None
    counting = select(recipients.c.status, func.count()).where(recipients.c.campaign == name)
    counts = dict.fromkeys(("pending", "queued", "sent", "bounced"), 0)
    for status, count in await connection.execute(counting.group_by(recipients.c.status)):
        counts[status] = count
    over = found.status == "running" and not counts["pending"] and not counts["queued"]
    return Standing(name, "done" if over else found.status, **counts)


async def bounces(connection: AsyncConnection, name: str) -> list[tuple[str, str]]:
    """Addresses that were refused for good, with what the server said."""
    wanted = select(recipients.c.email, recipients.c.detail)
    wanted = wanted.where(recipients.c.campaign == name, recipients.c.status == "bounced")
    return [(email, detail) for email, detail in await connection.execute(wanted.order_by(recipients.c.email))]


def _insert(connection: AsyncConnection, table: Table) -> Any:
    return (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(table)
