"""A stand-in for an ERP over real HTTP, which fails on command.

python -m examples.erp_sync.erp --port 8090
curl -X PUT localhost:8090/mode -d down          # ok, down (500), busy (503), limited (429), hang, reset, blip

It keeps orders by id, tells a repeat by its Idempotency-Key, and refuses an order that is older than what it has (409).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import click

MODES = ("ok", "down", "busy", "limited", "hang", "reset", "blip")


@dataclass
class Erp:
    """``mode`` may be changed at any time. ``requests`` are (path, attempt, time of the loop) as they came."""

    mode: str = "ok"
    retry_after: int = 1
    port: int = 0
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    repeats: int = 0
    requests: list[tuple[str, int, float]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    _open: dict[asyncio.Task[None], asyncio.WriteTransport] = field(default_factory=dict)
    _closing: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[Erp]:
        """Listens on 127.0.0.1 until the block ends."""
        server = await asyncio.start_server(self._converse, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self._closing.set()
            for transport in self._open.values():
                transport.abort()
            await asyncio.gather(*self._open, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer.transport
        task.add_done_callback(self._open.pop)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if not await self._answer(method, path, headers, body, writer):
                    break
        writer.close()

    async def _answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        if path == "/mode":
            mode = body.decode().strip()
            self.mode = mode if mode in MODES else self.mode
            return await _write(writer, "200 OK", {"mode": self.mode, "orders": len(self.orders)})
        self.requests.append((path, int(headers.get("x-job-attempt", "0")), asyncio.get_running_loop().time()))
        self.seen[path] += 1
        mode = self.mode
        if mode == "hang":
            await self._closing.wait()
            return False
        if mode == "reset" or (mode == "blip" and self.seen[path] % 3):
            writer.transport.abort()
            return False
        if mode == "down":
            return await _write(writer, "500 Internal Server Error", {"error": "down"})
        if mode in {"busy", "limited"}:
            status = "503 Service Unavailable" if mode == "busy" else "429 Too Many Requests"
            return await _write(writer, status, {"error": mode}, f"Retry-After: {self.retry_after}")
        return await self._take(method, path, headers, body, writer)

    async def _take(
        self, method: str, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        order = json.loads(body or b"{}")
        if method != "PUT" or order.get("total", -1) < 0:
            return await _write(writer, "422 Unprocessable Content", {"error": "a total is needed"})
        if order["version"] < self.orders.get(path, order)["version"]:
            return await _write(writer, "409 Conflict", {"error": "there is a newer version"})
        self.repeats += headers["idempotency-key"] in self.keys
        self.keys[headers["idempotency-key"]] = path
        self.orders[path] = order
        return await _write(writer, "200 OK", {"stored": order["version"]})


async def _write(writer: asyncio.StreamWriter, status: str, document: dict[str, Any], *headers: str) -> bool:
    body = json.dumps(document).encode()
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers, "", ""]
    writer.write("\r\n".join(head).encode() + body)
    await writer.drain()
    return True


@click.command()
@click.option("--port", default=8090)
def main(port: int) -> None:
    """Run the stand-in until Ctrl-C."""

    async def run() -> None:
        async with Erp().serve(port) as erp:
            click.echo(f"ERP on http://127.0.0.1:{erp.port}")
            await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
