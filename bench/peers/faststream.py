"""FastStream on RabbitMQ: one process on uvloop, acks after the handler; pipelined publishes."""

import time
from importlib.metadata import version

import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from pydantic import BaseModel

from peers import meter

QUEUE = RabbitQueue("bench.faststream", queue_type=QueueType.QUORUM, durable=True)
PREFETCH = 1000

broker = RabbitBroker(meter.broker_url(), logger=None, default_channel=Channel(prefetch_count=PREFETCH))
app = FastStream(broker, logger=None)
METER = meter.Meter()


class Job(BaseModel):
    number: int
    sent_ns: int
    pad: str


@broker.subscriber(QUEUE, ack_policy=AckPolicy.REJECT_ON_ERROR)
async def noop(job: Job) -> None:
    METER.done(job.number, job.sent_ns)


async def produce(args):
    await broker.connect()
    await broker.declare_queue(QUEUE)
    if args.command == "enqueue":
        await meter.timed_pipelined(
            lambda n: broker.publish(meter.payload(n), QUEUE, persist=True, mandatory=True), args.jobs
        )
    elif args.command == "pace":
        await meter.paced_pipelined(
            lambda n: broker.publish(meter.payload(n, time.time_ns()), QUEUE, persist=True, mandatory=True),
            args.rate,
            args.jobs,
        )
    await broker.stop()


def main():
    args = meter.arguments(modes=("pipelined",))
    if args.command == "describe":
        settings = {
            "workers": 1,
            "prefetch": PREFETCH,
            "publisher_confirms": True,
            "ack_policy": "reject_on_error",
            "logger": None,
            "loop": "uvloop",
        }
        versions = {name: version(name) for name in ("faststream", "aio-pika", "aiormq", "pydantic")}
        meter.answer({"versions": versions, "settings": settings})
    elif args.command == "worker":
        meter.become("faststream", "run", "peers.faststream:app", "--log-level", "warning")
    else:
        uvloop.run(produce(args))


if __name__ == "__main__":
    main()
