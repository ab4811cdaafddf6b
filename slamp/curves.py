"""Falling score curves: what the n-th largest weight of a layer is worth, without an array of all scores.

Each curve answers two questions in microseconds: ``value(n)``, the score of the n-th largest weight, and
``count(threshold)``, how many weights score at least ``threshold``. Scores depend on larger weights only, so keys are
sorted from the largest down, as far as anyone asks. Sums of squares are float64 (float32 is 2 % off on 33.5 M weights),
kept at the borders of blocks, so a layer costs its float32 keys and little else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

BLOCK = 512
SMALL = 128 * BLOCK


class Curve(Protocol):
    """Scores of one layer by rank; falls with ``n``. Ranks run from 1 to ``live``, the number of non-zero keys."""

    @property
    def live(self) -> int:
        """Number of weights that can score at all."""

    def value(self, n: int) -> float:
        """Score of the n-th largest weight, 1 <= n <= live."""

    def count(self, threshold: float) -> int:
        """Number of weights that score at least ``threshold``; all live ones for a threshold of 0."""

    def about(self, thresholds: np.ndarray) -> np.ndarray:
        """Return roughly ``count`` of each threshold above 0, float64, without sorting any further."""

    def values(self) -> np.ndarray:
        """Scores of ranks 1 to live, float64, shape (live,)."""

    def total(self, n: int) -> float:
        """Sum of the scores of ranks 2 to n."""


@dataclass(eq=False)
class RankedKeys:
    """Non-negative keys of one layer, the largest sorted, as many as were asked for (a cache; the answers are fixed).

    Attributes:
        keys: float32, shape (size,); owned. The last ``ready`` are ascending, and none before them is larger.
        ready: Number of sorted keys, a multiple of ``BLOCK`` or all.
        live: Number of keys above zero.
    """

    keys: np.ndarray
    ready: int = 0
    live: int = field(init=False)

    def __post_init__(self) -> None:
        self.live = int(np.count_nonzero(self.keys))

    def top(self, n: int) -> np.ndarray:
        """Return at least the ``n`` largest keys, ascending."""
        size = len(self.keys)
        if n > self.ready:
            wanted = -(-max(n, 2 * self.ready, size // 4) // BLOCK) * BLOCK
            wanted = size if size <= SMALL or wanted > size // 2 else wanted
            rest = self.keys[: size - self.ready]
            if wanted < size:
                rest.partition(size - wanted)
            rest[size - wanted :].sort()
            self.ready = wanted
        return self.keys[size - self.ready :]

    def nth(self, n: int) -> np.float32:
        """Return the n-th largest key."""
        tail = self.top(n)
        key: np.float32 = tail[len(tail) - n]
        return key

    def squares(self, start: int, stop: int) -> np.ndarray:
        """Return the squared keys of ranks ``start`` + 1 to ``stop``, or as many as there are; float64."""
        stop = min(stop, len(self.keys))
        tail = self.top(stop)
        squares: np.ndarray = np.square(tail[len(tail) - stop : len(tail) - start][::-1], dtype=np.float64)
        return squares


@dataclass(eq=False)
class EnergyCurve:
    """``factor * log(S(n) / S(n - 1))``, S(n) the sum of the n largest squared keys; +inf for the largest.

    Thresholding it is thresholding LAMP. ``S`` is summed from the largest.

    Attributes:
        ranked: Keys of the layer, of which at least one is not zero.
        factor: Layer factor, not negative.
        sums: Sum of squares in each sorted block of ``BLOCK`` ranks, float64.
        before: ``S`` before each block, float64.
        falling: Minus ``q / S`` of each block's first rank, ascending, float64.
        recent: The block that was counted in last, its squares, and ``S`` before each of them.
    """

    ranked: RankedKeys
    factor: float
    sums: np.ndarray = field(default_factory=lambda: np.zeros(0))
    before: np.ndarray = field(default_factory=lambda: np.zeros(0))
    falling: np.ndarray = field(default_factory=lambda: np.zeros(0))
    recent: tuple[int, np.ndarray, np.ndarray] = field(default_factory=lambda: (-1, np.zeros(0), np.zeros(0)))

    def __post_init__(self) -> None:
        self._extend(1)

    @property
    def live(self) -> int:
        """Number of non-zero keys."""
        return self.ranked.live

    def value(self, n: int) -> float:
        """Score of the n-th largest weight."""
        if n == 1:
            return float("inf")
        self._extend(n)
        block = (n - 1) // BLOCK
        squares = self.ranked.squares(block * BLOCK, n)
        return self.factor * float(np.log1p(squares[-1] / (self.before[block] + squares[:-1].sum())))

    def count(self, threshold: float) -> int:
        """Number of weights that score at least ``threshold``."""
        if threshold <= 0:
            return self.live
        ratio = self._ratio(threshold)
        n = self._count_ready(ratio)
        # Not `ranked.ready`: others may have had more keys sorted than are summed here.
        while n == len(self.sums) * BLOCK < len(self.ranked.keys):
            self._extend(n + 1)
            n = self._count_ready(ratio)
        return min(n, self.live)

    def about(self, thresholds: np.ndarray) -> np.ndarray:
        """Return roughly ``count`` of each threshold above 0, float64, without sorting any further."""
        if self.factor <= 0:
            return np.ones(len(thresholds))
        ratios = np.expm1(np.minimum(thresholds / self.factor, 1.0))
        # Every rank of the first block, the first rank of the others.
        squares = self.ranked.squares(0, BLOCK)[: self.live]
        falling = np.concatenate([-squares[1:] / np.cumsum(squares)[:-1], self.falling[1:]])
        ranks = np.concatenate([np.arange(1.0, len(squares)), np.arange(1, len(self.falling)) * float(BLOCK)])
        counts = np.ones(len(ratios)) if len(ranks) == 0 else 1 + np.interp(-ratios, falling, ranks, left=0.0)
        return _beyond(self.ranked, len(self.sums) * BLOCK, counts, np.sqrt(ratios * self.sums.sum()))

    def total(self, n: int) -> float:
        """Sum of the scores of ranks 2 to n: ``factor * log(S(n) / S(1))``."""
        self._extend(n)
        block = (n - 1) // BLOCK
        energy = self.before[block] + self.ranked.squares(block * BLOCK, n).sum()
        return self.factor * float(np.log(energy / self.ranked.squares(0, 1)[0]))

    def values(self) -> np.ndarray:
        """Scores of ranks 1 to live, float64, shape (live,)."""
        squares = self.ranked.squares(0, self.live)
        sums = np.cumsum(squares)
        scores = np.full(self.live, np.inf)
        scores[1:] = self.factor * np.log1p(squares[1:] / sums[:-1])
        return scores

    def _ratio(self, threshold: float) -> float:
        # From the second rank on q <= S, so no finite score exceeds factor * log(2).
        return math.expm1(min(threshold / self.factor, 1.0)) if self.factor > 0 else 1.5

    def _block(self, ratio: float) -> int:
        return int(self.falling.searchsorted(-ratio, side="right")) - 1

    def _count_ready(self, ratio: float) -> int:
        block = self._block(ratio)
        if block != self.recent[0]:
            squares = self.ranked.squares(block * BLOCK, (block + 1) * BLOCK)
            sums = np.zeros(len(squares))
            np.cumsum(squares[:-1], out=sums[1:])
            sums += self.before[block]
            self.recent = block, squares, sums
        _, squares, sums = self.recent
        # It holds for a run of ranks from the start of the block, and always for the largest, whose S is 0.
        passed = squares >= ratio * sums
        first = int(passed.argmin())
        return block * BLOCK + (len(passed) if passed[first] else first)

    def _extend(self, n: int) -> None:
        """Make the block sums reach at least rank ``n``."""
        if n <= len(self.sums) * BLOCK:
            return
        tail = self.ranked.top(n)
        fresh = tail[: len(tail) - len(self.sums) * BLOCK]
        short = len(fresh) % BLOCK
        whole = fresh[short:].reshape(-1, BLOCK)
        sums = np.einsum("ij,ij->i", whole, whole, dtype=np.float64)[::-1]
        rest = fresh[:short].astype(np.float64)
        self.sums = np.concatenate([self.sums, sums, [rest @ rest] if short else []])
        self.before = np.concatenate([[0.0], np.cumsum(self.sums)[:-1]])
        first = np.square(tail[::-1][::BLOCK], dtype=np.float64)
        self.falling = np.concatenate([[-np.inf], -(first[1:] / self.before[1:])])


@dataclass(frozen=True, eq=False)
class MagnitudeCurve:
    """The squared key itself: one magnitude scale for all layers."""

    ranked: RankedKeys

    @property
    def live(self) -> int:
        """Number of non-zero keys."""
        return self.ranked.live

    def value(self, n: int) -> float:
        """Squared key of the n-th largest weight."""
        return float(self.ranked.nth(n)) ** 2

    def count(self, threshold: float) -> int:
        """Number of weights whose squared key is at least ``threshold``."""
        if threshold <= 0:
            return self.live
        if threshold > self.value(1):
            return 0
        root = np.sqrt(np.float64(threshold))
        # Searching float32 keys for a float64 number would copy them all, so round it up to float32.
        least = np.float32(root)
        if least < root:
            least = np.nextafter(least, np.float32(np.inf))
        tail = self.ranked.top(1)
        while float(tail[0]) >= least and len(tail) < len(self.ranked.keys):
            tail = self.ranked.top(len(tail) + 1)
        return min(len(tail) - int(np.searchsorted(tail, least, side="left")), self.live)

    def about(self, thresholds: np.ndarray) -> np.ndarray:
        """Return roughly ``count`` of each threshold above 0, float64, without sorting any further."""
        roots = np.sqrt(thresholds)
        tail = self.ranked.top(1)
        counts = len(tail) - np.searchsorted(tail, roots.astype(np.float32), side="left").astype(np.float64)
        return _beyond(self.ranked, len(tail), counts, roots)

    def total(self, n: int) -> float:
        """Sum of the squared keys of ranks 2 to n."""
        return float(self.ranked.squares(1, n).sum()) if n > 1 else 0.0

    def values(self) -> np.ndarray:
        """Scores of ranks 1 to live, float64, shape (live,)."""
        return self.ranked.squares(0, self.live)


@dataclass(frozen=True, eq=False)
class ShareCurve:
    """``share / n``: the layer keeps weights in proportion to ``share``, whatever they are."""

    share: float
    live: int

    def value(self, n: int) -> float:
        """Score of the n-th largest weight."""
        return self.share / n

    def count(self, threshold: float) -> int:
        """Number of weights that score at least ``threshold``."""
        if threshold * self.live <= self.share:
            return self.live
        n = int(self.share / threshold)
        while self.share / (n + 1) >= threshold:
            n += 1
        while n > 0 and self.share / n < threshold:
            n -= 1
        return min(n, self.live)

    def about(self, thresholds: np.ndarray) -> np.ndarray:
        """Return ``count`` of each threshold above 0, float64."""
        counts: np.ndarray = np.clip(np.floor(self.share / thresholds), 0, self.live)
        return counts

    def total(self, n: int) -> float:
        """Sum of the scores of ranks 2 to n."""
        return self.share * float((1.0 / np.arange(2, n + 1)).sum())

    def values(self) -> np.ndarray:
        """Scores of ranks 1 to live, float64, shape (live,)."""
        values: np.ndarray = self.share / np.arange(1, self.live + 1, dtype=np.float64)
        return values


def _beyond(ranked: RankedKeys, known: int, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return counts where the least key is among the ``known``, else a guess: keys fall to 0 along a straight line."""
    ready = min(known, ranked.live)
    least = float(ranked.nth(ready))
    guessed = ranked.live - (ranked.live - ready) * keys / least
    result: np.ndarray = np.where(keys >= least, np.minimum(counts, ready), guessed)
    return result
