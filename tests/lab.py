"""A test's corner of a real broker: its job types, its workers, its producers, and what is in its queues."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from aiormq.abc import DeliveredMessage
from pydantic import BaseModel

from consumers.worker import Worker
from hareline import App, JobType, Producer, Saga
from topology.apply import apply
from topology.control import Control
from topology.management import Management
from topology.settings import Settings
from topology.spec import Names, Spec, derive

DEADLINE = 60.0
ROOT = Path(__file__).parent.parent


class Number(BaseModel):
    """The usual payload."""

    n: int


async def until(condition: Callable[[], Awaitable[bool] | bool], what: str, within: float = DEADLINE) -> None:
    """Waits until ``condition`` holds; fails after ``within`` seconds, generously."""
    end = time.monotonic() + within
    while True:
        holds = condition()
        if isinstance(holds, Awaitable):
            holds = await holds
        if holds:
            return
        assert time.monotonic() < end, f"never happened: {what}"
        await asyncio.sleep(0.02)


async def clear_namespace(settings: Settings) -> None:
    """Deletes every queue and exchange of a namespace."""
    management = Management.from_settings(settings)
    assert management is not None
    async with await Control.connect(settings.broker_urls) as control:
        for queue in await management.queues(settings.namespace):
            await control.delete_queue(queue.name)
        for exchange in await management.exchanges(settings.namespace):
            await control.delete_exchange(exchange.name)


@dataclass(frozen=True)
class DeadLetter:
    """What a test wants to know of a message in the dead-letter queue."""

    id: str
    type: str
    reason: str
    headers: dict[str, Any]
    body: bytes


class Lab:
    """Async context; on exit it stops its workers and deletes its job types' queues."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.names = Names(settings.namespace)
        self._prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())[:60].strip("-") + "-" + secrets.token_hex(2)
        self._stack = AsyncExitStack()
        self._types: list[JobType[Any]] = []
        self._dead: dict[str, list[DeadLetter]] = {}
        self.control: Control

    async def __aenter__(self) -> Self:
        self.control = await self._stack.enter_async_context(await Control.connect(self.settings.broker_urls))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        async with await Control.connect(self.settings.broker_urls) as control:
            for job_type in self._types:
                await control.delete_queue(self.names.queue(job_type.name))

    # -- topology --------------------------------------------------------------------------------------------------

    def job_type(self, name: str = "job", payload: Any = Number, **options: Any) -> JobType[Any]:
        """A job type with a name of this test's own. `apply` gives it a queue."""
        job_type = JobType(f"{self._prefix}.{name}", payload, **options)
        self._types.append(job_type)
        return job_type

    def spec(self, *job_types: JobType[Any], undos: Iterable[JobType[Any]] = ()) -> Spec:
        return derive(job_types, self.control.capabilities, self.settings.namespace, undos)

    async def apply(self, *job_types: JobType[Any], undos: Iterable[JobType[Any]] = ()) -> None:
        """Makes the topology for ``job_types``."""
        spec = self.spec(*job_types, undos=undos)
        await apply(spec, self.control, Management.from_settings(self.settings), self.settings)

    async def app(self, *job_types: JobType[Any]) -> App:
        """An app with the job types, their queues on the broker; handlers are for the test to add."""
        await self.apply(*job_types)
        return App(job_types=job_types)

    async def saga_app(self, *sagas: Saga[Any]) -> App:
        """An app with the sagas, the queues of their steps and undos on the broker."""
        app = App(sagas=sagas)
        await self.apply(*app.job_types, undos=app.undos)
        return app

    async def ready(self, job_type: JobType[Any]) -> int:
        """How many messages wait in the job type's queue."""
        counts = await self.control.counts(self.names.queue(job_type.name))
        assert counts is not None, f"no queue for {job_type.name}"
        return counts.ready

    # -- producers and workers -------------------------------------------------------------------------------------

    async def producer(self, **changes: Any) -> Producer:
        """An open producer, closed at the end of the test."""
        return await self._stack.enter_async_context(Producer(replace(self.settings, **changes)))

    @asynccontextmanager
    async def working(self, app: App, *patterns: str, concurrency: int = 10, **options: Any) -> Any:
        """A worker in this event loop, consuming; drained at the end of the block."""
        settings = options.pop("settings", self.settings)
        worker = Worker(app.registry, app.registry.select(patterns), settings, concurrency=concurrency, **options)
        task = asyncio.create_task(worker.run())
        ready = asyncio.create_task(worker.ready.wait())
        await asyncio.wait({task, ready}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            ready.cancel()
            await task
        assert ready.done(), "the worker did not become ready"
        try:
            yield worker
        finally:
            worker.drain()
            await asyncio.wait_for(task, DEADLINE)

    def environment(self, app: str, **more: str) -> dict[str, str]:
        """For a child process: the command line or a worker of this test."""
        return {
            **os.environ,
            "HARELINE_BROKER_URL": ",".join(self.settings.broker_urls),
            "HARELINE_MANAGEMENT_URL": self.settings.management_url or "",
            "HARELINE_NAMESPACE": self.settings.namespace,
            "HARELINE_APP": app,
            "HARELINE_REPORT": "off",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            **more,
        }

    @asynccontextmanager
    async def child(self, *arguments: str, app: str, cwd: Path, **more: str) -> Any:
        """``hareline ARGUMENTS`` as a child process; killed at the end of the block if it still runs."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hareline", *arguments, cwd=cwd, env=self.environment(app, **more)
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                await process.wait()

    # -- dead letters ----------------------------------------------------------------------------------------------

    async def dead_letters(self, job_type: JobType[Any], expected: int, within: float = DEADLINE) -> list[DeadLetter]:
        """Takes dead letters of ``job_type`` off the dead-letter queue, until ``expected`` have come."""
        found = self._dead.setdefault(job_type.name, [])
        arrived = asyncio.Event()

        async def take(message: DeliveredMessage) -> None:
            properties, headers = message.header.properties, message.header.properties.headers or {}
            if message.delivery.routing_key != job_type.name:
                return  # another test's: goes back when the channel closes
            reason = str(headers.get("hareline-reason") or headers.get("x-first-death-reason"))
            found.append(
                DeadLetter(properties.message_id or "", properties.message_type or "", reason, headers, message.body)
            )
            await message.channel.basic_ack(message.delivery.delivery_tag)
            if len(found) >= expected:
                arrived.set()

        if len(found) < expected:
            async with self.control.channel("reading the dead-letter queue") as channel:
                await channel.basic_consume(self.names.dlq, take)
                try:
                    await asyncio.wait_for(arrived.wait(), within)
                except TimeoutError:
                    raise AssertionError(f"{len(found)} of {expected} dead letters of {job_type.name} came") from None
        return list(found)
