"""From a fixed-point graph to the layers of lava-dl's ``.net`` files; pure functions, no files.

A ``.net`` file is a chain of layers with weights and neurons (`lava.lib.dl.netx.hdf5` of lava-dl 0.6.0). Sum pools are
lowered exactly into the weights behind them: one convolution where that is exact, else a matrix, as are convolutions
that netx has no layer for (one axis, padding "same") or has without delays. A bias of an input current becomes weights
of lines that are always on (`exporters.net_lines`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from exporters.net_format import NetLayer, check_loaded, neuron_fields
from exporters.net_lines import with_lines
from exporters.net_wiring import NetStretch, net_stretches, total_delay
from slamp.arithmetic import BIAS_MANTISSA, MAX_DELAY, SHIFT, FixedPoint
from slamp.errors import UnsupportedNodeError
from slamp.fixed_dynamics import fixed_function
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    NEURON,
    READOUT,
    Affine,
    Conv1d,
    Conv2d,
    Delay,
    Linear,
    Neuron,
    Node,
    Shape,
    SumPool2d,
    frozen_array,
)

DENSE_LIMIT = 1 << 26  # entries of a matrix made of pools and convolutions


def net_layers(graph: SpikingGraph) -> list[NetLayer]:
    """Return the layers of a graph.

    Raises:
        UnsupportedNodeError: The graph is in float, or no chain that ``.net`` files can hold; the message says where.
    """
    if not isinstance(graph.arithmetic, FixedPoint):
        raise UnsupportedNodeError("graph: is in float32; a .net file holds integers, so quantize it first")
    layers: list[NetLayer] = []
    for stretch in net_stretches(graph):
        flat = bool(layers) and layers[-1].kind == "dense"
        layers.append(_layer(graph, stretch, flat=flat))
    layers = with_lines(graph.shapes[graph.input], layers)
    for layer in layers:
        check_loaded(layer)
    _check_quiet_start(layers)
    return layers


def _layer(graph: SpikingGraph, stretch: NetStretch, *, flat: bool) -> NetLayer:
    """Return the layer between two layers of neurons; ``flat`` says that the file has the first of them flattened."""
    neuron, weighted, source = stretch.neuron, stretch.weighted, stretch.source
    node, target = graph.weighted[weighted], graph.nodes[neuron]
    assert isinstance(target, NEURON)
    for name in (weighted, *(name for way in stretch.beside for name in way)):
        if name in graph.weighted:
            _check_whole(name, graph.weighted[name].weight)
    if isinstance(target, READOUT) and graph.targets(neuron) != (graph.output,):
        raise UnsupportedNodeError(
            f"{neuron}: is a readout, and {graph.targets(neuron)[0]} follows; allowed is the end"
        )
    shape, start = graph.shapes[neuron], graph.shapes[source]
    wiring = [name for name in stretch.wiring if not isinstance(graph.nodes[name], Delay)]
    pools = [name for name in wiring if isinstance(graph.nodes[name], SumPool2d)]
    late = bool(total_delay(graph, (*stretch.wiring, *stretch.behind)).any()) or bool(stretch.beside)
    current = None if isinstance(node, Linear) or node.bias is None or not node.bias.any() else node.bias
    if current is not None and bool(total_delay(graph, stretch.behind).any()):
        raise UnsupportedNodeError(
            f"{weighted}: has a bias that {stretch.behind[0]} delays; put the delay before the weights"
        )
    plain = NetLayer(neuron, weighted, "dense", node.weight, shape, neuron_fields(neuron, target), None)
    if isinstance(node, Conv2d) and len(pools) == len(wiring) and not flat and not late:
        found = pooled_kernel(graph, node, pools, start, shape)
        if found is not None:
            assert not isinstance(found.padding, str)
            settings: dict[str, tuple[int, ...] | int] = {
                "stride": found.stride,
                "padding": found.padding,
                "dilation": found.dilation,
                "groups": found.groups,
            }
            return replace(
                plain,
                kind="conv",
                weight=found.weight,
                bias=_bias(neuron, target, "conv"),
                current_bias=current,
                settings=settings,
            )
    matrix = (
        node.weight
        if isinstance(node, (Linear, Affine)) and not pools
        else stretch_matrix(graph, source, [*wiring, weighted])
    )
    matrix, delay = _with_delays(graph, stretch, matrix)
    recurrent = None
    if stretch.recurrent:
        recurrent = graph.weighted[stretch.recurrent].weight
        _check_whole(stretch.recurrent, recurrent)
        if delay is not None:
            raise UnsupportedNodeError(
                f"{neuron}: has delays and feeds itself back by {stretch.recurrent}; netx drops the weight exponent of "
                "recurrent layers with delays"
            )
    if current is not None:
        positions = int(np.prod(shape)) // len(current)
        current = frozen_array(np.repeat(current, positions))
    back = graph.weighted.get(stretch.recurrent)
    if isinstance(back, Affine) and back.bias is not None and bool(back.bias.any()):
        current = frozen_array(back.bias if current is None else current + back.bias)
    return replace(
        plain,
        weight=matrix,
        bias=_bias(neuron, target, "dense"),
        current_bias=current,
        flattened=len(start) > 1 and not flat,
        delay=delay,
        recurrent=recurrent,
    )


def _check_whole(name: str, weight: np.ndarray) -> None:
    if bool((weight % 1 != 0).any()):
        index = tuple(int(axis) for axis in np.argwhere(weight % 1 != 0)[0])
        raise UnsupportedNodeError(f"{name}: weight{list(index)} is {weight[index]:g}; a .net file holds whole numbers")


def _with_delays(graph: SpikingGraph, stretch: NetStretch, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return weights (out, in) with those of the ways beside, and the steps each synapse waits, None without any."""
    outputs, inputs = matrix.shape
    before, behind = total_delay(graph, stretch.wiring), total_delay(graph, stretch.behind)
    steps = np.broadcast_to(behind[:, None] + before[None, :], (outputs, inputs))
    for way in stretch.beside:
        weighted = next(name for name in way if name in graph.weighted)
        at = way.index(weighted)
        before, behind = total_delay(graph, way[:at]), total_delay(graph, way[at:])
        weight = graph.weighted[weighted].weight
        later = np.broadcast_to(behind[:, None] + before[None, :], weight.shape)
        both = (weight != 0) & (matrix != 0) & (later != steps)
        if bool(both.any()):
            index = tuple(int(axis) for axis in np.argwhere(both)[0])
            raise UnsupportedNodeError(
                f"{weighted}: weight{list(index)} connects the same neurons as {stretch.weighted} {later[index]} steps "
                f"late, {stretch.weighted} {steps[index]}; a .net file has one synapse for them"
            )
        steps = np.where(weight != 0, later, steps)
        matrix = matrix + weight
    steps = np.where(matrix != 0, steps, 0)
    if int(steps.max()) > MAX_DELAY:
        raise UnsupportedNodeError(
            f"{stretch.weighted}: a synapse waits {int(steps.max())} steps; allowed are 0 to {MAX_DELAY}"
        )
    return frozen_array(matrix), np.ascontiguousarray(steps) if steps.any() else None


def _check_quiet_start(layers: list[NetLayer]) -> None:
    """Refuse spikes that biases cause before a layer starts anew, where delays or recurrence carry them on."""
    if all(layer.delay is None and layer.recurrent is None for layer in layers):
        return
    for depth, layer in enumerate(layers, start=1):
        if layer.bias is not None and int(layer.bias.max()) * depth > layer.neuron_fields["vThMant"]:
            raise UnsupportedNodeError(
                f"{layer.neuron}: its bias alone makes it fire in the {depth} steps before its first input, and delays "
                "or recurrence carry that on; use smaller biases"
            )


def pooled_kernel(graph: SpikingGraph, node: Conv2d, pools: list[str], start: Shape, shape: Shape) -> Conv2d | None:
    """Return one convolution that does what pools and a convolution do one after another, None if there is none."""
    found = _with_numbers(node)
    if found is None:
        return None
    for name in reversed(pools):
        pool = graph.nodes[name]
        assert isinstance(pool, SumPool2d)
        size, pooled = graph.shapes[graph.sources(name)[0]][1:], graph.shapes[name][1:]
        assert not isinstance(found.padding, str)
        # Zeros around the pooled image are zeros around the image only if no window reaches over them, and none of its
        # pixels is left over behind the last window.
        over = any(window > step for window, step in zip(pool.kernel_size, pool.stride, strict=True))
        left = any(extent > count * step for extent, count, step in zip(size, pooled, pool.stride, strict=True))
        if any(found.padding) and (over or left):
            return None
        found = _spread(found, pool)
    return found if _fits(found, start, shape) else None


def _with_numbers(node: Conv2d) -> Conv2d | None:
    """Return a convolution whose padding is numbers; None where "same" pads one side more than the other."""
    if node.padding != "same":
        return node
    spans = [node.dilation[axis] * (node.weight.shape[2 + axis] - 1) for axis in range(2)]
    return None if any(span % 2 for span in spans) else replace(node, padding=(spans[0] // 2, spans[1] // 2))


def _fits(node: Conv2d, start: Shape, shape: Shape) -> bool:
    sizes = []
    for axis in range(2):
        span = node.dilation[axis] * (node.weight.shape[2 + axis] - 1) + 1
        padding = node.padding
        assert not isinstance(padding, str)
        sizes.append((start[1 + axis] + 2 * padding[axis] - span) // node.stride[axis] + 1)
    return (int(node.weight.shape[0]), *sizes) == shape


def _spread(node: Conv2d, pool: SumPool2d) -> Conv2d:
    """Return the convolution in which every weight stands for a window of a sum pool; windows that overlap add up."""
    outputs, inputs, *kernel = node.weight.shape
    padding, (high, wide), (down, right) = node.padding, pool.kernel_size, pool.stride
    assert not isinstance(padding, str)
    steps = (node.dilation[0] * down, node.dilation[1] * right)
    weight = np.zeros((outputs, inputs, (kernel[0] - 1) * steps[0] + high, (kernel[1] - 1) * steps[1] + wide))
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            top, left = y * steps[0], x * steps[1]
            weight[:, :, top : top + high, left : left + wide] += node.weight[:, :, y, x, None, None]
    return Conv2d(
        frozen_array(weight),
        None,
        (node.stride[0] * down, node.stride[1] * right),
        (padding[0] * down, padding[1] * right),
        (1, 1),
        node.groups,
    )


def stretch_matrix(graph: SpikingGraph, source: str, names: list[str]) -> np.ndarray:
    """Return what a stretch of pools and weights does, as a matrix of flattened sources, (out, in)."""
    shape, outputs = graph.shapes[source], int(np.prod(graph.shapes[names[-1]]))
    inputs = int(np.prod(shape))
    if inputs * outputs > DENSE_LIMIT:
        raise UnsupportedNodeError(f"{names[-1]}: with its pools a matrix of {outputs} x {inputs}, too large to write")
    columns = []
    for start in range(0, inputs, 1024):
        x = torch.eye(inputs)[start : start + 1024].reshape(-1, *shape)
        for name in names:
            x = fixed_function(_without_bias(graph.nodes[name]), 1.0, where=name)(x)
        columns.append(x.flatten(1).to(torch.float64).numpy().T)
    return frozen_array(np.concatenate(columns, axis=1))


def _without_bias(node: Node) -> Node:
    match node:
        case Affine():
            return Linear(node.weight)
        case Conv1d() | Conv2d():
            return replace(node, bias=None)
        case _:
            return node


def _bias(name: str, node: Neuron, kind: str) -> np.ndarray | None:
    if isinstance(node, IF) or not node.v_leak.any():
        return None
    mantissa = node.v_leak.astype(np.float64) / (1 << SHIFT)
    low, high = BIAS_MANTISSA  # netx fixes the exponent to 6
    wrong = (mantissa % 1 != 0) | (mantissa < low) | (mantissa > high)
    if bool(wrong.any()):
        index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        raise UnsupportedNodeError(
            f"{name}: v_leak{list(index)} is {node.v_leak[index]:g}; a .net file holds 64 times {low} to {high}"
        )
    if mantissa.ndim == 3 and kind == "conv":
        per_channel = mantissa[:, :1, :1]
        same = bool((mantissa == per_channel).all())
        return per_channel.reshape(-1) if same else np.ascontiguousarray(mantissa.transpose(2, 1, 0))
    return mantissa.reshape(-1)
