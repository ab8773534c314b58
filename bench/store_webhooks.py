"""Webhooks under load: receiver, relay and a worker with the inbox beside each other, and every delivery once.

The load comes from `webhook_load.py`, a process of its own. A run counts only if the handler's table has exactly one
row for each delivery that was answered with 202.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

import cpu_time
from arena import Arena
from contenders import BENCH, PROJECT_PYTHON
from processes import ContenderError, kill_group
from store_database import Store
from store_roles import COMMAND, NAMES, Role, environment, prepare, until
from tests.nodes import Node
from webhook_app import TABLE, delivered

APP = {"HARELINE_APP": "webhook_app:app"}
QUEUE = NAMES.queue(delivered.name)
CONNECTIONS = 200
DELIVERIES = 16_000
RATE = 300
WARM_UP_SECONDS = 2
CONCURRENCY = "50"
KILL_AFTER = 8.0  # seconds of load
DOWN = 3.0  # seconds between the kill and the start
CALM = 10.0  # seconds of load after the broker is back
AT_ONCE = 500  # deliveries that do not count, before the clock starts
LINGER = 1.0
PATIENCE = 120.0


@dataclass(frozen=True)
class Plan:
    """What the generator is to do; without `rate` it goes as fast as it can."""

    deliveries: int
    warm_up: int
    rate: float | None = None


def flood(arena: Arena, effort) -> dict:
    """Deliveries/s accepted by one `hareline webhooks`, on `CONNECTIONS` connections that never pause."""
    deliveries = effort.jobs(DELIVERIES)
    return _measure(arena, Plan(deliveries + AT_ONCE, AT_ONCE))


def steady(arena: Arena, effort) -> dict:
    """`RATE` deliveries/s on an open loop: from when each was due until its answer was there."""
    warm_up = RATE * WARM_UP_SECONDS
    return _measure(arena, Plan(warm_up + int(2 * RATE * effort.seconds), warm_up, RATE))


def broker_killed(arena: Arena, effort) -> dict:
    """The same, with a broker that is killed and started again while deliveries come in."""
    seconds = WARM_UP_SECONDS + KILL_AFTER + DOWN + CALM + effort.seconds
    return _measure(arena, Plan(int(RATE * seconds), RATE * WARM_UP_SECONDS, RATE), killed=True)


def _measure(arena: Arena, plan: Plan, *, killed: bool = False) -> dict:
    node = _node(arena) if killed else None
    port = _free_port()
    address = {"HARELINE_WEBHOOKS_HOST": "127.0.0.1", "HARELINE_WEBHOOKS_PORT": str(port)}
    with arena.postgres.fresh() as store, store.connect() as connection, contextlib.ExitStack() as stack:
        prepare(arena, store)
        _declare(arena, store)
        connection.execute(TABLE)
        roles = {
            name: stack.enter_context(Role(arena, store, *words, variables=APP | address))
            for name, words in {
                "receiver": ("webhooks",),
                "relay": ("relay",),
                "worker": ("worker", delivered.name, "--concurrency", CONCURRENCY),
            }.items()
        }
        roles["relay"].await_session(connection)
        arena.wait_for_consumer(QUEUE, roles["worker"].check)
        until(lambda: _answers(port), "the receiver is not ready", roles["receiver"])
        servers = {"broker": urlsplit(arena.url).port or 5672, "postgresql": urlsplit(store.url).port or 5432}
        watched = {name: role.pid for name, role in roles.items()} | {
            name: pid for name, port in servers.items() if (pid := cpu_time.listener(port))
        }
        before, began = {name: cpu_time.of_tree(pid) for name, pid in watched.items()}, time.perf_counter()
        with _Outage(node) if node else contextlib.nullcontext():
            sent, accepted = _generate(plan, port)
        _await_handled(connection, len(accepted), roles)
        seconds = time.perf_counter() - began
        if killed:
            watched.pop("broker", None)  # it is another process now
        spent = {name: cpu_time.of_tree(pid) - before[name] for name, pid in watched.items()}
        time.sleep(LINGER)  # one that comes twice is to be seen
        rows = [row[0] for row in connection.execute("SELECT webhook_id FROM bench_handled").fetchall()]
    _compare(sent, accepted, rows)
    each = {f"{name}_us": round(1e6 * cpu / len(accepted)) for name, cpu in spent.items()}
    return sent | {"handled_per_second": len(accepted) / seconds, "lost": 0, "double": 0} | each


def _compare(sent: dict, accepted: list[str], rows: list[str]) -> None:
    """Raises ContenderError unless what was accepted has one row each, and nothing has two."""
    counts = Counter(rows)
    lost, double = set(accepted) - set(counts), sum(count - 1 for count in counts.values())
    others = len(set(counts) - set(accepted))
    if lost or double:
        raise ContenderError(f"of {len(accepted)} accepted deliveries {len(lost)} were lost, {double} ran again")
    if others > sent["unanswered"] + sent["refused"]:
        raise ContenderError(f"{others} deliveries ran that were not answered with 202")


class _Outage:
    """Context manager: kills the broker a while after the load has begun, and starts it again."""

    def __init__(self, node: Node):
        self._node = node
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None

    def __enter__(self):
        asyncio.run(self._node.keep_topology())
        self._thread.start()
        return self

    def __exit__(self, *_error):
        self._thread.join()
        if self._error is not None:
            raise ContenderError(f"the broker: {self._error}")

    def _run(self) -> None:
        try:
            time.sleep(WARM_UP_SECONDS + KILL_AFTER)
            asyncio.run(self._node.kill())
            time.sleep(DOWN)
            asyncio.run(self._node.start())
        except Exception as error:  # noqa: BLE001 -- told where somebody waits for it
            self._error = error


def _node(arena: Arena) -> Node:
    try:
        return Node(arena.broker)
    except AssertionError as error:
        raise ContenderError(str(error)) from None


def _generate(plan: Plan, port: int) -> tuple[dict, list[str]]:
    """What the generator measured, and the ids of what was accepted."""
    with tempfile.TemporaryDirectory(prefix="hareline-bench-") as directory:
        file = Path(directory) / "accepted"
        command = [
            *(str(PROJECT_PYTHON), str(BENCH / "webhook_load.py"), "--port", str(port), "--accepted", str(file)),
            *("--deliveries", str(plan.deliveries), "--warm-up", str(plan.warm_up), "--connections", str(CONNECTIONS)),
            *(("--rate", str(plan.rate)) if plan.rate else ()),
        ]
        environment = {"PYTHONPATH": f"{BENCH}:{BENCH.parent}", "PATH": "/usr/bin:/bin"}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = process.communicate(timeout=PATIENCE + plan.deliveries / 100)
        except BaseException as error:
            kill_group(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ContenderError("the load generator did not end") from None
            raise
        if process.returncode:
            raise ContenderError(f"the load generator: {err.strip()[-800:]}")
        return json.loads(out), file.read_text().split()


def _declare(arena: Arena, store: Store) -> None:
    command = [str(COMMAND), "topology", "apply"]
    variables = environment(arena, store) | APP
    done = subprocess.run(command, cwd=BENCH, env=variables, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise ContenderError(f"hareline topology apply: exit code {done.returncode}: {done.stderr.strip()[-800:]}")
    arena.purge(QUEUE)


def _await_handled(connection: psycopg.Connection, accepted: int, roles: dict[str, Role]) -> None:
    query = "SELECT count(*) FROM bench_handled"
    until(
        lambda: connection.execute(query).fetchone()[0] >= accepted,
        f"{accepted} deliveries were accepted, and not all of them have run",
        *roles.values(),
        timeout=PATIENCE,
        every=0.1,
    )


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
