"""A consumer on one queue: its channel, its prefetch, its deliveries and their acknowledgements."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from pika.channel import Channel
from pika.spec import BasicProperties

from topology.acks import Acks
from topology.errors import BrokerUnreachable
from topology.link import Connection, resolver

logger = logging.getLogger(__name__)

_QUIET: Final = 0.05
"""Seconds without a delivery after which a queue that may still deliver is taken to be empty."""
_PATIENCE: Final = 5.0
"""Seconds for the broker to answer a cancel. A network that has stalled must not hold up a shutdown."""


class Delivery:
    """One message as it arrived. It must be settled exactly once, through `Subscription.acks`."""

    __slots__ = ("acks", "body", "job_type", "properties", "queue", "redelivered", "tag")

    def __init__(
        self,
        subscription: Subscription,
        tag: int,
        redelivered: bool,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        self.acks = subscription.acks
        self.queue = subscription.queue
        self.job_type = subscription.job_type
        self.tag = tag
        self.redelivered = redelivered
        self.properties = properties
        self.body = body


class Subscription:
    """Consumes from the queue of one job type, with at most ``prefetch`` deliveries unsettled; `adjust` changes that.

    ``on_delivery`` is called in the event loop for each. ``on_lost`` is called with the reason when the broker ends
    the consumer (queue deleted, leader moved) or the channel, while the connection lives on.
    """

    def __init__(
        self,
        connection: Connection,
        queue: str,
        job_type: str,
        prefetch: int,
        on_delivery: Callable[[Delivery], None],
        on_lost: Callable[[Subscription, str], None],
    ) -> None:
        self.queue = queue
        self.job_type = job_type
        self.acks: Acks
        self._connection = connection
        self._prefetch = prefetch
        self._room = prefetch
        self._on_delivery = on_delivery
        self._on_lost = on_lost
        self._channel: Channel | None = None
        self._tag: str | None = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = False
        self._turn = asyncio.Lock()

    @property
    def is_consuming(self) -> bool:
        """Whether the broker delivers to us."""
        return self._tag is not None and self._channel is not None and bool(self._channel.is_open)

    async def open(self) -> None:
        """Opens the channel; `resume` consumes. Raises BrokerUnreachable if the connection goes meanwhile."""
        channel = await self._connection.channel()
        self._channel = channel
        self.acks = Acks(channel, asyncio.get_running_loop())
        self._connection.take(channel, self._deliver)
        channel.add_on_close_callback(lambda _, reason: self._on_closed(reason))
        channel.add_on_cancel_callback(lambda _: self._end("the broker cancelled the consumer"))
        await self._answered(lambda done: channel.basic_qos(prefetch_count=self._prefetch, callback=done))

    def resume(self, prefetch: int | None = None) -> None:
        """Consumes (again), with another ``prefetch`` if one is given.

        Does nothing on a channel that is gone, or that consumes already.
        """
        channel = self._channel
        if channel is not None and channel.is_open and self._tag is None and not self._ended:
            if prefetch is not None and prefetch != self._prefetch:
                self._prefetch = prefetch
                channel.basic_qos(prefetch_count=prefetch)  # for consumers from here on
            self._room = self._prefetch + self.acks.outstanding  # what is here counts for the consumer before
            self._tag = channel.basic_consume(self.queue, _never)
            # Nothing to wait for: a refusal closes the channel, and on_lost says so.

    async def adjust(self, wanted: Callable[[], int]) -> None:
        """Consumes with ``wanted()`` as prefetch, or not where that is 0. Calls at the same time take turns."""
        async with self._turn:
            prefetch = wanted()
            if prefetch and self.is_consuming and prefetch == self._prefetch:
                return
            await self.pause()
            prefetch = wanted()  # it may have changed meanwhile
            logger.debug("%s: at most %d at a time", self.queue, prefetch)
            if prefetch:
                self.resume(prefetch)

    async def pause(self) -> None:
        """Takes no further deliveries; what is here stays to be settled.

        What a quorum queue has sent off when it learns of the cancel goes back and counts as a delivery, as if a
        worker had died. So acknowledgements are held before, until nothing can be on its way.
        """
        channel, tag = self._channel, self._tag
        self._tag = None
        if channel is None or not channel.is_open or tag is None:
            return
        self.acks.hold()
        try:
            await self._nothing_is_coming()
            if channel.is_open:
                async with asyncio.timeout(_PATIENCE):
                    await self._answered(lambda done: channel.basic_cancel(tag, callback=done))
        except (BrokerUnreachable, TimeoutError) as error:
            logger.debug("the consumer on %s ended while it was being cancelled: %s", self.queue, error)
        finally:
            self.acks.release()

    async def _nothing_is_coming(self) -> None:
        """Waits until the prefetch is used up, or the queue has had nothing for us for a while."""
        seen = -1
        while seen != self.acks.outstanding < self._room:
            seen = self.acks.outstanding
            await asyncio.sleep(_QUIET)

    def flush(self) -> None:
        """Acknowledges what is finished, now."""
        if self._channel is not None:
            self.acks.flush()

    async def told(self) -> None:
        """Acknowledges what is finished, and waits until the broker has read it: a crash a moment later is too late.

        Does nothing on a channel that is gone.
        """
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        self.acks.flush()
        try:
            async with asyncio.timeout(_PATIENCE):
                # Any question will do: the broker answers in order.
                await self._answered(lambda done: channel.basic_qos(prefetch_count=self._prefetch, callback=done))
        except (BrokerUnreachable, TimeoutError) as error:
            logger.debug("the channel on %s ended before all was told: %s", self.queue, error)

    async def retire(self, pause: float) -> None:
        """Closes the channel of a consumer that has ended, once all of its deliveries are settled."""
        while self._channel is not None and self._channel.is_open:
            if not self.acks.unfinished:
                self.acks.flush()
                self._channel.close()
                return
            await asyncio.sleep(pause)

    async def _answered(self, ask: Callable[[Callable[[Any], None]], Any]) -> None:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ask(resolver(answer))
        await asyncio.wait({answer, self._closed, self._connection.closed}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            gone = self._connection.closed
            raise BrokerUnreachable(f"the connection closed: {gone.result()}" if gone.done() else "the channel closed")

    def _deliver(self, tag: int, redelivered: bool, properties: BasicProperties, body: bytes) -> None:
        self.acks.open(tag)
        self._on_delivery(Delivery(self, tag, redelivered, properties, body))

    def _on_closed(self, reason: Exception) -> None:
        if not self._closed.done():
            self._closed.set_result(None)
        self._end(f"channel closed: {reason}")

    def _end(self, reason: str) -> None:
        if not self._ended and self._connection.is_open:
            self._ended = True
            self._tag = None
            self._on_lost(self, reason)


def _never(*_: Any) -> None:
    raise AssertionError("the wire takes this channel's deliveries")
