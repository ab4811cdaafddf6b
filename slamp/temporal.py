"""Which layers matter at which time steps: the temporal half of SLAMP.

Our derivation of SLAMP (arXiv 2603.14946) from its abstract and from LAMP (arXiv 2010.07611). Pruning layer l alone
changes the output by at most a common factor times ``sum_t alpha_l[t] * a_l[t]``: ``a`` is the norm of the layer's
unfolded input, ``alpha`` how strongly a change of its current at step t reaches the readout.

In a chain the norms of the weights behind a layer are one factor of all its steps, and are left out. Where paths part
and meet, or a parameter is used several times, they decide how much each path counts, so there a node multiplies
importance by its spectral norm (`slamp.norms`); outgoing edges add up, a `Delay` hands importance on to the steps
before. A recurrent edge so adds ``kappa[t] * ||W|| * alpha[t + 1]``. Amplification around a cycle would let the first
steps outweigh all others exponentially; as amplification with depth it is worst-case only, and is dropped likewise:
where the gains of cycles exceed 1, what their delays hand on is scaled down together until the largest is 1.

Second-tier neurons are seen through the membrane alone: the threshold of `LSNN` is taken as it moved in the dense
network, so ``kappa`` is the density of the membrane where that threshold was; a refractory `LIFRefrac` is nowhere near
its threshold, which lowers ``kappa``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slamp.activity import Activity
from slamp.cycles import is_chain, on_cycles
from slamp.delays import holds_back
from slamp.errors import ScoreError
from slamp.graph import SpikingGraph
from slamp.nodes import IF, LSNN, NEURON, READOUT, SYNAPTIC, WEIGHTED, Delay, Input, Neuron, Node, Output
from slamp.norms import spectral_norm
from slamp.raster import SpikeRaster
from slamp.shared import is_shared, uses_of
from slamp.simulate import simulate

READOUTS = ("mean", "sum", "last", "max")
REMOVED_ENERGY = 0.2
HALVINGS = 40


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


class _Backwards:
    """One stage, as importance passes it from the last step to the first."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.mu_v = self.mu_i = 0.0

    def step(self, t: int, incoming: float) -> float:
        """Return the importance of the input current at step ``t``, which comes before all steps asked so far."""
        stage, after = self.stage, self.mu_v
        self.mu_v = float(stage.kappa[t] * incoming + stage.carry[t] * self.mu_v)
        self.mu_i = stage.gain * (after if stage.late else self.mu_v) + (1.0 - stage.decay_syn) * self.mu_i
        return self.mu_i


def through(stage: Stage, incoming: np.ndarray) -> np.ndarray:
    """Return the importance of a stage's input current from that of its output, both float64, shape (steps,).

    Backwards in time, with ``mu = 0`` after the last step:
    ``mu_v[t] = kappa[t] * incoming[t] + carry[t] * mu_v[t+1]``;
    ``mu_i[t] = gain * mu_v[t] + (1 - decay_syn) * mu_i[t+1]``, which is returned; where the stage is late,
    ``mu_v[t+1]`` takes the place of ``mu_v[t]``.
    """
    alpha = np.zeros(len(incoming))
    backwards = _Backwards(stage)
    for t in reversed(range(len(incoming))):
        alpha[t] = backwards.step(t, incoming[t])
    return alpha


def propagate(readout_weights: np.ndarray, stages: Sequence[Stage]) -> list[np.ndarray]:
    """Return the importance behind 0, 1, 2, ... stages of a chain; ``stages`` run from the output backwards."""
    alphas = [np.asarray(readout_weights, dtype=np.float64)]
    for stage in stages:
        alphas.append(through(stage, alphas[-1]))
    return alphas


def importance(graph: SpikingGraph, activity: Activity, readout_weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return ``alpha`` of every weighted node, float64, shape (steps,).

    Several outgoing edges add up, and a layer behind which there is no neuron has ``alpha = readout_weights``. In a
    chain stateless nodes pass importance on unchanged; other graphs see the head of this module.

    Args:
        graph: The network.
        activity: Firing rates and threshold densities of its neurons.
        readout_weights: Weight of every step in the readout, shape (steps,), see `omega`.

    Raises:
        ScoreError: The activity lacks a layer of neurons.
    """
    stages = _stages(graph, activity)
    return _walk(graph, stages, np.asarray(readout_weights, dtype=np.float64), _factors(graph, stages, activity.steps))


def single_step_importance(graph: SpikingGraph, activity: Activity, readout_weights: np.ndarray) -> dict[str, float]:
    """Return what ``alpha`` of every weighted node would be if all steps were one: ``(sum omega) * prod g * kappa``.

    A delay on a cycle then hands nothing on, any other everything.
    """
    measured = _stages(graph, activity)
    stages = {
        name: Stage(stage.kappa.mean(keepdims=True), np.zeros(1), stage.gain, stage.decay_syn)
        for name, stage in measured.items()
    }
    total = np.asarray(readout_weights, dtype=np.float64).sum(keepdims=True)
    factors = _factors(graph, measured, activity.steps)
    alphas = _walk(_at_once(graph), stages, total, factors)
    return {name: float(alphas[name][0]) for name in graph.weighted}


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


def joint_alignment(uses: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return ``A`` of a weight from (``alpha``, ``a``) of each of its uses, whose distortions add up.

    That is ``sum_u sum_t alpha a / sum_u (sum_t alpha * rms_t a)``: the alignments of the uses, weighted by what they
    would distort if their activity were constant. Dead uses do not count.
    """
    weights = [float(alpha.sum() * np.sqrt(np.mean(a * a))) for alpha, a in uses]
    return _joint([alignment(alpha, a) for alpha, a in uses], weights)


def joint_bound(uses: Sequence[tuple[np.ndarray, np.ndarray]], alphas_single_step: Sequence[float]) -> float:
    """Return ``gamma`` of a weight from those of its uses, whose distortions add up, see `joint_alignment`."""
    pairs = list(zip(uses, alphas_single_step, strict=True))
    weights = [float(single * np.sqrt(np.mean(a * a))) for (_, a), single in pairs]
    return _joint([bound_factor(alpha, a, single) for (alpha, a), single in pairs], weights)


def _joint(factors: Sequence[float], weights: Sequence[float]) -> float:
    total = sum(weights)
    if len(factors) == 1 or not total > 0:
        return factors[0]
    return sum(factor * weight for factor, weight in zip(factors, weights, strict=True)) / total


def measured_sensitivity(graph: SpikingGraph, raster: SpikeRaster, readout: str) -> dict[str, float]:
    """Return how much the readout changes per relative change of each layer, over the layers' geometric mean.

    For one layer after the other, the smallest weights that hold a fifth of its squared norm are removed (at least one)
    and the network is simulated. A layer whose removal changes nothing gets the smallest value that was measured.
    Uses of one parameter lose their weights together, and are named by the first of them.

    Raises:
        ScoreError: No removal changes the readout: the network is silent on the raster.
    """
    weights = omega("mean" if readout == "max" else readout, raster.steps)
    dense = _read_out(graph, raster, readout, weights)
    changes: dict[str, float] = {}
    for name, uses in uses_of(graph).items():
        weight, relative = _without_energy(graph.weighted[name].weight)
        pruned = graph.with_nodes({use: replace(graph.weighted[use], weight=weight) for use in uses})
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


def _walk(
    graph: SpikingGraph, stages: dict[str, Stage], readout_weights: np.ndarray, factors: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Carry importance from the output back to every weighted node, step by step, for cycles reach back in time."""
    steps = len(readout_weights)
    names = [name for name in reversed(graph.order) if name != graph.output]
    targets = {name: graph.targets(name) for name in names}
    passing = {name: _Backwards(stage) for name, stage in stages.items()}
    late = {name: _shares_of_steps(node) for name in names if isinstance(node := graph.nodes[name], Delay)}
    # What leaves a node, kept where later steps are asked for; what enters it is that of the step at hand.
    leaving = {name: np.zeros(steps) for name in names if name in late or isinstance(graph.nodes[name], WEIGHTED)}
    held = [name for name in late if holds_back(graph.nodes[name])]
    for t in reversed(range(steps)):
        entering = {graph.output: float(readout_weights[t])}
        for name in held:  # what they hand on left them in later steps
            entering[name] = factors.get(name, 1.0) * _handed_on(late[name], leaving[name], t)
        for name in names:
            found = sum([entering[target] for target in targets[name]], 0.0)
            if name in leaving:
                leaving[name][t] = found
            if name in passing:
                entering[name] = passing[name].step(t, found)
            elif name in late:
                entering[name] = factors.get(name, 1.0) * _handed_on(late[name], leaving[name], t)
            else:
                entering[name] = factors.get(name, 1.0) * found
    return {name: leaving[name] for name in graph.weighted}


def _shares_of_steps(node: Delay) -> list[tuple[int, float]]:
    """Return every number of steps a delay waits, with the share of its features that do."""
    steps, counts = np.unique(node.steps, return_counts=True)
    return [(int(step), count / node.steps.size) for step, count in zip(steps, counts.tolist(), strict=True)]


def _handed_on(late: list[tuple[int, float]], leaving: np.ndarray, t: int) -> float:
    return float(sum([share * leaving[t + step] for step, share in late if t + step < len(leaving)], 0.0))


def _at_once(graph: SpikingGraph) -> SpikingGraph:
    """Return the graph whose delays that lie on no cycle wait for nothing."""
    bound = on_cycles(graph)
    waiting = {
        name: replace(node, steps=np.zeros_like(node.steps))
        for name, node in graph.nodes.items()
        if isinstance(node, Delay) and name not in bound
    }
    return graph.with_nodes(waiting) if waiting else graph


def _factors(graph: SpikingGraph, stages: Mapping[str, Stage], steps: int) -> dict[str, float]:
    """Return what importance is multiplied by where it passes a node without neurons; empty in a chain."""
    if is_chain(graph) and not is_shared(graph):
        return {}
    factors = {name: spectral_norm(graph, name) for name in graph.order if _is_stateless(graph.nodes[name])}
    circling = on_cycles(graph)
    bound = [name for name in graph.order if name in circling]
    late = {name for name in bound if holds_back(graph.nodes[name])}
    gains = {name: _gain_of(stages[name], steps) if name in stages else factors.get(name, 1.0) for name in bound}
    edges = np.array([[float(target in graph.targets(name)) for target in bound] for name in bound])

    def turn(share: float) -> float:
        """Largest gain around a cycle (of each node on it) if its delays handed that share on."""
        passed = np.array([share if name in late else gains[name] for name in bound])
        return float(np.abs(np.linalg.eigvals(edges * passed[:, None])).max())

    if not bound or turn(1.0) <= 1.0:
        return factors
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if turn(middle) <= 1.0 else (low, middle)
    return {**factors, **dict.fromkeys(late, low)}


def _is_stateless(node: Node) -> bool:
    return not isinstance(node, (Input, Output, Delay, *NEURON))


def _gain_of(stage: Stage, steps: int) -> float:
    """Return how much of a lasting change passes a stage within ``steps`` steps, at its mean slope and memory."""
    mean = replace(stage, kappa=np.full(steps, stage.kappa.mean()), carry=np.full(steps, stage.carry.mean()))
    last = np.zeros(steps)
    last[-1] = 1.0
    return float(through(mean, last).sum())


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
