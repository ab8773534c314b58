"""The entry point of a worker's process; `hareline.services` has the other roles."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from consumers.registry import Route
from consumers.worker import Worker
from hareline import logs
from hareline.app import App
from hareline.event_loop import calm_the_collector, on_signals, run
from topology.apply import apply, verify_for_worker
from topology.contract import JobType
from topology.errors import BrokerUnreachable, TopologyError
from topology.link import Connection
from topology.management import Management
from topology.settings import Settings
from topology.spec import Spec, derive

logger = logging.getLogger(__name__)

_LOOK_FOR_PARENT: Final = 1.0


def run_worker(
    app: App, routes: tuple[Route, ...], settings: Settings, concurrency: int, child_of: int | None = None
) -> None:
    """Runs a worker in this process until SIGTERM or SIGINT. A second signal stops it at once.

    ``child_of`` is the process id of a parent without which it is not to go on: it drains when that is gone.
    """
    logs.configure(settings.log_level)

    verify = Verification([route.job_type for route in routes], settings, app.undos)

    async def work() -> None:
        worker = Worker(app.registry, routes, settings, concurrency=concurrency, verify=verify)
        on_signals(worker.drain)
        calm_the_collector()
        watch = asyncio.create_task(_outlived(child_of, worker.drain))
        await worker.run()
        watch.cancel()
        if worker.occupied_threads:
            # Python waits for its threads before it ends; their jobs have gone back to their queues long since.
            logger.warning("%d threads did not end in time and are left behind", worker.occupied_threads)
            logging.shutdown()
            os._exit(0)

    run(work)


class Verification:
    """The topology must be there before anything is consumed. Missing at the start, it is for a person to apply.

    A broker that crashes can forget what was declared in its last seconds (seen on 3.10 and 4.0): what was there
    once is declared again, unless the topology is the operators' alone.
    """

    def __init__(
        self, job_types: Sequence[JobType[Any]], settings: Settings, undos: Sequence[JobType[Any]] = ()
    ) -> None:
        self._job_types = job_types
        self._undos = undos
        self._settings = settings
        self._was_there = False

    async def __call__(self, connection: Connection) -> None:
        """Raises TopologyError unless all that these job types need is there."""
        spec = derive(self._job_types, connection.capabilities, self._settings.namespace, self._undos)
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
