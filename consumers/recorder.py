"""The recorder: what carries the broker's news into the database. A composition of parts that know nothing of each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from consumers.dead_letter_recorder import DeadLetterRecorder
from consumers.event_recorder import EventRecorder
from consumers.rounds import Rounds
from consumers.upkeep import EVERY, GAPS_EVERY, SagaGaps, clean_up, take_stock
from store.engine import Database
from store.retention import Retention
from topology.settings import Settings


class Part(Protocol):
    """Something that runs within a recorder."""

    async def run(self) -> None:
        """Works until `drain` is called, then finishes in good order."""

    def drain(self) -> None:
        """Asks it to stop."""


class Recorder:
    """Runs its parts together: they stop together, and when one fails all do. Any number of recorders may run.

    ``database`` is closed at the end.
    """

    def __init__(self, settings: Settings, database: Database, *, parts: Sequence[Part] | None = None) -> None:
        self._database = database
        self._parts = tuple(parts) if parts is not None else default_parts(settings, database)

    async def run(self) -> None:
        """Works until `drain` is called. Raises TopologyError at the start. The tables must be there."""
        try:
            running = [asyncio.create_task(part.run()) for part in self._parts]
            try:
                await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                self.drain()
                outcomes = await asyncio.gather(*running, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
        finally:
            await self._database.close()

    def drain(self) -> None:
        """Asks all parts to stop."""
        for part in self._parts:
            part.drain()


def default_parts(settings: Settings, database: Database) -> tuple[Part, ...]:
    """What ``hareline recorder`` runs."""
    retention = Retention.of(settings)
    groups: dict[str, str] = {}  # a dead letter does not say of which group its job type is, the reports do
    return (
        EventRecorder(settings, database, groups=groups),
        DeadLetterRecorder(settings, database, groups=groups),
        Rounds(lambda: clean_up(database, retention), EVERY),
        Rounds(lambda: take_stock(database), EVERY),
        Rounds(SagaGaps(database).fill, GAPS_EVERY),
    )
