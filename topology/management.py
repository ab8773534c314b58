"""Reads the management HTTP API. Standard library alone, so that a worker can verify without loading more."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

from topology.errors import ManagementError
from topology.spec import Binding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from topology.settings import Settings

_PAGE: Final = 500
_NOT_FOUND: Final = 404
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue as the API describes it.

    Counts are None while the broker has not yet collected any; they lag behind by up to two collection
    intervals (10 s by default), unlike what a passive declaration answers. ``messages`` includes those on
    their way to a dead-letter exchange.
    """

    name: str
    queue_type: str
    arguments: Mapping[str, Any]
    durable: bool
    passing: bool
    messages: int | None
    ready: int | None
    unacknowledged: int | None
    consumers: int | None


@dataclass(frozen=True, slots=True)
class ExchangeInfo:
    """An exchange as the API describes it."""

    name: str
    kind: str
    arguments: Mapping[str, Any]
    durable: bool


@dataclass(frozen=True, slots=True)
class BindingInfo:
    """A binding with its arguments. The default exchange's source is the empty string."""

    binding: Binding
    arguments: Mapping[str, Any]


class Management:
    """A read-only client of one virtual host. Every call may raise ManagementError.

    ``url`` is like ``http://user:password@host:15672``; where it names no user, the broker URL's is taken, as
    is the virtual host. ``timeout`` is seconds for one request.
    """

    def __init__(self, url: str, broker_url: str, *, timeout: float = 10.0) -> None:
        parts, broker = urlsplit(url), urlsplit(broker_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ManagementError(
                f"HARELINE_MANAGEMENT_URL: '{parts.scheme}://{parts.hostname or ''}' is no address of a "
                "management API; write http://user:password@host:15672"
            )
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.address = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
        self.vhost = unquote(broker.path[1:]) or "/"
        owner = parts if parts.username else broker
        self.user = unquote(owner.username or "guest")
        password = unquote(owner.password or ("" if owner.username else "guest"))
        self._base = self.address + parts.path.rstrip("/").removesuffix("/api") + "/api"
        self._authorization = "Basic " + base64.b64encode(f"{self.user}:{password}".encode()).decode()
        self._timeout = timeout
        self._opener: OpenerDirector | None = None

    @classmethod
    def from_settings(cls, settings: Settings, broker_url: str | None = None) -> Management | None:
        """The client that the settings ask for; None where they name no management API."""
        if settings.management_url is None:
            return None
        return cls(settings.management_url, broker_url or settings.broker_urls[0])

    async def overview(self) -> Mapping[str, Any]:
        """What ``GET /api/overview`` answers: versions, node, totals."""
        return cast("Mapping[str, Any]", await self._get("/overview"))

    async def exchanges(self, namespace: str) -> tuple[ExchangeInfo, ...]:
        """The exchanges of ``namespace``."""
        return tuple(
            ExchangeInfo(raw["name"], raw["type"], raw.get("arguments") or {}, raw.get("durable", True))
            for raw in await self._pages("exchanges", namespace)
        )

    async def queues(self, namespace: str) -> tuple[QueueInfo, ...]:
        """The queues of ``namespace``, with their counts."""
        return tuple(_queue_info(raw) for raw in await self._pages("queues", namespace))

    async def queue(self, name: str) -> QueueInfo | None:
        """One queue, or None if there is none of that name."""
        raw = await self._get(f"/queues/{self._vhost}/{quote(name, safe='')}", missing_is_none=True)
        return None if raw is None else _queue_info(raw)

    async def bindings(self, namespace: str) -> tuple[BindingInfo, ...]:
        """The bindings from or to what belongs to ``namespace``, those of the default exchange left out."""
        prefix = namespace + "."
        return tuple(
            _binding_info(raw)
            for raw in await self._get(f"/bindings/{self._vhost}")
            if raw["source"] and (raw["source"].startswith(prefix) or raw["destination"].startswith(prefix))
        )

    async def bindings_of(self, queue: str) -> tuple[BindingInfo, ...]:
        """The bindings that lead into ``queue``, whoever made them; none if there is no such queue."""
        path = f"/queues/{self._vhost}/{quote(queue, safe='')}/bindings"
        answer = await self._get(path, missing_is_none=True)
        return tuple(_binding_info(raw) for raw in answer or () if raw["source"])

    @property
    def _vhost(self) -> str:
        return quote(self.vhost, safe="")

    async def _pages(self, what: str, namespace: str) -> list[Mapping[str, Any]]:
        # Asking by name keeps the answer small on a broker that thousands of others' queues live on.
        name = quote("^" + re.escape(namespace + ".").replace("\\-", "-"), safe="")
        found: list[Mapping[str, Any]] = []
        page, pages = 1, 1
        while page <= pages:
            query = f"page={page}&page_size={_PAGE}&use_regex=true&name={name}"
            answer = await self._get(f"/{what}/{self._vhost}?{query}")
            found += answer["items"]
            pages = answer["page_count"]
            page += 1
        return found

    async def _get(self, path: str, *, missing_is_none: bool = False) -> Any:
        return await asyncio.to_thread(self._request, path, missing_is_none)

    def _request(self, path: str, missing_is_none: bool) -> Any:
        if self._opener is None:
            # The environment's proxy settings are for the way out, and a broker is not there; settings alone
            # decide.
            self._opener = build_opener(ProxyHandler({}), HTTPSHandler(context=ssl.create_default_context()))
        headers = {"Authorization": self._authorization}
        request = Request(self._base + path, headers=headers)  # noqa: S310 - http or https, see __init__
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return json.loads(response.read(256 * _MIB))
        except HTTPError as error:
            with error:
                if error.code == _NOT_FOUND and missing_is_none:
                    return None
                raise self._refused(error) from None
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise ManagementError(
                f"the management API at {self.address} does not answer "
                f"({str(reason) or type(reason).__name__}): is HARELINE_MANAGEMENT_URL right, and "
                "rabbitmq_management enabled? Unset it to work without"
            ) from error
        except ValueError as error:
            raise ManagementError(
                f"what answers at {self.address} is not RabbitMQ's management API: check HARELINE_MANAGEMENT_URL"
            ) from error

    def _refused(self, error: HTTPError) -> ManagementError:
        try:
            said = json.loads(error.read(_MIB)).get("reason", "")
        except (ValueError, AttributeError, OSError):
            said = ""
        what = f"the management API at {self.address} answered {error.code} {said or error.reason}"
        if error.code in {401, 403}:
            return ManagementError(
                f"{what}: user '{self.user}' needs the right password, the tag 'management' and access "
                f"to virtual host '{self.vhost}'"
            )
        if error.code == _NOT_FOUND:
            return ManagementError(f"{what}: is there a virtual host '{self.vhost}', and is the URL's path right?")
        return ManagementError(what)


def _queue_info(raw: Mapping[str, Any]) -> QueueInfo:
    arguments = raw.get("arguments") or {}
    return QueueInfo(
        name=raw["name"],
        queue_type=raw.get("type") or arguments.get("x-queue-type", "classic"),
        arguments=arguments,
        durable=raw.get("durable", True),
        passing=bool(raw.get("exclusive") or raw.get("auto_delete") or raw.get("owner_pid_details")),
        messages=raw.get("messages"),
        ready=raw.get("messages_ready"),
        unacknowledged=raw.get("messages_unacknowledged"),
        consumers=raw.get("consumers"),
    )


def _binding_info(raw: Mapping[str, Any]) -> BindingInfo:
    binding = Binding(raw["source"], raw["destination"], raw["destination_type"], raw["routing_key"])
    return BindingInfo(binding, raw.get("arguments") or {})
