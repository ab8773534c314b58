"""A campaign's own commands."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from pydantic import EmailStr, TypeAdapter, ValidationError

from examples.campaign import campaigns
from examples.campaign.app import Feed, database, feed, producer

ADDRESS: TypeAdapter[str] = TypeAdapter(EmailStr)


@click.group()
def main() -> None:
    """Make, start, pause, resume and cancel campaigns."""


def run(work: Coroutine[Any, Any, None]) -> None:
    async def closing() -> None:
        try:
            await work
        finally:
            await database().close()

    asyncio.run(closing())


@main.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--subject", required=True, help="{name} becomes the recipient's name.")
@click.option("--text", required=True)
@click.option("--per-second", default=10.0, type=click.FloatRange(min=0.001), help="Mails per second.")
def create(name: str, file: Path, subject: str, text: str, per_second: float) -> None:
    """Make a draft with the recipients of FILE, a CSV file with the columns email and name. Again: adds to it."""

    async def work() -> None:
        people = []
        with file.open(newline="", encoding="utf-8-sig") as lines:
            for row in csv.DictReader(lines):
                try:
                    people.append((ADDRESS.validate_python((row["email"] or "").strip()), row["name"] or ""))
                except ValidationError:
                    click.echo(f"left out, no address: {row['email']!r}", err=True)
        async with database().transaction() as connection:
            await connection.run_sync(campaigns.metadata.create_all)
            await campaigns.create(connection, name, subject, text, per_second)
            await campaigns.add(connection, name, people)

    run(work())


@main.command()
@click.argument("name")
def start(name: str) -> None:
    """Begin to send."""
    run(begin(name, ("draft",), None))


@main.command()
@click.argument("name")
@click.option("--per-second", type=click.FloatRange(min=0.001), help="Another rate from here on.")
def resume(name: str, per_second: float | None) -> None:
    """Go on where it was paused."""
    run(begin(name, ("paused",), per_second))


async def begin(name: str, of: tuple[str, ...], per_second: float | None) -> None:
    """The status and the job that hands out the recipients: both, or neither."""
    async with database().transaction() as connection:
        found = await changed(connection, name, "running", of, per_second)
        job = Feed(campaign=name, start=found.starts)
        await producer().enqueue(feed, job, key=f"{name}/{found.starts}", connection=connection)


@main.command()
@click.argument("name")
def pause(name: str) -> None:
    """Hand out nothing more; mails that have a job already wait."""
    run(stop(name, "paused", ("running",)))


@main.command()
@click.argument("name")
def cancel(name: str) -> None:
    """End it for good; mails that have a job already are not sent."""
    run(stop(name, "cancelled", ("draft", "running", "paused")))


async def stop(name: str, status: str, of: tuple[str, ...]) -> None:
    async with database().transaction() as connection:
        await changed(connection, name, status, of)


async def changed(connection: Any, name: str, status: str, of: tuple[str, ...], per_second: float | None = None) -> Any:
    found = await campaigns.change(connection, name, status, of=of, per_second=per_second)
    if found is None:
        raise click.ClickException(f"{name} is not {' or '.join(of)}")
    return found


@main.command()
@click.argument("name")
@click.option("--wait", is_flag=True, help="Until nobody is left.")
def status(name: str, wait: bool) -> None:
    """Show how many were sent, bounced, and are still to come."""

    async def work() -> None:
        while True:
            async with database().reading() as connection:
                found = await campaigns.standing(connection, name)
            if found is None:
                raise click.ClickException(f"no campaign {name}")
            click.echo(" ".join(f"{key}={value}" for key, value in asdict(found).items()))
            if found.status in {"done", "cancelled"} or not wait:
                return
            await asyncio.sleep(1.0)

    run(work())


@main.command()
@click.argument("name")
def bounces(name: str) -> None:
    """List who was refused, and why."""

    async def work() -> None:
        async with database().reading() as connection:
            for email, detail in await campaigns.bounces(connection, name):
                click.echo(f"{email}\t{detail}")

    run(work())


main()
