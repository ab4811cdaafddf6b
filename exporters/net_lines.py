"""Biases of input currents in ``.net`` files: weights of lines that are always on.

A ``.net`` layer has a bias of the membrane and none of the current. So the input gets lines (channels, if it is
spatial) that spike in every step, and every layer before the last one that needs them gets neurons (channels) that pass
these spikes on: driven beyond their threshold by the lines before them, they fire in every step from the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from exporters.net_format import NetLayer
from slamp.arithmetic import DECAY_ONE, SHIFT, STATE_LIMIT, common_exponent
from slamp.errors import UnsupportedNodeError
from slamp.nodes import Shape, frozen_array


def with_lines(features: Shape, layers: Sequence[NetLayer]) -> list[NetLayer]:
    """Return layers whose biases of currents have become weights of lines at the end of what they read.

    Args:
        features: Shape of the input.
        layers: From the input on.

    Raises:
        UnsupportedNodeError: The chain has no exact form with lines; the message names the layer.
    """
    found: list[NetLayer] = []
    passed_on = 0  # lines that the layer behind needs
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        if layer.current_bias is None and passed_on == 0:
            found.insert(0, layer)
            continue
        given = features if index == 0 else layers[index - 1].shape
        flat = index > 0 and layers[index - 1].kind == "dense"
        changed, needed = _with_lines(layer, (math.prod(given),) if flat else given, passed_on)
        found.insert(0, changed)
        passed_on = needed
    return found


def input_lines(features: Shape, layers: Sequence[NetLayer]) -> int:
    """Return how many lines (channels) follow the features of the input."""
    first, positions = layers[0], math.prod(features[1:])
    if first.kind == "conv":
        groups = first.settings["groups"]
        assert isinstance(groups, int)
        return int(first.weight.shape[1]) * groups - features[0]
    return int(first.weight.shape[1]) // positions - features[0]


def _with_lines(layer: NetLayer, given: Shape, passed_on: int) -> tuple[NetLayer, int]:
    """Return a layer with ``passed_on`` more neurons (channels) that pass its lines on, and the lines it reads."""
    size = layer.shape[0] if layer.kind == "conv" else math.prod(layer.shape)
    bias = np.zeros(size) if layer.current_bias is None else layer.current_bias.astype(np.float64)
    unit, limit = _steps(layer, bias, passed_on)
    sums = np.concatenate([bias, np.full(passed_on, _firing(layer, unit, passed_on))])
    places = list(_places(layer, given))
    if not places:
        raise UnsupportedNodeError(
            f"{layer.weights}: has a bias in the current of {layer.neuron}, or passes one on, and no weight of its "
            "kernel is inside the image everywhere; use less padding, or bias=False before LIFCell"
        )
    lines = max(1, math.ceil(np.abs(sums).max() / (limit * len(places))))
    weight = _widened(layer, given, lines, passed_on)
    columns = weight.shape[1] - lines * (math.prod(given[1:]) if layer.kind == "dense" else 1)
    left = sums.copy()
    for line, place in product(range(lines), places):
        part = np.clip(left, -limit, limit)
        left -= part
        at = (columns + line * math.prod(given[1:]),) if layer.kind == "dense" else (columns + line, *place)
        weight[(slice(None), *at)] = part
    assert not left.any()
    changed = replace(
        layer,
        weight=frozen_array(weight),
        current_bias=None,
        lines=passed_on,
        shape=_widened_shape(layer, passed_on),
        bias=None if layer.bias is None else _longer(layer.bias, passed_on),
        settings={**layer.settings, "groups": 1} if layer.kind == "conv" else {},
        delay=None if layer.delay is None else _padded(layer.delay, weight.shape),
        recurrent=None if layer.recurrent is None else _padded(layer.recurrent, (len(sums), len(sums))),
    )
    return changed, lines


def _steps(layer: NetLayer, bias: np.ndarray, passed_on: int) -> tuple[int, int]:
    """Return what all weights are multiples of, and the largest of a line: 8 bits, as the weights beside it."""
    values = np.concatenate([part.ravel() for part in (layer.weight, layer.recurrent, bias) if part is not None])
    values = values[values != 0]
    # netx clips the weights of dense layers beyond 256.
    unit = 2 ** min(common_exponent(values), 1 if layer.kind == "dense" else 7) if values.size else 1
    mixed = bool((values < 0).any()) and (bool((values > 0).any()) or passed_on > 0)
    return unit, (127 * unit if mixed or unit > 1 else 255)


def _firing(layer: NetLayer, unit: int, passed_on: int) -> float:
    """Return the sum that makes a neuron of the layer fire in every step."""
    if not passed_on:
        return 0.0
    drive = unit * (layer.neuron_fields["vThMant"] // unit + 1)
    decay = layer.neuron_fields["iDecay"]
    if drive * (1 << SHIFT) * DECAY_ONE >= STATE_LIMIT * decay:
        raise UnsupportedNodeError(
            f"{layer.neuron}: is to pass on a bias of the current of a later layer, and currents that always reach its "
            f"threshold, {layer.neuron_fields['vThMant']}, add up beyond 24 bits with iDecay {decay}; use "
            "bias=False in the layers behind it"
        )
    return float(drive)


def _places(layer: NetLayer, given: Shape) -> Iterator[tuple[int, ...]]:
    """Yield where one line reaches all neurons once: an index into the kernel, () in a matrix."""
    if layer.kind == "dense":
        yield ()
        return
    ranges = []
    for axis in range(2):
        stride, padding, dilation = (_pair(layer, key)[axis] for key in ("stride", "padding", "dilation"))
        last = (layer.shape[1 + axis] - 1) * stride - padding
        inside = range(layer.weight.shape[2 + axis])
        ranges.append([k for k in inside if k * dilation >= padding and last + k * dilation < given[1 + axis]])
    yield from product(*ranges)


def _pair(layer: NetLayer, key: str) -> tuple[int, ...]:
    found = layer.settings[key]
    assert isinstance(found, tuple)
    return found


def _widened(layer: NetLayer, given: Shape, lines: int, passed_on: int) -> np.ndarray:
    """Return the weights with rows for neurons that pass lines on and columns for lines, all zero, without groups."""
    if layer.kind == "dense":
        outputs, inputs = layer.weight.shape
        weight = np.zeros((outputs + passed_on, inputs + lines * math.prod(given[1:])), dtype=np.float32)
        weight[:outputs, :inputs] = layer.weight
        return weight
    outputs, inputs, *kernel = layer.weight.shape
    groups = layer.settings["groups"]
    assert isinstance(groups, int)
    weight = np.zeros((outputs + passed_on, inputs * groups + lines, *kernel), dtype=np.float32)
    share = outputs // groups
    for group in range(groups):
        rows = slice(group * share, (group + 1) * share)
        weight[rows, group * inputs : (group + 1) * inputs] = layer.weight[rows]
    return weight


def _widened_shape(layer: NetLayer, passed_on: int) -> Shape:
    if not passed_on:
        return layer.shape
    if layer.kind == "conv":
        return (layer.shape[0] + passed_on, *layer.shape[1:])
    return (math.prod(layer.shape) + passed_on,)


def _longer(bias: np.ndarray, passed_on: int) -> np.ndarray:
    return np.concatenate([bias, np.zeros((*bias.shape[:-1], passed_on))], axis=-1)


def _padded(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    padded = np.zeros(shape, dtype=values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded
