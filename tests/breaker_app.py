"""An app for child processes whose jobs call a service behind a breaker."""

from __future__ import annotations

import os

from hareline import App, Breaker, Job, JobType, Retry
from tests.ledger_app import BEGAN, DONE, Ledger, Work
from tests.service import call

job_type = JobType(
    os.environ.get("LEDGER_TYPE", "ledger"),
    Work,
    retry=Retry(attempts=4, base=0.1, jitter=0.0),
    timeout=float(os.environ.get("LEDGER_TIMEOUT", "60")),
)
app = App(job_types=[job_type])
ledger = Ledger(os.environ.get("LEDGER_FILE", "ledger"))
breaker = Breaker(
    os.environ.get("BREAKER_NAME", "service"),
    failures=5,
    reset=float(os.environ.get("BREAKER_RESET", "1")),
    probes=int(os.environ.get("BREAKER_PROBES", "3")),
)


@app.handler(job_type, breaker=breaker)
async def handle(work: Work, job: Job) -> None:
    ledger.note(BEGAN, work.n, job.attempt)
    async with breaker:
        await call(int(os.environ["SERVICE_PORT"]))
    ledger.note(DONE, work.n, job.attempt)
