"""One layer per core: memories as DYNAP-CNN counts them, and a matching."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest

from slamp.graph import SpikingGraph
from slamp.nodes import IF, Conv2d, Flatten, Input, Linear, Node, Output, frozen_array, uniform
from slamp.placement import kernel_cores, kernel_memory, neuron_memory


def network(*filters: int, side: int = 8, classes: int = 10) -> SpikingGraph:
    nodes: dict[str, Node] = {"input": Input((2, side, side))}
    channels = 2
    for index, width in enumerate(filters):
        weight = frozen_array(np.ones((width, channels, 3, 3)))
        nodes[f"conv{index}"] = Conv2d(weight, None, (1, 1), (1, 1), (1, 1), 1)
        nodes[f"if{index}"] = IF(uniform(1.0, (width, side, side)), uniform(0.0, (width, side, side)))
        channels = width
    nodes["flatten"] = Flatten(0, 2)
    nodes["linear"] = Linear(frozen_array(np.ones((classes, channels * side * side))))
    nodes["out"] = IF(uniform(1.0, (classes,)), uniform(0.0, (classes,)))
    nodes["output"] = Output((classes,))
    return SpikingGraph(nodes, tuple(pairwise(nodes)), 1e-3)


def test_memories_by_hand() -> None:
    """Figures of the formulas in sinabs 3.1.3: c 2^(ceil(log2(kx ky)) + ceil(log2 f)), f 2^(ceil(log2 fy) + ...)."""
    graph = network(5, 16)
    assert kernel_memory(graph.weighted["conv0"]) == 2 * 2 ** (4 + 3)
    assert kernel_memory(graph.weighted["conv1"]) == 5 * 2 ** (4 + 4)
    assert kernel_memory(graph.weighted["linear"]) == 16 * 64 * 2**4
    assert neuron_memory((16, 8, 8)) == 16 * 64
    assert neuron_memory((3, 5, 9)) == 3 * 2 ** (3 + 4)
    assert neuron_memory((10,)) == 10


def test_layers_move_over_for_one_that_fits_only_once() -> None:
    graph = network(4, 16)
    kernels = {name: kernel_memory(node) for name, node in graph.weighted.items()}
    most = max(kernels.values())
    placed = kernel_cores(graph, [most, kernels["conv1"], kernels["conv0"]], [10_000] * 3)
    assert placed == {"linear": 0, "conv1": 1, "conv0": 2}
    assert kernel_cores(graph, [most, kernels["conv0"], kernels["conv0"]], [10_000] * 3) is None


@pytest.mark.parametrize("seed", range(40))
def test_a_matching_is_found_exactly_when_there_is_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = network(*(int(width) for width in rng.integers(1, 40, rng.integers(1, 4))))
    cores = int(rng.integers(len(graph.weighted), 6))
    kernels, neurons = 2.0 ** rng.integers(4, 16, cores), 2.0 ** rng.integers(8, 13, cores)
    needs = []
    for name, node in graph.weighted.items():
        target = graph.targets(name)[0]
        needs.append((kernel_memory(node), neuron_memory(graph.shapes[target])))
    exists = any(
        all(need[0] <= kernels[core] and need[1] <= neurons[core] for need, core in zip(needs, order, strict=False))
        for order in permutations(range(cores), len(needs))
    )
    placed = kernel_cores(graph, list(kernels), list(neurons))
    assert (placed is not None) == exists
    if placed is not None:
        assert set(placed) == set(graph.weighted)
        assert len(set(placed.values())) == len(placed)
        for (name, core), need in zip(((name, placed[name]) for name in graph.weighted), needs, strict=True):
            assert need[0] <= kernels[core], name
            assert need[1] <= neurons[core], name
