"""A layer of neurons and what drives it, on the way from a float graph to integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from slamp.arithmetic import fixed_point_problems
from slamp.delays import later
from slamp.dynamics import added
from slamp.errors import UnsupportedNodeError
from slamp.fixed_dynamics import fixed_function
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LSNN,
    NEURON,
    READOUT,
    WEIGHTED,
    AvgPool2d,
    Delay,
    Flatten,
    Input,
    LIFRefrac,
    Neuron,
    Node,
    Reshape,
    Sum,
    SumPool2d,
    Weighted,
    frozen_array,
)
from slamp.raster import SpikeRaster
from slamp.simulate import Trace

IN_ORDER = (AvgPool2d, SumPool2d, Flatten, Reshape, Delay)  # features stay where they are, or merge with neighbors


@dataclass(frozen=True, eq=False)
class DrivenLayer:
    """A layer of neurons and the weights that drive it, in the order of its edges.

    Attributes:
        name: Of the neurons.
        node: The neurons.
        weighted: What drives them; mean pools before it are folded in.
        sources: By weighted node, what it reads: neurons, the input, or a node that moves or adds up their spikes.
        chains: By weighted node, what lies between, first one first: pools of sums or means, Delays, Flattens.
        late: By weighted node, the Delays between it and the neurons, first one first.
        gains: By weighted node, what its mean pools multiply.
    """

    name: str
    node: Neuron
    weighted: Mapping[str, Weighted]
    sources: Mapping[str, str]
    chains: Mapping[str, tuple[str, ...]]
    late: Mapping[str, tuple[str, ...]]
    gains: Mapping[str, float]


def driven_layer(graph: SpikingGraph, name: str) -> DrivenLayer:
    """Return what drives a layer of neurons.

    Raises:
        UnsupportedNodeError: Something on the way has no integer counterpart; the message names it.
    """
    node = graph.nodes[name]
    assert isinstance(node, NEURON)
    check_neuron(name, node)
    weighted: dict[str, Weighted] = {}
    sources: dict[str, str] = {}
    chains: dict[str, tuple[str, ...]] = {}
    gains: dict[str, float] = {}
    late: dict[str, tuple[str, ...]] = {}
    for before, behind in _drivers(graph, name, ()):
        driver = graph.nodes[before]
        if not isinstance(driver, WEIGHTED):
            raise UnsupportedNodeError(
                f"{before}: {type(driver).__name__} drives {name} without weights; put a linear layer or convolution "
                "between them"
            )
        if before in weighted:
            raise UnsupportedNodeError(f"{before}: drives {name} in two ways; give each its own weights")
        source = _only(graph, before)
        gain = _gain(graph, source, before, ())
        chain: list[str] = []
        while isinstance(graph.nodes[source], IN_ORDER):
            chain.insert(0, source)
            source = _only(graph, source)
        weighted[before] = driver if gain == 1.0 else replace(driver, weight=frozen_array(driver.weight * gain))
        sources[before] = source
        chains[before], late[before] = tuple(chain), behind
        gains[before] = gain
    return DrivenLayer(name, node, weighted, sources, chains, late, gains)


def _drivers(graph: SpikingGraph, name: str, behind: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Go back from a layer over Delays and Sums; yield what stands before them, and the Delays, first one first."""
    for source in graph.sources(name):
        node = graph.nodes[source]
        if isinstance(node, (Delay, Sum)):
            if source in behind or len(behind) > len(graph.nodes):
                raise UnsupportedNodeError(f"{source}: lies on a cycle without neurons; put neurons there")
            yield from _drivers(graph, source, (source, *behind))
        else:
            yield source, tuple(late for late in behind if isinstance(graph.nodes[late], Delay))


def _gain(graph: SpikingGraph, name: str, weighted: str, behind: tuple[str, ...]) -> float:
    """Return what mean pools between spikes and ``name`` multiply; refuse what has no integer counterpart."""
    node = graph.nodes[name]
    if isinstance(node, (*WEIGHTED, *READOUT)):
        raise UnsupportedNodeError(
            f"{name}: {type(node).__name__} feeds {weighted} without spikes; put neurons between"
        )
    if isinstance(node, (Input, *NEURON)):
        return 1.0
    if name in behind:
        raise UnsupportedNodeError(f"{name}: lies on a cycle without neurons; put neurons there")
    if problem := next(fixed_point_problems(name, node), "") if not isinstance(node, AvgPool2d) else "":
        raise UnsupportedNodeError(problem)
    gains = [_gain(graph, source, weighted, (name, *behind)) for source in graph.sources(name)]
    if len(set(gains)) > 1:
        raise UnsupportedNodeError(f"{name}: adds the means of pools of different sizes; give each its own weights")
    if not isinstance(node, AvgPool2d):
        return gains[0]
    if node.padding != (0, 0):
        raise UnsupportedNodeError(f"{name}: mean pooling with padding has no integer counterpart")
    return gains[0] / (node.kernel_size[0] * node.kernel_size[1])


def _only(graph: SpikingGraph, name: str) -> str:
    sources = graph.sources(name)
    if len(sources) != 1:
        raise UnsupportedNodeError(
            f"{name}: adds {' and '.join(sources)} before its weights; give each its own weights"
        )
    return sources[0]


def check_neuron(name: str, node: Neuron) -> None:
    """Raise `UnsupportedNodeError` if neurons have no integer counterpart; the message says why."""
    if isinstance(node, LIFRefrac):
        raise UnsupportedNodeError(
            f"{name}: is LIFRefrac; fixed point knows no refractory period; train with LIFCell, or keep the float graph"
        )
    if isinstance(node, LSNN):
        raise UnsupportedNodeError(
            f"{name}: is LSNN; fixed point knows no adaptive threshold; train with LIFCell, or keep the float graph"
        )
    if isinstance(node, READOUT):
        if bool((node.v_leak != 0).any()):
            raise UnsupportedNodeError(f"{name}: v_leak is {node.v_leak.flat[0]:g}; a readout on Loihi leaks to 0")
        return
    if node.reset != "value":
        raise UnsupportedNodeError(f"{name}: resets by subtraction, and Loihi resets to 0; train with reset to v_reset")
    if not isinstance(node, IF) and bool((node.v_leak != node.v_reset).any()):
        index = tuple(int(axis) for axis in np.argwhere(node.v_leak != node.v_reset)[0])
        raise UnsupportedNodeError(
            f"{name}: v_leak{list(index)} is {node.v_leak[index]:g} and v_reset {node.v_reset[index]:g}; Loihi starts "
            "where it resets to, so the two must be equal"
        )
    if not isinstance(node, IF) and bool((node.decay_mem == 0).any()):
        raise UnsupportedNodeError(f"{name}: decay_mem is 0, so nothing reaches the membrane; use IF neurons")


def spikes_of(graph: SpikingGraph, source: str, sample: SpikeRaster, traces: Mapping[str, Trace]) -> torch.Tensor:
    """Return what a source of a `DrivenLayer` sends in whole numbers, float32 (time, batch, *features)."""
    node = graph.nodes[source]
    if source == graph.input:
        return sample.data.cpu().to(torch.float32)  # spikes, or whole numbers of a graded input
    if isinstance(node, NEURON):
        spikes = traces[source].spikes
        assert spikes is not None
        return spikes.cpu().to(torch.float32)
    first, *more = (spikes_of(graph, before, sample, traces) for before in graph.sources(source))
    return _passed(source, node, added(first, more)).to(torch.float32)


def driven(layer: DrivenLayer, graph: SpikingGraph, name: str, integer: Node, values: torch.Tensor) -> torch.Tensor:
    """Return what one weighted node adds to a layer, (time, batch, *neurons), in whole numbers.

    Args:
        layer: The layer.
        graph: The float graph.
        name: The weighted node.
        integer: That node in integers.
        values: What its source sends, (time, batch, *features).
    """
    x = values
    for before in layer.chains[name]:
        x = _passed(before, graph.nodes[before], x)
    x = _passed(name, integer, x)
    for behind in layer.late[name]:
        x = _passed(behind, graph.nodes[behind], x)
    return x


def _passed(name: str, node: Node, x: torch.Tensor) -> torch.Tensor:
    """Run whole numbers (time, batch, *features) through a node; mean pools add up, their gain is in the weights."""
    if isinstance(node, Delay):
        return later(x, node)
    pool = SumPool2d(node.kernel_size, node.stride) if isinstance(node, AvgPool2d) else node
    passed = fixed_function(pool, float(x.abs().max()), where=name)(x.flatten(0, 1))
    return passed.reshape(*x.shape[:2], *passed.shape[1:])
