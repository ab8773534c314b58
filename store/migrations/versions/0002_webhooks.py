"""Webhook deliveries that were accepted, and the job that each started."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.columns import Moment

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates it."""
    op.create_table(
        "hareline_webhooks",
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("event", sa.Text()),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("job_type", sa.Text(), nullable=False),
        sa.Column("received_at", Moment(), nullable=False),
        sa.Column("expires_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("webhook_id", name="pk_hareline_webhooks"),
        sa.UniqueConstraint("source", "idempotency_key", name="uq_hareline_webhooks_source"),
    )
    op.create_index("ix_hareline_webhooks_expires_at", "hareline_webhooks", ["expires_at"])


def downgrade() -> None:
    """Drops it."""
    op.drop_table("hareline_webhooks")
