"""pika with nothing above it, the ceiling for what is built on it: asyncio on uvloop, and blocking."""

import asyncio
import json
import signal
import time
from importlib.metadata import version

import pika
import uvloop
from pika.adapters.asyncio_connection import AsyncioConnection

from peers import meter

QUEUE = "bench.raw"
PREFETCH = 1000
WINDOW = 2000  # unconfirmed publishes
PROPERTIES = pika.BasicProperties(delivery_mode=2, content_type="application/json")
METER = meter.Meter()


def body(n: int) -> bytes:
    return json.dumps(meter.payload(n), separators=(",", ":")).encode()


async def open_channel():
    """An open channel on pika's asyncio adapter."""
    opened = asyncio.get_running_loop().create_future()

    def fail(_connection, error):
        if not opened.done():
            opened.set_exception(ConnectionError(str(error)))

    AsyncioConnection(
        pika.URLParameters(meter.broker_url()),
        on_open_callback=lambda connection: connection.channel(on_open_callback=opened.set_result),
        on_open_error_callback=fail,
        on_close_callback=fail,
    )
    return await opened


async def publish(args):
    """Keep WINDOW publishes unconfirmed, from callbacks alone, until the last one is confirmed."""
    channel = await open_channel()
    loop = asyncio.get_running_loop()
    selected, confirmed = loop.create_future(), loop.create_future()
    sent = below = 0  # every tag up to `below` is confirmed, and those in `above`
    above: set[int] = set()

    def fill():
        nonlocal sent
        while sent < args.jobs and sent - below - len(above) < WINDOW:
            channel.basic_publish("", QUEUE, body(sent), PROPERTIES, mandatory=True)
            sent += 1

    def settle(frame):
        nonlocal below
        tag = frame.method.delivery_tag
        if frame.method.multiple:
            above.difference_update([earlier for earlier in above if earlier <= tag])
            below = max(below, tag)
        else:
            above.add(tag)
        while below + 1 in above:
            below += 1
            above.remove(below)
        if below == args.jobs:
            confirmed.set_result(None)
        else:
            fill()

    channel.confirm_delivery(settle, callback=selected.set_result)
    await selected
    began = time.perf_counter()
    fill()
    await confirmed
    meter.answer_rate(args.jobs, began, args.jobs)
    channel.connection.close()


async def consume():
    channel = await open_channel()
    stopped = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set_result, None)

    def on_message(channel, method, _properties, _body):
        METER.done(0, 0)
        channel.basic_ack(method.delivery_tag)

    channel.basic_qos(prefetch_count=PREFETCH)
    channel.basic_consume(QUEUE, on_message)
    await stopped
    channel.connection.close()
    await asyncio.sleep(0.2)


def blocking(args):
    with pika.BlockingConnection(pika.URLParameters(meter.broker_url())) as connection:
        channel = connection.channel()
        if args.command == "declare":
            channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
            return
        channel.confirm_delivery()
        meter.timed(lambda n: channel.basic_publish("", QUEUE, body(n), PROPERTIES, mandatory=True), args.jobs)


def main():
    args = meter.arguments(modes=("pipelined", "blocking-one"))
    if args.command == "describe":
        versions = {name: version(name) for name in ("pika", "uvloop")}
        meter.answer({"versions": versions, "settings": {"prefetch": PREFETCH, "loop": "uvloop"}})
    elif args.command == "worker":
        uvloop.run(consume())
    elif args.command == "declare" or args.mode == "blocking-one":
        blocking(args)
    else:
        uvloop.run(publish(args))


if __name__ == "__main__":
    main()
