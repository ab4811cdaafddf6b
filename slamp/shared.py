"""Shared weights: weighted nodes behind which the same module parameter stands, which is pruned as one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slamp.errors import GraphError
from slamp.graph import SpikingGraph
from slamp.nodes import Weighted


def uses_of(graph: SpikingGraph) -> dict[str, tuple[str, ...]]:
    """Return all uses of every weight, by the first of them in computing order; a weight of its own has one use.

    Raises:
        GraphError: Uses of one parameter hold different weights.
    """
    first: dict[str, str] = {}
    uses: dict[str, list[str]] = {}
    for name, node in graph.weighted.items():
        parameter = graph.parameters.get(name)
        leader = name if parameter is None else first.setdefault(parameter, name)
        uses.setdefault(leader, []).append(name)
        if leader != name:
            _check_same(graph, leader, name, node)
    return {leader: tuple(names) for leader, names in uses.items()}


def is_shared(graph: SpikingGraph) -> bool:
    """Whether any parameter stands behind several weighted nodes."""
    return len(set(graph.parameters.values())) < len(graph.parameters)


def weight_count(graph: SpikingGraph) -> int:
    """Number of weights, those of a shared parameter once, zeros included: what a density is a share of."""
    return sum(int(graph.weighted[name].weight.size) for name in uses_of(graph))


def live_count(graph: SpikingGraph) -> int:
    """Number of weights that are not zero, those of a shared parameter once."""
    return sum(int(np.count_nonzero(graph.weighted[name].weight)) for name in uses_of(graph))


def for_every_use(graph: SpikingGraph, masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return masks by weighted node, in computing order, from those of the first use of every weight."""
    leaders = {name: leader for leader, names in uses_of(graph).items() for name in names}
    return {name: masks[leaders[name]] for name in graph.weighted}


def _check_same(graph: SpikingGraph, leader: str, name: str, node: Weighted) -> None:
    other = graph.weighted[leader]
    parameter = graph.parameters[name]
    if node.weight is not other.weight and not np.array_equal(node.weight, other.weight):
        raise GraphError(
            f"{name}: is parameter {parameter}, as {leader} is, but holds other weights; "
            "give weights that differ (or are transposed) names of their own"
        )
    if getattr(node, "groups", 1) != getattr(other, "groups", 1):
        raise GraphError(
            f"{name}: reads parameter {parameter} in {getattr(node, 'groups', 1)} groups, {leader} in "
            f"{getattr(other, 'groups', 1)}; allowed are equal groups for one parameter"
        )
