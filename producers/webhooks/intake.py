"""From a verified delivery to the outbox row that it becomes. Pure: ids are passed in."""

from __future__ import annotations

import hashlib
import json
from email.message import Message as MimeHeaders
from typing import Any, Final, NoReturn

from producers.orders import saga_order
from producers.webhooks.catchall import webhook_received
from producers.webhooks.delivery import Delivery, Identity
from producers.webhooks.source import WebhookSource
from store.outbox import OutboxRow
from store.webhooks import Arrival
from topology.contract import DEFAULT_PRIORITY, JobType
from topology.saga import Saga
from topology.spec import Names

WEBHOOK_ID: Final = "hareline-webhook-id"
WEBHOOK_SOURCE: Final = "hareline-webhook-source"
WEBHOOK_EVENT: Final = "hareline-webhook-event"
"""Headers of the job that a delivery starts: `job.headers` has them."""

ORIGIN: Final = "webhook"
_LONGEST_NAME: Final = 200
_BOM: Final = b"\xef\xbb\xbf"
_UTF8: Final = {"utf-8", "utf8", "us-ascii", "ascii"}


class BodyInvalid(Exception):
    """The body is no JSON in UTF-8. The text may be shown to the sender, who has signed it."""


def parsed(delivery: Delivery) -> Any:
    """The document in the body. Raises BodyInvalid."""
    try:
        text = delivery.body.removeprefix(_BOM).decode()
    except UnicodeDecodeError:
        raise BodyInvalid("the body is not UTF-8") from None
    if not text.isascii() and _charset(delivery.header("Content-Type") or "") not in _UTF8:
        raise BodyInvalid("the body is declared to be in a charset other than UTF-8, which JSON is not sent in")
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise BodyInvalid("the body is nested too deeply") from None
    except ValueError:
        raise BodyInvalid("the body is not JSON") from None


def arrival_of(
    source: WebhookSource, delivery: Delivery, identity: Identity, webhook_id: str, started_id: str, now: float
) -> Arrival:
    """What is to be stored; ``now`` is Unix seconds. The job, or saga, gets the body as it came, byte for byte."""
    event = identity.event if identity.event is not None and _is_plain(identity.event) else None
    started = source.starts(event)
    body = delivery.body.removeprefix(_BOM)
    headers = {WEBHOOK_ID: webhook_id, WEBHOOK_SOURCE: source.name}
    if event is not None:
        headers[WEBHOOK_EVENT] = event
    if isinstance(started, Saga):
        order = saga_order(Names(""), started.slip(started_id, now), body, headers)
        rows, name = order.rows(ORIGIN), started.name  # which exchange it is for the relay knows
    else:
        if started is None:
            started = webhook_received
            about = {"source": source.name, "event": event, "webhook_id": webhook_id}
            # Not parsed and written anew: numbers would come out differently.
            body = json.dumps(about).encode()[:-1] + b', "body": ' + body + b"}"
        rows, name = [_job_row(started, started_id, body, webhook_id, headers)], started.name
    fingerprint = delivery.body if identity.fingerprint is None else identity.fingerprint
    key, digest = _key(identity.delivery_id, webhook_id), hashlib.sha256(fingerprint).hexdigest()
    return Arrival(webhook_id, source.name, key, digest, event, started_id, name, tuple(rows))


def _job_row(job_type: JobType[Any], job_id: str, body: bytes, webhook_id: str, headers: dict[str, str]) -> OutboxRow:
    return OutboxRow(
        job_id=job_id,
        job_type=job_type.name,
        body=body,
        origin=ORIGIN,
        priority=DEFAULT_PRIORITY if job_type.priority else None,
        correlation_id=webhook_id,
        headers=headers,
    )


def _key(delivery_id: str | None, webhook_id: str) -> str:
    if delivery_id is None:
        return f"none:{webhook_id}"
    if _is_plain(delivery_id):
        return f"id:{delivery_id}"
    return "sha256:" + hashlib.sha256(delivery_id.encode(errors="surrogatepass")).hexdigest()


def _is_plain(text: str) -> bool:
    """Short, and with nothing in it that a database, a log line or a header would stumble over."""
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable()


def _charset(content_type: str) -> str:
    header = MimeHeaders()
    header["Content-Type"] = content_type.replace("\r", " ").replace("\n", " ")
    return (header.get_content_charset() or "utf-8").lower()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
