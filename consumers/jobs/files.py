"""Where jobs read and write files: a local directory, or whatever fsspec has a driver for (S3, GCS, SFTP, ...).

A message names a file by a path relative to the root. The root and what opens it are in the settings, so that no
message can reach another place, and none carries a secret.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from consumers.outcome import Permanent, Transient
from topology.errors import SettingsError

_MARKS_OF_CONTENT: Final = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
"""What file systems call the thing that changes when a file does."""


@dataclass(frozen=True)
class FileRoot:
    """The directory of ``url``, which is a local path or an fsspec URL; ``options`` are its driver's, credentials too.

    Every method blocks, as fsspec does: call them in a thread. Permanent: the file is missing, or its path leads out
    of the root. Transient: the disk or the service behind it failed.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def filesystem(self) -> Any:
        """The fsspec file system. Raises SettingsError for a URL that no driver knows."""
        return self._opened()[0]

    def inside(self, relative: str) -> str:
        """The driver's path of ``relative``. Raises Permanent where it would lead out of the root."""
        filesystem, base = self._opened()
        parts = relative.split("/")
        if not relative or "\0" in relative or "\\" in relative or any(part in {"", ".", ".."} for part in parts):
            raise Permanent(f"'{relative}' is not a path inside the root: names joined by /, none empty, no . or ..")
        path = f"{base.rstrip('/')}/{relative}"
        if isinstance(filesystem, LocalFileSystem) and not _stays(Path(base), Path(path)):
            raise Permanent(f"'{relative}' lies outside the root")
        return path

    def version(self, relative: str) -> str:
        """Changes when the file does, as far as its storage tells: size, and ETag or time of change."""
        path = self.inside(relative)
        filesystem = self.filesystem
        with _told(relative):
            filesystem.invalidate_cache(path)  # object stores remember what they once listed
            about = filesystem.info(path)
        if about.get("type") == "directory":
            raise Permanent(f"{relative} is a directory")
        marks = [f"{name}={about[name]}" for name in _MARKS_OF_CONTENT if about.get(name) is not None]
        return " ".join([f"size={about.get('size')}", *marks])

    def size(self, relative: str) -> int | None:
        """Bytes, or None where the storage does not tell; None too where there is no such file."""
        path = self.inside(relative)
        try:
            with _told(relative):
                self.filesystem.invalidate_cache(path)
                found: int | None = self.filesystem.info(path).get("size")
        except Permanent:
            return None
        return found

    @contextmanager
    def open(self, relative: str) -> Iterator[Any]:
        """The file, open for reading bytes, never as a whole in memory."""
        path = self.inside(relative)
        with _told(relative), self.filesystem.open(path, "rb") as file:
            yield file

    def read(self, relative: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes from ``start`` up to ``end``; all of them without."""
        path = self.inside(relative)
        with _told(relative):
            content: bytes = self.filesystem.cat_file(path, start=start, end=end)
        return content

    def write(self, relative: str, content: bytes) -> None:
        """All or nothing: written under another name beside it, then moved. A reader sees the old file or the new one.

        An object store has no half objects, but its moves are copies: there the object is put at once.
        """
        path = self.inside(relative)
        filesystem = self.filesystem
        parent, _, name = path.rpartition("/")
        with _told(relative, writing=True):
            filesystem.makedirs(parent, exist_ok=True)
            if isinstance(filesystem, LocalFileSystem):
                _write_local(Path(path), content)
                return
            if _puts_whole_objects(filesystem):
                filesystem.pipe_file(path, content)
                return
            part = f"{parent}/.{name}.{uuid.uuid4().hex}.part"
            try:
                filesystem.pipe_file(part, content)
                filesystem.mv(part, path)
            except BaseException:
                if filesystem.exists(part):
                    filesystem.rm_file(part)
                raise

    def _opened(self) -> tuple[Any, str]:
        try:
            filesystem, base = fsspec.core.url_to_fs(self.url, **self.options)
        except (ValueError, ImportError) as error:
            raise SettingsError(f"no driver opens the file root: {error}") from error
        return filesystem, str(base)


def _puts_whole_objects(filesystem: Any) -> bool:
    """S3, GCS, Azure and the like: an upload that breaks off leaves nothing."""
    protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
    return bool(protocols & {"s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "memory"})


def _stays(base: Path, path: Path) -> bool:
    """A symbolic link can lead out of the root, too."""
    try:
        return path.resolve().is_relative_to(base.resolve())
    except (ValueError, RuntimeError, OSError):
        return False


def _write_local(target: Path, content: bytes) -> None:
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with an empty file
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def _told(relative: str, *, writing: bool = False) -> Iterator[None]:
    """What the storage says of the file, as an outcome. Where a file cannot be written, a volume may be missing yet."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) and not writing:
            raise Permanent(f"{relative}: no such file") from error
        raise Transient(f"{relative}: {str(error) or type(error).__name__}") from error
