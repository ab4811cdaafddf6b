"""`recover`: give a pruned network its firing rates back, before it is judged or retrained.

A pruned spiking network is silent, and a silent one does not learn. Layer by layer, on inputs from the layers already
recovered, the gain g of the masked weights is found by bisection on log g so that the layer fires as often as in the
dense network; g is then folded into the weights, so nothing is left to export. A rate may also fall with the gain (more
inhibition than excitation), so the bisection starts from the crossing nearest to 1, and the best gain tried is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from slamp.activity import Activity
from slamp.calibrate import calibrate
from slamp.capture import read_graph
from slamp.dynamics import NeuronDynamics, edge_values, exact_float32, stateless_function
from slamp.errors import MaskError, SilentNetworkError
from slamp.graph import SpikingGraph
from slamp.masks import Masks, masked_copy
from slamp.nodes import NEURON, SPIKING, WEIGHTED, Input, MaxPool2d, Neuron, Node, Output, Scale
from slamp.progress import ticker
from slamp.raster import SpikeRaster
from slamp.read_modules import read_module
from slamp.simulate import summed
from slamp.wiring import keeps_channels

Modules = dict[str, tuple[str, torch.nn.Module]]
# Logarithms of the gains tried first, 0.5 to 8 in steps of sqrt(2), the nearest to 1 first.
GRID = tuple(sorted((k * math.log(2) / 2 for k in range(-2, 7)), key=abs))
BISECTIONS = 12
# One layer's values over all steps of the samples used stay below this.
STAGE_BYTES = 256 << 20


@dataclass(frozen=True)
class _Stage:
    """One weighted node, the stateless nodes behind it, and the spiking layer they drive."""

    weighted: str
    between: tuple[str, ...]
    neuron: str


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
    graph, modules = read_graph(net, raster.features, raster.dt)
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
    graph, modules = read_graph(pruned, raster.features, raster.dt)
    stages = {stage.neuron: stage for stage in _stages(graph)}
    values: dict[str, torch.Tensor] = {}
    with ticker("restoring rates", len(stages), shown=progress, unit="layers") as advance, exact_float32():
        for name in graph.order:
            node = graph.nodes[name]
            if isinstance(node, Input):
                values[name] = raster.data.to(device=graph.device, dtype=torch.float32)
                continue
            if isinstance(node, Output):
                continue
            if isinstance(node, NEURON) and name not in stages:
                drive, more = edge_values(values, graph.sources(name))
                values[name] = _run(node, drive, graph.device, more)
                _forget(graph, name, values)
                continue
            x = summed(values, graph.sources(name))
            if isinstance(node, Scale):
                module = modules[name][1]
                _reestimate(module, x)
                node = _reread(module, graph, name)
                graph = graph.with_nodes({name: node})
            if name in stages:
                gain = _fit(graph, stages[name], modules, values, raster.batch, dense, per)
                scaled = _scale_module(graph, stages[name], modules, gain)
                graph = graph.with_nodes({scaled: _reread(modules[scaled][1], graph, scaled)})
                x = _drive(graph, stages[name], values)
                advance(1)
            values[name] = _apply(node, x, graph.device)
            _forget(graph, name, values)
    return pruned


def _fit(
    graph: SpikingGraph,
    stage: _Stage,
    modules: Modules,
    values: dict[str, torch.Tensor],
    batch: int,
    dense: Activity,
    per: str,
) -> torch.Tensor:
    """Return the gain of a stage, shape () or (channels,)."""
    drive = _drive(graph, stage, values)
    constant = _constant_drive(graph, stage, modules, values)
    driven = drive - constant
    node = graph.nodes[stage.neuron]
    assert isinstance(node, SPIKING)
    dynamics = NeuronDynamics(node, graph.device)
    steps = drive.shape[0]
    target = torch.as_tensor(dense.neurons[stage.neuron].spike_counts, device=graph.device) / steps
    channels = graph.nodes[stage.weighted].weight.shape[0]  # type: ignore[union-attr]  # a stage starts at a weight
    groups = channels if per == "neuron" else 1
    wanted = target.reshape(groups, -1).mean(1)

    def excess(logarithm: torch.Tensor) -> torch.Tensor:
        """Rate above the wanted one, per group."""
        gain = logarithm.exp().to(torch.float32)
        spread = gain.repeat_interleave(target.numel() // groups).reshape(target.shape)
        run = dynamics.advance(driven * spread + constant, dynamics.initial_state(batch))
        return run.output.sum((0, 1)).to(torch.float64).reshape(groups, -1).mean(1) / (steps * batch) - wanted

    gain = _nearest_gain(excess, wanted).exp().to(torch.float32)
    gain = torch.where(wanted > 0, gain, torch.ones_like(gain))
    return gain if per == "neuron" else gain[0]


def _nearest_gain(excess: Callable[[torch.Tensor], torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
    """Return log g, (groups,), of the gain whose rate is nearest to the wanted one; of equals the nearest to 1."""
    found = {value: excess(torch.full_like(wanted, value)) for value in GRID}
    best, least = torch.zeros_like(wanted), torch.full_like(wanted, math.inf)
    for value in GRID:
        best, least = _better(best, least, torch.full_like(wanted, value), found[value])
    too_low, too_high = best.clone(), best.clone()  # without a crossing there is nothing to bisect
    for one, other in sorted(pairwise(sorted(GRID)), key=lambda pair: -abs(sum(pair))):
        for below, above in ((one, other), (other, one)):
            crosses = (found[below] < 0) & (found[above] >= 0)
            too_low = torch.where(crosses, below, too_low)
            too_high = torch.where(crosses, above, too_high)
    for _ in range(BISECTIONS):
        middle = (too_low + too_high) / 2
        off = excess(middle)
        best, least = _better(best, least, middle, off)
        too_low = torch.where(off < 0, middle, too_low)
        too_high = torch.where(off < 0, too_high, middle)
    return best


def _better(
    best: torch.Tensor, least: torch.Tensor, tried: torch.Tensor, off: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    improves = off.abs() < least
    return torch.where(improves, tried, best), torch.where(improves, off.abs(), least)


def _stages(graph: SpikingGraph) -> list[_Stage]:
    """Return every spiking layer that a weighted node drives alone, channel by channel and without a max pool."""
    stages = []
    for neuron in graph.spiking:
        between: list[str] = []
        (name, *more) = graph.sources(neuron)
        while not more and _scales_along(graph, name):
            between.insert(0, name)
            (name, *more) = graph.sources(name)
        if not more and isinstance(graph.nodes[name], WEIGHTED):
            stages.append(_Stage(name, tuple(between), neuron))
    return stages


def _scales_along(graph: SpikingGraph, name: str) -> bool:
    """True if a gain per channel before a node is one behind it."""
    node = graph.nodes[name]
    if isinstance(node, (*WEIGHTED, *NEURON, Input, MaxPool2d)):
        return False
    return keeps_channels(node, graph.shapes[graph.sources(name)[0]])


def _drive(graph: SpikingGraph, stage: _Stage, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Input of the stage's neurons from the recorded values before it, (steps, batch, *neurons)."""
    x = summed(values, graph.sources(stage.weighted))
    for name in (stage.weighted, *stage.between):
        x = _apply(graph.nodes[name], x, graph.device)
    return x


def _constant_drive(
    graph: SpikingGraph, stage: _Stage, modules: Modules, values: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The part of the drive no gain reaches: bias of the layer, or of the batch normalization; (1, 1, *neurons)."""
    x = torch.zeros_like(summed(values, graph.sources(stage.weighted))[:1, :1])
    for name in (stage.weighted, *stage.between):
        node = graph.nodes[name]
        x = _apply(node, x, graph.device)
        if isinstance(node, Scale):  # a gain on its weight scales what differs from the running mean
            bias = modules[name][1].bias
            x = torch.zeros_like(x)
            if isinstance(bias, torch.nn.Parameter):
                x = x + bias.reshape(-1, *[1] * (x.ndim - 3))
    return x


def _scale_module(graph: SpikingGraph, stage: _Stage, modules: Modules, gain: torch.Tensor) -> str:
    """Fold a gain into the weight, or the batch normalization, of a stage; return the node it went into."""
    normalizations = [name for name in stage.between if isinstance(graph.nodes[name], Scale)]
    name = normalizations[-1] if normalizations else stage.weighted
    weight = modules[name][1].weight
    if weight is None:  # batch normalization without parameters: it restores the rate by itself
        return name
    assert isinstance(weight, torch.nn.Parameter)
    weight.mul_(gain.reshape(-1, *[1] * (weight.ndim - 1)) if gain.ndim else gain)
    return name


def _reestimate(module: torch.nn.Module, x: torch.Tensor) -> None:
    """Set the running statistics of a batch normalization to those of its input over steps, samples, positions."""
    assert isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))
    assert module.running_mean is not None
    assert module.running_var is not None
    channels = x.flatten(0, 1).transpose(0, 1).flatten(1)
    module.running_mean.copy_(channels.mean(1))
    module.running_var.copy_(channels.var(1, correction=min(1, channels.shape[1] - 1)))


def _reread(module: torch.nn.Module, graph: SpikingGraph, name: str) -> Node:
    shape = graph.shapes[graph.sources(name)[0]]
    node = read_module(module, shape, where=name, dt=None)
    assert node is not None
    return node


def _apply(node: Node, x: torch.Tensor, device: str) -> torch.Tensor:
    if isinstance(node, NEURON):
        return _run(node, x, device)
    values: torch.Tensor = stateless_function(node, device)(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return values


def _run(node: Neuron, x: torch.Tensor, device: str, more: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    dynamics = NeuronDynamics(node, device)
    return dynamics.advance(x, dynamics.initial_state(x.shape[1]), more=more).output


def _forget(graph: SpikingGraph, name: str, values: dict[str, torch.Tensor]) -> None:
    """Drop values that nothing still to be computed reads; a stage reads back to the input of its weight."""
    if not isinstance(graph.nodes[name], NEURON):
        return
    done = set(graph.order[: graph.order.index(name)])
    for earlier in list(values):
        if earlier != name and all(target in done or target == name for target in graph.targets(earlier)):
            del values[earlier]


def _affordable(graph: SpikingGraph, raster: SpikeRaster) -> int:
    largest = max(math.prod(shape) for shape in graph.shapes.values())
    return max(1, min(raster.batch, STAGE_BYTES // (4 * largest * raster.steps)))
