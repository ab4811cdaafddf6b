"""Is a difference within float rounding, and is the rest of that sample as well? The line between tie and different."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from slamp.carried import shown_neurons
from slamp.compare import Comparison, Difference, shifted
from slamp.graph import SpikingGraph
from slamp.nodes import SECOND_TIER
from slamp.raster import SpikeRaster
from slamp.rounding import membrane_bound, output_bound
from slamp.simulate import Recording


def judge_sample(
    graph: SpikingGraph,
    inputs: SpikeRaster,
    reference: Recording,
    replayed: Recording,
    comparison: Comparison,
    first: Difference,
) -> tuple[str, Difference]:
    """Judge a sample that differs.

    It is a tie if its first differing cell lies within rounding of the threshold and, from there on, every cell of the
    replay is what the graph computes, within rounding, from the replay's own earlier spikes. (Layers the replay does
    not show are taken to spike as in the graph.) Otherwise it is different.

    Args:
        graph: The network.
        inputs: The batch.
        reference: The graph's recording of the batch.
        replayed: The target's.
        comparison: Their comparison.
        first: First difference of the sample.

    Returns:
        "tie" or "different", and the cell that decides, with membrane, threshold, margin and bound filled in.
    """
    if not isinstance(first.expected, bool):
        return "different", replace(first, cause="value: the analog output is farther off than rounding explains")
    if unbounded := next((name for name in graph.order if isinstance(graph.nodes[name], SECOND_TIER)), None):
        kind = type(graph.nodes[unbounded]).__name__
        return "different", replace(first, cause=f"rounding: no bound is known with a {kind} ({unbounded}), so no ties")
    sample = first.sample
    inside = inputs.samples(sample, sample + 1)
    located = first if first.layer != graph.output else _at_neuron(graph, first, reference, replayed, comparison)
    if located.layer not in graph.spiking:
        return "different", replace(first, cause="output: a pool hides which neuron differs, so no tie can be shown")
    if first.layer == graph.output and located.layer in comparison.layers:
        return "different", replace(first, cause="output: its layer's spikes agree, but the output is not those spikes")
    measured = _measured(graph, inside, spikes_of(reference, sample), located)
    if not _within(measured):
        return "different", measured
    measured = replace(measured, cause="tie: float rounding decides, the membrane lies at the threshold")
    late = _unexplained(graph, inside, reference, replayed, comparison, sample)
    return ("tie", measured) if late is None else ("different", late)


def spikes_of(recording: Recording, sample: int) -> dict[str, torch.Tensor]:
    """Return the recorded spikes of one sample by layer, bool (time, 1, *neurons)."""
    return {
        name: trace.spikes[:, sample : sample + 1].cpu()
        for name, trace in recording.traces.items()
        if trace.spikes is not None
    }


def _at_neuron(
    graph: SpikingGraph, first: Difference, reference: Recording, replayed: Recording, comparison: Comparison
) -> Difference:
    """Name the neuron behind a cell of the output that differs: of all that do in that step, in the earliest layer."""
    late = first.step + comparison.latency_steps
    expected, found = reference.output.data[first.step, first.sample], replayed.output.data[late, first.sample]
    differs = (expected.cpu() != found.cpu()).flatten().numpy()
    for layer, (features, neurons) in shown_neurons(graph).items():
        if differs[features].any():
            at = int(differs[features].argmax())
            neuron = np.unravel_index(int(neurons[at]), graph.shapes[layer])
            value = bool(expected.flatten()[int(features[at])])
            return replace(
                first, layer=layer, neuron=tuple(int(axis) for axis in neuron), expected=value, found=not value
            )
    return first


def _measured(
    graph: SpikingGraph, inputs: SpikeRaster, spikes: Mapping[str, torch.Tensor], difference: Difference
) -> Difference:
    node = graph.spiking[difference.layer]
    bounded = membrane_bound(graph, difference.layer, inputs, spikes)
    cell = (difference.step, 0, *difference.neuron)
    membrane, threshold = float(bounded.value[cell]), float(node.v_threshold[difference.neuron])
    return replace(
        difference,
        membrane=membrane,
        threshold=threshold,
        margin=membrane - threshold,
        bound=float(bounded.error[cell]),
    )


def _within(difference: Difference) -> bool:
    assert difference.margin is not None
    assert difference.bound is not None
    return abs(difference.margin) <= difference.bound


def _unexplained(
    graph: SpikingGraph,
    inputs: SpikeRaster,
    reference: Recording,
    replayed: Recording,
    comparison: Comparison,
    sample: int,
) -> Difference | None:
    """Return the first cell of the replay that its own earlier spikes do not explain within rounding."""
    steps, latency = comparison.steps, comparison.latency_steps
    inputs = SpikeRaster(inputs.data[:steps], inputs.dt, kind=inputs.kind)
    shown = {name: shifted(part, latency, steps) for name, part in spikes_of(replayed, sample).items()}
    output = shifted(replayed.output.data, latency, steps)[:, sample : sample + 1].cpu()
    expected = {name: part[:steps] for name, part in spikes_of(reference, sample).items()}
    for name, (features, neurons) in shown_neurons(graph).items() if replayed.output.is_spikes else ():
        if name not in shown:  # neurons that the output leaves out are taken as in the graph
            flat = expected[name].flatten(2).clone()
            flat[:, :, neurons] = output.flatten(2)[:, :, features]
            shown[name] = flat.reshape(expected[name].shape)
    spikes = expected | shown
    hidden = f" ({', '.join(comparison.unobserved)} taken as in the graph)" if comparison.unobserved else ""
    for name in [name for name in graph.spiking if name in shown]:
        bounded = membrane_bound(graph, name, inputs, spikes)
        margin = bounded.value - torch.from_numpy(np.array(graph.spiking[name].v_threshold, dtype=np.float64))
        wrong = (spikes[name] != (margin > 0)) & (margin.abs() > bounded.error)
        if bool(wrong.any()):
            step, _, *neuron = (int(index) for index in wrong.nonzero()[0])
            found = bool(spikes[name][(step, 0, *neuron)])
            cell = Difference(name, step, sample, tuple(neuron), not found, found)
            cause = f"after a tie earlier in this sample, the replay's own spikes do not explain this cell{hidden}"
            return replace(_measured(graph, inputs, spikes, cell), cause=cause)
    return _unexplained_output(graph, inputs, spikes, output, sample)


def _unexplained_output(
    graph: SpikingGraph,
    inputs: SpikeRaster,
    spikes: Mapping[str, torch.Tensor],
    output: torch.Tensor,
    sample: int,
) -> Difference | None:
    bounded = output_bound(graph, inputs, spikes)
    found = output.double()
    wrong = ~((found - bounded.value).abs() <= bounded.error)
    if not bool(wrong.any()):
        return None
    step, _, *neuron = (int(index) for index in wrong.nonzero()[0])
    cell = (step, 0, *neuron)
    return Difference(
        graph.output,
        step,
        sample,
        tuple(neuron),
        float(bounded.value[cell]),
        float(found[cell]),
        membrane=float(bounded.value[cell]),
        bound=float(bounded.error[cell]),
        cause="after a tie earlier in this sample, the replay's own spikes do not explain this output",
    )
