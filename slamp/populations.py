"""Populations: the neurons a chip has to place, the layers that drive them, and which sources reach which of them.

A population is one layer of neurons with every path of stateless nodes that leads into it. Its map has the shape
(channels, *positions); a contiguous part of it is a range of channels times a range of positions in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from slamp.activity import Activity
from slamp.dynamics import TensorFunction
from slamp.errors import MappingError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    NEURON,
    WEIGHTED,
    WIRING,
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Delay,
    Flatten,
    Input,
    MaxPool2d,
    Reshape,
    Scale,
    Shape,
    Sum,
    SumPool2d,
    Weighted,
)
from slamp.wiring import flattens, keeps_channels, wiring_function

# Values of one batch of maps stay below this many.
BATCH_VALUES = 4 << 20


@dataclass(frozen=True)
class Path:
    """Stateless nodes from a source (neurons or the input) to a population, both left out, in computing order."""

    source: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Population:
    """Neurons to place together.

    Attributes:
        name: Neuron node; the output node where weights end without neurons.
        layer: What drives it, as tables name it: its last weighted node, or itself if there is none.
        shape: (channels, *positions) of its map.
        paths: Every way into it.
    """

    name: str
    layer: str
    shape: Shape
    paths: tuple[Path, ...]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[0]

    @property
    def positions(self) -> int:
        """Number of positions of a channel."""
        return math.prod(self.shape[1:])


def populations(graph: SpikingGraph, *, host: Collection[str] = ()) -> list[Population]:
    """Return the populations of a graph in computing order, without those in ``host``."""
    found = []
    for name in graph.order:
        ends = name == graph.output and not isinstance(graph.nodes[graph.sources(name)[0]], (*NEURON, Input))
        if name in host or not (isinstance(graph.nodes[name], NEURON) or ends):
            continue
        paths = tuple(path for source in graph.sources(name) for path in _paths(graph, source, ()))
        weighted = [node for path in paths for node in path.nodes if isinstance(graph.nodes[node], WEIGHTED)]
        shape = graph.shapes[name]
        if paths and paths[0].nodes:  # a Flatten before the neurons hides the channels
            inner = [node for node in paths[0].nodes if not flattens(graph.nodes[node])]
            shape = graph.shapes[inner[-1]] if inner else shape
        found.append(Population(name, weighted[-1] if weighted else name, shape, paths))
    return found


def hosted(graph: SpikingGraph, activity: Activity) -> frozenset[str]:
    """Return what stays on the host: layers with analog input, and the neurons that only those drive."""
    analog = {name for name, layer in activity.layers.items() if not layer.from_spikes}
    neurons = {
        population.name
        for population in populations(graph)
        if isinstance(graph.nodes[population.name], NEURON)
        and (weighted := _weights_of(graph, population))
        and set(weighted) <= analog
    }
    return frozenset(analog | neurons)


def weights_of(graph: SpikingGraph, population: Population) -> dict[str, Weighted]:
    """Weighted nodes on the paths into a population, each once."""
    return {name: graph.weighted[name] for name in _weights_of(graph, population)}


def _weights_of(graph: SpikingGraph, population: Population) -> list[str]:
    found = [name for path in population.paths for name in path.nodes if isinstance(graph.nodes[name], WEIGHTED)]
    return list(dict.fromkeys(found))


def _paths(graph: SpikingGraph, name: str, behind: tuple[str, ...]) -> list[Path]:
    if isinstance(graph.nodes[name], (*NEURON, Input)):
        return [Path(name, behind)]
    if name in behind:
        raise MappingError(f"{name}: lies on a cycle without neurons, which no core computes; put neurons there")
    return [path for source in graph.sources(name) for path in _paths(graph, source, (name, *behind))]


def mixes_channels(graph: SpikingGraph, path: Path) -> bool:
    """True if, between the last weights of a path and the neurons, channels change places, join or are left out."""
    weighted = [at for at, name in enumerate(path.nodes) if isinstance(graph.nodes[name], WEIGHTED)]
    behind = path.nodes[weighted[-1] + 1 :] if weighted else ()
    return any(not flattens(graph.nodes[name]) and not _in_order(graph, name) for name in behind)


def _in_order(graph: SpikingGraph, name: str) -> bool:
    node, shape = graph.nodes[name], graph.shapes[graph.sources(name)[0]]
    return not isinstance(node, Reshape) and keeps_channels(node, shape) and graph.shapes[name][0] == shape[0]


def outputs_into(graph: SpikingGraph, population: Population, path: Path, channels: range) -> np.ndarray:
    """Return which outputs of the last weights of a path reach some channels of a population, bool (outputs,)."""
    y = torch.zeros(1, *population.shape)
    y[:, channels.start : channels.stop] = 1
    for name in reversed(path.nodes):
        if isinstance(graph.nodes[name], WEIGHTED):
            return np.asarray(y.reshape(graph.shapes[name][0], -1).numpy().any(1))
        y = _back(graph, name, y, graph.shapes[graph.sources(name)[0]], None)
    raise AssertionError("the path has no weights")


def reached(
    graph: SpikingGraph, population: Population, path: Path, channels: range, positions: Sequence[range]
) -> np.ndarray:
    """Return which sources have a non-zero synapse into parts of a population.

    Args:
        graph: The network.
        population: The target.
        path: One of its paths.
        channels: Channels of all parts.
        positions: Positions of each part, row-major.

    Returns:
        bool, shape (parts, *shape of the source).
    """
    size = max(math.prod(graph.shapes[name]) for name in (path.source, *path.nodes))
    step = max(1, BATCH_VALUES // size)
    pieces = [
        _reached(graph, population, path, channels, positions[start : start + step])
        for start in range(0, len(positions), step)
    ]
    return np.concatenate(pieces)


def _reached(
    graph: SpikingGraph, population: Population, path: Path, channels: range, positions: Sequence[range]
) -> np.ndarray:
    chosen = torch.zeros(len(positions), population.positions)
    for part, span in enumerate(positions):
        chosen[part, span.start : span.stop] = 1
    weighted = [name for name in path.nodes if isinstance(graph.nodes[name], WEIGHTED)]
    last = weighted[-1] if weighted and not mixes_channels(graph, path) else None
    if last is None:
        inside = torch.as_tensor(_between(population.channels, channels), dtype=torch.float32)
        y = inside[None, :, None] * chosen[:, None]
    else:
        y = chosen[:, None].expand(-1, _groups_of(graph, last, channels), -1)
    y = y.reshape(len(positions), -1, *population.shape[1:])
    followed = last is None
    for name in reversed(path.nodes):
        source = graph.shapes[graph.sources(name)[0]]
        if flattens(graph.nodes[name]) and last is not None and not followed:
            continue  # between weights and neurons, channels and positions are kept apart
        followed |= name == last
        # Behind the last weights all channels that were chosen are one (or one per group).
        shape = source if followed else (y.shape[1], *source[1:])
        y = _back(graph, name, y, shape, channels if name == last else None)
    result: np.ndarray = y.numpy() > 0
    return result


def _groups_of(graph: SpikingGraph, name: str, channels: range) -> int:
    node = graph.nodes[name]
    if not isinstance(node, (Conv1d, Conv2d)):
        return 1
    outputs = int(node.weight.shape[0]) // node.groups
    return (channels.stop - 1) // outputs - channels.start // outputs + 1


def _back(graph: SpikingGraph, name: str, y: torch.Tensor, shape: Shape, channels: range | None) -> torch.Tensor:
    """Carry a map of non-negative numbers back through a node: positive wherever something positive is reached.

    With ``channels``, ``y`` holds one channel per group, which stands for all chosen outputs of it.
    """
    node = graph.nodes[name]
    match node:
        case Flatten():
            return y.reshape(-1, *shape)
        case Scale() | Delay() | Sum():
            return y
        case AdaptiveAvgPool2d():
            return _back_linear(lambda x: F.adaptive_avg_pool2d(x, node.output_size), y, shape)
        case MaxPool2d():
            return _back_linear(lambda x: _windows(node, x), y, shape)
        case _ if isinstance(node, WIRING):
            return _back_linear(wiring_function(node), y, shape)
        case SumPool2d() | AvgPool2d():
            borders = node.padding if isinstance(node, AvgPool2d) else (0, 0)
            if node.kernel_size == node.stride:
                back = y.repeat_interleave(node.stride[0], 2).repeat_interleave(node.stride[1], 3)
            else:
                kernel = torch.ones(1, 1, *node.kernel_size)
                back = F.conv_transpose2d(y.flatten(0, 1)[:, None], kernel, None, node.stride)
                back = back.unflatten(0, y.shape[:2])[:, :, 0]
            return _cropped(back, borders, shape)
        case Conv1d() | Conv2d():
            return _back_convolution(node, y, shape, channels)
    assert isinstance(node, WEIGHTED)
    weight = node.weight if channels is None else node.weight[channels.start : channels.stop]
    live = (weight != 0).any(0, keepdims=True) if channels is not None else weight != 0
    return y.reshape(len(y), -1) @ torch.as_tensor(live, dtype=torch.float32)


def _back_linear(function: TensorFunction, y: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Carry a map back through a function without negative weights: its gradient is its transpose."""
    x = torch.zeros(len(y), *shape, requires_grad=True)
    with torch.enable_grad():
        (back,) = torch.autograd.grad(function(x), x, y)
    return back


def _windows(node: MaxPool2d, x: torch.Tensor) -> torch.Tensor:
    """Sum over the windows of a max pool: every value in them can decide."""
    kernel = torch.ones(x.shape[1], 1, *node.kernel_size)
    return F.conv2d(x, kernel, None, node.stride, node.padding, node.dilation, groups=x.shape[1])


def _back_convolution(node: Conv1d | Conv2d, y: torch.Tensor, shape: Shape, channels: range | None) -> torch.Tensor:
    inputs, outputs = node.weight.shape[1], node.weight.shape[0] // node.groups
    first, last, live = 0, node.groups, node.weight
    if channels is not None:
        first, last = channels.start // outputs, (channels.stop - 1) // outputs + 1
        spans = [
            range(max(channels.start, group * outputs), min(channels.stop, (group + 1) * outputs))
            for group in range(first, last)
        ]
        live = np.stack([(node.weight[span.start : span.stop] != 0).any(0) for span in spans])
    transpose = F.conv_transpose1d if isinstance(node, Conv1d) else F.conv_transpose2d
    if len(live) == 1 and channels is not None:
        # Inputs whose kernels are live at the same places are reached from the same places.
        patterns, which = np.unique(live[0].reshape(inputs, -1), axis=0, return_inverse=True)
        kernel = torch.as_tensor(patterns.reshape(1, -1, *live.shape[2:]), dtype=torch.float32)
        back = transpose(y, kernel, None, node.stride, dilation=node.dilation)[:, which.reshape(-1)]
    else:
        kernel = torch.as_tensor(live != 0, dtype=torch.float32)
        back = transpose(y, kernel, None, node.stride, groups=last - first, dilation=node.dilation)
    total = [d * (k - 1) for d, k in zip(node.dilation, live.shape[2:], strict=True)]
    padding = tuple(pad // 2 for pad in total) if node.padding == "same" else node.padding
    back = _cropped(back, padding, (back.shape[1], *shape[1:]))
    if (last - first) * inputs == shape[0]:
        return back
    whole = torch.zeros(len(y), *shape)
    whole[:, first * inputs : last * inputs] = back
    return whole


def _cropped(full: torch.Tensor, padding: Sequence[int], shape: Shape) -> torch.Tensor:
    """Drop the padding from a map, and add zeros where the last inputs were not read at all."""
    for axis, (pad, size) in enumerate(zip(padding, shape[1:], strict=True), start=2):
        full = full.narrow(axis, pad, min(size, full.shape[axis] - pad))
    missing = [size - found for size, found in zip(shape[1:], full.shape[2:], strict=True)]
    return F.pad(full, [entry for lack in reversed(missing) for entry in (0, lack)])


def _between(count: int, span: range) -> np.ndarray:
    inside = np.zeros(count, dtype=bool)
    inside[span.start : span.stop] = True
    return inside
