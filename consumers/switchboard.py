"""Keeps the breakers of a worker in step with those of its replicas, over the events exchange.

What one replica finds out the others follow. Of several half-open replicas one at a time may try the service: the one
that holds an exclusive queue, which the broker takes back when its connection ends, however it ends. All of this is
help, not truth: with the broker away, or without the permission, each breaker goes by what it sees itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final

from consumers import breaker_news
from consumers.breaker import Breaker, Standing
from consumers.breaker_news import News
from consumers.circuit import State
from consumers.instruments import BREAKER_STATE
from topology.audience import Audience, answer, hold, question, release
from topology.envelope import notice
from topology.errors import BrokerUnreachable
from topology.link import Connection
from topology.publisher import Publisher
from topology.spec import Names

logger = logging.getLogger(__name__)

SETTLE: Final = 0.3
"""Seconds that a worker waits for its replicas' answers before it consumes."""
IDLE: Final = 2.0
"""Seconds that a replica keeps the right to try with nothing to try with."""
_TIMEOUT: Final = 2.0
_REMEMBERED: Final = 10_000
"""Workers whose last word is known."""


class Switchboard:
    """Connects ``breakers`` with the replicas' while the worker's connection is up.

    ``needed`` names those that this worker's job types wait for; ``on_change`` is called in the event loop whenever
    consumption may have to change.
    """

    def __init__(
        self,
        breakers: Iterable[Breaker],
        publisher: Publisher,
        names: Names,
        *,
        needed: Iterable[str],
        on_change: Callable[[], None],
    ) -> None:
        self._breakers = {breaker.name: breaker for breaker in breakers}
        self._publisher = publisher
        self._names = names
        self._needed = frozenset(needed)
        self._on_change = on_change
        self._id = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._connection: Connection | None = None
        self._seq = 0
        self._heard: dict[str, int] = {}
        self._echoes: dict[int, asyncio.Future[None]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._moved: dict[str, asyncio.Event] = {}
        self._campaigns: dict[str, asyncio.Task[None]] = {}
        self._sending: set[asyncio.Future[None]] = set()
        self._unlisten: list[Callable[[], None]] = []
        self._loop: asyncio.AbstractEventLoop

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Watches the breakers from here on."""
        self._loop = asyncio.get_running_loop()
        for name, breaker in self._breakers.items():
            self._moved[name] = asyncio.Event()
            self._unlisten.append(breaker.listen(partial(self._heard_from, breaker)))
            BREAKER_STATE.set(breaker.number, {"breaker": name})
            self._watch(breaker)

    async def stop(self) -> None:
        """Lets go of everything. The breakers go on by themselves."""
        self.leave()
        for unlisten in self._unlisten:
            unlisten()
        self._unlisten.clear()
        for timer in self._timers.values():
            timer.cancel()
        await asyncio.gather(*self._campaigns.values(), return_exceptions=True)

    async def join(self, connection: Connection) -> None:
        """Listens over ``connection``, and learns what the replicas know before it returns: within seconds."""
        queue = f"{self._names.namespace}.breaker~{uuid.uuid4().hex}"
        try:
            await Audience(connection, queue, self._on_message, partial(self._lost, connection)).open(
                self._names.events, breaker_news.PATTERN
            )
        except BrokerUnreachable as error:
            if not connection.is_open:
                raise
            logger.warning("the breakers of this worker go by themselves, not by what its replicas see: %s", error)
            return
        self._connection = connection
        for breaker in self._breakers.values():
            breaker.guard(True)
        asked = self._send(News(breaker_news.ASK, self._id, self._next(), time.time()), reply_to=queue)
        for breaker in self._breakers.values():
            if (standing := breaker.standing()).age is not None:
                self._say(breaker_news.STATE, standing)  # they may have missed it
        await asyncio.wait({asked})
        await asyncio.sleep(SETTLE)
        for breaker in self._breakers.values():
            self._watch(breaker)

    def leave(self) -> None:
        """The connection is gone: each breaker goes by itself."""
        if self._connection is not None:
            self._connection = None
            for campaign in self._campaigns.values():
                campaign.cancel()
            for breaker in self._breakers.values():
                breaker.guard(False)
            self._on_change()

    def _lost(self, connection: Connection) -> None:
        """Only the listening ended, since somebody deleted its queue for example."""
        if self._connection is connection:
            logger.warning("this worker hears no more of its replicas' breakers until it connects anew")
            self.leave()

    # -- what happens here -----------------------------------------------------------------------------------------

    def _heard_from(self, breaker: Breaker, standing: Standing, local: bool) -> None:
        """A breaker changed, in whatever thread."""
        with suppress(RuntimeError):  # a thread that outlives its worker finds the loop closed
            self._loop.call_soon_threadsafe(self._changed, breaker, standing, local)

    def _changed(self, breaker: Breaker, standing: Standing, local: bool) -> None:
        # Who half-opens by the clock alone says nothing of it: all others do so too. Who may try says so.
        if local and standing.state is not State.HALF_OPEN and self._connection is not None:
            self._say(breaker_news.EVENT_OF[standing.state], standing)
        self._moved[breaker.name].set()
        self._watch(breaker)
        self._on_change()

    def _watch(self, breaker: Breaker) -> None:
        """Sees to it that the next change comes by itself."""
        standing = breaker.standing()
        if (timer := self._timers.pop(breaker.name, None)) is not None:
            timer.cancel()
        if standing.state is State.OPEN:
            self._timers[breaker.name] = self._loop.call_later(standing.remaining + 0.001, self._watch, breaker)
        elif standing.state is State.HALF_OPEN and self._connection is not None:
            running = self._campaigns.get(breaker.name)
            if running is None or running.done() or running.cancelling():
                self._campaigns[breaker.name] = self._loop.create_task(self._campaign(breaker, self._connection))

    # -- who may try -----------------------------------------------------------------------------------------------

    async def _campaign(self, breaker: Breaker, connection: Connection) -> None:
        """Asks for the right to try until the breaker is no longer half-open."""
        lock = f"{self._names.namespace}.breaker~{breaker.name}~probe"
        try:
            while self._connection is connection and breaker.state is State.HALF_OPEN:
                if self._wanted(breaker) and await hold(connection, lock):
                    try:
                        await self._try(breaker, connection)
                    finally:
                        await self._give_back(connection, lock)
                await asyncio.sleep(min(1.0, breaker.policy.reset / 4) * (0.5 + 0.5 * random.random()))  # noqa: S311
        except BrokerUnreachable as error:
            if connection.is_open:
                logger.warning("breaker '%s': this replica tries by itself: %s", breaker.name, error)
                breaker.guard(False)
                self._on_change()

    async def _give_back(self, connection: Connection, lock: str) -> None:
        """Once the broker has what was found out. One that does not answer takes it back with the connection."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                if self._sending:
                    await asyncio.wait(self._sending)
                await release(connection, lock)
                logger.debug("%s is given back", lock)
        except TimeoutError:
            logger.debug("%s is not given back: the broker does not answer", lock)

    def _wanted(self, breaker: Breaker) -> bool:
        return breaker.name in self._needed or breaker.missed

    async def _try(self, breaker: Breaker, connection: Connection) -> None:
        """Has the right to. Keeps it while probes run, until one of them decides."""
        moved = self._moved[breaker.name]
        await self._heard_all(breaker)
        moved.clear()
        if breaker.state is not State.HALF_OPEN:
            return
        logger.debug("breaker '%s': this replica may try", breaker.name)
        breaker.permit(True)
        self._on_change()
        idle = IDLE if breaker.name in self._needed else max(IDLE, 2 * breaker.policy.pause + 1)
        try:
            busy = True
            while busy and breaker.state is State.HALF_OPEN:
                try:
                    async with asyncio.timeout(idle):
                        await moved.wait()
                except TimeoutError:
                    busy = breaker.standing().probing > 0
                moved.clear()
        finally:
            if self._connection is connection:
                breaker.permit(False)
            self._on_change()

    async def _heard_all(self, breaker: Breaker) -> None:
        """Says that this replica tries, and waits until it hears itself: it has then heard all that was said before.

        Among that is what the last holder of the right found out, who gave it back after that was confirmed.
        """
        standing = breaker.standing()
        if standing.state is not State.HALF_OPEN:
            return
        news = News(breaker_news.HALF_OPEN, self._id, self._next(), time.time(), standing)
        echo = self._echoes[news.seq] = self._loop.create_future()
        try:
            self._send(news)
            async with asyncio.timeout(_TIMEOUT):
                await echo
        except TimeoutError:
            logger.debug("breaker '%s': the echo did not come", breaker.name)
        finally:
            del self._echoes[news.seq]

    # -- out -------------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _say(self, event: str, standing: Standing, to: str | None = None) -> asyncio.Future[None]:
        return self._send(News(event, self._id, self._next(), time.time(), standing), to=to)

    def _send(self, news: News, *, to: str | None = None, reply_to: str | None = None) -> asyncio.Future[None]:
        """At once, so that what is said arrives in its order. Confirmed, or given up: what comes late says nothing."""
        body = news.encoded()
        if to is not None:
            message = answer(to, body)
        elif reply_to is not None:
            message = question(self._names, news.routing_key, body, reply_to)
        else:
            message = notice(self._names, news.routing_key, body)
        future = self._publisher.send(message, _TIMEOUT)
        self._sending.add(future)
        future.add_done_callback(self._sent)
        return future

    def _sent(self, future: asyncio.Future[None]) -> None:
        self._sending.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            logger.debug("a breaker's news was not told to the replicas: %s", error)

    # -- in --------------------------------------------------------------------------------------------------------

    def _on_message(self, reply_to: str | None, body: bytes) -> None:
        news = breaker_news.decode(body)
        if news is None:
            logger.warning("a message on '%s' that is no news of a breaker is ignored", self._names.events)
            return
        if news.worker == self._id:
            echo = self._echoes.get(news.seq)
            if echo is not None and not echo.done():
                echo.set_result(None)
            return
        if news.seq <= self._heard.get(news.worker, 0):
            return  # a duplicate
        self._heard.pop(news.worker, None)  # the latest last
        self._heard[news.worker] = news.seq
        if len(self._heard) > _REMEMBERED:
            del self._heard[next(iter(self._heard))]
        if news.standing is None:
            self._answer(reply_to, news.everything)
        elif (breaker := self._breakers.get(news.standing.name)) is not None:
            self._follow(breaker, news, news.standing)

    def _follow(self, breaker: Breaker, news: News, said: Standing) -> None:
        if breaker_news.applies(news, breaker.standing()):
            age = 0.0 if news.is_change else said.age or 0.0
            breaker.follow(said.state, said.remaining, said.failures, said.reason, age)

    def _answer(self, reply_to: str | None, everything: bool) -> None:
        # Only to those who listen as this one does: a question must not make a message in just any queue.
        if reply_to is None or not reply_to.startswith(f"{self._names.namespace}.breaker~"):
            return
        for breaker in self._breakers.values():
            standing = breaker.standing()
            if everything or standing.age is not None:
                self._say(breaker_news.STATE, standing, to=reply_to)
