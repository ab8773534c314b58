"""What a handler knows about the job that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from consumers.outcome import Cancelled, Snoozed, Transient
from consumers.saga_view import Kept, SagaView
from topology.envelope import Envelope

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from consumers.inbox import Inbox, Transaction
    from topology.slip import Slip

R = TypeVar("R")


class Job:
    """One delivery of a job, as its handler sees it."""

    __slots__ = ("_envelope", "_inbox", "_kept")

    def __init__(self, envelope: Envelope, inbox: Inbox | None = None) -> None:
        self._envelope = envelope
        self._inbox = inbox
        self._kept: Kept | None = None

    @property
    def id(self) -> str:
        """The job's id; the same across attempts and deliveries."""
        return self._envelope.job_id

    @property
    def type(self) -> str:
        """The job type's name."""
        return self._envelope.job_type

    @property
    def attempt(self) -> int:
        """Which run this is, from 1."""
        return self._envelope.attempt

    @property
    def idempotency_key(self) -> str:
        """The same for every run of this job: pass it on to services that recognise a repeat by it."""
        return self._envelope.job_id

    @property
    def correlation_id(self) -> str:
        """What the producer gave, or else the job's own id."""
        return self._envelope.correlation_id

    @property
    def slip(self) -> Slip | None:
        """The routing slip of its saga, as it travels; `saga` is what handlers read."""
        return self._envelope.slip

    @property
    def saga(self) -> SagaView | None:
        """The saga that this job is a step of, or undoes a step of; None for any other job."""
        return None if self._envelope.slip is None else SagaView(self._envelope.slip)

    @property
    def headers(self) -> Mapping[str, Any]:
        """The message's headers, read-only by agreement."""
        return self._envelope.headers

    def transaction(self, *, name: str = "", engine: AsyncEngine | Engine | None = None) -> Transaction:
        """Effects exactly once: ``async with job.transaction() as conn:``, or ``with`` in a plain handler.

        The block's statements commit together with a row that says so. A later delivery of the job raises AlreadyDone
        before the block, which ends the handler: the job settles as done. Several transactions in one job need a
        ``name`` each, and ``contextlib.suppress(AlreadyDone)`` around each.

        On the database of HARELINE_DATABASE_URL, or on that of ``engine``, which must have Hareline's tables. Raises
        DatabaseUnavailable (which is retried) where that is gone, locked, full or read-only.
        """
        from consumers.inbox import Inbox, Transaction  # noqa: PLC0415 - few handlers need it

        if self._inbox is None:  # made by hand, in a test of a handler
            from topology.settings import Settings  # noqa: PLC0415

            self._inbox = Inbox(Settings.from_env(), 1)
        return Transaction(self._inbox, self._notes(), name, engine)

    def keep(self, result: R) -> R:
        """``result``, which the transaction around this call stores: for ``return job.keep(...)`` in a saga's step.

        A worker may die after the transaction has committed and before the next step is on its way. The job comes
        again then, its transaction raises AlreadyDone, and what the step returned is read from there. Raises
        Permanent where it is no JSON, or too large.
        """
        self._notes().keep(result)
        return result

    def _notes(self) -> Kept:
        if self._kept is None:
            slip = self._envelope.slip
            self._kept = Kept(self.id, self.type, slip is not None, slip is not None and not slip.undoing)
        return self._kept

    @property
    def is_forgetful(self) -> bool:
        """Whether its transaction has committed without what it returns: a later delivery could not know that."""
        return self._kept is not None and self._kept.is_forgetful

    async def retry(self, after: float | None = None) -> NoReturn:
        """Ends this run; the next attempt follows after ``after`` seconds, or by the retry policy."""
        raise Transient("the handler asked for a retry", after=after)

    async def snooze(self, after: float) -> NoReturn:
        """Ends this run and puts the job off by ``after`` seconds without charging an attempt."""
        raise Snoozed(after)

    async def cancel(self, reason: str) -> NoReturn:
        """Ends the job for good: no retry, no dead letter."""
        raise Cancelled(reason)

    def __repr__(self) -> str:
        return f"<Job {self.type} {self.id} attempt {self.attempt}>"
