"""`allocate`: how many weights every layer keeps, under any mix of budgets.

Maximizes ``sum_l A_l^(2 eta) log S_l(n_l)`` subject to ``sum_l c_{k,l} n_l <= B_k``: keep a weight if and only if its
score is at least ``sum_k lambda_k c_{k,l}``. Each layer term is concave in ``n_l``, so for any multipliers the result
is optimal for the budget it attains; against the budgets asked the loss is at most the score of one weight per budget.

Ranking uses a layer's mean cost, accounting the exact cost of every tap (ranking taps by cost overshoots: quiet inputs
that are kept get louder).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from types import MappingProxyType

from slamp.budget import Budget
from slamp.costs import LayerCost, layer_costs, rank_ahead
from slamp.curves import Curve
from slamp.errors import BudgetError
from slamp.memory import layer_memory_bits
from slamp.score import Scores

Counts = list[int]
FILL_STEPS = 2000
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
    multipliers, counts = _multipliers(problem)
    counts = _fill(problem, multipliers, counts)
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
        raise BudgetError(
            "memory_bits: depends on the chip; use profile.budget(memory_bits=...), or compress(profile=...)"
        )

    def exact(keep: Mapping[str, int]) -> dict[str, float]:
        return {
            name: layer_memory_bits(scores.graph, name, scores.largest(name, n), profile) for name, n in keep.items()
        }

    live = {name: layer.curve.live for name, layer in scores.layers.items()}
    whole = exact(live)
    least = exact({name: layer.minimum for name, layer in scores.layers.items()})
    if sum(least.values()) > limit:
        saves = "" if profile.sparsity.unstructured else f"; single zeros save nothing there: {profile.sparsity.reason}"
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


@dataclass(frozen=True, eq=False)
class _Problem:
    """The numbers of one allocation; lists run over layers, ``names``, ``limits``, ``ranking``, ``costs`` over budgets.

    ``ranking[k][l]`` is the cost that ranks, ``costs[k][l]`` the one that is accounted. Density counts weights.
    Multipliers are searched until a smaller one would add at most ``tolerance`` weights; filling adds the rest.
    """

    curves: Sequence[Curve]
    minimum: Counts
    names: Sequence[str]
    limits: Sequence[float]
    ranking: Sequence[Sequence[float]]
    costs: Sequence[Sequence[LayerCost]]
    tolerance: int

    def threshold(self, layer: int, multipliers: Sequence[float]) -> float:
        """Score a weight of the layer needs."""
        return sum(value * costs[layer] for value, costs in zip(multipliers, self.ranking, strict=True))

    def counts(self, multipliers: Sequence[float]) -> Counts:
        """Weights per layer whose score reaches the threshold, and the minimum."""
        return [
            max(curve.count(self.threshold(layer, multipliers)), self.minimum[layer])
            for layer, curve in enumerate(self.curves)
        ]

    def used(self, k: int, counts: Counts) -> float:
        """Exact usage of budget ``k``."""
        return math.fsum(cost.prefix(n) for cost, n in zip(self.costs[k], counts, strict=True))

    def fits(self, counts: Counts) -> bool:
        """Whether every budget holds."""
        return all(self.used(k, counts) <= limit for k, limit in enumerate(self.limits))


def _problem(scores: Scores, budget: Budget, *, cost_aware: bool, bits_per_weight: Mapping[str, float]) -> _Problem:
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
    return _Problem(curves, minimum, names, limits, ranking, costs, tolerance)


def _allowed_weights(name: str, value: float, total: int) -> int:
    """Largest count that meets a density or sparsity, whatever way the product is rounded."""
    share = value if name == "density" else 1 - value
    count = min(math.floor(share * total) + 1, total)
    while count > 0 and not (count / total <= value if name == "density" else (total - count) / total >= value):
        count -= 1
    return count


def _asked_density(budget: Budget) -> float:
    return budget.density if budget.density is not None else 1 - (budget.sparsity or 0.0)


def _check_feasible(problem: _Problem) -> None:
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


def _multipliers(problem: _Problem) -> tuple[list[float], Counts]:
    """Find multipliers whose thresholds meet every budget, above 0 only where the budget binds."""
    guesses = [0.0 for _ in problem.names]
    if any(cost.ranked is not None for row in problem.costs for cost in row):
        guesses, counts = _search(_at_mean_cost(problem), guesses)
        rank_ahead(problem.costs, counts)
    return _search(problem, guesses)


def _at_mean_cost(problem: _Problem) -> _Problem:
    """Return the problem with every weight accounted at its layer's mean: quickly solved, and a good first guess."""
    costs = [[LayerCost(cost.size, cost.mean) for cost in row] for row in problem.costs]
    rough = replace(problem, costs=costs, tolerance=1 + 1000 * problem.tolerance)
    return replace(rough, limits=[max(limit, rough.used(k, problem.minimum)) for k, limit in enumerate(problem.limits)])


def _search(problem: _Problem, guesses: Sequence[float]) -> tuple[list[float], Counts]:
    budgets = range(len(problem.names))
    guessed = tuple(k for k in budgets if guesses[k] > 0)
    for chosen in [guessed, *(chosen for size in budgets for chosen in combinations(budgets, size)), tuple(budgets)]:
        multipliers = [0.0 for _ in budgets]
        counts = _settle(problem, multipliers, chosen, list(guesses))
        if problem.fits(counts):
            return multipliers, counts
    raise AssertionError("every budget was settled and one does not hold")


@dataclass(frozen=True, eq=False)
class _Trial:
    """One value of a multiplier, with all later ones settled: counts, all multipliers, log of usage over limit."""

    value: float
    counts: Counts
    multipliers: list[float]
    excess: float


def _settle(problem: _Problem, multipliers: list[float], chosen: Sequence[int], guesses: list[float]) -> Counts:
    """Set the chosen multipliers, in place, to the least values at which their budgets hold; return the counts.

    The dual is convex, so with all later ones settled the usage of the first falls with its own multiplier: a search
    inside a search is exact. ``guesses`` are where to start; they are updated.
    """
    if not chosen:
        return problem.counts(multipliers)
    k, rest = chosen[0], chosen[1:]

    def at(value: float) -> _Trial:
        multipliers[k] = value
        counts = _settle(problem, multipliers, rest, guesses)
        used = problem.used(k, counts)
        over = used / problem.limits[k]
        # The sign decides whether the budget holds, so it must not fall to a rounded quotient.
        excess = math.log(over) if over > 0 else -math.inf
        excess = max(excess, math.ulp(0.0)) if used > problem.limits[k] else min(excess, 0.0)
        return _Trial(value, counts, list(multipliers), excess)

    if guesses[k] == 0:
        slack = at(0.0)
        if slack.excess <= 0:
            return slack.counts
    cold = sum(curve.value(2) for curve in problem.curves if curve.live > 1) / problem.limits[k] or 1.0
    low, high = _bracket(at, guesses[k] or cold, 1.01 if guesses[k] else 1.5)
    high = _narrow(at, low, high, problem.tolerance)
    multipliers[:] = high.multipliers
    guesses[k] = high.value
    return high.counts


def _bracket(at: Callable[[float], _Trial], guess: float, step: float) -> tuple[_Trial, _Trial]:
    """Return trials at which the budget does not hold and does, in growing steps from a guess."""
    trial = at(guess)
    if trial.excess > 0:
        low = trial
        while trial.excess > 0:
            low, trial = trial, at(trial.value * step)
            step **= 2
        return low, trial
    while trial.value > 0:
        lower = at(trial.value / step if step < 1e9 else 0.0)
        if lower.excess > 0:
            return lower, trial
        trial = lower
        step **= 2
    return trial, trial


def _narrow(at: Callable[[float], _Trial], low: _Trial, high: _Trial, tolerance: int) -> _Trial:
    """Return the trial that holds, once it differs in at most ``tolerance`` weights from one that does not.

    Regula falsi on logarithms, Illinois variant, with a bisection every third step, since counts move in jumps.
    """
    excess_low, excess_high = low.excess, high.excess
    previous = 0.0
    for step in itertools.count():
        if sum(abs(a - b) for a, b in zip(low.counts, high.counts, strict=True)) <= tolerance or low.value == 0:
            return high
        share = 0.5
        if step % 3 < 2 and math.isfinite(excess_high):
            share = min(max(excess_low / (excess_low - excess_high), 0.001), 0.999)
        middle = math.exp((1 - share) * math.log(low.value) + share * math.log(high.value))
        if not low.value < middle < high.value:
            middle = (low.value + high.value) / 2
        if not low.value < middle < high.value:
            return high
        trial = at(middle)
        again = 0.5 if (trial.excess > 0) == (previous > 0) else 1.0
        previous = trial.excess
        if trial.excess > 0:
            low, excess_low, excess_high = trial, trial.excess, excess_high * again
        else:
            high, excess_high, excess_low = trial, trial.excess, excess_low * again
    raise AssertionError("the search ends when its bracket does")


def _fill(problem: _Problem, multipliers: Sequence[float], counts: Counts) -> Counts:
    """Add weights by score over threshold, where every budget still holds, until none does."""
    counts = list(counts)
    thresholds = [problem.threshold(layer, multipliers) for layer in range(len(counts))]
    used = [[cost.prefix(n) for cost, n in zip(row, counts, strict=True)] for row in problem.costs]

    def fits(layer: int) -> bool:
        for k, row in enumerate(problem.costs):
            before, used[k][layer] = used[k][layer], row[layer].prefix(counts[layer] + 1)
            total = math.fsum(used[k])
            used[k][layer] = before
            if total > problem.limits[k]:
                return False
        return True

    def rank(layer: int) -> tuple[float, int]:
        worth = problem.curves[layer].value(counts[layer] + 1)
        return (-worth / thresholds[layer] if thresholds[layer] > 0 else -math.inf, layer)

    def unfinished() -> list[int]:
        return [layer for layer, n in enumerate(counts) if n < problem.curves[layer].live and fits(layer)]

    while layers := unfinished():
        queue = [rank(layer) for layer in layers]
        heapq.heapify(queue)
        for _ in range(FILL_STEPS):
            if not queue:
                break
            layer = queue[0][1]
            # Usage only grows, so a weight that does not fit now never will, nor will the smaller ones of its layer.
            if counts[layer] == problem.curves[layer].live or not fits(layer):
                heapq.heappop(queue)
                continue
            counts[layer] += 1
            for k, row in enumerate(problem.costs):
                used[k][layer] = row[layer].prefix(counts[layer])
            if counts[layer] < problem.curves[layer].live:
                heapq.heapreplace(queue, rank(layer))
        if queue:
            counts = _leap(problem, thresholds, counts, [layer for _, layer in queue])
            used = [[cost.prefix(n) for cost, n in zip(row, counts, strict=True)] for row in problem.costs]
    return counts


def _leap(problem: _Problem, thresholds: Sequence[float], counts: Counts, layers: Sequence[int]) -> Counts:
    """Go down the same order as single steps would, but by bisection, as far as every budget holds."""

    def lowered(scale: float) -> Counts:
        result = list(counts)
        for layer in layers:
            result[layer] = max(counts[layer], problem.curves[layer].count(scale * thresholds[layer]))
        return result

    low, high = 0.0, 1.0
    if problem.fits(lowered(low)):
        return lowered(low)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if problem.fits(lowered(middle)) else (middle, high)
    return lowered(high)
