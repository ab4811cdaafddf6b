"""Which layer sits on which core, for chips whose cores differ and hold one layer each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, Shape, Weighted


def kernel_cores(
    graph: SpikingGraph, kernel_words: Sequence[float], neuron_words: Sequence[float]
) -> dict[str, int] | None:
    """Assign every weighted layer, with the neurons it drives, to a core of its own that holds both.

    Memories are those of DYNAP-CNN as sinabs 3.1.3 counts them: kernels take
    ``channels * 2^(ceil(log2(kx ky)) + ceil(log2 filters))`` words, neurons
    ``filters * 2^(ceil(log2 fy) + ceil(log2 fx))``.

    Args:
        graph: The network.
        kernel_words: Kernel memory of each core.
        neuron_words: Neuron memory of each core.

    Returns:
        Core by layer, or None if no assignment exists (a matching, found or refuted exactly).
    """
    fits: dict[str, list[int]] = {}
    for name, node in graph.weighted.items():
        kernel, neurons = kernel_memory(node), neuron_memory(_driven_shape(graph, name))
        fits[name] = [
            core
            for core, (words, cells) in enumerate(zip(kernel_words, neuron_words, strict=True))
            if kernel <= words and neurons <= cells
        ]
    taken: dict[int, str] = {}
    for name in fits:
        if not _place(name, fits, taken, set()):
            return None
    return {name: core for core, name in sorted(taken.items())}


def kernel_memory(node: Weighted) -> int:
    """Words of kernel memory."""
    filters, channels, *kernel = node.weight.shape
    return int(channels) << (_log2_up(math.prod(kernel)) + _log2_up(int(filters)))


def neuron_memory(shape: Shape) -> int:
    """Words of neuron memory for neurons of shape (filters, y, x) or (neurons,)."""
    filters, *sides = shape
    return filters << sum(_log2_up(side) for side in sides)


def _place(name: str, fits: dict[str, list[int]], taken: dict[int, str], tried: set[int]) -> bool:
    """Find an augmenting path from a layer to a free core."""
    for core in fits[name]:
        if core in tried:
            continue
        tried.add(core)
        if core not in taken or _place(taken[core], fits, taken, tried):
            taken[core] = name
            return True
    return False


def _driven_shape(graph: SpikingGraph, name: str) -> Shape:
    """Shape of the neurons a weighted layer drives; of its own output if it drives none."""
    current = name
    while targets := graph.targets(current):
        current = targets[0]
        if isinstance(graph.nodes[current], NEURON):
            return graph.shapes[current]
    return graph.shapes[name]


def _log2_up(count: int) -> int:
    return (count - 1).bit_length()
