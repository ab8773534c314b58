"""The broker is killed while webhooks come in: none is refused for it, and each accepted one has its effect once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import text

from hareline import Job, WebhookSource
from producers.relay import Relay
from store.engine import Database
from tests.databases import opened
from tests.lab import Lab, until
from tests.nodes import Node
from tests.webhooks import SECRET, Order, serving, started

pytestmark = [pytest.mark.kills, pytest.mark.timeout(300)]

COUNT = 400


async def test_a_broker_that_is_killed_costs_no_delivery_and_no_effect_twice(
    lab: Lab, node: Node, postgresql_url: str
) -> None:
    job_type = lab.job_type("order", Order)
    app = await lab.app(job_type)
    await node.keep_topology()
    sources = [WebhookSource("generic", secrets=[SECRET], events={"order.created": job_type})]
    settings = replace(lab.settings, database_url=postgresql_url)

    @app.handler(job_type)
    async def handle(order: Order, job: Job) -> None:
        async with job.transaction() as connection:
            await connection.execute(text("INSERT INTO effects VALUES (:n)"), {"n": order.id})

    answers: Counter[int] = Counter()
    async with opened(postgresql_url) as database, serving(postgresql_url, sources) as receiver:
        async with database.transaction() as connection:
            await connection.execute(text("CREATE TABLE effects (n integer)"))

        async def send(lane: int) -> None:
            for number in range(lane, COUNT, 10):
                for _ in range(2):  # and a repeat of each
                    answer = await receiver.deliver(document={"id": number}, key=str(number))
                    answers[answer.status_code] += 1

        async def effects() -> list[int]:
            async with database.reading() as connection:
                return list((await connection.execute(text("SELECT n FROM effects"))).scalars())

        relay = Relay(settings, Database(postgresql_url))  # which it closes itself
        running = asyncio.create_task(relay.run())
        async with lab.working(app, settings=settings):
            sending = asyncio.gather(*(send(lane) for lane in range(10)))
            await until(lambda: answers[202] >= COUNT // 4, "a quarter was accepted")
            await node.kill()
            await sending
            assert answers == {202: COUNT, 200: COUNT}
            await node.start()

            async def all_had_effect() -> bool:
                return len(await effects()) >= COUNT and not await started(database)

            await until(all_had_effect, "all had their effect", 120)
        relay.drain()
        await running
        assert sorted(await effects()) == list(range(COUNT))
