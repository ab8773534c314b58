"""The asyncio producer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from producers.orders import JobId, OrderBook, job_id_of, needs_no_order
from producers.reporter import CLOSING, Reporter
from topology.contract import JobType
from topology.envelope import Message
from topology.errors import BatchError, EnqueueError, PublishError
from topology.publisher import Publisher, Receipt
from topology.saga import Saga
from topology.settings import Settings
from topology.spec import Names

P = TypeVar("P")


class Producer:
    """Hands jobs to the broker: confirmed, routed to a queue, persistent, or an error.

    ``async with Producer() as producer`` connects in the background and flushes at the end. One producer serves
    all tasks of a process. While the broker is away, ``enqueue`` waits for it, up to its timeout.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings.from_env()
        self._orders = OrderBook(self._settings)
        self._publisher = Publisher(self._settings)
        self._reporter = Reporter(self._publisher, Names(self._settings.namespace)) if self._settings.report else None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Begins to connect, in the background; jobs may be enqueued at once."""
        self._publisher.start()

    def post(self, message: Message, job_type: JobType[Any], timeout: float, receipt: Receipt) -> None:
        """Publishes a message of the order book's; ``receipt`` is resolved at its confirm. For other producers."""
        told = receipt if self._reporter is None else _Told(receipt, self._reporter, message, job_type)
        self._publisher.post(message, timeout, told)

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - part of the contract
        """Waits until all is confirmed, up to ``timeout`` seconds (default: the publish timeout), and disconnects.

        While the broker is there it takes the last reports first, for a second at most.
        """
        seconds = self._orders.timeout(timeout)
        if self._reporter is not None:
            await self._reporter.close(min(CLOSING, seconds))
        await self._publisher.stop(seconds)

    async def enqueue(
        self,
        job_type: JobType[P],
        payload: P | dict[str, Any],
        *,
        priority: int | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        key: str | None = None,
        correlation_id: str | None = None,
        connection: Any = None,
        ordering_key: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - part of the contract
    ) -> JobId:
        """The id of a job that the broker has confirmed to hold in a queue.

        With ``connection``, SQLAlchemy's AsyncConnection or AsyncSession, the job is a row in its transaction
        instead, and `hareline relay` publishes it once that has committed: no broker is needed, the producer need
        not be open, and ``existed`` of the id tells whether ``key`` was used before (then nothing is written). Jobs
        of one ``ordering_key`` are published one after the other, in the order of their rows.

        ``priority`` is 0 to 9, higher first, for job types that have priorities. ``delay`` is seconds, ``at`` a
        time with a zone; the job starts then or later, never earlier. The same ``key`` gives the same job id.
        ``timeout`` is seconds (default HARELINE_PUBLISH_TIMEOUT). Raises an EnqueueError: see topology/errors.py.
        """
        options: dict[str, Any] = {
            "priority": priority,
            "delay": delay,
            "at": at,
            "key": key,
            "correlation_id": correlation_id,
        }
        if connection is not None:
            from store.enlisting import enlist  # noqa: PLC0415 - needs the server extra

            row = self._orders.row(job_type, payload, ordering_key=ordering_key, **options)
            return JobId(row.job_id, await enlist(connection, [row], keyed=key is not None))
        needs_no_order(ordering_key)
        message = self._orders.message(job_type, payload, **options)
        await self._publisher.send(message, self._orders.timeout(timeout))
        if self._reporter is not None:
            self._reporter.queued(message, group=job_type.group)
        return job_id_of(message)

    async def enqueue_many(
        self,
        job_type: JobType[P],
        payloads: Iterable[P | dict[str, Any]],
        *,
        priority: int | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        correlation_id: str | None = None,
        connection: Any = None,
        ordering_key: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - part of the contract
    ) -> list[JobId]:
        """The ids of all jobs, in order, once the broker has confirmed every one; pipelined.

        ``timeout`` is seconds from the sending of each. Raises BatchError if some were not accepted; it says which.
        The iterable is read as the broker confirms, so it may be long. Should it raise, or the call be cancelled,
        then what has been sent may run. With ``connection`` all are written into its transaction, or none.
        """
        options: dict[str, Any] = {"priority": priority, "delay": delay, "at": at, "correlation_id": correlation_id}
        if connection is not None:
            from store.enlisting import enlist  # noqa: PLC0415 - needs the server extra

            rows = self._orders.rows(job_type, payloads, ordering_key=ordering_key, **options)
            await enlist(connection, rows, keyed=False)
            return [JobId(row.job_id) for row in rows]
        needs_no_order(ordering_key)
        seconds = self._orders.timeout(timeout)
        reporter = self._reporter
        batch = _Batch(None if reporter is None else partial(reporter.queued, group=job_type.group))
        window = self._settings.max_unconfirmed
        try:
            for payload in payloads:
                try:
                    message = self._orders.message(job_type, payload, **options)
                except EnqueueError as error:
                    batch.fail(error)
                    continue
                batch.expect(message, self._publisher.send(message, seconds))
                if batch.open >= window:
                    # Half of them are still on their way meanwhile, so the pipeline never runs dry.
                    await batch.collect(max(1, window // 2))
            await batch.collect(batch.open)
        finally:
            batch.give_up()
        return batch.ids()

    async def start(
        self,
        saga: Saga[P],
        payload: P | dict[str, Any],
        *,
        key: str | None = None,
        connection: Any = None,
        timeout: float | None = None,  # noqa: ASYNC109 - part of the contract
    ) -> JobId:
        """Starts a saga; the id of the saga, once the broker has confirmed its first step.

        The same ``key`` gives the same saga id, and steps that use ``job.transaction()`` have their effects once. With
        ``connection`` it starts once that transaction has committed, and ``existed`` tells whether the key was used
        before: see `enqueue`. Raises an EnqueueError.
        """
        order = self._orders.saga(saga, payload, key=key)
        if connection is not None:
            from store.enlisting import enlist  # noqa: PLC0415 - needs the server extra

            return JobId(order.slip.id, await enlist(connection, order.rows(), keyed=key is not None))
        seconds = self._orders.timeout(timeout)
        await asyncio.gather(*(self._publisher.send(message, seconds) for message in order.messages))
        if self._reporter is not None:
            self._reporter.queued(*order.messages)
            self._reporter.started(order.slip, order.body)
        return JobId(order.slip.id)


class _Told:
    """A receipt that reports the job as accepted when it is."""

    __slots__ = ("_job_type", "_message", "_receipt", "_reporter")

    def __init__(self, receipt: Receipt, reporter: Reporter, message: Message, job_type: JobType[Any]) -> None:
        self._receipt = receipt
        self._reporter = reporter
        self._message = message
        self._job_type = job_type

    def done(self) -> bool:
        return self._receipt.done()

    def set_result(self, _: None, /) -> None:
        self._receipt.set_result(None)
        self._reporter.queued(self._message, group=self._job_type.group)

    def set_exception(self, exception: PublishError, /) -> None:
        self._receipt.set_exception(exception)


class _Batch:
    """The outcome of each job of an ``enqueue_many``, in order."""

    def __init__(self, tell: Callable[..., None] | None) -> None:
        self._tell = tell
        self._outcomes: list[JobId | EnqueueError] = []
        self._open: deque[tuple[int, Message, asyncio.Future[None]]] = deque()

    @property
    def open(self) -> int:
        """How many are not settled yet."""
        return len(self._open)

    def fail(self, error: EnqueueError) -> None:
        """The next job of the batch was not even sent."""
        self._outcomes.append(error)

    def expect(self, message: Message, future: asyncio.Future[None]) -> None:
        """The next job of the batch is on its way."""
        self._open.append((len(self._outcomes), message, future))
        self._outcomes.append(job_id_of(message))

    async def collect(self, count: int) -> None:
        """Waits for the oldest ``count``. They resolve nearly in order, so this wakes far less often than a gather."""
        accepted: list[Message] = []
        try:
            for _ in range(count):
                index, message, future = self._open[0]
                try:
                    await future
                except EnqueueError as error:
                    self._outcomes[index] = error
                else:
                    accepted.append(message)
                self._open.popleft()
        finally:
            if accepted and self._tell is not None:
                self._tell(*accepted)

    def give_up(self) -> None:
        """Nobody waits for what is still open, if anything is."""
        for _, _, future in self._open:
            future.cancel()

    def ids(self) -> list[JobId]:
        """All ids, or BatchError."""
        failed = [(index, item) for index, item in enumerate(self._outcomes) if isinstance(item, EnqueueError)]
        accepted = [item for item in self._outcomes if isinstance(item, JobId)]
        if failed:
            raise BatchError([*accepted], failed)
        return accepted
