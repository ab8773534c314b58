"""``hareline scheduler``."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import click

from hareline.app import App
from hareline.cli.loading import load_app
from hareline.services import run_service
from producers.reconcile import reconcile
from producers.scheduler import Scheduler
from store import schema
from store.engine import Database
from topology.settings import Settings


@click.command(
    epilog="""\b
Examples:
  hareline scheduler
  HARELINE_DATABASE_URL=postgresql://shop@db/shop hareline scheduler

It writes to the outbox: `hareline relay` takes the jobs on to the broker.
"""
)
def scheduler() -> None:
    """Issue the jobs of schedules that fall due, until SIGTERM or Ctrl-C.

    Any number may run at once; each occurrence is issued once. What the app of HARELINE_APP declares with
    App(schedules=[...]) is reconciled at the start. Without HARELINE_DATABASE_URL the database is a
    SQLite file in the user's state directory.
    """
    settings = Settings.from_env()
    app = load_app(settings.app) if settings.app else None
    run_service("the scheduler", Scheduler, settings, partial(_prepare, settings, app))


async def _prepare(settings: Settings, app: App | None, database: Database) -> None:
    """The tables must be there; what the app declares is made, changed, and reported where it is no longer declared."""
    await schema.verify(database)
    if app is not None:
        done = await reconcile(database, app.schedules, settings)
        for what, names in asdict(done).items():
            if names and what != "unchanged":
                click.echo(f"declared schedules {what}: {', '.join(names)}", err=True)
