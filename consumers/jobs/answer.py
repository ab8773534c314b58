"""What another server's answer means for the job that asked, or its silence: one place for all that speak HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

import httpx

from consumers.outcome import Permanent, Transient
from consumers.retry import retry_after

_LATER: Final = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_SHOWN: Final = 200
"""Characters of a refusal's body that go into the dead letter."""


def not_like_this(status: int) -> bool:
    """The usual rule: 408, 425, 429 and 5xx say "not now", every other answer but 2xx "not like this"."""
    return status not in _LATER and status < HTTPStatus.INTERNAL_SERVER_ERROR


@contextmanager
def asking(what: str, *, discreet: bool = False) -> Iterator[None]:
    """Around a request: no connection, and no answer in time, are Transient; what cannot be sent is Permanent.

    ``discreet`` keeps the client's own words, which may hold the address, out of the error and its cause.
    """
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        kind = Transient if isinstance(error, httpx.TransportError) else Permanent
        if discreet:
            raise kind(f"{what}: {type(error).__name__}") from None
        raise kind(f"{what}: {str(error) or type(error).__name__}") from error


def judge(
    answer: httpx.Response, what: str, *, longest_wait: float, hopeless: Callable[[int], bool] = not_like_this
) -> None:
    """Returns for a 2xx. Permanent where ``hopeless(status)``, with the beginning of the body.

    Else Transient, after the server's Retry-After where it gives one, of which ``longest_wait`` seconds are believed.
    """
    if answer.is_success:
        return
    if hopeless(answer.status_code):
        raise Permanent(f"{finding(answer, what)}: {answer.text[:_SHOWN]}")
    wait = retry_after(answer.headers.get("Retry-After"), datetime.now(UTC))
    raise Transient(finding(answer, what), after=None if wait is None else min(wait, longest_wait))


def finding(answer: httpx.Response, what: str) -> str:
    """``what``, the status and its reason."""
    return f"{what}: {answer.status_code} {answer.reason_phrase}".rstrip()
