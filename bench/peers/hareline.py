"""Hareline as users run it: the real command line, the default executor, one worker process."""

import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import uvloop
from pydantic import BaseModel

from hareline import App, BlockingProducer, Job, JobType, Producer, Retry, Transient
from peers import meter

CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "1000"))
BATCH = 1000  # payloads per enqueue_many
METER = meter.Meter()


class Payload(BaseModel):
    number: int
    sent_ns: int
    pad: str


noop = JobType(
    "bench.noop",
    Payload,
    retry=Retry(attempts=5, base=1.0, factor=1.0, jitter=0.0),
    timeout=30.0,
)
app = App(job_types=[noop])

if METER.mode == "ladder":
    due: dict[int, float] = {}

    @app.handler(noop)
    async def handle(payload: Payload, job: Job) -> None:
        """Fails once, and measures how long after its due time, a second later, the second run starts."""
        now = time.perf_counter()
        if job.attempt == 1:
            due[payload.number] = now + 1.0
            raise Transient("once")
        METER.sample(payload.number, now - due.pop(payload.number))

else:

    @app.handler(noop)
    async def handle(payload: Payload, job: Job) -> None:  # noqa: ARG001 -- the signature of a handler
        METER.done(payload.number, payload.sent_ns)


def made(n: int) -> Payload:
    return Payload(**meter.payload(n))


async def produce(args):
    async with Producer() as producer:
        if args.command == "pace":
            await meter.paced_pipelined(
                lambda n: producer.enqueue(noop, Payload(**meter.payload(n, time.time_ns()))),
                args.rate,
                args.jobs,
            )
        elif args.mode == "pipelined":
            await meter.timed_pipelined(lambda n: producer.enqueue(noop, made(n)), args.jobs)
        else:
            await producer.enqueue_many(noop, [made(n) for n in range(meter.WARM_UP)])
            began = time.perf_counter()
            for batch in meter.batches(args.jobs, BATCH):
                await producer.enqueue_many(noop, [made(n) for n in batch])
            meter.answer_rate(args.jobs, began)


def produce_blocking(args):
    with BlockingProducer() as producer:
        if args.mode == "blocking-one":
            meter.timed(lambda n: producer.enqueue(noop, made(n)), args.jobs)
        else:
            producer.enqueue_many(noop, [made(n) for n in range(meter.WARM_UP)])
            began = time.perf_counter()
            for batch in meter.batches(args.jobs, BATCH):
                producer.enqueue_many(noop, [made(n) for n in batch])
            meter.answer_rate(args.jobs, began)


def describe():
    versions = {}
    for name in ("hareline", "pika", "pydantic", "uvloop"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a package"
    settings = {
        "processes": 1,
        "concurrency": CONCURRENCY,
        "timeout_s": noop.timeout,
        "reports": os.environ.get("HARELINE_REPORT", "on"),
    }
    meter.answer({"versions": versions, "settings": settings})


def main():
    args = meter.arguments(modes=("pipelined", "many", "blocking-one", "blocking-many"))
    if args.command == "describe":
        describe()
    elif args.command == "declare":
        program = Path(sys.executable).parent / "hareline"
        subprocess.run([str(program), "topology", "apply"], check=True, timeout=60)
    elif args.command == "worker":
        meter.become("hareline", "worker", noop.name, "--concurrency", str(CONCURRENCY))
    elif args.command == "enqueue" and args.mode.startswith("blocking"):
        produce_blocking(args)
    else:
        uvloop.run(produce(args))


if __name__ == "__main__":
    main()
