"""Deliveries of some queues, over one connection after another: what both halves of the recorder take in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from topology.errors import BrokerUnreachable, TopologyError
from topology.link import Connection, Link
from topology.settings import Settings
from topology.subscription import Delivery, Subscription

logger = logging.getLogger(__name__)

_RESUBSCRIBE: Final = 1.0


class Intake:
    """Consumes from ``queues`` once it was started; what arrives is in ``arrived``, ``prefetch`` of each at most.

    It waits for a broker that is away, and subscribes again where a consumer ends. ``draining``, which its owner
    sets to end, is set by itself where the first broker that answers does not have the queues: ``unfit`` says so.
    ``ready`` is set while the broker delivers.
    """

    def __init__(
        self, settings: Settings, name: str, queues: Sequence[str], prefetch: int, draining: asyncio.Event
    ) -> None:
        self._link = Link(settings.broker_urls, name, on_up=self._up, on_down=lambda _: self._down())
        self._queues = tuple(queues)
        self._prefetch = prefetch
        self._subscriptions: list[Subscription] = []
        self._chores: set[asyncio.Task[None]] = set()
        self._draining = draining
        self._ever_ready = False
        self.arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        self.unfit: TopologyError | None = None
        self.ready = asyncio.Event()

    def start(self) -> None:
        """Connects, for as long as it takes."""
        self._link.start()

    async def stop(self) -> None:
        """Disconnects. What is not acknowledged goes back to its queue."""
        self.ready.clear()
        await self._link.stop()

    async def pause(self) -> None:
        """Takes no further deliveries."""
        await asyncio.gather(*(subscription.pause() for subscription in self._subscriptions))

    async def told(self) -> None:
        """Waits until the broker has read all acknowledgements."""
        for subscription in self._subscriptions:
            await subscription.told()

    async def _up(self, connection: Connection) -> None:
        if self._draining.is_set():
            return
        try:
            await self._verify(connection)
        except BrokerUnreachable:
            raise
        except TopologyError as error:
            if not self._ever_ready:
                self.unfit = error
                self._draining.set()
            raise
        self._subscriptions = [self._subscription(connection, queue) for queue in self._queues]
        for subscription in self._subscriptions:
            await subscription.open()
            subscription.resume()
        self._ever_ready = True
        self.ready.set()
        logger.info("recording from %s", ", ".join(self._queues))

    async def _verify(self, connection: Connection) -> None:
        missing = [queue for queue in self._queues if not await connection.queue_exists(queue)]
        if missing:
            raise TopologyError(
                f"the broker has no queue {' and no queue '.join(missing)}: run `hareline topology apply`"
            )

    def _subscription(self, connection: Connection, queue: str) -> Subscription:
        return Subscription(connection, queue, queue, self._prefetch, self.arrived.put_nowait, self._on_lost)

    def _down(self) -> None:
        self.ready.clear()

    def _on_lost(self, subscription: Subscription, reason: str) -> None:
        logger.warning("the consumer on %s ended: %s; subscribing again", subscription.queue, reason)
        if not self._draining.is_set():
            task = asyncio.get_running_loop().create_task(self._resubscribe(subscription))
            self._chores.add(task)
            task.add_done_callback(self._chores.discard)

    async def _resubscribe(self, lost: Subscription) -> None:
        await asyncio.sleep(_RESUBSCRIBE)
        connection = self._link.connection
        if self._draining.is_set() or connection is None or lost not in self._subscriptions:
            return
        subscription = self._subscription(connection, lost.queue)
        self._subscriptions[self._subscriptions.index(lost)] = subscription
        try:
            await subscription.open()
        except BrokerUnreachable as error:
            logger.debug("the connection went meanwhile: %s", error)
            return
        subscription.resume()
        await lost.retire(_RESUBSCRIBE)
