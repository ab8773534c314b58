"""The second part of the demo, with a database: a schedule, the outbox, webhooks, a dead letter edited to success."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consumers.jobs.email import Email
from hareline.demo.contracts import JOB_TYPES, send_email
from hareline.demo.errand import Errand, run_errand
from hareline.demo.screen import Screen
from hareline.demo.webhooks import Deliveries, Senders
from hareline.demo.world import World
from producers.dead_letters import DeadLetterFilters, DeadLetters
from producers.producer import Producer
from producers.schedules import Schedules
from store.engine import Database
from store.schema import upgrade
from topology.settings import Settings

ROLES: Final = ("relay", "scheduler", "recorder")
WORKERS: Final = {"email.send": "hareline.demo.app:app", "demo.poison": "hareline.demo.errand_app:app"}
FIRINGS: Final = 3
_DEADLINE: Final = 60.0
_TICK: Final = 0.05
_GRACE: Final = 15.0


@dataclass(frozen=True, slots=True)
class Lasting:
    """What the second part found."""

    firings: int
    committed_ran: bool
    rolled_back_ran: bool
    dead_letters: int
    replayed_to_success: bool
    webhooks: Deliveries

    def is_good(self, deaths: int) -> bool:
        """Whether all went as it must, with ``deaths`` jobs dead before."""
        return (
            self.firings >= FIRINGS
            and self.committed_ran
            and not self.rolled_back_ran
            and self.dead_letters == deaths
            and self.replayed_to_success
            and self.webhooks.is_good
        )


class _RolledBack(Exception):
    """Ends the transaction that must not leave a job."""


class LastingPart:
    """Runs the roles and two workers as processes on a SQLite file in ``directory``, and tells ``screen``."""

    def __init__(
        self, settings: Settings, directory: Path, world: World, screen: Screen, environment: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._url = f"sqlite:///{directory / 'hareline.db'}"
        self._logs = directory / "logs"
        self._world = world
        self._screen = screen
        self._environment = {**environment, "HARELINE_DATABASE_URL": self._url}

    async def go(self, deaths: int) -> Lasting:
        """All of it; ``deaths`` is how many dead letters the recorder must find."""
        database = Database(self._url)
        try:
            await upgrade(database)
            async with AsyncExitStack() as stack:
                for role in ROLES:
                    await stack.enter_async_context(self._process(role))
                for job_type, app in WORKERS.items():
                    await stack.enter_async_context(self._process("worker", job_type, app=app))
                firings = await self._schedule(database)
                committed, rolled_back = await self._transactions(database)
                webhooks = await self._webhooks()
                letters, success = await self._desk(database, deaths)
            return Lasting(firings, committed, rolled_back, letters, success, webhooks)
        finally:
            await database.close()

    async def _schedule(self, database: Database) -> int:
        address = "every-second@example.com"
        async with Schedules(database) as schedules:
            record = await schedules.schedule_every(
                send_email, Email(to=address, subject="A second has passed", text="Tick."), every=1.0
            )
            await self._until(lambda: self._mails_to(address) >= FIRINGS)
            await schedules.cancel(record.id)
        self._screen.step(f"a schedule fired {self._mails_to(address)} times, one mail a second, and was cancelled")
        return self._mails_to(address)

    async def _transactions(self, database: Database) -> tuple[bool, bool]:
        producer = Producer(self._settings)  # the outbox needs no broker, so it is never opened
        rolled_back = ""
        with suppress(_RolledBack):
            async with database.transaction() as connection:
                rolled_back = await producer.enqueue(run_errand, Errand(), connection=connection)
                raise _RolledBack
        async with database.transaction() as connection:
            committed = await producer.enqueue(run_errand, Errand(), connection=connection)
        await self._until(lambda: self._world.errand_ran(committed))
        ran = self._world.errand_ran(committed), self._world.errand_ran(rolled_back)
        self._screen.step(
            f"a job in a committed transaction {'ran' if ran[0] else 'did not run'}, "
            f"one in a rolled-back transaction {'ran' if ran[1] else 'never ran'}"
        )
        return ran

    async def _webhooks(self) -> Deliveries:
        arguments = ("webhooks", "--port", "0")
        senders = Senders(self._log(arguments), self._until, self._mails_to)
        async with self._process(*arguments, app="hareline.demo.shop_app:app", more=senders.environment):
            found = await senders.go()
        self._screen.step(str(found))
        return found

    async def _desk(self, database: Database, deaths: int) -> tuple[int, bool]:
        address = "ann-after-all@example.com"
        async with DeadLetters(database, job_types=JOB_TYPES) as desk:

            async def recorded() -> bool:
                return await desk.count() >= deaths

            await self._until(recorded)
            count = await desk.count()
            page = await desk.list(DeadLetterFilters(type=send_email.name), limit=1)
            if not page.items:
                return count, False
            [letter] = page.items
            payload = Email.model_validate_json(letter.body).model_copy(update={"to": address})
            await desk.edit(letter.id, payload)
            await self._until(lambda: self._mails_to(address) > 0)
        success = self._mails_to(address) == 1
        self._screen.step(
            f"{count} dead letters are on the desk; one, to no such mailbox, was given another address and replayed: "
            f"{'the mail arrived' if success else 'the mail did not arrive'}"
        )
        return count, success

    def _mails_to(self, address: str) -> int:
        return self._world.mail.taken_for(address)

    async def _until(self, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Waits until it holds or the deadline is over; who asks looks again for itself."""
        end = time.monotonic() + _DEADLINE
        while time.monotonic() < end:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(_TICK)

    def _log(self, arguments: Sequence[str]) -> Path:
        return self._logs / f"{'-'.join(arguments)}-with-database.log"

    @asynccontextmanager
    async def _process(
        self, *arguments: str, app: str = "hareline.demo.app:app", more: Mapping[str, str] | None = None
    ) -> AsyncIterator[None]:
        with self._log(arguments).open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "hareline", *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._environment, **(more or {}), "HARELINE_APP": app},
                start_new_session=True,
            )
            try:
                yield
            finally:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                try:
                    await asyncio.wait_for(process.wait(), _GRACE)
                except TimeoutError:
                    process.kill()
                    await process.wait()
