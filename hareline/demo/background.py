"""Processes of the demo beside its first workers: roles, and workers with a database."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from topology.errors import HarelineError

_DEADLINE: Final = 60.0
_TICK: Final = 0.05
_GRACE: Final = 15.0


class Background:
    """``environment`` is what all get, ``directory`` where they run; their output goes to ``*-{suffix}.log``."""

    def __init__(self, logs: Path, environment: Mapping[str, str], suffix: str, directory: Path | None = None) -> None:
        self._logs = logs
        self._environment = environment
        self._suffix = suffix
        self._directory = directory

    def hareline(
        self, *arguments: str, app: str, more: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[None]:
        """``hareline ARGUMENTS`` for the time of the block, stopped in good order."""
        log = self.log(arguments)
        return self._process(("hareline", *arguments), log, {**(more or {}), "HARELINE_APP": app})

    def python(self, module: str, *arguments: str) -> AbstractAsyncContextManager[None]:
        """``python -m MODULE ARGUMENTS`` for the time of the block."""
        return self._process((module, *arguments), self.log((module, *arguments)), {})

    def log(self, arguments: Sequence[str]) -> Path:
        """The file that has the output of the process with these arguments."""
        name = re.sub(r"[^\w.-]+", "", "-".join(arguments).replace("--", ""))
        return self._logs / f"{name}-{self._suffix}.log"

    async def said(self, arguments: Sequence[str], pattern: re.Pattern[str]) -> str:
        """The first group of ``pattern``, once the log has it. Raises HarelineError where it never comes."""
        log = self.log(arguments)

        def found() -> re.Match[str] | None:
            return pattern.search(log.read_text(encoding="utf-8"))

        await until(lambda: found() is not None)
        match = found()
        if match is None:
            raise HarelineError(f"`{' '.join(arguments)}` does not listen: see {log}")
        return match[1]

    @asynccontextmanager
    async def _process(self, command: Sequence[str], log: Path, more: Mapping[str, str]) -> AsyncIterator[None]:
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                env={**os.environ, **self._environment, **more},
                start_new_session=True,
            )
            try:
                yield
            finally:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                try:
                    await asyncio.wait_for(process.wait(), _GRACE)
                except TimeoutError:
                    process.kill()
                    await process.wait()


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits until it holds or the deadline is over; who asks looks again for itself."""
    end = time.monotonic() + _DEADLINE
    while time.monotonic() < end:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        await asyncio.sleep(_TICK)
