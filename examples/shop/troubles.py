"""What goes wrong with which order: always the same, by the last digits of its number. The others go well."""

from __future__ import annotations

from typing import Final

EVERY: Final = 50
TROUBLES: Final = {
    3: "sold-out",  # no stock: the first step fails, nothing is undone
    7: "declined",  # the payment provider answers 402
    11: "charge-fails",  # it answers 500, however often it is asked
    15: "charge-hangs",  # it charges, and then says nothing until nobody waits any more; every time
    19: "charge-resets",  # it charges, and then resets the connection; every time
    23: "charge-fails-once",
    27: "charge-hangs-once",
    31: "charge-resets-once",
    35: "no-carrier",  # nobody delivers there: the order cannot be confirmed
    39: "erp-refuses",  # the ERP answers 422
    43: "erp-busy-once",
    47: "refund-refused",  # the ERP answers 422, and then the provider refuses the refund until it is mended
}
UNDONE: Final = {
    "sold-out",
    "declined",
    "charge-fails",
    "charge-hangs",
    "charge-resets",
    "no-carrier",
    "erp-refuses",
    "refund-refused",
}


def trouble_of(order: int) -> str:
    """The trouble of an order, "" for none."""
    return TROUBLES.get(order % EVERY, "")


def is_undone(order: int) -> bool:
    """Whether its saga must end compensated."""
    return trouble_of(order) in UNDONE
