"""The topology as frozen, pure data, derived from job types and from what the broker can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from topology import ladder
from topology.capabilities import Capabilities
from topology.contract import HIGHEST_PRIORITY, JobType
from topology.events import BATCH_DONE, BATCH_FAILED

ExchangeKind = Literal["direct", "topic", "fanout"]

RECORDS_BYTES: Final = 64 * 1024 * 1024
RECORDS_FAILED_BYTES: Final = 256 * 1024 * 1024
"""How much a recorder may be behind before the oldest reports are dropped: of success first, of failure much later."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: ExchangeKind
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue. Its arguments are immutable on the broker: a change needs ``topology migrate``."""

    name: str
    arguments: Mapping[str, Any] = field(hash=False)
    job_type: str | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """From an exchange to a queue, or to another exchange."""

    source: str
    destination: str
    to: Literal["queue", "exchange"]
    routing_key: str


@dataclass(frozen=True, slots=True)
class Names:
    """What the broker's objects are called within a namespace."""

    namespace: str

    @property
    def jobs(self) -> str:
        """The exchange that takes jobs; the routing key is the job type."""
        return f"{self.namespace}.jobs"

    @property
    def dlx(self) -> str:
        """The exchange that dead jobs go through."""
        return f"{self.namespace}.dlx"

    @property
    def dlq(self) -> str:
        """The final dead-letter queue."""
        return f"{self.namespace}.dlq"

    @property
    def events(self) -> str:
        """The topic exchange of ``job.*``, ``saga.*`` and ``breaker.*`` events."""
        return f"{self.namespace}.events"

    @property
    def records(self) -> str:
        """The queue that a recorder reads what went well from: accepted, started and done jobs."""
        return f"{self.namespace}.records"

    @property
    def records_failed(self) -> str:
        """The queue that a recorder reads all else from: failures, retries, snoozes, cancellations."""
        return f"{self.namespace}.records.failed"

    @property
    def for_recorders(self) -> frozenset[str]:
        """The queues that only a recorder needs. Where nobody records, the reports go nowhere, and stop nobody."""
        return frozenset({self.records, self.records_failed})

    @property
    def unroutable(self) -> str:
        """The exchange, and the queue, of delayed jobs whose destination has gone."""
        return f"{self.namespace}.unroutable"

    def compensation(self, job_type: str) -> str:
        """The routing key of a compensation event, on the events exchange, for the undoing job type."""
        return f"saga.compensate.{job_type}"

    @property
    def due(self) -> str:
        """The ladder's last exchange: from here a delayed job goes to its queue."""
        return f"{self.namespace}.delay.due"

    def queue(self, job_type: str) -> str:
        """The queue of a job type."""
        return f"{self.namespace}.{job_type}"

    def level(self, level: int) -> str:
        """The exchange, and the queue, of one level of the delay ladder."""
        return f"{self.namespace}.delay.{level:02d}"

    def below(self, level: int) -> str:
        """The exchange one level down from ``level``."""
        return self.level(level - 1) if level else self.due


@dataclass(frozen=True, slots=True)
class Spec:
    """All that must exist on the broker. Equal specs mean equal topologies, whatever order they were built in."""

    names: Names
    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]

    def queue(self, name: str) -> Queue | None:
        """The queue of that name, if the spec has one."""
        return next((queue for queue in self.queues if queue.name == name), None)

    def bindings_of(self, queue: str) -> tuple[Binding, ...]:
        """The bindings that lead into ``queue``."""
        return tuple(b for b in self.bindings if b.to == "queue" and b.destination == queue)


def derive(
    job_types: Iterable[JobType[Any]],
    capabilities: Capabilities,
    namespace: str,
    undos: Iterable[JobType[Any]] = (),
) -> Spec:
    """The topology for ``job_types`` on a broker with ``capabilities``. Pure: the same input, the same spec.

    Those that are among ``undos`` also take compensation events.
    """
    names = Names(namespace)
    undoing = {job_type.name for job_type in undos}
    types = sorted(job_types, key=lambda job_type: job_type.name)
    exchanges = [
        Exchange(names.jobs, "direct"),
        Exchange(names.dlx, "topic"),
        Exchange(names.events, "topic"),
        Exchange(names.unroutable, "fanout"),
        *_ladder_exchanges(names),
    ]
    keep = _keep_for_ever(capabilities)
    queues = [
        Queue(names.dlq, keep),
        Queue(names.unroutable, keep),
        Queue(names.records, _bounded(keep, RECORDS_BYTES)),
        Queue(names.records_failed, _bounded(keep, RECORDS_FAILED_BYTES)),
        *_ladder_queues(names, keep),
        *(Queue(names.queue(t.name), job_queue_arguments(t, capabilities, names), t.name) for t in types),
    ]
    bindings = [
        Binding(names.dlx, names.dlq, "queue", "#"),
        Binding(names.unroutable, names.unroutable, "queue", ""),
        Binding(names.events, names.records, "queue", BATCH_DONE),
        Binding(names.events, names.records_failed, "queue", BATCH_FAILED),
        *_ladder_bindings(names),
    ]
    for job_type in types:
        queue = names.queue(job_type.name)
        bindings.append(Binding(names.jobs, queue, "queue", job_type.name))
        bindings.append(Binding(names.due, queue, "queue", ladder.exit_pattern(job_type.name)))
        if job_type.name in undoing:
            bindings.append(Binding(names.events, queue, "queue", names.compensation(job_type.name)))
    return Spec(names, tuple(exchanges), tuple(queues), tuple(bindings))


def job_queue_arguments(job_type: JobType[Any], capabilities: Capabilities, names: Names) -> Mapping[str, Any]:
    """The arguments of a job type's queue: quorum, unless it has priorities that only a classic queue keeps."""
    if job_type.priority and not capabilities.strict_quorum_priorities:
        return {
            "x-queue-type": "classic",
            "x-max-priority": HIGHEST_PRIORITY + 1,
            "x-dead-letter-exchange": names.dlx,
            "x-dead-letter-routing-key": job_type.name,
        }
    return {
        "x-queue-type": "quorum",
        # The worker counts too and is exact; this is the net below it, for jobs that kill it before it can count.
        "x-delivery-limit": job_type.delivery_limit,
        "x-dead-letter-exchange": names.dlx,
        "x-dead-letter-routing-key": job_type.name,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _keep_for_ever(capabilities: Capabilities) -> Mapping[str, Any]:
    """A quorum queue that never drops a message, however often a person or a program looks at it."""
    arguments: dict[str, Any] = {"x-queue-type": "quorum"}
    if capabilities.quorum_limit_by_default:
        arguments["x-delivery-limit"] = -1  # 3.10 would take -1 for "drop after the first delivery"
    return arguments


def _bounded(keep: Mapping[str, Any], size: int) -> Mapping[str, Any]:
    """A queue that drops its oldest messages beyond ``size`` bytes: a recorder that is late slows nobody."""
    return {**keep, "x-max-length-bytes": size, "x-overflow": "drop-head"}


def _ladder_exchanges(names: Names) -> Iterable[Exchange]:
    for level in range(ladder.LEVELS):
        yield Exchange(names.level(level), "topic")
    # Without the alternate exchange a deleted destination would block the level above for ever.
    yield Exchange(names.due, "topic", {"alternate-exchange": names.unroutable})


def _ladder_queues(names: Names, keep: Mapping[str, Any]) -> Iterable[Queue]:
    for level in range(ladder.LEVELS):
        yield Queue(
            names.level(level),
            {
                **keep,
                "x-message-ttl": ladder.UNIT_MS * 2**level,
                "x-dead-letter-exchange": names.below(level),
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        )


def _ladder_bindings(names: Names) -> Iterable[Binding]:
    for level in range(ladder.LEVELS):
        exchange = names.level(level)
        yield Binding(exchange, exchange, "queue", ladder.level_pattern(level, 1))
        yield Binding(exchange, names.below(level), "exchange", ladder.level_pattern(level, 0))
