"""``hareline recorder``."""

from __future__ import annotations

import click

from consumers.recorder import Recorder
from hareline.services import run_service
from topology.settings import Settings


@click.command(
    epilog="""\b
Examples:
  hareline recorder
  HARELINE_DATABASE_URL=postgresql://shop@db/shop hareline recorder
"""
)
def recorder() -> None:
    """Carry what the broker tells of jobs into the database, until SIGTERM or Ctrl-C.

    Any number may run. It applies nothing: the queues come from `hareline topology apply`, the tables from
    `hareline db upgrade`. Done jobs are kept for HARELINE_JOBS_DONE_RETENTION (default 7d), failed ones for
    HARELINE_JOBS_FAILED_RETENTION (30d), dead letters for HARELINE_DEAD_RETENTION (30d), and the rows of the inbox,
    of keys and of occurrences for HARELINE_INBOX_RETENTION (7d).
    """
    settings = Settings.from_env()
    run_service("the recorder", lambda database: Recorder(settings, database), settings)
