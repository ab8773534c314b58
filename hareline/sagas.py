"""The saga log as a service reads it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from store import sagas_read
from store.client import StoreClient
from store.sagalog import STATUSES
from store.sagas_read import SagaPage, SagaRecord, SagaStep
from topology.duration import ago
from topology.errors import OptionInvalid
from topology.text import expect_storable

__all__ = ["LARGEST_PAGE", "SagaPage", "SagaRecord", "SagaStep", "Sagas"]

LARGEST_PAGE: Final = 1000


class Sagas(StoreClient):
    """What is known of sagas. `hareline recorder` writes it, a fraction of a second after it happened.

    ``source`` is a `Database`, or the `Settings` that name one (by default the environment's). Raises
    DatabaseUnavailable. Close it, or use ``async with``; a database that was handed in stays open.
    """

    async def get(self, saga_id: str) -> SagaRecord:
        """A saga with all its steps and undos, and the attempts of each. Raises NotFound."""
        async with self._reading() as connection:
            return await sagas_read.get(connection, saga_id)

    async def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        since: datetime | timedelta | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> SagaPage:
        """Sagas, the latest first; ``since`` a time, or so long ago. ``cursor`` is ``next`` of the page before.

        Raises OptionInvalid, and CursorInvalid for a cursor that is of other filters or was altered.
        """
        if status is not None and status not in STATUSES:
            raise OptionInvalid(f"status '{status}' is none: use {', '.join(STATUSES)}")
        expect_storable(name=name)
        if not 1 <= limit <= LARGEST_PAGE:
            raise OptionInvalid(f"limit is {limit}: use 1 to {LARGEST_PAGE}")
        if isinstance(since, timedelta):
            since = ago("since", since, self._clock())
        if since is not None and since.utcoffset() is None:
            raise OptionInvalid(f"since {since.isoformat()} has no zone")
        async with self._reading() as connection:
            return await sagas_read.page(connection, status=status, name=name, since=since, limit=limit, cursor=cursor)

    async def counts(self) -> Mapping[str, int]:
        """How many there are, by status."""
        async with self._reading() as connection:
            return await sagas_read.counts(connection)
