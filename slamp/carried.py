"""Which nodes pass spikes on, which of them as they are, 0 and 1, and how many pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from slamp.delays import holds_back
from slamp.dynamics import added, edge_values
from slamp.graph import SpikingGraph
from slamp.nodes import (
    NEURON,
    SPIKING,
    WEIGHTED,
    WIRING,
    AdaptiveAvgPool2d,
    AvgPool2d,
    Delay,
    Input,
    MaxPool2d,
    Neuron,
    Node,
    Output,
    Place,
    Sum,
    SumPool2d,
)
from slamp.shapes import adaptive_windows
from slamp.wiring import adds_nothing, apart, wiring_function


@dataclass(frozen=True)
class Carried:
    """Names of nodes by what leaves them.

    Attributes:
        events: Spikes, perhaps moved, delayed, repeated, added to others or merged by a pool.
        binary: Of these, those with nothing but 0 and 1: no feature has two spikes in a step.
    """

    events: frozenset[str]
    binary: frozenset[str]


def carried(graph: SpikingGraph, *, input_is_spikes: bool) -> Carried:
    """Follow spikes through a graph."""
    held = [name for name, node in graph.nodes.items() if holds_back(node)]
    events, binary = set(held), set(held)  # their sources may come later: assumed until found otherwise
    while True:
        found = _passed(graph, input_is_spikes, events, binary)
        wrong_events = [name for name in held if name in events and not found.events.issuperset(graph.sources(name))]
        wrong = [
            name for name in held if name in binary and not brings_binary(graph, graph.sources(name), found.binary)
        ]
        if not wrong_events and not wrong:
            return found
        events -= set(wrong_events)
        binary -= set(wrong)


def brings_binary(graph: SpikingGraph, sources: Sequence[str], binary: Collection[str]) -> bool:
    """True if edges from ``sources`` together bring 0 and 1: one edge, or several that concatenate."""
    return all(source in binary for source in sources) and (len(sources) == 1 or concatenates(graph, sources))


def concatenates(graph: SpikingGraph, sources: Sequence[str]) -> bool:
    """True if nodes are `Place` nodes of which no two meet, so that their sum is a concatenation."""
    if not all(isinstance(graph.nodes[source], Place) for source in sources):
        return False
    return apart([(graph.nodes[source], graph.shapes[graph.sources(source)[0]]) for source in sources])


def arriving(events: Mapping[str, torch.Tensor], sources: Sequence[str]) -> torch.Tensor | None:
    """Add the events of all sources; None if one of them sends something else."""
    return added(*edge_values(events, sources)) if all(source in events for source in sources) else None


def routed(node: Node, events: torch.Tensor) -> torch.Tensor:
    """Carry event counts (steps, *features) through a node: pools merge spikes, they do not scale them."""
    match node:
        case SumPool2d():
            return F.avg_pool2d(events, node.kernel_size, node.stride, divisor_override=1)
        case AvgPool2d():
            return F.avg_pool2d(events, node.kernel_size, node.stride, node.padding, divisor_override=1)
        case AdaptiveAvgPool2d():
            rows, columns = (
                torch.tensor([stop - start for start, stop in adaptive_windows(size, wanted)], device=events.device)
                for size, wanted in zip(events.shape[-2:], node.output_size, strict=True)
            )
            means = F.adaptive_avg_pool2d(events.double(), node.output_size)
            return (means * rows[:, None] * columns).round().to(events.dtype)
        case _ if isinstance(node, WIRING):
            return wiring_function(node)(events)
        case _:
            return events


def next_neuron(graph: SpikingGraph, name: str) -> str | None:
    """Return the layer of neurons nearest behind a weighted node; None if its output reaches none without weights."""
    waiting, seen = [name], {name}
    while waiting:
        for target in graph.targets(waiting.pop(0)):
            node = graph.nodes[target]
            if isinstance(node, NEURON):
                return target
            if target not in seen and not isinstance(node, WEIGHTED):
                seen.add(target)
                waiting.append(target)
    return None


def driven_neurons(graph: SpikingGraph, name: str) -> dict[str, Neuron]:
    """Return all layers of neurons that the output of a node reaches without passing a weight, in computing order."""
    waiting, seen = [name], {name}
    found: set[str] = set()
    while waiting:
        for target in graph.targets(waiting.pop()):
            node = graph.nodes[target]
            if isinstance(node, NEURON):
                found.add(target)
            elif target not in seen and not isinstance(node, WEIGHTED):
                seen.add(target)
                waiting.append(target)
    return {each: node for each in graph.order if each in found and isinstance(node := graph.nodes[each], NEURON)}


def shown_neurons(graph: SpikingGraph) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return which features of the output are which neurons.

    Returns:
        By spiking layer, flat indices into the output and, as many, into the layer. Empty if the output is something
        else than spikes that were moved, repeated or concatenated.
    """
    if graph.output not in carried(graph, input_is_spikes=False).binary:
        return {}
    offsets, end = {}, 1  # every neuron of the network gets a number of its own, and 0 is nobody
    for name in graph.spiking:
        offsets[name], end = end, end + math.prod(graph.shapes[name])

    def numbers(name: str) -> torch.Tensor | None:
        node, shape = graph.nodes[name], graph.shapes[name]
        if name in offsets:
            return torch.arange(math.prod(shape), dtype=torch.float64).reshape(1, *shape) + offsets[name]
        if not isinstance(node, (Sum, Output, *WIRING)):
            return None
        parts = [numbers(source) for source in graph.sources(name)]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        x = added(known[0], known[1:])
        return wiring_function(node)(x) if isinstance(node, WIRING) else x

    leaving = numbers(graph.output)
    if leaving is None:
        return {}
    flat = leaving.numpy().reshape(-1).astype(np.int64)
    found = {}
    for name, first in offsets.items():
        at = np.flatnonzero((flat >= first) & (flat < first + math.prod(graph.shapes[name])))
        if at.size:
            found[name] = at, flat[at] - first
    return found


def _passed(graph: SpikingGraph, input_is_spikes: bool, events: set[str], binary: set[str]) -> Carried:
    events, binary = set(events), set(binary)
    for name in graph.order:
        node, sources = graph.nodes[name], graph.sources(name)
        if holds_back(node):
            continue
        if isinstance(node, SPIKING) or (isinstance(node, Input) and input_is_spikes):
            spikes, ones = True, True
        elif isinstance(node, (SumPool2d, AvgPool2d, AdaptiveAvgPool2d)):
            spikes, ones = events.issuperset(sources), False
        elif isinstance(node, MaxPool2d):
            spikes = ones = brings_binary(graph, sources, binary)
        elif isinstance(node, (Delay, Sum, Output)) or (isinstance(node, WIRING) and adds_nothing(node)):
            spikes, ones = events.issuperset(sources), brings_binary(graph, sources, binary)
        else:
            continue
        events |= {name} if spikes else set()
        binary |= {name} if ones else set()
    return Carried(frozenset(events), frozenset(binary))
