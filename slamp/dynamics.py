"""The arithmetic of every node, on tensors, in Norse's operation order.

Stateless nodes become functions; neurons advance over a run of steps. One implementation serves the step-by-step
reference (`simulate`) and the layer-by-layer statistics (`calibrate`), so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from slamp.nodes import (
    IF,
    LI,
    LIF,
    READOUT,
    SPIKING,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Flatten,
    Input,
    Linear,
    Neuron,
    Node,
    Output,
    Scale,
    SumPool2d,
)

TensorFunction = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switch off gradients, autocast and TF32, which would change the arithmetic; restore them afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
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
        case Input() | Output():
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
        case Flatten():
            return lambda x: torch.flatten(x, node.start_dim + 1, node.end_dim + 1)
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


class NeuronDynamics:
    """Advances one layer of neurons. Parameters are fixed; the state is handed in and updated in place."""

    def __init__(self, node: Neuron, device: str | torch.device) -> None:
        self.node = node
        self.device = device
        self.spikes = isinstance(node, SPIKING)
        self.has_current = isinstance(node, (CubaLIF, CubaLI))
        self.shape = (node.v_threshold if isinstance(node, IF) else node.v_leak).shape
        zero = torch.zeros((), device=device)
        self.decay_mem = zero if isinstance(node, IF) else parameter_tensor(node.decay_mem, device)
        self.v_leak = zero if isinstance(node, IF) else parameter_tensor(node.v_leak, device)
        self.decay_syn = parameter_tensor(node.decay_syn, device) if isinstance(node, (CubaLIF, CubaLI)) else zero
        # LIF adds v_leak to the input first, the others subtract v from it first; zero changes nothing and is left out.
        self.leaks_to_value = bool((self.v_leak != 0).any())
        self.v_threshold, self.v_reset, self.by_value = zero, zero, True
        if not isinstance(node, READOUT):
            self.v_threshold = parameter_tensor(node.v_threshold, device)
            self.v_reset = parameter_tensor(node.v_reset, device)
            self.by_value = node.reset == "value"
        self.resets_to_value = bool((self.v_reset != 0).any())
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
        start = self.v_reset if isinstance(self.node, IF) else self.v_leak
        v = start.expand(batch, *self.shape).contiguous().clone()
        return NeuronState(v, torch.zeros_like(v) if self.has_current else v.new_zeros(()))

    def advance(self, drive: torch.Tensor, state: NeuronState, *, keep_current: bool = False) -> NeuronRun:
        """Run over ``drive`` of shape (steps, batch, *neurons), the summed input of each step; ``state`` moves along."""
        v_run = torch.empty_like(drive)
        kept = drive.shape if self.has_current and keep_current else (drive.shape[0], 0)
        i_run = drive.new_empty(kept)
        output = torch.empty_like(drive) if self.spikes else v_run
        inputs, membranes, outputs, currents = drive.unbind(0), v_run.unbind(0), output.unbind(0), i_run.unbind(0)
        change, integrate = torch.empty_like(state.v), self.integrate
        if self.leaks_to_value and isinstance(self.node, LIF):
            inputs = (drive + self.v_leak).unbind(0)
        for x, v, spikes, current in zip(inputs, membranes, outputs, currents, strict=True):
            integrate(x, state, change, v)
            if keep_current and self.has_current:
                current.copy_(state.i)
            if self.spikes:
                torch.gt(v, self.v_threshold, out=spikes)
                self._reset(v, spikes, state)
            else:
                state.v.copy_(v)
        return NeuronRun(output, v_run, i_run)

    def _reset(self, v: torch.Tensor, spikes: torch.Tensor, state: NeuronState) -> None:
        """Write the membrane after reset into ``state``; products with 0 and 1 are exact, so is every sum here."""
        if not self.by_value:
            torch.addcmul(v, spikes, self.v_threshold, value=-1.0, out=state.v)
            return
        torch.le(v, self.v_threshold, out=state.v)
        state.v.mul_(v)
        if self.resets_to_value:
            state.v.addcmul_(spikes, self.v_reset)

    def _integrate_if(self, x: torch.Tensor, state: NeuronState, change: torch.Tensor, v: torch.Tensor) -> None:
        torch.add(state.v, x, out=v)

    def _integrate_lif(self, x: torch.Tensor, state: NeuronState, change: torch.Tensor, v: torch.Tensor) -> None:
        torch.sub(x, state.v, out=change)  # x already carries + v_leak
        change.mul_(self.decay_mem)
        torch.add(state.v, change, out=v)

    def _integrate_li(self, x: torch.Tensor, state: NeuronState, change: torch.Tensor, v: torch.Tensor) -> None:
        self._pulled(x, state, change)
        torch.add(state.v, change, out=v)

    def _integrate_cuba(self, x: torch.Tensor, state: NeuronState, change: torch.Tensor, v: torch.Tensor) -> None:
        state.i.add_(x)
        self._pulled(state.i, state, change)
        torch.add(state.v, change, out=v)
        torch.mul(state.i, self.decay_syn, out=change)
        state.i.sub_(change)

    def _pulled(self, i: torch.Tensor, state: NeuronState, change: torch.Tensor) -> None:
        """Write ``decay_mem * ((v_leak - v) + i)`` into ``change``; for ``v_leak = 0`` that is ``i - v``, bit for bit."""
        if self.leaks_to_value:
            torch.sub(self.v_leak, state.v, out=change)
            change.add_(i)
        else:
            torch.sub(i, state.v, out=change)
        change.mul_(self.decay_mem)
