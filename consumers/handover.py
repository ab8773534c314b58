"""What follows a delivery must be with the broker before the delivery is acknowledged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from topology.envelope import Message
from topology.errors import PublishError, Unroutable
from topology.publisher import Publisher
from topology.subscription import Delivery

logger = logging.getLogger(__name__)

_AGAIN: Final = 0.5


@dataclass(frozen=True, slots=True)
class HandOver:
    """Publishes what follows a delivery, for as long as it takes. ``timeout`` is seconds for each try."""

    publisher: Publisher
    timeout: float

    async def publish(self, delivery: Delivery, messages: Sequence[Message]) -> bool:
        """Tries until the broker has confirmed them all, or the delivery's channel has gone; whether it has them."""
        waiting = [(message, self.publisher.send(message, self.timeout)) for message in messages]
        confirmed = True
        for message, confirm in waiting:
            future = confirm
            while True:
                try:
                    await future
                    break
                except Unroutable as error:
                    if message.detour is None:
                        await self._wait(delivery, message, error)
                    else:
                        (message.exchange, message.routing_key), message.detour = message.detour, None
                except PublishError as error:
                    await self._wait(delivery, message, error)
                if not delivery.acks.is_open:
                    confirmed = False
                    break
                future = self.publisher.send(message, self.timeout)
        return confirmed

    async def _wait(self, delivery: Delivery, message: Message, error: PublishError) -> None:
        name = message.properties.message_id
        logger.warning("%s %s: what follows it is not published yet: %s", delivery.job_type, name, error)
        await asyncio.sleep(_AGAIN)
