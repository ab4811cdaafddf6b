"""Reads ``network.npz`` back into a fixed-point graph: what Lava computes from it, in slamp's own nodes.

Steps in Lava become steps of the graph by the latencies the file states. A synapse with several delays becomes one node
of weights per delay, as Lava rounds its sums; a line that is always on becomes a bias. Layers that also
get the sums of matrices are flat, and so are the ones behind, as no node folds them into (channels, y, x).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporters.lava_lowering import ALWAYS_ON, INPUT
from exporters.net_format import NEVER_FIRES
from exporters.net_layers import stretch_matrix
from exporters.process_files import ProcessNetwork, read_process_network
from slamp.arithmetic import DECAY_ONE, MAX_DELAY, SHIFT, FixedPoint
from slamp.errors import ArtifactError, GraphError, UnsupportedNodeError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    Affine,
    Conv2d,
    CubaLI,
    CubaLIF,
    Delay,
    Flatten,
    Input,
    Linear,
    Node,
    Output,
    Shape,
    frozen_array,
    uniform,
)


def read_processes(path: str | Path, *, dt: float = 1e-3) -> SpikingGraph:
    """Return the network of a ``network.npz`` as a fixed-point graph; its layers keep their names.

    Args:
        path: The file.
        dt: Time step in seconds, which the file does not state.

    Raises:
        ArtifactError: The file is missing or damaged, or states what no graph means; the message says where.
    """
    path = Path(path)
    network = read_process_network(path)
    try:
        return _Reading(network).graph(dt)
    except (ArtifactError, GraphError, UnsupportedNodeError) as error:
        raise ArtifactError(f"{path}: {error}") from error


class _Reading:
    """A graph that grows, layer by layer."""

    def __init__(self, network: ProcessNetwork) -> None:
        self.network = network
        self.latency = network.latency_steps | {INPUT: 0}
        self.biases = _biases(network)
        self.folded = _folded(network, self.biases)
        self.nodes: dict[str, Node] = {INPUT: Input(network.shape(INPUT))}
        self.edges: list[tuple[str, str]] = []
        self.taken = {INPUT, *network.neurons}

    def graph(self, dt: float) -> SpikingGraph:
        """Return the finished graph."""
        for index, synapse in enumerate(self.network.synapses):
            line = self.biases.get(index)
            bias = None if line is None else self.network.weights(self.network.synapses[line])[:, 0]
            if synapse["source"] == ALWAYS_ON:
                if index not in self.biases.values():
                    self._add_line(f"line{index}", synapse)
            elif synapse["kind"] == "conv":
                self._add_convolution(f"synapse{index}", synapse, bias)
            else:
                self._add_matrix(f"synapse{index}", synapse, self.network.weights(synapse), bias)
        for name, spec in self.network.neurons.items():
            self.nodes[name] = self._neuron(name, spec)
        output = self.network.output
        same = self._shape(output) == tuple(self.network.header["output"]["shape"])
        last = output if same else self._flat("last", output)
        self._put(
            "output", Output(self._shape(output) if last == output else (int(np.prod(self._shape(output))),)), last
        )
        return SpikingGraph(self.nodes, tuple(self.edges), dt, FixedPoint())

    def _shape(self, name: str) -> Shape:
        shape = self.network.shape(name)
        return shape if name == INPUT or name in self.folded else (int(np.prod(shape)),)

    def _put(self, name: str, node: Node, source: str) -> str:
        """Add a node behind another; a name that is taken is changed."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        self.nodes[name] = node
        self.edges.append((source, name))
        return name

    def _flat(self, name: str, source: str) -> str:
        axes = len(self._shape(source))
        return source if axes == 1 else self._put(f"{name}_flat", Flatten(0, axes - 1), source)

    def _add_matrix(self, name: str, synapse: Mapping[str, Any], weights: np.ndarray, bias: np.ndarray | None) -> None:
        source, target = synapse["source"], synapse["target"]
        late = np.broadcast_to(self.latency[source] + 1 - self.latency[target] + self._delays(synapse), weights.shape)
        late = np.where(weights != 0, late, late[weights != 0].min(initial=MAX_DELAY))  # only synapses there are
        where = f"{synapse['name']} from {source} to {target}"
        if late.min() < 0:
            raise ArtifactError(f"{where}: arrives {-late.min()} steps before the step it was sent in; delay it more")
        start = self._flat(name, source)
        for steps in np.unique(late):
            before = self._late(f"{name}_delay{steps}", np.full(weights.shape[1], steps), start)
            kept = frozen_array(np.where(late == steps, weights, 0))
            node = Linear(kept) if bias is None else Affine(kept, frozen_array(bias))
            self.edges.append((self._put(f"{name}_{steps}", node, before), target))
            bias = None

    def _late(self, name: str, steps: np.ndarray, source: str) -> str:
        return self._put(name, Delay(frozen_array(steps)), source) if steps.any() else source

    def _delays(self, synapse: Mapping[str, Any]) -> np.ndarray:
        delays = self.network.arrays[synapse["delay"]] if "delay" in synapse else np.zeros((1, 1))
        return delays.astype(np.int64)

    def _add_convolution(self, name: str, synapse: Mapping[str, Any], bias: np.ndarray | None) -> None:
        source, target = synapse["source"], synapse["target"]
        node = _convolution(self.network, synapse)
        if len(self._shape(source)) != 3:
            shape = self.network.shape(source)
            nodes: dict[str, Node] = {INPUT: Input(shape), "conv": node, "output": Output(self.network.shape(target))}
            single = SpikingGraph(nodes, ((INPUT, "conv"), ("conv", "output")), 1.0, FixedPoint())
            self._add_matrix(name, synapse, stretch_matrix(single, INPUT, ["conv"]), bias)
            return
        late = self.latency[source] + 1 - self.latency[target]
        if late < 0:
            where = f"{synapse['name']} from {source} to {target}"
            raise ArtifactError(f"{where}: arrives {-late} steps before the step it was sent in")
        if bias is not None:
            node = replace(node, bias=frozen_array(bias.reshape(len(node.weight), -1)[:, 0]))
        before = self._late(f"{name}_delay", np.full(self._shape(source), late), source)
        conv = self._put(name, node, before)
        self.edges.append((conv if target in self.folded else self._put(f"{name}_flat", Flatten(0, 2), conv), target))

    def _add_line(self, name: str, synapse: Mapping[str, Any]) -> None:
        """Add a line that is always on: the bias of weights that are all zero."""
        target = synapse["target"]
        weights = self.network.weights(synapse)
        late = synapse["starts"] + 1 - self.latency[target] + self._delays(synapse)[:, 0]
        if late.min() < 0:
            raise ArtifactError(f"{synapse['name']}: its line starts {-late.min()} steps before {target} does")
        start = self._flat(name, INPUT)
        inputs, outputs = int(np.prod(self._shape(INPUT))), len(weights)
        nothing = self._put(f"{name}_nothing", Linear(uniform(0.0, (1, inputs))), start)
        bias = Affine(uniform(0.0, (outputs, 1)), frozen_array(weights[:, 0]))
        on = self._put(name, bias, nothing)
        self.edges.append((self._late(f"{name}_delay", np.broadcast_to(late, (outputs,)), on), target))

    def _neuron(self, name: str, spec: Mapping[str, Any]) -> CubaLIF | CubaLI:
        shape = self._shape(name)
        bias = self.network.arrays[f"bias/{name}"].astype(np.int64) << spec["bias_exp"]
        started = spec.get("reset_offset")
        wanted = spec["latency"] + 1
        if started != wanted and (started is not None or bool(bias.any())):
            raise ArtifactError(f"{name}: starts anew at step {started}; allowed is {wanted}, its first input")
        decays = uniform((spec["du"] + 1) / DECAY_ONE, shape), uniform(spec["dv"] / DECAY_ONE, shape)
        v_leak = frozen_array(bias.reshape(shape))
        if spec["vth"] == NEVER_FIRES and name == self.network.output:
            return CubaLI(*decays, v_leak)
        return CubaLIF(*decays, v_leak, uniform(float(spec["vth"] << SHIFT), shape), uniform(0.0, shape))


def _biases(network: ProcessNetwork) -> dict[int, int]:
    """Return for synapses the always-on line that can be their bias: on in time, one number per channel of a Conv."""
    found: dict[int, int] = {}
    for index, line in enumerate(network.synapses):
        if line["source"] != ALWAYS_ON or "delay" in line:
            continue
        if line["starts"] + 1 != network.latency_steps[line["target"]]:
            continue
        able = [
            other
            for other, synapse in enumerate(network.synapses)
            if synapse["target"] == line["target"] and other not in found and _takes(network, synapse, line)
        ]
        able.sort(key=lambda other: network.synapses[other]["name"] != line["name"])
        found |= dict.fromkeys(able[:1], index)
    return found


def _takes(network: ProcessNetwork, synapse: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    """True if a line added to a synapse's sums before they are rounded is the same as added after."""
    if synapse["source"] == ALWAYS_ON or "delay" in synapse:
        return False
    bias, weights = network.weights(line), network.weights(synapse)
    if synapse["kind"] == "conv":
        each = bias.reshape(len(weights), -1)
        return bool((each == each[:, :1]).all())
    return bool((weights % 1 == 0).all() or (bias % 1 == 0).all())


def _folded(network: ProcessNetwork, biases: Mapping[int, int]) -> set[str]:
    """Return the layers that get nothing but convolutions of such layers or of the input, and their biases."""
    folded = {INPUT, *(name for name in network.neurons if len(network.shape(name)) == 3)}
    while True:
        flat = {
            synapse["target"]
            for index, synapse in enumerate(network.synapses)
            if index not in biases.values() and (synapse["kind"] != "conv" or synapse["source"] not in folded)
        }
        if not flat & folded:
            return folded - {INPUT}
        folded -= flat


def _convolution(network: ProcessNetwork, synapse: Mapping[str, Any]) -> Conv2d:
    return Conv2d(
        frozen_array(network.arrays[synapse["weight"]]),
        None,
        (synapse["stride"][0], synapse["stride"][1]),
        (synapse["padding"][0], synapse["padding"][1]),
        (synapse["dilation"][0], synapse["dilation"][1]),
        synapse["groups"],
    )
