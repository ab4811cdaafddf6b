"""Which nodes carry spikes, as they are or pooled, and how many events leave each of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from slamp.graph import SpikingGraph
from slamp.nodes import (
    NEURON,
    POOLS,
    WEIGHTED,
    WIRING,
    AdaptiveAvgPool2d,
    AvgPool2d,
    Delay,
    MaxPool2d,
    Neuron,
    Node,
    Shape,
    Sum,
    SumPool2d,
)
from slamp.simulate import concatenates
from slamp.wiring import adds_nothing, wiring_function

EventFunction = Callable[[torch.Tensor], torch.Tensor]


def spike_fed(graph: SpikingGraph, *, input_is_spikes: bool) -> frozenset[str]:
    """Return the nodes whose values are spikes, moved, added, delayed or pooled: every event of theirs is a spike."""
    return _carrying(graph, lambda name, node: _passes_spikes(node), input_is_spikes=input_is_spikes)


def binary(graph: SpikingGraph, *, input_is_spikes: bool) -> frozenset[str]:
    """Return the nodes whose values are 0 and 1: spikes, moved or delayed, but neither added nor averaged."""

    def passes(name: str, node: Node) -> bool:
        if not (_passes_spikes(node) and isinstance(node, (*WIRING, Sum, Delay, MaxPool2d))):
            return False
        sources = graph.sources(name)
        return len(sources) == 1 or concatenates(graph, sources)

    return _carrying(graph, passes, input_is_spikes=input_is_spikes)


def driven_neurons(graph: SpikingGraph, name: str) -> dict[str, Neuron]:
    """Return the layers of neurons that the output of a node reaches without passing a weight, in computing order."""
    waiting, seen = [name], {name}
    found: set[str] = set()
    while waiting:
        for target in graph.targets(waiting.pop()):
            if isinstance(graph.nodes[target], NEURON):
                found.add(target)
            elif target not in seen and not isinstance(graph.nodes[target], WEIGHTED):
                seen.add(target)
                waiting.append(target)
    return {each: node for each in graph.order if each in found and isinstance(node := graph.nodes[each], NEURON)}


def event_function(node: Node, shape: Shape) -> EventFunction | None:
    """Return how event counts (steps, *features) pass a node whose inputs have ``shape``.

    Pools merge spikes, they do not scale them: a spike counts once in every window it lies in. None for nodes that pass
    no spikes on, and for pools that take maxima, out of which comes one event where any went in.
    """
    match node:
        case SumPool2d():
            return lambda events: F.avg_pool2d(events, node.kernel_size, node.stride, divisor_override=1)
        case AvgPool2d():
            return lambda events: F.avg_pool2d(events, node.kernel_size, node.stride, node.padding, divisor_override=1)
        case AdaptiveAvgPool2d():
            sides = [_window_sides(size, count) for size, count in zip(shape[1:], node.output_size, strict=True)]
            cells = sides[0][:, None] * sides[1]
            return lambda events: (F.adaptive_avg_pool2d(events, node.output_size) * cells.to(events.device)).round()
        case Sum():
            return lambda events: events
        case _ if isinstance(node, WIRING) and adds_nothing(node):
            return wiring_function(node)
        case _:
            return None


def _carrying(graph: SpikingGraph, passes: Callable[[str, Node], bool], *, input_is_spikes: bool) -> frozenset[str]:
    """Return the largest set of nodes that start from spikes and pass on only what members of the set bring."""
    starts = set(graph.spiking) | ({graph.input} if input_is_spikes else set())
    found = starts | {name for name, node in graph.nodes.items() if passes(name, node)}
    while lost := {name for name in found - starts if not found.issuperset(graph.sources(name))}:
        found -= lost
    return frozenset(found)


def _passes_spikes(node: Node) -> bool:
    return isinstance(node, (*POOLS, Sum, Delay)) or (isinstance(node, WIRING) and adds_nothing(node))


def _window_sides(size: int, count: int) -> torch.Tensor:
    """Lengths of the windows torch chooses along one axis."""
    return torch.tensor([-(-(place + 1) * size // count) - place * size // count for place in range(count)])
