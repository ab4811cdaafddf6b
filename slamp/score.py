"""`score`: how much every weight is worth, by SLAMP, LAMP and the usual baselines.

Our derivation of SLAMP (arXiv 2603.14946) from its abstract and from LAMP (arXiv 2010.07611). Every method is a key per
weight, by which a layer is sorted once, and a falling curve of the rank (`slamp.curves`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from types import MappingProxyType

import numpy as np

from slamp.activity import Activity
from slamp.budget import Budget
from slamp.curves import Curve, EnergyCurve, MagnitudeCurve, RankedKeys, ShareCurve
from slamp.errors import ScoreError
from slamp.graph import SpikingGraph
from slamp.nodes import Conv1d, Conv2d, Weighted
from slamp.raster import SpikeRaster
from slamp.shared import check_uses, uses_of
from slamp.simulate import readout_of
from slamp.temporal import importance, joint_alignment, joint_bound, measured_sensitivity, omega, single_step_importance

FROM_ACTIVITY = ("slamp", "slamp-activity", "slamp-bound")
COST_BLIND = ("global-magnitude", "uniform", "uniform-plus", "erk", "random")
METHODS = ("lamp", *FROM_ACTIVITY, "slamp-measured", *COST_BLIND)
ACTIVITY_POWER = 0.25
BOUND_RANGE = 2.0
LAST_LAYER_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class LayerScores:
    """Scores of one layer.

    Attributes:
        ranked: Keys by which the layer is ranked; zero keys are never kept.
        curve: Score by rank, the largest key first.
        factor: Layer factor inside the curve (``A ** (2 eta)`` for the temporal methods, else 1).
        minimum: Weights that stay in any case.
        gain: Factor on ``|w|`` per tap, float32, shape (groups, 1, taps), or None.
        seed: Of the random keys, or None.
        allowed: Which weights may be kept at all, bool, flat, or None for all (see `slamp.fans`).
    """

    ranked: RankedKeys
    curve: Curve
    factor: float
    minimum: int
    gain: np.ndarray | None = None
    seed: tuple[int, int] | None = None
    allowed: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of weights, zeros included."""
        return len(self.ranked.keys)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of all weights of a graph. ``scores[name]`` is the float64 array of one layer, made when asked for.

    The keys are the only copy of the weights it holds. They are sorted as far as they are asked for, so one `Scores` is
    not for several threads at once. A parameter that several nodes share is one layer, named by the first of them;
    ``scores[name]`` is the same for all of them.

    Attributes:
        method: Name of the method, one of `METHODS`.
        graph: What was scored.
        activity: What it was scored with, and the source of SOP costs; None if none was given.
        layers: `LayerScores` by weighted node, in computing order; of nodes that share a parameter the first.
    """

    method: str
    graph: SpikingGraph
    activity: Activity | None
    layers: Mapping[str, LayerScores]

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the scores of one layer, float64, shape of its weight.

        Zero weights score 0, the largest +inf (under the LAMP-like methods); of equal keys the lower flat index leads.
        """
        layer = self.layer(name)
        shape = self.graph.weighted[name].weight.shape
        order = np.argsort(-self.keys(name), kind="stable")[: layer.curve.live]
        scores = np.zeros(layer.size)
        scores[order] = layer.curve.values()
        return scores.reshape(shape)

    @cached_property
    def uses(self) -> dict[str, tuple[str, ...]]:
        """The weighted nodes that each layer is the weight of, see `slamp.shared`."""
        return uses_of(self.graph)

    def layer(self, name: str) -> LayerScores:
        """Return the scores of the weight of any weighted node."""
        if name in self.layers:
            return self.layers[name]
        return self.layers[next((first for first, names in self.uses.items() if name in names), name)]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of weights per layer."""
        return {name: layer.size for name, layer in self.layers.items()}

    @property
    def factors(self) -> dict[str, float]:
        """Layer factors."""
        return {name: layer.factor for name, layer in self.layers.items()}

    @property
    def cost_blind(self) -> bool:
        """True for baselines whose ranking knows no costs."""
        return self.method in COST_BLIND

    def largest(self, name: str, n: int) -> np.ndarray:
        """Return the mask that keeps the n largest weights of a layer, bool; of equals the lower flat index."""
        keys, least = self.keys(name), self.layer(name).ranked.nth(n)
        mask: np.ndarray = keys >= least
        surplus = int(np.count_nonzero(mask)) - n
        if surplus:
            mask[np.flatnonzero(keys == least)[-surplus:]] = False
        return mask.reshape(self.graph.weighted[name].weight.shape)

    def keys(self, name: str) -> np.ndarray:
        """Return the keys of one layer in the order of its weights, float32, shape (size,), made when asked for."""
        layer = self.layer(name)
        keys = _keys(self.graph.weighted[name], layer.gain, layer.seed)
        if layer.allowed is not None:
            keys *= layer.allowed
        return keys

    def key_pieces(self, name: str, piece: int) -> Iterator[np.ndarray]:
        """Yield the same in runs of about ``piece`` keys, whole outputs each, shape (outputs, fan_in)."""
        layer, weight = self.layer(name), self.graph.weighted[name].weight
        fan_in = weight[0].size
        if layer.seed is not None or layer.gain is not None or layer.allowed is not None:
            yield self.keys(name).reshape(-1, fan_in)
            return
        rows = weight.reshape(-1, fan_in)
        step = max(1, piece // fan_in)
        for start in range(0, len(rows), step):
            yield np.abs(rows[start : start + step])


def score(
    graph: SpikingGraph,
    activity: Activity | None = None,
    method: str = "slamp",
    *,
    readout: str | None = None,
    raster: SpikeRaster | None = None,
    generator: np.random.Generator | None = None,
    budget: Budget | None = None,
) -> Scores:
    """Score every weight of a graph.

    A parameter that several weighted nodes share is scored once, for all its uses: its magnitudes count once, the
    energies of what the uses read add up, and its temporal factor is that of the uses' distortions added up
    (`slamp.temporal.joint_alignment`).

    Args:
        graph: The network.
        activity: What `calibrate` measured on it; methods without data need it only for a later SOP budget.
        method: One of `METHODS`, or "auto": "slamp" for a budget that limits SOPs or energy, else "slamp-activity".
        readout: How the output is read over time, "mean", "sum", "last" or "max"; by default as the captured module
            reads it, and "mean" where it returns every step.
        raster: Samples, for "slamp-measured".
        generator: Source of the keys of "random".
        budget: What "auto" is to be chosen for; other methods do not look at it.

    Raises:
        ScoreError: Unknown method or readout, missing or foreign activity, missing raster or generator, all-zero layer.
        GraphError: Uses of one parameter hold different weights.
    """
    if method == "auto":
        if budget is None:
            raise ScoreError('score: method "auto" depends on the budget; give budget=, or name a method')
        method = resolve_method(method, budget)
    _check(graph, activity, method, raster, generator)
    check_uses(graph)
    uses = uses_of(graph)
    factors = _factors(graph, uses, activity, method, readout_of(graph, readout), raster)
    seed = None if method != "random" or generator is None else int(generator.integers(2**63))
    sort = partial(_sorted_layer, uses=uses, activity=activity, method=method, factors=factors, seed=seed)
    items = [(index, pair) for index, pair in enumerate(graph.weighted.items()) if pair[0] in uses]
    # Largest first, so that the threads end together; NumPy's sort releases the lock. The result has no order to lose.
    items.sort(key=lambda item: -item[1][1].weight.size)
    with ThreadPoolExecutor(max_workers=min(len(items), os.cpu_count() or 1)) as pool:
        done = dict(pool.map(sort, items))
    layers = {name: _with_minimum(graph, names, done[name], method) for name, names in uses.items()}
    return Scores(method, graph, activity, MappingProxyType(layers))


def resolve_method(method: str, budget: Budget) -> str:
    """Return the method "auto" stands for: "slamp" where a budget limits SOPs or energy, else "slamp-activity"."""
    if method != "auto":
        return method
    return "slamp" if budget.measured else "slamp-activity"


def _check(
    graph: SpikingGraph,
    activity: Activity | None,
    method: str,
    raster: SpikeRaster | None,
    generator: np.random.Generator | None,
) -> None:
    if method not in METHODS:
        raise ScoreError(f"score: method {method!r} is unknown; allowed are {', '.join(METHODS)}")
    if not graph.weighted:
        raise ScoreError("score: the graph has no weights; give a graph with at least one weighted node")
    if activity is None and method in FROM_ACTIVITY:
        raise ScoreError(f"score: {method} needs the activity of the network; pass calibrate(graph, raster)")
    if activity is not None:
        if activity.graph_hash != graph.hash:
            raise ScoreError(
                f"score: the activity was measured on graph {activity.graph_hash[:12]}, this is {graph.hash[:12]}; "
                "calibrate this graph"
            )
        missing = [name for name in graph.weighted if name not in activity.layers]
        if missing:
            raise ScoreError(f"{missing[0]}: the activity holds no such layer; calibrate this graph")
    if method == "slamp-measured" and raster is None:
        raise ScoreError("score: slamp-measured runs the network; pass raster=")
    if method == "random" and generator is None:
        raise ScoreError("score: random needs generator=, such as numpy.random.default_rng(0)")


def _factors(
    graph: SpikingGraph,
    uses: Mapping[str, Sequence[str]],
    activity: Activity | None,
    method: str,
    readout: str,
    raster: SpikeRaster | None,
) -> dict[str, float]:
    if method == "slamp-measured" and raster is not None:
        return {name: value**2 for name, value in measured_sensitivity(graph, raster, readout).items()}
    if method not in FROM_ACTIVITY or activity is None:
        return dict.fromkeys(uses, 1.0)
    weights = omega(readout, activity.steps, activity)
    alphas = importance(graph, activity, weights)
    inputs = {name: np.sqrt(activity.layers[name].energy) for name in alphas}
    pairs = {name: [(alphas[use], inputs[use]) for use in names] for name, names in uses.items()}
    if method != "slamp-bound":
        return {name: joint_alignment(found) ** 2 for name, found in pairs.items()}
    single = single_step_importance(graph, activity, weights)
    gammas = {name: joint_bound(found, [single[use] for use in uses[name]]) for name, found in pairs.items()}
    return _capped(gammas)


def _capped(gammas: dict[str, float]) -> dict[str, float]:
    """Return ``gamma ** (2 eta)`` with the largest eta <= 1 for which the values differ by at most `BOUND_RANGE`."""
    positive = [gamma for gamma in gammas.values() if gamma > 0]
    spread = 2 * float(np.log(max(positive) / min(positive))) if positive else 0.0
    eta = 1.0 if spread == 0 else min(1.0, float(np.log(BOUND_RANGE)) / spread)
    return {name: gamma ** (2 * eta) for name, gamma in gammas.items()}


def _sorted_layer(
    item: tuple[int, tuple[str, Weighted]],
    *,
    uses: Mapping[str, Sequence[str]],
    activity: Activity | None,
    method: str,
    factors: dict[str, float],
    seed: int | None,
) -> tuple[str, LayerScores]:
    index, (name, node) = item
    gain = None
    if method == "slamp-activity" and activity is not None:
        energy = reduce(np.add, [activity.layers[use].trace_energy for use in uses[name]])
        gain = (energy ** (ACTIVITY_POWER / 2)).astype(np.float32).reshape(energy.shape[0], 1, -1)
    seeds = None if seed is None else (seed, index)
    keys = _keys(node, gain, seeds)
    if gain is not None and not keys.any():
        gain = None  # no input of the layer ever spikes, so its magnitudes are all there is to go by
        keys = _keys(node, gain, seeds)
    if not keys.any():
        raise ScoreError(f"{name}: all {keys.size} weights are zero, so none can be kept; train the network first")
    ranked = RankedKeys(keys)
    ranked.top(1)
    return name, LayerScores(ranked, curve_of(node, ranked, method, factors[name]), factors[name], 1, gain, seeds)


def _keys(node: Weighted, gain: np.ndarray | None, seed: tuple[int, int] | None) -> np.ndarray:
    if seed is not None:
        keys: np.ndarray = 1 - np.random.default_rng(seed).random(node.weight.size, dtype=np.float32)
        keys[node.weight.reshape(-1) == 0] = 0
        return keys
    keys = np.abs(node.weight).reshape(-1)
    if gain is not None:
        spread = keys.reshape(gain.shape[0], -1, gain.shape[2])
        spread *= gain
    return keys


def curve_of(node: Weighted, ranked: RankedKeys, method: str, factor: float) -> Curve:
    """Return the score curve of a layer under a method."""
    if method in ("global-magnitude", "random"):
        return MagnitudeCurve(ranked)
    if method in ("uniform", "uniform-plus"):
        return ShareCurve(float(node.weight.size), ranked.live)
    if method == "erk":
        return ShareCurve(float(sum(node.weight.shape)), ranked.live)
    return EnergyCurve(ranked, factor)


def _with_minimum(graph: SpikingGraph, uses: Sequence[str], layer: LayerScores, method: str) -> LayerScores:
    """Uniform+ of the LAMP protocol: a first convolution stays dense, a last fully connected layer keeps a fifth.

    First are layers that read no other weights' outputs in any way, last those whose output reaches no other weights;
    a network with several inputs or heads has several.
    """
    if method != "uniform-plus":
        return layer
    first, last = (any(_at_an_end(graph, use, walk) for use in uses) for walk in (graph.sources, graph.targets))
    convolution = isinstance(graph.weighted[uses[0]], (Conv1d, Conv2d))
    if first and convolution:
        minimum = layer.curve.live
    elif last and not convolution:
        minimum = min(layer.curve.live, round(LAST_LAYER_SHARE * layer.size))
    else:
        minimum = 1
    return replace(layer, minimum=max(minimum, 1))


def _at_an_end(graph: SpikingGraph, name: str, walk: Callable[[str], Sequence[str]]) -> bool:
    """Whether no other weighted node lies in the direction of a walk."""
    waiting, seen = [name], {name}
    while waiting:
        for following in walk(waiting.pop()):
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return not any(each in graph.weighted for each in seen - {name})
