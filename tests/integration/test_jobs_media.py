"""``media.thumbnail`` on real images."""

from __future__ import annotations

import errno
import struct
import threading
import zlib

import pytest
from PIL import Image
from pydantic import ValidationError

from consumers.jobs import media
from consumers.jobs.media import MediaRoot, Thumbnail
from consumers.outcome import Permanent, Transient
from consumers.registry import Registry
from hareline.demo.pictures import draw, write_broken, write_pictures
from topology.errors import SettingsError


@pytest.fixture
def root(tmp_path):
    return MediaRoot(tmp_path)


def test_each_size_is_written_with_its_longest_edge(root, tmp_path):
    """The aspect ratio stays; the names follow from the source and the size."""
    (source,) = write_pictures(tmp_path / "in", 1)
    written = media.make(Thumbnail(source=f"in/{source.name}", sizes=[64, 256], output_dir="out"), root)
    assert {path.name for path in written} == {f"{source.name}.64.webp", f"{source.name}.256.webp"}
    for path, size in ((path, int(path.name.split(".")[-2])) for path in written):
        with Image.open(path) as image:
            assert image.format == "WEBP"
            assert max(image.size) == size
            assert image.width / image.height == pytest.approx(960 / 640, rel=0.05)


def test_a_repeat_is_harmless_and_leaves_nothing_behind(root, tmp_path):
    """The second run replaces the files with the same ones; no temporary file stays."""
    write_pictures(tmp_path, 1)
    payload = Thumbnail(source="picture-000.jpg", sizes=[64, 64, 32], output_dir="out")
    media.make(payload, root)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    media.make(payload, root)
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert before == after
    assert len(after) == 2


def test_a_reader_never_sees_half_a_file(root, tmp_path):
    """While the job runs again and again, every file that can be opened is whole."""
    write_pictures(tmp_path, 1)
    payload = Thumbnail(source="picture-000.jpg", sizes=[512], output_dir="out")
    (target,) = media.make(payload, root)
    done = threading.Event()
    damaged = []

    def read():
        while not done.is_set():
            with Image.open(target) as image:
                try:
                    image.load()
                except OSError as error:
                    damaged.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            media.make(payload, root)
    finally:
        done.set()
        reader.join()
    assert damaged == []


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "CMYK", "I;16", "1"])
def test_every_kind_of_image_gets_a_thumbnail(root, tmp_path, mode):
    """Palettes, greys, 16 bits and printing colours are converted; transparency is kept."""
    picture = draw(3, (200, 100))
    image = Image.new(mode, (200, 100)) if mode == "I;16" else picture.convert(mode)
    image.save(tmp_path / "in.tiff")
    (path,) = media.make(Thumbnail(source="in.tiff", sizes=[50], output_dir="out"), root)
    with Image.open(path) as thumbnail:
        assert thumbnail.size == (50, 25)
        # WebP drops an alpha channel that is opaque all over; grey with alpha must at least be readable.
        thumbnail.load()


def test_a_photo_taken_upright_stays_upright(root, tmp_path):
    """The EXIF orientation is applied before the photo's data goes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(4, (300, 200)).save(tmp_path / "phone.jpg", exif=exif)
    (path,) = media.make(Thumbnail(source="phone.jpg", sizes=[60], output_dir="out"), root)
    with Image.open(path) as thumbnail:
        assert thumbnail.size == (40, 60)


def test_a_broken_image_is_permanent(root, tmp_path):
    """Cut off, flipped, no image at all, empty: none gets better by waiting, and none leaves a file."""
    for path in write_broken(tmp_path / "in"):
        with pytest.raises(Permanent, match="no readable image"):
            media.make(Thumbnail(source=f"in/{path.name}", sizes=[64], output_dir="out"), root)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_permanent(root, tmp_path):
    """So is a directory in its place."""
    (tmp_path / "directory").mkdir()
    for source in ("nowhere.jpg", "nowhere/at/all.jpg", "directory"):
        with pytest.raises(Permanent, match="no such file"):
            media.make(Thumbnail(source=source, sizes=[64]), root)


@pytest.mark.parametrize("path", ["../secret.jpg", "/etc/passwd", "in/../../secret.jpg", "link/secret.jpg", "a\0b"])
def test_a_path_cannot_leave_the_root(tmp_path, path):
    """Neither by dots, nor by an absolute path, nor through a symbolic link; as a source or as a target."""
    inside = tmp_path / "media"
    inside.mkdir()
    draw(5).save(tmp_path / "secret.jpg")
    draw(5).save(inside / "fine.jpg")
    (inside / "link").symlink_to(tmp_path)
    with pytest.raises(Permanent):
        media.make(Thumbnail(source=path, sizes=[64]), MediaRoot(inside))
    with pytest.raises(Permanent):
        media.make(Thumbnail(source="fine.jpg", sizes=[64], output_dir=path), MediaRoot(inside))


def test_a_decompression_bomb_is_refused_unopened(root, tmp_path):
    """A few bytes that claim 40,000 x 40,000 pixels are refused by their header; nothing is unpacked."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(Permanent, match=r"pixels|decompression bomb"):
        media.make(Thumbnail(source="bomb.png", sizes=[64]), root)
    draw(6).save(tmp_path / "large.png")
    with pytest.raises(Permanent, match="960 x 640 pixels are more than the 1000 allowed"):
        media.make(Thumbnail(source="large.png", sizes=[64]), MediaRoot(tmp_path, max_pixels=1000))


def test_a_failing_disk_is_transient(root, tmp_path):
    """The output directory cannot be made: perhaps a volume is not mounted yet."""
    write_pictures(tmp_path, 1)
    (tmp_path / "out").write_text("a file where a directory should be")
    with pytest.raises(Transient, match="cannot be written"):
        media.make(Thumbnail(source="picture-000.jpg", sizes=[64], output_dir="out"), root)


def test_a_full_disk_is_transient_and_leaves_no_part(root, tmp_path, monkeypatch):
    """No space left: the attempt fails, and the part that was written is gone."""
    write_pictures(tmp_path, 1)

    def no_space(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(media.os, "fsync", no_space)
    with pytest.raises(Transient, match="No space left"):
        media.make(Thumbnail(source="picture-000.jpg", sizes=[64], output_dir="out"), root)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("sizes", [[], [0], [-1], [100_000], list(range(8, 40))])
def test_senseless_sizes_are_refused_at_the_producer(sizes):
    """No sizes, none below 8, none above 4096, 16 at most."""
    with pytest.raises(ValidationError):
        Thumbnail(source="a.jpg", sizes=sizes)


def test_register_gives_the_app_a_plain_function(root, tmp_path):
    """A plain def runs in a thread, away from the event loop."""

    class App:
        registry = Registry()

        def handler(self, job_type):
            return lambda function: self.registry.register(job_type, function)

    app = App()
    media.register(app, root)
    (route,) = app.registry.select(["media.thumbnail"])
    assert not route.is_async
    write_pictures(tmp_path, 1)
    route.handler(Thumbnail(source="picture-000.jpg", sizes=[64]), None)
    assert (tmp_path / "thumbnails" / "picture-000.jpg.64.webp").exists()


def test_settings_name_what_is_missing(tmp_path):
    """The error names the variable."""
    with pytest.raises(SettingsError, match="MEDIA_ROOT"):
        MediaRoot.from_settings({})
    assert MediaRoot.from_settings({"MEDIA_ROOT": str(tmp_path)}).path == tmp_path
