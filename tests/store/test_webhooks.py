"""Webhook deliveries in the store, on both databases: one key, one job, whoever comes at the same time."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from store.engine import Database
from store.outbox import OutboxRow
from store.retention import Retention, clean
from store.tables import outbox, webhooks
from store.webhooks import RETENTION, Arrival, Kept, accept, accept_new, find
from topology.envelope import new_id
from topology.errors import NotFound
from topology.settings import Settings

pytestmark = pytest.mark.machine

DAYS = Retention.of(Settings())

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)


def arrival(
    key: str = "k", fingerprint: str = "f", source: str = "shop", body: bytes = b"{}", rows: int = 1
) -> Arrival:
    started = [OutboxRow(job_id=new_id(), job_type="order.created", body=body, origin="webhook") for _ in range(rows)]
    first = started[0]
    return Arrival(new_id(), source, key, fingerprint, "order.created", first.job_id, first.job_type, tuple(started))


async def accepted(database: Database, *arrivals: Arrival, now: datetime = NOW) -> list[Kept]:
    async with database.transaction() as connection:
        return await accept(connection, arrivals, now)


async def rows(database: Database, table: Any) -> list[Any]:
    async with database.reading() as connection:
        return list((await connection.execute(select(table))).all())


async def test_the_first_is_new_and_a_repeat_has_its_id(database: Database) -> None:
    first = arrival()
    assert await accepted(database, first) == [Kept(first.webhook_id, "new")]
    assert await accepted(database, arrival()) == [Kept(first.webhook_id, "repeat")]
    assert await accepted(database, arrival(fingerprint="g")) == [Kept(first.webhook_id, "conflict")]
    elsewhere = arrival(source="bank")
    assert await accepted(database, elsewhere) == [Kept(elsewhere.webhook_id, "new")]
    assert {row.job_id for row in await rows(database, outbox)} == {first.started_id, elsewhere.started_id}


async def test_many_at_once_each_have_their_own_fate(database: Database) -> None:
    old = arrival("old")
    await accepted(database, old)
    several = [arrival("b"), arrival("old"), arrival("a"), arrival("b"), arrival("b", "other"), arrival("old", "x")]
    assert await accepted(database, *several) == [
        Kept(several[0].webhook_id, "new"),
        Kept(old.webhook_id, "repeat"),
        Kept(several[2].webhook_id, "new"),
        Kept(several[0].webhook_id, "repeat"),
        Kept(several[0].webhook_id, "conflict"),
        Kept(old.webhook_id, "conflict"),
    ]
    assert await accepted(database) == []
    assert len(await rows(database, outbox)) == len(await rows(database, webhooks)) == 3


async def test_two_hundred_at_the_same_time_start_one_job(database: Database) -> None:
    kept = await asyncio.gather(*(accepted(database, arrival()) for _ in range(200)))
    assert Counter(one[0].fate for one in kept) == {"new": 1, "repeat": 199}
    assert len({one[0].webhook_id for one in kept}) == 1
    assert len(await rows(database, outbox)) == 1


async def test_batches_that_share_keys_do_not_block_each_other_for_ever(database: Database) -> None:
    keys = [f"k{number}" for number in range(20)]
    batches = [[arrival(key) for key in (keys if turn % 2 else reversed(keys))] for turn in range(20)]
    kept = await asyncio.gather(*(accepted(database, *batch) for batch in batches))
    assert Counter(one.fate for batch in kept for one in batch) == {"new": 20, "repeat": 380}
    assert len(await rows(database, outbox)) == 20


async def test_a_rolled_back_delivery_never_was(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:
            await accept(connection, [arrival()], NOW)
            raise ZeroDivisionError
    assert await rows(database, outbox) == await rows(database, webhooks) == []
    assert (await accepted(database, arrival()))[0].fate == "new"


async def test_a_key_is_new_again_when_it_has_expired(database: Database) -> None:
    first, again, later = arrival(), arrival(), arrival(fingerprint="g")
    await accepted(database, first)
    end = NOW + timedelta(seconds=RETENTION)
    assert (await accepted(database, again, now=end - timedelta(seconds=1)))[0].fate == "repeat"
    assert await accepted(database, later, now=end) == [Kept(later.webhook_id, "new")]
    assert (await accepted(database, arrival(fingerprint="g"), now=end))[0] == Kept(later.webhook_id, "repeat")
    assert len(await rows(database, outbox)) == 2


async def test_a_delivery_is_found_by_its_source_and_id(database: Database) -> None:
    first = arrival()
    await accepted(database, first)
    async with database.reading() as connection:
        found = await find(connection, "shop", first.webhook_id)
        assert (found.event, found.job_id, found.received_at) == ("order.created", first.started_id, NOW)
        for wrong in (("bank", first.webhook_id), ("shop", "x")):
            with pytest.raises(NotFound):
                await find(connection, *wrong)


async def test_cleaning_removes_what_has_expired(database: Database) -> None:
    await accepted(database, arrival("old"), now=NOW - timedelta(days=8))
    await accepted(database, arrival("young"), now=NOW - timedelta(days=6))
    assert (await clean(database, DAYS, clock=lambda: NOW))["webhooks"] == 1
    assert [row.idempotency_key for row in await rows(database, webhooks)] == ["young"]


async def test_a_saga_that_begins_with_parallel_steps_has_all_its_rows_written(database: Database) -> None:
    several = arrival(rows=3)
    (kept,) = await accepted(database, several)
    assert kept.fate == "new"
    assert {row.job_id for row in await rows(database, outbox)} == {row.job_id for row in several.rows}


async def accepted_new(database: Database, *arrivals: Arrival, now: datetime = NOW) -> set[str]:
    async with database.statements() as connection:
        return await accept_new(connection, arrivals, now)


async def test_one_statement_takes_what_is_new_and_leaves_the_others(postgresql: Database) -> None:
    old = arrival("old")
    await accepted(postgresql, old)
    several = [arrival("b"), arrival("old"), arrival("a"), arrival("b"), arrival("old", "x")]
    new = {several[0].webhook_id, several[2].webhook_id}
    assert await accepted_new(postgresql, *several) == new
    assert await accepted_new(postgresql, *several) == set()
    assert Counter(one.fate for one in await accepted(postgresql, *several)) == {"repeat": 4, "conflict": 1}
    assert len(await rows(postgresql, outbox)) == len(await rows(postgresql, webhooks)) == 3


async def test_one_statement_writes_what_the_transaction_writes(postgresql: Database) -> None:
    full = OutboxRow(
        job_id="j", job_type="order.created", body=b'{"a": "\x00\xff"}', origin="webhook", priority=5, due_at=NOW,
        correlation_id="c", headers={"x": '\u00e9 \\ " {}', "n": 1}, ordering_key="o", group_name="g",
    )  # fmt: skip
    bare = arrival("bare").rows[0]
    for number, take in enumerate((accepted, accepted_new)):
        given = [
            Arrival(f"{number}-{key}", f"shop {number}", key, "f", event, row.job_id, row.job_type, (row,))
            for key, event, row in (("a,{}", "order", full), ("b", None, bare))
        ]
        await take(postgresql, *given)

    def told(row: Any, *own: str) -> dict[str, Any]:
        return {name: value for name, value in row._mapping.items() if name not in own}

    first, second, third, fourth = (told(row, "id", "created_at") for row in await rows(postgresql, outbox))
    assert (first, second) == (third, fourth)
    kept = {row.webhook_id: told(row, "webhook_id", "source") for row in await rows(postgresql, webhooks)}
    assert kept["0-a,{}"] == kept["1-a,{}"]
    assert kept["0-b"] == kept["1-b"]


async def test_one_statement_takes_a_key_whose_time_is_over(postgresql: Database) -> None:
    await accepted(postgresql, arrival())
    later = NOW + timedelta(seconds=RETENTION)
    assert await accepted_new(postgresql, arrival(), now=later - timedelta(seconds=1)) == set()
    again = arrival(fingerprint="g")
    assert await accepted_new(postgresql, again, now=later) == {again.webhook_id}
    assert (await accepted(postgresql, arrival(fingerprint="g"), now=later)) == [Kept(again.webhook_id, "repeat")]


async def test_one_of_many_statements_and_transactions_has_the_key(postgresql: Database) -> None:
    arrivals = [arrival() for _ in range(100)]
    takes = [accepted_new(postgresql, one) if n % 2 else accepted(postgresql, one) for n, one in enumerate(arrivals)]
    fates = await asyncio.gather(*takes)
    new = [one for one in fates if one and (isinstance(one, set) or one[0].fate == "new")]
    assert len(new) == len(await rows(postgresql, outbox)) == 1
