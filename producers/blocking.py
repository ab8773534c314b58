"""The producer for code without an event loop: Django, Flask, scripts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from producers.orders import OrderBook, job_id_of
from producers.producer import Producer
from topology.contract import JobType
from topology.envelope import Message
from topology.errors import ProducerClosed, PublishError
from topology.settings import Settings

P = TypeVar("P")


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
        timeout: float | None = None,
    ) -> str:
        """As `Producer.enqueue`; returns when the broker has confirmed."""
        message = self._orders.message(
            job_type,
            payload,
            priority=priority,
            delay=delay,
            at=at,
            key=key,
            correlation_id=correlation_id,
        )
        self._running().publish(message, self._settings.publish_timeout if timeout is None else timeout)
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
        timeout: float | None = None,
    ) -> list[str]:
        """As `Producer.enqueue_many`; the payloads are read in the calling thread before the first is sent."""
        engine = self._running()
        ids: list[str] = engine.call(
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

    def close(self) -> None:
        """Waits until all is confirmed, up to the publish timeout, and ends the thread. May be called twice."""
        with self._lock:
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None and engine.pid == os.getpid():
            engine.stop()

    def _running(self) -> _Engine:
        engine = self._engine
        if engine is not None and engine.pid == os.getpid():
            return engine
        with self._lock:
            if self._closed:
                raise ProducerClosed("this producer was closed")
            if self._engine is None or self._engine.pid != os.getpid():
                self._engine = _Engine(self._settings)
            return self._engine


class _Engine:
    """The thread, its loop and the producer in it."""

    def __init__(self, settings: Settings) -> None:
        self.pid = os.getpid()
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hareline producer", daemon=True)
        self._thread.start()
        self.producer = Producer(settings)
        self.call(self.producer.open())

    def publish(self, message: Message, timeout: float) -> None:
        """Publishes one message and waits for its confirm: one hop into the loop, one back, and nothing in between."""
        receipt = _Receipt()
        self._loop.call_soon_threadsafe(self.producer.post, message, timeout, receipt)
        receipt.wait()

    def call(self, work: Any) -> Any:
        """Runs a coroutine in the loop and waits for it; an interrupt (Ctrl-C) cancels it."""
        result: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return result.result()
        except BaseException:
            result.cancel()
            raise

    def stop(self) -> None:
        self.call(self.producer.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


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
    try:
        import uvloop  # noqa: PLC0415 - optional: the producer alone does not need it
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
