"""Sends webhook deliveries, as a process of its own, and tells what became of each. Signed before the clock starts.

    python webhook_load.py --port 8080 --deliveries 10000 --connections 200 [--rate 300] [--warm-up 500] --accepted FILE

With a rate it is an open loop: each delivery has its due time, whatever became of those before it, and its latency is
from then to the end of the answer. Without one, each connection sends the next one as soon as it has an answer.
"""

import argparse
import asyncio
import gc
import hashlib
import hmac
import json
import sys
import time
from collections import Counter, deque
from pathlib import Path

import uvloop

from peers.meter import PAYLOAD_BYTES, percentiles
from webhook_app import EVENT, SECRET, SOURCE

PATIENCE = 60.0
IDLE = 2.0
UNANSWERED = "unanswered"


def request_of(number: int) -> bytes:
    bare = f'{{"event":"{EVENT}","number":{number},"pad":""}}'
    body = (bare[:-2] + "x" * (PAYLOAD_BYTES - len(bare)) + '"}').encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    head = (
        f"POST /webhooks/{SOURCE} HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nContent-Type: application/json\r\n"
        f"X-Webhook-Signature: {signature}\r\nX-Idempotency-Key: delivery-{number}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    def __init__(self, deliveries: int, warm_up: int):
        self.requests = [request_of(number) for number in range(deliveries)]
        self.due = [0.0] * deliveries
        self.ended = [0.0] * deliveries
        self.statuses: list[str] = [UNANSWERED] * deliveries
        self.bodies: list[bytes] = []
        self.warm_up = warm_up
        self.left = deliveries
        self.over = asyncio.Event()
        self.waiting: deque[int] = deque()
        self.idle: list[Sender] = []

    def ended_with(self, number: int, status: str, body: bytes) -> None:
        self.ended[number] = time.perf_counter()
        self.statuses[number] = status
        if status == "202":
            self.bodies.append(body)
        self.left -= 1
        if not self.left:
            self.over.set()

    def next_for(self, sender: "Sender") -> None:
        if self.waiting:
            sender.send(self.waiting.popleft())
        else:
            sender.since = time.perf_counter()
            self.idle.append(sender)

    def take_idle(self) -> "Sender | None":
        """One that was used lately: the server may be about to end the others, as HTTP clients know."""
        if self.idle and time.perf_counter() - self.idle[-1].since > IDLE:
            for sender in self.idle:
                sender.transport.close()
            self.idle.clear()
        return self.idle.pop() if self.idle else None


class Sender(asyncio.Protocol):
    """One connection with one request under way at most."""

    def __init__(self, load: Load):
        self.load = load
        self.number = -1
        self.received = b""
        self.since = 0.0

    def connection_made(self, transport):
        self.transport = transport

    def send(self, number: int) -> None:
        self.number = number
        if not self.load.due[number]:
            self.load.due[number] = time.perf_counter()
        self.transport.write(self.load.requests[number])

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, rest = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            return
        number, self.number, self.received = self.number, -1, b""
        self.load.ended_with(number, head[9:12].decode(), rest)
        self.load.next_for(self)

    def connection_lost(self, _error) -> None:
        if self in self.load.idle:
            self.load.idle.remove(self)  # the server ends connections that are idle for some seconds
        if self.number >= 0:
            self.load.ended_with(self.number, UNANSWERED, b"")


async def connect(load: Load, port: int) -> Sender:
    _, sender = await asyncio.get_running_loop().create_connection(lambda: Sender(load), "127.0.0.1", port)
    return sender


async def flood(load: Load, port: int, connections: int) -> None:
    load.waiting.extend(range(len(load.requests)))
    for _ in range(connections):
        load.next_for(await connect(load, port))


async def pace(load: Load, port: int, connections: int, rate: float) -> None:
    """Late ones go at once; none is skipped. More connections are opened where all are busy."""
    opened = 0
    start = time.perf_counter() + 0.1

    async def another() -> None:
        load.next_for(await connect(load, port))

    opening = set()
    for number in range(len(load.requests)):
        load.due[number] = start + number / rate
        if (ahead := load.due[number] - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        if sender := load.take_idle():
            sender.send(number)
            continue
        load.waiting.append(number)
        if opened < connections:
            task = asyncio.ensure_future(another())
            opening.add(task)
            task.add_done_callback(opening.discard)
            opened += 1


async def run(args: argparse.Namespace) -> dict:
    load = Load(args.deliveries, args.warm_up)
    gc.collect()
    gc.freeze()
    gc.disable()
    cpu = time.process_time()
    if args.rate:
        await pace(load, args.port, args.connections, args.rate)
    else:
        await flood(load, args.port, args.connections)
    async with asyncio.timeout(PATIENCE):
        await load.over.wait()
    cpu = time.process_time() - cpu
    statuses = Counter(load.statuses)
    ids = [json.loads(body)["webhook_id"] for body in load.bodies]
    args.accepted.write_text("\n".join(ids))
    counted = range(args.warm_up, args.deliveries)
    began, ended = min(load.due[number] for number in counted), max(load.ended[number] for number in counted)
    accepted = sum(load.statuses[number] == "202" for number in counted)
    unanswered = statuses.pop(UNANSWERED, 0)
    return {
        "accepted": statuses.pop("202", 0),
        "refused": sum(statuses.values()),
        "unanswered": unanswered,
        "per_second": accepted / (ended - began),
        "generator_us": 1e6 * cpu / args.deliveries,
    } | percentiles([load.ended[number] - load.due[number] for number in counted])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--deliveries", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--warm-up", type=int, default=0)
    parser.add_argument("--accepted", type=Path, required=True)
    sys.stdout.write(json.dumps(uvloop.run(run(parser.parse_args()))) + "\n")


if __name__ == "__main__":
    main()
