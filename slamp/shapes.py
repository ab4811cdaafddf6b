"""Output shape of every node, from its input shape. Shapes exclude the batch axis."""

from __future__ import annotations

import math

from slamp.errors import GraphError
from slamp.nodes import (
    NEURON,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Delay,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    Scale,
    Shape,
    SumPool2d,
    arrays_of,
)


def output_shape(name: str, node: Node, shape: Shape) -> Shape:
    """Return what ``node`` gives for inputs of ``shape``; raises `GraphError` naming the node where it cannot."""
    match node:
        case Input() | Output():
            return _same(name, node, shape, node.shape)
        case Linear() | Affine():
            _check_weight(name, node, 2)
            _same(name, node, shape, (node.weight.shape[1],))
            return (int(node.weight.shape[0]),)
        case Conv1d() | Conv2d():
            return _conv(name, node, shape)
        case SumPool2d():
            return _pool(name, node, shape, (0, 0))
        case AvgPool2d():
            return _pool(name, node, shape, node.padding)
        case Flatten():
            return _flatten(name, node, shape)
        case Delay():
            return _same(name, node, shape, node.steps.shape)
        case Scale():
            if not shape or not node.scale.shape == node.shift.shape == (shape[0],):
                raise _mismatch(name, node, shape, f"{node.scale.shape[0]} channels")
            return shape
        case _:
            for field, array in arrays_of(node).items():
                if array.shape != shape:
                    raise _mismatch(name, node, shape, f"{array.shape} ({field})")
            assert isinstance(node, NEURON)
            return shape


def _conv(name: str, node: Conv1d | Conv2d, shape: Shape) -> Shape:
    axes = 1 if isinstance(node, Conv1d) else 2
    _check_weight(name, node, axes + 2)
    channels = node.weight.shape[1] * node.groups
    if len(shape) != axes + 1 or shape[0] != channels:
        raise _mismatch(name, node, shape, f"({channels}, " + ", ".join("*" * axes) + ")")
    if node.padding == "same":
        return (int(node.weight.shape[0]), *shape[1:])
    sizes = []
    for axis in range(axes):
        span = node.dilation[axis] * (node.weight.shape[2 + axis] - 1) + 1
        sizes.append((shape[1 + axis] + 2 * node.padding[axis] - span) // node.stride[axis] + 1)
    if min(sizes) < 1:
        raise _mismatch(name, node, shape, "an input at least as large as the kernel")
    return (int(node.weight.shape[0]), *(int(size) for size in sizes))


def _check_weight(name: str, node: Linear | Affine | Conv1d | Conv2d, axes: int) -> None:
    shape, bias = node.weight.shape, None if isinstance(node, Linear) else node.bias
    if len(shape) != axes or min(shape) < 1:
        raise GraphError(f"{name}: weight has shape {shape}; allowed are {axes} axes of at least 1")
    if bias is not None and bias.shape != shape[:1]:
        raise GraphError(f"{name}: bias has shape {bias.shape}; allowed is {shape[:1]}, one per output")
    if isinstance(node, (Conv1d, Conv2d)) and shape[0] % node.groups:
        raise GraphError(f"{name}: {shape[0]} output channels do not divide into {node.groups} groups")


def _pool(name: str, node: SumPool2d | AvgPool2d, shape: Shape, padding: tuple[int, int]) -> Shape:
    if len(shape) != 3:
        raise _mismatch(name, node, shape, "(channels, y, x)")
    sizes = [
        (shape[1 + axis] + 2 * padding[axis] - node.kernel_size[axis]) // node.stride[axis] + 1 for axis in range(2)
    ]
    if min(sizes) < 1:
        raise _mismatch(name, node, shape, "an input at least as large as the window")
    return (shape[0], *sizes)


def _flatten(name: str, node: Flatten, shape: Shape) -> Shape:
    start, end = node.start_dim, node.end_dim
    if not 0 <= start <= end < len(shape):
        raise _mismatch(name, node, shape, f"axes {start} to {end}")
    return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


def _same(name: str, node: Node, found: Shape, allowed: Shape) -> Shape:
    if found != allowed:
        raise _mismatch(name, node, found, str(allowed))
    return found


def _mismatch(name: str, node: Node, found: Shape, allowed: str) -> GraphError:
    return GraphError(
        f"{name}: {type(node).__name__} receives shape {found}, allowed is {allowed}; "
        "check the layer before it, or the features of the samples"
    )
