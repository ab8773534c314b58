"""The jobs that ship: `email`, `media`, `http`, `deliver` and `webhooks`. Use them, or copy one and make it yours.

Each module holds a payload model, a `JobType`, a frozen settings class and ``register(app, settings)``, which
gives the app a handler. They need the extra: ``pip install hareline[jobs]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from topology.contract import JobType


class Handlers(Protocol):
    """What a job asks of the app: that it takes a handler for a job type."""

    def handler(self, job_type: JobType[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that makes a function the handler of ``job_type``."""
