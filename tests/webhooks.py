"""A webhook receiver on a real port, and senders that behave or do not."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import uvicorn
from pydantic import BaseModel
from sqlalchemy import select

from hareline import JobType, Settings, WebhookReceiver, WebhookSource
from producers.webhooks.delivery import Signing
from producers.webhooks.schemes import SCHEMES
from store.engine import Database
from store.tables import outbox

SECRET = "the-secret-of-the-shop"
STANDARD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TOKEN = "token-of-the-operators"


class Order(BaseModel):
    """The payload of what the tests' events start."""

    event: str = ""
    id: int


created = JobType("order.created", Order)
other = JobType("order.other", Order, priority=True)


def secret_of(scheme: str) -> str:
    """A secret that fits."""
    return STANDARD if scheme == "standard" else SECRET


SOURCES = [
    WebhookSource(name, scheme=name, secrets=[secret_of(name)], events={"order.created": created})  # type: ignore[arg-type]
    for name in SCHEMES
]
NOWHERE = Settings(broker_urls=("amqp://127.0.0.1:1/",), report=False, webhooks_token=TOKEN, grace=1.0)


@dataclass(frozen=True)
class Receiver:
    """A receiver that runs, and a client for it."""

    port: int
    client: httpx.AsyncClient

    async def post(self, path: str, content: bytes, headers: Any) -> httpx.Response:
        """POST with exactly these headers."""
        return await self.client.post(path, content=content, headers=headers)

    async def deliver(self, scheme: str = "generic", document: Any = None, **options: Any) -> httpx.Response:
        """A delivery that is signed as it must be."""
        headers, body = signed(scheme, document, **options)
        return await self.post(f"/webhooks/{scheme}", body, headers)

    async def status(self, webhook_id: str, source: str = "generic") -> Any:
        """What became of a delivery, as operators ask."""
        path = f"/webhooks/{source}/{webhook_id}"
        return (await self.client.get(path, headers={"Authorization": f"Bearer {TOKEN}"})).json()

    async def raw(self, request: bytes, *, end: bool = False) -> bytes:
        """Bytes on the wire, and whatever is answered. ``end``: the sender hangs up after them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        if end:
            writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(), 30)
        finally:
            writer.close()


def signed(
    scheme: str = "generic", document: Any = None, *, key: str = "d-1", event: str = "order.created", now: float = 0.0
) -> tuple[dict[str, str], bytes]:
    """Headers and body as the scheme's sender would send them; bytes are taken as they are."""
    rules = SCHEMES[scheme]
    assert isinstance(rules, Signing)
    body = document if isinstance(document, bytes) else json.dumps({"id": 7} if document is None else document).encode()
    return rules.sign(secret_of(scheme), body, event=event, delivery_id=key, now=now or time.time())


def server_of(receiver: Any) -> tuple[uvicorn.Server, socket.socket]:
    """Uvicorn as `hareline webhooks` has it, on a free port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        receiver, http="h11", lifespan="on", log_config=None, access_log=False, h11_max_incomplete_event_size=32 * 1024
    )
    return uvicorn.Server(config), listening


@asynccontextmanager
async def serving(
    database: Database | str, sources: Sequence[WebhookSource] = SOURCES, **settings: Any
) -> AsyncIterator[Receiver]:
    """A receiver on ``database``, with settings of its own."""
    mine = replace(NOWHERE, **settings)
    if isinstance(database, str):
        receiver = WebhookReceiver(sources, replace(mine, database_url=database))
    else:
        receiver = WebhookReceiver(sources, mine, database=database)
    async with listening(receiver) as found:
        yield found


@asynccontextmanager
async def listening(application: Any) -> AsyncIterator[Receiver]:
    """Any ASGI application on a free port."""
    server, bound = server_of(application)
    port = bound.getsockname()[1]
    task = asyncio.create_task(server._serve(sockets=[bound]))
    limits = httpx.Limits(max_connections=None)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60.0, limits=limits) as client:
            yield Receiver(port, client)
    finally:
        server.should_exit = True
        await task


@contextmanager
def in_a_thread(database_url: str) -> Iterator[httpx.Client]:
    """A receiver with an event loop of its own, for tests that are not coroutines."""
    receiver = WebhookReceiver(SOURCES, replace(NOWHERE, database_url=database_url))
    server, bound = server_of(receiver)
    thread = threading.Thread(target=lambda: asyncio.run(server._serve(sockets=[bound])))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=60.0) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


async def started(database: Database) -> list[Any]:
    """The rows of the outbox."""
    async with database.reading() as connection:
        return list((await connection.execute(select(outbox).order_by(outbox.c.id))).all())


def problem(answer: Any, status: int) -> str:
    """Checks that it is one, and returns what it says."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    detail: str = answer.json()["detail"]
    return detail
