"""Watches the broker while the demo runs: reports, dead letters, what is left. Takes nothing away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from consumers.report_batch import read_batch
from hareline.demo.contracts import JOB_TYPES
from topology import envelope
from topology.apply import apply
from topology.contract import JobType
from topology.control import Control
from topology.events import JobEvent
from topology.settings import Settings
from topology.spec import Spec, derive

OnReport = Callable[[JobEvent], None]
_PATIENCE: Final = 15.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job in the dead-letter queue. ``reason`` is the broker's own where no worker could say."""

    job_id: str
    job_type: str
    reason: str
    error: str


class Watch:
    """The control connection of the demo."""

    def __init__(
        self, control: Control, settings: Settings, job_types: Iterable[JobType[Any]], undos: Iterable[JobType[Any]]
    ) -> None:
        self._control = control
        self._settings = settings
        self._spec: Spec = derive(job_types, control.capabilities, settings.namespace, undos)
        self._names = self._spec.names
        self._not_jobs = {self._names.dlq, self._names.records, self._names.records_failed}

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, settings: Settings, job_types: Iterable[JobType[Any]] = JOB_TYPES, undos: Iterable[JobType[Any]] = ()
    ) -> AsyncIterator[Watch]:
        """Connects for the time of the block."""
        async with await Control.connect(settings.broker_urls, name="hareline demo") as control:
            yield cls(control, settings, job_types, undos)

    async def apply_topology(self) -> int:
        """Creates the demo's exchanges, queues and bindings; returns how many were missing."""
        done = await apply(self._spec, self._control, None, self._settings)
        return len(done.changes)

    async def remove_topology(self) -> None:
        """Deletes all that `apply_topology` creates, with what is in it."""
        for queue in self._spec.queues:
            await self._control.delete_queue(queue.name)
        for exchange in reversed(self._spec.exchanges):
            await self._control.delete_exchange(exchange.name)

    @asynccontextmanager
    async def reports(self, on_report: OnReport) -> AsyncIterator[None]:
        """Calls ``on_report`` with every event that producers and workers report during the block."""

        async def take(message: Any) -> None:
            for row in read_batch(message.body).events:
                on_report(JobEvent(*row))

        async with self._control.channel("listening to reports") as channel:
            declared = await channel.queue_declare(exclusive=True)
            queue = declared.queue or ""
            await channel.queue_bind(queue, self._names.events, "job.#")
            await channel.basic_consume(queue, take, no_ack=True)
            yield

    async def consumers(self) -> dict[str, int]:
        """How many consumers each job type's queue has."""
        return {name: found.consumers for name, found in (await self._job_queues()).items()}

    async def waiting(self) -> int:
        """How many jobs wait in queues and on the delay ladder."""
        wanted = [queue.name for queue in self._spec.queues if queue.name not in self._not_jobs]
        found = [await self._control.counts(name) for name in wanted]
        return sum(counts.ready for counts in found if counts is not None)

    async def dead_letters(self) -> list[DeadLetter]:
        """What is in the dead-letter queue. It is read without acknowledgement, so all of it stays there."""
        counts = await self._control.counts(self._names.dlq)
        expected = counts.ready if counts else 0
        letters: list[DeadLetter] = []
        complete = asyncio.Event()

        async def take(message: Any) -> None:
            letters.append(_letter(message))
            if len(letters) >= expected:
                complete.set()

        if expected:
            async with self._control.channel("reading the dead-letter queue") as channel:
                await channel.basic_consume(self._names.dlq, take)
                # Somebody else may take letters out meanwhile; then it is less than was counted.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PATIENCE):
                        await complete.wait()
        return letters

    async def _job_queues(self) -> dict[str, Any]:
        found = {}
        for job_type in JOB_TYPES:
            counts = await self._control.counts(self._names.queue(job_type.name))
            if counts is not None:
                found[job_type.name] = counts
        return found


def _letter(message: Any) -> DeadLetter:
    properties = message.header.properties
    headers = properties.headers or {}
    reason = headers.get(envelope.REASON) or headers.get("x-first-death-reason") or "unknown"
    error = headers.get(envelope.ERROR_MESSAGE) or headers.get(envelope.ERROR) or ""
    return DeadLetter(
        str(properties.message_id or ""),
        str(properties.message_type or message.routing_key or ""),
        str(reason),
        str(error),
    )
