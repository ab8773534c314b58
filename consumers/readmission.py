"""Jobs that come back from a worker that died under them.

Each return is counted: by the broker on a quorum queue (x-delivery-count), by us on a classic one (a copy with the
count in a header, since such a queue only says *redelivered*). A job over its type's ``delivery_limit`` is dead. One
that came back twice is a suspect and runs alone in its process, with nothing else unsettled: so a job that kills
its worker takes no innocent neighbour along, neither into the crash nor over the limit.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from consumers.outcome import Dead, Outcome, Snooze, WorkerLost
from topology.contract import JobType
from topology.envelope import Envelope
from topology.subscription import Delivery

logger = logging.getLogger(__name__)

SUSPECT_FROM: Final = 2
PATIENCE: Final = 30.0
"""Seconds that a suspect waits for its neighbours to finish before it runs beside them after all."""
REMEMBERED: Final = 10_000
REMEMBERED_FOR: Final = 300.0
"""Seconds. What did not come back by then went to another worker; an equal id later on is another order of the job."""


_BROKERS_COUNTS: Final = frozenset({"x-delivery-count", "x-acquired-count"})
"""Headers of a quorum queue. From 4.3 on a message that was only given back carries the second alone."""


class Crew(Protocol):
    """What the worker offers, so that one job can be alone."""

    async def stand_alone(self, patience: float) -> None:
        """Takes no more deliveries, and waits up to ``patience`` seconds until all other jobs are settled."""

    async def carry_on(self) -> None:
        """Takes deliveries again."""


class Readmission:
    """Decides what happens to a delivery that was delivered before."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._alone = False
        self._settled_in_vain: OrderedDict[tuple[str, int, int], tuple[float, Outcome]] = OrderedDict()

    def remember(self, opened: Envelope, outcome: Outcome) -> None:
        """The job ended, but its channel was gone before the broker could be told: so it will come again."""
        self._settled_in_vain[opened.job_id, opened.replay, opened.attempt] = (time.monotonic(), outcome)
        while len(self._settled_in_vain) > REMEMBERED:
            self._settled_in_vain.popitem(last=False)

    def _recall(self, opened: Envelope) -> Outcome | None:
        ended, outcome = self._settled_in_vain.pop((opened.job_id, opened.replay, opened.attempt), (0.0, None))
        return outcome if time.monotonic() - ended < REMEMBERED_FOR else None

    @asynccontextmanager
    async def of(self, delivery: Delivery, opened: Envelope, job_type: JobType[Any]) -> AsyncIterator[Outcome | None]:
        """Yields the outcome that is already certain, or None: then the job is to be run, within this context."""
        known = self._recall(opened)
        if known is not None:
            yield known
            return
        returns = opened.deliveries
        counted_by_broker = not _BROKERS_COUNTS.isdisjoint(opened.headers)
        if delivery.redelivered and not counted_by_broker:
            returns += 1
        if returns >= job_type.delivery_limit:
            yield Dead("worker-lost", WorkerLost(f"{returns} workers ended while they had this job"))
        elif delivery.redelivered and not counted_by_broker:
            yield Snooze(0.0, "counted as returned", deliveries=returns)
        elif returns < SUSPECT_FROM:
            yield None
        elif self._alone:
            yield Snooze(0.0, "another suspect runs alone", deliveries=returns)
        else:
            logger.warning("%s %s came back %d times: it runs alone now", opened.job_type, opened.job_id, returns)
            self._alone = True
            try:
                await self._crew.stand_alone(PATIENCE)
                yield None
            finally:
                self._alone = False
                await self._crew.carry_on()
