"""Whatever stands in a job queue: it runs, or lands in the dead-letter queue with its reason. The worker goes on."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pika
import pytest
from pydantic import BaseModel, field_validator

from hareline import Job, JobType
from tests.lab import Lab, until
from topology.envelope import ATTEMPT, DELIVERIES
from topology.events import JobEvent

MIB = 1024 * 1024
GOOD = b'{"n":1}'


class Strict(BaseModel):
    """A payload whose validator has a fault of its own."""

    n: int
    text: str = ""

    @field_validator("n")
    @classmethod
    def known(cls, n: int) -> int:
        return {0: 0, 1: 1}[n]


class Shop:
    """A worker on a job type, and someone who publishes what Hareline's producers never would."""

    def __init__(self, lab: Lab, job_type: JobType[Strict]) -> None:
        self.lab = lab
        self.job_type = job_type
        self.ran: list[tuple[Strict, str]] = []
        self.events: list[JobEvent] = []

    async def receive(self, body: bytes, **properties: Any) -> None:
        """Publishes as another client would, and waits until the broker has it."""
        await asyncio.to_thread(self._publish, body, pika.BasicProperties(**properties))

    def _publish(self, body: bytes, properties: pika.BasicProperties) -> None:
        with pika.BlockingConnection(pika.URLParameters(self.lab.settings.broker_urls[0])) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish(self.lab.names.jobs, self.job_type.name, body, properties, mandatory=True)

    async def goes_on(self) -> None:
        """A good job runs, over the same connection."""
        before = len(self.ran)
        await (await self.lab.producer()).enqueue(self.job_type, Strict(n=0))
        await until(lambda: any(number.n == 0 for number, _ in self.ran[before:]), "the next good job has run")
        assert await self.lab.ready(self.job_type) == 0


@asynccontextmanager
async def opened(lab: Lab) -> AsyncIterator[Shop]:
    job_type = lab.job_type(payload=Strict)
    app = await lab.app(job_type)
    shop = Shop(lab, job_type)

    @app.handler(job_type)
    async def handle(number: Strict, job: Job) -> None:
        shop.ran.append((number, job.id))

    async with lab.working(app, concurrency=2, observers=[shop.events.append]):
        yield shop


REFUSED: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "not JSON": ("invalid", b"n=1", {}),
    "empty": ("invalid", b"", {}),
    "not UTF-8": ("invalid", b'{"n":1,"text":"\xff\xfe"}', {}),
    "cut off": ("invalid", b'{"n":', {}),
    "nested without end": ("invalid", b"[" * 100_000, {}),
    "wrong shape": ("invalid", b'{"m":1}', {}),
    "wrong type": ("invalid", b'{"n":"one"}', {}),
    "a validator that fails": ("invalid", b'{"n":77}', {}),
    "huge number": ("invalid", b'{"n":' + b"9" * 5_000 + b"}", {}),
    "unknown type": ("no-handler", GOOD, {"type": "no.such.job"}),
    "type that is no text": ("malformed", GOOD, {"type": b"\xff\xfe"}),
    "attempt that is no number": ("malformed", GOOD, {"headers": {ATTEMPT: "abc"}}),
    "attempt zero": ("malformed", GOOD, {"headers": {ATTEMPT: 0}}),
    "attempt below zero": ("malformed", GOOD, {"headers": {ATTEMPT: -3}}),
    "attempt beyond reason": ("malformed", GOOD, {"headers": {ATTEMPT: 2**40}}),
    "attempt true": ("malformed", GOOD, {"headers": {ATTEMPT: True}}),
    "deliveries of nonsense": ("malformed", GOOD, {"headers": {DELIVERIES: [1, {"a": None}]}}),
    "compressed": ("malformed", gzip.compress(GOOD), {"content_encoding": "gzip"}),
    "came back too often": ("worker-lost", GOOD, {"headers": {DELIVERIES: 5}}),
    "headers that fill a frame": ("invalid", b"n=1", {"headers": {"theirs": "x" * 125_000}}),
    "message id that is no text": ("malformed", GOOD, {"message_id": b"\xff" * 250}),
    "correlation id that is no text": ("malformed", GOOD, {"correlation_id": b"id-\xff", "priority": 3}),
    "header name that is no text": ("malformed", GOOD, {"headers": {b"\xff\xfe": "x"}}),
}


@pytest.mark.parametrize(("reason", "body", "properties"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_cannot_run_is_dead_with_its_reason(
    lab: Lab, reason: str, body: bytes, properties: dict[str, Any]
) -> None:
    """Its body is kept byte by byte, the error says what was wrong, and the next job runs."""
    async with opened(lab) as shop:
        await shop.receive(body, **properties)
        [dead] = await lab.dead_letters(shop.job_type, 1)
        await shop.goes_on()
    assert (dead.reason, dead.body) == (reason, body)
    assert dead.headers["hareline-error-message"]
    assert dead.headers["hareline-origin-queue"] == lab.names.queue(shop.job_type.name)
    assert not any(number.n == 1 for number, _ in shop.ran)


ACCEPTED: dict[str, dict[str, Any]] = {
    "typed by hand": {},
    "from PHP": {"content_type": "text/plain", "delivery_mode": 2, "type": None},
    "headers of others": {"headers": {"theirs": [1, None, {"deep": [True, b"\x00"]}], "x-custom": "y"}},
    "no type, no content": {"content_type": "", "type": ""},
    "utf-8 said": {"content_encoding": "UTF-8"},
    "priority of 255": {"priority": 255},
    "bytes in a header": {"headers": {"theirs": b"\xff\xfe"}},
    "expires late": {"expiration": "600000"},
    "attempt of another": {"headers": {ATTEMPT: 3}},
}


@pytest.mark.parametrize("properties", ACCEPTED.values(), ids=ACCEPTED.keys())
async def test_a_message_with_a_good_body_runs_as_a_job(lab: Lab, properties: dict[str, Any]) -> None:
    """All else is optional: a routing key and a JSON body make a job of the queue's type, with an id of its own."""
    async with opened(lab) as shop:
        await shop.receive(GOOD, **properties)
        await until(lambda: shop.ran, "it has run")
        await shop.goes_on()
    assert shop.ran[0][0] == Strict(n=1)
    assert shop.ran[0][1]
    assert [event.event for event in shop.events if event.id == shop.ran[0][1]] == ["job.done"]


def _padded(size: int) -> bytes:
    return b'{"n":1,"text":"' + b"x" * size + b'"}'


def _sizes() -> list[int]:
    return [3 * MIB, 100 * MIB] if os.environ.get("HARELINE_SOAK") else [3 * MIB, 15 * MIB]


@pytest.mark.parametrize("size", _sizes(), ids=lambda size: f"{size // MIB}MiB")
@pytest.mark.parametrize("make", [_padded, lambda size: b"x" * size], ids=["good", "bad"])
async def test_a_huge_body_runs_or_is_dead_like_any_other(lab: Lab, make: Callable[[int], bytes], size: int) -> None:
    """Bodies come in many frames and leave in many frames; 100 MiB on brokers that take it."""
    if size > 16 * MIB and lab.control.capabilities.version >= (4, 0):
        size = 15 * MIB  # the most that a broker takes from 4.0 on, unless told otherwise, is 16 MiB
    body = make(size)
    async with opened(lab) as shop:
        await shop.receive(body)
        if body.startswith(b"{"):
            await until(lambda: shop.ran, "it has run")
            assert len(shop.ran[0][0].text) == size
        else:
            [dead] = await lab.dead_letters(shop.job_type, 1)
            assert (dead.reason, dead.body == body) == ("invalid", True)
        await shop.goes_on()
