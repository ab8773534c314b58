"""The event that tells what became of a delivery."""

from __future__ import annotations

import time
from typing import Any, Final

from consumers.dead_letter import shown
from consumers.outcome import Dead, Done, Dropped, Outcome, Retried, Returned, Snooze
from topology import events
from topology.envelope import REPLAY, Envelope
from topology.events import JobEvent
from topology.subscription import Delivery

MESSAGE_LIMIT: Final = 500
"""Characters of an error's message."""


def event_of(delivery: Delivery, opened: Envelope | None, outcome: Outcome, duration: float) -> JobEvent:
    """The event of a settlement now. ``opened`` is None for a message that could not be understood."""
    name = _EVENT_OF[type(outcome)]
    if opened is None:
        job_id, replay, attempt = delivery.properties.message_id or "", _replay(delivery), 1
    else:
        job_id, replay, attempt = opened.job_id, opened.replay, opened.attempt
    now = time.time()
    if isinstance(outcome, Done | Returned):
        return JobEvent(name, job_id, delivery.job_type, replay, attempt, now, duration)
    error = outcome.error if isinstance(outcome, Retried | Dead) else None
    detail = _detail(outcome, now)
    kind = type(error).__name__ if error is not None else None
    return JobEvent(name, job_id, delivery.job_type, replay, attempt, now, duration, kind, detail)


def _detail(outcome: Retried | Snooze | Dead | Dropped, now: float) -> dict[str, Any]:
    text = shown(outcome.error) if isinstance(outcome, Retried | Dead) else outcome.cause
    # Twice: a lone surrogate is written as six characters.
    sound = text[:MESSAGE_LIMIT].encode(errors="backslashreplace").decode()[:MESSAGE_LIMIT]
    detail: dict[str, Any] = {"message": sound} if sound else {}
    if isinstance(outcome, Retried | Snooze):
        detail["due_at"] = now + outcome.after
    return detail


def _replay(delivery: Delivery) -> int:
    """What a message says of its replays that may say any nonsense."""
    value = (delivery.properties.headers or {}).get(REPLAY)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0


_EVENT_OF: Final[dict[type, str]] = {
    Done: events.DONE,
    Returned: events.DONE,
    Retried: events.RETRYING,
    Snooze: events.SNOOZED,
    Dead: events.DEAD,
    Dropped: events.CANCELLED,
}
