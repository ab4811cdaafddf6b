"""What the forward-Euler runner computes for NIR nodes without memory: nir and numpy alone, no slamp, no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
import numpy as np

COLUMN_BYTES = 1 << 26  # a convolution unrolls at most this much of its input at once

LayerFunction = Callable[[np.ndarray], np.ndarray]


def float32(values: Any) -> np.ndarray:
    """Return values as a float32 array."""
    return np.asarray(values, dtype=np.float32)


def layer_function(name: str, node: Any) -> LayerFunction:
    """Return the function of a NIR node without memory, on arrays of shape (batch, *features), float32.

    Raises:
        ValueError: The node has memory or is not known.
    """
    match node:
        case nir.Input() | nir.Output():
            return _identity
        case nir.Linear() | nir.Affine():
            bias = float32(node.bias) if isinstance(node, nir.Affine) else None
            return _affine(name, float32(node.weight), bias)
        case nir.Conv1d() | nir.Conv2d():
            return _convolution(name, node)
        case nir.SumPool2d() | nir.AvgPool2d():
            return _pool(name, node)
        case nir.Flatten():
            return _flatten(name, node)
        case nir.Threshold():
            threshold = float32(node.threshold)
            return lambda x: float32(x > threshold)
        case nir.Scale():
            scale = float32(node.scale)
            return lambda x: np.multiply(x, scale)
        case _:
            raise ValueError(
                f"{name}: {type(node).__name__} is not known; allowed are Input, Output, Linear, Affine, Conv1d, "
                "Conv2d, SumPool2d, AvgPool2d, Flatten, Threshold, Scale, Delay, IF, LIF, CubaLIF, LI, CubaLI"
            )


def _affine(name: str, weight: np.ndarray, bias: np.ndarray | None) -> LayerFunction:
    if weight.ndim != 2:
        raise ValueError(f"{name}: weight of shape {weight.shape}; allowed are two axes (out, in)")
    columns = np.ascontiguousarray(weight.T)

    def apply(x: np.ndarray) -> np.ndarray:
        if x.shape[1:] != (weight.shape[1],):
            raise ValueError(f"{name}: receives shape {x.shape[1:]}, allowed is ({weight.shape[1]},)")
        product: np.ndarray = x @ columns
        return product if bias is None else product + bias

    return apply


def _convolution(name: str, node: Any) -> LayerFunction:
    axes = node.weight.ndim - 2
    weight, bias = float32(node.weight), float32(node.bias)
    stride, dilation, groups = (
        _per_axis(name, node.stride, axes),
        _per_axis(name, node.dilation, axes),
        int(np.asarray(node.groups)),
    )
    span = tuple(dilation[axis] * (weight.shape[2 + axis] - 1) + 1 for axis in range(axes))
    padding = _padding(name, node.padding, span)
    channels = weight.shape[1] * groups
    size = weight.shape[1] * int(np.prod(weight.shape[2:]))
    kernels = np.ascontiguousarray(weight.reshape(groups, weight.shape[0] // groups, size).transpose(0, 2, 1))

    def block(x: np.ndarray) -> np.ndarray:
        windows = _windows(x, padding, span, stride, dilation)  # (batch, channels, *out, *kernel)
        batch, out = x.shape[0], windows.shape[2 : 2 + axes]
        windows = windows.reshape(batch, groups, weight.shape[1], *out, *weight.shape[2:])
        positions = [3 + axis for axis in range(axes)]
        taps = [3 + axes + axis for axis in range(axes)]
        columns = windows.transpose(1, 0, *positions, 2, *taps).reshape(groups, batch * int(np.prod(out)), size)
        product = (columns @ kernels).transpose(1, 0, 2).reshape(batch, *out, weight.shape[0]) + bias
        result: np.ndarray = np.moveaxis(product, -1, 1)
        return result

    def apply(x: np.ndarray) -> np.ndarray:
        if x.ndim != axes + 2 or x.shape[1] != channels:
            raise ValueError(
                f"{name}: receives shape {x.shape[1:]}, allowed are {axes + 1} axes with {channels} channels"
            )
        unrolled = 4 * size * groups * int(np.prod(x.shape[2:])) or 1
        samples = max(1, COLUMN_BYTES // unrolled)
        pieces = [block(x[start : start + samples]) for start in range(0, x.shape[0], samples)]
        return np.ascontiguousarray(np.concatenate(pieces))

    return apply


def _pool(name: str, node: Any) -> LayerFunction:
    kernel, stride = _per_axis(name, node.kernel_size, 2), _per_axis(name, node.stride, 2)
    padding = _padding(name, node.padding, kernel)
    count = np.float32(kernel[0] * kernel[1]) if isinstance(node, nir.AvgPool2d) else np.float32(1)

    def apply(x: np.ndarray) -> np.ndarray:
        if x.ndim != 4:
            raise ValueError(f"{name}: receives shape {x.shape[1:]}, allowed is (channels, y, x)")
        total: np.ndarray = _windows(x, padding, kernel, stride, (1, 1)).sum(axis=(-2, -1), dtype=np.float32)
        return total / count

    return apply


def _flatten(name: str, node: Any) -> LayerFunction:
    start, end = int(np.asarray(node.start_dim)), int(np.asarray(node.end_dim))

    def apply(x: np.ndarray) -> np.ndarray:
        features = x.shape[1:]
        first, last = start % len(features), end % len(features)
        if first > last:
            raise ValueError(
                f"{name}: flattens axes {start} to {end} of shape {features}; allowed is first before last"
            )
        return x.reshape(x.shape[0], *features[:first], -1, *features[last + 1 :])

    return apply


def _windows(
    x: np.ndarray,
    padding: tuple[tuple[int, int], ...],
    span: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> np.ndarray:
    axes = len(span)
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    views = np.lib.stride_tricks.sliding_window_view(padded, span, axis=tuple(range(2, 2 + axes)))
    index = (
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in stride),
        *(slice(None, None, d) for d in dilation),
    )
    return views[index]


def _padding(name: str, padding: Any, span: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str) and padding == "same":
        return tuple(((size - 1) // 2, (size - 1) - (size - 1) // 2) for size in span)
    sizes = (0,) * len(span) if isinstance(padding, str) else _per_axis(name, padding, len(span))
    return tuple((size, size) for size in sizes)


def _per_axis(name: str, value: Any, axes: int) -> tuple[int, ...]:
    flat = np.atleast_1d(np.asarray(value)).astype(int)
    if flat.shape not in ((1,), (axes,)):
        raise ValueError(f"{name}: stride, padding, dilation or window of shape {flat.shape}; allowed is one per axis")
    return tuple(int(size) for size in np.broadcast_to(flat, (axes,)))


def _identity(x: np.ndarray) -> np.ndarray:
    return x
