"""Nodes without neurons in ONNX: standard operators that compute what the graph computes, within rounding."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from onnx import TensorProto

from slamp.nodes import (
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Delay,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Output,
    Pad,
    Permute,
    Place,
    Reshape,
    Scale,
    Shape,
    Sum,
    SumPool2d,
    Take,
    Upsample2d,
)
from slamp.shapes import adaptive_windows

MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class Writer(Protocol):
    """What a layer is written into."""

    def operator(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        """Append an operator with one output; return the output's name."""

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add an initializer; return its name."""


def write_layer(writer: Writer, name: str, node: Node, x: str, before: Shape, after: Shape) -> None:
    """Write a node without memory: from the value ``x`` of shape ``before`` (without batch) to the value ``name``."""
    match node:
        case Input() | Output() | Sum():
            writer.operator("Identity", [x], name)
        case Linear():
            writer.operator("Gemm", [x, writer.constant(f"{name}/weight", node.weight)], name, transB=1)
        case Affine():
            weight, bias = (writer.constant(f"{name}/{key}", getattr(node, key)) for key in ("weight", "bias"))
            writer.operator("Gemm", [x, weight, bias], name, transB=1)
        case Conv1d() | Conv2d():
            write_convolution(writer, name, node, x, name)
        case SumPool2d():
            # The graph's sum is a mean times the size of the window, each rounded.
            mean = writer.operator("AveragePool", [x], f"{name}/mean", **_window(node.kernel_size, node.stride))
            size = writer.constant(f"{name}/size", np.array(math.prod(node.kernel_size), np.float32))
            writer.operator("Mul", [mean, size], name)
        case AvgPool2d():
            window = _window(node.kernel_size, node.stride, node.padding)
            writer.operator("AveragePool", [x], name, count_include_pad=1, **window)
        case AdaptiveAvgPool2d():
            _write_adaptive(writer, name, node, x, before)
        case MaxPool2d():
            window = _window(node.kernel_size, node.stride, node.padding)
            writer.operator("MaxPool", [x], name, dilations=list(node.dilation), **window)
        case Flatten() | Reshape():
            writer.operator("Reshape", [x, writer.constant(f"{name}/shape", _whole(0, *after))], name)
        case Permute():
            writer.operator("Transpose", [x], name, perm=[0, *(axis + 1 for axis in node.axes)])
        case Take():
            ends = [
                writer.constant(f"{name}/{key}", _whole(value))
                for key, value in (("start", node.start), ("stop", node.stop), ("axis", node.axis + 1))
            ]
            writer.operator("Slice", [x, *ends], name)
        case Place():
            sides = [(0, 0)] * len(before)
            sides[node.axis] = (node.start, node.size - node.start - before[node.axis])
            _write_pad(writer, name, Pad(tuple(sides)), x, before)
        case Pad():
            _write_pad(writer, name, node, x, before)
        case Upsample2d():
            factor = writer.constant(f"{name}/factor", np.array([1, 1, *node.factor], np.float32))
            modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
            writer.operator("Resize", [x, "", factor], name, **modes)
        case Scale():
            _write_scale(writer, name, node, x, before)
        case _:  # neurons and delays are written elsewhere
            raise AssertionError(f"{name}: {type(node).__name__} has memory")


def memory_steps(node: Delay) -> int:
    """Return how many past steps a delay holds."""
    return int(node.steps.max())


def write_delay(writer: Writer, name: str, node: Delay, past: str) -> None:
    """Write what a `Delay` that holds back gives: read from ``past``, (batch, steps, *features), oldest first."""
    _write_read(writer, name, node, past, memory_steps(node))


def write_memory(writer: Writer, name: str, node: Delay, past: str, x: str, output: str) -> None:
    """Write the memory of a `Delay` that holds back, after a step in which ``x`` came in."""
    if memory_steps(node) == 1:
        writer.operator("Unsqueeze", [x, writer.constant(f"{name}/axis", _whole(1))], output)
    else:
        newer = _without_first(writer, name, past, memory_steps(node), f"{name}/newer")
        writer.operator("Concat", [newer, _as_frame(writer, name, x)], output, axis=1)


def write_late_delay(writer: Writer, name: str, node: Delay, past: str, x: str, output: str) -> None:
    """Write a `Delay` that lets some features pass in the same step, and its memory ``output`` after the step."""
    frames = writer.operator("Concat", [past, _as_frame(writer, name, x)], f"{name}/frames", axis=1)
    _write_read(writer, name, node, frames, memory_steps(node) + 1)
    _without_first(writer, name, frames, memory_steps(node) + 1, output)


def _write_read(writer: Writer, name: str, node: Delay, frames: str, count: int) -> None:
    late = node.steps.reshape(-1).astype(np.int64)
    length = memory_steps(node)
    if bool((late == late[0]).all()):
        oldest = writer.constant(f"{name}/oldest", np.array(length - late[0], np.int64))
        writer.operator("Gather", [frames, oldest], name, axis=1)
        return
    flat = writer.constant(f"{name}/flat", _whole(0, count * late.size))
    index = writer.constant(f"{name}/index", (length - late) * late.size + np.arange(late.size))
    values = writer.operator("Reshape", [frames, flat], f"{name}/values")
    chosen = writer.operator("Gather", [values, index], f"{name}/chosen", axis=1)
    writer.operator("Reshape", [chosen, writer.constant(f"{name}/shape", _whole(0, *node.steps.shape))], name)


def _without_first(writer: Writer, name: str, frames: str, count: int, output: str) -> str:
    ends = [
        writer.constant(f"{name}/{key}", _whole(value)) for key, value in (("second", 1), ("end", count), ("along", 1))
    ]
    return writer.operator("Slice", [frames, *ends], output)


def _as_frame(writer: Writer, name: str, x: str) -> str:
    axis = writer.constant(f"{name}/axis", _whole(1))
    return writer.operator("Unsqueeze", [x, axis], f"{name}/frame")


def write_convolution(writer: Writer, name: str, node: Conv1d | Conv2d, x: str, output: str) -> str:
    """Write a convolution; return ``output``."""
    kernel = node.weight.shape[2:]
    if node.padding == "same":
        totals = [step * (size - 1) for size, step in zip(kernel, node.dilation, strict=True)]
        pads = [*(total // 2 for total in totals), *(total - total // 2 for total in totals)]
    else:
        pads = [*node.padding, *node.padding]
    inputs = [x, writer.constant(f"{name}/weight", node.weight)]
    inputs += [] if node.bias is None else [writer.constant(f"{name}/bias", node.bias)]
    return writer.operator(
        "Conv",
        inputs,
        output,
        kernel_shape=list(kernel),
        strides=list(node.stride),
        dilations=list(node.dilation),
        pads=[int(side) for side in pads],
        group=node.groups,
    )


def _write_adaptive(writer: Writer, name: str, node: AdaptiveAvgPool2d, x: str, before: Shape) -> None:
    """One pool where all windows have one size; else sums over rows, then columns, of each window, and a division."""
    sides = list(zip(before[1:], node.output_size, strict=True))
    if all(size % wanted == 0 for size, wanted in sides):
        side = (sides[0][0] // sides[0][1], sides[1][0] // sides[1][1])
        writer.operator("AveragePool", [x], name, **_window(side, side))
        return
    counts = []
    for axis, (size, wanted) in enumerate(sides, start=2):
        along, parts = writer.constant(f"{name}/axis{axis}", _whole(axis)), []
        windows = adaptive_windows(size, wanted)
        for index, (start, stop) in enumerate(windows):
            part = f"{name}/{axis}_{index}"
            ends = [writer.constant(f"{part}_{key}", _whole(at)) for key, at in (("start", start), ("stop", stop))]
            taken = writer.operator("Slice", [x, *ends, along], f"{part}_taken")
            parts.append(writer.operator("ReduceSum", [taken, along], f"{part}_sum"))
        x = writer.operator("Concat", parts, f"{name}/sums{axis}", axis=axis)
        counts.append(np.array([stop - start for start, stop in windows], np.float32))
    writer.operator("Div", [x, writer.constant(f"{name}/counts", counts[0][:, None] * counts[1])], name)


def _write_pad(writer: Writer, name: str, node: Pad, x: str, before: Shape) -> None:
    sides = [(0, 0)] * (len(before) + 1 - len(node.padding)) + list(node.padding)
    pads = writer.constant(f"{name}/pads", _whole(*(first for first, _ in sides), *(last for _, last in sides)))
    inputs = [x, pads]
    if node.mode == "constant":
        inputs.append(writer.constant(f"{name}/value", np.array(node.value, np.float32)))
    writer.operator("Pad", inputs, name, mode=MODES[node.mode])


def _write_scale(writer: Writer, name: str, node: Scale, x: str, before: Shape) -> None:
    """The product of two float32 is exact in float64, so rounding the sum to float32 is a fused multiply-add.

    It rounds twice where the float64 sum lies halfway between two float32, which is within rounding.
    """
    wide: dict[str, str] = {}
    for key in ("scale", "shift"):
        per_channel = getattr(node, key).reshape(-1, *(1,) * (len(before) - 1))
        narrow = writer.constant(f"{name}/{key}", per_channel)
        wide[key] = writer.operator("Cast", [narrow], f"{name}/{key}_wide", to=TensorProto.DOUBLE)
    x_wide = writer.operator("Cast", [x], f"{name}/x_wide", to=TensorProto.DOUBLE)
    product = writer.operator("Mul", [x_wide, wide["scale"]], f"{name}/product")
    total = writer.operator("Add", [product, wide["shift"]], f"{name}/total")
    writer.operator("Cast", [total], name, to=TensorProto.FLOAT)


def _window(size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> dict[str, object]:
    return {"kernel_shape": list(size), "strides": list(stride), "pads": [*padding, *padding]}


def _whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)
