"""What an order is, and the steps that fulfil it: all that a producer needs to know."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, Field

from hareline import JobType, Retry, Saga, Step


class LineItem(BaseModel):
    sku: str
    quantity: int = Field(gt=0)


class Address(BaseModel):
    country: str


class Order(BaseModel):
    """The fields of WooCommerce's `order.created` that the shop needs; the others are ignored."""

    id: int
    total: Decimal = Field(gt=0, decimal_places=2)
    line_items: list[LineItem]
    shipping: Address

    @property
    def cents(self) -> int:
        return int(self.total * 100)

    def quantities(self) -> dict[str, int]:
        """By product, always in the same order: two orders that lock the same rows never wait for each other."""
        wanted: dict[str, int] = {}
        for item in self.line_items:
            wanted[item.sku] = wanted.get(item.sku, 0) + item.quantity
        return dict(sorted(wanted.items()))


DO = Retry(attempts=3, base=0.5)
UNDO = Retry(attempts=8, base=0.5)  # an undo tries longer: where it gives up, a person has to look

reserve_stock = JobType("stock.reserve", Order, retry=DO)
release_stock = JobType("stock.release", Order, retry=UNDO)
charge_card = JobType("card.charge", Order, retry=DO, timeout=10.0)
refund_card = JobType("card.refund", Order, retry=UNDO, timeout=10.0)
confirm_order = JobType("order.confirm", Order, retry=DO)
cancel_order = JobType("order.cancel", Order, retry=UNDO)
sync_erp = JobType("erp.sync", Order, retry=DO, timeout=10.0)

fulfil = Saga(
    "order.fulfil",
    Step(reserve_stock, undo=release_stock),
    Step(charge_card, undo=refund_card),
    Step(confirm_order, undo=cancel_order),
    Step(sync_erp),
    payload=Order,
)
