"""The message that a dead job becomes: the original, with headers that say why."""

from __future__ import annotations

import traceback
from typing import Any, Final

from consumers.outcome import Dead, Outcome
from topology import envelope
from topology.envelope import Envelope, Malformed, Message, copy_of
from topology.spec import Names
from topology.subscription import Delivery

MESSAGE_LIMIT: Final = 2_000
TRACEBACK_LIMIT: Final = 16_000
"""Bytes. Headers must fit into one AMQP frame (128 KiB) together with whatever the message carried already."""
PROPERTIES_LIMIT: Final = 120_000
"""Bytes, encoded. A little less than that frame."""
_SHORT_STRING: Final = 255


def dead_letter(
    names: Names, delivery: Delivery, opened: Envelope | None, outcome: Dead, record: str | None
) -> Message:
    """The copy for the dead-letter exchange. ``opened`` is None where the message could not be understood.

    ``record`` is its job type's, where that is known: whoever replays it knows no job types.
    """
    error = outcome.error
    now = envelope.timestamp()
    headers = delivery.properties.headers or {}
    changes = {
        envelope.REASON: outcome.reason,
        **_described(error),
        envelope.ATTEMPTS: opened.attempt if opened else None,
        envelope.FIRST_FAILED_AT: headers.get(envelope.FIRST_FAILED_AT, now),
        envelope.LAST_FAILED_AT: now,
        envelope.DIED_AT: now,
        envelope.ORIGIN_QUEUE: delivery.queue,
    }
    if record is not None:
        changes[envelope.RECORD] = None if record == "all" else record
    return copy_of(
        delivery.properties,
        delivery.body,
        exchange=names.dlx,
        routing_key=delivery.job_type,
        job_id=opened.job_id if opened else None,
        changes=changes,
    )


def shown(error: BaseException) -> str:
    """The error's message. Never raises: an error that cannot even be shown is dead-lettered all the same."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever the error's own code raises
        return "(this error cannot be shown: its __str__ raises)"


def _described(error: BaseException) -> dict[str, Any]:
    message = shown(error)
    return {
        envelope.ERROR: type(error).__name__,
        envelope.ERROR_MESSAGE: cut(message, MESSAGE_LIMIT),
        envelope.TRACEBACK: cut("".join(traceback.format_exception(error)), TRACEBACK_LIMIT),
    }


def can_be_sent(message: Message) -> bool:
    """Whether the broker will take the properties: one frame holds them all, or it closes the connection."""
    try:
        return sum(map(len, message.properties.encode())) <= PROPERTIES_LIMIT
    except Exception:  # noqa: BLE001 - pika raises many kinds for what AMQP cannot carry
        return False


def bare_dead_letter(names: Names, delivery: Delivery, opened: Envelope | None, outcome: Outcome) -> Message:
    """The dead letter of a message whose own properties cannot be sent on: its body, and why."""
    error = getattr(outcome, "error", None) or Malformed("its properties are too large to be sent on, or no AMQP")
    now = envelope.timestamp()
    changes = {
        envelope.REASON: outcome.reason if isinstance(outcome, Dead) else "malformed",
        **_described(error),
        envelope.UNDECODABLE: "its own properties and headers were too large to be sent on, or no AMQP",
        envelope.DIED_AT: now,
        envelope.ORIGIN_QUEUE: delivery.queue,
    }
    job_id = opened.job_id if opened and len(opened.job_id.encode()) <= _SHORT_STRING else None
    empty = type(delivery.properties)()
    return copy_of(
        empty, delivery.body, exchange=names.dlx, routing_key=delivery.job_type, job_id=job_id, changes=changes
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
