"""`usage`: what a network takes of a chip, resource by resource, each against its limit and with the limit's source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slamp.activity import Activity
from slamp.encodings import synapse_lists
from slamp.energy import chip_counts, on_host
from slamp.errors import MappingError, ProfileError
from slamp.graph import SpikingGraph
from slamp.mapping import CoreMap, core_map_from_json, place, placeable
from slamp.memory import encoded_bits, masked_lists
from slamp.nodes import SPIKING, Weighted
from slamp.placement import read_map
from slamp.profile import Profile
from slamp.taps import connections, weighted_sum
from slamp.usage_rows import (
    LayerUsage,
    UsageRow,
    core_rows,
    energy_row,
    neuron_rows,
    operation_rows,
    side_rows,
    synapse_rows,
    time_rows,
)

__all__ = ["LayerUsage", "Usage", "UsageRow", "usage", "usage_from_json"]

DENSITIES = tuple(k / 100 for k in range(100, 0, -1))


@dataclass(frozen=True)
class Usage:
    """What a network takes of a chip.

    Attributes:
        profile: Name of the chip.
        route: How it gets there, or "budget only".
        rows: Every resource.
        layers: By weighted node.
        unsupported: What the chip cannot run, one sentence each.
        sources: Citation of every source that a row names.
        host: Nodes that stay on the host, because their input is analog; they take nothing of the chip.
        mapping: What sits on which core; None if the chip's rule places nothing, or nothing fits.
    """

    profile: str
    route: str
    rows: tuple[UsageRow, ...]
    layers: Mapping[str, LayerUsage]
    unsupported: tuple[str, ...]
    sources: Mapping[str, str]
    host: tuple[str, ...] = ()
    mapping: CoreMap | None = None

    @property
    def fits(self) -> bool:
        """True if no known limit is exceeded (unsupported nodes are another matter)."""
        return all(row.fits for row in self.rows)

    @property
    def tightest(self) -> UsageRow | None:
        """The resource of which the largest share of a known limit is used; None if no limit is known."""
        limited = [row for row in self.rows if row.share is not None]
        return max(limited, key=lambda row: row.share or 0.0, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "profile": self.profile,
            "route": self.route,
            "fits": self.fits,
            "rows": [{**asdict(row), "fits": row.fits} for row in self.rows],
            "layers": {name: {**asdict(layer), "bits": dict(layer.bits)} for name, layer in self.layers.items()},
            "unsupported": list(self.unsupported),
            "sources": dict(self.sources),
            "host": list(self.host),
            "mapping": None if self.mapping is None else self.mapping.to_json(),
        }

    def __getitem__(self, resource: str) -> UsageRow:
        """Return the row of a resource; KeyError if there is none."""
        for row in self.rows:
            if row.resource == resource:
                return row
        raise KeyError(resource)


def usage_from_json(found: Mapping[str, Any]) -> Usage:
    """Return the usage that `Usage.to_json` made plain."""
    rows = tuple(UsageRow(**{key: value for key, value in row.items() if key != "fits"}) for row in found["rows"])
    layers = {name: LayerUsage(**layer) for name, layer in found["layers"].items()}
    mapping = None if found["mapping"] is None else core_map_from_json(found["mapping"])
    return Usage(
        found["profile"],
        found["route"],
        rows,
        layers,
        tuple(found["unsupported"]),
        found["sources"],
        tuple(found["host"]),
        mapping,
    )


def usage(graph: SpikingGraph, profile: Profile, activity: Activity) -> Usage:
    """Count what a network takes of a chip.

    SOPs, spikes and energy are means per sample, measured. Cores are those of `slamp.mapping`, where the chip's rule
    is one it knows, else a lower bound: layer by layer, the resource that needs most cores. An energy total is given
    only if every counted term has a price. Layers with analog input stay on the host, unless the chip prices MACs.

    Args:
        graph: The network, as it ships.
        profile: The chip, see `slamp.load_profile`.
        activity: What `slamp.calibrate` measured on ``graph``.

    Raises:
        ProfileError: The activity was measured on another graph, or the profile lacks a parameter of an encoding.
    """
    if activity.graph_hash != graph.hash:
        raise ProfileError(
            f"usage: the activity was measured on graph {activity.graph_hash[:12]}, this is {graph.hash[:12]}; "
            "calibrate this graph"
        )
    host = on_host(graph, profile, activity)
    layers = {name: _layer(graph, name, node, profile) for name, node in graph.weighted.items() if name not in host}
    mapping, why = _mapping(graph, profile, host)
    counts = chip_counts(graph, activity, host)
    rows = [
        *synapse_rows(graph, layers, profile),
        *neuron_rows(graph, profile, host),
        *core_rows(graph, layers, profile, mapping, why),
        *side_rows(graph, profile),
        *operation_rows(counts, activity),
    ]
    for name, energy in profile.energy.items():
        rows += [energy_row(name, energy, counts), *time_rows(name, energy, counts, activity.steps)]
    named = {name for row in rows for name in row.source.split("; ") if name}
    return Usage(
        profile=profile.name,
        route=profile.route,
        rows=tuple(rows),
        layers=layers,
        unsupported=tuple(_unsupported(graph, profile)),
        sources={name: source.cite for name, source in profile.sources.items() if name in named},
        host=tuple(name for name in graph.nodes if name in host),
        mapping=mapping,
    )


def _mapping(graph: SpikingGraph, profile: Profile, host: frozenset[str]) -> tuple[CoreMap | None, str]:
    """Place the network; say why where nothing can be placed, and nothing where the chip has no rule for it."""
    if not placeable(profile):
        return None, ""
    try:
        return place(graph, profile, host=host), ""
    except MappingError as error:
        return None, str(error)


def _layer(graph: SpikingGraph, name: str, node: Weighted, profile: Profile) -> LayerUsage:
    shape = graph.shapes[graph.sources(name)[0]]
    lists = synapse_lists(node, shape, read_map(graph, name))
    bits = encoded_bits(lists, profile)
    unrolled = weighted_sum(node, node.weight != 0, connections(node, shape))
    return LayerUsage(
        weights=int(node.weight.size),
        synapses=int(np.count_nonzero(node.weight)),
        connections=round(unrolled),
        bits=bits,
        encoding=min(bits, key=lambda encoding: bits[encoding]) if bits else "",
        pays_below=_pays_below(graph, name, profile),
    )


def _pays_below(graph: SpikingGraph, name: str, profile: Profile) -> float | None:
    """Search the density at which random zeros begin to save bits, in steps of a hundredth."""
    generator = np.random.default_rng(0)
    order = generator.random(graph.weighted[name].weight.shape)

    def least(density: float) -> float:
        return min(encoded_bits(masked_lists(graph, name, order < density), profile).values(), default=math.inf)

    full = least(1.0)
    if not math.isfinite(full) or least(DENSITIES[-1]) >= full:
        return None
    low, high = 0, len(DENSITIES) - 1  # DENSITIES falls: at low nothing is saved, at high something is
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if least(DENSITIES[middle]) < full else (middle, high)
    return DENSITIES[high]


def _unsupported(graph: SpikingGraph, profile: Profile) -> Iterator[str]:
    allowed = set(profile.support.nodes) | {"Input", "Output"}
    for name, node in graph.nodes.items():
        kind = type(node).__name__
        if kind not in allowed:
            yield f"{name}: {kind} does not run on {profile.name}; it runs {', '.join(profile.support.nodes) or 'none'}"
        elif isinstance(node, SPIKING) and node.reset not in profile.support.resets:
            resets = " or ".join(profile.support.resets) or "none"
            yield f"{name}: reset by {node.reset} does not run on {profile.name}; it resets by {resets}"
