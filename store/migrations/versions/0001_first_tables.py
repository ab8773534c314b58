"""The tables of the first version: outbox, keys, inbox, schedules, job log, dead letters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from store.columns import Json, Moment, Serial

revision = "0001"
down_revision = None

# One notification for each statement, sent by the commit it belongs to, also for a service that writes plain SQL.
NOTIFY = """
CREATE FUNCTION hareline_notify() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify(TG_TABLE_NAME, ''); RETURN NULL; END $$
"""
TRIGGER = """
CREATE TRIGGER hareline_notify AFTER {events} ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION hareline_notify()
"""


def upgrade() -> None:
    """Creates them."""
    op.create_table(
        "hareline_attempts",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("replay", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", Moment(), nullable=False),
        sa.Column("duration", sa.Float()),
        sa.Column("error", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.PrimaryKeyConstraint("job_id", "replay", "attempt", name="pk_hareline_attempts"),
    )
    op.create_index("ix_hareline_attempts_ended_at", "hareline_attempts", ["ended_at"])
    op.create_table(
        "hareline_dead_letters",
        sa.Column("id", Serial, nullable=False),
        sa.Column("message_key", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("job_type", sa.Text(), nullable=False),
        sa.Column("group_name", sa.Text()),
        sa.Column("queue", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("traceback", sa.Text()),
        sa.Column("attempts", sa.Integer()),
        sa.Column("first_failed_at", Moment()),
        sa.Column("last_failed_at", Moment()),
        sa.Column("died_at", Moment(), nullable=False),
        sa.Column("recorded_at", Moment(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("priority", sa.SmallInteger()),
        sa.Column("correlation_id", sa.Text()),
        sa.Column("content_type", sa.Text()),
        sa.Column("content_encoding", sa.Text()),
        sa.Column("headers", Json, nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("replays", sa.Integer(), server_default="0", nullable=False),
        sa.Column("replayed_at", Moment()),
        sa.Column("replay_job_id", sa.Text()),
        sa.Column("replaces", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_hareline_dead_letters"),
        sa.UniqueConstraint("message_key", name="uq_hareline_dead_letters_message_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_hareline_dead_letters_died_at", "hareline_dead_letters", ["died_at", "id"])
    op.create_index(
        "ix_hareline_dead_letters_error",
        "hareline_dead_letters",
        ["error", "status", "died_at", "id", "job_type", "group_name"],
    )
    op.create_index(
        "ix_hareline_dead_letters_fingerprint", "hareline_dead_letters", ["fingerprint", "status", "died_at", "id"]
    )
    op.create_index(
        "ix_hareline_dead_letters_group",
        "hareline_dead_letters",
        ["group_name", "status", "died_at", "id", "job_type", "error"],
    )
    op.create_index(
        "ix_hareline_dead_letters_reason",
        "hareline_dead_letters",
        ["reason", "status", "died_at", "id", "job_type", "error"],
    )
    op.create_index("ix_hareline_dead_letters_list", "hareline_dead_letters", ["status", "died_at", "id"])
    op.create_index(
        "ix_hareline_dead_letters_type",
        "hareline_dead_letters",
        ["job_type", "status", "died_at", "id", "error", "group_name"],
    )
    op.create_table(
        "hareline_inbox",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("job_type", sa.Text(), nullable=False),
        sa.Column("handled_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_hareline_inbox"),
    )
    op.create_index("ix_hareline_inbox_handled_at", "hareline_inbox", ["handled_at"])
    op.create_table(
        "hareline_jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("group_name", sa.Text()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("priority", sa.SmallInteger()),
        sa.Column("payload", sa.Text()),
        sa.Column("correlation_id", sa.Text()),
        sa.Column("seen_at", Moment(), nullable=False),
        sa.Column("accepted_at", Moment()),
        sa.Column("due_at", Moment()),
        sa.Column("started_at", Moment()),
        sa.Column("finished_at", Moment()),
        sa.Column("duration", sa.Float()),
        sa.Column("error", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("updated_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hareline_jobs"),
    )
    op.create_index("ix_hareline_jobs_group", "hareline_jobs", ["group_name", "seen_at", "id"])
    op.create_index("ix_hareline_jobs_seen", "hareline_jobs", ["seen_at", "id"])
    op.create_index("ix_hareline_jobs_status", "hareline_jobs", ["status", "seen_at", "id"])
    op.create_index("ix_hareline_jobs_type", "hareline_jobs", ["type", "seen_at", "id"])
    op.create_table(
        "hareline_keys",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("job_type", sa.Text(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_hareline_keys"),
    )
    op.create_index("ix_hareline_keys_created_at", "hareline_keys", ["created_at"])
    op.create_table(
        "hareline_occurrences",
        sa.Column("schedule_id", sa.Text(), nullable=False),
        sa.Column("due_at", Moment(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("issued_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", "due_at", name="pk_hareline_occurrences"),
    )
    op.create_index("ix_hareline_occurrences_issued_at", "hareline_occurrences", ["issued_at"])
    op.create_table(
        "hareline_outbox",
        sa.Column("id", Serial, nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("job_type", sa.Text(), nullable=False),
        sa.Column("group_name", sa.Text()),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("priority", sa.SmallInteger()),
        sa.Column("due_at", Moment()),
        sa.Column("correlation_id", sa.Text()),
        sa.Column("headers", Json),
        sa.Column("ordering_key", sa.Text()),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("retry_at", Moment()),
        sa.Column("claimed_until", Moment()),
        sa.Column("claimed_by", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_hareline_outbox"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_hareline_outbox_job", "hareline_outbox", ["job_id"])
    op.create_index("ix_hareline_outbox_ordering", "hareline_outbox", ["ordering_key", "id"])
    op.create_index("ix_hareline_outbox_seen", "hareline_outbox", ["created_at", "job_id"])
    op.create_table(
        "hareline_reporters",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("highest", sa.BigInteger(), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("dropped", sa.BigInteger(), nullable=False),
        sa.Column("ranges", Json, nullable=False),
        sa.Column("seen_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hareline_reporters"),
    )
    op.create_table(
        "hareline_schedules",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("job_type", sa.Text(), nullable=False),
        sa.Column("job_group", sa.Text()),
        sa.Column("record", sa.Text()),
        sa.Column("timeout", sa.Float()),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("payload_hash", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger()),
        sa.Column("group_name", sa.Text()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("expression", sa.Text()),
        sa.Column("zone", sa.Text()),
        sa.Column("interval_seconds", sa.Float()),
        sa.Column("start_at", Moment()),
        sa.Column("next_run_at", Moment()),
        sa.Column("last_run_at", Moment()),
        sa.Column("last_job_id", sa.Text()),
        sa.Column("misfire", sa.Text(), nullable=False),
        sa.Column("misfire_window", sa.Float()),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("buffered_at", Moment()),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("unique_key", sa.Text()),
        sa.Column("runs", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("updated_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hareline_schedules"),
        sa.UniqueConstraint("name", name="uq_hareline_schedules_name"),
        sa.UniqueConstraint("unique_key", name="uq_hareline_schedules_unique_key"),
    )
    op.create_index(
        "ix_hareline_schedules_ended",
        "hareline_schedules",
        ["updated_at"],
        postgresql_where=sa.text("next_run_at IS NULL"),
        sqlite_where=sa.text("next_run_at IS NULL"),
    )
    op.create_index(
        "ix_hareline_schedules_buffered",
        "hareline_schedules",
        ["buffered_at"],
        postgresql_where=sa.text("buffered_at IS NOT NULL"),
        sqlite_where=sa.text("buffered_at IS NOT NULL"),
    )
    op.create_index("ix_hareline_schedules_due", "hareline_schedules", ["status", "next_run_at"])
    op.create_index("ix_hareline_schedules_group", "hareline_schedules", ["group_name"])
    op.create_index("ix_hareline_schedules_list", "hareline_schedules", ["job_type", "next_run_at"])

    if op.get_bind().dialect.name == "postgresql":
        op.execute(NOTIFY)
        op.execute(TRIGGER.format(events="INSERT", table="hareline_outbox"))
        # Not for updates: every scheduler writes hundreds a second, of which no other one needs to know.
        op.execute(TRIGGER.format(events="INSERT", table="hareline_schedules"))


def downgrade() -> None:
    """Drops them, with all that they hold."""
    op.drop_table("hareline_attempts")
    op.drop_table("hareline_dead_letters")
    op.drop_table("hareline_inbox")
    op.drop_table("hareline_jobs")
    op.drop_table("hareline_keys")
    op.drop_table("hareline_occurrences")
    op.drop_table("hareline_outbox")
    op.drop_table("hareline_reporters")
    op.drop_table("hareline_schedules")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION hareline_notify()")
