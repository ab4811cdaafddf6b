"""Structured pruning: whole channels or neurons go until every budget holds in measured use."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from slamp.allocate_channels import ChannelPlan, allocate_channels
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import graph_of
from slamp.channels import Channels
from slamp.errors import BudgetError
from slamp.measured import BATCH, exceeds, measured_sops, measured_use, spent, use_of
from slamp.prune_weights import MAX_ROUNDS, Pruned, Pruning, Round, finished_round, recover_and_retrain, scores_of
from slamp.raster import SpikeRaster
from slamp.shrink import check_modules, shrink
from slamp.shrunk_graph import shrunk_activity
from slamp.spend import SPENT, masks_of

TRIMS = 12
TRIM_STEP = 0.95
# A round that spends this share of a measured budget is good enough.
NEAR = 0.9


def prune_channels(net: torch.nn.Module, raster: SpikeRaster, pruning: Pruning, *, zeros_follow: bool) -> Pruned:
    """Remove channels from ``net``, restore the rates of what is left and retrain it; see `slamp.prune`.

    Args:
        net: The dense network; it is not changed.
        raster: Calibration sample.
        pruning: How to prune; its method is not "auto".
        zeros_follow: Only as far as single zeros could not help, see `slamp.allocate_channels`.
    """
    graph = graph_of(net, raster)
    check_modules(graph, net)
    dense = calibrate(graph, raster.batches(BATCH), progress=pruning.progress)
    scores = scores_of(graph, dense, raster, pruning)
    budget = pruning.budget
    asked = {} if zeros_follow else dict(budget.measured)
    rounds: list[Round] = []
    tried: dict[str, tuple[torch.nn.Module, ChannelPlan]] = {}  # by channels, those that keep to what was measured
    while True:
        try:
            plan = allocate_channels(scores, budget.with_limits(asked), zeros_follow=zeros_follow)
        except BudgetError:
            if not rounds:
                raise
            break  # the correction asked for less than one channel per layer; trimming decides
        small = shrink(net, plan.channels, raster.features, raster.dt)
        targets = shrunk_activity(dense, graph, plan.channels)
        share = 1.0 if not rounds else 0.5
        current = recover_and_retrain(small, masks_of(small, raster), raster, pruning, targets, len(rounds), share)
        rounds.append(finished_round(current, raster, plan, budget, asked))
        measured, again = rounds[-1].measured, plan.channels.hash in tried
        if not asked or not exceeds(measured, budget):
            tried[plan.channels.hash] = (current, plan)
        if not asked or again or len(rounds) == MAX_ROUNDS or _near(measured, plan, budget):
            break
        predicted = rounds[-1].predicted
        asked = {name: predicted[name] * limit / (measured[name] or 1.0) for name, limit in budget.measured.items()}
    if tried:
        current, plan = max(tried.values(), key=lambda pair: pair[1].density)
        channels = plan.channels
    else:
        current, channels = _trimmed(current, plan.channels, raster, pruning)
    sops = measured_sops(current, raster)
    shortfall = "" if zeros_follow else _shortfall(current, raster, plan, budget)
    return Pruned(current, masks_of(current, raster), plan, tuple(rounds), sops, shortfall, channels)


def _near(measured: Mapping[str, float], plan: ChannelPlan, budget: Budget) -> bool:
    """Whether measured use holds and another round would gain little: channels are coarse."""
    if exceeds(measured, budget):
        return False
    return spent(measured, budget) >= NEAR or not any(name in plan.binding for name in budget.measured)


def _trimmed(
    net: torch.nn.Module, kept: Channels, raster: SpikeRaster, pruning: Pruning
) -> tuple[torch.nn.Module, Channels]:
    """Remove more channels from a retrained network, which is not retrained again, until measured use holds."""
    budget = pruning.budget
    graph = graph_of(net, raster)
    activity = calibrate(graph, raster.batches(BATCH), fold=False)
    scores = scores_of(graph, activity, raster, pruning)
    use = use_of(graph, activity, budget)
    share = 1.0 / spent(use, budget)
    for _ in range(TRIMS):
        limits = {name: used * share for name, used in use.items()}
        plan = allocate_channels(scores, Budget(**limits, profile=budget.profile, energy_set=budget.energy_set))
        small = shrink(net, plan.channels, raster.features, raster.dt)
        if not exceeds(measured_use(small, raster, budget), budget):
            return small, _composed(kept, plan.channels)
        share *= TRIM_STEP
    raise BudgetError(f"budget: {budget.measured} cannot be reached by removing channels; ask for more")


def _composed(first: Channels, second: Channels) -> Channels:
    """Return what of the whole network stays if ``second`` is taken from what ``first`` left."""
    arrays = {}
    for name, kept in first.arrays.items():
        both = kept.copy()
        both[kept] = second[name]
        arrays[name] = both
    return Channels(arrays)


def _shortfall(net: torch.nn.Module, raster: SpikeRaster, plan: ChannelPlan, budget: Budget) -> str:
    names = [name for name in budget.measured if name in plan.binding]
    share = spent(measured_use(net, raster, budget), budget)
    if not names or share >= SPENT:
        return ""
    return f"{share:.1%} of the budget of {names[0]} is spent: channels are coarse, one more of those tried is too much"
