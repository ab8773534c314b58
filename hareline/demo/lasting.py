"""The second part of the demo, with a database: a schedule, the outbox, webhooks, a dead letter edited to success."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consumers.jobs.email import Email
from hareline.demo.background import Background, until
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
_APP: Final = "hareline.demo.app:app"


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
        self._world = world
        self._screen = screen
        roles = {**environment, "HARELINE_DATABASE_URL": self._url}
        self._background = Background(directory / "logs", roles, "with-database")

    async def go(self, deaths: int) -> Lasting:
        """All of it; ``deaths`` is how many dead letters the recorder must find."""
        database = Database(self._url)
        try:
            await upgrade(database)
            async with AsyncExitStack() as stack:
                for role in ROLES:
                    await stack.enter_async_context(self._background.hareline(role, app=_APP))
                for job_type, app in WORKERS.items():
                    await stack.enter_async_context(self._background.hareline("worker", job_type, app=app))
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
            await until(lambda: self._mails_to(address) >= FIRINGS)
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
        await until(lambda: self._world.errand_ran(committed))
        ran = self._world.errand_ran(committed), self._world.errand_ran(rolled_back)
        self._screen.step(
            f"a job in a committed transaction {'ran' if ran[0] else 'did not run'}, "
            f"one in a rolled-back transaction {'ran' if ran[1] else 'never ran'}"
        )
        return ran

    async def _webhooks(self) -> Deliveries:
        arguments = ("webhooks", "--port", "0")
        senders = Senders(self._background.log(arguments), until, self._mails_to)
        receiver = "hareline.demo.webhooks_app:app"
        async with self._background.hareline(*arguments, app=receiver, more=senders.environment):
            found = await senders.go()
        self._screen.step(str(found))
        return found

    async def _desk(self, database: Database, deaths: int) -> tuple[int, bool]:
        address = "ann-after-all@example.com"
        async with DeadLetters(database, job_types=JOB_TYPES) as desk:

            async def recorded() -> bool:
                return await desk.count() >= deaths

            await until(recorded)
            count = await desk.count()
            page = await desk.list(DeadLetterFilters(type=send_email.name), limit=1)
            if not page.items:
                return count, False
            [letter] = page.items
            payload = Email.model_validate_json(letter.body).model_copy(update={"to": address})
            await desk.edit(letter.id, payload)
            await until(lambda: self._mails_to(address) > 0)
        success = self._mails_to(address) == 1
        self._screen.step(
            f"{count} dead letters are on the desk; one, to no such mailbox, was given another address and replayed: "
            f"{'the mail arrived' if success else 'the mail did not arrive'}"
        )
        return count, success

    def _mails_to(self, address: str) -> int:
        return self._world.mail.taken_for(address)
