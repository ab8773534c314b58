"""How far imports have come, as a service or a command reads it."""

from __future__ import annotations

from store import imports
from store.client import StoreClient
from store.imports import Progress, RowError

__all__ = ["Imports", "Progress", "RowError"]


class Imports(StoreClient):
    """Reads what `CsvImport` has written. Raises DatabaseUnavailable. Close it, or use ``async with``."""

    async def create_tables(self) -> None:
        """Makes the import's own tables where they are missing."""
        async with self._transaction() as connection:
            await imports.create_tables(connection)

    async def progress(self, any_id: str) -> Progress:
        """Of the import with this id, or of the one that the job with this id has begun. Raises NotFound."""
        async with self._reading() as connection:
            return await imports.progress(connection, any_id)

    async def latest(self, name: str, *, limit: int = 20) -> list[Progress]:
        """The imports of ``CsvImport(name, ...)``, the latest first."""
        async with self._reading() as connection:
            return await imports.latest(connection, name, limit)

    async def errors(self, any_id: str, *, after: int = 0, limit: int = 1000) -> list[RowError]:
        """What is wrong with the rows after row ``after``, in the order of the file. Raises NotFound."""
        async with self._reading() as connection:
            found = await imports.progress(connection, any_id)
            return await imports.row_errors(connection, found.id, after, limit)
