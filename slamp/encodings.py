"""How many bits the synapses of a layer take: one named rule per way of storing them, its numbers from the profile.

A rule sees the synapse lists of a layer: for a linear layer one list per input over the outputs; for a convolution,
whose weights are shared, one list per input channel over output channels and kernel positions. Chips that share no
weights store what is unrolled: one list per input feature, of which only the length matters here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slamp.errors import ProfileError
from slamp.nodes import Conv1d, Conv2d, Shape, Weighted
from slamp.taps import fan_out


@dataclass(frozen=True, eq=False)
class SynapseLists:
    """The synapses of one layer.

    Attributes:
        kept: Which are not zero, bool, shape (lists, targets of a list).
        node: The layer; only which of its weights are zero counts.
        input_shape: Shape of its input.
        map_shape: Shape of the map that was flattened into its input; the same as ``input_shape`` where none was.
    """

    kept: np.ndarray
    node: Weighted
    input_shape: Shape
    map_shape: Shape = ()

    @property
    def weight_shape(self) -> Shape:
        """Shape of the weight."""
        return tuple(self.node.weight.shape)

    @property
    def convolution(self) -> bool:
        """True if the lists are shared by all positions of an input channel."""
        return isinstance(self.node, (Conv1d, Conv2d))

    @cached_property
    def fan_out(self) -> np.ndarray:
        """Non-zero synapses every input feature reaches, unrolled, float64, shape of the layer's input."""
        return fan_out(self.node, self.input_shape, self.node.weight != 0)

    @property
    def density(self) -> float:
        """Share of the synapses that are not zero."""
        return float(np.count_nonzero(self.kept)) / self.kept.size


Numbers = Mapping[str, float]
Rule = Callable[[SynapseLists, Numbers], float]
Words = Callable[[np.ndarray, Numbers], np.ndarray]

CHUNK_TARGETS = 2**19  # rules that look at single synapses see this many targets at a time (at least one list)


def synapse_lists(node: Weighted, input_shape: Shape, map_shape: Shape = ()) -> SynapseLists:
    """Return the synapse lists of a weighted node.

    Args:
        node: The layer.
        input_shape: Shape of its input, without batch axis.
        map_shape: Shape of the map that was flattened into it, if one was (see `slamp.placement.read_map`).
    """
    mask = node.weight != 0
    groups = node.groups if isinstance(node, (Conv1d, Conv2d)) else 1
    outputs, inputs = mask.shape[0] // groups, mask.shape[1]
    spread = mask.reshape(groups, outputs, inputs, -1)
    kept = np.ascontiguousarray(spread.transpose(0, 2, 1, 3)).reshape(groups * inputs, -1)
    return SynapseLists(kept, node, input_shape, map_shape or input_shape)


def synapse_bits(rule: str, lists: SynapseLists, numbers: Numbers) -> float:
    """Return the bits a layer takes under a rule.

    Args:
        rule: One of `RULES`.
        lists: The layer's synapses.
        numbers: Parameters of the rule, as the profile gives them.

    Raises:
        ProfileError: The rule is not known, or the profile lacks one of its parameters.
    """
    if rule not in RULES:
        raise ProfileError(f"encoding: rule {rule!r} is unknown; allowed are {', '.join(RULES)}")
    try:
        return RULES[rule](lists, numbers)
    except KeyError as error:
        raise ProfileError(f"encoding: rule {rule} needs the parameter {error}; add it to the profile") from error


def list_words(rule: str, lists: SynapseLists, numbers: Numbers) -> np.ndarray:
    """Return the words every list of a layer fills, before all are made as long as the longest.

    ``synapse_bits`` of such a rule is lists x longest x ``word_bits``.

    Args:
        rule: One of `WORDS`.
        lists: The layer's synapses, of which only ``kept`` matters here.
        numbers: Parameters of the rule, as the profile gives them.

    Returns:
        int64, shape (lists,).

    Raises:
        ProfileError: The rule does not fill words list by list, or the profile lacks one of its parameters.
    """
    if rule not in WORDS:
        raise ProfileError(f"encoding: rule {rule!r} has no words per list; allowed are {', '.join(WORDS)}")
    try:
        return WORDS[rule](lists.kept, numbers)
    except KeyError as error:
        raise ProfileError(f"encoding: rule {rule} needs the parameter {error}; add it to the profile") from error


def _dense(lists: SynapseLists, n: Numbers) -> float:
    return lists.kept.size * n["weight_bits"]


def _bitmap(lists: SynapseLists, n: Numbers) -> float:
    return float(np.count_nonzero(lists.kept)) * n["weight_bits"] + lists.kept.size


def _coordinate(lists: SynapseLists, n: Numbers) -> float:
    bits = n["weight_bits"] + n["index_bits"]
    return float(np.count_nonzero(lists.kept)) * bits + len(lists.kept) * n["pointer_bits"]


def _crossbar(lists: SynapseLists, n: Numbers) -> float:
    sources, targets = (int(size) for size in lists.kept.shape)
    return math.ceil(sources / n["block_sources"]) * math.ceil(targets / n["block_targets"]) * n["block_bits"]


def _speck_kernel(lists: SynapseLists, n: Numbers) -> float:
    """Words of ``channels * 2^(ceil(log2(kx ky)) + ceil(log2 filters))``: only powers of two save memory.

    A linear layer counts as the convolution whose kernel is the whole map that it reads.
    """
    filters, channels, *kernel = lists.weight_shape
    if not lists.convolution:
        channels, *kernel = lists.map_shape
    return float(channels << (_bits_for(math.prod(kernel)) + _bits_for(filters))) * n["weight_bits"]


def _padded_rows(lists: SynapseLists, n: Numbers) -> float:
    """SpiNNaker 1: every row as long as the longest of the layer, and a header."""
    longest = float(lists.fan_out.max(initial=0))
    rows = math.ceil(longest / n["row_synapses_max"]) or 1
    return lists.fan_out.size * (longest * n["synapse_bits"] + rows * n["header_words"] * n["word_bits"])


def _entry_rows(lists: SynapseLists, n: Numbers) -> float:
    """HiAER-Spike: whole rows of entries per source, at least one, and a pointer."""
    rows = np.maximum(1, np.ceil(lists.fan_out / n["entries_per_row"]))
    return float(rows.sum()) * n["row_bits"] + lists.fan_out.size * n["pointer_bits"]


def _target_list(lists: SynapseLists, n: Numbers) -> float:
    return float(np.count_nonzero(lists.kept)) * n["weight_bits"]


def _loihi2_dense(lists: SynapseLists, n: Numbers) -> float:
    sources, targets = (int(size) for size in lists.kept.shape)
    word = n["word_bits"]
    return sources * math.ceil((targets * n["bits_per_synapse"] + n["prefix_bits"]) / word) * word


def _loihi2_convolution(lists: SynapseLists, n: Numbers) -> float:
    filters, channels, *kernel = lists.weight_shape
    word = n["word_bits"]
    return channels * math.prod(kernel) * math.ceil(filters * n["bits_per_synapse"] / word) * word


def _as_long_as_the_longest(words: Words) -> Rule:
    """Return the rule of a chip on which every list of a layer takes the words of the longest."""

    def rule(lists: SynapseLists, n: Numbers) -> float:
        found = words(lists.kept, n)
        return len(found) * int(found.max(initial=0)) * n["word_bits"]

    return rule


@dataclass(frozen=True, eq=False, slots=True)
class _Entries:
    """Lists that are cut into entries. All arrays are int64.

    Attributes:
        places: ``list * width + target`` of every synapse, ascending, shape (synapses,).
        starts: Which synapse is the first of each entry, ascending, shape (entries,).
        width: Targets of a list.
    """

    places: np.ndarray
    starts: np.ndarray
    width: int

    @property
    def synapses(self) -> np.ndarray:
        """Synapses of each entry, shape (entries,)."""
        return np.diff(self.starts, append=self.places.size)

    @property
    def first(self) -> np.ndarray:
        """First target of each entry, shape (entries,)."""
        targets: np.ndarray = self.places[self.starts] % self.width
        return targets

    @property
    def last(self) -> np.ndarray:
        """Last target of each entry, shape (entries,)."""
        targets: np.ndarray = self.places[self.starts + self.synapses - 1] % self.width
        return targets

    @property
    def widest_gap(self) -> np.ndarray:
        """Largest distance between neighbors within each entry, 1 if it has one synapse, shape (entries,)."""
        gaps = np.diff(self.places, prepend=0)
        gaps[self.starts] = 1
        return np.maximum.reduceat(gaps, self.starts)


Cut = Callable[[np.ndarray, int, Numbers], np.ndarray]  # places, width -> starts, as in _Entries
Cost = Callable[[_Entries, Numbers], np.ndarray]  # -> bits of each entry


def _loihi1(cut: Cut, cost: Cost) -> Words:
    """Return how Loihi 1 stores lists: cut into entries, whose bits fill words; an empty list takes none.

    Bits are whole numbers, so that their sums are exact in any order.
    """

    def words(kept: np.ndarray, n: Numbers) -> np.ndarray:
        height, width = kept.shape
        bits = np.zeros(height)
        step = max(1, CHUNK_TARGETS // max(1, width))
        for top in range(0, height, step):
            chunk = kept[top : top + step]
            places = np.flatnonzero(chunk)
            if places.size:
                starts = cut(places, width, n)
                owners = places[starts] // width
                bits[top : top + step] = np.bincount(owners, cost(_Entries(places, starts, width), n), len(chunk))
        rest = bits % n["word_bits"]
        more = (rest == 0) | (rest >= n["pad_remainder"])
        return np.where(bits == 0, 0, np.ceil(bits / n["word_bits"]) + more).astype(np.int64)

    return words


def _any_gaps(places: np.ndarray, width: int, n: Numbers) -> np.ndarray:
    return _at_most(int(n["entry_synapses"]), _list_starts(places, width), places.size)


def _short_gaps(places: np.ndarray, width: int, n: Numbers) -> np.ndarray:
    starts = _run_starts(places, width, 2 ** n["skip_bits_max"])
    return _at_most(int(n["entry_synapses"]), starts, places.size)


def _no_gaps(places: np.ndarray, width: int, n: Numbers) -> np.ndarray:
    return _at_most(int(n["entry_synapses"]), _run_starts(places, width, 2), places.size)


def _spans(places: np.ndarray, width: int, n: Numbers) -> np.ndarray:
    """Zeros inside an entry are stored, so each spans as many targets; the next starts at the synapse behind it."""
    opens = np.zeros(places.size, dtype=bool)
    starts = _list_starts(places, width)
    ends = np.append(starts[1:], places.size)
    while starts.size:  # the next entry of all lists at once
        opens[starts] = True
        behind = np.searchsorted(places, places[starts] + int(n["entry_synapses"]))
        more = behind < ends
        starts, ends = behind[more], ends[more]
    return np.flatnonzero(opens)


def _list_starts(places: np.ndarray, width: int) -> np.ndarray:
    """Return which synapse is the first of each list that has any."""
    return np.unique(np.searchsorted(places, np.arange(0, places[-1] + 1, width)))


def _run_starts(places: np.ndarray, width: int, gap: float) -> np.ndarray:
    """Return which synapses start a list or follow a distance of at least ``gap``."""
    opens = np.diff(places, prepend=0) >= gap
    opens[_list_starts(places, width)] = True
    return np.flatnonzero(opens)


def _at_most(most: int, starts: np.ndarray, total: int) -> np.ndarray:
    """Cut every stretch of synapses into pieces of ``most``; return the start of each piece."""
    pieces = -(-np.diff(starts, append=total) // most)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    cut: np.ndarray = np.repeat(starts, pieces) + most * number
    return cut


def _sparse(entries: _Entries, n: Numbers) -> np.ndarray:
    index = np.maximum(n["index_bits_min"], _bit_lengths(entries.last))
    bits: np.ndarray = n["prefix_bits"] + entries.synapses * (n["weight_bits"] + index)
    return bits


def _runlength(entries: _Entries, n: Numbers) -> np.ndarray:
    skip = np.maximum(n["skip_bits_min"], _bit_lengths(entries.widest_gap))
    bits: np.ndarray = n["prefix_bits"] + _first_index(entries, n) + entries.synapses * (n["weight_bits"] + skip)
    return bits


def _dense1(entries: _Entries, n: Numbers) -> np.ndarray:
    bits: np.ndarray = n["prefix_bits"] + _first_index(entries, n) + entries.synapses * n["weight_bits"]
    return bits


def _dense2(entries: _Entries, n: Numbers) -> np.ndarray:
    span = entries.last - entries.first + 1
    bits: np.ndarray = n["prefix_bits"] + _first_index(entries, n) + span * n["weight_bits"]
    return bits


def _first_index(entries: _Entries, n: Numbers) -> np.ndarray:
    bits: np.ndarray = np.maximum(n["index_bits_min"], _bit_lengths(entries.first))
    return bits


def _bit_lengths(values: np.ndarray) -> np.ndarray:
    """Bits of each value, exact below 2^53: 0 -> 0, 1 -> 1, 2 and 3 -> 2, 4 -> 3."""
    return np.frexp(values.astype(np.float64))[1]


def _bits_for(count: int) -> int:
    """Bits that tell ``count`` things apart: ceil(log2(count)), exactly."""
    return (count - 1).bit_length()


WORDS: Mapping[str, Words] = {
    "loihi1_sparse": _loihi1(_any_gaps, _sparse),
    "loihi1_runlength": _loihi1(_short_gaps, _runlength),
    "loihi1_dense1": _loihi1(_no_gaps, _dense1),
    "loihi1_dense2": _loihi1(_spans, _dense2),
}
RULES: Mapping[str, Rule] = {
    "dense": _dense,
    "bitmap": _bitmap,
    "coordinate": _coordinate,
    "crossbar": _crossbar,
    **{name: _as_long_as_the_longest(words) for name, words in WORDS.items()},
    "loihi2_dense": _loihi2_dense,
    "loihi2_convolution": _loihi2_convolution,
    "speck_kernel": _speck_kernel,
    "padded_rows": _padded_rows,
    "entry_rows": _entry_rows,
    "target_list": _target_list,
}
