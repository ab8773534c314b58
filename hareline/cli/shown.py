"""What listings print: records as JSON has them, and as people read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import click

from hareline.cli.table import echo_table


def plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """With times as text."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in item.items()}


def document(text: str | None) -> Any:
    """JSON text as what it says; as the text where it is none."""
    try:
        return None if text is None else json.loads(text)
    except json.JSONDecodeError:
        return text


def moment(at: datetime | None, precision: Literal["seconds", "milliseconds"] = "seconds") -> str:
    """A time as people read it."""
    return "-" if at is None else at.isoformat(timespec=precision).replace("+00:00", "Z")


def echo_facts(item: Mapping[str, Any]) -> None:
    """One record: a line for each of its fields that has a value."""
    for name, value in item.items():
        if value is not None:
            click.echo(f"{name:<15}{value if isinstance(value, str | int | float) else json.dumps(value)}")


def echo_page(what: str, head: Sequence[str], rows: Iterable[Sequence[str]], cursor: str | None) -> None:
    """A page of ``what``, and how to get the next one."""
    cells = list(rows)
    if not cells:
        click.echo(f"no {what}")
        return
    echo_table(head, cells)
    if cursor:
        click.echo(f"more: --cursor {cursor}")
