"""Output shape of every node, from its input shape. Shapes exclude the batch axis."""

from __future__ import annotations

from slamp.errors import GraphError
from slamp.nodes import (
    NEURON,
    WIRING,
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Delay,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Output,
    Scale,
    Shape,
    Sum,
    SumPool2d,
    arrays_of,
    shape_mismatch,
)
from slamp.wiring import wired_shape


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
        case MaxPool2d():
            return _max_pool(name, node, shape)
        case AdaptiveAvgPool2d():
            if min(node.output_size) < 1:
                raise GraphError(f"{name}: output_size is {node.output_size}; allowed are sides of 1 and more")
            if len(shape) != 3:
                raise shape_mismatch(name, node, shape, "(channels, y, x)")
            return (shape[0], *node.output_size)
        case Sum():
            return shape
        case _ if isinstance(node, WIRING):
            return wired_shape(name, node, shape)
        case Delay():
            return _same(name, node, shape, node.steps.shape)
        case Scale():
            if not shape or not node.scale.shape == node.shift.shape == (shape[0],):
                raise shape_mismatch(name, node, shape, f"{node.scale.shape[0]} channels")
            return shape
        case _:
            for field, array in arrays_of(node).items():
                if array.shape != shape:
                    raise shape_mismatch(name, node, shape, f"{array.shape} ({field})")
            assert isinstance(node, NEURON)
            return shape


def adaptive_windows(size: int, wanted: int) -> list[tuple[int, int]]:
    """Return first and one after last of every window along one axis, as torch's adaptive pools choose them."""
    return [(k * size // wanted, -(-(k + 1) * size // wanted)) for k in range(wanted)]


def _conv(name: str, node: Conv1d | Conv2d, shape: Shape) -> Shape:
    axes = 1 if isinstance(node, Conv1d) else 2
    _check_weight(name, node, axes + 2)
    channels = node.weight.shape[1] * node.groups
    if len(shape) != axes + 1 or shape[0] != channels:
        raise shape_mismatch(name, node, shape, f"({channels}, " + ", ".join("*" * axes) + ")")
    if node.padding == "same":
        return (int(node.weight.shape[0]), *shape[1:])
    sizes = []
    for axis in range(axes):
        span = node.dilation[axis] * (node.weight.shape[2 + axis] - 1) + 1
        sizes.append((shape[1 + axis] + 2 * node.padding[axis] - span) // node.stride[axis] + 1)
    if min(sizes) < 1:
        raise shape_mismatch(name, node, shape, "an input at least as large as the kernel")
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
        raise shape_mismatch(name, node, shape, "(channels, y, x)")
    sizes = [
        (shape[1 + axis] + 2 * padding[axis] - node.kernel_size[axis]) // node.stride[axis] + 1 for axis in range(2)
    ]
    if min(sizes) < 1:
        raise shape_mismatch(name, node, shape, "an input at least as large as the window")
    return (shape[0], *sizes)


def _max_pool(name: str, node: MaxPool2d, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise shape_mismatch(name, node, shape, "(channels, y, x)")
    sizes = []
    for axis in range(2):
        kernel, padding, dilation = node.kernel_size[axis], node.padding[axis], node.dilation[axis]
        if not 0 <= padding <= kernel // 2:  # torch's own rule
            raise GraphError(f"{name}: padding {node.padding} of windows {node.kernel_size}; allowed is half of them")
        size = (shape[1 + axis] + 2 * padding - dilation * (kernel - 1) - 1) // node.stride[axis] + 1
        firsts = [at * node.stride[axis] - padding for at in range(size)]
        reads = [any(0 <= first + dilation * k < shape[1 + axis] for k in range(kernel)) for first in firsts]
        if not reads or not all(reads):
            raise shape_mismatch(name, node, shape, "an input that every window reads")
        sizes.append(size)
    return (shape[0], *sizes)


def _same(name: str, node: Node, found: Shape, allowed: Shape) -> Shape:
    if found != allowed:
        raise shape_mismatch(name, node, found, str(allowed))
    return found
