"""``hareline relay``."""

from __future__ import annotations

import click

from hareline.services import run_service
from producers.relay import Relay
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
    what it was about to publish goes out 5 seconds later, with the same message ids.
    """
    settings = Settings.from_env()
    run_service("the relay", lambda database: Relay(settings, database), settings)
