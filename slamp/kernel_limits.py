"""What a profile says of chips that run one convolution per core: memories, sides, channels, destinations."""

from __future__ import annotations

import math
from collections.abc import Iterator

from slamp.graph import SpikingGraph
from slamp.placement import KernelNeeds, kernel_layers
from slamp.profile import Figure, Limits


def core_memories(limits: Limits) -> tuple[KernelNeeds, ...]:
    """Return the memories of every core; empty if kernel or neuron memories are not known core by core."""
    kernels, neurons, bias = limits.kernel_words_of_core, limits.neuron_words_of_core, limits.bias_words_per_core
    if kernels is None or neurons is None:
        return ()
    if not isinstance(kernels.value, tuple) or not isinstance(neurons.value, tuple):
        return ()
    each = math.inf if bias is None or bias.value is None else bias.number
    return tuple(KernelNeeds(kernel, cells, each) for kernel, cells in zip(kernels.value, neurons.value, strict=True))


def kernel_limits(graph: SpikingGraph, limits: Limits) -> Iterator[tuple[str, float, Figure, str]]:
    """Yield (resource, used, limit, which layer) for every limit of sides, channels and destinations there is.

    Feature maps are those of the neurons, before pooling; a linear layer counts as the convolution whose kernel is the
    whole map that it reads.
    """
    layers = kernel_layers(graph)
    sides = {name: max(layer.map, default=1) for name, layer in layers.items()}
    channels = {name: layer.filters for name, layer in layers.items()}
    kernels = {name: max(layer.kernel, default=1) for name, layer in layers.items()}
    targets = {name: sum(name in reader.sources for reader in layers.values()) for name in layers}
    for resource, used, limit in (
        ("largest input side", {graph.input: max(graph.shapes[graph.input][1:], default=1)}, limits.input_side),
        ("largest feature map side", sides, limits.feature_map_side),
        ("channels of a feature map", channels, limits.feature_map_channels),
        ("largest kernel side", kernels, limits.kernel_side),
        ("layers that read a layer", targets, limits.destinations_per_core),
    ):
        if limit is not None:
            most = max(used, key=lambda name: used[name])
            yield resource, float(used[most]), limit, most
