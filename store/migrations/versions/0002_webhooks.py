"""Webhook deliveries that were accepted, and answers of services' own APIs, by idempotency key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.columns import Json, Moment

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates them."""
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
    op.create_table(
        "hareline_answers",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("locked_until", Moment(), nullable=False),
        sa.Column("status", sa.SmallInteger()),
        sa.Column("headers", Json),
        sa.Column("body", sa.LargeBinary()),
        sa.Column("expires_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "idempotency_key", name="pk_hareline_answers"),
    )
    op.create_index("ix_hareline_answers_expires_at", "hareline_answers", ["expires_at"])


def downgrade() -> None:
    """Drops them."""
    op.drop_table("hareline_answers")
    op.drop_table("hareline_webhooks")
