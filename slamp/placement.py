"""Which layer sits on which core, for chips whose cores differ and hold one layer each; and why, where none does.

Memories are those of DYNAP-CNN as sinabs 3.1.3 counts them (`KernelLayer.needs`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, Affine, Linear, Shape
from slamp.wiring import flattens


@dataclass(frozen=True, slots=True)
class KernelNeeds:
    """Words of the three memories of a core: what a layer takes, or what a core has (inf: no limit)."""

    kernel: float
    neurons: float
    bias: float

    def fits(self, core: KernelNeeds) -> bool:
        """True if the core holds all three."""
        return self.kernel <= core.kernel and self.neurons <= core.neurons and self.bias <= core.bias


@dataclass(frozen=True, slots=True)
class KernelLayer:
    """What decides how much memory a layer takes.

    Attributes:
        filters: Output channels, or neurons of a linear layer.
        channels: Input channels, of one group.
        kernel: Sides of the kernel, (y, x); of a linear layer those of the whole map that it reads.
        map: Sides of the map of its neurons, (y, x), before pooling; empty for a linear layer.
        bias: True if it has a bias.
        sources: The weighted layers, or the input, whose channels it reads.
        last: True if the network's output reads it.
    """

    filters: int
    channels: int
    kernel: Shape
    map: Shape
    bias: bool
    sources: tuple[str, ...]
    last: bool

    @property
    def needs(self) -> KernelNeeds:
        """Memory the layer takes.

        Kernels ``channels * 2^(ceil(log2(kx ky)) + ceil(log2 filters))``, neurons
        ``filters * 2^(ceil(log2 y) + ceil(log2 x))``, biases ``filters`` or none (sinabs 3.1.3,
        backend/dynapcnn/dynapcnn_layer.py: memory_summary, convert_linear_to_conv).
        """
        return KernelNeeds(
            kernel=self.channels << (_log2_up(math.prod(self.kernel)) + _log2_up(self.filters)),
            neurons=self.filters << sum(_log2_up(side) for side in self.map),
            bias=self.filters if self.bias else 0,
        )


def kernel_layers(graph: SpikingGraph) -> dict[str, KernelLayer]:
    """Return every weighted layer as the chip sees it, in computing order."""
    read_by_output = _weighted_sources(graph, graph.output)
    layers = {}
    for name, node in graph.weighted.items():
        filters, channels, *kernel = (int(size) for size in node.weight.shape)
        if isinstance(node, (Linear, Affine)):
            channels, *kernel = read_map(graph, name)
        layers[name] = KernelLayer(
            filters=filters,
            channels=channels,
            kernel=tuple(kernel),
            map=graph.shapes[name][1:],
            bias=not isinstance(node, Linear) and node.bias is not None,
            sources=_weighted_sources(graph, name),
            last=name in read_by_output,
        )
    return layers


def kernel_needs(graph: SpikingGraph) -> dict[str, KernelNeeds]:
    """Return the memory that every weighted layer takes, with the neurons it drives, in computing order."""
    return {name: layer.needs for name, layer in kernel_layers(graph).items()}


def kernel_cores(needs: Mapping[str, KernelNeeds], cores: Sequence[KernelNeeds]) -> dict[str, int] | None:
    """Assign every layer to a core of its own that holds it.

    Args:
        needs: Memory each layer takes.
        cores: Memory of each core.

    Returns:
        Core by layer, or None if no assignment exists (a matching, found or refuted exactly); `kernel_conflict` says
        why.
    """
    taken, crowd = _matching(needs, cores)
    placed = {name: core for core, name in taken.items()}
    return None if crowd else {name: placed[name] for name in needs}


def kernel_conflict(needs: Mapping[str, KernelNeeds], cores: Sequence[KernelNeeds]) -> str:
    """Say which layers cannot be placed and why, in words; empty if all can."""
    if len(needs) > len(cores):
        return f"{len(needs)} layers on {len(cores)} cores, of which each holds one"
    fits = _fitting(needs, cores)
    if homeless := [name for name, where in fits.items() if not where]:
        return "; ".join(_too_large(name, needs[name], cores) for name in homeless)
    taken, crowd = _matching(needs, cores)
    only = sorted(core for core, name in taken.items() if name in crowd)
    names = [name for name in needs if name in crowd]
    return f"{_listed(names)} fit only core{'s' * (len(only) > 1)} {_listed(only)}" if crowd else ""


def _fitting(needs: Mapping[str, KernelNeeds], cores: Sequence[KernelNeeds]) -> dict[str, list[int]]:
    """Cores that hold a layer, by layer."""
    return {name: [k for k, core in enumerate(cores) if need.fits(core)] for name, need in needs.items()}


def _matching(needs: Mapping[str, KernelNeeds], cores: Sequence[KernelNeeds]) -> tuple[dict[int, str], frozenset[str]]:
    """Match layers to cores, those with least choice first.

    Returns:
        Layer by core; and, if a layer finds none, it and the layers on all cores it could move to, which fit only
        there (by Hall's theorem the proof that there is no assignment).
    """
    fits = _fitting(needs, cores)
    taken: dict[int, str] = {}
    for name in sorted(fits, key=lambda layer: len(fits[layer])):
        tried: set[int] = set()
        if not _place(name, fits, taken, tried):
            return taken, frozenset({name, *(taken[core] for core in tried)})
    return taken, frozenset()


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


def _too_large(name: str, need: KernelNeeds, cores: Sequence[KernelNeeds]) -> str:
    kinds = {
        "kernel": (need.kernel, max(core.kernel for core in cores)),
        "neuron": (need.neurons, max(core.neurons for core in cores)),
        "bias": (need.bias, max(core.bias for core in cores)),
    }
    over = [
        f"{used:,.0f} {kind} words of {most:,.0f} on the largest core"
        for kind, (used, most) in kinds.items()
        if used > most
    ]
    if over:
        return f"{name} takes {_listed(over)}"
    words = _listed([f"{used:,.0f} {kind}" for kind, (used, _) in kinds.items()])
    return f"{name} takes {words} words, no core has them all"


def _listed(items: Sequence[object]) -> str:
    *head, last = (str(item) for item in items)
    return f"{', '.join(head)} and {last}" if head else last


def _weighted_sources(graph: SpikingGraph, name: str) -> tuple[str, ...]:
    """Return the weighted layers, or the input, that a node reads through whatever lies between."""
    found: dict[str, None] = {}
    for source in graph.sources(name):
        stops = source in graph.weighted or source == graph.input
        found |= dict.fromkeys((source,) if stops else _weighted_sources(graph, source))
    return tuple(found)


def read_map(graph: SpikingGraph, name: str) -> Shape:
    """Shape of what a linear layer reads before it was flattened: (channels, y, x) or (channels,)."""
    source = graph.sources(name)[0]
    while isinstance(node := graph.nodes[source], NEURON) or flattens(node):
        source = graph.sources(source)[0]
    return graph.shapes[source]


def _log2_up(count: int) -> int:
    return (count - 1).bit_length()
