"""Worker processes of a test's own job type, with a ledger of what became of each job."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from hareline import JobType
from tests.lab import DEADLINE, Lab, until
from tests.ledger_app import BEGAN, DONE, Ledger, Work

APP = "tests.ledger_app:app"


class Workshop:
    """A job type with its queue, and ``hareline worker`` for it as child processes, of ``app``."""

    def __init__(self, lab: Lab, directory: Path, app: str = APP, **options: Any) -> None:
        self.app = app
        self.lab = lab
        self.directory = directory
        self.job_type: JobType[Any] = lab.job_type(payload=Work, **options)
        self.ledger = Ledger(directory / "ledger")
        self.gate = directory / "gate"
        self.log = directory / "worker.log"
        self.environment = {"LEDGER_TYPE": self.job_type.name, "LEDGER_FILE": str(self.ledger.path)}
        if self.job_type.priority:
            self.environment["LEDGER_PRIORITY"] = "1"

    async def start(self, *arguments: str, **more: str) -> Process:
        """A worker in a process group of its own; its log lines are in ``log``."""
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hareline", "worker", *arguments,
                cwd=self.directory, env=self.lab.environment(self.app, **self.environment, **more), stderr=log,
            )  # fmt: skip

    @asynccontextmanager
    async def worker(self, *arguments: str, **more: str) -> AsyncIterator[Process]:
        """A worker that is killed, with the children that its ledger knows of, if it still runs at the end."""
        process = await self.start(*arguments, **more)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
                for pid in self.ledger.pids(BEGAN):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    async def stopped(self, process: Process) -> int:
        """The exit code after a SIGTERM."""
        process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(process.wait(), DEADLINE)

    async def enqueue(self, jobs: Iterable[Work], **options: Any) -> list[str]:
        return await (await self.lab.producer()).enqueue_many(self.job_type, jobs, **options)

    async def begun(self, count: int) -> None:
        await until(lambda: len(self.ledger.runs(BEGAN)) >= count, f"{count} jobs have begun")

    async def done(self, count: int, within: float = DEADLINE) -> None:
        await until(lambda: len(self.ledger.runs(DONE)) >= count, f"{count} jobs are done", within)

    async def settled(self) -> None:
        """Waits until the queue is empty, also of what is delivered and not acknowledged."""

        async def empty() -> bool:
            counts = await self.lab.control.counts(self.lab.names.queue(self.job_type.name))
            return counts is not None and counts.ready == 0

        await until(empty, "the queue is empty")

    async def paused(self) -> None:
        """Waits until nobody consumes from the queue, and nothing of it is unsettled (then a consumer counts on)."""

        async def nobody() -> bool:
            counts = await self.lab.control.counts(self.lab.names.queue(self.job_type.name))
            return counts is not None and counts.consumers == 0

        await until(nobody, "nobody consumes")

    def logged(self, text: str) -> bool:
        return self.log.exists() and text in self.log.read_text(errors="replace")
