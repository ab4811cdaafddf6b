"""Taps: what each weight of a layer reads, summed exactly over output positions, borders included.

For a linear layer tap ``i`` reads input ``i``. For a convolution tap ``(group, channel, ky, kx)`` reads one input
channel through one kernel position, at every output position; positions in the padding read nothing.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from slamp.nodes import Affine, Conv1d, Conv2d, Linear, Shape, Weighted
from slamp.shapes import output_shape


def tap_sums(node: Weighted, features: np.ndarray) -> np.ndarray:
    """Sum an input map over the output positions of every tap.

    Args:
        node: The weighted node.
        features: One value per input feature, shape of the node's input.

    Returns:
        float64 array of shape (groups, *weight.shape[1:]).
    """
    if isinstance(node, (Linear, Affine)):
        return np.asarray(features, dtype=np.float64).reshape(1, -1)
    # The gradient of a sum of outputs with respect to the weight is exactly the input summed over positions.
    x = torch.as_tensor(np.asarray(features, dtype=np.float64))[None]
    weight = torch.zeros((node.groups, *node.weight.shape[1:]), dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        convolve = F.conv1d if isinstance(node, Conv1d) else F.conv2d
        total = convolve(x, weight, None, node.stride, node.padding, node.dilation, node.groups).sum()
        (sums,) = torch.autograd.grad(total, weight)
    result: np.ndarray = sums.numpy()
    return result


def per_weight(node: Weighted, taps: np.ndarray) -> np.ndarray:
    """Spread tap values over a weight: entry (out, in, ...) gets the value of the tap it reads; shape of the weight."""
    shape = node.weight.shape
    groups = taps.shape[0]
    spread = np.broadcast_to(taps[:, None], (groups, shape[0] // groups, *shape[1:]))
    return spread.reshape(shape)


def weighted_sum(node: Weighted, mask: np.ndarray, taps: np.ndarray) -> float:
    """Sum tap values over the weights where ``mask`` (bool, shape of the weight) is True."""
    groups = taps.shape[0]
    kept = mask.reshape(groups, mask.shape[0] // groups, *mask.shape[1:]).sum(axis=1)
    return float((kept * taps).sum())


def connections(node: Weighted, input_shape: Shape) -> np.ndarray:
    """Unrolled connections behind each tap: output positions at which it reads a real input, (groups, ...)."""
    counts = np.ones(tap_shape(node))
    if isinstance(node, (Conv1d, Conv2d)):
        out_shape = output_shape("connections", node, input_shape)
        for axis, kernel in enumerate(node.weight.shape[2:]):
            span = node.dilation[axis] * (kernel - 1)
            padding = span // 2 if node.padding == "same" else node.padding[axis]
            starts = np.arange(out_shape[1 + axis]) * node.stride[axis] - padding
            reads = starts + np.arange(kernel)[:, None] * node.dilation[axis]
            real = np.count_nonzero((reads >= 0) & (reads < input_shape[1 + axis]), axis=1)
            counts *= real.reshape([-1 if place == 2 + axis else 1 for place in range(counts.ndim)])
    return counts


def dense_fan_out(node: Weighted, input_shape: Shape) -> np.ndarray:
    """Synapses every input feature reaches if no weight were zero, float64, shape ``input_shape``."""
    if isinstance(node, (Linear, Affine)):
        return np.full(input_shape, float(node.weight.shape[0]))
    return fan_out(node, input_shape, np.ones(node.weight.shape, dtype=bool))


def fan_out(node: Weighted, input_shape: Shape, weight: np.ndarray) -> np.ndarray:
    """Sum of ``weight`` over the outgoing synapses of every input feature, float64, shape ``input_shape``.

    With a 0/1 mask as weight this is the number of synapses a spike of that input reaches.
    """
    if isinstance(node, (Linear, Affine)):
        total: np.ndarray = weight.sum(axis=0, dtype=np.float64)
        return total
    # The gradient of a sum of outputs with respect to the input; summing kernels of a group first is as good, cheaper.
    grouped = weight.reshape(node.groups, -1, *weight.shape[1:]).sum(axis=1, dtype=np.float64)
    x = torch.zeros((1, *input_shape), dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        convolve = F.conv1d if isinstance(node, Conv1d) else F.conv2d
        kernel = torch.as_tensor(grouped)
        out = convolve(x, kernel, None, node.stride, node.padding, node.dilation, node.groups).sum()
        (sums,) = torch.autograd.grad(out, x)
    result: np.ndarray = sums[0].numpy()
    return result


def dense_connections(node: Weighted, input_shape: Shape) -> int:
    """Unrolled connections of the layer if no weight were zero."""
    taps = connections(node, input_shape)
    per_group = int(node.weight.shape[0]) // int(taps.shape[0])
    return round(float(taps.sum()) * per_group)


def tap_shape(node: Weighted) -> Shape:
    """Shape of the tap arrays of a node."""
    groups = node.groups if isinstance(node, (Conv1d, Conv2d)) else 1
    return (groups, *node.weight.shape[1:])
