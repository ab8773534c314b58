"""The process of an API is killed while a call runs under its key: SIGKILL, nothing is tidied up."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from sqlalchemy import text

from tests.databases import opened
from tests.lab import DEADLINE, ROOT

pytestmark = [pytest.mark.machine, pytest.mark.kills]


@dataclass(frozen=True)
class Api:
    process: Process
    client: httpx.AsyncClient

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), DEADLINE)).decode().strip()

    async def order(self, key: str = "a1", number: int = 7) -> httpx.Response:
        return await self.client.post("/orders", json={"id": number}, headers={"Idempotency-Key": key})

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def serving(url: str, mode: str, ahead: float = 0.0) -> AsyncIterator[Api]:
    command = [sys.executable, "-m", "tests.orders_service", url, str(ahead), mode]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE)
    try:
        async with httpx.AsyncClient(timeout=DEADLINE) as client:
            api = Api(process, client)
            client.base_url = httpx.URL(f"http://127.0.0.1:{await api.line()}")
            yield api
    finally:
        if process.returncode is None:
            await Api(process, client).kill()


async def test_the_key_is_busy_until_the_lease_is_over_and_then_the_call_runs_again(database_url: str) -> None:
    """Nobody can tell a dead process from a slow one: 409 for the lease, then a repeat runs, and its answer is kept."""
    async with opened(database_url) as database:
        async with database.transaction() as connection:
            await connection.execute(text("CREATE TABLE effects (id TEXT NOT NULL)"))
        async with serving(database_url, "hang") as dying:
            call = asyncio.create_task(dying.order())
            assert await dying.line() == "run a1"
            await dying.kill()
            with pytest.raises(httpx.TransportError):
                await call
        async with serving(database_url, "answer") as another:
            busy = await another.order()
            assert (busy.status_code, busy.headers["retry-after"]) == (409, "1")
            assert busy.headers["content-type"] == "application/problem+json"
            assert (await another.order(number=8)).status_code == 422, "whose call it is stays known"
            assert (await another.order("b2")).status_code == 201, "and only this key waits"
        async with serving(database_url, "answer", ahead=3601.0) as later:
            ran = await later.order()
            assert (ran.status_code, ran.headers.get("idempotency-replayed")) == (201, None)
            again = await later.order()
            assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
        async with database.reading() as connection:
            found = sorted((await connection.execute(text("SELECT id FROM effects"))).scalars())
        assert found == ["a1", "a1", "b2"], "what the dead one had committed stays: the service must expect it"
