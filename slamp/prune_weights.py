"""Prune single weights, recover and retrain until every budget holds in measured use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch

from slamp.activity import Activity
from slamp.allocate import Plan, allocate
from slamp.allocate_channels import ChannelPlan
from slamp.balance import check_balance
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import graph_of
from slamp.channels import Channels
from slamp.checkpoint import Checkpoint
from slamp.energy import on_host
from slamp.errors import ArtifactError, BudgetError, MappingError
from slamp.graph import SpikingGraph
from slamp.mapping import place
from slamp.masks import Masks, load_pruned, make_masks, masked_copy, save_pruned
from slamp.measured import BATCH, exceeds, measured_sops, measured_use, spent, use_of
from slamp.memory import memory_bits
from slamp.raster import SpikeRaster
from slamp.recover import recover
from slamp.retrain import Train, check_signature, retrain
from slamp.score import Scores, score
from slamp.spend import SPENT, masks_of, merged, other_budgets_hold, stepped, trim
from slamp.taps import dense_connections

Schedule = Literal["one-shot", "iterative"]
# Rounds aim a little above the budget, because the trim that ends them can only remove.
AIM = 1.02
MAX_ROUNDS = 4
KEEP_PER_ROUND = 0.8


@dataclass(frozen=True)
class Round:
    """One pass of allocation, recovery and retraining.

    Attributes:
        asked: Limit of every measured budget in this round, by name.
        predicted: What the plan expected.
        measured: What the recovered and retrained network takes.
        sops: SOPs per sample, measured.
        density: Share of the weights the plan keeps.
    """

    asked: Mapping[str, float]
    predicted: Mapping[str, float]
    measured: Mapping[str, float]
    sops: float
    density: float


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned, recovered and retrained network.

    Attributes:
        net: The network; pruned weights are zero.
        masks: Which weights stay.
        plan: The last allocation.
        rounds: What every round asked for and reached.
        sops: SOPs per sample measured on the calibration sample by the reference, exactly.
        channels: Which channels stay, if whole ones were removed; ``net`` and ``masks`` have the smaller shapes.
        shortfall: Why a binding budget of operations or energy is spent to less than 98 percent; empty if it is spent.
    """

    net: torch.nn.Module
    masks: Masks
    plan: Plan | ChannelPlan
    rounds: tuple[Round, ...]
    sops: float
    shortfall: str = ""
    channels: Channels | None = None


@dataclass(frozen=True, eq=False)
class Pruning:
    """How to prune: everything `prune` needs besides the network and the sample.

    Attributes:
        budget: Limits that must hold in the end.
        method: Scoring method, or "auto".
        readout: How the output is read over time: "mean", "sum", "last" or "max".
        schedule: "one-shot", or "iterative": a fifth of what is left of what the budget counts goes per round.
        train: The user's training function, or None to prune without retraining.
        seed: Decides all randomness.
        balance: "fan_out" to balance the masks, see `slamp.make_masks`.
        structured: Remove whole channels and neurons, so that shapes shrink.
        directory: Where finished rounds and training checkpoints are kept for resuming; None keeps nothing.
        progress: Show progress.
    """

    budget: Budget
    method: str = "auto"
    readout: str = "mean"
    schedule: Schedule = "one-shot"
    train: Train | None = None
    seed: int = 0
    directory: Path | None = None
    progress: bool = False
    balance: str = ""
    structured: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in ("one-shot", "iterative"):
            raise BudgetError(f"schedule: {self.schedule!r}; allowed are 'one-shot' and 'iterative'")
        check_balance(self.balance)
        if self.train is not None:
            check_signature(self.train)


def prune_weights(net: torch.nn.Module, raster: SpikeRaster, pruning: Pruning) -> Pruned:
    """Prune single weights of ``net`` to a budget; see `slamp.prune`."""
    graph = graph_of(net, raster)
    dense = calibrate(graph, raster.batches(BATCH), progress=pruning.progress)
    scores = scores_of(graph, dense, raster, pruning)
    if pruning.schedule == "iterative":
        pruned, plan, rounds = _iterative(net, raster, pruning, scores, dense)
    else:
        pruned, plan, rounds = _one_shot(net, raster, pruning, scores, dense, [], 1.0)
    budget = pruning.budget
    shortfall = ""
    if budget.measured:
        use = measured_use(pruned, raster, budget)
        if exceeds(use, budget):
            current = graph_of(pruned, raster)
            scores = scores_of(current, calibrate(current, raster.batches(BATCH)), raster, pruning)
            pruned, plan = trim(pruned, scores, raster, budget, balance=pruning.balance, progress=pruning.progress)
        elif spent(use, budget) < SPENT and _measured_binds(plan, budget) and not pruning.balance:
            pruned = stepped(pruned, net, scores, raster, budget, progress=pruning.progress)
        use = measured_use(pruned, raster, budget)
        if exceeds(use, budget):
            raise BudgetError(
                f"budget: {budget.measured} is exceeded by {use} measured after trimming; this is a defect"
            )
        if spent(use, budget) < SPENT and _measured_binds(plan, budget):
            what = "SOP" if "energy_pj" not in plan.binding else "energy"
            why = "of the weights tried, every one more exceeds a budget"
            if pruning.balance:
                why = "masks are balanced, and single weights would undo that"
            shortfall = f"{spent(use, budget):.1%} of the {what} budget is spent: {why}"
    masks = masks_of(pruned, raster)
    if not other_budgets_hold(scores.graph, scores.activity, masks, budget):
        raise BudgetError("budget: the pruned network exceeds a budget its plan kept to; this is a defect")
    asked = {name: (plan.usage[name][0], limit) for name, limit in budget.measured.items() if name in plan.usage}
    plan = replace(plan, usage=MappingProxyType({**plan.usage, **asked}))
    return Pruned(pruned, masks, plan, tuple(rounds), measured_sops(pruned, raster), shortfall)


def _measured_binds(plan: Plan, budget: Budget) -> bool:
    return any(name in plan.binding for name in budget.measured)


def _one_shot(
    net: torch.nn.Module,
    raster: SpikeRaster,
    pruning: Pruning,
    scores: Scores,
    dense: Activity,
    rounds: list[Round],
    effort: float,
) -> tuple[torch.nn.Module, Plan, list[Round]]:
    """Prune to the budget, and again with a corrected SOP budget until the measured one can be trimmed to it.

    ``rounds`` are those that went before; the new ones are added.
    """
    budget = pruning.budget
    asked = dict(budget.measured)
    before = len(rounds)
    current: torch.nn.Module | None = None
    over: tuple[torch.nn.Module, Plan] | None = None  # the last that a trim can bring to the budget
    while True:
        try:
            plan = allocate(scores, budget.with_limits(asked), balance=pruning.balance, progress=pruning.progress)
        except BudgetError:
            if current is None:
                raise
            break  # the correction asked for less than one weight per layer; trimming decides
        masks = make_masks(scores, plan)
        start = net if current is None else merged(net, current, masks)
        share = effort if current is None else effort / 2
        current = recover_and_retrain(start, masks, raster, pruning, dense, len(rounds), share)
        rounds.append(finished_round(current, raster, plan, budget, asked))
        if not asked or _settled(rounds[before:], plan, budget):
            break
        last = rounds[-1]
        if spent(last.measured, budget) >= 1:
            over = (current, plan)
        # Where weights are few, a correction may change nothing; each further one asks for more.
        aim = AIM ** (len(rounds) - before)
        most = {} if scores.activity is None else use_of(scores.graph, scores.activity, budget)
        asked = {
            name: min(last.predicted[name] * aim * limit / (last.measured[name] or 1.0), most.get(name, math.inf))
            for name, limit in budget.measured.items()
        }
    if over is not None and spent(rounds[-1].measured, budget) < SPENT:
        current, plan = over
    return current, plan, rounds


def _settled(rounds: list[Round], plan: Plan, budget: Budget) -> bool:
    """True if trimming can finish the job, or more rounds would not change it."""
    used = spent(rounds[-1].measured, budget)
    if len(rounds) == MAX_ROUNDS:
        return True
    if used < SPENT:
        return not _measured_binds(plan, budget)
    return used <= 1 or (len(rounds) >= 2 and used <= 1.05)


def _iterative(
    net: torch.nn.Module, raster: SpikeRaster, pruning: Pruning, scores: Scores, dense: Activity
) -> tuple[torch.nn.Module, Plan, list[Round]]:
    """Approach every budget by a fifth per round; the last round is a one-shot pruning from where the others led."""
    totals = _dense_usage(scores, dense, pruning.budget)
    count = _round_count(pruning.budget, totals)
    effort = 1.0 / count
    rounds: list[Round] = []
    current = net
    for index in range(count - 1):
        relaxed = _relaxed(pruning.budget, totals, KEEP_PER_ROUND ** (index + 1))
        plan = allocate(scores, relaxed, balance=pruning.balance, progress=pruning.progress)
        current = recover_and_retrain(current, make_masks(scores, plan), raster, pruning, dense, index, effort)
        rounds.append(finished_round(current, raster, plan, pruning.budget, {}))
        graph = graph_of(current, raster)
        scores = scores_of(graph, calibrate(graph, raster.batches(BATCH)), raster, pruning)
    return _one_shot(current, raster, pruning, scores, dense, rounds, effort)


def _dense_usage(scores: Scores, dense: Activity, budget: Budget) -> dict[str, float]:
    graph, profile = scores.graph, budget.profile
    synapses = sum(
        dense_connections(node, graph.shapes[graph.sources(name)[0]]) for name, node in graph.weighted.items()
    )
    totals = {"density": 1.0, "sparsity": 1.0, "synapses": float(synapses), **use_of(scores.graph, dense, budget)}
    if budget.memory_bits is not None and profile is not None:
        whole = {name: node.weight != 0 for name, node in graph.weighted.items()}
        totals["memory_bits"] = memory_bits(graph, whole, profile, on_host(graph, profile, dense))
    if budget.cores is not None and profile is not None:
        host = on_host(graph, profile, dense)
        try:
            totals["cores"] = float(place(graph, profile, host=host).cores)
        except MappingError:  # the dense network cannot be placed at all
            totals["cores"] = 2 * budget.cores
    return totals


def _kept_shares(budget: Budget, totals: Mapping[str, float]) -> dict[str, float]:
    """Share of the dense network's usage that every budget leaves."""
    return {
        name: 1.0 - value if name == "sparsity" else value / totals[name]
        for name, value in budget.given.items()
        if totals[name] > 0
    }


def _round_count(budget: Budget, totals: Mapping[str, float]) -> int:
    least = min(_kept_shares(budget, totals).values(), default=1.0)
    return max(1, math.ceil(math.log(least) / math.log(KEEP_PER_ROUND) - 1e-9))


def _relaxed(budget: Budget, totals: Mapping[str, float], share: float) -> Budget:
    """Return the budget, but no limit below ``share`` of the dense network's usage.

    Measured use ends where the spikes end, a little off the plan; a fifth is left to the last round, which corrects for
    it. Cores are whole, and wait for the last round.
    """
    kept = _kept_shares(budget, totals)
    kept |= {name: min(1.0, kept[name] / KEEP_PER_ROUND) for name in budget.measured if name in kept}
    if kept.pop("cores", None) is not None and not kept:
        kept["density"] = 0.0
    kept = {name: max(share, least) for name, least in kept.items()}
    limits = {name: 1.0 - value if name == "sparsity" else value * totals[name] for name, value in kept.items()}
    given = {name: value for name, value in {**budget.given, **limits}.items() if name != "cores"}
    return Budget(**given, profile=budget.profile, energy_set=budget.energy_set)


def recover_and_retrain(
    start: torch.nn.Module,
    masks: Masks,
    raster: SpikeRaster,
    pruning: Pruning,
    dense: Activity,
    index: int,
    effort: float,
) -> torch.nn.Module:
    """Restore the rates of ``dense`` under masks and retrain, or take the round ``index`` that was finished before."""
    finished = None if pruning.directory is None else pruning.directory / f"round-{index}.safetensors"
    if finished is not None and finished.exists():
        state, stored = load_pruned(finished)
        if stored.hash != masks.hash:
            raise ArtifactError(f"{finished}: belongs to another run; delete it, or run without --resume")
        resumed = masked_copy(start, masks)
        resumed.load_state_dict(state)
        return resumed
    per: Literal["layer", "neuron"] = "neuron" if pruning.train is None else "layer"
    result = recover(start, masks, raster, per=per, targets=dense, progress=pruning.progress)
    if pruning.train is not None:
        # The name says what is trained: a checkpoint left by a run with other masks is not taken for this one's.
        kept = f"train-{index}-{masks.hash[:12]}.pt"
        checkpoint = Checkpoint(None if pruning.directory is None else pruning.directory / kept)
        result = retrain(
            result,
            masks,
            pruning.train,
            effort=effort,
            generator=np.random.default_rng([pruning.seed, index]),
            checkpoint=checkpoint,
            progress=pruning.progress,
        )
        if finished is not None:
            save_pruned(result, masks, finished)
            checkpoint.clear()
    return result


def scores_of(graph: SpikingGraph, activity: Activity, raster: SpikeRaster, pruning: Pruning) -> Scores:
    """Score a network as the pruning asks."""
    generator = np.random.default_rng([pruning.seed, 1 << 16])
    return score(graph, activity, pruning.method, readout=pruning.readout, raster=raster, generator=generator)


def finished_round(
    net: torch.nn.Module, raster: SpikeRaster, plan: Plan | ChannelPlan, budget: Budget, asked: Mapping[str, float]
) -> Round:
    """Measure what a round led to."""
    graph = graph_of(net, raster)
    activity = calibrate(graph, raster.batches(BATCH), fold=False)
    predicted = {name: plan.usage[name][0] for name in budget.measured if name in plan.usage}
    return Round(dict(asked), predicted, use_of(graph, activity, budget), activity.sops, plan.density)
