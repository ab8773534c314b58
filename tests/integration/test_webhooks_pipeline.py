"""From a sender to a handler: webhook, outbox, relay, broker, worker; also while there is no broker."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from pydantic import BaseModel

from consumers.jobs.webhooks import register
from hareline import Job, Parallel, Saga, Step, WebhookReceived, WebhookSource, webhook_received
from producers.relay import Relay
from tests.databases import opened
from tests.lab import Lab, until
from tests.webhooks import SECRET, serving, started


class Order(BaseModel):
    event: str
    id: int


async def test_deliveries_accepted_without_a_broker_run_once_when_it_is_there(lab: Lab, postgresql_url: str) -> None:
    job_type = lab.job_type("order", Order)
    app = await lab.app(job_type)
    runs: Counter[str] = Counter()

    @app.handler(job_type)
    async def handle(order: Order, job: Job) -> None:
        assert job.headers["hareline-webhook-source"] == "generic"
        assert job.correlation_id == job.headers["hareline-webhook-id"]
        runs[f"{order.event} {order.id}"] += 1

    sources = [WebhookSource("generic", secrets=[SECRET], events={"order.created": job_type})]
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(opened(postgresql_url))
        receiver = await stack.enter_async_context(serving(postgresql_url, sources))  # its broker is nowhere
        sent = [receiver.deliver(document={"id": number % 50}, key=str(number % 50)) for number in range(100)]
        answers = await asyncio.gather(*sent)
        assert Counter(answer.status_code for answer in answers) == {202: 50, 200: 50}
        assert len(await started(database)) == 50
        relay = Relay(replace(lab.settings, database_url=postgresql_url), database)
        running = asyncio.create_task(relay.run())
        async with lab.working(app):
            await until(lambda: sum(runs.values()) >= 50, "all have run")
            await until(lambda: relay.relayed == 50, "the outbox is empty")
        relay.drain()
        await running
    assert runs == {f"order.created {number}": 1 for number in range(50)}


@pytest.mark.parametrize("parallel", [False, True])
async def test_an_event_starts_a_saga_once(lab: Lab, postgresql_url: str, parallel: bool) -> None:
    names = [lab.job_type(name, Order) for name in ("reserve", "charge", "ship")]
    first, *others = (Step(job_type) for job_type in names)
    saga = Saga(f"{names[0].name}.saga", *([Parallel(first, *others)] if parallel else [first, *others]), payload=Order)
    app = await lab.saga_app(saga)
    runs: Counter[str] = Counter()
    for job_type in names:

        @app.handler(job_type)
        async def handle(order: Order, job: Job) -> None:
            assert job.saga is not None
            assert job.headers["hareline-webhook-source"] == "generic"
            runs[f"{job.type} {order.id} {job.saga.id}"] += 1

    sources = [WebhookSource("generic", secrets=[SECRET], events={"order.created": saga})]
    settings = replace(lab.settings, database_url=postgresql_url)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(opened(postgresql_url))
        receiver = await stack.enter_async_context(serving(postgresql_url, sources))
        answers = [await receiver.deliver(document={"id": 7}, key="7") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 200]
        relay = Relay(settings, database)
        running = asyncio.create_task(relay.run())
        async with lab.working(app, settings=settings):
            await until(lambda: sum(runs.values()) >= 3, "all steps have run")
        relay.drain()
        await running
        about = await receiver.status(answers[0].json()["webhook_id"])
    assert set(runs.values()) == {1}
    assert (about["saga"], about["status"]) == (saga.name, "accepted")
    assert all(run.endswith(about["saga_id"]) for run in runs)


async def test_what_nobody_declared_is_noted_by_the_job_that_ships(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = await lab.app(webhook_received)
    register(app)
    payload = WebhookReceived(source="github", event="ping", webhook_id="w", body={"zen": "quiet"})
    producer = await lab.producer()
    async with lab.working(app):
        job_id = await producer.enqueue(webhook_received, payload)
        await until(lambda: job_id in caplog.text, "it was worked off")
    assert "github: nothing is declared for event 'ping'" in caplog.text
    assert "quiet" not in caplog.text
