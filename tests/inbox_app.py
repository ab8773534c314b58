"""An app for child processes: each job is a row in its own transaction; a worker can be told to die after a commit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy import text

from hareline import App, Job, JobType, Retry

EFFECT = text("INSERT INTO effects (n) VALUES (:n)")


class Effect(BaseModel):
    """``fatal`` is a file: whoever removes it dies between its commit and its acknowledgement."""

    n: int
    fatal: str = ""


job_type = JobType(os.environ.get("INBOX_TYPE", "inbox"), Effect, retry=Retry(attempts=5, base=0.1, jitter=0.0))
app = App(job_types=[job_type])


def die(effect: Effect) -> None:
    if effect.fatal and Path(effect.fatal).exists():
        Path(effect.fatal).unlink()
        os.kill(os.getpid(), signal.SIGKILL)


async def handle(effect: Effect, job: Job) -> None:
    async with job.transaction() as connection:
        await connection.execute(EFFECT, {"n": effect.n})
    die(effect)


def handle_in_thread(effect: Effect, job: Job) -> None:
    with job.transaction() as connection:
        connection.execute(EFFECT, {"n": effect.n})
    die(effect)


app.handler(job_type)(handle_in_thread if os.environ.get("INBOX_THREAD") else handle)
