"""Tells operators when many jobs die."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from consumers.instruments import DEAD_ALERTS
from store import dead_letters, outbox
from store.engine import Database
from topology.envelope import new_id
from topology.errors import HarelineError, SettingsError
from topology.settings import Settings

logger = logging.getLogger(__name__)

LOOK: Final = 1.0
"""Seconds between two counts."""


class DeadAlert:
    """Tells once when more than HARELINE_DEAD_ALERT jobs died within an hour, and again after it has been fewer.

    A log line, the counter ``hareline.dead_letters.alerts``, and an ``email.send`` job to HARELINE_DEAD_ALERT_EMAIL
    where that is set. Each recorder process tells for itself.
    """

    def __init__(self, settings: Settings, database: Database, clock: Callable[[], datetime]) -> None:
        text = settings.extra.get("HARELINE_DEAD_ALERT", "")
        if text and not text.isdecimal():
            raise SettingsError(f"HARELINE_DEAD_ALERT is '{text}': a whole number of jobs in an hour is needed")
        self._limit = int(text) if text else None
        self._email = settings.extra.get("HARELINE_DEAD_ALERT_EMAIL")
        self._namespace = settings.namespace
        self._database = database
        self._clock = clock
        self._dirty = False
        self._breached = False
        self._looked = float("-inf")

    def note(self) -> None:
        """More have died, and are committed."""
        self._dirty = True

    async def look(self) -> None:
        """Counts, at most once a second and while it matters. A database that is away is asked again next time."""
        if self._limit is None or not self._dirty or time.monotonic() - self._looked < LOOK:
            return
        self._looked, self._dirty = time.monotonic(), False
        limit = self._limit
        try:
            async with self._database.transaction() as connection:
                died = await dead_letters.died_within(connection, 1, self._clock(), upto=limit + 1)
                if died > limit and not self._breached and self._email:
                    await outbox.add(connection, [self._mail(self._email, limit)])
        except HarelineError as error:
            logger.warning("cannot count the dead of the last hour: %s", error)
            self._dirty = True
            return
        self._dirty |= died > limit  # to see it end
        if died > limit and not self._breached:
            logger.error("more than %d jobs died within an hour: see `hareline dlq groups`", limit)
            DEAD_ALERTS.add(1)
        self._breached = died > limit

    def _mail(self, to: str, limit: int) -> outbox.OutboxRow:
        from consumers.jobs.email import send_email  # noqa: PLC0415 - needs the jobs extra, which few recorders want

        subject = f"{self._namespace}: more than {limit} jobs died within an hour"
        body = send_email.encode({"to": to, "subject": subject, "text": "See `hareline dlq groups`.\n"})
        return outbox.OutboxRow(job_id=new_id(), job_type=send_email.name, body=body, origin="enqueue")
