"""Every table, as SQLAlchemy Core sees it. A change here needs a migration: a test compares the two.

All names begin with ``hareline_``, so that the tables can live in a service's own database; the outbox and the
inbox must, since they commit in its transactions.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from store.columns import Json, Moment, Serial

metadata: Final = MetaData(naming_convention={"pk": "pk_%(table_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s"})

outbox: Final = Table(
    "hareline_outbox",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("job_id", Text, nullable=False),
    Column("job_type", Text, nullable=False),
    Column("group_name", Text),
    Column("body", LargeBinary, nullable=False),
    Column("priority", SmallInteger),
    Column("due_at", Moment),
    Column("correlation_id", Text),
    Column("headers", Json),
    Column("ordering_key", Text),
    Column("origin", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("error", Text),
    Column("retry_at", Moment),
    Column("claimed_until", Moment),
    Column("claimed_by", Text),
    Index("ix_hareline_outbox_ordering", "ordering_key", "id"),
    Index("ix_hareline_outbox_job", "job_id"),
    Index("ix_hareline_outbox_seen", "created_at", "job_id"),
    sqlite_autoincrement=True,
)
"""Jobs that are committed and not published yet. The relay publishes and deletes them.

Rows with one ``ordering_key`` are published in the order of their ids. ``due_at`` is when the job shall run.
``retry_at``: not to be published before, after an ``error``. ``claimed_by`` has the row until ``claimed_until``.
"""

keys: Final = Table(
    "hareline_keys",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("job_type", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Index("ix_hareline_keys_created_at", "created_at"),
)
"""The ids of jobs enqueued with a key through the outbox: a second enqueue finds that the job exists."""

inbox: Final = Table(
    "hareline_inbox",
    metadata,
    Column("job_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("job_type", Text, nullable=False),
    Column("handled_at", Moment, nullable=False),
    Column("result", Text),
    Column("abandoned", Text),
    PrimaryKeyConstraint("job_id", "name"),
    Index("ix_hareline_inbox_handled_at", "handled_at"),
)
"""Which jobs have committed their effects; ``name`` tells apart several transactions of one job.

Of a saga's step: ``result`` is what it returned, as JSON; ``abandoned`` is set, and says why, where it failed for
good first and must have no effects any more.
"""

schedules: Final = Table(
    "hareline_schedules",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, unique=True),
    Column("kind", Text, nullable=False),
    Column("job_type", Text, nullable=False),
    Column("job_group", Text),
    Column("record", Text),
    Column("timeout", Float),
    Column("payload", Text, nullable=False),
    Column("payload_hash", Text, nullable=False),
    Column("priority", SmallInteger),
    Column("group_name", Text),
    Column("status", Text, nullable=False),
    Column("expression", Text),
    Column("zone", Text),
    Column("interval_seconds", Float),
    Column("start_at", Moment),
    Column("next_run_at", Moment),
    Column("last_run_at", Moment),
    Column("last_job_id", Text),
    Column("misfire", Text, nullable=False),
    Column("misfire_window", Float),
    Column("overlap", Text, nullable=False),
    Column("buffered_at", Moment),
    Column("source", Text, nullable=False),
    Column("unique_key", Text, unique=True),
    Column("runs", BigInteger, nullable=False, server_default="0"),
    Column("error", Text),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Index("ix_hareline_schedules_due", "status", "next_run_at"),
    Index("ix_hareline_schedules_list", "job_type", "next_run_at"),
    Index("ix_hareline_schedules_group", "group_name"),
    Index(
        "ix_hareline_schedules_ended",
        "updated_at",
        postgresql_where=text("next_run_at IS NULL"),
        sqlite_where=text("next_run_at IS NULL"),
    ),
    Index(
        "ix_hareline_schedules_buffered",
        "buffered_at",
        postgresql_where=text("buffered_at IS NOT NULL"),
        sqlite_where=text("buffered_at IS NOT NULL"),
    ),
)
"""``kind`` is once, every or cron; ``status`` active, paused, done or cancelled.

``unique_key`` is set while a unique schedule is active or paused. ``buffered_at`` is the due time of the one
occurrence that ``overlap`` buffer_one holds back. ``job_group``, ``record`` and ``timeout`` (seconds) are the job
type's, for a scheduler that knows no job types.
"""

occurrences: Final = Table(
    "hareline_occurrences",
    metadata,
    Column("schedule_id", Text, nullable=False),
    Column("due_at", Moment, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("issued_at", Moment, nullable=False),
    PrimaryKeyConstraint("schedule_id", "due_at"),
    Index("ix_hareline_occurrences_issued_at", "issued_at"),
)
"""What was issued. The primary key is what makes an occurrence happen once, however many schedulers there are."""

jobs: Final = Table(
    "hareline_jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("group_name", Text),
    Column("status", Text, nullable=False),
    Column("rank", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("priority", SmallInteger),
    Column("payload", Text),
    Column("correlation_id", Text),
    Column("seen_at", Moment, nullable=False),
    Column("accepted_at", Moment),
    Column("due_at", Moment),
    Column("started_at", Moment),
    Column("finished_at", Moment),
    Column("duration", Float),
    Column("error", Text),
    Column("error_message", Text),
    Column("updated_at", Moment, nullable=False),
    Index("ix_hareline_jobs_seen", "seen_at", "id"),
    Index("ix_hareline_jobs_status", "status", "seen_at", "id"),
    Index("ix_hareline_jobs_type", "type", "seen_at", "id"),
    Index("ix_hareline_jobs_group", "group_name", "seen_at", "id"),
)
"""The job log: one row a job. ``rank`` orders the reports of a job, so that they may arrive in any order.

``seen_at`` is the earliest moment that a report told of, ``duration`` the seconds of the last run.
"""

attempts: Final = Table(
    "hareline_attempts",
    metadata,
    Column("job_id", Text, nullable=False),
    Column("replay", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("rank", BigInteger, nullable=False),
    Column("ended_at", Moment, nullable=False),
    Column("duration", Float),
    Column("error", Text),
    Column("error_message", Text),
    PrimaryKeyConstraint("job_id", "replay", "attempt"),
    Index("ix_hareline_attempts_ended_at", "ended_at"),
)
"""How each attempt ended. ``replay`` counts how often the job was replayed from the dead-letter desk before."""

dead_letters: Final = Table(
    "hareline_dead_letters",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("message_key", Text, nullable=False, unique=True),
    Column("job_id", Text, nullable=False),
    Column("job_type", Text, nullable=False),
    Column("group_name", Text),
    Column("queue", Text),
    Column("reason", Text),
    Column("error", Text),
    Column("message", Text),
    Column("traceback", Text),
    Column("attempts", Integer),
    Column("first_failed_at", Moment),
    Column("last_failed_at", Moment),
    Column("died_at", Moment, nullable=False),
    Column("recorded_at", Moment, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("priority", SmallInteger),
    Column("correlation_id", Text),
    Column("content_type", Text),
    Column("content_encoding", Text),
    Column("headers", Json, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("replays", Integer, nullable=False, server_default="0"),
    Column("replayed_at", Moment),
    Column("replay_job_id", Text),
    Column("replaces", Text),
    Index("ix_hareline_dead_letters_list", "status", "died_at", "id"),
    Index("ix_hareline_dead_letters_type", "job_type", "status", "died_at", "id", "error", "group_name"),
    Index("ix_hareline_dead_letters_error", "error", "status", "died_at", "id", "job_type", "group_name"),
    Index("ix_hareline_dead_letters_reason", "reason", "status", "died_at", "id", "job_type", "error"),
    Index("ix_hareline_dead_letters_group", "group_name", "status", "died_at", "id", "job_type", "error"),
    Index("ix_hareline_dead_letters_fingerprint", "fingerprint", "status", "died_at", "id"),
    Index("ix_hareline_dead_letters_died_at", "died_at", "id"),
    sqlite_autoincrement=True,
)
"""The dead-letter desk. ``status`` is dead, replayed or discarded; ``message_key`` tells a redelivery from a new one.

``fingerprint`` groups by job type and exception. Indexes end in what other filters ask: two that never match together
are answered from the index alone. ``replaces``: the job id whose edited successor this one was.
"""

reporters: Final = Table(
    "hareline_reporters",
    metadata,
    Column("id", Text, primary_key=True),
    Column("highest", BigInteger, nullable=False),
    Column("received", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("ranges", Json, nullable=False),
    Column("seen_at", Moment, nullable=False),
)
"""For each process that reports: how far its batches were counted and how many arrived, so that losses are known.

``ranges`` are the numbers of the batches that arrived, as pairs of first and last: one that arrives twice counts once.
"""

webhooks: Final = Table(
    "hareline_webhooks",
    metadata,
    Column("webhook_id", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("event", Text),
    Column("job_id", Text, nullable=False),
    Column("job_type", Text, nullable=False),
    Column("received_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    UniqueConstraint("source", "idempotency_key"),
    Index("ix_hareline_webhooks_expires_at", "expires_at"),
)
"""Deliveries that were accepted, and the job that each started. A key may be used anew after ``expires_at``."""

answers: Final = Table(
    "hareline_answers",
    metadata,
    Column("scope", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("locked_until", Moment, nullable=False),
    Column("status", SmallInteger),
    Column("headers", Json),
    Column("body", LargeBinary),
    Column("expires_at", Moment, nullable=False),
    PrimaryKeyConstraint("scope", "idempotency_key"),
    Index("ix_hareline_answers_expires_at", "expires_at"),
)
"""Answers of a service's own API, by the caller's idempotency key. ``status`` is null while the first call runs.

``owner`` is the call that runs; another may take over after ``locked_until``.
"""

saga_joins: Final = Table(
    "hareline_saga_joins",
    metadata,
    Column("saga_id", Text, nullable=False),
    Column("stage", SmallInteger, nullable=False),
    Column("branch", SmallInteger, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("settled_at", Moment, nullable=False),
    PrimaryKeyConstraint("saga_id", "stage", "branch"),
    Index("ix_hareline_saga_joins_settled_at", "settled_at"),
)
"""Where the parallel steps of a saga meet. ``outcome`` is JSON: what a step returned, or how it failed."""

sagas: Final = Table(
    "hareline_sagas",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("itinerary", Text),
    Column("payload", Text),
    Column("started_at", Moment, nullable=False),
    Column("deadline", Moment),
    Column("finished_at", Moment),
    Column("undos", Text),
    Column("failed_step", Text),
    Column("error", Text),
    Column("error_message", Text),
    Column("updated_at", Moment, nullable=False),
    Index("ix_hareline_sagas_started", "started_at", "id"),
    Index("ix_hareline_sagas_status", "status", "started_at", "id"),
    Index("ix_hareline_sagas_name", "name", "started_at", "id"),
    Index("ix_hareline_sagas_updated_at", "updated_at"),
)
"""The saga log. ``status`` follows from the steps' rows. ``undos`` is set once a step failed: what is to be undone."""

saga_steps: Final = Table(
    "hareline_saga_steps",
    metadata,
    Column("saga_id", Text, nullable=False),
    Column("step", Text, nullable=False),
    Column("undo", SmallInteger, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("job_type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("replay", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("result", Text),
    Column("error", Text),
    Column("error_message", Text),
    Column("duration", Float),
    Column("ended_at", Moment, nullable=False),
    PrimaryKeyConstraint("saga_id", "step", "undo"),
)
"""How each step of a saga, and each undo (``undo`` is 1), ended: done, failed (it is undone), or dead (an undo)."""
