"""How a delivery ends: the closed set of outcomes, and what a handler raises to choose one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


class Permanent(Exception):
    """The job can never succeed: dead-letter it at once, whatever attempts are left."""


class Transient(Exception):
    """The job may succeed later. ``after`` is seconds until then; None leaves it to the job type's retry policy."""

    def __init__(self, message: str = "", *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Snoozed(Exception):
    """Put the job off by ``after`` seconds without charging an attempt."""

    def __init__(self, after: float, message: str = "") -> None:
        super().__init__(message or f"put off by {after:g} s")
        self.after = after


class Cancelled(Exception):
    """The job is no longer wanted: settle it, run nothing, dead-letter nothing."""


class AlreadyDone(Exception):
    """An earlier delivery of the job has committed this transaction: it is done, and its block must not run again.

    Without a name the job settles as done. With one, only the handler knows what else there is to do: it goes round
    the block with ``contextlib.suppress(AlreadyDone)``. One that gets out of the handler is dead-lettered.
    ``result`` is what a saga's step kept with it by ``job.keep()``.
    """

    def __init__(self, job_id: str, job_type: str, name: str = "", result: Any = None) -> None:
        which = f"the transaction '{name}'" if name else "the transaction"
        cure = ": put `with suppress(AlreadyDone):` around its block, so that the rest can run" if name else ""
        super().__init__(f"{which} of {job_type} {job_id} has been committed by an earlier delivery{cure}")
        self.name = name
        self.result = result


class Abandoned(Exception):
    """An earlier delivery of this saga's step failed for good: what was done is undone, and it must do nothing now."""


class SagaOverdue(Exception):
    """The saga's deadline passed before this step was done."""


class WorkerLost(Exception):
    """The job came back again and again from workers that died under it."""


class NoHandler(Exception):
    """No job type of that name is registered with this worker."""


@dataclass(frozen=True, slots=True)
class Done:
    """The handler returned: the delivery is acknowledged."""


@dataclass(frozen=True, slots=True)
class Returned:
    """A saga's step is done: what follows it is published, and then the delivery is acknowledged."""

    result: Any


@dataclass(frozen=True, slots=True)
class Retried:
    """A fresh copy with the next attempt waits ``after`` seconds in the delay ladder."""

    after: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Snooze:
    """The job is put off by ``after`` seconds with no attempt charged; at 0 it goes back to its queue at once.

    ``deliveries`` is kept with it where it is set: how often a worker died under the job.
    """

    after: float
    cause: str
    deliveries: int | None = None


@dataclass(frozen=True, slots=True)
class Dead:
    """The job goes to the final dead-letter queue. ``reason`` is one of `REASONS`."""

    reason: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class Dropped:
    """The job was cancelled: acknowledged, and reported as cancelled."""

    cause: str


Outcome = Done | Returned | Retried | Snooze | Dead | Dropped

DONE: Final = Done()

REASONS: Final = {
    "permanent": "the handler, or the classification of its error, says that it can never succeed",
    "exhausted": "every attempt of the retry policy failed",
    "invalid": "the payload does not fit the job type's model, or is no JSON",
    "malformed": "the message's properties or headers cannot be understood",
    "no-handler": "no handler for this job type",
    "deadline": "the deadline of the saga that it is a step of has passed",
    "result": "what the saga's step returned cannot be kept",
    "abandoned": "an earlier delivery of this saga step has failed for good",
    "worker-lost": "it came back more often than delivery_limit from workers that died under it",
}
"""What each ``hareline-reason`` header in the dead-letter queue means. A saga's step that fails is undone instead."""
