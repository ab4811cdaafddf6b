"""How many bits the synapses of a layer take: one named rule per way of storing them, its numbers from the profile.

A rule sees the synapse lists of a layer: for a linear layer one list per input over the outputs; for a convolution,
whose weights are shared, one list per input channel over output channels and kernel positions. Chips that share no
weights store what is unrolled: one list per input feature, of which only the length matters here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from slamp.errors import ProfileError
from slamp.nodes import Conv1d, Conv2d, Shape, Weighted
from slamp.taps import fan_out


@dataclass(frozen=True, eq=False)
class SynapseLists:
    """The synapses of one layer.

    Attributes:
        kept: Which are not zero, bool, shape (lists, targets of a list).
        fan_out: Non-zero synapses every input feature reaches, unrolled, float64, shape of the layer's input.
        weight_shape: Shape of the weight.
        convolution: True if the lists are shared by all positions of an input channel.
    """

    kept: np.ndarray
    fan_out: np.ndarray
    weight_shape: Shape
    convolution: bool

    @property
    def density(self) -> float:
        """Share of the synapses that are not zero."""
        return float(np.count_nonzero(self.kept)) / self.kept.size


Numbers = Mapping[str, float]
Rule = Callable[[SynapseLists, Numbers], float]


def synapse_lists(node: Weighted, input_shape: Shape) -> SynapseLists:
    """Return the synapse lists of a weighted node whose input has that shape (batch axis not counted)."""
    mask = node.weight != 0
    convolution = isinstance(node, (Conv1d, Conv2d))
    groups = node.groups if isinstance(node, (Conv1d, Conv2d)) else 1
    outputs, inputs = mask.shape[0] // groups, mask.shape[1]
    spread = mask.reshape(groups, outputs, inputs, -1)
    kept = np.ascontiguousarray(spread.transpose(0, 2, 1, 3)).reshape(groups * inputs, -1)
    return SynapseLists(kept, fan_out(node, input_shape, mask), tuple(mask.shape), convolution)


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
    """Words of ``channels * 2^(ceil(log2(kx ky)) + ceil(log2 filters))``: only powers of two save memory."""
    filters, channels, *kernel = lists.weight_shape
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


def _loihi1(cost: Callable[[np.ndarray, Numbers], float], pieces: str) -> Rule:
    """Return a rule of Loihi 1: entries into 64-bit words, every list of the layer as long as the longest."""

    def rule(lists: SynapseLists, n: Numbers) -> float:
        words = [_words(sum(cost(piece, n) for piece in _pieces(row, n, pieces)), n) for row in lists.kept]
        return len(words) * max(words) * n["word_bits"]

    return rule


def _words(bits: float, n: Numbers) -> int:
    if bits == 0:
        return 0
    rest = bits % n["word_bits"]
    return math.ceil(bits / n["word_bits"]) + int(rest == 0 or rest >= n["pad_remainder"])


def _pieces(row: np.ndarray, n: Numbers, pieces: str) -> Iterator[np.ndarray]:
    """Cut a list into entries; yield the targets of each."""
    targets = np.flatnonzero(row)
    most = int(n["entry_synapses"])
    if pieces == "span":  # zeros inside the span are stored
        while len(targets):
            inside = targets < targets[0] + most
            yield targets[inside]
            targets = targets[~inside]
        return
    longest = {"any": np.inf, "short gaps": 2 ** n.get("skip_bits_max", 0), "no gaps": 2}[pieces]
    breaks = np.flatnonzero(np.diff(targets) >= longest) + 1
    for run in np.split(targets, breaks):
        yield from (run[start : start + most] for start in range(0, len(run), most))


def _sparse(targets: np.ndarray, n: Numbers) -> float:
    index = max(n["index_bits_min"], _bits_for(int(targets[-1]) + 1))
    return n["prefix_bits"] + len(targets) * (n["weight_bits"] + index)


def _runlength(targets: np.ndarray, n: Numbers) -> float:
    gap = int(np.diff(targets).max(initial=1))
    skip = max(n["skip_bits_min"], _bits_for(gap + 1))
    return n["prefix_bits"] + _first_index(targets, n) + len(targets) * (n["weight_bits"] + skip)


def _dense1(targets: np.ndarray, n: Numbers) -> float:
    return n["prefix_bits"] + _first_index(targets, n) + len(targets) * n["weight_bits"]


def _dense2(targets: np.ndarray, n: Numbers) -> float:
    span = int(targets[-1] - targets[0]) + 1
    return n["prefix_bits"] + _first_index(targets, n) + span * n["weight_bits"]


def _first_index(targets: np.ndarray, n: Numbers) -> float:
    return max(n["index_bits_min"], _bits_for(int(targets[0]) + 1))


def _bits_for(count: int) -> int:
    """Bits that tell ``count`` things apart: ceil(log2(count)), exactly."""
    return (count - 1).bit_length()


RULES: Mapping[str, Rule] = {
    "dense": _dense,
    "bitmap": _bitmap,
    "coordinate": _coordinate,
    "crossbar": _crossbar,
    "loihi1_sparse": _loihi1(_sparse, "any"),
    "loihi1_runlength": _loihi1(_runlength, "short gaps"),
    "loihi1_dense1": _loihi1(_dense1, "no gaps"),
    "loihi1_dense2": _loihi1(_dense2, "span"),
    "loihi2_dense": _loihi2_dense,
    "loihi2_convolution": _loihi2_convolution,
    "speck_kernel": _speck_kernel,
    "padded_rows": _padded_rows,
    "entry_rows": _entry_rows,
    "target_list": _target_list,
}
