"""``hareline scheduler``."""

from __future__ import annotations

import asyncio

import click

from hareline.roles import run_service
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

    Any number may run at once; each occurrence is issued once. Without HARELINE_DATABASE_URL the database is a
    SQLite file in the user's state directory.
    """
    settings = Settings.from_env()
    asyncio.run(_verify(settings))
    run_service(lambda: Scheduler(Database.from_settings(settings)), settings)


async def _verify(settings: Settings) -> None:
    database = Database.from_settings(settings)
    try:
        await schema.verify(database)
    finally:
        await database.close()
