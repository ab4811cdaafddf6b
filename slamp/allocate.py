"""`allocate`: how many weights every layer keeps, under any mix of budgets.

Maximizes ``sum_l A_l^(2 eta) log S_l(n_l)`` subject to ``sum_l c_{k,l} n_l <= B_k``: keep a weight if and only if its
score is at least ``sum_k lambda_k c_{k,l}``. Each layer term is concave in ``n_l``, so for any multipliers the result
is optimal for the budget it attains; against the budgets asked the loss is at most the score of one weight per budget.

Ranking uses a layer's mean cost, accounting the exact cost of every tap (ranking taps by cost overshoots: quiet inputs
that are kept get louder).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from slamp.budget import Budget
from slamp.costs import layer_costs
from slamp.errors import BudgetError
from slamp.memory import layer_memory_bits
from slamp.multipliers import Problem, fill, multipliers_for
from slamp.score import Scores

# Rounds and trials until the exact bits of a memory budget are met, and the share of it that counts as spent.
MEMORY_ROUNDS, MEMORY_TRIALS = 2, 10
MEMORY_SPENT = 0.98


@dataclass(frozen=True, eq=False)
class Plan:
    """How many weights every layer keeps.

    Attributes:
        method: Method of the scores.
        keep: Number of weights kept per layer, at least one each: the largest by score.
        sizes: Number of weights per layer.
        usage: (used, limit) of every budget asked, in its own unit; "sparsity" is accounted as "density".
        multipliers: ``lambda`` of every budget: what one more unit of it would gain.
        binding: Budgets with a multiplier above 0.
    """

    method: str
    keep: Mapping[str, int]
    sizes: Mapping[str, int]
    usage: Mapping[str, tuple[float, float]]
    multipliers: Mapping[str, float]
    binding: tuple[str, ...]

    @property
    def density(self) -> float:
        """Share of all weights that is kept."""
        return sum(self.keep.values()) / sum(self.sizes.values())


def allocate(scores: Scores, budget: Budget, *, cost_aware: bool = True) -> Plan:
    """Divide the budgets over the layers.

    No budget is exceeded, no layer is emptied, and no further weight would fit. Zero weights are never kept.

    Args:
        scores: Result of `slamp.score`.
        budget: What the network may cost; SOPs are predicted at the calibrated spikes.
        cost_aware: Whether a weight that costs less may score less. The baselines never do this.

    Raises:
        BudgetError: A budget is below its least possible usage (the message names it), or SOPs are asked without
            activity.
    """
    cost_aware = cost_aware and not scores.cost_blind
    if budget.memory_bits is None:
        return _allocated(scores, budget, cost_aware, {})
    return _within_memory(scores, budget, cost_aware)


def _allocated(scores: Scores, budget: Budget, cost_aware: bool, bits_per_weight: Mapping[str, float]) -> Plan:
    problem = _problem(scores, budget, cost_aware=cost_aware, bits_per_weight=bits_per_weight)
    _check_feasible(problem)
    multipliers, counts = multipliers_for(problem)
    counts = fill(problem, multipliers, counts)
    total = sum(scores.sizes.values())
    usage = {}
    for k, name in enumerate(problem.names):
        used, limit = problem.used(k, counts), problem.limits[k]
        if name == "density":
            used, limit = used / total, max(_asked_density(budget), limit / total)
        usage[name] = (used, limit)
    found = dict(zip(problem.names, multipliers, strict=True))
    return Plan(
        method=scores.method,
        keep=MappingProxyType(dict(zip(scores.layers, counts, strict=True))),
        sizes=MappingProxyType(scores.sizes),
        usage=MappingProxyType(usage),
        multipliers=MappingProxyType(found),
        binding=tuple(name for name, value in found.items() if value > 0),
    )


def _within_memory(scores: Scores, budget: Budget, cost_aware: bool) -> Plan:
    """Allocate under a budget of synaptic memory, whose exact bits follow from the masks alone.

    Within one allocation every weight of a layer takes the same: first what it takes at a guess, then what it took in
    the best plan. What is asked of it is found by bisection on the exact bits.
    """
    limit, profile = budget.memory_bits, budget.profile
    assert limit is not None
    if profile is None:
        raise BudgetError("memory_bits: depends on the chip; use profile.budget(memory_bits=...), or --profile NAME")

    def exact(keep: Mapping[str, int]) -> dict[str, float]:
        return {
            name: layer_memory_bits(scores.graph, name, scores.largest(name, n), profile) for name, n in keep.items()
        }

    live = {name: layer.curve.live for name, layer in scores.layers.items()}
    whole = exact(live)
    least = exact({name: layer.minimum for name, layer in scores.layers.items()})
    if sum(least.values()) > limit:
        saves = (
            ""
            if profile.sparsity.unstructured
            else f"; single zeros save nothing there: {profile.sparsity.reason.rstrip('.')}"
        )
        raise BudgetError(
            f"memory_bits: the budget is {limit:.6g}, but one weight per layer needs {sum(least.values()):.6g} on "
            f"{profile.name}{saves}; ask for at least that"
        )
    share = min(1.0, limit / sum(whole.values()))
    keep = {name: max(1, round(share * n)) for name, n in live.items()}
    most, best = 0.0, None
    for _ in range(MEMORY_ROUNDS):
        per_weight = {name: bits / keep[name] for name, bits in exact(keep).items()}
        low, high = 0.0, sum(per_weight[name] * n for name, n in live.items())
        asked = min(limit * (1 + MEMORY_SPENT) / 2, high)
        for _ in range(MEMORY_TRIALS):
            try:
                plan = _allocated(scores, replace(budget, memory_bits=asked), cost_aware, per_weight)
            except BudgetError as error:
                if not str(error).startswith("memory_bits"):
                    raise
                low, asked = asked, (asked + high) / 2  # below one weight per layer, as they are accounted here
                continue
            used = sum(exact(plan.keep).values())
            if most < used <= limit:
                most, keep = used, dict(plan.keep)
                best = replace(plan, usage=MappingProxyType({**plan.usage, "memory_bits": (used, limit)}))
            if used <= limit and (used >= MEMORY_SPENT * limit or "memory_bits" not in plan.binding):
                assert best is not None
                return best
            low, high = (asked, high) if used <= limit else (low, asked)
            asked = (low + high) / 2
    if best is None:
        raise BudgetError(f"memory_bits: no plan within {limit:.6g} was found; ask for a little more")
    return best


def _problem(scores: Scores, budget: Budget, *, cost_aware: bool, bits_per_weight: Mapping[str, float]) -> Problem:
    names, limits = [], []
    for name, value in budget.given.items():
        if name in ("density", "sparsity"):
            names.append("density")
            limits.append(float(_allowed_weights(name, value, sum(scores.sizes.values()))))
        else:
            names.append(name)
            limits.append(float(value))
    costs = layer_costs(scores, names, bits_per_weight)
    ranking = [[cost.mean if cost_aware else 1.0 for cost in row] for row in costs]
    curves = [layer.curve for layer in scores.layers.values()]
    minimum = [layer.minimum for layer in scores.layers.values()]
    tolerance = 1 + sum(curve.live for curve in curves) // 1_000_000
    return Problem(curves, minimum, names, limits, ranking, costs, tolerance)


def _allowed_weights(name: str, value: float, total: int) -> int:
    """Largest count that meets a density or sparsity, whatever way the product is rounded."""
    share = value if name == "density" else 1 - value
    count = min(math.floor(share * total) + 1, total)
    while count > 0 and not (count / total <= value if name == "density" else (total - count) / total >= value):
        count -= 1
    return count


def _asked_density(budget: Budget) -> float:
    return budget.density if budget.density is not None else 1 - (budget.sparsity or 0.0)


def _check_feasible(problem: Problem) -> None:
    total = sum(cost.size for cost in problem.costs[0])
    for k, (name, limit) in enumerate(zip(problem.names, problem.limits, strict=True)):
        least = problem.used(k, problem.minimum)
        if least > limit:
            why = "at least one per layer" if max(problem.minimum) == 1 else "what uniform-plus leaves alone"
            stay = f"the {sum(problem.minimum)} weights that must stay ({why})"
            if name == "density":
                raise BudgetError(
                    f"density: the budget is {limit:.0f} of {total} weights, below {stay}; "
                    f"ask for a density of at least {least / total:.6g}"
                )
            raise BudgetError(
                f"{name}: the budget is {limit:.6g}, but {stay} need {least:.6g}; ask for at least {least:.9g}"
            )
