"""Beside the jobs: makes the tables, writes a file to try, shows how far an import has come and what it refused."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict

import click

from consumers.jobs.csv_progress import Imports, Progress
from examples.csv_import.app import metadata
from hareline import Settings
from store.engine import Database


@click.group()
def main() -> None:
    """The CSV import's own commands."""


@main.command()
def prepare() -> None:
    """Make the tables of customers and of imports."""

    async def run() -> None:
        database = Database.from_settings(Settings.from_env())
        async with database.transaction() as connection:
            await connection.run_sync(metadata.create_all)
        await Imports(database).create_tables()
        await database.close()

    asyncio.run(run())


@main.command()
@click.argument("rows", type=int)
@click.option("--bad", default=0, help="How many of the rows are wrong.")
def generate(rows: int, bad: int) -> None:
    """Write a file of ROWS customers to standard output."""
    every = rows // bad if bad else rows + 1
    print("number,email,name,country,born")
    for number in range(1, rows + 1):
        email = f"customer-{number}@example.com" if number % every else "no address"
        sys.stdout.write(f'{number},{email},"Customer {number}, ""Sons"" & Co",DE,1980-02-{number % 28 + 1:02}\n')


@main.command()
@click.argument("import_id", required=False)
@click.option("--wait", is_flag=True, help="Until it is done or failed.")
def progress(import_id: str | None, wait: bool) -> None:
    """Show how far an import has come: IMPORT_ID or the id of its job; the latest without."""

    async def run() -> Progress:
        async with Imports() as imports:
            while True:
                found = await _find(imports, import_id)
                if found is not None:
                    click.echo(" ".join(f"{name}={value}" for name, value in asdict(found).items()))
                if found is not None and (found.status != "running" or not wait):
                    return found
                if found is None and not wait:
                    raise click.ClickException("no import has begun")
                await asyncio.sleep(1.0)

    sys.exit(asyncio.run(run()).status == "failed")


@main.command()
@click.argument("import_id", required=False)
@click.option("--limit", default=20)
def errors(import_id: str | None, limit: int) -> None:
    """List the rows that were refused, and why."""

    async def run() -> None:
        async with Imports() as imports:
            found = await _find(imports, import_id)
            if found is None:
                raise click.ClickException("no import has begun")
            for error in await imports.errors(found.id, limit=limit):
                click.echo(f"row {error.row} (line {error.line}) {error.field or '-'}: {error.message}: {error.raw}")

    asyncio.run(run())


async def _find(imports: Imports, import_id: str | None) -> Progress | None:
    if import_id is not None:
        return await imports.progress(import_id)
    return next(iter(await imports.latest("customers", limit=1)), None)


main()
