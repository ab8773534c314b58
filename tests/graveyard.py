"""Dead letters in a database, as a recorder would have written them, and `hareline dlq` upon them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from pika.spec import BasicProperties
from sqlalchemy import func, select

from consumers.obituary import letter_of
from store import dead_letters as rows
from store.dead_letters import NewLetter
from store.engine import Database
from store.tables import dead_letters, outbox
from tests.lab import ROOT
from topology.spec import Names


def letter(job_id: str, died_at: datetime, job_type: str = "report.build", **headers: Any) -> NewLetter:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {"hareline-died-at": died_at.isoformat(), "hareline-error": "ValueError"} | given
    properties = BasicProperties(message_id=job_id, type=job_type, headers=given)
    return letter_of(Names("t"), properties, b'{"month": 1}', died_at, {})


async def bury(database: Database, number: int, *, first: int = 0, died_at: datetime | None = None) -> None:
    """Records jobs ``job-<first>`` and so on."""
    died_at = died_at or datetime.now(UTC)
    async with database.transaction() as connection:
        await rows.record(connection, [letter(f"job-{n}", died_at) for n in range(first, first + number)], died_at)


async def marked(database: Database) -> int:
    """How many are marked as replayed."""
    async with database.reading() as connection:
        query = select(func.count()).select_from(dead_letters).where(dead_letters.c.status == "replayed")
        return int((await connection.execute(query)).scalar_one())


async def issued(database: Database) -> Counter[str]:
    """The jobs in the outbox, and how often each is there."""
    async with database.reading() as connection:
        return Counter((await connection.execute(select(outbox.c.job_id))).scalars())


@asynccontextmanager
async def dlq(url: str, *arguments: str) -> AsyncIterator[Process]:
    """``hareline dlq ARGUMENTS`` as a process; killed at the end if it still runs."""
    environment = {**os.environ, "HARELINE_DATABASE_URL": url, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "hareline", "dlq", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=PIPE, stderr=PIPE, preexec_fn=_as_in_a_terminal
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _as_in_a_terminal() -> None:
    # What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
