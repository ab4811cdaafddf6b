"""What the n largest weights of a layer cost, tap by tap: unrolled connections, synaptic operations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType

import numpy as np

from slamp.errors import BudgetError
from slamp.nodes import Conv1d, Conv2d
from slamp.score import Scores
from slamp.taps import connections

# Ranks of a block; blocks read on either side of the one asked for; weights looked at together, to stay in a cache.
BLOCK, AROUND, PIECE = 4096, 1, 1 << 18
NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(eq=False)
class RankedTaps:
    """The taps of a layer by rank: of its weights, largest key first, of equal keys the lower flat index.

    One pass over the layer counts, tap by tap, all weights before a rank; only a few blocks of ``BLOCK`` ranks around
    it are sorted, since a search for how many weights to keep ends close to where it is expected to.

    Attributes:
        scores: Scored weights.
        name: The layer.
        blocks: By block, as far as asked for: how many weights before it read each tap, and the tap of each rank in it.
        whole: How many weights that can be kept read each tap, once asked for.
    """

    scores: Scores
    name: str
    blocks: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    whole: np.ndarray | None = None

    def everything(self) -> np.ndarray:
        """Return how many weights that can be kept read each tap, flat integers."""
        if self.whole is None:
            layer = self.scores.layers[self.name]
            kept, per_group = self._none()
            if layer.curve.live == layer.size:
                kept += per_group
            else:
                row = 0
                for keys in self.scores.key_pieces(self.name, PIECE):
                    _count(kept, keys > 0, row, per_group)
                    row += len(keys)
            self.whole = kept.reshape(-1)
        return self.whole

    def block(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how many weights before a block read each tap, and the tap of each rank in it, both flat integers."""
        if index not in self.blocks:
            layer = self.scores.layers[self.name]
            last = (layer.curve.live - 1) // BLOCK
            # Ranks beyond the sorted keys would have to be sorted first.
            ready = max(layer.ranked.ready // BLOCK - 1, index)
            self._read(max(0, index - AROUND), min(index + AROUND, last, ready))
        return self.blocks[index]

    def _none(self) -> tuple[np.ndarray, int]:
        """Return zeros per group and tap, and the number of outputs of a group."""
        node = self.scores.graph.weighted[self.name]
        groups = node.groups if isinstance(node, (Conv1d, Conv2d)) else 1
        return np.zeros((groups, node.weight[0].size), dtype=np.int64), len(node.weight) // groups

    def _read(self, first: int, last: int) -> None:
        layer = self.scores.layers[self.name]
        start, stop = first * BLOCK, min((last + 1) * BLOCK, layer.curve.live)
        most, least = layer.ranked.nth(start + 1), layer.ranked.nth(stop)
        kept, per_group = self._none()
        fan_in = kept.shape[1]
        packed = []
        row = 0
        for keys in self.scores.key_pieces(self.name, PIECE):
            above = keys > most
            _count(kept, above, row, per_group)
            inside = np.flatnonzero((keys >= least) ^ above)
            packed.append(_packed(keys.reshape(-1)[inside], inside + row * fan_in))
            row += len(keys)
        order = np.concatenate(packed)
        order.sort()
        index = order.astype(np.uint32).astype(np.int64)
        taps = index // (per_group * fan_in) * fan_in + index % fan_in
        before = kept.reshape(-1)
        # Of keys that equal the first one here, the first few belong before it, as many as are missing there.
        short = start - int(before.sum())
        before = before + np.bincount(taps[:short], minlength=before.size)
        for block in range(first, last + 1):
            inside = taps[short + block * BLOCK - start : short + min((block + 1) * BLOCK, stop) - start]
            self.blocks[block] = before, inside
            before = before + np.bincount(inside, minlength=before.size)


def _count(kept: np.ndarray, above: np.ndarray, row: int, per_group: int) -> None:
    """Add, per group and tap, how many of the outputs from ``row`` on are True; in place."""
    while len(above):
        group, done = divmod(row, per_group)
        # Bytes add up fastest, and 255 of them cannot overflow.
        rows = min(per_group - done, len(above), 255)
        kept[group] += np.add.reduce(above[:rows].view(np.uint8), axis=0, dtype=np.uint8)
        above, row = above[rows:], row + rows


def _packed(keys: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return one integer per weight that sorts as a stable argsort from the largest key would.

    That is the complement of the key, then the index: the bits of non-negative float32 numbers order as the numbers do.
    """
    packed = np.invert(keys.view(np.uint32)).astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= index.astype(np.uint64)
    return packed


@dataclass(eq=False)
class LayerCost:
    """Cost of the n largest weights of one layer.

    Attributes:
        size: Number of weights.
        mean: Mean cost of a weight.
        live: Number of weights that can be kept.
        taps: Cost per tap, float64, flat; None if every weight costs ``mean``.
        ranked: Order of the weights; None likewise.
        sums: By block of ``BLOCK`` ranks, as far as it was needed: cost of the weights before each rank, float64.
    """

    size: int
    mean: float
    live: int = 0
    taps: np.ndarray | None = None
    ranked: RankedTaps | None = None
    sums: dict[int, np.ndarray] = field(default_factory=dict)

    def times(self, price: float) -> LayerCost:
        """Return the same cost in another unit, ``price`` of which one unit of this is."""
        taps = None if self.taps is None else self.taps * price
        return LayerCost(self.size, self.mean * price, self.live, taps, self.ranked)

    def prefix(self, n: int) -> float:
        """Exact cost of the n largest weights."""
        if self.taps is None or self.ranked is None:
            return n * self.mean
        if n == self.live:
            return float((self.ranked.everything() * self.taps).sum())
        block, rank = divmod(n, BLOCK)
        sums = self.sums.get(block)
        if sums is None:
            # From counts, so that it is the same whatever was asked for before.
            before, taps = self.ranked.block(block)
            sums = np.cumsum(np.concatenate([[(before * self.taps).sum()], self.taps[taps]]))
            self.sums[block] = sums
        return float(sums[rank])

    def most(self, n: int) -> float:
        """Bound on the cost of any n weights, without looking at their order."""
        return n * (self.mean if self.taps is None else float(self.taps.max()))


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
        list(pool.map(lambda pair: pair[0].block(pair[1] // BLOCK), wanted.values()))


def tap_costs(scores: Scores, resource: str, name: str) -> np.ndarray | None:
    """Return the cost of one weight at every tap of a layer, float64, shape (groups, ...); None if it is 1 for all.

    A weight of several uses costs what all of them cost, but counts once for the density.
    """
    if resource == "density":
        return None
    return reduce(np.add, [_tap_costs_of_use(scores, resource, use) for use in scores.uses[name]])


def _tap_costs_of_use(scores: Scores, resource: str, name: str) -> np.ndarray:
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
    return LayerCost(layer.size, float(flat.mean()), layer.curve.live, flat, ranked)
