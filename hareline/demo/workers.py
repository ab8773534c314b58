"""The demo's workers: one process or more per job type, started again when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

from hareline.demo.contracts import JOB_TYPES

CONCURRENCY: Final = {"email.send": 20, "http.sync": 20, "media.thumbnail": 2, "demo.poison": 10}
APPS: Final = {
    "email.send": "hareline.demo.app:app",
    "http.sync": "hareline.demo.app:app",
    "media.thumbnail": "hareline.demo.app:app",
    "demo.poison": "hareline.demo.errand_app:app",
}
_GRACE: Final = 15.0
_PAUSE: Final = 0.1
_MOST_FAILURES: Final = 3
_MOST_RESTARTS: Final = 20


class WorkersFailed(Exception):
    """A worker would not stay up; the text tells where its log is."""


class Workers:
    """``per_type`` worker processes for each job type, whose output goes to log files in ``logs``.

    ``kills`` counts, by job type, how often one was killed (SIGKILL), ``restarts`` how often one ended.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str], per_type: int = 1) -> None:
        self.count = per_type * len(JOB_TYPES)
        self.restarts: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self._logs = logs
        self._environment = dict(environment)
        self._per_type = per_type
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: set[asyncio.subprocess.Process] = set()
        self._stopping = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Workers]:
        """Runs the workers until the block ends. Raises WorkersFailed out of it when one will not stay up."""
        async with asyncio.TaskGroup() as group:
            self._keepers = [
                group.create_task(self._keep(job_type.name, number))
                for job_type in JOB_TYPES
                for number in range(1, self._per_type + 1)
            ]
            try:
                yield self
            finally:
                await self.stop()

    async def stop(self) -> None:
        """Asks every worker to finish what it has, and kills those that take over `_GRACE` seconds for it."""
        self._stopping = True
        # The processes too: when one fails for good, the keepers of the others are cancelled before they see an end.
        ends = {*self._keepers, *(asyncio.create_task(process.wait()) for process in self._processes)}
        try:
            self._signal(signal.SIGTERM)
            await asyncio.wait(ends, timeout=_GRACE)
        finally:
            self._signal(signal.SIGKILL)
        await asyncio.wait(ends)

    def _signal(self, number: signal.Signals) -> None:
        for process in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, job_type: str, number: int) -> None:
        log = self._logs / f"worker-{job_type}-{number}.log"
        with log.open("ab") as output:
            while not self._stopping:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "hareline", "worker", job_type),
                    *("--concurrency", str(CONCURRENCY[job_type])),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **self._environment, "HARELINE_APP": APPS[job_type]},
                    # Ctrl-C is for the demo alone: it stops the workers in good order.
                    start_new_session=True,
                )
                self._processes.add(process)
                if self._stopping:  # asked while this process was being started
                    process.terminate()
                code = await process.wait()
                self._processes.discard(process)
                if self._stopping:
                    return
                self._count_end(job_type, code, log)
                await asyncio.sleep(_PAUSE)

    def _count_end(self, job_type: str, code: int, log: Path) -> None:
        self.restarts[job_type] += 1
        self.kills[job_type] += code == -signal.SIGKILL
        failures = self.restarts[job_type] - self.kills[job_type]
        if failures >= _MOST_FAILURES or self.restarts[job_type] > _MOST_RESTARTS:
            raise WorkersFailed(f"the {job_type} worker ended with code {code} again and again: see {log}")
