"""Orders that go through `tests.saga_app`, and the books that must balance afterwards."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from sqlalchemy import text

from store.engine import Database
from tests.lab import DEADLINE, Lab, until
from tests.saga_app import HELD, ITEMS, RETRY, STEPS, TABLES, Order, amount_of, saga_of

APP = "tests.saga_app:app"


class Books:
    """A saga with its queues, workers of it as child processes, and the tables that its steps write to."""

    def __init__(self, lab: Lab, directory: Path, url: str) -> None:
        self.lab = lab
        self.place = directory / "saga"
        self.place.mkdir()
        self.url = url
        self.saga = saga_of(lambda name: lab.job_type(name, Order, retry=RETRY))
        self.orders: dict[int, Order] = {}
        self.log = directory / "worker.log"

    async def open(self) -> None:
        """Makes queues and tables."""
        await self.lab.saga_app(self.saga)
        database = Database(self.url)
        async with database.transaction() as connection:
            for statement in TABLES:
                await connection.execute(text(statement))
            rows = [{"item": item, "held": HELD} for item in range(ITEMS)]
            await connection.execute(text("INSERT INTO stock (item, held) VALUES (:item, :held)"), rows)
        await database.close()

    async def start(self, orders: Iterable[Order], times: int = 1) -> None:
        """Starts a saga for each; every one ``times`` times, as a client that is not sure would."""
        producer = await self.lab.producer()
        for order in orders:
            self.orders[order.n] = order
            for _ in range(times):
                await producer.start(self.saga, order, key=str(order.n))

    # -- workers -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def workers(self, *arguments: str, **more: str) -> AsyncIterator[Process]:
        """``hareline worker``, by default two processes that are started again when they die."""
        prefix = next(self.saga.steps).job_type.name.rsplit(".", 1)[0]
        environment = self.lab.environment(
            APP, SAGA_PREFIX=prefix, SAGA_DIR=str(self.place), HARELINE_DATABASE_URL=self.url, **more
        )
        command = (sys.executable, "-m", "hareline", "worker", *(arguments or ("--processes", "2")))
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(*command, cwd=self.place, env=environment, stderr=log)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def pids(self) -> list[int]:
        """Worker processes that have come so far as to load the app, and run; it forgets those that do not."""
        for file in self.place.glob("*.pid"):
            if not _runs(int(file.stem)):
                file.unlink(missing_ok=True)
        return [int(file.stem) for file in self.place.glob("*.pid")]

    def kill_one(self, draw: random.Random) -> bool:
        """SIGKILL to a worker process; False if none was there."""
        pids = self.pids()
        if pids:
            with suppress(ProcessLookupError):
                os.kill(draw.choice(pids), signal.SIGKILL)
        return bool(pids)

    async def stopped(self, process: Process) -> int:
        """The exit code after a SIGTERM."""
        process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(process.wait(), DEADLINE)

    # -- points ------------------------------------------------------------------------------------------------------

    def order_deaths(self, *points: str) -> None:
        """A worker is to die at each of ``points``, as ``after-charge``."""
        for name in points:
            (self.place / name).touch()

    @property
    def deaths_to_come(self) -> list[str]:
        """Points that no worker has come to yet."""
        return [file.name for file in self.place.iterdir() if "-" in file.name]

    # -- the books ---------------------------------------------------------------------------------------------------

    async def entries(self) -> Counter[tuple[int, str, int]]:
        """How often each entry was written."""
        database = Database(self.url)
        try:
            async with database.reading() as connection:
                rows = (await connection.execute(text("SELECT n, what, amount FROM entries"))).all()
        finally:
            await database.close()
        return Counter((row.n, row.what, row.amount) for row in rows)

    def expected(self, order: Order) -> set[tuple[int, str, int]]:
        """The entries of an order at the end: all of its steps, or those before the failure and their undos."""
        if not order.fail or order.how == "late":
            return {(order.n, what, amount_of(order, what)) for what in STEPS}
        stage = {"reserve": 0, "charge": 1, "label": 1, "ship": 2}
        done = [what for what in STEPS[:3] if stage[what] <= stage[order.fail] and what != order.fail]
        rows = {(order.n, what, amount_of(order, what)) for what in done}
        return rows | {(order.n, f"un-{what}", -amount_of(order, what)) for what in done}

    async def balanced(self, within: float = DEADLINE) -> None:
        """Waits until each order has come to its end; then every entry is there once, and none else."""
        wanted = {row for order in self.orders.values() for row in self.expected(order)}

        async def closed() -> bool:
            return wanted <= set(await self.entries())

        await until(closed, "every order is shipped or undone", within)
        await until(self._idle, "every message is settled", within)

    async def checked(self) -> None:
        """After the workers have ended: nothing is left over, and it all adds up to the cent."""
        while not await self._idle():  # what a worker had in its hands when it died comes again
            async with self.workers("--concurrency", "10") as process:
                await until(self._idle, "every message is settled")
                assert await self.stopped(process) == 0
        entries = await self.entries()
        assert {row: count for row, count in entries.items() if count > 1} == {}, "an effect happened twice"
        assert set(entries) == {row for order in self.orders.values() for row in self.expected(order)}
        shipped = [order for order in self.orders.values() if not order.fail or order.how == "late"]
        totals = Counter[str]()
        for (_, what, amount), count in entries.items():
            totals[what.removeprefix("un-")] += amount * count
        assert totals["charge"] == sum(order.cents for order in shipped), "money"
        assert totals["ship"] == totals["label"] == len(shipped), "shipments"
        assert totals["reserve"] == sum(amount_of(order, "reserve") for order in shipped), "stock"
        assert await self._held() == HELD * ITEMS - totals["reserve"], "stock"
        await self._no_dead_letters()

    async def _held(self) -> int:
        database = Database(self.url)
        try:
            async with database.reading() as connection:
                held: int = (await connection.execute(text("SELECT SUM(held) FROM stock"))).scalar_one()
        finally:
            await database.close()
        return held

    async def _idle(self) -> bool:
        counts = [await self.lab.control.counts(self.lab.names.queue(t.name)) for t in self.saga.job_types]
        return all(count is not None and not count.ready for count in counts)

    async def _no_dead_letters(self) -> None:
        for job_type in self.saga.job_types:
            try:
                letters = await self.lab.dead_letters(job_type, 1, within=0.2)
            except AssertionError:
                continue
            raise AssertionError(f"dead: {letters}")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
