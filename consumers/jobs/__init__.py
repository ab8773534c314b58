"""The jobs that ship: `email`, `media`, `http`, `deliver` and `webhooks`. Use them, or copy one and make it yours.

Each module holds a payload model, a `JobType`, a frozen settings class and ``register(app, settings)``, which
gives the app a handler. They need the extra: ``pip install hareline[jobs]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from consumers.breaker import Breaker
from topology.contract import JobType


class Handlers(Protocol):
    """What a job asks of the app: that it takes a handler for a job type."""

    def handler(
        self, job_type: JobType[Any], *, breaker: Breaker | Iterable[Breaker] = ()
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that makes a function the handler of ``job_type``. All its jobs need what ``breaker`` guards."""
