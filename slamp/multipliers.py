"""Multipliers of budgets: thresholds under which every budget holds, found by nested search, and the rest filled up."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from slamp.costs import LayerCost, rank_ahead
from slamp.curves import Curve

Counts = list[int]
FILL_STEPS = 2000


@dataclass(frozen=True, eq=False)
class Problem:
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


def multipliers_for(problem: Problem) -> tuple[list[float], Counts]:
    """Find multipliers whose thresholds meet every budget, above 0 only where the budget binds."""
    guesses = [0.0 for _ in problem.names]
    if any(cost.ranked is not None for row in problem.costs for cost in row):
        guesses, counts = _search(_at_mean_cost(problem), guesses)
        rank_ahead(problem.costs, counts)
    return _search(problem, guesses)


def _at_mean_cost(problem: Problem) -> Problem:
    """Return the problem with every weight accounted at its layer's mean: quickly solved, and a good first guess."""
    costs = [[LayerCost(cost.size, cost.mean) for cost in row] for row in problem.costs]
    rough = replace(problem, costs=costs, tolerance=1 + 1000 * problem.tolerance)
    return replace(rough, limits=[max(limit, rough.used(k, problem.minimum)) for k, limit in enumerate(problem.limits)])


def _search(problem: Problem, guesses: Sequence[float]) -> tuple[list[float], Counts]:
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


def _settle(problem: Problem, multipliers: list[float], chosen: Sequence[int], guesses: list[float]) -> Counts:
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


def fill(problem: Problem, multipliers: Sequence[float], counts: Counts) -> Counts:
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


def _leap(problem: Problem, thresholds: Sequence[float], counts: Counts, layers: Sequence[int]) -> Counts:
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
