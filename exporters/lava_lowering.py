"""From a fixed-point graph to Lava's processes: synapses, neurons, and by how many steps each layer answers later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slamp.arithmetic import DECAY_ONE, MAX_DELAY, SHIFT, FixedPoint, bias_format, weight_format
from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    LIF,
    NEURON,
    READOUT,
    WEIGHTED,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Linear,
    Neuron,
    Weighted,
)
from slamp.raster import SpikeRaster
from slamp.simulate import check_raster

NEVER_FIRES = 131072  # membranes saturate one below 64 times that


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
    if not isinstance(graph.arithmetic, FixedPoint):
        raise UnsupportedNodeError("graph: is in float32, and Lava's fixed_pt models compute in integers")
    check_raster(graph, raster)
    found = {name: list(_synapses(graph, name)) for name, node in graph.nodes.items() if isinstance(node, NEURON)}
    latency = _latency(graph, found)
    arrays: dict[str, np.ndarray] = {}
    neurons: dict[str, Any] = {}
    synapses: list[dict[str, Any]] = []
    for name, into in found.items():
        node = graph.nodes[name]
        assert isinstance(node, NEURON)
        arrays[f"bias/{name}"], exponent = _bias(name, node)
        neurons[name] = {**_parameters(name, node), "shape": graph.shapes[name], "bias_exp": exponent}
        for number, synapse in enumerate(into):
            added = latency[name] - latency[synapse.source] - 1
            spec, delay = _process(graph, synapse, added, arrays)
            if delay is not None:
                # Named by the target: one weighted node may have several sources, and several targets.
                spec = {**spec, "delay": f"delay/{name}/{number}"}
                arrays[f"delay/{name}/{number}"] = delay
            graded = int(synapse.source == graph.input and not raster.is_spikes)
            source = "input" if synapse.source == graph.input else synapse.source
            synapses.append({**spec, "source": source, "target": name, "num_message_bits": 24 * graded})
    del latency[graph.input]
    if any(bool(arrays[f"bias/{name}"].any()) for name in neurons):
        # Biases run from Lava's first step on: every layer starts anew at the step in which the first input reaches it.
        for name, parameters in neurons.items():
            parameters["reset_offset"] = latency[name] + 1  # Lava's steps count from 1
        _check_quiet_start(graph, found, synapses, latency)
    inputs = raster.numpy().astype(np.int32)
    empty = np.zeros((max(latency.values()), *inputs.shape[1:]), dtype=np.int32)
    arrays["inputs"] = np.concatenate([inputs, empty])
    text = json.dumps({"neurons": neurons, "synapses": synapses})
    arrays["network"] = np.frombuffer(text.encode(), dtype=np.uint8)
    return LavaNetwork(arrays, latency)


@dataclass(frozen=True, eq=False)
class _Synapse:
    """A weighted node between two layers of neurons.

    ``before`` and ``behind`` are the delays of the graph in front of and behind the weights: one number, or one per
    source (target).
    """

    weighted: str
    source: str
    before: np.ndarray
    behind: np.ndarray

    @property
    def least(self) -> int:
        return int(self.before.min() + self.behind.min())


def _synapses(graph: SpikingGraph, neuron: str) -> Iterator[_Synapse]:
    """Yield everything that drives a neuron layer."""
    for first in graph.sources(neuron):
        name, behind = _through_delays(graph, first, wiring=Delay)
        node = graph.nodes[name]
        if not isinstance(node, WEIGHTED) or isinstance(node, Conv1d):
            raise UnsupportedNodeError(f"{name}: {type(node).__name__} before neurons has no process of Lava")
        sources = graph.sources(name)
        if len(sources) > 1 and not _whole(node.weight):
            raise UnsupportedNodeError(
                f"{name}: has fractional weights behind the sum of {' and '.join(sources)}, which Lava rounds one "
                "by one; give each source a linear layer"
            )
        for found in sources:
            source, before = _through_delays(graph, found, wiring=(Delay, Flatten))
            if isinstance(graph.nodes[source], READOUT) or not isinstance(graph.nodes[source], (Input, *NEURON)):
                raise UnsupportedNodeError(
                    f"{source}: {type(graph.nodes[source]).__name__} before {name} has no process of Lava"
                )
            yield _Synapse(name, source, before, behind)


def _through_delays(graph: SpikingGraph, name: str, *, wiring: type | tuple[type, ...]) -> tuple[str, np.ndarray]:
    """Go back over wiring; return what stands before it, and the sum of its delays."""
    steps = np.zeros(1, dtype=np.int64)
    while isinstance(node := graph.nodes[name], wiring):
        if isinstance(node, Delay):
            late = node.steps.reshape(-1).astype(np.int64)
            uniform = bool((late == late[0]).all())
            steps = steps + (late[:1] if uniform else late)
        sources = graph.sources(name)
        if len(sources) != 1:
            raise UnsupportedNodeError(
                f"{name}: reads the sum of {' and '.join(sources)}, which has no process of Lava"
            )
        (name,) = sources
    return name, steps


def _latency(graph: SpikingGraph, found: Mapping[str, list[_Synapse]]) -> dict[str, int]:
    """Return by how many steps each layer answers later in Lava: least numbers with which no delay is negative."""
    latency = {graph.input: 0} | dict.fromkeys(found, 1)
    for _ in range(len(latency)):
        changed = False
        for name, into in found.items():
            needed = max(latency[synapse.source] + 1 - synapse.least for synapse in into)
            if needed > latency[name]:
                latency[name], changed = needed, True
        if not changed:
            return latency
    late = next(name for name, into in found.items() if any(synapse.least for synapse in into))
    raise UnsupportedNodeError(
        f"{late}: lies on a cycle of more synapses than steps of delay; each takes a step in Lava, so delay it more"
    )


def _check_quiet_start(
    graph: SpikingGraph,
    found: Mapping[str, list[_Synapse]],
    synapses: list[dict[str, Any]],
    latency: Mapping[str, int],
) -> None:
    """Refuse spikes that biases cause before a layer starts and that are still on their way afterwards.

    In a chain without delays every such spike arrives before its target starts anew, which forgets it.
    """
    lasting = any(spec["kind"] == "delay_dense" for spec in synapses) or any(
        synapse.source != graph.input and latency[synapse.source] >= latency[name]
        for name, into in found.items()
        for synapse in into
    )
    for name in latency if lasting else ():
        node = graph.nodes[name]
        if isinstance(node, (LIF, CubaLIF)) and bool((node.v_leak * latency[name] > node.v_threshold).any()):
            raise UnsupportedNodeError(
                f"{name}: its bias alone makes it fire in the {latency[name]} steps before its first input, and delays "
                "or recurrence carry that on; use smaller biases"
            )


def _process(
    graph: SpikingGraph, synapse: _Synapse, added: int, arrays: dict[str, np.ndarray]
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Return a synapse process and its delays, if any; ``added`` steps bring the source to its target's latency."""
    name = synapse.weighted
    node = graph.weighted[name]
    kind, settings = _kind(name, node)
    key = f"weight/{name}/{synapse.source}"
    arrays[key], held = _weight(name, node)
    spec = {"kind": kind, "weight": key, **held, **settings}
    if not synapse.before.any() and not synapse.behind.any() and added == 0:
        return spec, None
    if isinstance(node, Conv2d):
        if int(synapse.before.max() + synapse.behind.max()) + added == 0:
            return spec, None
        raise UnsupportedNodeError(
            f"{name}: is a convolution with a delay, which Lava's Conv has not; use a linear layer"
        )
    outputs, inputs = node.weight.shape
    steps = np.broadcast_to(synapse.behind[:, None] + synapse.before[None, :] + added, (outputs, inputs))
    if not steps.any():
        return spec, None
    if synapse.before.size > 1 and not _whole(node.weight):
        raise UnsupportedNodeError(
            f"{name}: has fractional weights behind different delays, whose sums Lava rounds delay by delay"
        )
    if int(steps.max()) > MAX_DELAY:
        raise UnsupportedNodeError(f"{name}: needs delays of {int(steps.max())} steps; allowed are 0 to {MAX_DELAY}")
    return {**spec, "kind": "delay_dense"}, steps.astype(np.int32)


def _kind(name: str, node: Weighted) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, Linear) and node.bias is not None and bool((node.bias != 0).any()):
        raise UnsupportedNodeError(f"{name}: a bias in the current needs an input line that is always on")
    if not isinstance(node, Conv2d):
        return "dense", {}
    if node.padding == "same":
        raise UnsupportedNodeError(f"{name}: pads one side more than the other, which Lava's Conv cannot")
    settings = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation, "groups": node.groups}
    return "conv", settings


def _weight(name: str, node: Weighted) -> tuple[np.ndarray, dict[str, Any]]:
    """Return what Lava's process takes for a weight; its Conv knows no exponent and takes effective weights."""
    if isinstance(node, Conv2d):
        if not _whole(node.weight):
            raise UnsupportedNodeError(
                f"{name}: is a convolution with fractional weights, and Lava's Conv takes whole ones; use a larger "
                "weight exponent"
            )
        return node.weight.astype(np.int32), {}
    held = weight_format(node.weight)
    assert held is not None
    return held.mantissa, {"weight_exp": held.exponent, "sign_mode": held.sign_mode.value}


def _whole(weight: np.ndarray) -> bool:
    return bool((weight % 1 == 0).all())


def _parameters(name: str, node: Neuron) -> dict[str, int]:
    decay_syn = _one(name, "decay_syn", node.decay_syn) if isinstance(node, (CubaLIF, CubaLI)) else 1.0
    decay_mem = 0.0 if isinstance(node, IF) else _one(name, "decay_mem", node.decay_mem)
    threshold = NEVER_FIRES
    if not isinstance(node, READOUT):
        threshold = int(_one(name, "v_threshold", node.v_threshold)) >> SHIFT
    return {"du": int(decay_syn * DECAY_ONE) - 1, "dv": int(decay_mem * DECAY_ONE), "vth": threshold}


def _one(name: str, key: str, values: np.ndarray) -> float:
    if values.min() != values.max():
        raise UnsupportedNodeError(
            f"{name}: {key} runs from {values.min():g} to {values.max():g}; Lava's LIF has one for all neurons"
        )
    return float(values.flat[0])


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
