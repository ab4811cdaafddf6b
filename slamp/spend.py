"""Meet budgets in measured use: remove weights by bisection, then move single ones."""

from __future__ import annotations

import numpy as np
import torch

from slamp.activity import Activity
from slamp.allocate import Plan, allocate, masked_graph
from slamp.budget import Budget
from slamp.capture import read_graph
from slamp.energy import on_host
from slamp.errors import BudgetError, MappingError
from slamp.fans import fans_hold
from slamp.graph import SpikingGraph
from slamp.mapping import place
from slamp.masks import Masks, make_masks, masked_copy
from slamp.measured import exceeds, measured_use, spent
from slamp.memory import memory_bits
from slamp.progress import ticker
from slamp.raster import SpikeRaster
from slamp.score import Scores
from slamp.taps import connections, weighted_sum

# A measured budget counts as spent when its use lies between this share of it and all of it.
SPENT = 0.98
TRIMS = 16
# Trials of moving single weights, and how many of them are moved at once at most.
STEPS = 96
STEP_WEIGHTS = 64


def trim(
    net: torch.nn.Module,
    scores: Scores,
    raster: SpikeRaster,
    budget: Budget,
    *,
    balance: str = "",
    progress: bool = False,
) -> tuple[torch.nn.Module, Plan]:
    """Remove the least important weights until measured use lies within [0.98 B, B], or as near below as it comes.

    Of several measured budgets the one that is used most counts. The bisection sees only what thresholds can give;
    where that jumps over the window, single weights decide, unless the masks are balanced, which those would undo.
    """
    limits = budget.measured
    measured = spent(measured_use(net, raster, budget), budget)
    low, high = 0.0, measured
    asked = (SPENT + 1) / 2
    below: tuple[float, torch.nn.Module, Plan] | None = None
    above: tuple[float, torch.nn.Module] = (measured, net)
    found = measured
    with ticker("trimming", TRIMS, shown=progress, unit="trials") as advance:
        for _ in range(TRIMS):
            advance(1)
            try:
                plan = allocate(
                    scores, budget.with_limits({name: asked * limit for name, limit in limits.items()}), balance=balance
                )
            except BudgetError:  # below one weight per layer
                low, asked = asked, (asked + high) / 2
                continue
            trimmed = masked_copy(net, make_masks(scores, plan))
            use = measured_use(trimmed, raster, budget)
            found, over = spent(use, budget), exceeds(use, budget)
            if not over and (below is None or found > below[0]):
                below = (found, trimmed, plan)
            if over and found < above[0]:
                above = (found, trimmed)
            if found >= SPENT and not over:
                return trimmed, plan
            low, high = (low, asked) if over else (asked, high)
            asked = (low + high) / 2
    if below is None:
        named = ", ".join(f"{name} {limit:g}" for name, limit in limits.items())
        raise BudgetError(
            f"budget: {named} cannot be reached by trimming; the last trial used {found:.3g} times that; "
            "ask for at least that"
        )
    if balance:
        return below[1], below[2]
    result = stepped(above[1], net, scores, raster, budget, progress=progress)
    if exceeds(measured_use(result, raster, budget), budget):
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
    """Move single weights until measured use lies within [0.98 B, B]; stay on the side of ``net`` until then.

    Below, the most important weights it lacks come back with the donor's values; above, the least important ones go. A
    few at a time, fewer where that leaves the window on the other side or exceeds another budget. A single weight that
    does is passed over and its layer put last: early layers change the spikes of all that follow. At most a tenth of
    the weights move: where removing them does not bring the use down, more of it would only do harm.
    """
    masks, use, size = masks_of(net, raster), measured_use(net, raster, budget), 1
    adding = spent(use, budget) < SPENT
    waiting = _by_worth(scores, masks, adding=adding)
    allowance = max(STEP_WEIGHTS, masks.kept // 10)
    with ticker("moving single weights", STEPS, shown=progress, unit="trials") as advance:
        for _ in range(STEPS):
            advance(1)
            chosen = waiting[: min(size, allowance)]
            if (spent(use, budget) >= SPENT and not exceeds(use, budget)) or not chosen:
                break
            arrays = {name: np.array(mask) for name, mask in masks.items()}
            for name, index in chosen:
                for node in scores.uses[name]:
                    arrays[node].reshape(-1)[index] = adding
            moved = Masks(arrays, masks.parameters)
            trial = merged(donor, net, moved)
            found = measured_use(trial, raster, budget)
            stays = not exceeds(found, budget) if adding else spent(found, budget) >= SPENT
            if stays and other_budgets_hold(scores.graph, scores.activity, moved, budget):
                net, masks, use = trial, moved, found
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
            cost = sum(float(scores.activity.layers[use].tap_events.mean()) for use in scores.uses[name]) or 1.0
        worth.append(found[index] / cost)
        names += [name] * len(index)
        indices.append(index)
    values = np.concatenate(worth)
    flat = np.concatenate(indices)
    order = np.argsort(-values if adding else values, kind="stable")
    return [(names[position], int(flat[position])) for position in order]


def other_budgets_hold(graph: SpikingGraph, activity: Activity | None, masks: Masks, budget: Budget) -> bool:
    """Whether the masks keep to every budget but the measured ones, and to the chip's limits of fan-in and fan-out.

    The activity says only which layers have analog input and stay on the host.
    """
    profile = budget.profile
    total, count = masks.size, masks.kept
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
    if profile is None:
        return True
    host = frozenset() if activity is None else on_host(graph, profile, activity)
    if not fans_hold(graph, masks.arrays, profile, host):
        return False
    limit = budget.memory_bits
    if limit is not None and memory_bits(graph, masks.arrays, profile, host) > limit:
        return False
    if budget.cores is None:
        return True
    try:
        return place(masked_graph(graph, masks.arrays), profile, host=host).cores <= budget.cores
    except MappingError:
        return False


def masks_of(net: torch.nn.Module, raster: SpikeRaster) -> Masks:
    """Which weights of a network are not zero."""
    graph, _ = read_graph(net, raster.features, raster.dt)
    return Masks({name: node.weight != 0 for name, node in graph.weighted.items()}, graph.parameters)
