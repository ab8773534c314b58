"""Files below a root, wherever fsspec finds them: never outside, and never half written."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from consumers.jobs.files import FileRoot
from consumers.outcome import Permanent, Transient
from topology.errors import SettingsError


@pytest.fixture(params=["local", "url", "wrapped", "objects"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> FileRoot:
    """A path; a URL; a file system that moves what is written; one that has whole objects only."""
    if request.param == "wrapped":
        return FileRoot("dir://", {"path": str(tmp_path), "target_protocol": "file"})
    urls = {"local": str(tmp_path), "url": f"file://{tmp_path}", "objects": f"memory://{uuid.uuid4().hex}"}
    return FileRoot(urls[request.param])


def test_what_is_written_is_read(root: FileRoot, tmp_path: Path) -> None:
    root.write("a/b/c.txt", b"old")
    before = root.version("a/b/c.txt")
    root.write("a/b/c.txt", b"newer")
    assert root.read("a/b/c.txt") == b"newer"
    assert root.read("a/b/c.txt", 1, 3) == b"ew"
    assert root.size("a/b/c.txt") == 5
    assert root.version("a/b/c.txt") != before
    with root.open("a/b/c.txt") as file:
        file.seek(2)
        assert file.read(10) == b"wer"
    assert not list(tmp_path.rglob("*.part"))


def test_what_is_missing_is_permanent(root: FileRoot) -> None:
    assert root.size("nowhere.txt") is None
    for ask in (root.read, root.version):
        with pytest.raises(Permanent, match="no such file"):
            ask("nowhere.txt")
    with pytest.raises(Permanent, match="no such file"), root.open("nowhere.txt"):
        pass


@pytest.mark.parametrize("path", ["", "/", "../x", "a/../../x", "a//b", "./a", "a\\..\\b", "a\0b", "a/.."])
def test_no_path_leads_out(root: FileRoot, path: str) -> None:
    with pytest.raises(Permanent):
        root.write(path, b"x")
    with pytest.raises(Permanent):
        root.read(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = FileRoot(str(tmp_path))
    root.write("a.txt", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Transient, match="No space left"):
        root.write("a.txt", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"old")]


def test_an_unknown_storage_is_said_and_its_secret_is_not() -> None:
    root = FileRoot("nosuch://bucket", {"secret": "hush-hush"})
    assert "hush" not in repr(root)
    with pytest.raises(SettingsError, match="nosuch"):
        root.read("a.txt")
