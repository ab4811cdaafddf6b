"""Fold batch normalization into the weights before it: an explicit step, because it moves float rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import SPIKING, Affine, Conv1d, Conv2d, Linear, Node, Scale, Weighted, frozen_array
from slamp.raster import SpikeRaster
from slamp.simulate import stream


@dataclass(frozen=True, eq=False)
class Folding:
    """A folded graph and what folding changed.

    Attributes:
        graph: The graph without the folded `Scale` nodes.
        folded: Names of the nodes that were folded away.
        cells: Spike cells compared between the graphs before and after, every spiking layer, step and sample.
        differing: Cells that spike otherwise, because sums are rounded in another order.
    """

    graph: SpikingGraph
    folded: tuple[str, ...]
    cells: int
    differing: int


def fold_batchnorm(graph: SpikingGraph, raster: SpikeRaster) -> Folding:
    """Multiply every `Scale` into the weighted node before it and add its shift to the bias.

    A `Scale` without a shift (a multiplication by constants) that follows no weighted node, or one that feeds other
    nodes too, stays. Products are computed in float64 and rounded once. The effect is measured on ``raster`` and
    reported.

    Raises:
        UnsupportedNodeError: A `Scale` that has a shift does not directly follow a weighted node.
    """
    nodes: dict[str, Node] = dict(graph.nodes)
    edges = list(graph.edges)
    folded: list[str] = []
    for name in graph.order:
        scale = nodes[name]
        if not isinstance(scale, Scale):
            continue
        (before,) = [source for source, target in edges if target == name]
        weighted = nodes[before]
        if not isinstance(weighted, (Linear, Affine, Conv1d, Conv2d)) or len(graph.targets(before)) != 1:
            if not scale.shift.any():
                continue
            raise UnsupportedNodeError(
                f"{name}: Scale follows {type(weighted).__name__} {before!r}; allowed is a linear or convolution layer "
                "that feeds nothing else; move the batch normalization behind one"
            )
        del nodes[name]
        folded.append(name)
        nodes[before] = _folded(weighted, scale)
        edges = [edge for edge in edges if edge[1] != name]
        edges = [(before, target) if source == name else (source, target) for source, target in edges]
    result = SpikingGraph(
        nodes, tuple(edges), graph.dt, graph.arithmetic, graph.parameters, graph.device, readout=graph.readout
    )
    cells, differing = _effect(graph, result, raster) if folded else (0, 0)
    return Folding(result, tuple(folded), cells, differing)


def _folded(node: Weighted, scale: Scale) -> Node:
    factor = scale.scale.astype(np.float64)
    weight = frozen_array(node.weight * factor.reshape(-1, *[1] * (node.weight.ndim - 1)))
    old = None if isinstance(node, Linear) else node.bias
    bias = frozen_array(scale.shift.astype(np.float64) + (0.0 if old is None else old * factor))
    if isinstance(node, (Linear, Affine)):
        return Affine(weight, bias)
    return type(node)(weight, bias, node.stride, node.padding, node.dilation, node.groups)


def _effect(before: SpikingGraph, after: SpikingGraph, raster: SpikeRaster) -> tuple[int, int]:
    cells = differing = 0
    names = [name for name, node in before.nodes.items() if isinstance(node, SPIKING)]
    for old, new in zip(stream(before, raster), stream(after, raster), strict=True):
        for name in names:
            cells += old.values[name].numel()
            differing += int((old.values[name] != new.values[name]).sum())
    return cells, differing
