"""`prune`: until every budget holds in measured use, by single weights or by whole channels."""

from __future__ import annotations

from dataclasses import replace

import torch

from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import read_graph
from slamp.errors import BudgetError
from slamp.measured import BATCH, exceeds, use_of
from slamp.prune_channels import prune_channels
from slamp.prune_weights import Pruned, Pruning, Round, Schedule, prune_weights
from slamp.raster import SpikeRaster
from slamp.score import resolve_method
from slamp.shared import weight_count
from slamp.spend import other_budgets_hold

__all__ = ["Pruned", "Pruning", "Round", "Schedule", "prune"]


def prune(net: torch.nn.Module, raster: SpikeRaster, pruning: Pruning) -> Pruned:
    """Prune ``net`` to a budget: scores from the dense network, rates restored, retrained, measured, trimmed.

    Budgets of SOPs and of energy are met in measured use: after each round the allocation is corrected by what was
    measured, a last trim by bisection removes what is too much, and single weights are given back until the measured
    use lies within [0.98 B, B], wherever such a budget is the one that binds. Where single weights are too coarse for
    that, ``shortfall`` says so.

    With ``pruning.structured`` whole channels (or neurons) go, and the shapes shrink. On a chip where single zeros save
    nothing, and without a chip, that is all; channels are coarse, so budgets may stay partly unspent. Where zeros pay,
    channels go only as far as neurons and axons of the cores ask for it, and single weights do the rest.

    Args:
        net: The dense network; it is not changed.
        raster: Calibration sample.
        pruning: How to prune.

    Raises:
        BudgetError: The budget cannot be met.
        SilentNetworkError: A layer of the dense network never fires.
    """
    pruning = replace(pruning, method=resolve_method(pruning.method, pruning.budget))
    if not pruning.structured:
        return prune_weights(net, raster, pruning)
    profile, directory = pruning.budget.profile, pruning.directory
    zeros_follow = profile is not None and profile.sparsity.unstructured
    if not zeros_follow and (pruning.schedule != "one-shot" or pruning.balance):
        raise BudgetError(
            "structured: channels go in one shot, and what is left has nothing to balance; "
            "leave out schedule and balance, or name a chip on which single zeros pay"
        )
    first = replace(pruning, directory=None if directory is None else directory / "channels")
    whole = prune_channels(net, raster, first, zeros_follow=zeros_follow)
    if not zeros_follow:
        return whole
    budget = _of_smaller(pruning.budget, net, whole.net, raster)
    second = replace(pruning, budget=budget, directory=None if directory is None else directory / "weights")
    if _holds(whole, raster, budget):
        return whole
    rest = prune_weights(whole.net, raster, second)
    binding = (*rest.plan.binding, *(name for name in whole.plan.binding if name not in rest.plan.binding))
    plan = replace(rest.plan, binding=binding)
    return replace(rest, channels=whole.channels, rounds=(*whole.rounds, *rest.rounds), plan=plan)


def _holds(pruned: Pruned, raster: SpikeRaster, budget: Budget) -> bool:
    """Whether every budget holds as it is, so that no single weight has to go."""
    graph, _ = read_graph(pruned.net, raster.features, raster.dt)
    activity = calibrate(graph, raster.batches(BATCH), fold=False)
    if exceeds(use_of(graph, activity, budget), budget):
        return False
    return other_budgets_hold(graph, activity, pruned.masks, budget)


def _of_smaller(budget: Budget, net: torch.nn.Module, small: torch.nn.Module, raster: SpikeRaster) -> Budget:
    """Return the budget with a density, which is a share of the whole network, as a share of the smaller one."""
    if budget.density is None and budget.sparsity is None:
        return budget
    total, left = (weight_count(read_graph(each, raster.features, raster.dt)[0]) for each in (net, small))
    share = budget.density if budget.density is not None else 1 - float(budget.sparsity or 0.0)
    given = {name: value for name, value in budget.given.items() if name not in ("density", "sparsity")}
    given["density"] = min(1.0, share * total / left)
    return Budget(**given, profile=budget.profile, energy_set=budget.energy_set)
