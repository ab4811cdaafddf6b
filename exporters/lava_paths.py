"""What drives a layer of neurons in a fixed-point graph: weights, the wiring around them, and the layers behind both.

Pools and delays before the weights, and delays behind them, become part of one synapse process of Lava; pure functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from exporters.net_layers import pooled_kernel, stretch_matrix
from exporters.net_wiring import total_delay
from slamp.arithmetic import common_exponent
from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    NEURON,
    READOUT,
    WEIGHTED,
    Affine,
    Conv2d,
    Delay,
    Flatten,
    Input,
    Linear,
    SumPool2d,
    Weighted,
    frozen_array,
)


@dataclass(frozen=True, eq=False)
class Way:
    """How the input or a layer of neurons reaches a weighted node.

    Attributes:
        source: Name of the input or of the layer.
        wiring: Pools, Flattens and Delays between, in computing order.
        before: Delay in steps, (1,) or one per source, (sources,).
    """

    source: str
    wiring: tuple[str, ...]
    before: np.ndarray


@dataclass(frozen=True, eq=False)
class Drive:
    """A weighted node that drives a layer of neurons.

    Attributes:
        weighted: Its name.
        flattened: True if the sums of a convolution are flattened before the neurons.
        behind: Delay behind the weights in steps, (1,) or one per target, (targets,).
        ways: What reaches it; several are summed.
    """

    weighted: str
    flattened: bool
    behind: np.ndarray
    ways: tuple[Way, ...]


def drives_of(graph: SpikingGraph, neuron: str) -> list[Drive]:
    """Return everything that drives a layer of neurons.

    Raises:
        UnsupportedNodeError: Something else than weights drives it, or something else than neurons reaches the weights.
    """
    found = []
    for first in graph.sources(neuron):
        for name, wiring in _back(graph, first, (Delay, Flatten)):
            node = graph.nodes[name]
            if not isinstance(node, WEIGHTED):
                raise UnsupportedNodeError(f"{name}: {type(node).__name__} before neurons has no process of Lava")
            ways = tuple(way for source in graph.sources(name) for way in _ways(graph, source, name))
            if len(ways) > 1 and bool((node.weight % 1 != 0).any()):
                raise UnsupportedNodeError(
                    f"{name}: has fractional weights and sums {' and '.join(way.source for way in ways)} before it "
                    "rounds, where Lava rounds each; use whole weights, or a node of weights for each"
                )
            flattened = any(isinstance(graph.nodes[passed], Flatten) for passed in wiring)
            found.append(Drive(name, flattened, total_delay(graph, wiring), ways))
    return found


def _ways(graph: SpikingGraph, first: str, weighted: str) -> Iterator[Way]:
    for source, wiring in _back(graph, first, (Delay, Flatten, SumPool2d)):
        node = graph.nodes[source]
        if isinstance(node, READOUT) or not isinstance(node, (Input, *NEURON)):
            raise UnsupportedNodeError(f"{source}: {type(node).__name__} before {weighted} has no process of Lava")
        yield Way(source, wiring, total_delay(graph, wiring))


def _back(
    graph: SpikingGraph, name: str, kinds: tuple[type, ...], behind: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Go back over nodes of some kinds, along every edge; yield what stands before them, and them in order."""
    if not isinstance(graph.nodes[name], kinds):
        yield name, behind
        return
    if name in behind:
        raise UnsupportedNodeError(f"{name}: lies on a cycle without neurons; put neurons there")
    for source in graph.sources(name):
        yield from _back(graph, source, kinds, (name, *behind))


def synapse_weight(graph: SpikingGraph, drive: Drive, way: Way, *, delayed: bool) -> Conv2d | np.ndarray:
    """Return what pools and weights do: one convolution where Lava's Conv does the same, else a matrix.

    Args:
        graph: The graph.
        drive: The weights.
        way: What reaches them.
        delayed: True if a delay belongs to the synapse, which Lava's Conv has not.

    Returns:
        A convolution in whole numbers with padding in numbers, its bias left out; or effective weights, float,
        (targets, sources), both flattened in torch order.

    Raises:
        UnsupportedNodeError: The matrix would be too large.
    """
    node, shapes = graph.weighted[drive.weighted], graph.shapes
    passed = [name for name in way.wiring if not isinstance(graph.nodes[name], Delay)]
    pools = [name for name in passed if isinstance(graph.nodes[name], SumPool2d)]
    whole = bool((node.weight % 1 == 0).all())
    spatial = not delayed and not drive.flattened and len(pools) == len(passed)
    if isinstance(node, Conv2d) and whole and spatial:
        kernel = pooled_kernel(graph, node, pools, shapes[way.source], shapes[drive.weighted])
        if kernel is not None:
            return replace(kernel, bias=None)
    if isinstance(node, (Linear, Affine)) and not pools:
        return node.weight
    scale = 1.0 if whole else 2.0 ** -common_exponent(node.weight[node.weight != 0])
    bare = graph.with_nodes({drive.weighted: _scaled(node, scale)})
    matrix: np.ndarray = stretch_matrix(bare, way.source, [*passed, drive.weighted]) / np.float32(scale)
    return matrix


def _scaled(node: Weighted, scale: float) -> Weighted:
    """Return the node without its bias and with whole weights: what rounds is the sum, not the single weight."""
    weight = frozen_array(node.weight * np.float32(scale))
    return Linear(weight) if isinstance(node, (Linear, Affine)) else replace(node, weight=weight, bias=None)
