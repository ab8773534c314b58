"""Moves messages from a queue to an exchange, each confirmed there before it is acknowledged here."""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from topology import envelope
from topology.errors import TopologyError

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, DeliveredMessage

    from topology.control import Control

# A batch is in memory twice while it is under way; with payloads of 1 MiB that is still bearable.
_BATCH: Final = 200
_LULL: Final = 0.1
_STARVED: Final = 30.0
_CONFIRM: Final = 60.0

EXPIRATION: Final = "hareline-migrating-expiration"
DUE: Final = "hareline-migrating-due"

Change = Callable[[Any], None]
"""Changes the (pamqp) properties of a message on its way, in place."""


async def transfer(
    control: Control,
    source: str,
    exchange: str,
    *,
    change: Change,
    drop_duplicates: bool = False,
    moved: Callable[[int], None] = lambda _: None,
) -> int:
    """Moves all messages of ``source`` to ``exchange``, in order, until none is ready; returns how many.

    Routing key, body and properties stay, save what the broker wrote itself, what ``change`` changes and the
    user id (the broker takes it from its owner alone). A message without an id gets one. A batch is
    acknowledged once all of it is confirmed, so that whatever stops this leaves each message in at least one
    place. With ``drop_duplicates`` a message that equals an earlier one in everything, its id included, is
    dropped.

    Raises TopologyError if the broker refuses a message or stops delivering, BrokerUnreachable if it goes
    away.
    """
    seen: set[bytes] | None = set() if drop_duplicates else None
    count = 0
    what = f"moving messages from {source}"
    async with control.channel(what) as incoming, control.channel(what) as outgoing:
        arrivals: asyncio.Queue[DeliveredMessage] = asyncio.Queue()

        async def arrived(message: DeliveredMessage) -> None:
            arrivals.put_nowait(message)

        await incoming.basic_qos(prefetch_count=_BATCH)
        consumer = await incoming.basic_consume(source, arrived)
        attached = True
        while True:
            batch = await _next_batch(control, source, arrivals) if attached else _arrived(arrivals)
            if batch:
                await _publish(outgoing, exchange, batch, change, seen)
                await incoming.basic_ack(batch[-1].delivery_tag or 0, multiple=True)
                count += len(batch)
                moved(count)
            elif attached:
                # Whatever is still on its way to us comes before the answer to this.
                await incoming.basic_cancel(consumer.consumer_tag or "")
                attached = False
            else:
                return count


async def _next_batch(
    control: Control, source: str, arrivals: asyncio.Queue[DeliveredMessage]
) -> list[DeliveredMessage]:
    """What has arrived, at least one message; nothing once none is ready in ``source``."""
    for _ in range(int(_STARVED / _LULL)):
        try:
            batch = [await asyncio.wait_for(arrivals.get(), _LULL)]
        except TimeoutError:
            if await _exhausted(control, source) and arrivals.empty():
                return []
            continue
        return batch + _arrived(arrivals)
    raise TopologyError(f"the broker has messages in {source} but delivers none: look at the queue's state there")


def _arrived(arrivals: asyncio.Queue[DeliveredMessage]) -> list[DeliveredMessage]:
    return [arrivals.get_nowait() for _ in range(min(arrivals.qsize(), _BATCH))]


async def _exhausted(control: Control, source: str) -> bool:
    counts = await control.counts(source)
    if counts is None:
        raise TopologyError(f"queue {source} was deleted while its messages were being moved")
    return counts.ready == 0


async def _publish(
    channel: AbstractChannel,
    exchange: str,
    batch: list[DeliveredMessage],
    change: Change,
    seen: set[bytes] | None,
) -> None:
    publishes = []
    for message in batch:
        properties = copy.copy(message.header.properties)
        if seen is not None and properties.message_id:
            mark = _mark(message.routing_key or "", properties, message.body)
            if mark in seen:
                continue
            seen.add(mark)
        properties.headers = dict(properties.headers or {})
        change(properties)
        properties.headers = envelope.fresh_headers(properties.headers, {}) or None
        properties.delivery_mode = envelope.PERSISTENT
        properties.user_id = None
        properties.message_id = properties.message_id or envelope.new_id()
        publishes.append(
            channel.basic_publish(
                message.body,
                exchange=exchange,
                routing_key=message.routing_key or "",
                properties=properties,
                mandatory=True,
                timeout=_CONFIRM,
            )
        )
    await asyncio.gather(*publishes)


def _mark(routing_key: str, properties: Any, body: bytes) -> bytes:
    own = envelope.fresh_headers(properties.headers, {EXPIRATION: None, DUE: None})
    headers = sorted((name, repr(value)) for name, value in own.items())
    identity = (properties.message_id, routing_key, properties.message_type, properties.priority, headers)
    return hashlib.blake2b(repr(identity).encode() + b"\0" + body, digest_size=16).digest()


def hold(properties: Any, ttl: int | None, now: float) -> None:
    """For a message on its way into the temporary queue: nothing may expire there.

    Its own expiration waits in a header, as does the moment when a queue with a TTL of ``ttl`` ms would have
    let it go. ``now`` is seconds since the epoch.
    """
    headers = properties.headers
    if properties.expiration:
        headers[EXPIRATION] = properties.expiration
        properties.expiration = None
    if ttl is not None:
        headers.setdefault(DUE, _arrival(properties, now) + ttl)


def release(properties: Any, ttl: int | None, now: float) -> None:
    """For a message on its way into the new queue: gives back what `hold` took, less the time passed."""
    headers = properties.headers
    expiration = headers.pop(EXPIRATION, None) or properties.expiration
    due = headers.pop(DUE, None)
    if ttl is not None:
        left = max(0, (due if isinstance(due, int) else _arrival(properties, now) + ttl) - int(now * 1000))
        if left < ttl:
            expiration = str(min(left, int(expiration))) if str(expiration or "").isdecimal() else str(left)
    properties.expiration = expiration


def _arrival(properties: Any, now: float) -> int:
    """Milliseconds since the epoch at which a message reached its queue; now, where nothing tells.

    The last dead-lettering tells, or else a fresh job's timestamp (a retry keeps that of its first run, which
    tells nothing). Both are whole seconds: rounding up starts a job late rather than early.
    """
    headers: Mapping[str, Any] = properties.headers
    moment = properties.timestamp
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        moment = deaths[0].get("time")
    elif envelope.ATTEMPT in headers or envelope.FIRST_FAILED_AT in headers:
        moment = None
    if not isinstance(moment, datetime):
        return int(now * 1000)
    return min(int(now * 1000), (int(moment.timestamp()) + 1) * 1000)
