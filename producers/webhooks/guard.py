"""Limits on what anybody may send before it is known who it is."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from producers.webhooks.answers import Problem, unavailable

_BUSY: Final = 1
"""Seconds: a full house empties quickly."""
_PROBES: Final = ("/livez", "/readyz")


class Guard:
    """An ASGI middleware: headers up to ``max_headers`` bytes, and ``most`` requests at once; probes always pass."""

    def __init__(self, app: ASGIApp, max_headers: int, most: int) -> None:
        self._app = app
        self._max_headers = max_headers
        self._most = most
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 431 or 503 itself."""
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) in _PROBES:
            await self._app(scope, receive, send)
            return
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self._max_headers:
            detail = f"the headers are longer than {self._max_headers} bytes"
            await Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)(scope, receive, send)
            return
        if self._now >= self._most:
            await unavailable("too many requests at once", _BUSY)(scope, receive, send)
            return
        self._now += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._now -= 1


async def body_of(request: Request, limit: int, seconds: float) -> bytes | Problem:
    """The raw body, or the answer to one that is too long, too slow or cut off. Never holds more than ``limit``."""
    close = {"Connection": "close"}
    too_large = Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {limit} bytes", close)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):  # noqa: PLR2004 - digits that fit
        return too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    return too_large
    except TimeoutError:
        return Problem(HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {seconds:g} seconds", close)
    except ClientDisconnect:
        return Problem(HTTPStatus.BAD_REQUEST, "the request was cut off", close)
    return bytes(body)
