"""An import for tests, in child processes too. Who finds the file that a variable names removes it and dies there."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from consumers.jobs.csv_import import BadRow, CsvImport
from consumers.jobs.files import FileRoot
from hareline import App
from topology.settings import Settings

metadata = MetaData()
people = Table(
    "people",
    metadata,
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
)


class Person(BaseModel):
    n: Annotated[int, Field(gt=0)]
    name: Annotated[str, Field(max_length=100)]
    note: str | None = None


def die(variable: str) -> None:
    fatal = os.environ.get(variable)
    if fatal and Path(fatal).exists():
        Path(fatal).unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class Files(FileRoot):
    """Asked for the version once at the start of a run, and once before each batch of 20 chunks is enqueued."""

    def version(self, relative: str) -> str:
        asked = getattr(self, "_asked", 0) + 1
        object.__setattr__(self, "_asked", asked)
        if asked == 3:
            die("CSV_KILL_SPLITTER")
        return super().version(relative)


def build(name: str, files: FileRoot, settings: Settings | None = None) -> tuple[App, CsvImport[Person]]:
    case = CsvImport(name, Person, files, settings=settings)
    app = App(job_types=case.job_types)

    @case.saves(app)
    async def save(connection: AsyncConnection, rows: Sequence[Person]) -> None:
        if any(row.name == "forbidden" for row in rows):
            raise BadRow("nobody may be called that", field="name")
        await connection.execute(insert(people), [row.model_dump(include={"n", "name"}) for row in rows])
        if any(row.n == 777 for row in rows):
            die("CSV_KILL_WORKER")

    return app, case


if "CSV_NAME" in os.environ:
    app, _ = build(os.environ["CSV_NAME"], Files(os.environ["CSV_ROOT"]))
