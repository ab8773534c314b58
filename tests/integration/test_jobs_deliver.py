"""``webhook.deliver`` against a real receiver: two Harelines, one sends, one takes."""

from __future__ import annotations

import asyncio
import json
import secrets
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from consumers.job import Job
from consumers.jobs.deliver import Endpoint, Endpoints, Outgoing, deliver, deliver_webhook, register
from consumers.outcome import Permanent, Transient
from hareline import Retry, WebhookSource
from tests.databases import opened
from tests.lab import Lab, until
from tests.webhooks import STANDARD, created, listening, serving, started
from topology.envelope import Envelope
from topology.errors import SettingsError

JOB = Job(Envelope("0192f0c1-0000-7000-8000-000000000001", "webhook.deliver", 1, 0, "c", None, {}, b""))
NEW = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
EVENT = Outgoing(endpoint="shop", event="order.created", data={"id": 7})


def source(*secrets: str) -> WebhookSource:
    return WebhookSource("peer", scheme="standard", secrets=secrets or (STANDARD,), events={"order.created": created})


def endpoints(port: int, *secrets: str, path: str = "/webhooks/peer", **options: Any) -> Endpoints:
    return Endpoints({"shop": Endpoint(f"http://127.0.0.1:{port}{path}", secrets or (STANDARD,))}, **options)


async def send(found: Endpoints, event: Outgoing = EVENT) -> None:
    async with found.client() as client:
        await deliver(event, JOB, client, found)


@asynccontextmanager
async def answering(*answers: tuple[int, dict[str, str]]) -> AsyncIterator[Any]:
    """A receiver that gives these answers, one after the other, and the last one for ever."""
    left = list(answers)

    async def answer(_: Request) -> Response:
        status, headers = left.pop(0) if len(left) > 1 else left[0]
        return Response("because", status, headers)

    async with listening(Starlette(routes=[Route("/{rest:path}", answer, methods=["POST"])])) as found:
        yield found


@pytest.mark.machine
async def test_the_other_side_takes_it_once_at_whatever_attempt(sqlite_url: str) -> None:
    """Every attempt sends the same id and bytes: the second is a repeat there, and a success here."""
    async with opened(sqlite_url) as database, serving(database, [source()]) as receiver:
        for _ in range(2):
            await send(endpoints(receiver.port))
        (row,) = await started(database)
    body = json.loads(row.body)
    assert (body["type"], body["data"], body["timestamp"]) == ("order.created", {"id": 7}, EVENT.timestamp.isoformat())
    assert row.headers["hareline-webhook-event"] == "order.created"


@pytest.mark.machine
async def test_secrets_are_replaced_one_side_at_a_time(sqlite_url: str) -> None:
    async with serving(sqlite_url, [source(NEW)]) as receiver:
        await send(endpoints(receiver.port, STANDARD, NEW))
        with pytest.raises(Transient, match="401"):
            await send(endpoints(receiver.port))


@pytest.mark.machine
@pytest.mark.parametrize("status", [400, 410, 413, 422])
async def test_what_will_never_be_taken_is_permanent(status: int) -> None:
    async with answering((status, {})) as receiver:
        with pytest.raises(Permanent, match=rf"shop: {status}.*because"):
            await send(endpoints(receiver.port))


@pytest.mark.machine
@pytest.mark.parametrize("status", [302, 401, 404, 408, 425, 429, 500, 503])
async def test_everything_else_is_tried_again(status: int) -> None:
    async with answering((status, {"Retry-After": "7", "Location": "http://127.0.0.1:1/"})) as receiver:
        with pytest.raises(Transient, match=f"shop: {status}") as caught:
            await send(endpoints(receiver.port))
        assert caught.value.after == 7.0
        with pytest.raises(Transient) as caught:
            await send(endpoints(receiver.port, longest_wait=3.0))
        assert caught.value.after == 3.0


@pytest.mark.machine
async def test_nobody_there_and_nobody_known() -> None:
    with pytest.raises(Transient, match="shop: ConnectError"):
        await send(endpoints(1))
    with pytest.raises(Permanent, match="no webhook endpoint 'bank'"):
        await send(endpoints(1), EVENT.model_copy(update={"endpoint": "bank"}))


@pytest.mark.machine
async def test_an_address_is_in_no_error_and_no_traceback() -> None:
    """It may hold a token, and a dead letter keeps both."""
    token = secrets.token_hex()  # not in the source, whose lines a traceback shows
    with pytest.raises(Transient) as caught:
        await send(Endpoints({"shop": Endpoint(f"http://127.0.0.1:1/{token}", [STANDARD])}))
    assert token not in "".join(traceback.format_exception(caught.value))
    for wrong in ("http://[hush/", "http://127.0.0.1:99999/hush", "http:///hush", "ftp://hush", "hush"):
        with pytest.raises(SettingsError) as refused:
            Endpoint(wrong, [STANDARD])
        assert "hush" not in str(refused.value)


@pytest.mark.machine
def test_endpoints_come_from_the_environment_and_hide_their_secrets() -> None:
    environment = {"WEBHOOK_OUT_SHOP_URL": "https://x/y", "WEBHOOK_OUT_SHOP_SECRETS": f"{STANDARD}, {NEW}"}
    found = Endpoints.from_settings(environment).by_name
    assert (found["shop"].url, list(found["shop"].secrets)) == ("https://x/y", [STANDARD, NEW])
    assert STANDARD not in repr(found)
    for wrong in (
        {"WEBHOOK_OUT_SHOP_SECRETS": ""},
        {"WEBHOOK_OUT_SHOP_URL": "x"},
        {"WEBHOOK_OUT_SHOP_SECRETS": "hush"},
    ):
        with pytest.raises(SettingsError) as caught:
            Endpoints.from_settings(environment | wrong)
        assert "hush" not in str(caught.value)


@pytest.mark.machine
def test_it_is_tried_for_days() -> None:
    retry = deliver_webhook.retry
    waits = [min(retry.cap, retry.base * retry.factor**number) for number in range(retry.attempts - 1)]
    assert 2 * 86_400 < sum(waits) < 4 * 86_400


async def test_through_the_broker_a_receiver_that_is_busy_gets_it_later(lab: Lab) -> None:
    job_type = lab.job_type("deliver", Outgoing, retry=replace(Retry(), attempts=5, base=0.1))
    app = await lab.app(job_type)
    producer = await lab.producer()
    taken = asyncio.Event()

    async def take(request: Request) -> Response:
        await request.body()
        if not seen:
            seen.append(1)
            return Response(status_code=503, headers={"Retry-After": "1"})
        taken.set()
        return Response(status_code=202)

    seen: list[int] = []
    async with listening(Starlette(routes=[Route("/in", take, methods=["POST"])])) as receiver:
        register(app, endpoints(receiver.port, path="/in"), job_type)
        async with lab.working(app):
            await producer.enqueue(job_type, EVENT)
            await until(taken.is_set, "it was taken")
            await until(lambda: _empty(lab, job_type), "it was settled")


async def test_a_receiver_that_is_gone_ends_in_the_dead_letter_queue_at_once(lab: Lab) -> None:
    job_type = lab.job_type("deliver", Outgoing)
    app = await lab.app(job_type)
    producer = await lab.producer()
    async with answering((410, {})) as receiver:
        register(app, endpoints(receiver.port), job_type)
        async with lab.working(app):
            await producer.enqueue(job_type, EVENT)
            (dead,) = await lab.dead_letters(job_type, 1)
    assert dead.reason == "permanent"


async def _empty(lab: Lab, job_type: Any) -> bool:
    return await lab.ready(job_type) == 0
