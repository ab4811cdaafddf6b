"""Which layers matter at which time steps: the temporal half of SLAMP.

Our derivation of SLAMP (arXiv 2603.14946) from its abstract and from LAMP (arXiv 2010.07611). Pruning layer l alone
changes the output by at most a common factor times ``sum_t alpha_l[t] * a_l[t]``: ``a`` is the norm of the layer's
unfolded input, ``alpha`` how strongly a change of its current at step t reaches the readout.

Second-tier neurons are seen through the membrane alone: the threshold of `LSNN` is taken as it moved in the dense
network, so ``kappa`` is the density of the membrane where that threshold was; a refractory `LIFRefrac` is nowhere near
its threshold, which lowers ``kappa``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slamp.activity import Activity
from slamp.errors import ScoreError
from slamp.graph import SpikingGraph
from slamp.nodes import IF, LSNN, NEURON, READOUT, SYNAPTIC, WEIGHTED, Neuron
from slamp.raster import SpikeRaster
from slamp.simulate import simulate

READOUTS = ("mean", "sum", "last", "max")
REMOVED_ENERGY = 0.2


@dataclass(frozen=True, eq=False)
class Stage:
    """One layer of neurons as a change passes through it.

    Attributes:
        kappa: Spikes per unit of membrane, density of the membrane at the threshold, float64, shape (steps,).
        carry: ``rho``, share of a change of the membrane that lives on into the next step, float64, shape (steps,).
        gain: ``g``, membrane per unit of current.
        decay_syn: Share of the synaptic current lost per step; 1 for neurons without one.
        late: True if the membrane sees an input one step after it came (`LSNN`).
    """

    kappa: np.ndarray
    carry: np.ndarray
    gain: float
    decay_syn: float = 1.0
    late: bool = False


def omega(readout: str, steps: int, activity: Activity | None = None) -> np.ndarray:
    """Return the weight of every step in the readout, float64, shape (steps,).

    Args:
        readout: "mean" (1/steps), "sum" (1), "last" (1 at the last step) or "max" (the measured share of samples whose
            largest output falls on the step; needs ``activity``).
        steps: Number of steps.
        activity: Where ``peak_share`` comes from.

    Raises:
        ScoreError: Unknown readout, or "max" without a measured share.
    """
    if readout == "mean":
        return np.full(steps, 1.0 / steps)
    if readout == "sum":
        return np.ones(steps)
    if readout == "last":
        return np.concatenate([np.zeros(steps - 1), np.ones(1)])
    if readout != "max":
        raise ScoreError(f"readout: {readout!r} is unknown; allowed are {', '.join(READOUTS)}")
    if activity is None or activity.peak_share.shape != (steps,) or not activity.peak_share.any():
        raise ScoreError("readout: 'max' needs the measured share of peaks per step; calibrate first, or use 'mean'")
    return np.asarray(activity.peak_share, dtype=np.float64)


def through(stage: Stage, incoming: np.ndarray) -> np.ndarray:
    """Return the importance of a stage's input current from that of its output, both float64, shape (steps,).

    Backwards in time, with ``mu = 0`` after the last step:
    ``mu_v[t] = kappa[t] * incoming[t] + carry[t] * mu_v[t+1]``;
    ``mu_i[t] = gain * mu_v[t] + (1 - decay_syn) * mu_i[t+1]``, which is returned; where the stage is late,
    ``mu_v[t+1]`` takes the place of ``mu_v[t]``.
    """
    alpha = np.zeros(len(incoming))
    mu_v = mu_i = 0.0
    for t in reversed(range(len(incoming))):
        after = mu_v
        mu_v = stage.kappa[t] * incoming[t] + stage.carry[t] * mu_v
        mu_i = stage.gain * (after if stage.late else mu_v) + (1.0 - stage.decay_syn) * mu_i
        alpha[t] = mu_i
    return alpha


def propagate(readout_weights: np.ndarray, stages: Sequence[Stage]) -> list[np.ndarray]:
    """Return the importance behind 0, 1, 2, ... stages of a chain; ``stages`` run from the output backwards."""
    alphas = [np.asarray(readout_weights, dtype=np.float64)]
    for stage in stages:
        alphas.append(through(stage, alphas[-1]))
    return alphas


def importance(graph: SpikingGraph, activity: Activity, readout_weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return ``alpha`` of every weighted node, float64, shape (steps,).

    Stateless nodes pass importance on unchanged, several outgoing edges add up, and a layer behind which there is no
    neuron has ``alpha = readout_weights``.

    Args:
        graph: The network.
        activity: Firing rates and threshold densities of its neurons.
        readout_weights: Weight of every step in the readout, shape (steps,), see `omega`.

    Raises:
        ScoreError: The activity lacks a layer of neurons.
    """
    stages = _stages(graph, activity)
    return _walk(graph, stages, np.asarray(readout_weights, dtype=np.float64))


def single_step_importance(graph: SpikingGraph, activity: Activity, readout_weights: np.ndarray) -> dict[str, float]:
    """Return what ``alpha`` of every weighted node would be if all steps were one: ``(sum omega) * prod g * kappa``."""
    stages = {
        name: Stage(stage.kappa.mean(keepdims=True), np.zeros(1), stage.gain, stage.decay_syn)
        for name, stage in _stages(graph, activity).items()
    }
    total = np.asarray(readout_weights, dtype=np.float64).sum(keepdims=True)
    return {name: float(alpha[0]) for name, alpha in _walk(graph, stages, total).items()}


def alignment(alpha: np.ndarray, a: np.ndarray) -> float:
    """Return ``A = sum(alpha * a) / (sum(alpha) * rms(a))``: does the activity fall on the steps that count?

    Exactly 1.0 for a single step, and for a dead layer (``a`` or ``alpha`` zero throughout).
    """
    if len(a) == 1 or not alpha.any() or not a.any():
        return 1.0
    return float((alpha * a).sum() / (alpha.sum() * np.sqrt(np.mean(a * a))))


def bound_factor(alpha: np.ndarray, a: np.ndarray, alpha_single_step: float) -> float:
    """Return ``gamma = sum(alpha * a) / (alpha_single_step * rms(a))``: the distortion bound over that of one step.

    A dead layer (``a`` or ``alpha`` zero throughout) has 1.0.
    """
    if not alpha.any() or not a.any() or alpha_single_step == 0:
        return 1.0
    return float((alpha * a).sum() / (alpha_single_step * np.sqrt(np.mean(a * a))))


def measured_sensitivity(graph: SpikingGraph, raster: SpikeRaster, readout: str) -> dict[str, float]:
    """Return how much the readout changes per relative change of each layer, over the layers' geometric mean.

    For one layer after the other, the smallest weights that hold a fifth of its squared norm are removed (at least one)
    and the network is simulated. A layer whose removal changes nothing gets the smallest value that was measured.

    Raises:
        ScoreError: No removal changes the readout: the network is silent on the raster.
    """
    weights = omega("mean" if readout == "max" else readout, raster.steps)
    dense = _read_out(graph, raster, readout, weights)
    changes: dict[str, float] = {}
    for name, node in graph.weighted.items():
        weight, relative = _without_energy(node.weight)
        kind = type(node)
        fields = {field: getattr(node, field) for field in node.__dataclass_fields__}
        pruned = graph.with_nodes({name: kind(**{**fields, "weight": weight})})
        difference = _read_out(pruned, raster, readout, weights) - dense
        changes[name] = float(np.linalg.norm(difference, axis=1).mean()) / relative
    floor = min((change for change in changes.values() if change > 0), default=0.0)
    if floor == 0.0:
        raise ScoreError(
            "slamp-measured: removing weights changes no output on this raster; "
            "the network is silent there, so give samples that make it fire"
        )
    logs = {name: np.log(max(change, floor)) for name, change in changes.items()}
    middle = sum(logs.values()) / len(logs)
    return {name: float(np.exp(value - middle)) for name, value in logs.items()}


def _stages(graph: SpikingGraph, activity: Activity) -> dict[str, Stage]:
    return {name: _stage(name, node, activity) for name, node in graph.nodes.items() if isinstance(node, NEURON)}


def _stage(name: str, node: Neuron, activity: Activity) -> Stage:
    gain = 1.0 if isinstance(node, IF) else float(node.decay_mem.mean(dtype=np.float64))
    beta = 1.0 if isinstance(node, IF) else 1.0 - gain
    decay_syn = float(node.decay_syn.mean(dtype=np.float64)) if isinstance(node, SYNAPTIC) else 1.0
    if isinstance(node, READOUT):
        return Stage(np.ones(activity.steps), np.full(activity.steps, beta), gain, decay_syn)
    if name not in activity.neurons:
        raise ScoreError(
            f"{name}: the activity holds no such neurons, only {list(activity.neurons)}; calibrate this graph"
        )
    measured = activity.neurons[name]
    # A reset to a value erases what came before it; a reset by subtraction keeps it.
    carry = (
        beta * np.sqrt(np.maximum(1.0 - measured.rate, 0.0)) if node.reset == "value" else np.full(activity.steps, beta)
    )
    density = np.asarray(measured.threshold_density, dtype=np.float64)
    return Stage(density, carry, gain, decay_syn, isinstance(node, LSNN))


def _walk(graph: SpikingGraph, stages: dict[str, Stage], readout_weights: np.ndarray) -> dict[str, np.ndarray]:
    entering = {graph.output: readout_weights}
    alphas: dict[str, np.ndarray] = {}
    for name in reversed(graph.order):
        if name == graph.output:
            continue
        leaving = np.sum([entering[target] for target in graph.targets(name)], axis=0)
        if isinstance(graph.nodes[name], WEIGHTED):
            alphas[name] = leaving
        entering[name] = through(stages[name], leaving) if name in stages else leaving
    return {name: alphas[name] for name in graph.weighted}


def _without_energy(weight: np.ndarray) -> tuple[np.ndarray, float]:
    flat = weight.reshape(-1)
    energy = np.square(flat, dtype=np.float64)
    order = np.argsort(energy, kind="stable")
    held = np.cumsum(energy[order])
    removed = int(np.searchsorted(held, REMOVED_ENERGY * held[-1], side="right"))
    zeros = int(np.count_nonzero(energy == 0))
    removed = max(removed, zeros + 1)
    pruned = flat.copy()
    pruned[order[:removed]] = 0
    return pruned.reshape(weight.shape), float(np.sqrt(held[removed - 1] / held[-1]))


def _read_out(graph: SpikingGraph, raster: SpikeRaster, readout: str, weights: np.ndarray) -> np.ndarray:
    output = simulate(graph, raster).output.numpy().astype(np.float64).reshape(raster.steps, raster.batch, -1)
    result: np.ndarray = output.max(axis=0) if readout == "max" else np.tensordot(weights, output, axes=1)
    return result
