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
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pydantic_core import to_json

from topology.contract import JobType
from topology.envelope import REPLAY, Message, notice
from topology.errors import PublishError, Refused, Unroutable
from topology.events import (
    BATCH_DONE,
    BATCH_FAILED,
    CANCELLED,
    DEAD,
    NEWS,
    QUEUED,
    RETRYING,
    STARTED,
    JobEvent,
)
from topology.publisher import Publisher
from topology.spec import Names

logger = logging.getLogger(__name__)

VERSION: Final = 1
INTERVAL: Final = 0.1
"""Seconds between two messages, at least."""
KEPT: Final = 50_000
"""Events that wait to be sent, of success and of failure each."""
PAYLOAD_LIMIT: Final = 4 * 1024
"""Bytes. A payload that is larger is not reported."""
PAYLOADS_KEPT: Final = 16 * 1024 * 1024
"""Bytes of payloads that wait to be sent. Beyond them events go without."""
CLOSING: Final = 1.0
_BATCH: Final = 5_000
_BATCH_BYTES: Final = 4 * 1024 * 1024  # as JSON within JSON twice that at most: RabbitMQ 4 takes 16 MiB
_TIMEOUT: Final = 5.0
_REFUSED_PAUSE: Final = 30.0

_FAILED: Final = frozenset({RETRYING, DEAD, CANCELLED})

Row = tuple[str, str, str, int, int, float, float | None, str | None, Mapping[str, Any] | None]
"""A `JobEvent` or the same as a plain tuple, which costs half as much to make."""

Running = Callable[[], Iterable[tuple[float, str, str, int, int]]]
"""What runs now, the oldest first: Unix seconds of its start, job id, job type, replay, attempt."""


class Reporter:
    """An observer that publishes batches: see docs/reference/messages.md for their form.

    ``job_types`` say what is recorded of them and what their groups are; `queued` learns more of them.
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
        self._known: dict[str, JobType[Any]] = {job_type.name: job_type for job_type in job_types}
        self._running: Running | None = None
        self._started: set[tuple[float, str, str, int, int]] = set()
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
        job_type = self._known.get(event.type)
        if job_type is not None and job_type.record != "all" and not _is_recorded(event, job_type):
            return
        self._keep(self._news if event.event in NEWS else self._failures, event)

    def _keep(self, events: deque[Row], row: Row) -> None:
        if len(events) >= KEPT:
            self._drop(events)
        events.append(row)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._flush)

    def queued(self, message: Message, job_type: JobType[Any] | None = None) -> None:
        """Reports a job as accepted: call it at the confirm of its message.

        ``job_type`` may be left out where it is not at hand; then it is recorded unless it is known by its name.
        """
        properties = message.properties
        name = properties.type or message.routing_key
        if job_type is not None:
            self._known[name] = job_type
        replay = properties.headers.get(REPLAY, 0) if properties.headers else 0
        known = self._known.get(name)
        if known is not None and known.record != "all" and (known.record == "nothing" or not replay):
            return
        detail: dict[str, Any] = {}
        size = len(message.body)
        if size <= PAYLOAD_LIMIT and self._payload_bytes + size <= PAYLOADS_KEPT:
            self._payload_bytes += size
            detail["payload"] = message.body
        if properties.priority is not None:
            detail["priority"] = properties.priority
        if message.due_at is not None:
            detail["due_at"] = message.due_at
        if properties.correlation_id and properties.correlation_id != properties.message_id:
            detail["correlation_id"] = properties.correlation_id
        # A plain tuple, and straight into its queue: this is on the way of every job.
        row: Row = (QUEUED, properties.message_id or "", name, replay, 0, time.time(), None, None, detail or None)
        self._keep(self._news, row)

    def watch(self, running: Running) -> None:
        """Looks at what runs once an interval until `close`, and reports as started what takes longer than one."""
        self._running = running
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._flush)

    @property
    def dropped(self) -> int:
        """How many events were given up before they could be sent."""
        return self._dropped

    def _drop(self, events: deque[Row]) -> None:
        self._payload_bytes -= _payload_size(events.popleft())
        self._dropped += 1

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
            if not (self._news or self._failures) or loop.time() < self._silent_until:
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
        if (self._news or self._failures) and self._may_send(loop.time()):
            self._send()
        if self._timer is None and (self._running is not None or self._news or self._failures):
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
        failures = bool(self._failures) and (self._failures_next or not self._news)
        self._failures_next = not failures
        rows = self._take(self._failures if failures else self._news)
        groups = {
            name: job_type.group
            for name in {row[2] for row in rows}
            if (job_type := self._known.get(name)) is not None and job_type.group is not None
        }
        self._batches += 1
        head = {"v": VERSION, "reporter": self._id, "seq": self._batches, "dropped": self._dropped, "groups": groups}
        body = self._encoded(head, rows)
        message = notice(self._names, BATCH_FAILED if failures else BATCH_DONE, body)
        self._sending = self._publisher.send(message, _TIMEOUT)
        self._sending.add_done_callback(self._sent)

    def _take(self, events: deque[Row]) -> list[Row]:
        limit = _BATCH if events is self._news else _BATCH // 2
        if not self._payload_bytes or events is self._failures:
            return [events.popleft() for _ in range(min(limit, len(events)))]
        if len(events) <= limit and self._payload_bytes <= _BATCH_BYTES:
            rows = list(events)
            events.clear()
            self._payload_bytes = 0
            return rows
        rows, size = [], 0
        while events and len(rows) < limit and size < _BATCH_BYTES:
            row = events.popleft()
            size += _payload_size(row)
            rows.append(row)
        self._payload_bytes -= size
        return rows

    def _encoded(self, head: dict[str, Any], rows: list[Row]) -> bytes:
        try:
            # As plain tuples: pydantic takes three times as long over named ones.
            return to_json({**head, "events": list(map(tuple, rows))}, inf_nan_mode="null")
        except ValueError:
            # Text that is no Unicode, from whoever wrote the message: it must not take the others along.
            sound = [row for row in rows if _can_be_encoded(row)]
            self._dropped += len(rows) - len(sound)
            return to_json({**head, "dropped": self._dropped, "events": sound}, inf_nan_mode="null")

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


def _payload_size(row: Row) -> int:
    detail = row[-1]
    return len(detail.get("payload", b"")) if row[0] == QUEUED and detail else 0


def _can_be_encoded(row: Row) -> bool:
    try:
        to_json(row, inf_nan_mode="null")
    except ValueError:
        return False
    return True
