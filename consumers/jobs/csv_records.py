"""Reads CSV as a stream of records that know where in the file they stand, so that a part of it can be read alone.

Pure: bytes in, records out. The quoting is that of the standard library's ``csv``, strict, so that where one record
ends and the next begins is the same for who splits a file and for who reads a part.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from consumers.outcome import Permanent

LONGEST_LINE: Final = 1 << 20
"""Bytes. A longer line is no line of a CSV file: perhaps it has other line ends, or is no text."""
_BLOCK: Final = 1 << 18
_QUOTED: Final = re.compile(r'"[^"]*"')
_DELIMITERS: Final = ",;\t|"
_BOMS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class Reads(Protocol):
    """A file of bytes."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the bytes become fields. ``bom`` is how many bytes stand before the text."""

    encoding: str
    delimiter: str
    bom: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One record: ``fields``, or why it has none (``flaw``).

    It begins on ``line``, from 1, and the line after it is ``next_line``. ``content`` is all bytes from the end of the
    record before up to the offset ``end``: blank lines, too.
    """

    fields: Sequence[str]
    flaw: str | None
    content: bytes
    end: int
    line: int
    next_line: int


def find_dialect(start: bytes, encoding: str, delimiter: str | None) -> Dialect:
    """From the first bytes of a file: a byte order mark beats ``encoding``.

    Without ``delimiter`` it is the one of ``, ; tab |`` that gives the first line most fields.
    """
    bom = 0
    for mark, name in _BOMS:
        if start.startswith(mark):
            encoding, bom = name, len(mark)
            break
    if codecs.lookup(encoding).name == "utf-8-sig":
        encoding = "utf-8"
    if codecs.lookup(encoding).name in {"utf-16", "utf-32"}:
        raise Permanent(f"the file has no byte order mark: write {encoding}-le or {encoding}-be for its encoding")
    if delimiter is None:
        text = start[bom:].decode(encoding, errors="replace").lstrip("\r\n")
        first = text.splitlines()[0] if text else ""
        delimiter = max(_DELIMITERS, key=_QUOTED.sub("", first).count)
    return Dialect(encoding, delimiter, bom)


def records(file: Reads, dialect: Dialect, *, start: int, line: int = 1) -> Iterator[Record]:
    """The records of ``file``, which is read from where it is: at ``start``, a record's first byte.

    Blank lines are no records. Permanent: a line that never ends.
    """
    lines = _Lines(file, dialect.encoding, start)
    reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True)
    while True:
        flaw = None
        before = len(lines.taken)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fields, flaw = [], str(error)
        if not fields and not flaw:
            continue  # a blank line: it counts, and belongs to the record after it
        following = line + len(lines.taken)
        yield Record(fields, lines.flaw or flaw, b"".join(lines.taken), lines.offset, line + before, following)
        line = following
        lines.taken, lines.flaw = [], None


class _Lines:
    """Decoded lines; what was taken since the last record, and the offset of the byte after it."""

    def __init__(self, file: Reads, encoding: str, start: int) -> None:
        self.offset = start
        self.taken: list[bytes] = []
        self.flaw: str | None = None
        self._encoding = encoding
        self._lines = _split(file, "\n".encode(encoding))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.offset += len(line)
        self.taken.append(line)
        try:
            return line.decode(self._encoding)
        except UnicodeDecodeError as error:
            self.flaw = f"not {self._encoding}: {error.reason} ({line[error.start : error.end].hex(' ')})"
            return line.decode(self._encoding, errors="replace")


def _split(file: Reads, newline: bytes) -> Iterator[bytes]:
    """Lines with their ends. In UTF-16 the bytes of a newline only count where a character begins."""
    width = len(newline)
    held = b""
    while block := file.read(_BLOCK):
        held += block
        begin = 0
        place = held.find(newline)
        while place >= 0:
            if place % width == 0:  # what is held begins with a character
                yield held[begin : place + width]
                begin = place + width
                place = held.find(newline, begin)
            else:
                place = held.find(newline, place + 1)
        held = held[begin:]
        if len(held) > LONGEST_LINE:
            raise Permanent(f"a line has more than {LONGEST_LINE} bytes: is this a CSV file, with line ends?")
    if held:
        yield held


def header(fields: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The names of the columns. Permanent: an empty or a double name, or one of ``wanted`` that is missing."""
    names = [name.strip() for name in fields]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise Permanent(f"the header has '{double[0]}' twice" if double[0] else "the header has columns without a name")
    missing = [name for name in wanted if name not in names]
    if missing:
        raise Permanent(f"the header has no column '{missing[0]}': it has {', '.join(names)[:300]}")
    return names


def as_mapping(columns: Sequence[str], record: Record) -> dict[str, Any]:
    """The record by column. Raises ValueError for one that cannot be read, or has too few or too many fields."""
    if record.flaw:
        raise ValueError(record.flaw)
    if len(record.fields) != len(columns):
        raise ValueError(f"{len(record.fields)} fields where the header has {len(columns)}")
    return dict(zip(columns, record.fields, strict=True))
