"""Models as files: whole, or with the large arrays of both forms in one file beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from exporters.onnx_model import INSIDE

WEIGHTS = "weights.bin"
ALIGNMENT = 4096  # so that a runtime can map the arrays into memory
LEAST_BYTES = 1024  # smaller arrays stay in the model


def save_models(models: Mapping[str, Callable[[], onnx.ModelProto]], directory: Path, external_above: int) -> bool:
    """Write models of one network, one after another, so that only one is in memory.

    Args:
        models: By file name, what makes the model.
        directory: Where.
        external_above: Bytes of arrays in a model beyond which they go into ``weights.bin``, once for all models.

    Returns:
        True if there is a ``weights.bin``.
    """
    places: dict[str, tuple[int, int]] = {}
    for name, make in models.items():
        model = make()
        if sum(len(tensor.raw_data) for tensor in tensors_of(model.graph)) > external_above:
            _move_out(model, directory / WEIGHTS, places)
        (directory / name).write_bytes(model.SerializeToString(deterministic=True))
    return bool(places)


def _move_out(model: onnx.ModelProto, path: Path, places: dict[str, tuple[int, int]]) -> None:
    """Move arrays into a file, except those that are there; ``places`` holds offset and length of each, by name."""
    with path.open("ab") as file:
        for tensor in tensors_of(model.graph):
            if len(tensor.raw_data) < LEAST_BYTES:
                continue
            name = tensor.name.removeprefix(INSIDE)
            if name not in places:
                file.write(bytes(-file.tell() % ALIGNMENT))
                places[name] = (file.tell(), len(tensor.raw_data))
                file.write(tensor.raw_data)
            offset, length = places[name]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers of a graph and of the graphs in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from tensors_of(attribute.g)
