"""Brings a database to the tables of this version, and tells whether it has them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select

from store.engine import Database, shown
from topology.errors import SchemaOutdated

VERSION_TABLE: Final = "hareline_version"
_SCRIPTS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 0x4861_7265_6C69_6E65
"""Any number, as long as nobody else has it: one upgrade of a database at a time."""
_ALEMBIC: Final = asyncio.Lock()
"""Alembic keeps what it works on in module globals."""


async def upgrade(database: Database) -> tuple[str | None, str]:
    """Runs the migrations that are missing; returns the versions before and after.

    All in one transaction: killed at any moment, the database is as it was. Raises DatabaseUnavailable.
    """
    async with _ALEMBIC, database.transaction() as connection:
        if database.is_postgresql:  # SQLite's transactions are one at a time anyway
            await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        before = await connection.run_sync(_current)
        await connection.run_sync(_upgrade)
        after = await connection.run_sync(_current)
    assert after is not None
    return before, after


async def verify(database: Database) -> None:
    """Raises SchemaOutdated unless the database has exactly the tables of this version."""
    async with database.reading() as connection:
        current = await connection.run_sync(_current)
    wanted = newest()
    if current == wanted:
        return
    if current is None:
        raise SchemaOutdated(f"{shown(database.url)} does not have Hareline's tables: run `hareline db upgrade`")
    raise SchemaOutdated(
        f"{shown(database.url)} has version {current} of Hareline's tables, this is for {wanted}: run "
        "`hareline db upgrade`, or the Hareline that the database was upgraded for"
    )


def newest() -> str:
    """The version that this Hareline works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config
