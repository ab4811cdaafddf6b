"""`calibrate`: what a network does on a sample, measured in bounded memory.

Layers are run one after another over a run of time steps, which folds time into the batch of every linear operation.
That is several times faster than stepping and may re-associate sums, so single spikes may differ from `simulate` where
a membrane lies within rounding of its threshold; ``fold=False`` steps exactly as `simulate` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from slamp.activity import KEPT_SAMPLES, Activity, LayerActivity, NeuronActivity
from slamp.carried import arriving, brings_binary, carried, next_neuron, routed
from slamp.delays import DelayLine, holds_back
from slamp.dynamics import NeuronState, TensorFunction, edge_values, exact_float32
from slamp.engine import Dynamics, engine_of
from slamp.errors import RasterError
from slamp.graph import SpikingGraph
from slamp.nodes import (
    IF,
    NEURON,
    SPIKING,
    WEIGHTED,
    CubaLI,
    CubaLIF,
    Input,
    MaxPool2d,
    Neuron,
    Spiking,
    Weighted,
)
from slamp.progress import ticker
from slamp.raster import SpikeRaster
from slamp.simulate import check_raster, delay_lines, summed
from slamp.taps import dense_fan_out, fan_out, tap_sums

# A run of steps is as long as keeps one layer's values below this, so that they stay in cache.
RUN_BYTES = 4 << 20
# The density of the membrane at the threshold is a statistic; this many samples of each batch settle it.
DENSITY_SAMPLES = 16

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
        self.sample = SpikeRaster(kept.data.clone(), kept.dt, kept.labels, kind=kept.kind)
        self.samples = 0
        self.dynamics: Mapping[str, Dynamics]
        self.functions: Mapping[str, TensorFunction]
        self.dynamics, self.functions = engine_of(graph, first)
        self.neurons: dict[str, _NeuronTotals] = {}
        self.layers: dict[str, _LayerTotals] = {}
        self.carried = carried(graph, input_is_spikes=first.is_spikes)
        for name in graph.order:
            node, sources = graph.nodes[name], graph.sources(name)
            if isinstance(node, NEURON):
                self.neurons[name] = _NeuronTotals(node, graph.shapes[name], first.steps)
            elif isinstance(node, WEIGHTED):
                kernel = _Kernel(_neuron_behind(graph, name), graph.device)
                shape = graph.shapes[sources[0]]
                self.layers[name] = _LayerTotals(node, shape, first.steps, kernel, graph.device)
                self.layers[name].from_spikes = self.carried.events.issuperset(sources)
                self.layers[name].binary = brings_binary(graph, sources, self.carried.binary)
        self.peaks: list[int] = [0] * first.steps
        largest = max(int(np.prod(shape)) for shape in graph.shapes.values())
        self.run_steps = max(1, RUN_BYTES // (4 * largest * first.batch))

    def add(self, raster: SpikeRaster, *, fold: bool) -> None:
        # A delay may close a cycle, which can only be stepped.
        lines = delay_lines(self.graph, raster.batch)
        late_events = delay_lines(self.graph, 1)
        run_steps = self.run_steps if fold and not lines else 1
        states = {name: layer.initial_state(raster.batch) for name, layer in self.dynamics.items()}
        traces: dict[str, torch.Tensor] = {}
        best = torch.full((raster.batch,), -torch.inf, device=self.graph.device)
        best_step = torch.zeros(raster.batch, dtype=torch.int64, device=self.graph.device)
        for start in range(0, self.steps, run_steps):
            stop = min(start + run_steps, self.steps)
            output = self._run(raster, start, stop, states, traces, (lines, late_events))
            peaks, at = output.flatten(2).amax(2).max(0)
            best_step = torch.where(peaks > best, at + start, best_step)
            best = torch.maximum(best, peaks)
        for step in best_step.tolist():
            self.peaks[step] += 1
        self.samples += raster.batch

    def _run(
        self,
        raster: SpikeRaster,
        start: int,
        stop: int,
        states: Mapping[str, NeuronState],
        traces: dict[str, torch.Tensor],
        delays: tuple[Mapping[str, DelayLine], Mapping[str, DelayLine]],
    ) -> torch.Tensor:
        """Run all layers over steps ``start`` to ``stop``; return the output, (steps, batch, *features).

        ``delays`` are the memories of values and of events, step by step.
        """
        graph, (lines, late_events) = self.graph, delays
        values: dict[str, torch.Tensor] = {}
        events: dict[str, torch.Tensor] = {}  # events per step and feature, summed over the batch
        for name in graph.order:
            node = graph.nodes[name]
            sources = graph.sources(name)
            if isinstance(node, Input):
                x = raster.data[start:stop].to(device=graph.device, dtype=torch.float32)
                values[name] = x
                if raster.is_spikes:
                    events[name] = x.sum(1)
                continue
            if name in lines and holds_back(node):
                values[name] = lines[name].read()[None]
                if name in self.carried.events:
                    events[name] = late_events[name].read()
                continue
            if name in self.dynamics:
                drive, more = edge_values(values, sources)
                run = self.dynamics[name].advance(drive, states[name], more=more)
                values[name] = run.output
                if isinstance(node, SPIKING):
                    events[name] = values[name].sum(1)
                    self.neurons[name].add(start, events[name], run.v)
                continue
            x, spikes = summed(values, sources), arriving(events, sources)
            if name in lines:
                lines[name].push(x[0])
                values[name] = lines[name].read()[None]
                if spikes is not None:
                    late_events[name].push(spikes)
                    events[name] = late_events[name].read()
                continue
            values[name] = self.functions[name](x.flatten(0, 1)).unflatten(0, x.shape[:2])
            if name in self.layers:
                traces[name] = self.layers[name].add(start, x, spikes, traces.get(name))
            elif name in self.carried.events:
                assert spikes is not None
                events[name] = values[name].sum(1) if isinstance(node, MaxPool2d) else routed(node, spikes)
        for name, line in lines.items():
            sources = graph.sources(name)
            if holds_back(graph.nodes[name]):
                line.push(summed(values, sources)[0])
                if name in self.carried.events:
                    late_events[name].push(summed(events, sources))
            line.advance()
            late_events[name].advance()
        return values[graph.output]

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


@dataclass
class _NeuronTotals:
    node: Neuron
    shape: tuple[int, ...]
    steps: int
    counts: np.ndarray = field(init=False)
    per_step: np.ndarray = field(init=False)
    near: np.ndarray = field(init=False)
    near_samples: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.shape)
        self.per_step = np.zeros(self.steps)
        self.near = np.zeros(self.steps)
        if isinstance(self.node, SPIKING):
            threshold = torch.tensor(self.node.v_threshold)
            self.delta = threshold_window(self.node)
            self.low, self.high = threshold - self.delta, threshold + self.delta
            if bool((threshold == threshold.flatten()[0]).all()):
                self.low, self.high = self.low.flatten()[0], self.high.flatten()[0]

    def add(self, start: int, events: torch.Tensor, v: torch.Tensor) -> None:
        stop = start + events.shape[0]
        self.counts += events.sum(0).cpu().numpy()
        self.per_step[start:stop] += events.flatten(1).sum(1).cpu().numpy()
        part = v[:, :DENSITY_SAMPLES]
        low, high = self.low.to(v.device), self.high.to(v.device)
        near = torch.logical_and(part > low, part < high).flatten(1).count_nonzero(dim=1)
        self.near[start:stop] += near.cpu().numpy()
        if start == 0:
            self.near_samples += part.shape[1]

    def result(self, samples: int) -> NeuronActivity:
        neurons = self.counts.size
        if not isinstance(self.node, SPIKING):
            return NeuronActivity(self.per_step, self.counts, np.zeros(0))
        width = float(2 * self.delta.mean())
        density = self.near / (self.near_samples * neurons * width) if width > 0 else np.zeros(self.steps)
        return NeuronActivity(self.per_step / (samples * neurons), self.counts / samples, density)


class _LayerTotals:
    def __init__(
        self,
        node: Weighted,
        shape: tuple[int, ...],
        steps: int,
        kernel: _Kernel,
        device: str,
    ) -> None:
        self.node, self.shape, self.kernel = node, shape, kernel
        self.from_spikes, self.binary = False, False
        groups = tap_groups(node)
        dense, kept = dense_fan_out(node, shape), fan_out(node, shape, node.weight != 0)
        reads = dense / (node.weight.shape[0] // groups)
        self.reached = torch.tensor(np.stack([dense.ravel(), kept.ravel()], axis=1), device=device)
        self.reads = torch.tensor(reads.ravel()[:, None], device=device)
        self.per_step = np.zeros((steps, 3))
        self.events = np.zeros(shape)
        self.trace = torch.zeros(int(np.prod(shape)), dtype=torch.float64, device=device)

    def add(self, start: int, x: torch.Tensor, events: torch.Tensor | None, state: torch.Tensor | None) -> torch.Tensor:
        """Count one run of inputs (steps, batch, *features); return the trace's state."""
        stop = start + x.shape[0]
        if events is None:  # a value that is neither a spike nor a pooled one
            events = (x != 0).to(torch.float32).sum(1)
        flat = events.flatten(1)
        self.events += flat.sum(0).cpu().numpy().reshape(self.shape)
        squares = flat if self.binary else x.square().sum(1).flatten(1)
        found = torch.cat([flat.double() @ self.reached, squares.double() @ self.reads], dim=1)
        self.per_step[start:stop] += found.cpu().numpy()
        trace, after = self.kernel.filter(x.flatten(1), state)
        self.trace += trace.square_().sum(0).view(x.shape[1], -1).sum(0)
        return after

    def result(self, samples: int) -> LayerActivity:
        dense, kept, reads = (self.per_step / samples).T
        trace = self.trace.cpu().numpy().reshape(self.shape) / samples
        return LayerActivity(
            from_spikes=self.from_spikes,
            energy=reads,
            events=dense,
            operations=kept,
            tap_events=tap_sums(self.node, self.events / samples),
            trace_energy=tap_sums(self.node, trace),
        )


class _Kernel:
    """The linear filter of a neuron, from input to membrane without spikes, as matrices over a run of steps."""

    def __init__(self, node: Neuron | None, device: str) -> None:
        self.device = device
        self.current = isinstance(node, (CubaLIF, CubaLI))
        if node is None:
            decay_mem, decay_syn = 1.0, 1.0  # no neuron follows: no memory
        else:
            decay_mem = 0.0 if isinstance(node, IF) else float(node.decay_mem.mean(dtype=np.float64))
            decay_syn = float(node.decay_syn.mean(dtype=np.float64)) if isinstance(node, (CubaLIF, CubaLI)) else 1.0
        self.keep_mem, self.keep_syn = 1.0 - decay_mem, 1.0 - decay_syn
        self.gain = decay_mem if self.current else 1.0

    def filter(self, x: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Filter ``x`` of shape (steps, cells); return the trace of the same shape and the state (1 or 2, cells)."""
        steps = x.shape[0]
        filters = filter_matrices(self.keep_mem, self.keep_syn, self.gain, self.current, steps)
        from_state, from_input = (matrix.to(self.device) for matrix in filters)
        response = from_input @ x if state is None else torch.addmm(from_state @ state, from_input, x)
        return response[:steps], response[steps - 1 :].clone()


def _neuron_behind(graph: SpikingGraph, name: str) -> Neuron | None:
    found = next_neuron(graph, name)
    node = None if found is None else graph.nodes[found]
    assert node is None or isinstance(node, NEURON)
    return node


@lru_cache(maxsize=64)
def filter_matrices(
    keep_mem: float, keep_syn: float, gain: float, current: bool, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a neuron's linear filter multiplies the state before (v, i) and the inputs of ``steps`` steps with.

    Rows are the trace at every step and then, with a synaptic current, that current after the last step.
    """
    v, i = np.zeros(steps + 1), np.zeros(steps + 1)  # response to an input at step 0, `lag` steps later
    for lag in range(steps + 1):
        before_v, before_i = (v[lag - 1], i[lag - 1]) if lag else (0.0, 0.0)
        jumped = before_i + float(lag == 0)
        v[lag] = keep_mem * before_v + (gain * jumped if current else float(lag == 0))
        i[lag] = keep_syn * jumped
    lags = np.subtract.outer(np.arange(steps), np.arange(steps))
    from_input = np.where(lags >= 0, v[lags], 0.0)
    from_v = keep_mem ** np.arange(1, steps + 1)
    from_state = from_v[:, None]
    if current:
        # A current left over from before acts like an input of that size.
        from_state = np.vstack([np.stack([from_v, v[:steps]], axis=1), [0.0, keep_syn**steps]])
        from_input = np.vstack([from_input, i[steps - 1 :: -1][:steps]])
    return torch.tensor(from_state, dtype=torch.float32), torch.tensor(from_input, dtype=torch.float32)


def threshold_window(node: Spiking) -> torch.Tensor:
    """Half width of the window around the threshold: a tenth of it, shape (*neurons) or uniform."""
    return torch.tensor(np.abs(node.v_threshold) * np.float32(0.1))


def tap_groups(node: Weighted) -> int:
    """Number of groups of a weighted node."""
    return getattr(node, "groups", 1)
