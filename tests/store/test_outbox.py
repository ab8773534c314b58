"""Jobs in the caller's own transaction: committed with it, rolled back with it, known by their key; no broker."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection as project_connection
from django.db import transaction
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQL
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite
from pydantic import BaseModel
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from hareline import BatchError, BlockingProducer, JobType, OptionInvalid, Producer, Settings
from store.engine import Database, blocking_engine
from store.tables import keys, outbox

pytestmark = pytest.mark.machine

NOWHERE = Settings(broker_urls=("amqp://127.0.0.1:1/",), report=False)


class Report(BaseModel):
    month: int = 1


report = JobType("report.build", Report)
urgent = JobType("report.urgent", Report, priority=True)


class Undone(Exception):
    """Rolls a transaction back."""


async def rows_of(database: Database, table: Any = outbox) -> list[Any]:
    async with database.reading() as connection:
        return list((await connection.execute(select(table))).all())


async def test_a_job_commits_with_its_transaction(database: Database) -> None:
    """Also on a producer that was never opened, with no broker anywhere."""
    due = datetime.now(UTC) + timedelta(hours=1)
    async with database.transaction() as connection:
        job_id = await Producer(NOWHERE).enqueue(
            urgent, Report(month=5), priority=9, at=due, correlation_id="c", connection=connection, ordering_key="k"
        )
    (row,) = await rows_of(database)
    assert (row.job_id, row.job_type, json.loads(row.body), row.origin) == (
        job_id,
        urgent.name,
        {"month": 5},
        "enqueue",
    )
    assert (row.priority, row.correlation_id, row.ordering_key, row.attempts) == (9, "c", "k", 0)
    assert abs(row.due_at - due) < timedelta(seconds=1)
    assert job_id.existed is None


async def test_a_job_is_rolled_back_with_its_transaction(database: Database) -> None:
    with pytest.raises(Undone):
        async with database.transaction() as connection:
            await Producer(NOWHERE).enqueue(report, Report(), key="a", connection=connection)
            raise Undone
    assert await rows_of(database) == []
    assert await rows_of(database, keys) == []


async def test_a_key_makes_one_job(database: Database) -> None:
    found = []
    for _ in range(3):
        async with database.transaction() as connection:
            found.append(await Producer(NOWHERE).enqueue(report, Report(), key="may", connection=connection))
    assert [job_id.existed for job_id in found] == [False, True, True]
    assert set(found) == {report.id_for_key("may")}
    assert len(await rows_of(database)) == 1


async def test_an_async_session(database: Database) -> None:
    async with AsyncSession(database.engine) as session, session.begin():
        await Producer(NOWHERE).enqueue(report, Report(), connection=session)
    async with AsyncSession(database.engine) as session:
        await Producer(NOWHERE).enqueue(report, Report(), connection=session)  # and no commit
    assert len(await rows_of(database)) == 1


async def test_many_are_written_or_none(database: Database) -> None:
    async with database.transaction() as connection:
        ids = await Producer(NOWHERE).enqueue_many(report, [Report()] * 1200, connection=connection)
        with pytest.raises(BatchError) as caught:
            await Producer(NOWHERE).enqueue_many(report, [Report(), {"month": "x"}], connection=connection)
    assert (caught.value.accepted, [index for index, _ in caught.value.failed]) == ([], [1])
    assert [row.job_id for row in await rows_of(database)] == ids


async def test_the_wrong_kind_of_connection_is_named(database: Database) -> None:
    with pytest.raises(OptionInvalid, match="AsyncConnection"):
        await Producer(NOWHERE).enqueue(report, Report(), connection=object())
    with BlockingProducer(NOWHERE) as producer:
        async with database.transaction() as connection:
            with pytest.raises(OptionInvalid, match="Producer takes"):
                producer.enqueue(report, Report(), connection=connection)
        with pytest.raises(OptionInvalid, match="connection="):
            producer.enqueue(report, Report(), ordering_key="k")
    with pytest.raises(OptionInvalid, match="connection="):
        await Producer(NOWHERE).enqueue(report, Report(), ordering_key="k")


def test_blocking_connections_and_sessions(database_url: str) -> None:
    engine = blocking_engine(Database(database_url).url)
    with BlockingProducer(NOWHERE) as producer:
        with engine.begin() as connection:
            producer.enqueue(report, Report(), connection=connection)
        with Session(engine) as session, session.begin():
            assert producer.enqueue(report, Report(), key="a", connection=session).existed is False
        with Session(engine) as session:
            producer.enqueue_many(report, [Report()] * 3, connection=session)
            session.rollback()
    with engine.connect() as connection:
        assert len(connection.execute(select(outbox)).all()) == 2
    engine.dispose()


@pytest.fixture
def django_connection(database_url: str) -> Any:
    """Django itself, on the same database."""
    url = Database(database_url).url
    options = {
        "NAME": url.database, "USER": url.username or "", "PASSWORD": url.password or "", "HOST": url.host or "",
        "PORT": str(url.port or ""), "AUTOCOMMIT": True, "ATOMIC_REQUESTS": False, "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": False, "OPTIONS": {}, "TIME_ZONE": None, "TEST": {},
    }  # fmt: skip
    connection: Any = (PostgreSQL if url.get_backend_name() == "postgresql" else SQLite)(options, "default")
    yield connection
    connection.close()


@pytest.fixture(scope="session", autouse=True)
def django_settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as small as can be, with a SQLite file."""
    path = tmp_path_factory.mktemp("django") / "project.db"
    engine = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}
    settings.configure(DATABASES={"default": engine}, USE_TZ=True)
    return path


def test_djangos_connections(django_connection: Any, database_url: str) -> None:
    """Written by Django, read by SQLAlchemy: the same values on both databases."""
    due = datetime.now(UTC) + timedelta(hours=1)
    producer = BlockingProducer(NOWHERE)
    ids = [producer.enqueue(report, Report(), at=due, key="a", connection=django_connection) for _ in range(2)]
    producer.enqueue_many(report, [Report()] * 3, connection=django_connection, ordering_key="k")
    assert [job_id.existed for job_id in ids] == [False, True]
    engine = blocking_engine(Database(database_url).url)
    with engine.connect() as reading:
        first, *others = reading.execute(select(outbox).order_by(outbox.c.id)).all()
    engine.dispose()
    assert (first.job_id, json.loads(first.body), first.headers) == (ids[0], {"month": 1}, None)
    assert abs(first.due_at - due) < timedelta(seconds=1)
    assert abs(first.created_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert [row.ordering_key for row in others] == ["k"] * 3


def test_djangos_atomic(sqlite_template: Path, django_settings: Path) -> None:
    """``transaction.atomic`` commits the job with the rest, or neither."""
    shutil.copy(sqlite_template, django_settings)
    producer = BlockingProducer(NOWHERE)
    with project_connection.cursor() as cursor:
        cursor.execute("CREATE TABLE shop_order (id INTEGER PRIMARY KEY)")
    with transaction.atomic():
        project_connection.cursor().execute("INSERT INTO shop_order VALUES (1)")
        kept = producer.enqueue(report, Report(), key="one", connection=project_connection)
    with pytest.raises(Undone), transaction.atomic():
        project_connection.cursor().execute("INSERT INTO shop_order VALUES (2)")
        producer.enqueue(report, Report(), key="two", connection=project_connection)
        raise Undone
    project_connection.close()
    engine = blocking_engine(Database(f"sqlite:///{django_settings}").url)
    with engine.connect() as reading:
        assert [row.job_id for row in reading.execute(select(outbox))] == [kept]
        assert [row.job_id for row in reading.execute(select(keys))] == [kept]
        assert reading.execute(text("SELECT id FROM shop_order")).scalars().all() == [1]
    engine.dispose()
