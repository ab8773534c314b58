"""The shop of examples/shop with all its processes: partners that fail, roles, and a worker for each job type."""

from __future__ import annotations

import asyncio
import importlib
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx

from hareline import Sagas
from tests.lab import DEADLINE, ROOT, Lab, until
from topology.settings import Settings

EXAMPLES = ROOT / "examples"
APP = "shop.app:app"
SECRET = "hush-hush"
WORKERS = ("stock.*", "card.*", "order.*", "erp.sync")


def module(name: str) -> Any:
    """A module of the example."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(f"shop.{name}")


@dataclass
class Shop:
    """A shop that runs. ``settings`` are its database's; ``environment`` is what its processes are started with."""

    lab: Lab
    settings: Settings
    environment: dict[str, str]
    partners_url: str

    @asynccontextmanager
    async def process(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        async with self.lab.child(*arguments, app=APP, cwd=EXAMPLES, **self.environment) as process:
            yield process

    @asynccontextmanager
    async def working(self) -> AsyncIterator[dict[str, asyncio.subprocess.Process]]:
        """A worker process for each step with its undo, by its pattern."""
        async with AsyncExitStack() as stack:
            yield {types: await stack.enter_async_context(self.process("worker", types)) for types in WORKERS}

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[str]:
        """`hareline webhooks`, and where it listens."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        async with self.process("webhooks", "--port", str(port)), httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{port}"

            async def listens() -> bool:
                with suppress(httpx.TransportError):
                    return (await client.get(f"{url}/livez")).is_success
                return False

            await until(listens, "the receiver listens", 3 * DEADLINE)
            yield url

    async def books(self) -> Any:
        """What the partners know."""
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{self.partners_url}/books")).json()

    async def mend(self) -> None:
        """From now on no refund is refused."""
        async with httpx.AsyncClient() as client:
            (await client.post(f"{self.partners_url}/mend")).raise_for_status()

    async def ended(self, expected: int) -> None:
        """Until so many sagas are completed or compensated."""
        async with Sagas(self.settings) as log:

            async def all_ended() -> bool:
                counts = await log.counts()
                return counts.get("completed", 0) + counts.get("compensated", 0) == expected

            await until(all_ended, f"{expected} sagas ended", 3 * DEADLINE)

    async def balance(self) -> Any:
        return await module("balance").measure(self.settings, self.partners_url)


@asynccontextmanager
async def shop(lab: Lab, url: str) -> AsyncIterator[Shop]:
    """Partners, tables, topology, relay and recorder; workers are for the test to start."""
    module("tables").create(url)
    fulfil = module("contracts").fulfil
    await lab.apply(*fulfil.job_types, undos=fulfil.undos)
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shop.partner_server", "--port", "0"), cwd=EXAMPLES, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        found = re.search(r"http://\S+", (await server.stdout.readline()).decode())
        assert found
        environment = {
            "HARELINE_DATABASE_URL": url,
            "HARELINE_REPORT": "on",
            "HARELINE_WEBHOOKS_SECRETS_WOOCOMMERCE": SECRET,
            "SHOP_PARTNERS_URL": found[0],
            "SHOP_PARTNERS_TIMEOUT": "3",
        }
        settings = replace(lab.settings, database_url=url, report=True)
        made = Shop(lab, settings, environment, found[0])
        async with made.process("relay"), made.process("recorder"):
            yield made
    finally:
        server.send_signal(signal.SIGTERM)
        await server.wait()
        for job_type in fulfil.job_types:
            await lab.control.delete_queue(lab.names.queue(job_type.name))
