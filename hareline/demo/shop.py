"""The last part of the demo: the shop of examples/shop, whose orders are sagas, and its books."""

from __future__ import annotations

import importlib
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx

from hareline.demo.background import Background, until
from hareline.demo.screen import Screen
from hareline.demo.watch import Watch
from hareline.sagas import Sagas
from producers.dead_letters import DeadLetterFilters, DeadLetters
from store.engine import Database
from store.schema import upgrade
from topology.settings import Settings

ORDERS: Final = 300
EXAMPLES: Final = Path(__file__).parents[2] / "examples"
ROLES: Final = (("relay",), ("recorder",))
WORKERS: Final = ("stock.*", "card.*", "order.*", "erp.sync")
_RECEIVER: Final = ("webhooks", "--port", "0")
_PARTNERS: Final = ("shop.partner_server", "--port", "0")
_RECEIVES: Final = re.compile(r"webhooks at (http://\S+)/webhooks/")
_ANSWERS: Final = re.compile(r"partners at (http://\S+)")


@dataclass(frozen=True, slots=True)
class ShopBooks:
    """What the shop found. ``balance`` is the example's, money in cents; ``failed_at`` counts sagas by failed step.

    ``must_fail`` is how many orders have a trouble that nothing gets over.
    """

    balance: Mapping[str, Any]
    answers: Mapping[int, int]
    failed_at: Mapping[str, int]
    must_fail: int
    replayed: int
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether every webhook was taken once, every step failed at times, and all adds up to the cent.

        More orders than must may fail: on a machine that is very busy an answer takes longer than is waited for.
        """
        return (
            self.answers.get(202, 0) == self.balance["orders"] == ORDERS
            and not self.balance["differences"]
            and len(self.failed_at) == len(WORKERS)
            and sum(self.failed_at.values()) == self.balance["compensated"] >= self.must_fail
            and self.replayed > 0
        )


class ShopPart:
    """Runs the shop as processes on a SQLite file in ``directory``, and tells ``screen``."""

    def __init__(self, settings: Settings, directory: Path, screen: Screen, environment: Mapping[str, str]) -> None:
        self._settings = replace(settings, database_url=f"sqlite:///{directory / 'shop.db'}")
        self._logs = directory / "logs"
        self._screen = screen
        self._secret = secrets.token_urlsafe(24)
        self._environment = {
            **environment,
            "HARELINE_DATABASE_URL": self._settings.database_url,
            "HARELINE_WEBHOOKS_SECRETS_WOOCOMMERCE": self._secret,
        }

    async def go(self, *, remove: bool) -> ShopBooks:
        """All of it. ``remove`` deletes its queues at the end."""
        saga = _module("contracts").fulfil
        database = Database(self._settings.database_url)
        try:
            await upgrade(database)
        finally:
            await database.close()
        _module("tables").create(self._settings.database_url)
        async with Watch.connected(self._settings, saga.job_types, saga.undos) as watch:
            await watch.apply_topology()
            try:
                return await self._open()
            finally:
                if remove:
                    await watch.remove_topology()

    async def _open(self) -> ShopBooks:
        async with AsyncExitStack() as stack:
            outside = self._background({})
            await stack.enter_async_context(outside.python(*_PARTNERS))
            partners = await outside.said(_PARTNERS, _ANSWERS)
            inside = self._background({"SHOP_PARTNERS_URL": partners})
            for arguments in (_RECEIVER, *ROLES, *(("worker", types) for types in WORKERS)):
                await stack.enter_async_context(inside.hareline(*arguments, app="shop.app:app"))
            receiver = await inside.said(_RECEIVER, _RECEIVES)
            began = time.monotonic()
            woocommerce = _module("woocommerce")
            numbers = range(woocommerce.FIRST, woocommerce.FIRST + ORDERS)
            answers: Counter[int] = await woocommerce.send(receiver, self._secret, numbers)
            self._screen.step(
                f"the shop: {answers[202]} orders came as signed webhooks of WooCommerce, {answers[200]} of them twice"
            )
            replayed, failed_at = await self._follow(partners)
            seconds = time.monotonic() - began
            must_fail = sum(map(_module("troubles").is_undone, numbers))
            balance = asdict(await _module("balance").measure(self._settings, partners))
            return ShopBooks(balance, dict(answers), failed_at, must_fail, replayed, seconds)

    async def _follow(self, partners: str) -> tuple[int, Mapping[str, int]]:
        """Until all sagas have ended, those with a dead undo by a replay; how many those are, and what steps failed."""
        dead = DeadLetterFilters(type="card.refund")
        async with Sagas(self._settings) as log, DeadLetters(self._settings) as desk:

            async def all_ended() -> bool:
                counts = await log.counts()
                stuck = counts.get("stuck", 0)
                return _ended(counts) + stuck == ORDERS and await desk.count(dead) == stuck

            await until(all_ended)
            async with httpx.AsyncClient() as client:
                await client.post(f"{partners}/mend")
            replayed = await desk.replay(dead)

            async def all_undone() -> bool:
                return _ended(await log.counts()) == ORDERS

            await until(all_undone)
            self._screen.step(
                f"the payment provider refused {replayed} refunds, which stood on the desk; mended and replayed, "
                f"{'all sagas have ended' if await all_undone() else 'and yet some sagas have not ended'}"
            )
            undone = (await log.list(status="compensated", limit=ORDERS)).items
        steps = [step.job_type.name for step in _module("contracts").fulfil.steps]
        counted = Counter(steps[int((one.failed_step or "0.0").split(".")[0])] for one in undone)
        return replayed, {name: counted[name] for name in steps if counted[name]}

    def _background(self, more: Mapping[str, str]) -> Background:
        return Background(self._logs, {**self._environment, **more}, "of-the-shop", EXAMPLES)


def _ended(counts: Mapping[str, int]) -> int:
    return counts.get("completed", 0) + counts.get("compensated", 0)


def _module(name: str) -> Any:
    """A module of the example, which stands beside the packages in a checkout."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(f"shop.{name}")
