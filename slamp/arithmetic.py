"""Arithmetic as a value of a graph: what its numbers are, and how a step rounds and overflows.

`Float32` is Norse's. `FixedPoint` is Loihi's integer arithmetic as Lava 0.10.0 computes it with its ``fixed_pt``
models (`lava/proc/lif/models.py`, `lava/proc/dense/models.py`, `lava/utils/weightutils.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from slamp.nodes import (
    NEURON,
    READOUT,
    SECOND_TIER,
    WEIGHTED,
    AdaptiveAvgPool2d,
    AvgPool2d,
    Delay,
    Node,
    Pad,
    Scale,
    arrays_of,
)
from slamp.wiring import adds_nothing

STATE_LIMIT = 2**23  # u wraps beyond it, v saturates one below
DECAY_ONE = 4096  # decays are shares of it
SHIFT = 6  # sums and threshold mantissas enter the state shifted left by 6
MAX_THRESHOLD = 131071 << SHIFT
BIAS_MANTISSA = (-4096, 4095)  # 13 bits, signed
MAX_BIAS_EXPONENT = 7
WEIGHT_EXPONENTS = (-8, 7)
MAX_DELAY = 62
TRAINED_SCALE = "_slamp_trained_scale"  # attribute of neuron modules that were trained in integers


@dataclass(frozen=True, slots=True)
class Float32:
    """Arithmetic of Norse: IEEE float32, in Norse's operation order."""

    name: str = "float32"


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Loihi's integers, as Lava 0.10.0 computes them (``fixed_pt``). Every neuron starts at ``u = v = 0``.

    One step of `CubaLIF`, in this order, where ``trunc`` rounds toward zero and ``x`` is the sum of all inputs::

        u = trunc(u * (1 - decay_syn)) + 64 * x      wrapped once into (-2^23, 2^23]
        v = clip(trunc(v * (1 - decay_mem)) + u + v_leak, -(2^23 - 1), 2^23 - 1)
        s = v > v_threshold;  v = 0 where s

    A weighted node gives ``floor(weight @ spikes + bias)``; the bias is an input line that is always on. `LIF` and `IF`
    have ``decay_syn = 1``, `IF` also ``decay_mem = 0``; a readout gives ``v`` and never fires. The fields of the nodes
    keep their names and hold what the chip holds:

    * ``weight``: the effective weight, mantissa times a power of two. Mantissas have 8 bits: 0 to 255 or -255 to 0
      where all signs agree, even numbers from -256 to 254 otherwise; the exponent is -8 to 7.
    * ``decay_syn``, ``decay_mem``: k / 4096 for a whole k. Lava's ``du`` is ``4096 * decay_syn - 1``.
    * ``v_threshold``: the 17-bit mantissa times 64. ``v_reset``: 0.
    * ``v_leak``: the bias added to ``v`` each step, a 13-bit mantissa times 2^0 to 2^7.
    """

    name: str = "fixed-point"


Arithmetic = Float32 | FixedPoint
ARITHMETICS: dict[str, type[Arithmetic]] = {"float32": Float32, "fixed-point": FixedPoint}


@dataclass(frozen=True, eq=False)
class LayerScale:
    """How the numbers of one layer of neurons became whole.

    Attributes:
        scale: Whole numbers per unit of the layer's input.
        clips: By weighted node, the largest magnitude kept.
        gains: By weighted node, what the mean pools before it multiply.
    """

    scale: float
    clips: Mapping[str, float]
    gains: Mapping[str, float]


class SignMode(Enum):
    """Which signs the weights of a layer have; the numbers are Lava's."""

    MIXED = 1
    EXCITATORY = 2
    INHIBITORY = 3


@dataclass(frozen=True, eq=False, slots=True)
class WeightFormat:
    """How the chip holds weights: ``weight = mantissa * 2 ** exponent``.

    Attributes:
        mantissa: int32, the shape of the weight; even where signs are mixed.
        exponent: -8 to 7.
        sign_mode: Decides the range of the mantissas.
    """

    mantissa: np.ndarray
    exponent: int
    sign_mode: SignMode


def weight_format(weight: np.ndarray) -> WeightFormat | None:
    """Return how the chip holds effective weights exactly, or None if it cannot."""
    values = np.asarray(weight, dtype=np.float64)
    nonzero = values[values != 0]
    if not nonzero.size:
        return WeightFormat(np.zeros(values.shape, np.int32), 0, SignMode.EXCITATORY)
    mixed = bool(nonzero.min() < 0 < nonzero.max())
    mode = SignMode.MIXED if mixed else SignMode.EXCITATORY if nonzero.min() > 0 else SignMode.INHIBITORY
    low, high = {
        SignMode.MIXED: (-256, 254),
        SignMode.EXCITATORY: (0, 255),
        SignMode.INHIBITORY: (-255, 0),
    }[mode]
    least, most = WEIGHT_EXPONENTS
    exponent = min(common_exponent(nonzero) - int(mixed), most)
    if exponent < least:
        return None
    mantissa = values / 2.0**exponent
    if mantissa.min() < low or mantissa.max() > high:
        return None
    return WeightFormat(mantissa.astype(np.int32), exponent, mode)


def common_exponent(values: np.ndarray) -> int:
    """Return the largest k such that every value is a whole multiple of ``2 ** k``; values must not be zero."""
    fraction, exponent = np.frexp(np.abs(np.asarray(values, dtype=np.float64)))
    whole = (fraction * 2.0**53).astype(np.int64)
    return int((exponent - 53 + np.log2((whole & -whole).astype(np.float64)).astype(np.int64)).min())


def bias_format(bias: int) -> tuple[int, int] | None:
    """Return the mantissa and the smallest exponent with ``bias = mantissa << exponent``, or None if there are none."""
    low, high = BIAS_MANTISSA
    for exponent in range(MAX_BIAS_EXPONENT + 1):
        mantissa, rest = divmod(bias, 1 << exponent)
        if rest == 0 and low <= mantissa <= high:
            return mantissa, exponent
    return None


def fixed_point_problems(name: str, node: Node) -> Iterator[str]:
    """Yield what of a node fixed point cannot hold: field, value, what is allowed."""
    if isinstance(node, SECOND_TIER):
        yield f"{name}: {type(node).__name__} has no fixed-point meaning; train with LIFCell, or keep the float graph"
        return
    if isinstance(node, (Scale, AvgPool2d)):
        yield f"{name}: {type(node).__name__} has no fixed-point meaning; quantize folds it into weights"
    if isinstance(node, AdaptiveAvgPool2d):
        yield (
            f"{name}: AdaptiveAvgPool2d has no fixed-point meaning, because its windows may differ in size; use "
            "AvgPool2d, whose mean quantize folds into weights"
        )
    if isinstance(node, Pad) and not adds_nothing(node):
        yield f"{name}: pads with {node.value:g}; fixed point pads with 0, or with values from the border"
    if isinstance(node, WEIGHTED):
        for key in ("weight", "bias"):
            array = getattr(node, key, None)
            if array is not None and weight_format(array) is None:
                yield _weight_problem(f"{name}: {key}", array)
    if isinstance(node, Delay) and float(node.steps.max()) > MAX_DELAY:
        yield f"{name}: delays by {node.steps.max():g} steps; allowed are 0 to {MAX_DELAY}"
    if isinstance(node, NEURON):
        yield from _neuron_problems(name, node)


def _neuron_problems(name: str, node: Node) -> Iterator[str]:
    if getattr(node, "reset", "value") != "value":
        yield f"{name}: resets by subtraction; fixed point resets to 0"
    for key, array in arrays_of(node).items():
        values = array.astype(np.float64)
        match key:
            case "decay_syn" | "decay_mem":
                wrong, allowed = (values * DECAY_ONE) % 1 != 0, "whole multiples of 1/4096"
            case "v_threshold":
                wrong = (values % (1 << SHIFT) != 0) | (values < 0) | (values > MAX_THRESHOLD)
                allowed = "64 times 0 to 131071"
            case "v_reset":
                wrong, allowed = values != 0, "0"
            case _:
                held = {value: value % 1 == 0 and bias_format(int(value)) is not None for value in np.unique(values)}
                wrong = ~np.vectorize(held.get, otypes=[bool])(values)
                allowed = "-4096 to 4095 times 2^0 to 2^7"
        if bool(wrong.any()):
            index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
            yield f"{name}: {key}{list(index)} is {values[index]:.9g}; allowed are {allowed}"
    assert not isinstance(node, READOUT) or not hasattr(node, "v_threshold")


def _weight_problem(where: str, weight: np.ndarray) -> str:
    values = weight.astype(np.float64)
    mixed = bool(values.min() < 0 < values.max())
    low, high = (-128, 127) if mixed else (0, 255) if values.max() > 0 else (-255, 0)
    unit = 2.0 ** common_exponent(values[values != 0])
    outside = np.argwhere((values < low * unit) | (values > high * unit))
    index = tuple(int(axis) for axis in outside[0]) if len(outside) else (0,) * values.ndim
    signs = "of both signs" if mixed else "of one sign"
    return (
        f"{where}{list(index)} is {values[index]:.9g} beside weights that are multiples of {unit:g}; allowed are "
        f"8 bits, for weights {signs} {low} to {high} times a power of two (2^-8 to 2^7)"
    )
