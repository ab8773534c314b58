"""Sums up the shop, and says whether all adds up to the cent: `python -m shop.balance [--json]`.

Four parties keep books that know nothing of each other: the shop's tables, the saga log, the payment provider, the ERP.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from sqlalchemy import Connection, func, select

from hareline import Sagas, Settings
from shop.tables import charges, engine_of, orders, products, reservations

ENDS = ("completed", "compensated")


@dataclass(frozen=True)
class Balance:
    """Money in cents, stock in pieces. ``differences`` is what does not add up, in words."""

    orders: int
    completed: int
    compensated: int
    unfinished: int
    stock_before: int
    stock_sold: int
    stock_now: int
    charged: int
    refunded: int
    earned: int
    differences: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not self.differences


async def measure(settings: Settings, partners_url: str) -> Balance:
    """From all four books, as they are now."""
    async with Sagas(settings) as log:
        counts = await log.counts()
    async with httpx.AsyncClient() as client:
        books = (await client.get(f"{partners_url}/books")).json()
    return await asyncio.to_thread(_measured, settings.database_url, counts, books)


def _measured(database_url: str, counts: Mapping[str, int], books: Mapping[str, Any]) -> Balance:
    engine = engine_of(database_url)
    with engine.connect() as connection:
        before, now, sold = (
            connection.scalar(select(func.coalesce(func.sum(column), 0)))
            for column in (products.c.initial, products.c.stock, reservations.c.quantity)
        )
        fulfilled = dict(
            connection.execute(select(orders.c.id, orders.c.cents).where(orders.c.status == "fulfilled")).all()
        )
        differences = (
            *_of_orders(connection, counts, len(fulfilled)),
            *_of_stock(connection, set(fulfilled)),
            *_of_money(connection, books, fulfilled),
        )
    engine.dispose()
    total, (completed, compensated) = sum(counts.values()), (counts.get(status, 0) for status in ENDS)
    return Balance(
        orders=total,
        completed=completed,
        compensated=compensated,
        unfinished=total - completed - compensated,
        stock_before=before,
        stock_sold=sold,
        stock_now=now,
        charged=books["charged"],
        refunded=books["refunded"],
        earned=sum(fulfilled.values()),
        differences=differences,
    )


def _of_orders(connection: Connection, counts: Mapping[str, int], fulfilled: int) -> Iterator[str]:
    unfinished = {status: n for status, n in counts.items() if n and status not in ENDS}
    if unfinished:
        yield f"sagas that have not ended: {unfinished}"
    if fulfilled != counts.get("completed", 0):
        yield f"{counts.get('completed', 0)} sagas are completed, {fulfilled} orders fulfilled"
    others = orders.c.status.not_in(["fulfilled", "cancelled"])
    half_done = list(connection.scalars(select(orders.c.id).where(others)))
    if half_done:
        yield f"{len(half_done)} orders are neither fulfilled nor cancelled, for example {half_done[:5]}"


def _of_stock(connection: Connection, fulfilled: set[int]) -> Iterator[str]:
    per_product = select(reservations.c.sku, func.sum(reservations.c.quantity)).group_by(reservations.c.sku)
    sold = dict(connection.execute(per_product).all())
    for sku, before, now in connection.execute(select(products.c.sku, products.c.initial, products.c.stock)):
        if before != now + sold.get(sku, 0):
            yield f"{sku}: {before} at first, {sold.get(sku, 0)} sold, {now} in stock"
    if set(connection.scalars(select(reservations.c.order_id))) != fulfilled:
        yield "stock is reserved for other orders than those that are fulfilled"


def _of_money(connection: Connection, books: Mapping[str, Any], fulfilled: Mapping[int, int]) -> Iterator[str]:
    paid = {row.order_id: row for row in connection.execute(select(charges))}
    kept = {order: row.cents - row.refunded for order, row in paid.items()}
    wrong = [order for order in kept.keys() | fulfilled.keys() if kept.get(order, 0) != fulfilled.get(order, 0)]
    if wrong:
        yield f"{len(wrong)} orders are not charged exactly what they cost, for example {sorted(wrong)[:5]}"
    ours = sum(row.cents for row in paid.values()), sum(row.refunded for row in paid.values())
    theirs = books["charged"], books["refunded"]
    if ours != theirs:
        yield f"charged and refunded: {ours} in our books, {theirs} in the payment provider's"
    if theirs[0] - theirs[1] != sum(fulfilled.values()):
        yield f"{theirs[0] - theirs[1]} cents are left at the provider, {sum(fulfilled.values())} were earned"
    if books["charges"] != books["orders"]:
        yield f"{books['orders']} orders were charged {books['charges']} times"
    if {int(order): cents for order, cents in books["erp"].items()} != fulfilled:
        yield f"the ERP knows {len(books['erp'])} orders, {len(fulfilled)} are fulfilled"


def main() -> int:
    balance = asyncio.run(measure(Settings.from_env(), os.environ["SHOP_PARTNERS_URL"]))
    if "--json" in sys.argv[1:]:
        print(json.dumps({**asdict(balance), "is_good": balance.is_good}))
    else:
        for name, value in asdict(balance).items():
            money = name in {"charged", "refunded", "earned"}
            if name != "differences":
                print(f"{name:<14}{f'{value / 100:,.2f}' if money else f'{value:,}':>12}")
        print("it balances" if balance.is_good else "\n".join(balance.differences))
    return 0 if balance.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
