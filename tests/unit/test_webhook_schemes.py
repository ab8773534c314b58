"""Every scheme against its sender's published vectors, its sender's own library, and what forgers try."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe
import svix
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from slack_sdk.signature import SignatureVerifier
from standardwebhooks import Webhook

from hareline import Delivery, HarelineError, Identity, JobType, WebhookSource
from producers.webhooks.delivery import Scheme, Signing
from producers.webhooks.schemes import SCHEMES, Slack, WooCommerce

pytestmark = pytest.mark.machine

NOW = 1_900_000_000.0
TEXT_SECRET = "It's a Secret to Everybody"
STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SIGNATURES = {
    "generic": "X-Webhook-Signature",
    "standard": "webhook-signature",
    "github": "X-Hub-Signature-256",
    "stripe": "Stripe-Signature",
    "woocommerce": "X-WC-Webhook-Signature",
    "shopify": "X-Shopify-Hmac-Sha256",
    "slack": "X-Slack-Signature",
}
TIMED = {"standard", "stripe", "slack"}
BODIES = {
    "generic": {"event": "order.created", "order": 42},
    "standard": {"type": "order.created", "data": {"id": 42}},
    "github": {"action": "opened", "issue": {"number": 1347}, "repository": {"full_name": "octocat/Hello-World"}},
    "stripe": {"id": "evt_1", "object": "event", "type": "order.created", "data": {"object": {"id": "ch_1"}}},
    "woocommerce": {"id": 727, "status": "processing", "total": "29.35", "currency": "EUR"},
    "shopify": {"id": 820982911946154508, "email": "jon@example.com", "total_price": "199.00"},
    "slack": {"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention", "text": "<@U0> hi"}},
}


def secret_of(scheme: str) -> str:
    return STANDARD_SECRET if scheme == "standard" else TEXT_SECRET


def source(scheme: Any, *secrets: str, **options: Any) -> WebhookSource:
    return WebhookSource("x", scheme=scheme, secrets=secrets or (secret_of(scheme),), **options)


def signed(scheme: str, secret: str | None = None, now: float = NOW) -> tuple[dict[str, str], bytes]:
    rules = SCHEMES[scheme]
    assert isinstance(rules, Signing)
    body = json.dumps(BODIES[scheme]).encode()
    return rules.sign(secret or secret_of(scheme), body, event="order.created", delivery_id="d-1", now=now)


def delivery(headers: dict[str, str], body: bytes) -> Delivery:
    return Delivery.of(headers.items(), body)


def test_githubs_vector() -> None:
    headers = {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
    assert source("github").verify(delivery(headers, b"Hello, World!"), NOW)
    assert not source("github").verify(delivery(headers, b"Hello, World?"), NOW)


@pytest.mark.parametrize("prefix", ["webhook", "svix", "Webhook", "SVIX"])
def test_standard_webhooks_vector(prefix: str) -> None:
    headers = {
        f"{prefix}-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        f"{prefix}-timestamp": "1614265330",
        f"{prefix}-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    found = delivery(headers, b'{"test": 2432232314}')
    assert source("standard").verify(found, 1614265330.0)
    assert not source("standard").verify(found, 1614265330.0 + 301)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_signed_verifies_with_names_in_any_case(scheme: str) -> None:
    headers, body = signed(scheme)
    for change in (str.upper, str.lower, str.title):
        assert source(scheme).verify(delivery({change(name): value for name, value in headers.items()}, body), NOW)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_forgeries_do_not_verify(scheme: str) -> None:
    headers, body = signed(scheme)
    name, signature = SIGNATURES[scheme], headers[SIGNATURES[scheme]]
    mine = source(scheme)
    assert not mine.verify(delivery(headers, body[:-1]), NOW), "truncated"
    assert not mine.verify(delivery(headers, body + b" "), NOW), "longer"
    reordered = json.dumps(dict(reversed(json.loads(body).items()))).encode()
    assert not mine.verify(delivery(headers, reordered), NOW), "keys in another order"
    assert not mine.verify(delivery(headers, body.decode().encode("utf-16")), NOW), "another charset"
    without = {key: value for key, value in headers.items() if key != name}
    assert not mine.verify(delivery(without, body), NOW), "no signature"
    for forged in ("", "x", signature[:-1], signature[:-4] + "AAAA", "sha1=" + "0" * 40, "\x00", "é" * 64, "v1,", "="):
        assert not mine.verify(delivery({**headers, name: forged}, body), NOW), forged
    twice = Delivery.of([*headers.items(), (name, signature)], body)
    assert not mine.verify(twice, NOW), "two headers of that name: which one would be meant?"
    other = STANDARD_SECRET[:-1] + "x" if scheme == "standard" else "another secret"
    assert not source(scheme, other).verify(delivery(headers, body), NOW), "another secret"


@pytest.mark.parametrize("scheme", sorted(SCHEMES.keys() - TIMED - {"generic", "github"}))
def test_base64_in_another_case_is_another_signature(scheme: str) -> None:
    headers, body = signed(scheme)
    name = SIGNATURES[scheme]
    assert not source(scheme).verify(delivery({**headers, name: headers[name].swapcase()}, body), NOW)


@pytest.mark.parametrize("scheme", sorted(TIMED))
@pytest.mark.parametrize(("late", "accepted"), [(0, True), (300, True), (301, False), (-300, True), (-301, False)])
def test_a_signed_time_must_be_near(scheme: str, late: int, accepted: bool) -> None:
    headers, body = signed(scheme)
    assert source(scheme).verify(delivery(headers, body), NOW + late) is accepted
    assert source(scheme, window=1000.0).verify(delivery(headers, body), NOW + late)


@pytest.mark.parametrize("scheme", sorted(TIMED))
@pytest.mark.parametrize(
    "time_text", ["", "soon", "-1", "1e9", "9" * 400, "\uff11\uff19", "1900000000.0", "nan", " 1900000000"]
)
def test_a_time_that_is_none_is_refused(scheme: str, time_text: str) -> None:
    headers, body = signed(scheme)
    forged = {key: value.replace(str(int(NOW)), time_text) for key, value in headers.items()}
    assert not source(scheme).verify(delivery(forged, body), NOW)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_secret_is_valid_while_one_is_replaced(scheme: str) -> None:
    new = "whsec_" + base64.b64encode(bytes(range(24))).decode() if scheme == "standard" else "the new one"
    both = source(scheme, new, secret_of(scheme))
    for secret in (new, secret_of(scheme)):
        assert both.verify(delivery(*signed(scheme, secret)), NOW)
    assert not source(scheme, new).verify(delivery(*signed(scheme)), NOW)


@pytest.mark.parametrize("scheme", ["standard", "stripe"])
def test_one_of_several_signatures_is_enough(scheme: str) -> None:
    """Twice signed, as senders do while a secret is rolled."""
    headers, body = signed(scheme)
    name = SIGNATURES[scheme]
    other, _ = signed(scheme, "whsec_" + base64.b64encode(b"0" * 24).decode())
    if scheme == "standard":
        listed = f"v1a,xyz v2,abc {other[name]} {headers[name]}"
    else:
        listed = f"{other[name]},v0=abc,{headers[name].split(',')[1]}"
    assert source(scheme).verify(delivery({**headers, name: listed}, body), NOW)
    assert not source(scheme).verify(delivery({**headers, name: listed.replace("v1", "v2")}, body), NOW)


@pytest.mark.parametrize(
    ("scheme", "event", "delivery_id"),
    [
        ("generic", "order.created", "d-1"),
        ("standard", "order.created", "d-1"),
        ("github", "order.created", "d-1"),
        ("stripe", "order.created", "evt_1"),
        ("shopify", "order.created", "d-1"),
        ("slack", "app_mention", "Ev1"),
    ],
)
def test_where_event_and_id_are(scheme: str, event: str, delivery_id: str) -> None:
    headers, body = signed(scheme)
    found = SCHEMES[scheme].identify(delivery(headers, body), json.loads(body))
    assert (found.event, found.delivery_id) == (event, delivery_id)


def test_woocommerce_goes_by_topic_resource_and_content() -> None:
    """Its delivery id changes with each retry, so it does not count."""
    headers, body = signed("woocommerce")
    again = {**headers, "X-WC-Webhook-Delivery-ID": "another"}
    rules = SCHEMES["woocommerce"]
    first, second = (rules.identify(delivery(h, body), json.loads(body)) for h in (headers, again))
    assert first == second
    assert str(first.delivery_id).startswith("order.created:727:")
    changed = {**BODIES["woocommerce"], "status": "completed"}
    other = rules.identify(delivery(headers, json.dumps(changed).encode()), changed)
    assert other.delivery_id != first.delivery_id


def test_stripes_repeat_counts_endpoints_differently_and_is_the_same_event() -> None:
    rules = SCHEMES["stripe"]
    found = [
        rules.identify(delivery({}, b""), {"id": "evt_1", "pending_webhooks": n, "data": d})
        for n, d in [(1, 1), (2, 1), (1, 2)]
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("document", [None, [], 1, "x", {}, {"event": {}, "type": [], "id": True, "event_id": 1.5}])
def test_documents_without_event_and_id_have_none(scheme: str, document: Any) -> None:
    found = SCHEMES[scheme].identify(delivery({}, b"{}"), document)
    assert found.event is None
    assert (found.delivery_id is None) is (scheme != "woocommerce")


def test_pings_and_challenges() -> None:
    shop = WooCommerce()
    assert shop.unsigned(delivery({}, b"webhook_id=12")) is not None
    for other in (b"", b"webhook_id=", b"webhook_id=12&x=1", b"webhook_id=12\n", b"webhook_id=-1"):
        assert shop.unsigned(delivery({}, other)) is None
    reply = Slack().signed(delivery({}, b""), {"type": "url_verification", "challenge": "3eZb"})
    assert reply is not None
    assert json.loads(reply.body) == {"challenge": "3eZb"}
    assert Slack().signed(delivery({}, b""), {"type": "event_callback", "challenge": "3eZb"}) is None


# -- the senders' own libraries ----------------------------------------------------------------------------------------


def test_stripes_library_agrees() -> None:
    headers, body = signed("stripe", "whsec_test", time.time())
    event = stripe.Webhook.construct_event(body, headers["Stripe-Signature"], "whsec_test")
    assert event.id == "evt_1"
    theirs = stripe.WebhookSignature.generate_signature_header(body.decode(), "whsec_test")
    assert source("stripe", "whsec_test").verify(delivery({"Stripe-Signature": theirs}, body), time.time())


def test_slacks_library_agrees() -> None:
    headers, body = signed("slack", "8f742231b10e8888abcd99yyyzzz85a5", time.time())
    verifier = SignatureVerifier("8f742231b10e8888abcd99yyyzzz85a5")
    assert verifier.is_valid_request(body, headers)
    theirs = verifier.generate_signature(timestamp="1531420618", body="token=x&team_id=T1")
    assert theirs is not None
    found = {"X-Slack-Signature": theirs, "X-Slack-Request-Timestamp": "1531420618"}
    mine = source("slack", "8f742231b10e8888abcd99yyyzzz85a5")
    assert mine.verify(delivery(found, b"token=x&team_id=T1"), 1531420618.0)


@pytest.mark.parametrize("library", [Webhook, svix.Webhook])
def test_the_standard_libraries_agree(library: Any) -> None:
    headers, body = signed("standard", now=time.time())
    library(STANDARD_SECRET).verify(body, headers)
    moment = datetime.fromtimestamp(NOW, UTC)
    theirs = library(STANDARD_SECRET).sign("m1", moment, body.decode())
    found = {"webhook-id": "m1", "webhook-timestamp": str(int(NOW)), "webhook-signature": theirs}
    assert source("standard").verify(delivery(found, body), NOW)


# -- anything at all ---------------------------------------------------------------------------------------------------

latin = st.text(st.characters(max_codepoint=255), max_size=80)
names = st.sampled_from(
    [*SIGNATURES.values(), "webhook-id", "webhook-timestamp", "svix-id", "X-Slack-Request-Timestamp"]
)
times = st.sampled_from([str(int(NOW)), f"t={int(NOW)},v1=", f"t={int(NOW)}", "v0=", "v1,", "sha256="])


@given(st.lists(st.tuples(names, st.one_of(latin, times)), max_size=6), st.binary(max_size=60))
def test_no_header_and_no_body_verifies_or_raises(headers: list[tuple[str, str]], body: bytes) -> None:
    for scheme in SCHEMES:
        assert source(scheme).verify(Delivery.of(headers, body), NOW) is False


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "type", "event", "event_id", "challenge"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(json_values, st.lists(st.tuples(names, latin), max_size=3))
def test_no_document_makes_identification_raise(document: Any, headers: list[tuple[str, str]]) -> None:
    for scheme in SCHEMES.values():
        assert isinstance(scheme.identify(Delivery.of(headers, b"x"), document), Identity)


# -- sources -----------------------------------------------------------------------------------------------------------


class Order(BaseModel):
    id: int


created = JobType("order.created", Order)
other = JobType("order.other", Order)


@dataclass(frozen=True)
class Token:
    """A scheme of the user's own."""

    def check(self, secret: str) -> None:
        if len(secret) < 4:
            raise ValueError("it is short")

    def verify(self, delivery: Delivery, secret: str, now: float, window: float) -> bool:
        del now, window
        return delivery.header("X-Token") == secret

    def identify(self, delivery: Delivery, document: object) -> Identity:
        del delivery, document
        return Identity("e", "1")


def test_a_scheme_of_ones_own() -> None:
    assert isinstance(Token(), Scheme)
    mine = source(Token(), "abcd")
    assert mine.verify(delivery({"x-token": "abcd"}, b""), NOW)
    assert not mine.verify(delivery({"x-token": "abce"}, b""), NOW)
    with pytest.raises(HarelineError, match="secret 1 of 1: it is short"):
        source(Token(), "abc")


def test_events_start_job_types() -> None:
    mapped = source("generic", events={"order.created": created}, default=other)
    assert [mapped.starts(event) for event in ("order.created", "x", None)] == [created, other, other]
    assert source("generic", events={"order.created": created}).starts("x") is None
    assert mapped.startables == (created, other)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"secrets": []}, "no secret"),
        ({"secrets": [""]}, "empty"),
        ({"secrets": ["fine", "  "]}, "secret 2 of 2"),
        ({"secrets": "hush-hush"}, "is a text"),
        ({"secrets": [None]}, "no text"),
        ({"secrets": ["hush-hush-é"]}, "ASCII"),
        ({"secrets": ["hush-hush"], "scheme": "standard"}, "base64"),
        ({"secrets": ["whsec_aHVzaA=="], "scheme": "standard"}, "16 bytes"),
        ({"secrets": ["hush-hush"], "scheme": "gitlab"}, "gitlab"),
        ({"secrets": ["hush-hush"], "name": "a/b"}, "letters"),
        ({"secrets": ["hush-hush"], "window": 0}, "window"),
    ],
)
def test_a_source_that_cannot_work_is_refused_and_shows_no_secret(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(HarelineError, match=says) as caught:
        WebhookSource(**{"name": "x", **wrong})
    assert "hush" not in str(caught.value)
    assert "aHVzaA" not in str(caught.value)


def test_secrets_come_from_the_environment_where_the_code_has_none() -> None:
    bare = WebhookSource("git-hub", scheme="github")
    with pytest.raises(HarelineError, match="HARELINE_WEBHOOKS_SECRETS_GIT_HUB"):
        bare.armed({})
    armed = bare.armed({"HARELINE_WEBHOOKS_SECRETS_GIT_HUB": "first-one, two,"})
    assert tuple(armed.secrets or ()) == ("first-one", "two")
    assert "first-one" not in repr(armed)
    assert "hush" not in repr(source("generic", "hush-hush"))
