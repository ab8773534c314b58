"""What a job did to the world, as the world saw it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect of one job: a mail taken, a document stored. ``at`` is seconds since the epoch."""

    job_id: str
    at: float
