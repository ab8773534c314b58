"""``hareline db``."""

from __future__ import annotations

import asyncio
import json
import sys

import click

from hareline.cli.enqueue import AgeOption
from store import schema
from store.engine import Database, shown
from store.retention import Retention
from store.retention import clean as remove_old
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
@click.option("--older-than", type=AgeOption(), help="For all of them, instead of the settings' times.")
@click.option(
    "--json", "as_json", is_flag=True, help='Print {"jobs": N, "dead_letters": N, ...}: rows removed of each.'
)
def clean(older_than: float | None, as_json: bool) -> None:
    """Remove what has been kept long enough. `hareline recorder` does the same, every minute.

    Jobs in the log (HARELINE_JOBS_DONE_RETENTION, HARELINE_JOBS_FAILED_RETENTION), schedules that have ended
    (HARELINE_JOBS_FAILED_RETENTION), dead letters (HARELINE_DEAD_RETENTION), and the inbox, the keys of jobs and the
    occurrences of schedules (HARELINE_INBOX_RETENTION): what is forgotten of these runs again if it comes again. In
    small transactions; safe to stop, to repeat, and while everything runs.
    """
    settings = Settings.from_env()
    retention = Retention.of(settings) if older_than is None else Retention.for_all(older_than)
    removed = asyncio.run(_clean(settings, retention))
    if as_json:
        click.echo(json.dumps(removed))
    else:
        click.echo("removed " + ", ".join(f"{count} of {table}" for table, count in removed.items()))


async def _clean(settings: Settings, retention: Retention) -> dict[str, int]:
    database = Database.from_settings(settings)
    try:
        await schema.verify(database)  # a database that is not there is an error here, not something to wait for
        return await remove_old(database, retention, progress=_show_progress)
    finally:
        await database.close()


def _show_progress(table: str, removed: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{table}: {removed} removed", err=True, nl=False)
