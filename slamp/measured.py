"""What budgets of operations and energy really take: counted on a run of the pruned network, by the reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from slamp.activity import Activity
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import graph_of
from slamp.energy import busiest_step, energy_per_sample
from slamp.graph import SpikingGraph
from slamp.raster import SpikeRaster

BATCH = 128


def measured_sops(net: torch.nn.Module, raster: SpikeRaster) -> float:
    """SOPs per sample of a network, counted exactly on the reference's spikes."""
    graph = graph_of(net, raster)
    return calibrate(graph, raster.batches(BATCH), fold=False).sops


def measured_use(net: torch.nn.Module, raster: SpikeRaster, budget: Budget) -> dict[str, float]:
    """Return what every measured budget takes, by name, counted exactly on the reference's spikes."""
    graph = graph_of(net, raster)
    return use_of(graph, calibrate(graph, raster.batches(BATCH), fold=False), budget)


def use_of(graph: SpikingGraph, activity: Activity, budget: Budget) -> dict[str, float]:
    """Return what every measured budget takes in a run that was already measured."""
    found: dict[str, float] = {}
    if budget.sops is not None:
        found["sops"] = activity.sops
    if budget.sops_per_step is not None:
        found["sops_per_step"] = busiest_step(activity)
    if budget.energy_pj is not None:
        found["energy_pj"] = energy_per_sample(graph, activity, budget.profile, budget.energy_set)
    return found


def spent(use: Mapping[str, float], budget: Budget) -> float:
    """Return the largest share of a measured budget that is used; 0 if there is none."""
    return max((used / budget.measured[name] for name, used in use.items()), default=0.0)


def exceeds(use: Mapping[str, float], budget: Budget) -> bool:
    """Whether more of a measured budget is used than there is."""
    return any(used > budget.measured[name] for name, used in use.items())
