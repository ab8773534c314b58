"""The control connection: declares, binds, looks and deletes. The only module that imports aio-pika.

Convenience counts here more than speed; jobs travel over `topology.link` instead.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote, urlsplit

from aio_pika.connection import Connection, make_url
from aio_pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from topology.capabilities import Capabilities
from topology.errors import BrokerUnreachable, TopologyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from types import TracebackType

    from aio_pika.abc import AbstractConnection
    from aiormq.abc import AbstractChannel

    from topology.spec import Binding, Exchange, Queue

_TIMEOUT: Final = 30.0
_TRIES: Final = 6
_CHANNELS: Final = 2047


class ArgumentsDiffer(TopologyError):
    """The broker has an object of this name with other arguments (PRECONDITION_FAILED)."""


class Locked(TopologyError):
    """Another connection holds the object for itself alone (RESOURCE_LOCKED)."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a passive declaration answers, true at this moment: messages ready, consumers attached."""

    ready: int
    consumers: int


class Control:
    """One control connection, for as long as it lasts: it does not reconnect.

    RabbitMQ closes the channel at each refused operation, so every operation has a channel of its own. Each
    may raise TopologyError (its text names cause and cure) and BrokerUnreachable when the connection is lost.
    """

    def __init__(self, connection: AbstractConnection, url: str) -> None:
        self._connection = connection
        self.url = url
        transport = connection.transport
        if transport is None:
            raise BrokerUnreachable("the connection is closed")
        self._raw: Any = transport.connection
        self.capabilities = Capabilities.of_server(self._raw.server_properties)
        self._numbers = cycle(range(1, (self._raw.connection_tune.channel_max or _CHANNELS) + 1))

    @classmethod
    async def connect(
        cls,
        urls: Sequence[str],
        *,
        timeout: float = 10.0,  # noqa: ASYNC109 - it is for each address, not for the call
        name: str = "hareline topology",
    ) -> Control:
        """Connects to the first of ``urls`` that answers. ``timeout`` is seconds for each.

        Raises BrokerUnreachable, which tells of each address why it did not do, and TopologyError for a
        broker that is too old.
        """
        reasons = []
        for url in urls:
            connection = Connection(make_url(url), client_properties={"connection_name": name})
            try:
                await connection.connect(timeout=timeout)
            except (AMQPError, OSError, RuntimeError, ValueError) as error:
                reasons.append(f"{_address(url)}: {_refusal(error, url)}")
                await connection.close()
                continue
            try:
                return cls(connection, url)
            except BaseException:
                await connection.close()
                raise
        raise BrokerUnreachable(
            f"no broker answers ({'; '.join(reasons)}): is RabbitMQ running, and HARELINE_BROKER_URL right?"
        )

    async def close(self) -> None:
        """Closes the connection, and with it what `hold` holds."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def channel(self, what: str) -> AsyncIterator[AbstractChannel]:
        """A fresh channel with publisher confirms; ``what`` is being done, for the text of errors."""
        with _told(what):
            channel = await self._raw.channel(
                channel_number=self._free_number(), publisher_confirms=True, on_return_raises=True
            )
            try:
                yield channel
            finally:
                if not channel.is_closed:
                    await channel.close()

    def _free_number(self) -> int:
        # The client gives a number out again as soon as it reads the broker's channel.close, which may be
        # before its own close-ok is on the way; the broker then sees a second open and closes the connection.
        # So: in turn.
        return next(number for number in self._numbers if number not in self._raw.channels)

    async def exchange_exists(self, name: str) -> bool:
        """Whether there is an exchange of that name, of whatever type."""
        async with self.channel(f"looking for exchange {name}") as channel:
            try:
                await channel.exchange_declare(name, passive=True, timeout=_TIMEOUT)
            except ChannelNotFoundEntity:
                return False
            return True

    async def queue_exists(self, name: str) -> bool:
        """Whether there is a queue of that name, of whatever type."""
        return await self.counts(name) is not None

    async def counts(self, queue: str) -> Counts | None:
        """The counts of ``queue``, or None if there is no such queue."""
        async with self.channel(f"looking at queue {queue}") as channel:
            try:
                answer = await channel.queue_declare(queue, passive=True, timeout=_TIMEOUT)
            except ChannelNotFoundEntity:
                return None
            return Counts(answer.message_count or 0, answer.consumer_count or 0)

    async def declare_exchange(self, exchange: Exchange) -> None:
        """Creates ``exchange`` unless it exists. Raises ArgumentsDiffer if it exists as something else."""
        await self._persist(
            f"declaring exchange {exchange.name}",
            lambda channel: channel.exchange_declare(
                exchange.name,
                exchange_type=exchange.kind,
                durable=True,
                arguments=dict(exchange.arguments),
                timeout=_TIMEOUT,
            ),
        )

    async def declare_queue(self, queue: Queue) -> None:
        """Creates ``queue`` unless it exists. Raises ArgumentsDiffer if it exists with other arguments."""
        await self._persist(
            f"declaring queue {queue.name}",
            lambda channel: channel.queue_declare(
                queue.name, durable=True, arguments=dict(queue.arguments), timeout=_TIMEOUT
            ),
        )

    async def bind(self, binding: Binding, arguments: dict[str, Any] | None = None) -> None:
        """Creates ``binding`` unless it exists. Both ends must exist."""
        await self._route("bind", binding, arguments)

    async def unbind(self, binding: Binding, arguments: dict[str, Any] | None = None) -> None:
        """Removes ``binding``; no error if it, or either end, does not exist."""
        await self._route("unbind", binding, arguments)

    async def delete_queue(self, name: str) -> None:
        """Deletes the queue with what is in it; no error if there is none.

        Plainly: ``if-unused`` and ``if-empty`` close the whole connection for a quorum queue, so whoever
        calls must have looked before.
        """
        async with self.channel(f"deleting queue {name}") as channel:
            await channel.queue_delete(name, timeout=_TIMEOUT)

    async def delete_exchange(self, name: str) -> None:
        """Deletes the exchange; no error if there is none."""
        async with self.channel(f"deleting exchange {name}") as channel:
            await channel.exchange_delete(name, timeout=_TIMEOUT)

    async def hold(self, name: str) -> None:
        """Holds an exclusive queue of that name until this connection closes, however it ends: a lock.

        Raises Locked if another connection holds it.
        """
        async with self.channel(f"locking {name}") as channel:
            await channel.queue_declare(name, exclusive=True, timeout=_TIMEOUT)

    async def _route(self, verb: str, binding: Binding, arguments: dict[str, Any] | None) -> None:
        what = f"{verb}ing {binding.destination} to {binding.source} by '{binding.routing_key}'"
        await self._persist(
            what,
            lambda channel: getattr(channel, f"{binding.to}_{verb}")(
                binding.destination,
                binding.source,
                binding.routing_key,
                arguments=arguments or {},
                timeout=_TIMEOUT,
            ),
        )

    async def _persist(self, what: str, operation: Any) -> None:
        """Tries again what failed for an instant, as when two declare a quorum queue at once."""
        for attempt in range(1, _TRIES + 1):
            try:
                async with self.channel(what) as channel:
                    await operation(channel)
                return
            except (ArgumentsDiffer, Locked, BrokerUnreachable):
                raise
            except TopologyError as error:
                if attempt == _TRIES or isinstance(error.__cause__, ChannelAccessRefused | ChannelNotFoundEntity):
                    raise
            await asyncio.sleep(0.05 * 2**attempt)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turns the client's errors into ours, which say what was being done, why it failed and what helps."""
    try:
        yield
    except ChannelPreconditionFailed as error:
        raise ArgumentsDiffer(
            f"{what}: it exists with other arguments ({_reason(error)}); `hareline topology plan` "
            "shows them, `hareline topology migrate` replaces a queue without losing a message"
        ) from error
    except ChannelLockedResource as error:
        raise Locked(f"{what}: another connection holds it for itself ({_reason(error)})") from error
    except ChannelAccessRefused as error:
        raise TopologyError(
            f"{what}: the broker refuses ({_reason(error)}): give the user the permission, or let the "
            "operator apply the topology and set HARELINE_DECLARE=never"
        ) from error
    except ChannelClosed as error:
        raise TopologyError(f"{what}: {_reason(error)}") from error
    except (AMQPConnectionError, OSError, RuntimeError, TimeoutError) as error:
        raise BrokerUnreachable(
            f"{what}: the connection to the broker was lost ({_reason(error)}); run it again"
        ) from error
    except AMQPError as error:
        raise TopologyError(f"{what}: {_reason(error)}") from error


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _refusal(error: BaseException, url: str) -> str:
    # The client keeps to itself what the broker said in connection.close; here it is about the virtual host.
    if isinstance(error, InvalidFrameError) and "Connection.Close" in str(error):
        vhost = unquote(urlsplit(url).path[1:]) or "/"
        return f"it closed the connection at once: is there a virtual host '{vhost}', and may the user use it"
    return _reason(error)


def _reason(error: BaseException) -> str:
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return "it refuses the user or the password"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time; a memory or disk alarm on the broker?"
    text = str(error) or type(error).__name__
    return text.replace("ACCESS_REFUSED - ", "").strip()
