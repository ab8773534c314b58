"""Asks all workers how their breakers stand."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass

from consumers import breaker_news
from consumers.breaker import Standing
from consumers.breaker_news import News
from topology.audience import Audience, question
from topology.errors import BrokerUnreachable
from topology.link import Connection
from topology.publisher import Publisher
from topology.settings import Settings
from topology.spec import Names


@dataclass(frozen=True, slots=True)
class Sighting:
    """A breaker as one worker sees it, ``at`` Unix seconds of our own clock."""

    worker: str
    standing: Standing
    at: float


async def survey(settings: Settings, patience: float) -> list[Sighting]:
    """The answers that come within ``patience`` seconds, the latest of each worker and breaker.

    Raises BrokerUnreachable, also where the events exchange is missing, and PublishError.
    """
    names = Names(settings.namespace)
    found: dict[tuple[str, str], Sighting] = {}

    def take(_: str | None, body: bytes) -> None:
        news = breaker_news.decode(body)
        if news is not None and news.standing is not None:
            found[news.standing.name, news.worker] = Sighting(news.worker, news.standing, time.time())

    connection = await _connected(settings)
    publisher = Publisher(settings, "status")
    try:
        queue = f"{names.namespace}.breaker~{uuid.uuid4().hex}"
        await Audience(connection, queue, take).open(names.events, breaker_news.PATTERN)
        publisher.start()
        ask = News(breaker_news.ASK, queue, 1, time.time(), everything=True)
        await publisher.send(question(names, ask.routing_key, ask.encoded(), queue), settings.publish_timeout)
        await asyncio.sleep(patience)
    finally:
        await publisher.stop(0.0)
        await connection.close()
    return [found[key] for key in sorted(found)]


async def _connected(settings: Settings) -> Connection:
    *others, last = settings.broker_urls
    for url in others:
        try:
            return await Connection.open(url, "hareline status")
        except BrokerUnreachable:
            continue
    return await Connection.open(last, "hareline status")
