"""What a broker of a given version can do, as measured on real nodes of 3.10, 4.0 and 4.3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from topology.errors import TopologyError

OLDEST = (3, 10)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The facts that the topology and the worker adapt to. ``version`` is (major, minor)."""

    version: tuple[int, int]

    @property
    def strict_quorum_priorities(self) -> bool:
        """From 4.3 a quorum queue delivers strictly by priority; before, by two classes or not at all."""
        return self.version >= (4, 3)

    @property
    def quorum_limit_by_default(self) -> bool:
        """From 4.0 a quorum queue drops a message after 20 returns unless told otherwise."""
        return self.version >= (4, 0)

    @property
    def nack_counts_as_delivery(self) -> bool:
        """Before 4.3 a nack with requeue uses up the delivery limit just as a crash does."""
        return self.version < (4, 3)

    @classmethod
    def of_server(cls, properties: Mapping[str, Any]) -> Capabilities:
        """From the properties that a broker sends in connection.start. Raises TopologyError if it is too old."""
        raw = properties.get("version", "")
        text = raw.decode() if isinstance(raw, bytes) else str(raw)
        match = re.match(r"(\d+)\.(\d+)", text)
        if match is None:
            raise TopologyError(f"the broker does not say its version (it says '{text}'): is it RabbitMQ?")
        version = (int(match[1]), int(match[2]))
        if version < OLDEST:
            raise TopologyError(f"RabbitMQ {text} is too old: 3.10 or newer is needed (quorum queues with TTL)")
        return cls(version)
