"""Webhooks over real HTTP: what is accepted is stored once; what became of it; where it is mounted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from hareline import WebhookReceiver, WebhookSource
from producers.webhooks.schemes import SCHEMES
from store.engine import Database
from tests.databases import opened
from tests.webhooks import (
    NOWHERE,
    SECRET,
    SOURCES,
    STANDARD,
    TOKEN,
    created,
    listening,
    other,
    problem,
    serving,
    signed,
    started,
)  # fmt: skip

pytestmark = pytest.mark.machine


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_signed_delivery_is_stored_and_a_repeat_is_known(sqlite_url: str, scheme: str) -> None:
    async with opened(sqlite_url) as database, serving(database) as receiver:
        first = await receiver.deliver(scheme)
        assert first.status_code == 202
        assert first.json() == {"webhook_id": first.json()["webhook_id"], "status": "accepted"}
        again = await receiver.deliver(scheme)
        assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
        assert again.json() == first.json()
        assert "Idempotency-Replayed" not in first.headers
        (row,) = await started(database)
        assert (row.job_type, row.origin, row.correlation_id) == (
            "order.created",
            "webhook",
            first.json()["webhook_id"],
        )
        assert json.loads(row.body)["id"] == 7
        assert row.headers == {
            "hareline-webhook-id": first.json()["webhook_id"],
            "hareline-webhook-source": scheme,
            "hareline-webhook-event": "order.created",
        }


async def test_the_same_key_with_another_body_is_a_conflict(database: Database) -> None:
    async with serving(database) as receiver:
        assert (await receiver.deliver(document={"id": 1})).status_code == 202
        assert "another body" in problem(await receiver.deliver(document={"id": 2}), 422)
        reordered = b'{"event":"order.created", "id":1}'
        problem(await receiver.deliver(document=reordered), 422)
        assert len(await started(database)) == 1


async def test_two_hundred_deliveries_of_one_key_start_one_job(database: Database) -> None:
    async with serving(database) as receiver:
        answers = await asyncio.gather(*(receiver.deliver() for _ in range(200)))
        assert Counter(answer.status_code for answer in answers) == {202: 1, 200: 199}
        assert len({answer.json()["webhook_id"] for answer in answers}) == 1
        assert len(await started(database)) == 1


async def test_two_receivers_on_one_database_start_one_job(database_url: str) -> None:
    async with serving(database_url) as one, serving(database_url) as two, opened(database_url) as database:
        answers = await asyncio.gather(*(receiver.deliver() for receiver in (one, two) for _ in range(50)))
        assert Counter(answer.status_code for answer in answers) == {202: 1, 200: 99}
        assert len(await started(database)) == 1


async def test_events_choose_the_job_type_and_the_rest_is_caught(database: Database) -> None:
    sources = [
        WebhookSource("generic", secrets=[SECRET], events={"order.created": created}, default=other),
        WebhookSource("github", scheme="github", secrets=[SECRET]),
    ]
    async with serving(database, sources) as receiver:
        for number, event in enumerate(("order.created", "order.gone", "x" * 300, "nul\x00")):
            assert (await receiver.deliver(key=str(number), event=event)).status_code == 202
        body = b'{"zen": "Keep it \\u0000 simple", "n": 1.10, "big": 1e999}'
        caught = await receiver.deliver("github", body, event="ping")
    rows = await started(database)
    assert [row.job_type for row in rows] == ["order.created", *["order.other"] * 3, "webhook.received"]
    assert [row.priority for row in rows] == [None, 4, 4, 4, None]
    assert b'"body": ' + body in rows[4].body, "byte for byte"
    assert json.loads(rows[4].body)["webhook_id"] == caught.json()["webhook_id"]
    assert (json.loads(rows[4].body)["source"], json.loads(rows[4].body)["event"]) == ("github", "ping")


async def test_a_delivery_without_an_id_is_always_new(database: Database) -> None:
    headers, body = signed()
    del headers["X-Idempotency-Key"]
    async with serving(database) as receiver:
        answers = [await receiver.post("/webhooks/generic", body, headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert len(await started(database)) == 2


async def test_ids_of_any_length_and_letters_are_keys(database: Database) -> None:
    async with serving(database) as receiver:
        for key in ("é" * 50, "x" * 3000, "a'b\"c", "%s %(x)s"):
            headers, body = signed(key=key)
            wire = {name: value.encode("latin-1") for name, value in headers.items()}
            answers = [await receiver.post("/webhooks/generic", body, wire) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [202, 200], key


async def test_a_ping_and_a_challenge_are_answered_and_start_nothing(sqlite_url: str) -> None:
    async with opened(sqlite_url) as database, serving(database) as receiver:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await receiver.post("/webhooks/woocommerce", b"webhook_id=12", form)).status_code == 200
        problem(await receiver.post("/webhooks/woocommerce", b"webhook_id=12&x=1", form), 401)
        problem(await receiver.post("/webhooks/generic", b"webhook_id=12", form), 401)
        asked = await receiver.deliver("slack", {"type": "url_verification", "challenge": "3eZb"})
        assert (asked.status_code, asked.json()) == (200, {"challenge": "3eZb"})
        assert await started(database) == []


async def test_what_became_of_a_delivery_is_told_to_those_with_the_token(database: Database) -> None:
    async with serving(database) as receiver:
        webhook_id = (await receiver.deliver()).json()["webhook_id"]
        path = f"/webhooks/generic/{webhook_id}"
        for wrong in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}, {"Authorization": "é"}):
            wire = {name: value.encode("latin-1") for name, value in wrong.items()}
            problem(await receiver.client.get(path, headers=wire), 401)
        mine = {"Authorization": f"Bearer {TOKEN}"}
        answer = await receiver.client.get(path, headers=mine)
        told = answer.json()
        assert (told["status"], told["event"], told["job_type"]) == ("queued", "order.created", "order.created")
        assert told["job_id"] == (await started(database))[0].job_id
        for gone in ("/webhooks/github/" + webhook_id, "/webhooks/generic/x", "/webhooks/generic/%00"):
            problem(await receiver.client.get(gone, headers=mine), 404)
        async with database.transaction() as connection:
            await connection.exec_driver_sql("DELETE FROM hareline_outbox")
        assert (await receiver.client.get(path, headers=mine)).json()["status"] == "accepted"


async def test_without_a_token_in_the_settings_nothing_is_told(sqlite_url: str) -> None:
    async with serving(sqlite_url, webhooks_token="") as receiver:
        webhook_id = (await receiver.deliver()).json()["webhook_id"]
        for headers in ({}, {"Authorization": "Bearer"}):
            problem(await receiver.client.get(f"/webhooks/generic/{webhook_id}", headers=headers), 404)


async def test_no_secret_is_in_a_log_an_answer_or_a_repr(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(sqlite_url) as receiver:
        answers = [await receiver.deliver(scheme) for scheme in SCHEMES]
        answers += [await receiver.post(f"/webhooks/{scheme}", b"{}", {}) for scheme in SCHEMES]
        answers.append(await receiver.deliver(document={"id": 2}))
    shown = caplog.text + repr(SOURCES) + repr(NOWHERE) + "".join(a.text + repr(a.headers) for a in answers)
    assert "is not signed" in shown
    for secret in (SECRET, STANDARD, STANDARD.removeprefix("whsec_"), TOKEN):
        assert secret not in shown


async def test_it_mounts_in_an_application_of_ones_own(database: Database) -> None:
    receiver = WebhookReceiver(SOURCES, NOWHERE, database=database)
    mounted = Starlette(routes=[Mount("/hooks", app=receiver)])
    async with listening(mounted) as found:
        headers, body = signed()
        assert (await found.post("/hooks/webhooks/generic", body, headers)).status_code == 202
        assert (await found.client.get("/hooks/livez")).status_code == 200
        problem(await found.client.get("/hooks/webhooks/generic"), 405)
    assert len(await started(database)) == 1
