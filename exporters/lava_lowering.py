"""From a fixed-point graph to Lava's processes: synapses, neurons, and by how many steps each layer answers later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from exporters.lava_paths import Drive, Way, drives_of, moved, synapse_weight
from exporters.net_format import neuron_fields
from slamp.arithmetic import MAX_DELAY, FixedPoint, bias_format, weight_format
from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import IF, LIF, NEURON, Conv2d, CubaLIF, Linear, Neuron
from slamp.raster import SpikeRaster
from slamp.simulate import check_raster

INPUT, ALWAYS_ON = "input", "always_on"  # sources that are no neurons


@dataclass(frozen=True, eq=False)
class LavaNetwork:
    """A network in Lava's terms, as `exporters.lava_models_runner` takes it.

    Attributes:
        arrays: JSON and arrays.
        latency_steps: By neuron layer, the synapses from the input to it: in Lava each takes one step.
    """

    arrays: Mapping[str, np.ndarray]
    latency_steps: Mapping[str, int]


def lava_network(graph: SpikingGraph, raster: SpikeRaster) -> LavaNetwork:
    """Say a fixed-point graph in Lava's processes, and the raster, padded by the steps the last layer answers later.

    Raises:
        UnsupportedNodeError: The graph is in float, or a node has no process of Lava; the message names it.
        RasterError: The raster does not fit the graph.
    """
    network = lava_description(graph)
    check_raster(graph, raster)
    return with_inputs(network, raster)


def with_inputs(network: LavaNetwork, raster: SpikeRaster) -> LavaNetwork:
    """Add what the network is to be run on, padded by the steps the last layer answers later."""
    inputs = raster.numpy().astype(np.int32)
    empty = np.zeros((max(network.latency_steps.values()), *inputs.shape[1:]), dtype=np.int32)
    given = {"inputs": np.concatenate([inputs, empty]), "graded": np.array(int(not raster.is_spikes))}
    return LavaNetwork({**network.arrays, **given}, network.latency_steps)


def lava_description(graph: SpikingGraph, *, sparse_below: float = 0.0) -> LavaNetwork:
    """Say a fixed-point graph in Lava's processes, without anything to run it on.

    Args:
        graph: The graph.
        sparse_below: Matrices of which a smaller share is left are held by Sparse, which has no pruned synapses.

    Raises:
        UnsupportedNodeError: The graph is in float, or a node has no process of Lava; the message names it.
    """
    if not isinstance(graph.arithmetic, FixedPoint):
        raise UnsupportedNodeError("graph: is in float32, and Lava's fixed_pt models compute in integers")
    drives = {name: drives_of(graph, name) for name in graph.order if isinstance(graph.nodes[name], NEURON)}
    for name in drives:
        if name in (INPUT, ALWAYS_ON):
            raise UnsupportedNodeError(f"{name}: is a layer of neurons, and the name is taken; call it otherwise")
    latency = _latency(graph, drives)
    described = _Described(graph, latency, sparse_below)
    neurons: dict[str, Any] = {}
    for name, into in drives.items():
        node = graph.nodes[name]
        assert isinstance(node, NEURON)
        described.arrays[f"bias/{name}"], exponent = _bias(name, node)
        neurons[name] = {**_parameters(name, node), "shape": graph.shapes[name], "bias_exp": exponent}
        neurons[name]["latency"] = latency[name]
        for drive in into:
            for way in drive.ways:
                described.add_synapse(drive, way, name)
            described.add_line(drive, name)
    del latency[graph.input]
    if any(bool(described.arrays[f"bias/{name}"].any()) for name in neurons):
        # Biases run from Lava's first step on: every layer starts anew at the step in which the first input reaches it.
        for name, parameters in neurons.items():
            parameters["reset_offset"] = latency[name] + 1  # Lava's steps count from 1
        _check_quiet_start(graph, drives, described.synapses, latency)
    text = json.dumps({"input": graph.shapes[graph.input], "neurons": neurons, "synapses": described.synapses})
    arrays = {"network": np.frombuffer(text.encode(), dtype=np.uint8), **described.arrays}
    return LavaNetwork(arrays, latency)


def _latency(graph: SpikingGraph, drives: Mapping[str, list[Drive]]) -> dict[str, int]:
    """Return by how many steps each layer answers later in Lava: least numbers with which no delay is negative."""
    latency = {graph.input: 0} | dict.fromkeys(drives, 1)
    for _ in range(len(latency)):
        changed = False
        for name, into in drives.items():
            needed = max(latency[way.source] + 1 - _least(drive, way) for drive in into for way in drive.ways)
            if needed > latency[name]:
                latency[name], changed = needed, True
        if not changed:
            return latency
    late = next(
        name for name, into in drives.items() if any(_least(drive, way) for drive in into for way in drive.ways)
    )
    raise UnsupportedNodeError(
        f"{late}: lies on a cycle of more synapses than steps of delay; each takes a step in Lava, so delay it more"
    )


def _least(drive: Drive, way: Way) -> int:
    return int(way.before.min() + drive.behind.min())


def _check_quiet_start(
    graph: SpikingGraph,
    drives: Mapping[str, list[Drive]],
    synapses: list[dict[str, Any]],
    latency: Mapping[str, int],
) -> None:
    """Refuse spikes that biases cause before a layer starts and that are still on their way afterwards.

    In a chain without delays every such spike arrives before its target starts anew, which forgets it.
    """
    lasting = any("delay" in spec and spec["source"] != ALWAYS_ON for spec in synapses) or any(
        way.source != graph.input and latency[way.source] >= latency[name]
        for name, into in drives.items()
        for drive in into
        for way in drive.ways
    )
    for name in latency if lasting else ():
        node = graph.nodes[name]
        if isinstance(node, (LIF, CubaLIF)) and bool((node.v_leak * latency[name] > node.v_threshold).any()):
            raise UnsupportedNodeError(
                f"{name}: its bias alone makes it fire in the {latency[name]} steps before its first input, and delays "
                "or recurrence carry that on; use smaller biases"
            )


@dataclass
class _Described:
    """Synapse processes of a graph and their arrays, as they are found."""

    graph: SpikingGraph
    latency: Mapping[str, int]
    sparse_below: float
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    synapses: list[dict[str, Any]] = field(default_factory=list)

    def add_synapse(self, drive: Drive, way: Way, target: str) -> None:
        """Add the process between two layers; delays bring the source to the latency of the target."""
        name, graph = drive.weighted, self.graph
        added = self.latency[target] - self.latency[way.source] - 1
        node = graph.weighted[name]
        delays = way.before[None, :] + drive.behind[:, None] + added
        weight = synapse_weight(graph, drive, way, delayed=bool(delays.any()))
        source = INPUT if way.source == graph.input else way.source
        if isinstance(weight, Conv2d):
            _held(name, weight.weight)
            settings = {"stride": weight.stride, "padding": weight.padding, "dilation": weight.dilation}
            # Lava's Conv knows no exponent and takes effective weights.
            spec = {"kind": "conv", **settings, "groups": weight.groups}
            self._put(spec, weight.weight.astype(np.int32), None, (name, source, target))
            return
        if way.before.size > 1 and bool((node.weight % 1 != 0).any()):
            raise UnsupportedNodeError(
                f"{name}: has fractional weights behind different delays, whose sums Lava rounds delay by delay"
            )
        self._put_matrix(weight, delays, (name, source, target))

    def add_line(self, drive: Drive, target: str) -> None:
        """Add the bias of the weights as an input line that is on from the step in which the target starts."""
        name, node = drive.weighted, self.graph.weighted[drive.weighted]
        if isinstance(node, Linear) or node.bias is None or not node.bias.any():
            return
        if bool((node.weight % 1 != 0).any()) and bool((node.bias % 1 != 0).any()):
            raise UnsupportedNodeError(
                f"{name}: weights and bias are fractional, and Lava rounds the sums of both apart; use a whole bias"
            )
        shape = self.graph.shapes[name]
        bias = np.broadcast_to(node.bias.reshape(-1, *(1,) * (len(shape) - 1)), shape)
        bias = moved(self.graph, drive.wiring, bias).reshape(-1, 1)
        self._put_matrix(bias, drive.behind[:, None], (name, ALWAYS_ON, target))
        # A line that is on in a step is heard in the next one; the target starts at its latency, counted from 0.
        self.synapses[-1]["starts"] = self.latency[target] - 1

    def _put_matrix(self, weight: np.ndarray, delays: np.ndarray, names: tuple[str, str, str]) -> None:
        mantissa, spec = _held(names[0], weight)
        kept = float((mantissa != 0).mean())
        kind = "sparse" if 0 < kept < self.sparse_below else "dense"
        steps = np.broadcast_to(delays, mantissa.shape).astype(np.int32)
        if kind == "sparse":
            steps = np.where(mantissa != 0, steps, 0)  # an absent synapse has no delay
        if not steps.any():
            self._put({**spec, "kind": kind}, mantissa, None, names)
            return
        if int(steps.max()) > MAX_DELAY:
            raise UnsupportedNodeError(
                f"{names[0]}: needs delays of {int(steps.max())} steps; allowed are 0 to {MAX_DELAY}"
            )
        self._put({**spec, "kind": f"delay_{kind}"}, mantissa, steps, names)

    def _put(
        self, spec: Mapping[str, Any], weight: np.ndarray, delays: np.ndarray | None, names: tuple[str, str, str]
    ) -> None:
        name, source, target = names
        key = next(key for key in _keys(f"{name}/{source}") if f"weight/{key}" not in self.arrays)
        arrays = {"weight": weight} if delays is None else {"weight": weight, "delay": delays}
        self.arrays |= {f"{what}/{key}": array for what, array in arrays.items()}
        held = {what: f"{what}/{key}" for what in arrays}
        self.synapses.append({**spec, **held, "name": name, "source": source, "target": target})


def _keys(first: str) -> Iterator[str]:
    """Yield names: one weighted node may be several processes."""
    yield first
    yield from (f"{first}/{number}" for number in range(2, 1 << 30))


def _held(name: str, weight: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the mantissas, and exponent and sign mode as Lava's processes take them."""
    held = weight_format(weight)
    if held is None:
        raise UnsupportedNodeError(
            f"{name}: with the pools before it its weights run from {weight.min():g} to {weight.max():g} and need more "
            "than 8 bits; use smaller weights, or pools that do not overlap"
        )
    return held.mantissa, {"weight_exp": held.exponent, "sign_mode": held.sign_mode.value}


def _parameters(name: str, node: Neuron) -> dict[str, int]:
    fields = neuron_fields(name, node)
    return {"du": fields["iDecay"] - 1, "dv": fields["vDecay"], "vth": fields["vThMant"]}


def _bias(name: str, node: Neuron) -> tuple[np.ndarray, int]:
    """Return the bias mantissas and the exponent they share."""
    if isinstance(node, IF):
        return np.zeros(node.v_threshold.shape, dtype=np.int32), 0
    whole = node.v_leak.astype(np.int64)
    exponents = [format_[1] for value in np.unique(whole) if (format_ := bias_format(int(value))) is not None]
    exponent = max(exponents)
    if bool((whole % (1 << exponent) != 0).any()):
        raise UnsupportedNodeError(f"{name}: its biases need several exponents, and a layer has one")
    return (whole >> exponent).astype(np.int32), exponent
