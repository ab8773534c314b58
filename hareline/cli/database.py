"""``hareline db``."""

from __future__ import annotations

import asyncio
import json
import sys

import click

from hareline.cli.enqueue import AgeOption
from store import inbox, schema
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


@db.command(
    epilog="""\b
Examples:
  hareline db clean
  hareline db clean --older-than 30d --json
"""
)
@click.option("--older-than", type=AgeOption(), help="Without it: HARELINE_INBOX_RETENTION, 7d by default.")
@click.option("--json", "as_json", is_flag=True, help='Print {"inbox", "keys", "occurrences"}: rows removed of each.')
def clean(older_than: float | None, as_json: bool) -> None:
    """Remove old rows of the inbox, of the keys of jobs, and of the occurrences of schedules.

    What is removed is forgotten: a job that is delivered again after that runs again. In small transactions; safe to
    stop, to repeat, and while workers run.
    """
    settings = Settings.from_env()
    removed = asyncio.run(_clean(settings, settings.inbox_retention if older_than is None else older_than))
    if as_json:
        click.echo(json.dumps(removed))
    else:
        click.echo("removed " + ", ".join(f"{count} of {table}" for table, count in removed.items()))


async def _clean(settings: Settings, older_than: float) -> dict[str, int]:
    database = Database.from_settings(settings)
    try:
        await schema.verify(database)  # a database that is not there is an error here, not something to wait for
        return await inbox.clean(database, older_than, progress=_show_progress)
    finally:
        await database.close()


def _show_progress(table: str, removed: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{table}: {removed} removed", err=True, nl=False)
