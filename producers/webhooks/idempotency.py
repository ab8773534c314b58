"""``Idempotency-Key`` for a service's own API: the first call runs, a repeat gets its answer. An ASGI middleware.

After the IETF's draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producers.webhooks.answers import REPLAYED, Problem, unavailable
from producers.webhooks.guard import body_of
from store.answers import RETENTION, Answer, Call, begin, finish, release
from store.engine import Database
from topology.envelope import new_id
from topology.errors import StoreError
from topology.settings import Settings

logger = logging.getLogger(__name__)

HEADER: Final = "Idempotency-Key"
_LONGEST: Final = 255
_AGAIN: Final = 1
_FAILED: Final = 500


def by_authorization(scope: Scope) -> str:
    """Whose key it is: what the caller proves itself with. Two callers never see each other's answers."""
    proofs = [value for name, value in scope["headers"] if name in {b"authorization", b"cookie"}]
    return hashlib.sha256(b"\0".join(proofs)).hexdigest()


class Idempotency:
    """Wraps an ASGI application: ``app.add_middleware(Idempotency, paths=["/orders"])`` in Starlette and FastAPI.

    For calls of ``methods`` to ``paths`` (prefixes; all by default): without a key 400 where ``required``; while the
    first call runs 409; another call under the same key 422; else the first call's answer, for ``retention`` seconds,
    with ``Idempotency-Replayed: true``. A call that fails (5xx, or an exception) gives its key back.

    ``lease`` is how many seconds a call may take: one whose process died is run again by a repeat after that.
    ``caller`` says whose key it is. The body and the answer are held in memory. With the database away it answers
    503 and runs nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings | None = None,
        *,
        database: Database | None = None,
        methods: Iterable[str] = ("POST", "PATCH"),
        paths: Iterable[str] = ("/",),
        required: bool = True,
        retention: float = RETENTION,
        lease: float = 60.0,
        caller: Callable[[Scope], str] = by_authorization,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._app = app
        self._settings = settings or Settings.from_env()
        self._database = database or Database.from_settings(self._settings)
        self._methods = frozenset(methods)
        self._paths = tuple(paths)
        self._required = required
        self._retention = retention
        self._lease = lease
        self._caller = caller
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] not in self._methods or not scope["path"].startswith(self._paths):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        keys = request.headers.getlist(HEADER)
        if not keys and not self._required:
            await self._app(scope, receive, send)
            return
        key = _key(keys)
        if isinstance(key, Problem):
            await key(scope, receive, send)
            return
        body = await body_of(request, self._settings.webhooks_max_body, self._settings.webhooks_body_timeout)
        if isinstance(body, Problem):
            await body(scope, receive, send)
            return
        call = Call(self._caller(scope), key, _fingerprint(scope, body), new_id())
        answer = await self._begin(call)
        if answer is None:
            await self._run(call, scope, body, receive, send)
        else:
            await answer(scope, receive, send)

    async def _begin(self, call: Call) -> ASGIApp | None:
        """The answer that is known without running the call; None where it is to be run."""
        try:
            async with self._database.transaction() as connection:
                begun = await begin(connection, call, self._clock(), self._lease, self._retention)
        except StoreError as error:
            logger.warning("a call with an idempotency key was refused: %s", error)
            return unavailable("the idempotency key cannot be looked up now")
        if begun.state == "busy":
            return Problem(HTTPStatus.CONFLICT, "the first call with this key still runs", {"Retry-After": str(_AGAIN)})
        if begun.state == "conflict":
            return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "this key came before, with another call")
        return None if begun.answer is None else _Stored(begun.answer)

    async def _run(self, call: Call, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """The answer is kept before it is sent: a caller that has it will find it again."""
        recorder = _Recorder(body, receive)
        try:
            await self._app(scope, recorder.receive, recorder.send)
        except BaseException:
            await self._settle(call, None)
            raise
        answer = recorder.answer
        await self._settle(call, answer if answer is not None and answer.status < _FAILED else None)
        for message in recorder.sent:
            await send(message)

    async def _settle(self, call: Call, answer: Answer | None) -> None:
        try:
            async with self._database.transaction() as connection:
                if answer is None:
                    await release(connection, call)
                elif not await finish(connection, call, answer):
                    logger.warning("a call took longer than its lease, and a repeat of it was run")
        except StoreError as error:
            # The call has run: its answer is true all the same. The key is free again when the lease is over.
            logger.warning("an answer could not be kept for repeats of its call: %s", error)


class _Recorder:
    """Gives the application the body that was read before, and holds what it answers."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        """The whole body first, then what comes from the server: that the caller has gone."""
        body, self._body = self._body, None
        if body is None:
            return await self._receive()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Kept."""
        self.sent.append(message)

    @property
    def answer(self) -> Answer | None:
        """What was answered; None where nothing was."""
        start: Any = next((message for message in self.sent if message["type"] == "http.response.start"), None)
        if start is None:
            return None
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start.get("headers", ())]
        pieces = (message.get("body", b"") for message in self.sent if message["type"] == "http.response.body")
        return Answer(start["status"], headers, b"".join(pieces))


class _Stored:
    """The first call's answer, marked as a replay."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._answer.headers]
        headers.append((REPLAYED.lower().encode(), b"true"))
        await send({"type": "http.response.start", "status": self._answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": self._answer.body})


def _key(given: list[str]) -> str | Problem:
    """The draft writes it in quotes; callers in the wild mostly do not."""
    if len(given) != 1:
        what = "is missing" if not given else "came more than once"
        return Problem(HTTPStatus.BAD_REQUEST, f"the header {HEADER} {what}")
    key = given[0].strip()
    if len(key) > 1 and key.startswith('"') and key.endswith('"'):
        key = key[1:-1]
    if not key or len(key) > _LONGEST or not key.isascii() or not key.isprintable():
        return Problem(HTTPStatus.BAD_REQUEST, f"the header {HEADER} needs 1 to {_LONGEST} printable characters")
    return key


def _fingerprint(scope: Scope, body: bytes) -> str:
    about = f"{scope['method']} {scope['path']}\0".encode("utf-8", "surrogateescape")
    return hashlib.sha256(about + scope.get("query_string", b"") + b"\0" + body).hexdigest()
