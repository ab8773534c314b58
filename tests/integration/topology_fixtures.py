"""A namespace of its own for every test, on the real broker, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from hareline.broker import Broker
from topology import ladder
from topology.control import Control
from topology.management import Management
from topology.settings import Settings
from topology.spec import Spec, derive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from topology.contract import JobType


@dataclass(frozen=True)
class Rig:
    """A control connection, a management client and settings with a fresh namespace."""

    control: Control
    management: Management
    settings: Settings

    @property
    def namespace(self) -> str:
        return self.settings.namespace

    def spec(self, *job_types: JobType[Any]) -> Spec:
        """The whole topology."""
        return derive(job_types, self.control.capabilities, self.namespace)

    def small_spec(self, *job_types: JobType[Any], levels: int = 0) -> Spec:
        """The topology with only the lowest ``levels`` of the ladder, so that making it takes no time."""
        return without_ladder(self.spec(*job_types), levels)

    def environment(self, **more: str) -> dict[str, str]:
        """For a child process."""
        return {
            **os.environ,
            "HARELINE_BROKER_URL": ",".join(self.settings.broker_urls),
            "HARELINE_MANAGEMENT_URL": self.settings.management_url or "",
            "HARELINE_NAMESPACE": self.namespace,
            "PYTHONUNBUFFERED": "1",
            **more,
        }


def without_ladder(spec: Spec, levels: int = 0) -> Spec:
    """``spec`` less the ladder's levels from ``levels`` up."""
    gone = {spec.names.level(level) for level in range(levels, ladder.LEVELS)}
    return replace(
        spec,
        exchanges=tuple(exchange for exchange in spec.exchanges if exchange.name not in gone),
        queues=tuple(queue for queue in spec.queues if queue.name not in gone),
        bindings=tuple(b for b in spec.bindings if not {b.source, b.destination} & gone),
    )


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    """A rig whose namespace is deleted in the end, whatever it holds then."""
    base = Settings.from_env()
    if "HARELINE_BROKER_URL" not in os.environ or base.management_url is None:
        pytest.fail("set HARELINE_BROKER_URL and HARELINE_MANAGEMENT_URL to a real broker")
    settings = replace(base, namespace=f"topo-{secrets.token_hex(4)}", extra={})
    async with await Control.connect(settings.broker_urls) as control:
        management = Management.from_settings(settings, control.url)
        assert management is not None
        try:
            yield Rig(control, management, settings)
        finally:
            # The test may have broken its own connection.
            async with await Control.connect(settings.broker_urls) as cleaner:
                await delete_namespace(cleaner, management, settings.namespace)


@pytest.fixture(name="rig")
async def rig_fixture(broker: Broker) -> AsyncIterator[Rig]:
    """The rig of one test. Import it by this name; the argument is ``rig``."""
    async with open_rig() as opened:
        yield opened


async def delete_namespace(control: Control, management: Management, namespace: str) -> None:
    """Deletes every exchange and queue of ``namespace``."""
    queues, exchanges = await asyncio.gather(management.queues(namespace), management.exchanges(namespace))
    for queue in queues:
        if not queue.passing:
            await control.delete_queue(queue.name)
    for exchange in exchanges:
        await control.delete_exchange(exchange.name)


async def create(control: Control, spec: Spec) -> None:
    """Makes ``spec`` exist, without looking first."""
    for exchange in spec.exchanges:
        await control.declare_exchange(exchange)
    for queue in spec.queues:
        await control.declare_queue(queue)
    for binding in spec.bindings:
        await control.bind(binding)


async def publish(control: Control, exchange: str, messages: Iterable[tuple[str, bytes, Any]]) -> None:
    """Publishes (routing key, body, properties), each confirmed and routed."""
    async with control.channel("publishing") as channel:
        await asyncio.gather(
            *(
                channel.basic_publish(
                    body,
                    exchange=exchange,
                    routing_key=key,
                    properties=properties,
                    mandatory=True,
                    timeout=60,
                )
                for key, body, properties in messages
            )
        )


async def take_all(control: Control, queue: str, expected: int = 0) -> list[Any]:
    """Takes all messages of ``queue``, in order; waits until there are ``expected`` at least."""
    arrivals: asyncio.Queue[Any] = asyncio.Queue()
    taken = []

    async def arrived(message: Any) -> None:
        arrivals.put_nowait(message)

    async with control.channel("taking") as channel:
        await channel.basic_qos(prefetch_count=500)
        await channel.basic_consume(queue, arrived)
        deadline = time.monotonic() + 60
        while True:
            try:
                message = await asyncio.wait_for(arrivals.get(), 0.1)
            except TimeoutError:
                counts = await control.counts(queue)
                if (counts is None or counts.ready == 0) and len(taken) >= expected:
                    return taken
                assert time.monotonic() < deadline, f"{len(taken)} of {expected} messages arrived"
                continue
            await channel.basic_ack(message.delivery_tag)
            taken.append(message)


async def until(condition: Callable[[], Awaitable[bool]], what: str, *, within: float = 60.0) -> None:
    """Waits until ``condition`` holds; fails after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.05)
