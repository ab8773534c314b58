"""Relays among rows that make no sense, beside relays that died or hang: each good row goes out, in its key's order."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, text, update

from producers.relay import LEASE
from store.engine import Database
from store.tables import outbox
from tests.faults.proxy import Proxy
from tests.integration.test_relay import arrived, commit, emptied, job_type_of, relaying, waiting
from tests.lab import Lab, until

pytestmark = [pytest.mark.machine, pytest.mark.timeout(300)]

LONG = "x" * 300
EVERYWHERE: dict[str, dict[str, Any]] = {
    "no job type": {"job_type": ""},
    "a job type that no frame holds": {"job_type": LONG},
    "a job id that no frame holds": {"job_id": LONG},
    "a correlation id that no frame holds": {"correlation_id": LONG},
    "a priority that is no byte": {"priority": 300},
    "a priority below zero": {"priority": -5},
    "headers that are a list": {"headers": "[1, 2]"},
    "headers that are a text": {"headers": '"x"'},
    "headers that are a number": {"headers": "5"},
    "headers that no frame holds": {"headers": f'{{"{LONG}": 1}}'},
    "a number that AMQP has not": {"headers": '{"a": 1e300, "b": 100000000000000000000000000000}'},
    "due beyond the ladder": {"due_at": "9999-12-31 23:59:59"},
}
POSTGRESQL: dict[str, dict[str, Any]] = {
    "due never": {"due_at": "infinity"},
    "due before all time": {"due_at": "4000-01-01 00:00:00 BC"},
}
SQLITE: dict[str, dict[str, Any]] = {
    "due at nonsense": {"due_at": "tomorrow"},
    "a body that is a text": {"body": "abc"},
    "headers that are no JSON": {"headers": "{"},
    "headers with half a character": {"headers": '{"a": "\\ud800"}'},
    "a priority that is a text": {"priority": "high"},
    "made at nonsense": {"created_at": "x"},
}


async def smuggle(database: Database, **columns: Any) -> None:
    """A row as another program, or a hand, may write it."""
    values = {
        "job_id": "smuggled",
        "job_type": "t",
        "body": b"{}",
        "origin": "enqueue",
        "created_at": "2026-01-01 00:00:00",
    }
    values |= columns
    casts = {"headers": "jsonb", "due_at": "timestamptz", "created_at": "timestamptz"} if database.is_postgresql else {}
    marks = ", ".join(f"CAST(:{name} AS {casts[name]})" if name in casts else f":{name}" for name in values)
    async with database.transaction() as connection:
        await connection.execute(text(f"INSERT INTO hareline_outbox ({', '.join(values)}) VALUES ({marks})"), values)


async def left(database: Database) -> list[Any]:
    async with database.reading() as connection:
        return list((await connection.execute(select(outbox.c.id, outbox.c.attempts, outbox.c.error))).all())


async def test_rows_that_make_no_sense_stay_with_their_reason_and_hold_up_nobody(lab: Lab, database: Database) -> None:
    job_type = await job_type_of(lab)
    wrong = EVERYWHERE | (POSTGRESQL if database.is_postgresql else SQLITE)
    ids = await commit(database, job_type, range(10))
    for columns in wrong.values():
        await smuggle(database, **{"job_type": job_type.name, **columns})
    ids += await commit(database, job_type, range(10, 20))
    async with relaying(lab.settings, database):

        async def all_tried() -> bool:
            rows = await left(database)
            return len(rows) == len(wrong) and all(row.attempts and row.error for row in rows)

        await until(all_tried, "the good ones are gone, and the others have their reasons")
        ids += await commit(database, job_type, range(20, 30))
        await until(lambda: _as_many(database, len(wrong)), "it still works")
    assert [job_id for job_id, _ in await arrived(lab, job_type)] == ids


async def _as_many(database: Database, number: int) -> bool:
    return await waiting(database) == number


async def test_a_row_that_is_refused_for_ever_is_tried_ever_more_slowly(lab: Lab, database: Database) -> None:
    """Also after thousands of times, which is more often than a power of two can be counted."""
    await smuggle(database, job_type="nobody.knows", ordering_key="k", attempts=5_000)
    await smuggle(database, job_type="nobody.knows", ordering_key="k")
    async with relaying(lab.settings, database):

        async def tried() -> bool:
            return [row.attempts for row in await left(database)] == [5_001, 0]

        await until(tried, "it was tried again, and what follows in its key was not")
        async with database.reading() as connection:
            retry_at = (await connection.execute(select(outbox.c.retry_at).order_by(outbox.c.id).limit(1))).scalar_one()
        assert 30 < (retry_at - datetime.now(UTC)).total_seconds() <= 61


async def lease_of(database: Database) -> datetime:
    """Until when the oldest row is somebody's."""
    async with database.reading() as connection:
        found = await connection.execute(select(outbox.c.claimed_until).order_by(outbox.c.id).limit(1))
        until_when: datetime = found.scalar_one()
        return until_when


async def claimed(database: Database, number: int) -> None:
    async def all_claimed() -> bool:
        async with database.reading() as connection:
            rows = (await connection.execute(select(outbox.c.claimed_by))).scalars().all()
        return sum(by is not None for by in rows) == number

    await until(all_claimed, f"{number} rows are claimed")


@pytest.mark.kills
async def test_what_a_killed_relay_had_in_hand_goes_out_within_seconds(lab: Lab, database_url: str) -> None:
    """`hareline relay` hangs at a stalled broker with its rows, and is killed. They keep their ids."""
    job_type = await job_type_of(lab)
    database = Database(database_url)
    async with Proxy(lab.settings.broker_urls[0]) as proxy:
        environment = lab.environment("", HARELINE_DATABASE_URL=database_url, HARELINE_BROKER_URL=proxy.url)
        program = (sys.executable, "-m", "hareline", "relay")
        process = await asyncio.create_subprocess_exec(*program, env=environment)
        try:
            await commit(database, job_type, range(1))
            await emptied(database)  # it works
            proxy.stall(new=True)
            ids = await commit(database, job_type, range(1, 100))
            await claimed(database, 99)
            async with relaying(lab.settings, database) as other:
                process.kill()
                await process.wait()
                began = time.monotonic()
                await emptied(database, within=4 * LEASE)
                print(f"after {time.monotonic() - began:.1f} s")
                assert other.relayed == 99
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    got = Counter(job_id for job_id, _ in await arrived(lab, job_type))
    assert set(ids) <= set(got)
    await database.close()


async def test_a_slow_relay_keeps_its_rows(lab: Lab, database: Database) -> None:
    """At a stalled broker for several leases, beside an idle relay: each row goes out once, and by the slow one."""
    job_type = await job_type_of(lab)
    async with Proxy(lab.settings.broker_urls[0]) as proxy:
        slow_settings = replace(lab.settings, broker_urls=(proxy.url,), publish_timeout=120.0)
        async with relaying(slow_settings, database, lease=1.0) as slow:
            await commit(database, job_type, range(1))
            await emptied(database)
            proxy.stall()
            ids = await commit(database, job_type, range(100), ordering_key="k")
            await claimed(database, 100)
            async with relaying(lab.settings, database, lease=1.0) as idle:
                for _ in range(4):
                    before = await lease_of(database)

                    async def renewed(before: datetime = before) -> bool:
                        return await lease_of(database) > before

                    await until(renewed, "the lease is renewed")
                assert await waiting(database) == 100
                proxy.resume()
                await emptied(database)
                assert (slow.relayed, idle.relayed) == (101, 0)
    assert [job_id for job_id, _ in await arrived(lab, job_type)][1:] == ids


async def test_a_relay_that_has_lost_its_rows_sends_no_more_of_their_key(lab: Lab, database: Database) -> None:
    """Its machine slept, say: what was on its way comes, and the rest in the order that the new owner gives it."""
    job_type = await job_type_of(lab)
    async with Proxy(lab.settings.broker_urls[0]) as proxy:
        settings = replace(lab.settings, broker_urls=(proxy.url,), publish_timeout=120.0)
        async with relaying(settings, database, lease=1.0) as old:
            await commit(database, job_type, range(1))
            await emptied(database)
            proxy.stall()
            await commit(database, job_type, range(1, 51), ordering_key="k")
            await claimed(database, 50)
            async with database.transaction() as connection:
                taken = {"claimed_by": "another", "claimed_until": datetime(2100, 1, 1, tzinfo=UTC)}
                await connection.execute(update(outbox).values(taken))
            lost = time.monotonic()
            await until(lambda: time.monotonic() > lost + 1.0, "its lease is over")
            proxy.resume()
            await until(lambda: old.relayed == 2, "what was on its way has come")
            await commit(database, job_type, range(60, 61))
            await until(lambda: old.relayed == 3, "it goes on with others")
            async with database.transaction() as connection:
                assert len((await connection.execute(select(outbox))).all()) == 49
                await connection.execute(outbox.delete())
    assert [n for _, n in await arrived(lab, job_type)] == [0, 1, 60]
