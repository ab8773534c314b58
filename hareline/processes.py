"""Several processes of one role on one machine: started, watched, restarted, stopped together."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final

logger = logging.getLogger(__name__)

_RESTART_PAUSE: Final = 0.5
_RESTART_PAUSE_MOST: Final = 10.0
_HEALTHY_AFTER: Final = 10.0
_LOOK: Final = 0.05
_UNFIT: Final = {1, 2}
"""What `hareline worker` ends with by itself when it cannot begin, after it has said why."""


class Processes:
    """``count`` children of the same command. A child that ends unasked is started again, ever more slowly.

    One that says at its very first start that it cannot work (exit code 1 or 2: no topology, no such app) would say
    so for ever: then all are stopped, and its code is the parent's. The parent passes SIGTERM and SIGINT on, the
    second one too, and ends when all children have.
    """

    def __init__(self, command: Sequence[str], count: int) -> None:
        self._command = list(command)
        self._children: list[_Child] = [_Child(self._command) for _ in range(count)]
        self._signals: list[int] = []

    def run(self) -> int:
        """Returns the exit code: 0 if every child ended with 0 after being asked to."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)
        for child in self._children:
            child.start()
        while any(child.is_wanted for child in self._children):
            for child in self._children:
                child.watch(self._signals)
            if not self._signals and any(child.is_unfit for child in self._children):
                self._signals.append(signal.SIGTERM)
            time.sleep(_LOOK)
        return max(child.exit_code for child in self._children)

    def _take(self, number: int, _: FrameType | None) -> None:
        # Passed on by the loop above: at this moment a child may be half started, and would never hear of it.
        self._signals.append(number)


class _Child:
    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._due = 0.0
        self._pause = _RESTART_PAUSE
        self._told = 0
        self._starts = 0
        self.exit_code = 0
        self.is_wanted = True
        self.is_unfit = False

    def start(self) -> None:
        # A session of its own: Ctrl-C reaches the parent alone, which passes it on once.
        self._process = subprocess.Popen(self._command, start_new_session=True)  # noqa: S603 - our own command line
        self._started = time.monotonic()
        self._starts += 1

    def watch(self, signals: Sequence[int]) -> None:
        """Passes on what signals are new, notices that the child has ended, starts another one when it is time."""
        now = time.monotonic()
        if self._process is None:
            if signals:
                self.is_wanted = False
            elif now >= self._due:
                self.start()
            return
        code = self._process.poll()
        if code is None:
            if self._told < len(signals):
                # One at a look: two of the same kind at once would arrive as one.
                self._process.send_signal(signals[self._told])
                self._told += 1
            return
        self._process = None
        if signals:
            if self._told:  # one that had ended before says nothing about how we were stopped
                self.exit_code = _shown(code, signals)
            self.is_wanted = False
            return
        lived = now - self._started
        if self._starts == 1 and code in _UNFIT and lived < _HEALTHY_AFTER:
            self.exit_code = code
            self.is_unfit, self.is_wanted = True, False
            return
        self._pause = _RESTART_PAUSE if lived > _HEALTHY_AFTER else min(self._pause * 2, _RESTART_PAUSE_MOST)
        self._due = now + self._pause
        logger.warning("a process ended with %d after %.1f s; the next one starts in %.1f s", code, lived, self._pause)


def _shown(code: int, signals: Sequence[int]) -> int:
    """A child's exit code as a shell shows it; one that our own signal met while it was starting did as asked."""
    if code < 0:
        return 0 if -code in signals else 128 - code
    return code


def same_command_with_one_process(arguments: Sequence[str]) -> list[str]:
    """The command line of a child."""
    return [sys.executable, "-m", "hareline", *arguments]
