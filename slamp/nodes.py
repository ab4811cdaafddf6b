"""The nodes of a spiking graph, named and shaped as in NIR; what one time step of each computes.

Arrays are read-only float32 NumPy arrays. Neuron parameters have the full shape of the neurons; uniform ones are
broadcast views, so they cost no memory. Shapes never include the batch axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import numpy as np

from slamp.errors import GraphError

Reset = Literal["value", "subtract"]
PadMode = Literal["constant", "reflect", "replicate", "circular"]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Input:
    """Where the raster enters. ``shape``: features of one sample at one step."""

    shape: Shape


@dataclass(frozen=True, eq=False, slots=True)
class Output:
    """Where spikes or membrane values leave. ``shape``: features of one sample at one step."""

    shape: Shape


@dataclass(frozen=True, eq=False, slots=True)
class Linear:
    """``y = x @ weight.T``; weight shape (out, in)."""

    weight: np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class Affine:
    """``y = x @ weight.T + bias``; weight shape (out, in), bias shape (out,)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class Conv1d:
    """Cross-correlation over one axis; weight shape (out, in / groups, kernel), bias (out,) or None.

    ``padding`` is one number per axis, zeros on both sides, or "same" as torch pads it.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, ...]
    padding: tuple[int, ...] | Literal["same"]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True, eq=False, slots=True)
class Conv2d:
    """Cross-correlation over two axes; weight shape (out, in / groups, kernel_y, kernel_x), bias (out,) or None.

    ``padding`` is one number per axis, zeros on both sides, or "same" as torch pads it.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, ...]
    padding: tuple[int, ...] | Literal["same"]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True, eq=False, slots=True)
class SumPool2d:
    """Sum over windows, computed as torch's LPPool2d with norm 1 does: mean times window size."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True)
class AvgPool2d:
    """Mean over windows, zero padding counted."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True)
class Flatten:
    """Merge feature axes ``start_dim`` to ``end_dim`` (inclusive, batch axis not counted)."""

    start_dim: int
    end_dim: int


@dataclass(frozen=True, eq=False, slots=True)
class MaxPool2d:
    """Largest value of each window; the padding never is. Of spikes: one if any neuron of the window fires."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, eq=False, slots=True)
class AdaptiveAvgPool2d:
    """Mean over windows chosen so that the map has the sides ``output_size``, as torch chooses them."""

    output_size: tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True)
class Upsample2d:
    """Every value ``factor`` times along the last two axes: torch's nearest neighbor by a whole ``scale_factor``."""

    factor: tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True)
class Pad:
    """The last feature axes made longer, ``padding`` holding (before, after) for each of them, the first one first.

    ``mode`` says with what, as in `torch.nn.functional.pad`; ``value`` is what "constant" fills in.
    """

    padding: tuple[tuple[int, int], ...]
    mode: PadMode = "constant"
    value: float = 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Sum:
    """Its edges added one by one, in their order, before anything else is done: ``(x1 + x2) + x3``."""


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """The input at ``start`` along feature axis ``axis``, zeros elsewhere up to ``size``.

    Places into a `Sum` that do not overlap are a concatenation, exact but for the sign of zero.
    """

    axis: int
    start: int
    size: int


@dataclass(frozen=True, eq=False, slots=True)
class Take:
    """The entries ``start`` to ``stop`` (exclusive) along feature axis ``axis``."""

    axis: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False, slots=True)
class Reshape:
    """The same values, row-major, with features of ``shape``."""

    shape: Shape


@dataclass(frozen=True, eq=False, slots=True)
class Permute:
    """Feature axes in the order ``axes``, as `torch.Tensor.permute` (batch axis not counted)."""

    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Scale:
    """``y = scale * x + shift`` per channel (first feature axis), rounded once, as torch's batch normalization does.

    ``scale`` and ``shift`` have shape (channels,); they are what torch's evaluation-mode kernel derives from weight,
    bias and running statistics.
    """

    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class Delay:
    """Every value arrives ``steps`` time steps later; nothing (zero) arrives before.

    ``steps`` holds whole numbers, one per feature. A delay of at least one step everywhere may close a cycle.
    """

    steps: np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class IF:
    """Integrate-and-fire. One step: ``v += x``; ``s = v > v_threshold``; reset. Starts at ``v = v_reset``.

    Norse: ``IAFCell`` (`norse/torch/functional/iaf.py`). Reset by value sets ``v = v_reset``, by subtraction
    ``v -= v_threshold``.
    """

    v_threshold: np.ndarray
    v_reset: np.ndarray
    reset: Reset = "value"


@dataclass(frozen=True, eq=False, slots=True)
class LIF:
    """Leaky integrate-and-fire without synaptic current. Starts at ``v = v_leak``.

    One step: ``v += decay_mem * ((x + v_leak) - v)``; ``s = v > v_threshold``; reset. ``decay_mem = dt / tau_mem`` is
    the share lost per step. Norse: ``LIFBoxCell`` (`norse/torch/functional/lif_box.py`).
    """

    decay_mem: np.ndarray
    v_leak: np.ndarray
    v_threshold: np.ndarray
    v_reset: np.ndarray
    reset: Reset = "value"


@dataclass(frozen=True, eq=False, slots=True)
class CubaLIF:
    """Current-based leaky integrate-and-fire. Starts at ``v = v_leak, i = 0``.

    One step: ``i += x``; ``v += decay_mem * ((v_leak - v) + i)``; ``i -= decay_syn * i``; ``s = v > v_threshold``;
    reset. Norse: ``LIFCell`` (`norse/torch/functional/lif.py`, lif_feed_forward_step).
    """

    decay_syn: np.ndarray
    decay_mem: np.ndarray
    v_leak: np.ndarray
    v_threshold: np.ndarray
    v_reset: np.ndarray
    reset: Reset = "value"


@dataclass(frozen=True, eq=False, slots=True)
class LIFRefrac:
    """`CubaLIF` with an absolute refractory period. Starts at ``v = v_leak, i = 0, rho = 0``.

    One step: ``i += x``; ``u = v + decay_mem * ((v_leak - v) + i)``; ``i -= decay_syn * i``. While ``rho > 0`` the
    neuron is refractory: ``v`` is held, it does not spike, and ``rho -= 1``. Otherwise ``v = u``; ``s = v >
    v_threshold``; a spike sets ``v = v_reset`` and ``rho = refractory_steps``, whole numbers of steps from 0 on.
    Several edges are added to ``i`` one by one. Norse: ``LIFRefracCell`` (`norse/torch/functional/lif_refrac.py`).
    """

    decay_syn: np.ndarray
    decay_mem: np.ndarray
    v_leak: np.ndarray
    v_threshold: np.ndarray
    v_reset: np.ndarray
    refractory_steps: np.ndarray
    reset: ClassVar[Reset] = "value"


@dataclass(frozen=True, eq=False, slots=True)
class LSNN:
    """`CubaLIF` whose threshold ``b`` rises with every spike. Starts at ``v = v_leak, i = 0, b = v_threshold``.

    One step: ``v += decay_mem * ((v_leak - v) + i)``; ``i -= decay_syn * i``; ``b += decay_adapt * (v_threshold - b)``;
    ``s = v > b``; a spike sets ``v = v_reset`` and ``b += beta``; ``i += x``. So the membrane sees an input one step
    after it came. Several edges are added to ``i`` one by one. Norse: ``LSNNCell`` (`norse/torch/functional/lsnn.py`).
    """

    decay_syn: np.ndarray
    decay_mem: np.ndarray
    decay_adapt: np.ndarray
    v_leak: np.ndarray
    v_threshold: np.ndarray
    v_reset: np.ndarray
    beta: np.ndarray
    reset: ClassVar[Reset] = "value"


@dataclass(frozen=True, eq=False, slots=True)
class LI:
    """Leaky integrator readout. One step: ``v += decay_mem * ((v_leak - v) + x)``; output ``v``. Norse: ``LIBoxCell``.

    Associated otherwise than `LIF`; with ``v_leak = 0`` the two agree bit for bit.
    """

    decay_mem: np.ndarray
    v_leak: np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class CubaLI:
    """Current-based leaky integrator readout: as `CubaLIF` without spike and reset; output ``v``. Norse: ``LICell``."""

    decay_syn: np.ndarray
    decay_mem: np.ndarray
    v_leak: np.ndarray


Weighted = Linear | Affine | Conv1d | Conv2d
Spiking = IF | LIF | CubaLIF | LIFRefrac | LSNN
Readout = LI | CubaLI
Neuron = Spiking | Readout
Pool = SumPool2d | AvgPool2d
Wiring = Flatten | Reshape | Permute | Take | Place | Upsample2d | Pad
Node = Input | Output | Weighted | Pool | MaxPool2d | AdaptiveAvgPool2d | Wiring | Sum | Delay | Scale | Neuron

WEIGHTED = (Linear, Affine, Conv1d, Conv2d)
SPIKING = (IF, LIF, CubaLIF, LIFRefrac, LSNN)
READOUT = (LI, CubaLI)
NEURON = (*SPIKING, *READOUT)
SYNAPTIC = (CubaLIF, LIFRefrac, LSNN, CubaLI)  # neurons with a synaptic current
SECOND_TIER = (LIFRefrac, LSNN)  # no bound on their rounding is known: a replay agrees or is different
# They move values or repeat them; but for a Pad of another value than 0, nothing new comes in.
WIRING = (Flatten, Reshape, Permute, Take, Place, Upsample2d, Pad)
POOLS = (SumPool2d, AvgPool2d, MaxPool2d, AdaptiveAvgPool2d)
NODE_TYPES: Mapping[str, type] = {
    kind.__name__: kind for kind in (Input, Output, *WEIGHTED, *POOLS, *WIRING, Sum, Delay, Scale, *NEURON)
}


def frozen_array(values: np.ndarray) -> np.ndarray:
    """Return a read-only, C-contiguous float32 copy (broadcast views stay views)."""
    array = np.asarray(values, dtype=np.float32)
    if 0 not in array.strides or array.ndim == 0:
        array = np.array(array, dtype=np.float32, order="C", copy=True)
    array.flags.writeable = False
    return array


def uniform(value: float, shape: Shape) -> np.ndarray:
    """Return a read-only array of one value that occupies four bytes."""
    return np.broadcast_to(np.asarray(value, dtype=np.float32), shape)


def per_neuron(values: np.ndarray, shape: Shape, *, where: str) -> np.ndarray:
    """Broadcast a neuron parameter to the shape of its neurons; raises `GraphError` where it does not fit."""
    try:
        return np.broadcast_to(np.array(values, dtype=np.float32), shape)
    except ValueError as error:
        raise GraphError(
            f"{where}: parameter of shape {np.shape(values)} does not fit neurons of shape {shape}; "
            "give one number, or one per neuron"
        ) from error


def arrays_of(node: Node) -> dict[str, np.ndarray]:
    """Return the array fields of a node by name."""
    values = {field.name: getattr(node, field.name) for field in fields(node)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def settings_of(node: Node) -> dict[str, object]:
    """Return the fields of a node that are not arrays, by name."""
    values = {field.name: getattr(node, field.name) for field in fields(node)}
    return {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}


def shape_mismatch(name: str, node: Node, found: Shape, allowed: str) -> GraphError:
    """Return the error for a node that receives a shape it cannot take."""
    return GraphError(
        f"{name}: {type(node).__name__} receives shape {found}, allowed is {allowed}; "
        "check the layer before it, or the features of the samples"
    )
