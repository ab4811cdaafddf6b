"""The spiking graph: what a network means, independent of the tool it came from or goes to."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from slamp.archives import read_arrays
from slamp.arithmetic import ARITHMETICS, Arithmetic, FixedPoint, Float32, LayerScale, fixed_point_problems
from slamp.atomic import write_atomically
from slamp.delays import holds_back
from slamp.errors import ArtifactError, GraphError
from slamp.nodes import (
    NODE_TYPES,
    SPIKING,
    WEIGHTED,
    Delay,
    Input,
    Node,
    Output,
    Shape,
    Spiking,
    Weighted,
    arrays_of,
    frozen_array,
    settings_of,
    uniform,
)
from slamp.shapes import output_shape

NodeT = TypeVar("NodeT", bound=Node)
FORMAT = "slamp-graph-1"
MAX_STEPS = 1 << 24


@dataclass(frozen=True, eq=False)
class SpikingGraph:
    """A discrete-time spiking network: nodes, ordered edges, time step, arithmetic.

    Several edges into one node are added one by one, in the order of ``edges``. Node names have no dot and no slash.
    Construct it, and it is checked: one `Input`, one `Output`, no cycle but through a `Delay`, shapes that fit, finite
    numbers.

    Attributes:
        nodes: Node by name, in the order the network computes them.
        edges: (source, target) pairs.
        dt: Time step in seconds.
        arithmetic: `Float32` or `FixedPoint`; the latter says what the numbers in the nodes mean.
        parameters: For weighted nodes, the name of the module parameter behind the weight (not part of the meaning).
        device: torch device the graph is simulated on (not part of the meaning).
        scales: For layers of neurons whose weights were trained in integers, the scale of these (not part of the
            meaning, not saved).
        readout: How the module reads its output over time: "sum", "mean", "max" or "last"; "" if it returns every step
            (not part of the meaning).

    Raises:
        GraphError: Any of the checks fails; the message names the node.
    """

    nodes: Mapping[str, Node]
    edges: tuple[tuple[str, str], ...]
    dt: float
    arithmetic: Arithmetic = field(default_factory=Float32)
    parameters: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    scales: Mapping[str, LayerScale] = field(default_factory=dict)
    readout: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", MappingProxyType(dict(self.nodes)))
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))
        _check_structure(self)
        _check_numbers(self)
        assert len(self.shapes) == len(self.nodes)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Node names so that every node follows its sources; a delay of a step and more follows nothing."""
        held = {name for name, node in self.nodes.items() if holds_back(node)}
        waiting = {name: 0 if name in held else len(self.sources(name)) for name in self.nodes}
        order: list[str] = []
        ready = [name for name, count in waiting.items() if count == 0]
        while ready:
            name = ready.pop(0)
            order.append(name)
            for target in self.targets(name):
                waiting[target] -= 1
                if waiting[target] == 0 and target not in held:
                    ready.append(target)
        if len(order) != len(self.nodes):
            cycle = sorted(set(self.nodes) - set(order))
            raise GraphError(f"{cycle[0]}: lies on a cycle; allowed are cycles through a Delay of a step or more")
        return tuple(order)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Output shape of every node, without batch axis."""
        shapes: dict[str, Shape] = {}
        for name in self.order:
            node = self.nodes[name]
            if isinstance(node, Delay) and holds_back(node):
                shapes[name] = node.steps.shape  # its sources may come later; they are checked below
                continue
            found = [shapes[source] for source in self.sources(name)]
            if len(set(found)) > 1:
                raise GraphError(f"{name}: its inputs have shapes {found}; allowed are equal shapes")
            shapes[name] = output_shape(name, node, found[0] if found else node.shape)  # type: ignore[union-attr]  # only Input has no source
        for name in [name for name, node in self.nodes.items() if holds_back(node)]:
            for source in self.sources(name):
                output_shape(name, self.nodes[name], shapes[source])
        return MappingProxyType(shapes)

    @cached_property
    def hash(self) -> str:
        """sha256 over nodes, edges, dt and arithmetic: equal hashes, equal meaning."""
        digest = hashlib.sha256(json.dumps(_header(self), sort_keys=True).encode())
        for name, node in self.nodes.items():
            for key, array in arrays_of(node).items():
                digest.update(f"{name}/{key}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def input(self) -> str:
        """Name of the input node."""
        return next(name for name, node in self.nodes.items() if isinstance(node, Input))

    @property
    def output(self) -> str:
        """Name of the output node."""
        return next(name for name, node in self.nodes.items() if isinstance(node, Output))

    @property
    def weighted(self) -> dict[str, Weighted]:
        """Nodes with a weight, in computing order."""
        return {name: node for name in self.order if isinstance(node := self.nodes[name], WEIGHTED)}

    @property
    def spiking(self) -> dict[str, Spiking]:
        """Nodes that spike, in computing order."""
        return {name: node for name in self.order if isinstance(node := self.nodes[name], SPIKING)}

    def sources(self, name: str) -> tuple[str, ...]:
        """Sources of the edges into a node, in edge order."""
        return tuple(source for source, target in self.edges if target == name)

    def targets(self, name: str) -> tuple[str, ...]:
        """Targets of the edges out of a node, in edge order."""
        return tuple(target for source, target in self.edges if source == name)

    def with_nodes(self, changed: Mapping[str, Node]) -> SpikingGraph:
        """Return a graph in which the named nodes are replaced."""
        unknown = sorted(set(changed) - set(self.nodes))
        if unknown:
            raise GraphError(f"{unknown[0]}: no such node; the graph has {list(self.nodes)}")
        return SpikingGraph(
            {**self.nodes, **changed},
            self.edges,
            self.dt,
            self.arithmetic,
            self.parameters,
            self.device,
            readout=self.readout,
        )

    def save(self, path: str | Path) -> None:
        """Write the graph as one npz: a JSON header and the arrays, no pickle. An existing file is replaced at once."""
        header = {**graph_header(self), "hash": self.hash}
        arrays: dict[str, np.ndarray] = {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}
        for name, node in self.nodes.items():
            for key, array in arrays_of(node).items():
                arrays[f"{name}/{key}"] = _stored(array)
        buffer = io.BytesIO()
        save = np.savez_compressed if worth_compressing(self) else np.savez
        save(buffer, allow_pickle=False, **arrays)
        write_atomically(Path(path), buffer.getbuffer())


def load_graph(path: str | Path) -> SpikingGraph:
    """Read a graph written by `SpikingGraph.save`, bit for bit.

    Raises:
        ArtifactError: The file is missing, damaged, or its content does not have the hash it states.
    """
    path = Path(path)
    try:
        arrays = read_arrays(path)
        header = json.loads(arrays.pop("header").tobytes().decode())
        graph = _from_parts(header, arrays)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: there is no such graph file") from error
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a readable {FORMAT} file ({error}); save the graph again") from error
    if graph.hash != header.get("hash"):
        stated = str(header.get("hash"))
        raise ArtifactError(f"{path}: the content has hash {graph.hash[:12]}, the file states {stated:.12}")
    return graph


def worth_compressing(graph: SpikingGraph) -> bool:
    """True unless most weights are there: numbers without zeros take minutes and stay as large."""
    weights = [node.weight for node in graph.weighted.values()]
    size = sum(weight.size for weight in weights)
    return size < 1 << 20 or 2 * sum(int(np.count_nonzero(weight)) for weight in weights) < size


def graph_header(graph: SpikingGraph) -> dict[str, Any]:
    """Return everything of a graph that is not an array, ready for JSON."""
    about = {"parameters": dict(graph.parameters), "readout": graph.readout}
    return {**_header(graph), **{key: value for key, value in about.items() if key == "parameters" or value}}


def graph_from_parts(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> SpikingGraph:
    """Build a graph from `graph_header` and arrays named ``node/field``; raises `ArtifactError` where they disagree."""
    try:
        return _from_parts(header, arrays)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f"graph header: {type(error).__name__} {error}; it was not written by slamp") from error


def _header(graph: SpikingGraph) -> dict[str, Any]:
    nodes = [
        {"name": name, "type": type(node).__name__, "arrays": sorted(arrays_of(node)), **_json_settings(node)}
        for name, node in graph.nodes.items()
    ]
    return {
        "format": FORMAT,
        "dt": graph.dt.hex(),
        "arithmetic": graph.arithmetic.name,
        "nodes": nodes,
        "edges": [list(edge) for edge in graph.edges],
    }


def _json_settings(node: Node) -> dict[str, Any]:
    return {"settings": {key: _as_lists(value) for key, value in settings_of(node).items()}}


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _from_parts(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> SpikingGraph:
    if header.get("format") != FORMAT:
        raise ValueError(f"format is {header.get('format')!r}, allowed is {FORMAT!r}")
    arithmetic = ARITHMETICS.get(str(header.get("arithmetic")))
    if arithmetic is None:
        raise ValueError(f"arithmetic is {header.get('arithmetic')!r}, allowed are {', '.join(ARITHMETICS)}")
    nodes: dict[str, Node] = {}
    for entry in header["nodes"]:
        kind = NODE_TYPES[entry["type"]]
        values: dict[str, Any] = {key: _as_tuples(value) for key, value in entry["settings"].items()}
        for key in entry["arrays"]:
            values[key] = _restored(arrays[f"{entry['name']}/{key}"])
        nodes[entry["name"]] = kind(**values)
    edges = tuple((str(source), str(target)) for source, target in header["edges"])
    readout = str(header.get("readout", ""))
    parameters = header.get("parameters", {})
    return SpikingGraph(nodes, edges, float.fromhex(header["dt"]), arithmetic(), parameters, readout=readout)


def _stored(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array)


def _restored(array: np.ndarray) -> np.ndarray:
    if array.size > 1 and bool((array == array.flat[0]).all()) and not np.signbit(array).any():
        return uniform(float(array.flat[0]), array.shape)
    return frozen_array(array)


def _check_structure(graph: SpikingGraph) -> None:
    for name in graph.nodes:
        if not name or any(mark in name for mark in "./"):
            raise GraphError(f"{name!r}: node names must not be empty or hold '.' or '/'; rename the node")
    for end in [end for edge in graph.edges for end in edge]:
        if end not in graph.nodes:
            raise GraphError(f"{end}: an edge names it but there is no such node; the graph has {list(graph.nodes)}")
    if len(set(graph.edges)) != len(graph.edges):
        raise GraphError("edges: an edge occurs twice; list each edge once")
    for kind in (Input, Output):
        names = [name for name, node in graph.nodes.items() if isinstance(node, kind)]
        if len(names) != 1:
            raise GraphError(f"graph: found {len(names)} {kind.__name__} nodes {names}; allowed is one")
    for name, node in graph.nodes.items():
        if not graph.sources(name) and not isinstance(node, Input):
            raise GraphError(f"{name}: nothing leads into it; add an edge or drop the node")
        if not graph.targets(name) and not isinstance(node, Output):
            raise GraphError(f"{name}: nothing leads out of it; add an edge or drop the node")
    if graph.readout not in ("", "sum", "mean", "max", "last"):
        raise GraphError(f"graph: readout is {graph.readout!r}; allowed are sum, mean, max, last, or nothing")
    if not (np.isfinite(graph.dt) and graph.dt > 0):
        raise GraphError(f"graph: dt is {graph.dt!r}; allowed is a positive number of seconds")


def _check_numbers(graph: SpikingGraph) -> None:
    if isinstance(graph.arithmetic, FixedPoint):
        for name, node in graph.nodes.items():
            for problem in fixed_point_problems(name, node):
                raise GraphError(problem)
    for name, node in graph.nodes.items():
        for key, array in arrays_of(node).items():
            if array.dtype != np.float32:
                raise GraphError(f"{name}: {key} is {array.dtype}; allowed is float32")
            if not bool(np.isfinite(array).all()):
                index = tuple(int(axis) for axis in np.argwhere(~np.isfinite(array))[0])
                raise GraphError(f"{name}: {key}{list(index)} is {array[index]}; allowed are finite numbers")
            if isinstance(node, Delay) and not bool(((array >= 0) & (array % 1 == 0)).all()):
                held = f"{key} holds {array.min():g} to {array.max():g}"
                raise GraphError(f"{name}: {held}; allowed are whole steps, 0 or more")
            if key == "refractory_steps" and not bool(((array >= 0) & (array % 1 == 0) & (array <= MAX_STEPS)).all()):
                held = f"{key} holds {array.min():g} to {array.max():g}"
                raise GraphError(f"{name}: {held}; allowed are whole steps, 0 to 2^24, which float32 counts exactly")
            if key.startswith("decay") and not bool(((array >= 0) & (array <= 1)).all()):
                worst = float(array.max() if array.max() > 1 else array.min())
                raise GraphError(
                    f"{name}: {key} is {worst:g}; allowed is 0 to 1; it is dt times the inverse time constant, "
                    "so choose a smaller dt or a longer time constant"
                )
