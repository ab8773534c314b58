"""Orders into an ERP that is slow, limits its callers and is down at times: three kinds of patience, one in the other.

export HARELINE_APP=examples.erp_sync.app:app ERP_URL=http://127.0.0.1:8090 ERP_RESET=5
python -m examples.erp_sync.erp --port 8090 &
hareline topology apply
hareline worker erp.sync-order --concurrency 10 &
until curl -s -X PUT 127.0.0.1:8090/mode -d down; do sleep 1; done
for n in 1 2 3 4 5 6 7 8; do hareline enqueue erp.sync-order "{\\"id\\": $n, \\"version\\": 1, \\"total\\": 9.5}"; done
curl -s -X PUT 127.0.0.1:8090/mode -d ok
until curl -s 127.0.0.1:8090/mode | grep '"orders": 8'; do sleep 1; done

- A short blip (a connection that breaks, a 502 or 504): tenacity asks again within the same attempt, a moment later.
- An outage, or an ERP that says when to come back: the attempt ends, and `Retry-After` or the retry policy decides.
- Many failures in a row: the breaker opens. No job calls the ERP, none loses an attempt, and none is consumed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

import httpx
import tenacity
from pydantic import BaseModel, Field

from consumers.breaker import Breaker
from consumers.retry import retry_after
from hareline import App, Job, JobType, Permanent, Retry, Settings, Transient

logger = logging.getLogger(__name__)

LONGEST_WAIT = 3600.0
BLIPS = {HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT}
LATER = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class Order(BaseModel):
    """``version`` grows with every change: an older one that was delayed must not replace a newer one."""

    id: int
    version: Annotated[int, Field(ge=1)]
    total: float


sync_order = JobType("erp.sync-order", Order, retry=Retry(attempts=10, base=2.0, cap=900.0), timeout=60.0)


class Blip(Transient):
    """Likely over in a moment."""


class Limited(Transient):
    """The ERP answers, and has enough of us for now: no failure of its own."""


@dataclass(frozen=True)
class Api:
    """``timeout`` is seconds for each wait; three tries and their pauses must fit into the job type's timeout."""

    url: str
    timeout: float = 10.0
    tries: int = 3
    pause: float = 0.2

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=self.timeout)

    async def put(self, order: Order, job: Job, client: httpx.AsyncClient) -> None:
        """Returns once the ERP has this version or a newer one. Permanent: it will never take it."""
        patience = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Blip),
            stop=tenacity.stop_after_attempt(self.tries),
            wait=tenacity.wait_random_exponential(multiplier=self.pause, max=2.0),
            reraise=True,
        )
        async for attempt in patience:
            with attempt:
                await self._put_once(order, job, client)

    async def _put_once(self, order: Order, job: Job, client: httpx.AsyncClient) -> None:
        headers = {"Idempotency-Key": job.idempotency_key, "X-Job-Attempt": str(job.attempt)}
        try:
            answer = await client.put(f"/orders/{order.id}", json=order.model_dump(), headers=headers)
        except httpx.TimeoutException as error:
            raise Transient(f"no answer within {self.timeout} s") from error  # to wait as long again helps nobody
        except httpx.TransportError as error:
            raise Blip(str(error) or type(error).__name__) from error
        status = answer.status_code
        if answer.is_success:
            return
        if status == HTTPStatus.CONFLICT:
            logger.info("order %s: the ERP has a newer version than %s", order.id, order.version)
            return
        asked = retry_after(answer.headers.get("Retry-After"), datetime.now(UTC))
        after = None if asked is None else min(asked, LONGEST_WAIT)
        if status in LATER:
            raise Limited(f"HTTP {status}", after=after)
        if status in BLIPS and after is None:
            raise Blip(f"HTTP {status}")
        if answer.is_server_error:
            raise Transient(f"HTTP {status}", after=after)
        raise Permanent(f"HTTP {status}: {answer.text[:200]}")


def build(api: Api, breaker: Breaker) -> App:
    """An app whose orders go to ``api``; while ``breaker`` is open, none is consumed."""
    app = App(job_types=[sync_order])
    clients: list[httpx.AsyncClient] = []  # one for a process, made by its first job

    @app.handler(sync_order, breaker=breaker)
    async def sync(order: Order, job: Job) -> None:
        if not clients:
            clients.append(api.client())
        async with breaker:
            await api.put(order, job, clients[0])

    return app


def counts(error: BaseException) -> bool:
    """Whether the breaker should hear of it: an answer, also one of refusal, shows that the ERP is up."""
    return not isinstance(error, Permanent | Limited)


extra = Settings.from_env().extra
erp = Breaker("erp", failures=5, reset=float(extra.get("ERP_RESET", "60")), probes=3, counts=counts)
app = build(Api(extra.get("ERP_URL", "http://127.0.0.1:8090")), erp)
