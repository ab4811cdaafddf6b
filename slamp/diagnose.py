"""Why does a replay differ? The first differing layer, run alone under one wrong convention after another.

All layers before the first differing one agree, so its true inputs are known. A convention under which the layer alone
gives exactly the spikes that were replayed is the probable cause. Parameters that differ between the graph and the
target's file are stronger evidence and come first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from slamp.causality import behind, computed_before
from slamp.conventions import LATENCIES, Convention, run_convention, said_steps, wrong_conventions
from slamp.delays import later
from slamp.dynamics import NeuronDynamics, added, exact_float32, stateless_function
from slamp.errors import ArtifactError, GraphError
from slamp.exporting import Exporter, ReadingExporter
from slamp.graph import SpikingGraph
from slamp.manifest import Artifact
from slamp.nodes import (
    READOUT,
    SECOND_TIER,
    SPIKING,
    Affine,
    Conv1d,
    Conv2d,
    Delay,
    Linear,
    Node,
    Scale,
    Spiking,
    arrays_of,
    settings_of,
)
from slamp.raster import SpikeRaster


def probable_cause(
    graph: SpikingGraph,
    layer: str,
    inputs: SpikeRaster,
    spikes: Mapping[str, torch.Tensor],
    replayed: torch.Tensor,
    heard: Mapping[str, torch.Tensor] | None = None,
) -> str:
    """Return the wrong conventions that explain the replayed spikes of a layer exactly, or an empty text.

    Where several do (a layer that sees its current before the input arrives answers one step late), all are named.

    Args:
        graph: The network.
        layer: The first spiking layer that differs.
        inputs: The samples to look at, (time, samples, *features).
        spikes: The graph's spikes by layer, bool (time, samples, *neurons), of ``layer`` and every spiking layer
            upstream.
        replayed: Spikes of ``layer`` in the replay, bool, shape as in ``spikes`` or fewer steps.
        heard: Spikes of other layers in the replay; those that come back to ``layer`` through recurrence are its true
            input after the first difference.

    Raises:
        GraphError: ``layer`` does not spike, or spikes of a layer it depends on are not given.
    """
    node = graph.nodes.get(layer)
    if not isinstance(node, SPIKING):
        raise GraphError(f"{layer}: does not spike; allowed are {list(graph.spiking)}")
    if layer not in spikes:
        raise GraphError(f"{layer}: its spikes are not recorded; record them")
    replayed = replayed.detach().cpu()
    steps = replayed.shape[0]
    expected = spikes[layer].detach().cpu()[:steps]
    causes = [cause] if (cause := _shifted(expected, replayed)) else []
    if computed_before(graph, layer)[1]:
        return ", or ".join(causes)  # values that are not spikes go round in a cycle: the layer has no input of its own
    inputs = SpikeRaster(inputs.data[:steps], inputs.dt, kind=inputs.kind)
    given = _true_spikes(graph, layer, spikes, {**(heard or {}), layer: replayed}, steps)
    drives = {bias: _drive(graph, layer, inputs, given, bias=bias) for bias in (True, False)}
    for cause, convention in wrong_conventions(node):
        drive, *more = drives[convention.bias]
        if torch.equal(run_convention(convention, drive, more=more)[0], replayed):
            causes.append(cause)
    for cause, other in _other_delays(graph, layer):
        drive, *more = _drive(other, layer, inputs, given, bias=True)
        if torch.equal(run_convention(Convention(node), drive, more=more)[0], replayed):
            causes.append(cause)
    if not replayed.any():
        causes.insert(0, "silent: the layer never spikes in the replay")
    if causes:
        return ", or ".join(causes)
    return _one_neuron_or_channel((expected != replayed).any(1).any(0)) or _threshold_interval(
        node, drives[True], expected, replayed
    )


def parameter_differences(graph: SpikingGraph, other: SpikingGraph) -> list[str]:
    """Compare two graphs field by field; one line per field that differs, in computing order of ``graph``.

    Args:
        graph: The graph as it should be.
        other: The graph as a target's file states it.
    """
    found = []
    if graph.dt != other.dt:
        found.append(f"dt is {other.dt:.9g} s in the file, {graph.dt:.9g} s in the graph")
    for name in graph.order:
        if name not in other.nodes:
            found.append(f"{name}: the node is missing in the file")
        else:
            found.extend(f"{name}: {line}" for line in _node_differences(graph.nodes[name], other.nodes[name]))
    found.extend(
        f"{name}: the file has this node, the graph has not" for name in other.order if name not in graph.nodes
    )
    if set(graph.nodes) == set(other.nodes) and graph.edges != other.edges:
        edge = next(
            (edge for edge in (*graph.edges, *other.edges) if (edge in graph.edges) != (edge in other.edges)), None
        )
        found.append(
            "edges: their order differs" if edge is None else f"edges: {edge[0]} to {edge[1]} is on one side only"
        )
    return found


@runtime_checkable
class ComparingExporter(Protocol):
    """An exporter that can say, in its target's own terms, what its files state otherwise than a graph."""

    def file_differences(self, artifact: Artifact, graph: SpikingGraph) -> list[str]:
        """Return one line per field that differs; raises `slamp.errors.ArtifactError` if a file cannot be read."""


def find_parameter_difference(artifact: Artifact, graph: SpikingGraph, exporter: Exporter) -> str:
    """Return the first parameter that differs between the artifact's file and the graph, or an empty text.

    Empty as well if the exporter cannot read its files or the file cannot be read: a cause is a help, not a proof.
    """
    try:
        if isinstance(exporter, ComparingExporter):
            return next(iter(exporter.file_differences(artifact, graph)), "")
        if isinstance(exporter, ReadingExporter):
            return next(iter(parameter_differences(graph, exporter.read(artifact.file("network")))), "")
    except ArtifactError:
        pass
    return ""


def _node_differences(node: Node, other: Node) -> Iterator[str]:
    if type(node) is not type(other):
        hint = ""
        if _has_bias(node) and not _has_bias(other):
            hint = "; the bias is missing in the file"
        yield f"is {type(other).__name__} in the file, {type(node).__name__} in the graph{hint}"
    settings, other_settings = settings_of(node), settings_of(other)
    arrays, other_arrays = arrays_of(node), arrays_of(other)
    for key in settings:
        if key in other_arrays:
            yield f"{key} is missing in the graph, the file has one"
        elif key in other_settings and settings[key] != other_settings[key]:
            yield f"{key} is {other_settings[key]!r} in the file, {settings[key]!r} in the graph"
    for key, array in arrays.items():
        if key not in other_arrays:
            if type(node) is type(other):
                yield f"{key} is missing in the file"
            continue
        found = other_arrays[key]
        if found.shape != array.shape:
            yield f"{key} has shape {found.shape} in the file, {array.shape} in the graph"
            continue
        unequal = np.argwhere(found != array)
        if unequal.size:
            index = tuple(int(axis) for axis in unequal[0])
            more = f" ({len(unequal)} of {array.size} entries differ)" if array.size > 1 else ""
            yield f"{key}{list(index)} is {found[index]:.9g} in the file, {array[index]:.9g} in the graph{more}"


def _has_bias(node: Node) -> bool:
    return "bias" in arrays_of(node)


def _shifted(expected: torch.Tensor, replayed: torch.Tensor) -> str:
    """Explain the replay as the expected spikes, late or early by a few steps."""
    for k in LATENCIES:
        if k >= expected.shape[0]:
            break
        late = torch.cat([torch.zeros_like(expected[:k]), expected[:-k]])
        if bool(late.any()) and torch.equal(late, replayed):
            return f"latency: the layer answers {said_steps(k)} late"
        if bool(expected[k:].any()) and torch.equal(expected[k:], replayed[:-k]):
            return f"latency: the layer answers {said_steps(k)} early"
    return ""


def _true_spikes(
    graph: SpikingGraph,
    layer: str,
    spikes: Mapping[str, torch.Tensor],
    heard: Mapping[str, torch.Tensor],
    steps: int,
) -> dict[str, torch.Tensor]:
    """Spikes that reached a layer in the replay: the graph's, but of layers that hear ``layer`` the replay's own."""
    hearing = behind(graph, layer)
    return {
        name: (heard[name] if name in hearing and name in heard else part).detach().cpu()[:steps]
        for name, part in spikes.items()
    }


def _other_delays(graph: SpikingGraph, layer: str) -> Iterator[tuple[str, SpikingGraph]]:
    """Yield graphs in which one delay before a layer lasts a step more or less, and what that is called."""
    for name, node in graph.nodes.items():
        if not isinstance(node, Delay) or layer not in behind(graph, name):
            continue
        for more, word in ((1, "late"), (-1, "early")):
            steps = node.steps + np.float32(more)
            if bool((steps >= (1 if name in behind(graph, name) else 0)).all()):
                yield f"delay: {name} hands on 1 step {word}", graph.with_nodes({name: Delay(steps)})


def _drive(
    graph: SpikingGraph, layer: str, inputs: SpikeRaster, spikes: Mapping[str, torch.Tensor], *, bias: bool
) -> list[torch.Tensor]:
    """What each edge brings a layer, float32 (time, batch, *neurons), from the spikes upstream; or without biases."""
    known: dict[str, torch.Tensor] = {}

    def value(name: str) -> torch.Tensor:
        if name not in known:
            known[name] = computed(name)
        return known[name]

    def computed(name: str) -> torch.Tensor:
        node = graph.nodes[name]
        if name in spikes:
            return spikes[name].detach().cpu().to(torch.float32)
        sources = graph.sources(name)
        if not sources:
            return inputs.data.detach().cpu().to(torch.float32)
        if isinstance(node, SPIKING):
            raise GraphError(f"{name}: its spikes are not recorded, so {layer} cannot be run alone; record them")
        if isinstance(node, READOUT):
            dynamics, (x, *more) = NeuronDynamics(node, "cpu"), parts(name)
            return dynamics.advance(x, dynamics.initial_state(x.shape[1]), more=more).output
        x = _total(parts(name))
        if isinstance(node, Delay):
            return later(x, node)
        function = stateless_function(node if bias else _without_bias(node), "cpu")
        return torch.stack([function(step) for step in x])

    def parts(name: str) -> list[torch.Tensor]:
        return [value(source) for source in graph.sources(name)]

    with exact_float32():
        return parts(layer)


def _total(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return added(parts[0], parts[1:])


def _without_bias(node: Node) -> Node:
    match node:
        case Affine():
            return Linear(node.weight)
        case Conv1d() | Conv2d():
            return replace(node, bias=None)
        case Scale():
            return replace(node, shift=np.zeros_like(node.shift))
        case _:
            return node


def _threshold_interval(
    node: Spiking, drive: Sequence[torch.Tensor], expected: torch.Tensor, replayed: torch.Tensor
) -> str:
    """Explain the replay by another threshold, or return an empty text.

    With resets by value the membrane follows from the replayed spikes alone, whatever the threshold: it must lie above
    the true threshold wherever a spike came, and not above it elsewhere.
    """
    if isinstance(node, SECOND_TIER) or node.reset != "value":
        return ""
    if not bool((node.v_threshold == node.v_threshold.flat[0]).all()):
        return ""
    _, v = run_convention(Convention(node), drive[0], replayed, drive[1:])
    spiking, quiet = v[replayed], v[~replayed]
    low = float(quiet.max()) if quiet.numel() else -math.inf
    high = float(spiking.min()) if spiking.numel() else math.inf
    threshold = float(node.v_threshold.flat[0])
    if not low < high or low <= threshold < high:
        return ""
    return f"threshold: the spikes fit one from {low:.6g} to {high:.6g} instead of {threshold:.6g}"


def _one_neuron_or_channel(differing: torch.Tensor) -> str:
    """Name the one neuron, or the one output channel of a convolution, that differing cells lie in; else nothing."""
    cells = differing.nonzero()
    if len(cells) == 1:
        neuron = tuple(int(axis) for axis in cells[0])
        where = f"neuron {neuron[0] if len(neuron) == 1 else neuron}"
        return f"a parameter of {where} (weight, bias, threshold, decay, leak or reset): only this neuron differs"
    if differing.ndim > 1 and len(cells) and bool((cells[:, 0] == cells[0, 0]).all()):
        channel = int(cells[0, 0])
        return f"a parameter of channel {channel} (weight, bias, threshold, decay, leak or reset): only it differs"
    return ""
