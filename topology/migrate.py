"""Replaces queues whose immutable arguments changed, without losing a message.

Everything is derived from the broker, so that this can be killed at any moment and run again:

    old queue differs          1 exchange and quorum queue `<queue>.migrating`, bound as the old queue is
                               2 the old queue's bindings go: nothing can enter it any more
                               3 its messages move to the temporary queue
                               4 once it is provably empty it is deleted
    old queue is gone, or right, and `<queue>.migrating` exists
                               5 the new queue is declared and bound
                               6 the temporary queue's bindings go
                               7 its messages move to the new queue
                               8 `<queue>.migrating` is deleted, the exchange last: while it exists, there is
                               work left

At least once: a message that is published while both queues are bound is in both. Such copies are equal in
all, the message id included, and one is dropped in step 7 as far as it is still there.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from topology.apply import refuse_if_never
from topology.control import ArgumentsDiffer, Control, Locked
from topology.errors import TopologyError
from topology.management import BindingInfo, Management
from topology.plan import SeenQueue, queue_arguments, queue_difference, temporary_name
from topology.spec import Binding, Exchange, Queue, Spec
from topology.transfer import hold, release, transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from topology.settings import Settings

Step = Literal[
    "prepared",
    "unbound",
    "draining",
    "drained",
    "deleted",
    "declared",
    "switched",
    "refilling",
    "refilled",
    "finished",
]
State = Literal["right", "differs", "missing"]

# Each holds three channels at most; the waiting for fresh statistics is done by all at once.
_AT_ONCE: Final = 16
_DEAD_LETTERING: Final = ("x-dead-letter-exchange", "x-dead-letter-routing-key")


@dataclass(frozen=True, slots=True)
class Progress:
    """The migration of ``queue``: ``step`` is done, or under way with ``moved`` of about ``total``."""

    queue: str
    step: Step
    moved: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what, in seconds.

    ``settle``: how old the management API's counts may be, twice the broker's collection interval and some.
    ``quiet``: how long a queue must stay empty where no count of unacknowledged messages is at hand.
    ``leave``: how long consumers may take to leave. ``give_up``: how long others may hold messages. ``lock``:
    how long the broker may take to notice that an earlier run was killed.
    """

    settle: float = 12.0
    quiet: float = 1.0
    leave: float = 3.0
    give_up: float = 30.0
    lock: float = 5.0


@dataclass(frozen=True, slots=True)
class Migrated:
    """A queue that was replaced, and how many messages went into the new one."""

    queue: str
    messages: int

    def to_json(self) -> dict[str, str | int]:
        """The same for programs."""
        return {"queue": self.queue, "messages": self.messages}


async def migrate(
    spec: Spec,
    control: Control,
    management: Management | None,
    settings: Settings,
    *,
    queues: Iterable[str] | None = None,
    assume_idle: bool = False,
    patience: Patience | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Migrated, ...]:
    """Replaces those of ``queues`` (all by default) that differ from ``spec``, and finishes what was cut off.

    Raises TopologyError, with everything as it was, while consumers are attached, and where only
    ``assume_idle`` could tell that no message is out with a client: the management API knows, AMQP does not.
    Raises it later too when something gets in the way; running it again goes on from there.
    """
    refuse_if_never(settings, "migrate")
    wanted = list(spec.queues if queues is None else _chosen(spec, queues))
    work = [
        _Migration(
            spec,
            queue,
            control,
            management,
            assume_idle=assume_idle,
            patience=patience or Patience(),
            progress=progress,
        )
        for queue in wanted
    ]
    gate = asyncio.Semaphore(_AT_ONCE)

    async def gated(operation: Callable[[], object]) -> object:
        async with gate:
            return await operation()  # type: ignore[misc]

    looked = await asyncio.gather(*(gated(one.look) for one in work), return_exceptions=True)
    _raise_any(looked)
    work = [one for one in work if one.needed]
    done = await asyncio.gather(*(gated(one.run) for one in work), return_exceptions=True)
    _raise_any(done)
    return tuple(result for result in done if isinstance(result, Migrated))


def _chosen(spec: Spec, names: Iterable[str]) -> Sequence[Queue]:
    chosen = []
    for name in names:
        queue = spec.queue(name) or spec.queue(spec.names.queue(name))
        if queue is None:
            raise TopologyError(
                f"there is no queue or job type '{name}' in the code: `hareline topology show` lists them"
            )
        chosen.append(queue)
    return chosen


def _raise_any(results: Iterable[object]) -> None:
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        if not isinstance(error, TopologyError):
            raise error
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise TopologyError("\n".join(str(error) for error in errors))


class _Migration:
    """One queue's way from what it is to what it should be."""

    def __init__(
        self,
        spec: Spec,
        queue: Queue,
        control: Control,
        management: Management | None,
        *,
        assume_idle: bool,
        patience: Patience,
        progress: Callable[[Progress], None],
    ) -> None:
        self._queue = queue
        self._name = queue.name
        self._temporary = temporary_name(queue.name)
        self._wanted = tuple(BindingInfo(binding, {}) for binding in spec.bindings_of(queue.name))
        self._control = control
        self._management = management
        self._assume_idle = assume_idle
        self._patience = patience
        self._progress = progress
        ttl = queue.arguments.get("x-message-ttl")
        self._ttl: int | None = ttl if isinstance(ttl, int) else None
        self._resumed = False
        self.needed = False

    async def look(self) -> None:
        """Finds out whether there is anything to do, and refuses what cannot be begun. Changes nothing."""
        self._resumed = await self._control.exchange_exists(self._temporary) or await self._control.queue_exists(
            self._temporary
        )
        state = await self._state()
        self.needed = self._resumed or state == "differs"
        if state == "differs":
            await self._refuse_consumers()
            if self._management is None and not self._assume_idle:
                raise TopologyError(
                    f"{self._name}: AMQP alone cannot tell whether a client still holds messages of it "
                    "unacknowledged: set HARELINE_MANAGEMENT_URL, or make sure yourself and pass "
                    "--assume-idle"
                )

    async def run(self) -> Migrated:
        """Does all that is left to do."""
        await self._lock()
        if await self._state() == "differs":
            await self._prepare()
            await self._empty_old()
            await self._control.delete_queue(self._name)
            self._tell("deleted")
        await self._switch_to_new()
        moved = await self._refill()
        await self._control.delete_queue(self._temporary)
        await self._control.delete_exchange(self._temporary)
        self._tell("finished", moved, moved)
        return Migrated(self._name, moved)

    async def _state(self) -> State:
        if self._management is not None:
            info = await self._management.queue(self._name)
            if info is None:
                return "missing"
            seen = SeenQueue(info.name, queue_arguments(info.arguments, info.queue_type), info.durable)
            return "differs" if queue_difference(self._queue, seen) else "right"
        if not await self._control.queue_exists(self._name):
            return "missing"
        try:
            await self._control.declare_queue(self._queue)
        except ArgumentsDiffer:
            return "differs"
        return "right"

    async def _lock(self) -> None:
        """Two at once could each delete what the other fills. The lock goes with the connection."""
        deadline = time.monotonic() + self._patience.lock
        while True:
            try:
                return await self._control.hold(self._temporary + ".lock")
            except Locked:
                if time.monotonic() > deadline:
                    raise TopologyError(f"{self._name}: another migration of it is running") from None
                await asyncio.sleep(0.2)

    async def _prepare(self) -> None:
        """Steps 1 and 2: from here on new messages go to the temporary queue."""
        await self._make_temporary()
        temporary = self._within(self._temporary)
        await self._control.bind(temporary)
        await self._control.unbind(self._within(self._name))
        bound = await self._bindings_of(self._name)
        for info in {(info.binding): info for info in (*self._wanted, *bound)}.values():
            await self._control.bind(replace(info.binding, destination=self._temporary), dict(info.arguments))
        self._tell("prepared")
        for info in bound:
            await self._control.unbind(info.binding, dict(info.arguments))
        self._tell("unbound")

    async def _make_temporary(self) -> None:
        await self._control.declare_exchange(Exchange(self._temporary, "fanout"))
        if await self._control.queue_exists(self._temporary):
            return  # perhaps made by a run whose code wanted other arguments
        arguments = {name: value for name, value in self._queue.arguments.items() if name in _DEAD_LETTERING}
        if arguments:
            arguments |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        if self._control.capabilities.quorum_limit_by_default:
            arguments["x-delivery-limit"] = -1
        await self._control.declare_queue(Queue(self._temporary, {"x-queue-type": "quorum", **arguments}))

    async def _empty_old(self) -> None:
        """Steps 3 and 4: moves everything, until the broker's counts prove that nothing is left or out."""
        unbound_at = time.monotonic()
        deadline = unbound_at + self._patience.settle + self._patience.give_up
        await self._drain_old()
        while True:
            await self._refuse_consumers()
            if self._assume_idle or self._management is None:
                await asyncio.sleep(self._patience.quiet)
                if await self._drain_old() == 0:
                    break
                continue
            # Nothing can enter any more, so counts that are younger than that and all zero stay true.
            fresh = time.monotonic() - unbound_at >= self._patience.settle
            info = await self._management.queue(self._name)
            if info is None:
                break
            if await self._drain_old() == 0 and fresh and info.messages == 0 and not info.unacknowledged:
                break
            if time.monotonic() > deadline:
                raise TopologyError(
                    f"{self._name}: {info.unacknowledged or 0} of its messages are out with a client, and "
                    f"{(info.messages or 0) - (info.unacknowledged or 0)} on their way elsewhere: stop "
                    "the client that took them, then run it again"
                )
            await asyncio.sleep(0.5)
        self._tell("drained")
        await self._refuse_consumers()

    async def _drain_old(self) -> int:
        return await self._move(self._name, "draining", partial(hold, ttl=self._ttl, now=time.time()))

    async def _switch_to_new(self) -> None:
        """Steps 5 and 6: from here on new messages go to the new queue."""
        await self._make_temporary()
        await self._control.declare_queue(self._queue)
        self._tell("declared")
        bound = await self._bindings_of(self._temporary)
        for info in {(info.binding): info for info in (*self._wanted, *self._pointed_at(self._name, bound))}.values():
            await self._control.bind(info.binding, dict(info.arguments))
        await self._control.bind(self._within(self._name))
        await self._control.unbind(self._within(self._temporary))
        for info in bound:
            await self._control.unbind(info.binding, dict(info.arguments))
        self._tell("switched")

    async def _refill(self) -> int:
        """Step 7."""
        if self._resumed:
            # A run that was killed a moment ago may have messages that the broker is about to take back.
            await self._consumers(self._temporary)
            await asyncio.sleep(self._patience.quiet)
        moved = 0
        while count := await self._move_back():
            moved += count
        if consumers := await self._consumers(self._temporary):
            raise TopologyError(
                f"{self._temporary}: {consumers} consumers are attached: stop whoever uses it, then run it again"
            )
        self._tell("refilled", moved, moved)
        return moved

    async def _move_back(self) -> int:
        change = partial(release, ttl=self._ttl, now=time.time())
        return await self._move(self._temporary, "refilling", change, drop_duplicates=True)

    async def _move(
        self, source: str, step: Step, change: Callable[[object], None], *, drop_duplicates: bool = False
    ) -> int:
        counts = await self._control.counts(source)
        if counts is None or counts.ready == 0:
            return 0
        total = counts.ready
        self._tell(step, 0, total)
        return await transfer(
            self._control,
            source,
            self._temporary,
            change=change,
            drop_duplicates=drop_duplicates,
            moved=lambda count: self._tell(step, count, max(total, count)),
        )

    async def _bindings_of(self, queue: str) -> tuple[BindingInfo, ...]:
        """What leads into ``queue``: all of it if the management API tells, else what the code wants."""
        if self._management is None:
            return self._pointed_at(queue, self._wanted)
        found = await self._management.bindings_of(queue)
        return tuple(info for info in found if info.binding.source != self._temporary)

    @staticmethod
    def _pointed_at(queue: str, infos: Iterable[BindingInfo]) -> tuple[BindingInfo, ...]:
        return tuple(replace(info, binding=replace(info.binding, destination=queue)) for info in infos)

    def _within(self, queue: str) -> Binding:
        return Binding(self._temporary, queue, "queue", "")

    async def _refuse_consumers(self) -> None:
        if consumers := await self._consumers(self._name):
            who = self._queue.job_type or self._name
            raise TopologyError(
                f"{self._name}: {consumers} consumers are attached: stop the workers of {who} first, then run it again"
            )

    async def _consumers(self, queue: str) -> int:
        """How many stay attached to ``queue``. A quorum queue takes a moment to forget one that has gone."""
        deadline = time.monotonic() + self._patience.leave
        while (counts := await self._control.counts(queue)) and counts.consumers:
            if time.monotonic() > deadline:
                return counts.consumers
            await asyncio.sleep(0.1)
        return 0

    def _tell(self, step: Step, moved: int = 0, total: int = 0) -> None:
        self._progress(Progress(self._name, step, moved, total))
