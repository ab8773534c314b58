"""An app for child processes whose jobs write down what becomes of them, and do to their worker what they are told."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

from pydantic import BaseModel

from hareline import App, Job, JobType, Retry

BEGAN, DONE = "began", "done"


class Work(BaseModel):
    """``seconds`` of waiting; ``gate`` is a file that must exist before the job ends; ``kill`` ends its worker."""

    n: int
    seconds: float = 0.0
    gate: str = ""
    kill: bool = False


class Ledger:
    """The file. One line a fact; short appends, so that several processes may write at once."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def note(self, fact: str, n: int, attempt: int) -> None:
        line = f"{fact} {n} {os.getpid()} {attempt}\n".encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def rows(self, fact: str) -> list[tuple[int, int, int]]:
        """(n, pid, attempt) of each line about ``fact``."""
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_text().rpartition("\n")  # the last line may be in the middle of being written
        lines = [line.split() for line in whole.splitlines()]
        return [(int(n), int(pid), int(attempt)) for what, n, pid, attempt in lines if what == fact]

    def runs(self, fact: str) -> Counter[int]:
        """How often ``fact`` was noted for each job."""
        return Counter(n for n, _, _ in self.rows(fact))

    def pids(self, fact: str) -> set[int]:
        return {pid for _, pid, _ in self.rows(fact)}


job_type = JobType(
    os.environ.get("LEDGER_TYPE", "ledger"),
    Work,
    retry=Retry(attempts=3, base=0.1, jitter=0.0),
    timeout=float(os.environ.get("LEDGER_TIMEOUT", "60")),
    priority=bool(os.environ.get("LEDGER_PRIORITY")),
)
app = App(job_types=[job_type])
ledger = Ledger(os.environ.get("LEDGER_FILE", "ledger"))


def begin(work: Work, job: Job) -> None:
    ledger.note(BEGAN, work.n, job.attempt)
    if work.kill:
        os.kill(os.getpid(), signal.SIGKILL)


async def handle(work: Work, job: Job) -> None:
    begin(work, job)
    await asyncio.sleep(work.seconds)
    while work.gate and not Path(work.gate).exists():  # noqa: ASYNC110, ASYNC240 - another process makes the file
        await asyncio.sleep(0.01)
    ledger.note(DONE, work.n, job.attempt)


def handle_in_thread(work: Work, job: Job) -> None:
    begin(work, job)
    while work.gate and not Path(work.gate).exists():
        time.sleep(0.01)
    ledger.note(DONE, work.n, job.attempt)


app.handler(job_type)(handle_in_thread if os.environ.get("LEDGER_THREAD") else handle)
