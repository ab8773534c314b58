"""The blocking producer: many threads, forks, interrupts, and an end that leaves nobody hanging."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from hareline import BatchError, BlockingProducer, JobType
from tests.integration.topology_fixtures import take_all
from tests.lab import DEADLINE, ROOT, Lab, Number
from topology.errors import ConnectionLost, OptionInvalid, PayloadInvalid, ProducerClosed, Unroutable

NOWHERE = "amqp://guest:guest@127.0.0.1:1/"


async def arrivals(lab: Lab, job_type: JobType[Any], expected: int) -> list[Any]:
    return await take_all(lab.control, lab.names.queue(job_type.name), expected)


def ids_of(messages: list[Any]) -> list[str]:
    return [message.header.properties.message_id for message in messages]


@pytest.fixture
async def numbers(lab: Lab) -> JobType[Any]:
    """A job type with its queue."""
    job_type = lab.job_type()
    await lab.apply(job_type)
    return job_type


@pytest.fixture
def producer(lab: Lab) -> Iterator[BlockingProducer]:
    with BlockingProducer(lab.settings) as producer:
        yield producer


async def aside(call: Callable[[], Any]) -> Any:
    """Runs blocking code in a thread, as an application without an event loop would."""
    return await asyncio.wait_for(asyncio.to_thread(call), DEADLINE)


async def test_one_by_one_and_in_a_batch(lab: Lab, numbers: JobType[Any], producer: BlockingProducer) -> None:
    """The same options and ids as the asyncio producer; a call returns when the broker has the job."""

    def work() -> list[str]:
        ids = [producer.enqueue(numbers, Number(n=n), correlation_id="c") for n in range(3)]
        ids += producer.enqueue_many(numbers, ({"n": n} for n in range(3, 500)))
        return [*ids, producer.enqueue(numbers, {"n": 500}, key="last", delay=0.2)]

    ids = await aside(work)
    messages = await arrivals(lab, numbers, 501)
    assert ids_of(messages) == ids
    assert [numbers.decode(message.body).n for message in messages] == list(range(501))
    assert ids[-1] == numbers.id_for_key("last")
    assert messages[0].header.properties.correlation_id == "c"


async def test_errors_are_those_of_the_asyncio_producer(numbers: JobType[Any], producer: BlockingProducer) -> None:
    """Typed, before anything is sent or from the broker; the next call works."""

    def work() -> None:
        with pytest.raises(PayloadInvalid):
            producer.enqueue(numbers, {"n": "x"})
        with pytest.raises(OptionInvalid):
            producer.enqueue(numbers, {"n": 1}, timeout=-1)
        with pytest.raises(Unroutable):
            producer.enqueue(JobType("no.such.type", Number), {"n": 1})
        with pytest.raises(BatchError) as caught:
            producer.enqueue_many(numbers, [{"n": 1}, {"n": "x"}, {"n": 2}])
        assert [index for index, _ in caught.value.failed] == [1]
        producer.enqueue(numbers, {"n": 1})

    await aside(work)


async def test_many_threads_share_one(lab: Lab, numbers: JobType[Any], producer: BlockingProducer) -> None:
    """Twenty threads at once, from the very first call on: one connection, no job lost, none mixed up."""
    threads, each = 20, 50
    start = threading.Barrier(threads)

    def work(thread: int) -> list[str]:
        start.wait(DEADLINE)
        ids = [producer.enqueue(numbers, {"n": thread * each + n}) for n in range(each // 2)]
        return ids + producer.enqueue_many(numbers, [{"n": thread * each + n} for n in range(each // 2, each)])

    def run() -> list[list[str]]:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, range(threads)))

    expected = {job_id: n for n, job_id in enumerate(job_id for ids in await aside(run) for job_id in ids)}
    messages = await arrivals(lab, numbers, threads * each)
    assert {m.header.properties.message_id: numbers.decode(m.body).n for m in messages} == expected
    assert len([thread for thread in threading.enumerate() if thread.name == "hareline producer"]) == 1


async def test_the_trace_of_the_calling_thread_travels_along(
    lab: Lab, numbers: JobType[Any], producer: BlockingProducer
) -> None:
    """Though another thread sends: the span is the caller's, in single jobs and in batches."""

    def work() -> str:
        with TracerProvider().get_tracer("test").start_as_current_span("view") as span:
            producer.enqueue(numbers, {"n": 1})
            producer.enqueue_many(numbers, [{"n": 2}])
        return f"{span.get_span_context().trace_id:032x}"

    trace_id = await aside(work)
    for message in await arrivals(lab, numbers, 2):
        assert trace_id in str(message.header.properties.headers["traceparent"])


async def test_no_broker_is_an_error_within_the_timeout(lab: Lab) -> None:
    """Of one job, and of each in a batch; closing waits for nothing then."""
    settings = replace(lab.settings, broker_urls=(NOWHERE,))

    def work() -> None:
        with BlockingProducer(settings) as producer:
            with pytest.raises(ConnectionLost):
                producer.enqueue(lab.job_type(), {"n": 1}, timeout=0.2)
            with pytest.raises(BatchError) as caught:
                producer.enqueue_many(lab.job_type(), [{"n": 1}, {"n": 2}], timeout=0.2)
            assert [type(error) for _, error in caught.value.failed] == [ConnectionLost] * 2

    await aside(work)


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_closing_twice_and_using_it_afterwards(lab: Lab, numbers: JobType[Any]) -> None:
    """Closed is closed, whether it was ever used or not; its thread is gone."""

    def work() -> None:
        unused, used = BlockingProducer(lab.settings), BlockingProducer(lab.settings)
        used.enqueue(numbers, {"n": 1})
        for producer in (unused, used):
            producer.close()
            producer.close()
            with pytest.raises(ProducerClosed):
                producer.enqueue(numbers, {"n": 2})
            with pytest.raises(ProducerClosed):
                producer.enqueue_many(numbers, [{"n": 2}])

    await aside(work)
    assert not [thread for thread in threading.enumerate() if thread.name == "hareline producer"]
    assert len(await arrivals(lab, numbers, 1)) == 1


async def test_closing_while_threads_publish_leaves_none_of_them_hanging(lab: Lab, numbers: JobType[Any]) -> None:
    """Each call ends, with an id that is in the queue or with ProducerClosed."""
    accepted: list[str] = []
    causes: set[type[Exception]] = set()

    def publish(producer: BlockingProducer, batches: bool) -> None:
        try:
            while True:
                if batches:
                    accepted.extend(producer.enqueue_many(numbers, [{"n": 1}] * 20))
                else:
                    accepted.append(producer.enqueue(numbers, {"n": 1}))
        except ProducerClosed:
            pass
        except BatchError as error:
            accepted.extend(error.accepted)
            causes.update(type(cause) for _, cause in error.failed)

    def work() -> None:
        for _ in range(10):
            producer = BlockingProducer(lab.settings)
            before = len(accepted)
            with ThreadPoolExecutor(6) as pool:
                ends = [pool.submit(publish, producer, bool(n % 2)) for n in range(6)]
                while len(accepted) < before + 20:
                    threading.Event().wait(0.001)
                producer.close()
                for end in ends:
                    end.result(DEADLINE)

    await aside(work)
    assert causes <= {ProducerClosed}
    assert sorted(ids_of(await arrivals(lab, numbers, len(accepted)))) == sorted(accepted)


async def test_an_interrupt_ends_the_wait_and_the_producer_is_still_fine(lab: Lab, numbers: JobType[Any]) -> None:
    """Ctrl-C in a call that waits for a broker: KeyboardInterrupt at once, in a single call and in a batch."""
    script = f"""
        import os, signal, threading
        from dataclasses import replace
        from hareline import BlockingProducer, JobType
        from topology.settings import Settings
        numbers = JobType({numbers.name!r}, dict)
        real = Settings.from_env()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
        lost = BlockingProducer(replace(real, broker_urls=({NOWHERE!r},)))
        for call in (lambda: lost.enqueue(numbers, {{"n": 1}}, timeout=600),
                     lambda: lost.enqueue_many(numbers, [{{"n": 1}}], timeout=600)):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                call()
            except KeyboardInterrupt:
                print("interrupted")
        lost.close()
        with BlockingProducer(real) as producer:
            print(producer.enqueue(numbers, {{"n": 2}}))
    """
    output = await python(lab, script)
    assert output[:2] == ["interrupted", "interrupted"]
    assert ids_of(await arrivals(lab, numbers, 1)) == output[2:]


async def test_a_script_that_never_closes_ends_all_the_same(lab: Lab, numbers: JobType[Any]) -> None:
    """What enqueue returned is in the queue, and the process exits with 0."""
    script = f"""
        from hareline import BlockingProducer, JobType
        print(BlockingProducer().enqueue(JobType({numbers.name!r}, dict), {{"n": 1}}))
    """
    assert ids_of(await arrivals(lab, numbers, 0)) == []
    output = await python(lab, script)
    assert ids_of(await arrivals(lab, numbers, 1)) == output


# -- processes ---------------------------------------------------------------------------------------------------------


async def python(lab: Lab, script: str) -> list[str]:
    """The lines that a script of its own process prints; it must end with exit code 0."""
    lines = script.strip("\n").split("\n")
    indent = len(lines[0]) - len(lines[0].lstrip())
    code = "\n".join(line[indent:] for line in lines)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env=lab.environment(""), cwd=ROOT, capture_output=True, text=True,
            timeout=DEADLINE, check=False,
        )  # fmt: skip

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


async def test_a_forked_child_has_a_connection_of_its_own(lab: Lab, numbers: JobType[Any]) -> None:
    """As under gunicorn: parent and children go on enqueueing, and neither closes the other's connection."""
    script = f"""
        import gc, os
        def print(text, flush=True):  # in one write: several processes share the pipe
            os.write(1, f"{{text}}\\n".encode())
        from hareline import BlockingProducer, JobType
        numbers = JobType({numbers.name!r}, dict)
        producer = BlockingProducer()
        print(producer.enqueue(numbers, {{"n": 0}}), flush=True)
        children = []
        for child in range(3):
            pid = os.fork()
            if not pid:
                gc.collect()
                for n in range(10):
                    print(producer.enqueue(numbers, {{"n": n}}), flush=True)
                print("\\n".join(producer.enqueue_many(numbers, [{{"n": n}} for n in range(10)])), flush=True)
                producer.close()
                os._exit(0)
            children.append(pid)
            for n in range(10):
                print(producer.enqueue(numbers, {{"n": n}}), flush=True)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        print(producer.enqueue(numbers, {{"n": 99}}, timeout=5), flush=True)
        producer.close()
    """
    ids = await python(lab, script)
    assert len(ids) == len(set(ids)) == 1 + 3 * 30 + 1
    assert sorted(ids_of(await arrivals(lab, numbers, len(ids)))) == sorted(ids)


async def test_a_fork_while_other_threads_use_it_does_not_lock_the_child(lab: Lab, numbers: JobType[Any]) -> None:
    """Whoever held a lock at that moment stayed with the parent; the child of each of ten forks enqueues."""
    script = f"""
        import os, threading
        from hareline import BlockingProducer, JobType
        numbers = JobType({numbers.name!r}, dict)
        numbers.encode({{}})
        producers = [BlockingProducer() for _ in range(10)]
        for producer in producers:
            # The first call of a thread starts the engine, under the lock.
            threads = [threading.Thread(target=producer.enqueue, args=(numbers, {{"n": n}})) for n in range(3)]
            for thread in threads:
                thread.start()
            pid = os.fork()
            if not pid:
                producer.enqueue(numbers, {{"n": 9}})
                os._exit(0)
            for thread in threads:
                thread.join()
            assert os.waitpid(pid, 0)[1] == 0
            producer.close()
    """
    await python(lab, script)
    assert len(await arrivals(lab, numbers, 40)) == 40


async def test_it_needs_no_uvloop(lab: Lab, numbers: JobType[Any]) -> None:
    """The producer alone is installed without it: the standard event loop does."""
    script = f"""
        import sys
        sys.modules["uvloop"] = None
        from hareline import BlockingProducer, JobType
        with BlockingProducer() as producer:
            print(producer.enqueue(JobType({numbers.name!r}, dict), {{"n": 1}}))
            print(type(producer._engine._loop).__module__, file=sys.stderr)
            assert "asyncio" in type(producer._engine._loop).__module__
    """
    output = await python(lab, script)
    assert ids_of(await arrivals(lab, numbers, 1)) == output
