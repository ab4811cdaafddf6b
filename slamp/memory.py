"""Synaptic memory of a chip: bits of a layer in every encoding it has, and of a network whose zeros are given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from slamp.encodings import SynapseLists, synapse_bits, synapse_lists
from slamp.errors import BudgetError
from slamp.graph import SpikingGraph
from slamp.nodes import frozen_array
from slamp.placement import read_map
from slamp.profile import Profile


def encoded_bits(lists: SynapseLists, profile: Profile) -> dict[str, float]:
    """Return the bits a layer takes in every encoding the chip has for such a layer, by name."""
    kind = "convolution" if lists.convolution else "linear"
    return {
        name: synapse_bits(entry.rule, lists, {key: figure.number for key, figure in entry.parameters.items()})
        for name, entry in profile.encodings.items()
        if entry.layers in ("all", kind)
    }


def masked_lists(graph: SpikingGraph, name: str, mask: np.ndarray) -> SynapseLists:
    """Return the synapse lists a layer would have if exactly the weights under ``mask`` (bool) were not zero."""
    node = replace(graph.weighted[name], weight=frozen_array(mask))
    return synapse_lists(node, graph.shapes[graph.sources(name)[0]], read_map(graph, name))


def layer_memory_bits(graph: SpikingGraph, name: str, mask: np.ndarray, profile: Profile) -> float:
    """Return the bits of one layer under a mask, in the cheapest encoding the chip has for it.

    Raises:
        BudgetError: How the chip stores such a layer is not known.
    """
    lists = masked_lists(graph, name, mask)
    bits = encoded_bits(lists, profile)
    if not bits:
        kind = type(graph.weighted[name]).__name__
        raise BudgetError(
            f"memory_bits: {name}: how {profile.name} stores the synapses of a {kind} is not known; "
            "use density, synapses or sops"
        )
    return min(bits.values())


def zeros_save_memory(graph: SpikingGraph, profile: Profile, host: Collection[str] = ()) -> bool:
    """Whether any layer on the chip takes fewer bits on the chip once most of its weights are zero.

    False where the encodings that are known store blocks, or none is known.
    """
    for name, node in graph.weighted.items():
        if name in host:
            continue
        alone = np.zeros(node.weight.shape, dtype=bool)
        alone.reshape(-1)[0] = True
        few, whole = (encoded_bits(masked_lists(graph, name, mask), profile) for mask in (alone, np.ones_like(alone)))
        if few and min(few.values()) < min(whole.values()):
            return True
    return False


def memory_bits(
    graph: SpikingGraph, masks: Mapping[str, np.ndarray], profile: Profile, host: Collection[str] = ()
) -> float:
    """Return the bits of all layers under masks (bool, by weighted node), those on the host left out.

    Raises:
        BudgetError: How the chip stores one of them is not known.
    """
    return sum(layer_memory_bits(graph, name, mask, profile) for name, mask in masks.items() if name not in host)
