"""Sagas of four steps that do nothing: each step is a delivery and a confirmed publish of the next one."""

import subprocess
import sys
import time
from pathlib import Path

import uvloop

from hareline import App, Job, JobType, Producer, Saga, Step
from peers import meter
from peers.hareline import CONCURRENCY, METER, Payload, made

STEPS = 4
_ended: dict[str, float] = {}

steps = [JobType(f"bench.step.{number}", Payload, timeout=30.0) for number in range(STEPS)]
saga = Saga("bench.saga", *(Step(job_type) for job_type in steps), payload=Payload)
app = App(sagas=[saga])


async def count(payload: Payload) -> None:
    METER.done(payload.number, payload.sent_ns)


async def hand_over(payload: Payload, job: Job) -> None:
    """Measures from the end of the step before to the start of this one."""
    assert job.saga is not None
    began, before = time.perf_counter(), _ended.pop(job.saga.id, None)
    if before is not None:
        METER.sample(payload.number, began - before)
    if job.type != steps[-1].name:
        _ended[job.saga.id] = time.perf_counter()


for step in steps:
    app.handler(step)(hand_over if METER.mode == "latency" else count)


async def produce(args):
    async with Producer() as producer:
        if args.command == "pace":
            await meter.paced_pipelined(lambda n: producer.start(saga, made(n)), args.rate, args.jobs)
        else:
            await meter.timed_pipelined(lambda n: producer.start(saga, made(n)), args.jobs)


def main():
    args = meter.arguments(modes=("pipelined",))
    if args.command == "declare":
        program = Path(sys.executable).parent / "hareline"
        subprocess.run([str(program), "topology", "apply"], check=True, timeout=60)
    elif args.command == "worker":
        meter.become("hareline", "worker", "bench.step.*", "--concurrency", str(CONCURRENCY))
    else:
        uvloop.run(produce(args))


if __name__ == "__main__":
    main()
