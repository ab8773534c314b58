"""What a handler knows about the job that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from consumers.outcome import Cancelled, Snoozed, Transient
from topology.envelope import Envelope


class Job:
    """One delivery of a job, as its handler sees it."""

    __slots__ = ("_envelope",)

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

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
