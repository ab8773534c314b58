"""The seven schemes that ship: where each sender puts signature, time, event and delivery id. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from producers.webhooks.delivery import Delivery, Identity, Reply, Scheme
from producers.webhooks.signatures import (
    any_equal,
    digest,
    from_base64,
    from_hex,
    in_window,
    text_at,
    to_base64,
    with_members,
)

SchemeName = Literal["generic", "standard", "github", "stripe", "woocommerce", "shopify", "slack"]

_MOST_SIGNATURES: Final = 20
"""A sender that rotates its secrets sends two or three."""
_LEAST_KEY: Final = 16
"""Bytes of a Standard Webhooks key; the specification asks for 24 to 64, senders in the wild for fewer."""
_WOO_PING: Final = re.compile(rb"webhook_id=[0-9]{1,20}")


class _TextKey:
    """Schemes whose key is the text of the secret itself."""

    def check(self, secret: str) -> None:
        """Any ASCII text that is not blank."""
        if not secret.strip():
            raise ValueError("it is empty")
        if not secret.isascii():
            raise ValueError("it holds characters other than ASCII: was it copied whole?")


@dataclass(frozen=True, slots=True)
class Generic(_TextKey):
    """``X-Webhook-Signature`` is the hex digest of the body; the event is ``event`` in the body."""

    def verify(self, delivery: Delivery, secret: str, now: float, window: float) -> bool:  # noqa: ARG002 - no time in it
        """Over the body alone: a repeat is recognised by its key, not by its age."""
        presented = from_hex(delivery.header("X-Webhook-Signature") or "")
        return any_equal(digest(secret.encode(), delivery.body), [presented])

    def identify(self, delivery: Delivery, document: object) -> Identity:
        """The delivery id is in ``X-Idempotency-Key``."""
        return Identity(text_at(document, "event"), delivery.header("X-Idempotency-Key"))

    def sign(
        self, secret: str, body: bytes, *, event: str, delivery_id: str, now: float
    ) -> tuple[dict[str, str], bytes]:
        """As a sender would."""
        del now
        body = with_members(body, event=event)
        signature = digest(secret.encode(), body).hex()
        return {"X-Webhook-Signature": signature, "X-Idempotency-Key": delivery_id}, body


@dataclass(frozen=True, slots=True)
class Standard:
    """Standard Webhooks and Svix: ``webhook-id``, ``webhook-timestamp``, ``webhook-signature``, or ``svix-*``."""

    def check(self, secret: str) -> None:
        """Base64, with or without ``whsec_`` in front."""
        if len(_standard_key(secret)) < _LEAST_KEY:
            raise ValueError(f"its base64 holds fewer than {_LEAST_KEY} bytes")

    def verify(self, delivery: Delivery, secret: str, now: float, window: float) -> bool:
        """Over id, time and body. Of several signatures one must fit; those of versions other than v1 do not count."""
        prefix = _standard_prefix(delivery)
        delivery_id = delivery.header(f"{prefix}-id")
        timestamp = delivery.header(f"{prefix}-timestamp")
        if not delivery_id or timestamp is None or not in_window(timestamp, now, window):
            return False
        listed = (delivery.header(f"{prefix}-signature") or "").split(" ")[:_MOST_SIGNATURES]
        presented = [from_base64(entry[3:]) for entry in listed if entry.startswith("v1,")]
        signed = b".".join((_wire(delivery_id), timestamp.encode(), delivery.body))
        return any_equal(digest(_standard_key(secret), signed), presented)

    def identify(self, delivery: Delivery, document: object) -> Identity:
        """The id is signed; the event is ``type`` in the body."""
        return Identity(text_at(document, "type"), delivery.header(f"{_standard_prefix(delivery)}-id"))

    def sign(
        self, secret: str, body: bytes, *, event: str, delivery_id: str, now: float
    ) -> tuple[dict[str, str], bytes]:
        """As a sender would."""
        body = with_members(body, type=event)
        return standard_headers([secret], body, delivery_id=delivery_id, now=now), body


def standard_headers(secrets: list[str], body: bytes, *, delivery_id: str, now: float) -> dict[str, str]:
    """The three headers of Standard Webhooks, with one signature for each secret."""
    signed = b".".join((_wire(delivery_id), str(int(now)).encode(), body))
    signatures = " ".join("v1," + to_base64(digest(_standard_key(secret), signed)) for secret in secrets)
    return {"webhook-id": delivery_id, "webhook-timestamp": str(int(now)), "webhook-signature": signatures}


@dataclass(frozen=True, slots=True)
class GitHub(_TextKey):
    """``X-Hub-Signature-256`` is ``sha256=`` and the hex digest of the body."""

    def verify(self, delivery: Delivery, secret: str, now: float, window: float) -> bool:  # noqa: ARG002 - no time in it
        """Over the body alone."""
        version, _, text = (delivery.header("X-Hub-Signature-256") or "").partition("=")
        presented = from_hex(text) if version == "sha256" else None
        return any_equal(digest(secret.encode(), delivery.body), [presented])

    def identify(self, delivery: Delivery, document: object) -> Identity:
        """Both are headers."""
        del document
        return Identity(delivery.header("X-GitHub-Event"), delivery.header("X-GitHub-Delivery"))

    def sign(
        self, secret: str, body: bytes, *, event: str, delivery_id: str, now: float
    ) -> tuple[dict[str, str], bytes]:
        """As GitHub would."""
        del now
        signature = f"sha256={digest(secret.encode(), body).hex()}"
        return {"X-Hub-Signature-256": signature, "X-GitHub-Event": event, "X-GitHub-Delivery": delivery_id}, body


@dataclass(frozen=True, slots=True)
class Stripe(_TextKey):
    """``Stripe-Signature`` is ``t=...,v1=...``, several v1 while a secret is rolled. The key is the whole secret."""

    def verify(self, delivery: Delivery, secret: str, now: float, window: float) -> bool:
        """Over time and body."""
        parts = [part.partition("=") for part in (delivery.header("Stripe-Signature") or "").split(",")]
        times = [value for name, _, value in parts if name.strip() == "t"]
        if len(times) != 1 or not in_window(times[0], now, window):
            return False
        presented = [from_hex(value) for name, _, value in parts if name.strip() == "v1"][:_MOST_SIGNATURES]
        return any_equal(digest(secret.encode(), times[0].encode() + b"." + delivery.body), presented)

    def identify(self, delivery: Delivery, document: object) -> Identity:
        """``id`` and ``type`` in the body.

        A repeat counts differently how many endpoints have not answered yet: that is no other event.
        """
        del delivery
        steady = document
        if isinstance(document, dict):
            steady = {name: value for name, value in document.items() if name != "pending_webhooks"}
        fingerprint = json.dumps(steady, sort_keys=True).encode()
        return Identity(text_at(document, "type"), text_at(document, "id"), fingerprint)

    def sign(
        self, secret: str, body: bytes, *, event: str, delivery_id: str, now: float
    ) -> tuple[dict[str, str], bytes]:
        """As Stripe would."""
        body = with_members(body, id=delivery_id, type=event)
        signature = digest(secret.encode(), f"{int(now)}.".encode() + body).hex()
        return {"Stripe-Signature": f"t={int(now)},v1={signature}"}, body


@dataclass(frozen=True, slots=True)
class WooCommerce(_TextKey):
    """``X-WC-Webhook-Signature`` is the base64 digest of the body. Its delivery ids change with each retry."""

    def verify(self, delivery: Delivery, secret: str, now: float, window: float) -> bool:  # noqa: ARG002 - no time in it
        """Over the body alone."""
        presented = from_base64(delivery.header("X-WC-Webhook-Signature") or "")
        return any_equal(digest(secret.encode(), delivery.body), [presented])

    def identify(self, delivery: Delivery, document: object) -> Identity:
        """The same topic, resource and content is the same delivery."""
        topic = delivery.header("X-WC-Webhook-Topic")
        content = hashlib.sha256(delivery.body).hexdigest()
        return Identity(topic, f"{topic or ''}:{text_at(document, 'id') or ''}:{content}")

    def sign(
        self, secret: str, body: bytes, *, event: str, delivery_id: str, now: float
    ) -> tuple[dict[str, str], bytes]:
        """As WooCommerce would."""
        del now
        signature = to_base64(digest(secret.encode(), body))
        names = ("Signature", "Topic", "Delivery-ID")
        values = (signature, event, delivery_id)
        return {f"X-WC-Webhook-{name}": value for name, value in zip(names, values, strict=True)}, body

    def unsigned(self, delivery: Delivery) -> Reply | None:
        """The ping that a shop sends when a webhook is saved; it is not saved without a 200."""
        return Reply(b'{"status": "pong"}') if _WOO_PING.fullmatch(delivery.body) else None

    def signed(self, delivery: Delivery, document: object) -> Reply | None:
        """Nothing else."""
        del delivery, document
        return None


@dataclass(frozen=True, slots=True)
class Shopify(_TextKey):
    """``X-Shopify-Hmac-Sha256`` is the base64 digest of the body."""

    def verify(self, delivery: Delivery, secret: str, now: float, window: float) -> bool:  # noqa: ARG002 - no time in it
        """Over the body alone."""
        presented = from_base64(delivery.header("X-Shopify-Hmac-Sha256") or "")
        return any_equal(digest(secret.encode(), delivery.body), [presented])

    def identify(self, delivery: Delivery, document: object) -> Identity:
        """Both are headers."""
        del document
        return Identity(delivery.header("X-Shopify-Topic"), delivery.header("X-Shopify-Webhook-Id"))

    def sign(
        self, secret: str, body: bytes, *, event: str, delivery_id: str, now: float
    ) -> tuple[dict[str, str], bytes]:
        """As Shopify would."""
        del now
        signature = to_base64(digest(secret.encode(), body))
        names = ("Hmac-Sha256", "Topic", "Webhook-Id")
        return {
            f"X-Shopify-{name}": value for name, value in zip(names, (signature, event, delivery_id), strict=True)
        }, body


@dataclass(frozen=True, slots=True)
class Slack(_TextKey):
    """``X-Slack-Signature`` is ``v0=`` and the hex digest of ``v0:{time}:{body}``."""

    def verify(self, delivery: Delivery, secret: str, now: float, window: float) -> bool:
        """Over time and body."""
        timestamp = delivery.header("X-Slack-Request-Timestamp")
        if timestamp is None or not in_window(timestamp, now, window):
            return False
        version, _, text = (delivery.header("X-Slack-Signature") or "").partition("=")
        presented = from_hex(text) if version == "v0" else None
        signed = b"v0:" + timestamp.encode() + b":" + delivery.body
        return any_equal(digest(secret.encode(), signed), [presented])

    def identify(self, delivery: Delivery, document: object) -> Identity:
        """``event_id`` in the body; the event is the inner one's type, else the body's."""
        del delivery
        return Identity(text_at(document, "event", "type") or text_at(document, "type"), text_at(document, "event_id"))

    def sign(
        self, secret: str, body: bytes, *, event: str, delivery_id: str, now: float
    ) -> tuple[dict[str, str], bytes]:
        """As Slack would."""
        body = with_members(body, type=event, event_id=delivery_id)
        signature = "v0=" + digest(secret.encode(), f"v0:{int(now)}:".encode() + body).hex()
        return {"X-Slack-Signature": signature, "X-Slack-Request-Timestamp": str(int(now))}, body

    def unsigned(self, delivery: Delivery) -> Reply | None:
        """Nothing unsigned is answered."""
        del delivery
        return None

    def signed(self, delivery: Delivery, document: object) -> Reply | None:
        """An address is taken into use only where it gives the challenge back."""
        del delivery
        challenge = text_at(document, "challenge")
        if challenge is None or text_at(document, "type") != "url_verification":
            return None
        return Reply(json.dumps({"challenge": challenge}).encode())


SCHEMES: Final[MappingProxyType[str, Scheme]] = MappingProxyType(
    {
        "generic": Generic(),
        "standard": Standard(),
        "github": GitHub(),
        "stripe": Stripe(),
        "woocommerce": WooCommerce(),
        "shopify": Shopify(),
        "slack": Slack(),
    }
)


def _standard_prefix(delivery: Delivery) -> str:
    """One family of headers, never a mixture."""
    return "webhook" if any(name.startswith("webhook-") for name, _ in delivery.headers) else "svix"


def _standard_key(secret: str) -> bytes:
    text = secret.removeprefix("whsec_")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is not base64, with or without whsec_ in front") from None


def _wire(text: str) -> bytes:
    """A header's bytes as they came: servers decode them as Latin-1."""
    return text.encode("latin-1", errors="replace")
