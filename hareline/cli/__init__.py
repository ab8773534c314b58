"""The ``hareline`` command. Subcommands are imported when they are used, so that a worker stays small."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Final

import click

from hareline import __version__
from topology.errors import DeclarationInvalid, HarelineError

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "broker": ("hareline.cli.broker:broker", "Run a private RabbitMQ node in the foreground."),
    "db": ("hareline.cli.database:db", "Create, upgrade and clean the tables in the database."),
    "dlq": ("hareline.cli.dlq:dlq", "Show, replay, edit and discard dead jobs."),
    "enqueue": ("hareline.cli.enqueue:enqueue", "Publish one job."),
    "jobs": ("hareline.cli.jobs:jobs", "List and show jobs, and count them."),
    "recorder": ("hareline.cli.recorder:recorder", "Carry what is told of jobs into the database."),
    "saga": ("hareline.cli.saga:saga", "Start sagas, list them, show one step by step."),
    "schedule": ("hareline.cli.schedule:schedule", "Make, list, cancel, pause and run schedules."),
    "scheduler": ("hareline.cli.scheduler:scheduler", "Issue the jobs of schedules that fall due."),
    "relay": ("hareline.cli.relay:relay", "Publish what is committed in the outbox."),
    "status": ("hareline.cli.status:status", "Show queues and breakers, and what is wrong with them."),
    "topology": ("hareline.cli.topology:topology", "Show, plan, apply, verify and migrate the topology."),
    "webhooks": ("hareline.cli.webhooks:webhooks", "Receive webhooks over HTTP."),
    "worker": ("hareline.cli.worker:worker", "Work off the queues of job types."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, sorted."""
        return sorted({*super().list_commands(ctx), *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, attribute = place[0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hareline")
def cli() -> None:
    """Background jobs on RabbitMQ.

    \b
    The environment says where things are:
      HARELINE_APP             module:attribute of your App, for example shop.jobs:app
      HARELINE_BROKER_URL      amqp://user:password@host/vhost; several, comma-separated
      HARELINE_MANAGEMENT_URL  http://host:15672/, so that topology commands see everything
      HARELINE_DATABASE_URL    postgresql://user@host/database (default: a SQLite file in your state directory)
      HARELINE_NAMESPACE       prefix of every exchange and queue (default: hareline)

    Exit codes: 0 fine, 1 failed, 2 bad usage or a difference found.
    """


def main() -> None:
    """The entry point: errors go to standard error in one sentence, with exit code 1; bad declarations with 2."""
    try:
        cli(prog_name="hareline")
    except HarelineError as error:
        click.echo(f"hareline: {error}", err=True)
        sys.exit(2 if isinstance(error, DeclarationInvalid) else 1)
