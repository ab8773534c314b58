"""What senders are answered: JSON, and problems as RFC 9457 has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import JSONResponse

REPLAYED: Final = "Idempotency-Replayed"
RETRY_AFTER: Final = 5
"""Seconds that a sender is asked to wait where the database is away."""

UNSIGNED: Final = "the delivery is not signed as this source requires"
"""The same whatever is wrong: signature, secret, time, or all of them missing."""


class Problem(JSONResponse):
    """``application/problem+json``. ``detail`` is for the sender's eyes: no secret, nothing that was computed."""

    media_type = "application/problem+json"

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        content: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
        super().__init__({**content, "detail": detail}, status_code=status, headers=headers)


def unavailable(detail: str, seconds: int = RETRY_AFTER) -> Problem:
    """503: nothing was stored, the same request may succeed later."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": str(seconds)})


def too_many(seconds: float) -> Problem:
    """429: nothing was stored, and there is room again in ``seconds``."""
    headers = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return Problem(HTTPStatus.TOO_MANY_REQUESTS, "more deliveries came than this source may send", headers)


def accepted(webhook_id: str, *, replayed: bool) -> JSONResponse:
    """202 for what is new and committed, 200 with its id for what was before."""
    content = {"webhook_id": webhook_id, "status": "accepted"}
    if replayed:
        return JSONResponse(content, HTTPStatus.OK, {REPLAYED: "true"})
    return JSONResponse(content, HTTPStatus.ACCEPTED)
