"""The message: plain JSON in the body, everything else in standard AMQP properties and a few headers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, propagate, trace
from pika.spec import BasicProperties
from uuid_utils import uuid7

from topology import ladder
from topology.spec import Names

if TYPE_CHECKING:
    from topology.slip import Slip  # which builds on this module

ATTEMPT: Final = "hareline-attempt"
DELIVERIES: Final = "hareline-deliveries"
FIRST_FAILED_AT: Final = "hareline-first-failed-at"
LAST_FAILED_AT: Final = "hareline-last-failed-at"
REASON: Final = "hareline-reason"
ERROR: Final = "hareline-error"
ERROR_MESSAGE: Final = "hareline-error-message"
TRACEBACK: Final = "hareline-traceback"
ATTEMPTS: Final = "hareline-attempts"
ORIGIN_QUEUE: Final = "hareline-origin-queue"
DIED_AT: Final = "hareline-died-at"
REPLAY: Final = "hareline-replay"
"""How often the job was replayed from the dead-letter desk; its attempts count from 1 again each time."""
REPLACES: Final = "hareline-replaces"
"""The id of the dead job that this one was made from, with another payload."""
RECORD: Final = "hareline-record"
"""What the job log is to learn of the job, where that is not all: see `topology.contract.JobType`."""
SAGA: Final = "hareline-saga"
"""How far the saga has come that this job is a step of, as JSON: see `topology.slip`."""
RAN: Final = "hareline-ran"
"""On a step of a saga that was put off or interrupted: a run of it has begun, and nobody knows how far it came."""
ITINERARY: Final = "hareline-saga-itinerary"
"""Its steps and what undoes each, as JSON."""
UNDECODABLE: Final = "hareline-undecodable"
FAILURE: Final = (
    ATTEMPT, DELIVERIES, FIRST_FAILED_AT, LAST_FAILED_AT, REASON, ERROR, ERROR_MESSAGE, TRACEBACK, ATTEMPTS,
    ORIGIN_QUEUE, DIED_AT, UNDECODABLE, RAN,
)  # fmt: skip
"""Headers that tell of a job's past runs: a replay goes without them."""
BROKER: Final = (
    "x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason", "x-last-death-exchange",
    "x-last-death-queue", "x-last-death-reason", "x-delivery-count", "x-acquired-count",
)  # fmt: skip
"""Headers that the broker writes on a dead letter's way."""

# What the broker writes on its way through dead-letter exchanges. A copy that kept them would be dropped as a cycle.
_BROKER_HEADERS = ("x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count")

_ITS_OWN: Final = frozenset({*FAILURE, REPLAY, REPLACES, RECORD, SAGA, ITINERARY})

CONTENT_TYPE: Final = "application/json"
PERSISTENT: Final = 2


@dataclass(slots=True)
class Message:
    """A message on its way out: where to, its properties, its bytes."""

    exchange: str
    routing_key: str
    properties: BasicProperties
    body: bytes
    mandatory: bool = True
    due_at: float | None = None
    """Unix seconds, on delayed jobs."""
    detour: tuple[str, str] | None = None
    """Exchange and routing key for whoever finds that nothing is bound for its own."""


def new_id() -> str:
    """A job id: UUIDv7, so that ids sort by the time of their creation."""
    return str(uuid7())


def timestamp() -> str:
    """Now, as failure headers carry it: ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def address(names: Names, job_type: str, delay: float) -> tuple[str, str]:
    """Exchange and routing key for a job of ``job_type`` that is due in ``delay`` seconds."""
    if delay <= 0:
        return names.jobs, job_type
    units = ladder.units_of(delay)
    return names.level(ladder.entry_level(units)), ladder.routing_key(units, job_type)


def carried(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers for what follows a message of a saga: whose trace it is, and whatever else is not about the message."""
    kept = {n: v for n, v in headers.items() if n not in _ITS_OWN and not n.startswith(_BROKER_HEADERS)}
    return kept | (trace_headers() or {})


def trace_headers() -> dict[str, str] | None:
    """W3C trace context of the current span, or None outside of one."""
    if not context.get_current() or not trace.get_current_span().get_span_context().is_valid:
        return None  # the first question is the cheaper one, and nearly always enough
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def new_job(
    names: Names,
    job_type: str,
    body: bytes,
    *,
    job_id: str,
    delay: float = 0.0,
    priority: int | None = None,
    correlation_id: str | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Message:
    """A fresh job. ``delay`` is seconds."""
    exchange, routing_key = address(names, job_type, delay)
    properties = BasicProperties(
        content_type=CONTENT_TYPE,
        delivery_mode=PERSISTENT,
        priority=priority,
        correlation_id=correlation_id or job_id,
        message_id=job_id,
        timestamp=int(time.time()),
        type=job_type,
        headers=dict(headers) if headers else None,
    )
    return Message(exchange, routing_key, properties, body, due_at=time.time() + delay if delay > 0 else None)


def fresh_headers(headers: Mapping[str, Any] | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Headers for a copy: without what the broker wrote on the way, with ``changes`` (None removes)."""
    kept = {
        name: value
        for name, value in (headers or {}).items()
        if not name.startswith(_BROKER_HEADERS) and name not in changes
    }
    return kept | {name: value for name, value in changes.items() if value is not None}


def copy_of(
    properties: BasicProperties,
    body: bytes,
    *,
    exchange: str,
    routing_key: str,
    job_id: str | None,
    changes: Mapping[str, Any],
) -> Message:
    """A fresh copy of a delivered message, with header ``changes``; its priority and body stay.

    ``job_id`` is for a message that came without one, so that all copies of it are the same job.
    """
    copied = BasicProperties(
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        delivery_mode=PERSISTENT,
        priority=properties.priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        message_id=properties.message_id or job_id or new_id(),
        timestamp=properties.timestamp,
        type=properties.type,
        app_id=properties.app_id,
        headers=fresh_headers(properties.headers, changes) or None,
    )
    return Message(exchange, routing_key, copied, body)


class Malformed(Exception):
    """A message's properties cannot be understood; the text says which and why."""


@dataclass(slots=True)
class Envelope:
    """A delivered message, understood.

    ``attempt`` counts from 1, ``deliveries`` how often a worker died under it, ``replay`` how often the dead-letter
    desk replayed it.
    """

    job_id: str
    job_type: str
    attempt: int
    deliveries: int
    correlation_id: str
    priority: int | None
    headers: Mapping[str, Any]
    body: bytes
    replay: int = 0
    slip: Slip | None = None
    """Of a saga's step; whoever opens the envelope reads it."""


_NO_HEADERS: Final[Mapping[str, Any]] = {}
_RETURNS: Final = "x-delivery-count"
_TOLD: Final = frozenset({ATTEMPT, DELIVERIES, REPLAY, _RETURNS})


def open_envelope(properties: BasicProperties, body: bytes, queue_type: str) -> Envelope:
    """Understands a delivery from the queue of ``queue_type``.

    A message with nothing but a body runs as a job of its queue's type. Raises Malformed for header values that
    cannot be what they claim to be.
    """
    headers = properties.headers or _NO_HEADERS
    attempt, deliveries, replay = 1, 0, 0
    if not _TOLD.isdisjoint(headers):
        attempt, replay = _count(headers, ATTEMPT, 1), _count(headers, REPLAY, 0)
        deliveries = _count(headers, DELIVERIES, 0) + _count(headers, _RETURNS, 0)
    if UNDECODABLE in headers:
        raise Malformed(f"the message's properties cannot be decoded: {headers[UNDECODABLE]}")
    encoding = properties.content_encoding
    if encoding and encoding.lower() not in {"utf-8", "identity"}:
        raise Malformed(f"content_encoding is '{encoding}': only plain JSON is understood")
    job_id = properties.message_id or new_id()
    return Envelope(
        job_id,
        properties.type or queue_type,
        attempt,
        deliveries,
        properties.correlation_id or job_id,
        properties.priority,
        headers,
        body,
        replay,
    )


def _count(headers: Mapping[str, Any], name: str, default: int) -> int:
    value = headers.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise Malformed(f"header {name} is {value!r}: a whole number is needed")
    if name == ATTEMPT and value < 1:
        raise Malformed(f"header {name} is {value}: attempts count from 1")
    return value


def notice(names: Names, routing_key: str, body: bytes) -> Message:
    """An event for whoever listens on the events exchange; nobody may. ``body`` is JSON."""
    properties = BasicProperties(
        content_type=CONTENT_TYPE, delivery_mode=PERSISTENT, message_id=new_id(), timestamp=int(time.time())
    )
    return Message(names.events, routing_key, properties, body, mandatory=False)
