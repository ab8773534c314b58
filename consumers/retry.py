"""Retry policy, pure: what an error means, and when the next attempt is due."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from consumers.outcome import (
    DONE,
    AlreadyDone,
    Cancelled,
    Dead,
    Dropped,
    Outcome,
    Permanent,
    Retried,
    Snooze,
    Snoozed,
    Transient,
)
from topology.contract import Retry
from topology.errors import DatabaseUnavailable, SchemaOutdated
from topology.ladder import MAX_DELAY

_RETRIABLE_STATUS: Final = {408, 425, 429}
_CLIENT_ERRORS: Final = range(400, 500)
_PERMANENT: Final[tuple[type[BaseException], ...]] = (Permanent, PermissionError)
_TRANSIENT: Final[tuple[type[BaseException], ...]] = (
    Transient,
    ConnectionError,
    TimeoutError,
    DatabaseUnavailable,
    SchemaOutdated,  # a worker may be deployed before the upgrade
)

Classes = Sequence[type[BaseException]]


def backoff(retry: Retry, attempt: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds from the failure of ``attempt`` (from 1) to the next: base * factor^(attempt-1), capped, then jittered.

    ``draw`` gives a number from 0 to 1. The result lies within jitter of the capped delay and never exceeds what the
    ladder can hold.
    """
    try:
        delay = min(retry.cap, retry.base * float(retry.factor) ** (attempt - 1))
    except OverflowError:
        delay = retry.cap if retry.base else 0.0
    spread = delay * retry.jitter
    return min(MAX_DELAY, max(0.0, delay + spread * (2.0 * draw() - 1.0)))


def classify(
    error: BaseException,
    retry: Retry,
    attempt: int,
    *,
    permanent: Classes = (),
    transient: Classes = (),
    draw: Callable[[], float] = random.random,
) -> Outcome:
    """The outcome for an error that a handler raised on its ``attempt``.

    First what the handler says itself, then the app's own classes, then the HTTP status of an error that carries a
    response (4xx but 408, 425 and 429 are permanent; Retry-After is honoured), then what is known of the standard
    classes. What no rule knows follows ``retry.unexpected``.
    """
    if isinstance(error, Snoozed) and (put_off := _seconds(error.after)) is not None:
        return Snooze(put_off, str(error))
    if isinstance(error, Cancelled):
        return Dropped(str(error))
    if isinstance(error, AlreadyDone):
        return Dead("permanent", error) if error.name else DONE
    after: float | None = None
    if isinstance(error, Transient):
        after = _seconds(error.after)
    elif isinstance(error, (Permanent, *permanent)):
        return Dead("permanent", error)
    elif not isinstance(error, tuple(transient)):
        status = _http_status(error)
        if status is not None:
            if status in _CLIENT_ERRORS and status not in _RETRIABLE_STATUS:
                return Dead("permanent", error)
            after = retry_after(_http_header(error, "retry-after"), datetime.now(UTC))
        elif isinstance(error, _PERMANENT) or (not isinstance(error, _TRANSIENT) and retry.unexpected == "dead"):
            return Dead("permanent", error)
    return by_policy(error, retry, attempt, after, draw)


def is_an_answer(error: BaseException) -> bool:
    """Whether an error is the service's word on this one request, so that the service itself works.

    So are Permanent, PermissionError, and an HTTP response of 4xx but for 408, 425 and 429.
    """
    if isinstance(error, _PERMANENT):
        return True
    status = _http_status(error)
    return status is not None and status in _CLIENT_ERRORS and status not in _RETRIABLE_STATUS


def by_policy(
    error: BaseException,
    retry: Retry,
    attempt: int,
    after: float | None = None,
    draw: Callable[[], float] = random.random,
) -> Outcome:
    """The next attempt, ``after`` seconds later or as the policy says; dead once the attempts are used up."""
    if attempt >= retry.attempts:
        return Dead("exhausted", error)
    return Retried(backoff(retry, attempt, draw) if after is None else after, error)


def _seconds(value: object) -> float | None:
    """A delay that a handler or a server asks for, within the ladder's reach; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(min(max(value, 0.0), MAX_DELAY))


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (a number, or an HTTP date), or None if it says nothing usable.

    Never more than the ladder can hold.
    """
    if not value:
        return None
    text = value.strip()
    if text.isdecimal():
        return _seconds(float(text))
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return _seconds((moment - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):  # all of these, for one garbage or another
        return None


def _http_status(error: BaseException) -> int | None:
    """The status of an error with a response, as httpx, requests and aiohttp raise them."""
    response = getattr(error, "response", None)
    for holder, name in ((response, "status_code"), (error, "status"), (error, "status_code")):
        status = getattr(holder, name, None)
        if isinstance(status, int) and 100 <= status < 600:  # noqa: PLR2004 - the range of HTTP
            return status
    return None


def _http_header(error: BaseException, name: str) -> str | None:
    for holder in (getattr(error, "response", None), error):
        headers: Any = getattr(holder, "headers", None)
        if headers is not None and hasattr(headers, "get"):
            value = headers.get(name) or headers.get(name.title())
            if value:
                return str(value)
    return None
