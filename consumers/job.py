"""What a handler knows about the job that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from consumers.outcome import Cancelled, Snoozed, Transient
from topology.envelope import Envelope

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from consumers.inbox import Inbox, Transaction


class Job:
    """One delivery of a job, as its handler sees it."""

    __slots__ = ("_envelope", "_inbox", "_used")

    def __init__(self, envelope: Envelope, inbox: Inbox | None = None) -> None:
        self._envelope = envelope
        self._inbox = inbox
        self._used: set[str] | None = None

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
        if self._used is None:
            self._used = set()
        return Transaction(self._inbox, (self.id, self.type), name, engine, self._used)

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
