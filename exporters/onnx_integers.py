"""Fixed-point graphs in ONNX: states are int64, and what runs between layers are whole numbers that float32 holds.

Products with decays, wrapping and clipping are integer operators, which every runtime computes alike. Sums over weights
are float64 in dense layers and float32 in convolutions (onnxruntime has no others): whole multiples of one power of two
that add up to less than 2^53 (2^24) of it come out exact in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from exporters.onnx_layers import Writer, write_convolution, write_layer
from slamp.arithmetic import DECAY_ONE, SHIFT, STATE_LIMIT
from slamp.errors import GraphError, UnsupportedNodeError
from slamp.fixed_dynamics import FLOAT32_WHOLE, largest_sum, unit_of, value_bounds
from slamp.graph import SpikingGraph
from slamp.nodes import IF, READOUT, SYNAPTIC, Affine, Conv1d, Conv2d, Linear, Neuron, Node, Shape, SumPool2d

Steps = tuple[tuple[str, ...], ...]

# Constants of the functions, float32 where they meet decays.
CONSTANTS: Mapping[str, np.ndarray] = {
    "one": np.array(1.0, np.float32),
    "shares": np.array(DECAY_ONE, np.float32),
    "whole": np.array(DECAY_ONE, np.int64),
    "shift": np.array(1 << SHIFT, np.int64),
    "limit": np.array(STATE_LIMIT, np.int64),
    "least": np.array(-STATE_LIMIT, np.int64),
    "turn": np.array(2 * STATE_LIMIT, np.int64),
    "top": np.array(STATE_LIMIT - 1, np.int64),
    "bottom": np.array(1 - STATE_LIMIT, np.int64),
    "zero": np.array(0, np.int64),
}
_DRIVE: Steps = (("ToInt64", "mantissa", "x"), ("Mul", "drive", "mantissa", "shift"))
_WRAP: Steps = (
    ("ToInt32", "raw_32", "raw"),
    ("ToInt64", "held", "raw_32"),
    ("Greater", "over", "held", "limit"),
    ("Sub", "lowered", "held", "turn"),
    ("LessOrEqual", "under", "held", "least"),
    ("Add", "raised", "held", "turn"),
    ("Where", "not_under", "under", "raised", "held"),
    ("Where", "i_out", "over", "lowered", "not_under"),
)
_MEMBRANE: Steps = (
    ("Add", "moved", "v_kept", "i_out"),
    ("ToInt32", "moved_32", "moved"),
    ("ToInt64", "moved_held", "moved_32"),
)
_FIRE: Steps = (
    ("ToInt64", "threshold", "v_threshold"),
    ("Greater", "above", "u", "threshold"),
    ("ToFloat", "s", "above"),
    ("Where", "v_out", "above", "zero", "u"),
)


def fixed_steps(node: Neuron) -> Steps:
    """Return the operators of a neuron's function; see `slamp.arithmetic.FixedPoint` for what they compute."""
    steps = list(_DRIVE)
    if isinstance(node, SYNAPTIC):
        steps += [*_kept("decay_syn", "i", "i_kept"), ("Add", "raw", "i_kept", "drive")]
    else:
        steps += [("Identity", "raw", "drive")]
    steps += _WRAP
    if isinstance(node, IF):
        steps += [("Identity", "v_kept", "v"), *_MEMBRANE, ("Clip", "u", "moved_held", "bottom", "top")]
    else:
        steps += [*_kept("decay_mem", "v", "v_kept"), *_MEMBRANE, ("ToInt64", "bias", "v_leak")]
        steps += [("Add", "biased", "moved_held", "bias"), ("Clip", "u", "biased", "bottom", "top")]
    if isinstance(node, READOUT):
        return (*steps, ("Identity", "v_out", "u"), ("ToFloat", "s", "u"))
    return (*steps, *_FIRE)


def _kept(decay: str, state: str, output: str) -> Steps:
    """What a decay leaves of a state: ``trunc(state * (1 - decay))``; a quotient of integers is cut towards zero."""
    return (
        ("Sub", f"{decay}_rest", "one", decay),
        ("Mul", f"{decay}_shares", f"{decay}_rest", "shares"),
        ("ToInt64", f"{decay}_whole", f"{decay}_shares"),
        ("Mul", f"{output}_shares", state, f"{decay}_whole"),
        ("Div", output, f"{output}_shares", "whole"),
    )


def largest_input(graph: SpikingGraph) -> float:
    """Return the largest input, a power of two, for which every sum of the files is exact.

    Raises:
        UnsupportedNodeError: Spikes are too much already; the message names the node.
    """
    found = 0.0
    for exponent in range(25):
        try:
            _check_sums(graph, 2.0**exponent)
        except GraphError as error:
            if not found:
                raise UnsupportedNodeError(str(error)) from error
            break
        found = 2.0**exponent
    return found


def write_fixed_layer(writer: Writer, name: str, node: Node, x: str, before: Shape, after: Shape) -> None:
    """Write a node without memory: from whole numbers to whole numbers."""
    match node:
        case Linear() | Affine():
            keys = ["weight"] if isinstance(node, Linear) else ["weight", "bias"]
            inputs = [writer.operator("Cast", [x], f"{name}/x_wide", to=TensorProto.DOUBLE)]
            for key in keys:
                narrow = writer.constant(f"{name}/{key}", getattr(node, key))
                inputs.append(writer.operator("Cast", [narrow], f"{name}/{key}_wide", to=TensorProto.DOUBLE))
            total = writer.operator("Gemm", inputs, f"{name}/total", transB=1)
            whole = writer.operator("Floor", [total], f"{name}/whole")
            writer.operator("Cast", [whole], name, to=TensorProto.FLOAT)
        case Conv1d() | Conv2d():
            writer.operator("Floor", [write_convolution(writer, name, node, x, f"{name}/total")], name)
        case SumPool2d():
            ones = writer.constant(f"{name}/ones", np.ones((before[0], 1, *node.kernel_size), np.float32))
            writer.operator("Conv", [x, ones], name, strides=list(node.stride), group=before[0])
        case _:
            write_layer(writer, name, node, x, before, after)


def _check_sums(graph: SpikingGraph, largest: float) -> None:
    for name, bound in value_bounds(graph, largest).items():
        node, reach = graph.nodes[name], bound
        if isinstance(node, SumPool2d):
            reach = bound * math.prod(node.kernel_size)
        if isinstance(node, (Conv1d, Conv2d)):
            reach = max(bound, largest_sum(node, bound) / unit_of(node))
        if reach > FLOAT32_WHOLE:
            raise GraphError(
                f"{name}: its sums may reach {reach:.0f} units; allowed are 2^24, which float32 holds, and onnxruntime "
                "has no wider convolution; use larger weight exponents, or smaller graded inputs"
            )
