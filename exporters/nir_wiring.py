"""Nodes that add, move, repeat or pool values, said with NIR's own: matrices and kernels of zeros and ones.

They are exact in float32: every product is a value or zero, and every sum has one value in it, or counts spikes. NIR
has no node that takes values apart again after `Flatten`, so what needs a matrix over a whole map is said where its
values end up in one axis anyway; between, they are written as one axis ("flat"). The mean of `AdaptiveAvgPool2d` is
divided once where torch divides by each side; it may be one rounding off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import nir
import numpy as np
import torch

from slamp.carried import carried
from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    WIRING,
    AdaptiveAvgPool2d,
    MaxPool2d,
    Node,
    Pad,
    Place,
    Scale,
    Shape,
    Sum,
    Take,
    Wiring,
)
from slamp.wiring import wiring_function

LARGEST = 1 << 24  # entries of a matrix or kernel of zeros and ones


@dataclass(frozen=True, eq=False)
class Written:
    """A NIR node, the shapes of its input and output, and its name if it is not the graph's."""

    node: Any
    takes: Shape
    gives: Shape
    suffix: str = ""


def flat_nodes(graph: SpikingGraph) -> frozenset[str]:
    """Return the wiring nodes whose values are written as one axis, because all that follows ends in one.

    Raises:
        UnsupportedNodeError: NIR cannot say a wiring node, which the message names.
    """
    flat: set[str] = set()
    for name in [name for name in graph.order if isinstance(graph.nodes[name], WIRING)]:
        node, sources, out = graph.nodes[name], graph.sources(name), graph.shapes[name]
        assert isinstance(node, WIRING)
        shape = graph.shapes[sources[0]]
        inside = [source in flat for source in sources]
        if len(set(inside)) > 1:
            raise refused(name, node, "adds values that NIR can only hand over as one axis to a map", "sum them apart")
        if not inside[0] and _natural(node, shape, out) is not None:
            continue
        if not _ends_in_one_axis(graph, name):
            raise refused(
                name,
                node,
                f"goes from shape {shape} to {out}, for which NIR has no node",
                "allowed is what a Flatten or a Reshape to one axis follows, over wiring alone",
            )
        if len(out) > 1:
            flat.add(name)
    return frozenset(flat)


def write_wiring(graph: SpikingGraph, name: str, flat: frozenset[str]) -> list[Written]:
    """Return the NIR nodes, one behind the other, that say a `Sum`, a pool or a wiring node; the last has its name.

    Raises:
        UnsupportedNodeError: NIR cannot say the node.
    """
    node, source, out = graph.nodes[name], graph.sources(name)[0], graph.shapes[name]
    shape = graph.shapes[source]
    if isinstance(node, Sum):
        return [Written(nir.Scale(scale=np.ones(shape, dtype=np.float32)), shape, out)]
    if isinstance(node, MaxPool2d):
        return _max_pool(graph, name, node, shape, out)
    if isinstance(node, AdaptiveAvgPool2d):
        return [Written(_adaptive_pool(name, node, shape), shape, out)]
    if isinstance(node, Scale):
        return [Written(_shifted_scale(name, node, shape), shape, out)]
    assert isinstance(node, WIRING)
    inside = source in flat
    if not inside and (natural := _natural(node, shape, out)) is not None:
        _check_size(name, node, natural)
        return [Written(natural, shape, out)]
    one, other = (math.prod(shape),), (math.prod(out),)
    if _keeps_order(node, shape):
        takes = one if inside else shape
        return [Written(nir.Flatten(np.array(takes), 0, len(takes) - 1), takes, other)]
    if one[0] * other[0] > LARGEST:
        raise _too_large(name, node, other + one)
    first = [] if inside else [Written(nir.Flatten(np.array(shape), 0, len(shape) - 1), shape, one, "flat")]
    return [*first, Written(_matrix(node, shape), one, other)]


def is_exact_with_shift(node: Scale) -> bool:
    """True if ``scale * x`` is exact, so that adding the shift rounds once: scales of zero and powers of two."""
    return bool(np.isin(np.abs(np.frexp(node.scale)[0]), (0.0, 0.5)).all())


def refused(name: str, node: Node, found: str, advice: str) -> UnsupportedNodeError:
    """Return the error for a node NIR cannot say."""
    return UnsupportedNodeError(f"{name}: {type(node).__name__} {found}; {advice}")


def _ends_in_one_axis(graph: SpikingGraph, name: str) -> bool:
    if len(graph.shapes[name]) == 1:
        return True
    targets = graph.targets(name)
    return all(isinstance(graph.nodes[target], WIRING) and _ends_in_one_axis(graph, target) for target in targets)


def _natural(node: Wiring, shape: Shape, out: Shape) -> Any | None:
    """Return the one NIR node that is a wiring node on its own shapes, or None."""
    if _keeps_order(node, shape):
        for start in range(len(shape)):
            for end in range(start, len(shape)):
                if out == (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]):
                    return nir.Flatten(np.array(shape), start, end)
        return None
    if len(shape) == len(out) == 1:
        return None if shape[0] * out[0] > LARGEST else _matrix(node, shape)
    if len(shape) not in (2, 3):
        return None
    match node:
        case Take():
            sides = {node.axis: (-node.start, node.stop - shape[node.axis])}
        case Place():
            sides = {node.axis: (node.start, node.size - node.start - shape[node.axis])}
        case Pad(mode="constant", value=0.0):
            sides = dict(enumerate(node.padding, start=len(shape) - len(node.padding)))
        case _:
            return None
    return _moving_kernel(shape, [sides.get(axis, (0, 0)) for axis in range(len(shape))])


def _moving_kernel(shape: Shape, sides: list[tuple[int, int]]) -> Any:
    """Return the convolution that adds (or, below 0, cuts off) entries before and after along every axis."""
    (before, after), *maps = sides
    channels = np.eye(shape[0] + before + after, shape[0], k=-before, dtype=np.float32)
    padding = [max(first, last, 0) for first, last in maps]
    size = [2 * pad - first - last + 1 for pad, (first, last) in zip(padding, maps, strict=True)]
    tap = tuple(pad - first for pad, (first, _) in zip(padding, maps, strict=True))
    weight = np.zeros((*channels.shape, *size), dtype=np.float32)
    at: tuple[slice | int, ...] = (slice(None), slice(None), *tap)
    weight[at] = channels
    bias = np.zeros(channels.shape[0], dtype=np.float32)
    if len(maps) == 1:
        return nir.Conv1d(shape[1], weight, 1, padding[0], 1, 1, bias)
    return nir.Conv2d(shape[1:], weight, (1, 1), tuple(padding), (1, 1), 1, bias)


def _matrix(node: Wiring, shape: Shape) -> Any:
    """Return a wiring node as a matrix over all values, row-major; a constant that is filled in is its bias."""
    index = _origins(node, shape).reshape(-1)
    weight = np.zeros((index.size, math.prod(shape)), dtype=np.float32)
    rows = np.flatnonzero(index)
    weight[rows, index[rows] - 1] = 1
    if isinstance(node, Pad) and node.value != 0.0:
        return nir.Affine(weight=weight, bias=np.where(index == 0, np.float32(node.value), np.float32(0)))
    return nir.Linear(weight=weight)


def _origins(node: Wiring, shape: Shape) -> np.ndarray:
    """Where each output value comes from: the row-major place in the input, from 1 on, or 0 where it is filled in."""
    filled = replace(node, value=0.0) if isinstance(node, Pad) else node
    places = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(1, *shape)
    origins: np.ndarray = wiring_function(filled)(places)[0].numpy().astype(np.int64)
    return origins


def _keeps_order(node: Wiring, shape: Shape) -> bool:
    origins = _origins(node, shape).reshape(-1)
    return origins.size == math.prod(shape) and bool((np.diff(origins) == 1).all() and origins[0] == 1)


def _max_pool(graph: SpikingGraph, name: str, node: MaxPool2d, shape: Shape, out: Shape) -> list[Written]:
    """Of spikes: count those of each window, one if there are any."""
    if name not in carried(graph, input_is_spikes=False).binary:
        raise refused(
            name, node, "takes other values than spikes of neurons", "allowed are spikes, whose sum tells if one came"
        )
    if node.dilation == (1, 1):
        counted: Any = nir.SumPool2d(*(np.array(size) for size in (node.kernel_size, node.stride, node.padding)))
    else:
        weight = np.eye(shape[0], dtype=np.float32)[:, :, None, None] * np.ones(node.kernel_size, dtype=np.float32)
        bias = np.zeros(shape[0], dtype=np.float32)
        counted = nir.Conv2d(shape[1:], weight, node.stride, node.padding, node.dilation, 1, bias)
        _check_size(name, node, counted)
    threshold = nir.Threshold(threshold=np.full(out, 0.5, dtype=np.float32))
    return [Written(counted, shape, out, "count"), Written(threshold, out, out)]


def _adaptive_pool(name: str, node: AdaptiveAvgPool2d, shape: Shape) -> Any:
    if any(side % wanted for side, wanted in zip(shape[1:], node.output_size, strict=True)):
        raise refused(
            name,
            node,
            f"makes a map of {node.output_size} out of {shape[1:]}, in windows of several sizes",
            "allowed are sides it divides; use AvgPool2d or such an output_size",
        )
    kernel = np.array([side // wanted for side, wanted in zip(shape[1:], node.output_size, strict=True)])
    return nir.AvgPool2d(kernel, kernel.copy(), np.zeros(2, dtype=np.int64))


def _shifted_scale(name: str, node: Scale, shape: Shape) -> Any:
    """Return channels times zero or a power of two, plus the shift: rounded once, as the graph does."""
    weight, bias = np.diag(node.scale).astype(np.float32), np.array(node.shift, dtype=np.float32)
    if len(shape) > 3:
        raise refused(name, node, f"shifts values of shape {shape}", "allowed are one to three axes")
    said = nir.Affine(weight=weight, bias=bias)
    if len(shape) == 2:
        said = nir.Conv1d(shape[1], weight[:, :, None], 1, 0, 1, 1, bias)
    if len(shape) == 3:
        said = nir.Conv2d(shape[1:], weight[:, :, None, None], (1, 1), (0, 0), (1, 1), 1, bias)
    _check_size(name, node, said)
    return said


def _check_size(name: str, node: Node, said: Any) -> None:
    weight = getattr(said, "weight", None)
    if weight is not None and weight.size > LARGEST:
        raise _too_large(name, node, weight.shape)


def _too_large(name: str, node: Node, shape: Shape) -> UnsupportedNodeError:
    found = f"needs a matrix of zeros and ones of {' x '.join(map(str, shape))}"
    return refused(name, node, found, f"allowed are {LARGEST} entries; use smaller maps or fewer channels there")


def chained(name: str, written: list[Written], taken: set[str]) -> tuple[list[tuple[str, Written]], list[Any]]:
    """Return names for NIR nodes that stand one behind the other, the last one ``name``, and the edges between them."""
    names: list[str] = []
    for part in written:
        free = f"{name}_{part.suffix}" if part.suffix else name
        while free != name and free in taken:
            free += "_"
        names.append(free)
    return list(zip(names, written, strict=True)), list(pairwise(names))
