"""The outer search of budgets that only the masks can tell: synaptic memory, and cores a network is placed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np

from slamp.balance import kept_masks
from slamp.budget import Budget
from slamp.channels import removable
from slamp.errors import BudgetError, MappingError
from slamp.fans import host_of
from slamp.graph import SpikingGraph
from slamp.mapping import CoreMap, check_placeable, place, shares_cores, too_many_cores
from slamp.memory import layer_memory_bits, zeros_save_memory
from slamp.nodes import frozen_array
from slamp.plan import LinearUse, Plan, linear_plan
from slamp.profile import Profile
from slamp.progress import ticker
from slamp.score import Scores

# Rounds and trials of the search, trials per layer of the filling, and the share of a budget that counts as spent.
ROUNDS, TRIALS, FILLS = 2, 10, 12
SPENT = 0.98
# Splitting lists over cores can save some index bits; with this much more than there is, nothing fits for certain.
CERTAIN = 1.25
# Filling places the network again and again; beyond so many weights that takes minutes, and is left out.
FILL_WEIGHTS = 1 << 21


@dataclass(eq=False)
class Chip:
    """What masks take of a chip, by its own rules; layers on the host take nothing."""

    scores: Scores
    profile: Profile
    budget: Budget
    balance: str
    known: dict[tuple[str, int], float] = field(default_factory=dict)

    @cached_property
    def host(self) -> frozenset[str]:
        """Nodes that stay on the host."""
        return host_of(self.scores, self.profile)

    @cached_property
    def zeros_save(self) -> bool:
        """Whether zeros save synaptic memory on the chip."""
        return zeros_save_memory(self.scores.graph, self.profile, self.host)

    @cached_property
    def linear(self) -> LinearUse:
        """The budgets that are linear in the weights kept."""
        return LinearUse(self.scores, self.budget)

    def masks(self, keep: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return the masks of a plan."""
        return masks_of_plan(self.scores, keep, self.profile, self.balance)

    def bits(self, keep: Mapping[str, int]) -> dict[str, float]:
        """Bits of every layer that a plan keeps so many weights of, all its uses together."""
        if not self.balance:  # what one layer takes does not depend on the others
            for name, n in keep.items():
                if (name, n) not in self.known:
                    self.known[name, n] = self._bits_of_uses(name, self.scores.largest(name, n))
            return {name: self.known[name, n] for name, n in keep.items()}
        masks = self.masks(keep)
        return {name: self._bits_of_uses(name, masks[name]) for name in keep}

    def _bits_of_uses(self, name: str, mask: np.ndarray) -> float:
        on_chip = [use for use in self.scores.uses[name] if use not in self.host]
        return sum(layer_memory_bits(self.scores.graph, use, mask, self.profile) for use in on_chip)

    def placed(self, keep: Mapping[str, int]) -> CoreMap:
        """Place what a plan keeps; raises `MappingError` where no number of cores would do."""
        return place(masked_graph(self.scores.graph, self.masks(keep)), self.profile, host=self.host)

    def cores_hold(self, keep: Mapping[str, int], bits: float) -> bool:
        """Whether a plan keeps to the budget of cores; ``bits`` is its synaptic memory, where that was counted."""
        cores = self.budget.cores
        if cores is None:
            return True
        room = self.profile.limits.synapse_bits_per_core
        if room is not None and room.value is not None and bits > CERTAIN * cores * room.number:
            return False
        try:
            return self.placed(keep).cores <= cores
        except MappingError:
            return False

    def holds(self, keep: Mapping[str, int]) -> bool:
        """Whether a plan keeps to every budget."""
        if not self.linear.holds(keep):
            return False
        bits = sum(self.bits(keep).values()) if self.counts_bits else 0.0
        if self.budget.memory_bits is not None and bits > self.budget.memory_bits:
            return False
        return self.cores_hold(keep, bits)

    @property
    def counts_bits(self) -> bool:
        """Whether bits are to be counted: for a budget of them, or because zeros save cores through them."""
        return self.budget.memory_bits is not None or self.zeros_save

    def worth(self, keep: Mapping[str, int]) -> float:
        """The objective: scores of all weights kept, the largest of each layer left out."""
        return sum(self.scores.layers[name].curve.total(n) for name, n in keep.items())


def masks_of_plan(
    scores: Scores, keep: Mapping[str, int], profile: Profile | None, balance: str
) -> dict[str, np.ndarray]:
    """Return the masks that keep those numbers of weights, balanced within the parts the chip places on one core."""
    plain = kept_masks(scores, keep)
    if not balance:
        return plain
    return kept_masks(scores, keep, balance, _output_ranges(masked_graph(scores.graph, plain), scores, profile))


def masked_graph(graph: SpikingGraph, masks: Mapping[str, np.ndarray]) -> SpikingGraph:
    """Return the graph whose weights outside the masks are zero."""
    return graph.with_nodes(
        {name: replace(node, weight=frozen_array(node.weight * masks[name])) for name, node in graph.weighted.items()}
    )


def _output_ranges(graph: SpikingGraph, scores: Scores, profile: Profile | None) -> dict[str, list[range]]:
    """Return the output ranges of each layer that lie on one core each; nothing where the chip places no parts."""
    if profile is None or not shares_cores(profile):
        return {}
    try:
        layers = place(graph, profile, host=host_of(scores, profile)).layers()
    except MappingError:
        return {}
    return {
        name: [range(*channels) for channels in sorted({part.channels for part in parts})]
        for name, parts in layers.items()
        if name in graph.weighted
    }


def search(chip: Chip, *, cost_aware: bool, progress: bool) -> Plan:
    """Allocate under budgets of memory or cores, of which only the masks can tell whether they hold.

    Within one allocation every weight of a layer takes the same: first what it takes at a guess, then what it took in
    the best plan. How much memory that linear budget may be is found by bisection on what the masks really take; where
    zeros save no memory, but axons, the number of weights takes its place. Lists come in whole words, so layers are
    filled up in the end as far as every budget holds.
    """
    scores, budget = chip.scores, chip.budget
    _check_least(chip)
    live = {name: layer.curve.live for name, layer in scores.layers.items()}
    whole = sum(chip.bits(live).values()) if chip.counts_bits else 0.0
    limit = whole if budget.memory_bits is None else budget.memory_bits
    keep = {name: max(1, round(min(1.0, limit / (whole or 1.0)) * n)) for name, n in live.items()}
    best: tuple[float, Plan] | None = None
    with ticker("fitting the chip", ROUNDS * TRIALS, shown=progress, unit="trials") as advance:
        for attempt in range(ROUNDS if chip.zeros_save else 1):
            per_weight = dict.fromkeys(live, 1.0)
            if chip.zeros_save:
                per_weight = {name: bits / keep[name] for name, bits in chip.bits(keep).items()}
            low, high = 0.0, sum(per_weight[name] * n for name, n in live.items())
            aim = (1 + SPENT) / 2 if attempt == 0 else 1.0  # a guess first, then what the best plan really took
            asked = high if budget.memory_bits is None else min(limit * aim, high)
            for _ in range(TRIALS):
                advance(1)
                try:
                    given = replace(budget, memory_bits=asked)
                    plan = linear_plan(scores, given, cost_aware=cost_aware, bits_per_weight=per_weight)
                except BudgetError as error:
                    if not str(error).startswith("memory_bits"):
                        raise
                    low, asked = asked, (asked + high) / 2  # below one weight per layer, as they are accounted here
                    continue
                used = sum(chip.bits(plan.keep).values()) if chip.counts_bits else 0.0
                fits = used <= limit and chip.cores_hold(plan.keep, used)
                worth = chip.worth(plan.keep)
                if fits and (best is None or worth > best[0]):
                    best, keep = (worth, plan), dict(plan.keep)
                if fits and ("memory_bits" not in plan.binding or used == limit):
                    break
                low, high = (asked, high) if fits else (low, asked)
                asked = (low + high) / 2
            if best is not None and "memory_bits" not in best[1].binding:
                break
    if best is None:
        name = "memory_bits" if budget.memory_bits is not None else "cores"
        raise BudgetError(f"{name}: no plan within {budget.given[name]:.6g} was found; ask for a little more")
    return _as_asked(chip, best[1], _filled(chip, best[1], progress=progress))


def _filled(chip: Chip, plan: Plan, *, progress: bool) -> dict[str, int]:
    """Raise every layer, the one whose next weight is worth most first, as far as every budget holds."""
    keep = dict(plan.keep)
    curves = {name: layer.curve for name, layer in chip.scores.layers.items()}
    waiting = [name for name, n in keep.items() if n < curves[name].live]
    if "memory_bits" not in plan.binding or (chip.budget.cores is not None and sum(plan.sizes.values()) > FILL_WEIGHTS):
        return keep
    with ticker("filling up", len(waiting), shown=progress, unit="layers") as advance:
        for name in sorted(waiting, key=lambda layer: -curves[layer].value(keep[layer] + 1)):
            low, high = keep[name], curves[name].live + 1
            tried = curves[name].live
            for _ in range(FILLS):
                low, high = (tried, high) if chip.holds({**keep, name: tried}) else (low, tried)
                if high - low <= 1:
                    break
                tried = (low + high) // 2
            keep[name] = low
            advance(1)
    return keep


def _as_asked(chip: Chip, plan: Plan, keep: Mapping[str, int]) -> Plan:
    """Return a plan with what its masks take of memory and cores, and what more of either would gain."""
    budget = chip.budget
    multipliers = dict(plan.multipliers)
    gain = multipliers.pop("memory_bits", 0.0)
    if all(n == chip.scores.layers[name].curve.live for name, n in keep.items()):
        gain = 0.0  # everything stays after all
    usage = chip.linear.usage(keep)
    bits = sum(chip.bits(keep).values()) if budget.memory_bits is not None else 0.0
    memory_binds = budget.memory_bits is not None and (budget.cores is None or bits >= SPENT * budget.memory_bits)
    if budget.memory_bits is not None:
        usage["memory_bits"] = (bits, budget.memory_bits)
        multipliers["memory_bits"] = gain if memory_binds else 0.0
    if budget.cores is not None:
        usage["cores"] = (float(chip.placed(keep).cores), budget.cores)
        core = chip.profile.limits.synapse_bits_per_core
        room = core.number if chip.zeros_save and core is not None and core.value is not None else 1.0
        multipliers["cores"] = 0.0 if memory_binds else gain * room
    binding = [name for name in plan.binding if name != "memory_bits"]
    if gain > 0:
        binding.append("memory_bits" if memory_binds else "cores")
    return replace(
        plan,
        keep=MappingProxyType(dict(keep)),
        usage=MappingProxyType({name: usage[name] for name in (*plan.usage, *usage) if name in usage}),
        multipliers=MappingProxyType(multipliers),
        binding=tuple(binding),
    )


def _check_least(chip: Chip) -> None:
    """Refuse a budget that even one weight per layer exceeds."""
    profile, budget = chip.profile, chip.budget
    least = {name: layer.minimum for name, layer in chip.scores.layers.items()}
    if budget.memory_bits is not None:
        needed = sum(chip.bits(least).values())
        if needed > budget.memory_bits:
            saves = "" if profile.sparsity.unstructured else f"; single zeros save nothing there: {_reason(profile)}"
            raise BudgetError(
                f"memory_bits: the budget is {budget.memory_bits:.9g}, but one weight per layer needs {needed:.0f} on "
                f"{profile.name}{saves}; ask for at least that"
                + ("" if chip.zeros_save else ", or remove whole channels (structured)")
            )
    if budget.cores is None:
        return
    try:
        check_placeable(profile)
    except MappingError as error:
        raise BudgetError(f"cores: {error}") from error
    layers = [name for name in chip.scores.graph.weighted if name not in chip.host]
    if not shares_cores(profile) and len(layers) > budget.cores:
        raise BudgetError(
            f"cores: the budget is {budget.cores:.0f}, but {profile.name} puts no two layers on one core, and there "
            f"are {len(layers)}; ask for at least {len(layers)}"
        )
    try:
        found = chip.placed(least)
    except MappingError as error:
        raise BudgetError(f"cores: even with one weight per layer, {error}; {CHANNELS}") from error
    if found.cores > budget.cores:
        fixed = set(chip.scores.graph.weighted) - set(removable(chip.scores.graph))
        refusal = too_many_cores(found, int(budget.cores), fixed)
        raise BudgetError(f"cores: even with one weight per layer, {refusal}; {CHANNELS}, or ask for more cores")


CHANNELS = "single zeros do not help there: remove whole channels (structured)"


def _reason(profile: Profile) -> str:
    return profile.sparsity.reason.rstrip(".")
