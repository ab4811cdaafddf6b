"""Energy per sample from what was counted and one set of prices of a chip; no figure where a price is missing."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from slamp.activity import Activity
from slamp.errors import BudgetError
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON
from slamp.populations import hosted
from slamp.profile import Energy, Figure, Profile


@dataclass(frozen=True)
class ChipCounts:
    """What happens on the chip, mean per sample: layers on the host are left out."""

    sops: float
    busiest_step: float
    macs: float
    spikes: float
    updates: float


@dataclass(frozen=True)
class Priced:
    """Energy per sample, pJ.

    Attributes:
        total: None if a counted term has no price.
        partial: The priced terms.
        missing: Terms without a price.
        figures: Prices that were used.
    """

    total: float | None
    partial: float
    missing: tuple[str, ...]
    figures: tuple[Figure, ...]


def on_host(graph: SpikingGraph, profile: Profile, activity: Activity) -> frozenset[str]:
    """Return the nodes with analog input, which a chip that prices no MACs leaves to the host, and their neurons."""
    if any(energy.mac_pj is not None for energy in profile.energy.values()):
        return frozenset()
    return hosted(graph, activity)


def busiest_step(activity: Activity) -> float:
    """Return the SOPs of the step that has most, mean over samples."""
    steps = [layer.operations for layer in activity.layers.values() if layer.from_spikes]
    return float(np.sum(steps, axis=0).max()) if steps else 0.0


def chip_counts(graph: SpikingGraph, activity: Activity, host: Collection[str] = ()) -> ChipCounts:
    """Count what happens on the chip while ``host`` happens elsewhere."""
    neurons = [name for name, node in graph.nodes.items() if isinstance(node, NEURON) and name not in host]
    return ChipCounts(
        sops=activity.sops,
        busiest_step=busiest_step(activity),
        macs=0.0 if host else activity.macs,
        spikes=float(sum(activity.neurons[name].spike_counts.sum() for name in neurons)),
        updates=float(sum(math.prod(graph.shapes[name]) for name in neurons) * activity.steps),
    )


def priced(energy: Energy, counts: ChipCounts) -> Priced:
    """Price what was counted, every neuron update at the active price, routing left out."""
    terms: list[tuple[str, float, Figure | None]] = [("SOPs", counts.sops, energy.sop_pj)]
    if energy.scope == "per_term":
        terms += [
            ("neuron updates", counts.updates, energy.neuron_active_pj),
            ("spikes", counts.spikes, energy.spike_pj),
        ]
        if counts.macs:
            terms.append(("MACs", counts.macs, energy.mac_pj))
    known = [(count, price) for _, count, price in terms if price is not None and price.value is not None]
    missing = tuple(what for what, count, price in terms if count and (price is None or price.value is None))
    partial = sum(count * price.number for count, price in known)
    return Priced(None if missing else partial, partial, missing, tuple(price for _, price in known))


def prices(profile: Profile | None, name: str = "") -> Energy:
    """Return the prices an energy budget is kept by: the set of that name, or the first that prices SOPs.

    Raises:
        BudgetError: There is no chip, no such set, or none with a price of SOPs.
    """
    if profile is None:
        raise BudgetError("energy_pj: depends on the chip; use profile.budget(energy_pj=...), or --profile NAME")
    usable = {
        key: energy
        for key, energy in profile.energy.items()
        if energy.sop_pj is not None and energy.sop_pj.value is not None
    }
    if not usable:
        raise BudgetError(f"energy_pj: no price of a SOP on {profile.name} is known; use sops instead")
    if name and name not in usable:
        raise BudgetError(f"energy_pj: set {name!r} is not one of {profile.name}; allowed are {', '.join(usable)}")
    return usable[name or next(iter(usable))]


def energy_per_sample(graph: SpikingGraph, activity: Activity, profile: Profile | None, name: str = "") -> float:
    """Return the energy of a network per sample, pJ; raises `BudgetError` where a counted term has no price."""
    energy = prices(profile, name)
    assert profile is not None
    found = priced(energy, chip_counts(graph, activity, on_host(graph, profile, activity)))
    if found.total is None:
        raise BudgetError(
            f"energy_pj: {profile.name} has no price for {', '.join(found.missing)}, so no budget of energy can be "
            "kept; use sops instead"
        )
    return found.total
