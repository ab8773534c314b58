"""Hareline's own processes on a store, started by the real command line; and what the scenarios do before and after."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from arena import Arena
from contenders import BENCH, HARELINE, NAMESPACE, PROJECT_PYTHON
from processes import ContenderError, ask, kill_group
from store_database import Store
from topology.settings import Settings
from topology.spec import Names

NAMES = Names(NAMESPACE)
JOB_TYPE = "bench.noop"
COMMAND = PROJECT_PYTHON.parent / "hareline"
# A payload of the usual 256 bytes, from a number i.
BODY = """convert_to(rpad('{"number":' || i || ',"sent_ns":0,"pad":"', 254, 'x') || '"}', 'UTF8')"""


class Role:
    """`hareline NAME ARGUMENTS` on a store. Ended on exit, by force if need be."""

    def __init__(
        self,
        arena: Arena,
        store: Store,
        name: str,
        *arguments: str,
        number: int = 1,
        variables: dict[str, str] | None = None,
    ):
        self.name = name
        self._arguments = arguments
        self._label = f"bench {name} {number}"
        self._environment = environment(arena, store) | {"PGAPPNAME": self._label} | (variables or {})
        self._directory = tempfile.TemporaryDirectory(prefix="hareline-bench-")
        self._log = Path(self._directory.name) / "log"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_error):
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=40)
        kill_group(self._process)
        self._directory.cleanup()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(COMMAND), self.name, *self._arguments],
                cwd=BENCH,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """kill -9."""
        kill_group(self._process)

    def check(self) -> None:
        """Raises ContenderError when the process has ended by itself."""
        if self._process.poll() is not None:
            tail = self._log.read_text(errors="replace").strip()[-800:]
            raise ContenderError(f"hareline {self.name} ended with {self._process.returncode}: {tail}")

    def await_session(self, connection: psycopg.Connection) -> None:
        """Returns when the process is connected to the database."""
        until(lambda: self.has_session(connection), f"{self._label}: no session", self)

    def has_session(self, connection: psycopg.Connection) -> bool:
        """Whether the process is connected to the database; the session of one that was killed ends at once."""
        query = "SELECT FROM pg_stat_activity WHERE application_name = %s"
        return connection.execute(query, [self._label]).fetchone() is not None


def until(condition: Callable[[], Any], failure: str, *roles: Role, timeout: float = 60.0, every: float = 0.02) -> None:
    """Returns when `condition` holds; raises ContenderError after `timeout`, or when one of `roles` has gone."""
    deadline = time.monotonic() + timeout
    while not condition():
        for role in roles:
            role.check()
        if time.monotonic() > deadline:
            raise ContenderError(f"{failure} after {timeout:.0f} s")
        time.sleep(every)


def environment(arena: Arena, store: Store) -> dict[str, str]:
    """For a process of Hareline's own on this broker and this store."""
    own = HARELINE.environment | {
        "HARELINE_DEAD_RETENTION": "365d",  # nothing is to be removed while it is counted
        "HARELINE_DATABASE_URL": store.url,
        "PYTHONPATH": str(BENCH.parent),
    }
    return os.environ | arena.environment() | own | {"PYTHONUNBUFFERED": "1"}


def settings(arena: Arena, store: Store) -> Settings:
    """The same for what runs in this process."""
    return Settings(broker_urls=(arena.url,), namespace=NAMESPACE, database_url=store.url)


def prepare(arena: Arena, store: Store) -> None:
    """The topology is on the broker with empty queues, the tables are in the database."""
    ask(HARELINE, arena.environment(), "declare", timeout=90)
    for queue in (NAMES.queue(JOB_TYPE), NAMES.records, NAMES.records_failed, NAMES.dlq):
        arena.purge(queue)
    command = [str(COMMAND), "db", "upgrade"]
    done = subprocess.run(
        command, env=environment(arena, store), capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise ContenderError(f"hareline db upgrade: exit code {done.returncode}: {done.stderr.strip()[-800:]}")


def expect_queue(arena: Arena, queue: str, expected: int, what: str) -> None:
    """Raises ContenderError unless that many messages are ready in the queue, given a moment."""
    found = arena.settled(queue, expected)
    if found != expected:
        raise ContenderError(f"{what}: {expected} messages should be in {queue}, and {found} are")
