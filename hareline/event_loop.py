"""What every role's process does around its work: an event loop, signals, a calm garbage collector."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

STOPPED_AT_ONCE: Final = 130
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def calm_the_collector() -> None:
    """What is loaded by now stays: keep it out of every later collection, which would otherwise show in the p99."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def on_signals(drain: Callable[[], None]) -> None:
    """The first signal drains. The second ends the process: the broker takes back what was unsettled."""
    loop = asyncio.get_running_loop()

    def handle() -> None:
        for number in _STOP_SIGNALS:
            # Not by way of the event loop: a handler that blocks it may be the very reason for a second signal.
            loop.remove_signal_handler(number)
            signal.signal(number, lambda *_: os._exit(STOPPED_AT_ONCE))
        drain()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, handle)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs ``work`` to its end, on uvloop where that is installed."""
    try:
        import uvloop  # noqa: PLC0415 - comes with the worker extra
    except ImportError:
        asyncio.run(work())
    else:
        uvloop.run(work())
