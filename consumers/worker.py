"""A worker process: subscribes to its job types, runs them, and goes away without losing or charging anything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from consumers.executor import Executor
from consumers.inbox import Inbox
from consumers.readmission import Readmission
from consumers.registry import Registry, Route
from consumers.switchboard import Switchboard
from producers.reporter import Reporter
from topology.errors import BrokerUnreachable, TopologyError
from topology.events import Observer
from topology.link import Connection, Link
from topology.publisher import Publisher
from topology.settings import Settings
from topology.spec import Names
from topology.subscription import Delivery, Subscription

logger = logging.getLogger(__name__)

DEFAULT_CONCURRENCY: Final = 20
_RESUBSCRIBE: Final = 1.0

Verify = Callable[[Connection], Coroutine[Any, Any, None]]


class Worker:
    """Consumes the queues of ``routes``, at most ``concurrency`` jobs of each at a time.

    Prefetch equals concurrency, so what is delivered runs at once, and nothing waits here that another worker could
    take. The connection comes back by itself, over all broker URLs in turn; ``verify`` checks the topology each time
    before anything is consumed, and raises TopologyError.
    """

    def __init__(
        self,
        registry: Registry,
        routes: Iterable[Route],
        settings: Settings,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        verify: Verify | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self._routes = tuple(routes)
        self._breakers_of = {route.job_type.name: route.breakers for route in self._routes}
        self._settings = settings
        self._names = Names(settings.namespace)
        self._concurrency = concurrency
        self._verify = verify
        self._publisher = Publisher(settings, "worker publisher")
        self._reporter = (
            Reporter(self._publisher, self._names, job_types=registry.job_types) if settings.report else None
        )
        blocking = sum(not route.is_async for route in self._routes)
        self._threads = ThreadPoolExecutor(max(1, blocking * concurrency), thread_name_prefix="hareline job")
        self._inbox = Inbox(settings, concurrency)
        self._executor = Executor(
            registry,
            settings,
            self._publisher,
            Readmission(self),
            self._threads,
            tuple(observers),
            self._inbox,
            self._reporter,
        )
        self._link = Link(settings.broker_urls, f"hareline worker {self._name}", on_up=self._up, on_down=self._down)
        self._switchboard = self._connect_breakers(registry)
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._chores: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._draining = asyncio.Event()
        self._unfit: TopologyError | None = None
        self._ever_ready = False
        self._alone_asked = False
        self.ready = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    @property
    def _name(self) -> str:
        return " ".join(route.job_type.name for route in self._routes)[:80]

    def _connect_breakers(self, registry: Registry) -> Switchboard | None:
        if not registry.breakers:
            return None
        needed = {breaker.name for route in self._routes for breaker in route.breakers}
        return Switchboard(
            registry.breakers, self._publisher, self._names, needed=needed, on_change=self._breakers_changed
        )

    @property
    def running(self) -> int:
        """How many deliveries are being worked on."""
        return len(self._tasks)

    @property
    def occupied_threads(self) -> int:
        """How many threads run a plain handler. After `run` they are what keeps the process from ending."""
        return self._executor.occupied_threads

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Works until `drain` is called, then finishes in good order.

        Raises TopologyError if the first broker that answers does not have the topology.
        """
        self._loop = asyncio.get_running_loop()
        self._warn_of_long_jobs()
        self._publisher.start()
        if self._switchboard is not None:
            self._switchboard.start()
        self._link.start()
        if self._reporter is not None:
            self._reporter.watch(self._executor.running)
        try:
            await self._draining.wait()
            if self._unfit is not None:
                raise self._unfit
            await self._finish()
        finally:
            self.ready.clear()
            if self._switchboard is not None:
                await self._switchboard.stop()
            await asyncio.gather(self._link.stop(), self._publisher.stop(1.0), self._inbox.close())
            self._threads.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Asks the worker to stop: no more deliveries, running jobs get ``HARELINE_GRACE`` seconds."""
        self._draining.set()

    async def _finish(self) -> None:
        """Lets running jobs end within the grace period, returns the rest to the queue, tells the broker all of it."""
        await self._adjust()
        if self._tasks:
            logger.info("stopping: %d jobs get %g s to end", len(self._tasks), self._settings.grace)
            await asyncio.wait(self._tasks, timeout=self._settings.grace)
        interrupted = self._executor.interrupt()
        if interrupted:
            logger.warning(
                "%d jobs did not end in time and go back to their queues, with no attempt charged", interrupted
            )
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.publish_timeout)
        if self._reporter is not None:
            await self._reporter.close()
        for subscription in self._subscriptions:
            subscription.flush()

    def _warn_of_long_jobs(self) -> None:
        limit = self._settings.consumer_timeout
        for route in self._routes:
            if route.job_type.timeout >= limit:
                logger.warning(
                    "%s may run for %g s, but the broker takes a job back after %g s (its consumer_timeout) and would "
                    "run it again: raise consumer_timeout on the broker and say so in HARELINE_CONSUMER_TIMEOUT",
                    route.job_type.name,
                    route.job_type.timeout,
                    limit,
                )

    # -- connection ------------------------------------------------------------------------------------------------

    async def _up(self, connection: Connection) -> None:
        if self._draining.is_set():
            return  # nothing is to be taken any more, and what was lost with the old connection cannot be settled
        self._executor.capabilities = connection.capabilities
        if self._verify is not None:
            try:
                await self._verify(connection)
            except BrokerUnreachable:
                raise  # it went while it was being looked at, which says nothing about its topology
            except TopologyError as error:
                if not self._ever_ready:
                    self._unfit = error
                    self._draining.set()
                else:
                    logger.error("the broker is not fit to work with: %s", error)  # noqa: TRY400 - the text says it all
                raise
        if self._switchboard is not None:
            await self._switchboard.join(connection)
        self._subscriptions = [self._subscription(connection, route) for route in self._routes]
        for subscription in self._subscriptions:
            await self._start(subscription)
        self._ever_ready = True
        self.ready.set()
        logger.info("consuming %s", ", ".join(s.queue for s in self._subscriptions))

    def _subscription(self, connection: Connection, route: Route) -> Subscription:
        name = route.job_type.name
        return Subscription(
            connection, self._names.queue(name), name, self._concurrency, self._on_delivery, self._on_lost
        )

    async def _start(self, subscription: Subscription) -> None:
        await subscription.open()
        await subscription.adjust(partial(self._wanted, subscription))

    def _wanted(self, subscription: Subscription) -> int:
        """How many jobs of a queue are to run at a time now."""
        if self._alone_asked or self._draining.is_set():
            return 0
        breakers = self._breakers_of[subscription.job_type]
        return min((breaker.room(self._concurrency) for breaker in breakers), default=self._concurrency)

    async def _adjust(self) -> None:
        """Has every queue consumed as is wanted now."""
        await asyncio.gather(*(s.adjust(partial(self._wanted, s)) for s in self._subscriptions))

    def _breakers_changed(self) -> None:
        if any(self._breakers_of.values()):
            self._chore(self._adjust())

    def _down(self, _: str) -> None:
        self.ready.clear()
        if self._switchboard is not None:
            self._switchboard.leave()

    def _on_delivery(self, delivery: Delivery) -> None:
        task = self._loop.create_task(self._executor.process(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._on_processed)

    def _on_processed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a delivery was left unsettled: this is a fault in Hareline", exc_info=error)
        if self._alone_asked:
            self._chore(self._announce())

    def _on_lost(self, subscription: Subscription, reason: str) -> None:
        """The queue was deleted, or its leader moved: subscribe again, for as long as this connection lives."""
        logger.warning("the consumer on %s ended: %s; subscribing again", subscription.queue, reason)
        if not self._draining.is_set():
            self._chore(self._resubscribe(subscription))

    async def _resubscribe(self, lost: Subscription) -> None:
        await asyncio.sleep(_RESUBSCRIBE)
        connection = self._link.connection
        if self._draining.is_set() or connection is None or lost not in self._subscriptions:
            return
        route = next(route for route in self._routes if route.job_type.name == lost.job_type)
        subscription = self._subscription(connection, route)
        self._subscriptions[self._subscriptions.index(lost)] = subscription
        try:
            await self._start(subscription)
        except BrokerUnreachable as error:
            logger.debug("the connection went meanwhile: %s", error)
        await lost.retire(_RESUBSCRIBE)

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    # -- the crew, for one job to be alone -------------------------------------------------------------------------

    async def stand_alone(self, patience: float) -> None:
        """Takes no more deliveries, and waits up to ``patience`` seconds until all other jobs are settled."""
        self._alone_asked = True
        await self._adjust()
        for subscription in self._subscriptions:
            subscription.flush()
        try:
            async with asyncio.timeout(patience), self._changed:
                await self._changed.wait_for(lambda: len(self._tasks) <= 1)
        except TimeoutError:
            logger.warning("%d neighbours have not ended: the suspect runs beside them", len(self._tasks) - 1)
        await asyncio.gather(*(subscription.told() for subscription in self._subscriptions))

    async def carry_on(self) -> None:
        """Takes deliveries again."""
        self._alone_asked = False
        await self._adjust()

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()
