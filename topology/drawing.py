"""Pictures of a topology: Mermaid and DOT. The ladder's levels are drawn as three nodes, not as fifty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from topology import ladder
from topology.duration import format_duration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from topology.spec import Names, Spec

Shape = Literal["exchange", "queue", "ladder", "outside"]

_MERMAID: Final[dict[Shape, tuple[str, str]]] = {
    "exchange": ("{{", "}}"),
    "queue": ("[(", ")]"),
    "ladder": ("[[", "]]"),
    "outside": ("([", "])"),
}
_DOT: Final[dict[Shape, str]] = {
    "exchange": 'shape=hexagon, style=filled, fillcolor="#dbeafe"',
    "queue": 'shape=cylinder, style=filled, fillcolor="#fef3c7"',
    "ladder": 'shape=box3d, style=filled, fillcolor="#ede9fe"',
    "outside": "shape=oval, style=dashed",
}
_MERMAID_CLASSES: Final = (
    "classDef exchange fill:#dbeafe,stroke:#1d4ed8,color:#111",
    "classDef queue fill:#fef3c7,stroke:#b45309,color:#111",
    "classDef ladder fill:#ede9fe,stroke:#6d28d9,color:#111",
    "classDef outside fill:#fff,stroke:#666,stroke-dasharray:4,color:#111",
)
_PRODUCERS: Final = "producers"


@dataclass(frozen=True, slots=True)
class Node:
    """An exchange, a queue, some levels of the ladder, or what is outside of the broker."""

    key: str
    lines: tuple[str, ...]
    shape: Shape


@dataclass(frozen=True, slots=True)
class Edge:
    """Where messages go. ``dashed``: the broker sends by itself what is dead or has no route."""

    start: str
    end: str
    label: str
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A graph, in a stable order."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def picture(spec: Spec) -> Picture:
    """The graph of ``spec``."""
    names = spec.names
    levels = _level_keys(names)
    nodes = [Node(_PRODUCERS, ("producers",), "outside"), *_ladder_nodes()]
    nodes += [
        Node(f"x:{exchange.name}", (exchange.name, f"{exchange.kind} exchange"), "exchange")
        for exchange in spec.exchanges
        if exchange.name not in levels
    ]
    nodes += [
        Node(f"q:{queue.name}", (queue.name, _queue_words(queue.arguments)), "queue")
        for queue in spec.queues
        if queue.name not in levels
    ]
    edges = [
        Edge(_PRODUCERS, f"x:{names.jobs}", "job"),
        Edge(_PRODUCERS, "ladder:top", "job with delay"),
    ]
    for binding in spec.bindings:
        start = levels.get(binding.source, f"x:{binding.source}")
        prefix = "q" if binding.to == "queue" else "x"
        end = levels.get(binding.destination, f"{prefix}:{binding.destination}")
        edges.append(Edge(start, end, _edge_label(start, end, binding.routing_key)))
    edges += [
        Edge(f"x:{exchange.name}", f"x:{exchange.arguments['alternate-exchange']}", "no route", dashed=True)
        for exchange in spec.exchanges
        if "alternate-exchange" in exchange.arguments
    ]
    edges += [
        Edge(f"q:{queue.name}", f"x:{queue.arguments['x-dead-letter-exchange']}", "dead", dashed=True)
        for queue in spec.queues
        if "x-dead-letter-exchange" in queue.arguments and queue.name not in levels
    ]
    kept = dict.fromkeys(edge for edge in edges if edge.start != edge.end)
    return Picture(tuple(nodes), tuple(kept))


def mermaid(spec: Spec) -> str:
    """A Mermaid flowchart."""
    drawn = picture(spec)
    ids = {node.key: f"n{index}" for index, node in enumerate(drawn.nodes)}
    lines = ["flowchart LR"]
    for node in drawn.nodes:
        left, right = _MERMAID[node.shape]
        text = "<br/>".join(line.replace('"', "#quot;") for line in node.lines)
        lines.append(f'    {ids[node.key]}{left}"{text}"{right}:::{node.shape}')
    for edge in drawn.edges:
        arrow = "-.->" if edge.dashed else "-->"
        label = f'|"{edge.label}"|' if edge.label else ""
        lines.append(f"    {ids[edge.start]} {arrow}{label} {ids[edge.end]}")
    lines += [f"    {line}" for line in _MERMAID_CLASSES]
    return "\n".join(lines) + "\n"


def dot(spec: Spec) -> str:
    """A graph in DOT, for Graphviz."""
    drawn = picture(spec)
    lines = ["digraph topology {", "    rankdir=LR;", '    node [fontname="sans-serif"];']
    for node in drawn.nodes:
        text = "\\n".join(_dot_text(line) for line in node.lines)
        lines.append(f'    "{_dot_text(node.key)}" [label="{text}", {_DOT[node.shape]}];')
    for edge in drawn.edges:
        style = ", style=dashed" if edge.dashed else ""
        lines.append(
            f'    "{_dot_text(edge.start)}" -> "{_dot_text(edge.end)}" [label="{_dot_text(edge.label)}"{style}];'
        )
    return "\n".join([*lines, "}"]) + "\n"


def _level_keys(names: Names) -> dict[str, str]:
    """Which of the ladder's nodes each level, exchange or queue, is drawn in."""
    last = ladder.LEVELS - 1
    keys = {last: "ladder:top", 0: "ladder:bottom"}
    return {names.level(level): keys.get(level, "ladder:middle") for level in range(ladder.LEVELS)}


def _ladder_nodes() -> list[Node]:
    last = ladder.LEVELS - 1
    stay = format_duration(ladder.UNIT_MS / 1000)
    longest = ladder.UNIT_MS * 2**last / 1000 / 86400
    return [
        Node("ladder:top", (f"delay level {last}", f"holds {longest:.1f} days"), "ladder"),
        Node("ladder:middle", (f"delay levels {last - 1} to 1", "each holds half of the one above"), "ladder"),
        Node("ladder:bottom", ("delay level 0", f"holds {stay}"), "ladder"),
    ]


def _queue_words(arguments: Mapping[str, Any]) -> str:
    priorities = arguments.get("x-max-priority")
    return f"{arguments.get('x-queue-type', 'classic')} queue" + (f", {priorities} priorities" if priorities else "")


def _edge_label(start: str, end: str, key: str) -> str:
    if not start.startswith("ladder:"):
        return key.removeprefix("*." * ladder.LEVELS)
    return "" if end.startswith("ladder:") else "due"


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
