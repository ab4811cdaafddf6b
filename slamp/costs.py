"""What the n largest weights of a layer cost, tap by tap: unrolled connections, synaptic operations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from slamp.errors import BudgetError
from slamp.nodes import Conv1d, Conv2d
from slamp.score import Scores
from slamp.taps import connections

BLOCK = 512
PIECE = BLOCK * 2048
NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(eq=False)
class RankedTaps:
    """The tap of every weight of a layer, largest key first, of equal keys the lower flat index.

    Only as many ranks as were asked for are sorted, with room to spare: a plan keeps few of them.
    """

    scores: Scores
    name: str
    taps: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint32))

    def first(self, n: int) -> np.ndarray:
        """Return the taps of at least the n largest weights, uint32."""
        if n > len(self.taps):
            live = self.scores.layers[self.name].curve.live
            self.taps = self._sorted(min(live, max(n + n // 4, 2 * len(self.taps), BLOCK)))
        return self.taps

    def _sorted(self, n: int) -> np.ndarray:
        keys = self.scores.keys(self.name)
        chosen = np.flatnonzero(keys >= self.scores.layers[self.name].ranked.nth(n))
        # Sorting (complement of the key, index) as one integer is an exact stable argsort at the speed of a plain sort:
        # the bits of non-negative float32 numbers order as the numbers do.
        packed = np.invert(keys[chosen].view(np.uint32)).astype(np.uint64)
        packed <<= np.uint64(32)
        packed |= chosen.astype(np.uint64)
        packed.sort()
        index = packed.astype(np.uint32)
        node = self.scores.graph.weighted[self.name]
        fan_in = np.uint32(node.weight[0].size)
        groups = node.groups if isinstance(node, (Conv1d, Conv2d)) else 1
        taps: np.ndarray = index % fan_in
        if groups > 1:
            taps += index // np.uint32(len(keys) // groups) * fan_in
        return taps


@dataclass(eq=False)
class LayerCost:
    """Cost of the n largest weights of one layer.

    Attributes:
        size: Number of weights.
        mean: Mean cost of a weight.
        live: Number of weights that can be kept.
        total: Cost of all of those.
        taps: Cost per tap, float64, flat; None if every weight costs ``mean``.
        ranked: Order of the weights; None likewise.
        before: Cost before each block of ``BLOCK`` ranks, float64, as far as it was needed.
    """

    size: int
    mean: float
    live: int = 0
    total: float = 0.0
    taps: np.ndarray | None = None
    ranked: RankedTaps | None = None
    before: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def times(self, price: float) -> LayerCost:
        """Return the same cost in another unit, ``price`` of which one unit of this is."""
        taps = None if self.taps is None else self.taps * price
        return LayerCost(self.size, self.mean * price, self.live, self.total * price, taps, self.ranked)

    def prefix(self, n: int) -> float:
        """Exact cost of the n largest weights."""
        if self.taps is None or self.ranked is None:
            return n * self.mean
        if n == self.live:
            return self.total
        order = self.ranked.first(n)
        block = n // BLOCK
        if block >= len(self.before):
            self.before = _sums_before(self.taps, order)
        return float(self.before[block] + self.taps.take(order[block * BLOCK : n]).sum())


def layer_costs(
    scores: Scores, resources: Sequence[str], bits_per_weight: Mapping[str, float] = NOTHING
) -> list[list[LayerCost]]:
    """Return the costs of every resource for every layer, in the order of ``scores``.

    Args:
        scores: Scored weights.
        resources: Of "density", "synapses", "sops", "memory_bits".
        bits_per_weight: What a weight of each layer takes, for "memory_bits".

    Raises:
        BudgetError: SOPs are asked, but the scores carry no activity.
    """
    rows: list[list[LayerCost]] = [[] for _ in resources]
    for name in scores.layers:
        ranked = RankedTaps(scores, name)
        for row, resource in zip(rows, resources, strict=True):
            if resource == "memory_bits":
                row.append(LayerCost(scores.layers[name].size, bits_per_weight[name]))
                continue
            row.append(_layer_cost(ranked, tap_costs(scores, resource, name)))
    return rows


def rank_ahead(rows: Sequence[Sequence[LayerCost]], counts: Sequence[int]) -> None:
    """Sort, several layers at once, what asking for the cost of about ``counts`` weights will need."""
    wanted = {
        id(cost.ranked): (cost.ranked, n)
        for row in rows
        for cost, n in zip(row, counts, strict=True)
        if cost.ranked is not None and n < cost.live
    }
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(lambda pair: pair[0].first(pair[1]), wanted.values()))


def tap_costs(scores: Scores, resource: str, name: str) -> np.ndarray | None:
    """Return the cost of one weight at every tap of a layer, float64, shape (groups, ...); None if it is 1 for all."""
    if resource == "density":
        return None
    if resource == "synapses":
        source = scores.graph.sources(name)[0]
        return connections(scores.graph.weighted[name], scores.graph.shapes[source])
    if scores.activity is None:
        raise BudgetError("sops: the scores carry no activity to predict them from; calibrate, and score with it")
    layer = scores.activity.layers[name]
    # Operations on analog inputs are multiply-accumulates, not synaptic operations.
    return layer.tap_events if layer.from_spikes else np.zeros_like(layer.tap_events)


def _layer_cost(ranked: RankedTaps, costs: np.ndarray | None) -> LayerCost:
    layer = ranked.scores.layers[ranked.name]
    if costs is None:
        return LayerCost(layer.size, 1.0)
    flat = np.ascontiguousarray(costs, dtype=np.float64).reshape(-1)
    if np.ptp(flat) == 0:
        return LayerCost(layer.size, float(flat[0]))
    per_tap = layer.size // flat.size
    total = float(flat.sum()) * per_tap
    if layer.curve.live < layer.size:
        kept = ranked.scores.keys(ranked.name).reshape(costs.shape[0], per_tap, -1) > 0
        total = float(kept.sum(axis=1).reshape(-1) @ flat)
    return LayerCost(layer.size, float(flat.mean()), layer.curve.live, total, flat, ranked)


def _sums_before(taps: np.ndarray, order: np.ndarray) -> np.ndarray:
    before = np.zeros(-(-len(order) // BLOCK) + 1)
    for start in range(0, len(order), PIECE):
        piece = taps.take(order[start : start + PIECE])
        starts = np.arange(0, len(piece), BLOCK)
        before[1 + start // BLOCK :][: len(starts)] = np.add.reduceat(piece, starts)
    np.cumsum(before, out=before)
    return before
