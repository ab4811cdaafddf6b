"""A layer of neurons and what drives it, on the way from a float graph to integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from slamp.delays import later
from slamp.errors import UnsupportedNodeError
from slamp.fixed_dynamics import fixed_function
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    NEURON,
    READOUT,
    WEIGHTED,
    AvgPool2d,
    Delay,
    Flatten,
    Neuron,
    Node,
    SumPool2d,
    Weighted,
    frozen_array,
)
from slamp.raster import SpikeRaster
from slamp.simulate import Trace


@dataclass(frozen=True, eq=False)
class DrivenLayer:
    """A layer of neurons and the weights that drive it, in the order of its edges.

    Attributes:
        name: Of the neurons.
        node: The neurons.
        weighted: What drives them; mean pools before it are folded in.
        sources: By weighted node, the neurons (or the input) it reads.
        chains: By weighted node, the pools, Flattens and Delays before it, first one first.
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
    for first in graph.sources(name):
        before, behind = first, list[str]()
        while isinstance(graph.nodes[before], Delay):
            behind.insert(0, before)
            before = _only(graph, before)
        driver = graph.nodes[before]
        if not isinstance(driver, WEIGHTED):
            raise UnsupportedNodeError(
                f"{before}: {type(driver).__name__} drives {name} without weights; put a linear layer or convolution "
                "between them"
            )
        gain, source = 1.0, _only(graph, before)
        chain: list[str] = []
        while isinstance(pool := graph.nodes[source], (AvgPool2d, SumPool2d, Flatten, Delay)):
            if isinstance(pool, AvgPool2d):
                if pool.padding != (0, 0):
                    raise UnsupportedNodeError(f"{source}: mean pooling with padding has no integer counterpart")
                gain /= pool.kernel_size[0] * pool.kernel_size[1]
            chain.insert(0, source)
            source = _only(graph, source)
        if isinstance(graph.nodes[source], (*WEIGHTED, *READOUT)):
            raise UnsupportedNodeError(
                f"{source}: {type(graph.nodes[source]).__name__} feeds {before} without spikes; put neurons between"
            )
        weighted[before] = driver if gain == 1.0 else replace(driver, weight=frozen_array(driver.weight * gain))
        sources[before] = source
        chains[before], late[before] = tuple(chain), tuple(behind)
        gains[before] = gain
    return DrivenLayer(name, node, weighted, sources, chains, late, gains)


def _only(graph: SpikingGraph, name: str) -> str:
    sources = graph.sources(name)
    if len(sources) != 1:
        raise UnsupportedNodeError(
            f"{name}: adds {' and '.join(sources)} before its weights; give each its own weights"
        )
    return sources[0]


def check_neuron(name: str, node: Neuron) -> None:
    """Raise `UnsupportedNodeError` if neurons have no integer counterpart; the message says why."""
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
    """Return spikes of a neuron layer or the input, float32 (time, batch, *features)."""
    if source == graph.input:
        return sample.data.cpu().to(torch.float32)  # spikes, or whole numbers of a graded input
    spikes = traces[source].spikes
    assert spikes is not None
    return spikes.cpu().to(torch.float32)


def driven(layer: DrivenLayer, graph: SpikingGraph, name: str, integer: Node, values: torch.Tensor) -> torch.Tensor:
    """Return what one weighted node adds to a layer, (time, batch, *neurons), in whole numbers.

    Args:
        layer: The layer.
        graph: The float graph.
        name: The weighted node.
        integer: That node in integers.
        values: What its source sends, (time, batch, *features).
    """
    x, bound = values, float(values.abs().max())
    for before in layer.chains[name]:
        node = graph.nodes[before]
        if isinstance(node, Delay):
            x = later(x, node)
            continue
        pool = SumPool2d(node.kernel_size, node.stride) if isinstance(node, AvgPool2d) else node
        x = fixed_function(pool, bound, where=before)(x.flatten(0, 1))
        x = x.reshape(*values.shape[:2], *x.shape[1:])
        if isinstance(pool, SumPool2d):
            bound *= pool.kernel_size[0] * pool.kernel_size[1]
    sums = fixed_function(integer, bound, where=name)(x.flatten(0, 1))
    sums = sums.reshape(*values.shape[:2], *sums.shape[1:])
    for behind in layer.late[name]:
        node = graph.nodes[behind]
        assert isinstance(node, Delay)
        sums = later(sums, node)
    return sums
