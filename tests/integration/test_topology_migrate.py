"""Replacing queues on a real broker: nothing is lost, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from pamqp.commands import Basic

from tests.integration.topology_fixtures import (
    Rig,
    create,
    open_rig,
    publish,
    rig_fixture,  # noqa: F401 - a fixture
    take_all,
    until,
    without_ladder,
)
from topology import envelope, ladder
from topology.apply import apply, plan, verify_for_worker
from topology.capabilities import Capabilities
from topology.contract import JobType
from topology.control import Control
from topology.errors import TopologyError
from topology.migrate import Patience, Progress, Step, migrate
from topology.plan import temporary_name
from topology.spec import Binding, Exchange, Queue, Spec, derive

ORDER = JobType("order", dict)
CHANGED = replace(ORDER, delivery_limit=9)
QUICK = Patience(settle=0.0, quiet=0.2, give_up=20.0)


class Killed(Exception):
    """What a test raises where a kill would end the process."""


def jobs(count: int, **more: Any) -> list[tuple[str, bytes, Any]]:
    """Jobs with ids from 0 up, in order."""
    return [
        ("order", f'{{"n": {n}}}'.encode(), Basic.Properties(message_id=str(n), message_type="order", **more))
        for n in range(count)
    ]


async def quick(rig: Rig, spec: Spec, **more: Any) -> Any:
    """A migration that takes the test's word for it that no client holds a message."""
    options: dict[str, Any] = {"assume_idle": True, "patience": QUICK} | more
    return await migrate(spec, rig.control, rig.management, rig.settings, **options)


async def test_everything_about_a_message_is_kept(rig: Rig) -> None:
    """Order, body, every property and header, the routing key; only what the broker wrote itself is gone."""
    old, new = rig.small_spec(ORDER), rig.small_spec(CHANGED)
    await create(rig.control, old)
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    headers = {
        "n": 1,
        "big": 2**40,
        "text": "ü",
        "nested": {"list": [1, "a", True, None]},
        "at": moment,
        "f": 1.5,
    }
    full = Basic.Properties(
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers | {"x-death": [{"count": 3}], "x-first-death-queue": "q"},
        delivery_mode=2,
        priority=7,
        correlation_id="c",
        reply_to="r",
        expiration="3600000",
        message_id="full",
        timestamp=moment,
        message_type="order",
        app_id="app",
    )
    bare = ("order", b"", None)
    await publish(rig.control, old.names.jobs, [*jobs(300, delivery_mode=2), ("order", b'{"n": "full"}', full)])
    await publish(rig.control, old.names.jobs, [bare])
    (done,) = await quick(rig, new)
    assert done.messages == 302
    assert (await verify_for_worker(new, rig.control, rig.management)).stale == ()
    taken = await take_all(rig.control, new.names.queue("order"), 302)
    # A broker with strict priorities lets the one with priority 7 go first.
    (kept,) = (message.header.properties for message in taken if message.header.properties.message_id == "full")
    others = [message for message in taken if message.header.properties is not kept]
    assert [message.header.properties.message_id for message in others[:300]] == [str(n) for n in range(300)]
    assert all(message.routing_key == "order" for message in taken)
    assert others[300].body == b""
    assert kept.headers == headers
    for name in Basic.Properties.attributes():
        if name not in {"headers", "expiration"}:
            assert getattr(kept, name) == getattr(full, name), name
    assert kept.expiration == "3600000"


@pytest.mark.parametrize("way", ["on", "off"])
async def test_priority_can_be_switched(rig: Rig, way: str) -> None:
    """Between a classic priority queue and a quorum queue, either way; jobs of one priority stay in order."""
    prioritised, plain = replace(ORDER, priority=True), ORDER
    before, after = (plain, prioritised) if way == "on" else (prioritised, plain)
    # As a broker without strict quorum priorities has it, so that the type changes on every version.
    broker = Capabilities((3, 10))
    old, new = (without_ladder(derive([job_type], broker, rig.namespace)) for job_type in (before, after))
    await create(rig.control, old)
    messages = [message for n in range(90) for message in [jobs(n + 1, priority=n % 3 * 4, delivery_mode=2)[n]]]
    await publish(rig.control, old.names.jobs, messages)
    await quick(rig, new)
    assert (await plan(new, rig.control, rig.management)).empty
    taken = await take_all(rig.control, new.names.queue("order"), 90)
    for priority in (0, 4, 8):
        same = [int(m.header.properties.message_id) for m in taken if m.header.properties.priority == priority]
        assert same == sorted(same)
        assert len(same) == 30
    if way == "on":
        assert [m.header.properties.priority for m in taken] == [8] * 30 + [4] * 30 + [0] * 30


KILLS = [*get_args(Step), "middle of draining", "middle of refilling"]


@pytest.mark.parametrize("steps", [KILLS[0::3], KILLS[1::3], KILLS[2::3]], ids=", ".join)
async def test_a_migration_killed_at_any_step_goes_on_when_run_again(steps: list[str]) -> None:
    """With jobs published before, between and after; each arrives, and the topology is right and clean."""
    await asyncio.gather(*(_kill_at(step) for step in steps))


async def _kill_at(step: str) -> None:
    middle = step.removeprefix("middle of ")

    def kill(progress: Progress) -> None:
        if progress.step == middle and (middle == step or progress.moved):
            raise Killed

    async with open_rig() as rig:
        old, new = rig.small_spec(ORDER), rig.small_spec(CHANGED)
        await create(rig.control, old)
        messages = jobs(450, delivery_mode=2)
        await publish(rig.control, old.names.jobs, messages[:425])
        async with await Control.connect(rig.settings.broker_urls) as doomed:
            with pytest.raises(Killed):
                await quick(replace(rig, control=doomed), new, progress=kill)
        await publish(rig.control, old.names.jobs, messages[425:440])
        if step != "finished":
            with pytest.raises(TopologyError, match="migrat"):
                await apply(new, rig.control, rig.management, rig.settings)
            with pytest.raises(TopologyError, match="migrat"):
                await verify_for_worker(new, rig.control, None)
        await quick(rig, new)
        await publish(rig.control, old.names.jobs, messages[440:])
        found = await plan(new, rig.control, rig.management)
        assert found.empty
        assert found.stale == ()
        taken = await take_all(rig.control, new.names.queue("order"), 450)
        ids = [message.header.properties.message_id for message in taken]
        assert set(ids) == {str(n) for n in range(450)}
        # At least once: what was sent on but not yet acknowledged at the kill may be there twice, a batch at
        # most.
        assert len(ids) <= 450 + 200


async def test_publishing_goes_on_meanwhile(rig: Rig) -> None:
    """A producer that never pauses is refused nothing and loses nothing."""
    old, new = rig.small_spec(ORDER), rig.small_spec(CHANGED)
    await create(rig.control, old)
    stop = asyncio.Event()
    sent = 0

    async def produce(control: Control) -> None:
        nonlocal sent
        async with control.channel("producing") as channel:
            while not stop.is_set():
                batch = range(sent, sent + 20)
                await asyncio.gather(
                    *(
                        channel.basic_publish(
                            b"{}",
                            exchange=old.names.jobs,
                            routing_key="order",
                            mandatory=True,
                            properties=Basic.Properties(message_id=str(n), delivery_mode=2),
                        )
                        for n in batch
                    )
                )
                sent += 20

    async with await Control.connect(rig.settings.broker_urls) as producer:
        producing = asyncio.create_task(produce(producer))

        async def begun() -> bool:
            return sent >= 200 or producing.done()

        await until(begun, "200 jobs are published")
        await quick(rig, new)
        stop.set()
        await producing
    taken = {m.header.properties.message_id for m in await take_all(rig.control, new.names.queue("order"), sent)}
    assert taken == {str(n) for n in range(sent)}


async def test_consumers_are_not_pulled_the_queue_from_under(rig: Rig) -> None:
    """While a worker is attached nothing is changed, and the error names whom to stop."""
    old, new = rig.small_spec(ORDER), rig.small_spec(CHANGED)
    await create(rig.control, old)
    async with rig.control.channel("working") as channel:
        await channel.basic_consume(old.names.queue("order"), _ignore)
        with pytest.raises(TopologyError, match="stop the workers of order"):
            await quick(rig, new, patience=replace(QUICK, leave=0.2))
    assert not await rig.control.exchange_exists(temporary_name(old.names.queue("order")))
    assert (await plan(old, rig.control, rig.management)).empty


async def test_a_message_that_a_client_holds_keeps_the_queue(rig: Rig) -> None:
    """Taken and not acknowledged: the queue is not deleted until the broker's counts prove it empty."""
    old, new = rig.small_spec(ORDER), rig.small_spec(CHANGED)
    await create(rig.control, old)
    name = old.names.queue("order")
    await publish(rig.control, old.names.jobs, jobs(2, delivery_mode=2))
    async with (
        await Control.connect(rig.settings.broker_urls) as client,
        client.channel("holding") as channel,
    ):
        # As a worker does that was told to stop: it takes no more, and has one left.
        await channel.basic_qos(prefetch_count=1)
        consumer = await channel.basic_consume(name, _ignore)
        await channel.basic_cancel(consumer.consumer_tag)

        async def shown() -> bool:
            info = await rig.management.queue(name)
            return info is not None and info.unacknowledged == 1

        await until(shown, "the management API shows the unacknowledged message")
        # From 4.3 on such a consumer still counts as attached.
        with pytest.raises(TopologyError, match=r"1 of its messages are out with a client|1 consumers are attached"):
            await quick(rig, new, assume_idle=False, patience=Patience(settle=0.5, leave=0.5, give_up=0.5))
        assert await rig.control.queue_exists(name)
    # The client is gone: the message comes back, and the next run takes it along.
    done = await quick(rig, new, assume_idle=False, patience=Patience(settle=0.5, quiet=0.2))
    assert [one.messages for one in done] == [2]
    assert len(await take_all(rig.control, name, 2)) == 2


async def test_two_migrations_of_a_queue_at_once_are_refused(rig: Rig) -> None:
    """The second says so; when the first one's connection is gone, however it went, the way is free."""
    old, new = rig.small_spec(ORDER), rig.small_spec(CHANGED)
    await create(rig.control, old)
    async with await Control.connect(rig.settings.broker_urls) as first:
        await first.hold(temporary_name(old.names.queue("order")) + ".lock")
        with pytest.raises(TopologyError, match="another migration"):
            await quick(rig, new, patience=replace(QUICK, lock=0.3))
    assert [one.queue for one in await quick(rig, new)] == [old.names.queue("order")]


async def test_without_the_management_api_it_wants_to_be_told_that_nobody_holds_a_message(rig: Rig) -> None:
    """AMQP cannot tell; with assume_idle it works by AMQP alone."""
    old, new = rig.small_spec(ORDER), rig.small_spec(CHANGED)
    await create(rig.control, old)
    await publish(rig.control, old.names.jobs, jobs(10, delivery_mode=2))
    with pytest.raises(TopologyError, match="--assume-idle"):
        await migrate(new, rig.control, None, rig.settings)
    assert [
        one.messages for one in await migrate(new, rig.control, None, rig.settings, assume_idle=True, patience=QUICK)
    ] == [10]
    assert (await plan(new, rig.control, rig.management)).empty


async def test_never_means_never(rig: Rig) -> None:
    """Where operators manage the topology, migrate refuses before it looks."""
    with pytest.raises(TopologyError, match="HARELINE_DECLARE"):
        await migrate(rig.small_spec(ORDER), rig.control, None, replace(rig.settings, declare="never"))


async def test_bindings_that_others_made_are_kept(rig: Rig) -> None:
    """A queue that somebody also bound elsewhere, by a headers exchange too, is bound there again."""
    old, new = rig.small_spec(ORDER), rig.small_spec(CHANGED)
    await create(rig.control, old)
    name = old.names.queue("order")
    extra = f"{rig.namespace}.extra"
    await rig.control.declare_exchange(Exchange(extra, "headers"))  # type: ignore[arg-type]
    await rig.control.bind(Binding(extra, name, "queue", ""), {"x-match": "all", "kind": "order"})
    await rig.control.bind(Binding(old.names.events, name, "queue", "job.done"))
    before = {(info.binding, str(info.arguments)) for info in await rig.management.bindings_of(name)}
    await quick(rig, new)
    assert {(info.binding, str(info.arguments)) for info in await rig.management.bindings_of(name)} == before


async def test_a_level_of_the_ladder_is_replaced_and_its_delays_stay_on_time(rig: Rig) -> None:
    """Delayed jobs keep their way down, and the time that they have waited counts."""
    spec = rig.small_spec(ORDER, levels=8)
    level = spec.names.level(7)  # 12.8 s
    right = spec.queue(level)
    assert right is not None
    wrong = Queue(level, {**right.arguments, "x-message-ttl": 3_600_000})
    await create(rig.control, replace(spec, queues=tuple(wrong if queue == right else queue for queue in spec.queues)))
    start = time.time()
    job = envelope.new_job(spec.names, "order", b"{}", job_id="d", delay=12.9)
    assert job.exchange == level
    properties = Basic.Properties(message_id="d", delivery_mode=2, timestamp=datetime.fromtimestamp(start - 11, tz=UTC))
    await publish(rig.control, level, [(job.routing_key, job.body, properties)])
    found = await plan(spec, rig.control, rig.management)
    assert [change.kind for change in found.changes] == ["differs"]
    await quick(rig, spec)
    assert (await plan(spec, rig.control, rig.management)).empty
    (arrived,) = await take_all(rig.control, spec.names.queue("order"), 1)
    assert ladder.destination_of(arrived.routing_key) == "order"
    # It says that it was published 11 s ago: two more are left, and not the whole stay again.
    assert time.time() - start > 1.5
    assert not {envelope.DELIVERIES, "hareline-migrating-due"} & set(arrived.header.properties.headers or {})


async def test_all_that_differ_are_replaced_at_once(rig: Rig) -> None:
    """Job queues and the dead-letter queue in one go; what is right is left alone, as is what is missing."""
    types = [JobType(name, dict) for name in ("a", "b", "c")]
    old = rig.small_spec(*types)
    wrong_dlq = Queue(old.names.dlq, {"x-queue-type": "quorum", "x-delivery-limit": 50})
    await create(
        rig.control,
        replace(old, queues=tuple(wrong_dlq if q.name == wrong_dlq.name else q for q in old.queues)),
    )
    await publish(rig.control, old.names.dlx, [("a", b"1", Basic.Properties(message_id="1", delivery_mode=2))])
    new = rig.small_spec(*(replace(t, delivery_limit=3) for t in types[:2]), types[2], JobType("missing", dict))
    done = await quick(rig, new)
    assert {one.queue for one in done} == {new.names.queue("a"), new.names.queue("b"), new.names.dlq}
    assert [m.routing_key for m in await take_all(rig.control, new.names.dlq, 1)] == ["a"]
    assert not await rig.control.queue_exists(new.names.queue("missing"))
    assert await quick(rig, new) == ()


async def test_an_unknown_queue_is_named(rig: Rig) -> None:
    """Rather than nothing being done."""
    with pytest.raises(TopologyError, match="no queue or job type 'oder'"):
        await quick(rig, rig.small_spec(ORDER), queues=["oder"])


async def _ignore(message: Any) -> None:
    """Takes and keeps."""
    with contextlib.suppress(AttributeError):
        message.kept = True
