"""``media.thumbnail``: small copies of an image, written so that a repeat does no harm.

The handler is a plain function, so it runs in a thread and the event loop stays free.
"""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, Field

from consumers.job import Job
from consumers.jobs import Handlers
from consumers.outcome import Permanent, Transient
from topology.contract import JobType, Retry
from topology.errors import SettingsError


class Thumbnail(BaseModel):
    """``source`` and ``output_dir`` are relative to the media root; ``sizes`` are longest edges in pixels."""

    source: str
    sizes: Annotated[list[Annotated[int, Field(ge=8, le=4096)]], Field(min_length=1, max_length=16)]
    output_dir: str = "thumbnails"


make_thumbnail = JobType("media.thumbnail", Thumbnail, retry=Retry(attempts=5, base=5.0), timeout=120.0)


@dataclass(frozen=True, slots=True)
class MediaRoot:
    """The directory that jobs may read and write in, and how many pixels an image may have once unpacked."""

    path: Path
    max_pixels: int = 50_000_000

    @classmethod
    def from_settings(cls, extra: Mapping[str, str]) -> MediaRoot:
        """From ``Settings.from_env().extra``: ``MEDIA_ROOT``. Raises SettingsError."""
        if not extra.get("MEDIA_ROOT"):
            raise SettingsError("MEDIA_ROOT is not set: media.thumbnail needs the directory of the images")
        return cls(Path(extra["MEDIA_ROOT"]))

    def inside(self, relative: str) -> Path:
        """The path of ``relative``. Raises Permanent where it would lead out of the root."""
        root = self.path.resolve()
        try:
            path = (root / relative).resolve()
        except (ValueError, RuntimeError) as error:  # a null byte; a symbolic link that leads to itself
            raise Permanent(f"'{relative}' is not a path: {error}") from error
        if not path.is_relative_to(root):
            raise Permanent(f"'{relative}' lies outside the media root")
        return path


def register(app: Handlers, root: MediaRoot, job_type: JobType[Thumbnail] = make_thumbnail) -> None:
    """Gives ``app`` the handler. ``job_type`` may be a copy with another retry policy or timeout."""

    @app.handler(job_type)
    def handle(payload: Thumbnail, job: Job) -> None:
        del job  # the names of the results follow from the payload alone
        make(payload, root)


def make(payload: Thumbnail, root: MediaRoot) -> list[Path]:
    """Writes ``<output_dir>/<source name>.<size>.webp`` for every size and returns the paths.

    Permanent: the file is missing, no image, damaged, or too large once unpacked. Transient: the disk failed.
    """
    source = root.inside(payload.source)
    output = root.inside(payload.output_dir)
    # Reading and decoding are apart: Pillow raises OSError for a damaged image, as a failing disk does.
    try:
        data = source.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise Permanent(f"{payload.source}: no such file") from error
    except OSError as error:
        raise Transient(f"{payload.source} cannot be read: {error}") from error
    written = []
    for size, content in _thumbnails(data, payload, root.max_pixels):
        target = output / f"{source.name}.{size}.webp"
        try:
            output.mkdir(parents=True, exist_ok=True)
            _write(target, content)
        except OSError as error:
            raise Transient(f"{target} cannot be written: {error}") from error
        written.append(target)
    return written


def _thumbnails(data: bytes, payload: Thumbnail, max_pixels: int) -> Iterator[tuple[int, bytes]]:
    """Each size with its file's bytes, largest first, since each is made from the one before."""
    sizes = sorted(set(payload.sizes), reverse=True)
    with must_be_readable(payload.source):
        image = load(data, sizes[0], max_pixels)
        for size in sizes:
            image.thumbnail((size, size))
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=82)
            yield size, buffer.getvalue()


@contextmanager
def must_be_readable(source: str) -> Iterator[None]:
    """Makes whatever a decoder raises Permanent: an image that is damaged stays so."""
    try:
        yield
    except (Permanent, Transient, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise Permanent(f"{source} is no readable image: its format is unknown") from error
    except Exception as error:  # decoders answer damaged data with anything from struct.error to SyntaxError
        raise Permanent(f"{source} is no readable image: {error}") from error


def load(data: bytes, largest: int, max_pixels: int) -> Image.Image:
    """The image upright, in RGB or RGBA, unpacked to ``largest`` pixels at its longest edge or more where it was.

    Permanent: more than ``max_pixels``, which is seen before anything is unpacked. Use it in `must_be_readable`.
    """
    # Opening reads the header alone, so that a bomb is seen before it goes off.
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > max_pixels:
            raise Permanent(f"{image.width} x {image.height} pixels are more than the {max_pixels} allowed")
        # A JPEG can unpack at a half to an eighth of its size, which is much faster.
        image.draft("RGB", (largest, largest))
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGBA" if upright.has_transparency_data else "RGB")


def _write(target: Path, content: bytes) -> None:
    """All or nothing: readers see the old file or the new one, and after a power cut too."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
