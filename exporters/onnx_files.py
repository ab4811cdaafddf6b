"""Models as files: whole, or with the large arrays of both forms in one file beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from exporters.onnx_model import INSIDE

WEIGHTS = "weights.bin"
ALIGNMENT = 4096  # so that a runtime can map the arrays into memory
LEAST_BYTES = 1024  # smaller arrays stay in the model


def save_models(models: dict[str, onnx.ModelProto], directory: Path, external_above: int) -> bool:
    """Write models of one network, by file name.

    Args:
        models: They are changed: arrays that go into ``weights.bin`` leave them.
        directory: Where.
        external_above: Bytes of arrays in a model beyond which they go into ``weights.bin``, once for all models.

    Returns:
        True if there is a ``weights.bin``.
    """
    largest = max(sum(len(tensor.raw_data) for tensor in tensors_of(model.graph)) for model in models.values())
    if largest > external_above:
        _move_out(models, directory / WEIGHTS)
    for name, model in models.items():
        (directory / name).write_bytes(model.SerializeToString(deterministic=True))
    return largest > external_above


def _move_out(models: dict[str, onnx.ModelProto], path: Path) -> None:
    places: dict[str, tuple[int, int]] = {}
    with path.open("wb") as file:
        for model in models.values():
            for tensor in tensors_of(model.graph):
                if len(tensor.raw_data) < LEAST_BYTES:
                    continue
                name = tensor.name.removeprefix(INSIDE)
                if name not in places:
                    file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
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
