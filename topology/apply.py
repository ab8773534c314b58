"""Looks at the broker, and creates what is missing. Never deletes, never changes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from topology.errors import ManagementError, TopologyError
from topology.plan import (
    Change,
    Observed,
    Plan,
    SeenExchange,
    SeenQueue,
    difference,
    queue_arguments,
    summarised,
    temporary_name,
)
from topology.spec import Binding, Exchange, Queue, Spec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from topology.management import Management
    from topology.settings import Settings

T = TypeVar("T")

# A few at a time: the broker creates quorum queues one after the other anyway, and every one takes a channel.
_AT_ONCE: Final = 8


class Presence(Protocol):
    """Looks by passive declaration. The control connection can, and so can the link that workers use."""

    async def exchange_exists(self, name: str) -> bool:
        """Whether there is an exchange of that name."""

    async def queue_exists(self, name: str) -> bool:
        """Whether there is a queue of that name."""


class Declarer(Presence, Protocol):
    """Creates, idempotently. Raises TopologyError."""

    async def declare_exchange(self, exchange: Exchange) -> None:
        """Creates an exchange unless it exists as that."""

    async def declare_queue(self, queue: Queue) -> None:
        """Creates a queue unless it exists as that."""

    async def bind(self, binding: Binding) -> None:
        """Creates a binding unless it exists."""


async def observe(spec: Spec, presence: Presence, management: Management | None) -> Observed:
    """What the broker has of ``spec`` and, with the management API, of its whole namespace.

    Without it, by passive declaration: that shows existence alone, and the answer says so in ``unseen``.
    """
    if management is not None:
        return await _observe_all(spec, management)
    wanted = [exchange.name for exchange in spec.exchanges]
    wanted += [temporary_name(queue.name) for queue in spec.queues]
    exchanges = await _at_once(wanted, presence.exchange_exists)
    queue_names = [queue.name for queue in spec.queues]
    queues = await _at_once(queue_names, presence.queue_exists)
    return Observed(
        {name: SeenExchange(name) for name, exists in zip(wanted, exchanges, strict=True) if exists},
        {name: SeenQueue(name) for name, exists in zip(queue_names, queues, strict=True) if exists},
        None,
        (
            "arguments of queues, types and arguments of exchanges (set HARELINE_MANAGEMENT_URL to see them)",
            "bindings (set HARELINE_MANAGEMENT_URL to see them)",
            "what is in the namespace but not in the code (set HARELINE_MANAGEMENT_URL to see it)",
        ),
    )


async def plan(spec: Spec, presence: Presence, management: Management | None) -> Plan:
    """The difference between ``spec`` and the broker."""
    return difference(spec, await observe(spec, presence, management))


async def apply(spec: Spec, control: Declarer, management: Management | None, settings: Settings) -> Plan:
    """Creates what is missing and returns the plan that it carried out.

    Idempotent, and safe when several do it at once. What exists stays as it is: where it differs, or where a
    migration is unfinished, all else is created first, then TopologyError names what is left.
    """
    refuse_if_never(settings, "apply")
    plan = difference(spec, await observe(spec, control, management))
    left = list(plan.of_kind("differs", "unfinished"))
    untouched = {change.name for change in left}
    exchanges: Iterable[Exchange] = (c.target for c in plan.of_kind("create") if isinstance(c.target, Exchange))
    queues: Iterable[Queue] = (c.target for c in plan.of_kind("create") if isinstance(c.target, Queue))
    bindings: Iterable[Binding] = (c.target for c in plan.of_kind("bind") if isinstance(c.target, Binding))
    if plan.unseen:
        # Declaring again costs little, and shows what looking could not: PRECONDITION_FAILED, missing
        # bindings.
        exchanges = spec.exchanges
        queues = (queue for queue in spec.queues if queue.name not in untouched)
        bindings = (b for b in spec.bindings if b.to == "exchange" or b.destination not in untouched)
    problems = [change.line() for change in left]
    problems += await _errors(exchanges, control.declare_exchange)
    problems += await _errors(queues, control.declare_queue)
    if len(problems) == len(left):
        problems += await _errors(bindings, control.bind)
    if problems:
        raise TopologyError("the topology is not as the code wants it:\n" + "\n".join(f"  {p}" for p in problems))
    return plan


async def verify_for_worker(spec: Spec, presence: Presence, management: Management | None) -> Plan:
    """What a worker calls before it consumes. Returns the (empty) plan, whose ``unseen`` is worth a log line.

    Raises TopologyError that names each difference and how to make up for it. A management API that does not
    answer keeps no worker from its work: it then checks existence alone, and ``unseen`` tells why. Nor do missing
    queues of the recorder.
    """
    try:
        found = await plan(spec, presence, management)
    except ManagementError as error:
        found = await plan(spec, presence, None)
        found = replace(found, unseen=(*found.unseen, str(error)))
    records = spec.names.for_recorders
    found = replace(found, changes=tuple(c for c in found.changes if _leads_to(c) not in records))
    if not found.empty:
        raise TopologyError(
            "the broker's topology is not as the code wants it (`hareline topology apply` creates what "
            "is missing):\n" + "\n".join(f"  {line}" for line in _first(summarised(found.changes)))
        )
    return found


def _leads_to(change: Change) -> str:
    return change.target.destination if isinstance(change.target, Binding) else change.name


def _first(lines: list[str], count: int = 8) -> list[str]:
    more = len(lines) - count
    return lines if more <= 0 else [*lines[:count], f"... and {more} more: hareline topology plan"]


def refuse_if_never(settings: Settings, verb: str) -> None:
    """Raises TopologyError where the settings leave the topology to the broker's operators."""
    if settings.declare == "never":
        raise TopologyError(
            f"HARELINE_DECLARE is 'never', so topology {verb} changes nothing: the broker's operators "
            "manage the topology here. `hareline topology show --format json` tells them what to create"
        )


async def _observe_all(spec: Spec, management: Management) -> Observed:
    namespace = spec.names.namespace
    exchanges, queues, bindings = await asyncio.gather(
        management.exchanges(namespace), management.queues(namespace), management.bindings(namespace)
    )
    return Observed(
        {e.name: SeenExchange(e.name, e.kind, e.arguments, e.durable) for e in exchanges},
        {q.name: SeenQueue(q.name, queue_arguments(q.arguments, q.queue_type), q.durable, q.passing) for q in queues},
        frozenset(info.binding for info in bindings),
    )


async def _at_once(items: Sequence[str], operation: Callable[[str], Awaitable[T]]) -> list[T]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(item: str) -> T:
        async with gate:
            return await operation(item)

    return await asyncio.gather(*(one(item) for item in items))


async def _errors(items: Iterable[T], operation: Callable[[T], Awaitable[None]]) -> list[str]:
    """Does ``operation`` for all ``items``, a few at a time, and returns what went wrong, in their order."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(item: T) -> str | None:
        async with gate:
            try:
                await operation(item)
            except TopologyError as error:
                return str(error)
            return None

    return [text for text in await asyncio.gather(*(one(item) for item in items)) if text is not None]
