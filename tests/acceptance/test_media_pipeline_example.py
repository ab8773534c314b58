"""The worked media pipeline on real pictures, files and queues."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from consumers.jobs.files import FileRoot
from examples.media_pipeline import steps
from examples.media_pipeline.app import Original, Pipeline, metadata, optimise, thumbnails, upload
from examples.media_pipeline.steps import Places
from hareline import Permanent, Transient
from hareline.demo.pictures import draw, write_broken, write_pictures
from tests.example_script import own_namespace, run_example
from tests.lab import DEADLINE, ROOT, Lab, until
from topology.settings import Settings

# The examples are of one broker or another; the sagas and the breaker below them are tested on each.
pytestmark = pytest.mark.machine

STEPS = (thumbnails, optimise, upload, metadata)


@pytest.fixture
async def mine(session_settings: Settings) -> AsyncIterator[Lab]:
    async with own_namespace(session_settings, "media") as lab:
        yield lab


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(*(FileRoot(str(tmp_path / name)) for name in ("source", "work", "target")))


def result(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_the_commands_do_what_they_say(mine: Lab, tmp_path: Path) -> None:
    output = await run_example(mine, "media_pipeline/app.py", {"/tmp/pictures": f"{tmp_path}/p", "20": "4"})
    assert '"source": "picture-00' in output
    assert len(list((tmp_path / "p-out").glob("*/metadata.json"))) == 4
    assert len(list((tmp_path / "p-out").glob("*/*.webp"))) == 12


async def test_a_picture_goes_through_all_steps(mine: Lab, places: Places, tmp_path: Path) -> None:
    """To another kind of storage; under one correlation id; without the camera's place."""
    exif = Image.Exif()
    exif[0x0110] = "Box Brownie"
    exif.get_ifd(0x8769)[0x9003] = "2026:11:25 12:00:00"
    exif.get_ifd(0x8825)[0x0001] = "N"
    (tmp_path / "source").mkdir()
    draw(1, (2000, 1000)).save(tmp_path / "source" / "a.jpg", exif=exif)
    url = f"memory://{tmp_path.name}"
    pipeline = Pipeline(replace(places, target=FileRoot(url)), mine.settings)
    await mine.apply(*STEPS)
    producer = await mine.producer()
    async with mine.working(pipeline.app()):
        await producer.enqueue(thumbnails, Original(source="a.jpg"))
        fs = fsspec.filesystem("memory")
        await until(lambda: bool(fs.glob(f"/{tmp_path.name}/*/metadata.json")), "the picture is through")
    [path] = fs.glob(f"/{tmp_path.name}/*/metadata.json")
    about = json.loads(fs.cat_file(path))
    assert (about["source"], about["width"], about["height"], about["format"]) == ("a.jpg", 2000, 1000, "JPEG")
    assert (about["camera"], about["taken"]) == ("Box Brownie", "2026:11:25 12:00:00")
    assert [(file["name"], file["width"], file["height"]) for file in about["files"]] == [
        ("1600.webp", 1600, 800),
        ("400.webp", 400, 200),
        ("100.webp", 100, 50),
    ]
    assert "GPS" not in str(about)
    await stop(pipeline)


async def test_what_is_no_picture_is_dead_in_the_first_queue(mine: Lab, places: Places, tmp_path: Path) -> None:
    """Broken, missing, a bomb, outside the root: at once, with no file left behind."""
    names = [path.name for path in write_broken(tmp_path / "source")]
    (tmp_path / "source" / "bomb.png").write_bytes(bomb())
    names += ["bomb.png", "nowhere.jpg", "../secret.jpg"]
    pipeline = Pipeline(places, mine.settings)
    await mine.apply(*STEPS)
    producer = await mine.producer()
    await producer.enqueue_many(thumbnails, [Original(source=name) for name in names])
    async with mine.working(pipeline.app()):
        letters = await mine.dead_letters(thumbnails, len(names))
    assert {letter.reason for letter in letters} == {"permanent"}
    assert not (tmp_path / "work").exists()
    await stop(pipeline)


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def run_all(places: Places, source: str) -> None:
    digest = steps.thumbnails(places, source)
    steps.optimise(places, digest)
    steps.upload(places, digest)
    steps.metadata(places, source, digest)


def test_a_repeat_writes_the_same_files(places: Places, tmp_path: Path) -> None:
    write_pictures(tmp_path / "source", 4)
    for number in range(4):
        run_all(places, f"picture-00{number}.{'png' if number == 3 else 'jpg'}")
    before = result(tmp_path)
    run_all(places, "picture-000.jpg")
    assert result(tmp_path) == before
    assert len(list((tmp_path / "target").iterdir())) == 4
    assert not [name for name in before if name.endswith(".part")]


def test_half_an_upload_is_made_whole(places: Places, tmp_path: Path) -> None:
    write_pictures(tmp_path / "source", 1)
    run_all(places, "picture-000.jpg")
    whole = result(tmp_path / "target")
    for path in (tmp_path / "target").glob("*/400.webp"):
        path.write_bytes(path.read_bytes()[:10])
        path.with_name("100.webp").unlink()
        steps.upload(places, path.parent.name)
    assert result(tmp_path / "target") == whole


def test_another_picture_under_the_old_name_is_noticed(places: Places, tmp_path: Path) -> None:
    write_pictures(tmp_path / "source", 1)
    digest = steps.thumbnails(places, "picture-000.jpg")
    draw(9).save(tmp_path / "source" / "picture-000.jpg")
    with pytest.raises(Permanent, match="another picture"):
        steps.metadata(places, "picture-000.jpg", digest)


def test_a_target_that_cannot_be_written_is_tried_again(places: Places, tmp_path: Path) -> None:
    write_pictures(tmp_path / "source", 1)
    digest = steps.thumbnails(places, "picture-000.jpg")
    steps.optimise(places, digest)
    (tmp_path / "target").write_text("a file where a directory should be")
    with pytest.raises(Transient):
        steps.upload(places, digest)


@pytest.mark.kills
@pytest.mark.parametrize("step", [thumbnails.name, optimise.name, upload.name])
async def test_a_worker_killed_after_handing_on_changes_nothing(mine: Lab, tmp_path: Path, step: str) -> None:
    """Its step runs again and the next one twice: the same files, under the same names; and a worker ends in order."""
    write_pictures(tmp_path / "source", 1)
    await mine.apply(*STEPS)
    producer = await mine.producer()
    await producer.enqueue(thumbnails, Original(source="picture-000.jpg"))
    (tmp_path / step).touch()
    async with worker(mine, tmp_path, step) as dying:
        assert await asyncio.wait_for(dying.wait(), DEADLINE) == -9
    async with worker(mine, tmp_path, step) as process:
        await until(lambda: bool(list(tmp_path.glob("target/*/metadata.json"))), "the picture is through")
        for job_type in STEPS:
            await until(lambda job_type=job_type: empty(mine, job_type), f"{job_type.name} is done")
        process.terminate()
        assert await asyncio.wait_for(process.wait(), DEADLINE) == 0
    found = result(tmp_path / "target")
    places = Places(*(FileRoot(str(tmp_path / name)) for name in ("source", "again", "expected")))
    run_all(places, "picture-000.jpg")
    assert found == result(tmp_path / "expected")


async def empty(lab: Lab, job_type: Any) -> bool:
    return await lab.ready(job_type) == 0


@asynccontextmanager
async def worker(lab: Lab, root: Path, step: str) -> AsyncIterator[asyncio.subprocess.Process]:
    places = {f"MEDIA_{name.upper()}": str(root / name) for name in ("source", "work", "target")}
    started = lab.child("worker", app="tests.media_app:app", cwd=ROOT, MEDIA_FATAL=str(root / step), **places)
    async with started as process:
        yield process


async def stop(pipeline: Pipeline) -> None:
    if pipeline.producer is not None:
        await pipeline.producer.close()
