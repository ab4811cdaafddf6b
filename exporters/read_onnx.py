"""Reading our own ONNX files: what a model says of itself, and the graph it was written from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from exporters.onnx_files import tensors_of
from exporters.onnx_model import FORMAT, INSIDE, StateValue, sequence_model, step_model
from exporters.onnx_neurons import OPSETS
from slamp.errors import ArtifactError, SlampError
from slamp.graph import SpikingGraph, graph_from_parts
from slamp.nodes import NEURON, NODE_TYPES, Shape

# What protobuf and onnx raise for a file that is damaged, truncated or something else.
UNREADABLE: tuple[type[Exception], ...] = (
    DecodeError,
    onnx.checker.ValidationError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    MemoryError,
    RuntimeError,
)


@dataclass(frozen=True)
class Facts:
    """What a model states about itself, checked against its inputs and outputs.

    Attributes:
        form: "step" or "sequence".
        dt: Time step in seconds.
        input: Name of the input and its shape, without batch and time.
        output: Name of the output, and "spikes" or "values".
        layers: Every layer of neurons and what is shown of it, "spikes" or "v".
        states: The states, in order.
        starts: Values of the initializers that states start as, by name of the state.
        graph_hash: Of the graph the model was written from.
        largest_input: Of a fixed-point graph, what whole numbers of an input may reach; else None.
    """

    form: str
    dt: float
    input: tuple[str, Shape]
    output: tuple[str, str]
    layers: Mapping[str, str]
    states: tuple[StateValue, ...]
    starts: Mapping[str, np.ndarray]
    graph_hash: str
    largest_input: float | None


def load_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read a model, with the weights that lie beside it if asked for; raises `ArtifactError` if it cannot be read."""
    path = Path(path)
    if not path.is_file():
        found = "is no file" if path.exists() else "there is no such file"
        raise ArtifactError(f"{path}: {found}; name a .onnx file")
    try:
        model = onnx.load(path, load_external_data=weights)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    for tensor in tensors_of(model.graph):
        if tensor.data_location == onnx.TensorProto.DEFAULT:
            tensor.ClearField("data_location")  # set by onnx where it has read the weights
    return model


def facts_of(model: onnx.ModelProto, path: Path) -> Facts:
    """Return what a model states about itself.

    Raises:
        ArtifactError: slamp did not write it, it has another opset, or other inputs and outputs than it states.
    """
    said = {entry.key: entry.value for entry in model.metadata_props}
    if said.get("format") != FORMAT:
        raise ArtifactError(
            f"{path}: its metadata name the format {said.get('format')!r}, allowed is {FORMAT!r}; "
            "allowed are files that this version of slamp wrote"
        )
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != OPSETS:
        raise ArtifactError(f"{path}: its operator sets are {opsets}, allowed are {OPSETS}; export again")
    try:
        states = tuple(
            StateValue(str(name), tuple(shape), start if isinstance(start, str) else float(start), bool(whole))
            for name, shape, start, whole in json.loads(said["states"])
        )
        entering, leaving = json.loads(said["input"]), json.loads(said["output"])
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        facts = Facts(
            form=said["form"],
            dt=float(said["dt"]),
            input=(str(entering["name"]), tuple(int(size) for size in entering["shape"])),
            output=(str(leaving["name"]), str(leaving["kind"])),
            layers=json.loads(said["layers"]),
            states=states,
            starts={
                each.name: numpy_helper.to_array(tensors[each.start], str(path.parent))
                for each in states
                if isinstance(each.start, str)
            },
            graph_hash=said["graph_hash"],
            largest_input=float(said["largest_input"]) if said["arithmetic"] == "fixed-point" else None,
        )
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    stepwise = facts.form == "step"
    inputs = [facts.input[0], *(each.name for each in states if stepwise)]
    outputs = [facts.output[0], *facts.layers, *(each.out for each in states)]
    for what, stated, found in (("input", inputs, model.graph.input), ("output", outputs, model.graph.output)):
        names = [value.name for value in found]
        if names != stated:
            strange = sorted(set(names) ^ set(stated)) or names
            raise ArtifactError(
                f"{path}: its {what}s are not those its metadata state ({strange[0]!r}); "
                f"allowed are {', '.join(stated)}; it was changed after slamp wrote it; export again"
            )
    return facts


def read_graph(path: Path) -> SpikingGraph:
    """Return the graph a model was written from, bit for bit.

    Raises:
        ArtifactError: The file is missing or damaged, another tool wrote it, or it says something else than its graph.
    """
    path = Path(path)
    model = load_model(path)
    facts = facts_of(model, path)
    try:
        graph = _graph(model, facts)
    except SlampError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if graph.hash != facts.graph_hash:
        raise ArtifactError(
            f"{path}: its content has hash {graph.hash[:12]}, it states {facts.graph_hash:.12}; "
            "it was changed after slamp wrote it; export again"
        )
    expected = step_model(graph) if facts.form == "step" else sequence_model(graph)
    if line := _difference(expected, model):
        raise ArtifactError(f"{path}: {line}; the file was changed after slamp wrote it; export again")
    return graph


def _graph(model: onnx.ModelProto, facts: Facts) -> SpikingGraph:
    said = {entry.key: entry.value for entry in model.metadata_props}
    header, constants = json.loads(said["graph"]), json.loads(said["constants"])
    tensors = {
        tensor.name.removeprefix(INSIDE): numpy_helper.to_array(tensor) for tensor in _body(model, facts).initializer
    }
    shapes = {each.name: each.shape for each in facts.states}
    arrays: dict[str, np.ndarray] = {}
    for entry in header["nodes"]:
        for key in entry["arrays"]:
            arrays[f"{entry['name']}/{key}"] = _array(entry, key, tensors, constants, shapes)
    return graph_from_parts(header, arrays)


def _array(
    entry: Mapping[str, Any],
    key: str,
    tensors: Mapping[str, np.ndarray],
    constants: Mapping[str, Any],
    shapes: Mapping[str, Shape],
) -> np.ndarray:
    name = entry["name"]
    if f"{name}/{key}" in constants:
        shape, values = constants[f"{name}/{key}"]
        flat = np.array(values, np.float32)
        return np.broadcast_to(flat, shape) if flat.ndim == 0 else flat.reshape(shape)
    array = tensors[f"{name}/{key}"]
    if issubclass(NODE_TYPES[entry["type"]], NEURON):
        return np.broadcast_to(array, shapes[f"{name}/v"])
    return array.reshape(-1) if entry["type"] == "Scale" else array


def _body(model: onnx.ModelProto, facts: Facts) -> onnx.GraphProto:
    if facts.form == "step":
        return model.graph
    (scan,) = (node for node in model.graph.node if node.op_type == "Scan")
    body: onnx.GraphProto = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    return body


def _difference(expected: onnx.ModelProto, found: onnx.ModelProto) -> str:
    """Say what a model states otherwise than expected; its producer aside; empty if nothing."""
    if expected.graph.node != found.graph.node or len(expected.functions) != len(found.functions):
        for one, other in zip(expected.graph.node, found.graph.node, strict=False):
            if one != other:
                return f"operator {other.name or other.op_type!r} is not what its graph says"
        return "its operators are not what its graph says"
    for one_function, other_function in zip(expected.functions, found.functions, strict=True):
        if one_function != other_function:
            return f"function {other_function.name!r} is not what its graph says"
    return "" if expected.graph == found.graph else "its initializers, inputs or outputs are not what its graph says"


def _unreadable(path: Path, error: BaseException) -> ArtifactError:
    return ArtifactError(
        f"{path}: not a readable ONNX file of slamp ({type(error).__name__}: {error}); it is damaged, truncated or of "
        "another format; export again"
    )
