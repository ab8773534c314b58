"""Schedules for code without an event loop: Django, Flask, scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeVar

from producers.schedules import Schedules
from topology.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    method: Callable[Concatenate[Schedules, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BlockingSchedules, P], T]:
    def call(self: BlockingSchedules, /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def work() -> T:
            async with Schedules(self.settings) as schedules:
                return await method(schedules, *args, **kwargs)

        return asyncio.run(work())

    update_wrapper(call, method)
    return call


class BlockingSchedules:
    """`Schedules` behind plain calls: the same methods, results and errors, from any thread and after any fork.

    Each call is a loop, a connection and a transaction of its own: some milliseconds, which is right for the
    schedule that a request makes, and slow for thousands. So there is no ``connection=`` to join, and nothing to
    close. Where a loop runs already it raises RuntimeError: use `Schedules` there.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.from_env()

    schedule_once = _blocking(Schedules.schedule_once)
    schedule_every = _blocking(Schedules.schedule_every)
    schedule_cron = _blocking(Schedules.schedule_cron)
    get = _blocking(Schedules.get)
    has_scheduled = _blocking(Schedules.has_scheduled)
    next_scheduled = _blocking(Schedules.next_scheduled)
    list_actions = _blocking(Schedules.list_actions)
    counts = _blocking(Schedules.counts)
    cancel = _blocking(Schedules.cancel)
    cancel_next = _blocking(Schedules.cancel_next)
    cancel_all = _blocking(Schedules.cancel_all)
    pause = _blocking(Schedules.pause)
    resume = _blocking(Schedules.resume)
    run_now = _blocking(Schedules.run_now)
    backfill = _blocking(Schedules.backfill)
