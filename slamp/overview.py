"""A graph at a glance: plain values about every node and edge, for tables, pictures and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from slamp.delays import holds_back
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, WEIGHTED, Delay, Input, Node, Output, Scale, Shape, arrays_of
from slamp.taps import connections, weighted_sum

Kind = Literal["input", "output", "weights", "neurons", "delay", "wiring"]


@dataclass(frozen=True)
class NodeRow:
    """One node.

    Attributes:
        name: Its name.
        type: Its type.
        kind: What it is for.
        shape: Of its output, without batch axis.
        parameters: How many numbers it has; of a neuron parameter or delay that is one number everywhere, one.
        synapses: Its non-zero connections, unrolled over output positions; None where it has no weight.
        sources: Where its inputs come from, in the order they are added.
        delay: Fewest and most steps by which it delays; None but for a `Delay`.
    """

    name: str
    type: str
    kind: Kind
    shape: Shape
    parameters: int
    synapses: int | None
    sources: tuple[str, ...]
    delay: tuple[int, int] | None = None


@dataclass(frozen=True)
class EdgeRow:
    """One edge. ``closes_cycle``: it leads into a delay from what hears that delay, so it is heard in a later step."""

    source: str
    target: str
    closes_cycle: bool = False


@dataclass(frozen=True)
class Overview:
    """What `overview` tells of a graph.

    Attributes:
        nodes: In the order of the graph.
        edges: In the order of the graph.
        dt: Time step in seconds.
        readout: How the output is read over time, or "".
        parameters: Of all nodes together, a weight that several nodes share counted once.
        synapses: Of all nodes together, a shared weight counted for every use.
        graph_hash: Hash of the graph.
    """

    nodes: tuple[NodeRow, ...]
    edges: tuple[EdgeRow, ...]
    dt: float
    readout: str
    parameters: int
    synapses: int
    graph_hash: str

    def to_json(self) -> dict[str, Any]:
        """Return dictionaries and lists."""
        found = asdict(self)
        for node in found["nodes"]:
            node |= {key: list(node[key]) for key in ("shape", "sources")}
            node["delay"] = node["delay"] and {"least": node["delay"][0], "most": node["delay"][1]}
        return {**found, "nodes": list(found["nodes"]), "edges": list(found["edges"])}


def overview(graph: SpikingGraph) -> Overview:
    """Return what there is to say about every node and edge of a graph."""
    nodes = tuple(_row(graph, name, node) for name, node in graph.nodes.items())
    shared: set[str] = set()
    parameters = 0
    for row in nodes:
        key = graph.parameters.get(row.name, row.name)
        parameters += 0 if key in shared else row.parameters
        if row.kind == "weights":
            shared.add(key)
    closing = _closing(graph)
    return Overview(
        nodes,
        tuple(EdgeRow(source, target, (source, target) in closing) for source, target in graph.edges),
        graph.dt,
        graph.readout,
        parameters,
        sum(row.synapses or 0 for row in nodes),
        graph.hash,
    )


def said_steps(delay: tuple[int, int]) -> str:
    """Say by how many steps a node delays."""
    least, most = delay
    if least != most:
        return f"{least}-{most} steps"
    return f"{most} step" if most == 1 else f"{most} steps"


def _row(graph: SpikingGraph, name: str, node: Node) -> NodeRow:
    sources = graph.sources(name)
    synapses = None
    if isinstance(node, WEIGHTED):
        synapses = round(weighted_sum(node, node.weight != 0, connections(node, graph.shapes[sources[0]])))
    delay = (int(node.steps.min()), int(node.steps.max())) if isinstance(node, Delay) else None
    shape = tuple(int(size) for size in graph.shapes[name])
    return NodeRow(name, type(node).__name__, _kind(node), shape, _parameters(node), synapses, sources, delay)


def _kind(node: Node) -> Kind:
    match node:
        case Input():
            return "input"
        case Output():
            return "output"
        case Delay():
            return "delay"
        case _:
            return "weights" if isinstance(node, WEIGHTED) else "neurons" if isinstance(node, NEURON) else "wiring"


def _parameters(node: Node) -> int:
    whole = isinstance(node, (*WEIGHTED, Scale))
    arrays = arrays_of(node).values()
    return sum(1 if not whole and bool((array == array.flat[0]).all()) else int(array.size) for array in arrays)


def _closing(graph: SpikingGraph) -> set[tuple[str, str]]:
    """Return edges into delays of a step or more without which there is no cycle."""
    closing: set[tuple[str, str]] = set()
    for name in [name for name, node in graph.nodes.items() if holds_back(node)]:
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            source = waiting.pop()
            found = [target for target in graph.targets(source) if (source, target) not in closing]
            waiting += [target for target in found if target not in reached]
            reached.update(found)
        closing |= {(source, name) for source in graph.sources(name) if source in reached}
    return closing
