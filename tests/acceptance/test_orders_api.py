"""The worked example, run as it says in its first lines."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from producers.webhooks.delivery import Signing
from producers.webhooks.schemes import SCHEMES
from tests.databases import opened
from tests.lab import DEADLINE, ROOT
from tests.webhooks import started

pytestmark = pytest.mark.machine

START = """
import socket, uvicorn
from service import application
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(application, log_level="error")).run(sockets=[listening])
"""


@pytest.fixture
def client(sqlite_url: str) -> Iterator[httpx.Client]:
    env = {
        **os.environ,
        "HARELINE_DATABASE_URL": sqlite_url,
        "HARELINE_WEBHOOKS_SECRETS_SHOP": "hush-hush",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", START], cwd=Path(ROOT) / "examples" / "orders_api", env=env,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE) as found:
        yield found
    process.terminate()
    process.wait(DEADLINE)


async def bodies(database_url: str) -> list[bytes]:
    async with opened(database_url) as database:
        return [row.body for row in await started(database)]


def test_an_order_is_taken_once_and_a_webhook_too(client: httpx.Client, sqlite_url: str) -> None:
    key = {"Idempotency-Key": "a1"}
    first, again = (client.post("/orders", json={"id": 7}, headers=key) for _ in range(2))
    assert (first.status_code, again.json()) == (202, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert client.post("/orders", json={"id": 7}).status_code == 400
    assert client.post("/orders", json={"id": 8}, headers=key).status_code == 422
    rules = SCHEMES["woocommerce"]
    assert isinstance(rules, Signing)
    headers, body = rules.sign("hush-hush", b'{"id": 9}', event="order.created", delivery_id="1", now=time.time())
    answers = [client.post("/hooks/webhooks/shop", content=body, headers=headers).status_code for _ in range(2)]
    assert answers == [202, 200]
    assert asyncio.run(bodies(sqlite_url)) == [b'{"id":7}', b'{"id": 9}']
