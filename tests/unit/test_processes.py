"""Several processes of one role: restarted when they die, stopped together. Real children, no broker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import ROOT

DEADLINE = 60.0
CHILD = """
import os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
asked = []
def on_signal(number, _):
    asked.append(number)
    with open(here / f"signals-{os.getpid()}", "a") as file:
        file.write(f"{number}\\n")
    if len(asked) >= int(sys.argv[2]):
        sys.exit(int(sys.argv[3]))
signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
(here / f"up-{os.getpid()}").touch()
while True:
    time.sleep(60)
"""
PARENT = """
import sys
from hareline import logs
from hareline.processes import Processes
logs.configure("INFO")
sys.exit(Processes([sys.executable, *sys.argv[2:]], int(sys.argv[1])).run())
"""


class Parent:
    """`Processes` in a process of its own, and what its children left in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "child.py").write_text(CHILD)
        self.process: subprocess.Popen[bytes]

    def start(self, count: int, *, signals: int = 1, code: int = 0) -> None:
        child = [str(self.directory / "child.py"), str(self.directory), str(signals), str(code)]
        self.process = subprocess.Popen([sys.executable, "-c", PARENT, str(count), *child], cwd=ROOT)

    def pids(self, kind: str = "up") -> set[int]:
        return {int(path.name.rpartition("-")[2]) for path in self.directory.glob(f"{kind}-*")}

    def until_up(self, count: int) -> set[int]:
        end = time.monotonic() + DEADLINE
        while len(self.pids()) < count:
            assert time.monotonic() < end, f"{count} children never came up"
            time.sleep(0.02)
        return self.pids()

    def until_signals(self, count: int) -> None:
        end = time.monotonic() + DEADLINE
        while sum(len(p.read_text().split()) for p in self.directory.glob("signals-*")) < count:
            assert time.monotonic() < end, f"{count} signals never arrived"
            time.sleep(0.02)


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    parent = Parent(tmp_path)
    yield parent
    if parent.process.poll() is None:
        parent.process.kill()
        parent.process.wait()
    for pid in parent.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_signal_stops_all_children_and_then_the_parent(parent: Parent) -> None:
    """Each child hears of it once, and the exit code is 0."""
    parent.start(3)
    pids = parent.until_up(3)
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(DEADLINE) == 0
    assert parent.pids("signals") == pids


def test_a_child_that_dies_is_started_again(parent: Parent) -> None:
    """Only that one, and the parent still ends with 0 when asked to."""
    parent.start(2)
    first, second = parent.until_up(2)
    os.kill(first, signal.SIGKILL)
    pids = parent.until_up(3)
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(DEADLINE) == 0
    assert parent.pids("signals") == pids - {first}
    assert second in pids


def test_the_second_signal_is_passed_on_too(parent: Parent) -> None:
    """Children that take their time hear it, and their exit code is the parent's."""
    parent.start(2, signals=2, code=130)
    parent.until_up(2)
    parent.process.send_signal(signal.SIGTERM)
    parent.until_signals(2)
    parent.process.send_signal(signal.SIGINT)
    assert parent.process.wait(DEADLINE) == 130


def test_a_child_that_is_killed_while_stopping_shows(parent: Parent) -> None:
    """Whoever watches the parent learns that not all went well: 128 and the signal, as a shell says it."""
    parent.start(1, signals=2)
    [pid] = parent.until_up(1)
    parent.process.send_signal(signal.SIGTERM)
    parent.until_signals(1)
    os.kill(pid, signal.SIGKILL)
    assert parent.process.wait(DEADLINE) == 128 + signal.SIGKILL


def test_a_signal_during_the_start_is_not_lost(parent: Parent) -> None:
    """However early it comes: no child is left running, and the parent ends."""
    parent.start(4)
    parent.until_up(1)
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(DEADLINE) == 0
