"""Taskiq with taskiq-aio-pika: one worker process on uvloop, acks after the task; pipelined publishes."""

import time
from importlib.metadata import version

import uvloop
from pydantic import BaseModel
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

from peers import meter

QUEUE = "bench.taskiq"
QOS = 1000
MAX_ASYNC_TASKS = 1000

broker = AioPikaBroker(
    meter.broker_url(),
    qos=QOS,
    exchange=Exchange(name=QUEUE),
    task_queues=[Queue(name=QUEUE, type=QueueType.QUORUM, durable=True)],
    dead_letter_queue=Queue(name=f"{QUEUE}.dead", type=QueueType.QUORUM, durable=True),
)
METER = meter.Meter()


class Job(BaseModel):
    number: int
    sent_ns: int
    pad: str


@broker.task(task_name="bench.noop")
async def noop(job: Job) -> None:
    METER.done(job.number, job.sent_ns)


async def produce(args):
    await broker.startup()
    if args.command == "enqueue":
        await meter.timed_pipelined(lambda n: noop.kiq(meter.payload(n)), args.jobs)
    elif args.command == "pace":
        await meter.paced_pipelined(lambda n: noop.kiq(meter.payload(n, time.time_ns())), args.rate, args.jobs)
    await broker.shutdown()


def main():
    args = meter.arguments(modes=("pipelined",))
    if args.command == "describe":
        settings = {
            "workers": 1,
            "qos": QOS,
            "max_async_tasks": MAX_ASYNC_TASKS,
            "ack_type": "when_executed",
            "loop": "uvloop",
        }
        versions = {name: version(name) for name in ("taskiq", "taskiq-aio-pika", "aio-pika", "aiormq", "pydantic")}
        meter.answer({"versions": versions, "settings": settings})
    elif args.command == "worker":
        meter.become(
            *("taskiq", "worker", "peers.taskiq:broker", "--workers", "1", "--log-level", "WARNING"),
            *("--max-async-tasks", str(MAX_ASYNC_TASKS), "--ack-type", "when_executed"),
        )
    else:
        uvloop.run(produce(args))


if __name__ == "__main__":
    main()
