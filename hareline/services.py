"""The entry point of roles that work on the database: relay, scheduler, recorder, webhooks.

Apart from `hareline.roles`, since a worker is to stay small and does not import SQLAlchemy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from hareline import logs
from hareline.event_loop import calm_the_collector, on_signals, run
from store import schema
from store.engine import Database
from store.recovery import persistently
from topology.settings import Settings


class Service(Protocol):
    """What a role's process runs besides workers: a relay, a scheduler, a recorder."""

    async def run(self) -> None:
        """Works until `drain` is called, then finishes in good order."""

    def drain(self) -> None:
        """Asks it to stop."""


Prepare = Callable[[Database], Awaitable[object]]
"""What a role needs done before it begins; it may be repeated."""


def run_service(
    what: str, make: Callable[[Database], Service], settings: Settings, prepare: Prepare = schema.verify
) -> None:
    """Runs what ``make`` returns in this process until SIGTERM or SIGINT. A second signal stops it at once.

    ``prepare`` comes first. A database that is away is waited for, at the start as later, with a warning that names
    ``what`` waits and why; a signal ends the wait. Raises what else ``prepare`` does: SchemaOutdated above all.
    """
    logs.configure(settings.log_level)

    async def work() -> None:
        stopping = asyncio.Event()
        on_signals(stopping.set)
        database = Database.from_settings(settings)
        try:
            if not await _before(stopping, persistently(what, lambda: prepare(database))):
                return
            service = make(database)
            calm_the_collector()
            draining = asyncio.create_task(_then(stopping, service.drain))
            try:
                await service.run()
            finally:
                draining.cancel()
        finally:
            await database.close()

    run(work)


async def _before(stopping: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Does ``work`` unless it is asked to stop before that has ended; returns whether it was done."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return not stopping.is_set()
    finally:
        working.cancel()
        stopped.cancel()
        await asyncio.wait({working, stopped})


async def _then(stopping: asyncio.Event, drain: Callable[[], None]) -> None:
    await stopping.wait()
    drain()
