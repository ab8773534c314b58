"""Pictures of a topology."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest

from topology import drawing
from topology.capabilities import Capabilities
from topology.contract import JobType
from topology.spec import Spec, derive


def spec_of(*names: str, version: tuple[int, int] = (4, 3)) -> Spec:
    return derive([JobType(name, dict, priority=name == "mail") for name in names], Capabilities(version), "ns")


@pytest.mark.parametrize("count", [1, 20])
def test_the_ladder_takes_three_nodes(count: int) -> None:
    """The picture grows with the job types alone, so that it stays readable."""
    picture = drawing.picture(spec_of(*(f"job{index}" for index in range(count))))
    assert len([node for node in picture.nodes if node.shape == "ladder"]) == 3
    assert len([node for node in picture.nodes if node.shape == "queue"]) == count + 4
    assert len(picture.nodes) <= count + 14


def test_every_edge_has_both_ends_and_none_is_drawn_twice() -> None:
    """No arrow into nowhere."""
    picture = drawing.picture(spec_of("a", "mail"))
    keys = {node.key for node in picture.nodes}
    assert all(edge.start in keys and edge.end in keys for edge in picture.edges)
    assert len(set(picture.edges)) == len(picture.edges)


def test_a_delayed_job_finds_its_way_in_the_picture() -> None:
    """From the producers over the ladder to the job's queue, and from there to the dead-letter queue."""
    picture = drawing.picture(spec_of("a"))
    ways: dict[str, set[str]] = {}
    for edge in picture.edges:
        ways.setdefault(edge.start, set()).add(edge.end)
    for start, end in [
        ("ladder:top", "q:ns.a"),
        ("q:ns.a", "q:ns.dlq"),
        ("x:ns.delay.due", "q:ns.unroutable"),
    ]:
        assert end in _reachable(ways, start)


def test_mermaid_is_well_formed() -> None:
    """One header, then nodes, edges between declared nodes, and classes; names appear as they are."""
    lines = drawing.mermaid(spec_of("mail.send", "mail")).splitlines()
    assert lines[0] == "flowchart LR"
    node, edge = re.compile(r'    (n\d+)(\{\{|\[\(|\[\[|\(\[)".+"(\}\}|\)\]|\]\]|\]\)):::\w+'), None
    declared = {found[1] for line in lines if (found := node.fullmatch(line))}
    edge = re.compile(r'    (n\d+) (?:-->|-\.->)(?:\|"[^"]+"\|)? (n\d+)')
    edges = [found for line in lines if (found := edge.fullmatch(line))]
    assert edges
    assert all(found[1] in declared and found[2] in declared for found in edges)
    assert len(declared) + len(edges) + 1 + 4 == len(lines)
    assert any("ns.mail.send" in line for line in lines)


def test_dot_is_well_formed() -> None:
    """Graphviz reads it, where it is installed; braces and quotes are balanced in any case."""
    text = drawing.dot(spec_of("a", "mail", version=(3, 10)))
    assert text.startswith("digraph")
    assert text.count("{") == text.count("}")
    assert all(line.count('"') % 2 == 0 for line in text.splitlines())
    assert "classic queue, 10 priorities" in text
    if program := shutil.which("dot"):
        subprocess.run([program, "-Tsvg"], input=text.encode(), check=True, capture_output=True)


def test_the_same_topology_gives_the_same_picture() -> None:
    """So that a picture kept in a repository changes only with the topology."""
    assert drawing.mermaid(spec_of("a", "b")) == drawing.mermaid(spec_of("b", "a"))
    assert drawing.dot(spec_of("a", "b")) == drawing.dot(spec_of("b", "a"))


def _reachable(ways: dict[str, set[str]], start: str) -> set[Any]:
    found, todo = set(), [start]
    while todo:
        for end in ways.get(todo.pop(), ()):
            if end not in found:
                found.add(end)
                todo.append(end)
    return found
