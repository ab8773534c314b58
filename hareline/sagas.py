"""The saga log as a service reads it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from hareline.paging import checked
from store import sagas_read
from store.client import StoreClient
from store.sagalog import STATUSES
from store.sagas_read import SagaPage, SagaRecord, SagaStep

__all__ = ["SagaPage", "SagaRecord", "SagaStep", "Sagas"]


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
        since = checked(self._clock(), status=status, statuses=STATUSES, limit=limit, since=since, name=name)
        async with self._reading() as connection:
            return await sagas_read.page(connection, status=status, name=name, since=since, limit=limit, cursor=cursor)

    async def counts(self) -> Mapping[str, int]:
        """How many there are, by status."""
        async with self._reading() as connection:
            return await sagas_read.counts(connection)
