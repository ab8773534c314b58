"""``hareline relay``."""

from __future__ import annotations

import asyncio

import click

from hareline.roles import run_service
from producers.relay import Relay
from store import schema
from store.engine import Database
from topology.settings import Settings


@click.command(
    epilog="""\b
Examples:
  hareline relay
  HARELINE_DATABASE_URL=postgresql://shop@db/shop hareline relay
"""
)
def relay() -> None:
    """Publish what is committed in the outbox, until SIGTERM or Ctrl-C. Any number may run at once.

    Woken at each commit on PostgreSQL; a SQLite file is looked at every 50 ms. Killed at any moment nothing is lost;
    what it was about to publish goes out 30 seconds later, with the same message ids.
    """
    settings = Settings.from_env()
    asyncio.run(_verify(settings))
    run_service(lambda: Relay(settings, Database.from_settings(settings)), settings)


async def _verify(settings: Settings) -> None:
    database = Database.from_settings(settings)
    try:
        await schema.verify(database)
    finally:
        await database.close()
