"""Two Harelines: what one sends with `webhook.deliver`, the other receives, and works off once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from consumers.jobs.deliver import Endpoint, Endpoints, Outgoing, register
from hareline import App, Job, JobType, Producer, Retry, WebhookReceiver, WebhookSource
from producers.relay import Relay
from store.engine import Database
from tests.databases import opened
from tests.faults.proxy import Proxy
from tests.lab import Lab, clear_namespace, until
from tests.webhooks import STANDARD, listening, serving, started

OLD, NEW = STANDARD, "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
QUICKLY = Retry(attempts=200, base=0.1, factor=1.5, cap=1.0, jitter=0.0)


class Paid(BaseModel):
    """What Standard Webhooks has in a body."""

    type: str
    data: dict[str, int]


@dataclass
class Receiving:
    """The side that receives: its app, what ran there, and its sources as they are to be."""

    lab: Lab
    database_url: str
    paid: JobType[Any]
    app: App
    runs: Counter[int] = field(default_factory=Counter)

    def source(self, *secrets: str) -> list[WebhookSource]:
        return [WebhookSource("peer", scheme="standard", secrets=secrets, events={"invoice.paid": self.paid})]

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Relay and worker; the receiver comes and goes by itself."""
        relay = Relay(replace(self.lab.settings, database_url=self.database_url), Database(self.database_url))
        running = asyncio.create_task(relay.run())
        async with self.lab.working(self.app):
            yield
        relay.drain()
        await running


@dataclass
class Sending:
    """The side that sends. Its worker is told of an endpoint at its start, as processes are."""

    lab: Lab
    deliver: JobType[Any]
    producer: Producer

    async def send(self, numbers: range, **options: Any) -> None:
        events = [Outgoing(endpoint="peer", event="invoice.paid", data={"n": number}) for number in numbers]
        await self.producer.enqueue_many(self.deliver, events, **options)

    @asynccontextmanager
    async def working(self, port: int, secrets: Sequence[str]) -> AsyncIterator[None]:
        app = App(job_types=[self.deliver])
        endpoint = Endpoint(f"http://127.0.0.1:{port}/webhooks/peer", secrets)
        register(app, Endpoints({"peer": endpoint}, longest_wait=1.0), self.deliver)
        async with self.lab.working(app):
            yield

    async def idle(self) -> bool:
        return await self.lab.ready(self.deliver) == 0


@pytest.fixture
async def other_lab(lab: Lab) -> AsyncIterator[Lab]:
    """A namespace of its own on the same broker: the two share nothing but that."""
    settings = replace(lab.settings, namespace=f"{lab.settings.namespace}-peer")
    async with Lab(settings, "peer") as other:
        yield other
    await clear_namespace(settings)


@pytest.fixture
async def sending(lab: Lab) -> Sending:
    deliver = lab.job_type("deliver", Outgoing, retry=QUICKLY, timeout=60.0)
    await lab.apply(deliver)
    return Sending(lab, deliver, await lab.producer())


@pytest.fixture
async def receiving(other_lab: Lab, postgresql_url: str) -> Receiving:
    paid = other_lab.job_type("paid", Paid)
    found = Receiving(other_lab, postgresql_url, paid, await other_lab.app(paid))

    @found.app.handler(paid)
    async def handle(event: Paid, job: Job) -> None:
        assert job.headers["hareline-webhook-event"] == event.type == "invoice.paid"
        found.runs[event.data["n"]] += 1

    return found


async def test_each_event_runs_once_on_the_other_side(sending: Sending, receiving: Receiving) -> None:
    """Also where the connections between the two are cut."""
    count = 60
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(opened(receiving.database_url))
        receiver = await stack.enter_async_context(serving(receiving.database_url, receiving.source(OLD)))
        proxy = await stack.enter_async_context(Proxy(f"http://127.0.0.1:{receiver.port}"))
        await stack.enter_async_context(receiving.working())
        await stack.enter_async_context(sending.working(urlsplit(proxy.url).port or 0, [OLD]))
        await sending.send(range(count))
        for enough in (count // 4, count // 2):
            await until(lambda enough=enough: len(receiving.runs) >= enough, f"{enough} have run")
            proxy.cut()
        await until(lambda: len(receiving.runs) >= count, "all have run")
        await until(sending.idle, "the sender has no more to send")
        await until(lambda: _nothing(database), "the outbox is empty")
    assert receiving.runs == Counter(range(count))


async def test_an_answer_that_is_lost_makes_a_repeat_and_no_second_run(sending: Sending, receiving: Receiving) -> None:
    """Each delivery is taken, and its first answer is a 502, as a gateway gives that lost the answer behind it."""
    statuses: dict[str, list[int]] = {}
    receiver = WebhookReceiver(
        receiving.source(OLD), replace(receiving.lab.settings, database_url=receiving.database_url)
    )

    async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await receiver(scope, receive, send)
            return
        seen = statuses.setdefault(dict(scope["headers"])[b"webhook-id"].decode(), [])

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.append(message["status"])
                message = {**message, "status": 502} if len(seen) == 1 else message
            await send(message)

        await receiver(scope, receive, answer)

    async with AsyncExitStack() as stack:
        found = await stack.enter_async_context(listening(gateway))
        await stack.enter_async_context(receiving.working())
        await stack.enter_async_context(sending.working(found.port, [OLD]))
        await sending.send(range(20))
        await until(lambda: sum(map(len, statuses.values())) == 40, "each came twice")
        await until(lambda: len(receiving.runs) == 20, "all have run")
        database = await stack.enter_async_context(opened(receiving.database_url))
        await until(lambda: _nothing(database), "the outbox is empty")
    assert list(statuses.values()) == [[202, 200]] * 20
    assert receiving.runs == Counter(range(20))


async def test_the_same_job_twice_is_one_delivery(sending: Sending, receiving: Receiving) -> None:
    """A message that comes twice to the sender's worker has the same id on the wire both times."""
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(serving(receiving.database_url, receiving.source(OLD)))
        await stack.enter_async_context(receiving.working())
        event = Outgoing(endpoint="peer", event="invoice.paid", data={"n": 1})
        ids = [await sending.producer.enqueue(sending.deliver, event, key="invoice-1") for _ in range(2)]
        assert ids[0] == ids[1]
        await sending.send(range(2, 3))
        await until(lambda: _three(sending), "all wait")
        await stack.enter_async_context(sending.working(receiver.port, [OLD]))
        await until(sending.idle, "both copies were taken")
        await until(lambda: len(receiving.runs) == 2, "both events have run")
        database = await stack.enter_async_context(opened(receiving.database_url))
        await until(lambda: _nothing(database), "the outbox is empty")
    assert receiving.runs == {1: 1, 2: 1}


async def test_secrets_are_replaced_while_deliveries_go_on(sending: Sending, receiving: Receiving) -> None:
    """Old, then both here, then both there, then new: whoever restarts in between, nothing is refused for good."""
    steps = [([OLD], [OLD]), ([OLD, NEW], [OLD]), ([OLD, NEW], [OLD, NEW]), ([NEW], [OLD, NEW]), ([NEW], [NEW])]
    async with receiving.working():
        for step, (theirs, ours) in enumerate(steps):
            first = 10 * step
            async with (
                serving(receiving.database_url, receiving.source(*theirs)) as receiver,
                sending.working(receiver.port, ours),
            ):
                await sending.send(range(first, first + 10))
                await until(lambda first=first: len(receiving.runs) >= first + 10, f"step {step} has run")
    assert receiving.runs == Counter(range(10 * len(steps)))


async def test_a_secret_that_is_wrong_waits_until_it_is_right(sending: Sending, receiving: Receiving) -> None:
    """401 is tried again: whoever forgot to tell the other side about the new secret has lost nothing."""
    async with receiving.working(), serving(receiving.database_url, receiving.source(NEW)) as receiver:
        async with sending.working(receiver.port, [OLD]):
            await sending.send(range(5))
            await until(sending.idle, "each was tried")
        assert not receiving.runs
        async with sending.working(receiver.port, [NEW]):
            await until(lambda: len(receiving.runs) >= 5, "all have run")
    assert receiving.runs == Counter(range(5))


async def _nothing(database: Database) -> bool:
    return not await started(database)


async def _three(sending: Sending) -> bool:
    return await sending.lab.ready(sending.deliver) == 3
