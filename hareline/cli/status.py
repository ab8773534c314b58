"""``hareline status``."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import click

from hareline.cli.loading import load_app
from hareline.cli.table import echo_table
from hareline.status import look
from topology.settings import Settings


@click.command(
    epilog="""\b
Examples:
  hareline status                    the app's queues and the breakers of all workers
  hareline status --json             for a script: {"queues": [...], "breakers": [...], "problems": [...]}
  hareline status --wait 3           give workers on a slow network longer to answer
  watch -n 5 hareline status
"""
)
@click.option("--app", metavar="MODULE:ATTRIBUTE", help="Your App; by default HARELINE_APP. Without one, all queues.")
@click.option("--wait", type=click.FloatRange(0.05, 60), default=1.0, show_default=True,
              help="Seconds that workers have to tell how their breakers stand.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(app: str | None, wait: float, as_json: bool) -> None:
    """Show queues and circuit breakers, and what is wrong with them.

    Counts are those of this moment; UNACKED alone is the management API's, seconds old, and unknown without
    HARELINE_MANAGEMENT_URL. A breaker is shown as the workers that run now see it.

    \b
    Exit codes: 0 nothing is wrong; 1 something is: a breaker is open, a queue has jobs and no consumer, a queue
    is missing, or the broker cannot be asked.
    """
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # every error is told in one sentence of its own
    settings = Settings.from_env()
    reference = app or settings.app
    sections = asyncio.run(look(settings, load_app(reference) if reference else None, wait))
    problems = [problem for section in sections for problem in section.problems]
    if as_json:
        document = {**{section.name: section.items for section in sections}, "problems": problems}
        click.echo(json.dumps(document, indent=2))
    else:
        for section in sections:
            if section.rows:
                echo_table(section.head, section.rows)
            else:
                click.echo(f"No {section.name}.")
            click.echo()
        click.echo("\n".join(f"! {problem}" for problem in problems) or "Nothing is wrong.")
    sys.exit(1 if problems else 0)
