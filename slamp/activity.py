"""What a network did on a calibration sample: the measured side of every score, budget and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slamp.raster import SpikeRaster

KEPT_SAMPLES = 16


@dataclass(frozen=True, eq=False)
class LayerActivity:
    """Inputs of one weighted node. All figures are means per sample.

    A tap is what one weight reads, so tap arrays have the shape (groups, *weight.shape[1:]); Linear layers have one
    group. `slamp.taps.per_weight` spreads them over a weight.

    Attributes:
        from_spikes: True if every input event is a spike (possibly pooled), False for analog values.
        energy: ``a[t]^2`` = squared norm of the layer's unfolded input, float64, shape (steps,).
        events: Input events per step that dense weights would turn into operations (SOPs or MACs), float64, (steps,).
        operations: The same for the weights the graph has: events times non-zero outgoing synapses, float64, (steps,).
        tap_events: Events over all steps per tap, output positions summed, float64, shape (groups, ...).
        trace_energy: ``e`` = sum over steps of the squared leak-filtered input per tap, output positions summed,
            float64, shape (groups, ...). Where the node drives neurons with several leaks, that of each added up.
    """

    from_spikes: bool
    energy: np.ndarray
    events: np.ndarray
    operations: np.ndarray
    tap_events: np.ndarray
    trace_energy: np.ndarray


@dataclass(frozen=True, eq=False)
class NeuronActivity:
    """What one layer of neurons did.

    Attributes:
        rate: Share of neurons that spike, float64, shape (steps,); zeros for readouts.
        spike_counts: Spikes per neuron over all steps, mean per sample, float64, shape (*neurons).
        threshold_density: Density of the membrane at the threshold, per unit of membrane, float64, shape (steps,):
            share of cells with ``|v - v_threshold| < delta`` over ``2 delta``, delta a tenth of the threshold. Empty
            for readouts, which have no threshold.
    """

    rate: np.ndarray
    spike_counts: np.ndarray
    threshold_density: np.ndarray


@dataclass(frozen=True, eq=False)
class Activity:
    """Activity of a whole graph.

    Attributes:
        graph_hash: Hash of the graph it was measured on.
        samples: Number of samples.
        steps: Number of time steps.
        layers: By weighted node.
        neurons: By neuron node.
        peak_share: Share of samples whose largest output falls on each step, float64, shape (steps,).
        sample: The first samples themselves, at most `KEPT_SAMPLES`, for what must be tried out, such as quantization.
    """

    graph_hash: str
    samples: int
    steps: int
    layers: Mapping[str, LayerActivity]
    neurons: Mapping[str, NeuronActivity]
    peak_share: np.ndarray
    sample: SpikeRaster | None = None

    @property
    def sops(self) -> float:
        """Synaptic operations per sample: spikes times non-zero outgoing synapses."""
        return float(sum(layer.operations.sum() for layer in self.layers.values() if layer.from_spikes))

    @property
    def macs(self) -> float:
        """Multiply-accumulates per sample of layers with analog input."""
        return float(sum(layer.operations.sum() for layer in self.layers.values() if not layer.from_spikes))

    @property
    def dense_sops(self) -> float:
        """Synaptic operations per sample if no weight were zero, at the same spikes."""
        return float(sum(layer.events.sum() for layer in self.layers.values() if layer.from_spikes))

    @property
    def spikes(self) -> float:
        """Spikes per sample over all layers of the network, input not counted."""
        return float(sum(neuron.spike_counts.sum() for neuron in self.neurons.values()))

    @property
    def silent(self) -> list[str]:
        """Spiking layers that never fire."""
        return [
            name
            for name, neuron in self.neurons.items()
            if neuron.threshold_density.size and not neuron.spike_counts.any() and neuron.rate.size
        ]
