"""The receiver on a disk that is full: 503 for what has no room, and all that was acknowledged is there."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from store.engine import Database
from tests.databases import opened
from tests.faults import outages
from tests.lab import until
from tests.postgres import Cluster
from tests.webhooks import Receiver, problem, serving, started

pytestmark = [pytest.mark.machine, pytest.mark.timeout(300)]

MANY = 30
PADDING = 10_000
"""Random bytes in a delivery: so many that a database which may not grow cannot take it, compressed or not."""
ROOM = 16 * 1024 * 1024


class Sender:
    """It sends each delivery until it is acknowledged, as providers do, and remembers which were."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.acknowledged: dict[str, str] = {}
        self.answers: Counter[int] = Counter()

    async def try_once(self, key: str) -> bool:
        document = {"event": "order.created", "id": int(key), "padding": random.Random(key).randbytes(PADDING).hex()}
        try:
            answer = await self._receiver.deliver(document=document, key=key)
        except httpx.TransportError:  # no answer, as where a kept connection was closed: a sender repeats
            return False
        self.answers[answer.status_code] += 1
        if answer.status_code == 503:
            assert "cannot be stored" in problem(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
            return False
        assert answer.status_code in {200, 202}, answer.text
        webhook_id = answer.json()["webhook_id"]
        assert self.acknowledged.setdefault(key, webhook_id) == webhook_id
        return True

    async def send(self, first: int) -> None:
        keys = [str(number) for number in range(first, first + MANY)]
        await asyncio.gather(*(until(lambda key=key: self.try_once(key), f"delivery {key}", 120) for key in keys))


async def jobs(database: Database) -> Counter[str]:
    return Counter(row.correlation_id for row in await started(database))


async def live_through(receiver: Receiver, database: Database, fill: Any, free: Any) -> None:
    """Deliveries before, during and after. One may still find room in a page that is there: that is fine."""
    sender = Sender(receiver)
    await sender.send(0)
    fill()
    sending = asyncio.create_task(sender.send(MANY))
    await until(lambda: sender.answers[503] >= MANY, "deliveries were refused", 120)
    acknowledged = Counter(sender.acknowledged.values())
    there = await jobs(database)
    assert acknowledged <= there, "what is acknowledged is there"
    assert set(there.values()) == {1}
    assert (await receiver.client.get("/livez")).status_code == 200
    free()
    await sending
    await sender.send(2 * MANY)
    await sender.send(0)  # and every repeat is known
    assert len(sender.acknowledged) == 3 * MANY
    assert await jobs(database) == Counter(sender.acknowledged.values())


async def test_sqlite(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(sqlite_url) as looking:
        _ = looking.engine  # made before: this one is not hit
        with outages.pragmas(monkeypatch) as wanted:
            async with serving(sqlite_url) as receiver:
                await live_through(
                    receiver,
                    looking,
                    lambda: wanted.update(max_page_count="1"),
                    lambda: wanted.update(max_page_count="1000000"),
                )


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 16 MiB. Skipped by design where it cannot be mounted: it takes root and the kernel's leave."""
    directory = Path("/tmp") / f"hareline-webhooks-full-{os.getpid()}"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    try:
        if mounted.returncode != 0:
            pytest.skip("needs a small file system of its own, which only root can mount")
        (directory / "space").mkdir()
        shutil.chown(directory / "space", "postgres", "postgres")
        yield directory / "space"
    finally:
        subprocess.run(["umount", str(directory)], check=False, capture_output=True)
        directory.rmdir()


async def test_postgresql(cluster: Cluster, postgresql_url: str, small_disk: Path) -> None:
    """The outbox and the keys lie on the full disk; the server's log does not."""
    name = postgresql_url.rpartition("/")[2]
    space, fill = f"webhooks_{name}", small_disk.parent / "fill"
    cluster.sql("postgres", f"CREATE TABLESPACE {space} LOCATION '{small_disk}'")
    try:
        cluster.sql(name, f"ALTER TABLE hareline_outbox SET TABLESPACE {space}")
        cluster.sql(name, f"ALTER TABLE hareline_webhooks SET TABLESPACE {space}")

        def take_all() -> None:
            with fill.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"\0" * 4096)
                        file.flush()
                except OSError:
                    pass

        async with opened(postgresql_url) as database, serving(postgresql_url) as receiver:
            await live_through(receiver, database, take_all, fill.unlink)
    finally:
        cluster.drop(name)
        cluster.sql("postgres", f"DROP TABLESPACE {space}")
