"""The path of a message, from its delivery to its settlement. Read this first.

    decode -> look up -> validate -> run with timeout -> classify -> settle

A delivery that a worker died under before takes a detour through `consumers.readmission` first.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor as Threads
from typing import Any, Final

from consumers.breaker import blame
from consumers.dead_letter import bare_dead_letter, can_be_sent, dead_letter
from consumers.handover import HandOver
from consumers.inbox import Inbox
from consumers.job import Job
from consumers.news import event_of
from consumers.outcome import DONE, Dead, Done, Dropped, NoHandler, Outcome, Retried, Returned, SagaOverdue, Snooze
from consumers.readmission import Readmission
from consumers.registry import Handler, Registry, Route
from consumers.retry import by_policy, classify
from consumers.saga import FollowUps, returned, stopped, time_for
from producers.reporter import Reporter
from topology import envelope
from topology.capabilities import Capabilities
from topology.envelope import Envelope, Malformed, Message, address, copy_of, open_envelope
from topology.events import Observer
from topology.publisher import Publisher
from topology.settings import Settings
from topology.slip import slip_in
from topology.spec import Names
from topology.subscription import Delivery

logger = logging.getLogger(__name__)

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
        inbox: Inbox | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._registry = registry
        self._names = Names(settings.namespace)
        self._hand = HandOver(publisher, settings.publish_timeout)
        self._readmission = readmission
        self._threads = threads
        self._inbox = inbox
        self._sagas = FollowUps(self._names, inbox or Inbox(settings, 1))
        self._reporter = reporter
        self._observers: tuple[Observer, ...] = tuple(observers) if reporter is None else (*observers, reporter)
        self._observed = bool(observers)
        self._handlers: dict[asyncio.Task[Any], tuple[Envelope, float]] = {}
        self._occupied: set[int] = set()
        self._stopping = False
        self.capabilities: Capabilities | None = None

    async def process(self, delivery: Delivery) -> None:
        """Takes one delivery all the way. Never raises."""
        began = time.monotonic()
        opened: Envelope | None = None
        try:
            opened = _opened(delivery)
            route = self._look_up(opened)
            payload = route.job_type.decode(opened.body)
        except Malformed as error:
            outcome: Outcome = Dead("malformed", error)
        except NoHandler as error:
            outcome = Dead("no-handler", error)
        except Exception as error:  # noqa: BLE001 - a ValidationError, or whatever a model's own validators raise
            outcome = Dead("invalid", error)
        else:
            decided = await self._admit_and_run(delivery, opened, route, payload)
            if decided is None:
                return
            outcome = decided
        outcome = await self._settle(delivery, opened, outcome, began)
        if (
            isinstance(outcome, Done | Returned)
            and opened is not None
            and self._reporter is not None
            and not self._observed
        ):
            took = time.monotonic() - began
            self._reporter.done(opened.job_id, delivery.job_type, opened.replay, opened.attempt, took)
        elif self._observers:
            self._tell(delivery, opened, outcome, time.monotonic() - began)

    def _look_up(self, opened: Envelope) -> Route:
        route = self._registry.route(opened.job_type)
        if route is None:
            raise NoHandler(f"no handler for job type '{opened.job_type}' in this worker's app")
        return route

    async def _admit_and_run(self, delivery: Delivery, opened: Envelope, route: Route, payload: Any) -> Outcome | None:
        """The outcome; None for a delivery that has come to nothing: its channel went before its turn came."""
        if not delivery.redelivered and not opened.deliveries:
            return await self._run(opened, route, payload)
        await self._twin_ended(opened)
        async with self._readmission.of(delivery, opened, route.job_type) as verdict:
            if verdict is not None:
                return verdict
            if not delivery.acks.is_open:
                return None  # the broker delivers it again; running it now as well would run it twice
            return await self._run(opened, route, payload)

    async def _twin_ended(self, opened: Envelope) -> None:
        """Waits for a run of the same job in this process, whose connection was lost under it."""
        twins = [t for t, (e, _) in self._handlers.items() if (e.job_id, e.attempt) == (opened.job_id, opened.attempt)]
        if twins:
            await asyncio.wait(twins)

    # -- run with timeout, classify --------------------------------------------------------------------------------

    async def _run(self, opened: Envelope, route: Route, payload: Any) -> Outcome:
        if self._stopping:
            return _SHUTDOWN
        for breaker in route.breakers:
            if (refusal := breaker.refusal()) is not None:
                return self._classified(refusal, route, opened)
        task = asyncio.current_task()
        assert task is not None
        self._handlers[task] = opened, time.time()
        job, limit = Job(opened, self._inbox), route.job_type.timeout
        try:
            if opened.slip is not None:
                limit = time_for(opened.slip, limit, time.time())
            async with asyncio.timeout(limit) as clock:
                result = await self._call(route, payload, job)
        except asyncio.CancelledError as error:
            if self._stopping:
                return _SHUTDOWN
            return self._classified(error, route, opened)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises, sys.exit() too, a rule must decide
            if isinstance(error, SagaOverdue):
                return Dead("deadline", error)
            blame(error)
            if isinstance(error, TimeoutError) and clock.expired():
                return self._classified(TimeoutError(f"ran longer than its timeout of {limit:g} s"), route, opened)
            return self._classified(error, route, opened)
        finally:
            del self._handlers[task]
            if task.cancelling():
                await _forget_cancellation(task)
        return DONE if opened.slip is None else returned(result, job)

    async def _call(self, route: Route, payload: Any, job: Job) -> Any:
        arguments = (payload, job) if route.wants_job else (payload,)
        if route.is_async:
            return await route.handler(*arguments)
        context = contextvars.copy_context()
        call = functools.partial(context.run, self._in_thread, route.handler, *arguments)
        result = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        if inspect.isawaitable(result):
            return await result  # a plain function around an async one: its job is not done before this is
        return result

    def _in_thread(self, handler: Handler, *arguments: Any) -> Any:
        thread = threading.get_ident()
        self._occupied.add(thread)
        try:
            return handler(*arguments)
        except StopIteration as error:
            # A future cannot carry this one: whoever waits for it would wait for ever.
            raise RuntimeError("the handler raised StopIteration") from error
        finally:
            self._occupied.discard(thread)

    @property
    def occupied_threads(self) -> int:
        """How many threads run a handler, those included whose timeout has passed."""
        return len(self._occupied)

    def _classified(self, error: BaseException, route: Route, opened: Envelope) -> Outcome:
        retry = route.job_type.retry
        try:
            outcome = classify(error, retry, opened.attempt, permanent=route.permanent, transient=route.transient)
        except Exception:
            # The error's own attributes raise when they are looked at. It is an error all the same.
            logger.exception("%s %s: its error cannot be classified", opened.job_type, opened.job_id)
            outcome = by_policy(error, retry, opened.attempt)
        if opened.slip is not None:
            outcome = stopped(error, outcome, opened.slip, time.time())
        level = logging.INFO if isinstance(outcome, Snooze | Dropped | Done | Returned) else logging.WARNING
        name = type(outcome).__name__.lower()
        logger.log(level, "%s %s attempt %d: %s (%r)", opened.job_type, opened.job_id, opened.attempt, name, error)
        return outcome

    def running(self) -> Iterator[tuple[float, str, str, int, int]]:
        """What a handler runs for, the oldest first: Unix seconds of its start, job id, job type, replay, attempt."""
        for opened, began in self._handlers.values():
            yield began, opened.job_id, opened.job_type, opened.replay, opened.attempt

    def interrupt(self) -> int:
        """Shutdown, grace over: cancels what runs, so that it goes back to its queue. Returns how many."""
        self._stopping = True
        running = [task for task in self._handlers if not task.done()]
        for task in running:
            task.cancel("the worker is shutting down")
        return len(running)

    # -- settle ----------------------------------------------------------------------------------------------------

    async def _settle(self, delivery: Delivery, opened: Envelope | None, outcome: Outcome, began: float) -> Outcome:
        """Settles; returns how it ended after all, which for a saga's step another delivery may have decided."""
        if not delivery.acks.is_open:
            if opened is not None:
                self._readmission.remember(opened, outcome)
        elif isinstance(outcome, Done):
            delivery.acks.done(delivery.tag)
        elif opened is not None and opened.slip is not None and isinstance(outcome, (Returned, Dead, Dropped)):
            return await self._follow(delivery, opened, outcome, time.monotonic() - began)
        elif isinstance(outcome, Dropped):
            delivery.acks.done(delivery.tag)
        elif isinstance(outcome, Dead):
            route = self._registry.route(delivery.job_type)
            record = None if route is None else route.job_type.record
            message = dead_letter(self._names, delivery, opened, outcome, record)
            await self._hand_over(delivery, opened, outcome, message)
        elif opened is not None and isinstance(outcome, Retried | Snooze):
            if outcome is _SHUTDOWN and self._nack_is_free:
                delivery.acks.requeue(delivery.tag)
            else:
                await self._hand_over(delivery, opened, outcome, self._later(delivery, opened, outcome))
        return outcome

    async def _follow(self, delivery: Delivery, opened: Envelope, outcome: Outcome, duration: float) -> Outcome:
        """A saga's step has ended: what follows it first, then its acknowledgement, then the news of it."""
        route = self._registry.route(opened.job_type)
        course = await self._sagas.after(delivery, opened, outcome, route, duration)
        if course is None or not await self._hand.publish(delivery, course.messages):
            self._readmission.remember(opened, outcome)
            return outcome
        if delivery.acks.is_open:
            delivery.acks.done(delivery.tag)
        else:
            self._readmission.remember(opened, DONE)
        if self._reporter is not None:
            self._reporter.queued(*(m for m in course.messages if m.exchange != self._names.dlx))
            for news in course.news:
                self._reporter(news)
        return course.outcome

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

    async def _hand_over(self, delivery: Delivery, opened: Envelope | None, outcome: Outcome, message: Message) -> None:
        """Publishes the copy, and only when the broker has it acknowledges the source. Tries until either is gone."""
        if not can_be_sent(message):
            message = bare_dead_letter(self._names, delivery, opened, outcome)
        if await self._hand.publish(delivery, [message]):
            outcome = DONE  # the copy is on its way: should the source come again, there is nothing left to do
            if delivery.acks.is_open:
                delivery.acks.done(delivery.tag)
                return
        if opened is not None:
            self._readmission.remember(opened, outcome)

    def _tell(self, delivery: Delivery, opened: Envelope | None, outcome: Outcome, duration: float) -> None:
        event = event_of(delivery, opened, outcome, duration)
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("an observer failed at %s of %s %s", event.event, event.type, event.id)


def _opened(delivery: Delivery) -> Envelope:
    opened = open_envelope(delivery.properties, delivery.body, delivery.job_type)
    if opened.headers:
        opened.slip = slip_in(opened.headers)
    return opened


async def _forget_cancellation(task: asyncio.Task[Any]) -> None:
    """A cancel that was asked for but has not struck yet must not strike the settlement."""
    while task.cancelling():
        task.uncancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
