"""Parts of a graph whose firing rates are restored together: what one gain scales, and what goes round between."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from slamp.cycles import components
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, WEIGHTED, Input
from slamp.wiring import keeps_channels


@dataclass(frozen=True)
class Block:
    """Layers of neurons whose rates one gain restores.

    Attributes:
        neurons: Spiking layers, in computing order.
        knobs: Nodes whose weight takes the gain: weighted nodes, or normalizations between them and the neurons.
        channels: Gains there are if every output channel gets one of its own; 1 where channels of the knobs are not
            channels of the neurons.
    """

    neurons: tuple[str, ...]
    knobs: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class Region:
    """Nodes that can only be run together, in computing order, and the blocks among them."""

    nodes: tuple[str, ...]
    blocks: tuple[Block, ...]


def regions(
    graph: SpikingGraph, scalable: Collection[str], fixed: Collection[str], tied: Iterable[Sequence[str]]
) -> list[Region]:
    """Divide a graph into regions, sources before targets.

    One gain scales all weights that drive a layer, and all layers that a weight drives. Layers on a cycle get gains of
    their own, but lie in one region. In a chain every region is one weighted node with the neurons it drives.

    Args:
        graph: The network.
        scalable: Normalizations that take a gain in place of the weights before them.
        fixed: Normalizations that take none, so that nothing before them has an effect.
        tied: Nodes that are one parameter, each group in computing order.
    """
    knobs = {neuron: _knobs(graph, neuron, scalable, fixed) for neuron in graph.spiking}
    used = {knob for names in knobs.values() for knob in names}
    groups = [names for names in tied if used.intersection(names)]
    links = {name: set(names) for name, names in knobs.items()}
    for names in groups:  # a ring
        for one, other in zip(names, (*names[1:], names[0]), strict=True):
            links.setdefault(one, set()).add(other)
    blocks = _blocks(graph, knobs, groups)
    found = components(graph.order, lambda name: [*graph.targets(name), *sorted(links.get(name, ()))])
    return [Region(part, tuple(block for block in blocks if block.neurons[0] in part)) for part in found]


def _knobs(graph: SpikingGraph, neuron: str, scalable: Collection[str], fixed: Collection[str]) -> list[str]:
    """Return the nodes nearest before a layer of neurons whose weight takes a gain, in computing order."""
    waiting, seen = [neuron], {neuron}
    found: set[str] = set()
    while waiting:
        for source in graph.sources(waiting.pop()):
            node = graph.nodes[source]
            if source in scalable or isinstance(node, WEIGHTED):
                found.add(source)
            elif source not in seen and source not in fixed and not isinstance(node, (*NEURON, Input)):
                seen.add(source)
                waiting.append(source)
    return [name for name in graph.order if name in found]


def _blocks(graph: SpikingGraph, knobs: Mapping[str, list[str]], tied: Iterable[Sequence[str]]) -> list[Block]:
    pairs = {(neuron, knob) for neuron, names in knobs.items() for knob in names}
    pairs |= {(names[0], name) for names in tied for name in names}
    linked: dict[str, list[str]] = {}
    for one, other in sorted(pairs):
        linked.setdefault(one, []).append(other)
        linked.setdefault(other, []).append(one)
    used = {knob for names in knobs.values() for knob in names}
    blocks = []
    for part in components(graph.order, lambda name: linked.get(name, [])):
        neurons = tuple(name for name in part if knobs.get(name))
        scaled = tuple(name for name in part if name in used)
        if neurons:
            blocks.append(Block(neurons, scaled, _channels(graph, neurons, scaled)))
    return blocks


def _channels(graph: SpikingGraph, neurons: Sequence[str], knobs: Sequence[str]) -> int:
    """Return the channels that the knobs and neurons of a block have in common, each its own; 1 if they do not match.

    Channels are kept apart from knob to neuron by everything but what moves, joins or leaves out some of them.
    """
    counts = {graph.shapes[name][0] for name in knobs}
    if len(counts) > 1 or any(graph.shapes[name][0] % min(counts) for name in neurons):
        return 1
    waiting, seen = list(knobs), set(knobs)
    while waiting:
        name = waiting.pop()
        for target in graph.targets(name):
            node = graph.nodes[target]
            if target in seen or isinstance(node, (*NEURON, *WEIGHTED)):
                continue
            if not keeps_channels(node, graph.shapes[name]):
                return 1
            seen.add(target)
            waiting.append(target)
    return min(counts)
