"""``http.sync``: carries a JSON document to an HTTP API, under a key that lets the API recognise a repeat."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Literal

import httpx
from pydantic import BaseModel, Field, JsonValue

from consumers.breaker import Breaker
from consumers.job import Job
from consumers.jobs import Handlers
from consumers.jobs.answer import asking, finding, judge
from consumers.outcome import Permanent
from topology.contract import JobType, Retry
from topology.errors import SettingsError


class Sync(BaseModel):
    """``path`` is relative to the API's base URL. PUT to a document's own address, POST to a collection."""

    path: Annotated[str, Field(max_length=2000, pattern=r"^(/[^\s/?#]+)+/?(\?[^\s#]*)?$")]
    document: JsonValue
    method: Literal["PUT", "POST"] = "PUT"


sync_document = JobType("http.sync", Sync, retry=Retry(attempts=8, base=5.0, cap=900.0), timeout=60.0)


@dataclass(frozen=True, slots=True)
class HttpApi:
    """The API that takes the documents.

    ``timeout`` is seconds for connecting and for each wait for data. ``longest_wait`` is how many seconds of
    a Retry-After are believed.
    """

    base_url: str
    token: str | None = field(default=None, repr=False)
    timeout: float = 15.0
    longest_wait: float = 3600.0
    connections: int = 50

    @classmethod
    def from_settings(cls, extra: Mapping[str, str]) -> HttpApi:
        """From ``Settings.from_env().extra``: ``SYNC_BASE_URL``, ``SYNC_TOKEN``. Raises SettingsError."""
        base_url = extra.get("SYNC_BASE_URL", "")
        if not base_url.startswith(("http://", "https://")):
            raise SettingsError(f"SYNC_BASE_URL is '{base_url}': http.sync needs the API's http(s) address")
        return cls(base_url, extra.get("SYNC_TOKEN") or None)

    def client(self) -> httpx.AsyncClient:
        """A client with its own connection pool."""
        return httpx.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {self.token}"} if self.token else None,
            timeout=self.timeout,
            limits=httpx.Limits(max_connections=self.connections, max_keepalive_connections=self.connections),
        )


def register(
    app: Handlers, api: HttpApi, job_type: JobType[Sync] = sync_document, *, breaker: Breaker | None = None
) -> None:
    """Gives ``app`` the handler. ``job_type`` may be a copy with another retry policy or timeout.

    ``breaker`` guards the service: while it is open none of the jobs is consumed.
    """
    client = functools.cache(api.client)  # made by the first job: one per process, and none in a producer

    guard = nullcontext() if breaker is None else breaker

    @app.handler(job_type, breaker=() if breaker is None else breaker)
    async def handle(payload: Sync, job: Job) -> None:
        async with guard:
            await sync(payload, job, client(), api)


async def sync(payload: Sync, job: Job, client: httpx.AsyncClient, api: HttpApi) -> None:
    """Sends the document and checks the answer.

    Transient: no connection, no answer in time, 408, 425, 429 and 5xx; after the server's Retry-After where
    it gives one. Permanent: every other answer but 2xx, and a 2xx whose body is not JSON (an empty body is
    fine). That last is a choice: whoever talks HTML here is a login page or a wrong address, and asking again
    would hide that for hours; in the dead-letter queue it is seen, and can be replayed.
    """
    headers = {"Idempotency-Key": job.idempotency_key, "X-Job-Id": job.id}
    what = f"{payload.method} {payload.path}"
    with asking(what):
        answer = await client.request(payload.method, payload.path, json=payload.document, headers=headers)
    judge(answer, what, longest_wait=api.longest_wait)
    if answer.content and not _is_json(answer.content):
        raise Permanent(f"{finding(answer, what)}: the body is not JSON: {answer.text[:200]}")


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True
