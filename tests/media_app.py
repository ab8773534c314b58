"""The media pipeline for a child process that dies once between handing on and its acknowledgement."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from examples.media_pipeline.app import Picture, Pipeline, from_settings
from hareline import Job, JobType, Settings


def die(step: str) -> None:
    fatal = Path(os.environ["MEDIA_FATAL"])
    if step == fatal.name and fatal.exists():
        fatal.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class Dying(Pipeline):
    """Dies after the step that ``MEDIA_FATAL``'s name ends with has handed on, if that file is there."""

    async def hand_on(self, step: JobType[Picture], picture: Picture, job: Job) -> None:
        await super().hand_on(step, picture, job)
        die(job.type)


_pipeline = from_settings(Settings.from_env())
_pipeline.__class__ = Dying
app = _pipeline.app()
