"""Bodies, headers, waits and crowds over the receiver's limits, and rates of sources."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from hareline import Rate, WebhookReceiver, WebhookSource
from store.engine import Database
from tests.lab import until
from tests.webhooks import NOWHERE, SECRET, created, listening, problem, serving, signed, started

pytestmark = pytest.mark.machine


async def test_bodies_over_the_limit(database: Database) -> None:
    """Told by Content-Length, or found out in chunks; one that just fits is accepted, chunked or not."""
    async with serving(database, webhooks_max_body=1000) as receiver:
        fits = json.dumps({"id": 1, "event": "order.created", "pad": ""}).encode()
        fits = fits.replace(b'""', b'"' + b"x" * (1000 - len(fits)) + b'"')
        assert len(fits) == 1000
        headers, body = signed(document=fits)
        assert (await receiver.post("/webhooks/generic", body, headers)).status_code == 202

        async def pieces(content: bytes) -> Any:
            for start in range(0, len(content), 100):
                yield content[start : start + 100]

        chunked = await receiver.client.post("/webhooks/generic", content=pieces(body), headers=headers)
        assert chunked.status_code == 200
        headers, body = signed(document=fits + b" ")
        problem(await receiver.post("/webhooks/generic", body, headers), 413)
        problem(await receiver.client.post("/webhooks/generic", content=pieces(body), headers=headers), 413)
        for length in (b"1001", b"9" * 18):
            head = b"POST /webhooks/generic HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n"
            assert (await receiver.raw(head)).startswith(b"HTTP/1.1 413 ")


async def test_headers_over_the_limit(sqlite_url: str) -> None:
    async with serving(sqlite_url) as receiver:
        headers, body = signed()
        problem(await receiver.post("/webhooks/generic", body, {**headers, "X-Long": "x" * 17_000}), 431)
        longer = await receiver.post("/webhooks/generic", body, {**headers, "X-Long": "x" * 60_000})
        assert longer.status_code in {400, 431}, "the server's own limit may come first"
        assert (await receiver.post("/webhooks/generic", body, {**headers, "X-Long": "x" * 15_000})).status_code == 202


async def test_a_slow_body_is_given_up(sqlite_url: str) -> None:
    async with serving(sqlite_url, webhooks_body_timeout=0.2) as receiver:
        head = b"POST /webhooks/generic HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        answer = await receiver.raw(head)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"application/problem+json" in answer


async def test_a_request_that_is_cut_off_starts_nothing(database: Database) -> None:
    async with serving(database) as receiver:
        headers, body = signed()
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        length = f"Content-Length: {len(body)}"
        whole = f"POST /webhooks/generic HTTP/1.1\r\nHost: x\r\n{length}\r\n{head}\r\n".encode() + body
        await receiver.raw(whole[:-3], end=True)
        assert await started(database) == []
        shorter = whole.replace(length.encode(), b"Content-Length: 5")
        assert b" 401 " in (await receiver.raw(shorter, end=True)).splitlines()[0]
        await receiver.raw(whole, end=True)  # accepted or not: a sender that hangs up does not learn it, and repeats
        assert (await receiver.deliver()).status_code in {200, 202}
        assert len(await started(database)) == 1


async def test_too_many_at_once_are_asked_to_come_again(sqlite_url: str) -> None:
    async with serving(sqlite_url, webhooks_concurrency=1) as receiver:
        reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
        writer.write(b"POST /webhooks/generic HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")

        async def refused() -> bool:
            answer = await receiver.deliver(key="x")
            return answer.status_code == 503 and answer.headers["retry-after"] == "1"

        await until(refused, "a full house")
        assert (await receiver.client.get("/livez")).status_code == 200
        writer.close()
        await until(lambda: _accepted(receiver), "room again")
        del reader


async def _accepted(receiver: Any) -> bool:
    return (await receiver.deliver()).status_code < 300


# -- rates -------------------------------------------------------------------------------------------------------------


def limited(**rate: Any) -> list[WebhookSource]:
    events = {"order.created": created}
    return [
        WebhookSource("generic", secrets=[SECRET], events=events, rate=Rate(**rate)),
        WebhookSource("github", scheme="github", secrets=[SECRET], events=events),
    ]


async def test_above_its_rate_a_source_is_asked_to_come_again(database: Database) -> None:
    """Repeats count, other sources do not, and nothing of what is refused is stored."""
    now = [1_900_000_000.0]
    receiver = WebhookReceiver(limited(per_second=0.5, burst=3), NOWHERE, database=database, clock=lambda: now[0])
    async with listening(receiver) as found:
        answers = [await found.deliver(key=key) for key in ("a", "a", "b", "c", "a")]
        assert [answer.status_code for answer in answers] == [202, 200, 202, 429, 429]
        assert "more deliveries" in problem(answers[3], 429)
        assert answers[3].headers["retry-after"] == "2"
        assert (await found.deliver("github")).status_code == 202
        now[0] += 2.0
        assert (await found.deliver(key="c")).status_code == 202
        problem(await found.deliver(key="d"), 429)
        now[0] -= 3600.0
        assert (await found.deliver(key="d")).headers["retry-after"] == "2", "an hour back gives nothing"
        now[0] += 2.0
        assert (await found.deliver(key="d")).status_code == 202, "and takes nothing"
    assert len(await started(database)) == 5


async def test_a_forger_cannot_use_up_what_the_sender_may_send(sqlite_url: str) -> None:
    async with serving(sqlite_url, limited(per_second=0.001, burst=1)) as receiver:
        headers, body = signed()
        for _ in range(20):
            problem(await receiver.post("/webhooks/generic", body + b" ", headers), 401)
        assert (await receiver.post("/webhooks/generic", body, headers)).status_code == 202
        problem(await receiver.post("/webhooks/generic", body, headers), 429)


async def test_of_a_crowd_at_once_the_burst_is_taken(sqlite_url: str) -> None:
    async with serving(sqlite_url, limited(per_second=0.001, burst=20)) as receiver:
        answers = await asyncio.gather(*(receiver.deliver(key=str(number)) for number in range(60)))
    assert Counter(answer.status_code for answer in answers) == {202: 20, 429: 40}
