"""The path of a message, from its delivery to its settlement. Read this first.

    decode -> look up -> validate -> run with timeout -> classify -> settle

A delivery that a worker died under before takes a detour through `consumers.readmission` first.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor as Threads
from typing import Any, Final

from pydantic import ValidationError

from consumers import events
from consumers.dead_letter import dead_letter
from consumers.events import JobEvent, Observer
from consumers.job import Job
from consumers.outcome import DONE, Dead, Done, Dropped, NoHandler, Outcome, Retried, Snooze
from consumers.readmission import Readmission
from consumers.registry import Registry, Route
from consumers.retry import classify
from topology import envelope
from topology.capabilities import Capabilities
from topology.envelope import Envelope, Malformed, Message, address, copy_of, open_envelope
from topology.errors import PublishError
from topology.publisher import Publisher
from topology.settings import Settings
from topology.spec import Names
from topology.subscription import Delivery

logger = logging.getLogger(__name__)

_AGAIN: Final = 0.5
_SHUTDOWN: Final = Snooze(0.0, "the worker is shutting down")


class Executor:
    """Runs deliveries. Every one is settled exactly once, by exactly one outcome; none is lost on the way.

    A copy (retry, snooze, dead letter) is confirmed by the broker before its source is acknowledged. A delivery
    whose channel is gone is left alone: the broker delivers it again.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        publisher: Publisher,
        readmission: Readmission,
        threads: Threads,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._registry = registry
        self._names = Names(settings.namespace)
        self._timeout = settings.publish_timeout
        self._publisher = publisher
        self._readmission = readmission
        self._threads = threads
        self._observers = tuple(observers)
        self._handlers: dict[asyncio.Task[Any], Envelope] = {}
        self._stopping = False
        self.capabilities: Capabilities | None = None

    async def process(self, delivery: Delivery) -> None:
        """Takes one delivery all the way. Never raises."""
        began = time.monotonic()
        opened: Envelope | None = None
        try:
            opened = open_envelope(delivery.properties, delivery.body, delivery.job_type)
            route = self._look_up(opened)
            payload = route.job_type.decode(opened.body)
        except Malformed as error:
            outcome: Outcome = Dead("malformed", error)
        except NoHandler as error:
            outcome = Dead("no-handler", error)
        except ValidationError as error:
            outcome = Dead("invalid", error)
        else:
            outcome = await self._admit_and_run(delivery, opened, route, payload)
        await self._settle(delivery, opened, outcome)
        if self._observers:
            self._tell(delivery, opened, outcome, time.monotonic() - began)

    def _look_up(self, opened: Envelope) -> Route:
        route = self._registry.route(opened.job_type)
        if route is None:
            raise NoHandler(f"no handler for job type '{opened.job_type}' in this worker's app")
        return route

    async def _admit_and_run(self, delivery: Delivery, opened: Envelope, route: Route, payload: Any) -> Outcome:
        if delivery.redelivered or opened.deliveries:
            await self._twin_ended(opened)
            async with self._readmission.of(delivery, opened, route.job_type) as verdict:
                return verdict or await self._run(opened, route, payload)
        return await self._run(opened, route, payload)

    async def _twin_ended(self, opened: Envelope) -> None:
        """Waits for a run of the same job in this process, whose connection was lost under it."""
        twins = [t for t, e in self._handlers.items() if (e.job_id, e.attempt) == (opened.job_id, opened.attempt)]
        if twins:
            await asyncio.wait(twins)

    # -- run with timeout, classify --------------------------------------------------------------------------------

    async def _run(self, opened: Envelope, route: Route, payload: Any) -> Outcome:
        if self._stopping:
            return _SHUTDOWN
        task = asyncio.current_task()
        assert task is not None
        self._handlers[task] = opened
        limit = route.job_type.timeout
        try:
            async with asyncio.timeout(limit) as clock:
                await self._call(route, payload, Job(opened))
        except asyncio.CancelledError as error:
            if self._stopping:
                task.uncancel()
                return _SHUTDOWN
            return self._classified(error, route, opened)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, a rule must decide
            if isinstance(error, TimeoutError) and clock.expired():
                return self._classified(TimeoutError(f"ran longer than its timeout of {limit:g} s"), route, opened)
            return self._classified(error, route, opened)
        finally:
            del self._handlers[task]
        return DONE

    async def _call(self, route: Route, payload: Any, job: Job) -> None:
        arguments = (payload, job) if route.wants_job else (payload,)
        if route.is_async:
            await route.handler(*arguments)
            return
        context = contextvars.copy_context()
        call = functools.partial(context.run, route.handler, *arguments)
        await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _classified(self, error: BaseException, route: Route, opened: Envelope) -> Outcome:
        outcome = classify(
            error, route.job_type.retry, opened.attempt, permanent=route.permanent, transient=route.transient
        )
        level = logging.INFO if isinstance(outcome, Snooze | Dropped) else logging.WARNING
        name = type(outcome).__name__.lower()
        logger.log(level, "%s %s attempt %d: %s (%r)", opened.job_type, opened.job_id, opened.attempt, name, error)
        return outcome

    def interrupt(self) -> int:
        """Shutdown, grace over: cancels what runs, so that it goes back to its queue. Returns how many."""
        self._stopping = True
        running = [task for task in self._handlers if not task.done()]
        for task in running:
            task.cancel("the worker is shutting down")
        return len(running)

    # -- settle ----------------------------------------------------------------------------------------------------

    async def _settle(self, delivery: Delivery, opened: Envelope | None, outcome: Outcome) -> None:
        if not delivery.acks.is_open:
            if opened is not None:
                self._readmission.remember(opened, outcome)
        elif isinstance(outcome, Done | Dropped):
            delivery.acks.done(delivery.tag)
        elif isinstance(outcome, Dead):
            await self._hand_over(delivery, dead_letter(self._names, delivery, opened, outcome))
        elif opened is not None:
            if outcome is _SHUTDOWN and self._nack_is_free:
                delivery.acks.requeue(delivery.tag)
            else:
                await self._hand_over(delivery, self._later(delivery, opened, outcome))

    @property
    def _nack_is_free(self) -> bool:
        return self.capabilities is not None and not self.capabilities.nack_counts_as_delivery

    def _later(self, delivery: Delivery, opened: Envelope, outcome: Retried | Snooze) -> Message:
        """The copy that comes back after a while, through the delay ladder; at once if there is nothing to wait."""
        now = envelope.timestamp()
        changes: dict[str, Any] = {envelope.DELIVERIES: None}
        if isinstance(outcome, Retried):
            changes[envelope.ATTEMPT] = opened.attempt + 1
            changes[envelope.FIRST_FAILED_AT] = opened.headers.get(envelope.FIRST_FAILED_AT, now)
            changes[envelope.LAST_FAILED_AT] = now
            changes[envelope.ERROR] = type(outcome.error).__name__
        elif outcome is _SHUTDOWN:
            changes[envelope.DELIVERIES] = opened.deliveries or None  # it was interrupted: it has proved nothing yet
        else:
            changes[envelope.DELIVERIES] = outcome.deliveries
        exchange, routing_key = address(self._names, delivery.job_type, outcome.after)
        return copy_of(
            delivery.properties,
            delivery.body,
            exchange=exchange,
            routing_key=routing_key,
            job_id=opened.job_id,
            changes=changes,
        )

    async def _hand_over(self, delivery: Delivery, message: Message) -> None:
        """Publishes the copy, and only when the broker has it acknowledges the source. Tries until either is gone."""
        while delivery.acks.is_open:
            try:
                await self._publisher.send(message, self._timeout)
            except PublishError as error:
                logger.warning("%s %s is not settled yet: %s", delivery.job_type, message.properties.message_id, error)
                await asyncio.sleep(_AGAIN)
            else:
                delivery.acks.done(delivery.tag)
                return

    def _tell(self, delivery: Delivery, opened: Envelope | None, outcome: Outcome, duration: float) -> None:
        error = getattr(outcome, "error", None)
        event = JobEvent(
            _EVENT_OF[type(outcome)],
            opened.job_id if opened else delivery.properties.message_id or "",
            delivery.job_type,
            opened.attempt if opened else 1,
            time.time(),
            duration,
            type(error).__name__ if error is not None else None,
        )
        for observer in self._observers:
            observer(event)


_EVENT_OF: Final[dict[type, str]] = {
    Done: events.DONE,
    Retried: events.RETRYING,
    Snooze: events.SNOOZED,
    Dead: events.DEAD,
    Dropped: events.CANCELLED,
}
