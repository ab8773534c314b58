"""The shop's app: the handlers of the order saga, and the webhook that starts it."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from hareline import App, Job, Permanent, WebhookSource
from shop import partners
from shop.contracts import (
    Order,
    cancel_order,
    charge_card,
    confirm_order,
    fulfil,
    refund_card,
    release_stock,
    reserve_stock,
    sync_erp,
)
from shop.partners import Charge
from shop.tables import charges, orders, products, reservations

COUNTRIES = {"AT", "CH", "DE"}

app = App(
    sagas=[fulfil],
    webhooks=[WebhookSource("woocommerce", scheme="woocommerce", events={"order.created": fulfil})],
)


# A second saga for an order that is there already fails here, having done nothing that is to be undone.
@app.handler(reserve_stock, permanent=[IntegrityError])
async def reserve(order: Order, job: Job) -> None:
    async with job.transaction() as connection:
        row = {"id": order.id, "saga_id": job.saga.id, "cents": order.cents, "status": "reserved"}
        await connection.execute(insert(orders).values(row))
        for sku, quantity in order.quantities().items():
            enough = products.c.sku == sku, products.c.stock >= quantity
            taken = await connection.execute(update(products).where(*enough).values(stock=products.c.stock - quantity))
            if taken.rowcount != 1:
                raise Permanent(f"{quantity} of {sku}: not in stock")
            await connection.execute(insert(reservations).values(order_id=order.id, sku=sku, quantity=quantity))


@app.handler(release_stock)
async def release(order: Order, job: Job) -> None:
    mine = orders.c.id == order.id, orders.c.saga_id == job.saga.id
    async with job.transaction() as connection:
        # Where nobody knows whether the stock was reserved, this says it.
        found = await connection.execute(update(orders).where(*mine).values(status="cancelled"))
        if found.rowcount != 1:
            return
        reserved = reservations.c.order_id == order.id
        for sku, quantity in (
            await connection.execute(
                select(reservations.c.sku, reservations.c.quantity).where(reserved).order_by(reservations.c.sku)
            )
        ).all():
            back = products.c.stock + quantity
            await connection.execute(update(products).where(products.c.sku == sku).values(stock=back))
        await connection.execute(delete(reservations).where(reserved))


@app.handler(charge_card)
async def charge(order: Order, job: Job) -> Charge:
    # Outside of the transaction: no lock is held while another company thinks. The key makes a repeat harmless.
    paid = await partners.charge(order.id, order.cents, key=job.idempotency_key)
    async with job.transaction() as connection:
        await connection.execute(insert(charges).values(order_id=order.id, charge=paid.id, cents=paid.cents))
        await connection.execute(update(orders).where(orders.c.id == order.id).values(status="charged"))
        return job.keep(paid)


@app.handler(refund_card)
async def refund(order: Order, job: Job) -> None:
    # By the key of the charge, not by what it returned: after a timeout it returned nothing, and may be done.
    paid = await partners.refund(job.saga.step_key, key=job.idempotency_key)
    async with job.transaction() as connection:
        if paid.cents:
            await connection.execute(delete(charges).where(charges.c.order_id == order.id))
            row = {"order_id": order.id, "charge": paid.id, "cents": paid.cents, "refunded": paid.refunded}
            await connection.execute(insert(charges).values(row))


@app.handler(confirm_order)
async def confirm(order: Order, job: Job) -> None:
    if order.shipping.country not in COUNTRIES:
        raise Permanent(f"no carrier delivers to {order.shipping.country}")
    async with job.transaction() as connection:
        await connection.execute(update(orders).where(orders.c.id == order.id).values(status="confirmed"))


@app.handler(cancel_order)
async def cancel(order: Order, job: Job) -> None:
    async with job.transaction() as connection:
        await connection.execute(update(orders).where(orders.c.id == order.id).values(status="cancelled"))


@app.handler(sync_erp)
async def sync(order: Order, job: Job) -> None:
    await partners.put_order(order.id, order.cents, key=job.idempotency_key)
    async with job.transaction() as connection:
        await connection.execute(update(orders).where(orders.c.id == order.id).values(status="fulfilled"))
