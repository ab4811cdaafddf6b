"""`recover`: give a pruned network its firing rates back, before it is judged or retrained.

A pruned spiking network is silent, and a silent one does not learn. Layer by layer, on inputs from the layers already
recovered, the gain g of the masked weights is found by bisection on log g so that the layer fires as often as in the
dense network; g is then folded into the weights, so nothing is left to export. A rate may also fall with the gain (more
inhibition than excitation), so the bisection starts from the crossing nearest to 1, and the best gain tried is kept.

One gain scales all weights that drive a layer, input and recurrent ones alike; a recurrent layer is fitted while its
own spikes come back to it. A parameter has one gain: layers that share one, or are driven by one node, are fitted
together, to their mean rate. Layers on a cycle are fitted in turn, three times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch

from slamp.activity import Activity
from slamp.calibrate import calibrate
from slamp.capture import graph_and_modules
from slamp.errors import MaskError, SilentNetworkError
from slamp.graph import SpikingGraph
from slamp.masks import Masks, masked_copy
from slamp.nodes import Scale, frozen_array
from slamp.progress import ticker
from slamp.raster import SpikeRaster
from slamp.rates import Normalizations, Restoration, scaled_weight

Modules = Mapping[str, tuple[str, torch.nn.Module]]
# One layer's values over all steps of the samples used stay below this.
STAGE_BYTES = 256 << 20


def recover(
    net: torch.nn.Module,
    masks: Masks,
    raster: SpikeRaster,
    *,
    per: Literal["layer", "neuron"] = "layer",
    targets: Activity | None = None,
    progress: bool = False,
) -> torch.nn.Module:
    """Return a masked copy of ``net`` that fires like ``net``.

    Gains lie in [0.5, 8] and are folded into the weights, or into the scale of a batch normalization that follows
    (whose running statistics are re-estimated first). Zeros stay zeros. Readouts, which do not fire, are left alone.

    Args:
        net: The network before masking; its rates are the target.
        masks: Which weights stay.
        raster: Calibration sample; as many of its samples are used as fit in 256 MB per layer.
        per: One gain per "layer" (before retraining), or per "neuron" or output channel (when no retraining follows).
        targets: Activity whose rates are the target instead of those of ``net``, measured on the same graph structure.
        progress: Show a progress bar.

    Raises:
        SilentNetworkError: A layer of ``net`` never fires, so there is no rate to restore.
        MaskError: The masks or the targets do not fit the network, or ``per`` is unknown.
    """
    if per not in ("layer", "neuron"):
        raise MaskError(f"recover: per is {per!r}; allowed are 'layer' and 'neuron'")
    graph, modules = graph_and_modules(net, raster)
    raster = raster.samples(0, _affordable(graph, raster))
    dense = targets or calibrate(graph, raster)
    if missing := [name for name in graph.spiking if name not in dense.neurons]:
        raise MaskError(
            f"{missing[0]}: the targets hold no such neurons, only {list(dense.neurons)}; "
            "measure them on this network before it was pruned"
        )
    silent = [name for name in graph.spiking if not dense.neurons[name].spike_counts.any()]
    if silent:
        raise SilentNetworkError(
            f"{silent[0]}: never fires on the calibration sample of {raster.batch} samples; "
            "scale its weights up, lower its v_threshold, or give a livelier sample"
        )
    pruned = masked_copy(net, masks)
    graph = _with_weights(graph, pruned)
    restoration = Restoration(graph, dense, _normalizations(pruned, graph, modules), per == "neuron", {})
    count = sum(len(region.blocks) for region in restoration.regions())
    with ticker("restoring rates", count, shown=progress, unit="layers") as advance, torch.no_grad():
        restoration.run(raster, advance)
        for name, gain in restoration.gains.items():
            parameter = pruned.get_parameter(graph.parameters[name])
            parameter.copy_(scaled_weight(parameter, gain.to(parameter.device)))
    return pruned


def _with_weights(graph: SpikingGraph, net: torch.nn.Module) -> SpikingGraph:
    """Return a graph with the weights of a module of the same structure."""
    weights = {
        where: frozen_array(net.get_parameter(where).detach().cpu().numpy()) for where in graph.parameters.values()
    }
    return graph.with_nodes(
        {name: replace(node, weight=weights[graph.parameters[name]]) for name, node in graph.weighted.items()}
    )


def _normalizations(net: torch.nn.Module, graph: SpikingGraph, modules: Modules) -> Normalizations:
    """Return the batch normalizations of ``net`` behind `Scale` nodes, found in ``modules`` of a network like it."""
    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    paths = {
        name: path
        for name, (path, module) in modules.items()
        if isinstance(graph.nodes[name], Scale) and isinstance(module, kinds)
    }
    found = {name: net.get_submodule(path) for name, path in paths.items()}
    return {name: module for name, module in found.items() if isinstance(module, kinds)}


def _affordable(graph: SpikingGraph, raster: SpikeRaster) -> int:
    largest = max(math.prod(shape) for shape in graph.shapes.values())
    return max(1, min(raster.batch, STAGE_BYTES // (4 * largest * raster.steps)))
