"""The broker under test, as something that can be killed, stopped, started and asked."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess

from hareline.broker import Broker
from hareline.loopback import speaks_amqp

MISSING = (
    "this test kills the broker: leave HARELINE_BROKER_URL unset (a private node is used), or set "
    "HARELINE_TEST_CONTROL to a command with {action} in it, which is replaced by kill, start, stop or ctl"
)


class Node:
    """Kills and starts the broker of the session: its private node, or by the command in HARELINE_TEST_CONTROL."""

    def __init__(self, broker: Broker) -> None:
        self._private = broker.node
        self._url = broker.url.split(",")[0]
        self._command = os.environ.get("HARELINE_TEST_CONTROL", "")
        assert self._private is not None or "{action}" in self._command, MISSING

    async def keep_topology(self) -> None:
        """Has the broker write its declarations to disk, those that would be gone if it were killed within seconds."""
        await self.ctl("eval", "case whereis(mnesia_sup) of undefined -> ok; _ -> ok = mnesia:sync_log() end.")

    async def kill(self) -> None:
        """SIGKILL, as a crash would; the data stays."""
        await asyncio.to_thread(self._do, "kill")

    async def start(self) -> None:
        """Starts it again on its old data, and returns when it answers."""
        # A command may take a killed process that is not quite gone yet for a running one: so look, and ask again.
        for _ in range(10):
            await asyncio.to_thread(self._do, "start")
            if await asyncio.to_thread(speaks_amqp, self._url, timeout=10.0):
                return
            await asyncio.sleep(0.5)
        raise AssertionError(f"the broker does not come back at {self._url}")

    async def stop(self) -> None:
        """Stops it in good order."""
        await asyncio.to_thread(self._do, "stop")

    async def ctl(self, *arguments: str) -> str:
        """Rabbitmqctl on the node."""
        return await asyncio.to_thread(self._do, "ctl", *arguments)

    def _do(self, action: str, *arguments: str) -> str:
        if self._private is not None:
            if action == "ctl":
                return self._private.ctl(*arguments)
            getattr(self._private, action)()
            return ""
        command = [*shlex.split(self._command.replace("{action}", action)), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout
