"""The shop's own tables, in the database that has Hareline's: `python -m shop.tables` makes and fills them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    select,
)

from hareline import Settings

metadata = MetaData()

products = Table(
    "products", metadata,
    Column("sku", String, primary_key=True),
    Column("cents", Integer, nullable=False),
    Column("initial", Integer, nullable=False),
    Column("stock", Integer, CheckConstraint("stock >= 0"), nullable=False),
)  # fmt: skip
orders = Table(
    "orders", metadata,
    Column("id", BigInteger, primary_key=True),
    Column("saga_id", String, nullable=False),
    Column("cents", Integer, nullable=False),
    Column("status", String, nullable=False),  # reserved, charged, confirmed, fulfilled or cancelled
)  # fmt: skip
reservations = Table(
    "reservations", metadata,
    Column("order_id", ForeignKey("orders.id"), primary_key=True),
    Column("sku", ForeignKey("products.sku"), primary_key=True),
    Column("quantity", Integer, nullable=False),
)  # fmt: skip
charges = Table(
    "charges", metadata,
    Column("order_id", ForeignKey("orders.id"), primary_key=True),
    Column("charge", String, nullable=False),  # what the payment provider calls it
    Column("cents", Integer, nullable=False),
    Column("refunded", Integer, nullable=False, default=0),
)  # fmt: skip

CATALOG = {"mug": (1290, 2000), "teapot": (3495, 1000), "tea-green": (899, 3000), "vase": (5900, 0)}
"""Price in cents, pieces in stock."""


def engine_of(database_url: str) -> Engine:
    """For scripts; the handlers get their connection from `job.transaction()`."""
    return create_engine(database_url.replace("postgresql:", "postgresql+psycopg:", 1))


def create(database_url: str) -> None:
    """May be repeated: what is there stays as it is."""
    engine = engine_of(database_url)
    with engine.begin() as connection:
        metadata.create_all(connection)
        known = set(connection.scalars(select(products.c.sku)))
        missing = [
            {"sku": sku, "cents": cents, "initial": stock, "stock": stock}
            for sku, (cents, stock) in CATALOG.items()
            if sku not in known
        ]
        if missing:
            connection.execute(insert(products), missing)
    engine.dispose()


if __name__ == "__main__":
    create(Settings.from_env().database_url)
    print(f"{len(metadata.tables)} tables, {len(CATALOG)} products")
