"""Roles whose database is away when they start: they say so once, wait, and go on when it is there."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.databases import upgraded
from tests.lab import DEADLINE, ROOT, Lab
from tests.postgres import Cluster

pytestmark = [pytest.mark.machine, pytest.mark.kills, pytest.mark.timeout(300)]

ROLES = ("relay", "scheduler", "recorder")
AWAY = "waits for the database"


class Role:
    """A process of ``hareline ROLE``, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def says(self, text: str) -> str:
        """Reads on to the line with ``text``, which must come before it ends."""
        assert self.process.stderr is not None
        while True:
            line = (await asyncio.wait_for(self.process.stderr.readline(), DEADLINE)).decode()
            assert line, f"it ended without saying '{text}': {self.lines}"
            self.lines.append(line)
            if text in line:
                return line

    async def ends(self) -> int:
        """Its exit code, with all that it says."""
        _, rest = await asyncio.wait_for(self.process.communicate(), DEADLINE)
        self.lines += rest.decode().splitlines(keepends=True)
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def started(role: str, url: str, lab: Lab) -> AsyncIterator[Role]:
    environment = {
        **os.environ,
        "HARELINE_DATABASE_URL": url,
        "HARELINE_BROKER_URL": ",".join(lab.settings.broker_urls),
        "HARELINE_NAMESPACE": lab.settings.namespace,
        "HARELINE_LOG_LEVEL": "INFO",
        "PYTHONPATH": str(ROOT),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hareline", role, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Role(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Cluster, str]]:
    """A PostgreSQL of this module's own, with Hareline's tables in one database; stopped."""
    with Cluster() as cluster:
        url = cluster.url(cluster.create())
        asyncio.run(upgraded(url))
        cluster.stop()
        yield cluster, url


@pytest.mark.parametrize("role", ROLES)
async def test_a_database_that_comes_later_is_waited_for(role: str, server: tuple[Cluster, str], lab: Lab) -> None:
    """One warning names role and cause; then it works, and ends in good order."""
    await lab.apply()
    cluster, url = server
    async with started(role, url, lab) as process:
        line = await process.says(AWAY)
        assert "WARNING" in line
        assert f"the {role} {AWAY}" in line
        assert f"127.0.0.1:{cluster.port}" in line
        assert "is the server running, and at this address?" in line
        cluster.start()
        try:
            await process.says(f"the {role} goes on")
            process.process.send_signal(signal.SIGTERM)
            assert await process.ends() == 0
        finally:
            cluster.stop()
        assert sum(AWAY in said for said in process.lines) == 1
        assert "Traceback" not in "".join(process.lines)


@pytest.mark.parametrize("role", ROLES)
async def test_a_signal_ends_the_wait(role: str, server: tuple[Cluster, str], lab: Lab) -> None:
    """An orchestrator stops what has not even begun: that is no failure."""
    _, url = server
    async with started(role, url, lab) as process:
        await process.says(AWAY)
        process.process.send_signal(signal.SIGTERM)
        assert await process.ends() == 0
        assert "Traceback" not in "".join(process.lines)


@pytest.mark.parametrize("role", ROLES)
async def test_missing_tables_are_not_waited_for(role: str, cluster: Cluster, lab: Lab) -> None:
    """They are for a person to make: the process ends, and says how."""
    name = cluster.create()
    async with started(role, cluster.url(name), lab) as process:
        assert await process.ends() == 1
        assert "run `hareline db upgrade`" in "".join(process.lines)
        assert "Traceback" not in "".join(process.lines)
    cluster.drop(name)
