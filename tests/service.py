"""A TCP service that answers, fails, hangs or is away, as a test wants, and knows how many calls it had at once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Literal, Self

Mood = Literal["up", "failing", "hanging", "away"]


class Service:
    """Async context. Each connection is one call; the answer is a line ``ok``. While it hangs, `answer` lets go."""

    def __init__(self) -> None:
        self.port = 0
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0
        self._mood: Mood = "up"
        self._release = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.be("up")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.be("away")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def be(self, mood: Mood) -> None:
        """From now on; the counts start again. Calls that hang are let go as failed."""
        self._mood = mood
        self.calls = self.most_at_once = 0
        self._release.set()
        self._release = asyncio.Event()
        if mood == "away":
            if self._server is not None:
                self._server.close()
                self._server = None
        elif self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        mood = self._mood
        try:
            if mood == "hanging":
                gone = asyncio.create_task(reader.read())
                await asyncio.wait({gone, asyncio.create_task(self._release.wait())}, return_when="FIRST_COMPLETED")
                gone.cancel()
            if mood == "up":
                writer.write(b"ok\n")
            with suppress(ConnectionError):
                await writer.drain()
                writer.close()
        finally:
            self.at_once -= 1
            self._tasks.discard(task)


async def call(port: int) -> None:
    """One call. Raises ConnectionError where there is no answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if await reader.readline() != b"ok\n":
            raise ConnectionError("the service hung up")
    finally:
        writer.close()
