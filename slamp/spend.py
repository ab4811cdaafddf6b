"""Meet a SOP budget in measured use: remove weights by bisection, then move single ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from slamp.allocate import Plan, allocate
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import read_graph
from slamp.errors import BudgetError
from slamp.graph import SpikingGraph
from slamp.masks import Masks, make_masks, masked_copy
from slamp.memory import memory_bits
from slamp.progress import ticker
from slamp.raster import SpikeRaster
from slamp.score import Scores
from slamp.taps import connections, weighted_sum

# A SOP budget counts as spent when measured use lies between this share of it and all of it.
SPENT = 0.98
TRIMS = 16
# Trials of moving single weights, and how many of them are moved at once at most.
STEPS = 96
STEP_WEIGHTS = 64
BATCH = 128


def measured_sops(net: torch.nn.Module, raster: SpikeRaster) -> float:
    """SOPs per sample of a network, counted exactly on the reference's spikes."""
    graph, _ = read_graph(net, raster.features, raster.dt)
    return calibrate(graph, raster.batches(BATCH), fold=False).sops


def trim(
    net: torch.nn.Module, scores: Scores, raster: SpikeRaster, budget: Budget, *, progress: bool = False
) -> tuple[torch.nn.Module, Plan]:
    """Remove the least important weights until measured SOPs lie within [0.98 B, B], or as near below as they come.

    The bisection sees only what thresholds can give; where that jumps over the window, single weights decide.
    """
    limit = budget.sops
    assert limit is not None
    measured = measured_sops(net, raster)
    low, high = 0.0, measured
    asked = limit * (SPENT + 1) / 2
    below: tuple[float, torch.nn.Module, Plan] | None = None
    above: tuple[float, torch.nn.Module] = (measured, net)
    found = measured
    with ticker("trimming", TRIMS, shown=progress, unit="trials") as advance:
        for _ in range(TRIMS):
            advance(1)
            try:
                plan = allocate(scores, replace(budget, sops=asked))
            except BudgetError:  # below one weight per layer
                low, asked = asked, (asked + high) / 2
                continue
            trimmed = masked_copy(net, make_masks(scores, plan))
            found = measured_sops(trimmed, raster)
            if found <= limit and (below is None or found > below[0]):
                below = (found, trimmed, plan)
            if limit < found < above[0]:
                above = (found, trimmed)
            if SPENT * limit <= found <= limit:
                return trimmed, plan
            low, high = (asked, high) if found <= limit else (low, asked)
            asked = (low + high) / 2
    if below is None:
        raise BudgetError(
            f"budget: sops {limit:g} cannot be reached by trimming; the last trial used {found:g}; "
            "ask for at least that"
        )
    result = stepped(above[1], net, scores, raster, budget, progress=progress)
    if measured_sops(result, raster) > limit:
        result = stepped(below[1], net, scores, raster, budget, progress=progress)
    return result, below[2]


def stepped(
    net: torch.nn.Module,
    donor: torch.nn.Module,
    scores: Scores,
    raster: SpikeRaster,
    budget: Budget,
    *,
    progress: bool = False,
) -> torch.nn.Module:
    """Move single weights until measured SOPs lie within [0.98 B, B]; stay on the side of ``net`` until then.

    Below, the most important weights it lacks come back with the donor's values; above, the least important ones go. A
    few at a time, fewer where that leaves the window on the other side or exceeds another budget. A single weight that
    does is passed over and its layer put last: early layers change the spikes of all that follow. At most a tenth of
    the weights move: where removing them does not bring SOPs down, more of it would only do harm.
    """
    limit = budget.sops
    assert limit is not None
    least = SPENT * limit
    masks, used, size = masks_of(net, raster), measured_sops(net, raster), 1
    adding = used < least
    waiting = _by_worth(scores, masks, adding=adding)
    allowance = max(STEP_WEIGHTS, sum(int(np.count_nonzero(mask)) for _, mask in masks.items()) // 10)
    with ticker("moving single weights", STEPS, shown=progress, unit="trials") as advance:
        for _ in range(STEPS):
            advance(1)
            chosen = waiting[: min(size, allowance)]
            if least <= used <= limit or not chosen:
                break
            arrays = {name: np.array(mask) for name, mask in masks.items()}
            for name, index in chosen:
                arrays[name].reshape(-1)[index] = adding
            moved = Masks(arrays, masks.parameters)
            trial = merged(donor, net, moved)
            found = measured_sops(trial, raster)
            stays = found <= limit if adding else found >= least
            if stays and other_budgets_hold(scores.graph, moved, budget):
                net, masks, used = trial, moved, found
                waiting = waiting[len(chosen) :]
                allowance -= len(chosen)
                size = min(2 * size, STEP_WEIGHTS)
            elif size > 1:
                size //= 2
            else:
                waiting = sorted(waiting[1:], key=lambda entry: entry[0] == chosen[0][0])
    return net


def merged(donor: torch.nn.Module, current: torch.nn.Module, masks: Masks) -> torch.nn.Module:
    """Return ``current`` in which weights that come back under ``masks`` have the donor's value."""
    merged = masked_copy(current, masks)
    with torch.no_grad():
        for name, where in masks.parameters.items():
            parameter = merged.get_parameter(where)
            back = torch.tensor(masks[name], device=parameter.device) & (parameter == 0)
            parameter[back] = donor.get_parameter(where)[back]
    return merged


def _by_worth(scores: Scores, masks: Masks, *, adding: bool) -> list[tuple[str, int]]:
    """Return (layer, flat index) of live weights by score per predicted SOP: the best lacking, or the least kept.

    The best weight of a layer never goes.
    """
    worth, names, indices = [], [], []
    for name in scores.layers:
        found = scores[name].reshape(-1)
        kept = masks[name].reshape(-1)
        movable = ~kept & (found > 0) if adding else kept & (found < found[kept].max())
        index = np.flatnonzero(movable)
        cost = 1.0
        if scores.activity is not None and not scores.cost_blind:
            cost = float(scores.activity.layers[name].tap_events.mean()) or 1.0
        worth.append(found[index] / cost)
        names += [name] * len(index)
        indices.append(index)
    values = np.concatenate(worth)
    flat = np.concatenate(indices)
    order = np.argsort(-values if adding else values, kind="stable")
    return [(names[position], int(flat[position])) for position in order]


def other_budgets_hold(graph: SpikingGraph, masks: Masks, budget: Budget) -> bool:
    """Whether the masks keep to every budget but SOPs."""
    total = sum(array.size for _, array in masks.items())
    count = sum(int(np.count_nonzero(array)) for _, array in masks.items())
    if budget.density is not None and count / total > budget.density:
        return False
    if budget.sparsity is not None and (total - count) / total < budget.sparsity:
        return False
    if budget.synapses is not None:
        used = sum(
            weighted_sum(node, masks[name], connections(node, graph.shapes[graph.sources(name)[0]]))
            for name, node in graph.weighted.items()
        )
        if used > budget.synapses:
            return False
    if budget.memory_bits is None or budget.profile is None:
        return True
    return memory_bits(graph, masks.arrays, budget.profile) <= budget.memory_bits


def masks_of(net: torch.nn.Module, raster: SpikeRaster) -> Masks:
    """Which weights of a network are not zero."""
    graph, _ = read_graph(net, raster.features, raster.dt)
    return Masks({name: node.weight != 0 for name, node in graph.weighted.items()}, graph.parameters)
