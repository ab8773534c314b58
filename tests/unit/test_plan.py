"""The difference between the code and a broker, on a model of a broker."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topology.capabilities import Capabilities
from topology.contract import JobType
from topology.plan import (
    Observed,
    Plan,
    SeenExchange,
    SeenQueue,
    difference,
    queue_arguments,
    temporary_name,
)
from topology.spec import Binding, Exchange, Queue, Spec, derive

BROKER = Capabilities((4, 3))
NAMES = st.lists(st.sampled_from(["a", "b", "a.b", "mail.send", "x-1", "y_2"]), unique=True, max_size=5)
JOB_TYPES = st.lists(
    st.builds(
        JobType,
        st.sampled_from(["a", "b", "a.b", "mail.send", "x-1", "y_2"]),
        st.just(dict),
        priority=st.booleans(),
        delivery_limit=st.integers(1, 9),
    ),
    unique_by=lambda job_type: job_type.name,
    max_size=5,
)
VERSIONS = st.sampled_from([Capabilities((3, 10)), Capabilities((4, 0)), Capabilities((4, 3))])


@dataclass
class Broker:
    """A model of a broker: what exists on it. Declaring what exists changes nothing."""

    exchanges: dict[str, SeenExchange] = field(default_factory=dict)
    queues: dict[str, SeenQueue] = field(default_factory=dict)
    bindings: set[Binding] = field(default_factory=set)

    def carry_out(self, plan: Plan) -> None:
        for change in plan.of_kind("create", "bind"):
            match change.target:
                case Exchange(name, kind, arguments):
                    self.exchanges.setdefault(name, SeenExchange(name, kind, dict(arguments)))
                case Queue(name, arguments):
                    self.queues.setdefault(name, SeenQueue(name, dict(arguments)))
                case Binding() as binding:
                    assert binding.source in self.exchanges
                    assert binding.destination in (self.queues if binding.to == "queue" else self.exchanges)
                    self.bindings.add(binding)

    def seen(self) -> Observed:
        return Observed(dict(self.exchanges), dict(self.queues), frozenset(self.bindings))


def applied(spec: Spec) -> Broker:
    broker = Broker()
    broker.carry_out(difference(spec, broker.seen()))
    return broker


def spec_of(*job_types: JobType[Any]) -> Spec:
    return derive(job_types or [JobType("a", dict)], BROKER, "ns")


@settings(max_examples=40)
@given(JOB_TYPES, VERSIONS)
def test_applying_a_plan_leaves_nothing_to_do(job_types: list[JobType[Any]], version: Capabilities) -> None:
    """From nothing, one application is enough, and nothing is stale then."""
    spec = derive(job_types, version, "ns")
    found = difference(spec, applied(spec).seen())
    assert found.empty
    assert not found.stale


@settings(max_examples=40)
@given(JOB_TYPES, JOB_TYPES, VERSIONS)
def test_a_plan_from_any_state_is_idempotent(
    before: list[JobType[Any]], after: list[JobType[Any]], version: Capabilities
) -> None:
    """Whatever an older version of the code left: after one application only migrations remain."""
    broker = applied(derive(before, version, "ns"))
    spec = derive(after, version, "ns")
    broker.carry_out(difference(spec, broker.seen()))
    found = difference(spec, broker.seen())
    assert {change.kind for change in found.changes} <= {"differs"}
    changed = {t.name: (t.priority, t.delivery_limit) for t in after}
    for change in found.changes:
        name = change.name.removeprefix("ns.")
        assert changed[name] != {t.name: (t.priority, t.delivery_limit) for t in before}[name]


def test_a_removed_job_type_is_stale_and_stays() -> None:
    """Its queue is reported, and no change deletes it; the plan counts as empty."""
    broker = applied(spec_of(JobType("a", dict), JobType("gone", dict)))
    found = difference(spec_of(), broker.seen())
    assert found.empty
    assert [(change.what, change.name) for change in found.stale] == [("queue", "ns.gone")]


def test_a_wrong_binding_into_our_queue_is_stale() -> None:
    """It would bring the wrong jobs into the queue, so it is reported."""
    broker = applied(spec_of())
    broker.bindings.add(Binding("ns.jobs", "ns.a", "queue", "wrong"))
    found = difference(spec_of(), broker.seen())
    assert found.empty
    (stale,) = found.stale
    assert stale.what == "binding"
    assert "wrong" in stale.line()


def test_what_others_own_is_none_of_our_business() -> None:
    """Other namespaces, others' bindings to our exchanges, and queues that come and go are not reported."""
    broker = applied(spec_of())
    broker.queues["ns2.a"] = SeenQueue("ns2.a", {})
    broker.queues["ns.tail"] = SeenQueue("ns.tail", {}, durable=False, passing=True)
    broker.bindings.add(Binding("ns.events", "audit", "queue", "#"))
    found = difference(spec_of(), broker.seen())
    assert found.empty
    assert not found.stale


def test_a_changed_argument_needs_a_migration() -> None:
    """Both values are named, and apply is not asked to do it."""
    broker = applied(spec_of(JobType("a", dict, delivery_limit=5)))
    (change,) = difference(spec_of(JobType("a", dict, delivery_limit=7)), broker.seen()).changes
    assert (change.kind, change.what, change.name) == ("differs", "queue", "ns.a")
    assert "x-delivery-limit is 5, the code wants 7" in change.detail
    assert "migrate" in change.detail


@pytest.mark.parametrize(
    "arguments", [{"x-message-ttl": 1.5}, {"x-expires": 60_000}, {"x-queue-type": "classic"}], ids=str
)
def test_extra_and_other_arguments_differ(arguments: dict[str, Any]) -> None:
    """What the code does not want is a difference as well as what it wants and is not there."""
    broker = applied(spec_of())
    seen = broker.queues["ns.a"]
    assert seen.arguments is not None
    broker.queues["ns.a"] = replace(seen, arguments={**seen.arguments, **arguments})
    assert [change.kind for change in difference(spec_of(), broker.seen()).changes] == ["differs"]


def test_the_same_value_in_another_form_is_no_difference() -> None:
    """A whole number may come back as a float, the queue type apart from the arguments."""
    broker = applied(spec_of())
    for name, seen in broker.queues.items():
        assert seen.arguments is not None
        arguments = {
            key: float(value) if isinstance(value, int) else value
            for key, value in seen.arguments.items()
            if key != "x-queue-type"
        }
        broker.queues[name] = replace(seen, arguments=queue_arguments(arguments, seen.arguments["x-queue-type"]))
    assert difference(spec_of(), broker.seen()).empty


def test_a_queue_without_a_type_is_classic() -> None:
    """As for the broker."""
    spec = spec_of(JobType("a", dict, priority=True))
    spec = derive([JobType("a", dict, priority=True)], Capabilities((3, 10)), "ns")
    broker = applied(spec)
    seen = broker.queues["ns.a"]
    assert seen.arguments is not None
    broker.queues["ns.a"] = replace(
        seen, arguments={key: value for key, value in seen.arguments.items() if key != "x-queue-type"}
    )
    assert difference(spec, broker.seen()).empty


def test_an_exchange_of_another_type_is_told_with_its_cure() -> None:
    """It cannot be migrated, and the plan says what to do."""
    broker = applied(spec_of())
    broker.exchanges["ns.events"] = replace(broker.exchanges["ns.events"], kind="direct")
    (change,) = difference(spec_of(), broker.seen()).changes
    assert (change.kind, change.what) == ("differs", "exchange")
    assert "delete it" in change.detail


def test_objects_that_do_not_survive_a_restart_differ() -> None:
    """Everything of ours is durable."""
    broker = applied(spec_of())
    broker.queues["ns.a"] = replace(broker.queues["ns.a"], durable=False)
    broker.exchanges["ns.jobs"] = replace(broker.exchanges["ns.jobs"], durable=False)
    found = difference(spec_of(), broker.seen())
    assert sorted(change.name for change in found.of_kind("differs")) == ["ns.a", "ns.jobs"]


@pytest.mark.parametrize("left", ["exchange", "queue", "both"])
def test_an_unfinished_migration_is_for_migrate_alone(left: str) -> None:
    """Apply must not bind a second queue to what the temporary one already takes."""
    broker = applied(spec_of())
    del broker.queues["ns.a"]
    broker.bindings = {binding for binding in broker.bindings if binding.destination != "ns.a"}
    name = temporary_name("ns.a")
    if left in {"exchange", "both"}:
        broker.exchanges[name] = SeenExchange(name, "fanout", {})
    if left in {"queue", "both"}:
        broker.queues[name] = SeenQueue(name, {"x-queue-type": "quorum"})
        broker.bindings.add(Binding("ns.jobs", name, "queue", "a"))
    found = difference(spec_of(), broker.seen())
    assert [(change.kind, change.name) for change in found.changes] == [("unfinished", "ns.a")]
    assert not found.stale


def test_what_could_not_be_seen_is_not_called_missing() -> None:
    """With existence alone, known objects raise no difference, and missing ones bring their bindings."""
    spec = spec_of(JobType("a", dict), JobType("b", dict))
    broker = applied(spec)
    exchanges = {name: SeenExchange(name) for name in broker.exchanges}
    queues = {name: SeenQueue(name) for name in broker.queues}
    observed = Observed(exchanges, queues, None, ("bindings",))
    assert difference(spec, observed).empty
    assert difference(spec, observed).unseen == ("bindings",)
    del queues["ns.b"]
    found = difference(spec, observed)
    assert [change.name for change in found.of_kind("create")] == ["ns.b"]
    assert {change.target for change in found.of_kind("bind")} == set(spec.bindings_of("ns.b"))


def test_a_plan_reads_well_and_as_json() -> None:
    """Every line of text has its entry in JSON; the last line sums up."""
    broker = applied(spec_of(JobType("a", dict), JobType("gone", dict)))
    found = difference(spec_of(JobType("a", dict, delivery_limit=1), JobType("new", dict)), broker.seen())
    document = found.to_json()
    assert document["empty"] is False
    assert len(found.lines()) == len(document["changes"]) + len(document["stale"]) + len(document["unseen"]) + 1
    assert found.lines()[-1] == "1 to create, 2 to bind, 1 to migrate, 1 stale."
    assert {change["kind"] for change in document["changes"]} == {"create", "bind", "differs"}
