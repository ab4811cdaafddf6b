"""`calibrate`: what a network does on a sample, measured in bounded memory.

Layers are run one after another over a run of time steps, which folds time into the batch of every linear operation.
That is several times faster than stepping and may re-associate sums, so single spikes may differ from `simulate` where
a membrane lies within rounding of its threshold; ``fold=False`` steps exactly as `simulate` does. Cycles are stepped
in any case, what lies on none is folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from slamp.activity import KEPT_SAMPLES, Activity
from slamp.carried import arriving, brings_binary, carried, routed
from slamp.cycles import components, is_circular
from slamp.delays import DelayLine, holds_back
from slamp.dynamics import NeuronState, TensorFunction, edge_values, exact_float32
from slamp.engine import Dynamics, engine_of
from slamp.errors import RasterError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    NEURON,
    SPIKING,
    WEIGHTED,
    Delay,
    MaxPool2d,
)
from slamp.progress import ticker
from slamp.raster import SpikeRaster
from slamp.simulate import check_raster, delay_lines, summed
from slamp.totals import LayerTotals, NeuronTotals, kernels_of

# A run of steps is as long as keeps one layer's values below this, so that they stay in cache.
RUN_BYTES = 4 << 20

Source = SpikeRaster | Iterable[SpikeRaster] | torch.utils.data.DataLoader[object]


def calibrate(graph: SpikingGraph, source: Source, *, fold: bool = True, progress: bool = False) -> Activity:
    """Measure activity per layer and step: SOPs, firing rates, membrane density at the threshold, input energies.

    SOPs are spikes times the non-zero synapses each reaches. A spike that passes a sum or average pool on its way
    counts once for every window it lies in: hardware delivers every spike, it does not merge them. What leaves a max
    pool of spikes is spikes again: one per window in which a neuron fires. Values repeated by `Upsample2d` or `Pad`
    count where they are repeated. Analog inputs, and values behind a normalization, count as one MAC per value that is
    not zero and synapse.

    Args:
        graph: The network.
        source: A raster; an iterable of rasters, each a batch; or a torch DataLoader whose items are tensors of shape
            (batch, time, *features), alone or first in a tuple, as event data sets of tonic give them. Event counts
            must be made spikes (``frames > 0``) or, to be taken as analog values, float32 rasters of that kind.
        fold: Fold time into the batch (fast). False gives the spikes of `simulate`, bit for bit.
        progress: Show a progress bar.

    Raises:
        RasterError: The source is empty, or a raster does not fit the graph.
    """
    meter: _Meter | None = None
    rasters = as_rasters(source, graph.dt)
    total = source.batch if isinstance(source, SpikeRaster) else None
    with ticker("calibrating", total, shown=progress) as advance:
        for raster in rasters:
            check_raster(graph, raster)
            if meter is None:
                meter = _Meter(graph, raster)
            if raster.steps != meter.steps:
                raise RasterError(f"raster: {raster.steps} steps after batches of {meter.steps}; pad to equal length")
            if raster.is_spikes != meter.input_is_spikes:
                raise RasterError(
                    "raster: spikes and analog batches are mixed; make counts spikes with data > 0, "
                    "or give rasters of kind='analog'"
                )
            with exact_float32():
                meter.add(raster, fold=fold)
            advance(raster.batch)
    if meter is None:
        raise RasterError("raster: the iterable gave no batch; an iterator can be used only once")
    return meter.result()


def as_rasters(source: Source, dt: float) -> Iterator[SpikeRaster]:
    """Yield the batches of a raster, an iterable of rasters or a DataLoader as rasters."""
    if isinstance(source, SpikeRaster):
        yield source
        return
    if isinstance(source, torch.utils.data.DataLoader):
        for item in source:
            data = item[0] if isinstance(item, (tuple, list)) and item else item  # labels are not needed
            if not isinstance(data, torch.Tensor) or data.ndim < 3:
                raise RasterError(
                    f"data loader: an item is {type(data).__name__}; allowed are tensors (batch, time, *features), "
                    "alone or first in a tuple"
                )
            yield SpikeRaster(data.transpose(0, 1), dt)
        return
    for raster in source:
        if not isinstance(raster, SpikeRaster):
            raise RasterError(f"raster: the iterable gave {type(raster).__name__}; allowed is SpikeRaster")
        yield raster


class _Meter:
    """Running totals over batches."""

    def __init__(self, graph: SpikingGraph, first: SpikeRaster) -> None:
        self.graph = graph
        self.steps = first.steps
        self.input_is_spikes = first.is_spikes
        kept = first.samples(0, min(KEPT_SAMPLES, first.batch))
        self.sample = SpikeRaster(kept.data.clone(), kept.dt, kept.labels, kind=kept.kind, parts=kept.parts)
        self.samples = 0
        self.dynamics: Mapping[str, Dynamics]
        self.functions: Mapping[str, TensorFunction]
        self.dynamics, self.functions = engine_of(graph, first)
        self.carried = carried(graph, input_is_spikes=first.is_spikes)
        self.neurons: dict[str, NeuronTotals] = {}
        self.layers: dict[str, LayerTotals] = {}
        for name in graph.order:
            node, sources = graph.nodes[name], graph.sources(name)
            if isinstance(node, NEURON):
                self.neurons[name] = NeuronTotals(node, graph.shapes[name], first.steps)
            elif isinstance(node, WEIGHTED):
                shape, kernels = graph.shapes[sources[0]], kernels_of(graph, name)
                self.layers[name] = LayerTotals(node, shape, first.steps, kernels, graph.device)
                self.layers[name].from_spikes = self.carried.events.issuperset(sources)
                self.layers[name].binary = brings_binary(graph, sources, self.carried.binary)
        self.parts = [(part, is_circular(graph, part)) for part in components(graph.order, graph.targets)]
        self.peaks: list[int] = [0] * first.steps
        largest = max(int(np.prod(shape)) for shape in graph.shapes.values())
        self.run_steps = max(1, RUN_BYTES // (4 * largest * first.batch))

    def add(self, raster: SpikeRaster, *, fold: bool) -> None:
        run_steps = self.run_steps if fold else 1
        memory = _Memory(
            states={name: layer.initial_state(raster.batch) for name, layer in self.dynamics.items()},
            lines=delay_lines(self.graph, raster.batch),
            event_lines=delay_lines(self.graph, 1),
        )
        best = torch.full((raster.batch,), -torch.inf, device=self.graph.device)
        best_step = torch.zeros(raster.batch, dtype=torch.int64, device=self.graph.device)
        for start in range(0, self.steps, run_steps):
            stop = min(start + run_steps, self.steps)
            output = self._run(raster, start, stop, memory)
            peaks, at = output.flatten(2).amax(2).max(0)
            best_step = torch.where(peaks > best, at + start, best_step)
            best = torch.maximum(best, peaks)
        for step in best_step.tolist():
            self.peaks[step] += 1
        self.samples += raster.batch

    def _run(self, raster: SpikeRaster, start: int, stop: int, memory: _Memory) -> torch.Tensor:
        """Run all layers over steps ``start`` to ``stop``; return the output, (steps, batch, *features)."""
        graph = self.graph
        run = _Run({}, {})
        for part, circular in self.parts:
            if part[0] == graph.input:
                x = raster.data[start:stop].to(device=graph.device, dtype=torch.float32)
                run.values[graph.input] = x
                if raster.is_spikes:
                    run.events[graph.input] = x.sum(1)
            elif circular:  # what goes round can only be stepped
                steps = [self._turn(part, run.at(t), start + t, memory) for t in range(stop - start)]
                for name in part:
                    run.values[name] = torch.cat([step.values[name] for step in steps])
                    if name in steps[0].events:
                        run.events[name] = torch.cat([step.events[name] for step in steps])
            elif isinstance(graph.nodes[part[0]], Delay):
                self._delay(part[0], run, memory)
            else:
                self._compute(part[0], run, start, memory)
        return run.values[graph.output]

    def _turn(self, part: Sequence[str], now: _Run, t: int, memory: _Memory) -> _Run:
        """Run the nodes of a cycle for one step; return it with their values added."""
        late = [name for name in part if isinstance(self.graph.nodes[name], Delay)]
        held = [name for name in late if holds_back(self.graph.nodes[name])]
        for name in held:  # what arrives in this step is taken in below
            self._read(name, now, memory)
        for name in part:
            if name in late and name not in held:
                self._push(name, now, memory)
                self._read(name, now, memory)
            elif name not in late:
                self._compute(name, now, t, memory)
        for name in held:
            self._push(name, now, memory)
        for name in late:
            memory.lines[name].advance()
            memory.event_lines[name].advance()
        return now

    def _delay(self, name: str, run: _Run, memory: _Memory) -> None:
        """Carry all steps of a run through a delay that lies on no cycle."""
        steps = [run.at(t) for t in range(len(run.values[self.graph.sources(name)[0]]))]
        for now in steps:
            self._push(name, now, memory)
            self._read(name, now, memory)
            memory.lines[name].advance()
            memory.event_lines[name].advance()
        run.values[name] = torch.cat([now.values[name] for now in steps])
        if name in self.carried.events:
            run.events[name] = torch.cat([now.events[name] for now in steps])

    def _push(self, name: str, now: _Run, memory: _Memory) -> None:
        sources = self.graph.sources(name)
        memory.lines[name].push(summed(now.values, sources)[0])
        if name in self.carried.events:
            memory.event_lines[name].push(summed(now.events, sources))

    def _read(self, name: str, now: _Run, memory: _Memory) -> None:
        now.values[name] = memory.lines[name].read()[None]
        if name in self.carried.events:
            now.events[name] = memory.event_lines[name].read()

    def _compute(self, name: str, run: _Run, start: int, memory: _Memory) -> None:
        """Run one node over all steps of ``run``, the first of which is ``start``."""
        node, sources = self.graph.nodes[name], self.graph.sources(name)
        if name in self.dynamics:
            drive, more = edge_values(run.values, sources)
            found = self.dynamics[name].advance(drive, memory.states[name], more=more)
            run.values[name] = found.output
            if isinstance(node, SPIKING):
                run.events[name] = found.output.sum(1)
                self.neurons[name].add(start, run.events[name], found)
            return
        x, spikes = summed(run.values, sources), arriving(run.events, sources)
        run.values[name] = self.functions[name](x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if name in self.layers:
            memory.traces[name] = self.layers[name].add(start, x, spikes, memory.traces.get(name))
        elif name in self.carried.events:
            assert spikes is not None
            run.events[name] = run.values[name].sum(1) if isinstance(node, MaxPool2d) else routed(node, spikes)

    def result(self) -> Activity:
        return Activity(
            graph_hash=self.graph.hash,
            samples=self.samples,
            steps=self.steps,
            layers={name: layer.result(self.samples) for name, layer in self.layers.items()},
            neurons={name: neuron.result(self.samples) for name, neuron in self.neurons.items()},
            peak_share=np.asarray(self.peaks, dtype=np.float64) / self.samples,
            sample=self.sample,
        )


@dataclass(frozen=True)
class _Memory:
    """What lives on from one run of steps to the next."""

    states: Mapping[str, NeuronState]
    lines: Mapping[str, DelayLine]
    event_lines: Mapping[str, DelayLine]
    traces: dict[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    """Values (steps, batch, *features) by node over a run of steps, and events summed over the batch."""

    values: dict[str, torch.Tensor]
    events: dict[str, torch.Tensor]

    def at(self, t: int) -> _Run:
        """Return one of its steps; what is added to it is not added here."""
        return _Run(
            {name: value[t : t + 1] for name, value in self.values.items()},
            {name: event[t : t + 1] for name, event in self.events.items()},
        )
