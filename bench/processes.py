"""The contenders' processes: started, waited for within bounds, measured, and ended; never anyone else's."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from contenders import BENCH, Contender

POLL = 0.05


class ContenderError(Exception):
    """A contender did not do what it was asked; the text holds the end of what it wrote."""


def ask(contender: Contender, environment: dict[str, str], *arguments: str, timeout: float) -> dict:
    """Run one command of the contender's protocol; its last line of output is JSON ({} if it prints none)."""
    command = [str(contender.python), "-m", f"peers.{contender.module}", *arguments]
    process = subprocess.Popen(
        command,
        cwd=BENCH,
        env=_environment(contender, environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException as error:
        kill_group(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise ContenderError(f"{' '.join(arguments)}: no end after {timeout:.0f} s") from None
        raise
    if process.returncode:
        raise ContenderError(f"{' '.join(arguments)}: exit code {process.returncode}: {err.strip()[-800:]}")
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


class Worker:
    """One worker, started by the contender's own command line. On exit it is stopped, by force if need be."""

    def __init__(self, contender: Contender, environment: dict[str, str], *, mode: str, jobs: int, warm_up: int = 0):
        self.contender = contender
        self._directory = tempfile.TemporaryDirectory(prefix="hareline-bench-")
        self._report = Path(self._directory.name) / "report.json"
        self._log = Path(self._directory.name) / "log"
        self._environment = _environment(contender, environment) | {
            "BENCH_MODE": mode,
            "BENCH_JOBS": str(jobs),
            "BENCH_WARM_UP": str(warm_up),
            "BENCH_REPORT": str(self._report),
        }

    def __enter__(self):
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(self.contender.python), "-m", f"peers.{self.contender.module}", "worker"],
                cwd=BENCH,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_error):
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=40)
        kill_group(self._process)
        self._directory.cleanup()

    def check(self) -> None:
        """Raises ContenderError when the worker has ended by itself."""
        if self._process.poll() is not None:
            raise ContenderError(f"the worker ended with {self._process.returncode}: {self._tail()}")

    def report(self, timeout: float, while_waiting=lambda: None) -> dict:
        """What the worker measured, as soon as it has done all its jobs."""
        deadline = time.monotonic() + timeout
        while not self._report.exists():
            self.check()
            if time.monotonic() > deadline:
                raise ContenderError(f"the worker had not done its jobs after {timeout:.0f} s: {self._tail()}")
            while_waiting()
            time.sleep(POLL)
        return json.loads(self._report.read_text())

    def memory(self) -> dict[str, float]:
        """Resident and proportional memory in MB of the process and its children (Linux; else empty)."""
        processes = _with_children(self._process.pid)
        sizes = [_memory_of(pid) for pid in processes]
        if not any(sizes):
            return {}
        return {
            "rss_mb": round(sum(size.get("Rss", 0) for size in sizes) / 1024, 1),
            "pss_mb": round(sum(size.get("Pss", 0) for size in sizes) / 1024, 1),
            "processes": len(processes),
        }

    def _tail(self) -> str:
        return self._log.read_text(errors="replace").strip()[-800:]


def _environment(contender: Contender, environment: dict[str, str]) -> dict[str, str]:
    # The checkout is on the path, so that Hareline runs whether or not it is installed in the environment.
    path = {"PYTHONPATH": str(BENCH.parent)} if contender.lock is None else {}
    return os.environ | environment | contender.environment | path | {"PYTHONUNBUFFERED": "1"}


def kill_group(process: subprocess.Popen) -> None:
    """End what is left of a process that led its own session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


def _with_children(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(int(child) for child in path.read_text().split())
    return found


def _memory_of(pid: int) -> dict[str, int]:
    """Rss and Pss in KiB; empty where the system does not tell."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
    return {}
