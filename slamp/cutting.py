"""How a population is cut into parts that each fit one core: as few as possible, equal and contiguous."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from slamp.encodings import synapse_lists
from slamp.errors import MappingError
from slamp.graph import SpikingGraph
from slamp.memory import encoded_bits
from slamp.nodes import Conv1d, Conv2d, Weighted
from slamp.populations import Path, Population, mixes_channels, outputs_into, reached, weights_of
from slamp.profile import Profile
from slamp.taps import tap_shape

NEURONS, AXONS_IN, AXONS_OUT = "neurons", "input axons", "output axons"
MEMORY, FORMATS = "synaptic memory, bits", "synapse formats"
# Share of the memory of a whole layer that its parts together take at least.
NEARLY = 0.75
# What one neuron, or one channel, has too much of, and what to do about it.
ALONE = {
    AXONS_IN: "keep fewer live inputs of each neuron",
    AXONS_OUT: "keep fewer synapses out of each neuron",
    MEMORY: "keep fewer weights of each channel",
}


@dataclass(frozen=True)
class Piece:
    """One part: ranges of channels and positions (first, one after the last), and what it takes of a core."""

    channels: tuple[int, int]
    positions: tuple[int, int]
    use: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Cut:
    """A population in pieces.

    Attributes:
        layer: Its weighted node.
        pieces: Channel ranges outermost.
        forced_by: The resource of which the whole would take the largest multiple of a core.
        destinations: By source, how many pieces each of its neurons reaches, int64, shape of the source.
    """

    layer: str
    pieces: tuple[Piece, ...]
    forced_by: str
    destinations: Mapping[str, np.ndarray]


def cut(
    graph: SpikingGraph,
    profile: Profile,
    population: Population,
    limits: Mapping[str, float],
    reaches: np.ndarray | None,
) -> Cut:
    """Cut a population into the fewest pieces that fit.

    Args:
        graph: The network.
        profile: The chip, for its encodings.
        population: What to cut.
        limits: Limit of a core by resource.
        reaches: How many parts of other populations each neuron reaches; None if it reaches none.

    Raises:
        MappingError: One neuron or channel alone is too much for a core.
    """
    return _Cutter(graph, profile, population, limits, reaches).cut()


@dataclass(eq=False)
class _Cutter:
    graph: SpikingGraph
    profile: Profile
    population: Population
    limits: Mapping[str, float]
    reaches: np.ndarray | None
    bits: dict[int, list[float]] = field(default_factory=dict)
    axons: dict[tuple[range, int], np.ndarray] = field(default_factory=dict)

    def cut(self) -> Cut:
        counts = self.channel_counts
        limit = self.limits.get(MEMORY, math.inf)
        # Splitting lists saves some index bits at most, so far fewer parts than the whole would fill cannot do.
        least = bisect_left(counts, NEARLY * max(self.memory(1)) / limit)
        first = bisect_left(counts, True, least, key=lambda count: max(self.memory(count)) <= limit)
        if first == len(counts):
            raise self.too_much(MEMORY, max(self.memory(counts[-1])), "channel")
        best: tuple[int, int] | None = None
        for count in counts[first:]:
            most = self.population.positions if best is None else (best[0] * best[1] - 1) // count
            least = self.least_bands(count)
            if least > most:
                if best is not None and count >= best[0] * best[1]:
                    break
                continue
            bands = self.fewest_bands(count, least, most)
            if bands is not None:
                best = (count, bands)
        if best is None:
            raise self.refusal(counts[-1])
        return self.made(*best)

    @cached_property
    def weights(self) -> dict[str, Weighted]:
        return weights_of(self.graph, self.population)

    @cached_property
    def scattered(self) -> dict[str, list[Path]]:
        """Last weights of paths on which channels of weights are not those of neurons in their order, with the paths.

        If there is one, all last weights are listed.
        """
        ends = {path: [name for name in path.nodes if name in self.weights][-1:] for path in self.population.paths}
        if not any(mixes_channels(self.graph, path) for path in ends):
            return {}
        found: dict[str, list[Path]] = {}
        for path, last in ends.items():
            for name in last:
                found.setdefault(name, []).append(path)
        return found

    @cached_property
    def channel_counts(self) -> list[int]:
        """Numbers of channel ranges worth trying: one per size of the largest range."""
        channels = self.population.channels
        last = self.weights.get(self.population.layer)
        if (
            isinstance(last, (Conv1d, Conv2d)) and last.groups > 1 and not self.scattered
        ):  # whole groups, or equal parts of each
            outputs = channels // last.groups
            apart = [count for count in range(1, last.groups + 1) if last.groups % count == 0]
            within = [last.groups * part for part in range(2, outputs + 1) if outputs % part == 0]
            return apart + within
        return sorted({math.ceil(channels / size) for size in range(1, channels + 1)})

    def ranges(self, size: int, count: int) -> list[range]:
        return [range(size * i // count, size * (i + 1) // count) for i in range(count)]

    def channel_ranges(self, count: int) -> list[range]:
        return self.ranges(self.population.channels, count)

    def bands(self, count: int) -> list[range]:
        return self.ranges(self.population.positions, count)

    def memory(self, count: int) -> list[float]:
        """Bits of the synapse lists of every channel range; zeros if how the chip stores them is not known."""
        if count not in self.bits:
            self.bits[count] = [self.range_bits(span) for span in self.channel_ranges(count)]
        return self.bits[count]

    def range_bits(self, span: range) -> float:
        total = 0.0
        for name, node in self.weights.items():
            shape = self.graph.shapes[self.graph.sources(name)[0]]
            if name in self.scattered:
                kept = np.any(
                    [outputs_into(self.graph, self.population, p, span) for p in self.scattered[name]], axis=0
                )
                if not kept.any():
                    continue
                if tap_shape(node)[0] == 1:
                    node = replace(node, weight=node.weight[kept])
            elif name == self.population.layer:
                node, shape = sliced(node, shape, span)
            encoded = encoded_bits(synapse_lists(node, shape), self.profile)
            total += min(encoded.values(), default=0.0)
        return total

    def axons_in(self, span: range, bands: int) -> np.ndarray:
        """Sources with a synapse into each band of a channel range, int64, (bands,)."""
        key = (span, bands)
        if key not in self.axons:
            self.axons[key] = sum(
                (maps.reshape(bands, -1).sum(1) for maps in self.reached_by(span, bands).values()),
                start=np.zeros(bands, dtype=np.int64),
            )
        return self.axons[key]

    def reached_by(self, span: range, bands: int) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for path in self.population.paths:
            maps = reached(self.graph, self.population, path, span, self.bands(bands))
            found[path.source] = found[path.source] | maps if path.source in found else maps
        return found

    def axons_out(self, count: int, bands: int) -> np.ndarray:
        """Parts of other populations each part reaches, neuron by neuron, float64, (count, bands)."""
        if self.reaches is None:
            return np.zeros((count, bands))
        table = self.reaches.reshape(self.population.channels, -1)
        rows = np.add.reduceat(table, [span.start for span in self.channel_ranges(count)], axis=0)
        return np.add.reduceat(rows, [span.start for span in self.bands(bands)], axis=1).astype(np.float64)

    def neurons(self, count: int, bands: int) -> np.ndarray:
        channels = [len(span) for span in self.channel_ranges(count)]
        return np.outer(channels, [len(band) for band in self.bands(bands)]).astype(np.float64)

    def least_bands(self, count: int) -> int:
        """A bound: the largest channel range over what a core takes, and not more bands than positions."""
        needed = [1.0]
        if NEURONS in self.limits:
            needed.append(self.neurons(count, 1).max() / self.limits[NEURONS])
        if AXONS_OUT in self.limits:
            needed.append(self.axons_out(count, 1).max() / self.limits[AXONS_OUT])
        return math.ceil(max(needed))

    def fewest_bands(self, count: int, least: int, most: int) -> int | None:
        low, high = least - 1, least
        while not self.fits(count, high):
            if high == most:
                return None
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(count, middle) else (middle, high)
        return high

    def fits(self, count: int, bands: int) -> bool:
        cheap: Sequence[tuple[str, np.ndarray]] = (
            (NEURONS, self.neurons(count, bands)),
            (AXONS_OUT, self.axons_out(count, bands)),
        )
        if any(name in self.limits and used.max() > self.limits[name] for name, used in cheap):
            return False
        limit = self.limits.get(AXONS_IN, math.inf)
        if sum(math.prod(self.graph.shapes[name]) for name in {path.source for path in self.population.paths}) <= limit:
            return True
        return all(self.axons_in(span, bands).max() <= limit for span in self.channel_ranges(count))

    def refusal(self, count: int) -> MappingError:
        """Say which resource a single neuron exceeds."""
        positions = self.population.positions
        for name, used in (
            (AXONS_IN, np.array([self.axons_in(span, positions) for span in self.channel_ranges(count)], dtype=float)),
            (AXONS_OUT, self.axons_out(count, positions)),
            (NEURONS, self.neurons(count, positions)),
        ):
            if name in self.limits and used.max() > self.limits[name]:
                return self.too_much(name, float(used.max()), "neuron")
        raise AssertionError("a population of single neurons that fit was refused")

    def too_much(self, name: str, used: float, what: str) -> MappingError:
        limit = self.limits[name]
        return MappingError(
            f"{self.population.layer}: one {what} alone takes {used:,.0f} of {name}, a core of {self.profile.name} has "
            f"{limit:,.0f}; {ALONE.get(name, 'remove it')}: at most {limit / used:.1%} of what it has"
        )

    def made(self, count: int, bands: int) -> Cut:
        neurons, axons_out, memory = self.neurons(count, bands), self.axons_out(count, bands), self.memory(count)
        pieces: list[Piece] = []
        destinations: dict[str, np.ndarray] = {}
        for row, span in enumerate(self.channel_ranges(count)):
            maps = self.reached_by(span, bands)
            for source, found in maps.items():
                counted = found.sum(0, dtype=np.int64)
                destinations[source] = destinations[source] + counted if source in destinations else counted
            for column, band in enumerate(self.bands(bands)):
                axons = sum(int(found[column].sum()) for found in maps.values())
                use = {
                    NEURONS: float(neurons[row, column]),
                    AXONS_IN: float(axons),
                    AXONS_OUT: float(axons_out[row, column]),
                    MEMORY: memory[row],
                    FORMATS: float(len(self.weights)),
                }
                pieces.append(Piece((span.start, span.stop), (band.start, band.stop), use))
        return Cut(self.population.layer, tuple(pieces), self.forced_by(), destinations)

    def forced_by(self) -> str:
        whole = {
            NEURONS: float(self.neurons(1, 1).max()),
            AXONS_IN: float(self.axons_in(self.channel_ranges(1)[0], 1).max()) if AXONS_IN in self.limits else 0.0,
            AXONS_OUT: float(self.axons_out(1, 1).max()),
            MEMORY: max(self.memory(1)),
        }
        return max(whole, key=lambda name: whole[name] / self.limits.get(name, math.inf))


def sliced(node: Weighted, input_shape: tuple[int, ...], span: range) -> tuple[Weighted, tuple[int, ...]]:
    """Return a weighted node with those output channels alone, and the shape of the input they read."""
    weight = node.weight[span.start : span.stop]
    if not isinstance(node, (Conv1d, Conv2d)) or node.groups == 1:
        return replace(node, weight=weight), input_shape
    outputs, inputs = node.weight.shape[0] // node.groups, node.weight.shape[1]
    groups = max(1, len(span) // outputs)  # the span holds whole groups, or lies within one
    return replace(node, weight=weight, groups=groups), (groups * inputs, *input_shape[1:])
