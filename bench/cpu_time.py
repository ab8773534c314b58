"""CPU time of processes, as Linux tells it. Where it does not, or the process is another machine's, there is none."""

import contextlib
import os
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


def of_tree(pid: int) -> float:
    """Seconds of the process, of its living descendants and of those that were waited for."""
    seconds = 0.0
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()
            seconds += TICK * sum(int(ticks) for ticks in fields[11:15])
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(int(child) for child in path.read_text().split())
    return seconds


def listener(port: int) -> int | None:
    """The process that listens on a TCP port of this machine; the oldest, where it has inherited that on."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for process in sorted((int(path.name) for path in Path("/proc").glob("[0-9]*")), key=int) if sockets else ():
        with contextlib.suppress(OSError):
            if any(os.readlink(path) in sockets for path in Path(f"/proc/{process}/fd").iterdir()):
                return process
    return None
