"""What the jobs of a CSV import carry."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, Field, field_validator

CHUNK: Final = 100
"""Rows in one job."""


class ImportFile(BaseModel):
    """Which file; ``source`` is relative to the import's root.

    Without ``delimiter`` the header decides; a byte order mark beats ``encoding``. The same content under the same name
    is imported once, unless ``label`` differs.
    """

    source: Annotated[str, Field(min_length=1, max_length=1000)]
    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] | None = None
    encoding: str = "utf-8"
    label: Annotated[str, Field(max_length=200)] = ""

    @field_validator("encoding")
    @classmethod
    def _is_text(cls, encoding: str) -> str:
        try:
            "\n".encode(encoding)
        except (LookupError, UnicodeError):
            raise ValueError(f"'{encoding}' is no text encoding") from None
        return encoding


class Chunk(BaseModel):
    """A part of a file: the bytes from ``start`` to ``end``, which hash to ``digest``; ``row`` begins on ``line``."""

    import_id: str
    number: int
    source: str
    start: int
    end: int
    digest: str
    row: int
    line: int
    encoding: str
    delimiter: str
    columns: list[str]
