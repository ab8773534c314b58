"""The demo's job types: those that ship, with short back-offs, and one that kills its worker."""

from __future__ import annotations

from dataclasses import replace

from consumers.jobs.email import send_email as shipped_email
from consumers.jobs.http import sync_document as shipped_sync
from consumers.jobs.media import make_thumbnail as shipped_thumbnail
from hareline.demo.errand import run_errand
from topology.contract import Retry

send_email = replace(shipped_email, retry=Retry(attempts=5, base=0.5), priority=True)
make_thumbnail = replace(shipped_thumbnail, retry=Retry(attempts=3, base=0.5))
sync_document = replace(shipped_sync, retry=Retry(attempts=5, base=0.5))

JOB_TYPES = (send_email, make_thumbnail, sync_document, run_errand)
