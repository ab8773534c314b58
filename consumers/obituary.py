"""From a message in the dead-letter queue to a row: what it was, why it died, and what it died of together with others.

Pure. Whatever a message holds, a row comes out: the headers say what they say, the body stays as it is.
"""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from store.dead_letters import NewLetter
from topology import envelope
from topology.envelope import Malformed
from topology.events import SAGA_STEP, JobEvent
from topology.slip import itinerary_of, place_text, slip_in
from topology.spec import Names

WORKER_LOST: Final = "worker-lost"
_LARGEST: Final = 2**31 - 1
_LONGEST_NAME: Final = 255
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_IDS: Final = uuid.UUID("5b6f0f0e-6d0c-4d53-9d0a-3f3e2b1d7c41")
_FRAME: Final = re.compile(r'File "(?:[^"\n]*[/\\])?([^"/\\\n]+)", line \d+, in (\S+)')
_VARYING: Final = re.compile(r"'[^']*'|\"[^\"]*\"|\b[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}\b|\b0x[0-9a-fA-F]+\b|\d+")


def letter_of(names: Names, properties: Any, body: bytes, now: datetime, groups: Mapping[str, str]) -> NewLetter:
    """The row of a message. ``properties`` are AMQP's, ``groups`` names the group of a job type."""
    headers: dict[str, Any] = plain(properties.headers or {})
    death = _death(headers)
    queue = _text(headers.get(envelope.ORIGIN_QUEUE)) or _text(death.get("queue"))
    job_type = _text(properties.type) or _name(_of_queue(names, queue)) or "unknown"
    died_at = _moment(headers.get(envelope.DIED_AT)) or _moment(death.get("time"))
    message_id = _text(properties.message_id)
    key = _key(message_id, died_at, headers.get(envelope.DIED_AT) or death.get("time"), queue, body)
    error, message = _name(headers.get(envelope.ERROR)), _text(headers.get(envelope.ERROR_MESSAGE))
    traceback = _text(headers.get(envelope.TRACEBACK))
    return NewLetter(
        message_key=key,
        job_id=message_id or str(uuid.uuid5(_IDS, key)),
        job_type=job_type,
        group_name=groups.get(job_type),
        queue=queue,
        reason=_name(headers.get(envelope.REASON)) or _reason(death),
        error=error,
        message=message,
        traceback=traceback,
        attempts=_number(headers.get(envelope.ATTEMPTS), headers.get(envelope.ATTEMPT)),
        first_failed_at=_moment(headers.get(envelope.FIRST_FAILED_AT)),
        last_failed_at=_moment(headers.get(envelope.LAST_FAILED_AT)),
        died_at=died_at or now,
        body=body,
        priority=properties.priority,
        correlation_id=_text(properties.correlation_id),
        content_type=_text(properties.content_type),
        content_encoding=_text(properties.content_encoding),
        headers={name: value for name, value in headers.items() if name != envelope.TRACEBACK},  # it has a column
        fingerprint=fingerprint(job_type, error, message, traceback),
        replays=_number(headers.get(envelope.REPLAY)) or 0,
        replaces=_text(headers.get(envelope.REPLACES)),
    )


def saga_news_of(letter: NewLetter) -> JobEvent | None:
    """What the saga log is to learn of a dead letter: a step, or an undo, waits. None where it is no saga's."""
    try:
        slip = slip_in(letter.headers)
    except Malformed:
        return None
    if slip is None:
        return None
    detail = {
        "step": place_text(slip.place),
        "undo": slip.undoing,
        "job_id": letter.job_id,
        "type": letter.job_type,
        "status": "dead",
        "began": slip.began,
        "itinerary": itinerary_of(slip.plan),
        "message": letter.message or letter.reason,
    }
    at, error = letter.died_at.timestamp(), letter.error
    return JobEvent(SAGA_STEP, slip.id, slip.name, letter.replays, letter.attempts or 0, at, None, error, detail)


def fingerprint(job_type: str, error: str | None, message: str | None, traceback: str | None) -> str:
    """The same for jobs of one type that died of one error at one place.

    The place is the innermost frame (file and function: lines move); without a traceback, the message without its
    numbers, ids and quoted parts.
    """
    frames = _FRAME.findall(traceback or "")
    place = ":".join(frames[-1]) if frames else _VARYING.sub("?", message or "")
    return hashlib.sha256("\0".join((job_type, error or "", place)).encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """A header's value as JSON that both databases take: no NUL, no NaN, times as text, bytes as text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {_clean(str(name)): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, bytes | bytearray):
        return _clean(bytes(value).decode(errors="backslashreplace"))
    return _clean(str(value))


def _clean(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode(errors="backslashreplace").decode()


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else _clean(str(value))


def _name(value: Any) -> str | None:
    """A text that is searched for: an index takes no long ones."""
    text = _text(value)
    return text and text[:_LONGEST_NAME]


def _number(*values: Any) -> int | None:
    whole = (value for value in values if isinstance(value, int) and not isinstance(value, bool))
    return next((value for value in whole if 0 <= value <= _LARGEST), None)


def _moment(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """The latest death that the broker tells of."""
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    return latest if isinstance(latest, Mapping) else {}


def _reason(death: Mapping[str, Any]) -> str | None:
    reason = _name(death.get("reason"))
    return WORKER_LOST if reason == "delivery_limit" else reason


def _of_queue(names: Names, queue: str | None) -> str | None:
    prefix = names.queue("")
    return queue.removeprefix(prefix) if queue and queue.startswith(prefix) else None


def _key(message_id: str | None, died_at: datetime | None, told_at: Any, queue: str | None, body: bytes) -> str:
    """The same for the same message. It begins with the time of death: new keys come last in their index."""
    told = "\0".join((message_id or "", str(told_at or ""), queue or ""))
    digest = hashlib.sha256(told.encode() + b"\0" + hashlib.sha256(body).digest()).hexdigest()[:32]
    return f"{_milliseconds(died_at):012x}-{digest}"


def _milliseconds(moment: datetime | None) -> int:
    return 0 if moment is None else max(0, (moment - _EPOCH) // timedelta(milliseconds=1))
