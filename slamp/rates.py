"""Firing rates of a pruned graph, restored region by region: the gains that do it, folded into its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from slamp.activity import Activity
from slamp.dynamics import exact_float32
from slamp.graph import SpikingGraph
from slamp.nodes import WEIGHTED, Linear, Node, frozen_array
from slamp.raster import SpikeRaster
from slamp.read_modules import read_module
from slamp.region_runs import RegionRun
from slamp.regions import Block, Region, regions
from slamp.shared import uses_of
from slamp.simulate import summed

Normalizations = Mapping[str, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d]
# Logarithms of the gains tried first, 0.5 to 8 in steps of sqrt(2), the nearest to 1 first.
GRID = tuple(sorted((k * math.log(2) / 2 for k in range(-2, 7)), key=abs))
BISECTIONS = 12
# Layers on one cycle change each other's rates; so often each is fitted.
SWEEPS = 3


@dataclass(eq=False)
class Restoration:
    """Rates on their way back, region by region.

    Attributes:
        graph: The pruned graph; gains that were found are in its weights.
        dense: The rates to restore.
        normalizations: Batch normalizations behind `Scale` nodes. They are changed in place: statistics re-estimated,
            gains in their weights.
        per_neuron: One gain per output channel, not per layer.
        gains: By first use of a parameter, the gain its weights got, shape () or (channels,).
    """

    graph: SpikingGraph
    dense: Activity
    normalizations: Normalizations
    per_neuron: bool
    gains: dict[str, torch.Tensor]

    def run(self, raster: SpikeRaster, advance: Callable[[int], None]) -> None:
        """Restore all layers, on inputs from those already restored; ``advance`` is told of every block."""
        with exact_float32():
            values: dict[str, torch.Tensor] = {}
            done: set[str] = set()
            for region in self.regions():
                if region.nodes == (self.graph.input,):
                    values[self.graph.input] = raster.data.to(device=self.graph.device, dtype=torch.float32)
                elif region.nodes != (self.graph.output,):
                    self._reestimate(region, values)
                    self._fit(region, values, advance)
                    values.update(RegionRun(self.graph, region.nodes, values, {}).run({}))
                done.update(region.nodes)
                for name in [name for name in values if done.issuperset(self.graph.targets(name))]:
                    del values[name]

    def regions(self) -> list[Region]:
        """Return the parts that are restored together, in the order they are."""
        scalable = [name for name, module in self.normalizations.items() if module.weight is not None]
        modules: dict[torch.nn.Module, list[str]] = {}
        for name in self.graph.order:
            if name in self.normalizations:
                modules.setdefault(self.normalizations[name], []).append(name)
        tied = [names for names in (*uses_of(self.graph).values(), *modules.values()) if len(names) > 1]
        return regions(self.graph, scalable, self.normalizations.keys() - set(scalable), tied)

    def _reestimate(self, region: Region, values: Mapping[str, torch.Tensor]) -> None:
        """Set running statistics to those of the inputs over steps, samples and positions, one node after another."""
        for name in [name for name in region.nodes if name in self.normalizations]:
            module, sources = self.normalizations[name], self.graph.sources(name)
            before = _before(self.graph, name, region.nodes)
            found = {**values, **RegionRun(self.graph, before, values, {}).run({})} if before else values
            channels = summed(found, sources).flatten(0, 1).transpose(0, 1).flatten(1)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(channels.mean(1))
            module.running_var.copy_(channels.var(1, correction=min(1, channels.shape[1] - 1)))
            self.graph = self.graph.with_nodes({name: self._reread(name)})

    def _fit(self, region: Region, values: Mapping[str, torch.Tensor], advance: Callable[[int], None]) -> None:
        """Find the gains of all blocks of a region and fold them into its weights."""
        if not region.blocks:
            return
        knobs = [knob for block in region.blocks for knob in block.knobs]
        constants = {knob: constant for knob in knobs if (constant := self._constant(knob)) is not None}
        fitting = _Fitting(RegionRun(self.graph, region.nodes, values, constants), region.blocks, self.dense)
        simple = len(region.blocks) == 1 and len(region.blocks[0].neurons) == 1
        simple = simple and not any(circular for _, circular in fitting.runs.parts)
        if not simple or not self.per_neuron:
            for _ in range(SWEEPS if len(region.blocks) > 1 else 1):
                for block in region.blocks:
                    fitting.fit(block, 1)
        if self.per_neuron:
            for block in region.blocks:
                fitting.fit(block, block.channels)
                if not simple:  # neurons that drive one another were fitted all at once, which only nearly holds
                    fitting.correct(block)
        for block in region.blocks:
            self._fold(block, fitting.gains[block])
            advance(1)

    def _fold(self, block: Block, gain: torch.Tensor) -> None:
        uses = {name: names for names in uses_of(self.graph).values() for name in names}
        changed: dict[str, Node] = {}
        modules = {self.normalizations[knob]: knob for knob in block.knobs if knob in self.normalizations}
        for module in modules:
            module.weight.mul_(gain)
        for knob in block.knobs:
            if knob in self.normalizations:
                changed[knob] = self._reread(knob)
            elif knob not in changed:
                self.gains[uses[knob][0]] = gain
                weight = scaled_weight(torch.tensor(self.graph.weighted[knob].weight), gain.cpu())
                array = frozen_array(weight.numpy())
                changed |= {use: replace(self.graph.weighted[use], weight=array) for use in uses[knob]}
        self.graph = self.graph.with_nodes(changed)

    def _constant(self, knob: str) -> torch.Tensor | None:
        """Return the part of a node's output that no gain on its weight scales, shape (channels,); None if none."""
        node = self.graph.nodes[knob]
        if knob in self.normalizations:  # a gain on its weight scales what differs from the running mean
            bias = self.normalizations[knob].bias
            return None if bias is None else bias.detach()
        if isinstance(node, Linear):
            return None
        assert isinstance(node, WEIGHTED)
        return None if node.bias is None else torch.tensor(node.bias, device=self.graph.device)

    def _reread(self, name: str) -> Node:
        shape = self.graph.shapes[self.graph.sources(name)[0]]
        node = read_module(self.normalizations[name], shape, where=name, dt=None)
        assert node is not None
        return node


class _Fitting:
    """Gains of the blocks of a region, as they are found."""

    def __init__(self, runs: RegionRun, blocks: Sequence[Block], dense: Activity) -> None:
        self.runs, self.dense = runs, dense
        self.gains = {block: torch.ones((), device=runs.graph.device) for block in blocks}

    def fit(self, block: Block, groups: int) -> None:
        """Find a gain for each of ``groups`` runs of neighboring channels of a block, those of others as they are."""
        wanted = self._rates(block, groups, {name: self.dense.neurons[name].spike_counts for name in block.neurons}, 1)
        shape = () if groups == 1 else (groups,)

        def excess(logarithm: torch.Tensor) -> torch.Tensor:
            """Rate above the wanted one, per group."""
            return self._found(block, groups, logarithm.exp().to(torch.float32).reshape(shape)) - wanted

        gain = nearest_gain(excess, wanted).exp().to(torch.float32)
        self.gains[block] = torch.where(wanted > 0, gain, torch.ones_like(gain)).reshape(shape)

    def correct(self, block: Block) -> None:
        """Scale the gains of a block by one number, within the range of gains, so that its mean rate is right."""
        wanted = self._rates(block, 1, {name: self.dense.neurons[name].spike_counts for name in block.neurons}, 1)
        before, (low, high) = self.gains[block], (math.exp(min(GRID)), math.exp(max(GRID)))

        def trial(logarithm: torch.Tensor) -> torch.Tensor:
            return (before * logarithm.exp().to(torch.float32)).clamp(low, high)

        def excess(logarithm: torch.Tensor) -> torch.Tensor:
            return self._found(block, 1, trial(logarithm)) - wanted

        self.gains[block] = trial(nearest_gain(excess, wanted))

    def _found(self, block: Block, groups: int, gain: torch.Tensor) -> torch.Tensor:
        gains = {knob: value for each, value in {**self.gains, block: gain}.items() for knob in each.knobs}
        values = self.runs.run(gains)
        counts = {name: values[name].sum((0, 1)) for name in block.neurons}
        return self._rates(block, groups, counts, self.runs.batch)

    def _rates(
        self, block: Block, groups: int, counts: Mapping[str, torch.Tensor | np.ndarray], samples: int
    ) -> torch.Tensor:
        """Return the share of cells that spike per group of channels, float64, shape (groups,)."""
        device = self.runs.graph.device
        parts = [
            torch.as_tensor(counts[name], dtype=torch.float64, device=device).reshape(groups, -1)
            for name in block.neurons
        ]
        return torch.cat(parts, dim=1).mean(1) / (self.runs.steps * samples)


def scaled_weight(weight: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Return a weight (outputs, ...) times a gain of shape () or (outputs,)."""
    return weight * (gain.reshape(-1, *[1] * (weight.ndim - 1)) if gain.ndim else gain)


def nearest_gain(excess: Callable[[torch.Tensor], torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
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


def _before(graph: SpikingGraph, name: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """Return those of some nodes that a node depends on, in their order, itself too if it lies on a cycle."""
    waiting, found = [name], set[str]()
    while waiting:
        for source in graph.sources(waiting.pop()):
            if source in nodes and source not in found:
                found.add(source)
                waiting.append(source)
    return tuple(each for each in nodes if each in found)
