"""Listening in on the events exchange, for as long as a connection lives: nothing is kept for those who are away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from pika.channel import Channel
from pika.spec import BasicProperties

from topology.envelope import CONTENT_TYPE, Message, new_id, notice
from topology.errors import BrokerUnreachable
from topology.link import Connection, resolver
from topology.spec import Names

Listener = Callable[[str | None, bytes], None]
"""Takes the reply address of a message, if it has one, and its body."""

_ARGUMENTS: Final = {"x-queue-type": "classic", "x-max-length": 10_000, "x-overflow": "drop-head"}


class Audience:
    """An exclusive queue of one connection, bound to ``exchange`` by ``pattern``. The broker deletes it with it.

    ``queue`` is the address of answers, through the default exchange. What arrives is not acknowledged. ``on_lost``
    is called where the listening ends before the connection does.
    """

    def __init__(
        self, connection: Connection, queue: str, listener: Listener, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self.queue = queue
        self._connection = connection
        self._listener = listener
        self._on_lost = on_lost

    async def open(self, exchange: str, pattern: str) -> None:
        """Listens from here on. Raises BrokerUnreachable if the broker refuses, or goes meanwhile."""
        channel = await self._connection.channel()
        self._connection.take(channel, self._on_delivery)
        await _done(
            self._connection,
            channel,
            lambda done: channel.queue_declare(
                self.queue, exclusive=True, auto_delete=True, arguments=_ARGUMENTS, callback=done
            ),
        )
        await _done(
            self._connection, channel, lambda done: channel.queue_bind(self.queue, exchange, pattern, callback=done)
        )
        await _done(
            self._connection,
            channel,
            lambda done: channel.basic_consume(self.queue, _never, auto_ack=True, exclusive=True, callback=done),
        )
        channel.add_on_close_callback(lambda *_: self._on_lost())
        channel.add_on_cancel_callback(lambda *_: self._on_lost())

    def _on_delivery(self, _: int, __: bool, properties: BasicProperties, body: bytes) -> None:
        self._listener(properties.reply_to, body)


def question(names: Names, routing_key: str, body: bytes, reply_to: str) -> Message:
    """An event whose answers are to go to the queue ``reply_to``."""
    message = notice(names, routing_key, body)
    message.properties.reply_to = reply_to
    return message


def answer(queue: str, body: bytes) -> Message:
    """A message to the queue of whoever asked; it may be gone."""
    properties = BasicProperties(
        content_type=CONTENT_TYPE, delivery_mode=1, message_id=new_id(), timestamp=int(time.time())
    )
    return Message("", queue, properties, body, mandatory=False)


async def hold(connection: Connection, name: str) -> bool:
    """Takes an exclusive queue of that name as a lock; the broker gives it back when the connection ends.

    False where another connection holds it. Raises BrokerUnreachable if the broker refuses, or goes meanwhile.
    """
    channel = await connection.channel()
    try:
        await _done(
            connection,
            channel,
            lambda done: channel.queue_declare(name, exclusive=True, arguments=_ARGUMENTS, callback=done),
        )
    except Locked:
        return False
    channel.close()
    return True


async def release(connection: Connection, name: str) -> None:
    """Gives a lock back. Raises BrokerUnreachable if the connection goes meanwhile, and the lock with it."""
    channel = await connection.channel()
    await _done(connection, channel, lambda done: channel.queue_delete(name, callback=done))
    channel.close()


class Locked(BrokerUnreachable):
    """Another connection holds the queue for itself."""


async def _done(connection: Connection, channel: Channel, ask: Callable[[Callable[[Any], None]], Any]) -> None:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def closed(_: Channel, reason: Any) -> None:
        if not answer.done():
            code = getattr(reason, "reply_code", 0)
            kind = Locked if code == 405 else BrokerUnreachable  # noqa: PLR2004 - AMQP's RESOURCE_LOCKED
            answer.set_exception(kind(f"the broker refused: {reason}"))

    channel.add_on_close_callback(closed)
    ask(resolver(answer))
    await asyncio.wait({answer, connection.closed}, return_when=asyncio.FIRST_COMPLETED)
    if not answer.done():
        answer.cancel()
        raise BrokerUnreachable(f"the connection closed: {connection.closed.result()}")
    answer.result()


def _never(*_: Any) -> None:
    raise AssertionError("the wire takes this channel's deliveries")
