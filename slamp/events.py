"""The event-driven engine of fixed-point graphs: work in proportion to spikes times the synapses that are left.

Layers run one after another, each over many steps at once. Every weighted node (and every sum pool) is one form: an
event at a place adds the weights of each kernel position it lies under to the channels of one output place. A dense
layer is the case of one place. Convolutions thus keep one copy of their weights, and zeros are not visited where a
layer is pruned. Sums are integers in units of a power of two; the engine gives what `slamp.fixed_dynamics` gives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from slamp.arithmetic import DECAY_ONE, STATE_LIMIT, common_exponent
from slamp.errors import GraphError
from slamp.fixed_dynamics import value_bounds
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LI,
    LIF,
    NEURON,
    READOUT,
    SPIKING,
    WEIGHTED,
    Affine,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Flatten,
    Input,
    Linear,
    Neuron,
    Output,
    Shape,
    SumPool2d,
    Weighted,
)
from slamp.raster import SpikeRaster

Quantity = Literal["value", "v", "i"]
KNOWN = (Input, Output, Flatten, SumPool2d, *WEIGHTED, IF, LIF, CubaLIF, LI, CubaLI)
LARGEST_SUM = 2**31 - 1
WORTH_LOADING = 5000  # the batched engine takes about half a second for them, as loading compiled loops does
SMALL_BATCH = 8  # BLAS does not pay for so few samples, however many inputs spike
SPARSE_INPUT = 0.2
# Above this share of weights that are not zero, adding whole rows is faster than following lists.
ROW_DENSITY = 0.15
CHUNK_CELLS = 1 << 20  # cells of one piece of steps and samples, over all nodes; they stay in the cache


@dataclass(frozen=True, eq=False, slots=True)
class _Synapses:
    """A weighted node or sum pool as `slamp.event_loops` takes it."""

    is_sparse: bool
    arguments: tuple[Any, ...]
    outputs: int

    def sums(self, x: np.ndarray) -> np.ndarray:
        from slamp import event_loops

        out = np.empty((len(x), self.outputs), np.int32)
        (event_loops.add_sparse_rows if self.is_sparse else event_loops.add_dense_rows)(x, *self.arguments, out)
        return out


@dataclass(frozen=True, eq=False, slots=True)
class _Neurons:
    """Parameters (4, neurons) of a layer as `slamp.event_loops.advance` takes them."""

    parameters: np.ndarray
    spikes: bool

    def run(self, drive: np.ndarray, state: np.ndarray, wanted: Collection[Quantity]) -> dict[Quantity, np.ndarray]:
        from slamp import event_loops

        spikes = np.empty(drive.shape, np.uint8)
        none = np.empty((0, drive.shape[1]), np.int32)
        v = np.empty_like(drive) if "v" in wanted or not self.spikes else none
        u = np.empty_like(drive) if "i" in wanted else none
        event_loops.advance(drive, state, self.parameters, float(STATE_LIMIT), spikes, (v, u))
        return {"value": spikes if self.spikes else v, "v": v, "i": u}


_Layer = _Synapses | _Neurons | None
_PREPARED: WeakKeyDictionary[SpikingGraph, tuple[float, Mapping[str, _Layer]]] = WeakKeyDictionary()


def unknown_to_events(graph: SpikingGraph) -> str | None:
    """Return a node the event-driven engine does not know, with its type, or None if it runs the graph."""
    done: set[str] = set()
    for name in graph.order:
        if not isinstance(graph.nodes[name], KNOWN):
            return f"{name}: {type(graph.nodes[name]).__name__}"
        if any(source not in done for source in graph.sources(name)):
            return f"{name}: {type(graph.nodes[name]).__name__} on a cycle"
        done.add(name)
    return None


def worth_events(graph: SpikingGraph, raster: SpikeRaster) -> bool:
    """True where "auto" takes the event-driven engine; measured with `benchmarks/bench_loihi.py`.

    That is where all of this holds: layers of neurons times steps times samples are at least `WORTH_LOADING`; the batch
    is at most `SMALL_BATCH`, or at most `SPARSE_INPUT` of the inputs are not zero; every sum fits 32 bits.
    """
    layers = sum(isinstance(node, NEURON) for node in graph.nodes.values())
    if layers * raster.steps * raster.batch < WORTH_LOADING:
        return False
    if raster.batch > SMALL_BATCH and int(raster.data.count_nonzero()) > SPARSE_INPUT * raster.data.numel():
        return False
    return max(value_bounds(graph, _largest(raster)).values()) <= LARGEST_SUM


def run_events(
    graph: SpikingGraph, raster: SpikeRaster, wanted: Collection[tuple[str, Quantity]]
) -> dict[tuple[str, Quantity], np.ndarray]:
    """Run a fixed-point graph and return what is asked for, each of shape (time, batch, *features).

    Args:
        graph: A graph of which `unknown_to_events` names nothing.
        raster: Spikes, or whole numbers.
        wanted: (node, quantity): "value" leaves the node (uint8 for spikes, else int32), "v" is the membrane after the
            reset and "i" the current of a layer of neurons (int32).

    Raises:
        GraphError: A sum may exceed what the integers hold.
    """
    layers = _prepared(graph, _largest(raster))
    data = raster.numpy().reshape(raster.steps, raster.batch, -1)
    cells = sum(int(np.prod(shape)) for shape in graph.shapes.values())
    samples = min(raster.batch, max(1, CHUNK_CELLS // cells))
    steps = max(1, CHUNK_CELLS // (cells * samples))
    found: dict[tuple[str, Quantity], np.ndarray] = {}
    for first in range(0, raster.batch, samples):
        block = slice(first, min(first + samples, raster.batch))
        states = {
            name: np.zeros((2, block.stop - block.start, layer.parameters.shape[1]))
            for name, layer in layers.items()
            if isinstance(layer, _Neurons)
        }
        for start in range(0, raster.steps, steps):
            piece = slice(start, min(start + steps, raster.steps))
            for key, array in _piece(graph, layers, states, data[piece, block], wanted).items():
                if key not in found:
                    found[key] = np.empty((raster.steps, raster.batch, array.shape[1]), array.dtype)
                found[key][piece, block] = array.reshape(-1, block.stop - block.start, array.shape[1])
    return {key: array.reshape(*array.shape[:2], *graph.shapes[key[0]]) for key, array in found.items()}


def _piece(
    graph: SpikingGraph,
    layers: Mapping[str, _Layer],
    states: Mapping[str, np.ndarray],
    data: np.ndarray,
    wanted: Collection[tuple[str, Quantity]],
) -> dict[tuple[str, Quantity], np.ndarray]:
    """Run some steps of some samples; arrays have shape (steps * batch, features)."""
    rows = np.ascontiguousarray(data).reshape(-1, data.shape[2])
    values: dict[str, np.ndarray] = {}
    found: dict[tuple[str, Quantity], np.ndarray] = {}
    for name in graph.order:
        sources = graph.sources(name)
        if not sources:
            x = rows.view(np.uint8) if rows.dtype == np.bool_ else rows.astype(np.int32)
        else:
            x = values[sources[0]]
        for source in sources[1:]:
            x = np.add(x, values[source], dtype=np.int32)
        layer = layers[name]
        if isinstance(layer, _Neurons):
            asked: list[Quantity] = [quantity for node, quantity in wanted if node == name]
            run = layer.run(x.astype(np.int32, copy=False), states[name], asked)
            values[name] = run["value"]
            found |= {(name, quantity): run[quantity] for quantity in asked}
        else:
            values[name] = x if layer is None else layer.sums(x)
            if (name, "value") in wanted:
                found[name, "value"] = values[name]
    return found


def _largest(raster: SpikeRaster) -> float:
    return 1.0 if raster.is_spikes else float(raster.data.abs().max())


def _prepared(graph: SpikingGraph, largest_input: float) -> Mapping[str, _Layer]:
    """Return the layers of a graph; those of the last run are kept as long as the graph lives."""
    known = _PREPARED.get(graph)
    if known is not None and known[0] == largest_input:
        return known[1]
    bounds = value_bounds(graph, largest_input)
    layers = {name: _layer(graph, name, bound) for name, bound in bounds.items()}
    _PREPARED[graph] = largest_input, layers
    return layers


def _layer(graph: SpikingGraph, name: str, bound: float) -> _Layer:
    node = graph.nodes[name]
    if bound > LARGEST_SUM:
        raise GraphError(
            f"{name}: its inputs may reach {bound:.0f}, beyond the 32-bit integers of the event-driven engine; "
            "use engine='batched', or smaller graded inputs"
        )
    if isinstance(node, NEURON):
        return _neurons(node)
    if isinstance(node, SumPool2d):
        channels = graph.shapes[name][0]
        ones = np.ones((channels, 1, *node.kernel_size), dtype=np.float32)
        node = Conv2d(ones, None, node.stride, (0, 0), (1, 1), channels)
    if isinstance(node, WEIGHTED):
        (source, *_) = graph.sources(name)
        return _synapses(node, graph.shapes[source], graph.shapes[name], bound)
    return None


def _neurons(node: Neuron) -> _Neurons:
    shape = (node.v_threshold if isinstance(node, IF) else node.v_leak).shape
    parameters = np.zeros((4, *shape))
    if isinstance(node, (CubaLIF, CubaLI)):
        parameters[0] = 1.0 - node.decay_syn.astype(np.float64)
    parameters[1] = 1.0 if isinstance(node, IF) else 1.0 - node.decay_mem.astype(np.float64)
    parameters[2] = 0.0 if isinstance(node, IF) else node.v_leak
    parameters[3] = STATE_LIMIT if isinstance(node, READOUT) else node.v_threshold
    assert bool((parameters[:2] * DECAY_ONE % 1 == 0).all())
    return _Neurons(parameters.reshape(4, -1), isinstance(node, SPIKING))


def _synapses(node: Weighted, shape: Shape, out_shape: Shape, bound: float) -> _Synapses:
    """Put a weighted node into the one form: weights by (input channel, kernel y, kernel x), channels last."""
    weight, bias = node.weight.astype(np.float64), None if isinstance(node, Linear) else node.bias
    channels_out, groups = weight.shape[0], 1
    if isinstance(node, (Conv1d, Conv2d)):
        groups = node.groups
    spatial = (*(1,) * (2 - (weight.ndim - 2)), *weight.shape[2:])
    weight = weight.reshape(groups, channels_out // groups, -1, *spatial)  # group, out, in, y, x
    start = np.zeros(channels_out) if bias is None else bias.astype(np.float64)
    nonzero = np.concatenate([weight[weight != 0], start[start != 0]])
    exponent = common_exponent(nonzero) if nonzero.size else 0
    weight, start = weight / 2.0**exponent, start / 2.0**exponent
    largest = float((np.abs(weight).sum((2, 3, 4)) * bound + np.abs(start).reshape(groups, -1)).max())
    short = largest < 2**30 and float(np.abs(weight).max()) < 2**15
    whole, sums = (np.int16, np.int32) if short else (np.int32, np.int64)
    rows = weight.transpose(0, 2, 3, 4, 1).reshape(-1, channels_out // groups).astype(whole)
    group = np.repeat(np.arange(groups, dtype=np.int64), len(rows) // groups)
    is_sparse = bool(np.count_nonzero(rows) < ROW_DENSITY * rows.size)
    lists: tuple[np.ndarray, ...]
    if is_sparse:
        row, column = rows.nonzero()
        first = np.concatenate([[0], np.cumsum(np.count_nonzero(rows, axis=1))]).astype(np.int64)
        narrow = np.uint16 if channels_out <= 2**16 else np.uint32
        targets = (column + group[row] * rows.shape[1]).astype(narrow)
        lists = (first, targets, np.ascontiguousarray(rows[row, column]))
    else:
        lists = (np.ascontiguousarray(rows), group[:: spatial[0] * spatial[1]] * rows.shape[1])
    ways, plane_in, plane_out = _ways(node, shape, out_shape)
    positions = plane_out[0] * plane_out[1]
    geometry = np.array([*plane_in, *spatial, positions, plane_out[1]], dtype=np.int64)
    begun = np.tile(start.astype(sums), positions)
    return _Synapses(is_sparse, (lists, geometry, *ways, begun, exponent), channels_out * positions)


def _ways(
    node: Weighted, shape: Shape, out_shape: Shape
) -> tuple[tuple[tuple[np.ndarray, ...], ...], tuple[int, int], tuple[int, int]]:
    """Return by which ways lines and columns lead to outputs, and the two planes (y, x)."""
    if isinstance(node, (Linear, Affine)):
        return (_axis_ways(1, 1, 1, (1, 0, 1)), _axis_ways(1, 1, 1, (1, 0, 1))), (1, 1), (1, 1)
    ways = []
    for axis, size in enumerate(shape[1:]):
        kernel, dilation = node.weight.shape[2 + axis], node.dilation[axis]
        padding = dilation * (kernel - 1) // 2 if node.padding == "same" else node.padding[axis]
        ways.append(_axis_ways(size, out_shape[1 + axis], kernel, (node.stride[axis], padding, dilation)))
    if isinstance(node, Conv1d):
        return (_axis_ways(1, 1, 1, (1, 0, 1)), *ways), (1, shape[1]), (1, out_shape[1])
    return tuple(ways), (shape[1], shape[2]), (out_shape[1], out_shape[2])


def _axis_ways(size: int, out_size: int, kernel: int, window: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    """Return (first, kernel position, output position); the ways of place y are ``first[y]`` to ``first[y + 1]``."""
    stride, padding, dilation = window
    found: list[list[tuple[int, int]]] = [[] for _ in range(size)]
    for k in range(kernel):
        for out in range(out_size):
            place = out * stride - padding + k * dilation
            if 0 <= place < size:
                found[place].append((k, out))
    first = np.cumsum([0, *map(len, found)]).astype(np.int64)
    pairs = np.array([way for ways in found for way in ways], dtype=np.int64).reshape(-1, 2)
    return first, np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
