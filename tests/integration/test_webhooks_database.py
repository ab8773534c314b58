"""The receiver while its database is away, hangs, is locked, or has no tables."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from hareline import WebhookReceiver
from tests.databases import opened
from tests.faults.proxy import Proxy
from tests.lab import until
from tests.webhooks import NOWHERE, SOURCES, listening, problem, serving, started

pytestmark = pytest.mark.machine


async def test_with_the_database_away_nothing_is_accepted_and_later_all_is(postgresql_url: str) -> None:
    async with Proxy(postgresql_url) as proxy, serving(proxy.url) as receiver, opened(postgresql_url) as database:
        assert (await receiver.deliver(key="before")).status_code == 202
        assert (await receiver.client.get("/readyz")).status_code == 200
        await proxy.refuse()
        refused = await asyncio.gather(*(receiver.deliver(key=f"k{number}") for number in range(20)))
        for answer in refused:
            assert "cannot be stored" in problem(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
        problem(await receiver.client.get("/readyz"), 503)
        assert (await receiver.client.get("/livez")).status_code == 200
        await proxy.accept()
        answers = await asyncio.gather(*(receiver.deliver(key=f"k{number}") for number in range(20)))
        assert {answer.status_code for answer in answers} == {202}
        assert (await receiver.client.get("/readyz")).status_code == 200
        assert len(await started(database)) == 21


async def test_with_the_database_cut_in_the_middle_nothing_acknowledged_is_lost(postgresql_url: str) -> None:
    """A sender repeats what was not acknowledged; in the end each key has one job."""
    async with Proxy(postgresql_url) as proxy, serving(proxy.url) as receiver, opened(postgresql_url) as database:
        answers: Counter[int] = Counter()

        async def send(number: int) -> None:
            for step in range(10):
                key = f"{number}-{step}"
                await until(lambda key=key: delivered(key), f"the delivery {key}")

        async def delivered(key: str) -> bool:
            status = (await receiver.deliver(key=key)).status_code
            answers[status] += 1
            return status in {200, 202}

        senders = asyncio.gather(*(send(number) for number in range(20)))
        for count in range(20, 180, 20):
            await until(lambda count=count: senders.done() or answers[202] >= count, f"{count} deliveries")
            proxy.cut()
        await senders
        assert answers.keys() <= {200, 202, 503}
        assert len(await started(database)) == 200


async def test_a_database_that_hangs_is_a_database_that_is_away(postgresql_url: str) -> None:
    async with opened(postgresql_url) as holder, opened(postgresql_url) as database:
        receiver = WebhookReceiver(SOURCES, NOWHERE, database=database)
        receiver._journal._patience = 0.3
        async with listening(receiver) as found, holder.transaction() as connection:
            await connection.exec_driver_sql("LOCK TABLE hareline_webhooks")
            problem(await found.deliver(), 503)
        async with listening(receiver) as found:
            assert (await found.deliver()).status_code == 202


async def test_a_sqlite_file_that_is_locked(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.engine._LOCK_TIMEOUT", 0.2)
    async with serving(sqlite_url) as receiver, opened(sqlite_url) as holder:
        async with holder.transaction():
            problem(await receiver.deliver(), 503)
        assert (await receiver.deliver()).status_code == 202


async def test_a_database_without_the_tables_is_not_ready(tmp_path: Any) -> None:
    async with serving(f"sqlite:///{tmp_path / 'new.db'}") as receiver:
        problem(await receiver.client.get("/readyz"), 503)
        problem(await receiver.deliver(), 503)
