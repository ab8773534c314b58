"""How a role lives with a database that goes away: it waits, says so once, and goes on when it is back."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from topology.errors import DatabaseUnavailable

T = TypeVar("T")

logger = logging.getLogger(__name__)

_PAUSE: Final = wait_exponential_jitter(multiplier=0.1, max=5.0, jitter=0.1)


async def persistently(what: str, operation: Callable[[], Awaitable[T]]) -> T:
    """The result of ``operation``, which is tried until the database lets it through. Other errors pass.

    ``operation`` must be one transaction that may be repeated. Cancel it to give up.
    """
    troubled = False

    def note(state: RetryCallState) -> None:
        nonlocal troubled
        if not troubled and state.outcome is not None:
            logger.warning("%s waits for the database: %s", what, state.outcome.exception())
        troubled = True

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(DatabaseUnavailable), wait=_PAUSE, before_sleep=note, reraise=True
    )

    async def attempt() -> T:  # whatever ``operation`` is: only a coroutine function is awaited by the library
        return await operation()

    result: T = await retrying(attempt)
    if troubled:
        logger.info("%s goes on: the database answers again", what)
    return result
