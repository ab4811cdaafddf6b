"""The ``.net`` file of a chain of layers: written, read back, and held against the layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from exporters.net_format import NetLayer
from exporters.net_layers import net_layers
from exporters.net_lines import input_lines
from exporters.read_net import read_net
from slamp.errors import ArtifactError, UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import Shape


def features_of(path: Path) -> Shape:
    """Return the shape of the input a file takes, lines included; raises `ArtifactError` if it cannot be read."""
    try:
        with h5py.File(path, "r") as file:
            return tuple(int(size) for size in file["layer/0/shape"][()])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: is damaged ({error}); export again") from error


def write_net(path: Path, features: tuple[int, ...], layers: list[NetLayer]) -> None:
    """Write layers to a new file; ``features`` is the shape of the graph's input, without lines."""
    with h5py.File(path, "w") as file:
        lines = input_lines(features, layers)
        _put(file, 0, "input", {"shape": np.array((features[0] + lines, *features[1:]))})
        index = 1
        for layer in layers:
            if layer.flattened:
                _put(file, index, "flatten", {})
                index += 1
            fields = {"shape": np.array(layer.shape), "weight": layer.weight.astype(np.int32)}
            fields |= {key: np.array(value) for key, value in layer.settings.items()}
            for key, optional in _optional(layer).items():
                if optional is not None:
                    fields[key] = optional.astype(np.int32)
            group = _put(file, index, layer.kind if layer.recurrent is None else "dense_rec", fields)
            group["neuron/type"] = np.bytes_("CUBA")
            for key, value in layer.neuron_fields.items():
                group[f"neuron/{key}"] = value
            group["neuron/refDelay"] = 1
            group["neuron/gradedSpike"] = False
            index += 1


def _optional(layer: NetLayer) -> dict[str, np.ndarray | None]:
    return {"bias": layer.bias, "delay": layer.delay, "weight_rec": layer.recurrent}


def _put(file: h5py.File, index: int, kind: str, fields: dict[str, np.ndarray]) -> h5py.Group:
    group = file.create_group(f"layer/{index}")
    group.create_dataset("type", (1,), "S10", [kind.encode("ascii")])
    for key, value in fields.items():
        group[key] = value
    return group


def check_written(path: Path, graph: SpikingGraph, layers: list[NetLayer]) -> None:
    """Read the file back and hold it against the layers; raises `UnsupportedNodeError` if anything is different."""
    found = next(differences(path, layers), "")
    if found:
        raise UnsupportedNodeError(f"graph: the file states otherwise: {found}")
    again = net_layers(read_net(path, dt=graph.dt))
    if [layer.neuron_fields for layer in again] != [layer.neuron_fields for layer in layers]:
        raise UnsupportedNodeError("graph: the file read back has other neurons")


def differences(path: Path, layers: list[NetLayer]) -> Iterator[str]:
    """Yield what the layers of a file state otherwise than ``layers``."""
    with h5py.File(path, "r") as file:
        groups = [file[f"layer/{index}"] for index in range(len(file["layer"]))]
        groups = [group for group in groups if group["type"][0].decode() not in ("input", "flatten")]
        if len(groups) != len(layers):
            yield f"the file has {len(groups)} layers with weights, the graph {len(layers)}"
            return
        for layer, group in zip(layers, groups, strict=True):
            expected = {"weight": layer.weight, **layer.settings, **_optional(layer)}
            expected |= {f"neuron/{key}": value for key, value in layer.neuron_fields.items()}
            for key, value in expected.items():
                if value is None:
                    if key in group:
                        yield f"{layer.neuron}: {key} is in the file, the graph has none"
                    continue
                if key not in group:
                    yield f"{layer.neuron}: {key} is missing in the file"
                    continue
                wanted, found = np.asarray(value, dtype=np.float64), np.asarray(group[key][()], dtype=np.float64)
                if wanted.shape != found.shape:
                    yield f"{layer.neuron}: {key} has shape {found.shape} in the file, {wanted.shape} in the graph"
                elif not np.array_equal(wanted, found):
                    index = tuple(int(axis) for axis in np.argwhere(wanted != found)[0])
                    at = list(index) if index else ""
                    yield f"{layer.neuron}: {key}{at} is {found[index]:g} in the file, {wanted[index]:g} in the graph"
