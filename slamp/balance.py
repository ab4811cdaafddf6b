"""Which weights of a layer are kept: the largest, or as many for every source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slamp.errors import MaskError
from slamp.nodes import Conv1d, Conv2d, Weighted
from slamp.score import Scores
from slamp.shared import for_every_use

BALANCES = ("", "fan_out")


def check_balance(balance: str) -> None:
    """Raise `MaskError` for an unknown balance."""
    if balance not in BALANCES:
        raise MaskError(f"masks: balance is {balance!r}; allowed are '' (none) and 'fan_out'")


def kept_masks(
    scores: Scores, keep: Mapping[str, int], balance: str = "", groups: Mapping[str, Sequence[range]] | None = None
) -> dict[str, np.ndarray]:
    """Return the masks of all weighted nodes, bool, True = keep; nodes that share a parameter have the same.

    Args:
        scores: Scored weights.
        keep: Number of weights per layer; under a balance, at most that many.
        balance: Empty: the largest of the layer. "fan_out": equal numbers for every source (input, or input channel of
            a convolution) within a group of targets, for a chip that pads every list of a group to the longest stores
            the difference in vain. For a parameter of several uses, the sources and groups are those of the first use.
        groups: Ranges of outputs that lie on one core each, by layer; where there is none, the layer is one group.
    """
    if not balance:
        return for_every_use(scores.graph, {name: scores.largest(name, n) for name, n in keep.items()})
    spans = groups or {}
    found = {
        name: balanced(scores.graph.weighted[name], scores.keys(name), n, spans.get(name, ()))
        for name, n in keep.items()
    }
    return for_every_use(scores.graph, found)


def balanced(node: Weighted, keys: np.ndarray, n: int, groups: Sequence[range] = ()) -> np.ndarray:
    """Return a mask in which every source keeps the same number of its largest weights in every group of outputs.

    At most ``n`` weights are kept, at least one. Where that is less than one per source and group, those with the
    largest weights keep one each. A source with fewer live weights than its share keeps what it has.

    Args:
        node: The layer.
        keys: Key of every weight, flat, not negative.
        n: Weights to keep.
        groups: Ranges of outputs; without any, all are one group.
    """
    weight = node.weight
    spans = list(groups) or [range(len(weight))]
    parts = node.groups if isinstance(node, (Conv1d, Conv2d)) else 1
    rows = len(weight) // parts
    # Every block of weights below holds the lists of one group of a convolution in one range of outputs.
    blocks = [
        range(max(span.start, part * rows), min(span.stop, (part + 1) * rows))
        for span in spans
        for part in range(parts)
        if max(span.start, part * rows) < min(span.stop, (part + 1) * rows)
    ]
    table = keys.reshape(len(weight), weight.shape[1], -1)
    share = n // (len(blocks) * weight.shape[1])
    mask = np.zeros(table.shape, dtype=bool)
    for block in blocks:
        lists = np.ascontiguousarray(table[block.start : block.stop].transpose(1, 0, 2)).reshape(weight.shape[1], -1)
        chosen = _largest_of_each(lists, max(share, 1)).reshape(weight.shape[1], len(block), -1)
        mask[block.start : block.stop] = chosen.transpose(1, 0, 2)
    if share == 0:
        firsts = np.flatnonzero(mask)
        surplus = firsts[np.argsort(-keys[firsts], kind="stable")][max(n, 1) :]
        mask.reshape(-1)[surplus] = False
    return mask.reshape(weight.shape)


def _largest_of_each(lists: np.ndarray, share: int) -> np.ndarray:
    """Return a mask of the ``share`` largest positive keys of each row; of equals the lower index."""
    if share >= lists.shape[1]:
        return lists > 0
    least = np.partition(lists, lists.shape[1] - share, axis=1)[:, -share][:, None]
    above = lists > least
    equal = (lists == least) & (lists > 0)
    room = share - above.sum(1, keepdims=True)
    chosen: np.ndarray = above | (equal & (np.cumsum(equal, axis=1) <= room))
    return chosen
