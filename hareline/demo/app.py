"""The app that the demo's workers run: ``HARELINE_APP=hareline.demo.app:app``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from consumers.job import Job
from consumers.jobs import email, http, media
from hareline.app import App
from hareline.demo.contracts import (
    JOB_TYPES,
    Errand,
    make_thumbnail,
    run_errand,
    send_email,
    sync_document,
)
from topology.settings import Settings


def build(extra: Mapping[str, str]) -> App:
    """The app, with the servers and directories that the demo put into the environment."""
    app = App(job_types=JOB_TYPES)
    email.register(app, email.SmtpServer.from_settings(extra), send_email)
    media.register(app, media.MediaRoot.from_settings(extra), make_thumbnail)
    http.register(app, http.HttpApi.from_settings(extra), sync_document)
    errands = Path(extra["DEMO_ERRANDS"])

    @app.handler(run_errand)
    async def handle(errand: Errand, job: Job) -> None:
        if errand.poisoned:
            os.kill(os.getpid(), signal.SIGKILL)
        # Appended, so that a second run shows as a second line.
        with (errands / job.id).open("a", encoding="ascii") as file:
            file.write(f"{time.time()}\n")

    return app


app = build(Settings.from_env().extra)
