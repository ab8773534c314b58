"""The webhook receiver as an ASGI application. Read `WebhookReceiver._receive` first.

    limits -> signature over the raw bytes -> rate -> parse -> identify -> one transaction -> 202

Nothing is processed in the request, and nothing is parsed before the signature is known to be right.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from producers.webhooks import openapi
from producers.webhooks.answers import UNSIGNED, Problem, accepted, too_many, unavailable
from producers.webhooks.delivery import Answering, Delivery, Reply
from producers.webhooks.guard import Guard, body_of
from producers.webhooks.intake import BodyInvalid, arrival_of, parsed
from producers.webhooks.journal import Journal
from producers.webhooks.rate import Bucket, Rate
from producers.webhooks.source import WebhookSource
from store import jobs_read, sagas_read, schema, webhooks
from store.engine import Database
from store.webhooks import WebhookRecord
from topology.envelope import new_id
from topology.errors import ContractError, NotFound, StoreError
from topology.saga import Saga
from topology.settings import Settings

logger = logging.getLogger(__name__)

_READY_WITHIN: Final = 5.0
_DELIVERIES: Final = "/webhooks/"
_VERSION: Final = "1"
"""Of this interface, not of the package."""


class WebhookReceiver:
    """``POST /webhooks/{source}`` for every source, and what operators ask. Serve it, or mount it in your own app.

    What is answered with 202 is committed, and `hareline relay` publishes it. RabbitMQ is not needed here. ``clock``
    is Unix seconds. Raises SettingsError for a source without a secret. A database that is handed in stays open.
    """

    def __init__(
        self,
        sources: Iterable[WebhookSource],
        settings: Settings | None = None,
        *,
        database: Database | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings or Settings.from_env()
        armed = [source.armed(self._settings.extra) for source in sources]
        self._sources = {source.name: source for source in armed}
        if len(self._sources) < len(armed):
            raise ContractError("two webhook sources have the same name: it is what tells them apart")
        self._buckets = {source.name: Bucket(source.rate) for source in armed if isinstance(source.rate, Rate)}
        self._owned = database is None
        self._database = database or Database.from_settings(self._settings)
        self._clock = clock
        self._journal = Journal(self._database, self._settings.webhooks_retention, self._now)
        self._rules = {name: source.rules for name, source in self._sources.items()}
        # Looked up once: whether an object fits a protocol is no cheap question.
        self._answering = {name: rules for name, rules in self._rules.items() if isinstance(rules, Answering)}
        self._rest = self._application()
        self._asgi = Guard(self._dispatch, self._settings.webhooks_max_headers, self._settings.webhooks_concurrency)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        await self._asgi(scope, receive, send)

    async def close(self) -> None:
        """Closes the database, unless it was handed in. A server of its own does that at its end."""
        if self._owned:
            await self._database.close()

    # -- deliveries ------------------------------------------------------------------------------------------------

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Deliveries go past the router and its middleware, which take as long as the work; the rest goes through."""
        name = _delivered_to(scope)
        if name not in self._sources:
            await self._rest(scope, receive, send)
            return
        scope["path_params"] = {"source": name}
        request = Request(scope, receive)
        try:
            response = await self._receive(request)
        except Exception as error:
            await (await _failed(request, error))(scope, receive, send)
            raise  # to the server, which logs it
        await response(scope, receive, send)

    async def _receive(self, request: Request) -> Response:
        source = self._sources.get(request.path_params["source"])
        if source is None:
            return Problem(HTTPStatus.NOT_FOUND, "there is no such source")
        body = await body_of(request, self._settings.webhooks_max_body, self._settings.webhooks_body_timeout)
        if isinstance(body, Problem):
            return body
        delivery = Delivery.of(
            ((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw), body
        )
        rules = self._answering.get(source.name)
        if not source.verify(delivery, self._clock()):
            ping = rules.unsigned(delivery) if rules is not None else None
            if ping is not None:
                return _as_it_is(ping)
            logger.info("%s: a delivery that is not signed as it must be was refused", source.name)
            return Problem(HTTPStatus.UNAUTHORIZED, UNSIGNED)
        # After the signature: what a forger sends must not use up what the sender may.
        if source.name in self._buckets and (wait := self._buckets[source.name].take(self._clock())) > 0:
            return too_many(wait)
        try:
            document = parsed(delivery)
        except BodyInvalid as error:
            return Problem(HTTPStatus.BAD_REQUEST, str(error))
        reply = rules.signed(delivery, document) if rules is not None else None
        if reply is not None:
            return _as_it_is(reply)
        return await self._keep(source, delivery, document)

    async def _keep(self, source: WebhookSource, delivery: Delivery, document: object) -> Response:
        identity = source.identify(delivery, document)
        arrival = arrival_of(source, delivery, identity, new_id(), new_id(), self._clock())
        try:
            kept = await self._journal.accept(arrival)
        except StoreError as error:
            logger.warning("%s: a delivery could not be stored and was refused: %s", source.name, error)
            return unavailable("the delivery cannot be stored now")
        if kept.fate == "conflict":
            logger.info("%s: the key of webhook %s came with another body", source.name, kept.webhook_id)
            return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "this delivery id came before, with another body")
        logger.debug("%s: webhook %s, %s", source.name, kept.webhook_id, kept.fate)
        return accepted(kept.webhook_id, replayed=kept.fate == "repeat")

    # -- questions -------------------------------------------------------------------------------------------------

    async def _status(self, request: Request) -> Response:
        token = self._settings.webhooks_token
        if not token:
            return Problem(HTTPStatus.NOT_FOUND, "this is not enabled: set HARELINE_WEBHOOKS_TOKEN")
        given = request.headers.get("authorization", "").encode("latin-1", errors="replace")
        if not hmac.compare_digest(given, b"Bearer " + token.encode()):
            return Problem(HTTPStatus.UNAUTHORIZED, "a token is needed", {"WWW-Authenticate": "Bearer"})
        names = request.path_params
        try:
            async with self._database.reading() as connection:
                found = await webhooks.find(connection, names["source"], _printable(names["webhook_id"]))
                status = await self._became(connection, found)
        except NotFound:
            return Problem(HTTPStatus.NOT_FOUND, "no such webhook is known, or its retention is over")
        except StoreError:
            return unavailable("the database does not answer")
        about: dict[str, Any] = {name: getattr(found, name) for name in ("webhook_id", "source", "event")}
        of_saga = self._starts_saga(found)
        job = {"saga_id" if of_saga else "job_id": found.job_id, "saga" if of_saga else "job_type": found.job_type}
        return JSONResponse({**about, "status": status, **job, "received_at": found.received_at.isoformat()})

    async def _became(self, connection: AsyncConnection, found: WebhookRecord) -> str:
        try:
            if self._starts_saga(found):
                return (await sagas_read.get(connection, found.job_id)).status
            return (await jobs_read.get(connection, found.job_id, self._now())).status
        except NotFound:
            return "accepted"  # published, and not reported yet, or never

    def _starts_saga(self, found: WebhookRecord) -> bool:
        started = self._sources[found.source].starts(found.event) if found.source in self._sources else None
        return isinstance(started, Saga) and started.name == found.job_type

    async def _document(self, request: Request) -> Response:
        del request
        return JSONResponse(openapi.document(list(self._sources), _VERSION))

    async def _live(self, request: Request) -> Response:
        del request
        return JSONResponse({"status": "alive"})

    async def _ready(self, request: Request) -> Response:
        del request
        try:
            async with asyncio.timeout(_READY_WITHIN):
                await schema.verify(self._database)
        except (StoreError, TimeoutError):
            return unavailable("the database is not ready")
        return JSONResponse({"status": "ready"})

    # -- plumbing --------------------------------------------------------------------------------------------------

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _application(self) -> Starlette:
        routes = [
            Route("/webhooks/{source}", self._receive, methods=["POST"]),
            Route("/webhooks/{source}/{webhook_id}", self._status, methods=["GET"]),
            Route("/openapi.json", self._document, methods=["GET"]),
            Route("/livez", self._live, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
        ]
        made = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})
        made.router.redirect_slashes = False  # a redirected POST loses its body
        return made

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
                continue
            await self.close()
            await send({"type": "lifespan.shutdown.complete"})
            return


def _delivered_to(scope: Scope) -> str | None:
    """The source in the path of a POST; None for all other requests."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.removeprefix(_DELIVERIES) if path.startswith(_DELIVERIES) else None


def _as_it_is(reply: Reply) -> Response:
    return Response(reply.body, HTTPStatus.OK, media_type=reply.content_type)


def _printable(text: str) -> str:
    """PostgreSQL takes no NUL, and no id of ours has one."""
    return text if text.isprintable() else ""


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {
        HTTPStatus.NOT_FOUND: "there is nothing here",
        HTTPStatus.METHOD_NOT_ALLOWED: "this method is not allowed here",
    }
    return Problem(error.status_code, details.get(HTTPStatus(error.status_code), "refused"), error.headers)


async def _failed(_: Request, __: Exception) -> Response:
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "this went wrong here, not with you")
