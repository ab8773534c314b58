"""Listings for people: columns under a head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click


def echo_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints them, each column as wide as its widest cell."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
