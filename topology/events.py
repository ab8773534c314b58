"""What happens to a job, as events: the one table that reports, logs and metrics are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

QUEUED: Final = "job.queued"
STARTED: Final = "job.started"
DONE: Final = "job.done"
RETRYING: Final = "job.retrying"
SNOOZED: Final = "job.snoozed"
DEAD: Final = "job.dead"
CANCELLED: Final = "job.cancelled"

SAGA_STARTED: Final = "saga.started"
SAGA_STEP: Final = "saga.step"
SAGA_TURNED: Final = "saga.turned"

EVENTS: Final = {
    QUEUED: "the broker has confirmed to hold the job",
    STARTED: "the job is running, and has been for longer than a reporting interval",
    DONE: "the handler returned and the delivery is settled",
    RETRYING: "the attempt failed; the next one waits in the delay ladder",
    SNOOZED: "the job was put off without charging an attempt",
    DEAD: "the job went to the final dead-letter queue",
    CANCELLED: "the job was settled as no longer wanted",
    SAGA_STARTED: "the broker has confirmed to hold the saga's first step",
    SAGA_STEP: "a step of a saga is done or has failed, or was undone, or its undo is dead",
    SAGA_TURNED: "a step failed for good: what was done is being undone",
}

NEWS: Final = frozenset({QUEUED, STARTED, DONE})
"""What may be missed: these travel apart from the rest, and are the first to be dropped."""

BATCH_DONE: Final = "job.batch.done"
"""Routing key of a batch that holds `NEWS` alone."""
BATCH_FAILED: Final = "job.batch.failed"
"""Routing key of a batch that holds everything else."""


class JobEvent(NamedTuple):
    """One event; as a JSON array it is a row of a batch.

    ``id`` may be empty for a message that nobody can understand. Of a ``saga.*`` event ``id`` and ``type`` are the
    saga's id and name, and ``detail`` says which step. ``replay`` is how often the dead-letter desk
    replayed the job, ``attempt`` counts from 1 (0: it has not run yet). ``at`` is Unix seconds of the event,
    ``duration`` seconds of the run, ``error`` a class name.
    """

    event: str
    id: str
    type: str
    replay: int
    attempt: int
    at: float
    duration: float | None = None
    error: str | None = None
    detail: Mapping[str, Any] | None = None


Observer = Callable[[JobEvent], None]
