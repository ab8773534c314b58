"""Reports what became of jobs to the events exchange, in batches, off the hot path.

At most one message per 100 ms and process. Reports are news, not truth: a worker that is killed takes the last
batch with it, and when the broker is slow the oldest are dropped and counted. Settling never waits for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from itertools import islice
from typing import Final

from pydantic_core import to_json

from consumers.events import JobEvent
from topology.envelope import notice
from topology.errors import PublishError
from topology.publisher import Publisher
from topology.spec import Names

logger = logging.getLogger(__name__)

INTERVAL: Final = 0.1
KEPT: Final = 50_000
BATCH: Final = 5_000
ROUTING_KEY: Final = "job.batch"


class Reporter:
    """An observer that publishes ``{"events": [{"event", "id", "type", "attempt", "at", ...}], "dropped": n}``."""

    def __init__(self, publisher: Publisher, names: Names) -> None:
        self._publisher = publisher
        self._names = names
        self._events: deque[JobEvent] = deque(maxlen=KEPT)
        self._seen = 0
        self._sent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Future[None] | None = None

    def __call__(self, event: JobEvent) -> None:
        """Takes an event. Costs an append; the first of a batch also sets a timer."""
        self._events.append(event)
        self._seen += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._flush)

    @property
    def dropped(self) -> int:
        """How many events were overwritten before they could be sent."""
        return self._seen - self._sent - len(self._events)

    async def close(self) -> None:
        """Sends what is left, and waits briefly for the broker to take it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._events and self._publisher.is_up:
            self._flush()
            if self._sending is not None:
                await asyncio.wait({self._sending}, timeout=INTERVAL * 10)

    def _flush(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        busy = self._sending is not None and not self._sending.done()
        if busy or not self._publisher.is_up:
            # One batch in flight at a time: a slow broker makes batches larger, not more.
            self._timer = loop.call_later(INTERVAL, self._flush)
            return
        batch = list(islice(self._events, BATCH))
        if not batch:
            return
        for _ in batch:
            self._events.popleft()
        self._sent += len(batch)
        body = to_json({"events": [event._asdict() for event in batch], "dropped": self.dropped})
        self._sending = self._publisher.send(notice(self._names, ROUTING_KEY, body), 5.0)
        self._sending.add_done_callback(_ignore)
        if self._events:
            self._timer = loop.call_later(INTERVAL, self._flush)


def _ignore(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and isinstance(error := future.exception(), PublishError):
        logger.debug("a batch of reports was not confirmed: %s", error)
