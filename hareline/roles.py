"""Process entry points: an event loop, signals, logs, and one role running in it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from consumers.registry import Route
from consumers.worker import Worker
from hareline import logs
from hareline.app import App
from store import schema
from store.engine import Database
from store.recovery import persistently
from topology.apply import apply, verify_for_worker
from topology.contract import JobType
from topology.errors import BrokerUnreachable, TopologyError
from topology.link import Connection
from topology.management import Management
from topology.settings import Settings
from topology.spec import Spec, derive

logger = logging.getLogger(__name__)

STOPPED_AT_ONCE: Final = 130
_LOOK_FOR_PARENT: Final = 1.0
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run_worker(
    app: App, routes: tuple[Route, ...], settings: Settings, concurrency: int, child_of: int | None = None
) -> None:
    """Runs a worker in this process until SIGTERM or SIGINT. A second signal stops it at once.

    ``child_of`` is the process id of a parent without which it is not to go on: it drains when that is gone.
    """
    logs.configure(settings.log_level)

    verify = Verification([route.job_type for route in routes], settings)

    async def work() -> None:
        worker = Worker(app.registry, routes, settings, concurrency=concurrency, verify=verify)
        _on_signals(worker.drain)
        _calm_the_collector()
        watch = asyncio.create_task(_outlived(child_of, worker.drain))
        await worker.run()
        watch.cancel()
        if worker.occupied_threads:
            # Python waits for its threads before it ends; their jobs have gone back to their queues long since.
            logger.warning("%d threads did not end in time and are left behind", worker.occupied_threads)
            logging.shutdown()
            os._exit(0)

    _run(work)


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
        _on_signals(stopping.set)
        database = Database.from_settings(settings)
        try:
            if not await _before(stopping, persistently(what, lambda: prepare(database))):
                return
            service = make(database)
            _calm_the_collector()
            draining = asyncio.create_task(_then(stopping, service.drain))
            try:
                await service.run()
            finally:
                draining.cancel()
        finally:
            await database.close()

    _run(work)


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


class Verification:
    """The topology must be there before anything is consumed. Missing at the start, it is for a person to apply.

    A broker that crashes can forget what was declared in its last seconds (seen on 3.10 and 4.0): what was there
    once is declared again, unless the topology is the operators' alone.
    """

    def __init__(self, job_types: Sequence[JobType[Any]], settings: Settings) -> None:
        self._job_types = job_types
        self._settings = settings
        self._was_there = False

    async def __call__(self, connection: Connection) -> None:
        """Raises TopologyError unless all that these job types need is there."""
        spec = derive(self._job_types, connection.capabilities, self._settings.namespace)
        management = Management.from_settings(self._settings)
        try:
            plan = await verify_for_worker(spec, connection, management)
        except BrokerUnreachable:
            raise
        except TopologyError as error:
            if not self._was_there or self._settings.declare == "never":
                raise
            logger.warning("the broker has forgotten a part of the topology, which is declared again: %s", error)
            await self._declare(spec, management)
            plan = await verify_for_worker(spec, connection, management)
        self._was_there = True
        # Work does not depend on the management API for long.
        for unseen in plan.unseen:
            logger.log(logging.INFO if management is None else logging.WARNING, "not verified: %s", unseen)

    async def _declare(self, spec: Spec, management: Management | None) -> None:
        from topology.control import Control  # noqa: PLC0415 - rarely needed, and a worker is to stay small

        async with await Control.connect(self._settings.broker_urls) as control:
            await apply(spec, control, management, self._settings)


async def _outlived(parent: int | None, drain: Callable[[], None]) -> None:
    """A parent that was killed can pass no signal on, and nobody else knows of its children."""
    if parent is None:
        return
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(_LOOK_FOR_PARENT)
    logger.warning("the parent process %d is gone: stopping", parent)
    drain()


def _calm_the_collector() -> None:
    """What is loaded by now stays: keep it out of every later collection, which would otherwise show in the p99."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _on_signals(drain: Callable[[], None]) -> None:
    """The first signal drains. The second ends the process: the broker takes back what was unsettled."""
    loop = asyncio.get_running_loop()

    def handle() -> None:
        for number in _STOP_SIGNALS:
            # Not by way of the event loop: a handler that blocks it may be the very reason for a second signal.
            loop.remove_signal_handler(number)
            signal.signal(number, lambda *_: os._exit(STOPPED_AT_ONCE))
        drain()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, handle)


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        import uvloop  # noqa: PLC0415 - comes with the worker extra
    except ImportError:
        asyncio.run(work())
    else:
        uvloop.run(work())
