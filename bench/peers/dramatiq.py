"""Dramatiq: one process of some threads; it publishes one by one, each confirmed."""

import os
import time
from importlib.metadata import version

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from peers import meter

QUEUE = "bench.dramatiq"
THREADS = int(os.environ.get("BENCH_THREADS", "8"))  # 8 is its default
PREFETCH = 256


class QuorumBroker(RabbitmqBroker):
    """Dramatiq declares classic queues and has no setting for it; this is the documented seam."""

    def _build_queue_arguments(self, queue_name):
        return super()._build_queue_arguments(queue_name) | {"x-queue-type": "quorum"}


broker = QuorumBroker(url=meter.broker_url(), confirm_delivery=True)
dramatiq.set_broker(broker)
METER = meter.Meter()


@dramatiq.actor(queue_name=QUEUE)
def noop(job):
    METER.done(job["number"], job["sent_ns"])


def main():
    args = meter.arguments(modes=("blocking-one",))
    if args.command == "describe":
        settings = {"processes": 1, "threads": THREADS, "prefetch": PREFETCH, "confirm_delivery": True}
        meter.answer({"versions": {"dramatiq": version("dramatiq"), "pika": version("pika")}, "settings": settings})
    elif args.command == "declare":
        broker.declare_queue(QUEUE, ensure=True)
    elif args.command == "enqueue":
        meter.timed(lambda n: noop.send(meter.payload(n)), args.jobs)
    elif args.command == "pace":
        meter.paced(lambda n: noop.send(meter.payload(n, time.time_ns())), args.rate, args.jobs)
    else:
        os.environ["dramatiq_queue_prefetch"] = str(PREFETCH)  # noqa: SIM112 -- its own spelling
        meter.become("dramatiq", "peers.dramatiq", "--processes", "1", "--threads", str(THREADS))


if __name__ == "__main__":
    main()
