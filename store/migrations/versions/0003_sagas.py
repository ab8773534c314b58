"""What a saga's steps decide, where parallel ones meet, and the saga log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.columns import Moment

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Creates them."""
    op.add_column("hareline_inbox", sa.Column("result", sa.Text()))
    op.add_column("hareline_inbox", sa.Column("abandoned", sa.Text()))
    op.create_table(
        "hareline_saga_joins",
        sa.Column("saga_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.SmallInteger(), nullable=False),
        sa.Column("branch", sa.SmallInteger(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("settled_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("saga_id", "stage", "branch", name="pk_hareline_saga_joins"),
    )
    op.create_index("ix_hareline_saga_joins_settled_at", "hareline_saga_joins", ["settled_at"])
    op.create_table(
        "hareline_sagas",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("itinerary", sa.Text()),
        sa.Column("payload", sa.Text()),
        sa.Column("started_at", Moment(), nullable=False),
        sa.Column("deadline", Moment()),
        sa.Column("finished_at", Moment()),
        sa.Column("undos", sa.Text()),
        sa.Column("failed_step", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("updated_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hareline_sagas"),
    )
    for name, columns in (
        ("started", ["started_at", "id"]),
        ("status", ["status", "started_at", "id"]),
        ("name", ["name", "started_at", "id"]),
        ("updated_at", ["updated_at"]),
    ):
        op.create_index(f"ix_hareline_sagas_{name}", "hareline_sagas", columns)
    op.create_table(
        "hareline_saga_steps",
        sa.Column("saga_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("undo", sa.SmallInteger(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("job_type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("replay", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("result", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("duration", sa.Float()),
        sa.Column("ended_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("saga_id", "step", "undo", name="pk_hareline_saga_steps"),
    )


def downgrade() -> None:
    """Drops them."""
    for table in ("saga_steps", "sagas", "saga_joins"):
        op.drop_table(f"hareline_{table}")
    op.drop_column("hareline_inbox", "abandoned")
    op.drop_column("hareline_inbox", "result")
