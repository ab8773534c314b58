"""Plan, apply and verify against a real broker."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.integration.topology_fixtures import Rig, create, publish, rig_fixture, take_all  # noqa: F401 - a fixture
from topology import envelope, ladder
from topology.apply import apply, plan, verify_for_worker
from topology.contract import JobType
from topology.control import Control
from topology.errors import BrokerUnreachable, ManagementError, TopologyError
from topology.management import Management
from topology.spec import Binding, Exchange, Queue

MAIL = JobType("mail.send", dict, priority=True)
ORDER = JobType("order", dict)


async def test_the_whole_topology_is_applied_by_several_at_once(rig: Rig) -> None:
    """Two appliers at once make it, a third has nothing to do, a delayed job travels, a worker may start."""
    spec = rig.spec(MAIL, ORDER)
    async with await Control.connect(rig.settings.broker_urls) as other:
        await asyncio.gather(
            apply(spec, rig.control, rig.management, rig.settings),
            apply(spec, other, None, rig.settings),
        )
    found = await plan(spec, rig.control, rig.management)
    assert found.to_json() == {"empty": True, "changes": [], "stale": [], "unseen": []}
    assert (await apply(spec, rig.control, rig.management, rig.settings)).empty
    assert (await verify_for_worker(spec, rig.control, rig.management)).unseen == ()
    assert (await verify_for_worker(spec, rig.control, None)).empty
    job = envelope.new_job(spec.names, "order", b"{}", job_id="d", delay=0.5)
    await publish(rig.control, job.exchange, [(job.routing_key, job.body, None)])
    (arrived,) = await take_all(rig.control, spec.names.queue("order"), 1)
    assert ladder.destination_of(arrived.routing_key) == "order"


async def test_only_what_is_missing_is_created(rig: Rig) -> None:
    """A queue, an exchange and a binding went away: the plan names these, apply brings them back."""
    spec = rig.small_spec(MAIL, ORDER)
    await apply(spec, rig.control, rig.management, rig.settings)
    await rig.control.delete_queue(spec.names.queue("order"))
    await rig.control.delete_exchange(spec.names.events)
    await rig.control.unbind(Binding(spec.names.jobs, spec.names.queue("mail.send"), "queue", "mail.send"))
    found = await plan(spec, rig.control, rig.management)
    assert {change.name for change in found.of_kind("create")} == {
        spec.names.queue("order"),
        spec.names.events,
    }
    assert len(found.of_kind("bind")) == 5
    assert len(found.changes) == 7
    await apply(spec, rig.control, rig.management, rig.settings)
    assert (await plan(spec, rig.control, rig.management)).empty


async def test_without_the_management_api_a_plan_says_what_it_could_not_see(rig: Rig) -> None:
    """Existence is seen, arguments and bindings are not; apply brings missing bindings all the same."""
    spec = rig.small_spec(ORDER)
    found = await plan(spec, rig.control, None)
    assert len(found.of_kind("create")) == len(spec.exchanges) + len(spec.queues)
    assert len(found.of_kind("bind")) == len(spec.bindings)
    await apply(spec, rig.control, None, rig.settings)
    await rig.control.unbind(Binding(spec.names.jobs, spec.names.queue("order"), "queue", "order"))
    found = await plan(spec, rig.control, None)
    assert found.empty
    assert any("arguments" in what for what in found.unseen)
    assert any("bindings" in what for what in found.unseen)
    await apply(spec, rig.control, None, rig.settings)
    assert (await plan(spec, rig.control, rig.management)).empty


@pytest.mark.parametrize("sees", ["everything", "existence"])
async def test_a_changed_argument_fails_apply_and_verify(rig: Rig, sees: str) -> None:
    """Apply creates all else, then points to migrate. Existence alone shows it to apply, not to verify."""
    management = rig.management if sees == "everything" else None
    await create(rig.control, rig.small_spec(ORDER))
    spec = rig.small_spec(replace(ORDER, delivery_limit=9), JobType("new", dict))
    with pytest.raises(TopologyError, match=r"order.*migrate"):
        await apply(spec, rig.control, management, rig.settings)
    assert await rig.control.queue_exists(spec.names.queue("new"))
    if management is not None:
        with pytest.raises(TopologyError, match="x-delivery-limit is 5, the code wants 9"):
            await verify_for_worker(spec, rig.control, management)


async def test_a_worker_is_told_what_is_missing(rig: Rig) -> None:
    """Before it consumes, with and without the management API."""
    for management in (rig.management, None):
        with pytest.raises(TopologyError, match="hareline topology apply"):
            await verify_for_worker(rig.small_spec(ORDER), rig.control, management)


async def test_a_silent_management_api_keeps_no_worker_from_starting(rig: Rig) -> None:
    """It checks existence instead, and says why it saw no more."""
    spec = rig.small_spec(ORDER)
    await create(rig.control, spec)
    silent = Management("http://127.0.0.1:9", rig.control.url)
    found = await verify_for_worker(spec, rig.control, silent)
    assert any("does not answer" in what for what in found.unseen)


async def test_stale_objects_are_reported_and_kept(rig: Rig) -> None:
    """A queue of a removed job type with its jobs, an old exchange, a wrong binding: named, not touched."""
    spec = rig.small_spec(ORDER)
    await create(rig.control, spec)
    old = Queue(spec.names.queue("removed"), {"x-queue-type": "quorum"})
    await rig.control.declare_queue(old)
    await rig.control.declare_exchange(Exchange(f"{rig.namespace}.legacy", "topic"))
    await rig.control.bind(Binding(spec.names.jobs, spec.names.queue("order"), "queue", "wrong"))
    found = await apply(spec, rig.control, rig.management, rig.settings)
    assert found.empty
    assert {change.what for change in found.stale} == {"queue", "exchange", "binding"}
    assert await rig.control.queue_exists(old.name)


async def test_an_exchange_of_another_type_is_told_with_its_cure(rig: Rig) -> None:
    """Apply cannot change it and says what to do."""
    spec = rig.small_spec(ORDER)
    await rig.control.declare_exchange(Exchange(spec.names.events, "direct"))
    with pytest.raises(TopologyError, match=r"type is direct, the code wants topic.*delete it"):
        await apply(spec, rig.control, rig.management, rig.settings)


async def test_never_means_never(rig: Rig) -> None:
    """Where operators manage the topology, apply changes nothing; plan still works."""
    spec = rig.small_spec(ORDER)
    with pytest.raises(TopologyError, match="HARELINE_DECLARE"):
        await apply(spec, rig.control, rig.management, replace(rig.settings, declare="never"))
    assert len((await plan(spec, rig.control, rig.management)).of_kind("create")) == len(spec.exchanges) + len(
        spec.queues
    )


async def test_the_first_broker_that_answers_is_taken(rig: Rig) -> None:
    """Addresses are tried in turn; if none answers, each is named with its reason and no password."""
    async with await Control.connect(("amqp://guest:guest@127.0.0.1:9/", *rig.settings.broker_urls)) as control:
        assert control.capabilities == rig.control.capabilities
    with pytest.raises(BrokerUnreachable) as caught:
        await Control.connect(("amqp://me:secret@127.0.0.1:9/",))
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_refused_logins_are_told_apart(rig: Rig) -> None:
    """A wrong password and a missing virtual host are different sentences, by AMQP and by HTTP."""
    url = rig.control.url
    wrong = url.replace("guest:guest", "guest:wrong")
    with pytest.raises(BrokerUnreachable, match="refuses the user or the password"):
        await Control.connect((wrong,))
    with pytest.raises(BrokerUnreachable, match="no-such-vhost"):
        await Control.connect((url.rstrip("/") + "/no-such-vhost",))
    assert rig.settings.management_url is not None
    with pytest.raises(ManagementError, match=r"401.*password"):
        await Management(rig.settings.management_url.replace("guest:guest@", ""), wrong).overview()
    bare = rig.settings.management_url.replace("guest:guest@", "")
    with pytest.raises(ManagementError, match=r"404.*no-such-vhost"):
        await Management(bare, url.rstrip("/") + "/no-such-vhost").queues("x")
    with pytest.raises(ManagementError, match="is no address"):
        Management("127.0.0.1:15672", url)
    assert (await Management(bare, url).overview())["rabbitmq_version"]


async def test_many_looks_at_once_find_nothing_and_break_nothing(rig: Rig) -> None:
    """Each of them ends with the broker closing its channel; the connection stays."""
    for _ in range(8):
        found = await asyncio.gather(*(rig.control.queue_exists(f"{rig.namespace}.{n}") for n in range(60)))
        assert not any(found)


async def test_a_worker_starts_without_the_recorders_queues(rig: Rig) -> None:
    """Nobody records here: `plan` says so, a worker's verification does not mind; a missing job queue it does."""
    spec = rig.small_spec(MAIL)
    await apply(spec, rig.control, rig.management, rig.settings)
    await rig.control.delete_queue(spec.names.records)
    await rig.control.delete_queue(spec.names.records_failed)
    assert {c.name for c in (await plan(spec, rig.control, rig.management)).of_kind("create")} == {
        spec.names.records,
        spec.names.records_failed,
    }
    for management in (rig.management, None):
        found = await verify_for_worker(spec, rig.control, management)
        assert (found.changes, found.stale) == ((), ())
    await rig.control.delete_queue(spec.names.queue("mail.send"))
    with pytest.raises(TopologyError, match=r"mail\.send"):
        await verify_for_worker(spec, rig.control, rig.management)
