"""Celery: a pool of threads in one process, late acks; it publishes one by one, each confirmed."""

import time
from importlib.metadata import version

from celery import Celery
from kombu import Exchange, Queue

from peers import meter

QUEUE = "bench.celery"
THREADS = 8
PREFETCH_MULTIPLIER = 32

app = Celery("bench", broker=meter.broker_url())
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    task_queues=[
        Queue(
            QUEUE,
            Exchange(QUEUE, type="direct"),
            routing_key=QUEUE,
            queue_arguments={"x-queue-type": "quorum"},
        )
    ],
    task_default_queue=QUEUE,
    task_default_exchange=QUEUE,
    task_default_routing_key=QUEUE,
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=PREFETCH_MULTIPLIER,
    worker_hijack_root_logger=False,
)
METER = meter.Meter()


@app.task(name="bench.noop")
def noop(job):
    METER.done(job["number"], job["sent_ns"])


def main():
    args = meter.arguments(modes=("blocking-one",))
    if args.command == "describe":
        settings = {
            "pool": "threads",
            "concurrency": THREADS,
            "prefetch": THREADS * PREFETCH_MULTIPLIER,
            "confirm_publish": True,
            "acks_late": True,
            "ignore_result": True,
            "gossip, mingle, heartbeat": False,
        }
        versions = {name: version(name) for name in ("celery", "kombu", "amqp")}
        meter.answer({"versions": versions, "settings": settings})
    elif args.command == "declare":
        with app.connection_for_write() as connection:
            app.conf.task_queues[0](connection.channel()).declare()
    elif args.command == "enqueue":
        meter.timed(lambda n: noop.apply_async((meter.payload(n),)), args.jobs)
    elif args.command == "pace":
        meter.paced(lambda n: noop.apply_async((meter.payload(n, time.time_ns()),)), args.rate, args.jobs)
    else:
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING")
        meter.become(
            "celery",
            "-A",
            "peers.celery",
            "worker",
            "--pool",
            "threads",
            "--concurrency",
            str(THREADS),
            *quiet,
        )


if __name__ == "__main__":
    main()
