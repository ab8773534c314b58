"""Breakers of workers on a real broker, in front of a service that really fails."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from consumers.breaker_news import CLOSED, OPENED, decode
from consumers.circuit import State
from consumers.jobs import email, http
from consumers.worker import Worker
from hareline import App, Breaker, Job, JobType, Retry
from tests.lab import Lab, Number, until
from tests.ledger_app import BEGAN, DONE, Work
from tests.service import Service, call
from tests.workshop import Workshop
from topology.audience import Audience
from topology.envelope import notice
from topology.events import JobEvent
from topology.link import Connection
from topology.publisher import Publisher

FAST = Retry(attempts=3, base=0.1, jitter=0.0)


@pytest.fixture
def name() -> str:
    """A breaker of this test's own: the namespace is everybody's."""
    return f"b-{secrets.token_hex(4)}"


async def consumers(lab: Lab, job_type: JobType) -> int:  # type: ignore[type-arg]
    counts = await lab.control.counts(lab.names.queue(job_type.name))
    assert counts is not None
    return counts.consumers


class Replica:
    """An app with a breaker of its own object, as another process would have it."""

    def __init__(self, job_type: JobType, breaker: Breaker, service: Service) -> None:  # type: ignore[type-arg]
        self.breaker = breaker
        self.app = App(job_types=[job_type])
        self.attempts: Counter[int] = Counter()
        self.done: list[int] = []

        @self.app.handler(job_type, breaker=breaker)
        async def handle(number: Number, job: Job) -> None:
            self.attempts[number.n] = max(self.attempts[number.n], job.attempt)
            async with breaker:
                await call(service.port)
            self.done.append(number.n)


# -- one worker --------------------------------------------------------------------------------------------------------


async def test_an_open_breaker_stops_consumption_and_charges_nothing(lab: Lab, name: str) -> None:
    """Jobs stay ready in their queue, without a consumer, until the service is back; then all are done."""
    numbers = lab.job_type(retry=FAST)
    await lab.apply(numbers)
    async with Service() as service:
        await service.be("away")
        replica = Replica(numbers, Breaker(name, reset=3.0), service)
        events: list[JobEvent] = []
        async with lab.working(replica.app, concurrency=5, observers=[events.append]) as worker:
            await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(100)])
            await until(lambda: replica.breaker.state is State.OPEN, "it opens")

            async def paused() -> bool:
                return await consumers(lab, numbers) == 0 and worker.running == 0

            await until(paused, "the queue has no consumer")
            assert await lab.ready(numbers) >= 85
            await service.be("up")
            await until(lambda: len(replica.done) == 100, "all are done")
            await until(lambda: worker.running == 0, "and settled")
            assert await consumers(lab, numbers) == 1
    assert sorted(replica.done) == list(range(100))
    # Five failures opened it. At most five jobs were at it, each of which may have been charged for its own call.
    assert sum(attempt - 1 for attempt in replica.attempts.values()) <= 10
    assert {event.event for event in events} <= {"job.done", "job.retrying", "job.snoozed"}


async def test_a_handler_that_hits_an_open_breaker_is_put_off(lab: Lab, name: str) -> None:
    """Undeclared, the queue is consumed on: other jobs of the type may not need the service."""
    numbers = lab.job_type(retry=Retry(attempts=1))
    breaker = Breaker(name, failures=1, reset=2.0)
    await lab.apply(numbers)
    app = App(job_types=[numbers], breakers=[breaker])
    done: list[tuple[int, int]] = []

    @app.handler(numbers)
    async def handle(number: Number, job: Job) -> None:
        if number.n % 2:
            async with breaker:
                pass
        done.append((number.n, job.attempt))

    with pytest.raises(ConnectionError):
        async with breaker:
            raise ConnectionError
    async with lab.working(app):
        await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(10)])
        await until(lambda: len(done) >= 5, "the even ones are done")
        assert {n for n, _ in done} == {0, 2, 4, 6, 8}
        assert breaker.state is State.OPEN
        await until(lambda: len(done) == 10, "the odd ones follow")
    assert sorted(done) == [(n, 1) for n in range(10)]


async def test_a_service_that_hangs_opens_it_by_the_jobs_timeout(lab: Lab, name: str) -> None:
    """The handler is cancelled; that it was by a timeout counts."""
    numbers = lab.job_type(retry=Retry(attempts=5, base=0.1), timeout=0.2)
    await lab.apply(numbers)
    async with Service() as service:
        await service.be("hanging")
        replica = Replica(numbers, Breaker(name, reset=60.0), service)
        async with lab.working(replica.app):
            await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(5)])
            await until(lambda: replica.breaker.state is State.OPEN, "it opens")
    assert "TimeoutError" in replica.breaker.standing().reason


async def test_half_open_a_worker_runs_no_more_than_the_probes(lab: Lab, name: str) -> None:
    """The consumer's prefetch is that of the probes, so that no other job is taken and put off."""
    numbers = lab.job_type(retry=FAST)
    await lab.apply(numbers)
    async with Service() as service:
        await service.be("failing")
        replica = Replica(numbers, Breaker(name, reset=3.0, probes=2), service)
        async with lab.working(replica.app, concurrency=5) as worker:
            await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(50)])
            await until(lambda: replica.breaker.state is State.OPEN and worker.running == 0, "it opens")
            await service.be("hanging")
            await until(lambda: service.at_once == 2, "two probes")
            assert worker.running == 2
            await service.be("failing")
            await until(lambda: replica.breaker.state is State.OPEN, "they fail")
            await service.be("up")
            await until(lambda: len(replica.done) == 50, "all are done")
    assert max(replica.attempts.values()) <= 3


async def test_the_jobs_that_ship_take_a_breaker(lab: Lab, name: str) -> None:
    """``http.sync`` and ``email.send``: their services' failures open it, and their queues rest."""
    sync, send = lab.job_type("sync", http.Sync, retry=FAST), lab.job_type("send", email.Email, retry=FAST)
    app = await lab.app(sync, send)
    api, server = Breaker(f"{name}.api", failures=2), Breaker(f"{name}.smtp", failures=2)
    async with Service() as service:
        await service.be("failing")
        http.register(app, http.HttpApi(f"http://127.0.0.1:{service.port}"), sync, breaker=api)
        smtp = email.SmtpServer("127.0.0.1", port=service.port, sender="shop@example.org")
        email.register(app, smtp, send, breaker=server)
        async with lab.working(app):
            producer = await lab.producer()
            await producer.enqueue_many(sync, [http.Sync(path=f"/{n}", document={}) for n in range(3)])
            mail = email.Email(to="ann@example.com", subject="s", text="t")
            await producer.enqueue_many(send, [mail] * 3)
            await until(lambda: api.state is server.state is State.OPEN, "both are open")

            async def resting() -> bool:
                return await consumers(lab, sync) == await consumers(lab, send) == 0

            await until(resting, "neither is consumed")


# -- replicas ----------------------------------------------------------------------------------------------------------


async def test_what_one_replica_finds_out_the_others_follow(lab: Lab, name: str) -> None:
    """Opened by the jobs of one; a fresh one learns it before it consumes; closed by the probe of any."""
    numbers = lab.job_type(retry=FAST)
    await lab.apply(numbers)
    async with Service() as service:
        await service.be("away")
        first, second, third = (Replica(numbers, Breaker(name, reset=2.0), service) for _ in range(3))
        async with lab.working(first.app, concurrency=5), lab.working(second.app, concurrency=5):
            await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(50)])
            await until(lambda: first.breaker.state is second.breaker.state is State.OPEN, "both are open")
            async with lab.working(third.app):
                assert third.breaker.state is not State.CLOSED
                assert third.attempts == {}
                await service.be("up")
                replicas = (first, second, third)
                await until(lambda: sum(len(r.done) for r in replicas) == 50, "all are done")
                await until(lambda: all(r.breaker.state is State.CLOSED for r in replicas), "all are closed")
    assert sorted(first.done + second.done + third.done) == list(range(50))


async def test_probes_are_bounded_across_two_worker_processes(lab: Lab, tmp_path: Path, name: str) -> None:
    """Both are half-open and have jobs waiting; the service sees three calls at once, never more."""
    workshop = Workshop(lab, tmp_path, app="tests.breaker_app:app")
    await lab.apply(workshop.job_type)
    async with Service() as service:
        await service.be("failing")
        environment = {"SERVICE_PORT": str(service.port), "BREAKER_NAME": name, "BREAKER_RESET": "5"}
        async with workshop.worker(**environment) as one, workshop.worker(**environment) as two:
            await until(lambda: workshop.log.read_text().count("consuming") == 2, "both consume")
            await workshop.enqueue([Work(n=n) for n in range(200)])
            await until(lambda: workshop.log.read_text().count("is open") >= 2, "both are open")
            await workshop.paused()
            await service.be("hanging")
            await until(lambda: service.at_once == 3, "three probes")
            await asyncio.sleep(2.0)  # for the other worker to ask several times
            assert service.most_at_once == 3
            await service.be("up")
            await workshop.done(200)
            assert await workshop.stopped(one) == 0
            assert await workshop.stopped(two) == 0
    assert workshop.ledger.runs(DONE).keys() == set(range(200))
    assert max(attempt for _, _, attempt in workshop.ledger.rows(BEGAN)) <= 3
    await lab.dead_letters(workshop.job_type, 0)


async def test_a_replica_with_no_jobs_leaves_the_trying_to_one_that_has(lab: Lab, name: str) -> None:
    """Two job types need the service; the idle type's worker gives the right to try up again."""
    idle, busy = lab.job_type("idle"), lab.job_type("busy", retry=FAST)
    await lab.apply(idle, busy)
    async with Service() as service:
        await service.be("failing")
        waiting = Replica(idle, Breaker(name, reset=1.0), service)
        working = Replica(busy, Breaker(name, reset=1.0), service)
        async with lab.working(waiting.app), lab.working(working.app):
            await (await lab.producer()).enqueue_many(busy, [Number(n=n) for n in range(10)])
            await until(lambda: waiting.breaker.state is State.OPEN, "both are open")
            await service.be("up")
            await until(lambda: len(working.done) == 10, "all are done")
            await until(lambda: waiting.breaker.state is State.CLOSED, "the idle one follows")


# -- news --------------------------------------------------------------------------------------------------------------


async def test_nonsense_doubles_and_strangers_change_nothing(lab: Lab, name: str) -> None:
    """And what makes sense is followed all the same, once; a question is answered to those who listen alone."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    async with Service() as service:
        replica = Replica(numbers, Breaker(name, reset=60.0), service)
        told: list[State] = []
        replica.breaker.listen(lambda standing, _: told.append(standing.state))
        publisher = Publisher(lab.settings, "test of breakers")
        publisher.start()

        async def say(body: bytes) -> None:
            await publisher.send(notice(lab.names, f"breaker.{name}", body), 30.0)

        def news(event: str, state: str, worker: str, seq: int) -> bytes:
            fields = {"name": name, "state": state, "age": 0.0, "remaining": 50.0, "failures": 5, "reason": "?"}
            return json.dumps({"v": 1, "event": event, "worker": worker, "seq": seq, "at": 0.0, **fields}).encode()

        try:
            async with lab.working(replica.app):
                for body in (b"", b"\xff\xfe", b"[]", b"{}", b'"breaker"', b"9" * 5000, b"[" * 5000):
                    await say(body)
                await say(news(OPENED, "open", "w1", 5))
                await until(lambda: told == [State.OPEN], "it follows")
                await say(news(CLOSED, "closed", "w1", 6))
                await until(lambda: told == [State.OPEN, State.CLOSED], "it follows")
                for seq in (5, 6, 4):
                    await say(news(OPENED, "open", "w1", seq))
                await say(news(OPENED, "open", "w2", 1))
                await until(lambda: len(told) == 3, "another's is followed")
                body = json.dumps({"v": 1, "event": "breaker.ask", "worker": "w3", "seq": 1, "at": 0.0}).encode()
                question = notice(lab.names, "breaker", body)
                question.properties.reply_to = lab.names.queue(numbers.name)
                await publisher.send(question, 30.0)
                await say(news(CLOSED, "closed", "w2", 2))
                await until(lambda: len(told) == 4, "it still listens")
        finally:
            await publisher.stop(5.0)
    assert told == [State.OPEN, State.CLOSED, State.OPEN, State.CLOSED]
    assert await lab.ready(numbers) == 0


async def test_changes_are_events_for_everybody(lab: Lab, name: str) -> None:
    """With name, state, since, until, reason and worker."""
    numbers = lab.job_type(retry=Retry(attempts=1))
    await lab.apply(numbers)
    heard: list[bytes] = []
    connection = await Connection.open(lab.settings.broker_urls[0], "test of breakers")
    audience = Audience(connection, f"{lab.settings.namespace}.breaker~test", lambda _, body: heard.append(body))
    await audience.open(lab.names.events, f"breaker.{name}")
    try:
        async with Service() as service:
            await service.be("failing")
            replica = Replica(numbers, Breaker(name, failures=1, reset=0.5), service)
            async with lab.working(replica.app, concurrency=1):
                producer = await lab.producer()
                await producer.enqueue(numbers, Number(n=1))
                await until(lambda: len(heard) >= 1, "opened")
                await service.be("up")
                await producer.enqueue(numbers, Number(n=2))
                await until(lambda: len(heard) >= 3, "half-open, closed")
    finally:
        await connection.close()
    events = [decode(body) for body in heard]
    assert [news.event.partition(".")[2] for news in events if news] == ["opened", "half_open", "closed"]
    body = json.loads(heard[0])
    assert body["name"] == name
    assert 0 <= body["until"] - body["at"] - 0.5 < 0.01
    assert "the service hung up" in body["reason"]
    assert len({news.worker for news in events if news}) == 1


async def test_a_worker_whose_listening_is_ended_goes_by_itself(lab: Lab, name: str) -> None:
    """Somebody deletes its queue: the breaker opens and closes by what this worker sees."""
    numbers = lab.job_type(retry=FAST)
    await lab.apply(numbers)
    async with Service() as service:
        replica = Replica(numbers, Breaker(name, reset=0.5), service)
        async with lab.working(replica.app) as worker:
            switchboard = worker._switchboard
            assert switchboard is not None
            switchboard._lost(switchboard._connection)  # type: ignore[arg-type]  # others may not delete its queue
            await service.be("failing")
            await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(10)])
            await until(lambda: replica.breaker.state is State.OPEN, "it opens")
            await service.be("up")
            await until(lambda: len(replica.done) == 10, "all are done")


async def test_an_app_without_breakers_has_no_switchboard(lab: Lab) -> None:
    """No queue, no channel, no question: nothing."""
    numbers = lab.job_type()
    app = await lab.app(numbers)
    app.handler(numbers)(lambda _: None)
    worker = Worker(app.registry, app.registry.select(), lab.settings)
    assert worker._switchboard is None


async def test_without_the_permission_each_worker_goes_by_itself(lab: Lab, name: str, caplog) -> None:
    """A user that may declare nothing: a warning says so, and the breaker opens and closes all the same."""
    numbers = lab.job_type(retry=FAST)
    await lab.apply(numbers)
    user = f"u-{secrets.token_hex(4)}"
    broker = urlsplit(lab.settings.broker_urls[0])
    await asyncio.to_thread(make_user, lab.settings.management_url or "", user)
    restricted = replace(
        lab.settings, broker_urls=(broker._replace(netloc=f"{user}:secret@{broker.hostname}:{broker.port}").geturl(),)
    )
    async with Service() as service:
        await service.be("failing")
        replica = Replica(numbers, Breaker(name, reset=1.0), service)
        async with lab.working(replica.app, settings=restricted):
            assert "the breakers of this worker go by themselves" in caplog.text
            await (await lab.producer()).enqueue_many(numbers, [Number(n=n) for n in range(10)])
            await until(lambda: replica.breaker.state is State.OPEN, "it opens")
            await service.be("up")
            await until(lambda: len(replica.done) == 10, "all are done")


def make_user(management: str, user: str) -> None:
    """One that may publish and consume, and configure nothing."""
    parts = urlsplit(management)
    base = f"http://{parts.hostname}:{parts.port}/api"
    account = base64.b64encode(f"{parts.username or 'guest'}:{parts.password or 'guest'}".encode()).decode()
    for path, body in (
        (f"users/{user}", {"password": "secret", "tags": ""}),
        (f"permissions/%2F/{user}", {"configure": "^$", "write": ".*", "read": ".*"}),
    ):
        headers = {"Authorization": f"Basic {account}", "Content-Type": "application/json"}
        request = Request(f"{base}/{path}", json.dumps(body).encode(), headers, method="PUT")
        build_opener(ProxyHandler({})).open(request).close()
