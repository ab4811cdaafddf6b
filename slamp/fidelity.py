"""`fidelity`: what pruning and quantization cost, layer by layer. A measured loss, never called equivalence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from slamp.errors import GraphError
from slamp.graph import SpikingGraph
from slamp.measure import accuracy
from slamp.raster import SpikeRaster
from slamp.simulate import check_raster, stream

TAU_STEPS = 10.0


@dataclass(frozen=True)
class LayerFidelity:
    """How far a layer's spikes are from those of the reference.

    Attributes:
        spikes: Spikes per sample of the reference.
        differing_cells: Share of cells (step, sample, neuron) that spike otherwise.
        spike_count_error: Mean over samples and neurons of ``|count - count of the reference|``.
        van_rossum: Mean over samples and neurons of the van Rossum distance.
    """

    spikes: float
    differing_cells: float
    spike_count_error: float
    van_rossum: float


@dataclass(frozen=True)
class Fidelity:
    """What a network lost against a reference.

    Attributes:
        samples: Number of samples.
        tau_steps: Time constant of the van Rossum distance, in time steps.
        layers: By spiking layer.
        vanished: By weighted node, weights that are zero here and not in the reference.
        accuracy: Share of labels met; None without labels.
        reference_accuracy: The same of the reference.
    """

    samples: int
    tau_steps: float
    layers: Mapping[str, LayerFidelity]
    vanished: Mapping[str, int]
    accuracy: float | None
    reference_accuracy: float | None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**asdict(self), "layers": {name: asdict(layer) for name, layer in self.layers.items()}}


def fidelity(
    reference: SpikingGraph,
    graph: SpikingGraph,
    raster: SpikeRaster,
    *,
    readout: str = "mean",
    tau_steps: float = TAU_STEPS,
    batch: int = 64,
) -> Fidelity:
    """Compare a pruned or quantized network with the one it came from.

    The van Rossum distance (Neural Computation 13, 2001) of two spike trains is the square root of
    ``1 / tau * sum over t of (f(t) - g(t))^2``, where f and g jump by 1 at each spike and decay by ``exp(-1 / tau)``
    per step; the sum ends with the sample.

    Args:
        reference: The network as it was.
        graph: The network as it is; spiking layers of the same names and shapes are compared.
        raster: Samples, best such that were not used before.
        readout: How the output is read for the accuracy: "mean", "sum", "last" or "max" over time.
        tau_steps: Time constant of the van Rossum distance, in time steps.
        batch: Samples in memory at once.

    Raises:
        GraphError: The networks have no spiking layer of one name and shape in common, or tau is not positive.
        RasterError: The raster does not fit a network.
    """
    if not tau_steps > 0:
        raise GraphError(f"fidelity: tau_steps is {tau_steps!r}; allowed is a positive number of steps")
    names = [name for name in reference.spiking if graph.shapes.get(name) == reference.shapes[name]]
    if not names:
        raise GraphError(
            "fidelity: the networks have no spiking layer in common; give a network and what was made of it"
        )
    check_raster(reference, raster)
    check_raster(graph, raster)
    totals = {name: _Totals(math.exp(-1.0 / tau_steps), tau_steps) for name in names}
    for piece in raster.batches(batch):
        for total in totals.values():
            total.begin()
        for old, new in zip(stream(reference, piece), stream(graph, piece), strict=True):
            for name, total in totals.items():
                total.step(old.values[name].cpu(), new.values[name].cpu())
        for total in totals.values():
            total.end()
    labelled = raster.labels is not None
    return Fidelity(
        samples=raster.batch,
        tau_steps=tau_steps,
        layers={name: total.result(raster.batch, raster.steps) for name, total in totals.items()},
        vanished=_vanished(reference, graph),
        accuracy=accuracy(graph, raster, readout=readout) if labelled else None,
        reference_accuracy=accuracy(reference, raster, readout=readout) if labelled else None,
    )


class _Totals:
    """Running sums of one layer."""

    def __init__(self, keep: float, tau_steps: float) -> None:
        self.keep, self.tau_steps = keep, tau_steps
        self.spikes = self.differing = 0
        self.count_error = self.distance = 0.0
        self.cells = 0

    def begin(self) -> None:
        self.trace: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0
        self.counts: torch.Tensor | float = 0.0

    def step(self, old: torch.Tensor, new: torch.Tensor) -> None:
        change = new.double() - old.double()
        self.spikes += int(old.sum())
        self.differing += int((change != 0).sum())
        self.trace = self.trace * self.keep + change
        self.squares = self.squares + self.trace**2
        self.counts = self.counts + change

    def end(self) -> None:
        squares, counts = torch.as_tensor(self.squares), torch.as_tensor(self.counts)
        self.count_error += float(counts.abs().sum())
        self.distance += float((squares / self.tau_steps).sqrt().sum())
        self.cells += counts.numel()

    def result(self, samples: int, steps: int) -> LayerFidelity:
        return LayerFidelity(
            spikes=self.spikes / samples,
            differing_cells=self.differing / (self.cells * steps),
            spike_count_error=self.count_error / self.cells,
            van_rossum=self.distance / self.cells,
        )


def _vanished(reference: SpikingGraph, graph: SpikingGraph) -> dict[str, int]:
    found = {}
    for name, node in reference.weighted.items():
        other = graph.weighted.get(name)
        if other is not None and other.weight.shape == node.weight.shape:
            found[name] = int(np.count_nonzero((node.weight != 0) & (other.weight == 0)))
    return found
