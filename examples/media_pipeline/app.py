"""Pictures through four queues: thumbnails, optimise, upload, metadata. Each step enqueues the next one.

export HARELINE_APP=examples.media_pipeline.app:app
export MEDIA_SOURCE=/tmp/pictures MEDIA_WORK=/tmp/pictures-work MEDIA_TARGET=/tmp/pictures-out
python -c "import pathlib as p, hareline.demo.pictures as d; d.write_pictures(p.Path('/tmp/pictures'), 20)"
hareline topology apply
hareline worker picture.thumbnails picture.optimise --concurrency 2 &
hareline worker picture.upload picture.metadata --concurrency 20 &
for file in /tmp/pictures/*; do hareline enqueue picture.thumbnails "{\\"source\\": \\"$(basename $file)\\"}"; done
until [ $(ls /tmp/pictures-out/*/metadata.json | wc -l) = 20 ]; do sleep 1; done
cat /tmp/pictures-out/*/metadata.json | head -30

A step enqueues the next before its own job is acknowledged, under a key that follows from the picture: a step that dies
in between runs again, writes the same files under the same names, and enqueues the same job.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from pydantic import BaseModel, Field

from consumers.jobs.files import FileRoot
from examples.media_pipeline import steps
from examples.media_pipeline.steps import Places
from hareline import App, Job, JobType, Producer, Retry, Settings


class Original(BaseModel):
    """A picture, by its path below the source root."""

    source: Annotated[str, Field(min_length=1, max_length=1000)]


class Picture(Original):
    """The same with the hash of its content, which names all that is made of it."""

    digest: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


HARD = Retry(attempts=5, base=5.0)
NETWORK = Retry(attempts=12, base=5.0, cap=900.0)

thumbnails = JobType("picture.thumbnails", Original, retry=HARD, timeout=120.0, group="pictures")
optimise = JobType("picture.optimise", Picture, retry=HARD, timeout=120.0, group="pictures")
upload = JobType("picture.upload", Picture, retry=NETWORK, timeout=300.0, group="pictures")
metadata = JobType("picture.metadata", Picture, retry=NETWORK, timeout=60.0, group="pictures")


class Pipeline:
    """The four handlers. The producer is opened by the first job: one for a process."""

    def __init__(self, places: Places, settings: Settings) -> None:
        self.places = places
        self.settings = settings
        self.producer: Producer | None = None

    async def thumbnails(self, original: Original, job: Job) -> None:
        digest = await asyncio.to_thread(steps.thumbnails, self.places, original.source)
        await self.hand_on(optimise, Picture(source=original.source, digest=digest), job)

    async def optimise(self, picture: Picture, job: Job) -> None:
        await asyncio.to_thread(steps.optimise, self.places, picture.digest)
        await self.hand_on(upload, picture, job)

    async def upload(self, picture: Picture, job: Job) -> None:
        await asyncio.to_thread(steps.upload, self.places, picture.digest)
        await self.hand_on(metadata, picture, job)

    async def metadata(self, picture: Picture) -> None:
        await asyncio.to_thread(steps.metadata, self.places, picture.source, picture.digest)

    async def hand_on(self, step: JobType[Picture], picture: Picture, job: Job) -> None:
        """Returns once the broker has confirmed the next job; all of a picture's jobs have one correlation id."""
        if self.producer is None:
            self.producer = Producer(self.settings)
            await self.producer.open()
        key = f"{picture.source}/{picture.digest}"
        await self.producer.enqueue(step, picture, key=key, correlation_id=job.correlation_id)

    def app(self) -> App:
        app = App(job_types=[thumbnails, optimise, upload, metadata])
        app.handler(thumbnails)(self.thumbnails)
        app.handler(optimise)(self.optimise)
        app.handler(upload)(self.upload)
        app.handler(metadata)(self.metadata)
        return app


def from_settings(settings: Settings) -> Pipeline:
    """``MEDIA_SOURCE``, ``MEDIA_WORK`` and ``MEDIA_TARGET``: directories, or URLs of fsspec."""
    roots = (FileRoot(settings.extra.get(f"MEDIA_{name}", ".")) for name in ("SOURCE", "WORK", "TARGET"))
    return Pipeline(Places(*roots), settings)


app = from_settings(Settings.from_env()).app()
