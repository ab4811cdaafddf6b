"""Read the NIR files of other tools: the equations of NIR, taken literally, stepped by forward Euler with a given dt.

NIR states neither dt nor reset nor which edge of a cycle is late. Here dt and the reset are given; a cycle that passes
a Delay of a step or more is late by that delay, and a neuron that feeds itself back through weights alone hears its
spikes of the step before. Input gains (``r``, ``w_in``, and the dt of IF and CubaLIF) go into the weights before the
neurons, each product rounded once to float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nir
import numpy as np

from exporters.to_nir import UNREADABLE, read_nir
from slamp.errors import ArtifactError, GraphError, UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LI,
    LIF,
    WEIGHTED,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    Reset,
    Shape,
    SumPool2d,
    frozen_array,
    per_neuron,
    uniform,
)
from slamp.shapes import output_shape

Edges = list[tuple[str, str]]


def read_foreign(path: Path, *, dt: float, reset: Reset = "value") -> SpikingGraph:
    """Return the network of a NIR file of any tool, at a time step and with a reset its format does not state.

    Args:
        path: The file.
        dt: Time step in the unit of the file's time constants; some tools write these in steps, then it is 1.
        reset: "value" or "subtract", for all neurons.

    Raises:
        ArtifactError: The file is missing, damaged, or its nodes contradict one another.
        UnsupportedNodeError: A node or a cycle has no counterpart; the message names it.
    """
    if reset not in ("value", "subtract"):
        raise GraphError(f"reset: {reset!r}; allowed are value, subtract")
    network = read_nir(path)
    try:
        return lift_foreign(network, dt, reset)
    except (UnsupportedNodeError, GraphError) as error:
        raise type(error)(f"{path}: {error}") from error
    except UNREADABLE as error:
        raise ArtifactError(f"{path}: its nodes cannot be read ({type(error).__name__}: {error})") from error


def lift_foreign(network: nir.NIRGraph, dt: float, reset: Reset) -> SpikingGraph:
    """As `read_foreign`, from a NIR graph in memory."""
    found, edges = _flat(network)
    edges = list(dict.fromkeys(edges))
    found, edges = _renamed(found, edges)
    held = {name for name, node in found.items() if isinstance(node, nir.Delay) and _steps(name, node, dt).min() >= 1}
    order = _order(found, edges, held)
    edges = sorted(edges, key=lambda edge: (order.index(edge[1]), order.index(edge[0])))
    late = _late_edges(found, [edge for edge in edges if edge[1] not in held], order)
    shapes: dict[str, Shape] = {}
    nodes: dict[str, Node] = {}
    gains: dict[str, np.ndarray] = {}
    for name in order:
        sources = [
            source for source, target in edges if target == name and (source, target) not in late and source in shapes
        ]
        shape = shapes[sources[0]] if sources else ()
        if not sources and not isinstance(found[name], nir.Input):
            shape = _own_shape(name, found[name])
        nodes[name], gain = _node(name, found[name], shape, dt, reset)
        if gain is not None:
            gains[name] = gain
        given = nodes[name]
        shapes[name] = output_shape(name, given, given.shape if isinstance(given, Input) else shape)
    for source, target in late:
        delay = f"{source}_last"
        if delay not in nodes:
            nodes[delay] = Delay(uniform(1.0, shapes[source]))
            edges.append((source, delay))
        edges[edges.index((source, target))] = (delay, target)
    graph = SpikingGraph(nodes, tuple(edges), dt)
    return graph.with_nodes(_gained(graph, gains))


def _flat(network: nir.NIRGraph, prefix: str = "") -> tuple[dict[str, Any], Edges]:
    """Return the nodes and edges of a graph with its subgraphs opened."""
    nodes: dict[str, Any] = {}
    edges: Edges = []
    enters: dict[str, str] = {}
    leaves: dict[str, str] = {}
    for name, node in network.nodes.items():
        if not isinstance(node, nir.NIRGraph):
            nodes[f"{prefix}{name}"] = node
            continue
        inner, inner_edges = _flat(node, f"{prefix}{name}.")
        first = [key for key, value in inner.items() if isinstance(value, nir.Input)]
        last = [key for key, value in inner.items() if isinstance(value, nir.Output)]
        if len(first) != 1 or len(last) != 1:
            raise UnsupportedNodeError(f"{prefix}{name}: a subgraph with {len(first)} inputs and {len(last)} outputs")
        (enters[f"{prefix}{name}"],) = (target for source, target in inner_edges if source == first[0])
        (leaves[f"{prefix}{name}"],) = (source for source, target in inner_edges if target == last[0])
        nodes |= {key: value for key, value in inner.items() if key not in (first[0], last[0])}
        edges += [edge for edge in inner_edges if first[0] not in edge and last[0] not in edge]
    for source, target in network.edges:
        start, end = f"{prefix}{source}", f"{prefix}{target}"
        edges.append((leaves.get(start, start), enters.get(end, end)))
    return nodes, edges


def _renamed(nodes: Mapping[str, Any], edges: Edges) -> tuple[dict[str, Any], Edges]:
    short = {name: name.replace(".", "_").replace("/", "_") for name in nodes}
    if len(set(short.values())) != len(short):
        raise UnsupportedNodeError(f"nodes: names {sorted(nodes)} are one after replacing '.' and '/'; rename them")
    return {short[name]: node for name, node in nodes.items()}, [(short[a], short[b]) for a, b in edges]


def _order(nodes: Mapping[str, Any], edges: Edges, held: set[str]) -> list[str]:
    """Names from the input on, every node after its sources as far as there is no cycle without one of ``held``."""
    targets = {name: [b for a, b in edges if a == name and b not in held] for name in nodes}
    inputs = [name for name, node in nodes.items() if isinstance(node, nir.Input)]
    if len(inputs) != 1:
        raise UnsupportedNodeError(f"graph: {len(inputs)} inputs; allowed is one")
    finished: list[str] = []
    entered: set[str] = set()

    def visit(name: str) -> None:
        if name in entered:
            return
        entered.add(name)
        for target in targets[name]:
            visit(target)
        finished.append(name)

    for name in (*sorted(held), inputs[0]):
        visit(name)
    if len(finished) != len(nodes):
        lost = sorted(set(nodes) - set(finished))
        raise UnsupportedNodeError(f"{lost[0]}: nothing leads from the input to it; allowed are connected networks")
    return finished[::-1]


def _late_edges(nodes: Mapping[str, Any], edges: Edges, order: list[str]) -> Edges:
    """Return the edges out of neurons that close a cycle, so that what they carry arrives a step later."""
    place = {name: k for k, name in enumerate(order)}
    late: Edges = []
    for source, target in edges:
        if place[source] < place[target]:
            continue
        name, after = source, target
        while not isinstance(nodes[name], NEURON_TYPES):
            before = [a for a, b in edges if b == name]
            if len(before) != 1:
                raise UnsupportedNodeError(f"{name}: adds several inputs on a cycle; allowed are weights alone")
            name, after = before[0], name
        late.append((name, after))
    return list(dict.fromkeys(late))


NEURON_TYPES = (nir.IF, nir.LIF, nir.CubaLIF)


def _own_shape(name: str, node: Any) -> Shape:
    """Shape of the input of a node whose only source is late: linear weights and delays of every feature know it."""
    if isinstance(node, nir.Delay) and np.ndim(node.delay):
        return tuple(int(size) for size in np.shape(node.delay))
    if isinstance(node, (nir.Linear, nir.Affine)):
        return (int(node.weight.shape[1]),)
    raise UnsupportedNodeError(f"{name}: a {type(node).__name__} on a cycle; allowed are linear layers")


def _node(name: str, node: Any, shape: Shape, dt: float, reset: Reset) -> tuple[Node, np.ndarray | None]:
    """Return a node and, of neurons, the gain of their input."""
    match node:
        case nir.Input():
            (found,) = node.input_type.values()
            return Input(tuple(int(size) for size in found)), None
        case nir.Output():
            return Output(shape), None
        case nir.Linear():
            return Linear(frozen_array(node.weight)), None
        case nir.Affine():
            bias = np.broadcast_to(np.asarray(node.bias, dtype=np.float32), node.weight.shape[:1])
            return Affine(frozen_array(node.weight), frozen_array(bias)), None
        case nir.Conv1d() | nir.Conv2d():
            return _conv(node), None
        case nir.SumPool2d() | nir.AvgPool2d():
            return _pool(name, node), None
        case nir.Delay():
            return Delay(per_neuron(_steps(name, node, dt), shape, where=f"{name}: delay")), None
        case nir.Flatten():
            end = int(node.end_dim) % len(shape)
            return Flatten(int(node.start_dim), end), None
        case nir.IF() | nir.LIF() | nir.CubaLIF() | nir.LI() | nir.CubaLI():
            return _neuron(name, node, shape, dt, reset)
    raise UnsupportedNodeError(f"{name}: {type(node).__name__} is not read from the files of other tools")


def _steps(name: str, node: Any, dt: float) -> np.ndarray:
    """Return delays in steps; raises `UnsupportedNodeError` unless these are whole but for rounding."""
    steps = np.asarray(node.delay, dtype=np.float64) / dt
    whole = np.rint(steps)
    if not bool((np.isfinite(steps) & (steps >= 0) & (np.abs(steps - whole) <= 1e-6 * np.maximum(whole, 1))).all()):
        raise UnsupportedNodeError(f"{name}: delays by {np.max(steps):g} steps of {dt:g}; allowed are whole steps")
    return whole.astype(np.float32)


def _conv(node: Any) -> Node:
    axes = 1 if isinstance(node, nir.Conv1d) else 2
    kind = Conv1d if axes == 1 else Conv2d
    padding: Any = node.padding
    if isinstance(padding, str) and padding == "valid":
        padding = 0
    padding = padding if isinstance(padding, str) else _numbers(padding, axes)
    bias = np.broadcast_to(np.asarray(node.bias, dtype=np.float32), node.weight.shape[:1])
    return kind(
        frozen_array(node.weight),
        frozen_array(bias) if bias.any() else None,
        _numbers(node.stride, axes),
        padding,
        _numbers(node.dilation, axes),
        int(node.groups),
    )


def _pool(name: str, node: Any) -> Node:
    kernel, stride, padding = (_numbers(value, 2) for value in (node.kernel_size, node.stride, node.padding))
    if isinstance(node, nir.AvgPool2d):
        return AvgPool2d((kernel[0], kernel[1]), (stride[0], stride[1]), (padding[0], padding[1]))
    if any(padding):
        raise UnsupportedNodeError(f"{name}: sum pooling with padding {padding}; allowed is none")
    return SumPool2d((kernel[0], kernel[1]), (stride[0], stride[1]))


def _numbers(values: Any, axes: int) -> tuple[int, ...]:
    return tuple(int(value) for value in np.broadcast_to(np.asarray(values), (axes,)))


def _neuron(name: str, node: Any, shape: Shape, dt: float, reset: Reset) -> tuple[Node, np.ndarray]:
    def values(key: str) -> np.ndarray:
        found = getattr(node, key)
        return per_neuron(np.zeros(1) if found is None else found, shape, where=f"{name}: {key}")

    def exact(key: str) -> np.ndarray:
        return np.broadcast_to(np.asarray(getattr(node, key), dtype=np.float64), shape)

    if isinstance(node, nir.IF):
        return IF(values("v_threshold"), values("v_reset"), reset), dt * exact("r")
    if isinstance(node, (nir.CubaLIF, nir.CubaLI)):
        syn, mem = frozen_array(dt / exact("tau_syn")), frozen_array(dt / exact("tau_mem"))
        gain = exact("r") * exact("w_in") * dt / exact("tau_syn")
        if isinstance(node, nir.CubaLI):
            return CubaLI(syn, mem, values("v_leak")), gain
        return CubaLIF(syn, mem, values("v_leak"), values("v_threshold"), values("v_reset"), reset), gain
    decay = frozen_array(dt / exact("tau"))
    if isinstance(node, nir.LI):
        return LI(decay, values("v_leak")), exact("r")
    return LIF(decay, values("v_leak"), values("v_threshold"), values("v_reset"), reset), exact("r")


def _gained(graph: SpikingGraph, gains: Mapping[str, np.ndarray]) -> dict[str, Node]:
    """Return the weighted nodes that take up the gain of the neurons they drive."""
    changed: dict[str, Node] = {}
    for name, gain in gains.items():
        if bool((gain.astype(np.float32) == 1).all()):
            continue
        if bool((gain != gain.flat[0]).any()):
            raise UnsupportedNodeError(
                f"{name}: its input gain runs from {gain.min():g} to {gain.max():g}; allowed is one"
            )
        for driver in _drivers(graph, name):
            node = graph.nodes[driver]
            if not isinstance(node, WEIGHTED) or len(graph.targets(driver)) != 1:
                raise UnsupportedNodeError(
                    f"{driver}: drives {name}, whose input gain is {gain.flat[0]:g}; allowed are weights of its own"
                )
            arrays = {"weight": node.weight} | ({} if isinstance(node, Linear) else {"bias": node.bias})
            values = {
                key: None if array is None else frozen_array(array.astype(np.float64) * gain.flat[0])
                for key, array in arrays.items()
            }
            fields = {key: getattr(node, key) for key in node.__dataclass_fields__}
            changed[driver] = type(node)(**{**fields, **values})
    return changed


def _drivers(graph: SpikingGraph, name: str) -> Iterator[str]:
    for source in graph.sources(name):
        if isinstance(graph.nodes[source], Flatten):
            yield from _drivers(graph, source)
        else:
            yield source
