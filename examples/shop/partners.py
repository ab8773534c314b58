"""The shop's calls to its partners: the payment provider and the ERP, over HTTP.

`SHOP_PARTNERS_URL` is where they are, `SHOP_PARTNERS_TIMEOUT` how many seconds an answer is waited for.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import httpx
from pydantic import BaseModel

from hareline import Permanent, Transient

logging.getLogger("httpx").setLevel(logging.WARNING)  # it would tell of each request


class Charge(BaseModel):
    """What the provider has taken, and given back, under one key. ``id`` is empty where it never took anything."""

    id: str
    cents: int
    refunded: int


async def charge(order_id: int, cents: int, *, key: str) -> Charge:
    """Charges once for each key. Permanent: declined. Transient: nobody knows whether it was charged; ask again."""
    return Charge(**await _call("POST", "/charges", key, {"order": order_id, "cents": cents}))


async def refund(charge_key: str, *, key: str) -> Charge:
    """Gives back what was charged under ``charge_key``, if anything was; a charge that arrives later is refused."""
    return Charge(**await _call("POST", f"/charges/{charge_key}/refund", key, {}))


async def put_order(order_id: int, cents: int, *, key: str) -> None:
    """Tells the ERP of an order. Permanent: it does not take it."""
    await _call("PUT", f"/erp/orders/{order_id}", key, {"cents": cents})


@functools.cache  # one for each process, made by its first job
def _client() -> httpx.AsyncClient:
    timeout = float(os.environ.get("SHOP_PARTNERS_TIMEOUT", "1.5"))
    return httpx.AsyncClient(base_url=os.environ["SHOP_PARTNERS_URL"], timeout=timeout)


async def _call(method: str, path: str, key: str, document: dict[str, Any]) -> Any:
    try:
        answer = await _client().request(method, path, json=document, headers={"Idempotency-Key": key})
    except httpx.TransportError as error:
        raise Transient(f"{method} {path}: {str(error) or type(error).__name__}") from error
    if answer.status_code == 429 or answer.is_server_error:
        raise Transient(f"{method} {path}: {answer.status_code}")
    if not answer.is_success:
        raise Permanent(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
    return answer.json()
