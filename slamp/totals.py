"""Running totals of `calibrate`: what neurons did and weights read over the runs of steps so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from slamp.activity import LayerActivity, NeuronActivity
from slamp.carried import driven_neurons
from slamp.dynamics import NeuronRun
from slamp.graph import SpikingGraph
from slamp.nodes import IF, LSNN, SECOND_TIER, SPIKING, SYNAPTIC, Neuron, Spiking, Weighted
from slamp.taps import dense_fan_out, fan_out, tap_sums

# The density of the membrane at the threshold is a statistic; this many samples of each batch settle it.
DENSITY_SAMPLES = 16


@dataclass
class NeuronTotals:
    """Spikes of one layer of neurons, and cells whose membrane is near the threshold, added up over runs of steps."""

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
            around = torch.zeros_like(threshold) if isinstance(self.node, SECOND_TIER) else threshold
            self.delta = threshold_window(self.node)
            self.low, self.high = around - self.delta, around + self.delta
            if bool((threshold == threshold.flatten()[0]).all()):
                self.low, self.high = self.low.flatten()[0], self.high.flatten()[0]

    def add(self, start: int, events: torch.Tensor, run: NeuronRun) -> None:
        """Add a run of steps; ``events`` are its spikes (steps, *neurons), summed over samples."""
        stop = start + events.shape[0]
        self.counts += events.sum(0).cpu().numpy()
        self.per_step[start:stop] += events.flatten(1).sum(1).cpu().numpy()
        # A threshold that moves is where the membrane meets it; a refractory neuron is far from any.
        part = (run.v if run.distance is None else run.distance)[:, :DENSITY_SAMPLES]
        low, high = self.low.to(part.device), self.high.to(part.device)
        near = torch.logical_and(part > low, part < high).flatten(1).count_nonzero(dim=1)
        self.near[start:stop] += near.cpu().numpy()
        if start == 0:
            self.near_samples += part.shape[1]

    def result(self, samples: int) -> NeuronActivity:
        """Return means over that many samples."""
        neurons = self.counts.size
        if not isinstance(self.node, SPIKING):
            return NeuronActivity(self.per_step, self.counts, np.zeros(0))
        width = float(2 * self.delta.mean())
        density = self.near / (self.near_samples * neurons * width) if width > 0 else np.zeros(self.steps)
        return NeuronActivity(self.per_step / (samples * neurons), self.counts / samples, density)


class LayerTotals:
    """What one weighted node reads, added up over runs of steps."""

    def __init__(
        self, node: Weighted, shape: tuple[int, ...], steps: int, kernels: Sequence[Kernel], device: str
    ) -> None:
        self.node, self.shape, self.kernels = node, shape, kernels
        self.from_spikes, self.binary = False, False
        groups = tap_groups(node)
        dense, kept = dense_fan_out(node, shape), fan_out(node, shape, node.weight != 0)
        reads = dense / (node.weight.shape[0] // groups)
        self.reached = torch.tensor(np.stack([dense.ravel(), kept.ravel()], axis=1), device=device)
        self.reads = torch.tensor(reads.ravel()[:, None], device=device)
        self.per_step = np.zeros((steps, 3))
        self.events = np.zeros(shape)
        self.trace = torch.zeros(int(np.prod(shape)), dtype=torch.float64, device=device)

    def add(
        self, start: int, x: torch.Tensor, events: torch.Tensor | None, states: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, ...]:
        """Count one run of inputs (steps, batch, *features); return the states of the traces."""
        stop = start + x.shape[0]
        if events is None:  # a value that is neither a spike nor a pooled one
            events = (x != 0).to(torch.float32).sum(1)
        flat = events.flatten(1)
        self.events += flat.sum(0).cpu().numpy().reshape(self.shape)
        squares = flat if self.binary else x.square().sum(1).flatten(1)
        found = torch.cat([flat.double() @ self.reached, squares.double() @ self.reads], dim=1)
        self.per_step[start:stop] += found.cpu().numpy()
        afters = []
        for place, kernel in enumerate(self.kernels):
            trace, after = kernel.filter(x.flatten(1), None if states is None else states[place])
            self.trace += trace.square_().sum(0).view(x.shape[1], -1).sum(0)
            afters.append(after)
        return tuple(afters)

    def result(self, samples: int) -> LayerActivity:
        """Return means over that many samples."""
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


class Kernel:
    """The linear filter of a neuron, from input to membrane without spikes, as matrices over a run of steps."""

    def __init__(self, node: Neuron | None, device: str) -> None:
        self.device = device
        self.current, self.late = isinstance(node, SYNAPTIC), isinstance(node, LSNN)
        if node is None:
            decay_mem, decay_syn = 1.0, 1.0  # no neuron follows: no memory
        else:
            decay_mem = 0.0 if isinstance(node, IF) else float(node.decay_mem.mean(dtype=np.float64))
            decay_syn = float(node.decay_syn.mean(dtype=np.float64)) if isinstance(node, SYNAPTIC) else 1.0
        self.keep_mem, self.keep_syn = 1.0 - decay_mem, 1.0 - decay_syn
        self.gain = decay_mem if self.current else 1.0
        self.key = self.keep_mem, self.keep_syn, self.gain, self.current, self.late

    def filter(self, x: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Filter ``x`` of shape (steps, cells); return the trace of the same shape and the state (1 or 2, cells)."""
        steps = x.shape[0]
        filters = filter_matrices(self.keep_mem, self.keep_syn, self.gain, self.current, steps, self.late)
        from_state, from_input = (matrix.to(self.device) for matrix in filters)
        response = from_input @ x if state is None else torch.addmm(from_state @ state, from_input, x)
        return response[:steps], response[steps - 1 :].clone()


@lru_cache(maxsize=64)
def filter_matrices(
    keep_mem: float, keep_syn: float, gain: float, current: bool, steps: int, late: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a neuron's linear filter multiplies the state before (v, i) and the inputs of ``steps`` steps with.

    Rows are the trace at every step and then, with a synaptic current, that current after the last step. Where the
    membrane is ``late`` (`LSNN`) it sees an input one step after it came, and the input does not decay when it comes.
    """
    v, i = np.zeros(steps + 1), np.zeros(steps + 1)  # response to an input at step 0, `lag` steps later
    for lag in range(steps + 1):
        before_v, before_i = (v[lag - 1], i[lag - 1]) if lag else (0.0, 0.0)
        jumped = before_i + float(lag == 0)
        seen = before_i if late else jumped
        v[lag] = keep_mem * before_v + (gain * seen if current else float(lag == 0))
        i[lag] = keep_syn * before_i + float(lag == 0) if late else keep_syn * jumped
    lags = np.subtract.outer(np.arange(steps), np.arange(steps))
    from_input = np.where(lags >= 0, v[lags], 0.0)
    from_v = keep_mem ** np.arange(1, steps + 1)
    from_state = from_v[:, None]
    if current:
        # A current left over from before acts like an input of that size, where late one that came a step before.
        left_over = v[1:] if late else v[:-1]
        from_state = np.vstack([np.stack([from_v, left_over], axis=1), [0.0, keep_syn**steps]])
        from_input = np.vstack([from_input, i[steps - 1 :: -1][:steps]])
    return torch.tensor(from_state, dtype=torch.float32), torch.tensor(from_input, dtype=torch.float32)


def threshold_window(node: Spiking) -> torch.Tensor:
    """Half width of the window around the threshold: a tenth of it, shape (*neurons) or uniform."""
    return torch.tensor(np.abs(node.v_threshold) * np.float32(0.1))


def tap_groups(node: Weighted) -> int:
    """Number of groups of a weighted node."""
    return getattr(node, "groups", 1)


def kernels_of(graph: SpikingGraph, name: str) -> list[Kernel]:
    """Return the filters of the neurons a weighted node drives, each once; without any, one that remembers nothing."""
    neurons = driven_neurons(graph, name).values() or [None]
    return list({kernel.key: kernel for kernel in [Kernel(node, graph.device) for node in neurons]}.values())
