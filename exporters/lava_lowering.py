"""From a fixed-point graph to Lava's processes: synapses, neurons, and by how many steps each layer answers later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slamp.arithmetic import DECAY_ONE, SHIFT, FixedPoint, bias_format, weight_format
from slamp.errors import UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    NEURON,
    READOUT,
    WEIGHTED,
    Conv1d,
    Conv2d,
    CubaLI,
    CubaLIF,
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
    arrays: dict[str, np.ndarray] = {}
    neurons: dict[str, Any] = {}
    synapses: list[dict[str, Any]] = []
    latency = {graph.input: 0}
    for name in [name for name in graph.order if isinstance(graph.nodes[name], NEURON)]:
        node = graph.nodes[name]
        assert isinstance(node, NEURON)
        arrays[f"bias/{name}"], exponent = _bias(name, node)
        neurons[name] = {**_parameters(name, node), "shape": graph.shapes[name], "bias_exp": exponent}
        reached = set()
        for weighted, source in _synapses(graph, name):
            weight = graph.weighted[weighted]
            kind, settings = _kind(weighted, weight)
            arrays[f"weight/{weighted}"], held = _weight(weight)
            reached.add(latency[source] + 1)
            graded = int(source == graph.input and not raster.is_spikes)
            synapses.append(
                {
                    "source": "input" if source == graph.input else source,
                    "target": name,
                    "kind": kind,
                    "weight": f"weight/{weighted}",
                    "num_message_bits": 24 * graded,
                    **held,
                    **settings,
                }
            )
        if len(reached) > 1:
            raise UnsupportedNodeError(
                f"{name}: is reached over {' and '.join(map(str, sorted(reached)))} synapses, which Lava answers at "
                "different steps; give the shorter path a delay"
            )
        latency[name] = reached.pop()
    del latency[graph.input]
    if any(bool(arrays[f"bias/{name}"].any()) for name in neurons):
        # Biases run from Lava's first step on: every layer starts anew at the step in which the first input reaches it.
        for name, parameters in neurons.items():
            parameters["reset_offset"] = latency[name] + 1  # Lava's steps count from 1
    inputs = raster.numpy().astype(np.int32)
    empty = np.zeros((max(latency.values()), *inputs.shape[1:]), dtype=np.int32)
    arrays["inputs"] = np.concatenate([inputs, empty])
    text = json.dumps({"neurons": neurons, "synapses": synapses})
    arrays["network"] = np.frombuffer(text.encode(), dtype=np.uint8)
    return LavaNetwork(arrays, latency)


def _synapses(graph: SpikingGraph, neuron: str) -> Iterator[tuple[str, str]]:
    """Yield (weighted node, neuron or input before it) of everything that drives a neuron layer."""
    for name in graph.sources(neuron):
        node = graph.nodes[name]
        if not isinstance(node, WEIGHTED) or isinstance(node, Conv1d):
            raise UnsupportedNodeError(f"{name}: {type(node).__name__} before neurons has no process of Lava")
        for found in graph.sources(name):
            source = found
            while isinstance(graph.nodes[source], Flatten):
                (source,) = graph.sources(source)
            if isinstance(graph.nodes[source], READOUT) or not isinstance(graph.nodes[source], (Input, *NEURON)):
                raise UnsupportedNodeError(
                    f"{source}: {type(graph.nodes[source]).__name__} before {name} has no process of Lava"
                )
            yield name, source


def _kind(name: str, node: Weighted) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, Linear) and node.bias is not None and bool((node.bias != 0).any()):
        raise UnsupportedNodeError(f"{name}: a bias in the current needs an input line that is always on")
    if not isinstance(node, Conv2d):
        return "dense", {}
    if node.padding == "same":
        raise UnsupportedNodeError(f"{name}: pads one side more than the other, which Lava's Conv cannot")
    settings = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation, "groups": node.groups}
    return "conv", settings


def _weight(node: Weighted) -> tuple[np.ndarray, dict[str, Any]]:
    """Return what Lava's process takes for a weight; its Conv knows no exponent and takes effective weights."""
    if isinstance(node, Conv2d):
        return node.weight.astype(np.int32), {}
    held = weight_format(node.weight)
    assert held is not None
    return held.mantissa, {"weight_exp": held.exponent, "sign_mode": held.sign_mode.value}


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
