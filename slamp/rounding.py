"""How far float32 rounding can move a membrane: a rigorous running error bound.

A layer's membrane is computed in float64 from the spikes that really reached it, and beside it a bound ``error`` such
that every float32 evaluation ends within ``error`` of that value. Allowed for are

* weighted sums in any order, with or without fused multiply-add: ``gamma_n * sum |w| |x|`` with
  ``gamma_n = n u / (1 - n u)``, ``u = 2^-24`` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1;
  terms that are zero add no rounding, so only the others are counted),
* every rounding of a neuron's update, in any association of ``v``, ``decay * v``, ``decay * v_leak``, ``decay * i``,
* decays and gains off by two units in the last place, for targets that store a time constant and divide by it,
* products below the smallest normal number flushed to zero.

Transforms that are not sums of products (Winograd, FFT convolution) are not covered. Errors shrink with the leak, grow
with what flows in, and end where a reset by value erases the membrane. Resets follow the recorded spikes: up to the
first cell that differs, both runs share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from slamp.causality import computed_before
from slamp.delays import holds_back
from slamp.errors import GraphError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LIF,
    NEURON,
    SECOND_TIER,
    SPIKING,
    WIRING,
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
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
from slamp.raster import SpikeRaster
from slamp.shapes import adaptive_windows
from slamp.simulate import check_raster
from slamp.wiring import wiring_function

UNIT = 2.0**-24
TINY = 2.0**-126
CONSTANT = 4  # roundings that a constant off by two units in the last place is worth
UPDATE = 6  # roundings that touch any one term of a neuron's update, however it is associated
GAIN = 2 * CONSTANT + UPDATE  # as UPDATE, for an input multiplied by two constants whose product is one


@dataclass(frozen=True, eq=False)
class Bounded:
    """Values and how far rounding can move them.

    Attributes:
        value: In exact arithmetic (float64), shape (time, batch, *features).
        error: Any float32 evaluation lies within ``error`` of ``value``, float64, same shape.
    """

    value: torch.Tensor
    error: torch.Tensor

    @property
    def spread(self) -> torch.Tensor:
        """Bound on the difference between any two float32 evaluations."""
        return 2 * self.error


def membrane_bound(graph: SpikingGraph, layer: str, inputs: SpikeRaster, spikes: Mapping[str, torch.Tensor]) -> Bounded:
    """Return the membrane of a neuron layer, as compared with the threshold, and its rounding bound.

    Args:
        graph: The network.
        layer: Name of the neuron layer.
        inputs: What entered the network, one sample or several.
        spikes: Spikes by layer, bool (time, batch, *neurons), of every spiking layer upstream and of ``layer`` itself.

    Raises:
        GraphError: ``layer`` is not a layer of neurons, or of a kind without a known bound, or the spikes of a layer it
            needs are not given.
        RasterError: ``inputs`` does not fit the graph.
    """
    if not isinstance(graph.nodes.get(layer), NEURON):
        allowed = [name for name in graph.order if isinstance(graph.nodes[name], NEURON)]
        raise GraphError(f"{layer}: not a layer of neurons; allowed are {allowed}")
    if isinstance(graph.nodes[layer], SECOND_TIER):
        kind = type(graph.nodes[layer]).__name__
        raise GraphError(f"{layer}: no rounding bound is known for {kind}; use LIFCell")
    check_raster(graph, inputs)
    return _evaluated(graph, layer, inputs, spikes)


def output_bound(graph: SpikingGraph, inputs: SpikeRaster, spikes: Mapping[str, torch.Tensor]) -> Bounded:
    """Return the values of an analog output and their rounding bound; arguments and errors as `membrane_bound`."""
    check_raster(graph, inputs)
    return _evaluated(graph, graph.output, inputs, spikes)


def _evaluated(graph: SpikingGraph, last: str, inputs: SpikeRaster, spikes: Mapping[str, torch.Tensor]) -> Bounded:
    """What leaves a node, of neurons the membrane, from the input and the spikes of the spiking layers before it.

    One node after another over all steps, or, where values that are not spikes go round in a cycle, step by step.
    """
    order, cyclic = computed_before(graph, last)
    shapes = {name: (inputs.batch, *graph.shapes[name]) for name in order}
    states = {name: _State(node, shapes[name]) for name in order if isinstance(node := graph.nodes[name], NEURON)}
    lines = {
        name: _Line(node, inputs.steps, shapes[name]) for name in order if isinstance(node := graph.nodes[name], Delay)
    }
    fired = {name: _fired(graph, name, inputs, spikes) for name in states if isinstance(graph.nodes[name], SPIKING)}
    early = [name for name in lines if cyclic and holds_back(graph.nodes[name])]
    found: list[Bounded] = []
    length = 1 if cyclic else inputs.steps
    for start in range(0, inputs.steps, length):
        span = slice(start, start + length)
        values = {name: lines[name].late(span) for name in early}
        for name in [name for name in order if name not in early]:
            parts = [_leaving(graph, source, inputs, spikes, values, span) for source in graph.sources(name)]
            if name in states:
                values[name] = _membranes(states[name], parts, fired[name][span] if name in fired else None)
            elif name in lines:
                lines[name].take(span, _summed(parts))
                values[name] = lines[name].late(span)
            else:
                values[name] = stateless_bound(graph.nodes[name], _summed(parts))
        for name in early:
            parts = [_leaving(graph, source, inputs, spikes, values, span) for source in graph.sources(name)]
            lines[name].take(span, _summed(parts))
        found.append(values[last])
    return Bounded(torch.cat([part.value for part in found]), torch.cat([part.error for part in found]))


def _leaving(
    graph: SpikingGraph,
    name: str,
    inputs: SpikeRaster,
    spikes: Mapping[str, torch.Tensor],
    values: Mapping[str, Bounded],
    span: slice,
) -> Bounded:
    """What leaves a node: known exactly for the input and for spiking layers, computed before for the rest."""
    node = graph.nodes[name]
    if isinstance(node, Input):
        return _exact(inputs.data[span])
    return _exact(_spikes_of(name, spikes)[span]) if isinstance(node, SPIKING) else values[name]


def _fired(graph: SpikingGraph, name: str, inputs: SpikeRaster, spikes: Mapping[str, torch.Tensor]) -> torch.Tensor:
    fired = _spikes_of(name, spikes).detach().cpu()
    allowed = (inputs.steps, inputs.batch, *graph.shapes[name])
    if fired.shape != allowed:
        raise GraphError(f"{name}: spikes of shape {tuple(fired.shape)}; allowed is {allowed}")
    return fired


def _spikes_of(name: str, spikes: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name not in spikes:
        raise GraphError(f"{name}: its spikes are not recorded, so what follows cannot be bounded; record them")
    return spikes[name]


def _exact(values: torch.Tensor) -> Bounded:
    value = values.detach().cpu().to(torch.float64)
    return Bounded(value, torch.zeros_like(value))


def _summed(parts: Sequence[Bounded]) -> Bounded:
    """Sum over the edges into a node."""
    if len(parts) == 1:
        return parts[0]
    value = torch.stack([part.value for part in parts]).sum(0)
    error = torch.stack([part.error for part in parts]).sum(0)
    return Bounded(value, error + _gamma(len(parts)) * _size(parts))


def _size(parts: Sequence[Bounded]) -> torch.Tensor:
    return torch.stack([part.value.abs() + part.error for part in parts]).sum(0)


def _gamma(roundings: float | torch.Tensor) -> float | torch.Tensor:
    # one more rounding pays for the float64 arithmetic of this file
    count = roundings + 1
    return count * UNIT / (1 - count * UNIT)


def stateless_bound(node: Node, x: Bounded) -> Bounded:
    """Propagate values and errors through a node without memory, shape (time, batch, *features)."""
    steps, batch = x.value.shape[:2]
    flat = Bounded(x.value.flatten(0, 1), x.error.flatten(0, 1))
    result = _stateless(node, flat)
    shape = (steps, batch, *result.value.shape[1:])
    return Bounded(result.value.reshape(shape), result.error.reshape(shape))


def _stateless(node: Node, x: Bounded) -> Bounded:
    match node:
        case Output() | Sum():
            return x
        case _ if isinstance(node, WIRING):
            move = wiring_function(node)
            fresh = move(torch.zeros_like(x.value))  # what a Pad fills in is exact
            return Bounded(move(x.value), move(x.error) - fresh)
        case MaxPool2d():
            return Bounded(
                *(
                    F.max_pool2d(part, node.kernel_size, node.stride, node.padding, node.dilation)
                    for part in (x.value, x.error)
                )
            )
        case AdaptiveAvgPool2d():
            return _adaptive(node, x)
        case Linear() | Affine() | Conv1d() | Conv2d():
            return _weighted_sum(node, x)
        case SumPool2d() | AvgPool2d():
            return _pooled(node, x)
        case Scale():
            channels = (1, -1, *(1 for _ in x.value.shape[2:]))
            scale, shift = _double(node.scale).reshape(channels), _double(node.shift).reshape(channels)
            size = scale.abs() * (x.value.abs() + x.error) + shift.abs()
            return Bounded(scale * x.value + shift, scale.abs() * x.error + _gamma(2) * size + 2 * TINY)
        case _:
            raise GraphError(f"{type(node).__name__}: has memory; use membrane_bound")


def _weighted_sum(node: Linear | Affine | Conv1d | Conv2d, x: Bounded) -> Bounded:
    weight = _double(node.weight)
    bias = None if isinstance(node, Linear) or node.bias is None else _double(node.bias)
    magnitude = x.value.abs() + x.error
    value = _apply(node, x.value, weight, bias)
    size = _apply(node, magnitude, weight.abs(), None if bias is None else bias.abs())
    terms = _apply(node, (magnitude != 0).to(torch.float64), (weight != 0).to(torch.float64), None)
    # n products and n - 1 additions, one more for a bias: each term meets at most n + 1 roundings
    error = _apply(node, x.error, weight.abs(), None) + _gamma(terms + 1) * size + (terms + 1) * TINY
    return Bounded(value, error)


def _apply(
    node: Linear | Affine | Conv1d | Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    if isinstance(node, (Linear, Affine)):
        return F.linear(x, weight, bias)
    convolve = F.conv1d if isinstance(node, Conv1d) else F.conv2d
    return convolve(x, weight, bias, node.stride, node.padding, node.dilation, node.groups)


def _pooled(node: SumPool2d | AvgPool2d, x: Bounded) -> Bounded:
    padding = (0, 0) if isinstance(node, SumPool2d) else node.padding
    cells = node.kernel_size[0] * node.kernel_size[1]

    def total(part: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(part, node.kernel_size, node.stride, padding, divisor_override=1)

    factor = 1.0 if isinstance(node, SumPool2d) else 1.0 / cells
    size = total(x.value.abs() + x.error) * factor
    # sum of all cells, then at most a division and a multiplication by the number of cells
    error = total(x.error) * factor + _gamma(cells + 2) * size + 2 * TINY
    return Bounded(total(x.value) * factor, error)


def _adaptive(node: AdaptiveAvgPool2d, x: Bounded) -> Bounded:
    sides = zip(x.value.shape[-2:], node.output_size, strict=True)
    rows, columns = (max(stop - start for start, stop in adaptive_windows(*side)) for side in sides)
    size = F.adaptive_avg_pool2d(x.value.abs() + x.error, node.output_size)
    error = F.adaptive_avg_pool2d(x.error, node.output_size) + _gamma(rows * columns + 2) * size + 2 * TINY
    return Bounded(F.adaptive_avg_pool2d(x.value, node.output_size), error)


def _membranes(state: _State, parts: Sequence[Bounded], fired: torch.Tensor | None) -> Bounded:
    total = _summed(parts)
    size = torch.maximum(_size(parts), total.value.abs() + total.error)
    value, error = torch.empty_like(total.value), torch.empty_like(total.error)
    for t in range(total.value.shape[0]):
        state.integrate(Bounded(total.value[t], total.error[t]), size[t], len(parts))
        value[t], error[t] = state.v, state.v_error
        if fired is not None:
            state.reset(fired[t])
    return Bounded(value, error)


class _Line:
    """What a `Delay` was given so far; zero before."""

    def __init__(self, node: Delay, steps: int, shape: tuple[int, ...]) -> None:
        self.late_by = torch.from_numpy(node.steps.astype(np.int64))
        self.value, self.error = (torch.zeros(steps, *shape, dtype=torch.float64) for _ in range(2))

    def take(self, span: slice, x: Bounded) -> None:
        """Take what arrives in a span of steps."""
        self.value[span], self.error[span] = x.value, x.error

    def late(self, span: slice) -> Bounded:
        """Return what leaves in a span of steps."""
        return Bounded(*(self._late(part, span) for part in (self.value, self.error)))

    def _late(self, part: torch.Tensor, span: slice) -> torch.Tensor:
        late = torch.zeros_like(part[span])
        for k in (int(k) for k in self.late_by.unique()):
            first = max(span.start - k, 0)
            came = part[first : max(span.stop - k, 0)]
            there = self.late_by == k
            if len(came):
                late[late.shape[0] - len(came) :, :, there] = came[:, :, there]
        return late


class _State:
    """Exact membrane and current of one layer, and the error bound of each."""

    def __init__(self, node: Neuron, shape: tuple[int, ...]) -> None:
        self.node = node
        start = node.v_reset if isinstance(node, IF) else node.v_leak
        self.v = _double(start).expand(shape).clone()
        self.v_error = torch.zeros(shape, dtype=torch.float64)
        self.i, self.i_error = torch.zeros_like(self.v), torch.zeros_like(self.v)
        zero = torch.zeros((), dtype=torch.float64)
        self.decay_mem = zero if isinstance(node, IF) else _double(node.decay_mem)
        self.v_leak = zero if isinstance(node, IF) else _double(node.v_leak)
        self.decay_syn = _double(node.decay_syn) if isinstance(node, (CubaLIF, CubaLI)) else zero

    def integrate(self, x: Bounded, size: torch.Tensor, edges: int) -> None:
        """Advance to the membrane that is compared with the threshold.

        Args:
            x: Sum over the edges.
            size: The largest value that the sum, or one of its parts, may pass through.
            edges: Their number; targets add them to one another, or one by one to the current.
        """
        if isinstance(self.node, (CubaLIF, CubaLI)):
            x, size = self._current(x, size, edges)
        if isinstance(self.node, IF):
            size = self.v.abs() + self.v_error + size
            self.v = self.v + x.value
            self.v_error = self.v_error + x.error + _gamma(GAIN) * size + 2 * TINY
            return
        keep, decay, leak = 1 - self.decay_mem, self.decay_mem, self.v_leak
        before = self.v.abs() + self.v_error
        self.v = keep * self.v + decay * (leak + x.value)
        local = _gamma(UPDATE) * before + _gamma(GAIN) * decay * (before + leak.abs() + size)
        self.v_error = keep * self.v_error + decay * x.error + local + 4 * TINY

    def _current(self, x: Bounded, size: torch.Tensor, edges: int) -> tuple[Bounded, torch.Tensor]:
        """Add the input to the decayed current; ``i`` is kept as the membrane sees it, before its own decay."""
        keep = 1 - self.decay_syn
        before = self.i.abs() + self.i_error
        self.i = keep * self.i + x.value
        local = _gamma(UPDATE + edges - 1) * before + _gamma(UPDATE + CONSTANT) * self.decay_syn * before
        self.i_error = keep * self.i_error + x.error + local + _gamma(GAIN) * size + 4 * TINY
        return Bounded(self.i, self.i_error), self.i.abs() + self.i_error

    def reset(self, fired: torch.Tensor) -> None:
        """Reset the neurons that fired: by value the error vanishes, by subtraction it stays and one rounding joins."""
        assert isinstance(self.node, (IF, LIF, CubaLIF))
        if self.node.reset == "value":
            self.v = torch.where(fired, _double(self.node.v_reset), self.v)
            self.v_error = torch.where(fired, torch.zeros_like(self.v), self.v_error)
            return
        threshold = _double(self.node.v_threshold)
        size = self.v.abs() + self.v_error + threshold.abs()
        self.v = torch.where(fired, self.v - threshold, self.v)
        self.v_error = torch.where(fired, self.v_error + _gamma(1) * size, self.v_error)


def _double(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))
