"""Plans, and `linear_plan`: the allocation under budgets that are linear in the weights kept.

Maximizes ``sum_l A_l^(2 eta) log S_l(n_l)`` subject to ``sum_l c_{k,l} n_l <= B_k``: keep a weight if and only if its
score is at least ``sum_k lambda_k c_{k,l}``. Each layer term is concave in ``n_l``, so for any multipliers the result
is optimal for the budget it attains; against the budgets asked the loss is at most the score of one weight per budget,
where the taps of a layer cost alike.

Ranking uses a layer's mean cost, accounting the exact cost of every tap (ranking taps by cost overshoots: quiet inputs
that are kept get louder).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from types import MappingProxyType

import numpy as np

from slamp.budget import Budget
from slamp.costs import LayerCost, layer_costs
from slamp.energy import energy_per_sample, prices
from slamp.errors import BudgetError
from slamp.multipliers import Problem, fill, multipliers_for
from slamp.profile import Profile
from slamp.score import Scores

STEP = "sops_per_step"


@dataclass(frozen=True, eq=False)
class Plan:
    """How many weights every layer keeps.

    Attributes:
        method: Method of the scores.
        keep: Number of weights kept per layer, at least one each: the largest by score. A parameter that several nodes
            share is one layer, named by the first of them.
        sizes: Number of weights per layer.
        usage: (used, limit) of every budget asked, in its own unit; "sparsity" is accounted as "density".
        multipliers: ``lambda`` of every budget: what one more unit of it would gain.
        binding: Budgets with a multiplier above 0: those that hurt.
        profile: The chip whose limits of fan-in and fan-out the masks keep to.
        balance: "fan_out" if every source of a layer is to keep as many weights as the others, else empty.
    """

    method: str
    keep: Mapping[str, int]
    sizes: Mapping[str, int]
    usage: Mapping[str, tuple[float, float]]
    multipliers: Mapping[str, float]
    binding: tuple[str, ...]
    profile: Profile | None = None
    balance: str = ""

    @property
    def density(self) -> float:
        """Share of all weights that is kept."""
        return sum(self.keep.values()) / sum(self.sizes.values())


def linear_plan(scores: Scores, budget: Budget, *, cost_aware: bool, bits_per_weight: Mapping[str, float]) -> Plan:
    """Divide budgets that are linear in the weights kept over the layers.

    SOPs of the busiest step are not, but those of every step are: a step that turns out to exceed the budget is added.
    They are accounted at each layer's mean, for the taps of single steps are not recorded.

    Args:
        scores: Scored weights.
        budget: Its ``memory_bits`` are accounted at ``bits_per_weight``; its ``cores`` are not looked at.
        cost_aware: Whether a weight that costs less may score less.
        bits_per_weight: What a weight of each layer takes.

    Raises:
        BudgetError: A budget is below its least possible usage, or what it is predicted from is not there.
    """
    if budget.sops_per_step is None:
        return _solved(scores, budget, cost_aware, bits_per_weight, ())
    loads = step_loads(scores)
    steps = [int((loads @ list(scores.sizes.values())).argmax())]
    while True:
        plan = _solved(scores, budget, cost_aware, bits_per_weight, steps)
        used = loads @ [plan.keep[name] for name in scores.sizes]
        busiest = int(used.argmax())
        if used[busiest] <= budget.sops_per_step or busiest in steps:
            usage = {**plan.usage, STEP: (float(used[busiest]), budget.sops_per_step)}
            return replace(plan, usage=MappingProxyType(usage))
        steps.append(busiest)


def step_loads(scores: Scores) -> np.ndarray:
    """Return the mean SOPs of one weight of each layer in each step, float64, shape (steps, layers)."""
    if scores.activity is None:
        raise BudgetError(f"{STEP}: the scores carry no activity to predict it from; calibrate, and score with it")
    layers = scores.activity.layers
    rows = [
        reduce(np.add, [layers[use].events / size * layers[use].from_spikes for use in scores.uses[name]])
        for name, size in scores.sizes.items()
    ]
    return np.array(rows).T


def _solved(
    scores: Scores, budget: Budget, cost_aware: bool, bits_per_weight: Mapping[str, float], steps: Sequence[int]
) -> Plan:
    problem = _problem(scores, budget, cost_aware, bits_per_weight, steps)
    _check_feasible(problem)
    multipliers, counts = multipliers_for(problem)
    counts = fill(problem, multipliers, counts)
    found: dict[str, float] = {}
    for resource, multiplier in zip(problem.names, multipliers, strict=True):
        name = resource.partition("[")[0]
        found[name] = found.get(name, 0.0) + multiplier
    return Plan(
        method=scores.method,
        keep=MappingProxyType(dict(zip(scores.layers, counts, strict=True))),
        sizes=MappingProxyType(scores.sizes),
        usage=MappingProxyType(_usage(scores, budget, problem, counts)),
        multipliers=MappingProxyType(found),
        binding=tuple(name for name, value in found.items() if value > 0),
    )


def _usage(scores: Scores, budget: Budget, problem: Problem, counts: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Return (used, limit) of every budget, each in its own unit."""
    total = sum(scores.sizes.values())
    usage: dict[str, tuple[float, float]] = {}
    for k, resource in enumerate(problem.names):
        name = resource.partition("[")[0]
        used, limit = problem.used(k, list(counts)), problem.limits[k]
        if name == "density":
            used, limit = used / total, max(_asked_density(budget), limit / total)
        if name == "energy_pj":
            fixed = float(budget.energy_pj or 0.0) - limit
            used, limit = used + fixed, limit + fixed
        usage[name] = max(usage.get(name, (0.0, 0.0)), (used, limit))
    return usage


@dataclass(eq=False)
class LinearUse:
    """What numbers of weights take of the budgets that are linear in them; memory and cores are not looked at."""

    scores: Scores
    budget: Budget

    @cached_property
    def problem(self) -> Problem:
        """The budgets, every step of the busiest among them."""
        steps = range(len(step_loads(self.scores))) if self.budget.sops_per_step is not None else ()
        return _problem(self.scores, self.budget, True, {}, steps, without=("memory_bits",))

    def holds(self, keep: Mapping[str, int]) -> bool:
        """Whether every one of them holds."""
        return self.problem.fits(list(keep.values()))

    def usage(self, keep: Mapping[str, int]) -> dict[str, tuple[float, float]]:
        """Return (used, limit) of each."""
        return _usage(self.scores, self.budget, self.problem, list(keep.values()))


def _problem(
    scores: Scores,
    budget: Budget,
    cost_aware: bool,
    bits_per_weight: Mapping[str, float],
    steps: Sequence[int],
    *,
    without: Collection[str] = (),
) -> Problem:
    names: list[str] = []
    limits: list[float] = []
    for name, value in budget.given.items():
        if name in without:
            continue
        if name in ("density", "sparsity"):
            names.append("density")
            limits.append(float(_allowed_weights(name, value, sum(scores.sizes.values()))))
        elif name == "energy_pj":
            names.append(name)
            limits.append(value - _fixed_energy(scores, budget))
        elif name == STEP:
            names += [f"{STEP}[{step}]" for step in steps]
            limits += [float(value)] * len(steps)
        elif name != "cores":
            names.append(name)
            limits.append(float(value))
    costs = _costs(scores, budget, names, bits_per_weight)
    ranking = [[cost.mean if cost_aware else 1.0 for cost in row] for row in costs]
    curves = [layer.curve for layer in scores.layers.values()]
    minimum = [layer.minimum for layer in scores.layers.values()]
    tolerance = 1 + sum(curve.live for curve in curves) // 1_000_000
    return Problem(curves, minimum, names, limits, ranking, costs, tolerance)


def _costs(
    scores: Scores, budget: Budget, names: Sequence[str], bits_per_weight: Mapping[str, float]
) -> list[list[LayerCost]]:
    """Return the cost of every budget for every layer; energy is SOPs at their price, and what no weight changes."""
    plain = ["sops" if name == "energy_pj" else name for name in names if not name.startswith(STEP)]
    rows = iter(layer_costs(scores, plain, bits_per_weight))
    sizes = list(scores.sizes.values())
    costs: list[list[LayerCost]] = []
    for name in names:
        if name.startswith(STEP):
            loads = step_loads(scores)[int(name[len(STEP) + 1 : -1])]
            costs.append([LayerCost(size, float(load)) for size, load in zip(sizes, loads, strict=True)])
        elif name == "energy_pj":
            price = prices(budget.profile, budget.energy_set).sop_pj
            assert price is not None
            costs.append([cost.times(price.number) for cost in next(rows)])
        else:
            costs.append(next(rows))
    return costs


def _fixed_energy(scores: Scores, budget: Budget) -> float:
    """Energy that no weight changes, pJ per sample: neuron updates and spikes, whose rates are restored."""
    if scores.activity is None:
        raise BudgetError("energy_pj: the scores carry no activity to predict it from; calibrate, and score with it")
    price = prices(budget.profile, budget.energy_set).sop_pj
    assert price is not None
    fixed = energy_per_sample(scores.graph, scores.activity, budget.profile, budget.energy_set)
    fixed -= price.number * scores.activity.sops
    if fixed >= float(budget.energy_pj or 0.0):
        raise BudgetError(
            f"energy_pj: the budget is {budget.energy_pj:.6g}, but neuron updates and spikes alone take {fixed:.6g}; "
            "ask for more, or remove whole channels (structured)"
        )
    return fixed


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
    for k, (resource, limit) in enumerate(zip(problem.names, problem.limits, strict=True)):
        name = resource.partition("[")[0]
        # Exact costs need an order of the weights, which is asked for only where it matters.
        if not problem.surely_holds(k, problem.minimum) and (least := problem.used(k, problem.minimum)) > limit:
            why = "at least one per layer" if max(problem.minimum) == 1 else "what uniform-plus leaves alone"
            stay = f"the {sum(problem.minimum)} weights that must stay ({why})"
            if name == "density":
                total = sum(cost.size for cost in problem.costs[k])
                raise BudgetError(
                    f"density: the budget is {limit:.0f} of {total} weights, below {stay}; "
                    f"ask for a density of at least {least / total:.6g}"
                )
            raise BudgetError(
                f"{name}: the budget is {limit:.6g}, but {stay} need {least:.6g}; ask for at least {least:.9g}"
            )
