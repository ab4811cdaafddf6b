"""From the sites of a network to the nodes and edges of its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch

from slamp.errors import UnsupportedModuleError
from slamp.nodes import (
    SPIKING,
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Delay,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Output,
    Pad,
    Permute,
    Place,
    Reshape,
    Scale,
    Shape,
    Sum,
    SumPool2d,
    Take,
    Upsample2d,
    uniform,
)
from slamp.raster import seconds
from slamp.read_modules import plain_array, scale_of
from slamp.read_neurons import INPUT, KINDS, RECURRENT, neuron_of
from slamp.sites import Edge, Site
from slamp.tracing import Value


@dataclass
class Parts:
    """The parts of a graph, as they are found.

    Attributes:
        nodes: By name.
        edges: In order.
        parameters: By weighted node, the module parameter behind its weight.
        neurons: By neuron node, its site.
        names: By site, the node that gives its value.
        dt: Time step of the neurons, or None.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    neurons: dict[str, Site] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    dt: float | None = None


def read_sites(
    net: torch.nn.Module,
    sites: Sequence[Site],
    outputs: Sequence[Edge],
    inputs: Sequence[Shape],
    *,
    spikes: bool,
    problems: list[tuple[Site, str]] | None = None,
) -> Parts:
    """Make the nodes and edges of a network.

    Args:
        net: The module, for names of parameters and classes of modules.
        sites: Its sites, in order; `slamp.sites.fold`.
        outputs: What it gives; several are flattened and put side by side.
        inputs: Shape of every input; several are one raster, flattened and side by side.
        spikes: The inputs are spikes.
        problems: Sites without a node and why are put here, and reading goes on; None raises the first.

    Raises:
        UnsupportedModuleError: A site has no node; the message holds the line of the user's code.
    """
    reader = _Reader(net, inputs, spikes)
    for site in sites:
        try:
            reader.read(site)
        except UnsupportedModuleError as error:
            if problems is None:
                raise
            problems.append((site, str(error)))
            reader.pass_over(site)
    if problems:
        return reader.parts
    for site in sites:
        reader.connect(site)
    reader.finish(outputs)
    return reader.parts


class _Reader:
    def __init__(self, net: torch.nn.Module, inputs: Sequence[Shape], spikes: bool) -> None:
        self.parts = Parts()
        self.modules = dict(net.named_modules())
        self.parameters = {name for name, _ in net.named_parameters(remove_duplicate=False)}
        # What carries spikes as they are, and what is never negative: only there relu vanishes and max is a count.
        self.binary: set[str] = set()
        self.positive: set[str] = set()
        self.aliases: dict[int, Edge] = {}
        self.entries: dict[int, str] = {}
        shape = inputs[0] if len(inputs) == 1 else (sum(prod(features) for features in inputs),)
        self._put("input", Input(shape))
        if spikes:
            self.binary.add("input")
            self.positive.add("input")
        self.inputs: list[str] = ["input"]
        if len(inputs) > 1:
            self.inputs, start = [], 0
            for index, features in enumerate(inputs):
                stop = start + prod(features)
                name = self._chain("input", Take(0, start, stop), f"input_{index}")
                if len(features) != 1:
                    name = self._chain(name, Reshape(features), f"input_{index}_shape")
                self.inputs.append(name)
                start = stop

    # Nodes

    def read(self, site: Site) -> None:
        """Make the nodes of a site, without the edges into it."""
        kind = site.operation.kind
        if kind == "input":
            self.parts.names[id(site)] = self.inputs[site.first.part]
            return
        if kind == "neuron":
            self._neuron(site)
            return
        edges = [operand for operand in site.operands if isinstance(operand, Edge)]
        before = edges[0].source.shape
        if self._vanishes(site, before):
            self.aliases[id(site)] = edges[0]
            return
        made = self._node(site, before)
        name = self._free(self._base_name(site, made))
        self._put(name, made)
        self.parts.names[id(site)] = name
        self.entries[id(site)] = name
        weight = site.operation.constants[0] if site.operation.kind in ("linear", "conv") else None
        if weight is not None and weight.name in self.parameters:
            self.parts.parameters[name] = weight.name
        self._mark(name, made, site)

    def pass_over(self, site: Site) -> None:
        """Take a site without a node for a layer of spikes, so that what follows is judged by itself."""
        name = f"?{len(self.parts.names)}"
        self.parts.names[id(site)] = name
        self.binary.add(name)
        self.positive.add(name)

    def _node(self, site: Site, before: Shape) -> Node:
        operation, settings = site.operation, site.operation.settings
        match operation.kind:
            case "linear" | "conv" | "norm":
                return self._weighted(site, before)
            case "add":
                constants = [operand for operand in site.operands if isinstance(operand, Value)]
                if constants:
                    return Scale(_per_channel(1.0, before), self._channels(site, constants[0], before))
                edges = [operand for operand in site.operands if isinstance(operand, Edge)]
                if self._alike(edges):
                    return Scale(_per_channel(float(len(edges)), before), _per_channel(0.0, before))
                return Sum()
            case "scale":
                constant = operation.constants[0]
                assert constant is not None
                return Scale(self._channels(site, constant, before), _per_channel(0.0, before))
            case "cat":
                return Sum()
            case "max_pool":
                return MaxPool2d(*settings)
            case "avg_pool":
                return AvgPool2d(*settings)
            case "sum_pool":
                return SumPool2d(*settings)
            case "adaptive_avg_pool":
                sides = (int(settings[0]), int(settings[1]))
                if all(side % size == 0 for side, size in zip(sides, before[-2:], strict=True)):
                    return Upsample2d((sides[0] // before[-2], sides[1] // before[-1]))  # means of one value each
                return AdaptiveAvgPool2d(sides)
            case "upsample":
                return Upsample2d((int(settings[0]), int(settings[1])))
            case "pad":
                return _pad(site, before)
            case "reshape":
                return _reshape(before, tuple(settings))
            case "permute":
                return Permute(tuple(settings))
            case "take":
                return Take(*settings)
            case "unread":
                raise UnsupportedModuleError(settings[0])
            case _:
                raise self._refuse(site, "is not captured", "behind spikes drop it; on currents use a neuron")

    def _weighted(self, site: Site, before: Shape) -> Node:
        operation = site.operation
        call = site.first.call
        assert call is not None
        where = call.where
        tensors = [None if value is None else value.tensor for value in operation.constants]
        for tensor in tensors:
            if tensor is not None and tensor.dtype != torch.float32:
                raise UnsupportedModuleError(
                    f"{where}: the weight is {tensor.dtype}; allowed is float32; call net.float()"
                )
        if operation.kind == "norm":
            mean, var, weight, bias = tensors
            assert mean is not None
            assert var is not None
            return scale_of(mean, var, weight, bias, operation.settings[0], before)
        weight, bias = tensors
        assert weight is not None
        array, offset = plain_array(weight), None if bias is None else plain_array(bias)
        if operation.kind == "linear":
            if len(before) != 1:
                raise UnsupportedModuleError(
                    f"{where}: Linear receives shape {before} per sample, allowed is one axis; "
                    "put torch.nn.Flatten before it"
                )
            return Linear(array) if offset is None else Affine(array, offset)
        axes, stride, padding, dilation, groups = operation.settings
        kind = Conv1d if axes == 1 else Conv2d
        return kind(array, offset, stride, _padding(padding, array.shape[2:], dilation), dilation, groups)

    def _neuron(self, site: Site) -> None:
        module = site.operation.module
        assert module is not None
        call = site.first.call
        assert call is not None
        path, where = call.path, call.where
        node = neuron_of(module, site.shape, where=where, dt=self.parts.dt)
        self.parts.dt = seconds(module.dt)
        name = self._free(node_name(path))
        self.parts.neurons[name] = site
        weights = KINDS[type(module)].weights
        source = site.operands[0]
        before = source.source.shape if isinstance(source, Edge) else tuple(source.tensor.shape[1:])
        entry = name
        if INPUT in weights:
            entry = self._free(f"{name}_in")
            self._put(entry, self._cell_weight(module, INPUT, before, where))
            self._name_parameter(entry, path, INPUT)
        self._put(name, node)
        if INPUT in weights:
            self.parts.edges.append((entry, name))
        if RECURRENT in weights:
            last, back = self._free(f"{name}_last"), self._free(f"{name}_rec")
            self._put(last, Delay(uniform(1.0, site.shape)))
            self._put(back, self._cell_weight(module, RECURRENT, site.shape, where))
            self._name_parameter(back, path, RECURRENT)
            self.parts.edges += [(name, last), (last, back), (back, name)]
        self.entries[id(site)] = entry
        self.parts.names[id(site)] = name
        if isinstance(node, SPIKING):
            self.binary.add(name)
            self.positive.add(name)

    def _cell_weight(self, module: Any, which: str, before: Shape, where: str) -> Linear:
        if len(before) != 1:
            kind = type(module).__name__
            raise UnsupportedModuleError(
                f"{where}: {kind} receives shape {before} per sample, allowed is one axis; "
                "put torch.nn.Flatten before it"
            )
        return Linear(plain_array(getattr(module, which)))

    def _name_parameter(self, node: str, path: str, which: str) -> None:
        name = which if path == "(net)" else f"{path}.{which}"
        if name in self.parameters:
            self.parts.parameters[node] = name

    def _vanishes(self, site: Site, before: Shape) -> bool:
        kind = site.operation.kind
        if kind == "reshape":
            return before == site.shape
        if kind == "permute":
            return tuple(site.operation.settings) == tuple(range(len(before)))
        if kind == "relu":
            source, _ = self._resolved(next(operand for operand in site.operands if isinstance(operand, Edge)))
            return source in self.positive
        if kind == "adaptive_avg_pool":
            return tuple(site.operation.settings) == before[-2:]
        if kind == "pad":
            return not any(site.operation.settings[0])
        neutral = {"add": 0.0, "scale": 1.0}.get(kind)
        constants = [item for item in (*site.operands, *site.operation.constants) if isinstance(item, Value)]
        return neutral is not None and bool(constants) and all(bool((c.tensor == neutral).all()) for c in constants)

    def _mark(self, name: str, made: Node, site: Site) -> None:
        edges = [self._resolved(operand)[0] for operand in site.operands if isinstance(operand, Edge)]
        moved = isinstance(made, (Flatten, Reshape, Permute, Take, Upsample2d))
        moved |= isinstance(made, Pad) and (made.mode != "constant" or made.value == 0.0)
        moved |= isinstance(made, Sum) and site.operation.kind == "cat"
        if isinstance(made, MaxPool2d):
            if not all(edge in self.binary for edge in edges):
                raise self._refuse(
                    site,
                    "takes the largest of values that are no spikes",
                    "put it behind a neuron, or use AvgPool2d or LPPool2d(1, k)",
                )
            moved = True
        if moved and all(edge in self.binary for edge in edges):
            self.binary.add(name)
        adds = isinstance(made, (SumPool2d, AvgPool2d, AdaptiveAvgPool2d, Sum))
        if (moved or adds) and all(edge in self.positive for edge in edges):
            self.positive.add(name)

    # Edges

    def connect(self, site: Site) -> None:
        """Add the edges into a site's nodes."""
        if site.operation.kind == "input" or id(site) in self.aliases:
            return
        entry = self.entries[id(site)]
        edges = [operand for operand in site.operands if isinstance(operand, Edge)]
        if site.operation.kind == "cat":
            self._concatenate(site, edges, entry)
            return
        if site.operation.kind == "neuron" and not edges:
            raise self._refuse(site, "receives nothing that depends on the input", "drop it")
        sources = [self._arrival(edge) for edge in edges]
        if len(set(sources)) == 1 and site.operation.kind == "add":
            sources = sources[:1]
        recurrent = [(a, b) for a, b in self.parts.edges if b == entry]
        for source in sources:
            self.parts.edges.append((source, entry))
        for edge in recurrent:  # what the cell itself adds comes after its input
            self.parts.edges.remove(edge)
            self.parts.edges.append(edge)

    def _concatenate(self, site: Site, edges: Sequence[Edge], entry: str) -> None:
        if len(edges) != len(site.operands):
            raise self._refuse(site, "joins constants to values", "join values of the network only")
        axis, start = int(site.operation.settings[0]), 0
        size = site.shape[axis]
        for index, edge in enumerate(edges):
            name = self._chain(self._arrival(edge), Place(axis, start, size), f"{entry}_{index}")
            self.parts.edges.append((name, entry))
            start += edge.source.shape[axis]

    def _arrival(self, edge: Edge) -> str:
        """Return the node an edge comes from: the source itself, or a delay behind it."""
        name, lag = self._resolved(edge)
        if lag == 0:
            return name
        late = f"{name}_last" if lag == 1 else f"{name}_late{lag}"
        if late not in self.parts.nodes:
            self._put(late, Delay(uniform(float(lag), edge.source.shape)))
            self.parts.edges.append((name, late))
        return late

    def _resolved(self, edge: Edge) -> tuple[str, int]:
        lag = edge.lag
        while id(edge.source) in self.aliases:
            edge = self.aliases[id(edge.source)]
            lag += edge.lag
        return self.parts.names.get(id(edge.source), ""), lag

    def _alike(self, edges: Sequence[Edge]) -> bool:
        found = {(id(edge.source), edge.lag) for edge in edges}
        return len(found) == 1 and len(edges) > 1

    def finish(self, outputs: Sequence[Edge]) -> None:
        """Add the output; several are joined."""
        if len(outputs) == 1:
            source = self._arrival(outputs[0])
            self._put("output", Output(outputs[0].source.shape))
            self.parts.edges.append((source, "output"))
            return
        size = sum(prod(edge.source.shape) for edge in outputs)
        joined, start = self._free("outputs"), 0
        self._put(joined, Sum())
        for index, edge in enumerate(outputs):
            source = self._arrival(edge)
            shape = edge.source.shape
            if len(shape) != 1:
                source = self._chain(source, _reshape(shape, (prod(shape),)), f"output_{index}_flat")
            source = self._chain(source, Place(0, start, size), f"output_{index}")
            self.parts.edges.append((source, joined))
            start += prod(shape)
        self._put("output", Output((size,)))
        self.parts.edges.append((joined, "output"))

    # Names

    def _put(self, name: str, node: Node) -> None:
        self.parts.nodes[name] = node

    def _chain(self, source: str, node: Node, name: str) -> str:
        name = self._free(name)
        self._put(name, node)
        self.parts.edges.append((source, name))
        if source in self.binary:
            self.binary.add(name)
        if source in self.positive:
            self.positive.add(name)
        return name

    def _base_name(self, site: Site, made: Node) -> str:
        call = site.first.call
        assert call is not None
        for constant in site.operation.constants:
            if constant is not None and "." in constant.name:
                return node_name(constant.name.rpartition(".")[0])
        module = self.modules.get(call.path)
        if module is not None and type(module).__module__.startswith("torch.nn.") and call.path != "(net)":
            if not list(module.children()) and not isinstance(
                module, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
            ):
                return node_name(call.path)
            if site.operation.kind == "pad":
                return f"{node_name(call.path)}_pad"
        kind = {"add": "sum", "cat": "joined"}.get(site.operation.kind, site.operation.kind)
        kind = "flatten" if isinstance(made, Flatten) else kind
        inside = "" if call.path == "(net)" or module is None else f"{node_name(call.path)}_"
        return f"{inside}{kind}"

    def _free(self, name: str) -> str:
        taken = {*self.parts.nodes, "output"}
        if name not in taken:
            return name
        return next(f"{name}_{k}" for k in range(2, len(taken) + 3) if f"{name}_{k}" not in taken)

    def _channels(self, site: Site, value: Value, before: Shape) -> np.ndarray:
        tensor = value.tensor.detach().to("cpu", torch.float32)
        if not before:
            raise self._refuse(site, "multiplies values without a feature axis", "give them one")
        try:
            full = torch.broadcast_to(tensor, (1, *before))[0]
        except RuntimeError as error:
            raise self._refuse(
                site,
                f"combines a constant of shape {tuple(tensor.shape)} with values of shape {before}",
                "match the shapes",
            ) from error
        flat = full.reshape(before[0], -1)
        if not bool((flat == flat[:, :1]).all()):
            raise self._refuse(
                site,
                "combines values with a constant that differs within a channel",
                "use one number, or one per channel",
            )
        array = flat[:, 0].numpy().astype(np.float32)
        array.flags.writeable = False
        return array

    def _refuse(self, site: Site, found: str, advice: str) -> UnsupportedModuleError:
        call = site.first.call
        assert call is not None
        return UnsupportedModuleError(f"{call.where}: {call.what} {found}; {advice}")


def node_name(path: str) -> str:
    """Return the node name of a module path (NIR and HDF5 give dots and slashes a meaning)."""
    return "net" if path == "(net)" else path.replace(".lifted_module", "").replace(".", "_")


def _per_channel(value: float, before: Shape) -> np.ndarray:
    array = np.full(before[:1], value, dtype=np.float32)
    array.flags.writeable = False
    return array


def _reshape(before: Shape, after: Shape) -> Node:
    """Return a `Flatten` where one says it, else a `Reshape`."""
    for start, stop in ((i, j) for i in range(len(before)) for j in range(i + 1, len(before))):
        if (*before[:start], prod(before[start : stop + 1]), *before[stop + 1 :]) == after:
            return Flatten(start, stop)
    return Reshape(after)


def _pad(site: Site, before: Shape) -> Pad:
    pads, mode, value = site.operation.settings
    each = tuple(reversed([(int(low), int(high)) for low, high in zip(pads[::2], pads[1::2], strict=True)]))
    if len(each) > len(before):
        raise UnsupportedModuleError(f"{site.line}: pads the batch axis; pad feature axes only")
    return Pad(each, mode, value)


def _padding(padding: Any, kernel: Shape, dilation: Sequence[int]) -> Any:
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        if all(total % 2 == 0 for total in totals):
            return tuple(total // 2 for total in totals)
    return padding
