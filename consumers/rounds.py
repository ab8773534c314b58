"""A part of the recorder that does its work again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Rounds:
    """Does ``work`` at once and then ``every`` so many seconds, until `drain`, which cancels a round under way.

    What ``work`` raises, `run` raises.
    """

    def __init__(self, work: Callable[[], Awaitable[object]], every: float) -> None:
        self._work = work
        self._every = every
        self._draining = asyncio.Event()

    async def run(self) -> None:
        """Works until `drain` is called."""
        draining = asyncio.create_task(self._draining.wait())
        working = asyncio.create_task(self._for_ever())
        try:
            await asyncio.wait([draining, working], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
        finally:
            draining.cancel()
            working.cancel()
            await asyncio.wait([draining, working])

    def drain(self) -> None:
        """Asks it to stop."""
        self._draining.set()

    async def _for_ever(self) -> None:
        while True:
            await self._work()
            await asyncio.sleep(self._every)
