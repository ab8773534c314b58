"""One run of the demo, from an empty broker to the books."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hareline.demo.lasting import Lasting, LastingPart
from hareline.demo.ledger import Ledger
from hareline.demo.plan import Planned
from hareline.demo.screen import Screen
from hareline.demo.shop import ShopBooks, ShopPart
from hareline.demo.watch import Watch
from hareline.demo.workers import Workers, WorkersFailed
from hareline.demo.world import World
from producers.producer import Producer
from topology.settings import Settings

STEADY_RATE: Final = 75.0
"""Jobs per second in the steady phase: below what the workers can do, so that latency shows no backlog."""
DEADLINE: Final = 180.0
_TICK: Final = 0.2
_WORKERS_UP: Final = 60.0
_LAST_REPORTS: Final = 3.0
_LOOK_AGAIN: Final = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What a run found, beyond its ledger. ``waiting`` is how many jobs were still in queues at the end."""

    waiting: int
    restarts: dict[str, int]
    kills: dict[str, int]
    seconds: float
    lasting: Lasting
    shop: ShopBooks

    def jobs_are_good(self, ledger: Ledger) -> bool:
        """Whether every job ended exactly where the plan says, and nothing is left."""
        whole = not (ledger.astray or ledger.lost or ledger.strangers or self.waiting)
        return whole and self.lasting.is_good(ledger.dead)

    def is_good(self, ledger: Ledger) -> bool:
        """Whether the shop's books balance, too."""
        return self.jobs_are_good(ledger) and self.shop.is_good


class Run:
    """Publishes ``jobs`` and follows each to its end."""

    def __init__(
        self,
        jobs: list[Planned],
        settings: Settings,
        directory: Path,
        screen: Screen,
        ledger: Ledger,
        *,
        workers_per_type: int = 1,
    ) -> None:
        self._jobs = jobs
        self._settings = settings
        self._screen = screen
        self._ledger = ledger
        self._workers_per_type = workers_per_type
        self._world = World(directory)
        self._directory = directory
        self._logs = directory / "logs"
        self._id = uuid.uuid4().hex
        self._stage = "publishing"

    async def go(self, *, remove: bool, linger: Callable[[Finding], Any] | None = None) -> Finding:
        """The whole run. ``remove`` deletes the demo's queues at the end.

        ``linger`` is called with the books closed and everything still running; the run ends when it returns.
        """
        began = time.monotonic()
        self._logs.mkdir(parents=True)
        async with self._world.running(), Watch.connected(self._settings) as watch:
            self._screen.step("a mail server, an HTTP server and a directory of pictures are there")
            try:
                created = await watch.apply_topology()
                self._screen.step(f"topology applied: {created} exchanges, queues and bindings")
                return await self._with_workers(watch, began, linger, remove=remove)
            finally:
                if remove:
                    await watch.remove_topology()

    async def _with_workers(
        self, watch: Watch, began: float, linger: Callable[[Finding], Any] | None, *, remove: bool
    ) -> Finding:
        try:
            async with watch.reports(self._ledger.report), self._workers().running() as workers:
                await self._up(watch)
                self._screen.step(f"{workers.count} worker processes are up, {self._workers_per_type} per job type")
                await self._publish_and_follow(watch, workers)
                await self._until(lambda: self._ledger.unreported == 0, _LAST_REPORTS)
                if linger is None:
                    # With the workers gone, whatever is not settled shows in the queues.
                    await workers.stop()
                self._book_effects()
                self._ledger.dead_letters(await watch.dead_letters())
                seconds, waiting = time.monotonic() - began, await watch.waiting()
                lasting = await self._lasting().go(self._ledger.dead)
                shop = await ShopPart(self._settings, self._directory, self._screen, self._environment()).go(
                    remove=remove
                )
                finding = Finding(waiting, dict(workers.restarts), dict(workers.kills), seconds, lasting, shop)
                if linger is not None:
                    await linger(finding)
                return finding
        except ExceptionGroup as group:
            raise _first(group) from None

    def _lasting(self) -> LastingPart:
        return LastingPart(self._settings, self._directory, self._world, self._screen, self._environment())

    def _workers(self) -> Workers:
        return Workers(self._logs, self._environment(), self._workers_per_type)

    def _environment(self) -> dict[str, str]:
        environment = {
            **self._world.environment,
            "HARELINE_BROKER_URL": ",".join(self._settings.broker_urls),
            "HARELINE_NAMESPACE": self._settings.namespace,
        }
        if self._settings.management_url:
            environment["HARELINE_MANAGEMENT_URL"] = self._settings.management_url
        return environment

    async def _up(self, watch: Watch) -> None:
        try:
            async with asyncio.timeout(_WORKERS_UP):
                # Nobody tells when a consumer subscribes: the broker can only be asked.
                while not all((await watch.consumers()).values()):  # noqa: ASYNC110
                    await asyncio.sleep(_TICK)
        except TimeoutError:
            raise WorkersFailed(f"not every worker consumes after {_WORKERS_UP:g} s: see {self._logs}") from None

    async def _publish_and_follow(self, watch: Watch, workers: Workers) -> None:
        with self._screen.progress():
            publishing = asyncio.create_task(self._publish())
            try:
                while not publishing.done():
                    await self._look(workers)
                publishing.result()
            finally:
                publishing.cancel()
            self._stage = "waiting for the last ones"
            await self._follow(watch, workers)

    async def _follow(self, watch: Watch, workers: Workers) -> None:
        """Until every job has had its effect or died, or the deadline is over."""
        deadline = time.monotonic() + DEADLINE
        left, look_again = self._ledger.unsettled, time.monotonic() + _LOOK_AGAIN
        while self._ledger.unsettled and time.monotonic() < deadline:
            await self._look(workers)
            if self._ledger.unsettled != left:
                left, look_again = self._ledger.unsettled, time.monotonic() + _LOOK_AGAIN
            elif time.monotonic() > look_again:
                # Reports are news, not truth: a worker that was killed took its last ones with it.
                self._ledger.dead_letters(await watch.dead_letters())
                look_again = time.monotonic() + _LOOK_AGAIN

    async def _look(self, workers: Workers) -> None:
        await asyncio.sleep(_TICK)
        self._book_effects()
        self._screen.update(self._stage, workers)

    def _book_effects(self) -> None:
        for effect in self._world.new_effects(self._ledger.thumbnail_ids):
            self._ledger.effect(effect)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110 - it turns by reports and by time
            await asyncio.sleep(_TICK)

    async def _publish(self) -> None:
        """The steady phase at its rate, then the rest at once. Raises EnqueueError for a job not accepted."""
        steady = [job for job in self._jobs if job.phase == "steady"]
        burst = [job for job in self._jobs if job.phase == "burst"]
        async with Producer(self._settings) as producer, asyncio.TaskGroup() as group:
            self._stage = f"publishing {STEADY_RATE:g} jobs a second"
            began = time.monotonic()
            for index, job in enumerate(steady):
                pause = began + index / STEADY_RATE - time.monotonic()
                if pause > 0:
                    await asyncio.sleep(pause)
                group.create_task(self._enqueue(producer, job))
            self._stage = f"publishing {len(burst):,} jobs at once"
            for job in burst:
                group.create_task(self._enqueue(producer, job))

    async def _enqueue(self, producer: Producer, job: Planned) -> None:
        key = f"{self._id}/{job.number}"
        self._ledger.publish(job.job_type.id_for_key(key), job, time.time())
        await producer.enqueue(job.job_type, job.payload, delay=job.delay, priority=job.priority, key=key)


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """The first of what went wrong side by side: it says enough, and mostly the others say the same."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
