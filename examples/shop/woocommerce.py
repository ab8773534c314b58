"""What a WooCommerce shop does when orders come in: a signed `order.created` for each, some of them twice.

python -m shop.woocommerce http://127.0.0.1:8080 --orders 300
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import httpx

from shop.tables import CATALOG
from shop.troubles import trouble_of

FIRST = 1001
TWICE = 10
"""Every tenth delivery is sent again, as if its answer had been lost."""
_AT_ONCE = 20


def document(number: int) -> dict[str, Any]:
    """An order as WooCommerce writes it, shortened."""
    trouble = trouble_of(number)
    wanted = {"tea-green": 1 + number % 3, "mug": number % 2, "teapot": number % 5 == 0, "vase": trouble == "sold-out"}
    lines = [
        {"id": place, "name": sku.title(), "sku": sku, "quantity": int(quantity), "total": _euros(quantity * cents)}
        for place, (sku, quantity) in enumerate(wanted.items(), start=1)
        if quantity and (cents := CATALOG[sku][0])
    ]
    total = sum(line["quantity"] * CATALOG[line["sku"]][0] for line in lines)
    return {
        "id": number,
        "number": str(number),
        "status": "processing",
        "currency": "EUR",
        "total": _euros(total),
        "billing": {"first_name": "Ann", "email": f"ann{number}@example.com", "country": "DE"},
        "shipping": {"first_name": "Ann", "country": "AQ" if trouble == "no-carrier" else "DE"},
        "payment_method": "card",
        "line_items": lines,
    }


def _euros(cents: int) -> str:
    return str((Decimal(cents) / 100).quantize(Decimal("0.01")))


async def send(url: str, secret: str, numbers: Iterable[int]) -> Counter[int]:
    """Sends them; returns how often each status was answered: 202 for a new delivery, 200 for a repeat."""
    slots = asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=30.0) as client:

        async def deliver(number: int) -> list[int]:
            body = json.dumps(document(number)).encode()
            digest = hmac.new(secret.encode(), body, hashlib.sha256).digest()
            headers = {
                "Content-Type": "application/json",
                "X-WC-Webhook-Topic": "order.created",
                "X-WC-Webhook-Signature": base64.b64encode(digest).decode(),
                "X-WC-Webhook-Delivery-ID": f"delivery-{number}",
            }
            async with slots:
                return [
                    (await client.post("/webhooks/woocommerce", content=body, headers=headers)).status_code
                    for _ in range(2 if number % TWICE == 0 else 1)
                ]

        return Counter(status for found in await asyncio.gather(*map(deliver, numbers)) for status in found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sends order.created webhooks as WooCommerce does.")
    parser.add_argument("url", help="where `hareline webhooks` listens")
    parser.add_argument("--orders", type=int, default=300)
    parser.add_argument("--first", type=int, default=FIRST, help="the first order's number")
    given = parser.parse_args()
    secret = os.environ["HARELINE_WEBHOOKS_SECRETS_WOOCOMMERCE"]
    answers = asyncio.run(send(given.url, secret, range(given.first, given.first + given.orders)))
    print(", ".join(f"{count} answered {status}" for status, count in sorted(answers.items())))


if __name__ == "__main__":
    main()
