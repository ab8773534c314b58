"""What every contender shares: the payload, the counters inside a worker, the pacing of a producer.

Standard library alone, because it is imported in every contender's own environment, and cheap on the path of
a job, because what it costs is measured along with the job.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

PAYLOAD_BYTES = 256
PIPELINE = 1000  # publishes in flight at once where a client can pipeline
LANES = 4
WARM_UP = 500  # jobs enqueued before the clock starts, so that connecting and declaring are not measured


def broker_url() -> str:
    return os.environ["BENCH_BROKER_URL"]


def payload(number: int, sent_ns: int = 0) -> dict[str, Any]:
    """A payload of exactly 256 bytes as compact JSON: number, when sent (ns since the epoch), padding."""
    bare = len(f'{{"number":{number},"sent_ns":{sent_ns},"pad":""}}')
    return {"number": number, "sent_ns": sent_ns, "pad": "x" * (PAYLOAD_BYTES - bare)}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p90, p99 and the maximum in milliseconds (nearest rank)."""
    ordered = sorted(seconds)

    def rank(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 3)

    return {"p50_ms": rank(0.5), "p90_ms": rank(0.9), "p99_ms": rank(0.99), "max_ms": rank(1.0)}


class Meter:
    """Counts jobs inside a worker and writes one JSON report when the last expected one is done.

    `BENCH_MODE=rate` reports jobs/s from the first to the last completion, and the process's CPU time per job
    in microseconds; `BENCH_MODE=latency` the time from enqueueing to the handler's start, after a warm-up.
    Safe to call from several threads.
    """

    def __init__(self) -> None:
        self.mode = os.environ.get("BENCH_MODE", "rate")
        self.expected = int(os.environ.get("BENCH_JOBS", "0"))
        self.skipped = int(os.environ.get("BENCH_WARM_UP", "0"))
        self._count = itertools.count(1)  # next() on it is one step under the interpreter lock
        self._first = self._first_cpu = 0.0
        self._samples: list[float] = []
        self.done: Callable[[int, int], None] = self._sample_latency if self.mode == "latency" else self._count_job

    def _count_job(self, _number: int, _sent_ns: int) -> None:
        n = next(self._count)
        if n == 1:
            self._first, self._first_cpu = time.perf_counter(), time.process_time()
        elif n == self.expected:
            seconds, cpu = time.perf_counter() - self._first, time.process_time() - self._first_cpu
            rate = (n - 1) / seconds
            report({"jobs": n, "seconds": seconds, "per_second": rate, "cpu_us": 1e6 * cpu / (n - 1)})

    def _sample_latency(self, number: int, sent_ns: int) -> None:
        self.sample(number, (time.time_ns() - sent_ns) / 1e9)

    def sample(self, number: int, seconds: float) -> None:
        """Keep one duration, and report the percentiles when the last expected job has given its own."""
        if number >= self.skipped:
            self._samples.append(seconds)
        if next(self._count) == self.expected:
            report({"jobs": self.expected, "samples": len(self._samples)} | percentiles(self._samples))


def report(result: dict[str, Any]) -> None:
    """Write one JSON line where the harness waits for it; whole or not at all."""
    target = Path(os.environ["BENCH_REPORT"])
    draft = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    draft.write_text(json.dumps(result) + "\n")
    draft.replace(target)


def answer(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def timed(send: Callable[[int], Any], jobs: int) -> None:
    """Enqueue one by one through a blocking client, and answer with the rate."""
    for n in range(min(WARM_UP, jobs)):
        send(n)
    began = time.perf_counter()
    for n in range(WARM_UP, jobs):
        send(n)
    answer_rate(jobs, began)


async def timed_pipelined(send: Callable[[int], Awaitable[Any]], jobs: int) -> None:
    """Enqueue with up to PIPELINE publishes in flight, each confirmed, and answer with the rate."""
    await _pipelined(send, range(min(WARM_UP, jobs)))
    began = time.perf_counter()
    await _pipelined(send, range(WARM_UP, jobs))
    answer_rate(jobs, began)


async def _pipelined(send: Callable[[int], Awaitable[Any]], numbers: range) -> None:
    # Several lanes, so that the pipeline never runs empty while one of them waits for the end of its batch.
    remaining = _split(numbers, PIPELINE // LANES)

    async def lane() -> None:
        for batch in remaining:
            await asyncio.gather(*[send(n) for n in batch])

    await asyncio.gather(*[lane() for _ in range(LANES)])


def batches(jobs: int, size: int) -> Iterator[range]:
    """The numbers after the warm-up, `size` at a time, for clients that take many at once."""
    return _split(range(WARM_UP, jobs), size)


def _split(numbers: range, size: int) -> Iterator[range]:
    for start in range(numbers.start, numbers.stop, size):
        yield range(start, min(start + size, numbers.stop))


def answer_rate(jobs: int, began: float, timed_jobs: int | None = None) -> None:
    """Answer with the rate since `began`; all but the warm-up count, unless told how many do."""
    seconds = time.perf_counter() - began
    counted = jobs - WARM_UP if timed_jobs is None else timed_jobs
    answer({"jobs": counted, "seconds": seconds, "per_second": counted / seconds})


def _arrivals(rate: float, jobs: int) -> Iterator[tuple[int, float]]:
    start = time.perf_counter() + 0.1
    for n in range(jobs):
        yield n, start + n / rate


def paced(send: Callable[[int], Any], rate: float, jobs: int) -> None:
    """Enqueue on an open-loop schedule, blocking: a late one goes at once, none is skipped."""
    slips = []
    for n, due in _arrivals(rate, jobs):
        if (ahead := due - time.perf_counter()) > 0:
            time.sleep(ahead)
        slips.append(time.perf_counter() - due)
        send(n)
    answer({"jobs": jobs, "slip": percentiles(slips)})


async def paced_pipelined(send: Callable[[int], Awaitable[Any]], rate: float, jobs: int) -> None:
    """Enqueue on an open-loop schedule; a publish that waits for its confirm holds up no other."""
    slips, sending = [], set()
    for n, due in _arrivals(rate, jobs):
        if (ahead := due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        slips.append(time.perf_counter() - due)
        task = asyncio.ensure_future(send(n))
        sending.add(task)
        task.add_done_callback(sending.discard)
    await asyncio.gather(*sending)
    answer({"jobs": jobs, "slip": percentiles(slips)})


def arguments(modes: tuple[str, ...]) -> argparse.Namespace:
    """The protocol that every contender speaks: describe | declare | enqueue | pace | worker."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("describe", help="print versions and settings")
    commands.add_parser("declare", help="make the queues")
    commands.add_parser("worker", help="become the worker")
    enqueue = commands.add_parser("enqueue", help="enqueue as fast as it goes, print the rate")
    enqueue.add_argument("--jobs", type=int, required=True)
    enqueue.add_argument("--mode", choices=modes, default=modes[0])
    pace = commands.add_parser("pace", help="enqueue at a steady rate")
    pace.add_argument("--jobs", type=int, required=True)
    pace.add_argument("--rate", type=float, required=True)
    return parser.parse_args()


def become(*command: str) -> None:
    """Turn this process into the contender's own command line, taken from the environment that runs this."""
    program = Path(sys.executable).parent / command[0]
    os.execv(program, [str(program), *command[1:]])
