"""What is left of a graph, and of its measured activity, when channels go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from slamp.activity import Activity, LayerActivity, NeuronActivity
from slamp.channels import Channels, check_channels, kept_outputs
from slamp.errors import MaskError
from slamp.graph import SpikingGraph
from slamp.nodes import NEURON, WEIGHTED, Delay, Node, Reshape, Scale, Weighted, arrays_of, frozen_array, uniform
from slamp.taps import weighted_sum


def shrunk_graph(graph: SpikingGraph, channels: Channels) -> SpikingGraph:
    """Return the graph without the channels that go.

    Gone are their weights, bias, normalization and neurons, and the weights the next layer reads them with. Node names
    and the parameters behind them stay.

    Raises:
        MaskError: The channels do not belong to the graph, or cannot be removed from it.
    """
    check_channels(graph, channels)
    kept = kept_outputs(graph, channels)
    nodes: dict[str, Node] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, WEIGHTED):
            nodes[name] = _shrunk_weighted(node, kept[name], kept[graph.sources(name)[0]])
        elif isinstance(node, (Scale, Delay, *NEURON)) and not kept[name].all():
            rows: dict[str, Any] = {key: _rows(array, kept[name]) for key, array in arrays_of(node).items()}
            nodes[name] = replace(node, **rows)
        elif isinstance(node, Reshape):
            nodes[name] = Reshape((int(np.count_nonzero(kept[name])), *node.shape[1:]))
        else:
            nodes[name] = node
    return SpikingGraph(
        nodes, graph.edges, graph.dt, graph.arithmetic, graph.parameters, graph.device, readout=graph.readout
    )


def shrunk_activity(activity: Activity, graph: SpikingGraph, channels: Channels) -> Activity:
    """Return the activity of the whole graph, restricted to what stays.

    It is what the smaller network should do, so it is the target of `recover`, and predicts what the smaller network
    costs. Exact is what was measured of the parts that stay: ``spike_counts`` of the neurons, ``tap_events`` and (if
    the neurons a layer drives share their time constants) ``trace_energy`` of the inputs, and over all steps together
    the sums of ``events``, ``operations`` and (of spikes that pass no pool) ``energy``. How these spread over the steps
    is predicted, by the curves of the whole layer scaled; so is ``rate``. ``threshold_density`` and ``peak_share`` stay
    as measured on the whole graph.

    The smaller network itself fires as this says up to the neurons behind the first layer that loses outputs, and the
    layer they feed; further on it fires otherwise, because its neurons are driven by less, until rates are restored.

    Args:
        activity: Activity of ``graph``.
        graph: The whole graph.
        channels: Which outputs stay.

    Raises:
        MaskError: The activity or the channels are not of this graph, or the channels cannot be removed from it.
    """
    if activity.graph_hash != graph.hash:
        raise MaskError(
            f"activity: measured on graph {activity.graph_hash[:12]}, the channels go from {graph.hash[:12]}; "
            "give the graph that was calibrated"
        )
    small = shrunk_graph(graph, channels)
    kept = kept_outputs(graph, channels)
    layers = {
        name: _shrunk_layer(layer, graph.weighted[name], small.weighted[name], kept[graph.sources(name)[0]])
        for name, layer in activity.layers.items()
    }
    neurons = {name: _shrunk_neurons(neurons, kept[name]) for name, neurons in activity.neurons.items()}
    return replace(activity, graph_hash=small.hash, layers=layers, neurons=neurons)


def _shrunk_weighted(node: Weighted, outputs: np.ndarray, inputs: np.ndarray) -> Weighted:
    if outputs.all() and inputs.all():
        return node
    arrays: dict[str, Any] = {key: frozen_array(array[outputs]) for key, array in arrays_of(node).items()}
    if not inputs.all():  # with groups the axis is shorter than the inputs, but then all of them stay
        arrays["weight"] = frozen_array(arrays["weight"][:, inputs])
    return replace(node, **arrays)


def _rows(array: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return the entries along the first axis that stay; a uniform array stays one number in memory."""
    if not any(array.strides):
        return uniform(float(array.flat[0]), (int(np.count_nonzero(keep)), *array.shape[1:]))
    return frozen_array(array[keep])


def _shrunk_layer(layer: LayerActivity, node: Weighted, small: Weighted, inputs: np.ndarray) -> LayerActivity:
    if small is node:
        return layer
    taps = layer.tap_events if inputs.all() else layer.tap_events[:, inputs]
    reads = _share(taps.sum(), layer.tap_events.sum())
    before = weighted_sum(node, node.weight != 0, layer.tap_events)
    after = weighted_sum(small, small.weight != 0, taps)
    return LayerActivity(
        from_spikes=layer.from_spikes,
        energy=layer.energy * reads,
        events=layer.events * (reads * small.weight.shape[0] / node.weight.shape[0]),
        operations=layer.operations * _share(after, before),
        tap_events=taps,
        trace_energy=layer.trace_energy if inputs.all() else layer.trace_energy[:, inputs],
    )


def _shrunk_neurons(neurons: NeuronActivity, keep: np.ndarray) -> NeuronActivity:
    if keep.all():
        return neurons
    counts = neurons.spike_counts[keep]
    rate = np.minimum(neurons.rate * _share(counts.mean(), neurons.spike_counts.mean()), 1.0)
    return NeuronActivity(rate, counts, neurons.threshold_density)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
