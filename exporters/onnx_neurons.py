"""Neurons in ONNX: one model-local function per type, of standard operators, in the graph's operation order.

A call of a function carries the node's name, its reset, dt and time constants as attributes for whoever looks at the
file; the arithmetic reads parameters and state as inputs. IEEE float32 additions and products give the same bits in
every runtime that does not reorder them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx_integers import CONSTANTS, fixed_steps
from slamp.nodes import IF, LI, LIF, LSNN, SPIKING, SYNAPTIC, CubaLI, CubaLIF, LIFRefrac, Neuron, arrays_of

DOMAIN = "slamp"
OPSET = 19
OPSETS = {"": OPSET, DOMAIN: 1}
CASTS = {
    "ToFloat": TensorProto.FLOAT,
    "ToBool": TensorProto.BOOL,
    "ToInt32": TensorProto.INT32,
    "ToInt64": TensorProto.INT64,
}
Steps = tuple[tuple[str, ...], ...]  # each (operator, output, inputs...)

# The membrane `u` as it is compared with the threshold, and the current.
_BY_CURRENT: Steps = (
    ("Sub", "leak", "v_leak", "v"),
    ("Add", "drive", "leak", "current"),
    ("Mul", "change", "drive", "decay_mem"),
    ("Add", "u", "v", "change"),
    ("Mul", "lost", "current", "decay_syn"),
)
_CUBA: Steps = (("Add", "current", "i", "x"), *_BY_CURRENT, ("Sub", "i_out", "current", "lost"))
_LI: Steps = (
    ("Sub", "leak", "v_leak", "v"),
    ("Add", "drive", "leak", "x"),
    ("Mul", "change", "drive", "decay_mem"),
    ("Add", "u", "v", "change"),
)
_LIF: Steps = (
    ("Add", "drive", "x", "v_leak"),
    ("Sub", "gap", "drive", "v"),
    ("Mul", "change", "gap", "decay_mem"),
    ("Add", "u", "v", "change"),
)
_FIRE: Steps = (("Greater", "above", "u", "v_threshold"), ("ToFloat", "s", "above"))
_TO_VALUE: Steps = (*_FIRE, ("Where", "v_out", "above", "v_reset", "u"))
_SUBTRACT: Steps = (*_FIRE, ("Mul", "drop", "s", "v_threshold"), ("Sub", "v_out", "u", "drop"))
_KEEP: Steps = (("Identity", "v_out", "u"), ("Identity", "s", "u"))
_REFRACTORY: Steps = (
    ("ToBool", "held", "rho"),
    ("ToFloat", "one", "held"),
    ("Sub", "rest", "rho", "one"),
    ("Where", "kept", "held", "v", "u"),
    ("Greater", "beyond", "kept", "v_threshold"),
    ("Not", "free", "held"),
    ("And", "above", "beyond", "free"),
    ("ToFloat", "s", "above"),
    ("Where", "v_out", "above", "v_reset", "kept"),
    ("Mul", "more", "s", "refractory_steps"),
    ("Add", "rho_out", "rest", "more"),
)
_ADAPTIVE: Steps = (
    ("Identity", "current", "i"),
    *_BY_CURRENT,
    ("Sub", "remaining", "current", "lost"),
    ("Add", "i_out", "remaining", "x"),
    ("Sub", "risen", "v_threshold", "b"),
    ("Mul", "fall", "risen", "decay_adapt"),
    ("Add", "threshold", "b", "fall"),
    ("Greater", "above", "u", "threshold"),
    ("ToFloat", "s", "above"),
    ("Where", "v_out", "above", "v_reset", "u"),
    ("Mul", "rise", "s", "beta"),
    ("Add", "b_out", "threshold", "rise"),
)
_INTEGRATE: dict[type, Steps] = {
    IF: (("Add", "u", "v", "x"),),
    LIF: _LIF,
    LI: _LI,
    CubaLIF: _CUBA,
    CubaLI: _CUBA,
    LIFRefrac: _CUBA,
    LSNN: (),
}
ORDER = {
    IF: "v += x; s = v > v_threshold; reset",
    LIF: "v += decay_mem * ((x + v_leak) - v); s = v > v_threshold; reset",
    LI: "v += decay_mem * ((v_leak - v) + x)",
    CubaLIF: "i += x; v += decay_mem * ((v_leak - v) + i); i -= decay_syn * i; s = v > v_threshold; reset",
    CubaLI: "i += x; v += decay_mem * ((v_leak - v) + i); i -= decay_syn * i",
    LIFRefrac: (
        "i += x; u = v + decay_mem * ((v_leak - v) + i); i -= decay_syn * i; while rho > 0: v is held, rho -= 1; "
        "else v = u; s = v > v_threshold; reset, rho = refractory_steps"
    ),
    LSNN: (
        "v += decay_mem * ((v_leak - v) + i); i -= decay_syn * i; i += x; b += decay_adapt * (v_threshold - b); "
        "s = v > b; reset, b += beta"
    ),
}

FIXED_ORDER = (
    "i = trunc(i * (1 - decay_syn)) + 64 * x, wrapped once into 24 bits; "
    "v = clip(trunc(v * (1 - decay_mem)) + i + v_leak); s = v > v_threshold, of readouts never"
)


@dataclass(frozen=True)
class State:
    """One state of a layer: its letter, and what it starts as, the name of a parameter or 0."""

    letter: str
    start: str | float = 0.0


def states_of(node: Neuron, *, fixed: bool = False) -> tuple[State, ...]:
    """Return what a layer carries from one step to the next, in float32 or in fixed point."""
    if fixed:
        return State("v"), State("i")
    found = [State("v", "v_reset" if isinstance(node, IF) else "v_leak")]
    if isinstance(node, SYNAPTIC):
        found.append(State("i", 0.0))
    if isinstance(node, LIFRefrac):
        found.append(State("rho", 0.0))
    if isinstance(node, LSNN):
        found.append(State("b", "v_threshold"))
    return tuple(found)


def function_name(node: Neuron, *, fixed: bool = False) -> str:
    """Return the name of the function a node calls: its type, its reset where it subtracts, "fixed" in fixed point."""
    if fixed:
        return f"{type(node).__name__}_fixed"
    subtracts = isinstance(node, SPIKING) and node.reset == "subtract"
    return f"{type(node).__name__}_subtract" if subtracts else type(node).__name__


def parameters_of(node: Neuron, *, fixed: bool = False) -> tuple[str, ...]:
    """Return the parameters a function takes behind input and states, in order."""
    unused = {"v_reset"} if fixed or function_name(node).endswith("_subtract") else set()
    return tuple(key for key in arrays_of(node) if key not in unused)


def neuron_function(node: Neuron, *, fixed: bool = False) -> onnx.FunctionProto:
    """Return the function for nodes of this type and reset: ``(x, *states, *parameters) -> (s, *states)``."""
    letters = [state.letter for state in states_of(node, fixed=fixed)]
    steps = fixed_steps(node) if fixed else (*_INTEGRATE[type(node)], *_firing(node))
    read = {value for step in steps for value in step[2:]}
    constants = [_constant(name, array) for name, array in CONSTANTS.items() if fixed and name in read]
    return helper.make_function(
        DOMAIN,
        function_name(node, fixed=fixed),
        ["x", *letters, *parameters_of(node, fixed=fixed)],
        ["s", *(f"{letter}_out" for letter in letters)],
        [*constants, *(_operator(*step) for step in steps)],
        [helper.make_opsetid("", OPSET)],
        attributes=sorted(said_of(node, 1.0)),
        doc_string=(FIXED_ORDER if fixed else ORDER[type(node)]) + _reset_rule(node),
    )


def said_of(node: Neuron, dt: float) -> dict[str, object]:
    """Return the attributes of a call: dt, reset, and each time constant in seconds (lowest, highest if they vary)."""
    said: dict[str, object] = {"dt": dt}
    if isinstance(node, SPIKING):
        said["reset"] = node.reset
    for key, decay in arrays_of(node).items():
        if key.startswith("decay_"):
            said[f"tau_{key.removeprefix('decay_')}"] = [
                dt / share if share else math.inf for share in sorted({float(decay.max()), float(decay.min())})[::-1]
            ]
    return said


def summary(name: str, node: Neuron, dt: float) -> str:
    """Return one line for the documentation of a call."""
    words = [f"{name}: {type(node).__name__}", f"dt = {dt!r} s"]
    for key, array in arrays_of(node).items():
        low, high = float(np.min(array)), float(np.max(array))
        words.append(f"{key} = {low!r}" if low == high else f"{key} = {low!r} to {high!r}")
    return "; ".join(words) + _reset_rule(node)


def _firing(node: Neuron) -> Steps:
    match node:
        case LIFRefrac():
            return _REFRACTORY
        case LSNN():
            return _ADAPTIVE
        case IF() | LIF() | CubaLIF():
            return _SUBTRACT if node.reset == "subtract" else _TO_VALUE
        case _:
            return _KEEP


def _reset_rule(node: Neuron) -> str:
    if not isinstance(node, SPIKING):
        return ""
    return "; reset: v -= v_threshold" if node.reset == "subtract" else "; reset: v = v_reset"


def _operator(kind: str, output: str, *inputs: str) -> onnx.NodeProto:
    if kind in CASTS:
        return helper.make_node("Cast", inputs, [output], to=CASTS[kind])
    return helper.make_node(kind, inputs, [output])


def _constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
