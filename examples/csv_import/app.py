"""Imports customers from CSV files: a hundred rows to a job, bad rows kept, every good row in the table once.

export HARELINE_APP=examples.csv_import.app:app HARELINE_DATABASE_URL=sqlite:////tmp/customers.db CSV_ROOT=/tmp/imports
hareline db upgrade && python -m examples.csv_import prepare
hareline topology apply
hareline worker 'customers.*' --concurrency 10 &
mkdir -p /tmp/imports
python -m examples.csv_import generate 100000 --bad 500 > /tmp/imports/customers.csv
hareline enqueue customers.import '{"source": "customers.csv"}'
python -m examples.csv_import progress --wait
python -m examples.csv_import errors
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated

from pydantic import BaseModel, EmailStr, Field
from sqlalchemy import Column, Date, Integer, MetaData, Table, Text, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from consumers.jobs.csv_import import BadRow, CsvImport
from consumers.jobs.files import FileRoot
from hareline import App, Settings

metadata = MetaData()
customers = Table(
    "customers",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("email", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("country", Text, nullable=False),
    Column("born", Date),
)


class Customer(BaseModel):
    """A row of the file. An empty field counts as not given."""

    number: Annotated[int, Field(gt=0, lt=2**31)]
    email: EmailStr
    name: Annotated[str, Field(max_length=200)]
    country: Annotated[str, Field(pattern="^[A-Z]{2}$")] = "DE"
    born: date | None = None


files = FileRoot(Settings.from_env().extra.get("CSV_ROOT", "."))  # or s3://bucket/imports, with options=
imported = CsvImport("customers", Customer, files)
app = App(job_types=imported.job_types)


@imported.saves(app)
async def save(connection: AsyncConnection, rows: Sequence[Customer]) -> None:
    """Writes up to a hundred rows. Where the table or a rule refuses one, Hareline finds out which, and keeps it."""
    for row in rows:
        if row.country == "XX":
            raise BadRow("we have no tax rules for this country", field="country")
    await connection.execute(insert(customers), [row.model_dump() for row in rows])
