"""The job log as a service reads it."""

from __future__ import annotations

from datetime import datetime, timedelta

from hareline.paging import checked
from store import jobs_read
from store.client import StoreClient
from store.joblog import STATUSES
from store.jobs_read import AttemptRecord, JobPage, JobRecord, JobStats

__all__ = ["AttemptRecord", "JobPage", "JobRecord", "JobStats", "Jobs"]


class Jobs(StoreClient):
    """What is known of jobs. `hareline recorder` writes it, a fraction of a second after it happened.

    ``source`` is a `Database`, or the `Settings` that name one (by default the environment's). Raises
    DatabaseUnavailable. Close it, or use ``async with``; a database that was handed in stays open.
    """

    async def get(self, job_id: str) -> JobRecord:
        """A job with its attempts, also while it waits in the outbox. Raises NotFound."""
        async with self._reading() as connection:
            return await jobs_read.get(connection, job_id, self._clock())

    async def status(self, job_id: str) -> str:
        """Scheduled, queued, running, retrying, done, dead or cancelled. Raises NotFound."""
        return (await self.get(job_id)).status

    async def list(
        self,
        *,
        status: str | None = None,
        type: str | None = None,  # noqa: A002 - the word that everything else uses
        group: str | None = None,
        since: datetime | timedelta | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """Jobs, the latest first, also those that wait in the outbox; ``since`` a time, or so long ago.

        ``cursor`` is ``next`` of the page before. A job keeps its place when it leaves the outbox.
        Raises OptionInvalid, and CursorInvalid for a cursor that is of other filters or was altered.
        """
        since = checked(
            self._clock(), status=status, statuses=STATUSES, limit=limit, since=since, type=type, group=group
        )
        async with self._reading() as connection:
            return await jobs_read.page(
                connection,
                self._clock(),
                status=status,
                job_type=type,
                group=group,
                since=since,
                limit=limit,
                cursor=cursor,
            )

    async def stats(self) -> JobStats:
        """Counts by status, type and group, the outbox included; the last hour's attempts; reports that were lost."""
        async with self._reading() as connection:
            return await jobs_read.stats(connection, self._clock())
