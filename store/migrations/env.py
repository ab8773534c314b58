"""Alembic's entry. The connection, and with it the transaction, comes from `store.schema`."""

from __future__ import annotations

from alembic import context

from store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="hareline_version",
    include_name=lambda name, kind, _: kind != "table" or (name or "").startswith("hareline_"),
    transaction_per_migration=False,
)
context.run_migrations()
