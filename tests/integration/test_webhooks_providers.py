"""What each provider really sends, over real HTTP: shapes from its documentation, its vectors, its try-outs."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import pytest

from hareline import WebhookReceiver, WebhookSource
from store.engine import Database
from tests.webhooks import NOWHERE, STANDARD, created, listening, other, problem, started

pytestmark = pytest.mark.machine

GITHUB = "It's a Secret to Everybody"
STRIPE = "whsec_e1f2c3d4"
SHOP = "shop-secret"
SLACK = "8f742231b10e8888abcd99yyyzzz85a5"
SLACK_TIME = 1531420618
STANDARD_TIME = 1614265330

PUSH = {
    "ref": "refs/heads/main",
    "before": "6113728f27ae82c7b1a177c8d03f9e96e0adf246",
    "after": "59b20b8d5c6ff8d09518454d4dd8b7b30f095ab5",
    "repository": {"id": 186853002, "full_name": "Codertocat/Hello-World", "private": False},
    "pusher": {"name": "Codertocat", "email": "21031067+Codertocat@users.noreply.github.com"},
    "commits": [{"id": "59b20b8d", "message": "Grüße", "added": [], "modified": ["README.md"]}],
}
PING = {"zen": "Non-blocking is better than blocking.", "hook_id": 30, "hook": {"type": "Repository", "active": True}}
ISSUE = {
    "action": "opened",
    "issue": {"number": 1347, "title": "Found a bug", "user": {"login": "octocat"}, "body": None},
    "repository": {"full_name": "octocat/Hello-World"},
    "sender": {"login": "octocat", "type": "User"},
}
CHARGE = {
    "id": "evt_1NG8Du2eZvKYlo2CUI79vXWy",
    "object": "event",
    "api_version": "2019-02-19",
    "created": 1686089970,
    "data": {"object": {"id": "seti_1NG8Du2eZvKYlo2C9XMqbR0x", "object": "setup_intent", "amount": 1099}},
    "livemode": False,
    "pending_webhooks": 1,
    "request": {"id": None, "idempotency_key": None},
    "type": "setup_intent.created",
}
WOO_ORDER = {
    "id": 727,
    "number": "727",
    "status": "processing",
    "total": "29.35",
    "billing": {"first_name": "John", "email": "john.doe@example.com"},
    "line_items": [{"id": 315, "name": "Woo Single #1", "product_id": 93, "quantity": 2, "total": "6.00"}],
}
SHOPIFY_ORDER = {
    "id": 820982911946154508,
    "email": "jon@example.com",
    "created_at": "2021-12-31T19:00:00-05:00",
    "total_price": "388.00",
    "line_items": [{"id": 866550311766439020, "title": "IPod Nano - 8GB", "quantity": 1}],
}
MENTION = {
    "token": "z26uFbvR1xHJEdHE1OQiO6t8",
    "team_id": "T061EG9RZ",
    "api_app_id": "A0FFV41KK",
    "event": {"type": "app_mention", "user": "U061F7AUR", "text": "<@U0LAN0Z89> is it everything?", "channel": "C1"},
    "type": "event_callback",
    "event_id": "Ev9UQ52YNA",
    "event_time": 1234567890,
}
COMMAND = urlencode({
    "token": "xyzz0WbapA4vBCDEFasx0q6G", "team_id": "T1DC2JH3J", "team_domain": "testteamnow",
    "channel_id": "G8PSS9T3V", "channel_name": "foobar", "user_id": "U2CERLKJA", "user_name": "roadrunner",
    "command": "/webhook-collect", "text": "",
    "response_url": "https://hooks.slack.com/commands/T1DC2JH3J/397700885554/96rGlfmibIGlgcZRskXaIFfN",
    "trigger_id": "398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
}).encode()  # fmt: skip
COMMAND_SIGNATURE = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"


def mac(secret: str, signed: bytes) -> bytes:
    """Apart from the product's own, so that both cannot be wrong alike."""
    return hmac.new(secret.encode(), signed, hashlib.sha256).digest()


@asynccontextmanager
async def receiving(database: Database, now: float = STANDARD_TIME, **source: Any) -> AsyncIterator[Any]:
    receiver = WebhookReceiver([WebhookSource("p", **source)], NOWHERE, database=database, clock=lambda: now)
    async with listening(receiver) as found:

        async def post(body: bytes, headers: Any) -> Any:
            return await found.post("/webhooks/p", body, headers)

        yield post


@pytest.fixture
async def store(postgresql: Database) -> Database:
    return postgresql


def github(document: Any, event: str, delivery: str) -> tuple[bytes, dict[str, str]]:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return body, {
        "Accept": "*/*",
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/044aadd",
        "X-GitHub-Delivery": delivery,
        "X-GitHub-Event": event,
        "X-GitHub-Hook-ID": "292430182",
        "X-Hub-Signature": "sha1=" + hmac.new(GITHUB.encode(), body, hashlib.sha1).hexdigest(),
        "X-Hub-Signature-256": "sha256=" + mac(GITHUB, body).hex(),
    }


async def test_github(store: Database) -> None:
    events = {"push": created, "issues": other}
    async with receiving(store, scheme="github", secrets=[GITHUB], events=events) as post:
        for number, (document, event) in enumerate(((PUSH, "push"), (ISSUE, "issues"), (PING, "ping"))):
            body, headers = github(document, event, f"72d3162e-cc78-11e3-81ab-4c9367dc095{number}")
            answers = [await post(body, headers) for _ in range(2)]  # "Redeliver" sends the same id
            assert [answer.status_code for answer in answers] == [202, 200]
        sha1_only = {name: value for name, value in headers.items() if name != "X-Hub-Signature-256"}
        problem(await post(body, sha1_only), 401)
        vector = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        signed = {"X-Hub-Signature-256": vector, "X-GitHub-Event": "push"}
        assert "not JSON" in problem(await post(b"Hello, World!", signed), 400)  # signed, which a 401 would deny
        problem(await post(b"Hello, World?", signed), 401)
        form = urlencode({"payload": json.dumps(PING)}).encode()
        signature = "sha256=" + mac(GITHUB, form).hex()
        assert "not JSON" in problem(await post(form, {"X-Hub-Signature-256": signature}), 400)
    rows = await started(store)
    assert [row.job_type for row in rows] == ["order.created", "order.other", "webhook.received"]
    assert rows[0].body == github(PUSH, "", "")[0], "byte for byte"
    assert json.loads(rows[2].body)["body"] == PING


async def test_stripe_with_several_signatures_of_several_versions(store: Database) -> None:
    """While a secret is rolled there is a v1 for each; v0 is for tests and counts for nothing."""
    body = json.dumps(CHARGE, indent=2).encode()  # as Stripe sends it
    signed = f"{STANDARD_TIME}.".encode() + body
    right, wrong = mac(STRIPE, signed).hex(), mac("whsec_other", signed).hex()
    async with receiving(
        store, scheme="stripe", secrets=["whsec_new", STRIPE], events={"setup_intent.created": created}
    ) as post:
        for header in (
            f"t={STANDARD_TIME},v0={right}",
            f"t={STANDARD_TIME},v1={wrong},v0={right}",
            f"t={STANDARD_TIME - 301},v1={right}",
            f"t={STANDARD_TIME},t={STANDARD_TIME},v1={right}",
            f"v1={right}",
        ):
            problem(await post(body, {"Stripe-Signature": header}), 401)
        many = f"t={STANDARD_TIME},v1={wrong},v1={right},v0={wrong},v0={right}"
        assert (await post(body, {"Stripe-Signature": many})).status_code == 202
        again = json.dumps({**CHARGE, "pending_webhooks": 0}, indent=2).encode()
        header = f"t={STANDARD_TIME + 60},v1={mac(STRIPE, f'{STANDARD_TIME + 60}.'.encode() + again).hex()}"
        assert (await post(again, {"Stripe-Signature": header})).status_code == 200, "one endpoint has answered"
    (row,) = await started(store)
    assert row.headers["hareline-webhook-event"] == "setup_intent.created"


async def test_woocommerce(store: Database) -> None:
    body = json.dumps(WOO_ORDER, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "WooCommerce/8.2.0 Hookshot (WordPress/6.3)",
        "X-WC-Webhook-Source": "https://shop.example/",
        "X-WC-Webhook-Topic": "order.created",
        "X-WC-Webhook-Resource": "order",
        "X-WC-Webhook-Event": "created",
        "X-WC-Webhook-Signature": b64encode(mac(SHOP, body)).decode(),
        "X-WC-Webhook-ID": "12",
    }
    async with receiving(store, scheme="woocommerce", secrets=[SHOP], events={"order.created": created}) as post:
        ping = {"Content-Type": "application/x-www-form-urlencoded"}
        pinged = await post(b"webhook_id=12", ping)
        assert (pinged.status_code, pinged.json()) == (200, {"status": "pong"})
        deliveries = [{**headers, "X-WC-Webhook-Delivery-ID": number} for number in ("6c1a", "7d2b")]
        answers = [await post(body, delivery) for delivery in deliveries]
        assert [answer.status_code for answer in answers] == [202, 200], "a retry has another delivery id"
        changed = json.dumps({**WOO_ORDER, "status": "completed"}).encode()
        signature = b64encode(mac(SHOP, changed)).decode()
        assert (await post(changed, {**headers, "X-WC-Webhook-Signature": signature})).status_code == 202
    assert [row.job_type for row in await started(store)] == ["order.created"] * 2


async def test_shopify(store: Database) -> None:
    body = json.dumps(SHOPIFY_ORDER).encode()
    headers = {
        "Content-Type": "application/json",
        "X-Shopify-Topic": "orders/create",
        "X-Shopify-Hmac-Sha256": b64encode(mac(SHOP, body)).decode(),
        "X-Shopify-Shop-Domain": "johns-apparel.myshopify.com",
        "X-Shopify-API-Version": "2024-01",
        "X-Shopify-Webhook-Id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
        "X-Shopify-Triggered-At": "2023-03-29T18:00:27.877041743Z",
    }
    async with receiving(store, scheme="shopify", secrets=[SHOP], events={"orders/create": created}) as post:
        answers = [await post(body, headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 200]
        problem(await post(body, {**headers, "X-Shopify-Hmac-Sha256": mac(SHOP, body).hex()}), 401)
    (row,) = await started(store)
    assert (row.job_type, b"820982911946154508" in row.body) == ("order.created", True), "no digit is lost"


def slack(body: bytes, at: int = SLACK_TIME) -> dict[str, str]:
    signature = "v0=" + mac(SLACK, f"v0:{at}:".encode() + body).hex()
    return {"X-Slack-Signature": signature, "X-Slack-Request-Timestamp": str(at), "Content-Type": "application/json"}


async def test_slack(store: Database) -> None:
    """The challenge comes back, signed or nothing; an event starts a job; Slack's published example is verified."""
    async with receiving(store, SLACK_TIME, scheme="slack", secrets=[SLACK], events={"app_mention": created}) as post:
        challenge = "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P"
        asked = json.dumps({"token": "Jhj5dZrVaK7ZwHHjRyZWjbDl", "challenge": challenge, "type": "url_verification"})
        given = await post(asked.encode(), slack(asked.encode()))
        assert (given.status_code, given.headers["content-type"]) == (200, "application/json")
        assert given.json() == {"challenge": challenge}
        problem(await post(asked.encode(), {}), 401)
        problem(await post(asked.encode(), slack(asked.encode(), SLACK_TIME - 301)), 401)
        body = json.dumps(MENTION).encode()
        answers = [
            await post(body, slack(body)),
            await post(body, {**slack(body, SLACK_TIME + 60), "X-Slack-Retry-Num": "1"}),
        ]
        assert [answer.status_code for answer in answers] == [202, 200]
        example = {"X-Slack-Signature": COMMAND_SIGNATURE, "X-Slack-Request-Timestamp": str(SLACK_TIME)}
        assert "not JSON" in problem(await post(COMMAND, example), 400)  # signed, which a 401 would deny
        problem(await post(COMMAND + b"&x=1", example), 401)
    (row,) = await started(store)
    assert (row.job_type, row.headers["hareline-webhook-event"]) == ("order.created", "app_mention")


async def test_standard_webhooks_vector(store: Database) -> None:
    body = b'{"test": 2432232314}'
    async with receiving(store, scheme="standard", secrets=[STANDARD], default=created) as post:
        for prefix, status in (("webhook", 202), ("svix", 200)):
            headers = {
                f"{prefix}-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
                f"{prefix}-timestamp": str(STANDARD_TIME),
                f"{prefix}-signature": "v1a,bm90IHRoaXM= v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            }
            assert (await post(body, headers)).status_code == status
            problem(await post(body, {**headers, f"{prefix}-id": "msg_another"}), 401)
    assert len(await started(store)) == 1
