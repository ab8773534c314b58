"""The delay ladder, as pure arithmetic.

Level n holds a message for 2^n units. A delay is a number of units in binary; the routing key carries its bits,
most significant first, then the destination: ``0.0.1.0.1.email.send``. The topic exchange of level n looks at its
own bit: a 1 leads into the level's queue, whose TTL dead-letters it to the next level down; a 0 leads there at
once. So every queue has one TTL (no head-of-line blocking), a delay costs as many hops as it has 1 bits, and a
message enters at its highest 1 bit. The idea is NServiceBus.RabbitMQ's delay infrastructure.
"""

from __future__ import annotations

import math
from typing import Final

from topology.errors import OptionInvalid

UNIT_MS: Final = 100
LEVELS: Final = 25
MAX_UNITS: Final = 2**LEVELS - 1
MAX_DELAY: Final = MAX_UNITS * UNIT_MS / 1000
"""Seconds: a little over 38 days."""


def units_of(delay: float) -> int:
    """Whole units that are at least ``delay`` seconds: a job may start late, never early.

    Raises OptionInvalid for a delay that is negative, not a number, or over `MAX_DELAY`.
    """
    if not math.isfinite(delay) or delay < 0:
        raise OptionInvalid(f"delay is {delay}: it must be zero or more seconds")
    # Rounding to the microsecond first keeps 0.3 / 0.1 = 3.0000000000000004 from costing a whole unit.
    units = math.ceil(round(delay * 1000 / UNIT_MS, 4))
    if units > MAX_UNITS:
        raise OptionInvalid(
            f"delay is {delay:.0f} s: the broker's ladder reaches {MAX_DELAY:.0f} s (38 days); "
            "for a later time use a schedule"
        )
    return units


def entry_level(units: int) -> int:
    """The level of the highest 1 bit, where the message enters. ``units`` must be above zero."""
    if not 0 < units <= MAX_UNITS:
        raise ValueError(f"units out of reach: {units}")
    return units.bit_length() - 1


def routing_key(units: int, destination: str) -> str:
    """The key that takes a message through the ladder and out to ``destination``."""
    return ".".join(f"{units:0{LEVELS}b}") + "." + destination


def level_pattern(level: int, bit: int) -> str:
    """What the exchange of ``level`` binds its own queue (bit 1) or the next level down (bit 0) with."""
    return "*." * (LEVELS - 1 - level) + f"{bit}.#"


def exit_pattern(destination: str) -> str:
    """What the last exchange binds a queue with. Exact in length, so that ``a.b`` never matches ``x.a.b``."""
    return "*." * LEVELS + destination


def destination_of(key: str) -> str:
    """The job type in a routing key: what stands behind the ladder's bits, or all of it where there are none."""
    words = key.split(".", LEVELS)
    if len(words) == LEVELS + 1 and all(word in {"0", "1"} for word in words[:LEVELS]):
        return words[LEVELS]
    return key
