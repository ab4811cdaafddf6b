"""What a network costs and how well it does: the two columns of every before/after table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from slamp.activity import Activity
from slamp.allocate import allocate
from slamp.budget import Budget
from slamp.calibrate import calibrate
from slamp.capture import read_graph
from slamp.errors import RasterError
from slamp.graph import SpikingGraph
from slamp.masks import make_masks
from slamp.raster import SpikeRaster
from slamp.recover import recover
from slamp.score import resolve_method, score
from slamp.shared import live_count, weight_count
from slamp.simulate import predictions, simulate
from slamp.taps import connections, weighted_sum

BATCH = 128
CURVE = (0.5, 0.3, 0.2, 0.1, 0.05)


@dataclass(frozen=True, eq=False)
class Accounts:
    """Cost and accuracy of one network.

    Attributes:
        weights: Weights of all parameters of the network as it was, zeros included: what a density is a share of.
        kept: Weights of all parameters that are not zero.
        synapses: Weights that are not zero, by weighted node; a parameter of several uses counts for each.
        connections: Unrolled connections that are not zero.
        activity: Activity on the calibration sample, spikes exactly those of the reference.
        held_out: The same on the held-out sample.
        accuracy: Share of held-out samples classified right, or the user's metric; None without labels and metric.
    """

    weights: int
    kept: int
    synapses: Mapping[str, int]
    connections: Mapping[str, int]
    activity: Activity
    held_out: Activity
    accuracy: float | None

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return self.kept / self.weights


def account(
    graph: SpikingGraph,
    raster: SpikeRaster,
    held_out: SpikeRaster,
    metric: float | None = None,
    *,
    readout: str = "mean",
    weights: int | None = None,
) -> Accounts:
    """Measure a graph on the calibration and the held-out sample.

    Args:
        graph: The network.
        raster: Calibration sample.
        held_out: Held-out sample.
        metric: Replaces the accuracy from labels.
        readout: How the output is read.
        weights: Of the network as it was, if channels were removed from it.
    """
    kept = {name: node.weight != 0 for name, node in graph.weighted.items()}
    unrolled = {
        name: round(weighted_sum(node, kept[name], connections(node, graph.shapes[graph.sources(name)[0]])))
        for name, node in graph.weighted.items()
    }
    found = metric
    if metric is None and held_out.labels is not None:
        found = accuracy(graph, held_out, readout=readout)
    return Accounts(
        weights=weights or weight_count(graph),
        kept=live_count(graph),
        synapses={name: int(np.count_nonzero(mask)) for name, mask in kept.items()},
        connections=unrolled,
        activity=calibrate(graph, raster.batches(BATCH), fold=False),
        held_out=calibrate(graph, held_out.batches(BATCH), fold=False),
        accuracy=found,
    )


def accuracy(graph: SpikingGraph, raster: SpikeRaster, *, readout: str = "mean") -> float:
    """Share of samples whose label is the class with the largest output, read over time as ``readout`` says.

    Raises:
        RasterError: The raster has no labels.
    """
    if raster.labels is None:
        raise RasterError("accuracy: the raster has no labels; give labels of shape (batch,)")
    hits = 0
    for part in raster.batches(BATCH):
        assert part.labels is not None
        hits += int((predictions(simulate(graph, part), readout).cpu() == part.labels.cpu()).sum())
    return hits / raster.batch


def densities_curve(
    net: torch.nn.Module, raster: SpikeRaster, held_out: SpikeRaster, *, method: str, readout: str, seed: int
) -> list[tuple[float, float]]:
    """Return (density, accuracy) of ``net`` pruned to several densities, rates restored per neuron, not retrained.

    The first 128 samples of ``raster`` are used; if a layer never fires on them the curve is empty.
    """
    graph, _ = read_graph(net, raster.features, raster.dt)
    raster = raster.samples(0, BATCH)
    activity = calibrate(graph, raster)
    if not all(activity.neurons[name].spike_counts.any() for name in graph.spiking):
        return []
    chosen = resolve_method(method, Budget(density=CURVE[0]))
    generator = np.random.default_rng([seed, 1 << 17])
    scores = score(graph, activity, chosen, readout=readout, raster=raster, generator=generator)
    points = [(1.0, accuracy(graph, held_out, readout=readout))]
    least = len(scores.layers) / sum(scores.sizes.values())
    for density in CURVE:
        if density < least:
            continue
        masks = make_masks(scores, allocate(scores, Budget(density=density)))
        pruned = recover(net, masks, raster, per="neuron", targets=activity)
        pruned_graph, _ = read_graph(pruned, raster.features, raster.dt)
        points.append((density, accuracy(pruned_graph, held_out, readout=readout)))
    return points
