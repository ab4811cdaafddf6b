"""What drives a layer of neurons in a fixed-point graph: weights, the wiring around them, and the layers behind both.

Pools, delays and nodes that move values, before the weights or behind them, become part of one synapse process of Lava.
A `Sum` is no process: what it adds arrives by a synapse process each, and integers add up in any order. Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from exporters.net_layers import pooled_kernel, stretch_matrix
from exporters.net_wiring import keeps_places, total_delay
from slamp.arithmetic import common_exponent
from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    NEURON,
    READOUT,
    WEIGHTED,
    WIRING,
    Affine,
    Conv2d,
    Delay,
    Input,
    Linear,
    Sum,
    SumPool2d,
    Weighted,
    frozen_array,
)
from slamp.wiring import wiring_function


@dataclass(frozen=True, eq=False)
class Way:
    """How the input or a layer of neurons reaches a weighted node.

    Attributes:
        source: Name of the input or of the layer.
        wiring: Pools, Sums, Delays and what moves values between, in computing order.
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
        wiring: Nodes that move its values before the neurons, in computing order.
        behind: Delay behind the weights in steps, (1,) or one per target, (targets,).
        ways: What reaches it; several are summed.
    """

    weighted: str
    wiring: tuple[str, ...]
    behind: np.ndarray
    ways: tuple[Way, ...]


def drives_of(graph: SpikingGraph, neuron: str) -> list[Drive]:
    """Return everything that drives a layer of neurons.

    Raises:
        UnsupportedNodeError: Something else than weights drives it, or something else than neurons reaches the weights.
    """
    found = []
    for first in graph.sources(neuron):
        for name, wiring in _back(graph, first, (Delay, Sum, *WIRING)):
            node = graph.nodes[name]
            if not isinstance(node, WEIGHTED):
                raise UnsupportedNodeError(
                    f"{name}: {type(node).__name__} before neurons has no process of Lava; put weights there"
                )
            ways = tuple(way for source in graph.sources(name) for way in _ways(graph, source, name))
            if len(ways) > 1 and bool((node.weight % 1 != 0).any()):
                raise UnsupportedNodeError(
                    f"{name}: has fractional weights and sums {' and '.join(way.source for way in ways)} before it "
                    "rounds, where Lava rounds each; use whole weights, or a node of weights for each"
                )
            moves = tuple(passed for passed in wiring if isinstance(graph.nodes[passed], WIRING))
            found.append(Drive(name, moves, _delay_behind(graph, wiring), ways))
    return found


def _ways(graph: SpikingGraph, first: str, weighted: str) -> Iterator[Way]:
    for source, wiring in _back(graph, first, (Delay, Sum, SumPool2d, *WIRING)):
        node = graph.nodes[source]
        if isinstance(node, READOUT) or not isinstance(node, (Input, *NEURON)):
            raise UnsupportedNodeError(
                f"{source}: {type(node).__name__} before {weighted} has no process of Lava; put neurons there, or a "
                "sum pool"
            )
        yield Way(source, wiring, total_delay(graph, wiring))


def _delay_behind(graph: SpikingGraph, wiring: tuple[str, ...]) -> np.ndarray:
    """Sum the delays behind weights: int64, (1,) if all values wait equally, else one per value at the end."""
    moving = [name for name in wiring if isinstance(graph.nodes[name], WIRING) and not keeps_places(graph, name)]
    for name in wiring[: wiring.index(moving[-1])] if moving else ():
        node = graph.nodes[name]
        if isinstance(node, Delay) and bool((node.steps != node.steps.flat[0]).any()):
            raise UnsupportedNodeError(
                f"{name}: delays values by {node.steps.min():g} to {node.steps.max():g} steps that {moving[-1]} moves "
                "afterwards; put the Delay behind it, or delay all alike"
            )
    return total_delay(graph, [name for name in wiring if name not in moving])


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
    passed = [name for name in way.wiring if not isinstance(graph.nodes[name], (Delay, Sum))]
    moved = [name for name in (*passed, *drive.wiring) if not keeps_places(graph, name)]
    pools = [name for name in passed if isinstance(graph.nodes[name], SumPool2d)]
    whole = bool((node.weight % 1 == 0).all())
    spatial = not delayed and not drive.wiring and len(pools) == len(passed)
    if isinstance(node, Conv2d) and whole and spatial:
        kernel = pooled_kernel(graph, node, pools, shapes[way.source], shapes[drive.weighted])
        if kernel is not None:
            return replace(kernel, bias=None)
    if isinstance(node, (Linear, Affine)) and not moved:
        return node.weight
    scale = 1.0 if whole else 2.0 ** -common_exponent(node.weight[node.weight != 0])
    bare = graph.with_nodes({drive.weighted: _scaled(node, scale)})
    matrix: np.ndarray = stretch_matrix(bare, way.source, [*passed, drive.weighted, *drive.wiring]) / np.float32(scale)
    return matrix


def _scaled(node: Weighted, scale: float) -> Weighted:
    """Return the node without its bias and with whole weights: what rounds is the sum, not the single weight."""
    weight = frozen_array(node.weight * np.float32(scale))
    return Linear(weight) if isinstance(node, (Linear, Affine)) else replace(node, weight=weight, bias=None)


def moved(graph: SpikingGraph, wiring: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Return values of one step behind nodes that move them; zeros where nothing is moved to."""
    x = torch.tensor(values)[None]
    for name in wiring:
        node = graph.nodes[name]
        assert isinstance(node, WIRING)
        x = wiring_function(node)(x)
    found: np.ndarray = x[0].numpy()
    return found
