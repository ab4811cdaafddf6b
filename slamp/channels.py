"""Channels: which outputs of a layer stay when whole channels or neurons go, and which layers may lose any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from slamp.digests import kept_hash
from slamp.errors import MaskError
from slamp.graph import SpikingGraph
from slamp.nodes import WEIGHTED, Conv1d, Conv2d, Output, Weighted
from slamp.shared import uses_of
from slamp.wiring import keeps_channels


@dataclass(frozen=True, eq=False)
class Channels:
    """Which outputs of every weighted node stay: channels of a convolution, neurons of a linear layer.

    Attributes:
        arrays: By weighted node, in computing order, a read-only bool array of shape (outputs,); True = stays.

    Raises:
        MaskError: An array is not bool, not one entry per output, or empties its layer.
    """

    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        frozen = {}
        for name, array in self.arrays.items():
            if array.dtype != np.bool_ or array.ndim != 1:
                raise MaskError(
                    f"{name}: the channels are {array.dtype} of shape {array.shape}; "
                    "allowed is bool of shape (outputs,), True = stays"
                )
            if not array.any():
                raise MaskError(f"{name}: all {array.size} outputs go; allowed is to keep one at least")
            frozen[name] = array.copy()
            frozen[name].flags.writeable = False
        object.__setattr__(self, "arrays", MappingProxyType(frozen))

    def __getitem__(self, name: str) -> np.ndarray:
        """Return which outputs of a node stay."""
        return self.arrays[name]

    @property
    def kept(self) -> dict[str, int]:
        """Number of outputs that stay, by node."""
        return {name: int(np.count_nonzero(array)) for name, array in self.arrays.items()}

    @property
    def whole(self) -> bool:
        """True if everything stays."""
        return all(bool(array.all()) for array in self.arrays.values())

    @cached_property
    def hash(self) -> str:
        """sha256 over which outputs stay."""
        return kept_hash(self.arrays.items())


def removable(graph: SpikingGraph) -> tuple[str, ...]:
    """Return the weighted nodes whose outputs may be removed, in computing order.

    Those are the nodes from which one path without branches leads to another weighted node (so never the last layer),
    unless one of the two is a convolution with groups, whose inputs and outputs are bound to one another, or shares its
    weight with other nodes. Recurrent layers, and layers that branch, lose none.
    """
    return tuple(name for name in graph.weighted if not obstacle(graph, name))


def check_channels(graph: SpikingGraph, channels: Channels) -> None:
    """Raise `MaskError` where channels do not belong to the graph, or cannot be removed from it."""
    weighted = graph.weighted
    for name in channels.arrays:
        if name not in weighted:
            raise MaskError(f"{name}: the channels name it, but the graph's weighted nodes are {list(weighted)}")
    for name, node in weighted.items():
        if name not in channels.arrays:
            raise MaskError(f"{name}: the channels do not name it; name every weighted node, all True where all stays")
        keep, outputs = channels[name], int(node.weight.shape[0])
        if keep.size != outputs:
            raise MaskError(f"{name}: the channels have {keep.size} entries, allowed are {outputs}, one per output")
        if not keep.all() and (found := obstacle(graph, name)):
            raise MaskError(
                f"{name}: loses {outputs - channels.kept[name]} of {outputs} outputs, but {found}; keep them all, "
                f"and remove from {list(removable(graph)) or 'none of the layers of this network'}"
            )


def kept_outputs(graph: SpikingGraph, channels: Channels) -> dict[str, np.ndarray]:
    """Return for every node which entries along the first axis of its output stay, bool.

    A channel is one entry until a Flatten or Reshape merges axes into the first one, and a block of neighbors from
    there on.
    """
    kept: dict[str, np.ndarray] = {}
    for name in graph.order:
        entries = graph.shapes[name][:1]
        if isinstance(graph.nodes[name], WEIGHTED):
            kept[name] = channels[name]
        elif (sources := graph.sources(name)) and not kept[sources[0]].all():
            before = kept[sources[0]]
            kept[name] = before.repeat(entries[0] // before.size)
        else:
            kept[name] = np.ones(entries, dtype=bool)
    return kept


def obstacle(graph: SpikingGraph, name: str) -> str:
    """Say why outputs of a weighted node cannot be removed, or nothing."""
    shared = {use: names for names in uses_of(graph).values() if len(names) > 1 for use in names}
    if name in shared:
        return f"its weight is shared by {list(shared[name])}"
    if _grouped(graph.weighted[name]):
        return "it is a convolution with groups"
    before = name
    while True:
        targets = graph.targets(before)
        if len(targets) != 1:
            return f"{before} feeds several nodes {list(targets)}"
        (target,) = targets
        if len(graph.sources(target)) != 1:
            return f"{target} adds the outputs of several nodes {list(graph.sources(target))}"
        node = graph.nodes[target]
        if isinstance(node, Output):
            return "no weighted node follows: they are the outputs of the network"
        if isinstance(node, WEIGHTED):
            if target in shared:
                return f"it feeds {target}, whose weight is shared by {list(shared[target])}"
            return f"it feeds {target}, a convolution with groups" if _grouped(node) else ""
        if not keeps_channels(node, graph.shapes[before]):
            return f"{target}, a {type(node).__name__}, gives other channels than it gets"
        before = target


def _grouped(node: Weighted) -> bool:
    return isinstance(node, (Conv1d, Conv2d)) and node.groups > 1
