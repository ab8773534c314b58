"""``webhook.deliver``: sends a webhook, signed as Standard Webhooks has it, until the other side has taken it."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import urlsplit

import httpx
from pydantic import AwareDatetime, BaseModel, Field, JsonValue

from consumers.job import Job
from consumers.jobs import Handlers
from consumers.jobs.answer import asking, judge
from consumers.outcome import Permanent
from producers.webhooks.schemes import SCHEMES, standard_headers
from topology.contract import JobType, Retry
from topology.errors import SettingsError

_HOPELESS: Final = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.GONE,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
}
"""Answers to these very bytes, which would be the same next time; after 410 nobody wants them any more."""

_URL: Final = re.compile(r"WEBHOOK_OUT_([A-Z0-9_]+)_URL")


class Outgoing(BaseModel):
    """``endpoint`` is a name from the settings: addresses and secrets are in no message."""

    endpoint: Annotated[str, Field(min_length=1, max_length=100)]
    event: Annotated[str, Field(min_length=1, max_length=200)]
    data: JsonValue
    timestamp: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it happened; set where the payload is made, so that every attempt sends the same bytes."""


deliver_webhook = JobType(
    "webhook.deliver", Outgoing, retry=Retry(attempts=14, base=10.0, factor=3.0, cap=12 * 3600.0), timeout=60.0
)
"""Fourteen attempts over about three days."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to, and the secrets that sign: several while one is replaced, each gives a signature."""

    url: str
    secrets: Sequence[str] = field(repr=False)

    def __post_init__(self) -> None:
        if not _is_address(self.url):  # not shown: it may hold a token
            raise SettingsError("a webhook endpoint needs an http(s) address, with a host and a port that there can be")
        if isinstance(self.secrets, str) or not self.secrets:
            raise SettingsError("a webhook endpoint needs secrets=[...]: unsigned deliveries would be refused")
        for secret in self.secrets:
            try:
                SCHEMES["standard"].check(secret)
            except ValueError as error:
                raise SettingsError(f"a secret of a webhook endpoint cannot be used: {error}") from None


@dataclass(frozen=True, slots=True)
class Endpoints:
    """All that may be sent to, by name. ``timeout`` and ``longest_wait`` (of a Retry-After believed) are seconds."""

    by_name: Mapping[str, Endpoint]
    timeout: float = 20.0
    longest_wait: float = 86_400.0

    @classmethod
    def from_settings(cls, extra: Mapping[str, str]) -> Endpoints:
        """From ``WEBHOOK_OUT_<NAME>_URL`` and ``_SECRETS`` (comma-separated); names in lower case."""
        found = {}
        for variable, url in extra.items():
            match = _URL.fullmatch(variable)
            if match is not None:
                listed = extra.get(f"WEBHOOK_OUT_{match[1]}_SECRETS", "").split(",")
                found[match[1].lower()] = Endpoint(url, [secret.strip() for secret in listed if secret.strip()])
        return cls(found)

    def client(self) -> httpx.AsyncClient:
        """Follows no redirects: a signed delivery is for the address that was configured."""
        return httpx.AsyncClient(timeout=self.timeout, follow_redirects=False)


def register(app: Handlers, endpoints: Endpoints, job_type: JobType[Outgoing] = deliver_webhook) -> None:
    """Gives ``app`` the handler. ``job_type`` may be a copy with another retry policy or timeout."""
    client = functools.cache(endpoints.client)  # made by the first job: one per process, and none in a producer

    @app.handler(job_type)
    async def handle(payload: Outgoing, job: Job) -> None:
        await deliver(payload, job, client(), endpoints)


async def deliver(payload: Outgoing, job: Job, client: httpx.AsyncClient, endpoints: Endpoints) -> None:
    """Sends it under the job's id, the same at every attempt, and with the time of this one.

    2xx is success. Permanent: an unknown endpoint, 400, 410, 413, 422. Everything else is Transient, after the
    receiver's Retry-After where it gives one; so is a redirect, which is not followed.
    """
    endpoint = endpoints.by_name.get(payload.endpoint)
    if endpoint is None:
        raise Permanent(f"there is no webhook endpoint '{payload.endpoint}' in the settings")
    about = {"type": payload.event, "timestamp": payload.timestamp.isoformat(), "data": payload.data}
    body = json.dumps(about, separators=(",", ":")).encode()
    signature = standard_headers(list(endpoint.secrets), body, delivery_id=job.id, now=time.time())
    headers = {"Content-Type": "application/json", **signature}
    with asking(payload.endpoint, discreet=True):
        answer = await client.post(endpoint.url, content=body, headers=headers)
    judge(answer, payload.endpoint, longest_wait=endpoints.longest_wait, hopeless=_HOPELESS.__contains__)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
