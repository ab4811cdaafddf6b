"""The arithmetic of every node, on tensors, in Norse's operation order.

Stateless nodes become functions; neurons advance over a run of steps. One implementation serves the step-by-step
reference (`simulate`) and the layer-by-layer statistics (`calibrate`), so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from slamp.nodes import (
    IF,
    LI,
    LIF,
    READOUT,
    SPIKING,
    WIRING,
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Input,
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
    """Membrane ``v`` and synaptic current ``i`` between two steps, shape (batch, *neurons); ``i`` may be unused."""

    v: torch.Tensor
    i: torch.Tensor


@dataclass(frozen=True)
class NeuronRun:
    """What a layer did over a run of steps; tensors have shape (steps, batch, *neurons).

    Attributes:
        output: Spikes as 0 and 1, or membrane values of a readout, float32.
        v: Membrane as it is compared with the threshold, before reset.
        i: Synaptic current after its decay; empty unless asked for or without synapse.
    """

    output: torch.Tensor
    v: torch.Tensor
    i: torch.Tensor


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


class NeuronDynamics:
    """Advances one layer of neurons. Parameters are fixed; the state is handed in and updated in place."""

    def __init__(self, node: Neuron, device: str | torch.device) -> None:
        self.node = node
        self.device = torch.device(device)
        self.spikes = isinstance(node, SPIKING)
        self.has_current = isinstance(node, (CubaLIF, CubaLI))
        self.shape = (node.v_threshold if isinstance(node, IF) else node.v_leak).shape
        self.on_host = self.device.type == "cpu"
        self.op = ON_HOST if self.on_host else ON_DEVICE
        start = node.v_reset if isinstance(node, IF) else node.v_leak
        self.start = parameter_tensor(start, device)
        # LIF adds v_leak to the input first, the others subtract v from it first; zero changes nothing and is left out.
        self.leaks_to_value = not isinstance(node, IF) and bool((node.v_leak != 0).any())
        self.v_leak = self._parameter(None if isinstance(node, IF) else node.v_leak)
        self.decay_mem = self._parameter(None if isinstance(node, IF) else node.decay_mem)
        self.decay_syn = self._parameter(node.decay_syn if isinstance(node, (CubaLIF, CubaLI)) else None)
        self.v_threshold = self._parameter(None if isinstance(node, READOUT) else node.v_threshold)
        self.v_reset = self._parameter(None if isinstance(node, READOUT) else node.v_reset)
        self.by_value = isinstance(node, READOUT) or node.reset == "value"
        self.resets_to_value = not isinstance(node, READOUT) and bool((node.v_reset != 0).any())
        match node:
            case IF():
                self.integrate = self._integrate_if
            case LIF():
                self.integrate = self._integrate_lif
            case LI():
                self.integrate = self._integrate_li
            case _:
                self.integrate = self._integrate_cuba

    def initial_state(self, batch: int) -> NeuronState:
        """Return the state before the first step: ``v_leak`` (IF: ``v_reset``) and no current."""
        v = self.start.expand(batch, *self.shape).contiguous().clone()
        return NeuronState(v, torch.zeros_like(v) if self.has_current else v.new_zeros(()))

    def advance(
        self,
        drive: torch.Tensor,
        state: NeuronState,
        *,
        more: Sequence[torch.Tensor] = (),
        keep_current: bool = False,
    ) -> NeuronRun:
        """Run over a stretch of steps; ``state`` moves along.

        Args:
            drive: What the first edge brings, shape (steps, batch, *neurons).
            state: Membrane and current before the first step.
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
        change = torch.empty_like(state.v)
        inputs = drive
        if self.leaks_to_value and isinstance(self.node, LIF):
            inputs = torch.add(drive, torch.as_tensor(self.v_leak, device=drive.device))
        x_run, v_runs, s_run, currents, change, v, i, *further = self._arrays(
            inputs, v_run, output, i_run, change, state.v, state.i, *more
        )
        for step, (x, after, spikes, current) in enumerate(zip(x_run, v_runs, s_run, currents, strict=True)):
            for other in further:  # all but the last edge; `integrate` adds that one
                self.op.add(i, x, out=i)
                x = other[step]  # the next edge takes the place of the one added
            self.integrate(x, v, i, change, after)
            if keep_current and self.has_current:
                current[...] = i
            if self.spikes:
                self.op.gt(after, self.v_threshold, out=spikes)
                self._reset(after, spikes, change, v)
            else:
                v[...] = after
        return NeuronRun(output, v_run, i_run)

    def _parameter(self, array: np.ndarray | None) -> Array:
        tensor = torch.zeros((), device=self.device) if array is None else parameter_tensor(array, self.device)
        return tensor.numpy()[()] if self.on_host else tensor

    def _arrays(self, *tensors: torch.Tensor) -> tuple[Array, ...]:
        return tuple(tensor.numpy() for tensor in tensors) if self.on_host else tensors

    def _reset(self, after: Array, spikes: Array, change: Array, v: Array) -> None:
        """Write the membrane after reset into ``v``; products with 0 and 1 are exact, so is every sum here."""
        if not self.by_value:
            self.op.mul(spikes, self.v_threshold, out=change)
            self.op.sub(after, change, out=v)
            return
        self.op.le(after, self.v_threshold, out=v)
        self.op.mul(v, after, out=v)
        if self.resets_to_value:
            self.op.mul(spikes, self.v_reset, out=change)
            self.op.add(v, change, out=v)

    def _integrate_if(self, x: Array, v: Array, i: Array, change: Array, after: Array) -> None:
        self.op.add(v, x, out=after)

    def _integrate_lif(self, x: Array, v: Array, i: Array, change: Array, after: Array) -> None:
        self.op.sub(x, v, out=change)  # x already carries + v_leak
        self.op.mul(change, self.decay_mem, out=change)
        self.op.add(v, change, out=after)

    def _integrate_li(self, x: Array, v: Array, i: Array, change: Array, after: Array) -> None:
        self._pull(x, v, change)
        self.op.add(v, change, out=after)

    def _integrate_cuba(self, x: Array, v: Array, i: Array, change: Array, after: Array) -> None:
        self.op.add(i, x, out=i)
        self._pull(i, v, change)
        self.op.add(v, change, out=after)
        self.op.mul(i, self.decay_syn, out=change)
        self.op.sub(i, change, out=i)

    def _pull(self, i: Array, v: Array, change: Array) -> None:
        """Write ``decay_mem * ((v_leak - v) + i)`` into ``change``; with ``v_leak = 0`` it is ``i - v`` bit for bit."""
        if self.leaks_to_value:
            self.op.sub(self.v_leak, v, out=change)
            self.op.add(change, i, out=change)
        else:
            self.op.sub(i, v, out=change)
        self.op.mul(change, self.decay_mem, out=change)
