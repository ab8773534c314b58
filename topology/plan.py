"""The difference between what the code expects and what a broker has, as a pure function of the two."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from topology import ladder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from topology.spec import Binding, Exchange, Names, Queue, Spec

Kind = Literal["create", "bind", "differs", "unfinished", "stale"]
What = Literal["exchange", "queue", "binding"]

MIGRATING: Final = ".migrating"
"""What `topology migrate` appends to a queue's name, for the exchange and the queue in between."""

_SIGNS: Final[Mapping[Kind, str]] = {
    "create": "+",
    "bind": "+",
    "differs": "~",
    "unfinished": "!",
    "stale": "?",
}


def temporary_name(queue: str) -> str:
    """The exchange and the queue that hold a queue's messages while it is replaced."""
    return queue + MIGRATING


@dataclass(frozen=True, slots=True)
class SeenExchange:
    """An exchange on the broker. ``kind`` and ``arguments`` are None where only existence could be seen."""

    name: str
    kind: str | None = None
    arguments: Mapping[str, Any] | None = None
    durable: bool = True


@dataclass(frozen=True, slots=True)
class SeenQueue:
    """A queue on the broker. ``arguments`` are None where only its existence could be seen.

    ``passing`` marks exclusive and auto-deleted queues, which come and go by themselves.
    """

    name: str
    arguments: Mapping[str, Any] | None = None
    durable: bool = True
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """What exists on the broker, as far as it can be seen. ``bindings`` is None where none can."""

    exchanges: Mapping[str, SeenExchange]
    queues: Mapping[str, SeenQueue]
    bindings: frozenset[Binding] | None
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    ``create`` and ``bind`` are what `apply` does; ``differs`` needs `migrate` (a queue) or a person (an
    exchange); ``unfinished`` is a migration that was cut off; ``stale`` is in the namespace but not in the
    code, and stays.
    """

    kind: Kind
    what: What
    name: str
    detail: str
    target: Exchange | Queue | Binding | None = None

    def line(self) -> str:
        """One line for people."""
        return f"{_SIGNS[self.kind]} {self.what} {self.name}: {self.detail}"

    def to_json(self) -> dict[str, str]:
        """The same for programs."""
        return {"kind": self.kind, "what": self.what, "name": self.name, "detail": self.detail}


_LADDER: Final = re.compile(r"\.delay\.\d\d\b")


def summarised(changes: Iterable[Change]) -> list[str]:
    """One line a change, but a single one for a whole ladder that is missing: nobody reads a hundred."""
    lines, rungs = [], []
    for change in changes:
        if change.kind in {"create", "bind"} and _LADDER.search(change.name):
            rungs.append(change)
        else:
            lines.append(change.line())
    if len(rungs) <= ladder.LEVELS:
        return lines + [change.line() for change in rungs]
    counts = Counter(change.what for change in rungs)
    kinds = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items())
    return [*lines, f"+ the delay ladder: {kinds} (--json lists them)"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Every difference, in the order in which they are made up for, and what could not be seen."""

    changes: tuple[Change, ...]
    stale: tuple[Change, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the broker has all that the code expects. Stale objects do not count."""
        return not self.changes

    def of_kind(self, *kinds: Kind) -> tuple[Change, ...]:
        """The changes of these kinds."""
        return tuple(change for change in self.changes if change.kind in kinds)

    def lines(self) -> list[str]:
        """The plan for people: differences, stale objects, and what could not be seen."""
        lines = summarised(self.changes)
        lines += [change.line() for change in self.stale]
        lines += [f"not seen: {what}" for what in self.unseen]
        lines.append(self._summary())
        return lines

    def _summary(self) -> str:
        counts = {
            "to create": len(self.of_kind("create")),
            "to bind": len(self.of_kind("bind")),
            "to migrate": len(self.of_kind("differs")),
            "migrations to finish": len(self.of_kind("unfinished")),
            "stale": len(self.stale),
        }
        found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        if self.empty:
            return "Nothing to do" + (f" ({found})" if found else "") + "."
        return f"{found[0].upper()}{found[1:]}."

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready data: ``empty``, ``changes``, ``stale``, ``unseen``."""
        return {
            "empty": self.empty,
            "changes": [change.to_json() for change in self.changes],
            "stale": [change.to_json() for change in self.stale],
            "unseen": list(self.unseen),
        }


def difference(spec: Spec, observed: Observed) -> Plan:
    """What must change on the broker so that it has all of ``spec``. Pure.

    A queue whose migration is unfinished is left out of ``create`` and ``bind``: its messages are bound to
    the temporary queue, and a second binding would run every job twice.
    """
    unfinished = unfinished_queues(spec, observed)
    changes = [*_exchange_changes(spec, observed), *_queue_changes(spec, observed, unfinished)]
    changes += _binding_changes(spec, observed, unfinished)
    changes += [
        Change(
            "unfinished",
            "queue",
            queue.name,
            "a migration was cut off: messages may wait in "
            f"{temporary_name(queue.name)}; `hareline topology migrate` finishes it",
            queue,
        )
        for queue in spec.queues
        if queue.name in unfinished
    ]
    return Plan(tuple(changes), tuple(_stale(spec, observed)), observed.unseen)


def unfinished_queues(spec: Spec, observed: Observed) -> frozenset[str]:
    """The queues of ``spec`` whose migration was cut off."""
    return frozenset(
        queue.name
        for queue in spec.queues
        if temporary_name(queue.name) in observed.exchanges or temporary_name(queue.name) in observed.queues
    )


def queue_difference(queue: Queue, seen: SeenQueue) -> str | None:
    """What of ``seen`` is not as ``queue`` wants it, in words; None where no difference is known."""
    found = []
    if seen.arguments is not None:
        found = _argument_differences(_queue_arguments(queue.arguments), _queue_arguments(seen.arguments))
    if not seen.durable:
        found.append("it is not durable")
    return "; ".join(found) or None


def queue_arguments(arguments: Mapping[str, Any], queue_type: str | None) -> dict[str, Any]:
    """A queue's arguments as seen, with the type that the broker reports apart from them."""
    return (
        dict(arguments) if "x-queue-type" in arguments or not queue_type else {**arguments, "x-queue-type": queue_type}
    )


def _exchange_changes(spec: Spec, observed: Observed) -> Iterator[Change]:
    for exchange in spec.exchanges:
        seen = observed.exchanges.get(exchange.name)
        if seen is None:
            yield Change("create", "exchange", exchange.name, f"{exchange.kind}{_with(exchange.arguments)}", exchange)
        elif found := _exchange_difference(exchange, seen):
            yield Change(
                "differs",
                "exchange",
                exchange.name,
                f"{found}. An exchange cannot be migrated: stop what publishes through it, delete it on the "
                "broker, and run `hareline topology apply` (publishes in between are refused, not lost)",
                exchange,
            )


def _exchange_difference(exchange: Exchange, seen: SeenExchange) -> str | None:
    found = []
    if seen.kind is not None and seen.kind != exchange.kind:
        found.append(f"type is {seen.kind}, the code wants {exchange.kind}")
    if seen.arguments is not None:
        found += _argument_differences(_plain(exchange.arguments), _plain(seen.arguments))
    if not seen.durable:
        found.append("it is not durable")
    return "; ".join(found) or None


def _queue_changes(spec: Spec, observed: Observed, unfinished: frozenset[str]) -> Iterator[Change]:
    for queue in spec.queues:
        if queue.name in unfinished:
            continue
        seen = observed.queues.get(queue.name)
        if seen is None:
            kind = queue.arguments.get("x-queue-type", "classic")
            rest = {name: value for name, value in queue.arguments.items() if name != "x-queue-type"}
            yield Change("create", "queue", queue.name, f"{kind}{_with(rest)}", queue)
        elif found := queue_difference(queue, seen):
            yield Change("differs", "queue", queue.name, f"{found}. `hareline topology migrate` replaces it", queue)


def _binding_changes(spec: Spec, observed: Observed, unfinished: frozenset[str]) -> Iterator[Change]:
    for binding in spec.bindings:
        if binding.to == "queue" and binding.destination in unfinished:
            continue
        # Where bindings cannot be seen, those of an object that is yet to be created are known to be missing.
        exists = binding.destination in (observed.queues if binding.to == "queue" else observed.exchanges)
        missing = binding not in observed.bindings if observed.bindings is not None else not exists
        if missing or binding.source not in observed.exchanges:
            yield Change("bind", "binding", *_binding_words(binding), binding)


def _stale(spec: Spec, observed: Observed) -> Iterator[Change]:
    exchanges = {exchange.name for exchange in spec.exchanges}
    queues = {queue.name for queue in spec.queues}
    temporary = {temporary_name(name) for name in queues}
    reason = "is in the namespace but not in the code; it is left alone"
    for name in sorted(observed.exchanges.keys() - exchanges - temporary):
        if _ours(spec.names, name):
            yield Change("stale", "exchange", name, reason)
    for name, seen in sorted(observed.queues.items()):
        if name not in queues | temporary and not seen.passing and _ours(spec.names, name):
            yield Change("stale", "queue", name, reason)
    expected = set(spec.bindings)
    for binding in sorted(observed.bindings or (), key=_binding_words):
        # Bindings of stale or temporary objects go without saying, as does what others bind to our exchanges.
        if binding in expected or binding.source in temporary or not _ours(spec.names, binding.source):
            continue
        if binding.destination in (queues if binding.to == "queue" else exchanges):
            yield Change("stale", "binding", *_binding_words(binding), binding)


def _ours(names: Names, name: str) -> bool:
    return name.startswith(names.namespace + ".")


def _binding_words(binding: Binding) -> tuple[str, str]:
    return f"{binding.source} -> {binding.destination}", f"routing key '{binding.routing_key}' ({binding.to})"


def _queue_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"x-queue-type": "classic", **_plain(arguments)}


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Values in one form: JSON on the way may have made 100.0 of what was declared as 100."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in arguments.items()
    }


def _argument_differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    words = []
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            words.append(f"{name} is not set, the code wants {wanted[name]}")
        elif name not in wanted:
            words.append(f"{name} is {found[name]}, the code wants it unset")
        elif wanted[name] != found[name]:
            words.append(f"{name} is {found[name]}, the code wants {wanted[name]}")
    return words


def _with(arguments: Mapping[str, Any]) -> str:
    words: Iterable[str] = (f"{name}={value}" for name, value in sorted(arguments.items()))
    text = ", ".join(words)
    return f" with {text}" if text else ""
