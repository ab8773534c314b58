"""The app of the ``demo.poison`` worker. It imports little, so that a worker that was killed is back soon."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from consumers.job import Job
from hareline.app import App
from hareline.demo.errand import DIRECTORY, Errand, run_errand
from topology.settings import Settings

app = App(job_types=[run_errand])
directory = Path(Settings.from_env().extra[DIRECTORY])


@app.handler(run_errand)
async def handle(errand: Errand, job: Job) -> None:
    """Runs the errand, or kills the process."""
    if errand.poisoned:
        os.kill(os.getpid(), signal.SIGKILL)
    # Appended, so that a second run shows as a second line.
    with (directory / job.id).open("a", encoding="ascii") as file:
        file.write(f"{time.time()}\n")
