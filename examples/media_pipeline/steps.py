"""What the pipeline's steps do to a picture: plain functions on bytes and files, no jobs."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ExifTags, Image

from consumers.jobs.files import FileRoot
from consumers.jobs.media import load, must_be_readable
from hareline import Permanent

SIZES = (1600, 400, 100)
"""Longest edges in pixels. A picture is never made larger than it is."""
MAX_PIXELS = 50_000_000
MAX_BYTES = 60_000_000


@dataclass(frozen=True)
class Places:
    """Where pictures come from, where unfinished files are, and where finished ones go. All blocking."""

    source: FileRoot
    work: FileRoot
    target: FileRoot

    def read(self, source: str) -> bytes:
        """The original. Permanent: missing, or larger than any picture should be."""
        size = self.source.size(source)
        if size is not None and size > MAX_BYTES:
            raise Permanent(f"{source} has {size} bytes, more than the {MAX_BYTES} allowed")
        return self.source.read(source)


def thumbnails(places: Places, source: str) -> str:
    """Writes each size without loss as ``<digest>/<size>.png`` to the work files; returns the original's digest."""
    data = places.read(source)
    digest = hashlib.sha256(data).hexdigest()[:32]
    with must_be_readable(source):
        image = load(data, SIZES[0], MAX_PIXELS)
        made = []
        for size in SIZES:
            image.thumbnail((size, size))
            made.append((size, _encoded(image, "PNG")))
    for size, content in made:
        places.work.write(f"{digest}/{size}.png", content)
    return digest


def optimise(places: Places, digest: str) -> None:
    """Writes ``<digest>/<size>.webp`` for each: slow to make, small to send, without what the camera noted."""
    for size in SIZES:
        with must_be_readable(f"{digest}/{size}.png"):
            image = Image.open(io.BytesIO(places.work.read(f"{digest}/{size}.png")))
            content = _encoded(image, "WEBP", quality=80, method=6)
        places.work.write(f"{digest}/{size}.webp", content)


def upload(places: Places, digest: str) -> None:
    """Copies the finished files to the target; what is there in full already stays."""
    for size in SIZES:
        name = f"{digest}/{size}.webp"
        content = places.work.read(name)
        if places.target.size(name) != len(content):
            places.target.write(name, content)


def metadata(places: Places, source: str, digest: str) -> None:
    """Writes ``<digest>/metadata.json`` beside the uploaded files. Where the picture was taken is left out."""
    data = places.read(source)
    if hashlib.sha256(data).hexdigest()[:32] != digest:
        raise Permanent(f"{source} is another picture by now; enqueue it again")
    with must_be_readable(source), Image.open(io.BytesIO(data)) as image:
        details = image.getexif().get_ifd(ExifTags.IFD.Exif)
        about = {
            "source": source,
            "digest": digest,
            "format": image.format,
            "width": image.width,
            "height": image.height,
            "taken": _text(details.get(ExifTags.Base.DateTimeOriginal)),
            "camera": _text(image.getexif().get(ExifTags.Base.Model)),
            "files": _files(places, digest, SIZES),
        }
    places.target.write(f"{digest}/metadata.json", json.dumps(about, indent=2).encode())


def _files(places: Places, digest: str, sizes: Sequence[int]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for size in sizes:
        content = places.target.read(f"{digest}/{size}.webp")
        with Image.open(io.BytesIO(content)) as image:
            found.append({"name": f"{size}.webp", "width": image.width, "height": image.height, "bytes": len(content)})
    return found


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _text(value: object) -> str | None:
    return str(value).strip("\0 ") or None if value is not None else None
