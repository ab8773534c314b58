"""Reports what happens to jobs to the events exchange, in batches, off the hot path.

At most one message per 100 ms and reporter. Reports are news, not truth: a process that is killed takes the last
batch with it, and when the broker is slow or away the oldest are dropped and counted, those of success apart from
those of failure. Neither enqueueing nor settling ever waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from producers.report_form import Batch, DoneRow, Row, encoded
from topology.contract import JobType
from topology.envelope import RECORD, REPLAY, Message, notice
from topology.errors import PublishError, Refused, Unroutable
from topology.events import (
    BATCH_DONE,
    BATCH_FAILED,
    CANCELLED,
    DEAD,
    DONE,
    NEWS,
    RETRYING,
    SAGA_STARTED,
    STARTED,
    JobEvent,
)
from topology.publisher import Publisher
from topology.slip import Slip, itinerary_of
from topology.spec import Names

logger = logging.getLogger(__name__)

INTERVAL: Final = 0.1
"""Seconds between two messages, at least."""
KEPT: Final = 50_000
"""Events of a kind that wait to be sent: accepted, done at first, other news, failures."""
PAYLOAD_LIMIT: Final = 4 * 1024
"""Bytes. A payload that is larger is not reported."""
PAYLOADS_KEPT: Final = 16 * 1024 * 1024
"""Bytes of payloads that wait to be sent. Beyond them events go without."""
CLOSING: Final = 1.0
_BATCH: Final = 5_000
_BATCH_BYTES: Final = 4 * 1024 * 1024  # of payloads: RabbitMQ 4 takes 16 MiB
_TIMEOUT: Final = 5.0
_REFUSED_PAUSE: Final = 30.0

_FAILED: Final = frozenset({RETRYING, DEAD, CANCELLED})

Running = Callable[[], Iterable[tuple[float, str, str, int, int]]]
"""What runs now, the oldest first: Unix seconds of its start, job id, job type, replay, attempt."""


class Reporter:
    """An observer that publishes batches: see docs/reference/messages.md for their form.

    ``job_types`` say what is recorded of them and what their groups are; `queued` learns more groups.
    """

    def __init__(
        self,
        publisher: Publisher,
        names: Names,
        *,
        job_types: Iterable[JobType[Any]] = (),
    ) -> None:
        self._publisher = publisher
        self._names = names
        self._partly: dict[str, JobType[Any]] = {}
        self._groups: dict[str, str] = {}
        for job_type in job_types:
            if job_type.record != "all":
                self._partly[job_type.name] = job_type
            if job_type.group is not None:
                self._groups[job_type.name] = job_type.group
        self._running: Running | None = None
        self._started: set[tuple[float, str, str, int, int]] = set()
        self._queued: deque[tuple[Any, ...]] = deque()
        self._done: deque[DoneRow] = deque()
        self._news: deque[Row] = deque()
        self._failures: deque[Row] = deque()
        self._payload_bytes = 0
        self._id = str(uuid.uuid4())
        self._batches = 0
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Future[None] | None = None
        self._failures_next = True
        self._silent_until = 0.0

    # -- taking events ---------------------------------------------------------------------------------------------

    def __call__(self, event: JobEvent) -> None:
        """Takes an event, unless its job type says that it is not to be recorded. Costs an append, mostly."""
        job_type = self._partly.get(event.type)
        if job_type is not None and not _is_recorded(event, job_type):
            return
        events = self._news if event.event in NEWS else self._failures
        events.append(event)
        self._note(events)

    def done(self, job_id: str, job_type: str, replay: int, attempt: int, duration: float) -> None:
        """The same as an event of a job that is done now, for a fraction of its cost."""
        if attempt != 1 or replay or job_type in self._partly:
            self(JobEvent(DONE, job_id, job_type, replay, attempt, time.time(), duration))
            return
        self._done.append((job_type, job_id, time.time(), duration))
        self._note(self._done)

    def queued(self, *messages: Message, group: str | None = None, at: float | None = None) -> None:
        """Reports jobs as accepted, ``at`` Unix seconds or now: call it at the confirm of their messages.

        What is recorded of them their header says (`topology.envelope.RECORD`). ``group`` is their job type's.
        """
        now = time.time() if at is None else at
        for message in messages:
            properties = message.properties
            name = properties.type or message.routing_key
            if group is not None:
                self._groups[name] = group
            replay = 0
            if properties.headers:
                replay, record = properties.headers.get(REPLAY, 0), properties.headers.get(RECORD)
                if record == "nothing" or (record == "failures" and not replay):
                    continue
            body: bytes | None = message.body
            if body is not None and len(body) <= PAYLOAD_LIMIT and self._payload_bytes + len(body) <= PAYLOADS_KEPT:
                self._payload_bytes += len(body)
            else:
                body = None
            job_id, other = properties.message_id, properties.correlation_id
            correlation = None if other == job_id else other
            # A plain tuple, a QueuedRow otherwise: this is on the way of every job.
            due = message.due_at
            row = (name, job_id or "", now, body, properties.priority, due, correlation or None, replay or None)
            self._queued.append(row)
        self._note(self._queued)

    def started(self, slip: Slip, body: bytes) -> None:
        """Reports a saga as started: call it at the confirm of its first steps. ``body`` is its payload."""
        detail = {"itinerary": itinerary_of(slip.plan), "began": slip.began, "deadline": slip.deadline}
        if len(body) <= PAYLOAD_LIMIT:
            detail["payload"] = body.decode(errors="replace")
        self(JobEvent(SAGA_STARTED, slip.id, slip.name, 0, 0, time.time(), None, None, detail))

    def _note(self, events: deque[Any]) -> None:
        while len(events) > KEPT:
            self._drop(events)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._flush)

    def watch(self, running: Running) -> None:
        """Looks at what runs once an interval until `close`, and reports as started what takes longer than one."""
        self._running = running
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._flush)

    @property
    def dropped(self) -> int:
        """How many events were given up before they could be sent."""
        return self._dropped

    def _drop(self, events: deque[Any]) -> None:
        gone = events.popleft()
        if events is self._queued and gone[3] is not None:
            self._payload_bytes -= len(gone[3])
        self._dropped += 1

    @property
    def _any_news(self) -> bool:
        return bool(self._queued or self._done or self._news)

    # -- sending them ----------------------------------------------------------------------------------------------

    async def close(self, timeout: float = CLOSING) -> None:  # noqa: ASYNC109 - part of the contract
        """Sends what is left if the broker takes it, for ``timeout`` seconds at most. May be used again afterwards."""
        self._running = None
        self._started.clear()
        self._cancel_timer()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while self._publisher.is_up and loop.time() < end:
            if self._sending is not None:
                await asyncio.wait({self._sending}, timeout=max(0.0, end - loop.time()))
            if not (self._any_news or self._failures) or loop.time() < self._silent_until:
                break
            self._flush()
            self._cancel_timer()
        if self._sending is not None:
            self._sending.cancel()  # whoever closes the publisher is not to wait for a report

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if self._running is not None:
            self._look_at(self._running())
        if (self._any_news or self._failures) and self._may_send(loop.time()):
            self._send()
        if self._timer is None and (self._running is not None or self._any_news or self._failures):
            self._timer = loop.call_later(INTERVAL, self._flush)

    def _may_send(self, now: float) -> bool:
        # One batch in flight at a time: a slow broker makes batches larger, not more.
        busy = self._sending is not None and not self._sending.done()
        return not busy and self._publisher.is_up and now >= self._silent_until

    def _look_at(self, running: Iterable[tuple[float, str, str, int, int]]) -> None:
        """Reports as started what has run for an interval."""
        before = time.time() - INTERVAL
        long = set()
        for run in running:
            if run[0] > before:
                break
            long.add(run)
        for began, job_id, name, replay, attempt in long - self._started:
            self(JobEvent(STARTED, job_id, name, replay, attempt, began))
        self._started = long

    def _send(self) -> None:
        """Sends one batch. Where both kinds wait, they take turns."""
        failures = bool(self._failures) and (self._failures_next or not self._any_news)
        self._failures_next = not failures
        batch = Batch(events=_taken(self._failures, _BATCH // 2)) if failures else self._taken_news()
        self._batches += 1
        message = notice(self._names, BATCH_FAILED if failures else BATCH_DONE, self._encoded(batch))
        self._sending = self._publisher.send(message, _TIMEOUT)
        self._sending.add_done_callback(self._sent)

    def _taken_news(self) -> Batch:
        news = _taken(self._news, _BATCH)
        done = _taken(self._done, _BATCH - len(news))
        return Batch(self._taken_queued(_BATCH - len(news) - len(done)), done, news)

    def _taken_queued(self, limit: int) -> Sequence[tuple[Any, ...]]:
        if self._payload_bytes <= _BATCH_BYTES:
            rows = _taken(self._queued, limit)
            self._payload_bytes = self._payload_bytes - sum(map(_payload_size, rows)) if self._queued else 0
            return rows
        rows, size = [], 0
        while self._queued and len(rows) < limit and size < _BATCH_BYTES:
            rows.append(self._queued.popleft())
            size += _payload_size(rows[-1])
        self._payload_bytes -= size
        return rows

    def _encoded(self, batch: Batch) -> bytes:
        try:
            return encoded(self._head(batch), batch)
        except ValueError:
            # Text that is no Unicode, from whoever wrote the message: it must not take the others along.
            sound = batch.without_nonsense()
            self._dropped += len(batch) - len(sound)
            return encoded(self._head(sound), sound)

    def _head(self, batch: Batch) -> dict[str, Any]:
        groups = {name: self._groups[name] for name in batch.types() if name in self._groups} if self._groups else {}
        told = {"reporter": self._id, "seq": self._batches, "at": time.time(), "dropped": self._dropped}
        return {**told, "groups": groups}

    def _sent(self, future: asyncio.Future[None]) -> None:
        if future.cancelled() or not isinstance(error := future.exception(), PublishError):
            return
        if isinstance(error, Refused | Unroutable):
            # The broker may close the channel over each: a producer's own jobs are not to suffer from that.
            self._silent_until = future.get_loop().time() + _REFUSED_PAUSE
            logger.warning("the broker takes no reports, which pause for %g s: %s", _REFUSED_PAUSE, error)
        else:
            logger.debug("a batch of reports was not confirmed: %s", error)


def _is_recorded(event: JobEvent, job_type: JobType[Any]) -> bool:
    """Of a type that records failures alone, nothing is told of a job until it fails; from then on everything is.

    So a job that failed and then succeeded does not look like a failed one for ever.
    """
    if job_type.record == "nothing":
        return False
    return event.event in _FAILED or event.attempt > 1 or event.replay > 0


def _payload_size(row: tuple[Any, ...]) -> int:
    return 0 if row[3] is None else len(row[3])


def _taken(events: deque[Any], limit: int) -> list[Any]:
    """The oldest ``limit`` of them, which are no longer there."""
    if len(events) <= limit:
        taken = list(events)
        events.clear()
        return taken
    return [events.popleft() for _ in range(limit)]
