"""``demo.poison``: the job type that shows what becomes of a job that kills its worker."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from topology.contract import JobType, Retry

DIRECTORY: Final = "DEMO_ERRANDS"
"""The variable that names the directory with a file for each errand that was run."""


class Errand(BaseModel):
    """Writes one line to a file; a poisoned one kills the worker instead, as a crash in a C library would."""

    poisoned: bool = False


run_errand = JobType("demo.poison", Errand, retry=Retry(attempts=3, base=0.5), timeout=10.0, delivery_limit=3)
