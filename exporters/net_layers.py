"""From a fixed-point graph to the layers of lava-dl's ``.net`` files; pure functions, no files.

A ``.net`` file is a chain of layers with weights and neurons (`lava.lib.dl.netx.hdf5` of lava-dl 0.6.0). Sum pools are
lowered exactly into the weights behind them: one convolution where that is exact, else a matrix, as are convolutions
that netx has no layer for (one axis, padding "same"). netx rewrites weights as it loads a file; what it makes of them
is computed here by the same rules, and a layer it would change is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from slamp.arithmetic import BIAS_MANTISSA, DECAY_ONE, SHIFT, FixedPoint, weight_format
from slamp.errors import UnsupportedNodeError
from slamp.fixed_dynamics import fixed_function
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    NEURON,
    READOUT,
    WEIGHTED,
    Conv2d,
    CubaLI,
    CubaLIF,
    Flatten,
    Linear,
    Neuron,
    Output,
    Shape,
    SumPool2d,
    frozen_array,
)

NEVER_FIRES = 131072
DENSE_LIMIT = 1 << 26  # entries of a matrix made of pools and convolutions


@dataclass(frozen=True, eq=False)
class NetLayer:
    """One layer with weights and neurons.

    Attributes:
        neuron: Name of the graph's neuron node.
        weights: Name of the graph's weighted node.
        kind: "dense" or "conv".
        weight: Whole numbers, (out, in) or (out, in / groups, y, x).
        shape: Of the neurons, torch order.
        neuron_fields: iDecay, vDecay, vThMant.
        bias: In units of 64, (neurons,), (channels,), or (x, y, channels) as netx takes it; None without.
        settings: stride, padding, dilation (y, x) and groups of a convolution.
        flattened: True if a flatten layer stands before it.
    """

    neuron: str
    weights: str
    kind: str
    weight: np.ndarray
    shape: Shape
    neuron_fields: dict[str, int]
    bias: np.ndarray | None
    settings: dict[str, tuple[int, ...] | int] = field(default_factory=dict)
    flattened: bool = False


def net_layers(graph: SpikingGraph) -> list[NetLayer]:
    """Return the layers of a graph.

    Raises:
        UnsupportedNodeError: The graph is in float, or no chain that ``.net`` files can hold; the message says where.
    """
    if not isinstance(graph.arithmetic, FixedPoint):
        raise UnsupportedNodeError("graph: is in float32; a .net file holds integers, so quantize it first")
    layers: list[NetLayer] = []
    waiting: list[str] = []  # pools and Flattens since the last neurons
    weighted = ""
    reached = graph.input
    for name in _chain(graph):
        node = graph.nodes[name]
        if isinstance(node, WEIGHTED):
            if weighted:
                raise UnsupportedNodeError(f"{name}: follows {weighted} without neurons between; put neurons there")
            weighted = name
        elif isinstance(node, (SumPool2d, Flatten)):
            if weighted:
                raise UnsupportedNodeError(f"{name}: {type(node).__name__} between weights and neurons; move it behind")
            waiting.append(name)
        elif isinstance(node, NEURON):
            if not weighted:
                raise UnsupportedNodeError(f"{name}: has no weights of its own before it; put a linear layer there")
            flat = bool(layers) and layers[-1].kind == "dense"
            layers.append(_layer(graph, reached, waiting, weighted, name, flat=flat))
            reached, waiting, weighted = name, [], ""
        else:
            raise UnsupportedNodeError(f"{name}: {type(node).__name__} is not written to .net files; remove it")
    if weighted or any(isinstance(graph.nodes[name], SumPool2d) for name in waiting):
        raise UnsupportedNodeError(f"{weighted or waiting[0]}: no neurons follow it; a .net layer ends in neurons")
    for layer in layers:
        check_loaded(layer)
    return layers


def _chain(graph: SpikingGraph) -> list[str]:
    name, names = graph.input, []
    while not isinstance(graph.nodes[name], Output):
        targets = graph.targets(name)
        if len(targets) != 1 or len(graph.sources(targets[0])) != 1:
            raise UnsupportedNodeError(f"{name}: the network branches here; a .net file is a chain of layers")
        (name,) = targets
        names.append(name)
    return names[:-1]


def _layer(graph: SpikingGraph, source: str, waiting: list[str], weighted: str, neuron: str, *, flat: bool) -> NetLayer:
    """Return the layer between two layers of neurons; ``flat`` says that the file has the first of them flattened."""
    node, target = graph.weighted[weighted], graph.nodes[neuron]
    assert isinstance(target, NEURON)
    if not isinstance(node, Linear) and node.bias is not None and bool(node.bias.any()):
        raise UnsupportedNodeError(
            f"{weighted}: has a bias in the current of {neuron}, an input line that is always on, which .net files "
            "lack; use bias=False before LIFCell"
        )
    if bool((node.weight % 1 != 0).any()):
        index = tuple(int(axis) for axis in np.argwhere(node.weight % 1 != 0)[0])
        raise UnsupportedNodeError(
            f"{weighted}: weight{list(index)} is {node.weight[index]:g}; a .net file holds whole numbers"
        )
    if isinstance(target, READOUT) and graph.targets(neuron) != (graph.output,):
        raise UnsupportedNodeError(
            f"{neuron}: is a readout, and {graph.targets(neuron)[0]} follows; allowed is the end"
        )
    shape, start = graph.shapes[neuron], graph.shapes[source]
    pools = [name for name in waiting if isinstance(graph.nodes[name], SumPool2d)]
    fields = _fields(neuron, target)
    if isinstance(node, Conv2d) and len(pools) == len(waiting) and not flat:
        found = pooled_kernel(graph, node, pools, start, shape)
        if found is not None:
            assert not isinstance(found.padding, str)
            settings: dict[str, tuple[int, ...] | int] = {
                "stride": found.stride,
                "padding": found.padding,
                "dilation": found.dilation,
                "groups": found.groups,
            }
            return NetLayer(
                neuron, weighted, "conv", found.weight, shape, fields, _bias(neuron, target, "conv"), settings
            )
    matrix = (
        node.weight if isinstance(node, Linear) and not pools else stretch_matrix(graph, source, [*waiting, weighted])
    )
    bias = _bias(neuron, target, "dense")
    return NetLayer(neuron, weighted, "dense", matrix, shape, fields, bias, flattened=len(start) > 1 and not flat)


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
            x = fixed_function(graph.nodes[name], 1.0, where=name)(x)
        columns.append(x.flatten(1).to(torch.float64).numpy().T)
    return frozen_array(np.concatenate(columns, axis=1))


def _fields(name: str, node: Neuron) -> dict[str, int]:
    decay_syn = _one(name, "decay_syn", node.decay_syn) if isinstance(node, (CubaLIF, CubaLI)) else 1.0
    decay_mem = 0.0 if isinstance(node, IF) else _one(name, "decay_mem", node.decay_mem)
    threshold = NEVER_FIRES
    if not isinstance(node, READOUT):
        threshold = int(_one(name, "v_threshold", node.v_threshold)) >> SHIFT
    return {"iDecay": int(decay_syn * DECAY_ONE), "vDecay": int(decay_mem * DECAY_ONE), "vThMant": threshold}


def _one(name: str, key: str, values: np.ndarray) -> float:
    if values.min() != values.max():
        raise UnsupportedNodeError(
            f"{name}: {key} runs from {values.min():g} to {values.max():g}; a .net layer has one for all neurons"
        )
    return float(values.flat[0])


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


def check_loaded(layer: NetLayer) -> None:
    """Raise `UnsupportedNodeError` if netx would load other weights than those of a layer, or crash."""
    if weight_format(layer.weight) is None:
        raise UnsupportedNodeError(
            f"{layer.weights}: with the pools before it its weights run from {layer.weight.min():g} to "
            f"{layer.weight.max():g} and need more than 8 bits; use smaller weights, or pools that do not overlap"
        )
    if layer.kind == "conv":
        return  # taken as they are
    weight = layer.weight.astype(np.int64)
    low, high = (-256, 254) if weight.min() < 0 < weight.max() else (-256, 255)
    if weight.min() < low or weight.max() > high:
        raise UnsupportedNodeError(
            f"{layer.weights}: weights run from {weight.min()} to {weight.max()}; netx clips them to {low} "
            f"and {high}; use smaller weight exponents"
        )
    if not weight.any():
        raise UnsupportedNodeError(
            f"{layer.weights}: all weights are zero, on which netx crashes; keep one, or remove the layer"
        )
    loaded = loaded_by_netx(weight)
    if not np.array_equal(loaded, layer.weight.astype(np.float64)):
        index = tuple(int(axis) for axis in np.argwhere(loaded != layer.weight)[0])
        raise UnsupportedNodeError(
            f"{layer.weights}: netx loads weight{list(index)} as {loaded[index]:g} instead of {weight[index]}, as it "
            "rescales layers without a positive weight wrongly where the largest magnitude is a power of two, or odd "
            "weights go beyond 127; change that weight, or keep a positive one"
        )


def loaded_by_netx(weight: np.ndarray) -> np.ndarray:
    """Return the effective weights of a dense layer after netx and Lava's Dense have scaled, clipped and cut them.

    The rules are those of lava-dl 0.6.0 (`netx/utils.py`, optimize_weight_bits) and lava-nc 0.10.0
    (`utils/weightutils.py`), restated.
    """
    whole = weight.astype(np.int64)
    largest, least = int(whole.max()), int(whole.min())
    # netx takes a layer of negative weights and zeros for one of both signs.
    mixed = int(least < 0 <= largest)
    if mixed:
        scale = min(127 / largest if largest > 0 else np.inf, -128 / least)
    else:
        scale = 255 / largest if least >= 0 else -256 / least
    shift = int(np.floor(np.log2(scale))) + mixed
    zeros = next(bits for bits in range(8, -1, -1) if not (whole % (1 << bits)).any()) - mixed
    held = whole << shift
    # Lava's Dense finds the signs anew from the scaled weights; it drops bits of the magnitudes of negative layers.
    negative, both = bool(held.max() <= 0 and held.min() < 0), bool(held.min() < 0 < held.max())
    held = np.clip(-held if negative else held, -256 if both else 0, 255)
    dropped = shift + zeros + int(both)
    # A shift by less than nothing leaves nothing in NumPy: netx has counted a sign bit that Lava does not.
    held = (held >> dropped) << dropped if dropped >= 0 else np.zeros_like(held)
    loaded: np.ndarray = (-held if negative else held) / 2.0**shift
    return loaded
