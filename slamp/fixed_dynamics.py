"""Loihi's integer arithmetic on tensors: the batched engine of fixed-point graphs.

Sums are BLAS sums in float32 or float64, whichever a bound on the sums proves exact: whole multiples of one power of
two whose absolute values add up to at most 2^24 (2^53) of it come out exact in any order. Neuron states are float64,
which holds every 36-bit product exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from slamp.arithmetic import DECAY_ONE, SHIFT, STATE_LIMIT, common_exponent
from slamp.carried import concatenates
from slamp.dynamics import NeuronRun, NeuronState, TensorFunction, added
from slamp.errors import GraphError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    NEURON,
    READOUT,
    SPIKING,
    WEIGHTED,
    WIRING,
    Affine,
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
    Sum,
    SumPool2d,
    Weighted,
)
from slamp.wiring import wiring_function

FLOAT32_WHOLE, FLOAT64_WHOLE = 2.0**24, 2.0**53
# Lava holds sums as int32 and shifts them by 6; its convolutions wrap at 24 bits. Sums that may go beyond are refused.
MAX_SUM, MAX_CONV_SUM = 2**24, 2**23 - 1


class FixedPointDynamics:
    """Advances one layer of Loihi's neurons; the interface is that of `slamp.dynamics.NeuronDynamics`.

    ``v`` of a run is the membrane after the reset, ``i`` the current ``u`` it was moved by, as Lava's monitors show
    them; both float64.
    """

    def __init__(self, node: Neuron, device: str | torch.device) -> None:
        self.node = node
        self.device = torch.device(device)
        self.spikes = isinstance(node, SPIKING)
        self.has_current = True
        self.shape = (node.v_threshold if isinstance(node, IF) else node.v_leak).shape
        kept = 1.0 - node.decay_syn.astype(np.float64) if isinstance(node, (CubaLIF, CubaLI)) else np.zeros(())
        self.keep_syn = _collapsed(kept * DECAY_ONE) / DECAY_ONE
        self.keep_mem = _collapsed(np.ones(()) if isinstance(node, IF) else 1.0 - node.decay_mem.astype(np.float64))
        self.bias = _collapsed(np.zeros(()) if isinstance(node, IF) else node.v_leak.astype(np.float64))
        never = np.full((), float(STATE_LIMIT))
        self.v_threshold = never if isinstance(node, READOUT) else _collapsed(node.v_threshold.astype(np.float64))

    def initial_state(self, batch: int) -> NeuronState:
        """Return ``u = v = 0``."""
        zeros = torch.zeros(batch, *self.shape, dtype=torch.float64)
        return NeuronState(zeros, zeros.clone())

    def advance(
        self,
        drive: torch.Tensor,
        state: NeuronState,
        *,
        more: Sequence[torch.Tensor] = (),
        keep_current: bool = False,
    ) -> NeuronRun:
        """Run over ``drive`` and ``more``, each of shape (steps, batch, *neurons), added up; ``state`` moves along."""
        inputs = added(drive, more).detach().cpu().numpy()
        v_run = np.empty(inputs.shape)
        i_run = np.empty(inputs.shape if keep_current else (inputs.shape[0], 0))
        output = np.empty(inputs.shape, dtype=np.float32)
        u, v = state.i.numpy(), state.v.numpy()
        for step, x in enumerate(inputs):
            np.trunc(u * self.keep_syn, out=u)
            u += x.astype(np.float64) * (1 << SHIFT)
            beyond = bool((u > STATE_LIMIT).any() or (u <= -STATE_LIMIT).any())
            if beyond:
                u[...] = wrapped_current(u)
            np.trunc(v * self.keep_mem, out=v)
            v += u
            if beyond:
                v[...] = wrapped_to_32_bits(v)
            v += self.bias
            np.clip(v, -(STATE_LIMIT - 1), STATE_LIMIT - 1, out=v)
            if self.spikes:
                fired = v > self.v_threshold
                v[fired] = 0.0
                output[step] = fired
            else:
                output[step] = v
            v_run[step] = v
            if keep_current:
                i_run[step] = u
        return NeuronRun(torch.from_numpy(output), torch.from_numpy(v_run), torch.from_numpy(i_run))


def wrapped_to_32_bits(values: np.ndarray) -> np.ndarray:
    """Return whole numbers as int32 holds them after an overflow, float64."""
    wrapped: np.ndarray = values.astype(np.int64).astype(np.int32).astype(np.float64)
    return wrapped


def wrapped_current(u: np.ndarray) -> np.ndarray:
    """Return currents as Lava keeps them: an int32, brought back by 2^24 once where it leaves 24 bits, float64.

    Sums that exceed 2^18 in several steps leave 24 bits by more than that, and may overflow the int32.
    """
    held = wrapped_to_32_bits(u)
    return np.where(
        held > STATE_LIMIT, held - 2 * STATE_LIMIT, np.where(held <= -STATE_LIMIT, held + 2 * STATE_LIMIT, held)
    )


def fixed_function(node: Node, bound: float, *, where: str) -> TensorFunction:
    """Return the function of a node without memory, exact for inputs of at most ``bound`` in absolute value."""
    match node:
        case Input() | Output() | Sum():
            return lambda x: x
        case MaxPool2d():
            return lambda x: F.max_pool2d(x, node.kernel_size, node.stride, node.padding, node.dilation)
        case _ if isinstance(node, WIRING):
            return wiring_function(node)
        case SumPool2d():
            dtype = _dtype(bound * node.kernel_size[0] * node.kernel_size[1], 1.0, where)
            return lambda x: F.avg_pool2d(x.to(dtype), node.kernel_size, node.stride, divisor_override=1)
        case Linear() | Affine() | Conv1d() | Conv2d():
            return _weighted_function(node, bound, where)
        case _:
            raise GraphError(f"{where}: {type(node).__name__} has no fixed-point meaning; quantize the float network")


def value_bounds(graph: SpikingGraph, largest_input: float) -> Mapping[str, float]:
    """Return, for every node, what the sum of its inputs cannot exceed in absolute value.

    Raises:
        GraphError: A sum may exceed what Lava's integers hold; the message names the node.
    """
    given: dict[str, float] = {}
    pending: set[str] = set()

    def arriving(name: str) -> float:
        sources = graph.sources(name)
        found = [leaving(source) for source in sources]
        return (max(found) if concatenates(graph, sources) else sum(found)) if sources else largest_input

    def leaving(name: str) -> float:
        node = graph.nodes[name]
        if isinstance(node, NEURON):
            return 1.0 if isinstance(node, SPIKING) else float(STATE_LIMIT)
        if name not in given:
            if name in pending:
                raise GraphError(f"{name}: lies on a cycle without neurons, whose sums have no bound; put neurons in")
            pending.add(name)
            given[name] = _largest_value(name, node, arriving(name))
        return given[name]

    for name in graph.order:
        leaving(name)
    bounds = {name: arriving(name) for name in graph.order}
    for name, bound in bounds.items():
        if isinstance(graph.nodes[name], (Sum, *NEURON)) and bound > MAX_SUM:
            raise GraphError(
                f"{name}: the sum of its inputs may reach {bound:.0f}; allowed is {MAX_SUM}, beyond which Lava's "
                "integers overflow; use smaller weight exponents, or smaller graded inputs"
            )
    return bounds


def _largest_value(name: str, node: Node, bound: float) -> float:
    """Return what a node without neurons cannot exceed, given what arrives; raises `GraphError` beyond Lava's range."""
    if isinstance(node, SumPool2d):
        return bound * node.kernel_size[0] * node.kernel_size[1]
    if not isinstance(node, WEIGHTED):
        return bound
    largest = largest_sum(node, bound)
    limit = MAX_CONV_SUM if isinstance(node, (Conv1d, Conv2d)) else MAX_SUM
    if largest > limit:
        raise GraphError(
            f"{name}: its sums may reach {largest:.0f}; allowed is {limit}, beyond which Lava's integers "
            "overflow; use smaller weight exponents, or smaller graded inputs"
        )
    return largest


def _weighted_function(node: Weighted, bound: float, where: str) -> TensorFunction:
    weight = node.weight.astype(np.float64)
    bias = None if isinstance(node, Linear) or node.bias is None else node.bias.astype(np.float64)
    unit = unit_of(node)
    dtype = _dtype(largest_sum(node, bound), unit, where)
    w = torch.tensor(weight, dtype=dtype)
    b = None if bias is None else torch.tensor(bias, dtype=dtype)

    def function(x: torch.Tensor) -> torch.Tensor:
        y = _apply(node, x.to(dtype), w, b)
        return torch.floor(y) if unit < 1.0 else y

    return function


def _apply(node: Weighted, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # NNPACK computes convolutions by Winograd transforms, whose fractions are not exact.
    match node:
        case Conv1d():
            with torch.backends.nnpack.flags(enabled=False):
                return F.conv1d(x, weight, bias, node.stride, node.padding, node.dilation, node.groups)
        case Conv2d():
            with torch.backends.nnpack.flags(enabled=False):
                return F.conv2d(x, weight, bias, node.stride, node.padding, node.dilation, node.groups)
        case _:
            return F.linear(x, weight, bias)


def unit_of(node: Weighted) -> float:
    """Return the power of two, 1 at most, of which weights and bias are whole multiples."""
    bias = None if isinstance(node, Linear) else node.bias
    values = np.concatenate([node.weight.ravel(), np.zeros(1) if bias is None else bias]).astype(np.float64)
    nonzero = values[values != 0]
    return float(2.0 ** min(common_exponent(nonzero), 0)) if nonzero.size else 1.0


def largest_sum(node: Weighted, bound: float) -> float:
    """Return what a sum over weights cannot exceed in absolute value, for inputs of at most ``bound``."""
    sums = np.abs(node.weight.astype(np.float64)).reshape(node.weight.shape[0], -1).sum(1) * bound
    if not isinstance(node, Linear) and node.bias is not None:
        sums = sums + np.abs(node.bias.astype(np.float64))
    return float(sums.max())


def _dtype(largest: float, unit: float, where: str) -> torch.dtype:
    if largest / unit <= FLOAT32_WHOLE:
        return torch.float32
    if largest / unit <= FLOAT64_WHOLE:
        return torch.float64
    raise GraphError(f"{where}: sums may reach {largest:g} in units of {unit:g}, beyond the 53 bits of exact sums")


def _collapsed(values: np.ndarray) -> np.ndarray:
    """Return a parameter as one number where it is the same everywhere."""
    return values.reshape(-1)[0] if values.size and bool((values == values.flat[0]).all()) else values
