"""How many deliveries of a source are taken: a token bucket. Pure, the clock is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from topology.errors import ContractError


@dataclass(frozen=True, slots=True)
class Rate:
    """``per_second`` deliveries in the long run, ``burst`` at once; by default a second's worth, and one at least.

    Raises ContractError for what would let nothing through.
    """

    per_second: float
    burst: int = 0

    def __post_init__(self) -> None:
        if not _is_number(self.per_second) or not 0 < self.per_second < math.inf:
            raise ContractError(f"rate is {self.per_second!r}: deliveries a second, above zero, are needed")
        if not isinstance(self.burst, int) or isinstance(self.burst, bool) or self.burst < 0:
            raise ContractError(f"burst is {self.burst!r}: a whole number above zero is needed")
        if self.burst == 0:
            object.__setattr__(self, "burst", max(1, math.ceil(self.per_second)))


@dataclass(slots=True)
class Bucket:
    """Full at first. `take` empties it by one, and time fills it."""

    rate: Rate
    _level: float = field(init=False)
    _at: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._level = float(self.rate.burst)

    def take(self, now: float) -> float:
        """0 where a delivery may pass at ``now`` (seconds of any clock), else the seconds until one may.

        A clock that goes back gives nothing and takes nothing; one that jumps ahead fills the bucket, and no more.
        """
        gone = 0.0 if self._at is None else max(0.0, now - self._at)
        self._level = min(float(self.rate.burst), self._level + gone * self.rate.per_second)
        self._at = now
        if self._level < 1.0:
            return (1.0 - self._level) / self.rate.per_second
        self._level -= 1.0
        return 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
