"""The world that the demo's jobs act on: a mail server, an HTTP server, pictures, a file per errand."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from hareline.demo.effect import Effect
from hareline.demo.errand import DIRECTORY
from hareline.demo.http import DocumentServer
from hareline.demo.pictures import write_broken, write_pictures
from hareline.demo.plan import PICTURES, SIZES
from hareline.demo.smtp import MailServer


class World:
    """Runs the servers in the running event loop, and shows every effect that jobs have had."""

    def __init__(self, directory: Path) -> None:
        self.mail = MailServer()
        self.documents = DocumentServer()
        self._media = directory / "media"
        self._errands = directory / "errands"
        self._mails_told = 0
        self._documents_told = 0
        self._thumbnails_told: set[str] = set()
        self._errands_told: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        """Draws the pictures and serves until the block ends."""
        self._errands.mkdir(parents=True)
        originals = self._media / "originals"
        await asyncio.to_thread(write_pictures, originals, PICTURES)
        await asyncio.to_thread(write_broken, originals)
        (self._media / "thumbnails").mkdir()
        async with self.mail.serve(), self.documents.serve():
            yield self

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead a worker to this world."""
        return {
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(self.mail.port),
            "SMTP_TLS": "none",
            "SMTP_SENDER": "Hareline demo <shop@example.org>",
            "SYNC_BASE_URL": self.documents.base_url,
            "MEDIA_ROOT": str(self._media),
            DIRECTORY: str(self._errands),
        }

    def new_effects(self, thumbnail_ids: dict[str, str]) -> list[Effect]:
        """What happened since the last call. ``thumbnail_ids`` are job ids by the output directory's name."""
        effects = [
            *self.mail.effects[self._mails_told :],
            *self.documents.effects[self._documents_told :],
        ]
        self._mails_told = len(self.mail.effects)
        self._documents_told = len(self.documents.effects)
        effects.extend(self._new_thumbnails(thumbnail_ids))
        effects.extend(self._new_errands())
        return effects

    def errand_ran(self, job_id: str) -> bool:
        """Whether the errand of that job has left its file."""
        return (self._errands / job_id).exists()

    def _new_thumbnails(self, ids: dict[str, str]) -> list[Effect]:
        """A job has had its effect once every size is there. A repeat replaces, and does not show here."""
        effects = []
        for entry in os.scandir(self._media / "thumbnails"):
            if entry.name in self._thumbnails_told:
                continue
            finished = [file for file in os.scandir(entry) if file.name.endswith(".webp") and file.name[0] != "."]
            if len(finished) == len(SIZES):
                self._thumbnails_told.add(entry.name)
                effects.append(Effect(ids[entry.name], max(file.stat().st_mtime for file in finished)))
        return effects

    def _new_errands(self) -> list[Effect]:
        effects: list[Effect] = []
        for entry in os.scandir(self._errands):
            # A line is 18 to 20 bytes; a file that has not grown has no new line.
            told = self._errands_told.get(entry.name, 0)
            size = entry.stat().st_size
            if size == told:
                continue
            with Path(entry.path).open(encoding="ascii") as file:
                file.seek(told)
                effects.extend(Effect(entry.name, float(line)) for line in file.read(size - told).splitlines())
            self._errands_told[entry.name] = size
        return effects
