"""The producer for code without an event loop: Django, Flask, scripts."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from producers.orders import JobId, OrderBook, job_id_of, needs_no_order
from producers.producer import Producer
from topology.contract import JobType
from topology.envelope import Message
from topology.errors import ProducerClosed, PublishError
from topology.saga import Saga
from topology.settings import Settings

try:
    # Not within a call: a child that is forked in the midst of an import would wait for its end for ever.
    import uvloop
except ImportError:  # the producer alone does without
    uvloop = None  # type: ignore[assignment]

P = TypeVar("P")

_LAST_WORDS = 5.0


class BlockingProducer:
    """`Producer` behind plain calls, for any number of threads.

    One event loop in a thread of its own serves all callers: heartbeats go on between calls, threads share one
    pipelined connection, and every guarantee and error is the asyncio producer's own. The thread starts with the
    first call; a fork (gunicorn, multiprocessing) starts its own. ``close()`` flushes; ``with`` does that for you.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings.from_env()
        self._orders = OrderBook(self._settings)
        self._lock = threading.Lock()
        self._closed = False
        self._engine: _Engine | None = None
        _producers.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def enqueue(
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
        timeout: float | None = None,
    ) -> JobId:
        """As `Producer.enqueue`; returns when the broker has confirmed.

        ``connection`` is SQLAlchemy's Connection or Session, or Django's ``django.db.connection``.
        """
        options: dict[str, Any] = {
            "priority": priority,
            "delay": delay,
            "at": at,
            "key": key,
            "correlation_id": correlation_id,
        }
        if connection is not None:
            from store.enlisting import enlist_blocking  # noqa: PLC0415 - needs the server extra

            row = self._orders.row(job_type, payload, ordering_key=ordering_key, **options)
            return JobId(row.job_id, enlist_blocking(connection, [row], keyed=key is not None))
        needs_no_order(ordering_key)
        message = self._orders.message(job_type, payload, **options)
        self._running().publish(message, job_type, self._orders.timeout(timeout))
        return job_id_of(message)

    def enqueue_many(
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
        timeout: float | None = None,
    ) -> list[JobId]:
        """As `Producer.enqueue_many`; the payloads are read in the calling thread before the first is sent."""
        if connection is not None:
            from store.enlisting import enlist_blocking  # noqa: PLC0415 - needs the server extra

            options: dict[str, Any] = {"priority": priority, "delay": delay, "at": at, "correlation_id": correlation_id}
            rows = self._orders.rows(job_type, payloads, ordering_key=ordering_key, **options)
            enlist_blocking(connection, rows, keyed=False)
            return [JobId(row.job_id) for row in rows]
        needs_no_order(ordering_key)
        engine = self._running()
        ids: list[JobId] = engine.call(
            engine.producer.enqueue_many(
                job_type,
                list(payloads),
                priority=priority,
                delay=delay,
                at=at,
                correlation_id=correlation_id,
                timeout=timeout,
            )
        )
        return ids

    def start(
        self,
        saga: Saga[P],
        payload: P | dict[str, Any],
        *,
        key: str | None = None,
        connection: Any = None,
        timeout: float | None = None,
    ) -> JobId:
        """As `Producer.start`; ``connection`` as in `enqueue`."""
        if connection is not None:
            from store.enlisting import enlist_blocking  # noqa: PLC0415 - needs the server extra

            order = self._orders.saga(saga, payload, key=key)
            return JobId(order.slip.id, enlist_blocking(connection, order.rows(), keyed=key is not None))
        engine = self._running()
        started: JobId = engine.call(engine.producer.start(saga, payload, key=key, timeout=timeout))
        return started

    def close(self) -> None:
        """Waits until all is confirmed, up to the publish timeout, and ends the thread. May be called twice."""
        with self._lock:
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.stop()

    def _running(self) -> _Engine:
        engine = self._engine
        if engine is not None:
            return engine
        with self._lock:
            if self._closed:
                raise ProducerClosed("this producer was closed")
            if self._engine is None:
                self._engine = _Engine(self._settings)
            return self._engine

    def _start_over(self) -> None:
        """In the child of a fork: the thread stayed with the parent, and so did whoever held the lock."""
        self._lock = threading.Lock()
        engine, self._engine = self._engine, None
        if engine is not None:
            # Were it collected, its sockets would be taken off the selector that both processes share.
            _left_to_parent.append(engine)


_producers: weakref.WeakSet[BlockingProducer] = weakref.WeakSet()
_left_to_parent: list[_Engine] = []


def _after_fork() -> None:
    for producer in list(_producers):
        producer._start_over()  # noqa: SLF001 - this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Engine:
    """The thread, its loop and the producer in it."""

    def __init__(self, settings: Settings) -> None:
        self.producer = Producer(settings)
        self._loop = _new_loop()
        self._gate = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="hareline producer", daemon=True)
        self._thread.start()
        self.call(self.producer.open())

    def publish(self, message: Message, job_type: JobType[Any], timeout: float) -> None:
        """Publishes one message and waits for its confirm: one hop into the loop, one back, and nothing in between."""
        receipt = _Receipt()
        with self._gate:
            self._admit()
            self._loop.call_soon_threadsafe(self.producer.post, message, job_type, timeout, receipt)
        receipt.wait()

    def call(self, work: Any) -> Any:
        """Runs a coroutine in the loop and waits for it; an interrupt (Ctrl-C) cancels it."""
        with self._gate:
            try:
                self._admit()
            except ProducerClosed:
                work.close()
                raise
            result: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return result.result()
        except BaseException:
            result.cancel()
            raise

    def stop(self) -> None:
        """Flushes, and ends the thread; other threads' calls end with what is known of their jobs."""
        try:
            self.call(self._finish())
        finally:
            # What came before this is in the loop ahead of its end; what comes after is turned away.
            with self._gate:
                self._ended = True
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _finish(self) -> None:
        await self.producer.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=_LAST_WORDS)

    def _admit(self) -> None:
        if self._ended:
            raise ProducerClosed("this producer was closed")


class _Receipt:
    """What a thread waits on for one message: a bare lock, since a future's condition costs as much as the hop."""

    __slots__ = ("_error", "_lock", "_resolved")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._error: PublishError | None = None
        self._resolved = False

    def wait(self) -> None:
        """Returns once the message is confirmed, or raises. An interrupt gives up on a message not sent yet."""
        try:
            self._lock.acquire()
        except BaseException:
            self._resolved = True
            raise
        if self._error is not None:
            raise self._error

    def done(self) -> bool:
        return self._resolved

    def set_result(self, _: None, /) -> None:
        self._resolved = True
        self._lock.release()

    def set_exception(self, exception: PublishError, /) -> None:
        self._error = exception
        self.set_result(None)


def _new_loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop() if uvloop is None else uvloop.new_event_loop()
