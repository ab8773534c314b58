"""What happens to a job, as events: the one table that reports, logs and metrics are made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

DONE: Final = "job.done"
RETRYING: Final = "job.retrying"
SNOOZED: Final = "job.snoozed"
DEAD: Final = "job.dead"
CANCELLED: Final = "job.cancelled"

EVENTS: Final = {
    DONE: "the handler returned and the delivery is settled",
    RETRYING: "the attempt failed; the next one waits in the delay ladder",
    SNOOZED: "the job was put off without charging an attempt",
    DEAD: "the job went to the final dead-letter queue",
    CANCELLED: "the job was settled as no longer wanted",
}


class JobEvent(NamedTuple):
    """One event. ``at`` is Unix seconds at settlement, ``duration`` seconds of the run, ``error`` a class name."""

    event: str
    id: str
    type: str
    attempt: int
    at: float
    duration: float
    error: str | None


Observer = Callable[[JobEvent], None]
