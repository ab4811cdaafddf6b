"""The arithmetic of every node, on tensors, in Norse's operation order.

Stateless nodes become functions; neurons advance over a run of steps. One implementation serves the step-by-step
reference (`simulate`) and the layer-by-layer statistics (`calibrate`), so they cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from slamp.nodes import (
    IF,
    LI,
    LIF,
    LSNN,
    READOUT,
    SECOND_TIER,
    SPIKING,
    SYNAPTIC,
    WIRING,
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Input,
    LIFRefrac,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Output,
    Scale,
    Sum,
    SumPool2d,
)
from slamp.wiring import wiring_function

TensorFunction = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switch off gradients, autocast and TF32, which would change the arithmetic; restore them afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    try:
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            np.errstate(over="ignore", invalid="ignore"),  # overflow is found by comparing, as in torch
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = cudnn


def to_tensor(array: np.ndarray, device: str | torch.device) -> torch.Tensor:
    """Copy an array into memory torch aligns itself (alignment can change the order of a BLAS sum)."""
    return torch.tensor(array, dtype=torch.float32, device=device)


def parameter_tensor(array: np.ndarray, device: str | torch.device) -> torch.Tensor:
    """As `to_tensor`, but a neuron parameter that is the same everywhere becomes a 0-d tensor."""
    first = array.flat[0]
    if all(stride == 0 for stride in array.strides) or bool((array == first).all()):
        return torch.tensor(first, dtype=torch.float32, device=device)
    return to_tensor(array, device)


def stateless_function(node: Node, device: str | torch.device) -> TensorFunction:
    """Return the function of a node without memory, on tensors of shape (batch, *features)."""
    match node:
        case Input() | Output() | Sum():
            return lambda x: x
        case Linear():
            weight = to_tensor(node.weight, device)
            return lambda x: F.linear(x, weight)
        case Affine():
            weight, bias = to_tensor(node.weight, device), to_tensor(node.bias, device)
            return lambda x: F.linear(x, weight, bias)
        case Conv1d() | Conv2d():
            return _convolution(node, device)
        case SumPool2d():
            return lambda x: F.lp_pool2d(x, 1.0, node.kernel_size, node.stride)
        case AvgPool2d():
            return lambda x: F.avg_pool2d(x, node.kernel_size, node.stride, node.padding)
        case MaxPool2d():
            return lambda x: F.max_pool2d(x, node.kernel_size, node.stride, node.padding, node.dilation)
        case AdaptiveAvgPool2d():
            return lambda x: F.adaptive_avg_pool2d(x, node.output_size)
        case _ if isinstance(node, WIRING):
            return wiring_function(node)
        case Scale():
            return _scale(node, device)
        case _:
            raise AssertionError(f"{type(node).__name__} has memory")


def _convolution(node: Conv1d | Conv2d, device: str | torch.device) -> TensorFunction:
    weight = to_tensor(node.weight, device)
    bias = None if node.bias is None else to_tensor(node.bias, device)
    if isinstance(node, Conv1d):
        return lambda x: F.conv1d(x, weight, bias, node.stride, node.padding, node.dilation, node.groups)
    return lambda x: F.conv2d(x, weight, bias, node.stride, node.padding, node.dilation, node.groups)


def _scale(node: Scale, device: str | torch.device) -> TensorFunction:
    # torch's evaluation kernel fuses multiply and add (one rounding); plain tensor arithmetic rounds twice. Feeding
    # the kernel mean 0, variance 1 and eps 0 makes it compute exactly fma(x, scale, shift).
    scale, shift = to_tensor(node.scale, device), to_tensor(node.shift, device)
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return lambda x: F.batch_norm(x, zeros, ones, scale, shift, training=False, momentum=0.0, eps=0.0)


def added(x: torch.Tensor, more: Sequence[torch.Tensor]) -> torch.Tensor:
    """Add tensors of one shape one by one."""
    for other in more:
        x = x + other
    return x


def edge_values(
    values: Mapping[str, torch.Tensor], sources: Sequence[str]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return what the first edge into a node brings, and what further ones do, in their order."""
    first, *rest = sources
    return values[first], tuple(values[source] for source in rest)


@dataclass
class NeuronState:
    """What neurons carry from one step to the next; tensors have shape (batch, *neurons), () where unused.

    Attributes:
        v: Membrane.
        i: Synaptic current.
        rho: Refractory steps left (`LIFRefrac`).
        b: Threshold (`LSNN`).
    """

    v: torch.Tensor
    i: torch.Tensor
    rho: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    b: torch.Tensor = field(default_factory=lambda: torch.zeros(()))


@dataclass(frozen=True)
class NeuronRun:
    """What a layer did over a run of steps; tensors have shape (steps, batch, *neurons).

    Attributes:
        output: Spikes as 0 and 1, or membrane values of a readout, float32.
        v: Membrane as it is compared with the threshold, before reset; as it is held, in a refractory step.
        i: Synaptic current after its decay (`LSNN`: after the input that follows it); empty unless asked for or without
            synapse.
        distance: For `LIFRefrac` and `LSNN`, how far ``v`` is above the threshold of its step, -inf where a neuron is
            refractory; else None.
    """

    output: torch.Tensor
    v: torch.Tensor
    i: torch.Tensor
    distance: torch.Tensor | None = None


@dataclass(frozen=True)
class _Elementwise:
    """The five elementwise operations of a step, each called as ``op(a, b, out=c)``.

    On the host NumPy does them, on views of the tensors' memory: IEEE float32 operations give the same bits everywhere,
    and NumPy's calls cost less than half of torch's.
    """

    add: Callable[..., object]
    sub: Callable[..., object]
    mul: Callable[..., object]
    gt: Callable[..., object]
    le: Callable[..., object]


ON_HOST = _Elementwise(np.add, np.subtract, np.multiply, np.greater, np.less_equal)
ON_DEVICE = _Elementwise(torch.add, torch.sub, torch.mul, torch.gt, torch.le)
Array = Any  # a tensor on a device, a NumPy view of one on the host


@dataclass(frozen=True)
class _Now:
    """The arrays of a `NeuronState`, and memory of the membrane's shape for what changes in a step."""

    v: Array
    i: Array
    rho: Array
    b: Array
    change: Array


class NeuronDynamics:
    """Advances one layer of neurons. Parameters are fixed; the state is handed in and updated in place."""

    def __init__(self, node: Neuron, device: str | torch.device) -> None:
        self.node = node
        self.device = torch.device(device)
        self.spikes = isinstance(node, SPIKING)
        self.has_current = isinstance(node, SYNAPTIC)
        self.shape = (node.v_threshold if isinstance(node, IF) else node.v_leak).shape
        self.on_host = self.device.type == "cpu"
        self.op = ON_HOST if self.on_host else ON_DEVICE
        start = node.v_reset if isinstance(node, IF) else node.v_leak
        self.start = parameter_tensor(start, device)
        # LIF adds v_leak to the input first, the others subtract v from it first; zero changes nothing and is left out.
        self.leaks_to_value = not isinstance(node, IF) and bool((node.v_leak != 0).any())
        self.v_leak = self._parameter(None if isinstance(node, IF) else node.v_leak)
        self.decay_mem = self._parameter(None if isinstance(node, IF) else node.decay_mem)
        self.decay_syn = self._parameter(node.decay_syn if isinstance(node, SYNAPTIC) else None)
        self.v_threshold = self._parameter(None if isinstance(node, READOUT) else node.v_threshold)
        self.v_reset = self._parameter(None if isinstance(node, READOUT) else node.v_reset)
        self.refractory_steps = self._parameter(node.refractory_steps if isinstance(node, LIFRefrac) else None)
        self.decay_adapt = self._parameter(node.decay_adapt if isinstance(node, LSNN) else None)
        self.beta = self._parameter(node.beta if isinstance(node, LSNN) else None)
        self.by_value = isinstance(node, READOUT) or node.reset == "value"
        self.resets_to_value = not isinstance(node, READOUT) and bool((node.v_reset != 0).any())
        self.fire = self._fire
        match node:
            case IF():
                self.integrate = self._integrate_if
            case LIF():
                self.integrate = self._integrate_lif
            case LI():
                self.integrate = self._integrate_li
            case LIFRefrac():
                self.integrate, self.fire = self._integrate_cuba, self._fire_unless_refractory
            case LSNN():
                self.integrate, self.fire = self._integrate_lsnn, self._fire_adaptive
            case _:
                self.integrate = self._integrate_cuba

    def initial_state(self, batch: int) -> NeuronState:
        """Return the state before the first step: ``v_leak`` (IF: ``v_reset``), no current, threshold at rest."""
        v = self.start.expand(batch, *self.shape).contiguous().clone()
        unused = v.new_zeros(())
        rho = torch.zeros_like(v) if isinstance(self.node, LIFRefrac) else unused
        b = unused
        if isinstance(self.node, LSNN):
            resting = parameter_tensor(self.node.v_threshold, self.device)
            b = resting.expand(batch, *self.shape).contiguous().clone()
        return NeuronState(v, torch.zeros_like(v) if self.has_current else unused, rho, b)

    def advance(
        self,
        drive: torch.Tensor,
        state: NeuronState,
        *,
        more: Sequence[torch.Tensor] = (),
        keep_current: bool = False,
    ) -> NeuronRun:
        """Run over the input of every step, of shape (steps, batch, *neurons); ``state`` moves along.

        Args:
            drive: What the first edge brings.
            state: What the neurons carry; updated in place.
            more: What further edges bring, same shape. A current takes edge by edge, ``(i + x1) + x2``; neurons without
                one take the sum ``x1 + x2``.
            keep_current: Return the current of every step too.
        """
        if more and not self.has_current:
            drive, more = added(drive, more), ()
        v_run = torch.empty_like(drive)
        kept = drive.shape if self.has_current and keep_current else (drive.shape[0], 0)
        i_run = drive.new_empty(kept)
        output = torch.empty_like(drive) if self.spikes else v_run
        distance_run = drive.new_empty(drive.shape if isinstance(self.node, SECOND_TIER) else (drive.shape[0], 0))
        inputs = drive
        if self.leaks_to_value and isinstance(self.node, LIF):
            inputs = torch.add(drive, torch.as_tensor(self.v_leak, device=drive.device))
        x_run, v_runs, s_run, currents, distances = self._arrays(inputs, v_run, output, i_run, distance_run)
        v, i, rho, b, change = self._arrays(state.v, state.i, state.rho, state.b, torch.empty_like(state.v))
        now = _Now(v, i, rho, b, change)
        x_runs = zip(x_run, *self._arrays(*more), strict=True)
        for xs, after, spikes, current, distance in zip(x_runs, v_runs, s_run, currents, distances, strict=True):
            self.integrate(xs, now, after)
            if keep_current and self.has_current:
                current[...] = now.i
            if self.spikes:
                self.fire(after, spikes, distance, now)
            else:
                now.v[...] = after
        return NeuronRun(output, v_run, i_run, distance_run if isinstance(self.node, SECOND_TIER) else None)

    def _parameter(self, array: np.ndarray | None) -> Array:
        tensor = torch.zeros((), device=self.device) if array is None else parameter_tensor(array, self.device)
        return tensor.numpy()[()] if self.on_host else tensor

    def _arrays(self, *tensors: torch.Tensor) -> tuple[Array, ...]:
        return tuple(tensor.numpy() for tensor in tensors) if self.on_host else tensors

    def _fire(self, after: Array, spikes: Array, distance: Array, now: _Now) -> None:
        self.op.gt(after, self.v_threshold, out=spikes)
        if self.by_value:
            self.op.le(after, self.v_threshold, out=now.v)
            self._reset_to_value(after, spikes, now)
        else:
            self.op.mul(spikes, self.v_threshold, out=now.change)
            self.op.sub(after, now.change, out=now.v)

    def _fire_unless_refractory(self, after: Array, spikes: Array, distance: Array, now: _Now) -> None:
        held, free = distance, spikes  # 0 and 1; the memory of what is written below
        self.op.gt(now.rho, 0.0, out=held)
        self.op.le(now.rho, 0.0, out=free)
        self.op.sub(now.rho, held, out=now.rho)
        self.op.mul(after, free, out=after)
        self.op.mul(now.v, held, out=now.change)
        self.op.add(after, now.change, out=after)
        refractory = held > 0
        self.op.sub(after, self.v_threshold, out=distance)
        distance[refractory] = -math.inf
        self.op.gt(distance, 0.0, out=spikes)
        self.op.le(spikes, 0.0, out=now.v)
        self._reset_to_value(after, spikes, now)
        self.op.mul(spikes, self.refractory_steps, out=now.change)
        self.op.add(now.rho, now.change, out=now.rho)

    def _fire_adaptive(self, after: Array, spikes: Array, distance: Array, now: _Now) -> None:
        self.op.sub(after, now.b, out=distance)
        self.op.gt(distance, 0.0, out=spikes)
        self.op.le(distance, 0.0, out=now.v)
        self._reset_to_value(after, spikes, now)
        self.op.mul(spikes, self.beta, out=now.change)
        self.op.add(now.b, now.change, out=now.b)

    def _reset_to_value(self, after: Array, spikes: Array, now: _Now) -> None:
        """Write the membrane after reset into ``v``, which says who is silent; products with 0 and 1 are exact."""
        self.op.mul(now.v, after, out=now.v)
        if self.resets_to_value:
            self.op.mul(spikes, self.v_reset, out=now.change)
            self.op.add(now.v, now.change, out=now.v)

    def _integrate_if(self, xs: tuple[Array, ...], now: _Now, after: Array) -> None:
        self.op.add(now.v, xs[0], out=after)

    def _integrate_lif(self, xs: tuple[Array, ...], now: _Now, after: Array) -> None:
        self.op.sub(xs[0], now.v, out=now.change)  # x already carries + v_leak
        self.op.mul(now.change, self.decay_mem, out=now.change)
        self.op.add(now.v, now.change, out=after)

    def _integrate_li(self, xs: tuple[Array, ...], now: _Now, after: Array) -> None:
        self._pull(xs[0], now)
        self.op.add(now.v, now.change, out=after)

    def _integrate_cuba(self, xs: tuple[Array, ...], now: _Now, after: Array) -> None:
        for x in xs:
            self.op.add(now.i, x, out=now.i)
        self._pull(now.i, now)
        self.op.add(now.v, now.change, out=after)
        self._decay_current(now)

    def _integrate_lsnn(self, xs: tuple[Array, ...], now: _Now, after: Array) -> None:
        self._pull(now.i, now)
        self.op.add(now.v, now.change, out=after)
        self._decay_current(now)
        for x in xs:
            self.op.add(now.i, x, out=now.i)
        self.op.sub(self.v_threshold, now.b, out=now.change)
        self.op.mul(now.change, self.decay_adapt, out=now.change)
        self.op.add(now.b, now.change, out=now.b)

    def _decay_current(self, now: _Now) -> None:
        self.op.mul(now.i, self.decay_syn, out=now.change)
        self.op.sub(now.i, now.change, out=now.i)

    def _pull(self, i: Array, now: _Now) -> None:
        """Write ``decay_mem * ((v_leak - v) + i)`` into ``change``; with ``v_leak = 0`` it is ``i - v`` bit for bit."""
        if self.leaks_to_value:
            self.op.sub(self.v_leak, now.v, out=now.change)
            self.op.add(now.change, i, out=now.change)
        else:
            self.op.sub(i, now.v, out=now.change)
        self.op.mul(now.change, self.decay_mem, out=now.change)
