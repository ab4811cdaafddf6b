"""Nodes that only move or repeat values: the shapes they give, and the torch function each is."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from itertools import pairwise

import torch
import torch.nn.functional as F

from slamp.errors import GraphError
from slamp.nodes import Flatten, Node, Pad, Permute, Place, Reshape, Shape, Take, Upsample2d, Wiring, shape_mismatch

PAD_MODES = ("constant", "reflect", "replicate", "circular")


def wired_shape(name: str, node: Wiring, shape: Shape) -> Shape:
    """Return what ``node`` gives for inputs of ``shape``; raises `GraphError` naming the node where it cannot."""
    match node:
        case Flatten():
            start, end = node.start_dim, node.end_dim
            if not 0 <= start <= end < len(shape):
                raise shape_mismatch(name, node, shape, f"axes {start} to {end}")
            return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
        case Reshape():
            if min(node.shape, default=1) < 1 or math.prod(node.shape) != math.prod(shape):
                raise shape_mismatch(name, node, shape, f"as many values as {node.shape} holds")
            return node.shape
        case Permute():
            if sorted(node.axes) != list(range(len(shape))):
                raise shape_mismatch(name, node, shape, f"one axis for each of {node.axes}, every one named once")
            return tuple(shape[axis] for axis in node.axes)
        case Take():
            if not (0 <= node.axis < len(shape) and 0 <= node.start < node.stop <= shape[node.axis]):
                raise shape_mismatch(name, node, shape, f"entries {node.start} to {node.stop} along axis {node.axis}")
            return _with(shape, node.axis, node.stop - node.start)
        case Place():
            if not (0 <= node.axis < len(shape) and 0 <= node.start <= node.size - shape[node.axis]):
                allowed = f"at most {node.size - node.start} entries along axis {node.axis}, from {node.start} on"
                raise shape_mismatch(name, node, shape, allowed)
            return _with(shape, node.axis, node.size)
        case Upsample2d():
            if min(node.factor) < 1 or any(not isinstance(factor, int) for factor in node.factor):
                raise GraphError(f"{name}: factor is {node.factor}; allowed are whole numbers, 1 or more")
            if len(shape) != 3:
                raise shape_mismatch(name, node, shape, "(channels, y, x)")
            return (shape[0], shape[1] * node.factor[0], shape[2] * node.factor[1])
        case Pad():
            return _padded(name, node, shape)


def wiring_function(node: Wiring) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function of a node on tensors (batch, *features) of any dtype that torch pads.

    Strides are those torch gives a user's module: they decide in which order the next convolution adds.
    """
    match node:
        case Flatten():
            return lambda x: torch.flatten(x, node.start_dim + 1, node.end_dim + 1)
        case Reshape():
            return lambda x: x.reshape(x.shape[0], *node.shape)
        case Permute():
            return lambda x: x.permute(0, *(axis + 1 for axis in node.axes))
        case Take():
            return lambda x: x.narrow(node.axis + 1, node.start, node.stop - node.start)
        case Place():
            return lambda x: _placed(node, x)
        case Upsample2d():
            factor = (float(node.factor[0]), float(node.factor[1]))
            return lambda x: F.interpolate(x, scale_factor=factor, mode="nearest")
        case Pad():
            sides = [side for pair in reversed(node.padding) for side in pair]
            if node.mode == "constant":
                return lambda x: F.pad(x, sides, value=node.value)
            return lambda x: F.pad(x, sides, mode=node.mode)


def adds_nothing(node: Wiring) -> bool:
    """True unless the node fills in another value than 0."""
    return not isinstance(node, Pad) or node.mode != "constant" or node.value == 0.0


def flattens(node: Node) -> bool:
    """True if values in row-major order are given another shape in which channels are not told apart."""
    return isinstance(node, Flatten) or (isinstance(node, Reshape) and len(node.shape) == 1)


def keeps_channels(node: Node, shape: Shape) -> bool:
    """True if every entry along the first feature axis stays one, or becomes a block of neighbors, in its place.

    Args:
        node: Any node but a weighted one.
        shape: Of its input.
    """
    match node:
        case Reshape():
            return node.shape[0] % shape[0] == 0
        case Permute():
            return node.axes[0] == 0
        case Take() | Place():
            return node.axis > 0
        case Pad():
            return len(node.padding) < len(shape)
        case _:
            return True


def apart(places: Collection[tuple[object, Shape]]) -> bool:
    """True if nodes, given with the shapes of their inputs, are `Place` nodes of which no two meet in a feature."""
    spans = []
    for node, shape in places:
        if not isinstance(node, Place):
            return False
        spans.append((node.axis, node.start, node.start + shape[node.axis]))
    spans.sort()
    return len({axis for axis, _, _ in spans}) == 1 and all(before[2] <= after[1] for before, after in pairwise(spans))


def _placed(node: Place, x: torch.Tensor) -> torch.Tensor:
    axes_behind = x.ndim - 2 - node.axis
    return F.pad(x, [0, 0] * axes_behind + [node.start, node.size - node.start - x.shape[node.axis + 1]])


def _padded(name: str, node: Pad, shape: Shape) -> Shape:
    axes = len(node.padding)
    if node.mode not in PAD_MODES:
        raise GraphError(f"{name}: mode is {node.mode!r}; allowed are {', '.join(PAD_MODES)}")
    if not axes or min(side for pair in node.padding for side in pair) < 0:
        raise GraphError(f"{name}: padding is {node.padding}; allowed are pairs of 0 and more, cut off with Take")
    if not math.isfinite(node.value) or (node.mode != "constant" and node.value != 0.0):
        raise GraphError(f"{name}: value is {node.value:g} in mode {node.mode!r}; allowed is a finite constant, or 0")
    if len(shape) < axes or (node.mode != "constant" and len(shape) > axes + 1):
        raise shape_mismatch(name, node, shape, f"{axes} axes, one for each pair of padding, and channels before them")
    first = len(shape) - axes
    for axis, pair in enumerate(node.padding, start=first):
        most = {"reflect": shape[axis] - 1, "circular": shape[axis]}.get(node.mode, max(pair))
        if max(pair) > most:
            raise GraphError(f"{name}: padding {pair} of axis {axis}; allowed is up to {most} in mode {node.mode!r}")
    return (
        *shape[:first],
        *(size + before + after for size, (before, after) in zip(shape[first:], node.padding, strict=True)),
    )


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])
