"""The README's webhooks, as printed: the sources from GitHub and a shop, and the commands below them."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.lab import DEADLINE, ROOT, Lab, clear_namespace, until
from topology.settings import Settings

README = (ROOT / "README.md").read_text(encoding="utf-8")
PRELUDE = """
import os
from pydantic import BaseModel
from hareline import App, JobType, WebhookSource

class Push(BaseModel):
    ref: str

class Order(BaseModel):
    id: int

push = JobType("github.push", Push)
order = JobType("shop.order", Order)
"""
HANDLERS = """
@app.handler(push)
async def pushed(payload: Push) -> None:
    print("ran", payload.ref, flush=True)

@app.handler(order)
async def ordered(payload: Order) -> None:
    print("ran order", payload.id, flush=True)
"""


def shown(language: str, mark: str) -> str:
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [block for block in blocks if mark in block]
    return found


@pytest.fixture
async def own_lab(lab: Lab) -> AsyncIterator[Lab]:
    """A namespace of the test's own: its job types have the README's names."""
    settings: Settings = replace(lab.settings, namespace=f"{lab.settings.namespace}-readme")
    async with Lab(settings, "readme") as own:
        yield own
    await clear_namespace(settings)


async def test_what_the_readme_shows_runs(own_lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(PRELUDE + shown("python", 'WebhookSource("github"') + HANDLERS, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    bin_directory = str(Path(sys.executable).parent)
    environment = own_lab.environment(
        "jobs:app",
        HARELINE_DATABASE_URL=f"sqlite:///{tmp_path / 'readme.db'}",
        HARELINE_WEBHOOKS_PORT=port,
        GITHUB_SECRET="of-github",
        SHOP_SECRET="of-the-shop",
    )
    environment["PATH"] = f"{bin_directory}:{environment['PATH']}"

    async def command(line: str) -> Process:
        return await asyncio.create_subprocess_exec(
            "sh", "-c", line, cwd=tmp_path, env=environment, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )

    async def done(line: str) -> str:
        process = await command(line)
        output, _ = await asyncio.wait_for(process.communicate(), DEADLINE)
        assert process.returncode == 0, (line, output)
        return output.decode()

    @asynccontextmanager
    async def running(line: str) -> AsyncIterator[Process]:
        process = await command(f"exec {line}")
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()

    lines = [line.partition("  #")[0].strip() for line in shown("sh", "hareline webhooks send").splitlines()]
    once, receiver, relay, send = lines
    assert (receiver, relay) == ("hareline webhooks --port 8080 &", "hareline relay &")
    assert send == """hareline webhooks send shop --event order.created '{"id": 7}'"""
    await done(once)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=DEADLINE))
        for line in (receiver.replace("8080", port), relay):
            await stack.enter_async_context(running(line.rstrip(" &")))
        worker = await stack.enter_async_context(running("hareline worker"))

        async def listens() -> bool:
            try:
                return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await until(listens, "the receiver listens")
        sent = [await done(send), await done(send)]
        sent.append(await done(send.replace("shop --event order.created", "github --event push").replace(
            '{"id": 7}', '{"ref": "refs/heads/main"}'
        )))  # fmt: skip
        assert [output.splitlines()[1][:4] for output in sent] == ["202 ", "200 ", "202 "]
        assert worker.stdout is not None
        ran = [(await asyncio.wait_for(worker.stdout.readline(), DEADLINE)).decode().strip() for _ in range(2)]
        assert sorted(ran) == ["ran order 7", "ran refs/heads/main"]
