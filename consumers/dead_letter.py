"""The message that a dead job becomes: the original, with headers that say why."""

from __future__ import annotations

import traceback
from typing import Final

from consumers.outcome import Dead
from topology import envelope
from topology.envelope import Envelope, Message, copy_of
from topology.spec import Names
from topology.subscription import Delivery

MESSAGE_LIMIT: Final = 2_000
TRACEBACK_LIMIT: Final = 16_000
"""Bytes. Headers must fit into one AMQP frame (128 KiB) together with whatever the message carried already."""


def dead_letter(names: Names, delivery: Delivery, opened: Envelope | None, outcome: Dead) -> Message:
    """The copy for the dead-letter exchange. ``opened`` is None where the message could not be understood."""
    error = outcome.error
    now = envelope.timestamp()
    headers = delivery.properties.headers or {}
    changes = {
        envelope.REASON: outcome.reason,
        envelope.ERROR: type(error).__name__,
        envelope.ERROR_MESSAGE: cut(str(error), MESSAGE_LIMIT),
        envelope.TRACEBACK: cut("".join(traceback.format_exception(error)), TRACEBACK_LIMIT),
        envelope.ATTEMPTS: opened.attempt if opened else None,
        envelope.FIRST_FAILED_AT: headers.get(envelope.FIRST_FAILED_AT, now),
        envelope.LAST_FAILED_AT: now,
        envelope.DIED_AT: now,
        envelope.ORIGIN_QUEUE: delivery.queue,
    }
    return copy_of(
        delivery.properties,
        delivery.body,
        exchange=names.dlx,
        routing_key=delivery.job_type,
        job_id=opened.job_id if opened else None,
        changes=changes,
    )


def cut(text: str, limit: int) -> str:
    """At most ``limit`` bytes of UTF-8: the beginning and, since that is where an error shows, more of the end."""
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= limit:
        return encoded.decode()
    head = limit // 4
    tail = limit - head - 40
    start, end = encoded[:head].decode(errors="ignore"), encoded[-tail:].decode(errors="ignore")
    return f"{start}\n... {len(encoded) - head - tail} bytes cut ...\n{end}"
