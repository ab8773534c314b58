"""Many rows as one bound value on PostgreSQL: less than half the time that as many bound values take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from sqlalchemy import JSON, Select, Table, Text, bindparam, cast, func, select, text
from sqlalchemy import column as named


def rowset(table: Table, names: Sequence[str]) -> Select[Any]:
    """Selects the columns ``names`` of the rows that are bound as ``rows``; `as_rows` makes that value."""
    record = text(f"null::{table.name}")
    source = func.json_populate_recordset(record, cast(bindparam("rows", type_=Text), JSON)).table_valued(
        *(named(name, table.c[name].type) for name in names), name="told"
    )
    return select(*(source.c[name] for name in names))


def as_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as one JSON text. Bytes must have gone through `hexed`."""
    return to_json(rows).decode()


def hexed(value: bytes) -> str:
    """Bytes as PostgreSQL reads them from text."""
    return "\\x" + value.hex()
