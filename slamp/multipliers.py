"""Multipliers of budgets: thresholds under which every budget holds, found by nested search, and the rest filled up."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from slamp.costs import LayerCost, rank_ahead
from slamp.curves import Curve

Counts = list[int]
FILL_STEPS = 2000
# Newton's method: steps, the share by which multipliers are raised to see a slope, and how far a step may go (log).
NEWTON_STEPS, SLOPE_STEP, MOST_CHANGE = 4, 0.01, 0.7
# Scores of a table, in natural logarithms: down to e^-32 of the largest.
STEP, STEPS = 0.0625, 513
TINY = 1e-300


class Searched(Protocol):
    """What a search for multipliers asks: how many weights they leave per layer, and what those use."""

    @property
    def limits(self) -> Sequence[float]:
        """Limit of every budget."""

    @property
    def tolerance(self) -> int:
        """Weights that the search may leave to be added."""

    @property
    def worth(self) -> float:
        """Score of an important weight, summed over layers: in units of it, of a budget, multipliers are about 1."""

    def counts(self, multipliers: Sequence[float]) -> Sequence[float]:
        """Weights per layer whose score reaches the threshold, and the minimum."""

    def used(self, k: int, counts: Sequence[float]) -> float:
        """Usage of budget ``k``."""


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

    @cached_property
    def worth(self) -> float:
        """Score of the second weight, summed over layers."""
        return sum(curve.value(2) for curve in self.curves if curve.live > 1)

    def thresholds(self, multipliers: Sequence[float]) -> list[float]:
        """Score a weight of each layer needs."""
        return [
            sum(value * costs[layer] for value, costs in zip(multipliers, self.ranking, strict=True))
            for layer in range(len(self.curves))
        ]

    def counts(self, multipliers: Sequence[float]) -> Counts:
        """Weights per layer whose score reaches the threshold, and the minimum."""
        return [
            max(curve.count(threshold), least)
            for curve, threshold, least in zip(self.curves, self.thresholds(multipliers), self.minimum, strict=True)
        ]

    def used(self, k: int, counts: Sequence[float]) -> float:
        """Exact usage of budget ``k``."""
        return math.fsum(cost.prefix(int(n)) for cost, n in zip(self.costs[k], counts, strict=True))

    def surely_holds(self, k: int, counts: Counts) -> bool:
        """True if budget ``k`` holds whichever weights are kept; False says nothing."""
        return math.fsum(cost.most(n) for cost, n in zip(self.costs[k], counts, strict=True)) <= self.limits[k]

    def fits(self, counts: Counts) -> bool:
        """Whether every budget holds."""
        return all(self.used(k, counts) <= limit for k, limit in enumerate(self.limits))


@dataclass(frozen=True, eq=False)
class _RoughProblem:
    """A problem with tabulated curves and every weight accounted at its layer's mean, quickly solved.

    ``table[l, i]`` weights of layer ``l`` reach a score of ``exp(start + i * STEP)``.
    """

    limits: Sequence[float]
    tolerance: int
    worth: float
    minimum: np.ndarray
    ranking: np.ndarray
    means: np.ndarray
    start: float
    table: np.ndarray

    def counts(self, multipliers: Sequence[float]) -> Sequence[float]:
        """Weights per layer, not rounded."""
        thresholds = np.maximum(np.asarray(multipliers) @ self.ranking, TINY)
        place = np.clip((np.log(thresholds) - self.start) / STEP, 0, STEPS - 1)
        index = np.minimum(place.astype(np.intp), STEPS - 2)
        layers = np.arange(len(index))
        low, high = self.table[layers, index], self.table[layers, index + 1]
        counts: list[float] = np.maximum(low + (place - index) * (high - low), self.minimum).tolist()
        return counts

    def used(self, k: int, counts: Sequence[float]) -> float:
        """Usage of budget ``k`` at mean costs."""
        return float(self.means[k] @ np.asarray(counts))


def _roughly(problem: Problem) -> _RoughProblem:
    values = [curve.value(n) for curve in problem.curves for n in (1, 2) if n <= curve.live]
    # At the last score of the table every layer is at its minimum.
    top = 2 * max((value for value in values if math.isfinite(value)), default=0.0) or 1.0
    start = math.log(top) - STEP * (STEPS - 1)
    scores = np.exp(start + STEP * np.arange(STEPS))
    means = np.array([[cost.mean for cost in row] for row in problem.costs])
    minimum = np.array(problem.minimum, dtype=np.float64)
    return _RoughProblem(
        limits=[max(limit, float(row @ minimum)) for limit, row in zip(problem.limits, means, strict=True)],
        tolerance=1 + 1000 * problem.tolerance,
        worth=problem.worth,
        minimum=minimum,
        ranking=np.array(problem.ranking),
        means=means,
        start=start,
        table=np.array([curve.about(scores) for curve in problem.curves]),
    )


def multipliers_for(problem: Problem) -> tuple[list[float], Counts]:
    """Find multipliers whose thresholds meet every budget, above 0 only where the budget binds.

    From coarse to fine: with every weight at its layer's mean cost, by Newton's method at exact costs, and by a search
    that starts there and is exact.
    """
    if not problem.names:
        return [], problem.counts([])
    guesses, about = _search(_roughly(problem), [0.0 for _ in problem.names])
    rank_ahead(problem.costs, [int(n) for n in about])
    multipliers, counts = _search(problem, _refined(problem, guesses))
    return multipliers, [int(n) for n in counts]


def _refined(problem: Problem, guesses: Sequence[float]) -> list[float]:
    """Improve the guesses above 0 by Newton's method, on logarithms, until their budgets are spent."""
    budgets = [k for k, guess in enumerate(guesses) if guess > 0]
    ranking = np.array(problem.ranking)[budgets]
    limits = np.array(problem.limits)[budgets]
    multipliers, best, least = list(guesses), list(guesses), math.inf
    for step in range(NEWTON_STEPS if budgets else 0):
        counts = problem.counts(multipliers)
        excess = np.array([problem.used(k, counts) for k in budgets]) / limits - 1
        off = float(np.abs(excess).max())
        if off < least:
            best, least = list(multipliers), off
        if off * sum(counts) <= problem.tolerance or step == NEWTON_STEPS - 1:
            break
        higher = problem.counts([value * (1 + SLOPE_STEP) for value in multipliers])
        values = np.array(multipliers)[budgets]
        # Shares of the thresholds that are due to each budget; the taps of weights that leave cost the mean, as always.
        shares = ranking * values[:, None] / np.maximum(values @ ranking, TINY)
        slopes = (ranking / limits[:, None]) @ (np.subtract(counts, higher) / SLOPE_STEP * shares).T
        changes = np.linalg.lstsq(slopes, excess, rcond=None)[0]
        for k, change in zip(budgets, changes, strict=True):
            multipliers[k] *= math.exp(min(max(float(change), -MOST_CHANGE), MOST_CHANGE))
    return best


def _search(problem: Searched, guesses: Sequence[float]) -> tuple[list[float], Sequence[float]]:
    budgets = range(len(problem.limits))
    chosen = tuple(k for k in budgets if guesses[k] > 0)
    starts = list(guesses)
    while True:
        multipliers = [0.0 for _ in budgets]
        counts = _settle(problem, multipliers, chosen, starts)
        exceeded = [k for k in budgets if problem.used(k, counts) > problem.limits[k]]
        if not exceeded:
            return multipliers, counts
        # The chosen ones hold, so there are more of them every time.
        assert not set(exceeded) & set(chosen)
        chosen = tuple(sorted({*chosen, *exceeded}))


@dataclass(frozen=True, eq=False)
class _Trial:
    """One value of a multiplier, with all later ones settled: counts, all multipliers, log of usage over limit."""

    value: float
    counts: Sequence[float]
    multipliers: list[float]
    excess: float


def _settle(
    problem: Searched, multipliers: list[float], chosen: Sequence[int], guesses: list[float]
) -> Sequence[float]:
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
    cold = problem.worth / problem.limits[k] or 1.0
    low, high = _bracket(at, guesses[k] or cold, 0.0 if guesses[k] else 0.5, problem.tolerance)
    high = _narrow(at, low, high, problem.tolerance)
    multipliers[:] = high.multipliers
    guesses[k] = high.value
    return high.counts


def _bracket(at: Callable[[float], _Trial], guess: float, off: float, tolerance: int) -> tuple[_Trial, _Trial]:
    """Return trials at which the budget does not hold and does, in growing steps from a guess.

    The first step is the share by which the guess may be off, or one that moves a few times ``tolerance`` weights.
    """
    trial = at(guess)
    step = 1 + max(off, min(0.5, 4 * tolerance / sum(trial.counts)))
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
    thresholds = problem.thresholds(multipliers)
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
