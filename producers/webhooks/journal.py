"""Writes arrivals, those that come at the same time in one transaction: a commit costs much, a row in it little."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from store.engine import Database
from store.webhooks import Arrival, Kept, accept, accept_new
from topology.errors import DatabaseUnavailable, StoreError

_BATCH: Final = 200
_GATHER: Final = 0.005
"""Seconds from one commit's beginning to the next one's, where deliveries come closer than that: they share one."""
PATIENCE: Final = 10.0
"""Seconds that a transaction may take. A sender that gets no answer by then repeats the delivery anyway."""

_Waiting = tuple[Arrival, "asyncio.Future[Kept]"]


class Journal:
    """What `accept` returns is committed. Its task lives while there is something to write."""

    def __init__(
        self, database: Database, retention: float, clock: Callable[[], datetime], patience: float = PATIENCE
    ) -> None:
        self._database = database
        self._retention = retention
        self._clock = clock
        self._patience = patience
        self._waiting: deque[_Waiting] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._began = 0.0

    async def accept(self, arrival: Arrival) -> Kept:
        """The fate of ``arrival``, committed. Raises StoreError: then nobody may be told that it is accepted."""
        future: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
        self._waiting.append((arrival, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="webhook journal")
        return await future

    async def _write(self) -> None:
        while self._waiting:
            if (pause := self._began + _GATHER - time.monotonic()) > 0 and len(self._waiting) < _BATCH:
                await asyncio.sleep(pause)
            self._began = time.monotonic()
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            try:
                await self._settle(batch)
            except StoreError as error:
                # Those that came meanwhile would wait as long for the same answer.
                self._fail([*batch, *self._waiting], error)
                self._waiting.clear()
            except Exception as error:  # noqa: BLE001 - whatever it is, the waiting must be told
                await self._one_by_one(batch, error)

    async def _settle(self, batch: Sequence[_Waiting]) -> None:
        """Resolves each as soon as it is committed. Raises what keeps the rest of them from that."""
        try:
            async with asyncio.timeout(self._patience):
                if self._database.is_postgresql:
                    batch = await self._without_new(batch)
                if batch:
                    async with self._database.transaction() as connection:
                        kept = await accept(
                            connection, [arrival for arrival, _ in batch], self._clock(), self._retention
                        )
                    self._resolve(batch, kept)
        except TimeoutError as error:
            raise DatabaseUnavailable(f"no answer within {self._patience:g} s") from error

    async def _without_new(self, batch: Sequence[_Waiting]) -> Sequence[_Waiting]:
        """Nearly all are new, and these take one round trip; returns those that are not."""
        plain = [arrival for arrival, _ in batch if len(arrival.rows) == 1]
        async with self._database.statements() as connection:
            new = await accept_new(connection, plain, self._clock(), self._retention)
        mine = [waiting for waiting in batch if waiting[0].webhook_id in new]
        self._resolve(mine, [Kept(arrival.webhook_id, "new") for arrival, _ in mine])
        return batch if not mine else [waiting for waiting in batch if waiting[0].webhook_id not in new]

    async def _one_by_one(self, batch: list[_Waiting], error: Exception) -> None:
        """One that cannot be written must not take the others with it."""
        if len(batch) == 1:
            self._fail(batch, error)
            return
        for waiting in batch:
            if waiting[1].done():
                continue
            try:
                await self._settle([waiting])
            except Exception as own:  # noqa: BLE001 - as above
                self._fail([waiting], own)

    @staticmethod
    def _resolve(batch: Sequence[_Waiting], kept: Sequence[Kept]) -> None:
        for (_, future), fate in zip(batch, kept, strict=True):
            if not future.done():  # its sender may have gone
                future.set_result(fate)

    @staticmethod
    def _fail(batch: Sequence[_Waiting], error: Exception) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
