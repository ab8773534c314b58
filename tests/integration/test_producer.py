"""The asyncio producer on a real broker: what is accepted is in its queue, and what is not is a typed error."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel

from hareline import BatchError, JobType, Producer
from tests.faults.proxy import Proxy
from tests.integration.topology_fixtures import take_all
from tests.lab import Lab, Number, until
from topology.envelope import Message
from topology.errors import (
    EnqueueError,
    NotConfirmed,
    OptionInvalid,
    PayloadInvalid,
    PayloadTooLarge,
    ProducerClosed,
    Refused,
    Unroutable,
)
from topology.publisher import Publisher


class Text(BaseModel):
    text: str


async def taken(lab: Lab, job_type: JobType[Any], expected: int) -> list[Any]:
    """All messages of the job type's queue, acknowledged."""
    return await take_all(lab.control, lab.names.queue(job_type.name), expected)


def ids_of(messages: list[Any]) -> list[str]:
    return [message.header.properties.message_id for message in messages]


# -- bad input ---------------------------------------------------------------------------------------------------------

BAD_INPUT: list[tuple[Any, dict[str, Any], type[EnqueueError]]] = [
    (object(), {}, PayloadInvalid),
    ({"n": "seven"}, {}, PayloadInvalid),
    ({}, {}, PayloadInvalid),
    (Number.model_construct(n="seven"), {}, PayloadInvalid),
    (Number.model_construct(), {}, PayloadInvalid),
    ({"n": 1}, {"priority": 300}, OptionInvalid),
    ({"n": 1}, {"priority": True}, OptionInvalid),
    ({"n": 1}, {"delay": -1}, OptionInvalid),
    ({"n": 1}, {"delay": math.nan}, OptionInvalid),
    ({"n": 1}, {"delay": math.inf}, OptionInvalid),
    ({"n": 1}, {"delay": 86400 * 365}, OptionInvalid),
    ({"n": 1}, {"delay": 1, "at": datetime.now(UTC)}, OptionInvalid),
    ({"n": 1}, {"at": datetime(2040, 1, 1)}, OptionInvalid),  # noqa: DTZ001 - the point
    ({"n": 1}, {"key": ""}, OptionInvalid),
    ({"n": 1}, {"correlation_id": "c" * 256}, OptionInvalid),
    ({"n": 1}, {"timeout": -1}, OptionInvalid),
    ({"n": 1}, {"timeout": math.nan}, OptionInvalid),
]


async def test_bad_input_is_a_typed_error_and_the_producer_goes_on(lab: Lab) -> None:
    """Nothing of what is refused is sent; between any two errors a good job goes through."""
    urgent = lab.job_type(priority=True)
    await lab.apply(urgent)
    producer = await lab.producer()
    good = []
    for payload, options, expected in BAD_INPUT:
        with pytest.raises(expected):
            await producer.enqueue(urgent, payload, **options)
        good.append(await producer.enqueue(urgent, Number(n=1)))
    assert ids_of(await taken(lab, urgent, len(good))) == good


async def test_a_priority_where_there_are_none_is_refused(lab: Lab) -> None:
    """The job type has one level; the error says how to have ten."""
    numbers = lab.job_type()
    producer = await lab.producer()
    with pytest.raises(OptionInvalid, match="priority=True"):
        await producer.enqueue(numbers, {"n": 1}, priority=5)


async def test_the_limit_of_a_payload_is_configurable_and_a_large_one_arrives_whole(lab: Lab) -> None:
    """A body of several frames is the same at the other end, between small ones and in order."""
    texts = lab.job_type(payload=Text)
    await lab.apply(texts)
    with pytest.raises(PayloadTooLarge, match="HARELINE_MAX_PAYLOAD"):
        await (await lab.producer(max_payload=100)).enqueue(texts, Text(text="x" * 100))
    producer = await lab.producer(max_payload=4_000_000)
    bodies = [Text(text="x" * size) for size in (1, 3_000_000, 2, 131_000, 131_072, 3)]
    ids = await asyncio.gather(*(producer.enqueue(texts, body) for body in bodies))
    messages = await taken(lab, texts, len(bodies))
    assert ids_of(messages) == ids
    assert [texts.decode(message.body) for message in messages] == bodies


async def test_a_type_that_the_broker_does_not_know_is_unroutable(lab: Lab) -> None:
    """The error names the type and the command that shows what is missing; others are not touched."""
    known, unknown = lab.job_type("known"), JobType("no.such.type", Number)
    await lab.apply(known)
    producer = await lab.producer()
    results = await asyncio.gather(
        *(producer.enqueue(known if n % 2 else unknown, {"n": n}) for n in range(20)), return_exceptions=True
    )
    assert [isinstance(result, str) for result in results] == [bool(n % 2) for n in range(20)]
    for result in results[::2]:
        assert isinstance(result, Unroutable)
        assert "no.such.type" in str(result)
        assert "hareline topology plan" in str(result)
        assert not result.maybe_enqueued
    assert ids_of(await taken(lab, known, 10)) == results[1::2]


async def test_the_same_key_twice_at_once_and_unroutable_is_an_error_twice(lab: Lab) -> None:
    """Two messages with one id are told apart: neither is taken for confirmed."""
    await lab.apply()
    producer = await lab.producer()
    unknown = JobType("no.such.type", Number)
    results = await asyncio.gather(
        *(producer.enqueue(unknown, {"n": 1}, key="same") for _ in range(50)), return_exceptions=True
    )
    assert [type(result) for result in results] == [Unroutable] * 50


async def test_what_came_back_for_nobody_does_not_stick_to_the_next_with_that_id(lab: Lab) -> None:
    """A call that was cancelled, and whose job was unroutable, leaves no trace for a later one with its key."""
    numbers = lab.job_type()
    await lab.apply()
    producer = await lab.producer()
    publisher = producer._publisher
    await until(lambda: publisher.is_up, "the producer is connected")
    publisher.send(producer._orders.message(numbers, {"n": 1}, key="k"), 30).cancel()
    assert publisher.backlog == 1
    await until(lambda: not publisher.backlog, "the broker has answered")
    await lab.apply(numbers)
    assert await producer.enqueue(numbers, {"n": 1}, key="k") == numbers.id_for_key("k")


async def test_a_producer_that_is_not_open_says_so(lab: Lab) -> None:
    """Before it is opened and after it is closed; in a batch for each job."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = Producer(lab.settings)
    with pytest.raises(ProducerClosed, match="async with Producer"):
        await producer.enqueue(numbers, {"n": 1})
    async with producer:
        await producer.enqueue(numbers, {"n": 2})
    with pytest.raises(ProducerClosed):
        await producer.enqueue(numbers, {"n": 3})
    with pytest.raises(BatchError) as caught:
        await producer.enqueue_many(numbers, [{"n": 4}])
    assert isinstance(caught.value.failed[0][1], ProducerClosed)
    await producer.close()
    async with producer:  # and it can be opened again
        await producer.enqueue(numbers, {"n": 5})
    assert [message.body for message in await taken(lab, numbers, 2)] == [b'{"n":2}', b'{"n":5}']


async def test_opening_twice_is_opening_once(lab: Lab) -> None:
    """A second open neither connects again nor disturbs what is on its way."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    async with Producer(lab.settings) as producer:
        task = producer._publisher._link._task
        await producer.open()
        assert producer._publisher._link._task is task
        await producer.enqueue(numbers, {"n": 1})


async def test_what_amqp_cannot_carry_fails_alone(lab: Lab) -> None:
    """A message that the codec refuses is not counted: the confirms of its neighbours stay with their owners."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    publisher = (await lab.producer())._publisher
    orders = (await lab.producer())._orders
    messages = [orders.message(numbers, {"n": n}) for n in range(6)]
    messages[2].properties.correlation_id = "x" * 256
    messages[4] = Message("e" * 256, "k", messages[4].properties, b"")
    results = await asyncio.gather(*(publisher.send(message, 30) for message in messages), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), Refused, type(None), Refused, type(None)]
    assert len(await taken(lab, numbers, 4)) == 4


# -- what is accepted --------------------------------------------------------------------------------------------------


async def test_a_batch_arrives_in_order_under_the_ids_that_were_returned(lab: Lab) -> None:
    """More than the window holds, from a generator; one id for each job, in order."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = await lab.producer(max_unconfirmed=50)
    ids = await producer.enqueue_many(numbers, ({"n": n} for n in range(500)))
    messages = await taken(lab, numbers, 500)
    assert ids_of(messages) == ids
    assert [numbers.decode(message.body).n for message in messages] == list(range(500))
    assert await producer.enqueue_many(numbers, []) == []


async def test_a_batch_says_exactly_which_jobs_failed(lab: Lab) -> None:
    """Indexes are those of the batch; all the others are accepted, and their ids are in order."""
    numbers = lab.job_type(payload=Number)
    await lab.apply(numbers)
    producer = await lab.producer(max_unconfirmed=7)
    payloads = [{"n": n} if n % 10 != 3 else {"n": "bad"} for n in range(100)]
    with pytest.raises(BatchError, match=r"10 of 100 jobs were not accepted; number 3: ") as caught:
        await producer.enqueue_many(numbers, payloads)
    assert [index for index, _ in caught.value.failed] == list(range(3, 100, 10))
    assert {type(error) for _, error in caught.value.failed} == {PayloadInvalid}
    assert ids_of(await taken(lab, numbers, 90)) == caught.value.accepted


async def test_a_window_of_one_still_carries_a_batch(lab: Lab) -> None:
    """Slowly, but it does."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = await lab.producer(max_unconfirmed=1)
    ids = await producer.enqueue_many(numbers, [{"n": n} for n in range(20)])
    assert ids_of(await taken(lab, numbers, 20)) == ids


async def test_payloads_that_raise_end_the_batch_and_leave_the_producer_fine(lab: Lab) -> None:
    """The caller's own error comes out as it is; what went before may run."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = await lab.producer()

    def payloads() -> Any:
        yield {"n": 1}
        raise RuntimeError("the file ends here")

    with pytest.raises(RuntimeError, match="the file ends here"):
        await producer.enqueue_many(numbers, payloads())
    last = await producer.enqueue(numbers, {"n": 2})
    assert last in ids_of(await taken(lab, numbers, 1))


async def test_a_key_gives_the_same_id_again(lab: Lab) -> None:
    """The broker keeps both messages; who looks at the id sees one job."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = await lab.producer()
    first, again = [await producer.enqueue(numbers, {"n": n}, key="welcome-42") for n in (1, 2)]
    assert first == again == numbers.id_for_key("welcome-42")
    assert ids_of(await taken(lab, numbers, 2)) == [first, first]


async def test_a_delayed_job_never_comes_early(lab: Lab) -> None:
    """By delay and by time, through the ladder; a time that has passed is now."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = await lab.producer()
    begin, now = time.time(), datetime.now(UTC)
    due = {
        await producer.enqueue(numbers, {"n": 1}, at=now - timedelta(days=1)): 0.0,
        await producer.enqueue(numbers, {"n": 2}, delay=0.3): 0.3,
        await producer.enqueue(numbers, {"n": 3}, at=now + timedelta(seconds=1)): 1.0,
        await producer.enqueue(numbers, {"n": 4}, delay=1.25): 1.25,
    }
    arrived: dict[str, float] = {}
    complete = asyncio.Event()

    async def take(message: Any) -> None:
        arrived[message.header.properties.message_id] = time.time() - begin
        if len(arrived) == len(due):
            complete.set()

    async with lab.control.channel("taking") as channel:
        await channel.basic_consume(lab.names.queue(numbers.name), take, no_ack=True)
        await asyncio.wait_for(complete.wait(), 60)
    # The broker's clock ticks in milliseconds.
    assert {job_id: at for job_id, at in arrived.items() if at < due[job_id] - 0.005} == {}


async def test_the_trace_of_the_caller_travels_with_the_job(lab: Lab) -> None:
    """Within a span: a traceparent header of that trace, in single jobs and in batches. Outside: no header."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = await lab.producer()
    with TracerProvider().get_tracer("test").start_as_current_span("order") as span:
        await producer.enqueue(numbers, {"n": 1})
        await producer.enqueue_many(numbers, [{"n": 2}])
    await producer.enqueue(numbers, {"n": 3})
    trace_id = f"{span.get_span_context().trace_id:032x}"
    one, two, none = [message.header.properties.headers for message in await taken(lab, numbers, 3)]
    assert trace_id in str(one["traceparent"])
    assert trace_id in str(two["traceparent"])
    assert not none


async def test_several_producers_share_a_broker(lab: Lab) -> None:
    """Each has its own connection and window; together they lose and mix up nothing."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producers = [await lab.producer(max_unconfirmed=20) for _ in range(4)]
    batches = await asyncio.gather(
        *(producer.enqueue_many(numbers, [{"n": n} for n in range(200)]) for producer in producers)
    )
    expected = sorted(job_id for batch in batches for job_id in batch)
    assert sorted(ids_of(await taken(lab, numbers, 800))) == expected


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_the_window_bounds_what_is_unconfirmed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many callers there are at once, no more than ``max_unconfirmed`` messages are on their way."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = await lab.producer(max_unconfirmed=5)
    sizes: list[int] = []
    transmit = Publisher._transmit

    def watched(self: Publisher, pending: Any) -> None:
        transmit(self, pending)
        sizes.append(len(self._unconfirmed))

    monkeypatch.setattr(Publisher, "_transmit", watched)
    await asyncio.gather(*(producer.enqueue(numbers, {"n": n}) for n in range(300)))
    assert (len(sizes), max(sizes)) == (300, 5)
    assert len(await taken(lab, numbers, 300)) == 300


async def test_a_timeout_of_nothing_is_an_error_that_says_what_is_known(lab: Lab) -> None:
    """The message was sent, so it may run; the producer goes on."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    async with Proxy(lab.settings.broker_urls[0]) as proxy:
        producer = await lab.producer(broker_urls=(proxy.url,))
        await producer.enqueue(numbers, {"n": 0})
        proxy.stall()  # or the confirm may come before nothing is over
        with pytest.raises(NotConfirmed) as caught:
            await producer.enqueue(numbers, {"n": 1}, timeout=0)
        proxy.resume()
        assert caught.value.maybe_enqueued
        await producer.enqueue(numbers, {"n": 2}, timeout=math.inf)
        await producer.close()
    assert len(await taken(lab, numbers, 3)) == 3


async def test_a_cancelled_call_gives_up_its_own_job_and_no_other(lab: Lab) -> None:
    """What had not been sent is not sent; the rest is confirmed as if nothing had happened."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = await lab.producer(max_unconfirmed=10)
    await producer.enqueue(numbers, {"n": -1})
    tasks = [asyncio.create_task(producer.enqueue(numbers, {"n": n})) for n in range(100)]
    await asyncio.sleep(0)  # each has run up to its wait
    assert producer._publisher.backlog == 100
    for task in tasks[1::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, str) for result in results[::2])
    assert all(isinstance(result, asyncio.CancelledError) for result in results[1::2])
    arrived = [numbers.decode(message.body).n for message in await taken(lab, numbers, 51)]
    assert arrived == [-1, *(n for n in range(100) if n % 2 == 0 or n < 10)]


async def test_a_full_queue_is_a_refusal(lab: Lab) -> None:
    """The broker's nack is an error of its own; what fits is accepted."""
    numbers = lab.job_type()
    await lab.apply()
    queue = lab.names.queue(numbers.name)
    limits = {"x-queue-type": "classic", "x-max-length": 1, "x-overflow": "reject-publish"}
    async with lab.control.channel("a queue of one") as channel:
        await channel.queue_declare(queue, durable=True, arguments=limits)
        await channel.queue_bind(queue, lab.names.jobs, numbers.name)
    producer = await lab.producer()
    accepted = await producer.enqueue(numbers, {"n": 1})
    for _ in range(2):
        with pytest.raises(Refused, match=f"refused a message for '{numbers.name}': is its queue full") as caught:
            await producer.enqueue(numbers, {"n": 2})
        assert not caught.value.maybe_enqueued
    assert ids_of(await taken(lab, numbers, 1)) == [accepted]
    await producer.enqueue(numbers, {"n": 3})


async def test_a_missing_exchange_costs_only_those_who_need_it(lab: Lab) -> None:
    """The broker closes the channel over them; all others go through on the next one, of the same connection."""
    numbers = lab.job_type()
    await lab.apply(numbers)
    producer = await lab.producer()
    publisher, orders = producer._publisher, producer._orders
    await until(lambda: publisher.is_up, "the producer is connected")
    connection = publisher._connection
    sent = [orders.message(numbers, {"n": n}) for n in range(60)]
    for number, message in enumerate(sent):
        if number % 6 == 5:
            message.exchange = f"{lab.names.jobs}.gone"
    results = await asyncio.gather(*(publisher.send(message, 30) for message in sent), return_exceptions=True)
    for number, result in enumerate(results):
        if number % 6 == 5:
            assert isinstance(result, Unroutable), result
            assert "hareline topology apply" in str(result)
        else:
            assert result is None
    expected = {message.properties.message_id for number, message in enumerate(sent) if number % 6 != 5}
    assert set(ids_of(await taken(lab, numbers, 50))) == expected
    assert publisher._connection is connection


async def test_a_namespace_without_any_topology_is_unroutable(lab: Lab) -> None:
    """The very first mistake of a new user: the error names the command that helps."""
    producer = await lab.producer(namespace=f"{lab.names.namespace}-none")
    for options in ({}, {"delay": 5}):
        with pytest.raises(Unroutable, match="hareline topology apply"):
            await producer.enqueue(JobType("a", Number), {"n": 1}, **options)
