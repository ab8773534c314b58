"""``hareline db``."""

from __future__ import annotations

import asyncio
import json

import click

from store import schema
from store.engine import Database, shown
from topology.settings import Settings


@click.group()
def db() -> None:
    """Hareline's tables in the database of HARELINE_DATABASE_URL."""


@db.command(
    epilog="""\b
Examples:
  hareline db upgrade
  HARELINE_DATABASE_URL=postgresql://shop@db/shop hareline db upgrade
"""
)
@click.option("--json", "as_json", is_flag=True, help='Print {"database", "before", "after"}.')
def upgrade(as_json: bool) -> None:
    """Create the tables, or bring them to this version. Safe to repeat, and with several at once.

    Without HARELINE_DATABASE_URL the database is a SQLite file in the user's state directory.
    """
    settings = Settings.from_env()
    address, before, after = asyncio.run(_upgrade(settings))
    if as_json:
        click.echo(json.dumps({"database": address, "before": before, "after": after}))
    elif before == after:
        click.echo(f"{address} is at version {after} already")
    else:
        click.echo(f"{address}: upgraded from {before or 'nothing'} to version {after}")


async def _upgrade(settings: Settings) -> tuple[str, str | None, str]:
    database = Database.from_settings(settings)
    try:
        before, after = await schema.upgrade(database)
    finally:
        await database.close()
    return shown(database.url), before, after
