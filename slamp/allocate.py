"""`allocate`: how many weights every layer keeps, under any mix of budgets.

Budgets that are linear in the weights kept are solved by `slamp.plan`. Synaptic memory and cores of a chip follow from
the masks alone: what the linear budget of memory has to be is found by an outer search that asks the chip's own rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from slamp.balance import check_balance, kept_masks
from slamp.budget import Budget
from slamp.energy import on_host
from slamp.errors import BudgetError, MappingError
from slamp.fans import within_fans
from slamp.graph import SpikingGraph
from slamp.mapping import MAPPED, cores_taken, place, too_many_cores
from slamp.memory import layer_memory_bits, zeros_save_memory
from slamp.nodes import frozen_array
from slamp.plan import Plan, linear_plan
from slamp.profile import Profile
from slamp.score import Scores

__all__ = ["Plan", "allocate", "masked_graph", "masks_of_plan"]

# Rounds and trials of the outer search, and the share of a memory budget that counts as spent.
ROUNDS, TRIALS = 2, 10
SPENT = 0.98


def allocate(scores: Scores, budget: Budget, *, cost_aware: bool = True, balance: str = "") -> Plan:
    """Divide the budgets over the layers.

    No budget is exceeded, no layer is emptied, and no further weight would fit (up to the steps of the outer search,
    under budgets of memory and cores). Zero weights are never kept. With a chip in the budget, its limits of fan-in
    and fan-out hold for every neuron.

    Args:
        scores: Result of `slamp.score`.
        budget: What the network may cost; SOPs and energy are predicted at the calibrated spikes.
        cost_aware: Whether a weight that costs less may score less. The baselines never do this.
        balance: "fan_out" if the masks are to be balanced (see `slamp.make_masks`), so that memory and cores are
            accounted as the balanced masks take them.

    Raises:
        BudgetError: A budget is below its least possible usage (the message names it), or SOPs are asked without
            activity.
    """
    check_balance(balance)
    profile = budget.profile
    cost_aware = cost_aware and not scores.cost_blind
    scores = within_fans(scores, profile)
    if budget.memory_bits is None and budget.cores is None:
        plan = linear_plan(scores, budget, cost_aware=cost_aware, bits_per_weight={})
    else:
        name = "memory_bits" if budget.memory_bits is not None else "cores"
        if profile is None:
            raise BudgetError(f"{name}: depends on the chip; use profile.budget({name}=...), or --profile NAME")
        plan = _searched(_Chip(scores, profile, budget, balance), cost_aware)
    return replace(plan, profile=profile, balance=balance)


def masks_of_plan(
    scores: Scores, keep: Mapping[str, int], profile: Profile | None, balance: str
) -> dict[str, np.ndarray]:
    """Return the masks that keep those numbers of weights, balanced within the parts the chip places on one core."""
    plain = kept_masks(scores, keep)
    if not balance:
        return plain
    activity = scores.activity
    host = on_host(scores.graph, profile, activity) if activity is not None and profile is not None else ()
    return kept_masks(scores, keep, balance, _output_ranges(masked_graph(scores.graph, plain), profile, host))


def masked_graph(graph: SpikingGraph, masks: Mapping[str, np.ndarray]) -> SpikingGraph:
    """Return the graph whose weights outside the masks are zero."""
    return graph.with_nodes(
        {name: replace(node, weight=frozen_array(node.weight * masks[name])) for name, node in graph.weighted.items()}
    )


def _output_ranges(graph: SpikingGraph, profile: Profile | None, host: Collection[str]) -> dict[str, list[range]]:
    """Return the output ranges of each layer that lie on one core each; nothing where the chip places nothing."""
    if profile is None or profile.mapping.rule not in MAPPED:
        return {}
    try:
        layers = place(graph, profile, host=host).layers()
    except MappingError:
        return {}
    return {
        name: [range(*channels) for channels in sorted({part.channels for part in parts})]
        for name, parts in layers.items()
        if name in graph.weighted
    }


@dataclass(frozen=True, eq=False)
class _Chip:
    """What masks take of a chip, by its own rules."""

    scores: Scores
    profile: Profile
    budget: Budget
    balance: str

    @property
    def host(self) -> frozenset[str]:
        activity = self.scores.activity
        return frozenset() if activity is None else on_host(self.scores.graph, self.profile, activity)

    def masks(self, keep: Mapping[str, int]) -> dict[str, np.ndarray]:
        return masks_of_plan(self.scores, keep, self.profile, self.balance)

    def graph(self, masks: Mapping[str, np.ndarray]) -> SpikingGraph:
        return masked_graph(self.scores.graph, masks)

    def bits(self, masks: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {name: layer_memory_bits(self.scores.graph, name, mask, self.profile) for name, mask in masks.items()}

    def refusal(self, masks: Mapping[str, np.ndarray]) -> str:
        """Why masks take more cores than there are; empty if they do not, or cores have no budget."""
        if self.budget.cores is None:
            return ""
        graph = self.graph(masks)
        try:
            if cores_taken(graph, self.profile, self.host) <= self.budget.cores:
                return ""
            return too_many_cores(place(graph, self.profile, host=self.host), int(self.budget.cores))
        except MappingError as error:
            return str(error)


def _searched(chip: _Chip, cost_aware: bool) -> Plan:
    """Allocate under budgets of memory or cores, of which only the masks can tell whether they hold.

    Within one allocation every weight of a layer takes the same: first what it takes at a guess, then what it took in
    the best plan. How much memory that linear budget may be is found by bisection on what the masks really take.
    """
    scores, budget = chip.scores, chip.budget
    live = {name: layer.curve.live for name, layer in scores.layers.items()}
    _check_least(chip)
    if budget.memory_bits is None and not _memory_counts(chip):  # no zero changes the number of cores
        plan = linear_plan(scores, budget, cost_aware=cost_aware, bits_per_weight={})
        return _with_use(plan, chip, chip.masks(plan.keep))
    whole = sum(chip.bits(chip.masks(live)).values())
    limit = whole if budget.memory_bits is None else budget.memory_bits
    share = min(1.0, limit / whole)
    keep = {name: max(1, round(share * n)) for name, n in live.items()}
    most, best = 0.0, None
    for _ in range(ROUNDS):
        per_weight = {name: bits / keep[name] for name, bits in chip.bits(chip.masks(keep)).items()}
        low, high = 0.0, sum(per_weight[name] * n for name, n in live.items())
        asked = high if budget.memory_bits is None else min(limit * (1 + SPENT) / 2, high)
        for _ in range(TRIALS):
            try:
                plan = linear_plan(
                    scores, replace(budget, memory_bits=asked), cost_aware=cost_aware, bits_per_weight=per_weight
                )
            except BudgetError as error:
                if not str(error).startswith("memory_bits"):
                    raise
                low, asked = asked, (asked + high) / 2  # below one weight per layer, as they are accounted here
                continue
            masks = chip.masks(plan.keep)
            used = sum(chip.bits(masks).values())
            fits = used <= limit and not chip.refusal(masks)
            if fits and used > most:
                most, keep, best = used, dict(plan.keep), _with_use(plan, chip, masks)
            if fits and (used >= SPENT * limit or "memory_bits" not in plan.binding):
                assert best is not None
                return best
            low, high = (asked, high) if fits else (low, asked)
            asked = (low + high) / 2
    if best is None:
        name = "memory_bits" if budget.memory_bits is not None else "cores"
        raise BudgetError(f"{name}: no plan within {budget.given[name]:.6g} was found; ask for a little more")
    return best


def _memory_counts(chip: _Chip) -> bool:
    """Whether zeros can change the number of cores: the chip is placed part by part, and stores lists of non-zeros."""
    if chip.profile.mapping.rule != "contiguous":
        return False
    return zeros_save_memory(chip.scores.graph, chip.profile)


def _check_least(chip: _Chip) -> None:
    """Refuse a budget that even one weight per layer exceeds."""
    profile, budget = chip.profile, chip.budget
    least = chip.masks({name: layer.minimum for name, layer in chip.scores.layers.items()})
    if budget.memory_bits is not None:
        needed = sum(chip.bits(least).values())
        if needed > budget.memory_bits:
            saves = "" if profile.sparsity.unstructured else f"; single zeros save nothing there: {_reason(profile)}"
            raise BudgetError(
                f"memory_bits: the budget is {budget.memory_bits:.6g}, but one weight per layer needs {needed:.6g} on "
                f"{profile.name}{saves}; ask for at least that"
                + ("" if profile.sparsity.unstructured else ", or remove whole channels (structured)")
            )
    if refusal := chip.refusal(least):
        raise BudgetError(
            f"cores: even with one weight per layer, {refusal}; single zeros do not help there: "
            "remove whole channels (structured), or ask for more cores"
        )


def _reason(profile: Profile) -> str:
    return profile.sparsity.reason.rstrip(".")


def _with_use(plan: Plan, chip: _Chip, masks: Mapping[str, np.ndarray]) -> Plan:
    """Return a plan with what its masks take of memory and cores, and what more of either would gain."""
    budget = chip.budget
    usage, multipliers = dict(plan.usage), dict(plan.multipliers)
    gain = multipliers.pop("memory_bits", 0.0)
    usage.pop("memory_bits", None)
    binding = [name for name in plan.binding if name != "memory_bits"]
    bits = sum(chip.bits(masks).values()) if budget.memory_bits is not None else 0.0
    memory_binds = budget.memory_bits is not None and (budget.cores is None or bits >= SPENT * budget.memory_bits)
    if budget.memory_bits is not None:
        usage["memory_bits"] = (bits, budget.memory_bits)
        multipliers["memory_bits"] = gain if memory_binds else 0.0
    if budget.cores is not None:
        usage["cores"] = (float(cores_taken(chip.graph(masks), chip.profile, chip.host)), budget.cores)
        core = chip.profile.limits.synapse_bits_per_core
        room = 0.0 if core is None or core.value is None else core.number
        multipliers["cores"] = 0.0 if memory_binds else gain * room
    if gain > 0:
        binding.append("memory_bits" if memory_binds else "cores")
    return replace(
        plan,
        usage=MappingProxyType(usage),
        multipliers=MappingProxyType(multipliers),
        binding=tuple(binding),
    )
