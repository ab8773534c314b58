"""Images for the thumbnails: real JPEGs and PNGs, and some that are broken the way uploads are."""

from __future__ import annotations

import io
import random
from pathlib import Path

from PIL import Image, ImageDraw


def draw(seed: int, size: tuple[int, int] = (960, 640)) -> Image.Image:
    """A picture of gradients and circles; the same for the same ``seed``."""
    chance = random.Random(seed)  # noqa: S311 - a picture, not a secret
    bands = [Image.linear_gradient("L").rotate(chance.choice((0, 90, 180, 270))).resize(size) for _ in range(3)]
    image = Image.merge("RGB", bands)
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, radius = chance.randrange(size[0]), chance.randrange(size[1]), chance.randrange(20, 160)
        colour = (chance.randrange(256), chance.randrange(256), chance.randrange(256))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


def write_pictures(directory: Path, count: int) -> list[Path]:
    """``count`` good images, JPEG and PNG in turn."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = directory / f"picture-{number:03d}.{'png' if number % 4 == 3 else 'jpg'}"  # noqa: PLR2004 - every fourth
        draw(number).save(path)
        paths.append(path)
    return paths


def write_broken(directory: Path) -> list[Path]:
    """A cut-off JPEG, a PNG with flipped bytes, a text with an image's name, and an empty file."""
    directory.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    draw(1).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    buffer = io.BytesIO()
    draw(2, (320, 200)).save(buffer, "PNG")
    png = bytearray(buffer.getvalue())
    for position in range(60, len(png) - 60, 7):
        png[position] ^= 0xFF
    files = {
        "cut-off.jpg": jpeg[: len(jpeg) // 3],
        "flipped.png": bytes(png),
        "text.jpg": b"this was never an image",
        "empty.png": b"",
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return [directory / name for name in files]
