"""A TCP proxy between a client and the broker that does what networks do: cut, stall, half-close, refuse."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 65536


class Proxy:
    """Async context. ``url`` is the broker's URL with the proxy's address in it.

    Every fault hits the connections that are there now; `stall` with ``new=True`` and `refuse` those to come as well.
    """

    def __init__(self, broker_url: str) -> None:
        self._parts = urlsplit(broker_url)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stall_new = False
        self.accepted = 0

    @property
    def url(self) -> str:
        """For HARELINE_BROKER_URL."""
        account = self._parts.netloc.rpartition("@")[0]
        return self._parts._replace(netloc=f"{account}@127.0.0.1:{self._port}").geturl()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def accept(self) -> None:
        """Listens (again), at the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuses new connections and cuts the ones there are, as a dead broker's machine does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Resets all connections, in both directions, with whatever was on its way."""
        for pair in self._pairs:
            pair.cut()

    def stall(self, *, new: bool = False) -> None:
        """Nothing more passes, nobody is told."""
        self._stall_new = new
        for pair in self._pairs:
            pair.flowing.clear()

    def resume(self) -> None:
        """What was held back passes, and all that comes."""
        self._stall_new = False
        for pair in self._pairs:
            pair.flowing.set()

    def half_close(self, *, towards_client: bool) -> None:
        """Ends one direction in good order; the other stays open."""
        for pair in self._pairs:
            (pair.to_client if towards_client else pair.to_broker).write_eof()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        stalled = self._stall_new
        try:
            broker_reader, broker_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, broker_writer)
        if stalled:
            pair.flowing.clear()
        self._pairs.add(pair)
        pumps = [
            asyncio.create_task(pair.pump(reader, broker_writer)),
            asyncio.create_task(pair.pump(broker_reader, writer)),
        ]
        self._tasks.update(pumps)
        try:
            # Either end going takes the other along, as a connection of its own would.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pair.cut()
            for pump in pumps:
                pump.cancel()
            self._tasks.difference_update(pumps)
            self._pairs.discard(pair)


class _Pair:
    """One connection through the proxy."""

    def __init__(self, to_client: asyncio.StreamWriter, to_broker: asyncio.StreamWriter) -> None:
        self.to_client = to_client
        self.to_broker = to_broker
        self.flowing = asyncio.Event()
        self.flowing.set()

    def cut(self) -> None:
        self.to_client.transport.abort()
        self.to_broker.transport.abort()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A direction that was half-closed refuses to be written to: that ends the pair.
        with suppress(OSError, RuntimeError):
            while data := await reader.read(_CHUNK):
                await self.flowing.wait()
                writer.write(data)
                await writer.drain()
