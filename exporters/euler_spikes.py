"""Does a NIR graph put out spikes, or values? Told from its nodes alone: nir and numpy, no slamp, no torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import nir
import numpy as np

SPIKING = (nir.IF, nir.LIF, nir.CubaLIF)


def carries_spikes(graph: Any) -> bool:
    """True if what leaves a NIR graph is spikes: reshaped, delayed, selected, repeated or concatenated."""
    waiting = [only_node(graph, nir.Output)]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        sources = [source for source, target in graph.edges if target == name]
        if len(sources) != 1 and not _disjoint([graph.nodes[source] for source in sources]):
            return False
        found = [source for source in sources if not isinstance(graph.nodes[source], (*SPIKING, nir.Threshold))]
        if not all(_passes_spikes(graph.nodes[source]) for source in found):
            return False
        waiting += found
    return True


def _passes_spikes(node: Any) -> bool:
    """True for a node that makes zeros and ones out of zeros and ones."""
    ones = isinstance(node, nir.Scale) and bool((np.asarray(node.scale) == 1).all())
    return ones or isinstance(node, (nir.Flatten, nir.Delay)) or _selects(node)


def _selects(node: Any) -> bool:
    """True for a matrix, or kernels without a bias, of zeros and ones, at most one 1 for each output."""
    if not isinstance(node, (nir.Linear, nir.Affine, nir.Conv1d, nir.Conv2d)):
        return False
    rows = np.asarray(node.weight).reshape(node.weight.shape[0], -1)
    return bool(np.isin(rows, (0, 1)).all() and (rows.sum(1) <= 1).all()) and not np.any(getattr(node, "bias", 0))


def _disjoint(nodes: list[Any]) -> bool:
    """True if of several nodes no two reach the same output: selections whose ones lie in other rows or positions."""
    if not nodes or not all(_selects(node) for node in nodes):
        return False
    if len({type(node) for node in nodes}) > 1:
        return False
    return _channels_apart(nodes) or any(_positions_apart(nodes, axis) for axis in range(nodes[0].weight.ndim - 2))


def _channels_apart(nodes: list[Any]) -> bool:
    reached = [np.asarray(node.weight).reshape(node.weight.shape[0], -1).any(1) for node in nodes]
    return len({rows.shape for rows in reached}) == 1 and int(np.sum(reached, 0).max()) <= 1


def _positions_apart(nodes: list[Any], axis: int) -> bool:
    """True if convolutions of one tap and stride 1 move their maps to other places along an axis."""
    spans = []
    for node in nodes:
        taps = np.unique(np.nonzero(node.weight)[2 + axis])
        stepping = isinstance(node.padding, str) or bool(np.any(np.asarray(node.stride) != 1))
        if len(taps) != 1 or stepping or node.input_shape is None:
            return False
        start = int(np.broadcast_to(node.padding, node.weight.ndim - 2)[axis]) - int(taps[0])
        spans.append((start, start + int(np.atleast_1d(node.input_shape)[axis])))
    return all(before[1] <= after[0] for before, after in pairwise(sorted(spans)))


def only_node(graph: Any, kind: type) -> str:
    """Return the name of the one node of a kind; raises ValueError if there are more or none."""
    names = [name for name, node in graph.nodes.items() if isinstance(node, kind)]
    if len(names) != 1:
        raise ValueError(f"graph: found {len(names)} {kind.__name__} nodes; allowed is one")
    return str(names[0])
