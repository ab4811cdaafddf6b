"""The smallest change with which layers find cores of their own, where as they are they find none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from slamp.graph import SpikingGraph
from slamp.nodes import Affine, Linear
from slamp.placement import KernelLayer, KernelNeeds, kernel_cores, kernel_layers


def smallest_kernel_change(graph: SpikingGraph, cores: Sequence[KernelNeeds], host: Collection[str] = ()) -> str:
    """Say in one phrase what to remove so that every layer finds a core; see `filters_to_keep`.

    Args:
        graph: A network for which `kernel_cores` finds no assignment.
        cores: Memory of each core.
        host: Layers that stay on the host.
    """
    layers = {name: layer for name, layer in kernel_layers(graph).items() if name not in host}
    if (surplus := len(layers) - len(cores)) > 0:
        return f"{surplus} layer{'s' * (surplus > 1)} fewer"
    kept = filters_to_keep(layers, cores)
    if not kept:
        return "no number of filters fits; make kernels, feature maps or the input smaller"
    parts = []
    for name, filters in kept.items():
        what = "neurons" if isinstance(graph.nodes[name], (Linear, Affine)) else "filters"
        parts.append(f"{filters} of the {layers[name].filters} {what} of {name}")
    return f"keep at most {', '.join(parts)}"


def filters_to_keep(layers: Mapping[str, KernelLayer], cores: Sequence[KernelNeeds]) -> dict[str, int]:
    """Return the most filters to keep so that every layer finds a core.

    One layer alone if that helps, the one that loses the smallest share of its filters; else all layers that can lose
    filters, to the highest common percentage that helps. Removed filters are removed channels of the layers that read
    them. A layer can lose filters unless the output reads it, or what reads it also reads other layers or has groups.

    Args:
        layers: From `kernel_layers`; no more than there are cores.
        cores: Memory of each core.

    Returns:
        Filters by layer, fewer than now; empty if no number helps.
    """
    free = [name for name in layers if _can_lose_filters(name, layers)]

    def fits(kept: Mapping[str, int]) -> bool:
        needs = {name: layer.needs for name, layer in _narrowed(layers, kept).items()}
        return kernel_cores(needs, cores) is not None

    def at(percent: int) -> dict[str, int]:
        return {name: max(1, layers[name].filters * percent // 100) for name in free}

    def alone(name: str) -> int:
        return _most(lambda n: fits({name: n}), layers[name].filters)

    most = {name: alone(name) for name in free}
    best = max(free, key=lambda name: most[name] / layers[name].filters, default=None)
    if best is not None and most[best]:
        return {best: most[best]}
    percent = _most(lambda n: fits(at(n)), 100)
    return {name: n for name, n in at(percent).items() if n < layers[name].filters} if percent else {}


def _can_lose_filters(name: str, layers: Mapping[str, KernelLayer]) -> bool:
    layer = layers[name]
    readers = [reader for reader in layers.values() if name in reader.sources]
    alone = all(reader.sources == (name,) and reader.channels == layer.filters for reader in readers)
    return alone and not layer.last


def _narrowed(layers: Mapping[str, KernelLayer], kept: Mapping[str, int]) -> dict[str, KernelLayer]:
    """Return the layers with fewer filters, and with fewer channels where those were read."""
    return {
        name: replace(
            layer,
            filters=kept.get(name, layer.filters),
            channels=next((kept[source] for source in layer.sources if source in kept), layer.channels),
        )
        for name, layer in layers.items()
    }


def _most(works: Callable[[int], bool], bound: int) -> int:
    """Return the largest number from 1 to bound - 1 that works, 0 if none; a smaller one works if a larger one does."""
    low, high = 0, bound
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low
