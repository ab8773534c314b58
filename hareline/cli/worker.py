"""``hareline worker``."""

from __future__ import annotations

import os
import sys

import click

from consumers.worker import DEFAULT_CONCURRENCY
from hareline import logs
from hareline.cli.loading import load_app
from hareline.processes import Processes, same_command_with_one_process
from hareline.roles import run_worker
from topology.errors import ContractError
from topology.settings import Settings


@click.command(
    epilog="""\b
Examples:
  hareline worker                              every job type that the app handles
  hareline worker email.send --concurrency 50  one type, 50 jobs at a time
  hareline worker 'media.*' --processes 4      four processes, restarted when one dies
"""
)
@click.argument("types", nargs=-1, metavar="[TYPE|GLOB]...")
@click.option("--concurrency", type=click.IntRange(1, 10_000), default=DEFAULT_CONCURRENCY, show_default=True,
              help="Jobs of each type at a time, per process; prefetch follows it.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True,
              help="Processes of this worker on this machine.")  # fmt: skip
@click.option("--child-of", type=int, hidden=True, help="The process to end with, however it goes.")
def worker(types: tuple[str, ...], concurrency: int, processes: int, child_of: int | None) -> None:
    """Work off the queues of job types, until SIGTERM or Ctrl-C.

    The first signal stops taking jobs and gives those that run HARELINE_GRACE (default 25s) to end; what does not
    end goes back to its queue with no attempt charged. A second signal stops at once.
    """
    settings = Settings.from_env()
    app = load_app(settings.app)
    try:
        routes = app.registry.select(types)
    except ContractError as error:
        raise click.UsageError(str(error)) from None
    if processes == 1:
        run_worker(app, routes, settings, concurrency, child_of)
        return
    logs.configure(settings.log_level)
    command = same_command_with_one_process(
        ["worker", *types, "--concurrency", str(concurrency), "--child-of", str(os.getpid())]
    )
    sys.exit(Processes(command, processes).run())
