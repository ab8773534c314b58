"""``hareline broker``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="\b\nExample:\n  hareline broker --directory ./broker-data")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path),
              help="Keep the node's data here. Default: a temporary directory, gone afterwards.")  # fmt: skip
def broker(directory: Path | None) -> None:
    """Run a private RabbitMQ node in the foreground, on free loopback ports, until Ctrl-C.

    It needs an installed rabbitmq-server, and prints the addresses to put into your environment.
    """
    from hareline.broker import run_foreground  # noqa: PLC0415 - only this command needs it

    run_foreground(directory)
