"""The chain of neuron layers in a graph: what drives each, for ``.net`` files; pure functions, no files.

A layer may feed itself back after one step, and one synapse may be later than another: netx has ``dense_rec`` and
``delay`` for that. Everything else that branches is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    NEURON,
    WEIGHTED,
    WIRING,
    Affine,
    Delay,
    Flatten,
    Input,
    Linear,
    Output,
    Reshape,
    Sum,
    SumPool2d,
)


@dataclass(frozen=True, eq=False)
class NetStretch:
    """The way from one layer of neurons (or the input) to the next.

    Attributes:
        source: Where it begins.
        wiring: Pools, Flattens and Delays before the weights, first one first.
        weighted: The weights.
        behind: Delays between weights and neurons.
        neuron: Where it ends.
        beside: Further ways from the source to the neurons, each Delays and one `Linear`.
        recurrent: The `Linear` or `Affine` by which the neurons feed themselves back after one step, "" if they do not.
    """

    source: str
    wiring: tuple[str, ...]
    weighted: str
    behind: tuple[str, ...]
    neuron: str
    beside: tuple[tuple[str, ...], ...] = ()
    recurrent: str = ""


def net_stretches(graph: SpikingGraph) -> list[NetStretch]:
    """Return the ways from layer to layer.

    Raises:
        UnsupportedNodeError: The graph is no chain of layers that ``.net`` files can hold; the message says where.
    """
    sides = {name: _sides(graph, name) for name, node in graph.nodes.items() if isinstance(node, NEURON)}
    aside = {name for side in sides.values() for way in side.ways for name in way}
    found: list[NetStretch] = []
    wiring: list[str] = []
    behind: list[str] = []
    weighted, reached = "", graph.input
    for name in _chain(graph, aside):
        node = graph.nodes[name]
        if isinstance(node, WEIGHTED):
            if weighted:
                raise UnsupportedNodeError(f"{name}: follows {weighted} without neurons between; put neurons there")
            weighted = name
        elif isinstance(node, (SumPool2d, Flatten)):
            if weighted:
                raise UnsupportedNodeError(f"{name}: {type(node).__name__} between weights and neurons; move it behind")
            wiring.append(name)
        elif isinstance(node, Delay):
            (behind if weighted else wiring).append(name)
        elif isinstance(node, NEURON):
            if not weighted:
                raise UnsupportedNodeError(f"{name}: has no weights of its own before it; put a linear layer there")
            side = sides[name]
            found.append(NetStretch(reached, tuple(wiring), weighted, tuple(behind), name, side.beside, side.recurrent))
            reached, wiring, weighted, behind = name, [], "", []
        else:
            raise UnsupportedNodeError(f"{name}: {type(node).__name__} is not written to .net files; remove it")
    left = [weighted] if weighted else [name for name in wiring if not isinstance(graph.nodes[name], Flatten)]
    if left:
        raise UnsupportedNodeError(f"{left[0]}: no neurons follow it; a .net layer ends in neurons")
    return found


def total_delay(graph: SpikingGraph, wiring: Sequence[str]) -> np.ndarray:
    """Sum the delays on a stretch of wiring: int64, (1,) if all values wait equally, else one per value at its start.

    Raises:
        UnsupportedNodeError: Values that a pool summed, or a node moved, wait differently: one source may have several.
    """
    steps, pool = np.zeros(1, dtype=np.int64), ""
    for name in wiring:
        node = graph.nodes[name]
        if isinstance(node, Delay):
            late = node.steps.reshape(-1).astype(np.int64)
            if bool((late == late[0]).all()):
                late = late[:1]
            elif pool:
                what = "sums" if isinstance(graph.nodes[pool], SumPool2d) else "values"
                raise UnsupportedNodeError(
                    f"{name}: delays the {what} of {pool} by {late.min()} to {late.max()} steps, and a source may be "
                    f"in several; put the Delay before {pool}, or delay all alike"
                )
            steps = steps + late
        elif isinstance(node, (SumPool2d, *WIRING)) and not keeps_places(graph, name):
            pool = name
    return steps


def keeps_places(graph: SpikingGraph, name: str) -> bool:
    """True for nodes behind which every value is where it was, row-major: Sum, Delay, Flatten, Reshape."""
    return isinstance(graph.nodes[name], (Sum, Delay, Flatten, Reshape))


@dataclass(frozen=True, eq=False)
class _Sides:
    """What drives a layer of neurons beside the chain: ways back from itself, and further ways from its source."""

    beside: tuple[tuple[str, ...], ...] = ()
    recurrent: str = ""
    ways: tuple[tuple[str, ...], ...] = ()


def _sides(graph: SpikingGraph, neuron: str) -> _Sides:
    origins: Mapping[tuple[str, ...], str] = dict(_way(graph, first) for first in graph.sources(neuron))
    back = [way for way, origin in origins.items() if origin == neuron]
    forward = [way for way, origin in origins.items() if origin != neuron]
    if len(back) > 1:
        raise UnsupportedNodeError(
            f"{neuron}: feeds itself back by {' and '.join(_weights(graph, way) for way in back)}; a .net layer has "
            "one matrix for that, so add them"
        )
    for way in back:
        node, late = graph.nodes[_weights(graph, way)], total_delay(graph, way)
        if not isinstance(node, (Linear, Affine)) or late.tolist() != [1]:
            raise UnsupportedNodeError(
                f"{_weights(graph, way)}: {type(node).__name__} feeds {neuron} back after {late.min()} to {late.max()} "
                "steps; a .net file holds a linear layer and 1 step"
            )
    beside: tuple[tuple[str, ...], ...] = ()
    plain = all(
        way
        and all(isinstance(graph.nodes[name], (Delay, Linear)) for name in way)
        and isinstance(graph.nodes[_weights(graph, way)], Linear)
        for way in forward
    )
    if len(forward) > 1 and plain and len({origins[way] for way in forward}) == 1:
        beside = tuple(forward[1:])
    return _Sides(beside, _weights(graph, back[0]) if back else "", (*beside, *back))


def _way(graph: SpikingGraph, first: str) -> tuple[tuple[str, ...], str]:
    """Go back from the source of an edge to neurons or the input; return the nodes passed, first one first, and these.

    Where several ways meet, or weights follow weights, it ends there: the chain will find no way on.
    """
    nodes: list[str] = []
    name, weights = first, 0
    while not isinstance(node := graph.nodes[name], (*NEURON, Input)):
        weights += isinstance(node, WEIGHTED)
        if len(graph.sources(name)) != 1 or len(graph.targets(name)) != 1 or weights > 1:
            break
        nodes.insert(0, name)
        (name,) = graph.sources(name)
    return tuple(nodes), name


def _weights(graph: SpikingGraph, way: tuple[str, ...]) -> str:
    return next((name for name in way if isinstance(graph.nodes[name], WEIGHTED)), way[0] if way else "")


def _chain(graph: SpikingGraph, aside: set[str]) -> list[str]:
    name, names = graph.input, []
    while not isinstance(graph.nodes[name], Output):
        targets = [target for target in graph.targets(name) if target not in aside]
        if len(targets) != 1 or len([source for source in graph.sources(targets[0]) if source not in aside]) != 1:
            raise UnsupportedNodeError(f"{name}: the network branches here; a .net file is a chain of layers")
        (name,) = targets
        names.append(name)
    return names[:-1]
