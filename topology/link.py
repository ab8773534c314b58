"""The data plane's connection: pika's asyncio adapter, made awaitable, and kept up for ever.

`Connection` is one AMQP connection. `Link` opens one after another, over all broker URLs in turn with growing
pauses, and tells its owner when one is up and when it is down. Owners keep no state of a connection that is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pika
from pika.channel import Channel
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from topology.capabilities import Capabilities
from topology.envelope import Message
from topology.errors import BrokerUnreachable, HarelineError, SettingsError
from topology.wire import OnDelivery, Wire

T = TypeVar("T")

logger = logging.getLogger(__name__)

HEARTBEAT = 30
CONNECT_TIMEOUT = 10.0
LEAST_CONNECT_TIMEOUT = 3.0
CLOSE_TIMEOUT = 5.0
UNFIT_PAUSE = 2.0
SHORT_LIFE = 1.0
SHORT_LIFE_PAUSE = 0.1


def shown(url: str) -> str:
    """A broker URL without its password, for logs and errors."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}{parts.path}"


def resolver(future: asyncio.Future[T]) -> Callable[[T], None]:
    """A callback for pika that resolves ``future``, unless it has been given up meanwhile."""

    def resolve(value: T) -> None:
        if not future.done():
            future.set_result(value)

    return resolve


def _parameters(url: str, name: str) -> pika.URLParameters:
    try:
        parameters = pika.URLParameters(url)
    except Exception as error:
        # The URL may hold a password, and so may pika's words on it.
        raise SettingsError(
            f"HARELINE_BROKER_URL: an address at '{url.rpartition('@')[2]}' has a part that means nothing; "
            "write amqp://user:password@host:5672/vhost?heartbeat=30"
        ) from error
    if "heartbeat=" not in url:
        parameters.heartbeat = HEARTBEAT
    parameters.client_properties = {"connection_name": name, "product": "hareline"}
    return parameters


class Connection:
    """One open AMQP connection. ``closed`` resolves, with the reason, when it is gone for whatever cause."""

    def __init__(self, loop: asyncio.AbstractEventLoop, url: str) -> None:
        self._shown = shown(url)
        self.closed: asyncio.Future[str] = loop.create_future()
        self.blocked = False
        self.on_blocked: Callable[[bool], None] | None = None
        self._loop = loop
        self._opened: asyncio.Future[None] = loop.create_future()
        self._amqp: Wire

    @classmethod
    async def open(cls, url: str, name: str, timeout: float = CONNECT_TIMEOUT) -> Connection:  # noqa: ASYNC109 - per URL
        """Connects, or raises BrokerUnreachable that names the address and the reason."""
        loop = asyncio.get_running_loop()
        self = cls(loop, url)
        self._amqp = Wire(
            _parameters(url, name),
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_open_error,
            on_close_callback=self._on_close,
            custom_ioloop=loop,
        )
        self._amqp.add_on_connection_blocked_callback(lambda *_: self._set_blocked(True))
        self._amqp.add_on_connection_unblocked_callback(lambda *_: self._set_blocked(False))
        try:
            async with asyncio.timeout(timeout):
                await self._opened
        except TimeoutError:
            self._abandon()
            raise BrokerUnreachable(f"{self._shown} did not answer within {timeout:g} s") from None
        except asyncio.CancelledError:
            self._abandon()
            raise
        return self

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return bool(self._amqp.is_open)

    @property
    def server_properties(self) -> Mapping[str, Any]:
        """What the broker said of itself."""
        return self._amqp.server_properties or {}

    @property
    def capabilities(self) -> Capabilities:
        """What the broker can do."""
        return Capabilities.of_server(self.server_properties)

    async def channel(self) -> Channel:
        """A new channel. Raises BrokerUnreachable if the connection goes away meanwhile."""
        opened: asyncio.Future[Channel] = self._loop.create_future()
        if not self._amqp.is_open:
            raise BrokerUnreachable("the connection is closed")
        self._amqp.channel(on_open_callback=resolver(opened))
        await asyncio.wait({opened, self.closed}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            raise BrokerUnreachable(f"the connection closed: {self.closed.result()}")
        return opened.result()

    def publish(self, channel: Channel, message: Message) -> None:
        """Sends a message on ``channel``, together with all others of this turn of the event loop."""
        self._amqp.publish(channel, message)

    def take(self, channel: Channel, on_delivery: OnDelivery) -> None:
        """Routes the deliveries of ``channel`` to ``on_delivery``."""
        self._amqp.take(channel.channel_number, on_delivery)

    async def exchange_exists(self, name: str) -> bool:
        """A passive declare of an exchange, on a channel of its own since a miss closes it."""
        return await self._exists(lambda channel, done: channel.exchange_declare(name, passive=True, callback=done))

    async def queue_exists(self, name: str) -> bool:
        """A passive declare of a queue, on a channel of its own since a miss closes it."""
        return await self._exists(lambda channel, done: channel.queue_declare(name, passive=True, callback=done))

    async def _exists(self, declare: Callable[[Channel, Callable[[Any], None]], Any]) -> bool:
        channel = await self.channel()
        answer: asyncio.Future[bool] = self._loop.create_future()
        found = resolver(answer)

        def closed(_: Channel, reason: Exception) -> None:
            if getattr(reason, "reply_code", 0) == 404:  # noqa: PLR2004 - AMQP's NOT_FOUND
                found(False)
            elif not answer.done():
                answer.set_exception(BrokerUnreachable(f"the broker refused to look: {_reason(reason)}"))

        channel.add_on_close_callback(closed)
        declare(channel, lambda _: found(True))
        exists = await answer
        if channel.is_open:
            channel.close()
        return exists

    async def close(self) -> None:
        """Closes in an orderly way, within a few seconds; afterwards ``closed`` is resolved."""
        if self._amqp.is_open:
            self._amqp.flush()
            self._amqp.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.shield(self.closed)
        except TimeoutError:
            self._amqp.abort()
            self._on_close(None, ConnectionAbortedError("no answer to our close"))

    def _abandon(self) -> None:
        """Gives up on an attempt that is under way."""
        self._opened.cancel()
        if not self._amqp.is_closed and not self._amqp.is_closing:
            self._amqp.close()

    def _on_open(self, _: object) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _on_open_error(self, _: object, error: BaseException | str) -> None:
        if not self._opened.done():
            reason = _reason(error) if isinstance(error, BaseException) else error
            self._opened.set_exception(BrokerUnreachable(f"{self._shown}: {reason}"))

    def _on_close(self, _: object, error: BaseException) -> None:
        if not self.closed.done():
            self.closed.set_result(_reason(error))

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        if self.on_blocked is not None:
            self.on_blocked(blocked)


def _reason(error: BaseException) -> str:
    """The innermost message that says something: pika wraps errors in several layers."""
    inner: BaseException = error
    while True:
        nested = [*getattr(inner, "exceptions", ()), *(arg for arg in inner.args if isinstance(arg, BaseException))]
        if isinstance(stage := getattr(inner, "exception", None), BaseException):
            nested.append(stage)
        if not nested:
            break
        inner = nested[-1]
    return str(inner) or type(inner).__name__


OnUp = Callable[[Connection], Awaitable[None]]
OnDown = Callable[[str], None]


class Link:
    """A connection that comes back. ``on_up`` runs for each new connection, ``on_down`` when it is lost.

    An ``on_up`` that raises closes that connection; the next attempt follows after a pause. Raises SettingsError
    for a URL that is none.
    """

    def __init__(self, urls: Sequence[str], name: str, *, on_up: OnUp, on_down: OnDown) -> None:
        for url in urls:
            _parameters(url, name)  # an address that means nothing is known now, not when it is tried
        self._urls: Iterator[str] = itertools.cycle(urls)
        self._round = len(urls)
        # With several brokers, one that is silently gone must not use up the time a publish may wait.
        self._patience = max(LEAST_CONNECT_TIMEOUT, CONNECT_TIMEOUT / self._round)
        self._name = name
        self._on_up = on_up
        self._on_down = on_down
        self._task: asyncio.Task[None] | None = None
        self.connection: Connection | None = None
        self.last_error: str = "not connected yet"

    def start(self) -> None:
        """Begins to connect, in the background."""
        self._task = asyncio.create_task(self._keep_up(), name=f"hareline link {self._name}")

    async def stop(self) -> None:
        """Closes the connection and does not come back."""
        task, self._task = self._task, None
        connection = self.connection
        if connection is not None:
            await connection.close()
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _keep_up(self) -> None:
        while True:
            connection = await self._connect()
            self.connection = connection
            since = asyncio.get_running_loop().time()
            unfit = False
            try:
                await self._on_up(connection)
                reason = await asyncio.shield(connection.closed)
            except Exception as error:
                reason = str(error)
                if not isinstance(error, HarelineError):
                    logger.exception("connection %s could not be put to use: this is a fault in Hareline", self._name)
                unfit = not connection.closed.done()
                await connection.close()
            finally:
                self.connection = None
            self.last_error = reason
            if self._task is not None:
                logger.warning("connection %s lost: %s", self._name, reason)
            self._on_down(reason)
            brief = asyncio.get_running_loop().time() - since < SHORT_LIFE
            await asyncio.sleep(UNFIT_PAUSE if unfit else SHORT_LIFE_PAUSE if brief else 0.0)

    async def _connect(self) -> Connection:
        """Tries every URL at once in turn, then pauses: 50 ms at first, 5 s at most, with jitter."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(BrokerUnreachable),
            wait=self._pause,
            before_sleep=self._note,
        ):
            with attempt:
                return await Connection.open(next(self._urls), self._name, self._patience)
        raise AssertionError("unreachable: retries never stop")

    def _pause(self, state: RetryCallState) -> float:
        if state.attempt_number % self._round:
            return 0.0
        return _PAUSE(state)

    def _note(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self.last_error = str(error)
        if state.attempt_number == self._round:
            logger.warning("no broker reachable (%s); trying again until one is", error)


_PAUSE = wait_exponential_jitter(multiplier=0.05, max=5.0, jitter=0.1)
