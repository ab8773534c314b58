"""A schedule that is declared in code, next to the job types."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from topology.contract import JobType
from topology.errors import ScheduleInvalid

Misfire = Literal["latest", "all", "skip"]
Overlap = Literal["allow", "skip", "buffer_one"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A job that an app wants issued again and again: ``App(schedules=[Schedule(...)])``.

    ``name`` is its identity: a declaration that changes under the same name changes the schedule. Give either
    ``every`` (seconds or a timedelta; ``start`` is its first run) or ``cron`` (in the time zone ``tz``). The rest is
    as in `Schedules.schedule_every`. `producers.reconcile` makes it so; a worker needs nothing of it.
    """

    name: str
    job_type: JobType[Any]
    payload: Any
    every: float | timedelta | None = None
    start: datetime | None = None
    cron: str | None = None
    tz: str = "UTC"
    group: str | None = None
    priority: int | None = None
    misfire: Misfire = "latest"
    misfire_window: float | None = None
    overlap: Overlap = "allow"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ScheduleInvalid(f"Schedule(name={self.name!r}): a declared schedule is known by its name")
        if (self.every is None) == (self.cron is None):
            raise ScheduleInvalid(f"Schedule '{self.name}': give either every= or cron=")
        if self.cron is not None and self.start is not None:
            raise ScheduleInvalid(
                f"Schedule '{self.name}': start= belongs to every=; a cron expression says when itself"
            )
        self.job_type.encode(self.payload)
