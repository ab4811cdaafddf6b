"""What one NIR graph says otherwise than another, field by field, in NIR's own terms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import nir
import numpy as np


def differences(expected: nir.NIRGraph, found: nir.NIRGraph) -> Iterator[str]:
    """Yield what a NIR graph says otherwise than expected, one line per field, in NIR's own terms.

    Metadata that is not expected is left to whoever wrote it.
    """
    names = [name for name in expected.nodes if name in found.nodes]
    for name in expected.nodes:
        if name not in found.nodes:
            yield f"{name}: the node is missing in the file"
        elif type(expected.nodes[name]) is not type(found.nodes[name]):
            kinds = type(found.nodes[name]).__name__, type(expected.nodes[name]).__name__
            yield f"{name}: is {kinds[0]} in the file, {kinds[1]} in the graph"
            names.remove(name)
    yield from (
        f"{name}: the file has this node, the graph has not" for name in found.nodes if name not in expected.nodes
    )
    if list(expected.edges) != list(found.edges):
        odd = next(
            (edge for edge in (*expected.edges, *found.edges) if (edge in expected.edges) != (edge in found.edges)),
            None,
        )
        yield "edges: their order differs" if odd is None else f"edges: {odd[0]} to {odd[1]} is on one side only"
    for name in names:
        for key, value, other in _stated(expected.nodes[name], found.nodes[name]):
            if line := _unequal(value, other):
                yield f"{name}: {key}{line}"
    for key, value in expected.metadata.items():
        if line := _unequal(value, found.metadata.get(key)):
            yield f"metadata: {key}{line}"


def _stated(node: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield every field of a node, of the type that the file does not leave to inference, with both values."""
    for field in fields(node):
        if field.name not in ("metadata", "input_type", "output_type"):
            yield field.name, getattr(node, field.name), getattr(other, field.name)
    if isinstance(node, (nir.Input, nir.Flatten)):
        yield "shape", node.input_type["input"], other.input_type["input"]
    if isinstance(node, nir.Output):
        yield "shape", node.output_type["output"], other.output_type["output"]
    for key, value in node.metadata.items():
        yield f"metadata {key}", value, other.metadata.get(key)


def _unequal(expected: Any, found: Any) -> str:
    """Say how two values differ, or nothing if they do not."""
    one, other = np.asarray(expected), np.asarray(found)
    if one.dtype.kind == other.dtype.kind and np.array_equal(one, other):
        return ""
    if one.ndim == 0 or one.shape != other.shape or one.dtype.kind != other.dtype.kind:
        return f" is {_short(found)} in the file, {_short(expected)} in the graph"
    unequal = np.argwhere(one != other)
    index = tuple(int(axis) for axis in unequal[0])
    more = f" ({len(unequal)} of {one.size} entries differ)" if one.size > 1 else ""
    return f"{list(index)} is {other[index]:.9g} in the file, {one[index]:.9g} in the graph{more}"


def _short(value: Any) -> str:
    array = np.asarray(value)
    return f"an array of shape {array.shape}" if array.ndim and array.size > 4 else f"{value!r:.60}"
