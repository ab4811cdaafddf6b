"""Which weights of a layer are kept: the largest, or as many for every source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slamp.errors import MaskError
from slamp.nodes import Conv1d, Conv2d, Weighted
from slamp.score import Scores

BALANCES = ("", "fan_out")


def check_balance(balance: str) -> None:
    """Raise `MaskError` for an unknown balance."""
    if balance not in BALANCES:
        raise MaskError(f"masks: balance is {balance!r}; allowed are '' (none) and 'fan_out'")


def kept_masks(
    scores: Scores, keep: Mapping[str, int], balance: str = "", groups: Mapping[str, Sequence[range]] | None = None
) -> dict[str, np.ndarray]:
    """Return the masks of all layers, bool, True = keep.

    Args:
        scores: Scored weights.
        keep: Number of weights per layer; under a balance, at most that many.
        balance: Empty: the largest of the layer. "fan_out": equal numbers for every source (input, or input channel of
            a convolution) within a group of targets, for a chip that pads every list of a group to the longest stores
            the difference in vain.
        groups: Ranges of outputs that lie on one core each, by layer; where there is none, the layer is one group.
    """
    if not balance:
        return {name: scores.largest(name, n) for name, n in keep.items()}
    spans = groups or {}
    return {
        name: balanced(scores.graph.weighted[name], scores.keys(name), n, spans.get(name, ()))
        for name, n in keep.items()
    }


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
    numbers = _lists(node, groups or [range(len(node.weight))])
    share = n // (int(numbers.max()) + 1)
    # Largest keys first, list by list; of equal keys the lower flat index leads.
    descending = np.argsort(-keys, kind="stable")
    order = descending[np.argsort(numbers[descending], kind="stable")]
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    chosen = order[rank < max(share, 1)]
    chosen = chosen[keys[chosen] > 0]
    if share == 0:
        chosen = chosen[np.argsort(-keys[chosen], kind="stable")][: max(n, 1)]
    mask = np.zeros(len(keys), dtype=bool)
    mask[chosen] = True
    return mask.reshape(node.weight.shape)


def _lists(node: Weighted, spans: Sequence[range]) -> np.ndarray:
    """Number the synapse lists: one per source (and group of a convolution) in every range of outputs; flat."""
    outputs, inputs = node.weight.shape[:2]
    groups = node.groups if isinstance(node, (Conv1d, Conv2d)) else 1
    part = np.searchsorted([span.start for span in spans], np.arange(outputs), side="right") - 1
    row = part * groups + np.arange(outputs) // (outputs // groups)
    number = row[:, None] * inputs + np.arange(inputs)
    _, dense = np.unique(number, return_inverse=True)
    spread = dense.reshape(outputs, inputs, *[1] * (node.weight.ndim - 2))
    return np.broadcast_to(spread, node.weight.shape).reshape(-1)
