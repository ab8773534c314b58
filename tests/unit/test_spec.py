"""The topology that is derived from job types."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology import ladder
from topology.capabilities import Capabilities
from topology.contract import JobType
from topology.errors import TopologyError
from topology.spec import Binding, Spec, derive

VERSIONS = [Capabilities((3, 10)), Capabilities((4, 0)), Capabilities((4, 3))]
RESERVED = {"jobs", "dlx", "dlq", "events", "unroutable", "records", "records.failed"}
NAMES = st.lists(
    st.from_regex(r"[a-z0-9_-]{1,8}(\.[a-z0-9_-]{1,8}){0,2}", fullmatch=True).filter(
        lambda name: (
            name not in {"jobs", "dlx", "dlq", "events", "unroutable", "records", "records.failed"}
            and not name.startswith("delay.")
        )
    ),
    unique=True,
    max_size=6,
)


def job_types(names: list[str], priority: bool = False) -> list[JobType[Any]]:
    return [JobType(name, dict, priority=priority) for name in names]


@given(NAMES, st.randoms(), st.sampled_from(VERSIONS))
def test_the_order_of_job_types_does_not_matter(names: list[str], random: Any, broker: Capabilities) -> None:
    """Equal job types give equal topologies, however they are listed."""
    shuffled = list(names)
    random.shuffle(shuffled)
    assert derive(job_types(names), broker, "ns") == derive(job_types(shuffled), broker, "ns")


@given(NAMES, st.booleans(), st.sampled_from(VERSIONS))
def test_every_reference_leads_somewhere(names: list[str], priority: bool, broker: Capabilities) -> None:
    """Bindings, dead-letter and alternate exchanges name objects of the same topology, each once."""
    spec = derive(job_types(names, priority), broker, "ns")
    exchanges = [exchange.name for exchange in spec.exchanges]
    queues = [queue.name for queue in spec.queues]
    assert len(exchanges) == len(set(exchanges))
    assert len(queues) == len(set(queues))
    assert len(spec.bindings) == len(set(spec.bindings))
    for binding in spec.bindings:
        assert binding.source in exchanges
        assert binding.destination in (queues if binding.to == "queue" else exchanges)
    for queue in spec.queues:
        assert queue.arguments.get("x-dead-letter-exchange", exchanges[0]) in exchanges
    for exchange in spec.exchanges:
        assert exchange.arguments.get("alternate-exchange", exchanges[0]) in exchanges
    assert all(name.startswith("ns.") for name in (*exchanges, *queues))


@pytest.mark.parametrize("broker", VERSIONS, ids=str)
def test_nothing_that_keeps_messages_may_drop_them(broker: Capabilities) -> None:
    """The dead-letter queue, the unroutable queue and the ladder never count deliveries."""
    spec = derive(job_types(["a"]), broker, "ns")
    recorders = {spec.names.records, spec.names.records_failed}
    keepers = [queue for queue in spec.queues if queue.job_type is None and queue.name not in recorders]
    assert len(keepers) == ladder.LEVELS + 2
    for queue in keepers:
        assert queue.arguments["x-queue-type"] == "quorum"
        if broker.quorum_limit_by_default:
            assert queue.arguments["x-delivery-limit"] == -1
        else:
            assert "x-delivery-limit" not in queue.arguments


@pytest.mark.parametrize("broker", VERSIONS, ids=str)
def test_the_recorders_queues_are_bounded_and_drop_their_oldest(broker: Capabilities) -> None:
    """Success and failure apart, each with a limit in bytes; what is dropped goes nowhere."""
    spec = derive(job_types(["a"]), broker, "ns")
    for name, size, key in (
        ("ns.records", 64 * 1024 * 1024, "job.batch.done"),
        ("ns.records.failed", 256 * 1024 * 1024, "job.batch.failed"),
    ):
        queue = spec.queue(name)
        assert queue is not None
        limit = {"x-delivery-limit": -1} if broker.quorum_limit_by_default else {}
        assert queue.arguments == {
            "x-queue-type": "quorum",
            "x-max-length-bytes": size,
            "x-overflow": "drop-head",
            **limit,
        }
        assert spec.bindings_of(name) == (Binding("ns.events", name, "queue", key),)


@pytest.mark.parametrize("broker", VERSIONS, ids=str)
def test_priorities_take_the_form_that_the_broker_keeps(broker: Capabilities) -> None:
    """Ten strict levels: a quorum queue where it keeps them, a classic one elsewhere."""
    arguments = _job_queue(derive(job_types(["a"], priority=True), broker, "ns")).arguments
    if broker.strict_quorum_priorities:
        assert arguments["x-queue-type"] == "quorum"
        assert "x-max-priority" not in arguments
    else:
        assert arguments["x-queue-type"] == "classic"
        assert arguments["x-max-priority"] == 10


@pytest.mark.parametrize("broker", VERSIONS, ids=str)
def test_a_job_without_priority_has_a_quorum_queue(broker: Capabilities) -> None:
    """Replicated, with a delivery limit and at-least-once dead-lettering, whatever the version."""
    arguments = _job_queue(derive(job_types(["a"]), broker, "ns")).arguments
    assert arguments["x-queue-type"] == "quorum"
    assert arguments["x-delivery-limit"] == 5
    assert arguments["x-dead-letter-strategy"] == "at-least-once"
    assert arguments["x-overflow"] == "reject-publish"


def test_the_ladder_doubles_at_every_level_and_ends_with_an_alternate_exchange() -> None:
    """Level n holds 2^n units; what the last exchange cannot route goes to the unroutable queue."""
    spec = derive([], VERSIONS[2], "ns")
    names = spec.names
    for level in range(ladder.LEVELS):
        queue = spec.queue(names.level(level))
        assert queue is not None
        assert queue.arguments["x-message-ttl"] == ladder.UNIT_MS * 2**level
        assert queue.arguments["x-dead-letter-exchange"] == names.below(level)
    due = next(exchange for exchange in spec.exchanges if exchange.name == names.due)
    assert due.arguments == {"alternate-exchange": names.unroutable}


@pytest.mark.parametrize(
    ("said", "expected"),
    [("3.10.8", (3, 10)), (b"4.0.5", (4, 0)), ("4.3.0-rc.1", (4, 3)), ("4.10.1", (4, 10))],
)
def test_the_broker_says_its_version(said: object, expected: tuple[int, int]) -> None:
    """Text or bytes, release or candidate."""
    assert Capabilities.of_server({"version": said}).version == expected


@pytest.mark.parametrize("said", ["3.9.29", "3.8.1", "", "unknown"])
def test_a_broker_that_is_too_old_or_unknown_is_refused(said: str) -> None:
    """With a sentence that names the version."""
    with pytest.raises(TopologyError, match=r"too old|does not say"):
        Capabilities.of_server({"version": said})


def _job_queue(spec: Spec) -> Any:
    return next(queue for queue in spec.queues if queue.job_type is not None)
