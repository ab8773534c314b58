"""A real HTTP server on a free loopback port that stores documents. The path says how it behaves.

| path | answer |
|---|---|
| ``/ready/...`` | 200 with JSON |
| ``/slow/...`` | the same, after `SLOW` seconds |
| ``/busy/...`` | 503 with ``Retry-After: 1`` twice, then 200 |
| ``/limited/...`` | 429 with an HTTP date in Retry-After once, then 200 |
| ``/dropped/...`` | closes the connection without an answer once, then 200 |
| ``/missing/...`` | 404 |
| ``/garbage/...`` | 200 with a page of HTML |

It honours Idempotency-Key: a repeat is answered as the first time, is counted, and stores nothing anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import h11

from hareline.demo.effect import Effect

HOST: Final = "127.0.0.1"
SLOW: Final = 0.8
_PAGE = b"<!doctype html><title>Sign in</title><h1>Please sign in</h1>"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, extra headers and body of an answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class DocumentServer:
    """Stores documents by path; see the module for how it treats them."""

    def __init__(self) -> None:
        self.port = 0
        self.documents: dict[str, Any] = {}
        self.keys: dict[str, str] = {}
        self.effects: list[Effect] = []
        self.requests: Counter[str] = Counter()
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[DocumentServer]:
        """Listens on a free port, in the running event loop, until the block ends."""
        server = await asyncio.start_server(self._on_connection, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except (OSError, h11.ProtocolError, asyncio.CancelledError):
            pass  # the client went away, or the server is closing
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            request = await _read_request(connection, reader)
            if request is None:
                return
            answer = await self.answer(*request)
            if answer is None:
                return
            headers = [("Content-Length", str(len(answer.body))), *answer.headers]
            writer.write(
                connection.send(h11.Response(status_code=answer.status, headers=headers))
                + connection.send(h11.Data(data=answer.body))
                + connection.send(h11.EndOfMessage())
            )
            await writer.drain()
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        """The answer to a request, or None where the connection is to be closed without one."""
        self.requests[path] += 1
        behaviour = path.split("/")[1]
        if behaviour == "missing":
            return Answer(404, b'{"error": "no such document"}')
        if behaviour == "garbage":
            return Answer(200, _PAGE, (("Content-Type", "text/html"),))
        if behaviour == "busy" and self.requests[path] <= 2:  # noqa: PLR2004 - as the module says
            return Answer(503, b"", (("Retry-After", "1"),))
        if behaviour == "limited" and self.requests[path] == 1:
            # An HTTP date has whole seconds; two ahead is at least one.
            return Answer(429, b"", (("Retry-After", email.utils.formatdate(time.time() + 2, usegmt=True)),))
        if behaviour == "dropped" and self.requests[path] == 1:
            return None
        if behaviour == "slow":
            await asyncio.sleep(SLOW)
        return self._store(path, headers, body)

    def _store(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        try:
            document = json.loads(body)
        except ValueError:
            return Answer(400, b'{"error": "not JSON"}')
        key = headers.get("idempotency-key", "")
        self.effects.append(Effect(headers.get("x-job-id", ""), time.time()))
        if key not in self.keys:
            self.keys[key] = path
            self.documents[path] = document
        return Answer(200, b'{"stored": true}', (("Content-Type", "application/json"),))


async def _read_request(
    connection: h11.Connection, reader: asyncio.StreamReader
) -> tuple[str, dict[str, str], bytes] | None:
    """Path, headers and body of the next request, or None once the client has closed."""
    request: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
            return request.target.decode(), headers, body
        else:
            return None
